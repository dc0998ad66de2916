internal import MartletLogModel

/// A planned move of the leadership that loses nothing, not even what was acknowledged at `acks=1` (promise 7).
///
/// The leader takes no more appends, waits until who comes next has everything, and says so once. It goes on leading
/// until metadata says otherwise, or the move is called off.
struct HandOver {
    /// Nil: everybody in the in-sync set, since the controller is free to choose.
    let target: BrokerID?
    private(set) var isReady = false

    init(target: BrokerID?) { self.target = target }

    /// Whether the moment has come just now.
    mutating func becomesReady(
        logEnd: Offset, inSync: InSyncSet, followers: [FollowerProgress]
    ) -> Bool {
        guard !isReady else { return false }
        var count = 0
        for follower in followers where target.map({ $0 == follower.broker }) ?? inSync.contains(follower.broker) {
            guard inSync.contains(follower.broker), follower.acknowledgedEnd == logEnd else { return false }
            count += 1
        }
        isReady = count > 0
        return isReady
    }
}
