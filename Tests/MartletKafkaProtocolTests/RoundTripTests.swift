import MartletKafkaProtocol
import NIOCore
import Testing

@Suite struct RoundTripTests {
    /// Random messages per type and version.
    static let rounds: UInt64 = 12

    @Test func `every message survives writing and reading in every version`() throws {
        for type in randomMessageTypes {
            for version in type.versions {
                for round in 0..<Self.rounds { try roundTrip(type, version, seed: testSeed &+ round) }
            }
        }
    }

    private func roundTrip<T: RandomMessage & KafkaMessage>(_ type: T.Type, _ version: Int16, seed: UInt64)
        throws
    {
        var randomness = Randomness(seed: seed &+ UInt64(version))
        let message = T.random(&randomness, version)
        var w = ProtocolWriter()
        try message.encode(into: &w, version: version)
        var r = ProtocolReader(w.buffer)
        let decoded: T
        do {
            decoded = try T(reading: &r, version: version)
            try r.requireEnd()
        } catch {
            Issue.record("\(type) version \(version) seed \(seed): \(error)\n\(message)")
            return
        }
        #expect(decoded == message, "\(type) version \(version) seed \(seed)")
        var again = ProtocolWriter()
        try decoded.encode(into: &again, version: version)
        #expect(again.buffer == w.buffer, "\(type) version \(version) seed \(seed)")
    }

    @Test func `a message with all fields at their defaults survives in every version`() throws {
        for type in randomMessageTypes {
            for version in type.versions { try defaults(type, version) }
        }
    }

    private func defaults<T: RandomMessage & KafkaMessage>(_ type: T.Type, _ version: Int16) throws {
        var w = ProtocolWriter()
        do { try T().encode(into: &w, version: version) } catch EncodeError.nullNotAllowed {
            // A default of null in a version that cannot say null: the field must be set before writing.
            return
        }
        var r = ProtocolReader(w.buffer)
        #expect(try T(reading: &r, version: version) == T(), "\(type) version \(version)")
        #expect(r.remaining == 0)
    }

    @Test func `a version outside the schema is refused both ways`() throws {
        for type in randomMessageTypes {
            for version in [type.versions.lowerBound - 1, type.versions.upperBound + 1] {
                outside(type, version)
            }
        }
    }

    private func outside<T: KafkaMessage>(_ type: T.Type, _ version: Int16) {
        #expect(throws: DecodeError.unsupportedVersion(message: "\(type)", version: version)) {
            var r = ProtocolReader(ByteBuffer(repeating: 0, count: 64))
            _ = try T(reading: &r, version: version)
        }
        #expect(throws: EncodeError.unsupportedVersion(message: "\(type)", version: version)) {
            var w = ProtocolWriter()
            try T().encode(into: &w, version: version)
        }
    }

    @Test func `unknown tagged fields are skipped wherever they stand`() throws {
        // Fetch 12 with an unknown tag at the end of the partition, the topic and the request.
        var w = ProtocolWriter()
        for value in [-1, 500, 1, 1024] as [Int32] { w.integer(value) }
        w.integer(Int8(0))
        for value in [0, -1] as [Int32] { w.integer(value) }
        w.unsignedVarint(2)
        try w.string("t", true)
        w.unsignedVarint(2)
        w.integer(Int32(3))
        w.integer(Int32(-1))
        w.integer(Int64(77))
        w.integer(Int32(-1))
        w.integer(Int64(-1))
        w.integer(Int32(4096))
        for tag in [200, 201, 202] as [UInt32] {
            if tag == 202 {
                w.unsignedVarint(1)  // no forgotten topics
                try w.string("", true)
            }
            w.unsignedVarint(1)
            w.unsignedVarint(tag)
            w.unsignedVarint(3)
            for byte in [1, 2, 3] as [UInt8] { w.integer(byte) }
        }
        var r = ProtocolReader(w.buffer)
        let request = try FetchRequest(reading: &r, version: 12)
        #expect(r.remaining == 0)
        #expect(request.topics.first?.topic == "t")
        #expect(request.topics.first?.partitions.first?.fetchOffset == 77)
    }

    @Test func `a field the version lacks is dropped if ignorable and refused if not`() throws {
        var request = FetchRequest()
        request.rackID = "r1"  // from version 11, ignorable
        var w = ProtocolWriter()
        try request.encode(into: &w, version: 4)
        request.forgottenTopicsData = [.init()]  // from version 7, not ignorable
        #expect(throws: EncodeError.fieldNotInVersion(field: "FetchRequest.forgottenTopicsData", version: 4))
        {
            var w = ProtocolWriter()
            try request.encode(into: &w, version: 4)
        }
    }

    @Test func `records are a slice of the frame and not a copy`() throws {
        var response = FetchResponse()
        var partition = FetchResponse.PartitionData()
        partition.records = ByteBuffer(repeating: 7, count: 100_000)
        var topic = FetchResponse.FetchableTopicResponse()
        topic.partitions = [partition]
        response.responses = [topic]
        var w = ProtocolWriter()
        try response.encode(into: &w, version: 12)
        var r = ProtocolReader(w.buffer)
        let decoded = try FetchResponse(reading: &r, version: 12)
        let records = try #require(decoded.responses[0].partitions[0].records)
        #expect(records.readableBytes == 100_000)
        #expect(records.storageCapacity == w.buffer.storageCapacity || records.storageCapacity >= 100_000)
        let inFrame = w.buffer.withUnsafeReadableBytes { frame in
            records.withUnsafeReadableBytes { slice in
                slice.baseAddress! >= frame.baseAddress!
                    && slice.baseAddress! < frame.baseAddress! + frame.count
            }
        }
        #expect(inFrame)
    }

    @Test(arguments: [4, 11, 12, 18] as [Int16])
    func `records sent beside the message join to the same bytes`(_ version: Int16) throws {
        let records = [
            ByteBuffer(repeating: 7, count: 300), ByteBuffer(), ByteBuffer(repeating: 9, count: 5),
        ]
        var topic = FetchResponse.FetchableTopicResponse()
        if version <= 12 { topic.topic = "orders" }
        topic.partitions = records.map { bytes in
            var partition = FetchResponse.PartitionData()
            partition.records = bytes
            return partition
        }
        var response = FetchResponse()
        response.responses = [topic]
        var inline = ProtocolWriter()
        try response.encode(into: &inline, version: version)

        var outside = ProtocolWriter()
        outside.externalRecordByteCounts = records.map(\.readableBytes)
        try response.encode(into: &outside, version: version)
        #expect(outside.externalRecordPositions.count == 3)
        var joined = ByteBuffer()
        var position = 0
        for (place, bytes) in zip(outside.externalRecordPositions, records) {
            joined.writeImmutableBuffer(
                try #require(outside.buffer.getSlice(at: position, length: place - position)))
            joined.writeImmutableBuffer(bytes)
            position = place
        }
        let rest = outside.buffer.writerIndex - position
        joined.writeImmutableBuffer(try #require(outside.buffer.getSlice(at: position, length: rest)))
        #expect(joined == inline.buffer)
    }
}
