import ArgumentParser
import MartletClient
import MartletLogModel
import NIOCore

struct ConsumeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "consume",
        abstract: "Print records of a topic.",
        discussion: """
            Without --follow the command ends at the end that the topic had when it
            began. Without --group it starts with the earliest record (with --follow:
            with the next new one); with --group it starts where the group stopped, and
            commits. With --share-group records are a queue: each goes to one member of
            the group and comes again unless it was printed; the command ends when none
            has come for ten seconds. Such a group begins with the next new record
            unless its setting share.auto.offset.reset says earliest.

            Format letters: %t topic, %p partition, %o offset, %T time in ms, %D time as
            text, %k key, %K its length, %s value, %S its length, %h headers, %H number
            of headers; \\n, \\t, \\xHH as in C.

            Examples:
              martlet consume orders
              martlet consume orders --follow --format '%D %p/%o %k=%s\\n'
              martlet consume orders --offset -10 --partition 2 --json
              martlet consume orders --offset 2026-01-31T09:30:00Z --max-messages 100
              martlet consume orders --group billing --follow
              martlet consume jobs --share-group workers --max-messages 10 --json
            """,
        aliases: ["sub"])

    @Argument(help: "Name of the topic.") var topic: String?
    @Option(name: .customLong("topic"), help: .hidden) var topicOption: String?
    @OptionGroup var connection: ConnectionOptions
    @Option(name: .shortAndLong, help: "Only this partition; may be repeated.") var partition: [Int32] = []
    @Option(
        name: [.customShort("o"), .long, .customLong("from")], parsing: .unconditional,
        help: ArgumentHelp("Where to start: \(OffsetChoice.forms).", valueName: "offset"))
    var offset: String?
    @Flag(help: "The same as --offset earliest.") var fromBeginning = false
    @Option(name: .shortAndLong, help: "Read as a member of this group, and commit.") var group: String?
    @Option(
        help: ArgumentHelp(
            "Protocol of the group: classic, or consumer (KIP-848, the broker shares out).", valueName: "protocol"))
    var groupProtocol: String?
    @Option(help: ArgumentHelp("Take records of this share group (KIP-932).", valueName: "group")) var shareGroup: String?
    @Flag(name: .shortAndLong, help: "Go on with new records until interrupted.") var follow = false
    @Option(name: [.customShort("c"), .long], help: "Stop after so many records.") var maxMessages: Int?
    @Option(help: ArgumentHelp("Format of a record.", valueName: "format")) var format: String?
    @Flag(help: "Print one JSON object a line.") var json = false
    @Flag(help: "Print the key before the value, with a tab.") var printKey = false
    @Flag(help: "Leave out records of open and aborted transactions.") var readCommitted = false

    func run() async throws {
        guard let topic = topic ?? topicOption else {
            throw CommandFailure("no topic is named", exitCode: .usage)
        }
        if let problem = TopicName.problem(topic) { throw CommandFailure(problem, exitCode: .usage) }
        guard !json || format == nil else {
            throw CommandFailure("--json and --format exclude each other", exitCode: .usage)
        }
        guard group == nil || partition.isEmpty else {
            throw CommandFailure(
                "--group and --partition exclude each other",
                remedy: "a group shares out the partitions itself", exitCode: .usage)
        }
        try checkShareGroup()
        try Bounded.check(maxMessages, "--max-messages", 0...Int.max)
        if maxMessages == 0 { return }
        let text = format ?? (printKey ? "%k\\t%s\\n" : "%s\\n")
        let sink = RecordSink(format: json ? nil : try RecordFormat(text))
        if let shareGroup {
            var configuration = ShareConsumerConfiguration(try connection.configuration(), groupID: shareGroup)
            configuration.fetchMaximumWait = TopicReading.pollTimeout
            let reading = ShareReading(topic: topic, follow: follow, limit: maxMessages, configuration: configuration)
            return try await untilStopped { stop in try await reading.run(stop) { try sink.write($0) } }
        }
        let start = try offset.map(OffsetChoice.init) ?? (fromBeginning ? .earliest : nil)
        var configuration = ConsumerConfiguration(try connection.configuration(), groupID: group)
        switch groupProtocol {
        case nil, "classic": configuration.groupProtocol = .classic
        case "consumer": configuration.groupProtocol = .consumer
        case let other?:
            throw CommandFailure(
                "--group-protocol is '\(other)'; allowed: classic, consumer", exitCode: .usage)
        }
        configuration.isolation = readCommitted ? .readCommitted : .readUncommitted
        configuration.offsetReset = start == .latest ? .latest : .earliest
        let reading = TopicReading(
            topic: topic, partitions: partition, start: start ?? (follow ? .latest : .earliest),
            follow: follow,
            limit: maxMessages, configuration: configuration)
        if group != nil, let start, start != .earliest, start != .latest {
            throw CommandFailure(
                "--group starts at the group's own offset; --offset can only be earliest or latest then",
                remedy: "`martlet group reset-offsets` moves a group", exitCode: .usage)
        }
        try await untilStopped { stop in try await reading.run(stop) { try sink.write($0) } }
    }
}

