import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@Suite struct HeaderRuleTests {
    let batch: ByteBuffer
    init() throws { batch = try build(smallRecords) }

    private func refusalOfHeader(_ batch: ByteBuffer, _ limits: BatchLimits = BatchLimits())
        -> RecordBatchError?
    {
        refusal { () throws(RecordBatchError) in try RecordBatchValidator.checkHeader(batch, limits: limits) }
    }

    @Test func `a sound batch passes`() {
        #expect(refusalOfHeader(batch) == nil)
    }

    @Test func `a checksum folded while bytes arrived is taken over`() throws {
        let folded = crc32c(batch, range: 21..<batch.readableBytes)
        #expect(throws: Never.self) {
            try RecordBatchValidator.checkHeader(batch, limits: BatchLimits(), checksum: folded)
        }
        #expect(throws: RecordBatchError.checksumMismatch(stored: folded, computed: 1)) {
            try RecordBatchValidator.checkHeader(batch, limits: BatchLimits(), checksum: 1)
        }
    }

    @Test func `damage answers CORRUPT_MESSAGE`() {
        var flipped = batch
        flipped.setInteger(UInt8(0xEE), at: 90)
        let errors = [
            refusalOfHeader(batch.getSlice(at: 0, length: 10)!),
            refusalOfHeader(batch.getSlice(at: 0, length: 60)!),
            refusalOfHeader(batch.getSlice(at: 0, length: 100)!),
            refusalOfHeader(flipped),
            refusalOfHeader(patched(batch, at: 16, to: Int8(3))),
            refusalOfHeader(patched(batch, at: 16, to: Int8(-1))),
            refusalOfHeader(patched(batch, at: 8, to: Int32(48))),
            refusalOfHeader(patched(batch, at: 8, to: Int32(-1))),
            refusalOfHeader(patched(batch, at: 8, to: Int32.min)),
        ]
        for (number, error) in errors.enumerated() {
            #expect(error?.errorCode.rawValue == 2, "case \(number): \(String(describing: error))")
            #expect(error?.isDamage == true)
        }
    }

    @Test func `the old formats and anything but one batch answer INVALID_RECORD`() {
        #expect(refusalOfHeader(ByteBuffer()) == .empty)
        #expect(refusalOfHeader(patched(batch, at: 16, to: Int8(0))) == .oldFormat(magic: 0))
        #expect(refusalOfHeader(patched(batch, at: 16, to: Int8(1))) == .oldFormat(magic: 1))
        var two = batch
        two.writeImmutableBuffer(batch)
        #expect(refusalOfHeader(two) == .bytesAfterBatch(batch.readableBytes))
        for error in [RecordBatchError.empty, .oldFormat(magic: 1), .bytesAfterBatch(1)] {
            #expect(error.errorCode.rawValue == 87)
        }
    }

    @Test func `a batch above the limit answers MESSAGE_TOO_LARGE before its checksum is computed`() {
        var damaged = batch
        damaged.setInteger(UInt8(0xEE), at: 90)
        let error = refusalOfHeader(damaged, BatchLimits(maxBatchBytes: batch.readableBytes - 1))
        #expect(error == .tooLarge(byteCount: batch.readableBytes, limit: batch.readableBytes - 1))
        #expect(error?.errorCode.rawValue == 10)
        #expect(refusalOfHeader(batch, BatchLimits(maxBatchBytes: batch.readableBytes)) == nil)
        // The declared length is judged, not the bytes that came.
        #expect(refusalOfHeader(patched(batch, at: 8, to: Int32.max))?.errorCode.rawValue == 10)
    }

    @Test(arguments: [(Int32(0), Int32(-1)), (3, 1), (3, 3), (-1, -2), (.max, .max), (.min, .max), (1, .min)])
    func `count and last offset delta must agree`(count: Int32, delta: Int32) {
        let lying = patched(patched(batch, at: 57, to: count), at: 23, to: delta)
        #expect(refusalOfHeader(lying) == .recordCountMismatch(recordCount: count, lastOffsetDelta: delta))
        #expect(refusalOfHeader(lying)?.errorCode.rawValue == 87)
    }

    @Test func `attribute bits that clients may not set are refused, and pass in stored batches`() {
        let control = patched(batch, at: 21, to: Int16(0x20))
        #expect(refusalOfHeader(control) == .controlBatchFromClient)
        #expect(refusalOfHeader(control, .stored) == nil)
        let appendTime = patched(batch, at: 21, to: Int16(0x08))
        #expect(refusalOfHeader(appendTime)?.errorCode.rawValue == 32)
        #expect(refusalOfHeader(appendTime, .stored) == nil)
        let horizon = patched(batch, at: 21, to: Int16(0x40))
        #expect(refusalOfHeader(horizon) == .deleteHorizonFromClient)
        #expect(refusalOfHeader(horizon, .stored) == nil)
        for bit in 7...15 {
            let attributes = Int16(truncatingIfNeeded: 1 << bit)
            #expect(
                refusalOfHeader(patched(batch, at: 21, to: attributes)) == .reservedAttributes(attributes))
        }
    }

    @Test(arguments: [5, 6, 7])
    func `an unknown codec answers UNSUPPORTED_COMPRESSION_TYPE`(code: Int16) {
        let error = refusalOfHeader(patched(batch, at: 21, to: code))
        #expect(error == .unknownCodec(UInt8(code)))
        #expect(error?.errorCode.rawValue == 76)
    }

    @Test func `producer id, epoch and sequence come together`() throws {
        func with(_ id: Int64, _ epoch: Int16, _ sequence: Int32) -> RecordBatchError? {
            refusalOfHeader(
                patched(patched(patched(batch, at: 43, to: id), at: 51, to: epoch), at: 53, to: sequence))
        }
        #expect(with(0, 0, 0) == nil)
        #expect(with(.max, .max, .max) == nil)
        #expect(with(1, -1, 0)?.errorCode.rawValue == 87)
        #expect(with(1, 0, -1)?.errorCode.rawValue == 87)
        #expect(with(-2, 0, 0)?.errorCode.rawValue == 87)
        #expect(with(-1, 0, 0) == nil)  // no id: the other two mean nothing
        let transactional = patched(batch, at: 21, to: Int16(0x10))
        #expect(refusalOfHeader(transactional) == .transactionalWithoutProducer)
    }

    @Test func `offsets that could overflow are refused`() {
        #expect(refusalOfHeader(patched(batch, at: 0, to: Int64(-1))) == .negativeBaseOffset(-1))
        #expect(refusalOfHeader(patched(batch, at: 0, to: Int64.max), .stored) == .negativeBaseOffset(.max))
    }

    @Test func `timestamps outside the bounds answer INVALID_TIMESTAMP`() throws {
        let first: Int64 = 1_700_000_000_000
        let limits = BatchLimits(earliestTimestamp: first - 10, latestTimestamp: first + 7)
        #expect(refusalOfHeader(batch, limits) == nil)
        let late = refusalOfHeader(batch, BatchLimits(latestTimestamp: first + 6))
        #expect(late?.errorCode.rawValue == 32)
        #expect(late?.description.contains("message.timestamp.after.max.ms") == true)
        // The third record is older than the base: only the walk sees it.
        let early = BatchLimits(earliestTimestamp: first - 9)
        #expect(refusalOfHeader(batch, early) == nil)
        #expect(
            refusal { () throws(RecordBatchError) in try validate(batch, limits: early) }?.errorCode.rawValue
                == 32)
        // -1 is "no timestamp" and passes.
        let timeless = try build([PlainRecord(-1, nil, "v")])
        #expect(throws: Never.self) { try validate(timeless, limits: BatchLimits(earliestTimestamp: first)) }
    }

    @Test func `every error has a code and a message that speaks of a remedy or a cause`() {
        let errors: [RecordBatchError] = [
            .empty, .codecUnavailable(.snappy), .codecUnavailable(.lz4), .codecUnavailable(.zstd),
            .missingKeys(recordIndexes: [2]), .inflatedTooLarge(.gzip, limit: 10),
        ]
        #expect(errors.map(\.errorCode.rawValue) == [87, 76, 76, 76, 87, 10])
        #expect(errors[1].description.contains("libsnappy1v5"))
        #expect(errors[2].description.contains("liblz4-1"))
        #expect(errors[3].description.contains("libzstd1"))
        #expect(errors[4].description.contains("cleanup.policy=compact"))
    }
}
