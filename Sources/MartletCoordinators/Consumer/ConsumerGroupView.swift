import MartletKafkaProtocol
import MartletLogModel

// What is read off a consumer group: its state, its answers, facts about it. Nothing here changes it.

extension ConsumerGroup {
    var durable: ConsumerGroupState {
        ConsumerGroupState(
            epoch: epoch, metadataHash: metadataHash, targetEpoch: targetEpoch, members: members,
            targets: targets, patterns: patterns)
    }

    var isEmpty: Bool { members.isEmpty }

    /// Nothing refers to the group but offsets, if there are any.
    var isUnused: Bool { members.isEmpty && !hasRecord && !hasTopicsRecord && targetEpoch == 0 }

    /// Every member has what the target of the present epoch says.
    var isSettled: Bool {
        epoch == targetEpoch && members.values.allSatisfy { $0.isReconciled(to: targetEpoch) }
    }

    var stateName: String {
        if members.isEmpty { return "Empty" }
        if epoch != targetEpoch { return "Assigning" }
        return isSettled ? "Stable" : "Reconciling"
    }

    // MARK: Topics

    func subscribedTopics(_ member: ConsumerMember) -> Set<String> {
        var topics = Set(member.about.subscribedTopicNames)
        if let pattern = member.pattern, let resolved = patterns[pattern] {
            topics.formUnion(resolved.topics)
        }
        return topics
    }

    func subscribedTopics() -> Set<String> {
        var topics: Set<String> = []
        var seen: Set<String> = []
        for member in members.values {
            for name in member.about.subscribedTopicNames { topics.insert(name) }
            if let pattern = member.pattern, seen.insert(pattern).inserted, let resolved = patterns[pattern] {
                topics.formUnion(resolved.topics)
            }
        }
        return topics
    }

    /// Whether a topic's offsets are still of use to somebody in the group (KIP-211, OffsetDelete).
    func isSubscribed(to topic: String) -> Bool {
        members.values.contains { member in
            member.about.subscribedTopicNames.contains(topic)
                || member.pattern.flatMap { patterns[$0]?.topics.contains(topic) } ?? false
        }
    }

    // MARK: Offsets

    /// Whether a member may commit, or why not. Each partition is checked by ``commitProblem(_:_:topic:partition:)``.
    ///
    /// - Parameter knowsEpochs: the request is of a version in which members of this protocol commit.
    func commitProblem(
        memberID: String, instanceID: String?, epoch: Int32, knowsEpochs: Bool
    ) -> ErrorCode? {
        // Administrators and consumers outside the group may move offsets while nobody is in it.
        if epoch < 0, members.isEmpty { return nil }
        guard let member = members[memberID] else { return .unknownMemberID }
        if let instanceID, let holder = instances[instanceID], holder != memberID { return .fencedInstanceID }
        if member.usesClassicProtocol { return epoch == member.epoch ? nil : .illegalGeneration }
        guard knowsEpochs else { return .unsupportedVersion }
        return epoch <= member.epoch && epoch >= 0 ? nil : .staleMemberEpoch
    }

    /// A commit of an earlier epoch counts for what the member has had since then (KIP-1251): its answer may have
    /// been on the way. Whatever it lost or got later is fenced (I18).
    func commitProblem(
        memberID: String, epoch: Int32, topic: UniversalID, partition: Int32
    ) -> ErrorCode? {
        guard let member = members[memberID], !member.usesClassicProtocol, epoch != member.epoch else {
            return nil
        }
        guard let assignedAt = member.epoch(of: topic, partition), assignedAt <= epoch else {
            return .staleMemberEpoch
        }
        return nil
    }

    func fetchProblem(memberID: String?, epoch: Int32) -> ErrorCode? {
        if memberID == nil, epoch < 0 { return nil }
        guard let memberID, let member = members[memberID] else { return .unknownMemberID }
        if epoch == member.epoch { return nil }
        return member.usesClassicProtocol ? .illegalGeneration : .staleMemberEpoch
    }

    // MARK: Records that end the group

    /// Removes what an empty group has in the log.
    func tombstones() -> [CoordinatorRecord] {
        var records: [CoordinatorRecord] = []
        for memberID in members.keys.sorted() {
            records.append(.consumerMemberCurrentTombstone(id, memberID))
        }
        for memberID in Set(targets.keys).union(members.keys).sorted() {
            records.append(.consumerMemberTarget(id, memberID, nil))
        }
        records.append(.consumerTargetTombstone(id))
        for memberID in members.keys.sorted() { records.append(.consumerMember(id, memberID, nil)) }
        for pattern in patterns.keys.sorted() { records.append(.consumerPattern(id, pattern, nil)) }
        if hasTopicsRecord { records.append(.consumerGroupTopicsTombstone(id)) }
        records.append(.consumerGroupTombstone(id))
        return records
    }

