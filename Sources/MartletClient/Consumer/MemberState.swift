import MartletLogModel

/// What a member wants to read.
struct GroupSubscription: Hashable, Sendable {
    var topics: Set<String> = []
    /// Matched by the coordinator (RE2 syntax); the consumer protocol alone knows it.
    var pattern: String?

    var isEmpty: Bool { topics.isEmpty && pattern == nil }
}

/// A member of a group of the consumer protocol (KIP-848): what it tells the coordinator, and how it gets from the
/// partitions it has to those it is given. A pure value; the shell sends, waits and calls the user's code.
///
/// ```
/// idle ──subscribed──▶ joining ──▶ stable ──target──▶ revoking ──▶ assigning ──▶ stable
///                         ▲          │                   │             │
///                         └─ losing ◀┴───── fenced, silent ────────────┘
/// ```
///
/// Invariants:
/// - What the heartbeat calls owned is what the user's code has: a partition is added after the user was told that it
///   is there, and taken off after the user was told that it goes and has had the chance to commit.
/// - Partitions are given up before others are taken, and one reconciliation is finished before the next begins.
/// - After a fence the member owns nothing until it has joined again, and joins only when the user knows of the loss.
/// - A heartbeat says everything after one whose fate is unknown, for the coordinator may be another (KIP-848: fields
///   may be left out only if the coordinator has them).
struct MemberState: Sendable {
    enum Phase: Sendable, Equatable {
        /// Not a member and not about to be.
        case idle
        /// The next heartbeat joins.
        case joining
        case stable
        /// The user gives up `leaving`; `coming` follows.
        case revoking(coming: Set<TopicPartition>)
        /// The user is told of new partitions.
        case assigning
        /// Out of the group; the user has yet to learn that the partitions are lost.
        case losing
    }

    enum Effect: Sendable, Equatable {
        /// Ask the polling task to give up partitions; `revoked` follows.
        case revoke([TopicPartition], isLost: Bool)
        /// Ask the polling task to take partitions; `assigned` follows.
        case assign([TopicPartition])
        /// Take back what was asked of the polling task and not begun.
        case cancelSteps
        case heartbeatNow
        /// Find the names of these topics, then call `reconcile`.
        case learnTopics([UniversalID])
    }

    /// One heartbeat; `nil` fields are left out because the coordinator knows them.
    struct Heartbeat: Sendable, Equatable {
        var epoch: Int32
        var isFull: Bool
        var topics: [String]?
        /// Empty: there is no pattern any more.
        var pattern: String?
        var owned: [TopicPartition]?
    }

    /// What an answer says about the member.
    struct Answer: Sendable {
        var epoch: Int32
        /// Partitions by topic id; `nil`: unchanged.
        var assignment: [UniversalID: [Int32]]?
    }

    private(set) var phase = Phase.idle
    private(set) var epoch: Int32 = 0
    private(set) var subscription = GroupSubscription()
    private(set) var owned: Set<TopicPartition> = []
    /// The latest assignment, as far as it is not what is owned.
    private var target: [UniversalID: [Int32]]?
    /// Topic ids of what is or was to be owned; bounded by the topics assigned.
    private(set) var ids: [String: UniversalID] = [:]

    /// What the coordinator has from us; `nil`: not known.
    private var knownSubscription: GroupSubscription?
    private var knownOwned: Set<TopicPartition>?
    /// What the heartbeat under way says.
    private var saying: (subscription: GroupSubscription, owned: Set<TopicPartition>)?

    /// Whether the member has an epoch under which offsets can be committed.
    var isJoined: Bool { epoch > 0 }

    // MARK: Subscription

    mutating func subscribe(_ subscription: GroupSubscription) -> [Effect] {
        self.subscription = subscription
        switch phase {
        case .idle:
            phase = .joining
            return [.heartbeatNow]
        case .joining, .stable, .revoking, .assigning:
            return [.heartbeatNow]
        case .losing:
            return []
        }
    }

    /// The member leaves; whatever was under way is forgotten.
    mutating func leave() { self = MemberState() }

    // MARK: Heartbeats

