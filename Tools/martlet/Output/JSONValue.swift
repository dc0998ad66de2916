import NIOCore

/// A JSON document whose objects keep their order; written without Foundation, so that start stays fast.
enum JSONValue {
    case null
    case bool(Bool)
    case integer(Int64)
    /// Printed with at most six decimals; never for prices or offsets.
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([(String, JSONValue)])

    static func optional<Value>(_ value: Value?, _ wrap: (Value) -> JSONValue) -> JSONValue {
        value.map(wrap) ?? .null
    }

    /// One line.
    var line: String {
        var text = ""
        write(to: &text, indent: nil)
        return text
    }

    /// Several lines, two blanks per level.
    var pretty: String {
        var text = ""
        write(to: &text, indent: 0)
        return text
    }

    private func write(to text: inout String, indent: Int?) {
        switch self {
        case .null: text += "null"
        case .bool(let value): text += value ? "true" : "false"
        case .integer(let value): text += String(value)
        case .number(let value): text += value.isFinite ? Decimals.text(value, 6, trimmed: true) : "null"
        case .string(let value): Self.write(value, to: &text)
        case .array(let values):
            Self.writeList(values, "[", "]", to: &text, indent: indent) { value, text, indent in
                value.write(to: &text, indent: indent)
            }
        case .object(let members):
            Self.writeList(members, "{", "}", to: &text, indent: indent) { member, text, indent in
                Self.write(member.0, to: &text)
                text += indent == nil ? ":" : ": "
                member.1.write(to: &text, indent: indent)
            }
        }
    }

    private static func writeList<Item>(
        _ items: [Item], _ open: String, _ close: String, to text: inout String, indent: Int?,
        _ body: (Item, inout String, Int?) -> Void
    ) {
        text += open
        for (index, item) in items.enumerated() {
            if index > 0 { text += "," }
            if let indent { text += "\n" + String(repeating: "  ", count: indent + 1) }
            body(item, &text, indent.map { $0 + 1 })
        }
        if let indent, !items.isEmpty { text += "\n" + String(repeating: "  ", count: indent) }
        text += close
    }

    private static func write(_ string: String, to text: inout String) {
        text += "\""
        for scalar in string.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case _ where scalar.value < 0x20 || scalar.value == 0x7f:
                let hex = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - hex.utf8.count) + hex
            case _: text.unicodeScalars.append(scalar)
            }
        }
        text += "\""
    }
}

/// Bytes as JSON members: text where they are UTF-8, else base64 with a second member that says so.
enum JSONBytes {
    static func members(_ name: String, _ bytes: ByteBuffer?) -> [(String, JSONValue)] {
        guard let bytes else { return [(name, .null)] }
        if let text = String(validating: bytes.readableBytesView, as: UTF8.self) {
            return [(name, .string(text))]
        }
        return [
            (name, .string(Base64.encode(bytes.readableBytesView))), (name + "Encoding", .string("base64")),
        ]
    }
}

/// RFC 4648 base64 with padding.
enum Base64 {
    private static let alphabet = Array(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

    static func encode(_ bytes: some Collection<UInt8>) -> String {
        var result: [UInt8] = []
        result.reserveCapacity((bytes.count + 2) / 3 * 4)
        var index = bytes.startIndex
        while index != bytes.endIndex {
            var group: [UInt8] = []
            while group.count < 3, index != bytes.endIndex {
                group.append(bytes[index])
                bytes.formIndex(after: &index)
            }
            let value = group.reduce(UInt32(0)) { $0 << 8 | UInt32($1) } << (8 * UInt32(3 - group.count))
            for place in 0..<4 {
                result.append(
                    place <= group.count
                        ? alphabet[Int(value >> (18 - 6 * UInt32(place))) & 63] : UInt8(ascii: "="))
            }
        }
        return String(decoding: result, as: UTF8.self)
    }
}

/// Numbers for people, without Foundation's formatters.
enum Decimals {
    /// `value` rounded to `places` decimals.
    static func text(_ value: Double, _ places: Int, trimmed: Bool = false) -> String {
        guard value.isFinite, abs(value) < 1e15 else { return "\(value)" }
        var scale = 1.0
        for _ in 0..<places { scale *= 10 }
        let units = Int64((abs(value) * scale).rounded())
        var digits = String(units)
        while digits.utf8.count <= places { digits = "0" + digits }
        let cut = digits.index(digits.endIndex, offsetBy: -places)
        var fraction = String(digits[cut...])
        if trimmed { while fraction.hasSuffix("0") { fraction.removeLast() } }
        return (value < 0 && units > 0 ? "-" : "") + digits[..<cut] + (fraction.isEmpty ? "" : "." + fraction)
    }

    /// `12,345,678`.
    static func grouped(_ value: Int64) -> String {
        var digits = String(value.magnitude)
        var groups: [String] = []
        while digits.utf8.count > 3 {
            groups.insert(String(digits.suffix(3)), at: 0)
            digits.removeLast(3)
        }
        groups.insert(digits, at: 0)
        return (value < 0 ? "-" : "") + groups.joined(separator: ",")
    }

    /// `1.5 GiB`.
    static func bytes(_ count: Int64) -> String {
        var value = Double(count)
        for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
            if abs(value) < 1024 || unit == "TiB" {
                return unit == "B" ? "\(count) B" : text(value, 1) + " " + unit
            }
            value /= 1024
        }
        return "\(count) B"
    }
}
