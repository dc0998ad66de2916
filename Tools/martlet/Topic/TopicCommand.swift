import ArgumentParser
import MartletClient
import MartletLogModel

struct TopicCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "topic",
        abstract: "Make, list, look at, change and delete topics.",
        subcommands: [
            TopicCreate.self, TopicList.self, TopicDescribe.self, TopicAlter.self, TopicDelete.self,
        ],
        aliases: ["topics"])
}

/// Topic names, given bare or with `--topic` as Kafka's tools do.
struct TopicNames: ParsableArguments {
    @Argument(help: "Names of topics.") var names: [String] = []
    @Option(name: .customLong("topic"), help: .hidden) var more: [String] = []

    var all: [String] { names + more }

    func required() throws -> [String] {
        guard !all.isEmpty else { throw CommandFailure("no topic is named", exitCode: .usage) }
        for name in all {
            if let problem = TopicName.problem(name) { throw CommandFailure(problem, exitCode: .usage) }
        }
        return all
    }
}

struct TopicCreate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "create",
        abstract: "Make topics.",
        discussion: """
            Examples:
              martlet topic create orders
              martlet topic create orders trades --partitions 4
              martlet topic create packed --config compression.type=gzip
              martlet topic create ticks --config martlet.durability=relaxed
            """)

    @OptionGroup var topics: TopicNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(help: "Number of partitions (default: the broker's).") var partitions: Int?
    @Option(help: "Copies of each partition (default: the broker's).") var replicationFactor: Int?
    @Option(help: ArgumentHelp("A setting; may be repeated.", valueName: "key=value")) var config:
        [Assignment] = []
    @Flag(help: "Succeed if the topic is there already.") var ifNotExists = false
    @Flag(help: "Check everything, make nothing.") var validateOnly = false

    func run() async throws {
        try Bounded.check(partitions, "--partitions", 1...100_000)
        try Bounded.check(replicationFactor, "--replication-factor", 1...32)
        let names = try topics.required()
        var settings: [String: String] = [:]
        for pair in config { settings[pair.key] = pair.value }
        let wanted = names.map {
            TopicSpecification(
                name: $0, partitionCount: partitions, replicationFactor: replicationFactor, configs: settings)
        }
        let results = try await connection.withAdmin {
            try await $0.createTopics(wanted, validateOnly: validateOnly)
        }
        var failures = Failures()
        var made: [JSONValue] = []
        for name in names {
            switch results[name] {
            case .success(let topic)?:
                made.append(
                    .object([
                        ("topic", .string(name)), ("id", .optional(topic.id) { .string($0.description) }),
                        ("partitions", .optional(topic.partitionCount) { .integer(Int64($0)) }),
                        ("replicationFactor", .optional(topic.replicationFactor) { .integer(Int64($0)) }),
                        ("created", .bool(!validateOnly)),
                    ]))
                if !listing.json {
                    let count = topic.partitionCount.map { ", \($0) partition\($0 == 1 ? "" : "s")" } ?? ""
                    try Console.print(
                        validateOnly ? "\(name) could be created\(count)" : "created \(name)\(count)")
                }
            case .failure(let error)? where ifNotExists && error.brokerCode == .topicAlreadyExists:
                made.append(.object([("topic", .string(name)), ("created", .bool(false))]))
                if !listing.json { try Console.print("\(name) exists already") }
            case .failure(let error)?: failures.add(name, error)
            case nil: failures.add(name, "the broker did not answer for it")
            }
        }
        if listing.json { try Console.print(.array(made)) }
        try failures.throwIfAny()
    }
}

struct TopicList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List topics.",
        discussion: """
            Examples:
              martlet topic list
              martlet topic list --internal --json
            """,
        aliases: ["ls"])

    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Flag(help: "Show the topics too that brokers keep for themselves.") var `internal` = false

    func run() async throws {
        let topics = try await connection.withAdmin { try await $0.listTopics(includeInternal: `internal`) }
        if listing.json {
            try Console.print(
                .array(
                    topics.map {
                        .object([
                            ("topic", .string($0.name)), ("id", .optional($0.id) { .string($0.description) }),
                            ("internal", .bool($0.isInternal)),
                            ("partitions", .integer(Int64($0.partitionCount))),
                            ("replicationFactor", .integer(Int64($0.replicationFactor))),
                        ])
                    }))
            return
        }
        var table = TextTable("TOPIC", "PARTITIONS#", "REPLICAS#", "ID")
        for topic in topics {
            table.add(
                topic.name, String(topic.partitionCount), String(topic.replicationFactor),
                topic.id?.description ?? "-")
        }
        if table.isEmpty {
            Console.note("no topics; `martlet topic create NAME` makes one")
        } else {
            try Console.print(table.text)
        }
    }
}