    /// The next heartbeat; `nil` while the member has nothing to say.
    mutating func nextHeartbeat() -> Heartbeat? {
        switch phase {
        case .idle, .losing: return nil
        case .joining, .stable, .revoking, .assigning: break
        }
        let isFull = epoch == 0 || knownSubscription == nil
        saying = (subscription, owned)
        guard !isFull else {
            return Heartbeat(
                epoch: epoch, isFull: true, topics: subscription.topics.sorted(), pattern: subscription.pattern,
                owned: epoch == 0 ? [] : owned.sorted())
        }
        var heartbeat = Heartbeat(epoch: epoch, isFull: false)
        if knownSubscription != subscription {
            heartbeat.topics = subscription.topics.sorted()
            heartbeat.pattern = subscription.pattern ?? ""
        }
        if knownOwned != owned { heartbeat.owned = owned.sorted() }
        return heartbeat
    }

    mutating func answered(_ answer: Answer, names: [UniversalID: String]) -> [Effect] {
        switch phase {
        case .idle, .losing: return []
        case .joining: phase = .stable
        case .stable, .revoking, .assigning: break
        }
        epoch = answer.epoch
        if let saying {
            knownSubscription = saying.subscription
            knownOwned = saying.owned
        }
        saying = nil
        if let assignment = answer.assignment { target = assignment }
        var effects = reconcile(names: names)
        // What changed while the heartbeat was on its way need not wait for the next one.
        if phase == .stable, knownOwned != owned || knownSubscription != subscription,
            !effects.contains(.heartbeatNow)
        {
            effects.append(.heartbeatNow)
        }
        return effects
    }

    /// The fate of the heartbeat is not known, or the coordinator is another one.
    mutating func unanswered() {
        saying = nil
        knownSubscription = nil
        knownOwned = nil
    }

    // MARK: Reconciliation

    /// Takes the next step towards the target, if none is under way. Call when names have become known, too.
    mutating func reconcile(names: [UniversalID: String]) -> [Effect] {
        guard phase == .stable, let target else { return [] }
        var wanted: Set<TopicPartition> = []
        var unknown: [UniversalID] = []
        for (id, indexes) in target {
            guard let name = names[id] else {
                unknown.append(id)
                continue
            }
            ids[name] = id
            for index in indexes { wanted.insert(TopicPartition(name, index)) }
        }
        var effects: [Effect] = unknown.isEmpty ? [] : [.learnTopics(unknown.sorted())]
        if unknown.isEmpty { self.target = nil }
        let leaving = owned.subtracting(wanted)
        let coming = wanted.subtracting(owned)
        if !leaving.isEmpty {
            phase = .revoking(coming: coming)
            effects.append(.revoke(leaving.sorted(), isLost: false))
        } else if !coming.isEmpty {
            phase = .assigning
            effects.append(.assign(coming.sorted()))
        } else if knownOwned != owned {
            effects.append(.heartbeatNow)
        }
        return effects
    }

    /// The user has given up these partitions.
    mutating func revoked(_ partitions: [TopicPartition], names: [UniversalID: String]) -> [Effect] {
        owned.subtract(partitions)
        switch phase {
        case .losing:
            phase = .joining
            owned = []
            return [.heartbeatNow]
        case .revoking(let coming):
            guard !coming.isEmpty else { return settle(names) }
            phase = .assigning
            // What was given up is told at once: others wait for it, whatever our own user does with the rest.
            return [.assign(coming.sorted()), .heartbeatNow]
        case .idle, .joining, .stable, .assigning:
            return []
        }
    }

    /// The user has these partitions.
    mutating func assigned(_ partitions: [TopicPartition], names: [UniversalID: String]) -> [Effect] {
        guard phase == .assigning else { return [] }
        owned.formUnion(partitions)
        return settle(names)
    }

    private mutating func settle(_ names: [UniversalID: String]) -> [Effect] {
        phase = .stable
        let next = reconcile(names: names)
        return next.contains(.heartbeatNow) ? next : next + [.heartbeatNow]
    }

    // MARK: Loss

    /// The coordinator does not know the member in its epoch: others may have its partitions already.
    mutating func fenced() -> [Effect] {
        switch phase {
        case .idle, .losing: return []
        case .joining, .stable, .revoking, .assigning: break
        }
        forgetMembership()
        guard !owned.isEmpty else {
            phase = .joining
            return [.cancelSteps, .heartbeatNow]
        }
        phase = .losing
        return [.cancelSteps, .revoke(owned.sorted(), isLost: true)]
    }

    /// Nobody polls, so that others should have the partitions. The member joins again with the next poll.
    mutating func fellSilent() -> [Effect] {
        forgetMembership()
        phase = .losing
        return [.cancelSteps, .revoke(owned.sorted(), isLost: true)]
    }

    private mutating func forgetMembership() {
        epoch = 0
        target = nil
        unanswered()
    }
}
