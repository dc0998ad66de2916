public import MartletLogModel
public import NIOCore

/// A record as read from a partition. Key and value are slices of the fetched bytes, not copies.
public struct ConsumedRecord: Sendable {
    public let topicPartition: TopicPartition
    public let offset: Offset
    public let timestamp: Timestamp
    public let key: ByteBuffer?
    public let value: ByteBuffer?
    public let headers: [RecordHeader]
    /// Epoch of the leader that appended the record, to be kept beside a position stored elsewhere.
    public let leaderEpoch: LeaderEpoch?

    public var topic: String { topicPartition.topic }
    public var partition: PartitionIndex { topicPartition.partition }
    /// The key as text; `nil` without a key. Bytes that are no UTF-8 become U+FFFD.
    public var keyString: String? { key.map { String(buffer: $0) } }
    /// The value as text; `nil` without a value.
    public var valueString: String? { value.map { String(buffer: $0) } }
}

/// A run of consecutive records of one partition, decoded one by one while iterating.
///
/// Iterating allocates nothing per record without headers; keys and values are slices of the fetched bytes.
public struct ConsumedBatch: Sendable, Sequence {
    public let topicPartition: TopicPartition
    /// First and last offset are inclusive; offsets in between may be missing on compacted topics.
    public let firstOffset: Offset
    public let lastOffset: Offset
    /// Number of records; exact.
    public let count: Int

    public func makeIterator() -> Iterator { Iterator() }

    public struct Iterator: IteratorProtocol {
        public mutating func next() -> ConsumedRecord? { nil }
    }
}

/// A position in a partition with the text that was committed beside it.
public struct CommittedOffset: Hashable, Sendable {
    /// The next record to read.
    public var offset: Offset
    /// Epoch of the leader that appended the record before; lets the broker detect lost records (KIP-320).
    public var leaderEpoch: LeaderEpoch?
    /// Free text kept by the coordinator.
    public var metadata: String

    public init(_ offset: Offset, leaderEpoch: LeaderEpoch? = nil, metadata: String = "") {
        self.offset = offset
        self.leaderEpoch = leaderEpoch
        self.metadata = metadata
    }
}

/// Answer to a question about offsets.
public struct ListedOffset: Hashable, Sendable {
    public var offset: Offset
    /// Time of that record; `nil` for earliest and latest.
    public var timestamp: Timestamp?
    public var leaderEpoch: LeaderEpoch?

    public init(_ offset: Offset, timestamp: Timestamp? = nil, leaderEpoch: LeaderEpoch? = nil) {
        self.offset = offset
        self.timestamp = timestamp
        self.leaderEpoch = leaderEpoch
    }
}
