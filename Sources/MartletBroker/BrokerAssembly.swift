package import Logging
package import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
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
    /// Why the broker must not go on, once that is so.
    let failure = FailureSignal()

    /// Longest wait for the controller's word on in-sync sets; leaders propose again.
    private static let proposalTimeout: TimeAmount = .seconds(2)
    /// `queued.max.request.bytes` when it is not set.
    private static let defaultRequestBudget = 256 * 1024 * 1024

    /// Opens the data directory and loads the metadata. Blocks. Then come ``prepare(_:)`` on each loop and
    /// ``begin()``.
    package static func open(
        _ settings: BrokerSettings, surroundings: Surroundings, eventLoops: [any EventLoop], logger: Logger
    ) throws -> BrokerAssembly {
        let (directory, controller) = try openDirectory(settings, surroundings, eventLoops[0], logger)
        let channel = ControllerChannel(
            eventLoop: eventLoops[0], controller: controller, network: surroundings.peers, nodeID: settings.nodeID)
        let lifecycle = BrokerLifecycle(
            eventLoop: eventLoops[0], settings: settings, controller: controller, channel: channel,
            directoryID: directory.meta.directoryID, previousEpoch: directory.previousBrokerEpoch, logger: logger)
        let isAlone = controller.isActive
        if isAlone {
            do {
                try lifecycle.registerBlocking()
            } catch {
                try directory.close(clean: false)
                throw error
            }
        }
        let configuration = controller.image.brokerConfiguration
        let budget = MemoryBudget(limit: configuration.queuedMaxRequestBytes ?? defaultRequestBudget)
        let registry = LoopRegistry()
        let services = BrokerServices(
            settings: settings, logger: logger, budget: budget, surroundings: surroundings, directory: directory,
            controller: controller, controllerChannel: channel, lifecycle: lifecycle, servesAtOnce: isAlone,
            loops: registry)
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
    package func prepare(_ loop: BrokerLoop) {
        if services.servesAtOnce { loop.apply(image) }
    }

    /// Goes on with what an earlier run has left; from here on the metadata may change and requests may come.
    package func begin() {
        services.controller.applied = { [weak services] image, _ in services?.lifecycle.imageApplied(image) }
        services.controller.leaderChanged = { [weak services] in services?.controllerChannel.leaderChanged($0) }
        services.controller.stopped = { [failure, servesAtOnce = services.servesAtOnce] cause in
            // Alone it goes on serving what it has.
            if !servesAtOnce { failure.set(cause) }
        }
        services.lifecycle.refused = { [failure] in failure.set($0) }
        services.lifecycle.served = { [weak services] in
            for loop in services?.loops.all ?? [] { loop.post { $0.beginServing() } }
        }
        services.controller.isCurrent = { [weak services] image in
            guard let services, !services.servesAtOnce else { return true }
            return image.broker(services.settings.nodeID)?.epoch == services.brokerEpoch
        }
        services.controller.install(loops: loops)
        connectReplicas()
        for loop in loops { loop.post { $0.transactions.resume() } }
    }

    /// From here on followers fetch, and leaders change their in-sync sets.
    private func connectReplicas() {
        let (controllerLoop, channel, logger) = (loops[0].eventLoop, services.controllerChannel, services.logger)
        let proposals = InSyncProposals(
            eventLoop: controllerLoop, nodeID: services.settings.nodeID,
            brokerEpoch: { [weak services] in services?.brokerEpoch ?? -1 }, logger: logger,
            send: { channel.send($0, timeout: Self.proposalTimeout, on: controllerLoop) })
        for loop in loops {
            loop.post { loop in
                let services = loop.services
                let fetchers = ReplicaFetchers(
                    eventLoop: loop.eventLoop, nodeID: services.settings.nodeID, peers: services.peers, logger: logger,
                    brokerEpoch: { [weak services] in services?.brokerEpoch ?? -1 },
                    clusterID: services.directory.meta.clusterID, random: services.random)
                loop.install(fetchers: fetchers, proposals: proposals)
            }
        }
    }

    /// Other brokers can reach this one: it registers with the controller, unless it has.
    package func join() {
        let lifecycle = services.lifecycle
        loops[0].post { _ in lifecycle.start() }
    }

    /// What a node of several does before it stops: others take over what it leads, partitions first, then the metadata.
    package func leave() -> EventLoopFuture<Void> {
        let controller = services.controller
        return services.lifecycle.leave().flatMap { controller.leave() }
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
        var clusterID = settings.clusterID
        var origin = MetaProperties.Origin.alone
        if known == nil {
            origin = try beginning(of: settings)
            if clusterID == nil { clusterID = UniversalID.random(using: &generator).description }
        }
        var configuration = LogDirectory<AnyDisk>.Configuration()
        configuration.reserveBytes = settings.reserveBytes
        let directory = try LogDirectory.open(
            settings.dataDirectory, disk: disk, clusterID: clusterID, nodeID: settings.nodeID,
            newDirectoryID: .random(using: &generator), origin: origin, configuration: configuration)
        do {
            return try (directory, load(settings, directory, surroundings, controllerLoop, logger))
        } catch {
            try directory.close(clean: false)
            throw error
        }
    }

    /// What a data directory is that is new.
    private static func beginning(of settings: BrokerSettings) throws(BrokerStartError) -> MetaProperties.Origin {
        guard settings.isPartOfCluster else { return .alone }
        let place = "\(settings.dataDirectory) is new"
        guard settings.clusterID != nil else {
            throw BrokerStartError("\(place): give --cluster-id, the same for all nodes of the cluster")
        }
        switch settings.beginning {
        case .newCluster: return .founded
        case .join: return .joined
        case .unspecified:
            throw BrokerStartError(
                "\(place): say --new-cluster if its nodes found a cluster now, or --join if the cluster exists and this "
                    + "node comes to it or has lost its disk; check --data-dir if it was here before")
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
        if directory.meta.origin != .alone, settings.voters.isEmpty {
            throw BrokerStartError(
                "\(directory.path) belongs to one node of several: give --voters, as at its first start")
        }
        return try ControllerShell(
            eventLoop: controllerLoop, directory: directory, surroundings: surroundings, settings: settings,
            clusterID: cluster, logger: logger)
    }
}

extension ConnectionLimits {
    init(_ configuration: BrokerConfiguration) {
        self.init()
        requestByteLimit = configuration.socketRequestMaxBytes
        idleLimit = configuration.connectionsMaxIdleMilliseconds.map { .milliseconds($0) } ?? .nanoseconds(.max)
    }
}

/// A cause that is set once and waited for.
final class FailureSignal: Sendable {
    private struct State {
        var cause: String?
        var hasEnded = false
        var waiting: [CheckedContinuation<String?, Never>] = []
    }

    private let state = Guarded(State())

    func set(_ cause: String) { end(cause) }

    /// Nothing will happen any more.
    func end(_ cause: String? = nil) {
        let waiting = state.withLock { state -> [CheckedContinuation<String?, Never>] in
            guard !state.hasEnded else { return [] }
            state.hasEnded = true
            state.cause = cause
            defer { state.waiting = [] }
            return state.waiting
        }
        for continuation in waiting { continuation.resume(returning: cause) }
    }

    /// `nil` when it ends without a cause.
    func wait() async -> String? {
        await withCheckedContinuation { continuation in
            let (hasEnded, cause) = state.withLock { state in
                if !state.hasEnded { state.waiting.append(continuation) }
                return (state.hasEnded, state.cause)
            }
            if hasEnded { continuation.resume(returning: cause) }
        }
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