struct TopicDelete: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete",
        abstract: "Delete topics with all their records.",
        discussion: """
            Example:
              martlet topic delete orders trades
            """,
        aliases: ["rm"])

    @OptionGroup var topics: TopicNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Flag(help: "Succeed if a topic is not there.") var ifExists = false

    func run() async throws {
        let names = try topics.required()
        let results = try await connection.withAdmin { try await $0.deleteTopics(names) }
        var report = DeletionReport(kind: "topic", listing)
        for name in names {
            switch results[name] {
            case .failure(let error)? where ifExists && error.isUnknownTopic: try report.absent(name)
            case let result: try report.add(name, result)
            }
        }
        try report.finish()
    }
}

struct TopicAlter: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "alter",
        abstract: "Add partitions to a topic, or change its settings.",
        discussion: """
            Partitions can be added, never taken away; keys may then belong to other
            partitions.

            Examples:
              martlet topic alter orders --partitions 8
              martlet topic alter orders --config retention.ms=86400000
            """)

    @OptionGroup var topics: TopicNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(help: "New total number of partitions.") var partitions: Int?
    @Option(help: ArgumentHelp("A setting to change; may be repeated.", valueName: "key=value"))
    var config: [Assignment] = []
    @Option(help: ArgumentHelp("A setting to put back to its default; may be repeated.", valueName: "key"))
    var deleteConfig: [String] = []

    func run() async throws {
        try Bounded.check(partitions, "--partitions", 1...100_000)
        let names = try topics.required()
        guard partitions != nil || !config.isEmpty || !deleteConfig.isEmpty else {
            throw CommandFailure(
                "nothing to change", remedy: "give --partitions, --config or --delete-config",
                exitCode: .usage)
        }
        let changes =
            config.map { ConfigChange.set($0.key, to: $0.value) } + deleteConfig.map(ConfigChange.delete)
        let isJSON = listing.json
        try await connection.withAdmin { admin in
            var done: [JSONValue] = []
            for name in names {
                if let partitions {
                    try await admin.createPartitions(topic: name, total: partitions)
                    if !isJSON { try Console.print("\(name) has \(partitions) partitions") }
                }
                if !changes.isEmpty {
                    try await admin.alterConfig(.topic(name), changes)
                    if !isJSON { try Console.print("\(name): \(ConfigText.count(changes)) changed") }
                }
                done.append(
                    .object([
                        ("topic", .string(name)),
                        ("partitions", .optional(partitions) { .integer(Int64($0)) }),
                        ("settingsChanged", .integer(Int64(changes.count))),
                    ]))
            }
            if isJSON { try Console.print(.array(done)) }
        }
    }
}

/// What became of the items that a command was to delete: told as it goes, or as JSON at the end.
struct DeletionReport {
    private let kind: String
    private let json: Bool
    private var items: [JSONValue] = []
    private var failures = Failures()

    init(kind: String, _ listing: ListingOptions) {
        self.kind = kind
        json = listing.json
    }

    mutating func add(_ name: String, _ result: Result<Void, ClientError>?) throws {
        switch result {
        case .success?: try tell(name, isDeleted: true)
        case .failure(let error)?: failures.add(name, error)
        case nil: failures.add(name, "the broker did not answer for it")
        }
    }

    /// It was not there, and that is fine.
    mutating func absent(_ name: String) throws { try tell(name, isDeleted: false) }

    private mutating func tell(_ name: String, isDeleted: Bool) throws {
        items.append(.object([(kind, .string(name)), ("deleted", .bool(isDeleted))]))
        if !json { try Console.print(isDeleted ? "deleted \(name)" : "\(name) is not there") }
    }

    func finish() throws {
        if json { try Console.print(.array(items)) }
        try failures.throwIfAny()
    }
}

/// Failures of single items of one command; all are printed, the last one ends the command.
struct Failures {
    private var all: [CommandFailure] = []

    mutating func add(_ item: String, _ error: ClientError) {
        var failure = CommandFailure(error)
        if !failure.cause.contains(item) { failure.cause = "\(item): \(failure.cause)" }
        all.append(failure)
    }

    mutating func add(_ item: String, _ cause: String) { all.append(CommandFailure("\(item): \(cause)")) }

    func throwIfAny() throws {
        guard let last = all.last else { return }
        for failure in all.dropLast() { Console.complain(failure.description) }
        throw last
    }
}

extension ClientError {
    var isUnknownTopic: Bool { code == .unknownTopic || brokerCode == .unknownTopicOrPartition }
}
