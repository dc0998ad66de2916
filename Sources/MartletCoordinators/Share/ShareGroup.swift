package import MartletKafkaProtocol
package import MartletLogModel

/// A member of a share group as its records tell it. Only replay writes it.
package struct ShareMember: Sendable, Equatable {
    package let id: String
    /// What it said about itself.
    package var about = ShareGroupMemberMetadataValue()
    package var epoch: Int32 = 0
    package var previousEpoch: Int32 = 0
    package var assigned: TopicPartitions = [:]

    package init(id: String) {
        self.id = id
        about.rackID = nil
    }
}

/// A share group (KIP-932): members read the same partitions together, record by record. The coordinator works out
/// who reads which partitions; nobody has to let go before another begins, so a member has its new target with its
/// next heartbeat.
///
/// A partition is assigned once the share coordinator keeps its state. `register` says for which it does: the
/// group's shard orders what is missing, and the confirmation makes the next heartbeat assign it.
///
/// Durable, written by ``replay(_:)`` alone: epoch, members, targets, current assignments, register. Each decision is
/// replayed as it is made and collected in ``pending``; the shard appends that as one batch and answers when it is
/// committed.
///
/// Invariants: every partition that can be read is assigned to somebody; every change of members, topics or
/// subscriptions raises the epoch; a member of an older epoch than its last two is fenced.
struct ShareGroup {
    private struct Clock: Equatable {
        /// When it counts as gone unless it is heard of.
        var deadline: Instant
        /// When its session timer fires: heartbeats only move `deadline`.
        var timerAt: Instant?
    }

    static let joinEpoch: Int32 = 0
    static let leaveEpoch: Int32 = -1

    let id: String

    // Durable.
    private(set) var epoch: Int32 = 0
    private(set) var metadataHash: Int64 = 0
    private(set) var targetEpoch: Int32 = 0
    private(set) var members: [String: ShareMember] = [:]
    private(set) var targets: [String: TopicPartitions] = [:]
    private(set) var register = SharePartitionRegister()
    /// Derived from it by replay: see ``CountsMemberBytes``.
    private(set) var memberByteCount = 0

    // Not durable.
    /// Decided and replayed; the shard takes and appends it.
    var pending: [CoordinatorRecord] = []
    private var clocks: [String: Clock] = [:]
    /// Partitions for which an order to the share coordinator is on its way.
    private var ordered: TopicPartitions = [:]

    init(id: String) { self.id = id }

    var isEmpty: Bool { members.isEmpty }

    var stateName: String { members.isEmpty ? "Empty" : "Stable" }

    var durable: ShareGroupState {
        ShareGroupState(
            epoch: epoch, metadataHash: metadataHash, targetEpoch: targetEpoch, members: members,
            targets: targets,
            register: register)
    }

    // MARK: Replay

    /// The only writer of what is durable.
    mutating func replay(_ record: ShareGroupRecord) {
        switch record {
        case .group(_, let value):
            epoch = value?.epoch ?? 0
            metadataHash = value?.metadataHash ?? 0
        case .member(let key, let value):
            guard let value else {
                memberByteCount -= members.removeValue(forKey: key.memberID)?.byteCount ?? 0
                targets[key.memberID] = nil
                return
            }
            memberByteCount -= members[key.memberID]?.byteCount ?? 0
            members[key.memberID, default: ShareMember(id: key.memberID)].about = value
            memberByteCount += members[key.memberID]?.byteCount ?? 0
        case .target(_, let value):
            targetEpoch = value?.assignmentEpoch ?? 0
        case .memberTarget(let key, let value):
            targets[key.memberID] = value.map { value in
                var partitions: TopicPartitions = [:]
                for entry in value.topicPartitions {
                    partitions[entry.topicID, default: []].formUnion(entry.partitions)
                }
                return partitions
            }
        case .memberCurrent(let key, let value):
            guard value != nil || members[key.memberID] != nil else { return }
            var member = members[key.memberID] ?? ShareMember(id: key.memberID)
            member.epoch = value?.memberEpoch ?? 0
            member.previousEpoch = value?.previousMemberEpoch ?? 0
            member.assigned = [:]
            for entry in value?.assignedPartitions ?? [] {
                member.assigned[entry.topicID, default: []].formUnion(entry.partitions)
            }
            if members.updateValue(member, forKey: key.memberID) == nil { memberByteCount += member.byteCount }
        case .partitions(_, let value):
            register = value.map { SharePartitionRegister($0) } ?? SharePartitionRegister()
        }
    }

