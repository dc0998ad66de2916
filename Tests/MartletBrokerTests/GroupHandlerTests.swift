import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

/// Group requests over the wire, in every version the broker serves.
@Suite(.timeLimit(.minutes(2))) struct GroupHandlerTests {
    static let settings = ["group.initial.rebalance.delay.ms": "0"]

    /// The version closest to `wish` that the request has.
    private func version<Request: KafkaRequest>(_ type: Request.Type, _ wish: Int16) -> Int16 {
        min(max(wish, Request.versions.lowerBound), Request.versions.upperBound)
    }

    private func coordinator(_ client: WireClient, _ group: String) throws {
        var request = FindCoordinatorRequest()
        request.key = group
        let response = try client.call(request, version: 3)
        #expect(response.errorCode == 0 && response.nodeID == 0 && response.port > 0)
    }

    private func commit(
        _ client: WireClient, _ group: String, _ topic: String, _ offset: Int64, partition: Int32 = 0,
        id: UniversalID = .zero, member: String = "", generation: Int32 = -1, version: Int16 = 9
    ) throws -> ErrorCode {
        var part = OffsetCommitRequest.OffsetCommitRequestPartition()
        part.partitionIndex = partition
        part.committedOffset = offset
        part.committedMetadata = "note"
        var entry = OffsetCommitRequest.OffsetCommitRequestTopic()
        entry.name = topic
        entry.topicID = id
        entry.partitions = [part]
        var request = OffsetCommitRequest()
        request.groupID = group
        request.memberID = member
        request.generationIDOrMemberEpoch = generation
        request.topics = [entry]
        let response = try client.call(request, version: version)
        return ErrorCode(rawValue: response.topics[0].partitions[0].errorCode)
    }

    private func fetch(
        _ client: WireClient, _ group: String, _ topic: String, id: UniversalID = .zero, version: Int16 = 9
    ) throws -> (offset: Int64, metadata: String?, code: ErrorCode) {
        var request = OffsetFetchRequest()
        if version >= 8 {
            var entry = OffsetFetchRequest.OffsetFetchRequestTopics()
            entry.name = topic
            entry.topicID = id
            entry.partitionIndexes = [0]
            var wanted = OffsetFetchRequest.OffsetFetchRequestGroup()
            wanted.groupID = group
            wanted.topics = [entry]
            request.groups = [wanted]
            let answer = try client.call(request, version: version).groups[0]
            let partition = try #require(answer.topics.first?.partitions.first)
            return (partition.committedOffset, partition.metadata, ErrorCode(rawValue: partition.errorCode))
        }
        var entry = OffsetFetchRequest.OffsetFetchRequestTopic()
        entry.name = topic
        entry.partitionIndexes = [0]
        request.groupID = group
        request.topics = [entry]
        let answer = try client.call(request, version: version)
        let partition = try #require(answer.topics.first?.partitions.first)
        return (partition.committedOffset, partition.metadata, ErrorCode(rawValue: partition.errorCode))
    }

    @Test func `a member joins, syncs, commits and leaves in every version`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            let topicID = try client.createTopic("t")
            try coordinator(client, "g")
            for wish in Int16(0)...10 {
                let group = "g\(wish)"
                var join = JoinGroupRequest()
                join.groupID = group
                join.sessionTimeoutMs = 10_000
                join.protocolType = "consumer"
                var strategy = JoinGroupRequest.JoinGroupRequestProtocol()
                strategy.name = "range"
                strategy.metadata = ByteBuffer(bytes: [0, 0, 0, 0, 0, 1, 0, 1, 0x74, 0, 0, 0, 0])
                join.protocols = [strategy]
                let joinVersion = version(JoinGroupRequest.self, wish)
                var joined = try client.call(join, version: joinVersion)
                if joinVersion >= 4 {
                    #expect(joined.errorCode == ErrorCode.memberIDRequired.rawValue)
                    join.memberID = joined.memberID
                    joined = try client.call(join, version: joinVersion)
                }
                #expect(joined.errorCode == 0 && joined.generationID == 1 && joined.protocolName == "range")
                #expect(joined.leader == joined.memberID)

                var assignment = SyncGroupRequest.SyncGroupRequestAssignment()
                assignment.memberID = joined.memberID
                assignment.assignment = ByteBuffer(string: "mine")
                var sync = SyncGroupRequest()
                sync.groupID = group
                sync.generationID = 1
                sync.memberID = joined.memberID
                sync.assignments = [assignment]
                let synced = try client.call(sync, version: version(SyncGroupRequest.self, wish))
                #expect(synced.errorCode == 0 && synced.assignment == ByteBuffer(string: "mine"))

                var beat = HeartbeatRequest()
                beat.groupID = group
                beat.generationID = 1
                beat.memberID = joined.memberID
                #expect(try client.call(beat, version: version(HeartbeatRequest.self, wish)).errorCode == 0)

                let commitVersion = version(OffsetCommitRequest.self, wish)
                let id = commitVersion >= 10 ? topicID : .zero
                #expect(
                    try commit(
                        client, group, commitVersion >= 10 ? "" : "t", 40 + Int64(wish), id: id,
                        member: joined.memberID, generation: 1, version: commitVersion) == .none)
                let fetchVersion = version(OffsetFetchRequest.self, wish)
                let fetched = try fetch(
                    client, group, fetchVersion >= 10 ? "" : "t", id: fetchVersion >= 10 ? topicID : .zero,
                    version: fetchVersion)
                #expect(fetched == (40 + Int64(wish), "note", .none))

                var describe = DescribeGroupsRequest()
                describe.groups = [group, "nobody"]
                let describeVersion = version(DescribeGroupsRequest.self, wish)
                let described = try client.call(describe, version: describeVersion).groups
                #expect(described[0].groupState == "Stable" && described[0].members.count == 1)
                #expect(described[1].groupState == "Dead")
                #expect(
                    described[1].errorCode
                        == (describeVersion >= 6 ? ErrorCode.groupIDNotFound : ErrorCode.none).rawValue)

                let listed = try client.call(ListGroupsRequest(), version: version(ListGroupsRequest.self, wish))
                #expect(listed.groups.contains { $0.groupID == group })

                var leave = LeaveGroupRequest()
                leave.groupID = group
                let leaveVersion = version(LeaveGroupRequest.self, wish)
                if leaveVersion >= 3 {
                    var member = LeaveGroupRequest.MemberIdentity()
                    member.memberID = joined.memberID
                    leave.members = [member]
                } else {
                    leave.memberID = joined.memberID
                }
                #expect(try client.call(leave, version: leaveVersion).errorCode == 0)
                let again = try client.call(leave, version: leaveVersion)
                let code = leaveVersion >= 3 ? again.members[0].errorCode : again.errorCode
                #expect(code == ErrorCode.unknownMemberID.rawValue)

                var delete = DeleteGroupsRequest()
                delete.groupsNames = [group]
                let deleted = try client.call(delete, version: version(DeleteGroupsRequest.self, wish))
                #expect(deleted.results.map(\.errorCode) == [0])
            }
        }
    }

    @Test func `a coordinator is found in every version, and the offsets topic comes with the first question`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            #expect(try client.call(ListGroupsRequest()).groups.isEmpty)
            for version in FindCoordinatorRequest.versions {
                var request = FindCoordinatorRequest()
                if version >= 4 { request.coordinatorKeys = ["a", "b"] } else { request.key = "a" }
                let response = try client.call(request, version: version)
                if version >= 4 {
                    #expect(response.coordinators.map(\.key) == ["a", "b"])
                    #expect(response.coordinators.allSatisfy { $0.errorCode == 0 && $0.port == broker.address.port })
                } else {
                    #expect(response.errorCode == 0 && Int(response.port) == broker.address.port)
                }
            }
            var transaction = FindCoordinatorRequest()
            transaction.key = "t"
            transaction.keyType = 1
            let coordinator = try client.call(transaction, version: 3)
            #expect(coordinator.errorCode == 0 && Int(coordinator.port) == broker.address.port)
            transaction.keyType = 2
            #expect(try client.call(transaction, version: 3).errorCode == ErrorCode.invalidRequest.rawValue)
        }
    }

    @Test func `offsets outlive a restart, those of a replaced topic do not`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("kept")
                try client.createTopic("replaced")
                try coordinator(client, "g")
                #expect(try commit(client, "g", "kept", 11) == .none)
                #expect(try commit(client, "g", "replaced", 22) == .none)
            }
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                // Before the coordinator of the group is loaded.
                var delete = DeleteTopicsRequest()
                delete.topicNames = ["replaced"]
                delete.timeoutMs = 1_000
                #expect(try client.call(delete, version: 5).responses.map(\.errorCode) == [0])
                try client.createTopic("replaced")
                #expect(try fetch(client, "g", "kept").offset == 11)
                #expect(try fetch(client, "g", "replaced").offset == -1)
                // And while it is.
                #expect(try commit(client, "g", "replaced", 33) == .none)
                _ = try client.call(delete, version: 5)
                try client.createTopic("replaced")
                #expect(try fetch(client, "g", "replaced").offset == -1)
            }
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                #expect(try fetch(client, "g", "kept").offset == 11)
                #expect(try fetch(client, "g", "replaced").offset == -1)
            }
        }
    }

    @Test func `what does not exist is refused beside what does`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", partitions: 2)
            try coordinator(client, "g")
            var request = OffsetCommitRequest()
            request.groupID = "g"
            request.topics = [("none", [0]), ("t", [5, 1, 0]), ("t", [7])].map { name, indexes in
                var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
                topic.name = name
                topic.partitions = indexes.map {
                    var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
                    partition.partitionIndex = Int32($0)
                    partition.committedOffset = 1
                    return partition
                }
                return topic
            }
            let response = try client.call(request, version: 9)
            #expect(response.topics.map { $0.partitions.map(\.errorCode) } == [[3], [3, 0, 0], [3]])
            #expect(response.topics.map { $0.partitions.map(\.partitionIndex) } == [[0], [5, 1, 0], [7]])
            #expect(
                try commit(client, "g", "", 1, id: UniversalID(high: 1, low: 1), version: 10) == .unknownTopicID)
            #expect(
                try fetch(client, "g", "", id: UniversalID(high: 1, low: 1), version: 10).code == .unknownTopicID)
        }
    }
}

