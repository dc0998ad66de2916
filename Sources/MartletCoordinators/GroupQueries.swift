package import MartletKafkaProtocol
package import MartletLogModel

// What is read off a shard: offsets, descriptions, summaries. Nothing here changes it.

extension GroupCoordinatorShard {
    /// Offsets as replayed; the answer waits for their commit. Unknown ones are -1 without an error.
    func fetchOffsets(
        _ request: OffsetFetchRequest.OffsetFetchRequestGroup
    ) -> OffsetFetchResponse.OffsetFetchResponseGroup {
        var response = OffsetFetchResponse.OffsetFetchResponseGroup()
        response.groupID = request.groupID
        if let topics = request.topics {
            response.topics = topics.map { topic in
                fetchOffsets(
                    group: request.groupID, topic: topic.name, topicID: topic.topicID,
                    partitions: topic.partitionIndexes)
            }
        } else {
            response.topics = offsets.topics(group: request.groupID).map { topic in
                let partitions = offsets.partitions(group: request.groupID, topic: topic)
                let last = partitions.last.flatMap {
                    offsets.offset(group: request.groupID, topic: topic, partition: $0)
                }
                return fetchOffsets(
                    group: request.groupID, topic: topic, topicID: last?.topicID ?? .zero, partitions: partitions)
            }
        }
        return response
    }

    func fetchOffsets(
        group: String, topic: String, topicID: UniversalID, partitions: [Int32]
    ) -> OffsetFetchResponse.OffsetFetchResponseTopics {
        var response = OffsetFetchResponse.OffsetFetchResponseTopics()
        response.name = topic
        response.topicID = topicID
        response.partitions = partitions.map { index in
            var answer = OffsetFetchResponse.OffsetFetchResponsePartitions()
            answer.partitionIndex = index
            var committed = offsets.offset(group: group, topic: topic, partition: index)
            // A commit may have come after the deletion of its topic: it says nothing about the next of the name.
            if let id = committed?.topicID, id != .zero, topicID != .zero, id != topicID { committed = nil }
            answer.committedOffset = committed?.offset ?? -1
            answer.committedLeaderEpoch = committed?.leaderEpoch ?? -1
            answer.metadata = committed?.metadata ?? ""
            return answer
        }
        return response
    }

    // MARK: Groups as a whole

    func describe(_ id: String) -> DescribeGroupsResponse.DescribedGroup {
        var answer = DescribeGroupsResponse.DescribedGroup()
        answer.groupID = id
        guard let group = groups[id] else {
            answer.groupState = "Dead"
            answer.errorCode =
                (id.isEmpty ? ErrorCode.invalidGroupID : ErrorCode.groupIDNotFound).rawValue
            answer.errorMessage =
                id.isEmpty
                ? "The group id is empty"
                : consumerGroups[id] == nil && shareGroups[id] == nil
                    ? "Group \(id) not found." : "Group \(id) is not a classic group."
            return answer
        }
        answer.lastRebalance = group.lastRebalance.map { report in
            var entry = DescribeGroupsResponse.LastRebalance()
            entry.reason = report.reason
            entry.memberID = report.memberID
            entry.generation = report.generation
            entry.startTimestamp = report.startedAt.rawValue
            entry.durationMs = report.durationMilliseconds
            entry.memberCount = Int32(clamping: report.memberCount)
            return entry
        }
        let isStable = group.phase == .stable
        answer.groupState = group.stateName
        answer.protocolType = group.protocolType
        answer.protocolData = isStable ? group.protocolName ?? "" : ""
        answer.members = group.members.inOrder.map { member in
            var entry = DescribeGroupsResponse.DescribedGroupMember()
            entry.memberID = member.id
            entry.groupInstanceID = member.instanceID
            entry.clientID = member.client.clientID
            entry.clientHost = member.client.host
            if isStable {
                entry.memberMetadata = member.subscription(group.protocolName ?? "")
                entry.memberAssignment = member.assignment
            }
            return entry
        }
        return answer
    }

    /// Names of states and types compare without regard to case, as users type them.
    func list(_ request: ListGroupsRequest) -> ListGroupsResponse {
        let states = Set(request.statesFilter.map { $0.lowercased() })
        let types = Set(request.typesFilter.map { $0.lowercased() })
        var response = ListGroupsResponse()
        for id in (Array(groups.ids) + Array(consumerGroups.ids) + Array(shareGroups.ids)).sorted() {
            var entry = ListGroupsResponse.ListedGroup()
            entry.groupID = id
            if let group = shareGroups[id] {
                entry.protocolType = "share"
                entry.groupState = group.stateName
                entry.groupType = "share"
            } else if let group = consumerGroups[id] {
                entry.protocolType = ConsumerSubscription.protocolType
                entry.groupState = group.stateName
                entry.groupType = "consumer"
            } else if let group = groups[id] {
                entry.protocolType = group.protocolType
                entry.groupState = group.stateName
                entry.groupType = "classic"
            }
            guard states.isEmpty || states.contains(entry.groupState.lowercased()),
                types.isEmpty || types.contains(entry.groupType)
            else { continue }
            response.groups.append(entry)
        }
        return response
    }

