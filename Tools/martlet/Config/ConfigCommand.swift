import ArgumentParser
import MartletClient
import MartletLogModel

struct ConfigCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "config",
        abstract: "Show, explain and change settings of topics, brokers and groups.",
        subcommands: [ConfigDescribe.self, ConfigAlter.self, ConfigExplain.self],
        aliases: ["configs"])
}

/// The owner of settings, as `topic NAME`, `broker ID`, `group NAME` or `cluster`.
struct ResourceOptions: ParsableArguments {
    @Argument(help: "What the settings belong to: topic, broker, group or cluster.") var kind: String?
    @Argument(help: "Name of the topic or group, or number of the broker.") var name: String?
    @Option(help: .hidden) var entityType: String?
    @Option(help: .hidden) var entityName: String?
    @Flag(help: .hidden) var entityDefault = false

    func resource() throws -> ConfigResource {
        let kind = kind ?? entityType
        let name = name ?? entityName
        func needed(_ what: String) throws -> String {
            guard let name else { throw CommandFailure("no \(what) is named", exitCode: .usage) }
            return name
        }
        switch kind {
        case "topic", "topics": return .topic(try needed("topic"))
        case "group", "groups": return .group(try needed("group"))
        case "cluster": return .allBrokers
        case "broker", "brokers":
            if entityDefault { return .allBrokers }
            guard let id = Int32(try needed("broker")) else {
                throw CommandFailure("'\(name ?? "")' is not the number of a broker", exitCode: .usage)
            }
            return .broker(BrokerID(id))
        case _:
            throw CommandFailure(
                kind.map { "'\($0)' has no settings" } ?? "nothing is named",
                remedy: "write topic NAME, broker ID, group NAME or cluster", exitCode: .usage)
        }
    }
}

enum ConfigText {
    static func value(_ entry: ConfigEntry) -> String {
        entry.isSensitive ? "(secret)" : entry.value.map { $0.isEmpty ? "\"\"" : $0 } ?? "-"
    }

    /// `1 setting`, `2 settings`.
    static func count(_ changes: [ConfigChange]) -> String {
        "\(changes.count) setting\(changes.count == 1 ? "" : "s")"
    }

    static func json(_ entry: ConfigEntry) -> JSONValue {
        .object([
            ("name", .string(entry.name)), ("value", .optional(entry.value) { .string($0) }),
            ("source", .string(entry.source.description)), ("default", .bool(entry.isDefault)),
            ("readOnly", .bool(entry.isReadOnly)), ("sensitive", .bool(entry.isSensitive)),
        ])
    }
}

struct ConfigDescribe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "describe",
        abstract: "Show settings and where each value comes from.",
        discussion: """
            Examples:
              martlet config describe topic orders
              martlet config describe broker 0 --all
              martlet config describe cluster --json
            """)

    @OptionGroup var owner: ResourceOptions
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Flag(help: "Show settings too that have their default value.") var all = false

    func run() async throws {
        let resource = try owner.resource()
        let entries = try await connection.withAdmin { try await $0.describeConfig(resource) }
            .filter { all || !$0.isDefault }
        if listing.json { return try Console.print(.array(entries.map { ConfigText.json($0) })) }
        var table = TextTable("SETTING", "VALUE", "FROM", "")
        for entry in entries {
            table.add(
                entry.name, ConfigText.value(entry), entry.source.description,
                entry.isReadOnly ? "read-only" : "")
        }
        if table.isEmpty {
            Console.note("\(resource): all settings have their default value; --all shows them")
        } else {
            try Console.print(table.text)
        }
    }
}