/// Topics and configurations over the wire, in every version.
@Suite(.timeLimit(.minutes(2))) struct TopicHandlerTests {
    @Test func `topics are created, grown, described and deleted in every version`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            for wish in Int16(0)...7 {
                func version<Request: KafkaRequest>(_ type: Request.Type) -> Int16 {
                    min(max(wish, Request.versions.lowerBound), Request.versions.upperBound)
                }
                let name = "topic-\(wish)"
                var topic = CreateTopicsRequest.CreatableTopic()
                topic.name = name
                topic.numPartitions = 1
                topic.replicationFactor = 1
                var create = CreateTopicsRequest()
                create.topics = [topic]
                let created = try client.call(create, version: version(CreateTopicsRequest.self))
                #expect(created.topics.map(\.errorCode) == [0])

                var growth = CreatePartitionsRequest.CreatePartitionsTopic()
                growth.name = name
                growth.count = 3
                growth.assignments = nil
                var grow = CreatePartitionsRequest()
                grow.topics = [growth]
                grow.timeoutMs = 1_000
                #expect(try client.call(grow, version: version(CreatePartitionsRequest.self)).results.map(\.errorCode) == [0])

                var config = IncrementalAlterConfigsRequest.AlterableConfig()
                config.name = "retention.ms"
                config.value = "77"
                var resource = IncrementalAlterConfigsRequest.AlterConfigsResource()
                resource.resourceType = 2
                resource.resourceName = name
                resource.configs = [config]
                var alter = IncrementalAlterConfigsRequest()
                alter.resources = [resource]
                #expect(
                    try client.call(alter, version: version(IncrementalAlterConfigsRequest.self)).responses.map(\.errorCode)
                        == [0])

                var wanted = DescribeConfigsRequest.DescribeConfigsResource()
                wanted.resourceType = 2
                wanted.resourceName = name
                wanted.configurationKeys = ["retention.ms"]
                var describe = DescribeConfigsRequest()
                describe.resources = [wanted]
                describe.includeSynonyms = true
                let described = try client.call(describe, version: version(DescribeConfigsRequest.self))
                #expect(described.results[0].configs.map(\.value) == ["77"])

                var legacy = AlterConfigsRequest.AlterConfigsResource()
                legacy.resourceType = 2
                legacy.resourceName = name
                var replace = AlterConfigsRequest()
                replace.resources = [legacy]
                #expect(try client.call(replace, version: version(AlterConfigsRequest.self)).responses.map(\.errorCode) == [0])

                var delete = DeleteTopicsRequest()
                delete.timeoutMs = 1_000
                let deleteVersion = version(DeleteTopicsRequest.self)
                if deleteVersion >= 6 {
                    var state = DeleteTopicsRequest.DeleteTopicState()
                    state.topicID = created.topics[0].topicID
                    state.name = deleteVersion >= 7 ? nil : name
                    if state.name != nil { state.topicID = .zero }
                    delete.topics = [state]
                } else {
                    delete.topicNames = [name, "none"]
                }
                let deleted = try client.call(delete, version: deleteVersion)
                #expect(deleted.responses[0].errorCode == 0)
                #expect(deleted.responses[0].name == name)
            }
        }
    }

    @Test func `what has configurations is listed`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            #expect(try client.call(ListConfigResourcesRequest(), version: 0).configResources.isEmpty)
            let all = try client.call(ListConfigResourcesRequest(), version: 1).configResources
            #expect(all.map { "\($0.resourceType) \($0.resourceName)" } == ["2 t", "4 0"])
        }
    }
}
