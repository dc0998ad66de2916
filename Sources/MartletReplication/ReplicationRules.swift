package import MartletLogModel

/// Rules of replication that tests switch off one at a time, to prove that they would notice.
extension SuspendedRules {
    /// A follower cuts its log where the leader's epochs say, not at its own high watermark (KIP-101).
    package static let epochTruncation = SuspendedRules(rawValue: 1 << 16)
    /// A follower that does not know the leader's epoch walks back epoch by epoch (KIP-279).
    package static let epochWalk = SuspendedRules(rawValue: 1 << 17)
    /// A follower aligns its log before it takes records of a new epoch (KIP-320, rule 1).
    package static let alignment = SuspendedRules(rawValue: 1 << 18)
    /// Questions about epochs and their answers count in the epoch they were asked in (KIP-320, rule 2).
    package static let truncationFence = SuspendedRules(rawValue: 1 << 19)
    /// Only fetches of the leader's own epoch acknowledge (KIP-320, rule 3).
    package static let acknowledgementEpoch = SuspendedRules(rawValue: 1 << 20)
    /// A replica joins the in-sync set at or above the start of the leader's epoch (KIP-320, rule 4).
    package static let expansionAtEpochStart = SuspendedRules(rawValue: 1 << 21)
    /// A replica joins the in-sync set at or above the high watermark.
    package static let expansionAtHighWatermark = SuspendedRules(rawValue: 1 << 22)
    /// The high watermark waits for replicas whose membership is proposed, not yet decided (AsyncIsr).
    package static let maximalInSyncSet = SuspendedRules(rawValue: 1 << 23)
    /// The leader counts its own log up to the flushed end.
    package static let leaderFlush = SuspendedRules(rawValue: 1 << 24)
    /// A follower asks for records behind its flushed end alone: the question is its acknowledgement.
    package static let followerFlush = SuspendedRules(rawValue: 1 << 25)
    /// The high watermark stands still while the in-sync set is below `min.insync.replicas` (KIP-966).
    package static let markAtMinimum = SuspendedRules(rawValue: 1 << 26)
    /// A member is proposed under the broker epoch that its fetch carried (KIP-903).
    package static let brokerEpochOfFetch = SuspendedRules(rawValue: 1 << 27)
    /// Nothing that depends on the high watermark is answered before it has reached the start of the epoch.
    package static let markAtEpochStart = SuspendedRules(rawValue: 1 << 28)
    /// A proposal of unknown outcome is settled by a risen partition epoch alone; every answer of the controller that
    /// takes one raises it.
    package static let settlementByEpoch = SuspendedRules(rawValue: 1 << 32)
    /// A hand-over waits for everybody whom the controller may have let into the in-sync set (promise 7).
    package static let handOverToMaximalSet = SuspendedRules(rawValue: 1 << 33)
    /// While a hand-over is prepared a replica joins the in-sync set with the whole log alone (promise 7).
    package static let expansionAtLogEnd = SuspendedRules(rawValue: 1 << 34)
    /// A leader from an unclean election says that it has taken over until the controller has heard it (KIP-704).
    package static let recoveryUntilHeard = SuspendedRules(rawValue: 1 << 35)

    package static let replication: [(name: String, rule: SuspendedRules)] = [
        ("KIP-101 truncation by epoch", .epochTruncation),
        ("KIP-279 epoch by epoch", .epochWalk),
        ("KIP-320 (1) alignment", .alignment),
        ("KIP-320 (2) truncation fence", .truncationFence),
        ("KIP-320 (3) acknowledgement epoch", .acknowledgementEpoch),
        ("KIP-320 (4) expansion at epoch start", .expansionAtEpochStart),
        ("expansion at high watermark", .expansionAtHighWatermark),
        ("AsyncIsr maximal in-sync set", .maximalInSyncSet),
        ("leader flush", .leaderFlush),
        ("follower flush", .followerFlush),
        ("KIP-966 mark at minimum", .markAtMinimum),
        ("KIP-903 broker epoch of fetch", .brokerEpochOfFetch),
        ("mark at epoch start", .markAtEpochStart),
        ("settlement by partition epoch", .settlementByEpoch),
        ("hand-over to the maximal in-sync set", .handOverToMaximalSet),
        ("expansion at log end in a hand-over", .expansionAtLogEnd),
        ("KIP-704 recovery until heard", .recoveryUntilHeard),
    ]
}
