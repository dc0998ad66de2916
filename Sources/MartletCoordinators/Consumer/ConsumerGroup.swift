import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// A refusal with the words that go with it.
struct GroupRefusal: Error, Equatable {
    var code: ErrorCode
    var message: String

    init(_ code: ErrorCode, _ message: String) {
        self.code = code
        self.message = message
    }
}

/// A group of the consumer protocol (KIP-848): the coordinator works out a target assignment and leads each member
/// to it by itself, so that nobody waits for all others.
///
/// ```
///   group epoch  ──(members, topics or subscriptions change)──►  +1
///        │ assignor
///        ▼
///   target epoch and target of each member  ──(Reconciliation, heartbeat by heartbeat)──►  member epochs
/// ```
///
/// Durable, written by ``replay(_:)`` alone: epoch, members, targets, current assignments, resolved patterns.
/// Each decision is replayed as it is made and collected in ``pending``; the shard appends that as one batch and
/// answers when it is committed. Beside it, and lost with the coordinator: deadlines and the running rebalance.
///
/// Members of the classic protocol may be part of the group (online migration); see `ClassicInConsumerGroup`.
///
/// Invariants: a partition has at most one owner, what it was asked to give back included (I17); a commit is
/// taken from a member whose epoch covers the partition (I18, KIP-1251); every change of members, topics or
/// subscriptions raises the epoch.
///
/// Sources: KIP-848, KIP-1082, KIP-1251.
struct ConsumerGroup {
    /// What of a member is not durable.
    struct Clock: Equatable {
        /// When it counts as gone unless it is heard of.
        var deadline: Instant
        /// When its session timer fires, if one is set: heartbeats only move `deadline`.
        var timerAt: Instant?
        /// By when it must have given back what it was asked to.
        var revocationDeadline: Instant?
        /// Of a classic member: by when it must have joined again, and have asked for its assignment.
        var joinDeadline: Instant?
        var syncDeadline: Instant?
    }

    let id: String

    // Durable.
    private(set) var epoch: Int32 = 0
    private(set) var metadataHash: Int64 = 0
    /// Whether the log has a record of the epoch, and one of the kind that is not written any more.
    private(set) var hasRecord = false
    private(set) var hasTopicsRecord = false
    private(set) var targetEpoch: Int32 = 0
    private(set) var targetAt = Timestamp(milliseconds: 0)
    private(set) var members: [String: ConsumerMember] = [:]
    private(set) var targets: [String: TopicPartitions] = [:]
    private(set) var patterns: [String: ResolvedPattern] = [:]
    // Derived from it by replay.
    private(set) var instances: [String: String] = [:]
    private(set) var owners: [UniversalID: [Int32: String]] = [:]
    /// Of all members together.
    private(set) var descriptionByteCount = 0

    // Not durable.
    /// Decided and replayed; the shard takes and appends it.
    var pending: [CoordinatorRecord] = []
    var clocks: [String: Clock] = [:]
    /// The patterns that are being matched against the topics.
    var resolution: PatternResolution?
    /// Catalog against which the group's topics were compared last.
    var checkedVersion: Int64 = -1
    var nextPatternRefresh: Instant?
    /// Catalog in which all patterns are resolved: nothing is to be looked at until there is a newer one.
    var resolvedVersion: Int64 = -1
    var rebalance: RunningRebalance?
    var lastRebalance: RebalanceReport?

    struct RunningRebalance {
        var reason: String
        var memberID: String?
        var start: Moment
        /// Further causes since, until the group has settled.
        var laterCauseCount = 0
    }

    init(id: String) { self.id = id }

    // MARK: Replay

