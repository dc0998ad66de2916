/// Effective broker configurations that the cores and the handlers above them read as numbers.
package struct BrokerConfiguration: Sendable, Equatable {
    package var autoCreateTopics: Bool
    /// Whether the controller gives leadership back to preferred replicas by itself.
    package var balancesLeaders: Bool
    package var leaderBalanceIntervalMilliseconds: Int64
    package var brokerHeartbeatIntervalMilliseconds: Int64
    /// Silence after which the controller fences a broker.
    package var brokerSessionTimeoutMilliseconds: Int64
    package var uncleanElectionIntervalMilliseconds: Int64
    package var deleteTopicEnable: Bool
    package var defaultPartitionCount: Int32
    /// `nil`: 3 in a cluster of three or more brokers, else 1.
    package var defaultReplicationFactor: Int16?
    package var fetchMaxBytes: Int
    package var fetchSessionSlots: Int
    package var groupInitialRebalanceDelayMilliseconds: Int64
    package var groupMaxSessionTimeoutMilliseconds: Int32
    package var groupMinSessionTimeoutMilliseconds: Int32
    package var groupMaxSize: Int
    package var groupConsumerAssignors: [String]
    package var groupConsumerHeartbeatIntervalMilliseconds: Int32
    package var groupConsumerMaxSize: Int
    package var groupConsumerMigrationPolicy: String
    package var groupConsumerSessionTimeoutMilliseconds: Int32
    /// Whether groups of the consumer protocol are served (KIP-848).
    package var servesConsumerProtocol: Bool
    package var offsetMetadataMaxBytes: Int
    /// `nil`: committed offsets are kept as long as their topic keeps its records.
    package var offsetsRetentionMilliseconds: Int64?
    package var offsetsRetentionCheckIntervalMilliseconds: Int64
    package var offsetsTopicPartitionCount: Int32
    package var offsetsTopicReplicationFactor: Int16?
    package var offsetsTopicSegmentBytes: Int
    package var producerIDExpirationMilliseconds: Int64
    package var logCleanerBackoffMilliseconds: Int64
    package var logRetentionCheckIntervalMilliseconds: Int64
    package var connectionsMaxIdleMilliseconds: Int64?
    package var maxConnections: Int
    package var socketRequestMaxBytes: Int
    package var transactionMaxTimeoutMilliseconds: Int32
    package var transactionTopicPartitionCount: Int32
    package var transactionTopicReplicationFactor: Int16?
    package var transactionTopicSegmentBytes: Int
    package var transactionalIDExpirationMilliseconds: Int64
    package var queuedMaxRequestBytes: Int?
    package var share: ShareBrokerConfiguration

    package init(_ values: BrokerConfigValues) {
        func text(_ name: String) -> String? {
            guard let definition = BrokerConfigTable.table[name] else {
                preconditionFailure("no broker configuration \(name)")
            }
            guard let value = values.resolve(definition).value, definition.problem(with: value) == nil else {
                return definition.defaultValue
            }
            return definition.normalized(value)
        }
        func optional(_ name: String) -> Int64? {
            text(name).flatMap(Int64.init).flatMap { $0 < 0 ? nil : $0 }
        }
        func number(_ name: String) -> Int64 { text(name).flatMap(Int64.init) ?? 0 }

        autoCreateTopics = text(BrokerConfigName.autoCreateTopics) == "true"
        balancesLeaders = text(BrokerConfigName.autoLeaderRebalance) == "true"
        let (balance, overflow) = number(BrokerConfigName.leaderImbalanceCheckInterval)
            .multipliedReportingOverflow(by: 1_000)
        leaderBalanceIntervalMilliseconds = overflow ? .max : balance
        brokerHeartbeatIntervalMilliseconds = number(BrokerConfigName.brokerHeartbeatInterval)
        brokerSessionTimeoutMilliseconds = number(BrokerConfigName.brokerSessionTimeout)
        uncleanElectionIntervalMilliseconds = number(BrokerConfigName.uncleanElectionInterval)
        deleteTopicEnable = text(BrokerConfigName.deleteTopicEnable) == "true"
        defaultPartitionCount = Int32(clamping: number(BrokerConfigName.numPartitions))
        defaultReplicationFactor = optional(BrokerConfigName.defaultReplicationFactor).map {
            Int16(clamping: $0)
        }
        fetchMaxBytes = Int(number(BrokerConfigName.fetchMaxBytes))
        fetchSessionSlots = Int(number(BrokerConfigName.fetchSessionSlots))
        groupInitialRebalanceDelayMilliseconds = number(BrokerConfigName.groupInitialRebalanceDelay)
        groupMaxSessionTimeoutMilliseconds = Int32(clamping: number(BrokerConfigName.groupMaxSessionTimeout))
        groupMinSessionTimeoutMilliseconds = Int32(clamping: number(BrokerConfigName.groupMinSessionTimeout))
        groupMaxSize = Int(number(BrokerConfigName.groupMaxSize))
        groupConsumerAssignors = ConfigText.items(text(BrokerConfigName.groupConsumerAssignors) ?? "")
        groupConsumerHeartbeatIntervalMilliseconds = Int32(
            clamping: number(BrokerConfigName.groupConsumerHeartbeatInterval))
        groupConsumerMaxSize = Int(number(BrokerConfigName.groupConsumerMaxSize))
        groupConsumerMigrationPolicy = text(BrokerConfigName.groupConsumerMigrationPolicy) ?? ""
        groupConsumerSessionTimeoutMilliseconds = Int32(
            clamping: number(BrokerConfigName.groupConsumerSessionTimeout))
        servesConsumerProtocol = ConfigText.items(text(BrokerConfigName.groupRebalanceProtocols) ?? "")
            .contains(
                "consumer")
        offsetMetadataMaxBytes = Int(number(BrokerConfigName.offsetMetadataMaxBytes))
        offsetsRetentionMilliseconds = optional(BrokerConfigName.offsetsRetentionMinutes).map { $0 * 60_000 }
        offsetsRetentionCheckIntervalMilliseconds = number(BrokerConfigName.offsetsRetentionCheckInterval)
        offsetsTopicPartitionCount = Int32(clamping: number(BrokerConfigName.offsetsTopicPartitions))
        offsetsTopicReplicationFactor =
            optional(BrokerConfigName.offsetsTopicReplicationFactor).map { Int16(clamping: $0) }
        offsetsTopicSegmentBytes = Int(number(BrokerConfigName.offsetsTopicSegmentBytes))
        producerIDExpirationMilliseconds = number(BrokerConfigName.producerIDExpiration)
        logCleanerBackoffMilliseconds = number(BrokerConfigName.logCleanerBackoff)
        logRetentionCheckIntervalMilliseconds = number(BrokerConfigName.logRetentionCheckInterval)
        connectionsMaxIdleMilliseconds = optional(BrokerConfigName.connectionsMaxIdle)
        maxConnections = Int(number(BrokerConfigName.maxConnections))
        socketRequestMaxBytes = Int(number(BrokerConfigName.socketRequestMaxBytes))
        transactionMaxTimeoutMilliseconds = Int32(clamping: number(BrokerConfigName.transactionMaxTimeout))
        transactionTopicPartitionCount = Int32(clamping: number(BrokerConfigName.transactionTopicPartitions))
        transactionTopicReplicationFactor =
            optional(BrokerConfigName.transactionTopicReplicationFactor).map { Int16(clamping: $0) }
        transactionTopicSegmentBytes = Int(number(BrokerConfigName.transactionTopicSegmentBytes))
        transactionalIDExpirationMilliseconds = number(BrokerConfigName.transactionalIDExpiration)
        queuedMaxRequestBytes = optional(BrokerConfigName.queuedMaxRequestBytes).map { Int($0) }
        share = ShareBrokerConfiguration(number)
    }
}
