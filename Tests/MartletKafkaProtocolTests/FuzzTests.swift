import CMartletAllocationCounter
import MartletKafkaProtocol
import NIOCore
import Testing

/// Bytes from outside never trap and never make the decoder reserve more than in proportion to the frame.
@Suite(.serialized) struct FuzzTests {
    /// Largest single allocation of a decoder, per byte of the frame: the smallest element has 3 bytes, the largest
    /// takes some hundred in memory, and an array grows by doubling.
    static let growthLimit = 100
    /// What is allocated whatever the frame's size: errors and small texts, and the pieces of 16 KiB in which Swift's
    /// runtime takes memory for its type metadata, whenever it happens to need one.
    static let freeByteCount = 20_000

    @Test func `any prefix of any request is an error or a message`() throws {
        try forAllRequests { key, version, bytes in
            for length in stride(from: 0, to: bytes.count, by: max(1, bytes.count / 200)) {
                decode(key, version, bytes[..<length])
            }
        }
    }

    @Test func `any flipped bit of any request is an error or a message`() throws {
        try forAllRequests { key, version, bytes in
            var bytes = bytes
            let step = max(1, bytes.count * 8 / 400)
            for bit in stride(from: 0, to: bytes.count * 8, by: step) {
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
                decode(key, version, bytes[...])
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            }
        }
    }

    @Test func `huge lengths and counts at any place reserve nothing`() throws {
        let attacks: [[UInt8]] = [
            [0x7f, 0xff, 0xff, 0xff], [0x7f, 0xff], [0xff, 0xff, 0xff, 0xff, 0x0f],
            [0xff, 0xff, 0xff, 0xff, 0x7f],
            [0xff, 0xff, 0xff, 0xff], [0x80, 0, 0, 0], [0x00, 0x0f, 0xff, 0xff],
        ]
        try forAllRequests { key, version, bytes in
            for place in stride(from: 0, to: bytes.count, by: max(1, bytes.count / 60)) {
                for attack in attacks {
                    var mutated = bytes
                    for (index, byte) in attack.enumerated() where place + index < mutated.count {
                        mutated[place + index] = byte
                    }
                    decode(key, version, mutated[...])
                }
            }
        }
    }

    @Test(.enabled(if: martlet_counts_allocations() == 1))
    func `a frame of the smallest elements is refused before it takes memory`() throws {
        let limit = 32 * 1024
        var refused: Set<Int16> = []
        for key in APIKey.all {
            let versions = try #require(key.versions)
            for version in Set([versions.lowerBound, versions.upperBound]) {
                // Zeros and ones are empty texts, empty arrays, nulls and ends of tagged fields; a count before them
                // at each of the first places.
                for place in 0..<32 {
                    for (count, filler) in [
                        ([0xff, 0x7f], 1), ([0xff, 0x7f], 0), ([0, 0, 0x3f, 0xff], 0), ([0, 0, 0x3f, 0xff], 1),
                    ] as [([UInt8], UInt8)] {
                        var bytes = [UInt8](repeating: filler, count: 1 << 18)
                        bytes.replaceSubrange(place..<place + count.count, with: count)
                        if case .memoryLimitExceeded? = decode(key, version, bytes[...], memory: limit) {
                            refused.insert(key.rawValue)
                        }
                    }
                }
            }
        }
        #expect(refused.isSuperset(of: [0, 1, 2, 3, 8, 9, 19, 20, 21, 32, 44]), "\(refused.sorted())")
    }