    private mutating func write(_ record: ShareGroupRecord) {
        replay(record)
        pending.append(.share(record))
    }

    private mutating func write(_ register: SharePartitionRegister) {
        if register != self.register { write(.partitions(id, register)) }
    }

    /// Members get a whole session to be heard of.
    mutating func load(into outbox: inout Outbox) {
        for memberID in members.keys.sorted() { heardOf(memberID, &outbox) }
    }

    // MARK: Heartbeat

    /// A heartbeat that joins or keeps alive. Changes nothing if it throws.
    mutating func heartbeat(
        _ request: ShareGroupHeartbeatRequest, _ client: ClientIdentity, _ catalog: TopicCatalog,
        _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ShareGroupHeartbeatResponse {
        let memberID = request.memberID
        let before = members[memberID]
        try admit(request, before, outbox.configuration.share)
        var described = before ?? ShareMember(id: memberID)
        if let rackID = request.rackID { described.about.rackID = rackID }
        if let names = request.subscribedTopicNames { described.about.subscribedTopicNames = Set(names).sorted() }
        described.about.clientID = client.clientID
        described.about.clientHost = client.host
        let about = described.about
        try outbox.checkRoom(
            forMemberBytes: described.byteCount - (before?.byteCount ?? 0),
            remedy: "Subscribe to fewer topics, or let fewer members join.")
        // From here on nothing is refused.
        if before?.about != about { write(.member(id, memberID, about)) }
        forgetTopics { catalog.topic(id: $0) == nil && catalog.version >= 0 }

        let subscribed = subscribedTopics()
        let hash = catalog.hash(of: subscribed)
        let assignable = assignablePartitions(subscribed, catalog)
        let isPending = epoch == targetEpoch && assignedPartitions() != assignable
        if before?.about.subscribedTopicNames != about.subscribedTopicNames || hash != metadataHash
            || isPending
        {
            bump(hash)
        }
        updateTarget(assignable, catalog, &outbox)
        reconcile(memberID)
        heardOf(memberID, &outbox)

        var response = ShareGroupHeartbeatResponse()
        guard let member = members[memberID] else { return response }
        response.memberID = memberID
        response.memberEpoch = member.epoch
        response.heartbeatIntervalMs =
            outbox.configuration.share.settings(of: id).heartbeatIntervalMilliseconds
        // The assignment goes to who does not know it: after a change, to who told everything about itself, and to who
        // has not heard of its epoch, which a request may have raised that was given up and arrived late.
        if request.memberEpoch == Self.joinEpoch || request.subscribedTopicNames != nil
            || request.memberEpoch != before?.epoch || before?.assigned != member.assigned
        {
            response.assignment = Self.assignment(member.assigned)
        }
        return response
    }

    private func admit(
        _ request: ShareGroupHeartbeatRequest, _ member: ShareMember?,
        _ configuration: ShareGroupConfiguration
    ) throws(GroupRefusal) {
        guard let member else {
            guard request.memberEpoch == Self.joinEpoch else { throw unknown(request.memberID) }
            guard members.count < configuration.maxSize else {
                throw GroupRefusal(
                    .groupMaxSizeReached,
                    "The share group has reached its maximum capacity of \(configuration.maxSize) members.")
            }
            return
        }
        let epoch = request.memberEpoch
        // The one before counts as well: its answer may have been lost.
        guard epoch == Self.joinEpoch || epoch == member.epoch || epoch == member.previousEpoch else {
            let relation = epoch > member.epoch ? "greater" : "smaller"
            throw GroupRefusal(
                .fencedMemberEpoch,
                "The share group member has a \(relation) member epoch (\(epoch)) than the one known by the group coordinator (\(member.epoch)). The member must abandon all its partitions and rejoin."
            )
        }
    }

    func unknown(_ memberID: String) -> GroupRefusal {
        GroupRefusal(.unknownMemberID, "Member \(memberID) is not a member of group \(id).")
    }

    // MARK: Epochs and targets

    private mutating func bump(_ hash: Int64) {
        write(.group(id, epoch: epoch == .max ? 1 : epoch + 1, metadataHash: hash))
    }

    private func subscribedTopics() -> Set<String> {
        members.values.reduce(into: []) { $0.formUnion($1.about.subscribedTopicNames) }
    }

    func isSubscribed(to topic: String) -> Bool {
        members.values.contains { $0.about.subscribedTopicNames.contains(topic) }
    }

    /// Partitions of these topics that exist and whose state is kept.
    private func assignablePartitions(_ names: Set<String>, _ catalog: TopicCatalog) -> TopicPartitions {
        var result: TopicPartitions = [:]
        for name in names {
            guard let topic = catalog.topic(named: name), let known = register.initialized[topic.id] else {
                continue
            }
            let partitions = known.partitions.filter { $0 < topic.partitionCount }
            if !partitions.isEmpty { result[topic.id] = partitions }
        }
        return result
    }

    private func assignedPartitions() -> TopicPartitions {
        targets.values.reduce(into: TopicPartitions()) { all, target in
            for (topic, partitions) in target where !partitions.isEmpty {
                all[topic, default: []].formUnion(partitions)
            }
        }
    }

    /// Works out the target of the present epoch, and writes what is different.
    private mutating func updateTarget(
        _ assignable: TopicPartitions, _ catalog: TopicCatalog, _ outbox: inout Outbox
    ) {
        guard epoch != targetEpoch else { return }
        let ids = members.keys.sorted()
        let result = SimpleAssignor.assign(
            ids.compactMap { memberID in
                members[memberID].map { member in
                    SimpleAssignor.Member(
                        id: memberID,
                        topics: Set(
                            member.about.subscribedTopicNames.compactMap { catalog.topic(named: $0)?.id }),
                        target: targets[memberID] ?? [:])
                }
            }, assignable)
        for memberID in ids {
            let target = result[memberID] ?? [:]
            if targets[memberID] != target { write(.memberTarget(id, memberID, target)) }
        }
        write(.target(id, epoch: epoch, at: outbox.now.timestamp))
    }

    private mutating func reconcile(_ memberID: String) {
        guard var member = members[memberID] else { return }
        let target = (targets[memberID] ?? [:]).filter { !$0.value.isEmpty }
        guard member.epoch != targetEpoch || member.assigned != target else { return }
        member.previousEpoch = member.epoch
        member.epoch = targetEpoch
        member.assigned = target
        write(.memberCurrent(id, member))
    }

    // MARK: State of share partitions

    /// Subscribed partitions without state: enters them into the register and returns what is to be ordered.
    mutating func beginInitializing(_ catalog: TopicCatalog) -> ShareStateOrder? {
        var register = self.register
        var offsets: [UniversalID: [Int32: Int64]] = [:]
        var room =
            ShareLimits.groupPartitionCountLimit - register.partitions.values.reduce(0) { $0 + $1.count }
        for name in subscribedTopics().sorted() {
            guard let topic = catalog.topic(named: name), register.deleting[topic.id] == nil else { continue }
            let known = register.initialized[topic.id]?.partitions ?? []
            let under = ordered[topic.id] ?? []
            let missing = (0..<max(0, topic.partitionCount)).filter {
                !known.contains($0) && !under.contains($0)
            }
            guard !missing.isEmpty, room >= missing.count else { continue }
            room -= missing.count
            register.begin(topic.id, topic.name, Set(missing))
            // A partition that a topic got while the group reads it has nothing that was not meant for the group.
            let start: Int64 = known.isEmpty ? -1 : 0
            offsets[topic.id] = Dictionary(uniqueKeysWithValues: missing.map { ($0, start) })
        }
        guard !offsets.isEmpty else { return nil }
        write(register)
        return order(offsets)
    }

    private mutating func order(_ offsets: [UniversalID: [Int32: Int64]]) -> ShareStateOrder {
        for (topic, partitions) in offsets { ordered[topic, default: []].formUnion(partitions.keys) }
        return ShareStateOrder(group: id, work: .initialize(stateEpoch: epoch, offsets))
    }

    /// The share coordinator has answered.
    mutating func finishInitializing(
        _ offsets: [UniversalID: [Int32: Int64]], _ results: [UniversalID: [Int32: ErrorCode]]
    ) {
        var register = self.register
        for (topic, partitions) in offsets {
            ordered[topic]?.subtract(partitions.keys)
            if ordered[topic]?.isEmpty == true { ordered[topic] = nil }
            let confirmed = partitions.keys.filter { results[topic]?[$0] == ErrorCode.none }
            register.confirm(topic, Set(confirmed))
            register.giveUp(topic, Set(partitions.keys))
        }
        write(register)
    }

    /// Sets start offsets anew under a new epoch, which fences the leaders of before (KIP-932).
    mutating func beginAltering(
        _ offsets: [UniversalID: [Int32: Int64]], _ catalog: TopicCatalog
    ) -> ShareStateOrder? {
        guard !offsets.isEmpty else { return nil }
        bump(metadataHash)
        var register = self.register
        for (topic, partitions) in offsets {
            register.begin(topic, catalog.topic(id: topic)?.name ?? "", Set(partitions.keys))
        }
        write(register)
        return order(offsets)
    }

    /// Gives the state of these topics up, of all with `nil`.
    mutating func beginDeleting(_ topics: Set<UniversalID>?, _ catalog: TopicCatalog) -> ShareStateOrder? {
        var register = self.register
        var partitions = register.partitions
        // What an earlier deletion did not finish.
        for topic in register.deleting.keys {
            partitions[topic, default: []].formUnion(
                0..<max(0, catalog.topic(id: topic)?.partitionCount ?? 0))
        }
        if let topics { partitions = partitions.filter { topics.contains($0.key) } }
        guard !partitions.isEmpty else { return nil }
        for topic in partitions.keys {
            let name =
                register.initialized[topic]?.name ?? register.initializing[topic]?.name ?? register.deleting[
                    topic]
                ?? ""
            register.forget(topic)
            register.deleting[topic] = name
        }
        write(register)
        return ShareStateOrder(group: id, work: .delete(partitions))
    }

    mutating func finishDeleting(_ topics: Set<UniversalID>) {
        var register = self.register
        for topic in topics { register.deleting[topic] = nil }
        write(register)
    }

    /// Topics that are gone: the share coordinator forgets their state by itself.
    mutating func forgetTopics(where isGone: (UniversalID) -> Bool) {
        var register = self.register
        let known = Set(register.partitions.keys).union(register.deleting.keys)
        for topic in known where isGone(topic) { register.forget(topic) }
        write(register)
    }

    mutating func forgetTopics(named names: Set<String>) {
        var gone: Set<UniversalID> = []
        for (topic, entry) in register.initialized where names.contains(entry.name) { gone.insert(topic) }
        for (topic, entry) in register.initializing where names.contains(entry.name) { gone.insert(topic) }
        for (topic, name) in register.deleting where names.contains(name) { gone.insert(topic) }
        if !gone.isEmpty { forgetTopics { gone.contains($0) } }
    }

    // MARK: Sessions

    mutating func heardOf(_ memberID: String, _ outbox: inout Outbox) {
        let session = Int64(outbox.configuration.share.settings(of: id).sessionTimeoutMilliseconds)
        let deadline = outbox.instant(inMilliseconds: session)
        var clock = clocks[memberID] ?? Clock(deadline: deadline)
        clock.deadline = deadline
        if clock.timerAt.map({ $0 > deadline }) ?? true {
            clock.timerAt = deadline
            outbox.effects.append(.schedule(.session(group: id, member: memberID), at: deadline))
        }
        clocks[memberID] = clock
    }

    /// Whether the member was not heard of and must go.
    mutating func sessionTimeIsUp(_ memberID: String, _ outbox: inout Outbox) -> Bool {
        guard members[memberID] != nil, let clock = clocks[memberID] else { return false }
        guard outbox.now.instant >= clock.deadline else {
            clocks[memberID]?.timerAt = clock.deadline
            outbox.effects.append(.schedule(.session(group: id, member: memberID), at: clock.deadline))
            return false
        }
        clocks[memberID] = nil
        return true
    }

    /// Removes a member; the others get their new target with their next heartbeat. What it holds is freed by the
    /// leaders, when its connection ends or its locks are over.
    mutating func remove(_ memberID: String, _ catalog: TopicCatalog, _ outbox: inout Outbox) {
        write(.memberCurrentTombstone(id, memberID))
        write(.memberTarget(id, memberID, nil))
        write(.member(id, memberID, nil))
        if let clock = clocks.removeValue(forKey: memberID), clock.timerAt != nil {
            outbox.effects.append(.cancel(.session(group: id, member: memberID)))
        }
        bump(catalog.hash(of: subscribedTopics()))
    }

    // MARK: Records that end the group

    /// Removes what an empty group has in the log.
    func tombstones() -> [CoordinatorRecord] {
        var records: [ShareGroupRecord] = []
        for memberID in members.keys.sorted() { records.append(.memberCurrentTombstone(id, memberID)) }
        for memberID in Set(targets.keys).union(members.keys).sorted() {
            records.append(.memberTarget(id, memberID, nil))
        }
        records.append(.targetTombstone(id))
        for memberID in members.keys.sorted() { records.append(.member(id, memberID, nil)) }
        records.append(.partitions(id, nil))
        records.append(.groupTombstone(id))
        return records.map { .share($0) }
    }

    // MARK: Answers

    private static func assignment(_ partitions: TopicPartitions) -> ShareGroupHeartbeatResponse.Assignment {
        var assignment = ShareGroupHeartbeatResponse.Assignment()
        assignment.topicPartitions = partitions.sorted { $0.key < $1.key }.map { topic, indexes in
            var entry = ShareGroupHeartbeatResponse.TopicPartitions()
            entry.topicID = topic
            entry.partitions = indexes.sorted()
            return entry
        }
        return assignment
    }

    func described(_ catalog: TopicCatalog) -> ShareGroupDescribeResponse.DescribedGroup {
        var answer = ShareGroupDescribeResponse.DescribedGroup()
        answer.groupID = id
        answer.groupState = stateName
        answer.groupEpoch = epoch
        answer.assignmentEpoch = targetEpoch
        answer.assignorName = SimpleAssignor.name
        answer.members = members.values.sorted { $0.id < $1.id }.map { member in
            var entry = ShareGroupDescribeResponse.Member()
            entry.memberID = member.id
            entry.rackID = member.about.rackID
            entry.memberEpoch = member.epoch
            entry.clientID = member.about.clientID
            entry.clientHost = member.about.clientHost
            entry.subscribedTopicNames = member.about.subscribedTopicNames
            entry.assignment.topicPartitions = member.assigned.compactMap { topic, indexes in
                guard let name = catalog.topic(id: topic)?.name else { return nil }
                var partitions = ShareGroupDescribeResponse.TopicPartitions()
                partitions.topicID = topic
                partitions.topicName = name
                partitions.partitions = indexes.sorted()
                return partitions
            }.sorted { $0.topicName < $1.topicName }
            return entry
        }
        return answer
    }
}

/// What the log knows of a share group: a summary for tests, traces and comparison.
package struct ShareGroupState: Sendable, Equatable {
    package var epoch: Int32
    package var metadataHash: Int64
    package var targetEpoch: Int32
    package var members: [String: ShareMember]
    package var targets: [String: TopicPartitions]
    package var register: SharePartitionRegister
}

/// What an operator can set for share groups: `group.share.*`, and `share.*` of single groups.
package struct ShareGroupConfiguration: Sendable, Equatable {
    package var maxSize: Int
    package var settings: ShareGroupSettings
    /// Groups with a configuration of their own.
    package var overrides: [String: ShareGroupSettings]

    package init(
        maxSize: Int = 200, settings: ShareGroupSettings = .init(),
        overrides: [String: ShareGroupSettings] = [:]
    ) {
        self.maxSize = min(maxSize, GroupLimits.memberCountLimit)
        self.settings = settings
        self.overrides = overrides
    }

    package func settings(of group: String) -> ShareGroupSettings { overrides[group] ?? settings }
}

/// An order to the share coordinator; carried out once the group's records that go with it are committed.
package struct ShareStateOrder: Sendable, Equatable {
    package enum Work: Sendable, Equatable {
        /// -1 as start where the group's reset rule decides.
        case initialize(stateEpoch: Int32, [UniversalID: [Int32: Int64]])
        case delete(TopicPartitions)
    }

    package var group: String
    package var work: Work
}

/// Names one order; the shell reports once how it ended.
package struct ShareOrderID: RawRepresentable, Hashable, Comparable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: ShareOrderID, right: ShareOrderID) -> Bool { left.rawValue < right.rawValue }
}
