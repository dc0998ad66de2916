import HashTreeCollections
package import MartletLogModel

/// One partition by topic id, in the order in which decisions go through partitions.
package struct PartitionReference: Hashable, Comparable, Sendable {
    package let topicID: UniversalID
    package let partition: Int32

    package init(topicID: UniversalID, partition: Int32) {
        self.topicID = topicID
        self.partition = partition
    }

    package static func < (left: PartitionReference, right: PartitionReference) -> Bool {
        left.topicID == right.topicID ? left.partition < right.partition : left.topicID < right.topicID
    }
}

/// Which partitions a broker holds, and which partitions want something, so that a decision about a broker touches
/// that broker's partitions alone. Derived from the records; never persisted.
///
/// An entry is eight bytes: the topic's number in this index and the partition's. Numbers depend on history, so
/// everything handed out is in the order of topic ids.
struct ReplicaIndex {
    private var numbers: [UniversalID: UInt32] = [:]
    private var topics: [UniversalID] = []
    private var freeNumbers: [UInt32] = []
    private var replicas: [BrokerID: Set<UInt64>] = [:]
    private var leaderships: [BrokerID: Int] = [:]
    private var leadersLost: [BrokerID: Offset] = [:]
    private var leaderless: Set<UInt64> = []
    private var displaced: Set<UInt64> = []
    private var moving: Set<UInt64> = []

    // MARK: Queries

    /// Partitions that have a replica on the broker, in sync or not.
    func partitions(on broker: BrokerID) -> [PartitionReference] { sorted(replicas[broker] ?? []) }

    /// Partitions with a replica on one of the brokers.
    func partitions(onAnyOf brokers: [BrokerID]) -> [PartitionReference] {
        guard brokers.count > 1 else { return brokers.first.map { partitions(on: $0) } ?? [] }
        var all: Set<UInt64> = []
        for broker in brokers { all.formUnion(replicas[broker] ?? []) }
        return sorted(all)
    }

    func replicaCount(on broker: BrokerID) -> Int { replicas[broker]?.count ?? 0 }

    func leaderCount(of broker: BrokerID) -> Int { leaderships[broker] ?? 0 }

    /// Offset of the last record that took a leadership from the broker.
    func lastLeadershipLoss(of broker: BrokerID) -> Offset? { leadersLost[broker] }

    var leaderlessPartitions: [PartitionReference] { sorted(leaderless) }
    var hasLeaderlessPartitions: Bool { !leaderless.isEmpty }

    /// Partitions led by another than their preferred replica.
    var displacedPartitions: [PartitionReference] { sorted(displaced) }

    /// Partitions under reassignment.
    var movingPartitions: [PartitionReference] { sorted(moving) }

    /// Leaderless partitions that the broker holds.
    func leaderlessPartitions(on broker: BrokerID) -> [PartitionReference] {
        guard let held = replicas[broker] else { return [] }
        return sorted(
            held.count < leaderless.count ? held.intersection(leaderless) : leaderless.intersection(held))
    }

    private func sorted(_ entries: Set<UInt64>) -> [PartitionReference] {
        entries.map { .init(topicID: topics[Int($0 >> 32)], partition: Int32(truncatingIfNeeded: $0)) }
            .sorted()
    }

    // MARK: Replay

    mutating func insert(_ partition: PartitionImage, topic: UniversalID, index: Int) {
        let entry = entry(topic, index)
        for broker in partition.replicas { replicas[broker, default: []].insert(entry) }
        if let leader = partition.leader { leaderships[leader, default: 0] += 1 }
        note(partition, entry)
    }

    mutating func replace(
        _ old: PartitionImage, with new: PartitionImage, topic: UniversalID, index: Int, at offset: Offset
    ) {
        let entry = entry(topic, index)
        if old.replicas != new.replicas {
            for broker in old.replicas where !new.replicas.contains(broker) { forget(entry, on: broker) }
            for broker in new.replicas where !old.replicas.contains(broker) {
                replicas[broker, default: []].insert(entry)
            }
        }
        if old.leader != new.leader {
            if let leader = old.leader {
                lead(leader, -1)
                leadersLost[leader] = offset
            }
            if let leader = new.leader { lead(leader, 1) }
        }
        note(new, entry)
    }

    mutating func remove(_ topic: TopicImage) {
        guard let number = numbers.removeValue(forKey: topic.id) else { return }
        for (index, partition) in topic.partitions.enumerated() {
            let entry = UInt64(number) << 32 | UInt64(index)
            for broker in partition.replicas { forget(entry, on: broker) }
            if let leader = partition.leader { lead(leader, -1) }
            leaderless.remove(entry)
            displaced.remove(entry)
            moving.remove(entry)
        }
        freeNumbers.append(number)
    }

    mutating func removeBroker(_ id: BrokerID) { leadersLost[id] = nil }

    private mutating func entry(_ topic: UniversalID, _ index: Int) -> UInt64 {
        if let number = numbers[topic] { return UInt64(number) << 32 | UInt64(index) }
        let number: UInt32
        if let free = freeNumbers.popLast() {
            number = free
            topics[Int(number)] = topic
        } else {
            number = UInt32(topics.count)
            topics.append(topic)
        }
        numbers[topic] = number
        return UInt64(number) << 32 | UInt64(index)
    }

    private mutating func note(_ partition: PartitionImage, _ entry: UInt64) {
        func set(_ entries: inout Set<UInt64>, _ holds: Bool) {
            if holds { entries.insert(entry) } else { entries.remove(entry) }
        }
        set(&leaderless, partition.leader == nil)
        set(&displaced, partition.leader != partition.replicas.first)
        set(&moving, partition.isBeingReassigned)
    }

    private mutating func forget(_ entry: UInt64, on broker: BrokerID) {
        replicas[broker]?.remove(entry)
        if replicas[broker]?.isEmpty == true { replicas[broker] = nil }
    }

    private mutating func lead(_ broker: BrokerID, _ change: Int) {
        let count = (leaderships[broker] ?? 0) + change
        precondition(count >= 0, "broker \(broker) leads fewer partitions than none")
        leaderships[broker] = count == 0 ? nil : count
    }
}

extension ReplicaIndex {
    /// What the records would have built.
    init(_ image: MetadataImage) {
        self.init()
        for (id, topic) in image.topics {
            for (index, partition) in topic.partitions.enumerated() {
                insert(partition, topic: id, index: index)
            }
        }
        // When these lost their last leadership is not known any more: at the latest now.
        for broker in image.brokers where broker.isInControlledShutdown {
            leadersLost[broker.id] = image.lastOffset
        }
    }
}
