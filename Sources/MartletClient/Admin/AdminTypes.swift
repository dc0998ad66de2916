public import MartletLogModel

/// A broker of the cluster.
public struct BrokerDescription: Hashable, Sendable {
    public var id: BrokerID
    public var address: BrokerAddress
    public var rack: String?
}

/// The cluster as one of its brokers sees it.
public struct ClusterDescription: Hashable, Sendable {
    public var clusterID: String
    public var controller: BrokerID?
    public var brokers: [BrokerDescription]
}

/// A topic to be made.
public struct TopicSpecification: Hashable, Sendable {
    public var name: String
    /// `nil`: the broker's default.
    public var partitionCount: Int?
    /// `nil`: the broker's default.
    public var replicationFactor: Int?
    /// Kafka's names, such as `cleanup.policy`.
    public var configs: [String: String]

    public init(
        name: String, partitionCount: Int? = nil, replicationFactor: Int? = nil,
        configs: [String: String] = [:]
    ) {
        self.name = name
        self.partitionCount = partitionCount
        self.replicationFactor = replicationFactor
        self.configs = configs
    }
}

/// A topic that was made.
public struct CreatedTopic: Hashable, Sendable {
    public var name: String
    public var id: UniversalID?
    public var partitionCount: Int?
    public var replicationFactor: Int?
}

/// One line of the list of topics.
public struct TopicListing: Hashable, Sendable {
    public var name: String
    public var id: UniversalID?
    public var isInternal: Bool
    public var partitionCount: Int
    public var replicationFactor: Int
}

/// A topic and its partitions.
public struct TopicDescription: Hashable, Sendable {
    public var name: String
    public var id: UniversalID?
    public var isInternal: Bool
    /// In the order of their index.
    public var partitions: [PartitionDescription]
}

/// A partition and where its replicas are.
public struct PartitionDescription: Hashable, Sendable {
    public var index: PartitionIndex
    /// `nil`: no leader at present.
    public var leader: BrokerID?
    public var leaderEpoch: LeaderEpoch?
    public var replicas: [BrokerID]
    public var inSyncReplicas: [BrokerID]
    public var offlineReplicas: [BrokerID]
}

/// Something that has configuration.
public enum ConfigResource: Hashable, Sendable, CustomStringConvertible {
    case topic(String)
    case broker(BrokerID)
    /// Cluster-wide defaults of all brokers.
    case allBrokers
    case group(String)

    public var description: String {
        switch self {
        case .topic(let name): "topic \(name)"
        case .broker(let id): "broker \(id)"
        case .allBrokers: "all brokers"
        case .group(let name): "group \(name)"
        }
    }
}

/// One setting and where it comes from.
public struct ConfigEntry: Hashable, Sendable {
    /// Where a value was set; open, numbers as in KIP-226.
    public struct Source: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: Int8
        public init(rawValue: Int8) { self.rawValue = rawValue }
        public static let unknown = Source(rawValue: 0)
        public static let topic = Source(rawValue: 1)
        public static let broker = Source(rawValue: 2)
        public static let allBrokers = Source(rawValue: 3)
        public static let staticBroker = Source(rawValue: 4)
        public static let defaultValue = Source(rawValue: 5)
        public static let brokerLogger = Source(rawValue: 6)
        public static let clientMetrics = Source(rawValue: 7)
        public static let group = Source(rawValue: 8)

        public var description: String {
            switch self {
            case .topic: "topic"
            case .broker: "broker"
            case .allBrokers: "all brokers"
            case .staticBroker: "static broker configuration"
            case .defaultValue: "default"
            case .brokerLogger: "broker logger"
            case .clientMetrics: "client metrics"
            case .group: "group"
            case _: "unknown"
            }
        }
    }

    public var name: String
    /// `nil` for a secret or a setting without a value.
    public var value: String?
    public var source: Source
    public var isReadOnly: Bool
    public var isSensitive: Bool
    public var documentation: String?

    public var isDefault: Bool { source == .defaultValue }
}

/// A change of one setting (KIP-339).
public enum ConfigChange: Hashable, Sendable {
    case set(String, to: String)
    /// Back to the default.
    case delete(String)
    /// Adds to a list value.
    case append(String, String)
    /// Takes out of a list value.
    case subtract(String, String)
}

/// One line of the list of groups.
public struct GroupListing: Hashable, Sendable {
    public var groupID: String
    /// `consumer` for groups of the classic protocol.
    public var protocolType: String
    /// `Empty`, `Stable`, `PreparingRebalance`, ...; `nil` from brokers before KIP-518.
    public var state: String?
    /// `classic`, `consumer`, ...; `nil` from brokers before KIP-848.
    public var type: String?
    /// The broker that coordinates it.
    public var coordinator: BrokerID
}

/// A group and its members.
public struct GroupDescription: Hashable, Sendable {
    public var groupID: String
    public var state: String
    public var protocolType: String
    /// Name of the assignment strategy in use; empty while there is none.
    public var strategy: String
    public var coordinator: BrokerID
    public var members: [GroupMember]
    /// Why the group rebalanced last, where the broker tells.
    public var lastRebalance: GroupRebalance?
}

/// The last rebalance of a group.
public struct GroupRebalance: Hashable, Sendable {
    /// What happened, in words.
    public var reason: String
    /// The member that caused it, if one did.
    public var memberID: String?
    /// Generation or epoch that came out of it.
    public var generation: Int32
    public var startedAt: Timestamp
    public var duration: Duration
    public var memberCount: Int
}

/// A member of a group.
public struct GroupMember: Hashable, Sendable {
    public var memberID: String
    public var groupInstanceID: String?
    public var clientID: String
    public var clientHost: String
    /// Empty during a rebalance and for groups that are not of consumers.
    public var assignment: [TopicPartition]
}

/// A log directory of a broker.
public struct LogDirectoryDescription: Hashable, Sendable {
    public var broker: BrokerID
    public var path: String
    /// Why the directory cannot be used; `nil` if it can.
    public var problem: ErrorCode?
    public var totalBytes: Int64?
    public var usableBytes: Int64?
    public var replicas: [ReplicaSize]

    /// Size of one replica.
    public struct ReplicaSize: Hashable, Sendable {
        public var topicPartition: TopicPartition
        public var byteCount: Int64
        /// How far it is behind the high watermark (or, for a moving replica, behind the present one).
        public var offsetLag: Int64
    }
}

/// The versions of one API that a broker serves.
public struct APIVersionRange: Hashable, Sendable {
    public var key: Int16
    /// Kafka's name; `nil` for a key that this client does not know.
    public var name: String?
    public var versions: ClosedRange<Int16>
}

/// What a broker says about itself.
public struct BrokerVersions: Hashable, Sendable {
    public var apis: [APIVersionRange]
    /// Finalized feature levels, such as `metadata.version`.
    public var finalizedFeatures: [String: Int16]
    /// Supported feature ranges.
    public var supportedFeatures: [String: ClosedRange<Int16>]
}
