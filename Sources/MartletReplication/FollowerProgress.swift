internal import MartletLogModel

/// What a leader knows of one follower in its own epoch.
struct FollowerProgress {
    let broker: BrokerID
    /// Everything below is safe at the follower: the offset of its last fetch. Nil before its first.
    private(set) var acknowledgedEnd: Offset?
    private(set) var logStartOffset: Offset?
    /// Of the fetch (KIP-903); nil when it did not say, or did not fetch yet.
    private(set) var brokerEpoch: BrokerEpoch?
    /// Last moment at which the follower had everything that the leader had.
    private(set) var lastCaughtUp: Instant?
    private var lastFetch: Instant?
    /// The leader's log end at `lastFetch`.
    private var leaderEndAtLastFetch = Offset.zero
    /// It is on its way into the in-sync set: the high watermark waits for it, so that it can catch up with it.
    var isJoining = false

    init(broker: BrokerID, caughtUpAt: Instant?) {
        self.broker = broker
        self.lastCaughtUp = caughtUpAt
    }

    mutating func fetched(_ fetch: FollowerFetch, leaderEnd: Offset, now: Instant) {
        if fetch.offset >= leaderEnd {
            lastCaughtUp = max(lastCaughtUp ?? now, now)
        } else if let lastFetch, fetch.offset >= leaderEndAtLastFetch {
            // What it has now is all there was then.
            lastCaughtUp = max(lastCaughtUp ?? lastFetch, lastFetch)
        }
        lastFetch = now
        leaderEndAtLastFetch = leaderEnd
        acknowledgedEnd = fetch.offset
        if let epoch = fetch.brokerEpoch { brokerEpoch = epoch }
        if let start = fetch.logStartOffset { logStartOffset = start }
    }

    /// A follower that has everything is caught up however long it was silent: its broker's session tells whether it
    /// lives.
    func isCaughtUp(leaderEnd: Offset, now: Instant, lagLimitMilliseconds: Int64) -> Bool {
        if acknowledgedEnd == leaderEnd { return true }
        guard let lastCaughtUp else { return false }
        return now.milliseconds(since: lastCaughtUp) <= lagLimitMilliseconds
    }
}
