package import MartletLogModel
package import NIOCore

/// Who leads, and where it listens as far as the sender knows.
package struct LeaderAddress: Hashable, Sendable {
    package var id: BrokerID
    package var endpoints: [Endpoint]

    package init(id: BrokerID, endpoints: [Endpoint]) {
        self.id = id
        self.endpoints = endpoints
    }
}

/// What one node asks of another, in one meaning for all versions of the protocol; `QuorumWire` translates.
package enum QuorumRequest: Hashable, Sendable {
    case vote(VoteCall)
    case beginEpoch(EpochBegin)
    case endEpoch(EpochEnd)
    case fetch(LogFetch)
    case fetchSnapshot(SnapshotFetch)
    case addVoter(VoterAddition)
    case removeVoter(VoterRemoval)
    case updateVoter(VoterUpdate)
}

/// Vote (52).
package struct VoteCall: Hashable, Sendable {
    /// Whom it is meant for; `nil` where the sender does not say.
    package var voter: ReplicaKey?
    package var candidate: ReplicaKey
    /// The epoch the candidate stands for; in a pre-vote the one it is in.
    package var epoch: LeaderEpoch
    package var lastPosition: LogPosition
    package var isPreVote: Bool

    package init(
        voter: ReplicaKey?, candidate: ReplicaKey, epoch: LeaderEpoch, lastPosition: LogPosition,
        isPreVote: Bool
    ) {
        self.voter = voter
        self.candidate = candidate
        self.epoch = epoch
        self.lastPosition = lastPosition
        self.isPreVote = isPreVote
    }
}

/// BeginQuorumEpoch (53).
package struct EpochBegin: Hashable, Sendable {
    package var voter: ReplicaKey?
    package var leader: LeaderAddress
    package var epoch: LeaderEpoch

    package init(voter: ReplicaKey?, leader: LeaderAddress, epoch: LeaderEpoch) {
        self.voter = voter
        self.leader = leader
        self.epoch = epoch
    }
}

/// EndQuorumEpoch (54).
package struct EpochEnd: Hashable, Sendable {
    package var leaderID: BrokerID
    package var epoch: LeaderEpoch
    /// Who should stand next, the best first.
    package var preferredCandidates: [ReplicaKey]

    package init(leaderID: BrokerID, epoch: LeaderEpoch, preferredCandidates: [ReplicaKey]) {
        self.leaderID = leaderID
        self.epoch = epoch
        self.preferredCandidates = preferredCandidates
    }
}

/// Fetch (1) of the metadata log. The offset acknowledges everything below it, so it is flushed there.
package struct LogFetch: Hashable, Sendable {
    package var replica: ReplicaKey
    package var epoch: LeaderEpoch
    package var offset: Offset
    package var lastEpoch: LeaderEpoch
    /// What the fetcher knows; `nil` if it does not say (before KIP-1166).
    package var highWatermark: Offset?
    package var maxWaitMilliseconds: Int64
    package var maxBytes: Int

    package init(
        replica: ReplicaKey, epoch: LeaderEpoch, offset: Offset, lastEpoch: LeaderEpoch,
        highWatermark: Offset?,
        maxWaitMilliseconds: Int64, maxBytes: Int
    ) {
        self.replica = replica
        self.epoch = epoch
        self.offset = offset
        self.lastEpoch = lastEpoch
        self.highWatermark = highWatermark
        self.maxWaitMilliseconds = maxWaitMilliseconds
        self.maxBytes = maxBytes
    }
}

/// FetchSnapshot (59).
package struct SnapshotFetch: Hashable, Sendable {
    package var replica: ReplicaKey
    package var epoch: LeaderEpoch
    package var id: LogPosition
    /// Byte from which to read.
    package var position: Int64
    package var maxBytes: Int

    package init(replica: ReplicaKey, epoch: LeaderEpoch, id: LogPosition, position: Int64, maxBytes: Int) {
        self.replica = replica
        self.epoch = epoch
        self.id = id
        self.position = position
        self.maxBytes = maxBytes
    }
}

/// AddRaftVoter (80).
package struct VoterAddition: Hashable, Sendable {
    package var key: ReplicaKey
    package var endpoints: [Endpoint]
    package var timeoutMilliseconds: Int64
    /// Answer on commit; otherwise on append, so that a new voter may ask itself without waiting for its own vote.
    package var waitsForCommit: Bool

    package init(key: ReplicaKey, endpoints: [Endpoint], timeoutMilliseconds: Int64, waitsForCommit: Bool) {
        self.key = key
        self.endpoints = endpoints
        self.timeoutMilliseconds = timeoutMilliseconds
        self.waitsForCommit = waitsForCommit
    }
}

/// RemoveRaftVoter (81).
package struct VoterRemoval: Hashable, Sendable {
    package var key: ReplicaKey

    package init(key: ReplicaKey) { self.key = key }
}

/// UpdateRaftVoter (82).
package struct VoterUpdate: Hashable, Sendable {
    package var voter: Voter
    package var epoch: LeaderEpoch

    package init(voter: Voter, epoch: LeaderEpoch) {
        self.voter = voter
        self.epoch = epoch
    }
}

// MARK: Answers

/// What every answer says: how it went, and who leads which epoch as far as the sender knows.
package struct AnswerHeader: Hashable, Sendable {
    package var error: ErrorCode
    package var epoch: LeaderEpoch
    package var leader: LeaderAddress?

    package init(error: ErrorCode, epoch: LeaderEpoch, leader: LeaderAddress?) {
        self.error = error
        self.epoch = epoch
        self.leader = leader
    }
}

package enum QuorumAnswer: Hashable, Sendable {
    case vote(AnswerHeader, isGranted: Bool)
    case beginEpoch(AnswerHeader)
    case endEpoch(AnswerHeader)
    case fetch(LogAnswer)
    case fetchSnapshot(SnapshotAnswer)
    /// Of add, remove and update alike.
    case voterChange(AnswerHeader)

    package var header: AnswerHeader {
        switch self {
        case .vote(let header, _), .beginEpoch(let header), .endEpoch(let header), .voterChange(let header):
            header
        case .fetch(let answer): answer.header
        case .fetchSnapshot(let answer): answer.header
        }
    }
}

package struct LogAnswer: Hashable, Sendable {
    package var header: AnswerHeader
    package var highWatermark: Offset
    package var logStart: Offset
    package var diverging: LogPosition?
    package var snapshot: LogPosition?
    /// Filled in by the shell of the leader, cut into batches by the shell of the follower.
    package var batches: [LogBatch]

    package init(
        header: AnswerHeader, highWatermark: Offset, logStart: Offset, diverging: LogPosition? = nil,
        snapshot: LogPosition? = nil, batches: [LogBatch] = []
    ) {
        self.header = header
        self.highWatermark = highWatermark
        self.logStart = logStart
        self.diverging = diverging
        self.snapshot = snapshot
        self.batches = batches
    }
}

package struct SnapshotAnswer: Hashable, Sendable {
    package var header: AnswerHeader
    package var id: LogPosition
    /// Of the whole snapshot, in bytes.
    package var size: Int64
    package var position: Int64
    package var bytes: ByteBuffer

    package init(header: AnswerHeader, id: LogPosition, size: Int64, position: Int64, bytes: ByteBuffer) {
        self.header = header
        self.id = id
        self.size = size
        self.position = position
        self.bytes = bytes
    }
}
