import Glibc
import MartletKafkaProtocol
import NIOCore
import Testing

/// Bytes from outside never trap and never make the decoder reserve more than in proportion to the frame.
@Suite(.serialized) struct FuzzTests {
    /// Growth of the process's address space that all attacks together may cause; other suites run beside
    /// this one. Frames here have at most a few kilobytes, and one believed length of 2³¹ is above it.
    static let peakGrowthLimitKiB = 1024 * 1024

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
        let before = try peakKiB()
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
        #expect(try peakKiB() - before < Self.peakGrowthLimitKiB)
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

    private func decode(_ key: APIKey, _ version: Int16, _ bytes: ArraySlice<UInt8>) {
        var r = ProtocolReader(ByteBuffer(bytes: bytes))
        do throws(DecodeError) {
            _ = try decodeAnyRequest(key, version: version, reading: &r)
        } catch {
            // The typed error is the wanted outcome; its text must be printable as well.
            if error.description.isEmpty { Issue.record("\(key) \(version): empty description") }
        }
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

    /// Highest size of the process's address space so far. Not the resident size: memory that is reserved
    /// but never touched does not show there.
    private func peakKiB() throws -> Int {
        let file = try #require(fopen("/proc/self/status", "r"))
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            guard text.hasPrefix("VmPeak:") else { continue }
            return try #require(Int(text.split { $0 == " " || $0 == "\t" }[1]))
        }
        throw Unavailable()
    }

    private struct Unavailable: Error {}
}
