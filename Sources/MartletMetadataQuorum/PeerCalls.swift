import MartletLogModel

/// Requests to other nodes that are under way: at most one per peer and lane, with a deadline, and a pause after one that
/// failed. Long-polling fetches have a lane of their own, so that a vote does not queue behind one.
struct PeerCalls {
    enum Lane: Hashable { case fetch, control }

    struct Call {
        var token: CallToken
        var peer: BrokerID
        var lane: Lane
        var deadline: Instant
    }

    private struct Pause {
        var peer: BrokerID
        var lane: Lane
        var until: Instant
    }

    private var calls: [Call] = []
    private var pauses: [Pause] = []
    private var lastToken: UInt64 = 0

    func isFree(_ peer: BrokerID, _ lane: Lane, now: Instant) -> Bool {
        !calls.contains { $0.peer == peer && $0.lane == lane }
            && !pauses.contains { $0.peer == peer && $0.lane == lane && $0.until > now }
    }

    mutating func begin(_ peer: BrokerID, _ lane: Lane, deadline: Instant) -> CallToken {
        lastToken += 1
        let token = CallToken(rawValue: lastToken)
        calls.append(Call(token: token, peer: peer, lane: lane, deadline: deadline))
        return token
    }

    /// `nil` for a call that is not waited for any more.
    mutating func end(_ token: CallToken) -> Call? {
        guard let index = calls.firstIndex(where: { $0.token == token }) else { return nil }
        return calls.remove(at: index)
    }

    mutating func pause(_ peer: BrokerID, _ lane: Lane, until: Instant) {
        pauses.removeAll { $0.peer == peer && $0.lane == lane }
        pauses.append(Pause(peer: peer, lane: lane, until: until))
    }

    /// Gives up what has taken too long, and forgets pauses that are over.
    mutating func expire(now: Instant) {
        calls.removeAll { $0.deadline <= now }
        pauses.removeAll { $0.until <= now }
    }

    /// Answers to what another state asked mean nothing to this one.
    mutating func reset() {
        calls = []
        pauses = []
    }

    var nextDeadline: Instant? {
        var next: Instant?
        for call in calls { next = earlier(next, call.deadline) }
        for pause in pauses { next = earlier(next, pause.until) }
        return next
    }
}

/// The earlier of two deadlines, of which one may be none.
func earlier(_ left: Instant?, _ right: Instant?) -> Instant? {
    guard let left else { return right }
    guard let right else { return left }
    return min(left, right)
}
