import HashTreeCollections
package import MartletLogModel

/// Names of the broker configurations of share groups (KIP-932).
package enum ShareConfigName {
    package static let heartbeatInterval = "group.share.heartbeat.interval.ms"
    package static let minHeartbeatInterval = "group.share.min.heartbeat.interval.ms"
    package static let maxHeartbeatInterval = "group.share.max.heartbeat.interval.ms"
    package static let sessionTimeout = "group.share.session.timeout.ms"
    package static let minSessionTimeout = "group.share.min.session.timeout.ms"
    package static let maxSessionTimeout = "group.share.max.session.timeout.ms"
    package static let lockDuration = "group.share.record.lock.duration.ms"
    package static let minLockDuration = "group.share.min.record.lock.duration.ms"
    package static let maxLockDuration = "group.share.max.record.lock.duration.ms"
    package static let deliveryCountLimit = "group.share.delivery.count.limit"
    package static let minDeliveryCountLimit = "group.share.min.delivery.count.limit"
    package static let maxDeliveryCountLimit = "group.share.max.delivery.count.limit"
    package static let recordLocks = "group.share.partition.max.record.locks"
    package static let minRecordLocks = "group.share.min.partition.max.record.locks"
    package static let maxRecordLocks = "group.share.max.partition.max.record.locks"
    package static let maxSize = "group.share.max.size"
    package static let maxSessions = "group.share.max.share.sessions"
    package static let topicPartitions = "share.coordinator.state.topic.num.partitions"
    package static let topicReplicationFactor = "share.coordinator.state.topic.replication.factor"
    package static let topicSegmentBytes = "share.coordinator.state.topic.segment.bytes"
}

