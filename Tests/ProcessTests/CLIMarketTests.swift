import MartletMarketData
import MartletTestSupport
import NIOCore
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Market data through a real broker and back, by the command line.
@Suite struct CLIMarketTests {
    private static let absent: Comment =
        "no ../shared/data beside the package: the proof on real data is skipped"

    /// Messages of a file as the command line should send them.
    private func messages(_ path: String, _ format: MarketFormat) throws -> [(key: String, value: [UInt8])] {
        let reader = try MarketFileReader(path: path, format: format)
        var result: [(key: String, value: [UInt8])] = []
        while let message = try reader.next() {
            result.append(
                (message.key.map { String(buffer: $0) } ?? "", Array(message.value.readableBytesView)))
        }
        return result
    }

    /// Checks that the topic holds exactly these messages, in order per key, each key in one partition.
    private func expectSame(
        _ records: [CLI.Record], _ messages: [(key: String, value: [UInt8])],
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let wanted = Dictionary(grouping: messages, by: \.key).mapValues { $0.map(\.value) }
        let found = Dictionary(grouping: records, by: \.key)
        #expect(found.keys.sorted() == wanted.keys.sorted(), sourceLocation: sourceLocation)
        for (key, values) in wanted {
            let records = found[key] ?? []
            #expect(records.map(\.value) == values, "key '\(key)'", sourceLocation: sourceLocation)
            if !key.isEmpty {
                #expect(Set(records.map(\.partition)).count == 1, sourceLocation: sourceLocation)
            }
        }
        for (partition, records) in Dictionary(grouping: records, by: \.partition) {
            #expect(
                records.map(\.offset) == Array(0..<records.count), "partition \(partition)",
                sourceLocation: sourceLocation)
        }
    }

    @Test(.enabled(if: BuildProducts.sharedData != nil, absent), .timeLimit(.minutes(10)))
    func `the AAPL day passes a 4-partition gzip topic unchanged and comes back byte for byte`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        let data = try #require(BuildProducts.sharedData) + "/itch50-aapl-20200130"
        let file = data + "/aapl_20200130_first10k.itch.gz"
        try cli.ok("topic", "create", "feed", "--partitions", "4", "--config", "compression.type=gzip")
        try cli.ok("market", "replay", file, "--format", "itch50", "--topic", "feed", "--codec", "gzip")
        let records = try cli.records(of: "feed")
        expectSame(records, try messages(file, .itch50))
        let types = Dictionary(grouping: records) { String(UnicodeScalar($0.value[0])) }.mapValues(\.count)
        #expect(try types == expectedTypes(data + "/expected.json"))

        try cli.ok("topic", "create", "one")
        try cli.ok("market", "replay", file, "--format", "itch50", "--topic", "one")
        try cli.ok("market", "record", "one", folder.file("day.itch"), "--format", "itch50")
        #expect(try contents(folder.file("day.itch")) == gunzip(file))
        try cli.ok("market", "record", "one", folder.file("day.itch.gz"), "--format", "itch50")
        #expect(try gunzip(folder.file("day.itch.gz")) == gunzip(file))

        let tape = try cli.ok("market", "tape", "feed", "--json").split(separator: "\n")
        #expect(tape.count == 849 + 240)
        #expect(tape.allSatisfy { !$0.contains("\"price\":null") })
        let wrong = try cli.run("market", "record", "one", folder.file("wrong"), "--format", "lobster")
        #expect(wrong.status == 1 && wrong.errorOutput.contains("one-0 offset 0"))
        #expect(try cli.run("market", "record", "feed", folder.file("x"), "--format", "itch50").status == 64)
    }

    @Test(.enabled(if: BuildProducts.sharedData != nil, absent), .timeLimit(.minutes(10)))
    func `the AMZN day passes a 4-partition gzip topic unchanged and comes back byte for byte`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        let data = try #require(BuildProducts.sharedData) + "/lobster-amzn-20120621-l5"
        let file = data + "/AMZN_2012-06-21_34200000_57600000_message_5.csv.gz"
        try cli.ok("topic", "create", "feed", "--partitions", "4", "--config", "compression.type=gzip")
        try cli.ok("market", "replay", file, "--format", "lobster", "--topic", "feed", "--codec", "gzip")
        let records = try cli.records(of: "feed")
        expectSame(records, try messages(file, .lobster))
        let types = Dictionary(grouping: records) { record in
            String(decoding: record.value.split(separator: UInt8(ascii: ","))[1], as: UTF8.self)
        }.mapValues(\.count)
        #expect(try types == expectedTypes(data + "/expected.json"))

        try cli.ok("topic", "create", "one")
        try cli.ok("market", "replay", file, "--format", "lobster", "--topic", "one")
        try cli.ok("market", "record", "one", folder.file("day.csv"), "--format", "lobster")
        #expect(try contents(folder.file("day.csv")) == gunzip(file))
    }

    @Test(.timeLimit(.minutes(10)))
    func `a replay survives kill -9 of the broker with nothing lost and nothing twice`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        let file = folder.file("session.itch")
        try cli.ok("market", "generate", file, "--messages", "120000", "--seed", "5")
        try cli.ok("topic", "create", "feed", "--partitions", "4", "--config", "compression.type=gzip")
        // Small batches, so that the kill falls among many requests.
        let replay = try cli.start(
            "market", "replay", file, "--format", "itch50", "--topic", "feed", "--codec", "gzip",
            "--batch-bytes", "4096")
        let watch = try cli.start(
            "consume", "feed", "--follow", "--offset", "earliest", "--max-messages", "20000", "--format", "")
        #expect(try watch.finish(seconds: 120).status == 0)
        daemon.kill()
        try daemon.restart()
        let result = try replay.finish(seconds: 240)
        #expect(result.status == 0, "\(result)")
        expectSame(try cli.records(of: "feed"), try messages(file, .itch50))
    }

    @Test(.timeLimit(.minutes(5)))
    func `a generated session is the same for a seed and replays at its own speed`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        for name in ["a", "b"] {
            try cli.ok(
                "market", "generate", folder.file(name), "--messages", "2000", "--rate", "2000", "--seed", "9"
            )
        }
        #expect(try contents(folder.file("a")) == contents(folder.file("b")))
        try cli.ok("topic", "create", "feed")
        let start = ContinuousClock.now
        let report = try cli.ok(
            "market", "replay", folder.file("a"), "--format", "itch50", "--topic", "feed", "--speed", "1x",
            "--json")
        #expect(start.duration(to: .now) > .milliseconds(700))
        #expect(report.contains("\"messages\": 2000"))
        expectSame(try cli.records(of: "feed"), try messages(folder.file("a"), .itch50))
        let follower = try cli.start("market", "tape", "feed", "--follow", "--max-trades", "5")
        #expect(try follower.finish(seconds: 60).text.split(separator: "\n").count == 5)
    }

    @Test(.timeLimit(.minutes(3))) func `a second interrupt ends a replay that cannot finish`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("market", "generate", folder.file("a"), "--messages", "20000", "--rate", "2000")
        try cli.ok("topic", "create", "feed")
        let replay = try cli.start(
            "market", "replay", folder.file("a"), "--format", "itch50", "--topic", "feed", "--speed", "1x")
        let watch = try cli.start("consume", "feed", "--follow", "--offset", "earliest", "--max-messages", "10")
        #expect(try watch.finish(seconds: 60).status == 0)
        // Nobody will acknowledge what is under way.
        kill(daemon.pid, SIGSTOP)
        defer { kill(daemon.pid, SIGCONT) }
        let start = ContinuousClock.now
        for _ in 0..<100 where !replay.hasEnded {
            replay.signal(SIGINT)
            _ = poll(nil, 0, 100)
        }
        #expect(try replay.finish(seconds: 60).status != 0)
        #expect(start.duration(to: .now) < .seconds(30))
    }

    @Test(.timeLimit(.minutes(5))) func `a damaged file is sent up to the damage, which is named`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("market", "generate", folder.file("a"), "--messages", "500")
        let bytes = try contents(folder.file("a"))
        try write(Array(bytes.dropLast(5)), to: folder.file("cut"))
        try cli.ok("topic", "create", "feed")
        let result = try cli.run(
            "market", "replay", folder.file("cut"), "--format", "itch50", "--topic", "feed")
        #expect(result.status == 74)
        #expect(result.errorOutput.contains("byte \(bytes.count - 14)"), "\(result.errorOutput)")
        #expect(try cli.records(of: "feed").count == 499)
    }
}
