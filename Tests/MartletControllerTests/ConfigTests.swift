import MartletController
import MartletKafkaProtocol
import MartletLogModel
import Testing

@Suite struct `Configuration tables` {
    /// Topic configurations of Kafka 4.3, from its documentation.
    static let kafkaTopicConfigs = [
        "cleanup.policy", "compression.gzip.level", "compression.lz4.level", "compression.type",
        "compression.zstd.level", "delete.retention.ms", "file.delete.delay.ms", "flush.messages", "flush.ms",
        "follower.replication.throttled.replicas", "index.interval.bytes",
        "leader.replication.throttled.replicas",
        "local.retention.bytes", "local.retention.ms", "max.compaction.lag.ms", "max.message.bytes",
        "message.timestamp.after.max.ms", "message.timestamp.before.max.ms", "message.timestamp.type",
        "min.cleanable.dirty.ratio", "min.compaction.lag.ms", "min.insync.replicas", "preallocate",
        "remote.log.copy.disable", "remote.log.delete.on.disable", "remote.storage.enable", "retention.bytes",
        "retention.ms", "segment.bytes", "segment.index.bytes", "segment.jitter.ms", "segment.ms",
        "unclean.leader.election.enable",
    ]

    @Test(arguments: kafkaTopicConfigs)
    func `every Kafka topic configuration is known, and its default is legal`(name: String) throws {
        let definition = try #require(TopicConfigTable.table[name])
        let value = try #require(definition.defaultValue)
        #expect(definition.problem(with: value) == nil)
        #expect(definition.documentation.count > 20)
    }

    @Test func `defaults of all tables pass their own rules`() {
        for definition in TopicConfigTable.table.definitions + BrokerConfigTable.table.definitions {
            guard let value = definition.defaultValue else { continue }
            #expect(definition.problem(with: value) == nil, "\(definition.name)")
        }
    }

    @Test func `every broker synonym of a topic configuration is a broker configuration`() {
        for definition in TopicConfigTable.table.definitions {
            for synonym in definition.synonyms { #expect(BrokerConfigTable.table[synonym.name] != nil) }
        }
    }

    @Test func `what is not honoured says why`() {
        for definition in TopicConfigTable.table.definitions + BrokerConfigTable.table.definitions {
            switch definition.support {
            case .honoured: break
            case .noEffect(let reason), .defaultOnly(let reason):
                #expect(reason.count > 15, "\(definition.name)")
            }
        }
    }

    @Test func `problems before start name key and value`() throws {
        #expect(BrokerConfigTable.problem(name: "num.partitions", value: "3") == nil)
        let bad = try #require(BrokerConfigTable.problem(name: "num.partitions", value: "many"))
        #expect(bad.contains("num.partitions") && bad.contains("many"))
        #expect(
            BrokerConfigTable.problem(name: "num.partitons", value: "3")?.contains("num.partitons") == true)
    }

    @Test func `typed values follow topic over broker over cluster over file over default`() throws {
        let harness = try ControllerHarness(staticConfiguration: [
            "log.retention.hours": "2", "log.segment.bytes": "2097152",
        ])
        try harness.create("t")
        func retention() throws -> Int64? {
            try #require(harness.image.topic(named: "t")).configuration.retentionMilliseconds
        }
        #expect(try retention() == 7_200_000)
        #expect(harness.image.topic(named: "t")?.configuration.segmentBytes == 2_097_152)
        try harness.change(4, "", [("log.retention.ms", .set, "300")])
        #expect(try retention() == 300)
        #expect(harness.delta.brokerConfigurationChanged)
        #expect(harness.delta.reconfiguredTopics.map(\.name) == ["t"])
        try harness.change(4, "0", [("log.retention.ms", .set, "200")])
        #expect(try retention() == 200)
        try harness.change(2, "t", [("retention.ms", .set, "-1")])
        #expect(try retention() == nil)
        try harness.change(2, "t", [("retention.ms", .delete, nil)])
        try harness.change(4, "0", [("log.retention.ms", .delete, nil)])
        try harness.change(4, "", [("log.retention.ms", .delete, nil)])
        #expect(try retention() == 7_200_000)
    }

    @Test func `an internal segment size wins, for tests`() throws {
        let harness = try ControllerHarness()
        try harness.create("t", configs: [("internal.segment.bytes", "4096")])
        #expect(harness.image.topic(named: "t")?.configuration.segmentBytes == 4096)
    }
}

@Suite struct `Altering configurations` {
    @Test func `set, append, subtract and delete do what they say`() throws {
        let harness = try ControllerHarness()
        try harness.create("t")
        func policy() -> CleanupPolicy? { harness.image.topic(named: "t")?.configuration.cleanupPolicy }
        #expect(try harness.change(2, "t", [("cleanup.policy", .append, "compact")]).errorCode.code == .none)
        #expect(policy() == [.delete, .compact])
        #expect(harness.image.topic(named: "t")?.overrides["cleanup.policy"] == "delete,compact")
        try harness.change(2, "t", [("cleanup.policy", .subtract, "delete")])
        #expect(policy() == [.compact])
        try harness.change(2, "t", [("cleanup.policy", .delete, nil)])
        #expect(policy() == [.delete])
        #expect(try harness.change(2, "t", [("retention.ms", .append, "1")]).errorCode.code == .invalidConfig)
        #expect(try harness.change(2, "t", [("nope", .set, "1")]).errorCode.code == .invalidConfig)
        #expect(try harness.change(2, "t", [("retention.ms", .set, nil)]).errorCode.code == .invalidConfig)
        let repeated = try harness.change(2, "t", [("retention.ms", .set, "1"), ("retention.ms", .set, "2")])
        #expect(repeated.errorCode.code == .invalidRequest)
    }

