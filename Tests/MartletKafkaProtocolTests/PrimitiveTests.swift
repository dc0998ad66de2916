import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private func reader(_ bytes: [UInt8]) -> ProtocolReader { ProtocolReader(ByteBuffer(bytes: bytes)) }

@Suite struct PrimitiveTests {
    @Test(
        arguments: [
            (0, [0]), (1, [1]), (127, [0x7f]), (128, [0x80, 1]), (300, [0xac, 2]), (16_383, [0xff, 0x7f]),
            (16_384, [0x80, 0x80, 1]), (UInt32.max, [0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] as [(UInt32, [UInt8])])
    func `unsigned varints have the bytes of the specification`(_ value: UInt32, _ bytes: [UInt8]) throws {
        var w = ProtocolWriter()
        w.unsignedVarint(value)
        #expect(Array(w.buffer.readableBytesView) == bytes)
        var r = reader(bytes)
        #expect(try r.unsignedVarint() == value)
        #expect(r.remaining == 0)
    }

    @Test(
        arguments: [
            (0, [0]), (-1, [1]), (1, [2]), (-2, [3]), (63, [0x7e]), (-64, [0x7f]), (64, [0x80, 1]),
            (Int64.max, [0xfe] + Array(repeating: 0xff, count: 8) + [1]),
            (Int64.min, Array(repeating: 0xff, count: 9) + [1]),
        ] as [(Int64, [UInt8])])
    func `signed varints are zig-zag`(_ value: Int64, _ bytes: [UInt8]) throws {
        var w = ProtocolWriter()
        w.varlong(value)
        #expect(Array(w.buffer.readableBytesView) == bytes)
        var r = reader(bytes)
        #expect(try r.varlong() == value)
        if let small = Int32(exactly: value) {
            var w = ProtocolWriter()
            w.varint(small)
            #expect(Array(w.buffer.readableBytesView) == bytes)
            var r = reader(bytes)
            #expect(try r.varint() == small)
        }
    }

    @Test func `varints that do not fit or end too early are refused`() {
        #expect(throws: DecodeError.varintTooLong(position: 0)) {
            var r = reader([0xff, 0xff, 0xff, 0xff, 0x10])
            _ = try r.unsignedVarint()
        }
        #expect(throws: DecodeError.varintTooLong(position: 0)) {
            var r = reader(Array(repeating: 0x80, count: 9) + [2])
            _ = try r.varlong()
        }
        #expect(throws: DecodeError.truncated(position: 2, needed: 1, available: 0)) {
            var r = reader([0x80, 0x80])
            _ = try r.unsignedVarint()
        }
    }

    @Test func `lengths below null and lengths beyond the frame are refused`() {
        #expect(throws: DecodeError.negativeLength(position: 0, length: -2)) {
            var r = reader([0xff, 0xfe])
            _ = try r.nullableString(false)
        }
        #expect(throws: DecodeError.lengthBeyondFrame(position: 2, length: 3, available: 2)) {
            var r = reader([0, 3, 65, 66])
            _ = try r.string(false)
        }
        #expect(throws: DecodeError.lengthBeyondFrame(position: 0, length: 0x7fff_ffff, available: 0)) {
            var r = reader([0x7f, 0xff, 0xff, 0xff])
            let _: [Int32] = try r.integers(false)
        }
        #expect(throws: DecodeError.lengthBeyondFrame(position: 0, length: 3, available: 8)) {
            var r = reader([4, 0, 0, 0, 0, 0, 0, 0, 0])
            let _: [Int32] = try r.integers(true)
        }
        #expect(throws: DecodeError.nullNotAllowed(position: 0)) {
            var r = reader([0xff, 0xff])
            _ = try r.string(false)
        }
        #expect(throws: DecodeError.nullNotAllowed(position: 0)) {
            var r = reader([0])
            _ = try r.strings(true)
        }
    }

    @Test func `text that is not UTF-8 is refused`() {
        #expect(throws: DecodeError.invalidUTF8(position: 1)) {
            var r = reader([3, 0xc3, 0x28])
            _ = try r.string(true)
        }
    }

    @Test func `texts too long for 16 bits are refused when writing`() {
        let long = String(repeating: "a", count: 32_768)
        #expect(throws: EncodeError.tooLong(count: 32_768, limit: 32_767)) {
            var w = ProtocolWriter()
            try w.string(long, false)
        }
        #expect(throws: Never.self) {
            var w = ProtocolWriter()
            try w.string(long, true)
        }
    }

    @Test func `a reader with a limit sees no further`() throws {
        var r = ProtocolReader(ByteBuffer(bytes: [1, 2, 3, 4]), limit: 2)
        #expect(try r.integer(as: Int16.self) == 0x0102)
        #expect(throws: DecodeError.truncated(position: 2, needed: 1, available: 0)) {
            _ = try r.integer(as: Int8.self)
        }
        #expect(throws: DecodeError.trailingBytes(position: 0, count: 2)) { try reader([0, 0]).requireEnd() }
    }

    @Test func `a tagged field that lies about its size is refused`() {
        // ApiVersions 3 response: tag 1 (epoch, 8 bytes) said to have 7.
        var w = ProtocolWriter()
        w.integer(Int16(0))
        w.unsignedVarint(1)
        w.integer(Int32(0))
        for value in [1, 1, 7] as [UInt32] { w.unsignedVarint(value) }
        w.integer(Int64(5))
        #expect(throws: DecodeError.taggedFieldSizeMismatch(position: 18, tag: 1)) {
            var r = ProtocolReader(w.buffer)
            _ = try ApiVersionsResponse(reading: &r, version: 3)
        }
    }

    @Test func `a long tagged field gets a size of two bytes`() throws {
        var request = FetchRequest()
        request.clusterID = String(repeating: "c", count: 200)
        var w = ProtocolWriter()
        try request.encode(into: &w, version: 16)
        let tail = Array(w.buffer.readableBytesView.suffix(206))
        // one tagged field, tag 0, size 202, length 201, text
        #expect(Array(tail.prefix(6)) == [1, 0, 0xca, 1, 0xc9, 1])
        var r = ProtocolReader(w.buffer)
        #expect(try FetchRequest(reading: &r, version: 16) == request)
    }
}

