import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

/// The seed of every generator in this target; printed by a failing expectation through its arguments.
struct Randomness: RandomNumberGenerator {
    var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {  // SplitMix64
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

func bytes(hex: String) -> ByteBuffer {
    var buffer = ByteBuffer()
    var digits = hex.utf8.compactMap { UInt8(String(UnicodeScalar($0)), radix: 16) }[...]
    while digits.count >= 2 {
        buffer.writeInteger(digits.removeFirst() << 4 | digits.removeFirst())
    }
    return buffer
}

struct PlainRecord: Equatable {
    var timestamp: Int64
    var key: String?
    var value: ByteBuffer?
    var headers: [RecordHeader] = []

    init(_ timestamp: Int64, _ key: String?, _ value: String?, _ headers: [RecordHeader] = []) {
        self.init(timestamp, key, bytes: value.map { ByteBuffer(string: $0) }, headers)
    }
    init(_ timestamp: Int64, _ key: String?, bytes: ByteBuffer?, _ headers: [RecordHeader] = []) {
        self.timestamp = timestamp
        self.key = key
        self.value = bytes
        self.headers = headers
    }
}

let smallRecords = [
    PlainRecord(
        1_700_000_000_000, "key-1", "value-1",
        [RecordHeader(key: "h1", value: ByteBuffer(string: "x")), RecordHeader(key: "h2", value: nil)]),
    PlainRecord(1_700_000_000_007, nil, "value-2"),
    PlainRecord(1_699_999_999_990, "key-3", nil, [RecordHeader(key: "été", value: ByteBuffer())]),
]

func build(
    _ records: [PlainRecord], _ options: RecordBatchBuilder.Options = .init(),
    compressor: RecordCompressor? = nil
) throws -> ByteBuffer {
    var builder = RecordBatchBuilder(capacity: 64)
    for record in records {
        try builder.append(
            key: record.key.map { ByteBuffer(string: $0) }, value: record.value, headers: record.headers,
            timestamp: record.timestamp)
    }
    return try builder.build(options, compressor: compressor)
}

func read(_ batch: ByteBuffer, limits: BatchLimits = .stored) throws -> [PlainRecord] {
    var iterator = try RecordIterator(batch, limits: limits)
    var records: [PlainRecord] = []
    while let record = try iterator.next() {
        records.append(
            PlainRecord(
                record.timestamp.rawValue, record.key.map { String(buffer: $0) }, bytes: record.value,
                record.headers))
    }
    return records
}

/// Both validation steps, as the broker makes them.
@discardableResult
func validate(
    _ batch: ByteBuffer, limits: BatchLimits = BatchLimits(maxBatchBytes: 1 << 28), requireKeys: Bool = false,
    with validator: RecordValidator? = nil
) throws(RecordBatchError) -> RecordFacts {
    let header = try RecordBatchValidator.checkHeader(batch, limits: limits)
    if let validator {
        return try validator.checkRecords(batch, header: header, limits: limits, requireKeys: requireKeys)
    }
    return try RecordBatchValidator.checkRecords(
        batch, header: header, limits: limits, requireKeys: requireKeys)
}

/// The error of `body`, nil when it succeeds.
func refusal<Value>(_ body: () throws(RecordBatchError) -> Value) -> RecordBatchError? {
    do {
        _ = try body()
        return nil
    } catch {
        return error
    }
}

/// `batch` with an integer overwritten and the checksum and length made right again.
func patched<Value: FixedWidthInteger>(_ batch: ByteBuffer, at offset: Int, to value: Value) -> ByteBuffer {
    var copy = batch
    copy.setInteger(value, at: copy.readerIndex + offset)
    RecordBatchPatch.updateChecksum(in: &copy)
    return copy
}

/// A batch around an arbitrary record section, sealed so that only the records can be wrong.
func sealed(
    section: ByteBuffer, recordCount: Int32, codec: CompressionCodec, compressor: RecordCompressor
) throws -> ByteBuffer {
    var batch = ByteBuffer()
    batch.writeRepeatingByte(0, count: RecordBatchHeader.byteCount)
    batch.writeImmutableBuffer(section)
    if codec != .none {
        batch = try compressor.compress(
            batch, from: RecordBatchHeader.byteCount, codec: codec, level: nil)
    }
    return sealed(
        compressedSection: batch.getSlice(
            at: batch.readerIndex + RecordBatchHeader.byteCount,
            length: batch.readableBytes - RecordBatchHeader.byteCount)!, recordCount: recordCount,
        codec: codec)
}

/// A batch whose record section is taken as it is.
func sealed(compressedSection: ByteBuffer, recordCount: Int32, codec: CompressionCodec) -> ByteBuffer {
    var batch = ByteBuffer()
    batch.writeInteger(Int64(0))
    batch.writeInteger(Int32(49 + compressedSection.readableBytes))
    batch.writeInteger(Int32(-1))
    batch.writeInteger(Int8(2))
    batch.writeInteger(UInt32(0))
    batch.writeInteger(Int16(codec.rawValue))
    batch.writeInteger(recordCount - 1)
    batch.writeInteger(Int64(1_000))
    batch.writeInteger(Int64(1_000))
    batch.writeInteger(Int64(-1))
    batch.writeInteger(Int16(-1))
    batch.writeInteger(Int32(-1))
    batch.writeInteger(recordCount)
    batch.writeImmutableBuffer(compressedSection)
    RecordBatchPatch.updateChecksum(in: &batch)
    return batch
}

func randomBytes(_ count: Int, alphabet: UInt8 = 255, using random: inout Randomness) -> ByteBuffer {
    // `alphabet` is a mask: 2^n - 1.
    let mask = UInt64(alphabet) &* 0x0101_0101_0101_0101
    var buffer = ByteBuffer()
    buffer.reserveCapacity(count + 8)
    while buffer.readableBytes < count { buffer.writeInteger(random.next() & mask) }
    buffer.moveWriterIndex(to: count)
    return buffer
}

func randomRecords(using random: inout Randomness, largest: Int = 300, count: Int? = nil) -> [PlainRecord] {
    (0..<(count ?? Int.random(in: 1...40, using: &random))).map { index in
        let headerCount =
            Int.random(in: 0...5, using: &random) == 0 ? Int.random(in: 1...4, using: &random) : 0
        return PlainRecord(
            1_600_000_000_000 + Int64.random(in: -5_000...5_000, using: &random),
            Bool.random(using: &random) ? nil : "key-\(Int.random(in: 0...9, using: &random))",
            bytes: Int.random(in: 0...9, using: &random) == 0
                ? nil : randomBytes(Int.random(in: 0...largest, using: &random), alphabet: 7, using: &random),
            (0..<headerCount).map { number in
                RecordHeader(
                    key: "h\(number)é",
                    value: Bool.random(using: &random)
                        ? nil : randomBytes(Int.random(in: 0...20, using: &random), using: &random))
            })
    }
}

let compressedCodecs = [CompressionCodec.gzip, .snappy, .lz4, .zstd].filter(\.isAvailable)
