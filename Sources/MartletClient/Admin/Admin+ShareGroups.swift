import MartletKafkaProtocol
public import MartletLogModel

/// Where a share group stands in a partition (KIP-932).
public struct SharePartitionOffset: Hashable, Sendable {
    /// First record that is not done with; `nil` where the group has not begun.
    public var start: Offset?
    /// Records from there on that are not done with; `nil` where that is not known.
    public var lag: Int64?
}

extension Admin {
    /// A share group, or `nil` if the coordinator has none of that name.
    func describeShareGroup(_ group: String, _ coordinator: BrokerID) async throws -> GroupDescription? {
        let response: ShareGroupDescribeResponse
        do {
            response = try await engine.send(ShareGroupDescribeRequest.self, to: .broker(coordinator)) { _ in
                var request = ShareGroupDescribeRequest()
                request.groupIDs = [group]
                return request
            }.response
        } catch let error as ClientError where error.code == .unsupportedByBroker {
            return nil
        }
        guard let item = response.groups.first(where: { $0.groupID == group }), item.errorCode == 0 else {
            return nil
        }
        return GroupDescription(
            groupID: group, state: item.groupState, protocolType: "share", strategy: item.assignorName,
            coordinator: coordinator,
            members: item.members.map { member in
                GroupMember(
                    memberID: member.memberID, groupInstanceID: nil, clientID: member.clientID,
                    clientHost: member.clientHost,
                    assignment: member.assignment.topicPartitions.flatMap { topic in
                        topic.partitions.map { TopicPartition(topic.topicName, $0) }
                    })
            },
            lastRebalance: nil)
    }

    /// Where a share group stands in all partitions that it has begun to read.
    public func shareGroupOffsets(_ group: String) async throws -> [TopicPartition: SharePartitionOffset] {
        try await onCoordinator(of: group, "offsets") { coordinator in
            let response = try await engine.send(
                DescribeShareGroupOffsetsRequest.self, to: .broker(coordinator)
            ) { _ in
                var asked = DescribeShareGroupOffsetsRequest.DescribeShareGroupOffsetsRequestGroup()
                asked.groupID = group
                asked.topics = nil
                var request = DescribeShareGroupOffsetsRequest()
                request.groups = [asked]
                return request
            }.response
            guard let item = response.groups.first(where: { $0.groupID == group }) else {
                throw ClientError(.protocolViolation, "broker \(coordinator) left out group '\(group)'")
            }
            if let error = problem(item.errorCode, "offsets of group '\(group)'", item.errorMessage) {
                throw error
            }
            var offsets: [TopicPartition: SharePartitionOffset] = [:]
            for topic in item.topics {
                for partition in topic.partitions where partition.errorCode == 0 {
                    offsets[TopicPartition(topic.topicName, partition.partitionIndex)] = SharePartitionOffset(
                        start: partition.startOffset < 0 ? nil : Offset(partition.startOffset),
                        lag: partition.lag < 0 ? nil : partition.lag)
                }
            }
            return offsets
        }
    }
}
