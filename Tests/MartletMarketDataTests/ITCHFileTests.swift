import NIOCore
import Testing

@testable import MartletMarketData

@Suite struct ITCHFileTests {
    @Test func `every type of the table has the size of the specification`() {
        let sizes: [Character: Int] = [
            "S": 12, "R": 39, "H": 25, "Y": 20, "L": 26, "V": 35, "W": 12, "K": 28, "J": 35, "h": 21, "A": 36,
            "F": 40, "E": 31, "C": 36, "X": 23, "D": 19, "U": 35, "P": 44, "Q": 40, "B": 19, "I": 50, "N": 20,
            "O": 48,
        ]
        #expect(ITCHMessageType.all.count == sizes.count)
        for type in ITCHMessageType.all {
            #expect(type.byteCount == sizes[Character(type.description)], "type \(type)")
        }
    }

    @Test func `accessors agree with the layout table`() throws {
        for message in try ITCHSessionGenerator(ITCHSessionPlan(seed: 3, messageCount: 3_000)) {
            let fields = Dictionary(message.described, uniquingKeysWith: { first, _ in first })
            #expect(fields["reference"] == message.reference.map(String.init))
            #expect(fields["newReference"] == message.newReference.map(String.init))
            #expect(fields["shares"] == message.shares.map(String.init))
            #expect(fields["match"] == message.matchNumber.map(String.init))
            #expect(fields["stock"] == message.stock)
            #expect(fields["price"] == message.price.map { PriceText.decimal(Int64($0), places: 4) })
            #expect(fields["side"] == message.side.map { $0 == .buy ? "B" : "S" })
            #expect(fields["time"] == TimeText.timeOfDay(nanoseconds: message.nanoseconds))
        }
    }

    @Test(arguments: [false, true]) func `writing what was read gives the same bytes`(compressed: Bool) throws
    {
        let bytes = try sessionBytes(ITCHSessionPlan(seed: 11, messageCount: 40_000))
        try withTemporaryFolder { folder in
            try write(bytes, to: folder + "/in", compressed: compressed)
            let messages = try readAllITCH(folder + "/in")
            #expect(messages.count == 40_000)
            let writer = try ITCHFileWriter(path: folder + "/out", compressed: compressed)
            for message in messages { try writer.append(message) }
            try writer.finish()
            #expect(writer.byteCount == Int64(bytes.count))
            #expect(try contents(folder + "/out") == bytes)
            // Our gzip output has no time in it, so even the packed files agree.
            #expect(try rawContents(folder + "/out") == rawContents(folder + "/in"))
        }
    }

    @Test func `several gzip members read as one stream`() throws {
        let bytes = try sessionBytes(ITCHSessionPlan(seed: 5, messageCount: 500))
        try withTemporaryFolder { folder in
            try write(Array(bytes[..<777]), to: folder + "/a", compressed: true)
            try write(Array(bytes[777...]), to: folder + "/b", compressed: true)
            let joined = try rawContents(folder + "/a") + rawContents(folder + "/b") + [0, 0, 0]
            try write(joined, to: folder + "/joined")
            #expect(try contents(folder + "/joined") == bytes)
        }
    }

    @Test func `a cut file names the offset of the unfinished message`() throws {
        let bytes = try sessionBytes(ITCHSessionPlan(seed: 2, messageCount: 100))
        try withTemporaryFolder { folder in
            // Message starts, to compare with.
            var starts: [Int] = []
            var index = 0
            while index < bytes.count {
                starts.append(index)
                index += 2 + Int(bytes[index]) << 8 + Int(bytes[index + 1])
            }
            for cut in 1..<600 {
                try write(Array(bytes[..<cut]), to: folder + "/cut")
                let whole = starts.contains(cut)
                let reader = try ITCHFileReader(path: folder + "/cut")
                do {
                    while try reader.next() != nil {}
                    #expect(whole, "cut at \(cut) went unnoticed")
                } catch let error as MarketDataError {
                    #expect(!whole)
                    #expect(error.code == .truncated)
                    #expect(error.offset == starts.last { $0 < cut }.map(Int64.init))
                    #expect(error.description.contains("byte \(error.offset ?? -1)"))
                }
            }
        }
    }

