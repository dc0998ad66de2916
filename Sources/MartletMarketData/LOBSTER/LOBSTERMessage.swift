public import NIOCore

/// View of one line of a LOBSTER message file: `time,type,order id,size,price,direction`, over its bytes
/// without the newline. Numbers are read from the text when asked for; the time is never a `Double`.
///
/// Source: LOBSTER's documentation of its output. Files with attribution carry a seventh field.
public struct LOBSTERMessage: Hashable, Sendable {
    public enum Kind: Int64, Hashable, Sendable {
        case new = 1
        case partialCancel = 2
        case delete = 3
        case execution = 4
        case hiddenExecution = 5
        case cross = 6
        case halt = 7
    }

    /// Exactly the line, without its newline (a carriage return before it belongs to the line).
    public let bytes: ByteBuffer
    /// Nanoseconds since midnight of the exchange.
    public let nanoseconds: Int64
    public let kind: Kind
    public let orderID: Int64
    public let size: Int64
    /// Price in 1/10,000 of a dollar; -1, 0 and 1 have their own meaning in a halt.
    public let price: Int64
    /// Side of the *resting* order; an execution's aggressor is on the other one.
    public let restingSide: Side

    /// Parses a line; throws naming the field that is wrong.
    public init(_ bytes: ByteBuffer) throws(MarketDataError) {
        self.bytes = bytes
        // SAFETY: the pointer does not leave the closure; the parser indexes it only below `count`.
        let outcome = bytes.withUnsafeReadableBytes { raw -> Result<LineFields, MarketDataError> in
            var parser = LineParser(bytes: raw)
            return Result { () throws(MarketDataError) in try parser.fields() }
        }
        let fields = try outcome.get()
        nanoseconds = fields.nanoseconds
        kind = fields.kind
        orderID = fields.orderID
        size = fields.size
        price = fields.price
        restingSide = fields.restingSide
    }

    public static func == (left: LOBSTERMessage, right: LOBSTERMessage) -> Bool { left.bytes == right.bytes }
    public func hash(into hasher: inout Hasher) { hasher.combine(bytes) }
}

/// The numbers of one line.
private struct LineFields {
    var nanoseconds: Int64
    var kind: LOBSTERMessage.Kind
    var orderID: Int64
    var size: Int64
    var price: Int64
    var restingSide: Side
}

/// Walks the comma-separated fields of one line.
private struct LineParser {
    let bytes: UnsafeRawBufferPointer
    var index = 0

    init(bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    mutating func fields() throws(MarketDataError) -> LineFields {
        let nanoseconds = try time()
        let code = try integer("type")
        guard let kind = LOBSTERMessage.Kind(rawValue: code) else {
            throw MarketDataError(.badContent, cause: "type \(code) is not one of 1 to 7")
        }
        let orderID = try integer("order id")
        let size = try integer("size")
        let price = try integer("price")
        let direction = try integer("direction", isLast: true)
        guard direction == 1 || direction == -1 else {
            throw MarketDataError(.badContent, cause: "direction \(direction) is neither 1 nor -1")
        }
        return LineFields(
            nanoseconds: nanoseconds, kind: kind, orderID: orderID, size: size, price: price,
            restingSide: direction == 1 ? .buy : .sell)
    }

    private mutating func next() -> UInt8? {
        guard index < bytes.count else { return nil }
        index += 1
        return bytes[index - 1]
    }

    mutating func integer(_ name: String, isLast: Bool = false) throws(MarketDataError) -> Int64 {
        var negative = false
        var value: Int64 = 0
        var digits = 0
        while true {
            let byte = next()
            switch byte {
            case UInt8(ascii: "-") where digits == 0 && !negative: negative = true
            case .some(let digit) where (48...57).contains(digit):
                digits += 1
                guard digits <= 18 else { throw bad(name, "is too long") }
                value = value * 10 + Int64(digit - 48)
            case nil where isLast && digits > 0, UInt8(ascii: ",") where digits > 0,
                UInt8(ascii: "\r") where isLast && digits > 0:
                return negative ? -value : value
            case nil:
                throw bad(name, digits > 0 ? "is followed by nothing: fields are missing" : "is missing")
            case .some: throw bad(name, "is not an integer")
            }
        }
    }

    /// Most decimals accepted in a time. Real files print some times through binary fractions, with up to
    /// twelve decimals (`43002.632812672004`); what follows the ninth is noise and is dropped.
    static let decimalLimit = 18

    /// Seconds as nanoseconds.
    mutating func time() throws(MarketDataError) -> Int64 {
        var seconds: Int64 = 0
        var fraction: Int64 = 0
        var digits = 0
        var places: Int?
        while true {
            let byte = next()
            switch byte {
            case .some(let digit) where (48...57).contains(digit):
                if let count = places {
                    guard count < Self.decimalLimit else {
                        throw bad("time", "has more than \(Self.decimalLimit) decimals")
                    }
                    if count < 9 { fraction = fraction * 10 + Int64(digit - 48) }
                    places = count + 1
                } else {
                    digits += 1
                    guard digits <= 6 else { throw bad("time", "is too long") }
                    seconds = seconds * 10 + Int64(digit - 48)
                }
            case UInt8(ascii: ".") where places == nil && digits > 0: places = 0
            case UInt8(ascii: ",") where digits > 0:
                for _ in min(places ?? 0, 9)..<9 { fraction *= 10 }
                return seconds * 1_000_000_000 + fraction
            case _: throw bad("time", "is not a number of seconds")
            }
        }
    }

    private func bad(_ name: String, _ what: String) -> MarketDataError {
        MarketDataError(
            .badContent, cause: "field '\(name)' \(what)",
            remedy: "a line is time,type,order id,size,price,direction")
    }
}

/// What LOBSTER puts into a file's name: `TICKER_date_start_end_message_levels.csv`.
public struct LOBSTERFileName: Hashable, Sendable {
    public let symbol: String
    public let date: TradingDate?

    /// `nil` if the name does not have that shape.
    public init?(path: String) {
        let name = path.split(separator: "/").last ?? ""
        let parts = name.split(separator: "_", omittingEmptySubsequences: false)
        guard parts.count >= 2, let symbol = parts.first, (1...24).contains(symbol.utf8.count),
            let date = TradingDate(String(parts[1]))
        else { return nil }
        self.symbol = String(symbol)
        self.date = date
    }
}
