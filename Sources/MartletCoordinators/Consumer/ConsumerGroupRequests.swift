import MartletKafkaProtocol
import MartletLogModel

// The consumer protocol's part of the shard: checks of what a request says by itself, which kind of group it meets,
// and the change of a group from one kind to the other.

extension GroupCoordinatorShard {
    // MARK: Replay

    /// A record of a consumer group: a value makes the group, and ends a classic one of its name.
    mutating func replayConsumer(_ record: CoordinatorRecord, hasValue: Bool, now: Timestamp) {
        let id = record.groupID
        if consumerGroups[id] == nil {
            guard hasValue else { return }
            groups[id] = nil
            shareGroups[id] = nil
            consumerGroups[id] = ConsumerGroup(id: id)
        }
        consumerGroups[id]?.replay(record)
        if case .consumerGroup(_, nil) = record {
            consumerGroups[id] = nil
            // Offsets alone make a group as well.
            if offsets.hasOffsets(group: id) || pendingOffsets.hasOffsets(group: id), groups[id] == nil {
                groups[id] = ClassicGroup(id: id, now: now)
            }
        }
    }

    // MARK: Heartbeat

    mutating func consumerHeartbeat(
        _ id: RequestID, _ request: ConsumerGroupHeartbeatRequest, _ client: ClientIdentity,
        _ traits: HeartbeatTraits, _ outbox: inout Outbox
    ) {
        var response: ConsumerGroupHeartbeatResponse
        do throws(GroupRefusal) {
            try Self.check(request, traits, configuration.consumer)
            response =
                request.memberEpoch < 0
                ? try leaveConsumerGroup(request, &outbox)
                : try heartbeatConsumerGroup(request, client, traits, &outbox)
        } catch {
            response = ConsumerGroupHeartbeatResponse()
            response.errorCode = error.code.rawValue
            response.errorMessage = error.message
            return outbox.respond(id, .consumerGroupHeartbeat(response))
        }
        appendPending(request.groupID, then: id, .consumerGroupHeartbeat(response), &outbox)
    }

    /// Appends what the group has decided; the answer waits for that, and else for what it decided before.
    private mutating func appendPending(
        _ groupID: String, then id: RequestID, _ response: GroupResponse, _ outbox: inout Outbox
    ) {
        let records = takePending(groupID)
        if !records.isEmpty {
            outbox.append(records, then: [.respond(id, response)], isReplayed: true)
        } else if let index = outbox.appends.lastIndex(where: { append in
            append.records.contains { $0.groupID == groupID }
        }) {
            outbox.appends[index].continuations.append(.respond(id, response))
        } else {
            respond(id, response, after: [groupID], &outbox)
        }
    }

    private mutating func takePending(_ groupID: String) -> [CoordinatorRecord] {
        let records = consumerGroups[groupID]?.pending ?? []
        if !records.isEmpty { consumerGroups[groupID]?.pending = [] }
        return records
    }

    /// What is wrong with the request whatever the group is.
    private static func check(
        _ request: ConsumerGroupHeartbeatRequest, _ traits: HeartbeatTraits,
        _ configuration: ConsumerGroupConfiguration
    ) throws(GroupRefusal) {
        func invalid(_ message: String) -> GroupRefusal { GroupRefusal(.invalidRequest, message) }
        func isBlank(_ text: String?) -> Bool { text.map { $0.allSatisfy(\.isWhitespace) } ?? false }
        if isBlank(request.groupID) { throw invalid("GroupId can't be empty.") }
        if request.groupID.utf8.count > GroupLimits.groupIDBytesLimit {
            throw GroupRefusal(
                .invalidGroupID, "GroupId is longer than \(GroupLimits.groupIDBytesLimit) bytes.")
        }
        if traits.requiresMemberID || request.memberEpoch != ConsumerMember.Epoch.join,
            isBlank(request.memberID)
        {
            throw invalid("MemberId can't be empty.")
        }
        if isBlank(request.instanceID) { throw invalid("InstanceId can't be empty.") }
        if isBlank(request.rackID) { throw invalid("RackId can't be empty.") }
        if request.memberEpoch == ConsumerMember.Epoch.join {
            if request.rebalanceTimeoutMs == -1 {
                throw invalid("RebalanceTimeoutMs must be provided in first request.")
            }
            guard let owned = request.topicPartitions, owned.isEmpty else {
                throw invalid("TopicPartitions must be empty when (re-)joining.")
            }
            if request.subscribedTopicNames == nil, request.subscribedTopicRegex == nil {
                throw invalid(
                    "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.")
            }
        } else if request.memberEpoch == ConsumerMember.Epoch.leaveForAWhile {
            if request.instanceID == nil { throw invalid("InstanceId can't be null.") }
        } else if request.memberEpoch < ConsumerMember.Epoch.leaveForAWhile {
            throw invalid("MemberEpoch is invalid.")
        }
        if request.rebalanceTimeoutMs < -1 { throw invalid("RebalanceTimeoutMs is invalid.") }
        for (name, field) in [(request.memberID, "MemberId"), (request.instanceID ?? "", "InstanceId")]
        where name.utf8.count > GroupLimits.nameBytesLimit {
            throw invalid("\(field) is longer than \(GroupLimits.nameBytesLimit) bytes.")
        }
        let names = request.subscribedTopicNames ?? []
        let byteCount =
            names.reduce(0) { $0 + $1.utf8.count } + request.memberID.utf8.count
            + (request.instanceID?.utf8.count ?? 0) + (request.rackID?.utf8.count ?? 0)
        let remedy = "a pattern (SubscribedTopicRegex) takes less room."
        if names.count > GroupLimits.subscribedTopicCountLimit {
            throw invalid("A member names at most \(GroupLimits.subscribedTopicCountLimit) topics; \(remedy)")
        }
        if byteCount > GroupLimits.memberDescriptionBytesLimit {
            throw invalid(
                "A member says at most \(GroupLimits.memberDescriptionBytesLimit) bytes about itself, its names included, not \(byteCount); \(remedy)"
            )
        }
        if let name = request.serverAssignor {
            guard configuration.assignors.contains(where: { $0.rawValue == name }) else {
                let known = configuration.assignors.map(\.rawValue).joined(separator: ", ")
                throw GroupRefusal(
                    .unsupportedAssignor,
                    "ServerAssignor \(name) is not supported. Supported assignors: \(known).")
            }
        }
    }