extension ConsumeCommand {
    /// A share group hands out what it likes; where it begins and what it shows are settings of the group.
    private func checkShareGroup() throws {
        guard let shareGroup else { return }
        func refuse(_ option: String, _ remedy: String) -> CommandFailure {
            CommandFailure("--share-group and \(option) exclude each other", remedy: remedy, exitCode: .usage)
        }
        if group != nil { throw refuse("--group", "a group is one or the other") }
        if groupProtocol != nil { throw refuse("--group-protocol", "share groups have a protocol of their own") }
        if !partition.isEmpty { throw refuse("--partition", "a group shares out the partitions itself") }
        if offset != nil || fromBeginning {
            throw refuse(
                offset == nil ? "--from-beginning" : "--offset",
                "`martlet config alter group \(shareGroup) --set share.auto.offset.reset=earliest` before its first record")
        }
        if readCommitted {
            throw refuse(
                "--read-committed",
                "`martlet config alter group \(shareGroup) --set share.isolation.level=read_committed`")
        }
    }
}

/// Writes records to standard output in a format, gathered per poll.
struct RecordSink: Sendable {
    /// `nil`: JSON.
    var format: RecordFormat?

    func write(_ records: [ConsumedRecord]) throws { try write(records.map { RecordFormat.Fields($0) }) }

    /// With how often each record was delivered, in JSON.
    func write(_ records: [SharedRecord]) throws {
        try write(
            records.map { shared in
                var fields = RecordFormat.Fields(shared.record)
                fields.deliveryCount = shared.deliveryCount
                return fields
            })
    }

    private func write(_ records: [RecordFormat.Fields]) throws {
        var output = ByteBuffer()
        for fields in records {
            if let format {
                format.write(fields, to: &output)
            } else {
                output.writeString(RecordFormat.json(fields).line + "\n")
            }
            if output.readableBytes > 256 * 1024 {
                try Console.write(output)
                output.clear()
            }
        }
        try Console.write(output)
    }
}

/// Reading a topic from a place up to its present end, or without end.
struct TopicReading: Sendable {
    var topic: String
    /// Empty: all.
    var partitions: [Int32] = []
    var start: OffsetChoice = .earliest
    var follow = false
    /// Most records to hand out.
    var limit: Int?
    var configuration: ConsumerConfiguration

    /// How long one poll waits; also how long an interrupt may go unnoticed at worst.
    static let pollTimeout: Duration = .milliseconds(500)

    /// Hands records to `body` in order per partition, until the end or until `stop` is set.
    func run(_ stop: StopFlag, _ body: @Sendable ([ConsumedRecord]) async throws -> Void) async throws {
        let consumer = try Consumer(configuration)
        do {
            if configuration.groupID != nil {
                try await readGroup(consumer, stop, body)
            } else {
                try await readPartitions(consumer, stop, body)
            }
        } catch {
            do { try await consumer.close() } catch {}
            throw error
        }
        try await consumer.close()
    }

