package import MartletKafkaProtocol
import MartletLogModel
package import NIOCore

/// One record of `__transaction_state` in Kafka's layout; a state of `nil` is a tombstone.
package struct TransactionRecord: Sendable, Equatable {
    package var transactionalID: String
    package var state: TransactionState?

    package init(transactionalID: String, state: TransactionState?) {
        self.transactionalID = transactionalID
        self.state = state
    }

    /// Version written. 1 carries the ids of KIP-890 and is read by every Kafka 4 release.
    private static let valueVersion: Int16 = 1
    private static let keyType: Int16 = 0

    /// Key and value bytes of the record.
    package func encoded() throws(EncodeError) -> (key: ByteBuffer, value: ByteBuffer?) {
        var key = TransactionLogKey()
        key.transactionalID = transactionalID
        var writer = ProtocolWriter()
        writer.integer(Self.keyType)
        try key.encode(into: &writer, version: 0)
        guard let state else { return (writer.buffer, nil) }
        var valueWriter = ProtocolWriter()
        valueWriter.integer(Self.valueVersion)
        try state.logValue.encode(into: &valueWriter, version: Self.valueVersion)
        return (writer.buffer, valueWriter.buffer)
    }

    /// Reads a record; `nil` for a type this release does not know, which a newer broker may have written and
    /// which is left alone.
    package static func decode(key: ByteBuffer, value: ByteBuffer?) throws(DecodeError) -> TransactionRecord? {
        var reader = ProtocolReader(key)
        let type: Int16 = try reader.integer()
        guard type == keyType else { return nil }
        let logKey = try TransactionLogKey(reading: &reader, version: 0)
        guard let value else { return TransactionRecord(transactionalID: logKey.transactionalID, state: nil) }
        var valueReader = ProtocolReader(value)
        let version: Int16 = try valueReader.integer()
        let logValue = try TransactionLogValue(reading: &valueReader, version: version)
        guard let state = TransactionState(logValue) else { return nil }
        return TransactionRecord(transactionalID: logKey.transactionalID, state: state)
    }
}

extension TransactionState {
    /// `nil` for a phase that no release writes.
    init?(_ value: TransactionLogValue) {
        guard let phase = TransactionPhase(rawValue: value.transactionStatus) else { return nil }
        producer = ProducerIdentity(id: value.producerID, epoch: value.producerEpoch)
        previousProducerID = value.previousProducerID < 0 ? nil : value.previousProducerID
        nextProducerID = value.nextProducerID < 0 ? nil : value.nextProducerID
        timeoutMilliseconds = value.transactionTimeoutMs
        self.phase = phase
        partitions = []
        for topic in value.transactionPartitions ?? [] {
            for partition in topic.partitionIDs { partitions.insert(TopicPartition(topic.topic, partition)) }
        }
        updatedAt = Timestamp(milliseconds: value.transactionLastUpdateTimestampMs)
        startedAt =
            value.transactionStartTimestampMs < 0
            ? nil : Timestamp(milliseconds: value.transactionStartTimestampMs)
        // Kafka writes 0 where the rules of the first protocol hold.
        switch value.clientTransactionVersion {
        case 2...: transactionProtocol = .second
        case _: transactionProtocol = phase == .empty ? nil : .first
        }
    }

    var logValue: TransactionLogValue {
        var value = TransactionLogValue()
        value.producerID = producer.id
        value.producerEpoch = producer.epoch
        value.previousProducerID = previousProducerID ?? -1
        value.nextProducerID = nextProducerID ?? -1
        value.transactionTimeoutMs = timeoutMilliseconds
        value.transactionStatus = phase.rawValue
        var topics: [TransactionLogValue.PartitionsSchema] = []
        for partition in partitions.sorted() {
            if topics.last?.topic != partition.topic {
                var topic = TransactionLogValue.PartitionsSchema()
                topic.topic = partition.topic
                topics.append(topic)
            }
            topics[topics.count - 1].partitionIDs.append(partition.partition.rawValue)
        }
        // A resting transactional id has no partitions, which Kafka writes as null.
        value.transactionPartitions = phase == .empty ? nil : topics
        value.transactionLastUpdateTimestampMs = updatedAt.rawValue
        value.transactionStartTimestampMs = startedAt?.rawValue ?? -1
        value.clientTransactionVersion = transactionProtocol == .second ? 2 : 0
        return value
    }
}
