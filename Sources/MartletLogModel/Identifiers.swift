/// Index of a partition within its topic, 0 upwards.
@frozen
public struct PartitionIndex: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: Int32
    @inlinable public init(rawValue: Int32) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: Int32) { self.rawValue = rawValue }
    @inlinable
    public static func < (left: PartitionIndex, right: PartitionIndex) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// Number of a broker in its cluster, 0 upwards; Kafka's `node.id`.
@frozen
public struct BrokerID: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: Int32
    @inlinable public init(rawValue: Int32) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: Int32) { self.rawValue = rawValue }
    @inlinable
    public static func < (left: BrokerID, right: BrokerID) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// Number of a leadership of one partition; rises with each new leader (KIP-101).
@frozen
public struct LeaderEpoch: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: Int32
    @inlinable public init(rawValue: Int32) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: Int32) { self.rawValue = rawValue }
    public static let zero = LeaderEpoch(0)
    @inlinable
    public static func < (left: LeaderEpoch, right: LeaderEpoch) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// Number of a version of one partition's metadata; rises with each change of leader, in-sync set or replicas and
/// orders AlterPartition requests (KIP-497).
@frozen
public struct PartitionEpoch: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: Int32
    @inlinable public init(rawValue: Int32) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: Int32) { self.rawValue = rawValue }
    public static let zero = PartitionEpoch(0)
    @inlinable
    public static func < (left: PartitionEpoch, right: PartitionEpoch) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// Number of one registration of a broker with the controller; each start gets a higher one (KIP-631, KIP-903).
@frozen
public struct BrokerEpoch: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: Int64
    @inlinable public init(rawValue: Int64) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: Int64) { self.rawValue = rawValue }
    @inlinable
    public static func < (left: BrokerEpoch, right: BrokerEpoch) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// Identity of an idempotent or transactional producer (KIP-98); handed out by the controller in blocks.
@frozen
public struct ProducerID: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: Int64
    @inlinable public init(rawValue: Int64) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: Int64) { self.rawValue = rawValue }
    @inlinable
    public static func < (left: ProducerID, right: ProducerID) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// A topic's name and one of its partitions.
public struct TopicPartition: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var topic: String
    public var partition: PartitionIndex

    public init(topic: String, partition: PartitionIndex) {
        self.topic = topic
        self.partition = partition
    }

    public init(_ topic: String, _ partition: Int32) {
        self.init(topic: topic, partition: PartitionIndex(partition))
    }

    public static func < (left: TopicPartition, right: TopicPartition) -> Bool {
        left.topic == right.topic ? left.partition < right.partition : left.topic < right.topic
    }

    /// `topic-partition`, which is also the name of the partition's folder on disk.
    public var description: String { "\(topic)-\(partition)" }
}
