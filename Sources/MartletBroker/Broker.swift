public import Logging
internal import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import MartletTransport
internal import NIOCore
internal import NIOPosix
internal import Synchronization

/// Why a broker did not start.
public struct BrokerStartError: Error, Sendable, CustomStringConvertible {
    public var description: String

    package init(_ description: String) { self.description = description }
}

/// A running broker: listener, event loops, partitions, controller. What `martletd` runs, and what a program
/// embeds that wants a broker of its own, for example in tests.
///
/// ```swift
/// let broker = try await Broker.start(BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: path))
/// print(broker.address)
/// await broker.shutDown()
/// ```
public final class Broker: Sendable {
    private struct Running: Sendable {
        var listener: ServerListener
        var loops: LoopRegistry
        var controller: ControllerShell
        var maintenance: Maintenance
        var services: BrokerServices
        var group: MultiThreadedEventLoopGroup
    }

    /// Threads that wait in fdatasync; see ``BrokerServices/flushPool``.
    private static let flushThreadCount = 32

    /// Where the broker listens, with the port the kernel chose if 0 was asked for.
    public let address: BrokerSettings.Address
    /// Identity of the cluster, kept in the data directory.
    public let clusterID: String
    private let logger: Logger
    private let running: Mutex<Running?>

    private init(address: BrokerSettings.Address, clusterID: String, logger: Logger, running: Running) {
        self.address = address
        self.clusterID = clusterID
        self.logger = logger
        self.running = Mutex(running)
    }

    /// Opens the data directory, loads the metadata, and serves. Returns once the broker accepts requests.
    public static func start(
        _ settings: BrokerSettings, logger: Logger = Logger(label: "martlet.broker")
    ) async throws -> Broker {
        let coreCount = System.coreCount
        let group = MultiThreadedEventLoopGroup(numberOfThreads: max(1, settings.eventLoopCount ?? coreCount))
        let flushPool = NIOThreadPool(numberOfThreads: flushThreadCount)
        let workPool = NIOThreadPool(numberOfThreads: max(2, coreCount))
        flushPool.start()
        workPool.start()
        do {
            return try await start(
                settings, group: group, flushPool: flushPool, workPool: workPool, logger: logger)
        } catch {
            try await flushPool.shutdownGracefully()
            try await workPool.shutdownGracefully()
            try await group.shutdownGracefully()
            if let error = error as? BrokerStartError { throw error }
            throw BrokerStartError("the broker cannot start: \(error)")
        }
    }

    private static func start(
        _ settings: BrokerSettings, group: MultiThreadedEventLoopGroup, flushPool: NIOThreadPool,
        workPool: NIOThreadPool, logger: Logger
    ) async throws -> Broker {
        let eventLoops = Array(group.makeIterator())
        let controllerLoop = eventLoops[0]
        let (directory, controller) = try await workPool.runIfActive {
            try open(settings, controllerLoop: controllerLoop, flushPool: flushPool, logger: logger)
        }
        let image = controller.image
        let limits = ConnectionLimits(image.brokerConfiguration)
        let budget = MemoryBudget(limit: image.brokerConfiguration.queuedMaxRequestBytes ?? defaultRequestBudget)
        let registry = LoopRegistry()
        let services = BrokerServices(
            settings: settings, logger: logger, budget: budget, flushPool: flushPool, workPool: workPool,
            directory: directory, controller: controller, loops: registry)
        let loops = eventLoops.enumerated().map { index, eventLoop in
            BrokerLoop(index: index, eventLoop: eventLoop, services: services, loopCount: eventLoops.count)
        }
        registry.install(loops)
        for loop in loops {
            try await loop.eventLoop.submit { loop.apply(image) }.get()
        }
        controller.install(loops: loops)
        for loop in loops { loop.post { $0.transactions.resume() } }
        let connections = ConnectionCounter(limit: image.brokerConfiguration.maxConnections)
        let listener: ServerListener
        do {
            listener = try await ServerListener.bind(
                host: settings.listen.host, port: settings.listen.port, group: group, logger: logger
            ) { eventLoop in
                guard let id = connections.open() else {
                    logger.warning(
                        "connection refused", metadata: ["cause": "max.connections=\(connections.limit) is reached"])
                    return nil
                }
                let loop = registry.loop(for: eventLoop)
                return ServerConnection(
                    id: id, loop: eventLoop, handler: RequestDispatcher(loop: loop, closed: { connections.close() }),
                    limits: limits, budget: budget, logger: logger)
            }
        } catch {
            await abandon(loops, controller, directory, workPool, logger)
            throw BrokerStartError(
                "cannot listen on \(settings.listen): \(error); choose another --listen address or stop what uses it")
        }
        let maintenance = Maintenance(services: services)
        maintenance.start()
        let port = listener.address.port ?? settings.listen.port
        let address = BrokerSettings.Address(host: settings.listen.host, port: port)
        logger.info(
            "broker is serving",
            metadata: [
                "address": "\(address)", "cluster": "\(image.clusterID?.description ?? "")",
                "data": "\(settings.dataDirectory)", "topics": "\(image.topicCount)",
                "partitions": "\(image.partitionCount)",
            ])
        return Broker(
            address: address, clusterID: image.clusterID?.description ?? "", logger: logger,
            running: Running(
                listener: listener, loops: registry, controller: controller, maintenance: maintenance,
                services: services, group: group))
    }

