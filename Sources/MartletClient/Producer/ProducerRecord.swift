public import MartletLogModel
public import NIOCore

/// A named value that travels with a record.
public struct RecordHeader: Hashable, Sendable {
    public var name: String
    /// `nil` is Kafka's null, which differs from an empty value.
    public var value: ByteBuffer?

    public init(_ name: String, _ value: ByteBuffer?) {
        self.name = name
        self.value = value
    }

    public init(_ name: String, _ value: String) {
        self.init(name, ByteBuffer(string: value))
    }
}

/// A record on its way to a topic.
public struct ProducerRecord: Hashable, Sendable {
    public var topic: String
    /// `nil`: the producer's ``Partitioner`` chooses.
    public var partition: PartitionIndex?
    /// Decides the partition and, on compacted topics, which record is replaced.
    public var key: ByteBuffer?
    /// `nil` is a tombstone on compacted topics.
    public var value: ByteBuffer?
    public var headers: [RecordHeader]
    /// `nil`: the time at which the record is handed over.
    public var timestamp: Timestamp?

    public init(
        topic: String, partition: PartitionIndex? = nil, key: ByteBuffer? = nil, value: ByteBuffer?,
        headers: [RecordHeader] = [], timestamp: Timestamp? = nil
    ) {
        self.topic = topic
        self.partition = partition
        self.key = key
        self.value = value
        self.headers = headers
        self.timestamp = timestamp
    }

    public init(
        topic: String, partition: PartitionIndex? = nil, key: String? = nil, value: String,
        headers: [RecordHeader] = [], timestamp: Timestamp? = nil
    ) {
        self.init(
            topic: topic, partition: partition, key: key.map { ByteBuffer(string: $0) },
            value: ByteBuffer(string: value), headers: headers, timestamp: timestamp)
    }

    public init(
        topic: String, partition: PartitionIndex? = nil, key: [UInt8]? = nil, value: [UInt8],
        headers: [RecordHeader] = [], timestamp: Timestamp? = nil
    ) {
        self.init(
            topic: topic, partition: partition, key: key.map { ByteBuffer(bytes: $0) },
            value: ByteBuffer(bytes: value), headers: headers, timestamp: timestamp)
    }
}

/// Where an acknowledged record went.
public struct RecordMetadata: Hashable, Sendable {
    public var topicPartition: TopicPartition
    /// `nil` with ``Acknowledgement/none``, where the broker says nothing.
    public var offset: Offset?
    /// The record's time: the broker's on topics with log-append time, else the producer's.
    public var timestamp: Timestamp
}

/// Counters of a ``Producer`` since its start.
public struct ProducerStatistics: Hashable, Sendable {
    /// Records handed over.
    public var enqueuedRecordCount = 0
    /// Records that the broker acknowledged (or sent, with ``Acknowledgement/none``).
    public var deliveredRecordCount = 0
    /// Records given up.
    public var failedRecordCount = 0
    /// Produce requests sent, attempts counted singly.
    public var requestCount = 0
    /// Batches acknowledged.
    public var deliveredBatchCount = 0
    /// Batches sent again.
    public var retryCount = 0
    /// Bytes of batches as sent, after compression.
    public var sentBatchBytes = 0
    /// Bytes waiting or in flight now.
    public var bufferedBytes = 0
}
