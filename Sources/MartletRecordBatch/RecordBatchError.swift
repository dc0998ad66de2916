package import MartletLogModel

/// Why a record batch was refused. Each case maps to one Kafka error code and to a message that names
/// cause and remedy; nothing here ever comes from a bug of ours.
///
/// Kafka tells damaged bytes (`CORRUPT_MESSAGE`, which clients send again) from bytes that are whole but
/// wrong (`INVALID_RECORD`, which they do not): whatever is found behind a matching checksum is the latter.
package enum RecordBatchError: Error, Equatable, Sendable {
    // The bytes are damaged or cut.
    case truncated(available: Int, needed: Int)
    case invalidLength(Int32)
    case unknownMagic(Int8)
    case checksumMismatch(stored: UInt32, computed: UInt32)

    // The batch is whole but breaks a rule of its header.
    case empty
    case bytesAfterBatch(Int)
    case oldFormat(magic: Int8)
    case tooLarge(byteCount: Int, limit: Int)
    case recordCountMismatch(recordCount: Int32, lastOffsetDelta: Int32)
    case negativeBaseOffset(Int64)
    case controlBatchFromClient
    case reservedAttributes(Int16)
    case deleteHorizonFromClient
    case invalidProducerFields(producerID: Int64, producerEpoch: Int16, baseSequence: Int32)
    case transactionalWithoutProducer
    case logAppendTimeFromClient
    case timestampOutOfRange(timestamp: Int64, earliest: Int64, latest: Int64)

    // The records break a rule.
    case recordTruncated(recordIndex: Int32)
    case recordLength(recordIndex: Int32, length: Int32)
    case recordLengthMismatch(recordIndex: Int32)
    case varintOverflow(recordIndex: Int32)
    case fieldLength(recordIndex: Int32, field: RecordField, length: Int32)
    case unexpectedOffsetDelta(recordIndex: Int32, offsetDelta: Int32)
    case timestampOverflow(recordIndex: Int32)
    case headerKeyNotUTF8(recordIndex: Int32)
    case missingKeys(recordIndexes: [Int32])
    case tooFewRecords(found: Int32, declared: Int32)
    case bytesAfterLastRecord(declared: Int32)

    // Compression.
    case unknownCodec(UInt8)
    case codecUnavailable(CompressionCodec)
    case damagedCompression(CompressionCodec)
    case unsupportedCompressionFeature(CompressionCodec)
    case bytesAfterCompression(CompressionCodec)
    case inflatedTooLarge(CompressionCodec, limit: Int)

    // Building.
    case batchFull
    case invalidLevel(CompressionCodec, level: Int)
    case compressionFailed(CompressionCodec)

    /// Part of a record that the error speaks of.
    package enum RecordField: String, Sendable {
        case key, value
        case headerCount = "header count"
        case headerKey = "header key"
        case headerValue = "header value"
    }

    /// The code that Kafka's broker answers in the same case.
    package var errorCode: ErrorCode {
        switch self {
        case .truncated, .invalidLength, .unknownMagic, .checksumMismatch:
            ErrorCode(rawValue: 2)  // CORRUPT_MESSAGE
        case .tooLarge, .inflatedTooLarge, .batchFull:
            ErrorCode(rawValue: 10)  // MESSAGE_TOO_LARGE: clients split the batch and try again
        case .timestampOutOfRange, .timestampOverflow, .logAppendTimeFromClient:
            ErrorCode(rawValue: 32)  // INVALID_TIMESTAMP
        case .unknownCodec, .codecUnavailable:
            ErrorCode(rawValue: 76)  // UNSUPPORTED_COMPRESSION_TYPE
        case .invalidLevel:
            ErrorCode(rawValue: 42)  // INVALID_REQUEST
        case .compressionFailed:
            ErrorCode(rawValue: -1)  // UNKNOWN_SERVER_ERROR
        case .empty, .bytesAfterBatch, .oldFormat, .recordCountMismatch, .negativeBaseOffset,
            .controlBatchFromClient, .reservedAttributes, .deleteHorizonFromClient, .invalidProducerFields,
            .transactionalWithoutProducer, .recordTruncated, .recordLength, .recordLengthMismatch,
            .varintOverflow, .fieldLength, .unexpectedOffsetDelta, .headerKeyNotUTF8, .missingKeys,
            .tooFewRecords, .bytesAfterLastRecord, .damagedCompression, .unsupportedCompressionFeature,
            .bytesAfterCompression:
            ErrorCode(rawValue: 87)  // INVALID_RECORD
        }
    }

    /// True when the bytes themselves are damaged: on disk, that is corruption or a torn tail.
    package var isDamage: Bool { errorCode.rawValue == 2 }
}

