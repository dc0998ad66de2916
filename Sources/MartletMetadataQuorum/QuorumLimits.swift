package import MartletLogModel

/// Bounds and times of the core that nobody needs to set. Each is far from what a healthy quorum meets.
package enum QuorumLimits {
    /// Fetches that wait for records: one per node, and a cluster has at most 10,000 nodes.
    package static let parkedFetchLimit = 20_000
    /// Messages that wait until the state file is on disk; a write takes milliseconds, so more are a peer gone wild.
    package static let heldMessageLimit = 4_096
    /// Appended and not yet committed proposals; beyond it the controller is refused until the quorum follows.
    package static let waitingProposalLimit = 10_000
    /// Milliseconds after which an observer that does not fetch is forgotten (as in Kafka).
    package static let observerSessionMilliseconds: Int64 = 300_000
    /// Observers remembered; more than the nodes a cluster may have.
    package static let observerLimit = 20_000
    /// Milliseconds within which a voter-to-be must have fetched and once have been at the leader's end (KIP-853).
    package static let catchUpMilliseconds: Int64 = 3_600_000
    /// Bytes a peer may ask for at once.
    package static let fetchBytesLimit = 64 * 1024 * 1024
    /// Voters: elections and majorities are made for a handful.
    package static let voterLimit = 64
}

/// What the core is told when it is made.
package struct QuorumConfiguration: Hashable, Sendable {
    package var node: ReplicaKey
    package var endpoints: [Endpoint]
    /// Voters by configuration: in force until the log or a snapshot names others, and the addresses to ask for the
    /// leader.
    package var bootstrapVoters: VoterSet
    /// Whether the configured voters count while the log names none. Off for a node that joins a cluster, or comes back to
    /// one with an empty disk: several of those would otherwise found a cluster of their own.
    package var startsCluster = true
    package var electionTimeoutMilliseconds: Int64 = 1_000
    package var fetchTimeoutMilliseconds: Int64 = 2_000
    package var requestTimeoutMilliseconds: Int64 = 2_000
    package var retryBackoffMilliseconds: Int64 = 20
    /// Longest wait of a preferred successor that is not the first one.
    package var electionBackoffMilliseconds: Int64 = 1_000
    /// Wait of a voter whose connection to the leader broke, before it asks for pre-votes.
    package var lostLeaderMilliseconds: Int64 = 100
    package var fetchWaitMilliseconds: Int64 = 500
    package var fetchBytes = 8 * 1024 * 1024
    package var snapshotChunkBytes = 1024 * 1024
    package var suspended: SuspendedRules = []

    package init(node: ReplicaKey, endpoints: [Endpoint], bootstrapVoters: VoterSet) {
        self.node = node
        self.endpoints = endpoints
        self.bootstrapVoters = bootstrapVoters
    }

    /// What is in force while neither log nor snapshot says otherwise.
    var initialMembership: QuorumMembership {
        QuorumMembership(version: 0, voters: startsCluster ? bootstrapVoters : VoterSet([]))
    }

    /// A leader that a majority has not fetched from for so long resigns (check quorum).
    var checkQuorumMilliseconds: Int64 { fetchTimeoutMilliseconds * 3 / 2 }
}

/// What a node finds on its disk.
package struct RecoveredQuorum: Hashable, Sendable {
    package var state: QuorumStateFile?
    package var logStart: Offset
    package var logEnd: Offset
    package var epochs: [QuorumLog.EpochStart]
    /// The newest whole snapshot and what it says of the voters.
    package var snapshot: LogPosition?
    package var snapshotMembership: QuorumMembership?
    /// Control records of the log behind the snapshot, with the offset of their batch.
    package var controlBatches: [ControlBatchAt]

    package struct ControlBatchAt: Hashable, Sendable {
        package var offset: Offset
        package var records: [ControlRecord]

        package init(offset: Offset, records: [ControlRecord]) {
            self.offset = offset
            self.records = records
        }
    }

    /// An empty directory.
    package init() {
        state = nil
        logStart = .zero
        logEnd = .zero
        epochs = []
        snapshot = nil
        snapshotMembership = nil
        controlBatches = []
    }
}
