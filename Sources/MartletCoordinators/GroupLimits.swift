package import MartletLogModel

/// Bounds of one coordinator shard. A client that meets one gets a clear error; nothing grows without end.
package enum GroupLimits {
    /// Groups of one shard: 50 shards of the default offsets topic make five million.
    package static let groupCountLimit = 100_000
    /// Members of one group, whatever `group.max.size` says: a rebalance answers all of them at once.
    package static let memberCountLimit = 10_000
    /// Members that have got an id and not joined yet (KIP-394), per group.
    package static let pendingMemberCountLimit = 10_000
    /// Protocols one member may propose; clients send one to four.
    package static let protocolCountLimit = 64
    /// Bytes of all subscriptions one member sends, over its protocols.
    package static let memberMetadataBytesLimit = 4 * 1024 * 1024
    /// Bytes that the members of all groups of one broker make it hold, whatever shards their groups belong to: that
    /// must not follow from how many groups somebody makes. Ten thousand members with 10 KiB each are below it.
    package static let brokerMemberBytesLimit = 128 * 1024 * 1024
    /// Bytes of one group's record; the offsets topic takes batches of 16 MiB.
    package static let groupRecordBytesLimit = 15 * 1024 * 1024
    /// Bytes of names and metadata in one commit, which becomes one batch; more is refused with 28.
    package static let commitBytesLimit = 15 * 1024 * 1024
    /// Committed offsets of one shard: about 150 bytes each.
    package static let offsetCountLimit = 4_000_000
    /// Offsets looked at in one event of an expiration: bounds how long the loop is kept from other work.
    package static let expirationStepOffsetLimit = 20_000
    /// Tombstones in one record batch when offsets expire or topics go; the rest follows at once.
    package static let tombstoneBatchLimit = 10_000
    /// Unicode scalars kept of a client's words in reasons (KIP-800) and messages. A character may have any number.
    package static let reasonLengthLimit = 255
    static func shortened(_ words: String) -> String { String(words.unicodeScalars.prefix(reasonLengthLimit)) }
    /// Milliseconds a member that has never been in a generation may wait for its first rebalance to end:
    /// it cannot send heartbeats before (Kafka's constant of the same meaning).
    package static let newMemberJoinTimeoutMilliseconds: Int64 = 5 * 60 * 1000
    /// Topics one member of a consumer group may name, and bytes of all that it says about itself.
    package static let subscribedTopicCountLimit = 10_000
    package static let memberDescriptionBytesLimit = 1024 * 1024
    /// Bytes of a member id, an instance id or a strategy's name: records say their lengths in 16 bits, requests of
    /// newer versions do not.
    package static let nameBytesLimit = 8 * 1024
    /// Bytes of the id a client brings along; also bounds what the offsets topic stores per group.
    package static let groupIDBytesLimit = 8 * 1024
}

/// What an operator can set, from the broker's configuration.
package struct GroupConfiguration: Sendable, Equatable {
    package var initialRebalanceDelayMilliseconds: Int64
    package var minSessionTimeoutMilliseconds: Int32
    package var maxSessionTimeoutMilliseconds: Int32
    package var groupMaxSize: Int
    package var offsetMetadataMaxBytes: Int
    /// Bytes that the members of all groups may make the broker hold.
    package var memberBytesLimit: Int
    package var consumer: ConsumerGroupConfiguration
    package var share: ShareGroupConfiguration
    /// Empty outside of the simulator's mutation table.
    package var suspended: SuspendedRules = []

    package init(
        initialRebalanceDelayMilliseconds: Int64 = 3_000, minSessionTimeoutMilliseconds: Int32 = 6_000,
        maxSessionTimeoutMilliseconds: Int32 = 1_800_000, groupMaxSize: Int = .max,
        offsetMetadataMaxBytes: Int = 4_096, memberBytesLimit: Int = GroupLimits.brokerMemberBytesLimit,
        consumer: ConsumerGroupConfiguration = .init(), share: ShareGroupConfiguration = .init()
    ) {
        self.initialRebalanceDelayMilliseconds = initialRebalanceDelayMilliseconds
        self.minSessionTimeoutMilliseconds = minSessionTimeoutMilliseconds
        self.maxSessionTimeoutMilliseconds = maxSessionTimeoutMilliseconds
        self.groupMaxSize = min(groupMaxSize, GroupLimits.memberCountLimit)
        self.offsetMetadataMaxBytes = offsetMetadataMaxBytes
        self.memberBytesLimit = memberBytesLimit
        self.consumer = consumer
        self.share = share
    }
}

/// What an operator can set for groups of the consumer protocol (KIP-848): `group.consumer.*`.
package struct ConsumerGroupConfiguration: Sendable, Equatable {
    /// Which changes of protocol a group with members may make (`group.consumer.migration.policy`).
    package enum MigrationPolicy: String, Sendable, CaseIterable {
        case disabled, upgrade, downgrade, bidirectional

        var allowsUpgrade: Bool { self == .upgrade || self == .bidirectional }
        var allowsDowngrade: Bool { self == .downgrade || self == .bidirectional }
    }

    package var heartbeatIntervalMilliseconds: Int32
    package var sessionTimeoutMilliseconds: Int32
    package var maxSize: Int
    /// In the order of preference; the first is the default.
    package var assignors: [ServerAssignor]
    package var migrationPolicy: MigrationPolicy

    package init(
        heartbeatIntervalMilliseconds: Int32 = 5_000, sessionTimeoutMilliseconds: Int32 = 45_000,
        maxSize: Int = .max, assignors: [ServerAssignor] = [.uniform, .range],
        migrationPolicy: MigrationPolicy = .bidirectional
    ) {
        self.heartbeatIntervalMilliseconds = heartbeatIntervalMilliseconds
        self.sessionTimeoutMilliseconds = sessionTimeoutMilliseconds
        self.maxSize = min(maxSize, GroupLimits.memberCountLimit)
        self.assignors = assignors
        self.migrationPolicy = migrationPolicy
    }
}