    @Test func `a wrong length, a wrong type and bytes after the end are refused with their place`() throws {
        let good = try sessionBytes(ITCHSessionPlan(seed: 2, messageCount: 100))
        let cases: [(bytes: [UInt8], code: MarketDataError.Code, offset: Int64, cause: String)] = [
            ([0, 5, 0x41, 0, 0, 0, 0], .badLength, 0, "5 bytes cannot be"),
            ([0, 12] + [UInt8](repeating: 0x41, count: 12), .badLength, 0, "type A has 12 bytes"),
            ([0, 12, 0x01] + [UInt8](repeating: 0, count: 11), .badContent, 0, "not a letter"),
            (Array(good[..<14]) + [0, 0, 9], .badContent, 14, "end mark"),
        ]
        try withTemporaryFolder { folder in
            for (bytes, code, offset, cause) in cases {
                try write(bytes, to: folder + "/bad")
                let reader = try ITCHFileReader(path: folder + "/bad")
                let error = #expect(throws: MarketDataError.self) { while try reader.next() != nil {} }
                #expect(error?.code == code)
                #expect(error?.offset == offset)
                #expect(error?.cause.contains(cause) == true, "\(error?.cause ?? "")")
            }
        }
    }

    @Test func `an unknown letter passes by its frame length`() throws {
        let message: [UInt8] = [0x7a] + [UInt8](repeating: 0, count: 30)
        try withTemporaryFolder { folder in
            try write([0, 31] + message, to: folder + "/new")
            let messages = try readAllITCH(folder + "/new")
            #expect(messages.map { Array($0.bytes.readableBytesView) } == [message])
            #expect(messages.first?.type.byteCount == nil)
        }
    }

    @Test func `a damaged or cut gzip file is an error, never silence`() throws {
        try withTemporaryFolder { folder in
            let bytes = try sessionBytes(ITCHSessionPlan(seed: 2, messageCount: 2_000))
            try write(bytes, to: folder + "/good", compressed: true)
            let packed = try rawContents(folder + "/good")
            for cut in [20, packed.count / 2, packed.count - 9, packed.count - 1] {
                try write(Array(packed[..<cut]), to: folder + "/cut")
                let error = #expect(throws: MarketDataError.self) { try readAllITCH(folder + "/cut") }
                #expect(error?.code == .gzip)
            }
            for place in stride(from: 40, to: packed.count, by: packed.count / 37) {
                var damaged = packed
                damaged[place] ^= 0x10
                try write(damaged, to: folder + "/flip")
                #expect(throws: MarketDataError.self) { try readAllITCH(folder + "/flip") }
            }
        }
    }

    @Test func `a missing file and a folder are named with the reason`() throws {
        let missing = #expect(throws: MarketDataError.self) {
            try ITCHFileReader(path: "/nonexistent/day.itch")
        }
        #expect(missing?.description.contains("No such file") == true)
        let folder = #expect(throws: MarketDataError.self) { try ITCHFileReader(path: "/tmp") }
        #expect(folder?.cause == "is a directory")
    }

    @Test func `random bytes never trap`() throws {
        var random = SeededGenerator(seed: 99)
        try withTemporaryFolder { folder in
            for round in 0..<200 {
                let bytes = (0..<random.below(400)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                try write(bytes, to: folder + "/noise")
                for format in MarketFormat.allCases {
                    do {
                        let reader = try MarketFileReader(path: folder + "/noise", format: format)
                        while try reader.next() != nil {}
                    } catch is MarketDataError {
                    } catch {
                        Issue.record("round \(round): \(error)")
                    }
                }
            }
        }
    }

    @Test func `an end mark travels with the last message`() throws {
        let bytes = try sessionBytes(ITCHSessionPlan(seed: 8, messageCount: 200)) + [0, 0]
        try withTemporaryFolder { folder in
            try write(bytes, to: folder + "/in")
            let reader = try MarketFileReader(path: folder + "/in", format: .itch50)
            let writer = try MarketFileWriter(path: folder + "/out", format: .itch50)
            var tails = 0
            while let message = try reader.next() {
                if message.tail != nil { tails += 1 }
                try writer.append(value: message.value, tail: message.tail)
            }
            try writer.finish()
            #expect(tails == 1)
            #expect(try contents(folder + "/out") == bytes)
        }
    }

    @Test func `messages before a damaged place come out before the error`() throws {
        let bytes = try sessionBytes(ITCHSessionPlan(seed: 8, messageCount: 50)) + [0, 3, 0x41, 0, 0]
        try withTemporaryFolder { folder in
            try write(bytes, to: folder + "/in")
            let reader = try MarketFileReader(path: folder + "/in", format: .itch50)
            var count = 0
            #expect(throws: MarketDataError.self) { while try reader.next() != nil { count += 1 } }
            #expect(count == 50)
        }
    }
}
