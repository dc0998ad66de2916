package import Logging
package import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletStorage
package import MartletTransport
package import NIOCore

/// A broker without a listener: directory, metadata, loops, opened and wired. ``Broker`` and the simulator put
/// their event loops under it and connections before it.
package struct BrokerAssembly: Sendable {
    package let services: BrokerServices
    package let loops: [BrokerLoop]
    package let limits: ConnectionLimits
    private let connections: ConnectionCounter

    /// `queued.max.request.bytes` when it is not set.
    private static let defaultRequestBudget = 256 * 1024 * 1024

    /// Opens the data directory and loads the metadata. Blocks. Then come ``prepare(_:)`` on each loop and
    /// ``begin()``.
    package static func open(
        _ settings: BrokerSettings, surroundings: Surroundings, eventLoops: [any EventLoop], logger: Logger
    ) throws -> BrokerAssembly {
        let (directory, controller) = try openDirectory(settings, surroundings, eventLoops[0], logger)
        let configuration = controller.image.brokerConfiguration
        let budget = MemoryBudget(limit: configuration.queuedMaxRequestBytes ?? defaultRequestBudget)
        let registry = LoopRegistry()
        let services = BrokerServices(
            settings: settings, logger: logger, budget: budget, surroundings: surroundings, directory: directory,
            controller: controller, loops: registry)
        let loops = eventLoops.enumerated().map { index, eventLoop in
            BrokerLoop(index: index, eventLoop: eventLoop, services: services, loopCount: eventLoops.count)
        }
        registry.install(loops)
        return BrokerAssembly(
            services: services, loops: loops, limits: ConnectionLimits(configuration),
            connections: ConnectionCounter(limit: configuration.maxConnections))
    }

    package var image: MetadataImage { services.controller.image }

    /// Gives a loop the metadata; on that loop.
    package func prepare(_ loop: BrokerLoop) { loop.apply(image) }

    /// Goes on with what an earlier run has left; from here on the metadata may change and requests may come.
    package func begin() {
        services.controller.install(loops: loops)
        for loop in loops { loop.post { $0.transactions.resume() } }
    }

    /// Breaks the references in circles, once nothing of it runs any more: a process of the simulator that has ended.
    package func dismantle() {
        services.controller.install(loops: [])
        services.loops.clear()
    }

    /// The handler of a new channel on `eventLoop`, on that loop; `nil` where there are too many.
    package func makeConnection(on eventLoop: any EventLoop) -> ServerConnection? {
        guard let id = connections.open() else {
            services.logger.warning(
                "connection refused", metadata: ["cause": "max.connections=\(connections.limit) is reached"])
            return nil
        }
        let loop = services.loops.loop(for: eventLoop)
        return ServerConnection(
            id: id, loop: eventLoop,
            handler: RequestDispatcher(loop: loop, closed: { [connections] in connections.close() }),
            limits: limits, budget: services.budget, logger: services.logger)
    }

    /// The blocking part of the start: directory, metadata, registration of this broker.
    private static func openDirectory(
        _ settings: BrokerSettings, _ surroundings: Surroundings, _ controllerLoop: any EventLoop, _ logger: Logger
    ) throws -> (LogDirectory<AnyDisk>, ControllerShell) {
        let disk = surroundings.disk
        var generator = surroundings.random
        let known = try disk.readAll(settings.dataDirectory + "/" + MetaProperties.fileName, limit: 1 << 16)
        let clusterID = known == nil ? UniversalID.random(using: &generator) : nil
        var configuration = LogDirectory<AnyDisk>.Configuration()
        configuration.reserveBytes = settings.reserveBytes
        let directory = try LogDirectory.open(
            settings.dataDirectory, disk: disk, clusterID: clusterID?.description, nodeID: settings.nodeID,
            newDirectoryID: .random(using: &generator), configuration: configuration)
        do {
            return try (directory, load(settings, directory, surroundings, controllerLoop, logger))
        } catch {
            try directory.close(clean: false)
            throw error
        }
    }

    private static func load(
        _ settings: BrokerSettings, _ directory: LogDirectory<AnyDisk>, _ surroundings: Surroundings,
        _ controllerLoop: any EventLoop, _ logger: Logger
    ) throws -> ControllerShell {
        for removal in directory.unfinishedDeletions() {
            surroundings.flushPool.submit { _ in
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
        let address = settings.advertised ?? settings.listen
        let controller = try ControllerShell(
            eventLoop: controllerLoop, directory: directory, surroundings: surroundings, nodeID: settings.nodeID,
            endpoint: Endpoint(name: "CONTROLLER", host: address.host, port: UInt16(clamping: address.port)),
            clusterID: cluster, staticValues: settings.values, logger: logger)
        try register(settings, directory: directory, controller: controller, cluster: cluster)
        return controller
    }

    /// Each start is a new incarnation with a new broker epoch (KIP-631), unfenced at once: alone there is no
    /// older state to catch up with.
    private static func register(
        _ settings: BrokerSettings, directory: LogDirectory<AnyDisk>, controller: ControllerShell,
        cluster: UniversalID
    ) throws {
        var generator = controller.random
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
            // Alone no session counts, so neither does the time.
            let decision = core.decide(request, nextOffset: end, now: Instant(nanoseconds: 0))
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
    private let state: Guarded<(next: UInt64, open: Int)> = Guarded((1, 0))

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