/// Broker configurations of share groups: values for all groups, and between what a single group may choose.
package enum ShareConfigTable {
    private static func number(
        _ name: String, _ defaultValue: Int64, _ rule: ConfigRule, _ documentation: String
    ) -> ConfigDefinition {
        .init(name, .int, default: String(defaultValue), rule, readOnly: true, documentation)
    }

    static let broker: [ConfigDefinition] = [
        .init(
            "group.share.assignors", .list, default: "simple", .listOf(["simple"]), readOnly: true,
            "The assignor of share groups; there is one."),
        number(
            ShareConfigName.heartbeatInterval, 5_000, .atLeast(1),
            "Milliseconds between two heartbeats of a member of a share group, as the broker tells it."),
        number(
            ShareConfigName.minHeartbeatInterval, 5_000, .atLeast(1),
            "Smallest heartbeat interval that a single share group may choose."),
        number(
            ShareConfigName.maxHeartbeatInterval, 15_000, .atLeast(1),
            "Largest heartbeat interval that a single share group may choose."),
        number(
            ShareConfigName.sessionTimeout, 45_000, .atLeast(1),
            "Milliseconds without a heartbeat after which a member of a share group is removed."),
        number(
            ShareConfigName.minSessionTimeout, 45_000, .atLeast(1),
            "Smallest session timeout that a single share group may choose."),
        number(
            ShareConfigName.maxSessionTimeout, 60_000, .atLeast(1),
            "Largest session timeout that a single share group may choose."),
        number(
            ShareConfigName.lockDuration, 30_000, .between(1_000, 3_600_000),
            "Milliseconds for which a member holds a record that it has got; then it is delivered again."),
        number(
            ShareConfigName.minLockDuration, 15_000, .between(1_000, 30_000),
            "Shortest lock that a single share group may choose."),
        number(
            ShareConfigName.maxLockDuration, 60_000, .between(30_000, 3_600_000),
            "Longest lock that a single share group may choose."),
        number(
            ShareConfigName.deliveryCountLimit, 5, .between(2, 10),
            "How often a record is delivered before the share group gives it up."),
        number(
            ShareConfigName.minDeliveryCountLimit, 2, .between(2, 5),
            "Smallest number of deliveries that a single share group may choose."),
        number(
            ShareConfigName.maxDeliveryCountLimit, 10, .between(5, 25),
            "Largest number of deliveries that a single share group may choose."),
        number(
            ShareConfigName.recordLocks, 2_000, .between(100, 10_000),
            "Records of a partition that may be in flight in one share group."),
        number(
            ShareConfigName.minRecordLocks, 100, .between(100, 2_000),
            "Smallest number of records in flight that a single share group may choose."),
        number(
            ShareConfigName.maxRecordLocks, 4_000, .between(2_000, 10_000),
            "Largest number of records in flight that a single share group may choose."),
        number(ShareConfigName.maxSize, 200, .between(1, 1_000), "Members a share group may have."),
        number(
            ShareConfigName.maxSessions, 2_000, .atLeast(1),
            "Share sessions of this broker; a member that asks for one more is told to come again."),
        number(
            ShareConfigName.topicPartitions, 50, .atLeast(1),
            "Partitions of the internal topic of share groups' state, fixed when it is created."),
        .init(
            ShareConfigName.topicReplicationFactor, .short, default: "-1", .atLeast(-1), readOnly: true,
            "Replicas of the internal topic of share groups' state; -1 means 3 in a cluster of three or more brokers, else 1."
        ),
        number(
            ShareConfigName.topicSegmentBytes, 104_857_600, .atLeast(1),
            "Segment size of the internal topic of share groups' state."),
        BrokerConfigTable.ignored(
            "group.share.initialize.retry.interval.ms", .int, "30000",
            "what could not be initialized is tried again with the next heartbeat"),
        BrokerConfigTable.ignored(
            "share.coordinator.append.linger.ms", .int, "-1",
            "records of one turn of the loop are appended together"),
        BrokerConfigTable.ignored(
            "share.coordinator.load.buffer.size", .int, "5242880", "the broker has its own bound"),
        BrokerConfigTable.ignored(
            "share.coordinator.snapshot.update.records.per.snapshot", .int, "500",
            "the broker writes a snapshot after 500 changes"),
        BrokerConfigTable.ignored(
            "share.coordinator.state.topic.compression.codec", .int, "0", "state is stored uncompressed"),
        BrokerConfigTable.ignored(
            "share.coordinator.state.topic.min.isr", .int, "2",
            "replication decides it like that of other topics"),
        BrokerConfigTable.ignored(
            "share.coordinator.threads", .int, "1", "the broker runs one event loop per core"),
        BrokerConfigTable.ignored(
            "share.coordinator.write.timeout.ms", .int, "5000", "a write is answered when it is durable"),
        BrokerConfigTable.ignored(
            "share.fetch.purgatory.purge.interval.requests", .int, "1000",
            "waiting requests cost nothing until they are answered"),
    ]
}

extension ShareConfigTable {
    /// Triples of least, usual and most.
    private static let ordered: [(least: String, usual: String, most: String)] = [
        (ShareConfigName.minHeartbeatInterval, ShareConfigName.heartbeatInterval, ShareConfigName.maxHeartbeatInterval),
        (ShareConfigName.minSessionTimeout, ShareConfigName.sessionTimeout, ShareConfigName.maxSessionTimeout),
        (ShareConfigName.minLockDuration, ShareConfigName.lockDuration, ShareConfigName.maxLockDuration),
        (
            ShareConfigName.minDeliveryCountLimit, ShareConfigName.deliveryCountLimit,
            ShareConfigName.maxDeliveryCountLimit
        ),
        (ShareConfigName.minRecordLocks, ShareConfigName.recordLocks, ShareConfigName.maxRecordLocks),
    ]

    /// Rules between broker configurations given before start: what all groups have lies between what a single one may
    /// choose. `value` yields what was given; the rest has its default.
    static func conflict(_ value: (String) -> String?) -> (key: String, reason: String)? {
        func number(_ name: String) -> Int64? {
            (value(name) ?? BrokerConfigTable.table[name]?.defaultValue).flatMap(Int64.init)
        }
        for rule in ordered {
            for (lesser, greater) in [(rule.least, rule.usual), (rule.usual, rule.most)] {
                guard let low = number(lesser), let high = number(greater), low > high else { continue }
                // Named is the one that was given.
                let key = value(lesser) != nil ? lesser : greater
                return (key, "\(lesser) (\(low)) must not be above \(greater) (\(high))")
            }
        }
        return nil
    }
}

