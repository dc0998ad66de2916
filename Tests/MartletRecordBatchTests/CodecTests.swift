import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@Suite struct CodecTests {
    private let compressor = RecordCompressor()

    /// `count` zero bytes, compressed.
    private func zeros(_ count: Int, _ codec: CompressionCodec) throws -> ByteBuffer {
        var source = ByteBuffer()
        source.writeRepeatingByte(0, count: count)
        return try compressor.compress(source, from: 0, codec: codec, level: codec == .gzip ? 9 : nil)
    }

    private func refusalOf(
        _ section: ByteBuffer, _ codec: CompressionCodec, count: Int32 = 1, limit: Int = 1 << 20
    ) -> RecordBatchError? {
        let batch = sealed(compressedSection: section, recordCount: count, codec: codec)
        let limits = BatchLimits(maxBatchBytes: 1 << 24, maxInflatedBytes: limit)
        return refusal { () throws(RecordBatchError) in try validate(batch, limits: limits) }
    }

    @Test(arguments: compressedCodecs)
    func `a bomb ends at the output limit with MESSAGE_TOO_LARGE`(codec: CompressionCodec) throws {
        // One record that declares and fills 8 MiB.
        let big = PlainRecord(0, nil, bytes: ByteBuffer(repeating: 0, count: 8 << 20))
        let batch = try build([big], .init(codec: codec))
        let limits = BatchLimits(maxBatchBytes: 1 << 26, maxInflatedBytes: 1 << 20)
        let error = refusal { () throws(RecordBatchError) in try validate(batch, limits: limits) }
        #expect(error == .inflatedTooLarge(codec, limit: 1 << 20))
        #expect(error?.errorCode.rawValue == 10)
        #expect(throws: RecordBatchError.inflatedTooLarge(codec, limit: 1 << 20)) {
            try RecordIterator(batch, limits: limits)
        }
    }

    @Test(arguments: compressedCodecs)
    func `a bomb of something that is no record ends at once`(codec: CompressionCodec) throws {
        let error = refusalOf(try zeros(8 << 20, codec), codec, limit: 1 << 30)
        #expect(error == .recordLength(recordIndex: 0, length: 0))
    }

    @Test(arguments: compressedCodecs)
    func `data cut anywhere is refused`(codec: CompressionCodec) throws {
        let batch = try build(smallRecords, .init(codec: codec))
        let section = try #require(batch.getSlice(at: 61, length: batch.readableBytes - 61))
        for length in 0..<section.readableBytes {
            let cut = try #require(section.getSlice(at: section.readerIndex, length: length))
            #expect(refusalOf(cut, codec, count: 3)?.errorCode.rawValue == 87, "\(length) bytes")
        }
        #expect(refusalOf(section, codec, count: 3) == nil)
    }

    @Test(arguments: compressedCodecs)
    func `bytes behind the data are refused`(codec: CompressionCodec) throws {
        let batch = try build(smallRecords, .init(codec: codec))
        var section = try #require(batch.getSlice(at: 61, length: batch.readableBytes - 61))
        section.writeInteger(UInt32(0xDEAD_BEEF))
        #expect(refusalOf(section, codec, count: 3)?.errorCode.rawValue == 87)
    }

    @Test(arguments: [CompressionCodec.gzip, .zstd].filter(\.isAvailable))
    func `concatenated members read as one stream`(codec: CompressionCodec) throws {
        let plain = try build(smallRecords)
        let all = try #require(plain.getSlice(at: 61, length: plain.readableBytes - 61))
        var section = ByteBuffer()
        for part in [0..<7, 7..<8, 8..<all.readableBytes] {
            let piece = try #require(all.getSlice(at: part.lowerBound, length: part.count))
            section.writeImmutableBuffer(try compressor.compress(piece, from: 0, codec: codec, level: nil))
        }
        #expect(refusalOf(section, codec, count: 3) == nil)
    }

    @Test(.enabled(if: CompressionCodec.snappy.isAvailable, "no libsnappy"))
    func `snappy is read with xerial's framing and bare`() throws {
        let batch = try build(smallRecords, .init(codec: .snappy))
        let framed = try #require(batch.getSlice(at: 61, length: batch.readableBytes - 61))
        #expect(
            framed.getBytes(at: framed.readerIndex, length: 8) == [
                0x82, 0x53, 0x4E, 0x41, 0x50, 0x50, 0x59, 0,
            ])
        // Behind the 16 bytes of framing and the block's length lies the bare block.
        let bare = try #require(
            framed.getSlice(at: framed.readerIndex + 20, length: framed.readableBytes - 20))
        #expect(refusalOf(framed, .snappy, count: 3) == nil)
        #expect(refusalOf(bare, .snappy, count: 3) == nil)
    }

    @Test(.enabled(if: CompressionCodec.snappy.isAvailable, "no libsnappy"))
    func `a snappy block that lies about its length costs no memory`() {
        // Varint 2^31 - 1, then a literal of one byte.
        let bare = ByteBuffer(bytes: [0xFF, 0xFF, 0xFF, 0xFF, 0x07, 0x00, 0x41])
        #expect(refusalOf(bare, .snappy, limit: Int(Int32.max)) == .damagedCompression(.snappy))
        var framed = ByteBuffer(bytes: [0x82, 0x53, 0x4E, 0x41, 0x50, 0x50, 0x59, 0, 0, 0, 0, 1, 0, 0, 0, 1])
        for length in [Int32(-1), 0, 8, .max, .min] {
            framed.moveWriterIndex(to: 16)
            framed.writeInteger(length)
            framed.writeBytes([0xFF, 0xFF, 0xFF, 0xFF, 0x07, 0x00, 0x41])
            #expect(refusalOf(framed, .snappy) == .damagedCompression(.snappy), "\(length)")
        }
    }

    @Test(.enabled(if: CompressionCodec.lz4.isAvailable, "no liblz4"))
    func `an lz4 frame that Java consumers cannot read is refused`() throws {
        let batch = try build(smallRecords, .init(codec: .lz4))
        let section = try #require(batch.getSlice(at: 61, length: batch.readableBytes - 61))
        let flags = try #require(section.getInteger(at: section.readerIndex + 4, as: UInt8.self))
        #expect(flags & 0x20 != 0)
        var linked = section
        linked.setInteger(flags & ~0x20, at: linked.readerIndex + 4)
        #expect(refusalOf(linked, .lz4, count: 3) == .unsupportedCompressionFeature(.lz4))
    }

    @Test func `names are Kafka's`() {
        #expect(CompressionCodec.allCases.map(\.name) == ["none", "gzip", "snappy", "lz4", "zstd"])
        for codec in CompressionCodec.allCases { #expect(CompressionCodec(name: codec.name) == codec) }
        #expect(CompressionCodec(name: "uncompressed") == CompressionCodec.none)
        #expect(CompressionCodec(name: "brotli") == nil)
    }
}