@Suite struct HeaderTests {
    @Test func `a request header of a flexible version has tagged fields and a classic client id`() throws {
        let frame = try FetchRequest().frame(version: 12, correlationID: 7, clientID: "ab")
        let bytes = Array(frame.readableBytesView)
        #expect(
            Int(bytes[0]) << 24 | Int(bytes[1]) << 16 | Int(bytes[2]) << 8 | Int(bytes[3]) == bytes.count - 4)
        #expect(Array(bytes[4..<17]) == [0, 1, 0, 12, 0, 0, 0, 7, 0, 2, 0x61, 0x62, 0])
        var r = ProtocolReader(ByteBuffer(bytes: bytes[4...]))
        let header = try RequestHeader(reading: &r)
        #expect(header == RequestHeader(apiKey: .fetch, apiVersion: 12, correlationID: 7, clientID: "ab"))
        #expect(try FetchRequest(reading: &r, version: 12) == FetchRequest())
        try r.requireEnd()
    }

    @Test func `a request header of a classic version has none`() throws {
        let frame = try FetchRequest().frame(version: 11, correlationID: 7, clientID: nil)
        #expect(
            Array(frame.readableBytesView[4..<18]) == [
                0, 1, 0, 11, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ])
    }

    @Test func `the header of an unknown version or key can be read`() throws {
        var r = ProtocolReader(ByteBuffer(bytes: [0, 18, 0, 99, 0, 0, 0, 3, 0xff, 0xff, 1, 2]))
        let header = try RequestHeader(reading: &r)
        #expect(header.apiKey == .apiVersions && header.apiVersion == 99 && r.remaining == 2)
        var other = ProtocolReader(ByteBuffer(bytes: [0x70, 0, 0, 0, 0, 0, 0, 3, 0xff, 0xff]))
        #expect(try RequestHeader(reading: &other).apiKey.name == "API 28672")
    }

    @Test func `the response to ApiVersions never has a flexible header`() throws {
        for version in try #require(APIKey.apiVersions.versions) {
            let frame = try ApiVersionsResponse().frame(version: version, correlationID: 9)
            #expect(Array(frame.readableBytesView[4..<10]) == [0, 0, 0, 9, 0, 0])
        }
        let fetch = try FetchResponse().frame(version: 12, correlationID: 9)
        #expect(Array(fetch.readableBytesView[4..<9]) == [0, 0, 0, 9, 0])
        var r = ProtocolReader(fetch.getSlice(at: 4, length: fetch.readableBytes - 4)!)
        #expect(try ResponseHeader(reading: &r, apiKey: .fetch, version: 12).correlationID == 9)
        #expect(try FetchResponse(reading: &r, version: 12) == FetchResponse())
    }
}

