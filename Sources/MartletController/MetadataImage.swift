import HashTreeCollections
package import MartletLogModel

/// One replica set and its leadership, as all brokers see it.
package struct PartitionImage: Sendable, Equatable {
    /// Brokers that hold the partition, preferred leader first.
    package var replicas: [BrokerID]
    package var isr: [BrokerID]
    package var eligibleLeaderReplicas: [BrokerID]
    package var lastKnownEligibleReplicas: [BrokerID]
    package var addingReplicas: [BrokerID]
    package var removingReplicas: [BrokerID]
    /// Log directory of each replica, in the order of `replicas`; zero where not yet assigned (KIP-858).
    package var directories: [UniversalID]
    package var leader: BrokerID?
    package var leaderEpoch: LeaderEpoch
    /// Rises with each change of the partition; orders AlterPartition requests (KIP-497).
    package var partitionEpoch: Int32
    /// Whether the leader came from an unclean election and has not caught up with the facts yet (KIP-704).
    package var isRecovering: Bool
}

/// One topic with its partitions and its effective configuration on this broker.
package struct TopicImage: Sendable {
    package let id: UniversalID
    package let name: String
    /// By partition index, without gaps.
    package internal(set) var partitions: [PartitionImage] = []
    /// Values set on the topic itself.
    package internal(set) var overrides: [String: String] = [:]
    /// Effective values, see ``TopicConfiguration``.
    package internal(set) var configuration: TopicConfiguration = .standard

    package var isInternal: Bool { TopicName.isInternal(name) }

    /// Positions of partitions that have eligible or last known leaders noted.
    var eligiblePositions: [Int] {
        partitions.indices.filter {
            !partitions[$0].eligibleLeaderReplicas.isEmpty || !partitions[$0].lastKnownEligibleReplicas.isEmpty
        }
    }

    package func partition(_ index: PartitionIndex) -> PartitionImage? {
        let position = Int(index.rawValue)
        return partitions.indices.contains(position) ? partitions[position] : nil
    }
}

/// Address under which a broker can be reached.
package struct BrokerEndpoint: Sendable, Equatable {
    package var name: String
    package var host: String
    package var port: UInt16
    package var securityProtocol: Int16

    package init(name: String, host: String, port: UInt16, securityProtocol: Int16) {
        self.name = name
        self.host = host
        self.port = port
        self.securityProtocol = securityProtocol
    }
}

/// A broker's registration. Its epoch is the metadata offset of the registration record, so it rises with
/// each start and an older incarnation is recognisable (KIP-631).
package struct BrokerImage: Sendable, Equatable {
    package var id: BrokerID
    package var epoch: Int64
    package var incarnationID: UniversalID
    package var endpoints: [BrokerEndpoint]
    package var features: [FeatureRange]
    package var rack: String?
    package var isFenced: Bool
    package var isInControlledShutdown: Bool
    package var logDirectories: [UniversalID]

    /// Whether it may lead and be in sync.
    package var isActive: Bool { !isFenced && !isInControlledShutdown }
}

/// Levels of a feature that a broker supports, both included.
package struct FeatureRange: Sendable, Equatable {
    package var name: String
    package var minimum: Int16
    package var maximum: Int16

    package init(name: String, minimum: Int16, maximum: Int16) {
        self.name = name
        self.minimum = minimum
        self.maximum = maximum
    }
}

/// What a configuration value belongs to.
package enum ConfigResource: Hashable, Comparable, Sendable {
    /// One broker, or all brokers of the cluster with `nil`.
    case broker(BrokerID?)
    case topic(String)
    case group(String)

    package static func < (left: ConfigResource, right: ConfigResource) -> Bool {
        switch (left, right) {
        case (.broker(let left), .broker(let right)): (left?.rawValue ?? -1) < (right?.rawValue ?? -1)
        case (.broker, .topic), (.broker, .group), (.topic, .group): true
        case (.topic, .broker), (.group, .broker), (.group, .topic): false
        case (.topic(let left), .topic(let right)): left < right
        case (.group(let left), .group(let right)): left < right
        }
    }

    /// Number of the resource type in requests and records.
    package var wireType: Int8 {
        switch self {
        case .topic: 2
        case .broker: 4
        case .group: 32
        }
    }

    package var wireName: String {
        switch self {
        case .topic(let name): name
        case .group(let id): id
        case .broker(let id): id.map { String($0.rawValue) } ?? ""
        }
    }
}

