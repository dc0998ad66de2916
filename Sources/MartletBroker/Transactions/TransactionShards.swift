internal import MartletController
package import MartletCoordinators
internal import MartletKafkaProtocol
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
                onDisk.contains(TopicPartition(topic.name, Int32(index))), loop.image.coordinationError(key) == nil
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

    /// Other brokers may lead now what this one coordinated.
    func leadersChanged() {
        for (key, shard) in shards.sorted(by: { $0.key < $1.key }) where loop.image.coordinationError(key) != nil {
            shard.resign()
            shards[key] = nil
        }
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

    /// All shards of the transaction coordinator that this broker has.
    package var allTransactionShards: [PartitionKey] { image.coordinatedPartitions(of: TopicName.transactionState) }

    /// Runs a request on the shard of its transactional id; `reply` runs on this loop.
    package func coordinate(
        _ request: TransactionRequest, reply: @escaping @Sendable (TransactionResponse) -> Void
    ) {
        guard let id = request.transactionalID, let key = transactionShard(of: id) else {
            return reply(TransactionCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        }
        coordinate(key, request, reply: reply)
    }

    /// As ``coordinate(_:reply:)``, wherever the coordinator is: what a partition or a group asks about a transaction of
    /// its writer (KIP-890).
    func askCoordinator(_ question: TransactionRequest, reply: @escaping @Sendable (TransactionResponse) -> Void) {
        guard let id = question.transactionalID, let key = transactionShard(of: id),
            image.coordinationError(key) == .notCoordinator,
            let leader = image.topic(id: key.topicID)?.partition(key.partition)?.leader,
            let address = image.peerAddress(of: leader), let request = AddPartitionsToTxnRequest(question)
        else { return coordinate(question, reply: reply) }
        peers.send(request, to: leader, at: address, from: AddPartitionsToTxnRequest.firstOfBrokers) { response in
            reply(response.map { $0.answer(to: question) } ?? TransactionCoordinatorShard.refusal(question, .coordinatorNotAvailable))
        }
    }

    package func coordinate(
        _ key: PartitionKey, _ request: TransactionRequest,
        reply: @escaping @Sendable (TransactionResponse) -> Void
    ) {
        if let code = image.coordinationError(key) {
            return reply(TransactionCoordinatorShard.refusal(request, code))
        }
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

extension AddPartitionsToTxnRequest {
    /// From here on brokers ask, for any number of transactions (KIP-890).
    fileprivate static var firstOfBrokers: Int16 { 4 }

    /// `nil` for what is no question of a broker.
    fileprivate init?(_ question: TransactionRequest) {
        self.init()
        var transaction = AddPartitionsToTxnTransaction()
        let partitions: [TopicPartition]
        switch question {
        case .verifyPartitions(let id, let producer, let asked):
            transaction.transactionalID = id
            transaction.producerID = producer.id
            transaction.producerEpoch = producer.epoch
            transaction.verifyOnly = true
            partitions = asked
        case .addPartitions(let id, let producer, let asked, .second):
            transaction.transactionalID = id
            transaction.producerID = producer.id
            transaction.producerEpoch = producer.epoch
            partitions = asked
        case .addPartitions, .initialize, .end, .describe, .list: return nil
        }
        transaction.topics = partitions.map { partition in
            var topic = AddPartitionsToTxnTopic()
            topic.name = partition.topic
            topic.partitions = [partition.partition.rawValue]
            return topic
        }
        transactions = [transaction]
    }
}

extension AddPartitionsToTxnResponse {
    fileprivate func answer(to question: TransactionRequest) -> TransactionResponse {
        guard errorCode == 0, let result = resultsByTransaction.first else {
            return TransactionCoordinatorShard.refusal(
                question, errorCode == 0 ? .unknownServerError : ErrorCode(rawValue: errorCode))
        }
        return .partitions(
            result.topicResults.flatMap { topic in
                topic.resultsByPartition.map {
                    PartitionOutcome(
                        partition: TopicPartition(topic.name, $0.partitionIndex),
                        error: ErrorCode(rawValue: $0.partitionErrorCode))
                }
            })
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
