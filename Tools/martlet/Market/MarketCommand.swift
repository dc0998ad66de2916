import ArgumentParser
import MartletClient
import MartletLogModel
import MartletMarketData
import NIOCore

struct MarketCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "market",
        abstract: "Market data files into topics, and topics into files, tapes and made-up sessions.",
        subcommands: [
            MarketReplayCommand.self, MarketRecordCommand.self, MarketTape.self, MarketGenerate.self,
        ])
}

/// Formats by their names on the command line.
enum FormatName: String, ExpressibleByArgument, CaseIterable {
    case itch50, lobster

    var format: MarketFormat {
        switch self {
        case .itch50: .itch50
        case .lobster: .lobster
        }
    }
}

struct MarketReplayCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "replay",
        abstract: "Send the messages of market data files to a topic, one record each.",
        discussion: """
            The value is the message without its framing (ITCH: without the length
            prefix; LOBSTER: the line without its newline), the key is the instrument's
            symbol where known. Files may be gzip-compressed. Records carry the present
            time; --event-time gives them the time of the message, which retention by
            time then judges by.

            Examples:
              martlet market replay day.itch.gz --format itch50 --topic feed --codec gzip
              martlet market replay AMZN_2012-06-21_34200000_57600000_message_5.csv \\
                --format lobster --topic amzn --speed 10x
            """)

    @Argument(help: "Files to replay, in this order.") var files: [String]
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var producing: ProducerOptions
    @Option(help: "itch50 or lobster.") var format: FormatName
    @Option(help: "Name of the topic.") var topic: String
    @Option(name: .shortAndLong, help: "Send to this partition (default: by symbol).") var partition: Int32?
    @Option(help: "max, or a multiple of the session's own speed: 1x, 10x, 0.5x.") var speed = "max"
    @Option(help: "Symbol of every message (default: from the feed or the file's name).") var symbol: String?
    @Flag(help: "Give records the time of their message (needs the day in the file's name or --date).")
    var eventTime = false
    @Option(help: ArgumentHelp("Day of the session.", valueName: "yyyy-mm-dd")) var date: String?
    @Flag(help: "Print the result as JSON.") var json = false

    func run() async throws {
        if let problem = TopicName.problem(topic) { throw CommandFailure(problem, exitCode: .usage) }
        var replay = MarketReplay(format: format.format, topic: topic)
        replay.partition = partition.map { PartitionIndex($0) }
        replay.symbol = symbol
        replay.speed = try ReplaySpeed.parse(speed)
        if let date {
            guard let day = TradingDate(date) else {
                throw CommandFailure(
                    "--date '\(date)' is not a day", remedy: "write YYYY-MM-DD", exitCode: .usage)
            }
            replay.date = day
        }
        replay.usesEventTime = eventTime
        let configuration = try producing.configuration(connection.configuration())
        let producer = try Producer(configuration)
        let files = files
        let run = replay
        let shown = ReplayProgress()
        let summary: MarketReplay.Summary?
        do {
            summary = try await untilInterrupted {
                try await run.run(files: files, producer: producer) { shown.show($0) }
            }
        } catch {
            do { try await producer.close() } catch {}
            shown.clear()
            throw error
        }
        try await producer.close()
        shown.clear()
        guard let summary else { throw CommandFailure("", exitCode: .interrupted) }
        try report(summary, producer.statistics)
    }

    private func report(_ summary: MarketReplay.Summary, _ statistics: ProducerStatistics) throws {
        let rate = summary.seconds > 0 ? Double(summary.messageCount) / summary.seconds : 0
        let types = summary.typeCounts.sorted { $0.key < $1.key }
        if json {
            return try Console.print(
                .object([
                    ("messages", .integer(Int64(summary.messageCount))),
                    ("bytes", .integer(summary.byteCount)),
                    ("sentBytes", .integer(Int64(statistics.sentBatchBytes))),
                    ("seconds", .number(summary.seconds)),
                    ("messagesPerSecond", .number(rate.rounded())),
                    ("types", .object(types.map { ($0.key, .integer(Int64($0.value))) })),
                ]))
        }
        try Console.print(
            "replayed \(Decimals.grouped(Int64(summary.messageCount))) messages, \(Decimals.bytes(summary.byteCount)) "
                + "(\(Decimals.bytes(Int64(statistics.sentBatchBytes))) sent) in \(Decimals.text(summary.seconds, 2)) s, "
                + "\(Decimals.grouped(Int64(rate))) messages/s")
        try Console.print(
            "types: " + types.map { "\($0.key) \(Decimals.grouped(Int64($0.value)))" }.joined(separator: ", ")
        )
    }
}

enum ReplaySpeed {
    /// `max`, or a multiple such as `1x`, `0.25x`, `60`; a thousandth makes a session last a month already.
    static func parse(_ text: String) throws -> MarketReplay.Speed {
        if text == "max" { return .max }
        let number = text.hasSuffix("x") ? String(text.dropLast()) : text
        guard let factor = Double(number), (0.001...1_000_000).contains(factor) else {
            throw CommandFailure(
                "--speed '\(text)' is not a speed",
                remedy: "write max, or a multiple from 0.001x to 1000000x such as 0.5x", exitCode: .usage)
        }
        return .times(factor)
    }
}

