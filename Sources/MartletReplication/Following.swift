internal import MartletLogModel

/// A follower's view of its leader, for one leader epoch.
struct Following {
    let epoch: LeaderEpoch
    /// Nil while the partition has none.
    let leader: BrokerID?
    /// The leader has a newer epoch than this replica knows: metadata is on its way, asking again is no use.
    var isFenced = false
}
