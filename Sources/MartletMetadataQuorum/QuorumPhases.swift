import DequeModule
import MartletLogModel

/// In an epoch without a known leader. A voter stands when the deadline is over; everybody asks around meanwhile.
struct Unattached {
    var electionDeadline: Instant
    var nextSearch: Instant
}

/// Votes asked for and got, of pre-votes and votes alike.
struct Nomination {
    var deadline: Instant
    private let voters: VoterSet
    private(set) var granted: [BrokerID]
    private var rejected: [BrokerID] = []

    init(voters: VoterSet, own: BrokerID, deadline: Instant) {
        self.voters = voters
        self.deadline = deadline
        granted = voters[own] == nil ? [] : [own]
    }

    mutating func record(_ voter: BrokerID, isGranted: Bool) {
        guard voters[voter] != nil, !isDecided(voter) else { return }
        if isGranted { granted.append(voter) } else { rejected.append(voter) }
    }

    func isDecided(_ voter: BrokerID) -> Bool { granted.contains(voter) || rejected.contains(voter) }
    var undecided: [Voter] { voters.voters.filter { !isDecided($0.key.id) } }
    var isWon: Bool { granted.count >= voters.majorityCount }
    var isLost: Bool { voters.voters.count - rejected.count < voters.majorityCount }
    var grantingVoters: [ReplicaKey] { voters.voters.map(\.key).filter { granted.contains($0.id) } }
}

/// Follows the leader of the epoch.
struct Following {
    struct Download {
        var id: LogPosition
        var position: Int64 = 0
    }

    /// Without a successful fetch until then a voter stands for election.
    var fetchDeadline: Instant
    /// A leader that answers is a leader: pre-votes are refused from then on (KIP-996).
    var hasFetched = false
    var download: Download?
}

/// Led this epoch and gave it up: votes for nobody in it.
struct Resignation {
    var deadline: Instant
    /// Voters that have not confirmed the end.
    var unaware: [BrokerID]
    /// The most advanced first.
    var preferred: [ReplicaKey]
}

/// Leads the epoch: progress of the replicas, who waits for what, and the change of voters under way.
struct Leadership {
    struct Progress {
        var key: ReplicaKey
        /// Acknowledged end; `nil` until a fetch position was found valid.
        var offset: Offset?
        var lastFetch: Instant
        /// The leader's end at that fetch.
        var endAtLastFetch: Offset
        var lastCaughtUp: Instant?
    }

    struct Parked {
        var request: RequestID
        var offset: Offset
        var highWatermark: Offset?
        var maxBytes: Int
        var deadline: Instant
    }

    struct Proposal {
        var id: ProposalID
        /// Exclusive.
        var end: Offset
    }

    struct VoterChange {
        enum Step: Hashable {
            case probing(Voter)
            case appended(end: Offset)
        }

        var request: RequestID
        var step: Step
        var waitsForCommit: Bool
        var deadline: Instant
    }

    struct Announcement {
        var voter: BrokerID
        var due: Instant
    }

    /// Offset of the epoch's first record.
    let epochStart: Offset
    var isReady = false
    var progress: [Progress] = []
    var parked: [Parked] = []
    var proposals = Deque<Proposal>()
    /// At most one, unless the rule is suspended.
    var changes: [VoterChange] = []
    var announcements: [Announcement] = []
    /// Voters other than this node that have fetched since the deadline was set.
    private(set) var fetchedVoters: [BrokerID] = []
    var quorumDeadline: Instant

    init(epochStart: Offset, quorumDeadline: Instant) {
        self.epochStart = epochStart
        self.quorumDeadline = quorumDeadline
    }

    /// Progress of the replica that holds the voter's seat; by configuration alone (no directory known) the one that
    /// fetched last.
    func progress(of voter: Voter) -> Progress? {
        var best: Progress?
        for each in progress where each.key.id == voter.key.id {
            if let directory = voter.key.directoryID, each.key.directoryID != directory { continue }
            if let known = best, known.lastFetch >= each.lastFetch { continue }
            best = each
        }
        return best
    }

    /// The replica fetched: at a valid position, or with a log that must change first.
    mutating func fetched(_ key: ReplicaKey, at offset: Offset?, logEnd: Offset, now: Instant) {
        guard let index = progress.firstIndex(where: { $0.key == key }) else {
            guard progress.count < QuorumLimits.observerLimit else { return }
            progress.append(
                Progress(
                    key: key, offset: offset, lastFetch: now, endAtLastFetch: logEnd,
                    lastCaughtUp: offset == logEnd ? now : nil))
            return
        }
        if let offset {
            if offset >= logEnd {
                progress[index].lastCaughtUp = now
            } else if offset >= progress[index].endAtLastFetch {
                progress[index].lastCaughtUp = max(
                    progress[index].lastCaughtUp ?? progress[index].lastFetch, progress[index].lastFetch)
            }
            progress[index].offset = offset
            progress[index].endAtLastFetch = logEnd
        }
        progress[index].lastFetch = now
    }

    /// Counts a voter's fetch; with a majority (this node included if it is one) the deadline moves on.
    mutating func countForQuorum(_ key: ReplicaKey, voters: VoterSet, own: ReplicaKey, deadline: Instant) {
        guard voters.contains(key) else { return }
        if !fetchedVoters.contains(key.id) { fetchedVoters.append(key.id) }
        fetchedVoters.removeAll { voters[$0] == nil }
        let count = fetchedVoters.count + (voters.contains(own) ? 1 : 0)
        guard count >= voters.majorityCount else { return }
        fetchedVoters = []
        quorumDeadline = deadline
    }

    mutating func announceAgain(to voter: BrokerID, at due: Instant) {
        guard let index = announcements.firstIndex(where: { $0.voter == voter }) else { return }
        announcements[index].due = due
    }

    /// The end that a majority of the voters has on the device.
    func majorityEnd(voters: VoterSet, own: ReplicaKey, ownEnd: Offset) -> Offset {
        var ends = voters.voters.map { voter in
            voter.key.id == own.id && voters.contains(own) ? ownEnd : (progress(of: voter)?.offset ?? .zero)
        }
        ends.sort(by: >)
        return ends.isEmpty ? .zero : ends[voters.majorityCount - 1]
    }

    var nextDeadline: Instant? {
        var next: Instant?
        for each in parked { next = earlier(next, each.deadline) }
        for each in changes { next = earlier(next, each.deadline) }
        for each in announcements { next = earlier(next, each.due) }
        return next
    }
}
