internal import MartletController
package import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore

/// Offsets that a transaction carries, on their way to the group's shard.
package struct TransactionalCommit: Sendable {
    package var request: OffsetCommitRequest
    package var producer: ProducerIdentity
    package var transactionalID: String
    /// Of TxnOffsetCommit.
    package var version: Int16

    var groupRequest: GroupRequest { .txnOffsetCommit(request, producer) }

    /// What the transaction's coordinator is asked before the first offsets of a transaction.
    func question(_ partition: TopicPartition) -> TransactionRequest {
        version >= 5
            ? .addPartitions(
                transactionalID: transactionalID, producer: producer, partitions: [partition], under: .second)
            : .verifyPartitions(transactionalID: transactionalID, producer: producer, partitions: [partition])
    }

    /// The coordinator's answer as TxnOffsetCommit says it.
    func code(_ code: ErrorCode) -> ErrorCode {
        switch code {
        case .producerFenced: .invalidProducerEpoch
        case .transactionAbortable: version >= 4 ? .transactionAbortable : .invalidTxnState
        case .concurrentTransactions: version >= 5 ? .concurrentTransactions : .coordinatorLoadInProgress
        // It is not the group's coordinator that is missing: the client just tries again.
        case .coordinatorNotAvailable, .notCoordinator: .coordinatorLoadInProgress
        case _: code
        }
    }
}

extension RequestContext {
    /// Runs the commit on the shard of its group; the future completes on this connection's loop.
    package func coordinate(_ commit: TransactionalCommit) -> EventLoopFuture<GroupResponse> {
        let promise = loop.eventLoop.makePromise(of: GroupResponse.self)
        guard let partition = image.offsetsPartition(of: commit.request.groupID),
            let topicID = image.topicID(named: partition.topic)
        else {
            promise.succeed(GroupCoordinatorShard.refusal(commit.groupRequest, .coordinatorNotAvailable))
            return promise.futureResult
        }
        let key = PartitionKey(topicID: topicID, partition: partition.partition)
        promise.futureResult.assumeIsolated().whenSuccess { self.logRefusal(of: commit.groupRequest, $0) }
        services.loops.loop(of: key).post { target in
            target.groups.submit(commit, to: key, named: partition) { promise.succeed($0) }
        }
        return promise.futureResult
    }
}
