internal import MartletLogModel
package import NIOCore

/// Re-encodes a batch in another codec, for topics whose `compression.type` differs from the producer's.
///
/// Everything but the compression stays: offsets, times, keys, headers, producer fields, and so the
/// duplicate detection of idempotent producers.
package enum RecordBatchRecoder {
    /// - Parameters:
    ///   - batch: one validated batch of a client.
    ///   - level: effort of the codec; 0 or a level the codec does not know means its default.
    package static func recode(
        _ batch: ByteBuffer, to codec: CompressionCodec, level: Int32, limits: BatchLimits
    ) throws(RecordBatchError) -> ByteBuffer {
        var iterator = try RecordIterator(batch, limits: limits)
        let header = iterator.header
        var builder = RecordBatchBuilder(
            capacity: batch.readableBytes * 2, baseTimestamp: header.baseTimestamp)
        while let record = try iterator.next() {
            try builder.append(
                key: record.key, value: record.value, headers: record.headers,
                timestamp: record.timestamp.rawValue)
        }
        var options = RecordBatchBuilder.Options(codec: codec)
        if let levels = codec.levels, levels.contains(Int(level)), level != 0 { options.level = Int(level) }
        options.producerID = header.producerID
        options.producerEpoch = header.producerEpoch
        options.baseSequence = header.baseSequence
        options.isTransactional = header.isTransactional
        return try builder.build(options)
    }
}

extension RecordBatchError {
    /// Indexes of the records the error speaks of, where it is the fault of single records (KIP-467).
    package var recordIndexes: [Int32] {
        switch self {
        case .recordTruncated(let index), .recordLength(let index, _), .recordLengthMismatch(let index),
            .varintOverflow(let index), .fieldLength(let index, _, _), .unexpectedOffsetDelta(let index, _),
            .timestampOverflow(let index), .headerKeyNotUTF8(let index):
            [index]
        case .missingKeys(let indexes):
            indexes
        case _:
            []
        }
    }
}
