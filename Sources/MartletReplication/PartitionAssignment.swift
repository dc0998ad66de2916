package import MartletLogModel

/// What the cluster's metadata says of one partition.
package struct PartitionAssignment: Hashable, Sendable {
    package var leader: BrokerID?
    package var leaderEpoch: LeaderEpoch
    package var partitionEpoch: PartitionEpoch
    package var replicas: [BrokerID]
    package var inSyncReplicas: [BrokerID]
    /// The leader came from an unclean election and has not said yet that it has taken over (KIP-704).
    package var isRecovering: Bool

    package init(
        leader: BrokerID?, leaderEpoch: LeaderEpoch, partitionEpoch: PartitionEpoch, replicas: [BrokerID],
        inSyncReplicas: [BrokerID], isRecovering: Bool = false
    ) {
        self.leader = leader
        self.leaderEpoch = leaderEpoch
        self.partitionEpoch = partitionEpoch
        self.replicas = replicas
        self.inSyncReplicas = inSyncReplicas
        self.isRecovering = isRecovering
    }
}

/// What the cluster's metadata says of the broker of a follower.
package struct ReplicaStanding: Hashable, Sendable {
    /// Of its present registration.
    package var brokerEpoch: BrokerEpoch
    /// It is neither fenced nor shutting down (KIP-841).
    package var canJoin: Bool

    package init(brokerEpoch: BrokerEpoch, canJoin: Bool) {
        self.brokerEpoch = brokerEpoch
        self.canJoin = canJoin
    }
}

/// A wish for another in-sync set, for the controller (AlterPartition, KIP-497).
package struct InSyncProposal: Hashable, Sendable {
    package struct Member: Hashable, Sendable {
        package var broker: BrokerID
        /// As its last fetch said (KIP-903); nil for the leader itself and for who has not fetched yet.
        package var brokerEpoch: BrokerEpoch?
    }

    /// Rises with each attempt, so that answers find theirs.
    package var number: UInt64
    package var leaderEpoch: LeaderEpoch
    /// The version of the partition that it changes.
    package var partitionEpoch: PartitionEpoch
    package var members: [Member]
}

/// A follower's fetch, as its leader sees it. The offset says that everything below it is safe there.
package struct FollowerFetch: Hashable, Sendable {
    package var replica: BrokerID
    /// Nil when the follower does not say.
    package var brokerEpoch: BrokerEpoch?
    /// The epoch in which the follower believes to follow.
    package var leaderEpoch: LeaderEpoch
    package var offset: Offset
    /// Latest epoch that the follower's log knows; nil when it knows none.
    package var lastFetchedEpoch: LeaderEpoch?
    package var logStartOffset: Offset?

    package init(
        replica: BrokerID, brokerEpoch: BrokerEpoch?, leaderEpoch: LeaderEpoch, offset: Offset,
        lastFetchedEpoch: LeaderEpoch?, logStartOffset: Offset? = nil
    ) {
        self.replica = replica
        self.brokerEpoch = brokerEpoch
        self.leaderEpoch = leaderEpoch
        self.offset = offset
        self.lastFetchedEpoch = lastFetchedEpoch
        self.logStartOffset = logStartOffset
    }
}

/// What the leader says to a follower's fetch.
package enum FollowerFetchAnswer: Hashable, Sendable {
    /// Send what is there, unflushed records included; it may be nothing, and may wait for more.
    case records(from: Offset, upTo: Offset)
    /// The follower's log has something else before its fetch offset (KIP-595).
    case diverging(EpochEnd)
    case refused(ErrorCode)
}

/// What a follower asks its leader next.
package struct ReplicaFetch: Hashable, Sendable {
    package var leader: BrokerID
    package var leaderEpoch: LeaderEpoch
    package var offset: Offset
    package var lastFetchedEpoch: LeaderEpoch?
    /// State of the log in which it was asked: a late answer may meet the same log end again, after a cut, and be
    /// wrong there.
    package var state: UInt64

    package init(
        leader: BrokerID, leaderEpoch: LeaderEpoch, offset: Offset, lastFetchedEpoch: LeaderEpoch?, state: UInt64 = 0
    ) {
        self.leader = leader
        self.leaderEpoch = leaderEpoch
        self.offset = offset
        self.lastFetchedEpoch = lastFetchedEpoch
        self.state = state
    }
}

/// What came back.
package enum ReplicaFetchAnswer: Hashable, Sendable {
    /// Records from the fetch offset on, possibly none, and the leader's marks.
    case records(highWatermark: Offset, logStartOffset: Offset)
    case diverging(EpochEnd)
    /// The leader has nothing at that offset; its log starts there.
    case outOfRange(leaderLogStartOffset: Offset)
    case refused(ErrorCode)
}
