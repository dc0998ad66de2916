import MartletController
import MartletKafkaProtocol
import MartletLogModel
import Testing

@Suite struct `Creating topics` {
    @Test func `a created topic is in the image with its partitions and effective configuration`() throws {
        let harness = try ControllerHarness()
        let result = try harness.create("orders", partitions: 3, configs: [("retention.ms", " 1000 ")])
        #expect(result.errorCode.code == .none)
        #expect(result.numPartitions == 3)
        #expect(result.replicationFactor == 1)
        #expect(result.configs?.first { $0.name == "retention.ms" }?.value == "1000")
        let topic = try #require(harness.image.topic(named: "orders"))
        #expect(topic.id == result.topicID)
        #expect(harness.image.topic(id: topic.id)?.name == "orders")
        #expect(topic.partitions.count == 3)
        #expect(topic.partitions[2].leader == BrokerID(0))
        #expect(topic.partitions[2].isr == [BrokerID(0)])
        #expect(topic.partitions[2].directories == [UniversalID(high: 7, low: 0)])
        #expect(topic.configuration.retentionMilliseconds == 1000)
        #expect(harness.delta.createdTopics.map(\.name) == ["orders"])
        #expect(harness.delta.changedTopics.isEmpty)
    }

    @Test func `minus one takes the broker's defaults`() throws {
        let harness = try ControllerHarness(staticConfiguration: ["num.partitions": "7"])
        let result = try harness.create("t", partitions: -1, replicas: -1)
        #expect(result.numPartitions == 7)
        #expect(result.replicationFactor == 1)
    }

    @Test func `three brokers give new topics three replicas, each broker its share of leaders`() throws {
        let harness = try ControllerHarness(brokers: 3)
        try harness.create("t", partitions: 6, replicas: -1)
        let topic = try #require(harness.image.topic(named: "t"))
        #expect(topic.partitions.allSatisfy { Set($0.replicas).count == 3 })
        for broker in 0..<3 {
            #expect(topic.partitions.filter { $0.leader == BrokerID(Int32(broker)) }.count == 2)
        }
    }

    @Test func `validate only answers as if and changes nothing`() throws {
        let harness = try ControllerHarness()
        let before = harness.log.count
        let result = try harness.create("t", partitions: 2, validateOnly: true)
        #expect(result.errorCode.code == .none)
        #expect(result.numPartitions == 2)
        #expect(result.topicID == .zero)
        #expect(harness.log.count == before)
        #expect(harness.image.topic(named: "t") == nil)
    }

    @Test(arguments: [
        ("a/b", Int32(1), Int16(1), ErrorCode.invalidTopicException),
        ("..", 1, 1, .invalidTopicException),
        (String(repeating: "x", count: 250), 1, 1, .invalidTopicException),
        ("t", 0, 1, .invalidPartitions),
        ("t", -2, 1, .invalidPartitions),
        ("t", 200_000, 1, .invalidPartitions),
        ("t", 1, 0, .invalidReplicationFactor),
        ("t", 1, 2, .invalidReplicationFactor),
        ("t", 1, -3, .invalidReplicationFactor),
        ("__cluster_metadata", 1, 1, .invalidRequest),
        ("__consumer_offsets", 1, 1, .invalidRequest),
    ])
    func `what cannot be is refused with code and message`(
        name: String, partitions: Int32, replicas: Int16, code: ErrorCode
    ) throws {
        let harness = try ControllerHarness()
        let result = try harness.create(name, partitions: partitions, replicas: replicas)
        #expect(result.errorCode.code == code)
        #expect(result.errorMessage?.isEmpty == false)
        #expect(harness.image.topicCount == 0)
    }

    @Test func `the broker itself may create the offsets topic, with its configured partitions`() throws {
        let harness = try ControllerHarness(staticConfiguration: ["offsets.topic.num.partitions": "4"])
        let result = try harness.create("__consumer_offsets", partitions: -1, replicas: -1, origin: .broker)
        #expect(result.errorCode.code == .none)
        #expect(result.numPartitions == 4)
    }

