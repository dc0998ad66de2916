import MartletKafkaProtocol
import MartletLogModel
import NIOCore

// Members of a consumer group that speak the classic protocol (KIP-848, online migration): JoinGroup, SyncGroup,
// Heartbeat and LeaveGroup stand for what the others do with one request. The broker assigns for them as well; none of
// them is a leader, and the generation they see is their member epoch.

extension ConsumerGroup {
    /// The classic subscription, read from the favourite strategy; all have the same topics.
    private static func subscription(
        _ protocols: [JoinGroupRequest.JoinGroupRequestProtocol]
    ) -> ConsumerProtocolSubscription? {
        protocols.first.flatMap { ConsumerSubscription.decode($0.metadata)?.subscription }
    }

    /// A strategy that all classic members know, the newcomer's favourite first.
    private func supports(_ request: JoinGroupRequest) -> Bool {
        guard request.protocolType == ConsumerSubscription.protocolType else { return false }
        let known = members.values.compactMap { member in
            member.about.classicMemberMetadata.map { Set($0.supportedProtocols.map(\.name)) }
        }
        return request.protocols.contains { entry in known.allSatisfy { $0.contains(entry.name) } }
    }

    /// Joins, or joins again to go on with a rebalance. Changes nothing if it throws.
    mutating func joinClassic(
        _ request: JoinGroupRequest, _ client: ClientIdentity, _ traits: JoinTraits, _ catalog: TopicCatalog,
        _ outbox: inout Outbox
    ) throws(GroupRefusal) -> JoinGroupResponse {
        let isUnknown = request.memberID.isEmpty
        let memberID =
            isUnknown
            ? MemberID.make(prefix: request.groupInstanceID ?? client.clientID, traits.newMemberID)
            : request.memberID
        let holder = request.groupInstanceID.flatMap { instances[$0] }
        if holder == nil { try checkSize(memberID, outbox.configuration) }
        guard supports(request), let subscription = Self.subscription(request.protocols) else {
            throw GroupRefusal(
                .inconsistentGroupProtocol, "Member \(memberID)'s protocols are not supported.")
        }
        var response = JoinGroupResponse()
        response.memberID = memberID
        if isUnknown, request.groupInstanceID == nil, traits.requiresKnownMemberID {
            response.errorCode = ErrorCode.memberIDRequired.rawValue
            return response
        }
        if let instanceID = request.groupInstanceID {
            if let holder {
                if !isUnknown { try checkInstance(holder, memberID, instanceID) }
            } else if !isUnknown {
                throw unknown(memberID)
            }
        }
        let place = isUnknown ? holder ?? memberID : memberID
        var about = members[place]?.about ?? ConsumerMember(id: "").about
        if let instanceID = request.groupInstanceID { about.instanceID = instanceID }
        if let rackID = subscription.rackID, !rackID.isEmpty { about.rackID = rackID }
        about.rebalanceTimeoutMs =
            request.rebalanceTimeoutMs < 0 ? request.sessionTimeoutMs : request.rebalanceTimeoutMs
        about.subscribedTopicNames = Set(subscription.topics).sorted()
        about.subscribedTopicRegex = nil
        about.serverAssignor = nil
        about.clientID = client.clientID
        about.clientHost = client.host
        about.classicMemberMetadata = Self.classicMetadata(request.sessionTimeoutMs, request.protocols)
        try checkDescription(about, memberID, inPlaceOf: place, outbox)
        // From here on nothing is refused.
        if isUnknown, let holder { replace(holder, by: memberID, &outbox) }
        let before = members[memberID]
        if before?.about != about { write(.consumerMember(id, memberID, about)) }
        if before?.pattern != nil { forgetUnusedPatterns() }
        let verb =
            before == nil ? "joined" : holder != nil && isUnknown ? "came back" : "changed its subscription"
        bumpIfNeeded(
            before?.about.subscribedTopicNames != about.subscribedTopicNames,
            "classic member \(memberID) \(verb)\(ClassicGroup.quoted(request.reason))", memberID, catalog,
            &outbox)
        updateTarget(catalog, &outbox)
        reconcile(memberID, owned: Self.owned(subscription, catalog), catalog, &outbox)

        disarmRevocation(memberID, &outbox)
        clocks[memberID, default: Clock(deadline: outbox.now.instant)].joinDeadline = nil
        outbox.effects.append(.cancel(.rejoin(group: id, member: memberID)))
        heardOf(memberID, &outbox)
        let deadline = outbox.instant(inMilliseconds: Int64(about.rebalanceTimeoutMs))
        clocks[memberID]?.syncDeadline = deadline
        outbox.effects.append(.schedule(.resync(group: id, member: memberID), at: deadline))
        reportIfSettled(&outbox)

        response.errorCode = ErrorCode.none.rawValue
        response.generationID = members[memberID]?.epoch ?? 0
        response.protocolType = ConsumerSubscription.protocolType
        response.protocolName = request.protocols.first?.name
        return response
    }