extension RecordBatchError: CustomStringConvertible {
    /// Cause and remedy in one or two sentences; shows no record contents.
    package var description: String {
        switch self {
        case .truncated(let available, let needed):
            "the batch is cut: \(available) of \(needed) bytes are there; send it again"
        case .invalidLength(let length):
            "the batch length \(length) is below the 49 bytes of a batch header; send the batch again"
        case .unknownMagic(let magic):
            "unknown record format (magic \(magic)); send record batches of format 2"
        case .checksumMismatch(let stored, let computed):
            "the CRC-32C does not match (stored \(hexadecimal(stored)), computed \(hexadecimal(computed))): "
                + "bytes were damaged on the way; send the batch again"
        case .empty:
            "the request carries no record batch for the partition; send exactly one"
        case .bytesAfterBatch(let count):
            "\(count) bytes follow the record batch; send exactly one batch per partition and request"
        case .oldFormat(let magic):
            "record format \(magic) is no longer supported; use a client that writes format 2 (Kafka 0.11 or later)"
        case .tooLarge(let byteCount, let limit):
            "the batch has \(byteCount) bytes, the limit is \(limit); send smaller batches or raise max.message.bytes"
        case .recordCountMismatch(let recordCount, let lastOffsetDelta):
            "the header declares \(recordCount) records but a last offset delta of \(lastOffsetDelta); "
                + "the count must be positive and one more than the delta"
        case .negativeBaseOffset(let offset):
            "the base offset \(offset) is negative or too large; clients send 0"
        case .controlBatchFromClient:
            "the batch has the control bit; only brokers write control batches"
        case .reservedAttributes(let attributes):
            "reserved attribute bits are set (attributes \(attributes)); use a client of a supported release"
        case .deleteHorizonFromClient:
            "the batch has the delete-horizon bit; only the broker's compaction writes it"
        case .invalidProducerFields(let producerID, let producerEpoch, let baseSequence):
            "producer id \(producerID) with epoch \(producerEpoch) and base sequence \(baseSequence): "
                + "all three must be set or none"
        case .transactionalWithoutProducer:
            "the batch is transactional but has no producer id; call InitProducerId first"
        case .logAppendTimeFromClient:
            "the batch has the log-append-time bit; only the broker sets it (message.timestamp.type)"
        case .timestampOutOfRange(let timestamp, let earliest, let latest):
            "timestamp \(timestamp) is outside \(earliest)...\(latest); check the producer's clock or "
                + "message.timestamp.before.max.ms and message.timestamp.after.max.ms"
        case .recordTruncated(let index):
            "record \(index) reaches past the end of the batch; the producer wrote a wrong length"
        case .recordLength(let index, let length):
            "record \(index) declares \(length) bytes, fewer than a record can have"
        case .recordLengthMismatch(let index):
            "the fields of record \(index) do not fill its declared length exactly"
        case .varintOverflow(let index):
            "a number in record \(index) has more bits than its type holds"
        case .fieldLength(let index, let field, let length):
            "the \(field.rawValue) of record \(index) declares length \(length), which does not fit the record"
        case .unexpectedOffsetDelta(let index, let offsetDelta):
            "record \(index) has offset delta \(offsetDelta); deltas must run 0, 1, 2 and so on"
        case .timestampOverflow(let index):
            "base timestamp plus delta of record \(index) exceeds 64 bits"
        case .headerKeyNotUTF8(let index):
            "a header key of record \(index) is not UTF-8, which would stop its consumers"
        case .missingKeys(let indexes):
            (indexes.count > 1 ? "\(indexes.count) records have" : "record \(indexes.first ?? 0) has")
                + " no key, and the topic is compacted (cleanup.policy=compact); set a key"
        case .tooFewRecords(let found, let declared):
            "the batch declares \(declared) records but contains \(found)"
        case .bytesAfterLastRecord(let declared):
            "bytes follow the last of \(declared) declared records"
        case .unknownCodec(let code):
            "unknown compression code \(code); known are none, gzip, snappy, lz4, zstd"
        case .codecUnavailable(let codec):
            "\(codec.name) is not available on this machine: \(codec.library?.file ?? "its library") cannot be "
                + "loaded; install the package \(codec.library?.debianPackage ?? codec.name) "
                + "or use another compression.type"
        case .damagedCompression(let codec):
            "the \(codec.name) data cannot be decompressed although the checksum matches; the producer wrote it wrong"
        case .unsupportedCompressionFeature(let codec):
            "the \(codec.name) frame uses a feature that Kafka consumers cannot read "
                + "(lz4: linked blocks or a dictionary); configure the producer's codec accordingly"
        case .bytesAfterCompression(let codec):
            "bytes follow the end of the \(codec.name) data"
        case .inflatedTooLarge(let codec, let limit):
            "the \(codec.name) data inflates to more than \(limit) bytes; send smaller batches"
        case .batchFull:
            "the record does not fit: a batch holds at most 2^31 - 1 bytes and records; start another batch"
        case .invalidLevel(let codec, let level):
            "\(codec.name) has no level \(level)"
                + (codec.levels.map { "; allowed are \($0.lowerBound) to \($0.upperBound)" } ?? "")
        case .compressionFailed(let codec):
            "\(codec.name) compression failed, probably for lack of memory"
        }
    }
}

private func hexadecimal(_ value: UInt32) -> String {
    let digits = String(value, radix: 16)
    return "0x" + String(repeating: "0", count: 8 - digits.count) + digits
}
