import ArgumentParser
import MartletClient
import MartletLogModel
import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Producer settings that several commands offer.
struct ProducerOptions: ParsableArguments {
    @Option(
        name: [.long, .customLong("compression-type")],
        help: ArgumentHelp(
            "Codec of batches: none, gzip[:1-9], snappy, lz4, zstd[:1-22].", valueName: "codec"))
    var codec = "none"
    @Option(help: ArgumentHelp("When a record counts as sent: all, 1 (leader) or 0.", valueName: "acks"))
    var acks = "all"
    @Flag(
        inversion: .prefixedNo, help: "Let the broker drop duplicates that retries make (needs --acks all).")
    var idempotent = true
    @Option(help: ArgumentHelp("Milliseconds a batch waits for more records.", valueName: "ms")) var linger =
        5
    @Option(help: ArgumentHelp("Size at which a batch is full.", valueName: "bytes")) var batchBytes =
        256 * 1024
    @Option(
        help: ArgumentHelp(
            "Seconds until a record that is not acknowledged counts as failed.", valueName: "seconds"))
    var deliveryTimeout = 120

    func configuration(_ client: ClientConfiguration) throws -> ProducerConfiguration {
        var configuration = ProducerConfiguration(client)
        configuration.compression = try Compression(codec)
        switch acks {
        case "all", "-1": configuration.acknowledgement = .all
        case "1", "leader": configuration.acknowledgement = .leader
        case "0", "none": configuration.acknowledgement = .none
        case _: throw CommandFailure("--acks is '\(acks)'; allowed: all, 1, 0", exitCode: .usage)
        }
        // Weaker acknowledgement was asked for by name: idempotence, which is only a default, gives way.
        configuration.isIdempotent = idempotent && configuration.acknowledgement == .all
        try Bounded.check(linger, "--linger", 0...60_000)
        try Bounded.check(batchBytes, "--batch-bytes", 1...(1 << 30))
        try Bounded.check(deliveryTimeout, "--delivery-timeout", 1...86_400)
        configuration.linger = .milliseconds(linger)
        configuration.batchBytes = batchBytes
        configuration.requestByteLimit = max(configuration.requestByteLimit, batchBytes)
        configuration.deliveryTimeout = .seconds(deliveryTimeout)
        return configuration
    }
}