    /// Gives back what a start had taken that fails: a later one, in this process too, finds the directory free.
    private static func abandon(
        _ loops: [BrokerLoop], _ controller: ControllerShell, _ directory: LogDirectory<PosixDisk>,
        _ workPool: NIOThreadPool, _ logger: Logger
    ) async {
        do {
            for loop in loops {
                try await loop.eventLoop.flatSubmit { loop.closePartitions(clean: true) }.get()
            }
            try await controller.close().get()
            try await workPool.runIfActive { try directory.close(clean: true) }
        } catch {
            logger.error("the data directory was not closed cleanly", metadata: ["cause": "\(error)"])
        }
    }

    /// `queued.max.request.bytes` when it is not set.
    private static let defaultRequestBudget = 256 * 1024 * 1024

    /// The blocking part of the start: directory, metadata, registration of this broker.
    private static func open(
        _ settings: BrokerSettings, controllerLoop: any EventLoop, flushPool: NIOThreadPool, logger: Logger
    ) throws -> (LogDirectory<PosixDisk>, ControllerShell) {
        let disk = PosixDisk()
        var generator = SystemRandomNumberGenerator()
        let known = try disk.readAll(settings.dataDirectory + "/" + MetaProperties.fileName, limit: 1 << 16)
        let clusterID = known == nil ? UniversalID.random(using: &generator) : nil
        var configuration = LogDirectory<PosixDisk>.Configuration()
        configuration.reserveBytes = settings.reserveBytes
        let directory = try LogDirectory.open(
            settings.dataDirectory, disk: disk, clusterID: clusterID?.description, nodeID: settings.nodeID,
            newDirectoryID: .random(using: &generator), configuration: configuration)
        do {
            return try (directory, load(settings, directory, disk, controllerLoop, flushPool, logger))
        } catch {
            try directory.close(clean: false)
            throw error
        }
    }

    private static func load(
        _ settings: BrokerSettings, _ directory: LogDirectory<PosixDisk>, _ disk: PosixDisk,
        _ controllerLoop: any EventLoop, _ flushPool: NIOThreadPool, _ logger: Logger
    ) throws -> ControllerShell {
        for removal in directory.unfinishedDeletions() {
            flushPool.submit { _ in
                do throws(StorageError) {
                    try removal.run()
                } catch {
                    logger.error("files not removed", metadata: ["folder": "\(removal.folder)", "cause": "\(error)"])
                }
            }
        }
        for name in directory.unknownNames {
            logger.warning("unknown folder in the data directory is left alone", metadata: ["name": "\(name)"])
        }
        guard let cluster = UniversalID(directory.meta.clusterID) else {
            throw BrokerStartError("cluster id '\(directory.meta.clusterID)' in meta.properties is not a valid id")
        }
        let controller = try ControllerShell(
            eventLoop: controllerLoop, directory: directory, disk: disk, nodeID: settings.nodeID, clusterID: cluster,
            staticValues: settings.values, logger: logger
        ) { work, done in flushPool.submit { _ in done(work.run()) } }
        try register(settings, directory: directory, controller: controller, cluster: cluster)
        return controller
    }

