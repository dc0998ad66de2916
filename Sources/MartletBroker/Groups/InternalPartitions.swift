internal import MartletController
internal import MartletLogModel

extension MetadataImage {
    /// Why this broker does not coordinate what a partition of an internal topic is for; `nil` if it may.
    func coordinationError(_ key: PartitionKey) -> ErrorCode? {
        guard let partition = topic(id: key.topicID)?.partition(key.partition) else { return nil }
        guard let leader = partition.leader else { return .coordinatorNotAvailable }
        return leader == localBroker ? nil : .notCoordinator
    }

    /// The partitions of an internal topic that this broker coordinates.
    func coordinatedPartitions(of name: String) -> [PartitionKey] {
        guard let topic = topic(named: name) else { return [] }
        return topic.partitions.enumerated().compactMap { index, partition in
            partition.leader == localBroker
                ? PartitionKey(topicID: topic.id, partition: PartitionIndex(Int32(index))) : nil
        }
    }
}
