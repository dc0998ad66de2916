internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel

/// DescribeTopicPartitions (key 75, KIP-966): topics in the order of their names, in pages of at most
/// `responsePartitionLimit` partitions; the cursor says where the next page starts.
package enum DescribeTopicPartitionsHandler {
    /// Kafka's `max.request.partition.size.limit`: partitions per page, whatever the client asks.
    private static let partitionLimit = 2000

    package static func handle(_ request: DescribeTopicPartitionsRequest, _ context: RequestContext) {
        let image = context.image
        var names = request.topics.isEmpty ? image.sortedTopics().map(\.name) : Set(request.topics.map(\.name)).sorted()
        if let cursor = request.cursor { names.removeAll { $0 < cursor.topicName } }
        var left = min(max(1, Int(request.responsePartitionLimit)), partitionLimit)
        var response = DescribeTopicPartitionsResponse()
        for name in names {
            guard left > 0 else {
                response.nextCursor = cursor(name, 0)
                break
            }
            var entry = DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponseTopic()
            entry.name = name
            guard let topic = image.topic(named: name) else {
                entry.errorCode =
                    (TopicName.problem(name) == nil ? ErrorCode.unknownTopicOrPartition : .invalidTopicException).rawValue
                response.topics.append(entry)
                continue
            }
            entry.topicID = topic.id
            entry.isInternal = topic.isInternal
            entry.topicAuthorizedOperations = AuthorizedOperations.topic
            let first = request.cursor?.topicName == name ? max(0, Int(request.cursor?.partitionIndex ?? 0)) : 0
            let end = min(topic.partitions.count, first + left)
            for index in first..<max(first, end) {
                entry.partitions.append(partition(topic.partitions[index], index, image))
            }
            left -= max(0, end - first)
            response.topics.append(entry)
            if end < topic.partitions.count {
                response.nextCursor = cursor(name, end)
                break
            }
        }
        context.respond(response)
    }

    private static func cursor(_ topic: String, _ partition: Int) -> DescribeTopicPartitionsResponse.Cursor {
        var cursor = DescribeTopicPartitionsResponse.Cursor()
        cursor.topicName = topic
        cursor.partitionIndex = Int32(partition)
        return cursor
    }

    private static func partition(
        _ partition: PartitionImage, _ index: Int, _ image: MetadataImage
    ) -> DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponsePartition {
        var entry = DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponsePartition()
        entry.partitionIndex = Int32(index)
        entry.leaderID = partition.leader?.rawValue ?? -1
        entry.leaderEpoch = partition.leaderEpoch.rawValue
        entry.replicaNodes = partition.replicas.map(\.rawValue)
        entry.isrNodes = partition.isr.map(\.rawValue)
        entry.eligibleLeaderReplicas = partition.eligibleLeaderReplicas.map(\.rawValue)
        entry.lastKnownElr = partition.lastKnownEligibleReplicas.map(\.rawValue)
        entry.offlineReplicas = partition.replicas.filter { image.broker($0)?.isFenced ?? true }.map(\.rawValue)
        if partition.leader == nil { entry.errorCode = ErrorCode.leaderNotAvailable.rawValue }
        return entry
    }
}
