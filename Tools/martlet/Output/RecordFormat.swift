import MartletClient
import MartletLogModel
import NIOCore

/// Format string of `consume`, in kcat's letters:
/// `%t` topic, `%p` partition, `%o` offset, `%T` time in milliseconds, `%D` time as ISO 8601, `%k` key, `%K` its
/// length, `%s` value, `%S` its length, `%h` headers as name=value,…, `%H` number of headers, `%%` a percent
/// sign; `\n \t \r \0 \\ \xHH` as in C. Lengths of a null are -1; a null prints as nothing.
struct RecordFormat: Hashable {
    enum Part: Hashable {
        case literal([UInt8])
        case topic, partition, offset, timestamp, date, key, keyLength, value, valueLength, headers,
            headerCount
    }

    var parts: [Part]

    init(_ text: String) throws {
        parts = []
        var literal: [UInt8] = []
        var rest = Array(text.utf8)[...]
        func refuse(_ what: String) -> CommandFailure {
            CommandFailure(
                "format string: \(what)",
                remedy: "letters: %t %p %o %T %D %k %K %s %S %h %H %%; escapes: \\n \\t \\r \\0 \\\\ \\xHH",
                exitCode: .usage)
        }
        while let byte = rest.popFirst() {
            switch byte {
            case UInt8(ascii: "%"):
                guard let letter = rest.popFirst() else { throw refuse("'%' at the end") }
                if letter == UInt8(ascii: "%") {
                    literal.append(letter)
                    continue
                }
                guard let part = Self.part(letter) else {
                    throw refuse("'%\(Character(UnicodeScalar(letter)))' is unknown")
                }
                if !literal.isEmpty { parts.append(.literal(literal)) }
                literal = []
                parts.append(part)
            case UInt8(ascii: "\\"):
                guard let letter = rest.popFirst() else { throw refuse("'\\' at the end") }
                switch letter {
                case UInt8(ascii: "n"): literal.append(10)
                case UInt8(ascii: "t"): literal.append(9)
                case UInt8(ascii: "r"): literal.append(13)
                case UInt8(ascii: "0"): literal.append(0)
                case UInt8(ascii: "\\"): literal.append(letter)
                case UInt8(ascii: "x"):
                    let digits = String(decoding: rest.prefix(2), as: UTF8.self)
                    guard digits.utf8.count == 2, let value = UInt8(digits, radix: 16) else {
                        throw refuse("'\\x' needs two hexadecimal digits")
                    }
                    rest = rest.dropFirst(2)
                    literal.append(value)
                case _: throw refuse("'\\\(Character(UnicodeScalar(letter)))' is unknown")
                }
            case _: literal.append(byte)
            }
        }
        if !literal.isEmpty { parts.append(.literal(literal)) }
    }

    private static func part(_ letter: UInt8) -> Part? {
        switch letter {
        case UInt8(ascii: "t"): .topic
        case UInt8(ascii: "p"): .partition
        case UInt8(ascii: "o"): .offset
        case UInt8(ascii: "T"): .timestamp
        case UInt8(ascii: "D"): .date
        case UInt8(ascii: "k"): .key
        case UInt8(ascii: "K"): .keyLength
        case UInt8(ascii: "s"): .value
        case UInt8(ascii: "S"): .valueLength
        case UInt8(ascii: "h"): .headers
        case UInt8(ascii: "H"): .headerCount
        case _: nil
        }
    }

    /// What a format string can show of a record.
    struct Fields {
        var topic: String
        var partition: Int32
        var offset: Int64
        var timestamp: Int64
        var key: ByteBuffer?
        var value: ByteBuffer?
        var headers: [RecordHeader]
        /// Of a share group; `nil` elsewhere.
        var deliveryCount: Int?
    }

    func write(_ record: Fields, to output: inout ByteBuffer) {
        for part in parts {
            switch part {
            case .literal(let bytes): output.writeBytes(bytes)
            case .topic: output.writeString(record.topic)
            case .partition: output.writeString(String(record.partition))
            case .offset: output.writeString(String(record.offset))
            case .timestamp: output.writeString(String(record.timestamp))
            case .date: output.writeString(CivilTime.text(milliseconds: record.timestamp))
            case .key: if let key = record.key { output.writeImmutableBuffer(key) }
            case .keyLength: output.writeString(String(record.key?.readableBytes ?? -1))
            case .value: if let value = record.value { output.writeImmutableBuffer(value) }
            case .valueLength: output.writeString(String(record.value?.readableBytes ?? -1))
            case .headers:
                for (index, header) in record.headers.enumerated() {
                    if index > 0 { output.writeString(",") }
                    output.writeString(header.name + "=")
                    if let value = header.value {
                        output.writeImmutableBuffer(value)
                    } else {
                        output.writeString("NULL")
                    }
                }
            case .headerCount: output.writeString(String(record.headers.count))
            }
        }
    }

    /// One line of JSON.
    static func json(_ record: Fields) -> JSONValue {
        var deliveries: [(String, JSONValue)] = []
        if let count = record.deliveryCount { deliveries = [("deliveryCount", .integer(Int64(count)))] }
        return .object(
            [
                ("topic", .string(record.topic)), ("partition", .integer(Int64(record.partition))),
                ("offset", .integer(record.offset)), ("timestamp", .integer(record.timestamp)),
            ] + deliveries + JSONBytes.members("key", record.key) + JSONBytes.members("value", record.value) + [
                (
                    "headers",
                    .array(
                        record.headers.map { header in
                            .object(
                                [("name", .string(header.name))] + JSONBytes.members("value", header.value))
                        })
                )
            ])
    }
}

extension RecordFormat.Fields {
    init(_ record: ConsumedRecord) {
        self.init(
            topic: record.topic, partition: record.partition.rawValue, offset: record.offset.rawValue,
            timestamp: record.timestamp.rawValue, key: record.key, value: record.value,
            headers: record.headers)
    }
}
