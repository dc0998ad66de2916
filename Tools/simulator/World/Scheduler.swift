/// Virtual time and the one queue of everything that will happen.
///
/// Single-threaded: events, event loops, pool work and client tasks all run inside ``run(until:)`` on the thread
/// that calls it, in the order of their times; events of one time run in the order in which they were asked for.
// SAFETY: confined to the thread that runs the simulation; nothing of it is reached from another.
package final class Scheduler: @unchecked Sendable {
    /// Monotonic nanoseconds. Starts well above zero: some code subtracts intervals from it.
    package private(set) var now: Int64 = 1_000_000_000_000
    /// How far the broker's wall clock is from its clients', in milliseconds; a jump when it is set.
    var wallClockOffset: Int64 = 0
    private var heap = EventHeap()
    private var nextSequence: UInt64 = 0
    private var jobs: [UnownedJob] = []
    private var nextJob = 0
    private(set) var eventCount = 0
    /// Runs after each event and before the next; a crash takes effect here.
    package var afterEvent: () -> Void = {}

    package init() {}

    /// Calls `body` at `time`, or now if that is past.
    @discardableResult
    package func at(_ time: Int64, _ body: @escaping () -> Void) -> ScheduledEvent {
        let event = ScheduledEvent(body: body)
        heap.insert(event, at: max(now, time), sequence: nextSequence)
        nextSequence += 1
        return event
    }

    @discardableResult
    package func after(_ nanoseconds: Int64, _ body: @escaping () -> Void) -> ScheduledEvent {
        at(now &+ max(0, nanoseconds), body)
    }

    /// Runs events until `time`, or until `isDone` says so.
    package func run(until time: Int64, isDone: () -> Bool = { false }) {
        drainJobs()
        while let next = heap.firstTime, next <= time, !isDone() {
            now = next
            guard let body = heap.removeFirst()?.take() else { continue }
            eventCount += 1
            body()
            afterEvent()
            drainJobs()
        }
        if !isDone() { now = max(now, time) }
    }

    /// Continues tasks until all of them wait.
    package func drainJobs() {
        while nextJob < jobs.count {
            let job = jobs[nextJob]
            nextJob += 1
            job.runSynchronously(on: executor.asUnownedTaskExecutor())
        }
        jobs.removeAll(keepingCapacity: true)
        nextJob = 0
    }

    /// Runs client tasks within the scheduler's own loop.
    package private(set) lazy var executor = VirtualExecutor(scheduler: self)

    fileprivate func enqueue(_ job: UnownedJob) { jobs.append(job) }
}

/// Puts the continuations of tasks into the scheduler's queue, so that clients can be written as ordinary
/// asynchronous functions and still run in one fixed order on one thread.
// SAFETY: jobs are enqueued and run on the simulation's thread alone.
package final class VirtualExecutor: TaskExecutor, @unchecked Sendable {
    private unowned let scheduler: Scheduler

    fileprivate init(scheduler: Scheduler) { self.scheduler = scheduler }

    package func enqueue(_ job: consuming ExecutorJob) { scheduler.enqueue(UnownedJob(job)) }
}

/// An event that may be taken back before it happens.
package final class ScheduledEvent {
    private var body: (() -> Void)?

    fileprivate init(body: @escaping () -> Void) { self.body = body }

    package func cancel() { body = nil }

    fileprivate func take() -> (() -> Void)? {
        defer { body = nil }
        return body
    }
}

/// Binary heap by time, then by order of insertion. Sifting moves plain numbers; the events stay where they are.
private struct EventHeap {
    struct Key {
        var time: Int64
        var sequence: UInt64
        /// Index of the event in `slots`.
        var slot: Int

        static func precedes(_ left: Key, _ right: Key) -> Bool {
            left.time == right.time ? left.sequence < right.sequence : left.time < right.time
        }
    }

    private var keys: [Key] = []
    private var slots: [ScheduledEvent?] = []
    private var free: [Int] = []

    var firstTime: Int64? { keys.first?.time }

    mutating func insert(_ event: ScheduledEvent, at time: Int64, sequence: UInt64) {
        let slot: Int
        if let reused = free.popLast() {
            slot = reused
            slots[slot] = event
        } else {
            slot = slots.count
            slots.append(event)
        }
        let key = Key(time: time, sequence: sequence, slot: slot)
        keys.append(key)
        var child = keys.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard Key.precedes(key, keys[parent]) else { break }
            keys[child] = keys[parent]
            child = parent
        }
        keys[child] = key
    }

    mutating func removeFirst() -> ScheduledEvent? {
        guard let first = keys.first else { return nil }
        let last = keys.removeLast()
        if !keys.isEmpty {
            var parent = 0
            while true {
                var child = 2 * parent + 1
                guard child < keys.count else { break }
                if child + 1 < keys.count, Key.precedes(keys[child + 1], keys[child]) { child += 1 }
                guard Key.precedes(keys[child], last) else { break }
                keys[parent] = keys[child]
                parent = child
            }
            keys[parent] = last
        }
        free.append(first.slot)
        defer { slots[first.slot] = nil }
        return slots[first.slot]
    }
}
