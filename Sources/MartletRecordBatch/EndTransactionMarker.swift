package import NIOCore

/// The control record that ends a transaction on a partition (KIP-98): which way it went, and under which epoch of
/// the transaction coordinator. Producer id and epoch stand in the batch's header.
///
/// Key: version int16, type int16 (0 abort, 1 commit). Value: version int16, coordinator epoch int32.
package struct EndTransactionMarker: Hashable, Sendable {
    package var commits: Bool
    package var coordinatorEpoch: Int32

    private static let abortType: Int16 = 0
    private static let commitType: Int16 = 1
    private static let version: Int16 = 0

    package init(commits: Bool, coordinatorEpoch: Int32) {
        self.commits = commits
        self.coordinatorEpoch = coordinatorEpoch
    }

    /// The marker in a stored control batch. `nil` for control batches of another kind, and for one that compaction
    /// has emptied: nothing is left of its transaction.
    package init?(batch: ByteBuffer) throws(RecordBatchError) {
        var records = try RecordIterator(batch)
        guard records.header.isControl, let record = try records.next(), var key = record.key,
            var value = record.value, key.readInteger(as: Int16.self) != nil,
            let type = key.readInteger(as: Int16.self), type == Self.abortType || type == Self.commitType,
            value.readInteger(as: Int16.self) != nil, let epoch = value.readInteger(as: Int32.self)
        else { return nil }
        self.init(commits: type == Self.commitType, coordinatorEpoch: epoch)
    }

    /// A batch with this marker alone.
    package func batch(
        producerID: Int64, producerEpoch: Int16, timestamp: Int64
    ) throws(RecordBatchError) -> ByteBuffer {
        var key = ByteBuffer()
        key.writeMultipleIntegers(Self.version, commits ? Self.commitType : Self.abortType)
        var value = ByteBuffer()
        value.writeMultipleIntegers(Self.version, coordinatorEpoch)
        var builder = RecordBatchBuilder(capacity: 128)
        try builder.append(key: key, value: value, timestamp: timestamp)
        return try builder.build(
            RecordBatchBuilder.Options(
                producerID: producerID, producerEpoch: producerEpoch, isTransactional: true, isControl: true))
    }
}