    /// The only writer of what is durable.
    mutating func replay(_ record: CoordinatorRecord) {
        switch record {
        case .consumerGroup(_, let value):
            hasRecord = value != nil
            epoch = value?.epoch ?? 0
            metadataHash = value?.metadataHash ?? 0
        case .consumerGroupTopics(_, let value):
            hasTopicsRecord = value != nil
        case .consumerMember(let key, let value):
            guard let value else { return remove(key.memberID) }
            if let old = members[key.memberID]?.instanceID, old != value.instanceID,
                instances[old] == key.memberID
            {
                instances[old] = nil
            }
            if let known = members[key.memberID] { descriptionByteCount -= known.descriptionByteCount }
            members[key.memberID, default: ConsumerMember(id: key.memberID)].about = value
            descriptionByteCount += members[key.memberID]?.descriptionByteCount ?? 0
            if let instance = value.instanceID { instances[instance] = key.memberID }
        case .consumerTarget(_, let value):
            targetEpoch = value?.assignmentEpoch ?? 0
            targetAt = Timestamp(milliseconds: value?.assignmentTimestamp ?? 0)
        case .consumerMemberTarget(let key, let value):
            guard let value else {
                targets[key.memberID] = nil
                return
            }
            var partitions: TopicPartitions = [:]
            for entry in value.topicPartitions {
                partitions[entry.topicID, default: []].formUnion(entry.partitions)
            }
            targets[key.memberID] = partitions
        case .consumerMemberCurrent(let key, let value):
            replayCurrent(key.memberID, value)
        case .consumerPattern(let key, let value):
            patterns[key.regularExpression] = value.map {
                ResolvedPattern(
                    topics: Set($0.topics), version: $0.version,
                    resolvedAt: Timestamp(milliseconds: $0.timestamp))
            }
        case .offsetCommit, .groupMetadata, .share:
            preconditionFailure("\(record) is no record of a consumer group")
        }
    }

    private mutating func replayCurrent(
        _ memberID: String, _ value: ConsumerGroupCurrentMemberAssignmentValue?
    ) {
        guard value != nil || members[memberID] != nil else { return }
        var member = members[memberID] ?? ConsumerMember(id: memberID)
        release(member)
        member.epoch = value?.memberEpoch ?? 0
        member.previousEpoch = value?.previousMemberEpoch ?? 0
        member.state = value.map { ConsumerMember.State(rawValue: $0.state) ?? .unknown } ?? .stable
        typealias Value = ConsumerGroupCurrentMemberAssignmentValue
        member.assigned = Value.partitions(value?.assignedPartitions ?? [], memberEpoch: member.epoch)
        member.pendingRevocation = Value.partitions(
            value?.partitionsPendingRevocation ?? [], memberEpoch: member.epoch)
        for partitions in [member.assigned, member.pendingRevocation] {
            for (topic, epochs) in partitions {
                for partition in epochs.keys { owners[topic, default: [:]][partition] = memberID }
            }
        }
        if members.updateValue(member, forKey: memberID) == nil {
            descriptionByteCount += member.descriptionByteCount
        }
    }

    private mutating func remove(_ memberID: String) {
        guard let member = members.removeValue(forKey: memberID) else { return }
        descriptionByteCount -= member.descriptionByteCount
        release(member)
        targets[memberID] = nil
        if let instance = member.instanceID, instances[instance] == memberID { instances[instance] = nil }
    }

    /// Only what is still the member's: a log that was compacted may tell of the next owner first.
    private mutating func release(_ member: ConsumerMember) {
        for partitions in [member.assigned, member.pendingRevocation] {
            for (topic, epochs) in partitions {
                for partition in epochs.keys where owners[topic]?[partition] == member.id {
                    owners[topic]?[partition] = nil
                }
                if owners[topic]?.isEmpty == true { owners[topic] = nil }
            }
        }
    }

    /// Decides a record: replayed now, appended with the others of this event.
    mutating func write(_ record: CoordinatorRecord) {
        replay(record)
        pending.append(record)
    }

    // MARK: Loading

