internal import MartletLogModel

/// A planned move of the leadership that loses nothing, not even what was acknowledged at `acks=1` (promise 7).
///
/// The leader takes no more appends, waits until whoever may come next has everything, and says so. It goes on leading
/// until metadata says otherwise, or the move is called off. Meanwhile nobody joins the in-sync set with less than
/// everything, so that the controller may choose from the set as it is when it hears of the move.
struct HandOver {
    /// Nil: the controller is free to choose, so everybody that may be in sync for it counts.
    let target: BrokerID?
    /// The log end for which it was told last; nil while it does not hold.
    private var toldEnd: Offset?

    init(target: BrokerID?) { self.target = target }

    /// Whether everybody who may come next has everything, and there is somebody.
    func isReady(
        logEnd: Offset, inSync: InSyncSet, followers: [FollowerProgress], suspended: SuspendedRules
    ) -> Bool {
        var hasSuccessor = false
        for follower in followers {
            let isMember = inSync.contains(follower.broker)
            let mayBeNext =
                if let target {
                    follower.broker == target
                } else {
                    isMember
                        || (inSync.mayContain(follower.broker) && !suspended.contains(.handOverToMaximalSet))
                }
            guard mayBeNext else { continue }
            guard follower.acknowledgedEnd == logEnd else { return false }
            // Who is proposed and not yet taken must have everything too, but cannot be counted upon.
            if isMember { hasSuccessor = true }
        }
        return hasSuccessor
    }

    /// Whether the moment has come just now, or has come again.
    mutating func becomesReady(
        logEnd: Offset, inSync: InSyncSet, followers: [FollowerProgress], suspended: SuspendedRules
    ) -> Bool {
        let isReady = self.isReady(logEnd: logEnd, inSync: inSync, followers: followers, suspended: suspended)
        defer { toldEnd = isReady ? logEnd : nil }
        return isReady && toldEnd != logEnd
    }
}
