import MartletKafkaProtocol
package import MartletLogModel

// The records of a consumer group, from what they say. Lists are in order, so that equal states give equal bytes.

extension CoordinatorRecord {
    static func consumerGroup(_ group: String, epoch: Int32, metadataHash: Int64) -> CoordinatorRecord {
        var value = ConsumerGroupMetadataValue()
        value.epoch = epoch
        value.metadataHash = metadataHash
        return .consumerGroup(consumerGroupKey(group), value)
    }

    static func consumerGroupTombstone(_ group: String) -> CoordinatorRecord {
        .consumerGroup(consumerGroupKey(group), nil)
    }

    private static func consumerGroupKey(_ group: String) -> ConsumerGroupMetadataKey {
        var key = ConsumerGroupMetadataKey()
        key.groupID = group
        return key
    }

    static func consumerGroupTopicsTombstone(_ group: String) -> CoordinatorRecord {
        var key = ConsumerGroupPartitionMetadataKey()
        key.groupID = group
        return .consumerGroupTopics(key, nil)
    }

    static func consumerMember(
        _ group: String, _ member: String, _ value: ConsumerGroupMemberMetadataValue?
    ) -> CoordinatorRecord {
        var key = ConsumerGroupMemberMetadataKey()
        key.groupID = group
        key.memberID = member
        return .consumerMember(key, value)
    }

    static func consumerTarget(_ group: String, epoch: Int32, at timestamp: Timestamp) -> CoordinatorRecord {
        var value = ConsumerGroupTargetAssignmentMetadataValue()
        value.assignmentEpoch = epoch
        value.assignmentTimestamp = timestamp.rawValue
        return .consumerTarget(consumerTargetKey(group), value)
    }

    static func consumerTargetTombstone(_ group: String) -> CoordinatorRecord {
        .consumerTarget(consumerTargetKey(group), nil)
    }

    private static func consumerTargetKey(_ group: String) -> ConsumerGroupTargetAssignmentMetadataKey {
        var key = ConsumerGroupTargetAssignmentMetadataKey()
        key.groupID = group
        return key
    }

    static func consumerMemberTarget(
        _ group: String, _ member: String, _ partitions: TopicPartitions?
    ) -> CoordinatorRecord {
        var key = ConsumerGroupTargetAssignmentMemberKey()
        key.groupID = group
        key.memberID = member
        return .consumerMemberTarget(
            key,
            partitions.map { partitions in
                var value = ConsumerGroupTargetAssignmentMemberValue()
                value.topicPartitions = partitions.sorted { $0.key < $1.key }.map { topic, indexes in
                    var entry = ConsumerGroupTargetAssignmentMemberValue.TopicPartition()
                    entry.topicID = topic
                    entry.partitions = indexes.sorted()
                    return entry
                }
                return value
            })
    }

    static func consumerMemberCurrent(_ group: String, _ member: ConsumerMember) -> CoordinatorRecord {
        var value = ConsumerGroupCurrentMemberAssignmentValue()
        value.memberEpoch = member.epoch
        value.previousMemberEpoch = member.previousEpoch
        value.state = member.state.rawValue
        value.assignedPartitions = entries(member.assigned)
        value.partitionsPendingRevocation = entries(member.pendingRevocation)
        return .consumerMemberCurrent(currentKey(group, member.id), value)
    }

    static func consumerMemberCurrentTombstone(_ group: String, _ member: String) -> CoordinatorRecord {
        .consumerMemberCurrent(currentKey(group, member), nil)
    }

    private static func currentKey(
        _ group: String, _ member: String
    ) -> ConsumerGroupCurrentMemberAssignmentKey {
        var key = ConsumerGroupCurrentMemberAssignmentKey()
        key.groupID = group
        key.memberID = member
        return key
    }

    private static func entries(
        _ partitions: OwnedPartitions
    ) -> [ConsumerGroupCurrentMemberAssignmentValue.TopicPartitions] {
        partitions.sorted { $0.key < $1.key }.map { topic, epochs in
            let sorted = epochs.sorted { $0.key < $1.key }
            var entry = ConsumerGroupCurrentMemberAssignmentValue.TopicPartitions()
            entry.topicID = topic
            entry.partitions = sorted.map(\.key)
            entry.assignmentEpochs = sorted.map(\.value)
            return entry
        }
    }

    static func consumerPattern(_ group: String, _ pattern: String, _ resolved: ResolvedPattern?)
        -> CoordinatorRecord
    {
        var key = ConsumerGroupRegularExpressionKey()
        key.groupID = group
        key.regularExpression = pattern
        return .consumerPattern(
            key,
            resolved.map { resolved in
                var value = ConsumerGroupRegularExpressionValue()
                value.topics = resolved.topics.sorted()
                value.version = resolved.version
                value.timestamp = resolved.resolvedAt.rawValue
                return value
            })
    }
}

extension ConsumerGroupCurrentMemberAssignmentValue {
    /// Partitions with their epochs; a record without them (before KIP-1251) gives all the member's own.
    static func partitions(_ entries: [TopicPartitions], memberEpoch: Int32) -> OwnedPartitions {
        var partitions: OwnedPartitions = [:]
        for entry in entries {
            let epochs = entry.assignmentEpochs ?? []
            for (index, partition) in entry.partitions.enumerated() {
                partitions[entry.topicID, default: [:]][partition] =
                    index < epochs.count ? epochs[index] : memberEpoch
            }
        }
        return partitions
    }
}

/// What a pattern matched, and in which catalog.
package struct ResolvedPattern: Sendable, Equatable {
    package var topics: Set<String>
    package var version: Int64
    package var resolvedAt: Timestamp
}
