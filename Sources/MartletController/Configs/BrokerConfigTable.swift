package enum BrokerConfigName {
    package static let advertisedListeners = "advertised.listeners"
    package static let autoLeaderRebalance = "auto.leader.rebalance.enable"
    package static let brokerHeartbeatInterval = "broker.heartbeat.interval.ms"
    package static let brokerSessionTimeout = "broker.session.timeout.ms"
    package static let leaderImbalanceCheckInterval = "leader.imbalance.check.interval.seconds"
    package static let uncleanElectionInterval = "unclean.leader.election.interval.ms"
    package static let autoCreateTopics = "auto.create.topics.enable"
    package static let connectionsMaxIdle = "connections.max.idle.ms"
    package static let defaultReplicationFactor = "default.replication.factor"
    package static let deleteTopicEnable = "delete.topic.enable"
    package static let fetchMaxBytes = "fetch.max.bytes"
    package static let groupConsumerAssignors = "group.consumer.assignors"
    package static let groupConsumerHeartbeatInterval = "group.consumer.heartbeat.interval.ms"
    package static let groupConsumerMaxSize = "group.consumer.max.size"
    package static let groupConsumerMigrationPolicy = "group.consumer.migration.policy"
    package static let groupConsumerSessionTimeout = "group.consumer.session.timeout.ms"
    package static let groupRebalanceProtocols = "group.coordinator.rebalance.protocols"
    package static let groupInitialRebalanceDelay = "group.initial.rebalance.delay.ms"
    package static let groupMaxSessionTimeout = "group.max.session.timeout.ms"
    package static let groupMaxSize = "group.max.size"
    package static let groupMinSessionTimeout = "group.min.session.timeout.ms"
    package static let listeners = "listeners"
    package static let logCleanerBackoff = "log.cleaner.backoff.ms"
    package static let logDir = "log.dir"
    package static let logDirs = "log.dirs"
    package static let logRetentionCheckInterval = "log.retention.check.interval.ms"
    package static let maxConnections = "max.connections"
    package static let maxConnectionsPerIP = "max.connections.per.ip"
    package static let fetchSessionSlots = "max.incremental.fetch.session.cache.slots"
    package static let nodeID = "node.id"
    package static let numPartitions = "num.partitions"
    package static let offsetMetadataMaxBytes = "offset.metadata.max.bytes"
    package static let offsetsRetentionCheckInterval = "offsets.retention.check.interval.ms"
    package static let offsetsRetentionMinutes = "offsets.retention.minutes"
    package static let offsetsTopicPartitions = "offsets.topic.num.partitions"
    package static let offsetsTopicReplicationFactor = "offsets.topic.replication.factor"
    package static let offsetsTopicSegmentBytes = "offsets.topic.segment.bytes"
    package static let producerIDExpiration = "producer.id.expiration.ms"
    package static let queuedMaxRequestBytes = "queued.max.request.bytes"
    package static let rack = "broker.rack"
    package static let socketRequestMaxBytes = "socket.request.max.bytes"
    package static let transactionMaxTimeout = "transaction.max.timeout.ms"
    package static let transactionTopicPartitions = "transaction.state.log.num.partitions"
    package static let transactionTopicReplicationFactor = "transaction.state.log.replication.factor"
    package static let transactionTopicSegmentBytes = "transaction.state.log.segment.bytes"
    package static let transactionalIDExpiration = "transactional.id.expiration.ms"
}