    // MARK: For tests, traces and `martlet group describe`

    /// What the log knows: equal to that of a core into which the same records were replayed.
    package struct DurableState: Sendable, Equatable {
        package var groups: [String: GroupMetadataValue] = [:]
        package var consumerGroups: [String: ConsumerGroupState] = [:]
        package var shareGroups: [String: ShareGroupState] = [:]
        package var offsets: [OffsetCommitKey: CommittedOffset] = [:]
        /// Offsets of open transactions, by producer id.
        package var pendingOffsets: [Int64: [OffsetCommitKey: OffsetCommitValue]] = [:]

        package init() {}
    }

    package func durableState() -> DurableState {
        var durable = DurableState()
        durable.groups = groups.compactMapValues(\.persisted)
        durable.pendingOffsets = pendingOffsets.summary()
        durable.consumerGroups = consumerGroups.compactMapValues(\.durable)
        durable.shareGroups = shareGroups.compactMapValues(\.durable)
        for group in offsets.groupIDs() {
            for topic in offsets.topics(group: group) {
                for partition in offsets.partitions(group: group, topic: topic) {
                    var key = OffsetCommitKey()
                    key.group = group
                    key.topic = topic
                    key.partition = partition
                    durable.offsets[key] = offsets.offset(group: group, topic: topic, partition: partition)
                }
            }
        }
        return durable
    }

    /// A group in one line's worth of facts.
    package struct GroupSummary: Sendable, Equatable {
        package var state: String
        package var generation: Int32
        package var protocolName: String?
        package var leaderID: String?
        package var memberIDs: [String]
        package var pendingMemberCount: Int
        package var lastRebalance: RebalanceReport?
    }

    package func summary(group id: String) -> GroupSummary? {
        if let group = shareGroups[id] {
            return GroupSummary(
                state: group.stateName, generation: group.epoch, protocolName: nil, leaderID: nil,
                memberIDs: group.members.keys.sorted(), pendingMemberCount: 0, lastRebalance: nil)
        }
        if let group = consumerGroups[id] {
            return GroupSummary(
                state: group.stateName, generation: group.epoch, protocolName: nil, leaderID: nil,
                memberIDs: group.members.keys.sorted(), pendingMemberCount: 0,
                lastRebalance: group.lastRebalance)
        }
        return groups[id].map { group in
            GroupSummary(
                state: group.stateName, generation: group.generation, protocolName: group.protocolName,
                leaderID: group.leaderID, memberIDs: group.members.ids,
                pendingMemberCount: group.pendingMembers.count, lastRebalance: group.lastRebalance)
        }
    }

    package var groupCount: Int { groups.count + consumerGroups.count + shareGroups.count }
    /// Whether there are groups for which topics matter.
    package var followsTopics: Bool { !consumerGroups.isEmpty || !shareGroups.isEmpty }
    package var offsetCount: Int { offsets.offsetCount }

    /// Offsets of topics that are gone, perhaps replaced by others of their names while this shard was not loaded;
    /// those of open transactions too. To be asked after loading and answered with `offsetsAreObsolete`.
    ///
    /// - Parameter currentID: id of the topic that has this name now.
    package func obsoleteOffsets(_ currentID: (String) -> UniversalID?) -> [OffsetCommitKey] {
        var last: (topic: String, id: UniversalID?)?
        func isObsolete(_ topic: String, _ id: UniversalID) -> Bool {
            let current = last?.topic == topic ? last?.id : currentID(topic)
            last = (topic, current)
            return current == nil || (id != .zero && id != current)
        }
        var obsolete = offsets.keys(where: isObsolete)
        // What such a transaction would replace was committed before it, and so is of no later topic.
        let known = Set(obsolete)
        obsolete += pendingOffsets.keys { key, value in !known.contains(key) && isObsolete(key.topic, value.topicID) }
        return obsolete
    }

    /// Topics for which offsets are kept: whose retention an `expirationDue` should carry.
    package func topicsWithOffsets() -> Set<String> { offsets.topics }
}
