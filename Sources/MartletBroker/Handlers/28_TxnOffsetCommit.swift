internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// TxnOffsetCommit (key 28): positions of a group that count when the transaction commits. Version 3 names the member
/// (KIP-447); 5 adds the offsets partition to the transaction by itself, before it the broker makes sure that the
/// client has (KIP-890).
package enum TxnOffsetCommitHandler {
    package static func handle(_ request: TxnOffsetCommitRequest, _ context: RequestContext) {
        var known = OffsetCommitRequest()
        known.groupID = request.groupID
        known.generationIDOrMemberEpoch = request.generationIDOrMemberEpoch
        known.memberID = request.memberID
        known.groupInstanceID = request.groupInstanceID
        known.retentionTimeMs = -1
        for topic in request.topics {
            guard let image = context.image.topic(named: topic.name) else { continue }
            var accepted = OffsetCommitRequest.OffsetCommitRequestTopic()
            accepted.name = image.name
            accepted.topicID = image.id
            accepted.partitions = topic.partitions.compactMap { partition in
                guard image.partition(PartitionIndex(partition.partitionIndex)) != nil else { return nil }
                var entry = OffsetCommitRequest.OffsetCommitRequestPartition()
                entry.partitionIndex = partition.partitionIndex
                entry.committedOffset = partition.committedOffset
                entry.committedLeaderEpoch = partition.committedLeaderEpoch
                entry.committedMetadata = partition.committedMetadata
                return entry
            }
            if !accepted.partitions.isEmpty { known.topics.append(accepted) }
        }
        guard !known.topics.isEmpty else { return context.respond(answer(request, [:], context.image)) }
        let image = context.image
        let commit = TransactionalCommit(
            request: known, producer: ProducerIdentity(id: request.producerID, epoch: request.producerEpoch),
            transactionalID: request.transactionalID, version: context.version)
        context.respond(
            when: context.coordinate(commit).map { response -> TxnOffsetCommitResponse in
                guard case .offsetCommit(let committed) = response else { return response.mismatch() }
                var codes: [TopicPartition: Int16] = [:]
                for topic in committed.topics {
                    for partition in topic.partitions {
                        codes[TopicPartition(topic.name, partition.partitionIndex)] = partition.errorCode
                    }
                }
                return answer(request, codes, image)
            })
    }

    private static func answer(
        _ request: TxnOffsetCommitRequest, _ codes: [TopicPartition: Int16], _ image: MetadataImage
    ) -> TxnOffsetCommitResponse {
        var response = TxnOffsetCommitResponse()
        response.topics = request.topics.map { topic in
            var entry = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic()
            entry.name = topic.name
            entry.partitions = topic.partitions.map { partition in
                var result = TxnOffsetCommitResponse.TxnOffsetCommitResponsePartition()
                result.partitionIndex = partition.partitionIndex
                result.errorCode =
                    codes[TopicPartition(topic.name, partition.partitionIndex)]
                    ?? ErrorCode.unknownTopicOrPartition.rawValue
                return result
            }
            return entry
        }
        return response
    }
}