/// Broker configurations: those a broker honours, and Kafka names that users carry in their files and that
/// are accepted here without effect, each with the reason. Names outside the table are refused.
package enum BrokerConfigTable {
    private static let hour: Int64 = 3_600_000
    private static let quorum =
        "it belongs to the replication and quorum of several brokers, which this release does not have"
    private static let threads = "the broker runs one event loop per core"
    private static let purgatory = "waiting requests cost nothing until they are answered"
    private static let cleaner = "compaction takes its memory and bandwidth from the broker's own budget"
    private static let security = "this release speaks plaintext only"
    private static let perGroup = "groups of the consumer protocol have no configurations of their own yet"
    private static let tiered = "there is no tiered storage"

    package static let table = ConfigTable(
        topicDefaults + broker + cluster + groups + ShareConfigTable.broker + transactions + accepted
    )

    /// Broker-wide defaults of topic configurations, derived from the topic table so that both agree.
    private static let topicDefaults: [ConfigDefinition] = {
        var rows: [ConfigDefinition] = []
        var seen: Set<String> = []
        for topic in TopicConfigTable.table.definitions {
            for (position, synonym) in topic.synonyms.enumerated() where seen.insert(synonym.name).inserted {
                let scaled = synonym.scale > 1
                let scaledDefault: String? =
                    scaled ? topic.defaultValue.flatMap(Int64.init).map { String($0 / synonym.scale) } : nil
                // Kafka gives only the coarsest of several synonyms a default; the finer ones override it.
                let isLast = position == topic.synonyms.count - 1
                let defaultValue: String? = isLast ? (scaledDefault ?? topic.defaultValue) : nil
                let rule: ConfigRule =
                    switch topic.rule {
                    case .atLeast(let least) where scaled: .atLeast(min(least, 1))
                    case .any, .atLeast, .between, .fraction, .oneOf, .listOf: topic.rule
                    }
                // Minutes and hours can be set only at start, as in Kafka.
                rows.append(
                    .init(
                        synonym.name, scaled ? .int : topic.type, default: defaultValue, rule,
                        support: topic.support, readOnly: scaled,
                        "Default of the topic configuration \(topic.name)"
                            + (scaled ? ", in units of \(synonym.scale) ms. " : ". ") + topic.documentation))
            }
        }
        return rows
    }()

    private static let transactions: [ConfigDefinition] = [
        .init(
            BrokerConfigName.transactionMaxTimeout, .int, default: "900000", .atLeast(1), readOnly: true,
            "Longest transaction.timeout.ms that a producer may ask for."),
        .init(
            BrokerConfigName.transactionTopicPartitions, .int, default: "50", .atLeast(1), readOnly: true,
            "Partitions of the topic of transactions; cannot be changed once it exists."),
        .init(
            BrokerConfigName.transactionTopicReplicationFactor, .short, default: "-1", .atLeast(-1), readOnly: true,
            "Replicas of the topic of transactions; -1 means 3 in a cluster of three or more brokers, else 1."),
        .init(
            BrokerConfigName.transactionTopicSegmentBytes, .int, default: "104857600", .atLeast(1), readOnly: true,
            "Segment size of the topic of transactions, which is compacted."),
        .init(
            BrokerConfigName.transactionalIDExpiration, .int, default: "604800000", .atLeast(1), readOnly: true,
            "Milliseconds without a transaction after which a transactional id is forgotten."),
    ]

    private static let broker: [ConfigDefinition] = [
        .init(
            BrokerConfigName.advertisedListeners, .list, default: nil, readOnly: true,
            "Addresses given to clients, as NAME://HOST:PORT; by default the address the client itself used."),
        .init(
            BrokerConfigName.autoCreateTopics, .boolean, default: "false", readOnly: true,
            "Create a topic when a client that asks for it by name allows that."),
        .init("broker.id", .int, default: nil, .atLeast(-1), readOnly: true, "Former name of node.id."),
        .init(
            BrokerConfigName.rack, .string, default: nil, readOnly: true, "Rack or zone this broker runs in."),
        .init(
            BrokerConfigName.connectionsMaxIdle, .long, default: "600000", readOnly: true,
            "Milliseconds without a request after which a connection is closed; negative for never."),
        .init(
            BrokerConfigName.defaultReplicationFactor, .int, default: "-1", .atLeast(-1), readOnly: true,
            "Replicas of a topic created without a number; -1 means 3 in a cluster of three or more brokers, else 1."
        ),
        .init(
            BrokerConfigName.deleteTopicEnable, .boolean, default: "true", readOnly: true,
            "Whether topics can be deleted at all."),
        .init(
            BrokerConfigName.fetchMaxBytes, .int, default: "57671680", .atLeast(1024), readOnly: true,
            "Largest answer to one fetch in bytes, above one batch."),
        .init(
            BrokerConfigName.listeners, .list, default: "PLAINTEXT://:9092", readOnly: true,
            "Addresses the broker listens on, as NAME://HOST:PORT."),
        .init(
            BrokerConfigName.logCleanerBackoff, .long, default: "15000", .atLeast(0), readOnly: true,
            "Milliseconds between two looks for partitions that need compaction."),
        .init(BrokerConfigName.logDir, .string, default: nil, readOnly: true, "Directory of the data."),
        .init(
            BrokerConfigName.logDirs, .list, default: nil, readOnly: true,
            "Directories of the data; one is supported."),
        .init(
            BrokerConfigName.logRetentionCheckInterval, .long, default: "300000", .atLeast(1), readOnly: true,
            "Milliseconds between two looks for segments that retention may remove."),
        .init(
            BrokerConfigName.maxConnections, .int, default: "2147483647", .atLeast(0), readOnly: true,
            "Open client connections beyond which new ones are closed at once."),
        .init(
            BrokerConfigName.maxConnectionsPerIP, .int, default: "2147483647", .atLeast(0),
            support: .defaultOnly("connections are limited in total, by max.connections"), readOnly: true,
            "Open connections of one client address beyond which new ones are closed at once."),
        .init(
            BrokerConfigName.fetchSessionSlots, .int, default: "1000", .atLeast(0), readOnly: true,
            "Incremental fetch sessions kept; older idle ones make room."),
        .init(
            BrokerConfigName.nodeID, .int, default: "0", .atLeast(0), readOnly: true,
            "Number of this broker in its cluster."),
        .init(
            BrokerConfigName.numPartitions, .int, default: "1", .atLeast(1), readOnly: true,
            "Partitions of a topic created without a number."),
        .init(
            BrokerConfigName.producerIDExpiration, .int, default: "86400000", .atLeast(1), readOnly: true,
            "Milliseconds after which the state of an idle idempotent producer is forgotten."),
        .init(
            BrokerConfigName.queuedMaxRequestBytes, .long, default: "-1", .atLeast(-1), readOnly: true,
            "Bytes of requests in memory beyond which connections are not read; -1 for the broker's own choice."
        ),
        .init(
            BrokerConfigName.socketRequestMaxBytes, .int, default: "104857600", .atLeast(1), readOnly: true,
            "Largest request in bytes; a connection that announces more is closed."),
    ]

    private static let groups: [ConfigDefinition] = [
        .init(
            BrokerConfigName.groupConsumerAssignors, .list, default: "uniform,range",
            .listOf(["uniform", "range"]), readOnly: true,
            "Assignors that members of consumer groups may ask for; the first is used where nobody asks."),
        .init(
            BrokerConfigName.groupConsumerHeartbeatInterval, .int, default: "5000", .atLeast(1),
            readOnly: true,
            "Milliseconds between two heartbeats of a member of a consumer group, as the broker tells it."),
        .init(
            BrokerConfigName.groupConsumerMaxSize, .int, default: "2147483647", .atLeast(1), readOnly: true,
            "Members a consumer group may have; the broker's own limit applies as well."),
        .init(
            BrokerConfigName.groupConsumerMigrationPolicy, .string, default: "bidirectional",
            .oneOf(["disabled", "upgrade", "downgrade", "bidirectional"]), readOnly: true,
            "Whether a group with members may go over from the classic to the consumer protocol, and back."),
        .init(
            BrokerConfigName.groupConsumerSessionTimeout, .int, default: "45000", .atLeast(1), readOnly: true,
            "Milliseconds without a heartbeat after which a member of a consumer group is removed."),
        .init(
            BrokerConfigName.groupRebalanceProtocols, .list, default: "classic,consumer",
            .listOf(["classic", "consumer", "share"]), readOnly: true,
            "Protocols of groups that are served; classic always is, and share groups follow the feature share.version."
        ),
        .init(
            BrokerConfigName.groupInitialRebalanceDelay, .int, default: "3000", .atLeast(0), readOnly: true,
            "Milliseconds an empty group waits for more members before its first rebalance completes."),
        .init(
            BrokerConfigName.groupMaxSessionTimeout, .int, default: "1800000", .atLeast(1), readOnly: true,
            "Longest session timeout in milliseconds a member of a group may ask for."),
        .init(
            BrokerConfigName.groupMaxSize, .int, default: "2147483647", .atLeast(1), readOnly: true,
            "Members a group may have; the broker's own limit applies as well."),
        .init(
            BrokerConfigName.groupMinSessionTimeout, .int, default: "6000", .atLeast(1), readOnly: true,
            "Shortest session timeout in milliseconds a member of a group may ask for."),
        .init(
            BrokerConfigName.offsetMetadataMaxBytes, .int, default: "4096", .atLeast(0), readOnly: true,
            "Largest text in bytes a client may store beside a committed offset."),
        .init(
            BrokerConfigName.offsetsRetentionCheckInterval, .long, default: "600000", .atLeast(1),
            readOnly: true,
            "Milliseconds between two looks for committed offsets that may be forgotten."),
        .init(
            BrokerConfigName.offsetsRetentionMinutes, .int, default: nil, .atLeast(1), readOnly: true,
            "Minutes that committed offsets outlive their group's last member; unless set, offsets are kept as long as their topic keeps its records."
        ),
        .init(
            BrokerConfigName.offsetsTopicPartitions, .int, default: "50", .atLeast(1), readOnly: true,
            "Partitions of the internal topic of committed offsets, fixed when it is created."),
        .init(
            BrokerConfigName.offsetsTopicReplicationFactor, .short, default: "-1", .atLeast(-1),
            readOnly: true,
            "Replicas of the internal topic of committed offsets; -1 means 3 in a cluster of three or more brokers, else 1."
        ),
        .init(
            BrokerConfigName.offsetsTopicSegmentBytes, .int, default: "104857600", .atLeast(1),
            readOnly: true,
            "Segment size of the internal topic of committed offsets."),
    ]

    private static let cluster: [ConfigDefinition] = [
        .init(
            BrokerConfigName.autoLeaderRebalance, .boolean, default: "true", readOnly: true,
            "Whether the controller gives leadership back to the preferred replicas of partitions from time to time."),
        .init(
            BrokerConfigName.brokerHeartbeatInterval, .int, default: "500", .atLeast(1), readOnly: true,
            "Milliseconds between two heartbeats of a broker to the controller."),
        .init(
            BrokerConfigName.brokerSessionTimeout, .int, default: "3000", .atLeast(1), readOnly: true,
            "Milliseconds without a heartbeat after which the controller takes a broker for dead."),
        .init(
            BrokerConfigName.leaderImbalanceCheckInterval, .long, default: "300", .atLeast(1), readOnly: true,
            "Seconds between two times that the controller gives leadership back to preferred replicas."),
        .init(
            BrokerConfigName.uncleanElectionInterval, .long, default: "300000", .atLeast(1), readOnly: true,
            "Milliseconds between two looks for partitions without a leader whose topic allows an unclean one."),
    ]

    static func ignored(
        _ name: String, _ type: ConfigType, _ defaultValue: String?, _ reason: String
    ) -> ConfigDefinition {
        .init(
            name, type, default: defaultValue, support: .noEffect(reason), readOnly: true,
            "Accepted for compatibility, without effect: \(reason).")
    }

    private static let accepted: [ConfigDefinition] = [
        ignored("authorizer.class.name", .string, "", security),
        ignored("background.threads", .int, "10", threads),
        ignored("connection.failed.authentication.delay.ms", .int, "100", security),
        ignored("controlled.shutdown.enable", .boolean, "true", quorum),
        ignored("controller.listener.names", .list, nil, quorum),
        ignored("controller.quorum.bootstrap.servers", .list, "", quorum),
        ignored("controller.quorum.election.timeout.ms", .int, "1000", quorum),
        ignored("controller.quorum.fetch.timeout.ms", .int, "2000", quorum),
        ignored("controller.quorum.voters", .list, "", quorum),
        ignored("controller.socket.timeout.ms", .int, "30000", quorum),
        ignored("delete.records.purgatory.purge.interval.requests", .int, "1", purgatory),
        ignored("fetch.purgatory.purge.interval.requests", .int, "1000", purgatory),
        ignored("group.consumer.max.heartbeat.interval.ms", .int, "15000", perGroup),
        ignored("group.consumer.max.session.timeout.ms", .int, "60000", perGroup),
        ignored("group.consumer.min.heartbeat.interval.ms", .int, "5000", perGroup),
        ignored("group.consumer.min.session.timeout.ms", .int, "45000", perGroup),
        ignored(
            "group.consumer.regex.refresh.interval.ms", .int, "600000",
            "patterns are matched again whenever topics have changed"),
        ignored(
            "group.coordinator.append.linger.ms", .int, "-1",
            "records of one turn of the loop are appended together"),
        ignored("group.coordinator.threads", .int, "4", threads),
        ignored("inter.broker.listener.name", .string, nil, quorum),
        ignored("listener.security.protocol.map", .string, "PLAINTEXT:PLAINTEXT", security),
        ignored("log.cleaner.dedupe.buffer.size", .long, "134217728", cleaner),
        ignored(
            "log.cleaner.enable", .boolean, "true", "compaction always runs, since internal topics need it"),
        ignored("log.cleaner.io.buffer.load.factor", .double, "0.9", cleaner),
        ignored("log.cleaner.io.buffer.size", .int, "524288", cleaner),
        ignored("log.cleaner.io.max.bytes.per.second", .double, "1.7976931348623157E308", cleaner),
        ignored("log.cleaner.threads", .int, "1", cleaner),
        ignored("log.dir.failure.timeout.ms", .long, "30000", "there is one log directory"),
        ignored(
            "log.flush.offset.checkpoint.interval.ms", .int, "60000",
            "recovery points are written as segments are flushed"),
        ignored(
            "log.flush.start.offset.checkpoint.interval.ms", .int, "60000",
            "log start offsets are written when they change"),
        ignored("log.initial.task.delay.ms", .long, "30000", "background work starts with the broker"),
        ignored("max.connection.creation.rate", .int, "2147483647", "connections are not throttled by rate"),
        ignored("max.connections.per.ip.overrides", .string, "", "one limit holds for all addresses"),
        ignored("max.request.partition.size.limit", .int, "2000", "the broker has its own bound"),
        ignored("metadata.log.dir", .string, nil, "the metadata log lives in the data directory"),
        ignored("num.io.threads", .int, "8", threads),
        ignored("num.network.threads", .int, "3", threads),
        ignored("num.recovery.threads.per.data.dir", .int, "2", threads),
        ignored("num.replica.fetchers", .int, "1", quorum),
        ignored("offsets.commit.timeout.ms", .int, "5000", "a commit is answered when it is durable"),
        ignored("offsets.load.buffer.size", .int, "5242880", "the broker has its own bound"),
        ignored("offsets.topic.compression.codec", .int, "0", "offsets are stored uncompressed"),
        ignored("process.roles", .list, "broker,controller", "every node is both"),
        ignored("producer.purgatory.purge.interval.requests", .int, "1000", purgatory),
        ignored("queued.max.requests", .int, "500", "requests are bounded by bytes"),
        ignored("remote.log.storage.system.enable", .boolean, "false", tiered),
        ignored("replica.fetch.backoff.ms", .int, "1000", quorum),
        ignored("replica.fetch.max.bytes", .int, "1048576", quorum),
        ignored("replica.fetch.min.bytes", .int, "1", quorum),
        ignored("replica.fetch.response.max.bytes", .int, "10485760", quorum),
        ignored("replica.fetch.wait.max.ms", .int, "500", quorum),
        ignored("replica.high.watermark.checkpoint.interval.ms", .long, "5000", quorum),
        ignored("replica.lag.time.max.ms", .long, "30000", quorum),
        ignored("replica.selector.class", .string, nil, quorum),
        ignored("replica.socket.receive.buffer.bytes", .int, "65536", quorum),
        ignored("replica.socket.timeout.ms", .int, "30000", quorum),
        ignored("request.timeout.ms", .int, "30000", "requests wait as long as their client says"),
        ignored("security.inter.broker.protocol", .string, "PLAINTEXT", security),
        ignored("socket.listen.backlog.size", .int, "50", "the broker takes the system's largest"),
        ignored("socket.receive.buffer.bytes", .int, "102400", "the system sizes socket buffers"),
        ignored("socket.send.buffer.bytes", .int, "102400", "the system sizes socket buffers"),
        ignored("transaction.state.log.min.isr", .int, "2", quorum),
    ]

    /// Rules between values given before start: the key that breaks one, and why.
    package static func conflict(_ value: (String) -> String?) -> (key: String, reason: String)? {
        if let conflict = ShareConfigTable.conflict(value) { return conflict }
        let (least, most) = (BrokerConfigName.groupMinSessionTimeout, BrokerConfigName.groupMaxSessionTimeout)
        func number(_ name: String) -> Int64? { (value(name) ?? table[name]?.defaultValue).flatMap(Int64.init) }
        if let low = number(least), let high = number(most), low > high {
            return (value(least) != nil ? least : most, "\(least) (\(low)) must not be above \(most) (\(high))")
        }
        return nil
    }

    /// Why a value given before start is not acceptable, or `nil`. Names the key, the value, what is allowed.
    package static func problem(name: String, value: String) -> String? {
        guard let definition = table[name] else {
            return "Unknown broker configuration '\(ConfigText.shortened(name))'"
        }
        return definition.problem(with: value)
    }
}
