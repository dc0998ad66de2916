internal import MartletController
package import MartletCoordinators
internal import MartletLogModel
package import NIOCore

/// The share coordinator shards of one event loop: those whose partition of `__share_group_state` lives there.
/// Confined to the loop.
package final class ShareStateShards {
    private unowned let loop: BrokerLoop
    private var shards: [PartitionKey: ShareStateShardShell] = [:]
    private var isStopping = false

    package init(loop: BrokerLoop) { self.loop = loop }

    /// The shard of the partition, created on first use.
    fileprivate func shard(_ key: PartitionKey) -> ShareStateShardShell? {
        if let shard = shards[key] { return shard }
        guard !isStopping else { return nil }
        let shard = ShareStateShardShell(key: key, loop: loop)
        shards[key] = shard
        return shard
    }

    func topicsDeleted(_ topics: [UniversalID]) {
        guard !topics.isEmpty else { return }
        for shard in inOrder { shard.topicsDeleted(topics) }
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

    private var inOrder: [ShareStateShardShell] { shards.sorted { $0.key < $1.key }.map(\.value) }
}

extension BrokerLoop {
    /// The shard responsible for a share partition; `nil` before the topic exists. The first order of a group's
    /// coordinator creates it.
    package func shareStateShard(of id: SharePartitionID) -> PartitionKey? {
        guard let topic = image.topic(named: TopicName.shareGroupState), !topic.partitions.isEmpty else {
            return nil
        }
        let index = GroupPartitioner.partition(
            for: id.coordinatorKey, count: Int32(clamping: topic.partitions.count))
        return PartitionKey(topicID: topic.id, partition: PartitionIndex(index))
    }

    /// Asks the share coordinator; `reply` runs on this loop. Everything a leader of a share partition or a group's
    /// coordinator wants of it goes through here, and has the meaning of a request (keys 83 to 87).
    package func shareState(
        _ request: ShareStateRequest, reply: @escaping @Sendable (ShareStateResponse) -> Void
    ) {
        if let code = refusal(of: request) { return reply(ShareStateResponse(code)) }
        guard let key = shareStateShard(of: request.id) else {
            return reply(ShareStateResponse(.coordinatorNotAvailable))
        }
        if let code = image.coordinationError(key) { return reply(ShareStateResponse(code)) }
        let target = services.loops.loop(of: key)
        let run: @Sendable (BrokerLoop) -> Void = { target in
            guard let shard = target.shareStates.shard(key) else {
                return self.post { _ in reply(ShareStateResponse(.notCoordinator)) }
            }
            shard.submit(request) { response in
                if target === self { reply(response) } else { self.post { _ in reply(response) } }
            }
        }
        if target === self { run(self) } else { target.post(run) }
    }

    /// State is kept of partitions that exist; it may be deleted of any.
    private func refusal(of request: ShareStateRequest) -> ErrorCode? {
        switch request {
        case .initialize, .read, .write, .summary:
            image.topic(id: request.id.topic)?.partition(PartitionIndex(request.id.partition)) == nil
                ? .unknownTopicOrPartition : nil
        case .delete:
            nil
        }
    }
}

extension RequestContext {
    /// Asks the share coordinator; the future completes on this connection's loop.
    package func shareState(_ request: ShareStateRequest) -> EventLoopFuture<ShareStateResponse> {
        let promise = loop.eventLoop.makePromise(of: ShareStateResponse.self)
        loop.shareState(request) { promise.succeed($0) }
        return promise.futureResult
    }
}

/// Carries out what a group's coordinator orders of the share coordinator.
enum ShareStateOrders {
    /// `done` runs on `loop`, with a code for each partition.
    static func run(
        _ order: ShareStateOrder, on loop: BrokerLoop,
        done: @escaping @Sendable ([UniversalID: [Int32: ErrorCode]]) -> Void
    ) {
        guard loop.image.topicID(named: TopicName.shareGroupState) == nil else {
            return ask(order, loop, done)
        }
        let created = loop.services.controllerChannel.autoCreateTopics([TopicName.shareGroupState]).hop(
            to: loop.eventLoop)
        created.assumeIsolated().whenComplete { _ in ask(order, loop, done) }
    }

    // SAFETY: counted and filled on one loop, where all replies arrive.
    private final class Gathering: @unchecked Sendable {
        var results: [UniversalID: [Int32: ErrorCode]] = [:]
        var outstandingCount = 0
    }

    private static func ask(
        _ order: ShareStateOrder, _ loop: BrokerLoop,
        _ done: @escaping @Sendable ([UniversalID: [Int32: ErrorCode]]) -> Void
    ) {
        let requests = requests(order)
        let gathering = Gathering()
        gathering.outstandingCount = requests.count
        guard !requests.isEmpty else { return done([:]) }
        for request in requests {
            loop.shareState(request) { response in
                let id = request.id
                gathering.results[id.topic, default: [:]][id.partition] = response.code
                // Whoever leads the partition starts over with the new state.
                let key = PartitionKey(topicID: id.topic, partition: PartitionIndex(id.partition))
                loop.services.loops.loop(of: key).post { $0.sharePartitions.stateChanged(id) }
                gathering.outstandingCount -= 1
                if gathering.outstandingCount == 0 { done(gathering.results) }
            }
        }
    }

    private static func requests(_ order: ShareStateOrder) -> [ShareStateRequest] {
        switch order.work {
        case .initialize(let stateEpoch, let offsets):
            offsets.sorted { $0.key < $1.key }.flatMap { topic, partitions in
                partitions.sorted { $0.key < $1.key }.map { partition, offset in
                    ShareStateRequest.initialize(
                        SharePartitionID(group: order.group, topic: topic, partition: partition),
                        stateEpoch: stateEpoch, startOffset: offset)
                }
            }
        case .delete(let partitions):
            partitions.sorted { $0.key < $1.key }.flatMap { topic, indexes in
                indexes.sorted().map {
                    ShareStateRequest.delete(
                        SharePartitionID(group: order.group, topic: topic, partition: $0))
                }
            }
        }
    }
}