struct ProduceCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "produce",
        abstract: "Send records: lines of standard input, or a file as one record.",
        discussion: """
            Examples:
              echo hello | martlet produce greetings
              martlet produce orders --key-separator : --codec gzip < orders.txt
              martlet produce blobs --file picture.png --key cover --header type=image/png
              seq 1000000 | martlet produce numbers --acks 1
            """,
        aliases: ["pub"])

    @Argument(help: "Name of the topic.") var topic: String?
    @Option(name: .customLong("topic"), help: .hidden) var topicOption: String?
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var producing: ProducerOptions
    @Option(name: .shortAndLong, help: "Send to this partition (default: by key).") var partition: Int32?
    @Option(name: .shortAndLong, help: "Key of every record.") var key: String?
    @Option(
        name: [.customShort("K"), .long],
        help: ArgumentHelp("A line is KEY, this separator, VALUE.", valueName: "text"))
    var keySeparator: String?
    @Option(
        name: [.customShort("H"), .long],
        help: ArgumentHelp("A header of every record; may be repeated.", valueName: "name=value"))
    var header: [Assignment] = []
    @Option(help: "Send the contents of this file as one record.") var file: String?
    @Flag(help: "An empty value is a null (a tombstone on compacted topics), an empty key is no key.")
    var emptyAsNull = false
    @Option(
        help: ArgumentHelp(
            "Time of every record: now, or milliseconds, or 2026-01-31T09:30:00Z.", valueName: "time"))
    var timestamp: String?
    @Flag(
        help:
            "Print partition and offset of the record (with --file), and totals, on standard output as JSON.")
    var json = false

    /// Longest line accepted. Brokers refuse records above 1 MiB unless told otherwise.
    static let lineBytesLimit = 64 * 1024 * 1024

    func run() async throws {
        guard let topic = topic ?? topicOption else {
            throw CommandFailure("no topic is named", exitCode: .usage)
        }
        if let problem = TopicName.problem(topic) { throw CommandFailure(problem, exitCode: .usage) }
        guard keySeparator != "" else { throw CommandFailure("--key-separator is empty", exitCode: .usage) }
        var configuration = try producing.configuration(connection.configuration())
        if file != nil { configuration.requestByteLimit = Self.lineBytesLimit }
        configuration.bufferBytes = max(configuration.bufferBytes, configuration.requestByteLimit)
        let template = ProducerRecord(
            topic: topic, partition: partition.map { PartitionIndex($0) },
            key: key.map { ByteBuffer(string: $0) }, value: ByteBuffer?.none,
            headers: header.map { RecordHeader($0.key, $0.value) }, timestamp: try time())
        let producer = try Producer(configuration)
        do {
            // An unreachable broker or a missing topic is told at once, not after the delivery timeout.
            _ = try await producer.partitions(of: topic)
            if let file {
                try await sendFile(file, template, producer)
            } else {
                try await sendLines(template, producer)
            }
        } catch {
            // The first trouble is the news; closing may fail for the same reason.
            do { try await producer.close() } catch {}
            throw error
        }
        try await producer.close()
    }

    private func time() throws -> Timestamp? {
        guard let timestamp, timestamp != "now" else { return nil }
        guard let milliseconds = Int64(timestamp) ?? CivilTime.parse(timestamp) else {
            throw CommandFailure("--timestamp '\(timestamp)' is not a time", exitCode: .usage)
        }
        return Timestamp(milliseconds: milliseconds)
    }

    private func sendFile(_ path: String, _ template: ProducerRecord, _ producer: Producer) async throws {
        var record = template
        record.value = try InputFile.contents(path, limit: Self.lineBytesLimit)
        let sent = try await producer.send(record)
        if json {
            try Console.print(
                JSONValue.object([
                    ("topic", .string(sent.topicPartition.topic)),
                    ("partition", .integer(Int64(sent.topicPartition.partition.rawValue))),
                    ("offset", .optional(sent.offset) { .integer($0.rawValue) }),
                ]).line)
        } else {
            Console.note("sent \(sent.topicPartition) offset \(sent.offset?.description ?? "unknown")")
        }
    }

    private func sendLines(_ template: ProducerRecord, _ producer: Producer) async throws {
        let separator = keySeparator.map { Array($0.utf8) }
        var lines = LineReader(descriptor: STDIN_FILENO, lineBytesLimit: Self.lineBytesLimit)
        var progress = Progress()
        var count = 0
        while let batch = try lines.nextLines() {
            var records: [ProducerRecord] = []
            records.reserveCapacity(batch.count)
            for line in batch {
                let (key, value) = try LineRecord.split(
                    line, separator: separator, emptyAsNull: emptyAsNull, number: count + 1)
                var record = template
                if separator != nil { record.key = key }
                record.value = value
                records.append(record)
                count += 1
            }
            try await producer.enqueue(contentsOf: records)
            progress.show { "\(Decimals.grouped(Int64(count))) records" }
        }
        try await producer.flush()
        progress.clear()
        let seconds = progress.seconds
        if json {
            try Console.print(
                JSONValue.object([("records", .integer(Int64(count))), ("seconds", .number(seconds))]).line)
        } else if Console.errorIsTerminal, count > 1 {
            Console.note("sent \(Decimals.grouped(Int64(count))) records in \(Decimals.text(seconds, 2)) s")
        }
    }
}

/// A line as key and value.
enum LineRecord {
    static func split(
        _ line: ByteBuffer, separator: [UInt8]?, emptyAsNull: Bool, number: Int
    ) throws -> (key: ByteBuffer?, value: ByteBuffer?) {
        guard let separator else { return (nil, emptyAsNull && line.readableBytes == 0 ? nil : line) }
        let view = line.readableBytesView
        guard let range = view.firstRange(of: separator) else {
            throw CommandFailure(
                "line \(number) has no key separator '\(String(decoding: separator, as: UTF8.self))'",
                remedy: "the lines before it were sent; fix the line or choose another --key-separator")
        }
        let key = ByteBuffer(view[view.startIndex..<range.lowerBound])
        let value = ByteBuffer(view[range.upperBound...])
        return (
            emptyAsNull && key.readableBytes == 0 ? nil : key,
            emptyAsNull && value.readableBytes == 0 ? nil : value
        )
    }
}