    @Test func `existing, colliding and repeated names are refused, the rest of the request goes through`()
        throws
    {
        let harness = try ControllerHarness()
        try harness.create("a.b")
        var request = CreateTopicsRequest()
        request.topics = ["a.b", "a_b", "twice", "twice", "c.d", "c_d", "fine"].map {
            ControllerHarness.topic($0)
        }
        let response = try harness.create(request)
        let codes = Dictionary(uniqueKeysWithValues: response.topics.map { ($0.name, $0.errorCode.code) })
        #expect(
            codes == [
                "a.b": .topicAlreadyExists, "a_b": .invalidTopicException, "twice": .invalidRequest,
                "c.d": .none, "c_d": .invalidTopicException, "fine": .none,
            ])
        #expect(response.topics.count == 6)
        // Once the first is gone its twin may come.
        try harness.delete([("a.b", .zero)])
        #expect(try harness.create("a_b").errorCode.code == .none)
    }

    @Test func `bad configurations are refused with the key, the value and what is allowed`() throws {
        let harness = try ControllerHarness()
        let cases: [(String, String?)] = [
            ("retention.ms", "soon"), ("retention.ms", "-2"), ("cleanup.policy", "delete,burn"),
            ("no.such.config", "1"), ("remote.storage.enable", "true"), ("compression.type", "rar"),
            ("retention.ms", nil), ("message.format.version", "3.0"), ("min.cleanable.dirty.ratio", "1.5"),
            ("martlet.durability", "maybe"), ("max.compaction.lag.ms", "1000"),
            ("unclean.leader.election.enable", "perhaps"),
        ]
        for (name, value) in cases {
            let result = try harness.create("t", configs: [(name, value)])
            #expect(result.errorCode.code == .invalidConfig, "\(name)=\(value ?? "null")")
            #expect(result.errorMessage?.contains(name) == true)
        }
    }

    @Test func `a flush interval is refused where durability is relaxed`() throws {
        let harness = try ControllerHarness()
        #expect(try harness.create("a", configs: [("flush.messages", "1")]).errorCode.code == .none)
        let result = try harness.create(
            "b", configs: [("flush.messages", "1"), ("martlet.durability", "relaxed")])
        #expect(result.errorCode.code == .invalidConfig)
        #expect(result.errorMessage?.contains("martlet.durability") == true)
    }

    @Test func `manual assignments are taken as they are, or refused with 39`() throws {
        let harness = try ControllerHarness(brokers: 3)
        func attempt(_ assignments: [(Int32, [Int32])], partitions: Int32 = -1) throws -> ErrorCode {
            var request = CreateTopicsRequest()
            request.topics = [
                ControllerHarness.topic("m", partitions: partitions, replicas: -1, assignments: assignments)
            ]
            request.validateOnly = true
            return try harness.create(request).topics[0].errorCode.code
        }
        #expect(try attempt([(1, [2, 0]), (0, [1, 2])]) == .none)
        #expect(try attempt([(0, [1]), (2, [1])]) == .invalidReplicaAssignment)
        #expect(try attempt([(0, [1]), (0, [1])]) == .invalidReplicaAssignment)
        #expect(try attempt([(0, [1, 1])]) == .invalidReplicaAssignment)
        #expect(try attempt([(0, [9])]) == .invalidReplicaAssignment)
        #expect(try attempt([(0, [])]) == .invalidReplicaAssignment)
        #expect(try attempt([(0, [1]), (1, [1, 2])]) == .invalidReplicaAssignment)
        #expect(try attempt([(0, [1])], partitions: 1) == .invalidRequest)
    }

    @Test(.timeLimit(.minutes(5)))
    func `twenty thousand partitions cost what they are, not their square`() throws {
        let harness = try ControllerHarness()
        let result = try harness.create("big", partitions: 20_000)
        #expect(result.errorCode.code == .none)
        #expect(harness.image.partitionCount == 20_000)
        #expect(harness.image.topic(named: "big")?.partitions.count == 20_000)
    }

    @Test(.timeLimit(.minutes(5)))
    func `two thousand topics one by one do not copy each other`() throws {
        let harness = try ControllerHarness()
        for index in 0..<2_000 { try harness.create("topic-\(index)") }
        #expect(harness.image.topicCount == 2_000)
        #expect(harness.image.sortedTopics().map(\.name) == (0..<2_000).map { "topic-\($0)" }.sorted())
    }
}

@Suite struct `Deleting and growing topics` {
    @Test func `topics go by name and by id, with their configurations`() throws {
        let harness = try ControllerHarness()
        let id = try harness.create("a", configs: [("retention.ms", "5")]).topicID
        try harness.create("b")
        let results = try harness.delete([
            (nil, id), ("b", .zero), ("c", .zero), (nil, UniversalID(high: 1, low: 1)),
        ])
        #expect(results.map(\.errorCode.code) == [.none, .none, .unknownTopicOrPartition, .unknownTopicID])
        #expect(results[0].name == "a")
        #expect(harness.image.topicCount == 0)
        #expect(harness.image.partitionCount == 0)
        #expect(harness.delta.deletedTopics.map(\.name) == ["a", "b"])
        try harness.create("a")
        #expect(harness.image.topic(named: "a")?.configuration.retentionMilliseconds == 604_800_000)
        #expect(harness.image.topic(named: "a")?.id != id)
    }

    @Test func `one topic named twice, by name and by id, is refused once and stays`() throws {
        let harness = try ControllerHarness()
        let id = try harness.create("a").topicID
        let results = try harness.delete([("a", .zero), (nil, id)])
        #expect(results.map(\.errorCode.code) == [.invalidRequest])
        #expect(harness.image.topic(named: "a") != nil)
    }

    @Test func `deletion can be switched off, and internal topics stay`() throws {
        let harness = try ControllerHarness(staticConfiguration: ["delete.topic.enable": "false"])
        try harness.create("a")
        #expect(try harness.delete([("a", .zero)])[0].errorCode.code == .topicDeletionDisabled)
        let other = try ControllerHarness()
        try other.create("__consumer_offsets", partitions: -1, replicas: -1, origin: .broker)
        #expect(try other.delete([("__consumer_offsets", .zero)])[0].errorCode.code == .invalidRequest)
        #expect(try other.grow([("__consumer_offsets", 60)])[0].errorCode.code == .invalidRequest)
    }

    @Test func `partitions are added at the end, one result per topic in order`() throws {
        let harness = try ControllerHarness()
        try harness.create("a", partitions: 2)
        try harness.create("b", partitions: 2)
        let results = try harness.grow([("a", 5), ("b", 2), ("c", 3), ("b2", 1)])
        #expect(results.map(\.name) == ["a", "b", "c", "b2"])
        #expect(
            results.map(\.errorCode.code) == [
                .none, .invalidPartitions, .unknownTopicOrPartition, .unknownTopicOrPartition,
            ])
        #expect(harness.image.topic(named: "a")?.partitions.count == 5)
        #expect(harness.delta.changedTopics.map(\.name) == ["a"])
        #expect(try harness.grow([("a", 4)])[0].errorCode.code == .invalidPartitions)
        #expect(try harness.grow([("a", 9)], validateOnly: true)[0].errorCode.code == .none)
        #expect(harness.image.topic(named: "a")?.partitions.count == 5)
        #expect(try harness.grow([("a", 6), ("a", 7)]).map(\.errorCode.code) == [.invalidRequest])
    }
}
