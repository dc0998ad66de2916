import MartletLogModel

/// What became of a proposal.
enum InSyncProposalOutcome: Hashable, Sendable {
    /// The partition as the controller has it now.
    case accepted(leaderEpoch: LeaderEpoch, partitionEpoch: PartitionEpoch, inSyncReplicas: [BrokerID])
    case refused(ErrorCode)
    /// Nobody knows whether the controller took it, or it never left.
    case lost
}
