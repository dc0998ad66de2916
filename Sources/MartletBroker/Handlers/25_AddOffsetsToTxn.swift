internal import Logging
internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// AddOffsetsToTxn (key 25): the group's partition of the offsets topic becomes part of the transaction. Version 2
/// knows PRODUCER_FENCED.
package enum AddOffsetsToTxnHandler {
    package static func handle(_ request: AddOffsetsToTxnRequest, _ context: RequestContext) {
        @Sendable func respond(_ code: ErrorCode) -> AddOffsetsToTxnResponse {
            var response = AddOffsetsToTxnResponse()
            response.errorCode = code.rawValue
            return response
        }
        guard !request.groupID.isEmpty else { return context.respond(respond(.invalidGroupID)) }
        guard context.image.topicID(named: TopicName.consumerOffsets) == nil else {
            return add(request, context, respond)
        }
        // A producer may name a group whose coordinator nobody has asked for yet.
        let loop = context.loop
        let created = context.services.controllerChannel.autoCreateTopics([TopicName.consumerOffsets])
        created.hop(to: loop.eventLoop).assumeIsolated().whenComplete { result in
            if case .failure(let error) = result {
                loop.logger.error("\(TopicName.consumerOffsets) cannot be created", metadata: ["cause": "\(error)"])
            }
            add(request, context, respond)
        }
    }

    private static func add(
        _ request: AddOffsetsToTxnRequest, _ context: RequestContext,
        _ respond: @escaping @Sendable (ErrorCode) -> AddOffsetsToTxnResponse
    ) {
        guard let partition = context.image.offsetsPartition(of: request.groupID) else {
            return context.respond(respond(.coordinatorNotAvailable))
        }
        let version = context.version
        context.respond(
            when: context.coordinate(
                .addPartitions(
                    transactionalID: request.transactionalID,
                    producer: ProducerIdentity(id: request.producerID, epoch: request.producerEpoch),
                    partitions: [partition], under: .first)
            ).map { response -> AddOffsetsToTxnResponse in
                guard case .partitions(let outcomes) = response else { return response.mismatch() }
                let code = outcomes.first?.error ?? .unknownServerError
                return respond(version < 2 && code == .producerFenced ? .invalidProducerEpoch : code)
            })
    }
}

extension MetadataImage {
    /// The partition of the offsets topic that is responsible for a group, if the topic exists.
    func offsetsPartition(of group: String) -> TopicPartition? {
        guard let topic = topic(named: TopicName.consumerOffsets), !topic.partitions.isEmpty else { return nil }
        return TopicPartition(
            topic.name, GroupPartitioner.partition(for: group, count: Int32(clamping: topic.partitions.count)))
    }
}
