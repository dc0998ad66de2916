package import MartletLogModel

/// A copyable picture for tests, traces and crash reports.
package struct QuorumSnapshot: Hashable, Sendable {
    package enum Role: Hashable, Sendable {
        case unattached, prospective, candidate, leader, follower, resigned, halted
    }

    package var role: Role
    package var epoch: LeaderEpoch
    package var vote: ReplicaKey?
    package var leader: BrokerID?
    package var isVoter: Bool
    /// Leads and may take proposals.
    package var isReady: Bool
    package var logStart: Offset
    package var logEnd: Offset
    package var flushedEnd: Offset
    package var highWatermark: Offset
}

/// What DescribeQuorum says, with instants where the wire has wall-clock times.
package struct QuorumDescription: Hashable, Sendable {
    package struct Replica: Hashable, Sendable {
        package var key: ReplicaKey
        /// Acknowledged; `nil` for a voter that has not fetched in this epoch.
        package var logEnd: Offset?
        package var lastFetch: Instant?
        package var lastCaughtUp: Instant?
    }

    package var leader: BrokerID
    package var epoch: LeaderEpoch
    package var highWatermark: Offset
    package var voters: [Replica]
    package var observers: [Replica]
    package var addresses: [Voter]
}

extension MetadataQuorum {
    /// The leader, if this node knows one.
    package var leader: LeaderAddress? { leaderAddress }

    /// Whether proposals are taken now.
    package var isReady: Bool { leadership?.isReady ?? false }

    /// Whether the next proposal is appended: this node leads, and not too many wait for their commit.
    package var acceptsProposal: Bool {
        guard let leadership else { return false }
        return leadership.isReady && leadership.proposals.count < QuorumLimits.waitingProposalLimit
    }

    package var isLeader: Bool { leadership != nil }

    /// Proposals that would be appended now, one after the other.
    package var proposalRoom: Int {
        guard let leadership, leadership.isReady else { return 0 }
        return max(0, QuorumLimits.waitingProposalLimit - leadership.proposals.count)
    }

    /// Whether this node is the whole quorum: what it appends cannot be taken back by another.
    package var isAlone: Bool { voters.isOnly(node) }

    /// When ``QuorumEvent/ticked`` is due at the latest; `nil` if only other events can change anything.
    package var nextDeadline: Instant? {
        switch state {
        case .unattached(let phase):
            let search = mayFetch ? phase.nextSearch : nil
            let stands = mayStand && installing == nil ? phase.electionDeadline : nil
            return earlier(earlier(search, stands), calls.nextDeadline)
        case .prospective(let nomination), .candidate(let nomination):
            return earlier(nomination.deadline, calls.nextDeadline)
        case .leader(let leadership):
            let quorum = voters.isOnly(node) ? nil : leadership.quorumDeadline
            return earlier(earlier(quorum, leadership.nextDeadline), calls.nextDeadline)
        case .follower(let following):
            return earlier(installing == nil ? following.fetchDeadline : nil, calls.nextDeadline)
        case .resigned(let resignation): return earlier(resignation.deadline, calls.nextDeadline)
        case .halted: return nil
        }
    }

    package borrowing func snapshot() -> QuorumSnapshot {
        let role: QuorumSnapshot.Role =
            switch state {
            case .unattached: .unattached
            case .prospective: .prospective
            case .candidate: .candidate
            case .leader: .leader
            case .follower: .follower
            case .resigned: .resigned
            case .halted: .halted
            }
        return QuorumSnapshot(
            role: role, epoch: epoch, vote: vote, leader: leaderAddress?.id, isVoter: isVoter,
            isReady: isReady,
            logStart: log.start, logEnd: log.end, flushedEnd: log.flushedEnd, highWatermark: highWatermark)
    }

    /// `nil` unless this node leads; others answer NOT_LEADER_OR_FOLLOWER.
    package borrowing func describe(now: Instant) -> QuorumDescription? {
        guard let leadership else { return nil }
        let voters = voters
        let replicas = voters.voters.map { voter in
            if voter.key.id == node.id {
                return QuorumDescription.Replica(
                    key: voter.key, logEnd: log.end, lastFetch: now, lastCaughtUp: now)
            }
            let progress = leadership.progress(of: voter)
            return QuorumDescription.Replica(
                key: voter.key, logEnd: progress?.offset, lastFetch: progress?.lastFetch,
                lastCaughtUp: progress?.lastCaughtUp)
        }
        let observers = leadership.progress.filter { !voters.contains($0.key) }.sorted { $0.key < $1.key }
        return QuorumDescription(
            leader: node.id, epoch: epoch, highWatermark: highWatermark, voters: replicas,
            observers: observers.map {
                .init(key: $0.key, logEnd: $0.offset, lastFetch: $0.lastFetch, lastCaughtUp: $0.lastCaughtUp)
            },
            addresses: voters.voters)
    }

    /// What a snapshot that ends at `end` must say of the voters.
    package borrowing func membership(asOf end: Offset) -> QuorumMembership {
        membership.membership(asOf: end)
    }

    /// Epoch of the last record below `end`, for the name of a snapshot there.
    package borrowing func epoch(before end: Offset) -> LeaderEpoch { log.epoch(before: end) }
}