    @Test func `what a request takes in memory is counted`() throws {
        var request = DeleteTopicsRequest()
        request.topicNames = ["short", String(repeating: "long", count: 10)]
        var w = ProtocolWriter()
        try request.encode(into: &w, version: 5)
        var reader = ProtocolReader(w.buffer)
        #expect(try DeleteTopicsRequest(reading: &reader, version: 5).topicNames == request.topicNames)
        #expect(reader.decodedByteCount == 32 + 2 * MemoryLayout<String>.stride + 32 + 40)
        var exact = ProtocolReader(w.buffer, decodedByteLimit: reader.decodedByteCount)
        _ = try DeleteTopicsRequest(reading: &exact, version: 5)
        var short = ProtocolReader(w.buffer, decodedByteLimit: reader.decodedByteCount - 1)
        #expect(throws: DecodeError.self) { try DeleteTopicsRequest(reading: &short, version: 5) }
    }

    @Test func `random bytes as any request are an error or a message`() throws {
        var randomness = Randomness(seed: testSeed)
        for key in APIKey.all {
            for version in try #require(key.versions) {
                for _ in 0..<30 {
                    let count = Int(randomness.next() % 120)
                    let bytes = (0..<count).map { _ in
                        UInt8(truncatingIfNeeded: randomness.next() & randomness.next())
                    }
                    decode(key, version, bytes[...])
                }
            }
        }
    }

    @Test func `responses and records stand the same`() throws {
        var count = 0
        for type in randomMessageTypes {
            if type is any KafkaRequest.Type { continue }
            for version in type.versions {
                try attack(type, version)
                count += 1
            }
        }
        #expect(count > 200)
    }

    private func attack<T: RandomMessage & KafkaMessage>(_ type: T.Type, _ version: Int16) throws {
        var randomness = Randomness(seed: testSeed &+ UInt64(version))
        var w = ProtocolWriter()
        try T.random(&randomness, version).encode(into: &w, version: version)
        var bytes = Array(w.buffer.readableBytesView)
        for index in stride(from: 0, to: bytes.count, by: max(1, bytes.count / 100)) {
            var prefix = ProtocolReader(ByteBuffer(bytes: bytes[..<index]))
            do { _ = try T(reading: &prefix, version: version) } catch {}
            let bit = UInt8(1) << UInt8(index % 8)
            bytes[index] ^= bit
            var flipped = ProtocolReader(ByteBuffer(bytes: bytes))
            do { _ = try T(reading: &flipped, version: version) } catch {}
            bytes[index] ^= bit
        }
    }

    // MARK: Help

    @discardableResult
    private func decode(
        _ key: APIKey, _ version: Int16, _ bytes: ArraySlice<UInt8>, memory: Int = 1 << 40
    ) -> DecodeError? {
        var r = ProtocolReader(ByteBuffer(bytes: bytes), decodedByteLimit: memory)
        var failure: DecodeError?
        _ = martlet_thread_largest_allocation()
        do throws(DecodeError) {
            _ = try decodeAnyRequest(key, version: version, reading: &r)
        } catch {
            failure = error
        }
        let largest = Int(martlet_thread_largest_allocation())
        if largest > Self.freeByteCount + min(bytes.count * Self.growthLimit, 2 * max(memory, bytes.count)) {
            Issue.record("\(key) \(version): \(largest) bytes at once for a frame of \(bytes.count)")
        }
        // The typed error is the wanted outcome; its text must be printable as well.
        if failure?.description.isEmpty == true { Issue.record("\(key) \(version): empty description") }
        return failure
    }

    private func forAllRequests(_ body: (APIKey, Int16, [UInt8]) throws -> Void) throws {
        for type in randomMessageTypes {
            guard let type = type as? any (RandomMessage & KafkaRequest).Type else { continue }
            for version in type.versions {
                for seed in 0..<2 as Range<UInt64> {
                    try body(type.apiKey, version, try encoded(type, version, testSeed &+ seed &* 7919))
                }
            }
        }
    }

    private func encoded<T: RandomMessage & KafkaRequest>(
        _ type: T.Type, _ version: Int16, _ seed: UInt64
    ) throws -> [UInt8] {
        var randomness = Randomness(seed: seed)
        var w = ProtocolWriter()
        try T.random(&randomness, version).encode(into: &w, version: version)
        return Array(w.buffer.readableBytesView)
    }
}
