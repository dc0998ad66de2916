package import MartletLogModel

/// Where an epoch ends in a log, exclusive: the start of the next epoch, or the log end for the latest.
package struct EpochEnd: Hashable, Sendable {
    package var epoch: LeaderEpoch
    package var endOffset: Offset

    package init(epoch: LeaderEpoch, endOffset: Offset) {
        self.epoch = epoch
        self.endOffset = endOffset
    }
}

/// Finds where two logs part, one epoch per question.
///
/// Two logs are equal up to where an epoch that both know ends in the shorter of them: one leader wrote all of
/// its records. The follower names the epoch of its last record, the leader where that epoch ends in its own log,
/// the follower cuts and asks again. Each answer takes at least one epoch of the follower's away, or agrees.
///
/// Sources: KIP-101 (epochs instead of the high watermark), KIP-279 (epoch by epoch), KIP-595 (as part of a fetch).
package enum LogDivergence {
    /// The leader's half. `own` is the end of the largest epoch of its log at or below the one asked for; nil when it
    /// knows none, not even a later one: then there is nothing to compare.
    package static func answer(
        lastFetchedEpoch: LeaderEpoch, offset: Offset, own: EpochEnd?, suspended: SuspendedRules = SuspendedRules()
    ) -> EpochEnd? {
        guard let own else { return nil }
        if own.endOffset < offset { return own }
        if own.epoch < lastFetchedEpoch, !suspended.contains(.epochWalk) { return own }
        return nil
    }

    /// The follower's half: the new log end. `own` is the end of the largest epoch of its log at or below the one
    /// that the leader named.
    package static func cut(
        leader: EpochEnd, own: EpochEnd?, logEnd: Offset, suspended: SuspendedRules = SuspendedRules()
    ) -> Offset {
        let leaderEnd = min(leader.endOffset, logEnd)
        guard let own, !suspended.contains(.epochWalk) else { return leaderEnd }
        // What lies behind the end of that epoch here is of epochs that the leader has no records of.
        return min(leaderEnd, own.endOffset)
    }
}
