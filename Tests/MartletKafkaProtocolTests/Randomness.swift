import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// A message or structure that can be filled at random; conformances are generated.
protocol RandomMessage: KafkaStructure {
    static func random(_ g: inout Randomness, _ version: Int16) -> Self
}

/// Seeded source of values of all field types (SplitMix64).
struct Randomness: RandomNumberGenerator {
    private var state: UInt64
    /// Depth of nesting of arrays, which get shorter further in so that messages stay small.
    private var depth = 0

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func coin() -> Bool { next() & 1 == 0 }
    mutating func rarely() -> Bool { next() & 3 == 0 }

    mutating func integer<T: FixedWidthInteger>() -> T {
        switch next() % 6 {
        case 0: return T.max
        case 1: return T.min
        case 2: return 0
        case 3: return T(truncatingIfNeeded: next() & 0x7f)
        case _: return T(truncatingIfNeeded: next())
        }
    }

    mutating func double() -> Double { Double(Int64(bitPattern: next())) / 1024 }
    mutating func uuid() -> UniversalID { UniversalID(high: next(), low: next()) }

    mutating func string() -> String {
        let alphabet: [Character] = ["a", "Z", "0", "-", "_", ".", " ", "é", "水", "🐦"]
        // Now and then longer than 127 bytes, so that compact lengths take two bytes.
        let count = next() % 16 == 0 ? 150 : Int(next() % 12)
        return String((0..<count).map { _ in alphabet[Int(next() % 10)] })
    }

    mutating func bytes() -> ByteBuffer {
        let count = next() % 16 == 0 ? 300 : Int(next() % 20)
        return ByteBuffer(bytes: (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) })
    }

    mutating func array<T>(_ element: (inout Randomness) -> T) -> [T] {
        depth += 1
        defer { depth -= 1 }
        return (0..<Int(next() % (depth > 2 ? 2 : 4))).map { _ in element(&self) }
    }

    mutating func array<T: RandomMessage>(_ version: Int16) -> [T] { array { .random(&$0, version) } }
}

/// Seed of a test run: `MARTLET_SEED`, or a fixed one. Printed by every failing expectation.
let testSeed: UInt64 = 0x4d41_5254_4c45_5431
