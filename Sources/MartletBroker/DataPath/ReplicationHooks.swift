internal import MartletLogModel
internal import MartletReplication

/// What asks the leaders elsewhere for the records of the partitions of one loop; on that loop.
protocol ReplicaFetching: AnyObject {
    /// Again with another leader moves the partition; with the same one it ends what held the partition back.
    func follow(_ partition: any FollowedPartition, leader: BrokerID, at address: BrokerSettings.Address?)
    func unfollow(_ id: PartitionKey)
    func leaderMoved(_ leader: BrokerID, to address: BrokerSettings.Address)
    /// The partition may have something to ask again.
    func wake(_ id: PartitionKey)
    func close()
}

/// Takes proposals of other in-sync sets to the controller; from any loop.
protocol InSyncProposing: AnyObject, Sendable {
    /// `settle` runs once, on any loop.
    func propose(
        _ proposal: InSyncProposal, of id: PartitionKey, settle: @escaping @Sendable (InSyncProposalOutcome) -> Void)
}