    private mutating func heartbeatConsumerGroup(
        _ request: ConsumerGroupHeartbeatRequest, _ client: ClientIdentity, _ traits: HeartbeatTraits,
        _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ConsumerGroupHeartbeatResponse {
        let groupID = request.groupID
        let memberID = request.memberID.isEmpty ? MemberID.text(traits.newMemberID) : request.memberID
        if let response = try consumerGroups[groupID]?.heartbeat(
            request, memberID: memberID, client, catalog, &outbox)
        {
            return response
        }
        guard shareGroups[groupID] == nil else {
            throw GroupRefusal(.groupIDNotFound, "Group \(groupID) is not a consumer group.")
        }
        guard request.memberEpoch == ConsumerMember.Epoch.join else {
            throw GroupRefusal(.groupIDNotFound, "Group \(groupID) not found.")
        }
        // The new group is put in place only when the member is in it.
        var trial = outbox
        var group = try founded(groupID, &trial)
        let response = try group.heartbeat(request, memberID: memberID, client, catalog, &trial)
        outbox = trial
        groups[groupID] = nil
        consumerGroups[groupID] = group
        return response
    }

    /// A consumer group in the place of nothing, of an empty classic group, or of one whose members come along.
    private func founded(
        _ groupID: String, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ConsumerGroup {
        guard var classic = groups[groupID] else {
            guard groupCount < GroupLimits.groupCountLimit else {
                throw GroupRefusal(
                    .groupMaxSizeReached,
                    "This coordinator has \(GroupLimits.groupCountLimit) groups, its limit.")
            }
            return ConsumerGroup(id: groupID)
        }
        var group: ConsumerGroup
        if classic.isEmpty {
            group = ConsumerGroup(id: groupID)
        } else {
            guard configuration.consumer.migrationPolicy.allowsUpgrade else {
                throw GroupRefusal(
                    .groupIDNotFound,
                    "Group \(groupID) is not a consumer group; group.consumer.migration.policy does not allow to upgrade it."
                )
            }
            guard classic.usesConsumerProtocol, classic.members.count < configuration.consumer.maxSize else {
                throw GroupRefusal(.groupIDNotFound, "Group \(groupID) is not a consumer group.")
            }
            group = try ConsumerGroup(upgrading: classic, catalog)
            classic.abandon(.rebalanceInProgress, &outbox)
            for member in classic.members.ids { group.heardOf(member, &outbox) }
        }
        if classic.persisted != nil { group.pending.insert(ClassicGroup.tombstone(groupID), at: 0) }
        outbox.effects.append(.cancel(.join(group: groupID)))
        outbox.effects.append(.cancel(.sync(group: groupID)))
        for member in classic.pendingMembers.keys.sorted() {
            outbox.effects.append(.cancel(.pendingMember(group: groupID, member: member)))
        }
        return group
    }

    // MARK: Leaving

    private mutating func leaveConsumerGroup(
        _ request: ConsumerGroupHeartbeatRequest, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ConsumerGroupHeartbeatResponse {
        guard let group = consumerGroups[request.groupID] else {
            throw GroupRefusal(.groupIDNotFound, "Group \(request.groupID) not found.")
        }
        if let instanceID = request.instanceID {
            guard let holder = group.instances[instanceID] else {
                throw GroupRefusal(.unknownMemberID, "Instance id \(instanceID) is unknown.")
            }
            try group.checkInstance(holder, request.memberID, instanceID)
        }
        guard group.members[request.memberID] != nil else { throw group.unknown(request.memberID) }
        if request.memberEpoch == ConsumerMember.Epoch.leaveForAWhile {
            consumerGroups[request.groupID]?.leaveForAWhile(request.memberID, &outbox)
        } else {
            remove([request.memberID], from: request.groupID, "member \(request.memberID) left", &outbox)
        }
        var response = ConsumerGroupHeartbeatResponse()
        response.memberID = request.memberID
        response.memberEpoch = request.memberEpoch
        return response
    }

    /// Removes members. Where only classic ones stay, the group is a classic one from now on.
    private mutating func remove(
        _ memberIDs: [String], from groupID: String, _ reason: String, _ outbox: inout Outbox
    ) {
        guard let group = consumerGroups[groupID] else { return }
        let leaving = Set(memberIDs)
        if memberIDs.contains(where: { group.members[$0]?.usesClassicProtocol == false }),
            canDowngrade(group, without: leaving)
        {
            return downgrade(groupID, without: leaving, reason, memberIDs.first, &outbox)
        }
        consumerGroups[groupID]?.remove(memberIDs, reason, catalog, &outbox)
    }

    /// A timer found a member that must go.
    mutating func expire(_ memberID: String, of groupID: String, _ reason: String?, _ outbox: inout Outbox) {
        guard let reason else { return }
        remove([memberID], from: groupID, reason, &outbox)
        let records = takePending(groupID)
        if !records.isEmpty { outbox.append(records, isReplayed: true) }
    }

    mutating func continuePatterns(_ groupID: String, _ outbox: inout Outbox) {
        consumerGroups[groupID]?.patternTimeIsUp(catalog, &outbox)
        let records = takePending(groupID)
        if !records.isEmpty { outbox.append(records, isReplayed: true) }
    }

    // MARK: Classic requests to a consumer group

    /// Whether the group is one of the consumer protocol that classic members would join; an empty one makes room.
    func servesClassicMembers(_ groupID: String) -> Bool {
        consumerGroups[groupID].map { !$0.isEmpty } ?? false
    }

    mutating func joinConsumerGroup(
        _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity, _ traits: JoinTraits,
        _ outbox: inout Outbox
    ) {
        let groupID = request.groupID
        var answer: JoinGroupResponse?
        do throws(GroupRefusal) {
            answer = try consumerGroups[groupID]?.joinClassic(request, client, traits, catalog, &outbox)
        } catch {
            return ClassicGroup.refuse(id, error.code, memberID: request.memberID, &outbox)
        }
        guard let response = answer, let group = consumerGroups[groupID] else { return }
        if response.errorCode == ErrorCode.none.rawValue, request.groupInstanceID != nil,
            request.memberID.isEmpty,
            canDowngrade(group, without: [])
        {
            // It took the place of the last member of the consumer protocol: it waits in the join phase.
            downgrade(
                groupID, without: [], "classic member \(response.memberID) came back", response.memberID,
                &outbox)
            var again = request
            again.memberID = response.memberID
            groups[groupID]?.join(id, again, client, traits, &outbox)
            return
        }
        appendPending(groupID, then: id, .joinGroup(response), &outbox)
    }

    /// An empty consumer group gives way to a classic one.
    mutating func makeRoomForClassicGroup(_ groupID: String, _ outbox: inout Outbox) {
        guard let group = consumerGroups[groupID], group.isEmpty else { return }
        consumerGroups[groupID] = nil
        outbox.append(group.tombstones())
    }

    mutating func syncConsumerGroup(_ id: RequestID, _ request: SyncGroupRequest, _ outbox: inout Outbox) {
        do throws(GroupRefusal) {
            guard let response = try consumerGroups[request.groupID]?.syncClassic(request, catalog, &outbox)
            else {
                return
            }
            respond(id, .syncGroup(response), after: [request.groupID], &outbox)
        } catch {
            ClassicGroup.answerSync(id, error.code, &outbox)
        }
    }

    mutating func heartbeatClassicMember(
        _ id: RequestID, _ request: HeartbeatRequest, _ outbox: inout Outbox
    ) {
        var response = HeartbeatResponse()
        do throws(GroupRefusal) {
            let code = try consumerGroups[request.groupID]?.heartbeatClassic(request, &outbox)
            response.errorCode = (code ?? .unknownMemberID).rawValue
        } catch {
            response.errorCode = error.code.rawValue
        }
        outbox.respond(id, .heartbeat(response))
    }

    mutating func leaveClassicMembers(
        _ id: RequestID, _ request: LeaveGroupRequest, _ outbox: inout Outbox
    ) {
        guard let group = consumerGroups[request.groupID] else { return }
        let (leaving, answers) = group.leavingClassic(request.members)
        var response = LeaveGroupResponse()
        response.members = answers
        if let first = leaving.first {
            let others = leaving.count > 1 ? " and \(leaving.count - 1) more" : ""
            let words = request.members.first { $0.memberID == first }?.reason
            remove(
                leaving, from: request.groupID,
                "classic member \(first)\(others) left\(ClassicGroup.quoted(words))",
                &outbox)
        }
        appendPending(request.groupID, then: id, .leaveGroup(response), &outbox)
    }

    // MARK: Downgrade

    private func canDowngrade(_ group: ConsumerGroup, without leaving: Set<String>) -> Bool {
        guard configuration.consumer.migrationPolicy.allowsDowngrade else { return false }
        let staying = group.members.values.filter { !leaving.contains($0.id) }
        return !staying.isEmpty && staying.count <= configuration.groupMaxSize
            && staying.allSatisfy(\.usesClassicProtocol)
    }

    /// The group becomes a classic one: its records go, the classic group's record comes, and all join again.
    private mutating func downgrade(
        _ groupID: String, without leaving: Set<String>, _ reason: String, _ memberID: String?,
        _ outbox: inout Outbox
    ) {
        guard var group = consumerGroups[groupID] else { return }
        let earlier = group.pending
        var members: [ClassicMember] = []
        for (memberID, member) in group.members.sorted(by: { $0.key < $1.key }) {
            group.cancelTimers(of: memberID, &outbox)
            guard !leaving.contains(memberID), let classic = member.about.classicMemberMetadata else {
                continue
            }
            members.append(
                ClassicMember(member, classic, target: group.targets[memberID] ?? [:], catalog, outbox))
        }
        outbox.effects.append(.cancel(.patterns(group: groupID)))
        var classic = ClassicGroup(downgrading: groupID, generation: group.epoch, members: members, &outbox)
        // What the group decided in this event was replayed into it; its tombstones undo all of that.
        outbox.append(
            earlier + group.tombstones() + [classic.record(assignments: nil, now: outbox.now.timestamp)],
            isReplayed: true)
        if case .groupMetadata(_, let value)? = outbox.appends.last?.records.last { classic.replay(value) }
        classic.startOver("\(reason); the group went back to the classic protocol", memberID, &outbox)
        consumerGroups[groupID] = nil
        groups[groupID] = classic
    }

    // MARK: Queries

    func describeConsumerGroup(_ id: String) -> ConsumerGroupDescribeResponse.DescribedGroup {
        if let group = consumerGroups[id] { return group.described(catalog, configuration.consumer) }
        var answer = ConsumerGroupDescribeResponse.DescribedGroup()
        answer.groupID = id
        answer.groupState = "Dead"
        answer.errorCode = (id.isEmpty ? ErrorCode.invalidGroupID : ErrorCode.groupIDNotFound).rawValue
        answer.errorMessage =
            id.isEmpty
            ? "The group id is empty"
            : groups[id] == nil && shareGroups[id] == nil
                ? "Group \(id) not found." : "Group \(id) is not a consumer group."
        return answer
    }

    func lastRebalance(_ id: String) -> RebalanceReport? {
        consumerGroups[id]?.lastRebalance ?? groups[id]?.lastRebalance
    }
}

extension ClassicMember {
    /// A classic member of a consumer group, as a member of a classic group.
    init(
        _ member: ConsumerMember, _ classic: ConsumerGroupMemberMetadataValue.ClassicMemberMetadata,
        target: TopicPartitions, _ catalog: TopicCatalog, _ outbox: Outbox
    ) {
        var request = JoinGroupRequest()
        request.groupInstanceID = member.instanceID
        request.sessionTimeoutMs = classic.sessionTimeoutMs
        request.rebalanceTimeoutMs = member.about.rebalanceTimeoutMs
        request.protocols = classic.supportedProtocols.map {
            var entry = JoinGroupRequest.JoinGroupRequestProtocol()
            entry.name = $0.name
            entry.metadata = $0.metadata
            return entry
        }
        self.init(
            id: member.id, request: request,
            client: ClientIdentity(clientID: member.about.clientID, host: member.about.clientHost),
            joinRequest: nil, isNew: false,
            deadline: outbox.instant(inMilliseconds: Int64(classic.sessionTimeoutMs)))
        let version =
            request.protocols.first.flatMap { ConsumerSubscription.decode($0.metadata)?.version } ?? 0
        assignment = ConsumerSubscription.encode(target, catalog, version: version)
    }
}
