internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// OffsetDelete (key 47, KIP-496): committed offsets of topics that nobody in the group subscribes to.
package enum OffsetDeleteHandler {
    package static func handle(_ request: OffsetDeleteRequest, _ context: RequestContext) {
        var known = request
        known.topics = request.topics.compactMap { topic in
            guard let image = context.image.topic(named: topic.name) else { return nil }
            var topic = topic
            topic.partitions.removeAll { image.partition(PartitionIndex($0.partitionIndex)) == nil }
            return topic
        }
        context.respond(
            when: context.coordinate(group: request.groupID, .offsetDelete(known)).map {
                response -> OffsetDeleteResponse in
                guard case .offsetDelete(var answer) = response else { return response.mismatch() }
                guard answer.errorCode == 0 else { return answer }
                answer.topics = merged(request, answer.topics)
                return answer
            })
    }

    /// The answer in the order of the request, with 3 for what does not exist.
    private static func merged(
        _ request: OffsetDeleteRequest, _ answered: [OffsetDeleteResponse.OffsetDeleteResponseTopic]
    ) -> [OffsetDeleteResponse.OffsetDeleteResponseTopic] {
        var codes: [TopicPartition: Int16] = [:]
        for topic in answered {
            for partition in topic.partitions {
                codes[TopicPartition(topic.name, partition.partitionIndex)] = partition.errorCode
            }
        }
        return request.topics.map { topic in
            var entry = OffsetDeleteResponse.OffsetDeleteResponseTopic()
            entry.name = topic.name
            entry.partitions = topic.partitions.map { partition in
                var result = OffsetDeleteResponse.OffsetDeleteResponsePartition()
                result.partitionIndex = partition.partitionIndex
                result.errorCode =
                    codes[TopicPartition(topic.name, partition.partitionIndex)]
                    ?? ErrorCode.unknownTopicOrPartition.rawValue
                return result
            }
            return entry
        }
    }
}
