import NIOCore
import Testing

@testable import MartletMarketData

@Suite struct LOBSTERTests {
    private func message(_ line: String) throws -> LOBSTERMessage {
        try LOBSTERMessage(ByteBuffer(string: line))
    }

    @Test func `times are read as integers of nanoseconds`() throws {
        for (text, nanoseconds) in [
            ("34200.017459617", 34_200_017_459_617), ("34200.18960767", 34_200_189_607_670), ("0", 0),
            ("57599.", 57_599_000_000_000), ("1.1", 1_100_000_000),
            // Binary-fraction noise of a real file.
            ("43002.632812672004", 43_002_632_812_672),
        ] as [(String, Int64)] {
            #expect(try message("\(text),1,5,10,100,1").nanoseconds == nanoseconds)
        }
    }

    @Test func `a line that is not a message names the field`() {
        for (line, field) in [
            ("", "time"), ("abc,1,2,3,4,1", "time"), ("1.0123456789012345678,1,2,3,4,1", "time"),
            ("1.5", "time"),
            ("1.5,x,2,3,4,1", "type"), ("1.5,8,2,3,4,1", "type 8"), ("1.5,1,,3,4,1", "order id"),
            ("1.5,1,2,3.5,4,1", "size"), ("1.5,1,2,3", "size"), ("1.5,1,2,3,4,0", "direction"),
            ("1.5,1,2,3,1234567890123456789,1", "price"), ("1.5,1,2,3,4", "price"),
            ("1.5,1,2,3,--4,1", "price"),
        ] {
            let error = #expect(throws: MarketDataError.self, "\(line)") { try message(line) }
            #expect(error?.cause.contains(field) == true, "\(line): \(error?.cause ?? "")")
        }
    }

    @Test(arguments: ["\n", "\r\n"]) func `lines keep their bytes, with and without a last newline`(
        end: String
    ) throws {
        let lines = (0..<5_000).map {
            "34200.\($0),\($0 % 7 + 1),\($0),100,\(2_000_000 + $0),\($0 % 2 == 0 ? 1 : -1)"
        }
        try withTemporaryFolder { folder in
            for text in [lines.joined(separator: end) + end, lines.joined(separator: end)] {
                let path = folder + "/ABCD_2020-02-03_34200000_57600000_message_5.csv"
                try write(Array(text.utf8), to: path)
                let reader = try MarketFileReader(path: path, format: .lobster)
                let writer = try MarketFileWriter(path: folder + "/out.gz", format: .lobster)
                while let message = try reader.next() {
                    #expect(message.key == ByteBuffer(string: "ABCD"))
                    try writer.append(value: message.value, tail: message.tail)
                }
                try writer.finish()
                #expect(writer.messageCount == 5_000)
                #expect(try contents(folder + "/out.gz") == Array(text.utf8))
                #expect(try rawContents(folder + "/out.gz").prefix(2) == [0x1f, 0x8b])
            }
        }
    }

    @Test func `a bad line is named by number and offset`() throws {
        try withTemporaryFolder { folder in
            try write(Array("1.5,1,2,3,4,1\n1.6,1,2,3,4,1\nhello\n".utf8), to: folder + "/bad.csv")
            let reader = try LOBSTERFileReader(path: folder + "/bad.csv")
            let error = #expect(throws: MarketDataError.self) { while try reader.next() != nil {} }
            #expect(error?.line == 3)
            #expect(error?.offset == 28)
            try write([UInt8](repeating: 0x31, count: 5_000), to: folder + "/long.csv")
            let long = try LOBSTERFileReader(path: folder + "/long.csv")
            let tooLong = #expect(throws: MarketDataError.self) { try long.next() }
            #expect(tooLong?.cause.contains("longer than") == true)
        }
    }

    @Test func `symbol and day come from the file's name`() {
        let name = LOBSTERFileName(path: "/data/AMZN_2012-06-21_34200000_57600000_message_5.csv.gz")
        #expect(name?.symbol == "AMZN")
        #expect(name?.date?.description == "2012-06-21")
        #expect(LOBSTERFileName(path: "/data/orders.csv") == nil)
    }

    @Test func `days come from file names in three shapes and New York's midnight is right`() {
        #expect(TradingDate(inFileName: "aapl_20200130_first10k.itch.gz")?.description == "2020-01-30")
        #expect(TradingDate(inFileName: "01302020.NASDAQ_ITCH50.gz")?.description == "2020-01-30")
        #expect(TradingDate(inFileName: "x-2012-06-21.csv")?.description == "2012-06-21")
        #expect(TradingDate(inFileName: "day.itch") == nil)
        #expect(TradingDate("2023-02-29") == nil)
        for (day, seconds) in [
            ("2020-01-30", 1_580_360_400), ("2012-06-21", 1_340_251_200), ("2024-03-10", 1_710_046_800),
            ("2024-03-11", 1_710_129_600), ("2024-11-03", 1_730_606_400), ("2024-11-04", 1_730_696_400),
        ] as [(String, Int64)] {
            #expect(TradingDate(day)?.newYorkMidnightMilliseconds == seconds * 1000, "\(day)")
        }
    }
}
