import NIOCore
import Testing

@testable import MartletMarketData

/// Real exchange data against the figures of an independent reader (expected.json beside the data).
@Suite struct RealDataTests {
    @Test(.enabled(if: SharedData.root != nil, SharedData.absent))
    func `the AAPL day reads with the expected counts and comes back byte for byte`() throws {
        let path = try #require(SharedData.itch)
        let messages = try readAllITCH(path)
        var types: [String: Int] = [:]
        for message in messages { types[message.type.description, default: 0] += 1 }
        #expect(
            types == [
                "A": 4758, "D": 4083, "E": 849, "F": 2, "H": 1, "L": 52, "P": 240, "R": 1, "U": 7, "X": 6,
                "Y": 1,
            ])
        #expect(messages.first?.nanoseconds == 11_234_909_934_345)
        #expect(messages.last?.nanoseconds == 28_770_516_505_496)
        try withTemporaryFolder { folder in
            let writer = try ITCHFileWriter(path: folder + "/day.itch")
            for message in messages { try writer.append(message) }
            try writer.finish()
            #expect(try rawContents(folder + "/day.itch") == contents(path))
        }
    }

    @Test(.enabled(if: SharedData.root != nil, SharedData.absent))
    func `the AAPL tape has the expected trades, volume and value`() throws {
        var tape = ITCHTape()
        var executed: UInt64 = 0
        var hidden: UInt64 = 0
        var value: UInt64 = 0
        for message in try readAllITCH(try #require(SharedData.itch)) {
            guard let trade = tape.trade(in: message) else { continue }
            #expect(trade.symbol == "AAPL")
            let price = try #require(trade.price)
            value += trade.size * UInt64(price)
            if trade.kind == .displayed { executed += trade.size } else { hidden += trade.size }
        }
        #expect(executed == 56_086)
        #expect(hidden == 25_470)
        #expect(value == 261_867_156_100)
        #expect(tape.liveOrderCount == 215)
        #expect(tape.unpricedCount == 0)
    }

    @Test(.enabled(if: SharedData.root != nil, SharedData.absent))
    func `the AMZN day reads with the expected counts and comes back byte for byte`() throws {
        let path = try #require(SharedData.lobster)
        var types: [Int64: Int] = [:]
        var visible: UInt64 = 0
        var hidden: UInt64 = 0
        try withTemporaryFolder { folder in
            let reader = try MarketFileReader(path: path, format: .lobster)
            let writer = try MarketFileWriter(path: folder + "/day.csv", format: .lobster)
            var wrongKeys = 0
            while let message = try reader.next() {
                if message.key != ByteBuffer(string: "AMZN") { wrongKeys += 1 }
                let line = try LOBSTERMessage(message.value)
                types[line.kind.rawValue, default: 0] += 1
                if let trade = line.trade(symbol: "AMZN") {
                    if trade.kind == .displayed { visible += trade.size } else { hidden += trade.size }
                }
                try writer.append(value: message.value, tail: message.tail)
            }
            try writer.finish()
            #expect(wrongKeys == 0)
            #expect(types == [1: 77_381, 2: 450, 3: 66_685, 4: 8_974, 5: 2_445])
            #expect(visible == 613_248)
            #expect(hidden == 197_507)
            #expect(try rawContents(folder + "/day.csv") == contents(path))
        }
    }

    @Test(.enabled(if: SharedData.root != nil, SharedData.absent))
    func `the key of every AAPL message is the trimmed symbol`() throws {
        let reader = try MarketFileReader(path: try #require(SharedData.itch), format: .itch50)
        #expect(reader.date?.description == "2020-01-30")
        while let message = try reader.next() { #expect(message.key == ByteBuffer(string: "AAPL")) }
    }
}
