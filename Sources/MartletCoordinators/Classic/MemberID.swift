import MartletLogModel

/// Ids of members: a prefix an operator recognises, a dash, and a random UUID in its usual text form.
enum MemberID {
    /// Unicode scalars; the client's part is cut: a member id is kept and sent many times. A character may have any
    /// number of them.
    static let prefixLengthLimit = 200

    static func make(prefix: String, _ id: UniversalID) -> String { "\(shortened(prefix))-\(text(id))" }

    /// Length in UTF-8 of what ``make(prefix:_:)`` makes.
    static func byteCount(prefix: String) -> Int { shortened(prefix).utf8.count + textByteCount + 1 }

    private static func shortened(_ prefix: String) -> String {
        String(prefix.unicodeScalars.prefix(prefixLengthLimit))
    }

    private static let textByteCount = 36

    /// RFC 9562 text: 8-4-4-4-12 hexadecimal digits.
    static func text(_ id: UniversalID) -> String {
        let digits = Array("0123456789abcdef".utf8)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(textByteCount)
        for index in 0..<32 {
            if index == 8 || index == 12 || index == 16 || index == 20 { bytes.append(UInt8(ascii: "-")) }
            let word = index < 16 ? id.high : id.low
            bytes.append(digits[Int((word >> UInt64(60 - (index % 16) * 4)) & 0xf)])
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
