package import Logging
package import MartletController
internal import MartletKafkaProtocol
package import MartletLogModel
internal import MartletStorage
package import MartletTransport
package import NIOCore
internal import NIOPosix

/// Identity of a partition for as long as its topic lives; a topic deleted and created again has another.
package struct PartitionKey: Hashable, Comparable, Sendable {
    package var topicID: UniversalID
    package var partition: PartitionIndex

    package init(topicID: UniversalID, partition: PartitionIndex) {
        self.topicID = topicID
        self.partition = partition
    }

    package static func < (left: Self, right: Self) -> Bool {
        (left.topicID, left.partition) < (right.topicID, right.partition)
    }
}

/// Everything that lives on one event loop: its partitions, its connections, its view of the metadata.
///
/// Confined to `eventLoop`. Work from elsewhere arrives through ``post(_:)``. A partition, a connection, a
/// coordinator shard stay on one loop for life, so nothing here is locked.
///
/// Appends of one loop turn are gathered: a partition that got records marks itself with ``markDirty(_:)``
/// and all dirty partitions are written together after the turn's input was handled.
// SAFETY: all mutable state is touched on `eventLoop` alone; every entry point asserts it.
package final class BrokerLoop: @unchecked Sendable {
    /// How often waiting appends are checked against their time-out.
    private static let expiryInterval: TimeAmount = .milliseconds(250)
    /// How often connections are checked for idleness and unfinished frames.
    private static let sweepInterval: TimeAmount = .seconds(1)

    package let index: Int
    package let eventLoop: any EventLoop
    package let services: BrokerServices
    package let logger: Logger

    /// The cluster metadata as this loop knows it; replaced as a whole by the controller.
    package private(set) var image: MetadataImage

    /// Group coordinator shards whose partition lives here.
    package private(set) lazy var groups = GroupShards(loop: self)
    /// Transaction coordinator shards whose partition lives here.
    package private(set) lazy var transactions = TransactionShards(loop: self)
    /// Share coordinator shards whose partition lives here.
    package private(set) lazy var shareStates = ShareStateShards(loop: self)
    /// Share partitions whose partition lives here.
    package private(set) lazy var sharePartitions = SharePartitions(loop: self)
    private var partitions: [PartitionKey: Partition] = [:]
    /// Partitions with replicas on other brokers too.
    var replicas = LoopReplicas()
    /// Asks the leaders elsewhere; nil before ``install(fetchers:proposals:)``.
    private(set) var replicaFetchers: (any ReplicaFetching)?
    private(set) var inSyncProposals: (any InSyncProposing)?
    private var connections: [UInt64: ServerConnection] = [:]
    private var dirty: [Partition] = []
    private var turnEndScheduled = false
    private var waitingAppendCount = 0
    private var expiryScheduled = false
    private var sweepTask: RepeatedTask?
    /// What goes to the other loops at the end of the turn, by their index.
    private var outgoing: [Parcel]
    private var routes = ProduceRoutes()
    private var refusals = RefusalLog()
    /// Whether unopened partitions are being swept; see ``sweepRetention()``.
    var sweepsUnopened = false
    /// What this loop asks of other brokers.
    private(set) lazy var peers = PeerRequests(
        eventLoop: eventLoop, network: services.peers, nodeID: services.settings.nodeID)
    /// Patterns of transactional ids take turns here.
    package private(set) lazy var patternTurns = PatternTurns(eventLoop: eventLoop)
    package private(set) var isStopping = false
    /// Whether clients are served; see ``BrokerServices/servesAtOnce``.
    package private(set) var isServing: Bool
    private var isClosingConnections = false

    package init(index: Int, eventLoop: any EventLoop, services: BrokerServices, loopCount: Int) {
        self.index = index
        self.eventLoop = eventLoop
        self.services = services
        self.logger = services.logger
        self.image = MetadataImage(localBroker: services.settings.nodeID)
        self.isServing = services.servesAtOnce
        self.outgoing = Array(repeating: Parcel(), count: loopCount)
    }

    /// One message from loop to loop per turn: a wake-up for all of it instead of one per request.
    private struct Parcel: Sendable {
        /// Results for requests whose connection lives there.
        var completions: [ProduceCompletion] = []
        /// Batches for partitions that live there.
        var batches: [ForwardedProduce] = []

        var isEmpty: Bool { completions.isEmpty && batches.isEmpty }
    }

    // MARK: Time

    package var wallTime: Timestamp { services.clock.wallTime }

    package var monotonicTime: Instant { Instant(nanoseconds: Int64(clamping: eventLoop.now.uptimeNanoseconds)) }

    /// What connects the partitions of this loop with other brokers. From here on followers fetch, and leaders change
    /// their in-sync sets.
    func install(fetchers: any ReplicaFetching, proposals: any InSyncProposing) {
        eventLoop.preconditionInEventLoop()
        replicaFetchers = fetchers
        inSyncProposals = proposals
        for (_, partition) in inOrder { partition.joinFetcher() }
    }

    // MARK: Messages

    /// The broker is let into its cluster.
    func beginServing() { isServing = true }

    /// Runs `body` on this loop.
    package func post(_ body: @escaping @Sendable (BrokerLoop) -> Void) {
        eventLoop.execute { body(self) }
    }

    /// - Parameters:
    ///   - deletedTopics: names of topics that are gone since the image before.
    ///   - delta: all that has changed since, if that is known: then not every partition is looked at.
    package func apply(_ image: MetadataImage, deletedTopics: [String] = [], delta: MetadataDelta? = nil) {
        eventLoop.preconditionInEventLoop()
        let previous = self.image
        self.image = image
        routes.imageChanged()
        groups.topicsDeleted(deletedTopics)
        if previous.topicCount != image.topicCount || previous.partitionCount != image.partitionCount
            || !deletedTopics.isEmpty
        {
            groups.topicsChanged()
        }
        if image.brokers.count > 1 {
            groups.leadersChanged()
            transactions.leadersChanged()
            shareStates.leadersChanged()
        }
        let groupsChanged = previous.groupConfigurationNumber != image.groupConfigurationNumber
        if previous.brokerConfiguration != image.brokerConfiguration || groupsChanged {
            groups.configurationChanged()
            sharePartitions.configurationChanged()
        }
        if previous.brokerConfiguration != image.brokerConfiguration { transactions.configurationChanged() }
        let deletedIDs = deletedTopics.compactMap { previous.topicID(named: $0) }
        shareStates.topicsDeleted(deletedIDs)
        sharePartitions.topicsDeleted(deletedIDs)
        for name in deletedTopics {
            guard let topic = previous.topic(named: name) else { continue }
            for index in topic.partitions.indices {
                let key = PartitionKey(topicID: topic.id, partition: PartitionIndex(Int32(index)))
                guard services.loops.loop(of: key) === self, partitions[key] == nil else { continue }
                removeFiles(of: TopicPartition(name, Int32(index)))
            }
        }
        for (key, partition) in inOrder {
            guard let topic = image.topic(id: key.topicID),
                let registration = topic.partition(key.partition)
            else {
                partitions[key] = nil
                partition.topicDeleted()
                continue
            }
            let old = previous.topic(id: key.topicID)
            if hasMovedAway(old?.partition(key.partition), registration) {
                partitions[key] = nil
                partition.movedAway()
                continue
            }
            if old?.configuration != topic.configuration || old?.partition(key.partition) != registration
                || previous.usesEligibleLeaderReplicas != image.usesEligibleLeaderReplicas
            {
                partition.metadataChanged(topic: topic, registration: registration)
            }
        }
        replicasChanged(since: previous, delta)
    }

    /// The metadata takes a replica away from this broker. What was never its own, or what it had before this process
    /// began, is left alone.
    private func hasMovedAway(_ old: PartitionImage?, _ new: PartitionImage) -> Bool {
        let local = services.settings.nodeID
        return old?.replicas.contains(local) == true && !new.replicas.contains(local)
    }

    /// Moves a deleted partition's folder away at once, so that a topic of the same name finds none, and
    /// removes it on the work pool.
    func removeFiles(of name: TopicPartition) {
        var generator = services.random
        let logger = self.logger
        do throws(StorageError) {
            guard
                let removal = try services.directory.deletePartition(
                    name, uniqueSuffix: .random(using: &generator))
            else { return }
            services.workPool.submit { _ in
                do throws(StorageError) {
                    try removal.run()
                } catch {
                    logger.error(
                        "files not removed", metadata: ["partition": "\(name)", "cause": "\(error)"])
                }
            }
        } catch {
            logger.error("partition not removed", metadata: ["partition": "\(name)", "cause": "\(error)"])
        }
    }

    // MARK: Partitions

    /// The partition's shell; opened from disk in the background on first use. `nil` if the metadata knows
    /// no such partition, or no replica of it on this broker.
    package func partition(_ key: PartitionKey) -> Partition? {
        eventLoop.preconditionInEventLoop()
        if let partition = partitions[key] { return partition }
        guard !isStopping, let topic = image.topic(id: key.topicID),
            let registration = topic.partition(key.partition),
            registration.replicas.contains(services.settings.nodeID)
        else { return nil }
        let partition = Partition(key: key, topic: topic, registration: registration, loop: self)
        partitions[key] = partition
        partition.open()
        return partition
    }

    /// What to answer where ``partition(_:)`` gave `nil`. A broker that stops, or has no replica, must not pass for a
    /// deleted topic: clients give up on the one and look for another leader, or wait, on the other.
    package func absence(of key: PartitionKey) -> ErrorCode {
        let isKnown = image.topic(id: key.topicID)?.partition(key.partition) != nil
        return isStopping || isKnown ? .notLeaderOrFollower : .unknownTopicOrPartition
    }

    /// The partition if it is open or opening already.
    package func existingPartition(_ key: PartitionKey) -> Partition? { partitions[key] }

    package var openPartitions: [Partition] { inOrder.map(\.partition) }

    /// By key, so that what happens to all of them happens in one order.
    private var inOrder: [(key: PartitionKey, partition: Partition)] {
        partitions.map { ($0, $1) }.sorted { $0.key < $1.key }
    }

    package func forget(_ key: PartitionKey) { partitions[key] = nil }

    package func markDirty(_ partition: Partition) {
        dirty.append(partition)
        scheduleTurnEnd()
    }

    private func scheduleTurnEnd() {
        guard !turnEndScheduled else { return }
        turnEndScheduled = true
        // NIO runs tasks after the input events of the same turn: every batch that arrived is staged by then.
        eventLoop.execute { self.endTurn() }
    }

    private func endTurn() {
        turnEndScheduled = false
        while let partition = dirty.popLast() { partition.writeStaged() }
        deliverOutgoing()
    }

    // MARK: Produce completions

    /// Hands a result to the request's own loop: at once if that is this one, else with this turn's message.
    package func complete(_ completion: ProduceCompletion) {
        let target = completion.request.loop
        if target === self {
            completion.request.complete(completion)
        } else {
            outgoing[target.index].completions.append(completion)
            scheduleTurnEnd()
        }
    }

    /// What a Produce request must know of a partition; `nil` if the metadata knows no such partition.
    ///
    /// - Parameters:
    ///   - topic: empty where the id counts.
    ///   - last: what this gave for the connection's request before.
    func route(topic: String, topicID: UniversalID, partition: Int32, last: ProduceRoute?) -> ProduceRoute? {
        if let last, last.imageNumber == routes.imageNumber, last.key.partition.rawValue == partition,
            topic.isEmpty ? last.topic.id == topicID : last.topic.name == topic
        {
            return last
        }
        let name = ProduceRoutes.Name(topic: topic, topicID: topicID, partition: partition)
        if let route = routes[name] { return route }
        let index = PartitionIndex(partition)
        guard let topic = topic.isEmpty ? image.topic(id: topicID) : image.topic(named: topic),
            let registration = topic.partition(index)
        else { return nil }
        let route = ProduceRoute(
            topic: topic, partition: index, registration: registration, imageNumber: routes.imageNumber,
            loop: self)
        routes[name] = route
        return route
    }

    /// Takes a batch to the loop of its partition: at once if that is this one, else with this turn's message.
    /// Batches for one loop arrive in the order of the calls.
    func forward(_ item: ProduceItem, for request: ProduceRequestState, to target: BrokerLoop) {
        if target === self {
            append(item, for: request)
        } else {
            outgoing[target.index].batches.append(ForwardedProduce(item: item, request: request))
            scheduleTurnEnd()
        }
    }

    private func append(_ item: ProduceItem, for request: ProduceRequestState) {
        guard let partition = partition(item.key) else {
            let result =
                isStopping
                ? ProduceResult(error: .notLeaderOrFollower, message: "the broker is shutting down")
                : ProduceResult(
                    error: absence(of: item.key), message: "the topic was deleted, or has moved to other brokers")
            complete(ProduceCompletion(request: request, index: item.index, result: result))
            return
        }
        if partition.isOpen {
            partition.append(item, for: request)
        } else {
            partition.whenOpen { $0.append(item, for: request) }
        }
    }

    private func deliverOutgoing() {
        for target in outgoing.indices where !outgoing[target].isEmpty {
            let parcel = outgoing[target]
            outgoing[target] = Parcel()
            services.loops.all[target].post { loop in
                for completion in parcel.completions { completion.request.complete(completion) }
                for batch in parcel.batches { loop.append(batch.item, for: batch.request) }
            }
        }
    }

    package func appendBeganWaiting() {
        waitingAppendCount += 1
        guard !expiryScheduled else { return }
        expiryScheduled = true
        eventLoop.assumeIsolated().scheduleTask(in: Self.expiryInterval) { self.expireAppends() }
    }

    package func appendStoppedWaiting() { waitingAppendCount -= 1 }

    private func expireAppends() {
        expiryScheduled = false
        let now = eventLoop.now
        for (_, partition) in inOrder { partition.expireAppends(now: now) }
        deliverOutgoing()
        guard waitingAppendCount > 0 else { return }
        expiryScheduled = true
        eventLoop.assumeIsolated().scheduleTask(in: Self.expiryInterval) { self.expireAppends() }
    }

    // MARK: Connections

    package func add(_ connection: ServerConnection) {
        guard !isClosingConnections else {
            connection.shutDown()
            return
        }
        connections[connection.id] = connection
        services.loops.noteConnections(connections.count, of: self)
        guard sweepTask == nil else { return }
        sweepTask = eventLoop.scheduleRepeatedTask(
            initialDelay: Self.sweepInterval, delay: Self.sweepInterval
        ) { _ in self.sweepConnections() }
    }

    package func remove(_ connection: ServerConnection) {
        connections[connection.id] = nil
        services.loops.noteConnections(connections.count, of: self)
        if connections.isEmpty {
            refusals.tellOmitted(logger)
            sweepTask?.cancel()
            sweepTask = nil
        }
    }

    private var connectionsInOrder: [ServerConnection] {
        connections.sorted { $0.key < $1.key }.map(\.value)
    }

    private func sweepConnections() {
        let now = eventLoop.now
        for connection in connectionsInOrder { connection.sweep(now: now) }
        refusals.tellOmitted(endedBy: now, logger)
    }

    /// One line for a request that is refused for a reason of the client's; see ``RefusalLog``.
    package func logRefusal(_ code: ErrorCode, _ cause: String?, client: String?, about: [(String, String)]) {
        refusals.log(code, cause, client: client, about: about, now: eventLoop.now, logger)
    }

    // MARK: Shutdown

    /// Stops taking requests; connections are closed after their last response.
    package func closeConnections() {
        eventLoop.preconditionInEventLoop()
        isClosingConnections = true
        for connection in connectionsInOrder { connection.shutDown() }
    }

    /// Writes and flushes what is staged and closes every partition.
    package func closePartitions(clean: Bool) -> EventLoopFuture<Void> {
        eventLoop.preconditionInEventLoop()
        isStopping = true
        routes.imageChanged()
        groups.stop()
        transactions.stop()
        sharePartitions.stop()
        shareStates.stop()
        stopReplicas()
        peers.close()
        endTurn()
        let closing = inOrder.map { $0.partition.close(clean: clean) }
        partitions = [:]
        return EventLoopFuture.andAllComplete(closing, on: eventLoop)
    }
}