@Suite struct APIKeyTests {
    @Test func `the schemas are those of the pinned release, Kafka 4.3`() {
        #expect(APIKey.all.count == 89)
        #expect(APIKey.all.map(\.rawValue) == (0...92).filter { !(4...7).contains($0) })
        #expect(APIKey.apiVersions.versions == 0...4)
        #expect(APIKey.initProducerID.versions == 0...5)
        #expect(APIKey.txnOffsetCommit.versions == 0...5)
        #expect(APIKey.deleteGroups.versions == 0...2)
        #expect(APIKey.streamsGroupHeartbeat.versions == 0...0)
        #expect(APIKey.streamsGroupDescribe.versions == 0...0)
        #expect(APIKey(rawValue: 93).versions == nil && APIKey(rawValue: 4).versions == nil)
    }

    @Test func `Produce is advertised from 0 and known from 3`() {
        #expect(APIKey.produce.versions == 3...13)
        #expect(APIKey.produce.advertisedVersions == 0...13)
        #expect(!APIKey.produce.isKnown(2) && APIKey.produce.isKnown(3))
        for key in APIKey.all where key != .produce { #expect(key.advertisedVersions == key.versions) }
    }

    @Test func `request types and the key table agree`() {
        for type in allMessageTypes {
            guard let type = type as? any KafkaRequest.Type else { continue }
            #expect(type.apiKey.versions == type.versions)
            #expect(type.apiKey.firstFlexibleVersion == type.firstFlexibleVersion)
            #expect("\(type)" == type.apiKey.name + "Request")
        }
    }
}

@Suite struct MetadataRecordTests {
    @Test func `a topic record has the frame that Kafka's tools expect`() throws {
        var topic = TopicRecord()
        topic.name = "foo"
        topic.topicID = UniversalID(high: 0x0102_0304_0506_0708, low: 0x090a_0b0c_0d0e_0f10)
        // Frame version 1, type 2, version 0, compact name, id, no tagged fields: worked by hand (KIP-631).
        let bytes: [UInt8] = [
            1, 2, 0, 4, 0x66, 0x6f, 0x6f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0,
        ]
        #expect(Array(try MetadataRecord.topic(topic).encoded().readableBytesView) == bytes)
        #expect(try MetadataRecord(reading: ByteBuffer(bytes: bytes)) == .topic(topic))
    }

    @Test func `frames of other kinds, unknown types and leftovers are refused`() {
        func read(_ bytes: [UInt8]) throws { _ = try MetadataRecord(reading: ByteBuffer(bytes: bytes)) }
        #expect(throws: DecodeError.unsupportedFrameVersion(2)) { try read([2, 2, 0]) }
        #expect(throws: DecodeError.unknownRecordType(199)) { try read([1, 0xc7, 1, 0]) }
        #expect(throws: DecodeError.unsupportedVersion(message: "NoOpRecord", version: 1)) {
            try read([1, 20, 1, 0])
        }
        #expect(throws: DecodeError.trailingBytes(position: 4, count: 1)) { try read([1, 20, 0, 0, 9]) }
    }
}

@Suite struct ErrorCodeTests {
    @Test func `codes have names, flags and remedies`() {
        #expect(ErrorCode.all.count == 138)
        #expect(ErrorCode.offsetOutOfRange.rawValue == 1 && ErrorCode.unknownServerError.rawValue == -1)
        #expect(ErrorCode.offsetOutOfRange.name == "OFFSET_OUT_OF_RANGE")
        #expect(ErrorCode.notLeaderOrFollower.isRetriable && !ErrorCode.invalidRecord.isRetriable)
        #expect(ErrorCode(rawValue: 9999).name == "ERROR_9999" && !ErrorCode(rawValue: 9999).isRetriable)
        for code in ErrorCode.all where code != ErrorCode.none {
            #expect(!code.text.isEmpty && !code.remedy.isEmpty)
        }
        #expect(Set(ErrorCode.all.map(\.name)).count == 138)
    }
}
