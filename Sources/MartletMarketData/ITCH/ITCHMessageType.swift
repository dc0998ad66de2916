/// Type byte of a Nasdaq TotalView-ITCH 5.0 message, and the table of all types with their layouts.
///
/// Source: Nasdaq TotalView-ITCH 5.0 specification. All integers are big-endian and unaligned; text is
/// ASCII, left-justified and padded with spaces.
public struct ITCHMessageType: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    public var rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    public static let systemEvent = ITCHMessageType("S")
    public static let stockDirectory = ITCHMessageType("R")
    public static let tradingAction = ITCHMessageType("H")
    public static let shortSaleRestriction = ITCHMessageType("Y")
    public static let participantPosition = ITCHMessageType("L")
    public static let breakerLevels = ITCHMessageType("V")
    public static let breakerStatus = ITCHMessageType("W")
    public static let ipoQuoting = ITCHMessageType("K")
    public static let priceCollar = ITCHMessageType("J")
    public static let operationalHalt = ITCHMessageType("h")
    public static let addOrder = ITCHMessageType("A")
    public static let addOrderAttributed = ITCHMessageType("F")
    public static let executed = ITCHMessageType("E")
    public static let executedWithPrice = ITCHMessageType("C")
    public static let cancel = ITCHMessageType("X")
    public static let delete = ITCHMessageType("D")
    public static let replace = ITCHMessageType("U")
    public static let trade = ITCHMessageType("P")
    public static let crossTrade = ITCHMessageType("Q")
    public static let brokenTrade = ITCHMessageType("B")
    public static let imbalance = ITCHMessageType("I")
    public static let retailInterest = ITCHMessageType("N")
    public static let directListing = ITCHMessageType("O")

    /// All types of the specification, in its order.
    public static let all: [ITCHMessageType] = [
        .systemEvent, .stockDirectory, .tradingAction, .shortSaleRestriction, .participantPosition,
        .breakerLevels, .breakerStatus, .ipoQuoting, .priceCollar, .operationalHalt, .addOrder,
        .addOrderAttributed, .executed, .executedWithPrice, .cancel, .delete, .replace, .trade, .crossTrade,
        .brokenTrade, .imbalance, .retailInterest, .directListing,
    ]

    private init(_ letter: Character) { rawValue = letter.asciiValue ?? 0 }

    /// Size of the message in bytes without framing; `nil` for a type this table does not know.
    public var byteCount: Int? {
        let count = Int(Self.byteCounts[Int(rawValue)])
        return count == 0 ? nil : count
    }

    /// Fixed sizes by type byte; 0 means unknown.
    private static let byteCounts: [UInt8] = {
        var counts = [UInt8](repeating: 0, count: 256)
        for type in all {
            counts[Int(type.rawValue)] = UInt8(
                ITCHField.common.byteCount + type.fields.map(\.size).reduce(0, +))
        }
        return counts
    }()

    /// Where the 8-byte stock symbol lies, if the type carries one.
    var stockOffset: Int? {
        switch self {
        case .stockDirectory, .tradingAction, .shortSaleRestriction, .ipoQuoting, .priceCollar,
            .operationalHalt,
            .retailInterest, .directListing:
            11
        case .participantPosition: 15
        case .crossTrade: 19
        case .addOrder, .addOrderAttributed, .trade: 24
        case .imbalance: 28
        case _: nil
        }
    }

    /// The letter, or the byte in hexadecimal when it is not printable.
    public var description: String {
        (0x21...0x7e).contains(rawValue)
            ? String(UnicodeScalar(rawValue)) : "0x" + String(rawValue, radix: 16)
    }
}

/// One field of a message type: the unit of the layout table.
public struct ITCHField: Hashable, Sendable {
    /// How the bytes are to be read.
    public enum Kind: Hashable, Sendable {
        case text
        case integer
        /// Price in 1/10,000 of the currency unit.
        case price4
        /// Price in 1/100,000,000 of the currency unit (market-wide breaker levels).
        case price8
        /// Nanoseconds since midnight of the exchange.
        case time
    }

