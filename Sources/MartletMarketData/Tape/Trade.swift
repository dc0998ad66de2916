import NIOCore

/// One print of the trade tape, whatever feed it came from.
public struct Trade: Hashable, Sendable {
    public enum Kind: String, Hashable, Sendable {
        /// Against a displayed resting order.
        case displayed
        /// Against a hidden order.
        case hidden
        /// Opening, closing or halt auction.
        case cross
        /// An earlier trade, named by its match number, is taken back.
        case broken
    }

    /// Nanoseconds since midnight of the exchange.
    public var nanoseconds: Int64
    /// Empty where the feed has not told it.
    public var symbol: String
    public var kind: Kind
    /// In 1/10,000 of a dollar; `nil` for a broken trade, and for an execution of an order that was added
    /// before the first message seen.
    public var price: Int64?
    public var size: UInt64
    /// Side of the incoming order; `nil` where it cannot be known.
    public var aggressor: Side?
    public var matchNumber: UInt64?
    /// Whether it counts in the volume.
    public var isPrintable: Bool

    /// One line of a tape for people: time, symbol, side, size, price, kind.
    public var line: String {
        func column(_ text: String, _ width: Int, right: Bool = false) -> String {
            let fill = String(repeating: " ", count: max(0, width - text.count))
            return right ? fill + text : text + fill
        }
        let arrow =
            switch aggressor {
            case .buy: "▲"
            case .sell: "▼"
            case nil: "·"
            }
        let priceText = price.map { PriceText.decimal($0, places: 4) } ?? "-"
        return TimeText.timeOfDay(nanoseconds: nanoseconds) + "  " + column(symbol, 8) + " " + arrow + " "
            + column(String(size), 8, right: true) + " @ " + column(priceText, 12, right: true) + "  "
            + kind.rawValue + (isPrintable ? "" : " (not in volume)")
    }
}

/// Decodes the trades of an ITCH stream. Executions name only the resting order, so the tape remembers
/// price and side of every live order.
public struct ITCHTape: Sendable {
    /// Most orders remembered: well above the 1.65 million that a busy day holds at once. Beyond it new
    /// orders are not remembered and their executions come without a price.
    public static let liveOrderLimit = 4_000_000

    private struct Order: Sendable {
        var price: UInt32
        var shares: UInt32
        var side: Side
    }

    private var orders: [UInt64: Order] = [:]
    private var directory = ITCHSymbolDirectory()
    /// Executions whose order was unknown.
    public private(set) var unpricedCount = 0

    public init() {}

    public var liveOrderCount: Int { orders.count }

    /// Takes the next message of the stream and returns the trade in it, if any.
    public mutating func trade(in message: ITCHMessage) -> Trade? {
        let symbolBytes = directory.symbol(of: message)
        switch message.type {
        case .addOrder, .addOrderAttributed:
            guard let reference = message.reference, let price = message.price, let side = message.side,
                let shares = message.shares, orders.count < Self.liveOrderLimit
            else { return nil }
            orders[reference] = Order(price: price, shares: UInt32(clamping: shares), side: side)
            return nil
        case .replace:
            guard let reference = message.reference, let replacement = message.newReference,
                let price = message.price, let shares = message.shares,
                let order = orders.removeValue(forKey: reference)
            else { return nil }
            orders[replacement] = Order(price: price, shares: UInt32(clamping: shares), side: order.side)
            return nil
        case .cancel:
            _ = reduce(message)
            return nil
        case .delete:
            if let reference = message.reference { orders.removeValue(forKey: reference) }
            return nil
        case .executed, .executedWithPrice:
            let order = reduce(message)
            if order == nil { unpricedCount += 1 }
            let price = message.price ?? order?.price
            return trade(
                message, symbolBytes.map { String(buffer: $0) }, .displayed, price: price,
                aggressor: order?.side.opposite)
        case .trade:
            return trade(
                message, symbolBytes.map { String(buffer: $0) }, .hidden, price: message.price, aggressor: nil
            )
        case .crossTrade:
            return trade(
                message, symbolBytes.map { String(buffer: $0) }, .cross, price: message.price, aggressor: nil)
        case .brokenTrade:
            return trade(message, symbolBytes.map { String(buffer: $0) }, .broken, price: nil, aggressor: nil)
        case _: return nil
        }
    }

    private func trade(
        _ message: ITCHMessage, _ symbol: String?, _ kind: Trade.Kind, price: UInt32?, aggressor: Side?
    ) -> Trade {
        Trade(
            nanoseconds: message.nanoseconds, symbol: symbol ?? "", kind: kind, price: price.map(Int64.init),
            size: message.shares ?? 0, aggressor: aggressor, matchNumber: message.matchNumber,
            isPrintable: message.isPrintable)
    }

    /// Takes the message's shares off its order; returns the order as it was.
    private mutating func reduce(_ message: ITCHMessage) -> Order? {
        guard let reference = message.reference, let order = orders[reference] else { return nil }
        let left = Int64(order.shares) - Int64(clamping: message.shares ?? 0)
        if left > 0 {
            orders[reference]?.shares = UInt32(left)
        } else {
            orders.removeValue(forKey: reference)
        }
        return order
    }
}

extension LOBSTERMessage {
    /// The trade in this line, if it is one; the symbol is not in the line.
    public func trade(symbol: String) -> Trade? {
        let kind: Trade.Kind
        switch self.kind {
        case .execution: kind = .displayed
        case .hiddenExecution: kind = .hidden
        case .cross: kind = .cross
        case .new, .partialCancel, .delete, .halt: return nil
        }
        return Trade(
            nanoseconds: nanoseconds, symbol: symbol, kind: kind, price: price, size: UInt64(clamping: size),
            aggressor: kind == .cross ? nil : restingSide.opposite, matchNumber: nil, isPrintable: true)
    }
}
