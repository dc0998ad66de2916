public import NIOCore

/// Side of an order.
public enum Side: UInt8, Hashable, Sendable, CustomStringConvertible {
    case buy = 0x42
    case sell = 0x53

    public var opposite: Side { self == .buy ? .sell : .buy }
    public var description: String { self == .buy ? "buy" : "sell" }
}

/// View of one ITCH 5.0 message over its bytes, without framing. Nothing is copied or decoded before it is
/// asked for. Accessors of fields that the type does not have return `nil`.
public struct ITCHMessage: Hashable, Sendable {
    /// Shortest message: the common start alone.
    public static let byteCountMinimum = 11
    /// Longest message the two-byte length prefix can announce.
    public static let byteCountLimit = Int(UInt16.max)

    /// Exactly the message's bytes.
    public let bytes: ByteBuffer

    /// Takes bytes that come from a record or a frame. Throws if they cannot be an ITCH message: shorter
    /// than the common start, of another length than the type's, or of a type that is not a letter.
    /// Unknown letters pass (feeds gain types), as the specification asks.
    public init(_ bytes: ByteBuffer) throws(MarketDataError) {
        if let problem = Self.problem(bytes) { throw problem }
        self.bytes = bytes
    }

    init(unchecked bytes: ByteBuffer) { self.bytes = bytes }

    /// Why `bytes` are not a message, or `nil`.
    static func problem(_ bytes: ByteBuffer) -> MarketDataError? {
        let count = bytes.readableBytes
        guard count >= byteCountMinimum, count <= byteCountLimit,
            let letter = bytes.getInteger(at: bytes.readerIndex, as: UInt8.self)
        else {
            return MarketDataError(
                .badLength,
                cause: "\(count) bytes cannot be an ITCH message (\(byteCountMinimum) to \(byteCountLimit))")
        }
        let type = ITCHMessageType(rawValue: letter)
        if let expected = type.byteCount {
            guard expected != count else { return nil }
            return MarketDataError(
                .badLength,
                cause: "message of type \(type) has \(count) bytes where ITCH 5.0 has \(expected)",
                remedy: "check that the feed is ITCH 5.0 with two-byte length prefixes")
        }
        let isLetter = (0x41...0x5a).contains(letter) || (0x61...0x7a).contains(letter)
        guard !isLetter else { return nil }
        return MarketDataError(
            .badContent, cause: "type byte \(type) is not a letter",
            remedy: "check that the feed is ITCH 5.0 with two-byte length prefixes")
    }

    public var type: ITCHMessageType { ITCHMessageType(rawValue: integer(0, UInt8.self)) }
    /// Per-day number of the instrument; 0 for messages about the whole system.
    public var locate: UInt16 { integer(1, UInt16.self) }
    public var tracking: UInt16 { integer(3, UInt16.self) }
    /// Nanoseconds since midnight of the exchange.
    public var nanoseconds: Int64 {
        Int64(integer(5, UInt16.self)) << 32 | Int64(integer(7, UInt32.self))
    }

    /// The 8-byte symbol without its padding, if the type carries one.
    public var stock: String? { stockBytes.map { String(buffer: $0) } }

    /// Bytes of the symbol without its padding, if the type carries one.
    public var stockBytes: ByteBuffer? {
        guard let offset = type.stockOffset, offset + 8 <= bytes.readableBytes else { return nil }
        let start = bytes.readerIndex + offset
        var count = 8
        while count > 0, bytes.getInteger(at: start + count - 1, as: UInt8.self) == 0x20 { count -= 1 }
        return bytes.getSlice(at: start, length: count)
    }

    /// Order reference: A F E C X D U (the order that is replaced) P.
    public var reference: UInt64? {
        switch type {
        case .addOrder, .addOrderAttributed, .executed, .executedWithPrice, .cancel, .delete, .replace,
            .trade:
            integer(11, UInt64.self)
        case _: nil
        }
    }