/// Cluster metadata at one offset of the metadata log: an immutable value that every loop of the broker reads
/// without a lock. Copies share their storage (persistent hash trees), so publishing after each commit costs
/// what has changed, not what exists.
package struct MetadataImage: Sendable {
    /// The broker whose effective configurations the image shows.
    package let localBroker: BrokerID
    package internal(set) var clusterID: UniversalID?
    /// Offset of the last record contained, or `nil` before the first.
    package internal(set) var lastOffset: Offset?
    /// In ascending order of id.
    package internal(set) var brokers: [BrokerImage] = []
    /// Brokers that the cluster is configured with, registered or not; of this process, not of the metadata.
    package internal(set) var configuredBrokerCount = 1
    /// Finalized feature levels by name, in the order of the names.
    package internal(set) var features: [FeatureLevel] = []
    package internal(set) var brokerValues: BrokerConfigValues
    package internal(set) var brokerConfiguration: BrokerConfiguration
    package internal(set) var topicCount = 0
    package internal(set) var partitionCount = 0
    package internal(set) var nextProducerID: Int64 = 0

    var topics: TreeDictionary<UniversalID, TopicImage> = [:]
    var topicIDs: TreeDictionary<String, UniversalID> = [:]
    /// Values set on groups, by group id.
    var groupValues: TreeDictionary<String, [String: String]> = [:]
    /// Rises with each change of a group's values.
    package internal(set) var groupConfigurationNumber: Int64 = 0
    /// Values per resource; a topic's also stand in its ``TopicImage``, a group's in `groupValues`.
    var configs: TreeDictionary<ConfigResource, [String: String]> = [:]

    /// Quotas of users, client ids and addresses (KIP-546), see ``ClientQuotas``.
    package internal(set) var clientQuotas = ClientQuotas()
    /// SCRAM credentials by user and mechanism (KIP-554).
    var credentials: TreeDictionary<ScramUser, ScramCredential> = [:]
    /// Access control entries by id.
    var accessControls: TreeDictionary<UniversalID, AccessControl> = [:]

    package struct FeatureLevel: Sendable, Equatable {
        package let name: String
        package let level: Int16
    }

    package init(localBroker: BrokerID, staticConfiguration: [String: String] = [:]) {
        self.localBroker = localBroker
        brokerValues = BrokerConfigValues(staticValues: staticConfiguration)
        brokerConfiguration = BrokerConfiguration(brokerValues)
    }

    package func topicID(named name: String) -> UniversalID? { topicIDs[name] }

    package func topic(named name: String) -> TopicImage? { topicIDs[name].flatMap { topics[$0] } }

    package func topic(id: UniversalID) -> TopicImage? { topics[id] }

    package func topicName(id: UniversalID) -> String? { topics[id]?.name }

    package func partition(_ topicPartition: TopicPartition) -> PartitionImage? {
        topic(named: topicPartition.topic)?.partition(topicPartition.partition)
    }

    package func broker(_ id: BrokerID) -> BrokerImage? { brokerPosition(id).map { brokers[$0] } }

    func brokerPosition(_ id: BrokerID) -> Int? {
        var range = brokers.startIndex..<brokers.endIndex
        while !range.isEmpty {
            let middle = range.lowerBound + range.count / 2
            if brokers[middle].id == id { return middle }
            range = brokers[middle].id < id ? middle + 1..<range.upperBound : range.lowerBound..<middle
        }
        return nil
    }

    /// Brokers that may lead and be in sync.
    package var activeBrokerCount: Int { brokers.count { $0.isActive } }

    /// Whether replicas outside the in-sync set are kept as eligible leaders (KIP-966).
    package var usesEligibleLeaderReplicas: Bool { featureLevel(Features.eligibleLeaderReplicas) >= 1 }

    /// All topics in the order of their names. Sorts: meant for listings and start-up, not for each request.
    package func sortedTopics() -> [TopicImage] {
        topics.values.sorted { $0.name < $1.name }
    }

    package func featureLevel(_ name: String) -> Int16 { features.first { $0.name == name }?.level ?? 0 }

    /// Replicas a topic gets when nothing is said: 3 where three brokers are configured or registered, else 1.
    package func replicationFactor(configured: Int16?) -> Int16 {
        configured ?? (max(brokers.count, configuredBrokerCount) >= 3 ? 3 : 1)
    }

    /// Brokers that must be there before a topic of the coordinators is created: with fewer it would have fewer
    /// replicas than the cluster is meant to give it, for good.
    package var brokersForInternalTopics: Int { min(3, configuredBrokerCount) }
}

/// What changed between two published images; each list in ascending order of topic name.
package struct MetadataDelta: Sendable, Equatable {
    package struct Topic: Sendable, Equatable {
        package let name: String
        package let id: UniversalID
    }

    package var createdTopics: [Topic] = []
    package var deletedTopics: [Topic] = []
    /// Topics that existed before and have new, or changed, partitions.
    package var changedTopics: [Topic] = []
    /// Topics that existed before and whose effective configuration is another.
    package var reconfiguredTopics: [Topic] = []
    package var brokerConfigurationChanged = false
    /// Of the topics in `changedTopics`, the partitions that are new or changed, in ascending order.
    package var changedPartitions: [UniversalID: [Int32]] = [:]
    /// Brokers that have registered, changed or gone, in ascending order.
    package var changedBrokers: [BrokerID] = []
    package var brokersChanged = false
    /// Quotas, credentials or access control entries are others.
    package var accessChanged = false
    package var featuresChanged = false

    package init() {}

    package var isEmpty: Bool { self == MetadataDelta() }
}