    /// A classic group with members as a consumer group of the same epoch, all of them still classic (KIP-848): each
    /// has what the last generation gave it. Throws where that would lose something.
    init(upgrading classic: ClassicGroup, _ catalog: TopicCatalog) throws(GroupRefusal) {
        self.init(id: classic.id)
        var upgraded: [ConsumerMember] = []
        var taken: TopicPartitions = [:]
        for old in classic.members.inOrder {
            let name = classic.protocolName ?? old.protocols.first?.name ?? ""
            guard let subscription = ConsumerSubscription.decode(old.subscription(name))?.subscription,
                let assignment = ConsumerSubscription.assignment(old.assignment)
            else {
                throw GroupRefusal(
                    .groupIDNotFound,
                    "Cannot upgrade classic group \(id) to consumer group because the embedded consumer protocol is malformed."
                )
            }
            guard
                ConsumerSubscription.standardStrategies.contains(name)
                    || (assignment.userData?.readableBytes ?? 0) == 0
            else {
                throw GroupRefusal(
                    .groupIDNotFound,
                    "Cannot upgrade classic group \(id) to consumer group because an assignor of its own keeps data in the assignment; let all members use a standard assignor first."
                )
            }
            var member = ConsumerMember(id: old.id)
            member.about.instanceID = old.instanceID
            member.about.rackID = subscription.rackID
            member.about.clientID = old.client.clientID
            member.about.clientHost = old.client.host
            member.about.rebalanceTimeoutMs = old.rebalanceTimeoutMilliseconds
            member.about.subscribedTopicNames = Set(subscription.topics).sorted()
            member.about.classicMemberMetadata = Self.classicMetadata(
                old.sessionTimeoutMilliseconds, old.protocols)
            member.epoch = classic.generation
            member.previousEpoch = classic.generation
            for entry in assignment.assignedPartitions {
                guard let topic = catalog.topic(named: entry.topic) else { continue }
                for partition in entry.partitions
                where taken[topic.id, default: []].insert(partition).inserted {
                    member.assigned[topic.id, default: [:]][partition] = classic.generation
                }
            }
            upgraded.append(member)
        }
        let byteCount = upgraded.reduce(0) { $0 + $1.descriptionByteCount + id.utf8.count * 4 }
        guard byteCount <= GroupLimits.groupRecordBytesLimit else {
            throw GroupRefusal(
                .groupIDNotFound,
                "Cannot upgrade classic group \(id) to consumer group: its members say \(byteCount) bytes about themselves, more than \(GroupLimits.groupRecordBytesLimit)."
            )
        }
        for member in upgraded { write(.consumerMember(id, member.id, member.about)) }
        write(.consumerGroup(id, epoch: classic.generation, metadataHash: 0))
        for member in upgraded { write(.consumerMemberTarget(id, member.id, Self.keys(member.assigned))) }
        write(.consumerTarget(id, epoch: classic.generation, at: Timestamp(milliseconds: 0)))
        for member in upgraded { write(.consumerMemberCurrent(id, member)) }
    }

    /// Members get a whole session to be heard of, and time anew to give back what they must.
    mutating func load(into outbox: inout Outbox) {
        for memberID in members.keys.sorted() {
            guard let member = members[memberID] else { continue }
            armSession(memberID, &outbox)
            if member.state == .unrevoked, !member.usesClassicProtocol { armRevocation(member, &outbox) }
        }
        if !members.isEmpty, !isSettled {
            rebalance = RunningRebalance(
                reason: "the coordinator was loaded", memberID: nil, start: outbox.now)
        }
    }

    // MARK: Heartbeat

