import MartletRecordBatch
import NIOCore
import Testing

/// One uncompressed record with fields written by hand, so that each can lie.
private func record(
    length: Int? = nil, timestampDelta: [UInt8] = [0], offsetDelta: [UInt8] = [0], key: [UInt8] = [0x01],
    value: [UInt8] = [0x02, 0x41], headers: [UInt8] = [0]
) -> ByteBuffer {
    let body = [0] + timestampDelta + offsetDelta + key + value + headers
    let declared = length ?? body.count
    precondition(declared < 64)
    return ByteBuffer(bytes: [UInt8(declared * 2)] + body)
}

@Suite struct RecordRuleTests {
    private let compressor = RecordCompressor()

    private func refusalOf(
        _ section: ByteBuffer, count: Int32 = 1, codec: CompressionCodec = .none, requireKeys: Bool = false
    ) throws -> RecordBatchError? {
        let batch = try sealed(section: section, recordCount: count, codec: codec, compressor: compressor)
        return refusal { () throws(RecordBatchError) in try validate(batch, requireKeys: requireKeys) }
    }

    @Test(arguments: [CompressionCodec.none, .gzip])
    func `each lying field is named`(codec: CompressionCodec) throws {
        #expect(try refusalOf(record(), codec: codec) == nil)
        let cases: [(ByteBuffer, RecordBatchError)] = [
            (record(length: 60), .recordTruncated(recordIndex: 0)),
            (record(length: 5), .recordLength(recordIndex: 0, length: 5)),
            (record(length: 6), .recordLengthMismatch(recordIndex: 0)),
            (record(key: [0x03]), .fieldLength(recordIndex: 0, field: .key, length: -2)),
            (record(key: [0x7E]), .fieldLength(recordIndex: 0, field: .key, length: 63)),
            (record(value: [0x7E]), .fieldLength(recordIndex: 0, field: .value, length: 63)),
            (record(value: [0x03]), .fieldLength(recordIndex: 0, field: .value, length: -2)),
            (record(headers: [0x01]), .fieldLength(recordIndex: 0, field: .headerCount, length: -1)),
            (record(headers: [0x7E]), .fieldLength(recordIndex: 0, field: .headerCount, length: 63)),
            (
                record(headers: [0x02, 0x01, 0x01]),
                .fieldLength(recordIndex: 0, field: .headerKey, length: -1)
            ),
            (
                record(headers: [0x02, 0x00, 0x03]),
                .fieldLength(recordIndex: 0, field: .headerValue, length: -2)
            ),
            (record(headers: [0x02, 0x04, 0xC3, 0x28, 0x01]), .headerKeyNotUTF8(recordIndex: 0)),
            (record(headers: [0x02, 0x02, 0xC3, 0x01]), .headerKeyNotUTF8(recordIndex: 0)),
            (record(headers: [0x00, 0x00]), .recordLengthMismatch(recordIndex: 0)),
            (record(offsetDelta: [0x02]), .unexpectedOffsetDelta(recordIndex: 0, offsetDelta: 1)),
            (record(offsetDelta: [0x80, 0x80, 0x80, 0x80, 0x10]), .varintOverflow(recordIndex: 0)),
            (record(offsetDelta: [0x80, 0x80, 0x80, 0x80, 0x80, 0x01]), .varintOverflow(recordIndex: 0)),
            (
                record(timestampDelta: [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]),
                .varintOverflow(recordIndex: 0)
            ),
            (
                record(timestampDelta: [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]),
                .timestampOverflow(recordIndex: 0)
            ),
        ]
        for (section, error) in cases {
            #expect(try refusalOf(section, codec: codec) == error)
        }
    }

    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `a wrong record count is found in both directions`(codec: CompressionCodec) throws {
        let batch = try build(smallRecords)
        let section = try #require(batch.getSlice(at: 61, length: batch.readableBytes - 61))
        #expect(try refusalOf(section, count: 3, codec: codec) == nil)
        #expect(try refusalOf(section, count: 4, codec: codec) == .tooFewRecords(found: 3, declared: 4))
        #expect(try refusalOf(section, count: 2, codec: codec) == .bytesAfterLastRecord(declared: 2))
        #expect(try refusalOf(ByteBuffer(), count: 1, codec: codec) == .tooFewRecords(found: 0, declared: 1))
    }

    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `compacted topics need keys`(codec: CompressionCodec) throws {
        let batch = try build(smallRecords, .init(codec: codec))
        #expect(
            refusal { () throws(RecordBatchError) in try validate(batch, requireKeys: true) }
                == .missingKeys(recordIndexes: [1]))
        let several = try build([smallRecords[1], smallRecords[0], smallRecords[1]], .init(codec: codec))
        #expect(
            refusal { () throws(RecordBatchError) in try validate(several, requireKeys: true) }
                == .missingKeys(recordIndexes: [0, 2]))
        let keyed = try build([smallRecords[0], smallRecords[2]], .init(codec: codec))
        #expect(refusal { () throws(RecordBatchError) in try validate(keyed, requireKeys: true) } == nil)
    }

    @Test(arguments: compressedCodecs)
    func `records larger than the window are walked in pieces, with the same verdict`(
        codec: CompressionCodec
    ) throws {
        let validator = RecordValidator()
        for seed in UInt64(0)..<12 {
            var random = Randomness(seed: seed)
            // Sizes around the 64 KiB window, so that its edge falls on every kind of field.
            let records = (0..<6).map { index in
                PlainRecord(
                    Int64(index), String(repeating: "k", count: Int.random(in: 0...40_000, using: &random)),
                    bytes: ByteBuffer(repeating: 7, count: Int.random(in: 0...90_000, using: &random)),
                    (0..<Int.random(in: 0...3, using: &random)).map { _ in
                        RecordHeader(
                            key: String(repeating: "é", count: Int.random(in: 0...30_000, using: &random)),
                            value: ByteBuffer(repeating: 1, count: Int.random(in: 0...70_000, using: &random))
                        )
                    })
            }
            let plain = try build(records)
            let facts = try validate(plain)
            let packed = try build(records, .init(codec: codec))
            #expect(try validate(packed, with: validator) == facts, "seed \(seed)")

            // Damage in the record section behind a good checksum: same error as the walk in place.
            for _ in 0..<6 {
                var section = try #require(plain.getSlice(at: 61, length: plain.readableBytes - 61))
                let structural = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
                let place =
                    Bool.random(using: &random)
                    ? structural.randomElement(using: &random)!
                    : Int.random(in: 0..<section.readableBytes, using: &random)
                let byte = section.getInteger(at: section.readerIndex + place, as: UInt8.self)!
                section.setInteger(
                    byte ^ (1 << UInt8.random(in: 0...7, using: &random)), at: section.readerIndex + place)
                let bare = try sealed(section: section, recordCount: 6, codec: .none, compressor: compressor)
                let wrapped = try sealed(
                    section: section, recordCount: 6, codec: codec, compressor: compressor)
                let inPlace = refusal { () throws(RecordBatchError) in try validate(bare) }
                let streamed = refusal { () throws(RecordBatchError) in try validate(wrapped, with: validator)
                }
                #expect((inPlace == nil) == (streamed == nil), "seed \(seed), byte \(place)")
                #expect(inPlace?.errorCode == streamed?.errorCode, "seed \(seed), byte \(place)")
            }
        }
    }
}