/// Effective values of ``ShareConfigTable``.
package struct ShareBrokerConfiguration: Sendable, Equatable {
    package var maxSize: Int
    package var maxSessions: Int
    package var heartbeatIntervals: ClosedRange<Int64>
    package var sessionTimeouts: ClosedRange<Int64>
    package var lockDurations: ClosedRange<Int64>
    package var deliveryCountLimits: ClosedRange<Int64>
    package var recordLocks: ClosedRange<Int64>
    package var topicPartitionCount: Int32
    package var topicReplicationFactor: Int16?
    package var topicSegmentBytes: Int

    init(_ number: (String) -> Int64) {
        func range(_ least: String, _ most: String) -> ClosedRange<Int64> {
            number(least)...max(number(least), number(most))
        }
        maxSize = Int(number(ShareConfigName.maxSize))
        maxSessions = Int(number(ShareConfigName.maxSessions))
        heartbeatIntervals = range(ShareConfigName.minHeartbeatInterval, ShareConfigName.maxHeartbeatInterval)
        sessionTimeouts = range(ShareConfigName.minSessionTimeout, ShareConfigName.maxSessionTimeout)
        lockDurations = range(ShareConfigName.minLockDuration, ShareConfigName.maxLockDuration)
        deliveryCountLimits = range(
            ShareConfigName.minDeliveryCountLimit, ShareConfigName.maxDeliveryCountLimit)
        recordLocks = range(ShareConfigName.minRecordLocks, ShareConfigName.maxRecordLocks)
        topicPartitionCount = Int32(clamping: number(ShareConfigName.topicPartitions))
        let factor = number(ShareConfigName.topicReplicationFactor)
        topicReplicationFactor = factor < 0 ? nil : Int16(clamping: factor)
        topicSegmentBytes = Int(number(ShareConfigName.topicSegmentBytes))
    }
}

/// Configurations of single groups (resource type 32, KIP-848, KIP-932).
package enum GroupConfigName {
    package static let heartbeatInterval = "share.heartbeat.interval.ms"
    package static let sessionTimeout = "share.session.timeout.ms"
    package static let lockDuration = "share.record.lock.duration.ms"
    package static let deliveryCountLimit = "share.delivery.count.limit"
    package static let recordLocks = "share.partition.max.record.locks"
    package static let offsetReset = "share.auto.offset.reset"
    package static let isolationLevel = "share.isolation.level"
    package static let renewal = "share.renew.acknowledge.enable"
}

