internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// AddPartitionsToTxn (key 24). Versions 0-3 come from clients and add partitions to one transaction; 4 and later come
/// from brokers and add to, or only verify, many (KIP-890).
package enum AddPartitionsToTxnHandler {
    package static func handle(_ request: AddPartitionsToTxnRequest, _ context: RequestContext) {
        context.version >= 4 ? handleMany(request, context) : handleOne(request, context)
    }

    private typealias Topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic
    private typealias TopicResult = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult

    private static func partitions(_ topics: [Topic]) -> [TopicPartition] {
        topics.flatMap { topic in topic.partitions.map { TopicPartition(topic.name, $0) } }
    }

    private static func results(_ topics: [Topic], _ outcomes: [PartitionOutcome]) -> [TopicResult] {
        var rest = outcomes[...]
        return topics.map { topic in
            var result = TopicResult()
            result.name = topic.name
            result.resultsByPartition = topic.partitions.map { index in
                var partition = AddPartitionsToTxnResponse.AddPartitionsToTxnPartitionResult()
                partition.partitionIndex = index
                partition.partitionErrorCode = (rest.popFirst()?.error ?? .unknownServerError).rawValue
                return partition
            }
            return result
        }
    }

    private static func handleOne(_ request: AddPartitionsToTxnRequest, _ context: RequestContext) {
        let topics = request.v3AndBelowTopics
        let wanted = partitions(topics)
        @Sendable func respond(_ outcomes: [PartitionOutcome]) -> AddPartitionsToTxnResponse {
            var response = AddPartitionsToTxnResponse()
            response.resultsByTopicV3AndBelow = results(topics, outcomes)
            return response
        }
        // All or nothing: with one that cannot be added, none is.
        let problems = wanted.map { problem(with: $0, context) }
        if problems.contains(where: { $0 != nil }) {
            return context.respond(
                respond(
                    zip(wanted, problems).map { PartitionOutcome(partition: $0, error: $1 ?? .operationNotAttempted) }))
        }
        let producer = ProducerIdentity(
            id: request.v3AndBelowProducerID, epoch: request.v3AndBelowProducerEpoch)
        let version = context.version
        context.respond(
            when: context.coordinate(
                .addPartitions(
                    transactionalID: request.v3AndBelowTransactionalID, producer: producer, partitions: wanted,
                    under: .first)
            ).map { response -> AddPartitionsToTxnResponse in
                guard case .partitions(var outcomes) = response else { return response.mismatch() }
                if version < 2 {
                    for index in outcomes.indices where outcomes[index].error == .producerFenced {
                        outcomes[index].error = .invalidProducerEpoch
                    }
                }
                return respond(outcomes)
            })
    }

    private static func problem(with partition: TopicPartition, _ context: RequestContext) -> ErrorCode? {
        guard let topic = context.image.topic(named: partition.topic), topic.partition(partition.partition) != nil
        else { return .unknownTopicOrPartition }
        return topic.isInternal ? .topicAuthorizationFailed : nil
    }

    private static func handleMany(_ request: AddPartitionsToTxnRequest, _ context: RequestContext) {
        let futures = request.transactions.map { transaction in
            let producer = ProducerIdentity(id: transaction.producerID, epoch: transaction.producerEpoch)
            let wanted = partitions(transaction.topics)
            let question: TransactionRequest =
                transaction.verifyOnly
                ? .verifyPartitions(
                    transactionalID: transaction.transactionalID, producer: producer, partitions: wanted)
                : .addPartitions(
                    transactionalID: transaction.transactionalID, producer: producer, partitions: wanted,
                    under: .second)
            return context.coordinate(question).map { response -> AddPartitionsToTxnResponse.AddPartitionsToTxnResult in
                guard case .partitions(let outcomes) = response else { return response.mismatch() }
                var result = AddPartitionsToTxnResponse.AddPartitionsToTxnResult()
                result.transactionalID = transaction.transactionalID
                result.topicResults = results(transaction.topics, outcomes)
                return result
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { all in
                var response = AddPartitionsToTxnResponse()
                response.resultsByTransaction = all
                return response
            })
    }
}
