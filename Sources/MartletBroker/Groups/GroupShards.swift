internal import MartletController
package import MartletCoordinators
internal import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore

/// The group coordinator shards of one event loop: those whose partition of `__consumer_offsets` lives there.
/// Confined to the loop.
package final class GroupShards {
    private unowned let loop: BrokerLoop
    private var shards: [PartitionKey: GroupShardShell] = [:]
    private var isStopping = false
    /// The topics as consumer groups know them, made anew when somebody asks after they have changed.
    private var knownTopics: TopicCatalog?
    private var topicsHaveChanged = true
    private var nextCatalog = NIODeadline.uptimeNanoseconds(0)
    /// With more topics than this the catalog is made at most once in `catalogInterval`: it goes over all of them.
    private static let manyTopicsCount = 1_000
    private static let catalogInterval: TimeAmount = .seconds(1)

    package init(loop: BrokerLoop) { self.loop = loop }

    /// The shard of the partition, created on first use.
    fileprivate func shard(_ key: PartitionKey) -> GroupShardShell? {
        if let shard = shards[key] { return shard }
        guard !isStopping else { return nil }
        let shard = GroupShardShell(key: key, loop: loop)
        shards[key] = shard
        return shard
    }

    /// Takes the end of a transaction to the shard whose offsets it may concern; false when there is none.
    func endTransaction(
        _ key: PartitionKey, _ marker: TransactionMarker, reply: @escaping @Sendable (ErrorCode) -> Void
    ) -> Bool {
        guard loop.image.topic(id: key.topicID) != nil, let shard = shard(key) else { return false }
        shard.submit(.endTransaction(marker)) { response in
            guard case .transactionEnded(let code) = response else { return response.mismatch() }
            reply(code)
        }
        return true
    }

    /// Offsets of a transaction; `reply` runs on this loop.
    func submit(
        _ commit: TransactionalCommit, to key: PartitionKey, named partition: TopicPartition,
        reply: @escaping @Sendable (GroupResponse) -> Void
    ) {
        guard let shard = shard(key) else {
            return reply(GroupCoordinatorShard.refusal(commit.groupRequest, .notCoordinator))
        }
        shard.submit(commit, named: partition, reply: reply)
    }

    package func topicsDeleted(_ names: [String]) {
        guard !names.isEmpty else { return }
        for shard in inOrder { shard.topicsDeleted(names) }
    }

    /// Topics were created, got partitions or were deleted.
    package func topicsChanged() { topicsHaveChanged = true }

    /// The topics of the present image, or of a moment ago where there are many.
    func catalog() -> TopicCatalog {
        if let knownTopics, !topicsHaveChanged || loop.eventLoop.now < nextCatalog { return knownTopics }
        let topics = loop.image.sortedTopics().map {
            TopicCatalog.Topic(id: $0.id, name: $0.name, partitionCount: Int32(clamping: $0.partitions.count))
        }
        let catalog = TopicCatalog(version: loop.image.lastOffset?.rawValue ?? 0, topics: topics)
        knownTopics = catalog
        topicsHaveChanged = false
        nextCatalog = topics.count > Self.manyTopicsCount ? loop.eventLoop.now + Self.catalogInterval : loop.eventLoop.now
        return catalog
    }

    package func configurationChanged() {
        for shard in inOrder { shard.configurationChanged() }
    }

    package func stop() {
        isStopping = true
        for shard in inOrder { shard.resign() }
        shards = [:]
    }

    /// Other brokers may lead now what this one coordinated.
    func leadersChanged() {
        for (key, shard) in shards.sorted(by: { $0.key < $1.key }) where loop.image.coordinationError(key) != nil {
            shard.resign()
            shards[key] = nil
        }
    }

    private var inOrder: [GroupShardShell] { shards.sorted { $0.key < $1.key }.map(\.value) }
}

extension RequestContext {
    /// Runs a request on the shard responsible for the group; the future completes on this connection's loop.
    package func coordinate(group id: String, _ request: GroupRequest) -> EventLoopFuture<GroupResponse> {
        guard let topic = image.topic(named: TopicName.consumerOffsets), !topic.partitions.isEmpty else {
            // Clients find the coordinator first, and that creates the topic.
            return loop.eventLoop.makeSucceededFuture(
                GroupCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        }
        let index = GroupPartitioner.partition(for: id, count: Int32(clamping: topic.partitions.count))
        return coordinate(PartitionKey(topicID: topic.id, partition: PartitionIndex(index)), request)
    }

    package func coordinate(_ key: PartitionKey, _ request: GroupRequest) -> EventLoopFuture<GroupResponse> {
        if let code = image.coordinationError(key) {
            let refusal = GroupCoordinatorShard.refusal(request, code)
            logRefusal(of: request, refusal)
            return loop.eventLoop.makeSucceededFuture(refusal)
        }
        let promise = loop.eventLoop.makePromise(of: GroupResponse.self)
        let target = services.loops.loop(of: key)
        let run: @Sendable (BrokerLoop) -> Void = { target in
            guard let shard = target.groups.shard(key) else {
                promise.succeed(GroupCoordinatorShard.refusal(request, .notCoordinator))
                return
            }
            shard.submit(request) { promise.succeed($0) }
        }
        if target === loop { run(loop) } else { target.post(run) }
        promise.futureResult.assumeIsolated().whenSuccess { self.logRefusal(of: request, $0) }
        return promise.futureResult
    }

    /// Which groups each shard is asked about, with the positions of their answers in the request.
    package func groupsByShard(_ ids: [String]) -> [(key: PartitionKey, groups: [String])] {
        guard let topic = image.topic(named: TopicName.consumerOffsets), !topic.partitions.isEmpty else {
            return []
        }
        var byIndex: [Int32: [String]] = [:]
        for id in ids {
            let index = GroupPartitioner.partition(for: id, count: Int32(clamping: topic.partitions.count))
            byIndex[index, default: []].append(id)
        }
        return byIndex.sorted { $0.key < $1.key }.map {
            (PartitionKey(topicID: topic.id, partition: PartitionIndex($0.key)), $0.value)
        }
    }

    /// All shards of the cluster's group coordinator.
    package var allGroupShards: [PartitionKey] { image.coordinatedPartitions(of: TopicName.consumerOffsets) }
}

extension GroupResponse {
    /// The core answered with another kind of response than the request has: a bug.
    func mismatch<Response>() -> Response {
        preconditionFailure("a group request was answered with \(self)")
    }
}
