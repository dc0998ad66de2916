package import Dispatch
package import NIOCore

/// An event loop of a simulated broker. Tasks run in the order in which they were given; how the turns of
/// several loops mix is drawn from the seed. After ``kill()`` nothing of it runs any more.
// SAFETY: confined to the thread that runs the simulation.
package final class VirtualEventLoop: EventLoop, @unchecked Sendable {
    /// Longest time between a wake-up and the turn, in nanoseconds.
    private static let wakeUpLimit: Int64 = 20_000

    private let scheduler: Scheduler
    private var random: SimulationRandom
    private var tasks: [() -> Void] = []
    private var isRunning = false
    private var turnIsScheduled = false
    private(set) var isDead = false

    init(scheduler: Scheduler, random: SimulationRandom) {
        self.scheduler = scheduler
        self.random = random
    }

    package var inEventLoop: Bool { isRunning }

    package var now: NIODeadline { .uptimeNanoseconds(UInt64(clamping: scheduler.now)) }

    package func execute(_ task: @escaping () -> Void) {
        guard !isDead else { return Graveyard.bury(task) }
        tasks.append(task)
        guard !isRunning, !turnIsScheduled else { return }
        turnIsScheduled = true
        scheduler.after(Int64.random(in: 0...Self.wakeUpLimit, using: &random)) { self.runTurn() }
    }

    private func runTurn() {
        turnIsScheduled = false
        isRunning = true
        var next = 0
        while next < tasks.count, !isDead {
            let task = tasks[next]
            next += 1
            task()
        }
        if isDead { return }
        tasks.removeAll(keepingCapacity: true)
        isRunning = false
    }

    /// Runs `body` as part of this loop, at once, before anything else has run there.
    func enter(_ body: () -> Void) {
        guard !isDead, !isRunning else { return }
        isRunning = true
        body()
        isRunning = false
        guard !tasks.isEmpty, !turnIsScheduled else { return }
        turnIsScheduled = true
        scheduler.after(0) { self.runTurn() }
    }

    func kill() {
        isDead = true
        isRunning = false
        Graveyard.bury(tasks)
        tasks = []
    }

    package func scheduleTask<T>(
        deadline: NIODeadline, _ task: @escaping () throws -> T
    ) -> Scheduled<T> {
        let promise = makePromise(of: T.self)
        let event = scheduler.at(Int64(clamping: deadline.uptimeNanoseconds)) {
            self.execute {
                do { promise.assumeIsolated().succeed(try task()) } catch { promise.fail(error) }
            }
        }
        // SAFETY: cancelled on the simulation's thread alone.
        nonisolated(unsafe) let scheduled = event
        return Scheduled(promise: promise, cancellationTask: { scheduled.cancel() })
    }

    package func scheduleTask<T>(in delay: TimeAmount, _ task: @escaping () throws -> T) -> Scheduled<T> {
        scheduleTask(deadline: now + delay, task)
    }

    package func shutdownGracefully(queue: DispatchQueue, _ callback: @escaping ((any Error)?) -> Void) {
        preconditionFailure("a virtual loop ends with its broker's process")
    }
}
