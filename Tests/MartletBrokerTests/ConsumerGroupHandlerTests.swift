import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

/// Groups of the consumer protocol (KIP-848) over the wire.
@Suite(.timeLimit(.minutes(2))) struct ConsumerGroupHandlerTests {
    private func coordinator(_ client: WireClient, _ group: String) throws {
        var request = FindCoordinatorRequest()
        request.key = group
        #expect(try client.call(request, version: 3).errorCode == 0)
    }

    private func join(_ group: String, _ member: String, names: [String]? = nil, regex: String? = nil)
        -> ConsumerGroupHeartbeatRequest
    {
        var request = ConsumerGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = member
        request.rebalanceTimeoutMs = 60_000
        request.subscribedTopicNames = names
        request.subscribedTopicRegex = regex
        request.topicPartitions = []
        return request
    }

    private func partitions(_ response: ConsumerGroupHeartbeatResponse) -> [UniversalID: [Int32]]? {
        response.assignment.map { assignment in
            Dictionary(uniqueKeysWithValues: assignment.topicPartitions.map { ($0.topicID, $0.partitions) })
        }
    }

    private func beat(_ group: String, _ member: String, _ epoch: Int32) -> ConsumerGroupHeartbeatRequest {
        var request = ConsumerGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = member
        request.memberEpoch = epoch
        return request
    }

    @Test func `a member joins in both versions, commits with its epoch, is described and leaves`()
        async throws
    {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let topicID = try client.createTopic("t")
            try coordinator(client, "g")
            for version in Int16(0)...1 {
                let group = "g\(version)"
                let joined = try client.call(
                    join(group, version == 0 ? "" : "m", names: ["t"]), version: version)
                #expect(joined.errorCode == 0, "\(joined.errorMessage ?? "")")
                let member = try #require(joined.memberID)
                #expect(version == 0 ? member.count == 36 : member == "m")
                #expect(joined.memberEpoch == 1 && joined.heartbeatIntervalMs == 5_000)
                #expect(partitions(joined)?[topicID] == [0])

                var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
                partition.partitionIndex = 0
                partition.committedOffset = 12
                var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
                topic.name = "t"
                topic.partitions = [partition]
                var commit = OffsetCommitRequest()
                commit.groupID = group
                commit.memberID = member
                commit.generationIDOrMemberEpoch = 1
                commit.topics = [topic]
                #expect(try client.call(commit, version: 9).topics[0].partitions[0].errorCode == 0)
                #expect(
                    try client.call(commit, version: 8).topics[0].partitions[0].errorCode
                        == ErrorCode.unsupportedVersion.rawValue)
                commit.generationIDOrMemberEpoch = 2
                #expect(
                    try client.call(commit, version: 9).topics[0].partitions[0].errorCode
                        == ErrorCode.staleMemberEpoch.rawValue)

                var describe = ConsumerGroupDescribeRequest()
                describe.groupIDs = [group, "nobody"]
                describe.includeAuthorizedOperations = true
                let described = try client.call(describe, version: version).groups
                #expect(described[0].groupState == "Stable" && described[0].assignorName == "uniform")
                #expect(described[0].members.map(\.memberID) == [member])
                #expect(described[0].members[0].assignment.topicPartitions.map(\.topicName) == ["t"])
                #expect(described[0].members[0].memberType == (version >= 1 ? 1 : -1))
                #expect(described[0].authorizedOperations == 328)
                #expect(described[1].errorCode == ErrorCode.groupIDNotFound.rawValue)

                var list = ListGroupsRequest()
                list.typesFilter = ["consumer"]
                #expect(try client.call(list, version: 5).groups.contains { $0.groupID == group })

                let left = try client.call(beat(group, member, -1), version: version)
                #expect(left.errorCode == 0 && left.memberEpoch == -1)
                #expect(
                    try client.call(beat(group, member, 1), version: version).errorCode
                        == ErrorCode.unknownMemberID.rawValue)
            }
        }
    }

    @Test func `topics that are created, grow and go reach the members with their heartbeats`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try coordinator(client, "g")
            let joined = try client.call(join("g", "m", regex: "orders-.*"), version: 1)
            #expect(joined.errorCode == 0 && partitions(joined) == [:])
            let topicID = try client.createTopic("orders-eu")
            _ = try client.createTopic("others")
            let assigned = try client.call(beat("g", "m", joined.memberEpoch), version: 1)
            #expect(partitions(assigned) == [topicID: [0]])
            #expect(assigned.memberEpoch > joined.memberEpoch)

            let wrong = try client.call(join("g", "n", regex: "(orders"), version: 1)
            #expect(wrong.errorCode == ErrorCode.invalidRegularExpression.rawValue)
            #expect(wrong.errorMessage?.contains("not closed") == true)
        }
    }

    @Test func `members, targets and epochs outlive a restart`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                _ = try client.createTopic("t", partitions: 2)
                try coordinator(client, "g")
                #expect(try client.call(join("g", "m1", names: ["t"]), version: 1).memberEpoch == 1)
                #expect(try client.call(join("g", "m2", names: ["t"]), version: 1).memberEpoch == 2)
            }
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try coordinator(client, "g")
                // The first member has not given anything back yet: the second waits on.
                let waiting = try client.call(beat("g", "m2", 2), version: 1)
                #expect(waiting.errorCode == 0 && waiting.memberEpoch == 2 && waiting.assignment == nil)
                let asked = try client.call(beat("g", "m1", 1), version: 1)
                #expect(asked.errorCode == 0 && asked.memberEpoch == 1)
                #expect(partitions(asked)?.values.first?.count == 1)
            }
        }
    }

    @Test func `without the consumer protocol a heartbeat says how to go on`() async throws {
        try await withBroker(["group.coordinator.rebalance.protocols": "classic"]) { broker in
            let client = try WireClient(port: broker.address.port)
            let response = try client.call(join("g", "m", names: ["t"]), version: 1)
            #expect(response.errorCode == ErrorCode.unsupportedVersion.rawValue)
            #expect(response.errorMessage?.contains("group.protocol=classic") == true)
        }
    }

    @Test func `group.version is finalized on a new cluster`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            var request = ApiVersionsRequest()
            request.clientSoftwareName = "test"
            request.clientSoftwareVersion = "1"
            let response = try client.call(request, version: 4)
            #expect(response.finalizedFeatures.first { $0.name == "group.version" }?.maxVersionLevel == 1)
            #expect(response.apiKeys.contains { $0.apiKey == 68 && $0.minVersion == 0 && $0.maxVersion == 1 })
        }
    }
}
