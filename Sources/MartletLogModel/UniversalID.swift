/// 128-bit identifier of a topic, a log directory or a cluster (Kafka's `Uuid`, KIP-516).
///
/// Its text form is unpadded base64url of the 16 bytes, 22 characters, as Kafka's tools print it.
@frozen
public struct UniversalID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var high: UInt64
    public var low: UInt64

    @inlinable
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// All bits zero: "no identifier" on the wire. Inside, prefer `Optional`.
    public static let zero = UniversalID(high: 0, low: 0)

    /// A random (version 4) identifier whose text form does not start with `-`, so that it never looks
    /// like a command line option.
    public static func random(using generator: inout some RandomNumberGenerator) -> UniversalID {
        while true {
            let high = (generator.next() & ~0xf000) | 0x4000
            let low = (generator.next() & ~(0b11 << 62)) | (0b10 << 62)
            let id = UniversalID(high: high, low: low)
            if id.high >> 58 != 62 { return id }
        }
    }

    public static func < (left: UniversalID, right: UniversalID) -> Bool {
        left.high == right.high ? left.low < right.low : left.high < right.high
    }

    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".utf8)

    public var description: String {
        var text: [UInt8] = []
        text.reserveCapacity(22)
        // 128 bits as 21 groups of 6 bits and a last group of 2 bits, filled up with zeros.
        for group in 0..<22 {
            let shift = 122 - group * 6
            let value: UInt64
            if shift >= 64 {
                value = high >> UInt64(shift - 64)
            } else if shift >= 0 {
                let fromHigh = shift > 58 ? high << UInt64(64 - shift) : 0
                value = fromHigh | (low >> UInt64(shift))
            } else {
                value = low << UInt64(-shift)
            }
            text.append(Self.alphabet[Int(value & 0x3f)])
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// Parses the 22-character text form; `nil` for anything else.
    public init?(_ text: some StringProtocol) {
        let bytes = Array(text.utf8)
        guard bytes.count == 22 else { return nil }
        var high: UInt64 = 0
        var low: UInt64 = 0
        for (index, byte) in bytes.enumerated() {
            guard let value = Self.alphabet.firstIndex(of: byte) else { return nil }
            let bits = index == 21 ? UInt64(2) : 6
            let digit = index == 21 ? UInt64(value) >> 4 : UInt64(value)
            high = (high << bits) | (low >> (64 - bits))
            low = (low << bits) | digit
        }
        self.init(high: high, low: low)
    }
}