struct MarketRecordCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "record",
        abstract: "Write the messages of a partition to a market data file: the inverse of replay.",
        discussion: """
            From a topic with one partition that a file was replayed into, the same
            bytes come back. A name that ends in .gz is compressed.

            Examples:
              martlet market record feed day.itch --format itch50
              martlet market record feed part2.itch.gz --format itch50 --partition 2
            """)

    @Argument(help: "Name of the topic.") var topic: String
    @Argument(help: "File to write.") var file: String
    @OptionGroup var connection: ConnectionOptions
    @Option(help: "itch50 or lobster.") var format: FormatName
    @Option(name: .shortAndLong, help: "Partition to read (default: the only one).") var partition: Int32?
    @Option(
        name: [.customShort("o"), .long], parsing: .unconditional,
        help: ArgumentHelp("Where to start: \(OffsetChoice.forms).", valueName: "offset"))
    var offset = "earliest"
    @Flag(name: .shortAndLong, help: "Go on with new messages until interrupted.") var follow = false
    @Flag(help: "Print the result as JSON.") var json = false

    func run() async throws {
        let index = try await onlyPartition()
        let reading = TopicReading(
            topic: topic, partitions: [index], start: try OffsetChoice(offset), follow: follow,
            configuration: ConsumerConfiguration(try connection.configuration()))
        let recording = try MarketRecording(path: file, format: format.format)
        try await untilStopped { stop in try await reading.run(stop) { try recording.append($0) } }
        try recording.finish()
        recording.clearProgress()
        if json {
            try Console.print(
                .object([
                    ("file", .string(file)), ("messages", .integer(recording.messageCount)),
                    ("bytes", .integer(recording.byteCount)),
                ]))
        } else {
            Console.note(
                "recorded \(Decimals.grouped(recording.messageCount)) messages, "
                    + "\(Decimals.bytes(recording.byteCount)) to \(file)")
        }
    }

    private func onlyPartition() async throws -> Int32 {
        if let partition { return partition }
        let count = try await connection.withAdmin { try await $0.describeTopic(topic).partitions.count }
        guard count == 1 else {
            throw CommandFailure(
                "topic '\(topic)' has \(count) partitions and messages of different ones have no common order",
                remedy: "name one with --partition", exitCode: .usage)
        }
        return 0
    }
}

struct MarketTape: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tape",
        abstract: "Print the trades of a topic that market data was replayed into.",
        discussion: """
            ITCH executions name only the resting order, so the tape reads from the
            start of the topic (unless told otherwise) to know prices.

            Examples:
              martlet market tape feed --follow
              martlet market tape feed --symbol AAPL --json
              martlet market tape amzn --format lobster --max-trades 20
            """)

    @Argument(help: "Name of the topic.") var topic: String
    @OptionGroup var connection: ConnectionOptions
    @Option(help: "itch50 or lobster.") var format: FormatName = .itch50
    @Option(help: "Only trades of this symbol; may be repeated.") var symbol: [String] = []
    @Option(
        name: [.customShort("o"), .long], parsing: .unconditional,
        help: ArgumentHelp("Where to start: \(OffsetChoice.forms).", valueName: "offset"))
    var offset = "earliest"
    @Flag(name: .shortAndLong, help: "Go on with new trades until interrupted.") var follow = false
    @Option(help: "Stop after so many trades.") var maxTrades: Int?
    @Flag(help: "Print one JSON object a line.") var json = false

    func run() async throws {
        let reading = TopicReading(
            topic: topic, start: try OffsetChoice(offset), follow: follow,
            configuration: ConsumerConfiguration(try connection.configuration()))
        let printer = TapePrinter(
            format: format.format, symbols: Set(symbol), limit: maxTrades ?? Int.max, json: json)
        do {
            try await untilStopped { stop in try await reading.run(stop) { try printer.print($0) } }
        } catch is TapePrinter.LimitReached {
            return
        }
    }
}

struct MarketGenerate: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate",
        abstract: "Write a made-up trading session as an ITCH 5.0 file; same seed, same bytes.",
        discussion: """
            Examples:
              martlet market generate session.itch.gz --seed 7 --messages 1000000
              martlet market generate - --messages 50000 | wc -c
            """)

    @Argument(help: "File to write; - is standard output.") var file: String
    @Option(help: "Seed of everything that looks random.") var seed: UInt64 = 1
    @Option(help: "Messages in all.") var messages = 100_000
    @Option(help: "Number of symbols.") var symbols = 8
    @Option(help: "Mean number of messages per second of the session's own time.") var rate = 20_000
    @Flag(help: "Print the result as JSON.") var json = false

    func run() throws {
        let session = try ITCHSessionGenerator(
            ITCHSessionPlan(seed: seed, messageCount: messages, symbolCount: symbols, messagesPerSecond: rate)
        )
        let writer = try ITCHFileWriter(path: file)
        var progress = Progress()
        for message in session {
            try writer.append(message)
            if writer.messageCount & 0xfff == 0 {
                progress.show {
                    "\(Decimals.grouped(writer.messageCount)) of \(Decimals.grouped(Int64(messages))) messages"
                }
            }
        }
        try writer.finish()
        progress.clear()
        if json, file != "-" {
            try Console.print(
                .object([
                    ("file", .string(file)), ("messages", .integer(writer.messageCount)),
                    ("bytes", .integer(writer.byteCount)), ("seed", .string(String(seed))),
                ]))
        } else {
            Console.note(
                "generated \(Decimals.grouped(writer.messageCount)) messages of \(symbols) symbols, "
                    + "\(Decimals.bytes(writer.byteCount)), seed \(seed)")
        }
    }
}
