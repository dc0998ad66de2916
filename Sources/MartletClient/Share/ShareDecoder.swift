import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Finds the records that were given to this member in the bytes of an answer.
struct ShareDecoder {
    private let decompressor = RecordDecompressor()
    private let limits: BatchLimits

    init(inflatedByteLimit: Int) {
        var limits = BatchLimits.stored
        limits.maxInflatedBytes = inflatedByteLimit
        self.limits = limits
    }

    /// Cuts the bytes of one partition into batches, verifies and decompresses each, and hands out the records that were
    /// given to this member; a batch may hold others.
    ///
    /// - Returns: What is to be said about the other offsets that were given: those without a record are gaps. What
    ///   cannot be read is given back: damage on the way heals, and damage in the log ends at the limit of deliveries.
    func decode(
        _ item: ShareFetchResponse.PartitionData, _ body: (RecordView, Int, LeaderEpoch?) -> Void
    ) -> (runs: [ShareRun], damage: RecordBatchError?) {
        var acquired = AcquiredOffsets(
            item.acquiredRecords.map { ($0.firstOffset, $0.lastOffset, $0.deliveryCount) })
        var bytes = item.records
        do {
            while bytes.readableBytes >= RecordBatchHeader.byteCount {
                let header = try RecordBatchHeader(reading: bytes)
                guard let slice = bytes.readSlice(length: header.totalByteCount) else { break }
                try decode(slice, &acquired, body)
            }
        } catch {
            acquired.finish(.release)
            return (acquired.runs, error)
        }
        // A batch that was cut off may hold the rest.
        acquired.finish(bytes.readableBytes == 0 ? .gap : .release)
        return (acquired.runs, nil)
    }

    private func decode(
        _ slice: ByteBuffer, _ acquired: inout AcquiredOffsets,
        _ body: (RecordView, Int, LeaderEpoch?) -> Void
    ) throws(RecordBatchError) {
        let header = try RecordBatchValidator.checkHeader(slice, limits: limits)
        // Markers are no records, which only the checksum makes certain.
        if header.isControl { return }
        let epoch = header.partitionLeaderEpoch >= 0 ? LeaderEpoch(header.partitionLeaderEpoch) : nil
        var iterator = try RecordIterator(slice, limits: limits, decompressor: decompressor)
        while let view = try iterator.next() {
            guard let deliveryCount = acquired.take(view.offset.rawValue) else { continue }
            body(view, Int(deliveryCount), epoch)
        }
    }
}
