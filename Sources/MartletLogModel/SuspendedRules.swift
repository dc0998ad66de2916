/// Rules of correctness that the simulator's mutation table switches off one at a time, to prove that it would
/// notice. Empty in production; cores and engines take it with their configuration.
package struct SuspendedRules: OptionSet, Hashable, Sendable {
    package var rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    package init() { rawValue = 0 }

    /// The producer epoch rises with the end of every transaction (KIP-890).
    package static let epochBumpOnEnd = SuspendedRules(rawValue: 1 << 0)
    /// A partition asks the coordinator before a transaction's first batch (KIP-890).
    package static let transactionVerification = SuspendedRules(rawValue: 1 << 1)
    /// A marker of an older epoch, or under the second protocol of the same one, is refused (KIP-1228).
    package static let markerEpoch = SuspendedRules(rawValue: 1 << 2)
    /// A batch of an older producer epoch is refused (KIP-98).
    package static let producerEpoch = SuspendedRules(rawValue: 1 << 3)
    /// A batch that was appended before is answered, not appended again (KIP-98).
    package static let sequence = SuspendedRules(rawValue: 1 << 4)
    /// Commits of an older generation or member epoch are refused (KIP-848, KIP-1251).
    package static let memberEpochFence = SuspendedRules(rawValue: 1 << 5)
    /// Acknowledgements and the high watermark wait for the flush.
    package static let flushBeforeAcknowledgement = SuspendedRules(rawValue: 1 << 6)
    /// `read_committed` ends at the last stable offset (KIP-98).
    package static let lastStableOffset = SuspendedRules(rawValue: 1 << 7)
    /// `read_committed` answers name the aborted transactions.
    package static let abortedTransactions = SuspendedRules(rawValue: 1 << 8)
    /// The coordinator refuses requests of an older producer epoch (KIP-98).
    package static let coordinatorFence = SuspendedRules(rawValue: 1 << 9)
    /// Offsets of a transaction count once it has committed.
    package static let pendingOffsets = SuspendedRules(rawValue: 1 << 10)
    /// Markers go out once the decision is durable.
    package static let decisionBeforeMarkers = SuspendedRules(rawValue: 1 << 11)
    /// Offsets of an open transaction are not given to who asks for stable ones.
    package static let stableOffsets = SuspendedRules(rawValue: 1 << 12)
    /// Whoever hears from a leader refuses pre-votes (KIP-996).
    package static let preVoteStickiness = SuspendedRules(rawValue: 1 << 13)
    /// A vote and an epoch are on disk before anybody hears of them.
    package static let voteBeforeAnswer = SuspendedRules(rawValue: 1 << 14)
    /// The leader of the metadata log commits by counting only once a record of its own epoch counts (Raft §5.4.2).
    package static let ownEpochCommit = SuspendedRules(rawValue: 1 << 15)
    /// A follower cuts its log to where the leader says that epochs diverge (KIP-595).
    package static let epochTruncation = SuspendedRules(rawValue: 1 << 16)
    /// Votes go only to logs that are at least as new as the voter's own (Raft §5.4.1).
    package static let logUpToDate = SuspendedRules(rawValue: 1 << 17)
    /// A change of voters waits until the one before is committed (KIP-853).
    package static let singleVoterChange = SuspendedRules(rawValue: 1 << 18)

    /// What a member of a share group says about a record whose lock is over is refused (KIP-932).
    package static let shareLockEnd = SuspendedRules(rawValue: 1 << 29)

    /// The rules of the metadata quorum, for its own simulation.
    package static let metadataQuorum: [(name: String, rule: SuspendedRules)] = [
        ("pre-vote stickiness", .preVoteStickiness),
        ("vote before answer", .voteBeforeAnswer),
        ("flush before acknowledgement", .flushBeforeAcknowledgement),
        ("own epoch commit", .ownEpochCommit),
        ("epoch truncation", .epochTruncation),
        ("log up to date", .logUpToDate),
        ("single voter change", .singleVoterChange),
    ]

    package static let named: [(name: String, rule: SuspendedRules)] = [
        ("epoch bump on end", .epochBumpOnEnd),
        ("transaction verification", .transactionVerification),
        ("marker epoch", .markerEpoch),
        ("producer epoch", .producerEpoch),
        ("sequence", .sequence),
        ("member epoch fence", .memberEpochFence),
        ("flush before acknowledgement", .flushBeforeAcknowledgement),
        ("last stable offset", .lastStableOffset),
        ("aborted transactions", .abortedTransactions),
        ("coordinator fence", .coordinatorFence),
        ("pending offsets", .pendingOffsets),
        ("decision before markers", .decisionBeforeMarkers),
        ("stable offsets", .stableOffsets),
        ("share lock end", .shareLockEnd),
    ]
}
