import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

/// Partitions as tests write them: topic name to partitions.
typealias Parts = [String: Set<Int32>]

extension ShardHarness {
    static func topicID(_ name: String) -> UniversalID {
        UniversalID(high: 7, low: name.utf8.reduce(0) { $0 &* 31 &+ UInt64($1) })
    }

    static func topic(_ name: String, _ partitionCount: Int32) -> TopicCatalog.Topic {
        TopicCatalog.Topic(id: topicID(name), name: name, partitionCount: partitionCount)
    }

    struct Beat {
        var member = "m"
        var epoch: Int32 = 0
        var instance: String?
        var rack: String?
        var names: [String]?
        var regex: String?
        var rebalance: Int32 = -1
        var assignor: String?
        var owned: Parts?
        var client = "client"
        /// Version 1 asks for a member id of the client's own.
        var requiresID = true

        /// A first heartbeat.
        static func join(
            _ member: String, _ names: [String]? = ["t"], regex: String? = nil, instance: String? = nil,
            assignor: String? = nil, rebalance: Int32 = 60_000
        ) -> Beat {
            Beat(
                member: member, epoch: 0, instance: instance, names: names, regex: regex,
                rebalance: rebalance,
                assignor: assignor, owned: [:])
        }
    }

    func beatID(_ group: String, _ beat: Beat) -> RequestID {
        var request = ConsumerGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = beat.member
        request.memberEpoch = beat.epoch
        request.instanceID = beat.instance
        request.rackID = beat.rack
        request.subscribedTopicNames = beat.names
        request.subscribedTopicRegex = beat.regex
        request.rebalanceTimeoutMs = beat.rebalance
        request.serverAssignor = beat.assignor
        request.topicPartitions = beat.owned.map { owned in
            owned.sorted { $0.key < $1.key }.map { name, partitions in
                var entry = ConsumerGroupHeartbeatRequest.TopicPartitions()
                entry.topicID = Self.topicID(name)
                entry.partitions = partitions.sorted()
                return entry
            }
        }
        return send(
            .consumerGroupHeartbeat(
                request, ClientIdentity(clientID: beat.client, host: "/127.0.0.1"),
                HeartbeatTraits(requiresMemberID: beat.requiresID, newMemberID: UniversalID(high: 1, low: 2)))
        )
    }

    func beatResponse(_ id: RequestID) -> ConsumerGroupHeartbeatResponse? {
        guard case .consumerGroupHeartbeat(let response)? = responses[id] else { return nil }
        return response
    }

    @discardableResult
    func beat(_ group: String, _ beat: Beat) -> ConsumerGroupHeartbeatResponse {
        beatResponse(beatID(group, beat))
            ?? {
                Issue.record("no answer to a heartbeat of \(beat.member)")
                return ConsumerGroupHeartbeatResponse()
            }()
    }

    func code(_ group: String, _ beat: Beat) -> ErrorCode {
        ErrorCode(rawValue: self.beat(group, beat).errorCode)
    }

    /// The assignment of an answer, or `nil` if it has none.
    func parts(_ response: ConsumerGroupHeartbeatResponse) -> Parts? {
        response.assignment.map { assignment in
            var parts: Parts = [:]
            for entry in assignment.topicPartitions {
                let name = topics.first { $0.id == entry.topicID }?.name ?? "\(entry.topicID)"
                parts[name] = Set(entry.partitions)
            }
            return parts
        }
    }

    func described(_ group: String) -> ConsumerGroupDescribeResponse.DescribedGroup {
        guard case .consumerGroupDescribe(let groups)? = ask(.consumerGroupDescribe([group])),
            groups.count == 1
        else {
            Issue.record("no description of \(group)")
            return ConsumerGroupDescribeResponse.DescribedGroup()
        }
        return groups[0]
    }

    func state(_ group: String) -> ConsumerGroupState? { durableState().consumerGroups[group] }

    /// A group whose members have all got their part: names to last answers.
    func settledGroup(_ group: String, _ members: [String], names: [String] = ["t"]) -> [String: Settled] {
        var settled: [String: Settled] = [:]
        for member in members {
            let response = beat(group, .join(member, names))
            settled[member] = Settled(epoch: response.memberEpoch, parts: parts(response) ?? [:])
        }
        settle(group, &settled)
        return settled
    }

    struct Settled {
        var epoch: Int32
        var parts: Parts
    }

    /// Heartbeats of well-behaved members until nothing changes any more.
    func settle(_ group: String, _ members: inout [String: Settled]) {
        for _ in 0..<20 {
            var hasChanged = false
            for name in members.keys.sorted() {
                guard let member = members[name] else { continue }
                let response = beat(group, Beat(member: name, epoch: member.epoch, owned: member.parts))
                #expect(response.errorCode == 0, "\(name): \(response.errorMessage ?? "")")
                let next = Settled(epoch: response.memberEpoch, parts: parts(response) ?? member.parts)
                hasChanged = hasChanged || next.epoch != member.epoch || next.parts != member.parts
                members[name] = next
            }
            if !hasChanged { return }
        }
        Issue.record("the group does not settle")
    }
}
