import MartletKafkaProtocol
import MartletLogModel

/// What the client knows of the cluster from Metadata answers and leader hints. A value without any I/O, so
/// that its rules can be tested alone.
struct ClusterMetadata: Sendable {
    struct Partition: Sendable, Hashable {
        var leader: BrokerID?
        /// -1: not known (brokers before KIP-320).
        var leaderEpoch: Int32
        var replicas: [BrokerID] = []
        var inSyncReplicas: [BrokerID] = []
        var offlineReplicas: [BrokerID] = []
    }

    struct Topic: Sendable, Hashable {
        var id: UniversalID?
        var isInternal = false
        /// By partition index; a partition that the broker left out is leaderless.
        var partitions: [Partition] = []
    }

    private(set) var clusterID: String?
    private(set) var controller: BrokerID?
    private(set) var brokers: [BrokerID: BrokerDescription] = [:]
    private(set) var topics: [String: Topic] = [:]
    private(set) var names: [UniversalID: String] = [:]

    /// Largest partition index believed; a larger one is a broken peer, and arrays are indexed by it.
    static let partitionIndexLimit: Int32 = 1_000_000

    /// Takes over one answer and returns the error codes of topics that could not be described.
    mutating func update(_ response: MetadataResponse) -> [String: ErrorCode] {
        if let id = response.clusterID { clusterID = id }
        controller = response.controllerID >= 0 ? BrokerID(response.controllerID) : nil
        if !response.brokers.isEmpty {
            brokers = [:]
            for broker in response.brokers {
                add(nodeID: broker.nodeID, host: broker.host, port: broker.port, rack: broker.rack)
            }
        }
        var errors: [String: ErrorCode] = [:]
        for topic in response.topics {
            guard let name = topic.name else { continue }
            guard topic.errorCode == 0 else {
                errors[name] = ErrorCode(rawValue: topic.errorCode)
                if ErrorCode(rawValue: topic.errorCode) == .unknownTopicOrPartition { forget(name) }
                continue
            }
            update(name, topic)
        }
        return errors
    }

    private mutating func update(_ name: String, _ topic: MetadataResponse.MetadataResponseTopic) {
        let id = topic.topicID == .zero ? nil : topic.topicID
        let known = topics[name]
        let isSame = known?.id == id
        var fresh = Topic(id: id, isInternal: topic.isInternal)
        let highest = topic.partitions.map(\.partitionIndex).max() ?? -1
        guard highest <= Self.partitionIndexLimit else { return }
        fresh.partitions = Array(repeating: Partition(leader: nil, leaderEpoch: -1), count: Int(highest) + 1)
        for partition in topic.partitions where partition.partitionIndex >= 0 {
            let index = Int(partition.partitionIndex)
            // A broker that lags behind must not take us back to an older leadership (KIP-320).
            if isSame, let known, index < known.partitions.count, partition.leaderEpoch >= 0,
                known.partitions[index].leaderEpoch > partition.leaderEpoch
            {
                fresh.partitions[index] = known.partitions[index]
                continue
            }
            fresh.partitions[index] = Partition(
                leader: partition.leaderID >= 0 ? BrokerID(partition.leaderID) : nil,
                leaderEpoch: partition.leaderEpoch,
                replicas: partition.replicaNodes.map { BrokerID($0) },
                inSyncReplicas: partition.isrNodes.map { BrokerID($0) },
                offlineReplicas: partition.offlineReplicas.map { BrokerID($0) })
        }
        if let old = known?.id, old != id { names[old] = nil }
        topics[name] = fresh
        if let id { names[id] = name }
    }

    /// A broker's endpoint, from metadata or from a hint beside an answer (KIP-951).
    mutating func add(nodeID: Int32, host: String, port: Int32, rack: String?) {
        guard nodeID >= 0, (1...65_535).contains(port), !host.isEmpty else { return }
        brokers[BrokerID(nodeID)] = BrokerDescription(
            id: BrokerID(nodeID), address: BrokerAddress(host: host, port: Int(port)), rack: rack)
    }

    /// A leader named beside an answer (KIP-951). Returns whether it is news that can be acted on at once.
    mutating func hint(leader: Int32, epoch: Int32, of partition: TopicPartition) -> Bool {
        let index = Int(partition.partition.rawValue)
        guard leader >= 0, brokers[BrokerID(leader)] != nil, var topic = topics[partition.topic],
            topic.partitions.indices.contains(index), topic.partitions[index].leaderEpoch < epoch
        else { return false }
        topic.partitions[index].leader = BrokerID(leader)
        topic.partitions[index].leaderEpoch = epoch
        topics[partition.topic] = topic
        return true
    }

    mutating func forget(_ name: String) {
        if let id = topics.removeValue(forKey: name)?.id { names[id] = nil }
    }

    func partition(_ partition: TopicPartition) -> Partition? {
        let index = Int(partition.partition.rawValue)
        guard let topic = topics[partition.topic], topic.partitions.indices.contains(index) else {
            return nil
        }
        return topic.partitions[index]
    }
}
