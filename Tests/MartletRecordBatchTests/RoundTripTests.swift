import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@Suite struct RoundTripTests {
    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `random records come back from every codec`(codec: CompressionCodec) throws {
        let compressor = RecordCompressor()
        let validator = RecordValidator()
        for seed in UInt64(0)..<40 {
            var random = Randomness(seed: seed)
            let records = randomRecords(using: &random, largest: seed % 10 == 0 ? 100_000 : 300)
            let batch = try build(records, .init(codec: codec), compressor: compressor)
            let facts = try validate(batch, with: validator)
            #expect(Int(facts.recordCount) == records.count, "seed \(seed)")
            #expect(facts.maxTimestamp == records.map(\.timestamp).max(), "seed \(seed)")
            let first = try #require(records.firstIndex { $0.timestamp == facts.maxTimestamp })
            #expect(Int(facts.maxTimestampOffsetDelta) == first, "seed \(seed)")
            let back = try read(batch)
            #expect(back == records, "seed \(seed)")
        }
    }

    @Test(arguments: [(CompressionCodec.gzip, [1, 9]), (.lz4, [1, 12]), (.zstd, [-5, 1, 19])].filter(\.0.isAvailable))
    func `every level of a codec is readable`(codec: CompressionCodec, levels: [Int]) throws {
        let records = [PlainRecord(1, "k", String(repeating: "abc", count: 30_000))]
        for level in levels {
            let batch = try build(records, .init(codec: codec, level: level))
            #expect(try read(batch) == records)
            #expect(batch.readableBytes < 10_000)
        }
    }

    @Test func `a level outside the codec's range is refused by name`() {
        let error = #expect(throws: RecordBatchError.self) {
            try build(smallRecords, .init(codec: .gzip, level: 10))
        }
        #expect(error == .invalidLevel(.gzip, level: 10))
        #expect(error?.description.contains("1 to 9") == true)
    }

    @Test func `the header carries what the options say`() throws {
        let batch = try build(
            smallRecords,
            .init(
                baseOffset: 77, partitionLeaderEpoch: 5, producerID: 9, producerEpoch: 2,
                baseSequence: .max - 1, isTransactional: true))
        let header = try RecordBatchValidator.checkHeader(batch, limits: BatchLimits())
        #expect(header.baseOffset == 77)
        #expect(header.lastOffset == 79)
        #expect(header.partitionLeaderEpoch == 5)
        #expect(header.producerID == 9)
        #expect(header.producerEpoch == 2)
        #expect(header.baseSequence == Int32.max - 1)
        #expect(header.lastSequence == 0)  // wraps behind 2^31 - 1
        #expect(header.isTransactional)
        #expect(!header.isControl)
        #expect(header.recordCount == 3)
        #expect(header.baseTimestamp == 1_700_000_000_000)
        #expect(header.maxTimestamp == 1_700_000_000_007)
    }

    @Test func `offsets of a stored batch may have gaps and its records may all be gone`() throws {
        var builder = RecordBatchBuilder()
        try builder.append(key: ByteBuffer(string: "a"), value: nil, timestamp: 5, offsetDelta: 3)
        try builder.append(key: ByteBuffer(string: "b"), value: nil, timestamp: 6, offsetDelta: 9)
        let batch = try builder.build(.init(codec: .gzip, baseOffset: 100, lastOffsetDelta: 20))
        var iterator = try RecordIterator(batch)
        #expect(try iterator.next()?.offset == Offset(103))
        #expect(try iterator.next()?.offset == Offset(109))
        #expect(try iterator.next() == nil)
        #expect(iterator.header.lastOffset == 120)
        #expect(throws: Never.self) { try validate(batch, limits: .stored) }
        #expect(throws: RecordBatchError.self) { try validate(batch) }

        var empty = RecordBatchBuilder()
        let header = try empty.build(
            .init(codec: .gzip, producerID: 4, producerEpoch: 0, baseSequence: 7, lastOffsetDelta: 2))
        #expect(header.readableBytes == RecordBatchHeader.byteCount)
        #expect(try validate(header, limits: .stored).recordCount == 0)
        #expect(try read(header).isEmpty)
    }

    @Test func `offset and epoch are assigned without touching the checksum`() throws {
        let batch = try build(smallRecords, .init(codec: .gzip))
        RecordBatchPatch.assign(baseOffset: 1 << 40, leaderEpoch: 8, throughSharedStorageOf: batch)
        let header = try RecordBatchValidator.checkHeader(batch, limits: .stored)
        #expect(header.baseOffset == 1 << 40)
        #expect(header.partitionLeaderEpoch == 8)
        #expect(try read(batch) == smallRecords)
    }

    @Test func `assigning through shared storage reaches every slice, the plain setters only their own`()
        throws
    {
        var frame = ByteBuffer(string: "frame around ")
        frame.writeImmutableBuffer(try build(smallRecords))
        var slice = try #require(frame.getSlice(at: 13, length: frame.readableBytes - 13))
        RecordBatchPatch.assign(baseOffset: 42, leaderEpoch: 3, throughSharedStorageOf: slice)
        #expect(frame.getInteger(at: 13, as: Int64.self) == 42)
        #expect(try RecordBatchHeader(reading: slice).partitionLeaderEpoch == 3)
        let checksum = frame.getInteger(at: 13 + 17, as: UInt32.self)
        RecordBatchPatch.setMaxTimestamp(50, in: &slice)
        #expect(try RecordBatchHeader(reading: slice).maxTimestamp == 50)
        #expect(frame.getInteger(at: 13 + 17, as: UInt32.self) == checksum)
    }

    @Test func `append time replaces the records' times under a new checksum`() throws {
        var batch = try build(smallRecords, .init(codec: .gzip))
        RecordBatchPatch.setLogAppendTime(1_800_000_000_000, in: &batch)
        #expect(throws: Never.self) { try validate(batch, limits: .stored) }
        #expect(
            try read(batch).map(\.timestamp) == [1_800_000_000_000, 1_800_000_000_000, 1_800_000_000_000])
        #expect(try RecordBatchHeader(reading: batch).timestampType == .logAppendTime)
    }

    @Test func `a wrong maximum timestamp is reported by the walk and can be repaired`() throws {
        var batch = patched(try build(smallRecords), at: 35, to: Int64(1))
        let facts = try validate(batch)
        #expect(facts.maxTimestamp == 1_700_000_000_007)
        RecordBatchPatch.setMaxTimestamp(facts.maxTimestamp, in: &batch)
        #expect(
            try RecordBatchValidator.checkHeader(batch, limits: BatchLimits()).maxTimestamp
                == 1_700_000_000_007)
    }

    @Test func `a builder goes on with an empty batch after building`() throws {
        var builder = RecordBatchBuilder()
        for round in 0..<3 {
            #expect(builder.isEmpty)
            #expect(builder.sizeEstimate == RecordBatchHeader.byteCount)
            let value = ByteBuffer(string: "round \(round)")
            let bound = RecordBatchBuilder.byteCountBound(key: nil, value: value)
            try builder.append(key: nil, value: value, timestamp: Int64(round))
            #expect(builder.sizeEstimate <= RecordBatchHeader.byteCount + bound)
            let estimate = builder.sizeEstimate
            let batch = try builder.build()
            #expect(batch.readableBytes == estimate)
            #expect(try read(batch) == [PlainRecord(Int64(round), nil, "round \(round)")])
        }
    }

    @Test func `numbers of every width survive`() throws {
        let times: [Int64] = [
            0, 1, -1, 63, 64, -64, -65, 8_191, 8_192, 1 << 31, 1 << 40, 1 << 62, -(1 << 61),
        ]
        var builder = RecordBatchBuilder(baseTimestamp: 0)
        for time in times { try builder.append(key: nil, value: ByteBuffer(), timestamp: time) }
        #expect(try read(try builder.build()).map(\.timestamp) == times)
        var extreme = RecordBatchBuilder(baseTimestamp: -1)
        #expect(throws: RecordBatchError.timestampOverflow(recordIndex: 0)) {
            try extreme.append(key: nil, value: nil, timestamp: .max)
        }
    }
}
