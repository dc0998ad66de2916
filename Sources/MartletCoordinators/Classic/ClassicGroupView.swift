import MartletKafkaProtocol
import MartletLogModel
import NIOCore

// What is read off a classic group: its record, its answers, facts about it. Nothing here changes it.

extension ClassicGroup {
    var isEmpty: Bool { phase == .empty }

    /// Nothing refers to the group but offsets, if there are any.
    var isUnused: Bool { phase == .empty && members.isEmpty && pendingMembers.isEmpty && persisted == nil }

    var stateName: String {
        switch phase {
        case .empty: "Empty"
        case .preparingRebalance: "PreparingRebalance"
        case .completingRebalance: "CompletingRebalance"
        case .stable: "Stable"
        }
    }

    /// Topics that members subscribe to, or `nil` if their subscriptions cannot be read.
    func subscribedTopics() -> Set<String>? {
        guard usesConsumerProtocol else { return nil }
        var topics: Set<String> = []
        for member in members.inOrder {
            guard let name = protocolName ?? member.protocols.first?.name,
                let subscribed = ConsumerSubscription.topics(member.subscription(name))
            else { return nil }
            topics.formUnion(subscribed)
        }
        return topics
    }

    var usesConsumerProtocol: Bool { protocolType == ConsumerSubscription.protocolType }

    /// Whether a topic's offsets are still of use to somebody in the group (KIP-211, OffsetDelete).
    func isSubscribed(to topic: String) -> Bool {
        if members.isEmpty { return false }
        return subscribedTopics()?.contains(topic) ?? true
    }

    /// Why a request of this member is refused, or `nil`.
    func problem(_ memberID: String, instanceID: String?) -> ErrorCode? {
        if let instanceID {
            guard let known = members.instances[instanceID] else { return .unknownMemberID }
            if known != memberID { return .fencedInstanceID }
        }
        return members.contains(memberID) ? nil : .unknownMemberID
    }

    // MARK: Record

    /// The record that describes the generation, with the assignments of `assignments` where given.
    func record(
        assignments: [String: ByteBuffer]?, now: Timestamp
    ) -> CoordinatorRecord {
        var value = GroupMetadataValue()
        value.protocolType = protocolType
        value.generation = generation
        value.protocol = protocolName
        value.leader = leaderID
        value.currentStateTimestamp = now.rawValue
        value.members = members.inOrder.map { member in
            var entry = GroupMetadataValue.MemberMetadata()
            entry.memberID = member.id
            entry.groupInstanceID = member.instanceID
            entry.clientID = member.client.clientID
            entry.clientHost = member.client.host
            entry.rebalanceTimeout = member.rebalanceTimeoutMilliseconds
            entry.sessionTimeout = member.sessionTimeoutMilliseconds
            entry.subscription = protocolName.map { member.subscription($0) } ?? ByteBuffer()
            entry.assignment = assignments.map { $0[member.id] ?? ByteBuffer() } ?? member.assignment
            return entry
        }
        var key = GroupMetadataKey()
        key.group = id
        return .groupMetadata(key, value)
    }

    static func tombstone(_ id: String) -> CoordinatorRecord {
        var key = GroupMetadataKey()
        key.group = id
        return .groupMetadata(key, nil)
    }

    // MARK: Answers

    static func refuse(_ id: RequestID, _ code: ErrorCode, memberID: String, _ outbox: inout Outbox) {
        var response = JoinGroupResponse()
        response.errorCode = code.rawValue
        response.memberID = memberID
        outbox.respond(id, .joinGroup(response))
    }

    func answerJoin(_ id: RequestID, _ memberID: String, _ outbox: inout Outbox) {
        var response = generationResponse(memberID)
        if memberID == leaderID { response.members = memberList() }
        outbox.respond(id, .joinGroup(response))
    }

    func generationResponse(_ memberID: String) -> JoinGroupResponse {
        var response = JoinGroupResponse()
        response.errorCode = ErrorCode.none.rawValue
        response.generationID = generation
        response.protocolType = protocolType
        response.protocolName = protocolName
        response.leader = leaderID ?? ""
        response.memberID = memberID
        return response
    }

    func memberList() -> [JoinGroupResponse.JoinGroupResponseMember] {
        members.inOrder.map { member in
            var entry = JoinGroupResponse.JoinGroupResponseMember()
            entry.memberID = member.id
            entry.groupInstanceID = member.instanceID
            entry.metadata = protocolName.map { member.subscription($0) } ?? ByteBuffer()
            return entry
        }
    }

    func answerSync(_ id: RequestID, _ memberID: String, _ outbox: inout Outbox) {
        var response = SyncGroupResponse()
        response.errorCode = ErrorCode.none.rawValue
        response.protocolType = protocolType
        response.protocolName = protocolName
        response.assignment = members[memberID]?.assignment ?? ByteBuffer()
        outbox.respond(id, .syncGroup(response))
    }

    static func answerSync(_ id: RequestID, _ code: ErrorCode, _ outbox: inout Outbox) {
        var response = SyncGroupResponse()
        response.errorCode = code.rawValue
        outbox.respond(id, .syncGroup(response))
    }

    /// A client's words, in brackets, for a reason.
    static func quoted(_ reason: String?) -> String {
        guard let reason, !reason.isEmpty else { return "" }
        return " (client: \(GroupLimits.shortened(reason)))"
    }
}
