/// Virtual time and the one queue of everything that will happen.
///
/// Single-threaded: events, event loops, pool work and client tasks all run inside ``run(until:)`` on the thread
/// that calls it, in the order of their times; events of one time run in the order in which they were asked for.
// SAFETY: confined to the thread that runs the simulation; nothing of it is reached from another.
package final class Scheduler: @unchecked Sendable {
    /// Monotonic nanoseconds. Starts well above zero: some code subtracts intervals from it.
    package private(set) var now: Int64 = 1_000_000_000_000
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
        let event = ScheduledEvent(time: max(now, time), sequence: nextSequence, body: body)
        nextSequence += 1
        heap.insert(event)
        return event
    }

    @discardableResult
    package func after(_ nanoseconds: Int64, _ body: @escaping () -> Void) -> ScheduledEvent {
        at(now &+ max(0, nanoseconds), body)
    }

    /// Runs events until `time`, or until `isDone` says so.
    package func run(until time: Int64, isDone: () -> Bool = { false }) {
        drainJobs()
        while let event = heap.first, event.time <= time, !isDone() {
            heap.removeFirst()
            now = event.time
            guard let body = event.take() else { continue }
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
    fileprivate let time: Int64
    fileprivate let sequence: UInt64
    private var body: (() -> Void)?

    fileprivate init(time: Int64, sequence: UInt64, body: @escaping () -> Void) {
        self.time = time
        self.sequence = sequence
        self.body = body
    }

    package func cancel() { body = nil }

    fileprivate func take() -> (() -> Void)? {
        defer { body = nil }
        return body
    }

    fileprivate static func precedes(_ left: ScheduledEvent, _ right: ScheduledEvent) -> Bool {
        left.time == right.time ? left.sequence < right.sequence : left.time < right.time
    }
}

/// Binary heap by time, then by order of insertion.
private struct EventHeap {
    private var events: [ScheduledEvent] = []

    var first: ScheduledEvent? { events.first }

    mutating func insert(_ event: ScheduledEvent) {
        events.append(event)
        var child = events.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard ScheduledEvent.precedes(events[child], events[parent]) else { break }
            events.swapAt(child, parent)
            child = parent
        }
    }

    mutating func removeFirst() {
        let last = events.removeLast()
        guard !events.isEmpty else { return }
        events[0] = last
        var parent = 0
        while true {
            var smallest = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < events.count {
                if ScheduledEvent.precedes(events[child], events[smallest]) { smallest = child }
            }
            guard smallest != parent else { return }
            events.swapAt(parent, smallest)
            parent = smallest
        }
    }
}