    // MARK: Answers

    static func partitions(_ entries: [ConsumerGroupHeartbeatRequest.TopicPartitions]) -> TopicPartitions {
        var partitions: TopicPartitions = [:]
        for entry in entries { partitions[entry.topicID, default: []].formUnion(entry.partitions) }
        return partitions
    }

    static func keys(_ partitions: OwnedPartitions) -> TopicPartitions {
        partitions.mapValues { Set($0.keys) }
    }

    static func isContained(_ part: TopicPartitions, in whole: OwnedPartitions) -> Bool {
        part.allSatisfy { topic, indexes in
            guard let epochs = whole[topic] else { return indexes.isEmpty }
            return indexes.allSatisfy { epochs[$0] != nil }
        }
    }

    static func isContained(_ part: OwnedPartitions, in whole: TopicPartitions) -> Bool {
        part.allSatisfy { topic, epochs in epochs.keys.allSatisfy { whole[topic]?.contains($0) ?? false } }
    }

    static func assignment(_ partitions: OwnedPartitions) -> ConsumerGroupHeartbeatResponse.Assignment {
        var assignment = ConsumerGroupHeartbeatResponse.Assignment()
        assignment.topicPartitions = partitions.sorted { $0.key < $1.key }.map { topic, epochs in
            var entry = ConsumerGroupHeartbeatResponse.TopicPartitions()
            entry.topicID = topic
            entry.partitions = epochs.keys.sorted()
            return entry
        }
        return assignment
    }

    private static let classicMemberType: Int8 = 0
    private static let consumerMemberType: Int8 = 1

    func described(
        _ catalog: TopicCatalog, _ configuration: ConsumerGroupConfiguration
    ) -> ConsumerGroupDescribeResponse.DescribedGroup {
        var answer = ConsumerGroupDescribeResponse.DescribedGroup()
        answer.groupID = id
        answer.groupState = stateName
        answer.groupEpoch = epoch
        answer.assignmentEpoch = targetEpoch
        answer.assignorName = assignor(configuration).rawValue
        answer.lastRebalance = lastRebalance.map { report in
            var entry = ConsumerGroupDescribeResponse.LastRebalance()
            entry.reason = report.reason
            entry.memberID = report.memberID
            entry.generation = report.generation
            entry.startTimestamp = report.startedAt.rawValue
            entry.durationMs = report.durationMilliseconds
            entry.memberCount = Int32(clamping: report.memberCount)
            return entry
        }
        answer.members = members.keys.sorted().compactMap { memberID in
            guard let member = members[memberID] else { return nil }
            var entry = ConsumerGroupDescribeResponse.Member()
            entry.memberID = memberID
            entry.instanceID = member.instanceID
            entry.rackID = member.about.rackID
            entry.memberEpoch = member.epoch
            entry.clientID = member.about.clientID
            entry.clientHost = member.about.clientHost
            entry.subscribedTopicNames = member.about.subscribedTopicNames
            entry.subscribedTopicRegex = member.about.subscribedTopicRegex
            entry.assignment = Self.described(Self.keys(member.assigned), catalog)
            entry.targetAssignment = Self.described(targets[memberID] ?? [:], catalog)
            entry.memberType = member.usesClassicProtocol ? Self.classicMemberType : Self.consumerMemberType
            return entry
        }
        return answer
    }

    /// Topics that are gone have no name to be shown by.
    private static func described(
        _ partitions: TopicPartitions, _ catalog: TopicCatalog
    ) -> ConsumerGroupDescribeResponse.Assignment {
        var assignment = ConsumerGroupDescribeResponse.Assignment()
        assignment.topicPartitions = partitions.compactMap { topic, indexes in
            guard let name = catalog.topic(id: topic)?.name else { return nil }
            var entry = ConsumerGroupDescribeResponse.TopicPartitions()
            entry.topicID = topic
            entry.topicName = name
            entry.partitions = indexes.sorted()
            return entry
        }.sorted { $0.topicName < $1.topicName }
        return assignment
    }
}

/// What the log knows of a consumer group: a summary for tests, traces and comparison.
package struct ConsumerGroupState: Sendable, Equatable {
    package var epoch: Int32
    package var metadataHash: Int64
    package var targetEpoch: Int32
    package var members: [String: ConsumerMember]
    package var targets: [String: TopicPartitions]
    package var patterns: [String: ResolvedPattern]
}
