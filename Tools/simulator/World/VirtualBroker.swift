internal import Logging
internal import MartletBroker
internal import MartletLogModel
internal import MartletSimulatorKit
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// The process of the broker: the very code of production on virtual loops, queues, clock and disk. It dies and
/// starts again; its disk stays.
final class VirtualBroker {
    /// Wall clock at virtual time zero, in milliseconds since 1970.
    private static let epochMilliseconds: Int64 = 1_700_000_000_000
    private static let startTime: Int64 = 1_000_000_000_000
    /// How soon a start that failed is tried again.
    private static let restartInterval: Int64 = 1_000_000_000

    private let scheduler: Scheduler
    private let network: VirtualNetwork
    private let trace: Trace
    private let seed: UInt64
    private let settings: BrokerSettings
    private let loopCount: Int
    private let rules: SuspendedRules
    private(set) var disk = SimulatedDisk()
    private var process: Process?
    private var incarnation = 0
    /// How much slower the disk is than usual.
    var diskSlowness: Int64 = 1
    /// The disk stops the process at an operation; then this is what becomes of the disk.
    private var pendingCrash: Crash?

    enum Crash {
        /// kill -9: the machine goes on.
        case process
        /// The power fails: what was not synced may be lost, by any of the disk's rules.
        case power(UInt64)
    }

    private struct Process {
        var assembly: BrokerAssembly
        var maintenance: Maintenance
        var loops: [VirtualEventLoop]
        var queue: VirtualWorkQueue
    }

    init(
        scheduler: Scheduler, network: VirtualNetwork, trace: Trace, seed: UInt64, settings: BrokerSettings,
        loopCount: Int, rules: SuspendedRules
    ) {
        self.scheduler = scheduler
        self.network = network
        self.trace = trace
        self.seed = seed
        self.settings = settings
        self.loopCount = loopCount
        self.rules = rules
        network.accept = { [unowned self] in self.accept($0) }
    }

    var isRunning: Bool { process != nil }

    /// It runs until the disk has done some further operations.
    var isDoomed: Bool { pendingCrash != nil }

    /// Takes a crash back that has not happened yet.
    func spare() {
        guard pendingCrash != nil else { return }
        pendingCrash = nil
        disk.clearStop()
    }

    // MARK: Life

    /// Starts, or tries again after a while.
    func start() {
        guard process == nil else { return }
        incarnation += 1
        func random(_ purpose: String) -> SimulationRandom {
            SimulationRandom(seed: seed, purpose: "\(purpose) \(incarnation)")
        }
        let scheduler = self.scheduler
        let loops = (0..<loopCount).map { VirtualEventLoop(scheduler: scheduler, random: random("loop \($0)")) }
        let queue = VirtualWorkQueue(scheduler: scheduler, random: random("queue")) { [unowned self] in
            self.diskSlowness
        }
        let identifiers = random("identifiers")
        let surroundings = Surroundings(
            disk: AnyDisk(disk), flushPool: queue, workPool: queue,
            clock: BrokerClock {
                Timestamp(
                    milliseconds: Self.epochMilliseconds + (scheduler.now - Self.startTime) / 1_000_000
                        + scheduler.wallClockOffset)
            },
            random: RandomSource { identifiers.next() }, suspended: rules)
        do {
            let assembly = try BrokerAssembly.open(
                settings, surroundings: surroundings, eventLoops: loops, logger: logger())
            for (loop, shell) in zip(loops, assembly.loops) { loop.enter { assembly.prepare(shell) } }
            let maintenance = Maintenance(services: assembly.services)
            loops[0].enter {
                assembly.begin()
                maintenance.start()
            }
            process = Process(assembly: assembly, maintenance: maintenance, loops: loops, queue: queue)
            trace.note("start", "incarnation \(incarnation)")
        } catch {
            trace.note("start", "incarnation \(incarnation) failed: \(error)")
            queue.kill()
            for loop in loops { loop.kill() }
            disk.clearStop()
        disk.processEnded()
            scheduler.after(Self.restartInterval) { self.start() }
        }
    }

    private func logger() -> Logger {
        let trace = self.trace
        // SAFETY: the trace is written on the simulation's thread alone.
        nonisolated(unsafe) let sink = trace
        var logger = Logger(label: "broker") { _ in TraceLog(sink) }
        logger.logLevel = trace.isOn ? .debug : .critical
        return logger
    }

    /// The process dies when the disk has done so many further operations, or at the end of this event.
    func crash(_ crash: Crash, afterOperations count: Int) {
        guard process != nil, pendingCrash == nil else { return }
        pendingCrash = crash
        disk.stop(afterOperations: count)
        dieIfStopped()
    }

    /// To be called after each event.
    func dieIfStopped() {
        guard let crash = pendingCrash, disk.hasStopped else { return }
        pendingCrash = nil
        trace.note("crash", "\(crash) after \(disk.operationCount) operations")
        end()
        if case .power(let image) = crash { disk = disk.crashed(seed: image) }
    }

    /// Stops the process without a word, whatever it is doing.
    func end() {
        guard let process else { return }
        self.process = nil
        network.brokerDied()
        process.queue.kill()
        for loop in process.loops { loop.kill() }
        Graveyard.bury((process, process.assembly.services.loops.all, process.loops))
        process.assembly.dismantle()
        disk.clearStop()
        disk.processEnded()
    }

    // MARK: Connections

    private func accept(_ connection: VirtualConnection) -> VirtualChannel? {
        guard let process else { return nil }
        let loop = process.loops[connection.id % process.loops.count]
        let channel = VirtualChannel(loop: loop)
        let assembly = process.assembly
        loop.execute {
            guard let handler = assembly.makeConnection(on: loop) else { return channel.peerClosed() }
            do {
                try channel.open(handler)
            } catch {
                preconditionFailure("a fresh channel takes its handler: \(error)")
            }
        }
        return channel
    }
}

/// Threads of a simulated broker: work is done at a moment drawn from the seed.
// SAFETY: confined to the thread that runs the simulation.
final class VirtualWorkQueue: WorkQueue, @unchecked Sendable {
    private let scheduler: Scheduler
    private let random: SimulationRandom
    private let slowness: () -> Int64
    private var isDead = false

    init(scheduler: Scheduler, random: SimulationRandom, slowness: @escaping () -> Int64) {
        self.scheduler = scheduler
        self.random = random
        self.slowness = slowness
    }

    func submit(_ body: @escaping @Sendable (NIOThreadPool.WorkItemState) -> Void) {
        guard !isDead else { return Graveyard.bury(body) }
        let wait = random.chance(95) ? random.int(20_000..<1_000_000) : random.int(1_000_000..<30_000_000)
        scheduler.after(Int64(wait) * slowness()) { if self.isDead { Graveyard.bury(body) } else { body(.active) } }
    }

    func kill() { isDead = true }
}

/// The broker's log goes into the trace.
// SAFETY: the trace is written on the simulation's thread alone.
private struct TraceLog: LogHandler, @unchecked Sendable {
    private let trace: Trace
    var logLevel: Logger.Level = .debug
    var metadata: Logger.Metadata = [:]

    init(_ trace: Trace) { self.trace = trace }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let facts = (event.metadata ?? [:]).sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        trace.note("log", "\(event.level) \(event.message)\(facts)")
    }
}
