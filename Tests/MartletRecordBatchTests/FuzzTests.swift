import MartletRecordBatch
import NIOCore
import Testing

/// Bytes from outside: whatever they are, the answer is a value or a typed error. A trap fails the process.
@Suite struct FuzzTests {
    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `any prefix of a batch is refused`(codec: CompressionCodec) throws {
        let batch = try build(smallRecords, .init(codec: codec))
        for length in 0..<batch.readableBytes {
            let cut = try #require(batch.getSlice(at: 0, length: length))
            #expect(refusal { () throws(RecordBatchError) in try validate(cut) } != nil, "\(length) bytes")
            #expect(throws: RecordBatchError.self) { try read(cut) }
        }
    }

    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `any flipped bit under the checksum is detected`(codec: CompressionCodec) throws {
        let batch = try build(smallRecords, .init(codec: codec))
        for bit in RecordBatchHeader.checksumStart * 8..<batch.readableBytes * 8 {
            var damaged = batch
            let byte = try #require(damaged.getInteger(at: bit / 8, as: UInt8.self))
            damaged.setInteger(byte ^ (1 << UInt8(bit % 8)), at: bit / 8)
            let error = refusal { () throws(RecordBatchError) in try validate(damaged) }
            #expect(error?.isDamage == true, "bit \(bit)")
        }
    }

    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `flipped bits behind a right checksum never trap, and what passes can be read`(
        codec: CompressionCodec
    ) throws {
        let validator = RecordValidator()
        let compressor = RecordCompressor()
        for seed in UInt64(0)..<400 {
            var random = Randomness(seed: seed)
            let records = randomRecords(
                using: &random, largest: 60, count: Int.random(in: 1...6, using: &random))
            var batch = try build(records, .init(codec: codec), compressor: compressor)
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let place = Int.random(in: 0..<batch.readableBytes, using: &random)
                let byte = try #require(batch.getInteger(at: place, as: UInt8.self))
                batch.setInteger(byte ^ (1 << UInt8.random(in: 0...7, using: &random)), at: place)
            }
            RecordBatchPatch.updateChecksum(in: &batch)
            let limits = BatchLimits(maxBatchBytes: 1 << 20, maxInflatedBytes: 1 << 20)
            let refused = refusal { () throws(RecordBatchError) in
                try validate(batch, limits: limits, with: validator)
            }
            // No acknowledged batch can stop its consumers.
            if refused == nil {
                #expect(throws: Never.self, "seed \(seed)") { try read(batch, limits: limits) }
            } else {
                _ = refusal { () throws(RecordBatchError) in
                    var iterator = try RecordIterator(batch, limits: limits)
                    while let record = try iterator.next() { _ = record.headers }
                }
            }
        }
    }

    @Test(arguments: CompressionCodec.allCases.filter(\.isAvailable))
    func `random bytes as the record section never trap`(codec: CompressionCodec) throws {
        let validator = RecordValidator()
        for seed in UInt64(0)..<400 {
            var random = Randomness(seed: seed)
            let section = randomBytes(Int.random(in: 0...200, using: &random), using: &random)
            let batch = sealed(compressedSection: section, recordCount: 2, codec: codec)
            #expect(
                refusal { () throws(RecordBatchError) in try validate(batch, with: validator) } != nil,
                "seed \(seed)")
        }
    }
}