    static func classicMetadata(
        _ sessionTimeout: Int32, _ protocols: [JoinGroupRequest.JoinGroupRequestProtocol]
    ) -> ConsumerGroupMemberMetadataValue.ClassicMemberMetadata {
        var classic = ConsumerGroupMemberMetadataValue.ClassicMemberMetadata()
        classic.sessionTimeoutMs = sessionTimeout
        classic.supportedProtocols = protocols.map {
            var entry = ConsumerGroupMemberMetadataValue.ClassicProtocol()
            entry.name = $0.name
            entry.metadata = $0.metadata
            return entry
        }
        return classic
    }

    /// What a classic member says it has: nothing if its strategy gives everything back before it joins.
    private static func owned(
        _ subscription: ConsumerProtocolSubscription, _ catalog: TopicCatalog
    ) -> TopicPartitions {
        var owned: TopicPartitions = [:]
        for entry in subscription.ownedPartitions {
            guard let topic = catalog.topic(named: entry.topic) else { continue }
            owned[topic.id, default: []].formUnion(entry.partitions)
        }
        return owned
    }

    /// The classic member a request is from.
    private func classicMember(
        _ memberID: String, instanceID: String?
    ) throws(GroupRefusal) -> ConsumerMember {
        if let instanceID {
            guard let holder = instances[instanceID] else { throw unknown(memberID) }
            try checkInstance(holder, memberID, instanceID)
        }
        guard let member = members[memberID], member.usesClassicProtocol else { throw unknown(memberID) }
        return member
    }

    private func checkGeneration(_ member: ConsumerMember, _ generation: Int32) throws(GroupRefusal) {
        guard member.epoch == generation else {
            throw GroupRefusal(
                .illegalGeneration,
                "The generation \(generation) is not the member epoch \(member.epoch) of member \(member.id)."
            )
        }
    }