    /// Name in lower camel case; the same meaning has the same name in every type.
    public let name: String
    /// Size in bytes.
    public let size: Int
    public let kind: Kind

    init(_ name: String, _ size: Int, _ kind: Kind = .integer) {
        self.name = name
        self.size = size
        self.kind = kind
    }

    /// The eleven bytes every message starts with: type 1, locate 2, tracking 2, time 6.
    public static let common: (fields: [ITCHField], byteCount: Int) = (
        [
            ITCHField("type", 1, .text), ITCHField("locate", 2), ITCHField("tracking", 2),
            ITCHField("time", 6, .time),
        ],
        11
    )
}

extension ITCHMessageType {
    /// Fields after the common eleven bytes, in order; empty for an unknown type.
    public var fields: [ITCHField] {
        let stock = ITCHField("stock", 8, .text)
        let reference = ITCHField("reference", 8)
        let shares = ITCHField("shares", 4)
        let price = ITCHField("price", 4, .price4)
        let match = ITCHField("match", 8)
        let side = ITCHField("side", 1, .text)
        func letter(_ name: String) -> ITCHField { ITCHField(name, 1, .text) }
        switch self {
        case .systemEvent: return [letter("event")]
        case .stockDirectory:
            return [
                stock, letter("category"), letter("financialStatus"), ITCHField("roundLot", 4),
                letter("roundLotsOnly"), letter("issueClass"), ITCHField("issueSubType", 2, .text),
                letter("authenticity"), letter("shortSaleThreshold"), letter("ipo"), letter("luldTier"),
                letter("etp"), ITCHField("etpLeverage", 4), letter("inverse"),
            ]
        case .tradingAction:
            return [stock, letter("state"), letter("reserved"), ITCHField("reason", 4, .text)]
        case .shortSaleRestriction: return [stock, letter("action")]
        case .participantPosition:
            return [ITCHField("mpid", 4, .text), stock, letter("primary"), letter("mode"), letter("state")]
        case .breakerLevels: return (1...3).map { ITCHField("level\($0)", 8, .price8) }
        case .breakerStatus: return [letter("level")]
        case .ipoQuoting: return [stock, ITCHField("releaseSeconds", 4), letter("qualifier"), price]
        case .priceCollar:
            return [
                stock, ITCHField("referencePrice", 4, .price4), ITCHField("upper", 4, .price4),
                ITCHField("lower", 4, .price4), ITCHField("extension", 4),
            ]
        case .operationalHalt: return [stock, letter("market"), letter("action")]
        case .addOrder: return [reference, side, shares, stock, price]
        case .addOrderAttributed: return [reference, side, shares, stock, price, ITCHField("mpid", 4, .text)]
        case .executed: return [reference, shares, match]
        case .executedWithPrice: return [reference, shares, match, letter("printable"), price]
        case .cancel: return [reference, shares]
        case .delete: return [reference]
        case .replace: return [reference, ITCHField("newReference", 8), shares, price]
        case .trade: return [reference, side, shares, stock, price, match]
        case .crossTrade: return [ITCHField("shares", 8), stock, price, match, letter("crossType")]
        case .brokenTrade: return [match]
        case .imbalance:
            return [
                ITCHField("paired", 8), ITCHField("imbalance", 8), letter("direction"), stock,
                ITCHField("farPrice", 4, .price4), ITCHField("nearPrice", 4, .price4),
                ITCHField("referencePrice", 4, .price4), letter("crossType"), letter("variation"),
            ]
        case .retailInterest: return [stock, letter("interest")]
        case .directListing:
            return [
                stock, letter("eligibility"), ITCHField("minimum", 4, .price4),
                ITCHField("maximum", 4, .price4),
                ITCHField("nearExecution", 4, .price4), ITCHField("nearTime", 8, .time),
                ITCHField("lowerCollar", 4, .price4), ITCHField("upperCollar", 4, .price4),
            ]
        case _: return []
        }
    }
}
