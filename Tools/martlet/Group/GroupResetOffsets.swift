import ArgumentParser
import MartletClient
import MartletLogModel

struct GroupResetOffsets: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "reset-offsets",
        abstract: "Move a group's committed offsets; shows what would change unless --execute is given.",
        discussion: """
            The group must have no members. Without --topic all partitions that the
            group has committed move.

            Examples:
              martlet group reset-offsets billing --topic orders --to earliest
              martlet group reset-offsets billing --topic orders:0 --to 1200 --execute
              martlet group reset-offsets billing --to 2026-01-31T09:30:00Z --execute
            """)

    @OptionGroup var groups: GroupNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(
        help: ArgumentHelp(
            "Topic, or one partition of it as TOPIC:N; may be repeated.", valueName: "topic[:n]"))
    var topic: [String] = []
    @Flag(help: .hidden) var allTopics = false
    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Where to: \(OffsetChoice.forms).", valueName: "offset"))
    var to: String?
    @Flag(help: .hidden) var toEarliest = false
    @Flag(help: .hidden) var toLatest = false
    @Option(parsing: .unconditional, help: .hidden) var toOffset: String?
    @Option(help: .hidden) var toDatetime: String?
    @Flag(help: .hidden) var dryRun = false
    @Flag(help: "Make the change; without it the change is only shown.") var execute = false

    func run() async throws {
        let names = try groups.required()
        guard names.count == 1, let group = names.first else {
            throw CommandFailure("reset-offsets takes one group", exitCode: .usage)
        }
        let choice = try OffsetChoice(text())
        let (plan, former) = try await connection.withAdmin { admin in
            let partitions = try await partitions(admin)
            let former = try await admin.groupOffsets(group)
            let plan = try await self.plan(admin, group, choice, partitions ?? former.keys.sorted())
            if execute {
                var failures = Failures()
                for (partition, result) in try await admin.alterGroupOffsets(group, plan) {
                    if case .failure(let error) = result { failures.add("\(partition)", error) }
                }
                try failures.throwIfAny()
            }
            return (plan, former)
        }
        let rows = plan.sorted { $0.key < $1.key }
        if listing.json {
            return try Console.print(
                .object([
                    ("group", .string(group)), ("executed", .bool(execute)),
                    (
                        "partitions",
                        .array(
                            rows.map { partition, offset in
                                .object([
                                    ("topic", .string(partition.topic)),
                                    ("partition", .integer(Int64(partition.partition.rawValue))),
                                    ("from", .optional(former[partition]) { .integer($0.offset.rawValue) }),
                                    ("to", .integer(offset.offset.rawValue)),
                                ])
                            })
                    ),
                ]))
        }
        var table = TextTable("TOPIC", "PARTITION#", "FROM#", "TO#")
        for (partition, offset) in rows {
            table.add(
                partition.topic, partition.partition.description,
                former[partition]?.offset.description ?? "-",
                offset.offset.description)
        }
        guard !table.isEmpty else {
            throw CommandFailure(
                "group '\(group)' has committed nothing yet", remedy: "name the topics with --topic")
        }
        try Console.print(table.text)
        if !execute { Console.note("nothing was changed; --execute does it") }
    }

    private func text() throws -> String {
        let given = [to, toEarliest ? "earliest" : nil, toLatest ? "latest" : nil, toOffset, toDatetime]
            .compactMap { $0 }
        guard given.count == 1, let text = given.first else {
            throw CommandFailure(
                "one --to is needed", remedy: "write \(OffsetChoice.forms)", exitCode: .usage)
        }
        return text
    }

    /// Partitions named by --topic; `nil` if none is.
    private func partitions(_ admin: Admin) async throws -> [TopicPartition]? {
        guard !topic.isEmpty else { return nil }
        var result: [TopicPartition] = []
        for text in topic {
            let parts = text.split(separator: ":", maxSplits: 1)
            let name = parts.first.map(String.init) ?? ""
            if parts.count == 2 {
                for number in parts[1].split(separator: ",") {
                    guard let index = Int32(number), index >= 0 else {
                        throw CommandFailure("'\(number)' is not a partition", exitCode: .usage)
                    }
                    result.append(TopicPartition(name, index))
                }
            } else {
                result += try await admin.describeTopic(name).partitions.map {
                    TopicPartition(topic: name, partition: $0.index)
                }
            }
        }
        return result
    }

    private func plan(
        _ admin: Admin, _ group: String, _ choice: OffsetChoice, _ partitions: [TopicPartition]
    ) async throws -> [TopicPartition: CommittedOffset] {
        guard !partitions.isEmpty else { return [:] }
        if let spec = choice.spec {
            return try await admin.planGroupReset(group, to: spec, partitions: partitions)
        }
        guard case .fromEnd(let count) = choice else { return [:] }
        let ends = try await admin.planGroupReset(group, to: .latest, partitions: partitions)
        let starts = try await admin.planGroupReset(group, to: .earliest, partitions: partitions)
        var plan: [TopicPartition: CommittedOffset] = [:]
        for (partition, end) in ends {
            let start = starts[partition]?.offset ?? .zero
            plan[partition] = CommittedOffset(max(start, Offset(end.offset.rawValue - count)))
        }
        return plan
    }
}