struct ConfigAlter: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "alter",
        abstract: "Change single settings; the others stay.",
        discussion: """
            Examples:
              martlet config alter topic orders --set retention.ms=3600000
              martlet config alter topic orders --append cleanup.policy=compact
              martlet config alter cluster --set log.retention.ms=86400000
            """)

    @OptionGroup var owner: ResourceOptions
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(
        name: [.long, .customLong("add-config")], help: ArgumentHelp("Set a value.", valueName: "key=value"))
    var set: [Assignment] = []
    @Option(
        name: [.long, .customLong("delete-config")],
        help: ArgumentHelp("Go back to the default.", valueName: "key"))
    var delete: [String] = []
    @Option(help: ArgumentHelp("Add to a list value.", valueName: "key=value")) var append: [Assignment] = []
    @Option(help: ArgumentHelp("Take out of a list value.", valueName: "key=value")) var subtract:
        [Assignment] = []
    @Flag(help: "Check everything, change nothing.") var validateOnly = false

    func run() async throws {
        let resource = try owner.resource()
        var changes = set.map { ConfigChange.set($0.key, to: $0.value) }
        changes += delete.map(ConfigChange.delete)
        changes += append.map { ConfigChange.append($0.key, $0.value) }
        changes += subtract.map { ConfigChange.subtract($0.key, $0.value) }
        guard !changes.isEmpty else {
            throw CommandFailure(
                "nothing to change", remedy: "give --set, --delete, --append or --subtract", exitCode: .usage)
        }
        let wanted = changes
        let results = try await connection.withAdmin {
            try await $0.alterConfigs([resource: wanted], validateOnly: validateOnly)
        }
        guard let result = results[resource] else {
            throw CommandFailure("the broker did not answer for \(resource)")
        }
        try result.get()
        if listing.json {
            return try Console.print(
                .object([
                    ("resource", .string("\(resource)")),
                    ("settingsChanged", .integer(validateOnly ? 0 : Int64(changes.count))),
                ]))
        }
        let count = ConfigText.count(changes)
        try Console.print(
            validateOnly ? "\(resource): \(count) could be changed" : "\(resource): \(count) changed")
    }
}

struct ConfigExplain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "explain",
        abstract: "Say what a setting means, its value, and where that comes from.",
        discussion: """
            Examples:
              martlet config explain retention.ms --topic orders
              martlet config explain num.partitions --broker 0
            """)

    @Argument(help: "Name of the setting.") var setting: String
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(help: "Explain it for this topic.") var topic: String?
    @Option(help: "Explain it for this broker (default: the controller, or the first broker).") var broker:
        Int32?

    func run() async throws {
        let (resource, entries) = try await connection.withAdmin { admin in
            let resource: ConfigResource
            if let topic {
                resource = .topic(topic)
            } else if let broker {
                resource = .broker(BrokerID(broker))
            } else {
                let cluster = try await admin.describeCluster()
                guard let id = cluster.controller ?? cluster.brokers.first?.id else {
                    throw CommandFailure("the cluster names no broker", exitCode: .unavailable)
                }
                resource = .broker(id)
            }
            let all = try await admin.describeConfigs([resource], includeDocumentation: true)
            guard let result = all[resource] else {
                throw CommandFailure("the broker did not answer for \(resource)")
            }
            return (resource, try result.get())
        }
        guard let entry = entries.first(where: { $0.name == setting }) else {
            let near = entries.map(\.name).filter { $0.contains(setting) || setting.contains($0) }.prefix(5)
            throw CommandFailure(
                "\(resource) has no setting '\(setting)'",
                remedy: near.isEmpty
                    ? "`martlet config describe … --all` lists them; topic settings need --topic"
                    : "did you mean \(near.joined(separator: ", "))?")
        }
        if listing.json {
            return try Console.print(
                .object([
                    ("resource", .string("\(resource)")), ("setting", ConfigText.json(entry)),
                    ("documentation", .optional(entry.documentation) { .string($0) }),
                ]))
        }
        var text = "\(entry.name) = \(ConfigText.value(entry))\n"
        text += "from: \(entry.source)\(entry.isReadOnly ? ", read-only" : "") (\(resource))\n"
        if let documentation = entry.documentation, !documentation.isEmpty { text += "\n\(documentation)\n" }
        try Console.print(text)
    }
}