package enum GroupConfigTable {
    private static let consumer = "groups of the consumer protocol take the value of the broker"

    package static let table = ConfigTable([
        .init(
            "consumer.heartbeat.interval.ms", .int, default: "5000", .atLeast(1),
            support: .defaultOnly(consumer),
            synonyms: [.init(BrokerConfigName.groupConsumerHeartbeatInterval)],
            "Milliseconds between two heartbeats of a member of the consumer group."),
        .init(
            "consumer.session.timeout.ms", .int, default: "45000", .atLeast(1),
            support: .defaultOnly(consumer),
            synonyms: [.init(BrokerConfigName.groupConsumerSessionTimeout)],
            "Milliseconds without a heartbeat after which a member of the consumer group is removed."),
        .init(
            GroupConfigName.heartbeatInterval, .int, default: "5000", .atLeast(1),
            synonyms: [.init(ShareConfigName.heartbeatInterval)],
            "Milliseconds between two heartbeats of a member of the share group."),
        .init(
            GroupConfigName.sessionTimeout, .int, default: "45000", .atLeast(1),
            synonyms: [.init(ShareConfigName.sessionTimeout)],
            "Milliseconds without a heartbeat after which a member of the share group is removed."),
        .init(
            GroupConfigName.lockDuration, .int, default: "30000", .atLeast(1_000),
            synonyms: [.init(ShareConfigName.lockDuration)],
            "Milliseconds for which a member of the share group holds a record that it has got."),
        .init(
            GroupConfigName.deliveryCountLimit, .int, default: "5", .atLeast(1),
            synonyms: [.init(ShareConfigName.deliveryCountLimit)],
            "How often a record is delivered before the share group gives it up."),
        .init(
            GroupConfigName.recordLocks, .int, default: "2000", .atLeast(1),
            synonyms: [.init(ShareConfigName.recordLocks)],
            "Records of a partition that may be in flight in the share group."),
        .init(
            GroupConfigName.offsetReset, .string, default: "latest", .any,
            "Where the share group starts on a partition that it has not read yet: latest, earliest, or by_duration: followed by how far back in time, such as by_duration:PT1H."
        ),
        .init(
            GroupConfigName.isolationLevel, .string, default: "read_uncommitted",
            .oneOf(["read_uncommitted", "read_committed"]),
            "Whether the share group sees records of transactions that are open or were aborted."),
        .init(
            GroupConfigName.renewal, .boolean, default: "true", .any,
            "Whether members of the share group may renew their locks (KIP-1222)."),
    ])

    /// Why a group cannot have this value, or `nil` if it can.
    static func problem(
        _ definition: ConfigDefinition, _ value: String, _ broker: ShareBrokerConfiguration
    ) -> String? {
        if let problem = definition.problem(with: value) { return problem }
        let text = definition.normalized(value)
        func invalid(_ cause: String) -> String {
            "Invalid value '\(ConfigText.shortened(value))' for configuration \(definition.name): \(cause)"
        }
        let bounds: ClosedRange<Int64>
        switch definition.name {
        case GroupConfigName.offsetReset:
            return ShareOffsetReset(text) == nil
                ? invalid("must be latest, earliest, or by_duration: with a duration such as PT1H") : nil
        case GroupConfigName.heartbeatInterval: bounds = broker.heartbeatIntervals
        case GroupConfigName.sessionTimeout: bounds = broker.sessionTimeouts
        case GroupConfigName.lockDuration: bounds = broker.lockDurations
        case GroupConfigName.deliveryCountLimit: bounds = broker.deliveryCountLimits
        case GroupConfigName.recordLocks: bounds = broker.recordLocks
        case _: return nil
        }
        guard let number = Int64(text), bounds.contains(number) else {
            return invalid(
                "must be between \(bounds.lowerBound) and \(bounds.upperBound), which the broker's group.share.min.* and group.share.max.* say"
            )
        }
        return nil
    }
}

/// Effective values of one share group.
package struct ShareGroupValues: Sendable, Equatable {
    package var heartbeatIntervalMilliseconds: Int32
    package var sessionTimeoutMilliseconds: Int32
    package var lockMilliseconds: Int64
    package var deliveryCountLimit: Int16
    package var recordLockLimit: Int
    package var offsetReset: ShareOffsetReset
    package var readsCommitted: Bool
    package var allowsRenewal: Bool

    init(overrides: [String: String], broker: BrokerConfigValues) {
        func text(_ name: String) -> String {
            GroupConfigTable.table[name].flatMap { broker.value($0, overrides: overrides) } ?? ""
        }
        func number(_ name: String) -> Int64 {
            Int64(text(name)) ?? GroupConfigTable.table[name]?.defaultValue.flatMap(Int64.init) ?? 0
        }
        heartbeatIntervalMilliseconds = Int32(clamping: number(GroupConfigName.heartbeatInterval))
        sessionTimeoutMilliseconds = Int32(clamping: number(GroupConfigName.sessionTimeout))
        lockMilliseconds = number(GroupConfigName.lockDuration)
        deliveryCountLimit = Int16(clamping: number(GroupConfigName.deliveryCountLimit))
        recordLockLimit = Int(number(GroupConfigName.recordLocks))
        offsetReset = ShareOffsetReset(text(GroupConfigName.offsetReset)) ?? .latest
        readsCommitted = text(GroupConfigName.isolationLevel) == "read_committed"
        allowsRenewal = text(GroupConfigName.renewal) == "true"
    }
}

extension MetadataImage {
    /// What holds for a share group; with `nil` for those without a configuration of their own.
    package func shareGroupValues(_ group: String?) -> ShareGroupValues {
        ShareGroupValues(overrides: group.flatMap { groupValues[$0] } ?? [:], broker: brokerValues)
    }

    /// Groups with a configuration of their own.
    package var configuredGroups: [String] { groupValues.keys.sorted() }
}
