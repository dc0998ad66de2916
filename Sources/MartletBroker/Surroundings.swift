internal import Glibc
package import MartletLogModel
package import MartletStorage
package import MartletTransport
package import NIOCore
package import NIOPosix

/// What a broker takes from the machine under it: device, threads, time, chance. The simulator gives its own;
/// everything above is the very code that production runs. The event loops are the third thing it gives.
package struct Surroundings: Sendable {
    package var disk: AnyDisk
    /// Threads that wait for the device in `fdatasync`. Concurrent flushes of several files share one
    /// commit of the file system's journal, so there are more of them than cores.
    package var flushPool: any WorkQueue
    /// Threads for everything else that blocks or computes for long: opening and recovery, cold reads,
    /// inflating compressed batches, compaction.
    package var workPool: any WorkQueue
    package var clock: BrokerClock
    package var random: RandomSource
    package var peers: any PeerNetwork
    /// Empty outside of the simulator's mutation table.
    package var suspended: SuspendedRules

    package init(
        disk: AnyDisk, flushPool: any WorkQueue, workPool: any WorkQueue, clock: BrokerClock, random: RandomSource,
        peers: any PeerNetwork = MachineNetwork(), suspended: SuspendedRules = []
    ) {
        self.disk = disk
        self.flushPool = flushPool
        self.workPool = workPool
        self.clock = clock
        self.random = random
        self.peers = peers
        self.suspended = suspended
    }

    static func machine(flushPool: NIOThreadPool, workPool: NIOThreadPool) -> Surroundings {
        Surroundings(
            disk: AnyDisk(PosixDisk()), flushPool: flushPool, workPool: workPool, clock: .machine, random: .system)
    }
}

/// Opens connections to other brokers; the simulator gives its own.
package protocol PeerNetwork: Sendable {
    /// On `loop`, where `completion` runs too, possibly before this returns.
    func connect(
        to address: BrokerSettings.Address, on loop: any EventLoop, settings: ClientConnection.Settings,
        completion: @escaping (Result<ClientConnection, ClientConnectionError>) -> Void)
}

/// Sockets of the machine.
package struct MachineNetwork: PeerNetwork {
    package init() {}

    package func connect(
        to address: BrokerSettings.Address, on loop: any EventLoop, settings: ClientConnection.Settings,
        completion: @escaping (Result<ClientConnection, ClientConnectionError>) -> Void
    ) {
        ClientConnection.connect(
            host: address.host, port: address.port, loop: loop, settings: settings, completion: completion)
    }
}

/// Runs work away from the event loops.
package protocol WorkQueue: Sendable {
    @preconcurrency
    func submit(_ body: @escaping @Sendable (NIOThreadPool.WorkItemState) -> Void)
}

extension NIOThreadPool: WorkQueue {}

extension WorkQueue {
    /// The future completes on `eventLoop`; it fails if the queue has ended.
    func runIfActive<Result: Sendable>(
        eventLoop: any EventLoop, _ body: @escaping @Sendable () throws -> Result
    ) -> EventLoopFuture<Result> {
        let promise = eventLoop.makePromise(of: Result.self)
        submit { state in
            switch state {
            case .active: promise.completeWith(Swift.Result(catching: body))
            case .cancelled: promise.fail(ChannelError.ioOnClosedChannel)
            }
        }
        return promise.futureResult
    }
}

/// The wall clock. Monotonic time is the event loops'.
package struct BrokerClock: Sendable {
    private let simulated: (@Sendable () -> Timestamp)?

    package static let machine = BrokerClock(simulated: nil)

    private init(simulated: (@Sendable () -> Timestamp)?) { self.simulated = simulated }

    package init(_ simulated: @escaping @Sendable () -> Timestamp) { self.init(simulated: simulated) }

    package var wallTime: Timestamp {
        if let simulated { return simulated() }
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Timestamp(milliseconds: Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000)
    }
}

/// Random bits for identifiers.
package struct RandomSource: RandomNumberGenerator, Sendable {
    private let simulated: (@Sendable () -> UInt64)?

    package static let system = RandomSource(simulated: nil)

    private init(simulated: (@Sendable () -> UInt64)?) { self.simulated = simulated }

    package init(_ simulated: @escaping @Sendable () -> UInt64) { self.init(simulated: simulated) }

    package mutating func next() -> UInt64 {
        if let simulated { return simulated() }
        var generator = SystemRandomNumberGenerator()
        return generator.next()
    }
}