    /// Each start is a new incarnation with a new broker epoch (KIP-631), unfenced at once: alone there is no
    /// older state to catch up with.
    private static func register(
        _ settings: BrokerSettings, directory: LogDirectory<PosixDisk>, controller: ControllerShell,
        cluster: UniversalID
    ) throws {
        var generator = SystemRandomNumberGenerator()
        var request = BrokerRegistrationRequest()
        request.brokerID = settings.nodeID.rawValue
        request.clusterID = cluster.description
        request.incarnationID = .random(using: &generator)
        let address = settings.advertised ?? settings.listen
        var listener = BrokerRegistrationRequest.Listener()
        listener.name = "PLAINTEXT"
        listener.host = address.host
        listener.port = UInt16(clamping: address.port)
        request.listeners = [listener]
        request.features = Features.supported.map {
            var feature = BrokerRegistrationRequest.Feature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minimum
            feature.maxSupportedVersion = $0.maximum
            return feature
        }
        request.rack = settings.values[BrokerConfigName.rack]
        request.logDirs = [directory.meta.directoryID]
        var epoch: Int64 = -1
        try controller.registerBlocking { core, end in
            let decision = core.decide(request, nextOffset: end)
            guard decision.response.errorCode == 0 else {
                throw BrokerStartError(
                    "registration was refused: \(ErrorCode(rawValue: decision.response.errorCode).name)")
            }
            epoch = decision.response.brokerEpoch
            return decision.records
        }
        var heartbeat = BrokerHeartbeatRequest()
        heartbeat.brokerID = settings.nodeID.rawValue
        heartbeat.brokerEpoch = epoch
        heartbeat.currentMetadataOffset = .max
        try controller.registerBlocking { core, _ in core.decide(heartbeat).records }
    }

    /// Stops accepting, answers what is under way, flushes and closes everything. The next start then needs
    /// no recovery. A second call does nothing.
    public func shutDown() async {
        guard let running = running.withLock({ $0.take() }) else { return }
        logger.info("broker is stopping")
        do {
            try await running.listener.close()
            await running.maintenance.stop()
            for loop in running.loops.all {
                try await loop.eventLoop.flatSubmit { loop.closePartitions(clean: true) }.get()
            }
            for loop in running.loops.all {
                try await loop.eventLoop.submit { loop.closeConnections() }.get()
            }
            try await running.controller.close().get()
            let directory = running.services.directory
            try await running.services.workPool.runIfActive { try directory.close(clean: true) }
        } catch {
            logger.error("shutdown was not clean; the next start recovers", metadata: ["cause": "\(error)"])
        }
        do {
            try await running.services.flushPool.shutdownGracefully()
            try await running.services.workPool.shutdownGracefully()
            try await running.group.shutdownGracefully()
        } catch {
            logger.error("threads did not stop", metadata: ["cause": "\(error)"])
        }
        logger.info("broker stopped")
    }
}

extension ConnectionLimits {
    init(_ configuration: BrokerConfiguration) {
        self.init()
        requestByteLimit = configuration.socketRequestMaxBytes
        idleLimit = configuration.connectionsMaxIdleMilliseconds.map { .milliseconds($0) } ?? .nanoseconds(.max)
    }
}

/// Numbers connections and bounds how many there are (`max.connections`).
private final class ConnectionCounter: Sendable {
    let limit: Int
    private let state: Mutex<(next: UInt64, open: Int)> = Mutex((1, 0))

    init(limit: Int) { self.limit = limit }

    func open() -> UInt64? {
        state.withLock { state in
            guard state.open < limit else { return nil }
            state.open += 1
            state.next += 1
            return state.next - 1
        }
    }

    func close() { state.withLock { $0.open -= 1 } }
}