    /// Reference of the order that takes the place of ``reference`` (U).
    public var newReference: UInt64? { type == .replace ? integer(19, UInt64.self) : nil }

    /// A F: size of the order; E C X: shares that leave it; U: size of the new order; P Q: shares traded.
    public var shares: UInt64? {
        switch type {
        case .addOrder, .addOrderAttributed, .trade: UInt64(integer(20, UInt32.self))
        case .executed, .executedWithPrice, .cancel: UInt64(integer(19, UInt32.self))
        case .replace: UInt64(integer(27, UInt32.self))
        case .crossTrade: integer(11, UInt64.self)
        case _: nil
        }
    }

    /// Price in 1/10,000 of a dollar: A F U C P Q K.
    public var price: UInt32? {
        switch type {
        case .addOrder, .addOrderAttributed, .trade, .executedWithPrice: integer(32, UInt32.self)
        case .replace: integer(31, UInt32.self)
        case .crossTrade: integer(27, UInt32.self)
        case .ipoQuoting: integer(24, UInt32.self)
        case _: nil
        }
    }

    /// Side of the order: A F P.
    public var side: Side? {
        switch type {
        case .addOrder, .addOrderAttributed, .trade: Side(rawValue: integer(19, UInt8.self))
        case _: nil
        }
    }

    /// Match number: E C P Q B.
    public var matchNumber: UInt64? {
        switch type {
        case .executed, .executedWithPrice: integer(23, UInt64.self)
        case .trade: integer(36, UInt64.self)
        case .crossTrade: integer(31, UInt64.self)
        case .brokenTrade: integer(11, UInt64.self)
        case _: nil
        }
    }

    /// Whether an execution counts in the volume: C has a flag, all other trades count.
    public var isPrintable: Bool {
        type != .executedWithPrice || integer(31, UInt8.self) == UInt8(ascii: "Y")
    }

    /// Letter of a one-letter field: event of S, state of H, cross type of Q.
    public var letter: UInt8? {
        switch type {
        case .systemEvent: integer(11, UInt8.self)
        case .tradingAction: integer(19, UInt8.self)
        case .crossTrade: integer(39, UInt8.self)
        case _: nil
        }
    }

    /// All fields by the layout table, as text: numbers in decimal, prices with their decimals, text trimmed.
    public var described: [(name: String, value: String)] {
        var index = 0
        var result: [(name: String, value: String)] = []
        for field in ITCHField.common.fields + type.fields {
            guard index + field.size <= bytes.readableBytes else { break }
            result.append((field.name, text(of: field, at: index)))
            index += field.size
        }
        return result
    }

    private func text(of field: ITCHField, at index: Int) -> String {
        switch field.kind {
        case .text:
            let raw =
                bytes.getSlice(at: bytes.readerIndex + index, length: field.size).map { String(buffer: $0) }
                ?? ""
            return String(raw.reversed().drop(while: { $0 == " " }).reversed())
        case .integer: return String(unsigned(index, field.size))
        case .price4: return PriceText.decimal(Int64(unsigned(index, field.size)), places: 4)
        case .price8: return PriceText.decimal(Int64(clamping: unsigned(index, field.size)), places: 8)
        case .time: return TimeText.timeOfDay(nanoseconds: Int64(clamping: unsigned(index, field.size)))
        }
    }

    private func unsigned(_ index: Int, _ size: Int) -> UInt64 {
        (0..<size).reduce(UInt64(0)) { $0 << 8 | UInt64(integer(index + $1, UInt8.self)) }
    }

    /// Layout offsets stay inside the message: the length was checked against the type. An unknown or
    /// impossible offset reads as 0 rather than trapping.
    private func integer<T: FixedWidthInteger>(_ offset: Int, _: T.Type) -> T {
        bytes.getInteger(at: bytes.readerIndex + offset, as: T.self) ?? 0
    }
}
