internal import MartletController
package import MartletCoordinators
internal import MartletLogModel
internal import MartletStorage
package import NIOCore

/// The transaction coordinator shards of one event loop: those whose partition of `__transaction_state` lives there.
/// Confined to the loop.
package final class TransactionShards {
    private unowned let loop: BrokerLoop
    private var shards: [PartitionKey: TransactionShardShell] = [:]
    private var isStopping = false

    package init(loop: BrokerLoop) { self.loop = loop }

    /// The shard of the partition, created on first use.
    fileprivate func shard(_ key: PartitionKey) -> TransactionShardShell? {
        if let shard = shards[key] { return shard }
        guard !isStopping else { return nil }
        let shard = TransactionShardShell(key: key, loop: loop)
        shards[key] = shard
        return shard
    }

    /// After start: shards with state go on with what they had decided, and their clocks run.
    package func resume() {
        guard let topic = loop.image.topic(named: TopicName.transactionState) else { return }
        let onDisk = Set(loop.services.directory.partitions)
        for index in topic.partitions.indices {
            let key = PartitionKey(topicID: topic.id, partition: PartitionIndex(Int32(index)))
            guard loop.services.loops.loop(of: key) === loop,
                onDisk.contains(TopicPartition(topic.name, Int32(index)))
            else { continue }
            shard(key)?.log.resume()
        }
    }

    package func configurationChanged() {
        for shard in inOrder { shard.configurationChanged() }
    }

    package func stop() {
        isStopping = true
        for shard in inOrder { shard.resign() }
        shards = [:]
    }

    private var inOrder: [TransactionShardShell] { shards.sorted { $0.key < $1.key }.map(\.value) }
}

extension BrokerLoop {
    /// The shard responsible for a transactional id; `nil` before the topic exists. Clients find the coordinator
    /// first, and that creates it.
    package func transactionShard(of transactionalID: String) -> PartitionKey? {
        guard let topic = image.topic(named: TopicName.transactionState), !topic.partitions.isEmpty else { return nil }
        let index = GroupPartitioner.partition(
            for: transactionalID, count: Int32(clamping: topic.partitions.count))
        return PartitionKey(topicID: topic.id, partition: PartitionIndex(index))
    }

    /// All shards of the cluster's transaction coordinator.
    package var allTransactionShards: [PartitionKey] {
        guard let topic = image.topic(named: TopicName.transactionState) else { return [] }
        return topic.partitions.indices.map {
            PartitionKey(topicID: topic.id, partition: PartitionIndex(Int32($0)))
        }
    }

    /// Runs a request on the shard of its transactional id; `reply` runs on this loop.
    package func coordinate(
        _ request: TransactionRequest, reply: @escaping @Sendable (TransactionResponse) -> Void
    ) {
        guard let id = request.transactionalID, let key = transactionShard(of: id) else {
            return reply(TransactionCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        }
        coordinate(key, request, reply: reply)
    }

    package func coordinate(
        _ key: PartitionKey, _ request: TransactionRequest,
        reply: @escaping @Sendable (TransactionResponse) -> Void
    ) {
        let target = services.loops.loop(of: key)
        let run: @Sendable (BrokerLoop) -> Void = { target in
            guard let shard = target.transactions.shard(key) else {
                let refusal = TransactionCoordinatorShard.refusal(request, .notCoordinator)
                return self.post { _ in reply(refusal) }
            }
            shard.submit(request) { response in
                if target === self { reply(response) } else { self.post { _ in reply(response) } }
            }
        }
        if target === self { run(self) } else { target.post(run) }
    }
}

extension RequestContext {
    /// Runs a request on the shard of its transactional id; the future completes on this connection's loop.
    package func coordinate(_ request: TransactionRequest) -> EventLoopFuture<TransactionResponse> {
        let promise = loop.eventLoop.makePromise(of: TransactionResponse.self)
        promise.futureResult.assumeIsolated().whenSuccess { self.logRefusal(of: request, $0) }
        loop.coordinate(request) { promise.succeed($0) }
        return promise.futureResult
    }

    package func coordinate(_ key: PartitionKey, _ request: TransactionRequest) -> EventLoopFuture<TransactionResponse> {
        let promise = loop.eventLoop.makePromise(of: TransactionResponse.self)
        loop.coordinate(key, request) { promise.succeed($0) }
        return promise.futureResult
    }
}

extension TransactionResponse {
    /// The core answered with another kind of response than the request has: a bug.
    func mismatch<Response>() -> Response {
        preconditionFailure("a transaction request was answered with \(self)")
    }
}