    @Test func `one bad value leaves the whole resource as it was`() throws {
        let harness = try ControllerHarness()
        try harness.create("t")
        let before = harness.log.count
        let result = try harness.change(2, "t", [("retention.ms", .set, "10"), ("segment.bytes", .set, "x")])
        #expect(result.errorCode.code == .invalidConfig)
        #expect(harness.log.count == before)
    }

    @Test func `the legacy form replaces all values`() throws {
        let harness = try ControllerHarness()
        try harness.create("t", configs: [("retention.ms", "10"), ("segment.ms", "20")])
        try harness.replace(2, "t", [("retention.ms", "30")])
        #expect(harness.image.topic(named: "t")?.overrides == ["retention.ms": "30"])
    }

    @Test func `setting what is set already writes nothing`() throws {
        let harness = try ControllerHarness()
        try harness.create("t", configs: [("retention.ms", "10")])
        let before = harness.log.count
        try harness.change(2, "t", [("retention.ms", .set, "10")])
        #expect(harness.log.count == before)
    }

    @Test func `unknown topics, foreign brokers and other resources are refused`() throws {
        let harness = try ControllerHarness()
        #expect(try harness.change(2, "t", []).errorCode.code == .unknownTopicOrPartition)
        #expect(try harness.change(4, "5", []).errorCode.code == .invalidRequest)
        #expect(try harness.change(4, "x", []).errorCode.code == .invalidRequest)
        #expect(try harness.change(8, "0", []).errorCode.code == .invalidRequest)
        #expect(try harness.change(32, "", []).errorCode.code == .invalidRequest)
        #expect(try harness.change(99, "g", []).errorCode.code == .invalidRequest)
        let readOnly = try harness.change(4, "0", [("num.partitions", .set, "3")])
        #expect(readOnly.errorCode.code == .invalidRequest)
        #expect(readOnly.errorMessage?.contains("num.partitions") == true)
    }
}

@Suite struct `Describing configurations` {
    @Test func `a topic shows every configuration with source, type and chain`() throws {
        let harness = try ControllerHarness(staticConfiguration: ["log.retention.hours": "1"])
        try harness.create("t", configs: [("retention.ms", "10")])
        let result = harness.describe(2, "t", synonyms: true, documentation: true)
        #expect(result.errorCode.code == .none)
        #expect(Set(ConfigTests.kafkaTopicConfigs).isSubset(of: Set(result.configs.map(\.name))))
        #expect(result.configs.map(\.name) == result.configs.map(\.name).sorted())
        let retention = try #require(result.configs.first { $0.name == "retention.ms" })
        #expect(retention.value == "10")
        #expect(retention.configSource == ConfigSource.topic.rawValue)
        #expect(retention.configType == ConfigType.long.rawValue)
        #expect(retention.documentation?.isEmpty == false)
        #expect(
            retention.synonyms.map(\.name) == ["retention.ms", "log.retention.hours", "log.retention.ms"])
        #expect(retention.synonyms.map(\.value) == ["10", "3600000", "604800000"])
        #expect(retention.synonyms.map(\.source) == [1, 4, 5])
        let segment = try #require(result.configs.first { $0.name == "segment.bytes" })
        #expect(segment.configSource == ConfigSource.default.rawValue)
        #expect(segment.value == "1073741824")
    }

    @Test func `keys narrow the answer, synonyms and documentation come on demand`() throws {
        let harness = try ControllerHarness()
        try harness.create("t")
        let result = harness.describe(2, "t", keys: ["retention.ms", "unheard.of"])
        #expect(result.configs.map(\.name) == ["retention.ms"])
        #expect(result.configs[0].synonyms.isEmpty)
        #expect(result.configs[0].documentation == nil)
    }

    @Test func `a broker shows its own values, the cluster default only what is set there`() throws {
        let harness = try ControllerHarness(staticConfiguration: ["num.partitions": "4"])
        try harness.change(4, "", [("message.max.bytes", .set, "2000000")])
        let broker = harness.describe(4, "0")
        let partitions = try #require(broker.configs.first { $0.name == "num.partitions" })
        #expect(partitions.value == "4")
        #expect(partitions.configSource == ConfigSource.staticBroker.rawValue)
        #expect(partitions.readOnly)
        let size = try #require(broker.configs.first { $0.name == "message.max.bytes" })
        #expect(size.configSource == ConfigSource.dynamicClusterDefault.rawValue)
        #expect(!size.readOnly)
        #expect(harness.describe(4, "").configs.map(\.name) == ["message.max.bytes"])
        #expect(harness.describe(4, "1").errorCode.code == .invalidRequest)
        #expect(harness.describe(2, "none").errorCode.code == .unknownTopicOrPartition)
    }
}

private typealias ConfigTests = `Configuration tables`
