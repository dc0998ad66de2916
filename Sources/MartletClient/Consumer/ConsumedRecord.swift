public import MartletLogModel
import MartletRecordBatch
public import NIOCore

/// A record as read from a partition. Key, value and headers are slices of the fetched bytes, not copies; keep
/// a record for long and it keeps the whole fetched batch in memory.
public struct ConsumedRecord: Sendable {
    public let topicPartition: TopicPartition
    public let offset: Offset
    public let timestamp: Timestamp
    /// `nil` is Kafka's null key.
    public let key: ByteBuffer?
    /// `nil` is a tombstone on compacted topics.
    public let value: ByteBuffer?
    /// Epoch of the leader that appended the record, to be kept beside a position stored elsewhere.
    public let leaderEpoch: LeaderEpoch?
    private let view: RecordView?

    init(_ view: RecordView, _ topicPartition: TopicPartition, _ leaderEpoch: LeaderEpoch?) {
        self.topicPartition = topicPartition
        self.offset = view.offset
        self.timestamp = view.timestamp
        self.key = view.key
        self.value = view.value
        self.leaderEpoch = leaderEpoch
        self.view = view.headerCount == 0 ? nil : view
    }

    public var topic: String { topicPartition.topic }
    public var partition: PartitionIndex { topicPartition.partition }
    /// The headers in their order; a name may occur more than once. Decoded at each call.
    public var headers: [RecordHeader] { view?.headers.map { RecordHeader($0.key, $0.value) } ?? [] }
    /// The key as text; `nil` without a key. Bytes that are no UTF-8 become U+FFFD.
    public var keyString: String? { key.map { String(buffer: $0) } }
    /// The value as text; `nil` without a value.
    public var valueString: String? { value.map { String(buffer: $0) } }
}

/// A run of consecutive records of one partition, decoded one by one while iterating.
///
/// Iterating allocates nothing per record; keys and values are slices of the fetched bytes. A damaged record
/// ends the iteration, and the next `poll` throws the reason.
public struct ConsumedBatch: Sendable, Sequence {
    public let topicPartition: TopicPartition
    /// Offset of the first record, or a little before it on compacted topics.
    public let firstOffset: Offset
    /// Offset of the last record; on compacted topics, of the last one that ever was in the batch.
    public let lastOffset: Offset
    /// Number of records.
    public internal(set) var count: Int
    /// Epoch of the leader that appended the batch.
    public let leaderEpoch: LeaderEpoch?

    /// `nil` where there is nothing to hand out but the position moves on: control and aborted batches.
    var records: RecordIterator?
    /// Position once all records are handed out.
    var nextOffset: Offset
    /// Bytes counted against the consumer's buffer.
    var byteCount: Int
    let cursor: PartitionCursor
    /// Value of the cursor's version when the batch was fetched.
    let version: Int

    public var underestimatedCount: Int { count }

    public func makeIterator() -> Iterator {
        Iterator(records: records, topicPartition: topicPartition, leaderEpoch: leaderEpoch, cursor: cursor)
    }

    /// Walks a batch.
    public struct Iterator: IteratorProtocol, Sendable {
        /// What has not been handed out yet.
        var rest: RecordIterator? { records }
        private var records: RecordIterator?
        private let topicPartition: TopicPartition
        private let leaderEpoch: LeaderEpoch?
        private let cursor: PartitionCursor

        init(
            records: RecordIterator?, topicPartition: TopicPartition, leaderEpoch: LeaderEpoch?,
            cursor: PartitionCursor
        ) {
            self.records = records
            self.topicPartition = topicPartition
            self.leaderEpoch = leaderEpoch
            self.cursor = cursor
        }

        public mutating func next() -> ConsumedRecord? {
            do {
                guard let view = try records?.next() else { return nil }
                return ConsumedRecord(view, topicPartition, leaderEpoch)
            } catch {
                cursor.recordDamage(
                    ClientError(
                        .corruptData,
                        "the batch at offset \(records?.header.baseOffset ?? 0) of \(topicPartition) cannot be read: "
                            + "\(error); seek behind offset \(records?.header.lastOffset ?? 0) to go on without it",
                        cause: error))
                return nil
            }
        }
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
