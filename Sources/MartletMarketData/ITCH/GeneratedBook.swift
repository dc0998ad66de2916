/// A resting order of a generated session.
struct GeneratedOrder {
    var reference: UInt64
    var price: Int64
    var shares: UInt32
}

/// Book of one symbol of a generated session: per side an array whose *last* element is the head of the
/// queue (best price, then oldest), so that the common removals are cheap.
struct GeneratedBook {
    let symbol: String
    let locate: UInt16
    /// Price around which new orders are placed; wanders. Kept above one dollar.
    private(set) var middle: Int64
    private var bids: [GeneratedOrder] = []
    private var asks: [GeneratedOrder] = []

    init(symbol: String, locate: UInt16, middle: Int64) {
        self.symbol = symbol
        self.locate = locate
        self.middle = middle
    }

    func count(_ side: Side) -> Int { side == .buy ? bids.count : asks.count }
    func order(_ side: Side, at index: Int) -> GeneratedOrder { side == .buy ? bids[index] : asks[index] }
    func best(_ side: Side) -> GeneratedOrder? { side == .buy ? bids.last : asks.last }

    /// One step of the wandering price: mostly none.
    mutating func drift(_ draw: Int) {
        if draw == 0 { middle += ITCHSessionGenerator.tick }
        if draw == 1, middle > 200 * ITCHSessionGenerator.tick { middle -= ITCHSessionGenerator.tick }
    }

    /// A price `distance` ticks behind the middle on `side` that does not meet the other side.
    func quote(_ side: Side, distance: Int) -> Int64 {
        let tick = ITCHSessionGenerator.tick
        let away = Int64(distance) * tick
        if side == .buy {
            let wanted = Swift.min(middle - away, (asks.last?.price ?? .max) - tick)
            return Swift.max(tick, wanted)
        }
        return Swift.max(middle + away, (bids.last?.price ?? 0) + tick)
    }

    /// Puts the order behind all orders of its price.
    mutating func insert(_ order: GeneratedOrder, _ side: Side) {
        if side == .buy {
            bids.insert(order, at: Self.index(in: bids) { $0.price >= order.price })
        } else {
            asks.insert(order, at: Self.index(in: asks) { $0.price <= order.price })
        }
    }

    @discardableResult
    mutating func remove(_ side: Side, at index: Int) -> GeneratedOrder {
        side == .buy ? bids.remove(at: index) : asks.remove(at: index)
    }

    /// Takes shares off an order, which goes when none are left; returns it as it was.
    mutating func reduce(_ side: Side, at index: Int, by shares: UInt32) -> GeneratedOrder {
        let former = order(side, at: index)
        precondition(shares <= former.shares, "an order of \(former.shares) shares cannot lose \(shares)")
        if shares == former.shares {
            remove(side, at: index)
        } else if side == .buy {
            bids[index].shares -= shares
        } else {
            asks[index].shares -= shares
        }
        return former
    }

    /// First index whose order satisfies `isAhead`, which holds for a suffix.
    private static func index(in orders: [GeneratedOrder], where isAhead: (GeneratedOrder) -> Bool) -> Int {
        var low = 0
        var high = orders.count
        while low < high {
            let middle = (low + high) / 2
            if isAhead(orders[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