    private func readPartitions(
        _ consumer: Consumer, _ stop: StopFlag, _ body: @Sendable ([ConsumedRecord]) async throws -> Void
    ) async throws {
        let all = try await partitionList()
        let (starts, ends) = try await positions(consumer, all)
        var open = Set(all)
        if !follow { open = open.filter { (starts[$0] ?? .zero) < (ends[$0] ?? .zero) } }
        guard !open.isEmpty else { return }
        try await consumer.assign(
            Dictionary(uniqueKeysWithValues: open.map { ($0, OffsetSpec.at(starts[$0] ?? .zero)) }))
        var left = limit ?? Int.max
        while left > 0, !open.isEmpty, !stop.isSet {
            var records = try await consumer.poll(timeout: Self.pollTimeout, limit: min(left, 10_000))
            if !follow { records.removeAll { $0.offset >= (ends[$0.topicPartition] ?? .zero) } }
            left -= records.count
            if !records.isEmpty { try await body(records) }
            if !follow { open = open.filter { (consumer.position(of: $0) ?? .zero) < (ends[$0] ?? .zero) } }
        }
    }

    private func readGroup(
        _ consumer: Consumer, _ stop: StopFlag, _ body: @Sendable ([ConsumedRecord]) async throws -> Void
    ) async throws {
        try await consumer.subscribe(to: [topic])
        var left = limit ?? Int.max
        var ends: [TopicPartition: Offset] = [:]
        while left > 0, !stop.isSet {
            let records = try await consumer.poll(timeout: Self.pollTimeout, limit: min(left, 10_000))
            left -= records.count
            if !records.isEmpty { try await body(records) }
            guard !follow else { continue }
            let assignment = consumer.assignment
            let unknown = assignment.filter { ends[$0] == nil }
            if !unknown.isEmpty {
                for (partition, end) in try await consumer.offsets(spec(unknown, .latest)) {
                    ends[partition] = end?.offset ?? .zero
                }
            }
            let isDone = assignment.allSatisfy { partition in
                guard let position = consumer.position(of: partition) else { return false }
                return position >= (ends[partition] ?? .zero)
            }
            if !assignment.isEmpty, isDone { break }
        }
        try await consumer.commit()
    }

    private func partitionList() async throws -> [TopicPartition] {
        let admin = try Admin(configuration.client)
        let description: TopicDescription
        do {
            description = try await admin.describeTopic(topic)
        } catch {
            await admin.close()
            throw error
        }
        await admin.close()
        let there = description.partitions.map { TopicPartition(topic: topic, partition: $0.index) }
        guard !partitions.isEmpty else { return there }
        return try partitions.map { number in
            let wanted = TopicPartition(topic, number)
            guard there.contains(wanted) else {
                throw CommandFailure("topic '\(topic)' has partitions 0 to \(there.count - 1), not \(number)")
            }
            return wanted
        }
    }

    /// Start and present end of each partition, the start moved into what is there.
    private func positions(
        _ consumer: Consumer, _ all: [TopicPartition]
    ) async throws -> (starts: [TopicPartition: Offset], ends: [TopicPartition: Offset]) {
        let ends = try await consumer.offsets(spec(all, .latest)).compactMapValues { $0?.offset }
        let earliest = try await consumer.offsets(spec(all, .earliest)).compactMapValues { $0?.offset }
        var starts: [TopicPartition: Offset] = [:]
        var times: [TopicPartition: ListedOffset?] = [:]
        if case .time(let time) = start { times = try await consumer.offsets(spec(all, .timestamp(time))) }
        for partition in all {
            let first = earliest[partition] ?? .zero
            let end = ends[partition] ?? first
            switch start {
            case .earliest: starts[partition] = first
            case .latest: starts[partition] = end
            case .time: starts[partition] = (times[partition] ?? nil)?.offset ?? end
            case .fromEnd(let count): starts[partition] = max(first, Offset(end.rawValue - count))
            case .at(let offset):
                guard Offset(offset) >= first, Offset(offset) <= end else {
                    throw CommandFailure(
                        "\(partition) has offsets \(first) to \(end), not \(offset)",
                        remedy: "--offset earliest or latest always works")
                }
                starts[partition] = Offset(offset)
            }
        }
        return (starts, ends)
    }

    private func spec(_ partitions: some Sequence<TopicPartition>, _ spec: OffsetSpec) -> [TopicPartition:
        OffsetSpec]
    {
        Dictionary(partitions.map { ($0, spec) }, uniquingKeysWith: { first, _ in first })
    }
}