    mutating func syncClassic(
        _ request: SyncGroupRequest, _ catalog: TopicCatalog, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> SyncGroupResponse {
        let member = try classicMember(request.memberID, instanceID: request.groupInstanceID)
        try checkGeneration(member, request.generationID)
        let favourite = member.about.classicMemberMetadata?.supportedProtocols.first
        guard request.protocolType == nil || request.protocolType == ConsumerSubscription.protocolType,
            request.protocolName == nil || request.protocolName == favourite?.name
        else {
            throw GroupRefusal(
                .inconsistentGroupProtocol,
                "Member \(member.id) asks for another protocol than it joined with.")
        }
        // Who is asked to give something back has joined again already and must see that first.
        if epoch != member.epoch, member.state != .unrevoked {
            expectJoin(member, &outbox)
            throw GroupRefusal(.rebalanceInProgress, "Member \(member.id) should join again to catch up.")
        }
        clocks[member.id]?.syncDeadline = nil
        outbox.effects.append(.cancel(.resync(group: id, member: member.id)))
        heardOf(member.id, &outbox)
        var response = SyncGroupResponse()
        response.errorCode = ErrorCode.none.rawValue
        response.protocolType = ConsumerSubscription.protocolType
        response.protocolName = favourite?.name
        let version = favourite.flatMap { ConsumerSubscription.decode($0.metadata)?.version } ?? 0
        response.assignment = ConsumerSubscription.encode(
            Self.keys(member.assigned), catalog, version: version)
        return response
    }

    mutating func heartbeatClassic(
        _ request: HeartbeatRequest, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ErrorCode {
        let member = try classicMember(request.memberID, instanceID: request.groupInstanceID)
        try checkGeneration(member, request.generationID)
        heardOf(member.id, &outbox)
        let mustJoin =
            switch member.state {
            case .stable: member.epoch != epoch
            case .unrevoked, .unknown: true
            case .unreleased: member.epoch != epoch || !waitsForOthers(member)
            }
        if mustJoin { expectJoin(member, &outbox) }
        return mustJoin ? .rebalanceInProgress : .none
    }

    private func waitsForOthers(_ member: ConsumerMember) -> Bool {
        (targets[member.id] ?? [:]).contains { topic, partitions in
            partitions.contains { partition in
                member.assigned[topic]?[partition] == nil && owners[topic]?[partition] != nil
            }
        }
    }

    /// The member was told to join again and has its rebalance timeout for that.
    private mutating func expectJoin(_ member: ConsumerMember, _ outbox: inout Outbox) {
        guard clocks[member.id]?.joinDeadline == nil else { return }
        let deadline = outbox.instant(inMilliseconds: Int64(member.about.rebalanceTimeoutMs))
        clocks[member.id, default: Clock(deadline: deadline)].joinDeadline = deadline
        outbox.effects.append(.schedule(.rejoin(group: id, member: member.id), at: deadline))
    }

    mutating func joinTimeIsUp(_ memberID: String, _ outbox: inout Outbox) -> String? {
        guard let deadline = clocks[memberID]?.joinDeadline, let member = members[memberID] else {
            return nil
        }
        guard outbox.now.instant >= deadline else {
            outbox.effects.append(.schedule(.rejoin(group: id, member: memberID), at: deadline))
            return nil
        }
        return
            "classic member \(memberID) did not join within \(member.about.rebalanceTimeoutMs) ms, its rebalance timeout"
    }

    mutating func syncTimeIsUp(_ memberID: String, _ outbox: inout Outbox) -> String? {
        guard let deadline = clocks[memberID]?.syncDeadline, members[memberID] != nil else { return nil }
        guard outbox.now.instant >= deadline else {
            outbox.effects.append(.schedule(.resync(group: id, member: memberID), at: deadline))
            return nil
        }
        return "classic member \(memberID) did not ask for its assignment in time"
    }

    /// LeaveGroup: the members that may leave, in order, and an answer for each identity.
    func leavingClassic(
        _ identities: [LeaveGroupRequest.MemberIdentity]
    ) -> (members: [String], answers: [LeaveGroupResponse.MemberResponse]) {
        var leaving: [String] = []
        let answers = identities.map { identity in
            var answer = LeaveGroupResponse.MemberResponse()
            answer.memberID = identity.memberID
            answer.groupInstanceID = identity.groupInstanceID
            do throws(GroupRefusal) {
                // An administrator names a static member by its instance alone.
                let memberID =
                    identity.memberID.isEmpty
                    ? identity.groupInstanceID.flatMap { instances[$0] } ?? "" : identity.memberID
                let member = try classicMember(memberID, instanceID: identity.groupInstanceID)
                guard !leaving.contains(member.id) else { throw unknown(member.id) }
                leaving.append(member.id)
                answer.errorCode = ErrorCode.none.rawValue
            } catch {
                answer.errorCode = error.code.rawValue
            }
            return answer
        }
        return (leaving, answers)
    }
}
