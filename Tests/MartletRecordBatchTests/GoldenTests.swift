import MartletRecordBatch
import NIOCore
import Testing

@Suite struct GoldenTests {
    static var regularRecords: (Int) -> [PlainRecord] {
        { repeats in
            (0..<5).map { index in
                PlainRecord(
                    1_700_000_000_000 + Int64(index), "k\(index % 3)",
                    String(repeating: "martlet \(index % 4) ", count: repeats))
            }
        }
    }

    @Test(arguments: goldenBatches.filter(\.codecIsAvailable))
    func `a foreign client's batch is valid and reads as what it wrote`(golden: GoldenBatch) throws {
        let batch = bytes(hex: golden.hex)
        let header = try RecordBatchHeader(reading: batch)
        #expect(header.totalByteCount == batch.readableBytes)
        if golden.isRegular { #expect(header.codec.name == golden.codec) }
        let expected =
            golden.isRegular ? Self.regularRecords(golden.codec == "snappy" ? 40 : 2_000) : smallRecords
        #expect(try read(batch) == expected)

        let facts = try validate(batch)
        #expect(Int(facts.recordCount) == expected.count)
        #expect(facts.maxTimestamp == expected.map(\.timestamp).max())
        #expect(facts.maxTimestamp == header.maxTimestamp)
        #expect(facts.maxTimestampOffsetDelta == (golden.isRegular ? 4 : 1))
        if golden.codec == "gzip" {
            #expect(header.hasProducerID)
            #expect(header.producerID == 4711)
            #expect(header.producerEpoch == 3)
        } else {
            #expect(!header.hasProducerID)
        }
    }

    @Test func `our encoding of the same records is byte for byte that of aiokafka and librdkafka`() throws {
        for client in ["aiokafka", "librdkafka"] {
            let golden = try #require(goldenBatches.first { $0.client == client && $0.codec == "none" })
            let batch = bytes(hex: golden.hex)
            let epoch = try RecordBatchHeader(reading: batch).partitionLeaderEpoch
            #expect(try build(smallRecords, .init(partitionLeaderEpoch: epoch)) == batch, "\(client)")
        }
    }
}