    /// A heartbeat that joins or keeps alive. Changes nothing if it throws.
    mutating func heartbeat(
        _ request: ConsumerGroupHeartbeatRequest, memberID: String, _ client: ClientIdentity,
        _ catalog: TopicCatalog, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ConsumerGroupHeartbeatResponse {
        let owned = request.topicPartitions.map(Self.partitions)
        let replaced = try admit(request, memberID, owned, outbox.configuration)
        if let text = request.subscribedTopicRegex, !text.isEmpty, members[memberID]?.pattern != text,
            let problem = TopicPattern.problem(text)
        {
            throw GroupRefusal(
                .invalidRegularExpression,
                "SubscribedTopicRegex \(GroupLimits.shortened(text)) is not valid: \(problem).")
        }
        try checkDescription(
            describe(request, client, members[replaced ?? memberID]), memberID, inPlaceOf: replaced ?? memberID, outbox)
        // From here on nothing is refused.
        if let replaced { replace(replaced, by: memberID, &outbox) }
        let before = members[memberID]
        let about = describe(request, client, before)
        let isNew = before == nil
        if before?.about != about { write(.consumerMember(id, memberID, about)) }
        var subscriptionHasChanged =
            isNew || before?.about.subscribedTopicNames != about.subscribedTopicNames
        if before?.pattern != members[memberID]?.pattern {
            subscriptionHasChanged = true
            forgetUnusedPatterns()
        }
        if needsPatterns(of: memberID, catalog, outbox.now.instant), refreshPatterns(catalog, &outbox) {
            subscriptionHasChanged = true
        }
        let instance = about.instanceID.map { " (instance \($0))" } ?? ""
        let verb = isNew ? "joined" : replaced != nil ? "came back" : "changed its subscription"
        bumpIfNeeded(
            subscriptionHasChanged, "member \(memberID)\(instance) \(verb)", memberID, catalog, &outbox)
        updateTarget(catalog, &outbox)
        // A repetition with the epoch before may be a message that was under way for long: what it says to have is
        // no proof that the member has let go of what it got since.
        let isRepetition =
            request.memberEpoch != ConsumerMember.Epoch.join && request.memberEpoch != before?.epoch
        reconcile(memberID, owned: isRepetition ? nil : owned, catalog, &outbox)
        heardOf(memberID, &outbox)
        reportIfSettled(&outbox)

        var response = ConsumerGroupHeartbeatResponse()
        guard let member = members[memberID] else { return response }
        response.memberID = memberID
        response.memberEpoch = member.epoch
        response.heartbeatIntervalMs = outbox.configuration.consumer.heartbeatIntervalMilliseconds
        // The assignment goes to who does not know it: after a change, to who told everything about itself, and to who
        // has less than it got, because the answer with it went to a connection that it had given up.
        let isFull =
            request.memberEpoch == ConsumerMember.Epoch.join
            || (request.rebalanceTimeoutMs != -1 && owned != nil
                && (request.subscribedTopicNames != nil || request.subscribedTopicRegex != nil))
        let lacksSome = owned.map { !Self.isContained(member.assigned, in: $0) } ?? false
        if isFull || lacksSome || before.map({ Self.keys($0.assigned) != Self.keys(member.assigned) }) ?? true {
            response.assignment = Self.assignment(member.assigned)
        }
        return response
    }

    /// Checks who it is. Returns the id of the static member whose place the newcomer takes.
    private func admit(
        _ request: ConsumerGroupHeartbeatRequest, _ memberID: String, _ owned: TopicPartitions?,
        _ configuration: GroupConfiguration
    ) throws(GroupRefusal) -> String? {
        let isJoin = request.memberEpoch == ConsumerMember.Epoch.join
        let holder = request.instanceID.flatMap { instances[$0] }
        if isJoin, holder == nil { try checkSize(memberID, configuration) }
        guard let instanceID = request.instanceID else {
            if let member = members[memberID] { return try checkEpoch(member, request.memberEpoch, owned) }
            guard isJoin else { throw unknown(memberID) }
            return nil
        }
        guard let holder, let member = members[holder] else {
            guard isJoin else {
                throw GroupRefusal(.unknownMemberID, "Instance id \(instanceID) is unknown.")
            }
            return nil
        }
        if isJoin {
            if holder == memberID, member.epoch != ConsumerMember.Epoch.leaveForAWhile { return nil }
            guard member.usesClassicProtocol || member.epoch == ConsumerMember.Epoch.leaveForAWhile else {
                throw GroupRefusal(
                    .unreleasedInstanceID,
                    "Static member \(memberID) with instance id \(instanceID) cannot join the group because the instance id is owned by member \(holder)."
                )
            }
            return holder
        }
        try checkInstance(holder, memberID, instanceID)
        return try checkEpoch(member, request.memberEpoch, owned)
    }

    func checkSize(_ memberID: String, _ configuration: GroupConfiguration) throws(GroupRefusal) {
        guard members.count < configuration.consumer.maxSize || members[memberID] != nil else {
            throw GroupRefusal(
                .groupMaxSizeReached,
                "The consumer group has reached its maximum capacity of \(configuration.consumer.maxSize) members."
            )
        }
    }

    /// What is decided about a group at once must fit a batch of the log, and all groups together the broker's memory;
    /// most of it is what members say of themselves.
    func checkDescription(
        _ about: ConsumerGroupMemberMetadataValue, _ memberID: String, inPlaceOf oldID: String, _ outbox: Outbox
    ) throws(GroupRefusal) {
        let old = members[oldID]
        if let old, oldID == memberID, old.about == about { return }
        var new = ConsumerMember(id: memberID)
        new.about = about
        let growth = new.descriptionByteCount - (old?.descriptionByteCount ?? 0)
        let byteCount = descriptionByteCount + growth + id.utf8.count * 4 * (members.count + 1)
        guard byteCount <= GroupLimits.groupRecordBytesLimit else {
            throw GroupRefusal(
                .groupMaxSizeReached,
                "The members of the group say \(byteCount) bytes about themselves, more than \(GroupLimits.groupRecordBytesLimit). \(Self.shorterSubscription)"
            )
        }
        try outbox.checkRoom(forMemberBytes: growth, remedy: Self.shorterSubscription)
    }

    private static let shorterSubscription =
        "Subscribe to fewer topics, or to a pattern (SubscribedTopicRegex), or let fewer members join."

    func checkInstance(_ holder: String, _ memberID: String, _ instanceID: String) throws(GroupRefusal) {
        guard holder == memberID else {
            throw GroupRefusal(
                .fencedInstanceID,
                "Static member \(memberID) with instance id \(instanceID) was fenced by member \(holder).")
        }
    }

    func unknown(_ memberID: String) -> GroupRefusal {
        GroupRefusal(.unknownMemberID, "Member \(memberID) is not a member of group \(id).")
    }

    /// The epoch must be the member's, or the one before if its answer was lost and it has nothing it should not.
    private func checkEpoch(
        _ member: ConsumerMember, _ epoch: Int32, _ owned: TopicPartitions?
    ) throws(GroupRefusal) -> String? {
        if member.state == .unknown, owned.map({ !$0.isEmpty }) ?? true {
            throw GroupRefusal(
                .fencedMemberEpoch,
                "The consumer group member is in an unknown state. The member must abandon all its partitions and rejoin."
            )
        }
        if epoch == ConsumerMember.Epoch.join || epoch == member.epoch { return nil }
        let relation = epoch > member.epoch ? "greater" : "smaller"
        let isRepetition =
            epoch < member.epoch && epoch == member.previousEpoch
            && owned.map { Self.isContained($0, in: member.assigned) } ?? false
        guard isRepetition else {
            throw GroupRefusal(
                .fencedMemberEpoch,
                "The consumer group member has a \(relation) member epoch (\(epoch)) than the one known by the group coordinator (\(member.epoch)). The member must abandon all its partitions and rejoin."
            )
        }
        return nil
    }

    /// A field that is not sent has not changed.
    private func describe(
        _ request: ConsumerGroupHeartbeatRequest, _ client: ClientIdentity, _ member: ConsumerMember?
    ) -> ConsumerGroupMemberMetadataValue {
        var about = member?.about ?? ConsumerMember(id: "").about
        if let instanceID = request.instanceID { about.instanceID = instanceID }
        if let rackID = request.rackID { about.rackID = rackID }
        if request.rebalanceTimeoutMs != -1 { about.rebalanceTimeoutMs = request.rebalanceTimeoutMs }
        if let assignor = request.serverAssignor { about.serverAssignor = assignor }
        if let names = request.subscribedTopicNames { about.subscribedTopicNames = Set(names).sorted() }
        if let pattern = request.subscribedTopicRegex { about.subscribedTopicRegex = pattern }
        about.clientID = client.clientID
        about.clientHost = client.host
        about.classicMemberMetadata = nil
        return about
    }

    /// A static member came back under a new id: it gets the place, the target and the partitions of the old one,
    /// which is removed.
    mutating func replace(_ oldID: String, by newID: String, _ outbox: inout Outbox) {
        guard let old = members[oldID] else { return }
        let target = targets[oldID]
        writeRemoval(of: oldID, &outbox)
        var new = ConsumerMember(id: newID)
        new.about = old.about
        new.assigned = old.assigned
        new.pendingRevocation = old.pendingRevocation
        new.state = old.state
        write(.consumerMember(id, newID, new.about))
        write(.consumerMemberTarget(id, newID, target ?? [:]))
        write(.consumerMemberCurrent(id, new))
    }

    // MARK: Epochs and targets

    /// Raises the epoch if the cause asks for it or the group's topics have changed.
    mutating func bumpIfNeeded(
        _ isNeeded: Bool, _ reason: String, _ memberID: String?, _ catalog: TopicCatalog,
        _ outbox: inout Outbox
    ) {
        guard isNeeded || checkedVersion != catalog.version else { return }
        checkedVersion = catalog.version
        let hash = catalog.hash(of: subscribedTopics())
        guard isNeeded || hash != metadataHash else { return }
        bump(
            isNeeded ? reason : "topics of the group were created, deleted or changed",
            isNeeded ? memberID : nil, hash, &outbox)
    }

    mutating func bump(_ reason: String, _ memberID: String?, _ hash: Int64, _ outbox: inout Outbox) {
        if hasTopicsRecord { write(.consumerGroupTopicsTombstone(id)) }
        write(.consumerGroup(id, epoch: epoch == .max ? 1 : epoch + 1, metadataHash: hash))
        if rebalance == nil {
            rebalance = RunningRebalance(
                reason: GroupLimits.shortened(reason), memberID: memberID,
                start: outbox.now)
        } else {
            rebalance?.laterCauseCount += 1
        }
    }

    /// Works out the target of the present epoch, and writes what is different.
    mutating func updateTarget(_ catalog: TopicCatalog, _ outbox: inout Outbox) {
        guard epoch != targetEpoch else { return }
        let ids = members.keys.sorted()
        var spec = AssignmentSpec(members: [], partitionCounts: [:])
        for memberID in ids {
            guard let member = members[memberID] else { continue }
            var topics: Set<UniversalID> = []
            for name in subscribedTopics(member) {
                guard let topic = catalog.topic(named: name) else { continue }
                topics.insert(topic.id)
                spec.partitionCounts[topic.id] = topic.partitionCount
            }
            spec.members.append(
                AssignmentSpec.Member(
                    id: memberID, instanceID: member.instanceID, topics: topics,
                    target: targets[memberID] ?? [:]))
        }
        let result = assignor(outbox.configuration.consumer).assign(spec)
        for memberID in ids {
            let target = result[memberID] ?? [:]
            if targets[memberID] != target { write(.consumerMemberTarget(id, memberID, target)) }
        }
        write(.consumerTarget(id, epoch: epoch, at: outbox.now.timestamp))
    }

    /// The one most members ask for; the broker's first where nobody asks or two are asked for equally.
    func assignor(_ configuration: ConsumerGroupConfiguration) -> ServerAssignor {
        var votes: [ServerAssignor: Int] = [:]
        for member in members.values {
            if let assignor = member.about.serverAssignor.flatMap(ServerAssignor.init(rawValue:)) {
                votes[assignor, default: 0] += 1
            }
        }
        let most = votes.values.max() ?? 0
        return configuration.assignors.first { most > 0 && votes[$0] == most }
            ?? configuration.assignors.first ?? .uniform
    }

    // MARK: Reconciliation

    mutating func reconcile(
        _ memberID: String, owned: TopicPartitions?, _ catalog: TopicCatalog, _ outbox: inout Outbox
    ) {
        guard let member = members[memberID], !member.isReconciled(to: targetEpoch) else { return }
        var target = targets[memberID] ?? [:]
        let subscribed = subscribedTopics(member)
        for topic in target.keys where catalog.topic(id: topic).map({ !subscribed.contains($0.name) }) ?? true
        {
            target[topic] = nil
        }
        let next = Reconciliation(targetEpoch: targetEpoch, target: target, owned: owned, owners: owners)
            .next(member)
        guard next != member else { return }
        write(.consumerMemberCurrent(id, next))
        // Classic members are watched by the timers of their join and their sync.
        if next.usesClassicProtocol { return }
        if next.state == .unrevoked {
            armRevocation(next, &outbox)
        } else {
            disarmRevocation(memberID, &outbox)
        }
    }

    private mutating func armRevocation(_ member: ConsumerMember, _ outbox: inout Outbox) {
        let deadline = outbox.instant(inMilliseconds: Int64(member.about.rebalanceTimeoutMs))
        clocks[member.id, default: Clock(deadline: outbox.now.instant)].revocationDeadline = deadline
        outbox.effects.append(.schedule(.revocation(group: id, member: member.id), at: deadline))
    }

    mutating func disarmRevocation(_ memberID: String, _ outbox: inout Outbox) {
        guard clocks[memberID]?.revocationDeadline != nil else { return }
        clocks[memberID]?.revocationDeadline = nil
        outbox.effects.append(.cancel(.revocation(group: id, member: memberID)))
    }

    // MARK: Sessions

    func sessionMilliseconds(_ member: ConsumerMember, _ configuration: GroupConfiguration) -> Int64 {
        Int64(
            member.about.classicMemberMetadata?.sessionTimeoutMs
                ?? configuration.consumer.sessionTimeoutMilliseconds)
    }

    /// Moves the member's deadline; its timer finds out when it fires.
    mutating func heardOf(_ memberID: String, _ outbox: inout Outbox) { armSession(memberID, &outbox) }

    private mutating func armSession(_ memberID: String, _ outbox: inout Outbox) {
        guard let member = members[memberID] else { return }
        let deadline = outbox.instant(inMilliseconds: sessionMilliseconds(member, outbox.configuration))
        var clock = clocks[memberID] ?? Clock(deadline: deadline)
        clock.deadline = deadline
        if clock.timerAt.map({ $0 > deadline }) ?? true {
            clock.timerAt = deadline
            outbox.effects.append(.schedule(.session(group: id, member: memberID), at: deadline))
        }
        clocks[memberID] = clock
    }

    /// The member to remove because it was not heard of, with the reason.
    mutating func sessionTimeIsUp(_ memberID: String, _ outbox: inout Outbox) -> String? {
        guard let member = members[memberID], let clock = clocks[memberID] else { return nil }
        clocks[memberID]?.timerAt = nil
        guard outbox.now.instant >= clock.deadline else {
            clocks[memberID]?.timerAt = clock.deadline
            outbox.effects.append(.schedule(.session(group: id, member: memberID), at: clock.deadline))
            return nil
        }
        return
            "member \(memberID) was not heard of for \(sessionMilliseconds(member, outbox.configuration)) ms"
    }

    mutating func revocationTimeIsUp(_ memberID: String, _ outbox: inout Outbox) -> String? {
        guard let deadline = clocks[memberID]?.revocationDeadline, let member = members[memberID] else {
            return nil
        }
        guard outbox.now.instant >= deadline else {
            outbox.effects.append(.schedule(.revocation(group: id, member: memberID), at: deadline))
            return nil
        }
        return
            "member \(memberID) did not give partitions back within \(member.about.rebalanceTimeoutMs) ms, its rebalance timeout"
    }

    // MARK: Leaving

    /// Removes a member; the epoch rises, and the others get their new target with their next heartbeat.
    mutating func remove(
        _ memberIDs: [String], _ reason: String, _ catalog: TopicCatalog, _ outbox: inout Outbox
    ) {
        guard let first = memberIDs.first else { return }
        for memberID in memberIDs { writeRemoval(of: memberID, &outbox) }
        forgetUnusedPatterns()
        checkedVersion = catalog.version
        bump(reason, first, catalog.hash(of: subscribedTopics()), &outbox)
        reportIfSettled(&outbox)
    }

    /// A static member goes and means to come back: it keeps its partitions, and what it was asked to give back
    /// is free.
    mutating func leaveForAWhile(_ memberID: String, _ outbox: inout Outbox) {
        guard var member = members[memberID] else { return }
        member.epoch = ConsumerMember.Epoch.leaveForAWhile
        member.pendingRevocation = [:]
        write(.consumerMemberCurrent(id, member))
        disarmRevocation(memberID, &outbox)
    }

    private mutating func writeRemoval(of memberID: String, _ outbox: inout Outbox) {
        write(.consumerMemberCurrentTombstone(id, memberID))
        write(.consumerMemberTarget(id, memberID, nil))
        write(.consumerMember(id, memberID, nil))
        cancelTimers(of: memberID, &outbox)
    }

    mutating func cancelTimers(of memberID: String, _ outbox: inout Outbox) {
        guard let clock = clocks.removeValue(forKey: memberID) else { return }
        if clock.timerAt != nil { outbox.effects.append(.cancel(.session(group: id, member: memberID))) }
        if clock.revocationDeadline != nil {
            outbox.effects.append(.cancel(.revocation(group: id, member: memberID)))
        }
        if clock.joinDeadline != nil { outbox.effects.append(.cancel(.rejoin(group: id, member: memberID))) }
        if clock.syncDeadline != nil { outbox.effects.append(.cancel(.resync(group: id, member: memberID))) }
    }

    // MARK: The last rebalance

    mutating func reportIfSettled(_ outbox: inout Outbox) {
        guard let rebalance, members.isEmpty || isSettled else { return }
        self.rebalance = nil
        let more = rebalance.laterCauseCount > 0 ? " (and \(rebalance.laterCauseCount) more changes)" : ""
        let report = RebalanceReport(
            group: id, generation: epoch, reason: rebalance.reason + more, memberID: rebalance.memberID,
            startedAt: rebalance.start.timestamp,
            durationMilliseconds: outbox.now.instant.milliseconds(since: rebalance.start.instant),
            memberCount: members.count)
        lastRebalance = report
        outbox.effects.append(.report(report))
    }
}
