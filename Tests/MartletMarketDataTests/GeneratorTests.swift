import NIOCore
import Testing

@testable import MartletMarketData

@Suite struct GeneratorTests {
    @Test func `the same seed gives the same bytes and another seed others`() throws {
        let plan = ITCHSessionPlan(seed: 7, messageCount: 5_000)
        let first = try sessionBytes(plan)
        #expect(try sessionBytes(plan) == first)
        #expect(try sessionBytes(ITCHSessionPlan(seed: 8, messageCount: 5_000)) != first)
        // Frozen: a change of the generator is a change of every recorded figure.
        #expect(
            first.reduce(UInt64(14_695_981_039_346_656_037)) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 }
                == GeneratorTests.frozen)
    }
    /// FNV-1a of the session of seed 7.
    private static let frozen: UInt64 = 9_801_847_191_843_797_226

    @Test(arguments: [1, 2, 3, 4, 5] as [UInt64])
    func `references are live, sizes never negative, time and book never cross`(seed: UInt64) throws {
        struct Order { var side: Side, price: UInt32, shares: UInt64, locate: UInt16, arrival: Int }
        let count = 20_000
        var orders: [UInt64: Order] = [:]
        var last: Int64 = 0
        var lastMatch: UInt64 = 0
        var seen = 0
        var types: [ITCHMessageType: Int] = [:]
        // One expectation a message would take most of the test's time.
        var problems: [String] = []
        func check(_ holds: Bool, line: Int = #line) {
            if !holds { problems.append("message \(seen), line \(line)") }
        }
        func best(_ locate: UInt16, _ side: Side) -> UInt32? {
            let prices = orders.values.filter { $0.locate == locate && $0.side == side }.map(\.price)
            return side == .buy ? prices.max() : prices.min()
        }
        for message in try ITCHSessionGenerator(
            ITCHSessionPlan(seed: seed, messageCount: count, symbolCount: 3))
        {
            seen += 1
            check(message.nanoseconds >= last)
            last = message.nanoseconds
            types[message.type, default: 0] += 1
            if let match = message.matchNumber {
                check(match > lastMatch)
                lastMatch = match
            }
            switch message.type {
            case .addOrder, .addOrderAttributed:
                let order = Order(
                    side: try #require(message.side), price: try #require(message.price),
                    shares: try #require(message.shares), locate: message.locate, arrival: seen)
                check(order.shares > 0 && order.price > 0)
                let reference = try #require(message.reference)
                check(orders.updateValue(order, forKey: reference) == nil)
            case .executed, .executedWithPrice, .cancel:
                let reference = try #require(message.reference)
                let order = try #require(orders[reference])
                check(order.locate == message.locate)
                let left = Int64(order.shares) - Int64(try #require(message.shares))
                check(left >= 0)
                if message.type != .cancel, seen % 50 == 0 {
                    check(best(order.locate, order.side) == order.price)
                    let oldest = orders.values.filter {
                        $0.locate == order.locate && $0.side == order.side && $0.price == order.price
                    }.map(\.arrival).min()
                    check(oldest == order.arrival)
                }
                if left == 0 { orders[reference] = nil } else { orders[reference]?.shares = UInt64(left) }
            case .delete:
                let reference = try #require(message.reference)
                check(orders.removeValue(forKey: reference) != nil)
            case .replace:
                let reference = try #require(message.reference)
                let replacement = try #require(message.newReference)
                let known = orders.removeValue(forKey: reference)
                let former = try #require(known)
                orders[replacement] = Order(
                    side: former.side, price: try #require(message.price),
                    shares: try #require(message.shares),
                    locate: former.locate, arrival: seen)
            case _: break
            }
            if seen % 500 == 0 {
                for locate in 1...3 as ClosedRange<UInt16> {
                    if let bid = best(locate, .buy), let ask = best(locate, .sell) { check(bid < ask) }
                }
            }
        }
        #expect(problems.isEmpty, "\(problems.prefix(3))")
        #expect(seen == count)
        for type in ["S", "R", "H", "Y", "A", "F", "E", "C", "X", "D", "U", "P"] {
            #expect(types[ITCHMessageType(rawValue: Array(type.utf8)[0]), default: 0] > 0, "no \(type)")
        }
        #expect(orders.count <= 3 * 2 * (ITCHSessionGenerator.sideOrderLimit + 1))
    }

    @Test func `the rate is the plan's`() throws {
        var first: Int64?
        var last: Int64 = 0
        for message in try ITCHSessionGenerator(
            ITCHSessionPlan(seed: 1, messageCount: 100_000, messagesPerSecond: 10_000))
        where message.nanoseconds >= ITCHSessionGenerator.openNanoseconds {
            first = first ?? message.nanoseconds
            last = message.nanoseconds
        }
        let seconds = Double(last - (first ?? 0)) / 1e9
        #expect((8.5...11.5).contains(seconds), "\(seconds) s for 10 s")
    }

    @Test func `a plan that cannot be is refused with the bound`() {
        for plan in [
            ITCHSessionPlan(messageCount: 10), ITCHSessionPlan(symbolCount: 0),
            ITCHSessionPlan(symbolCount: 9_000),
            ITCHSessionPlan(messageCount: 1_000_000, messagesPerSecond: 1),
        ] {
            let error = #expect(throws: MarketDataError.self) { _ = try ITCHSessionGenerator(plan) }
            #expect(error?.code == .badArgument)
        }
    }

    @Test func `symbols of a session are all different`() {
        let symbols = (0..<ITCHSessionPlan.symbolCountLimit).map(ITCHSessionGenerator.symbol)
        #expect(Set(symbols).count == symbols.count)
        #expect(symbols.allSatisfy { $0.utf8.count == 4 })
    }

    @Test func `every message of a session has a symbol or is about the system`() throws {
        var directory = ITCHSymbolDirectory()
        for message in try ITCHSessionGenerator(ITCHSessionPlan(seed: 4, messageCount: 10_000)) {
            let symbol = directory.symbol(of: message).map { String(buffer: $0) }
            #expect(
                symbol == (message.locate == 0 ? nil : ITCHSessionGenerator.symbol(Int(message.locate) - 1)))
        }
    }
}
