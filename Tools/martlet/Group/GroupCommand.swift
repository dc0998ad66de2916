import ArgumentParser
import MartletClient
import MartletLogModel

struct GroupCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "group",
        abstract: "List, look at, reset and delete consumer groups.",
        subcommands: [GroupList.self, GroupDescribe.self, GroupResetOffsets.self, GroupDelete.self],
        aliases: ["groups", "consumer-groups"])
}

/// Group names, given bare or with `--group` as Kafka's tools do.
struct GroupNames: ParsableArguments {
    @Argument(help: "Names of groups.") var names: [String] = []
    @Option(name: .customLong("group"), help: .hidden) var more: [String] = []

    func required() throws -> [String] {
        guard !(names + more).isEmpty else { throw CommandFailure("no group is named", exitCode: .usage) }
        return names + more
    }
}

struct GroupList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List groups.",
        discussion: """
            Examples:
              martlet group list
              martlet group list --state Empty --json
              martlet group list --type consumer --type share
            """,
        aliases: ["ls"])

    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(help: "Only groups in this state; may be repeated.") var state: [String] = []
    @Option(help: "Only groups of this type: classic, consumer or share; may be repeated.") var type: [String] = []

    func run() async throws {
        let types = Set(type.map { $0.lowercased() })
        if let unknown = types.subtracting(["classic", "consumer", "share"]).min() {
            throw CommandFailure(
                "no group is of the type \(unknown); the types are classic, consumer and share", exitCode: .usage)
        }
        let groups = try await connection.withAdmin { try await $0.listGroups(states: state) }
            .filter { types.isEmpty || types.contains($0.type?.lowercased() ?? "classic") }
        if listing.json {
            try Console.print(
                .array(
                    groups.map {
                        .object([
                            ("group", .string($0.groupID)), ("state", .optional($0.state) { .string($0) }),
                            ("type", .optional($0.type) { .string($0) }),
                            ("protocolType", .string($0.protocolType)),
                            ("coordinator", .integer(Int64($0.coordinator.rawValue))),
                        ])
                    }))
            return
        }
        var table = TextTable("GROUP", "STATE", "TYPE", "COORDINATOR#")
        for group in groups {
            table.add(group.groupID, group.state ?? "-", group.type ?? "-", group.coordinator.description)
        }
        if table.isEmpty { Console.note("no groups") } else { try Console.print(table.text) }
    }
}

struct GroupDescribe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "describe",
        abstract: "Show members, committed offsets and lag.",
        discussion: """
            Lag is the number of offsets between the committed one and the end of the
            partition. Of a share group it shows the first record that is not done with,
            and as lag how many from there on are not; several members may read a
            partition, and the last of them is named.

            Examples:
              martlet group describe billing
              martlet group describe billing --json
            """)

    @OptionGroup var groups: GroupNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions

    struct Position {
        var partition: TopicPartition
        var committed: Offset?
        var end: Offset?
        var member: GroupMember?
        /// Of share groups, which have records done with out of order.
        var shareLag: Int64?
        var lag: Int64? { shareLag ?? distance }

        private var distance: Int64? { committed.flatMap { committed in end.map { max(0, $0 - committed) } } }
    }

    func run() async throws {
        let names = try groups.required()
        let reports = try await connection.withAdmin { admin in
            var reports: [(GroupDescription, [Position])] = []
            for name in names { reports.append(try await report(admin, name)) }
            return reports
        }
        if listing.json { return try Console.print(.array(reports.map { json($0.0, $0.1) })) }
        for (index, report) in reports.enumerated() {
            if index > 0 { try Console.print("") }
            try Console.print(text(report.0, report.1))
        }
    }

    private func report(_ admin: Admin, _ name: String) async throws -> (GroupDescription, [Position]) {
        let group = try await admin.describeGroup(name)
        if group.protocolType == "share" { return (group, try await sharePositions(admin, group)) }
        let offsets = try await admin.groupOffsets(name)
        if group.state == "Dead", offsets.isEmpty {
            throw CommandFailure(
                "there is no group '\(name)'", remedy: "`martlet group list` shows the groups")
        }
        var positions: [TopicPartition: Position] = [:]
        for (partition, committed) in offsets {
            positions[partition] = Position(partition: partition, committed: committed.offset)
        }
        for member in group.members {
            for partition in member.assignment {
                positions[partition, default: Position(partition: partition)].member = member
            }
        }
        let ends = try await admin.listOffsets(positions.mapValues { _ in .latest })
        for (partition, result) in ends {
            // A partition whose topic is gone still has its committed offset; its end is unknown.
            if case .success(let end) = result { positions[partition]?.end = end?.offset }
        }
        return (group, positions.values.sorted { $0.partition < $1.partition })
    }

    /// Of a share group: where it starts in each partition. Several members may read one.
    private func sharePositions(_ admin: Admin, _ group: GroupDescription) async throws -> [Position] {
        var positions: [TopicPartition: Position] = [:]
        for (partition, offset) in try await admin.shareGroupOffsets(group.groupID) {
            positions[partition] = Position(
                partition: partition, committed: offset.start, shareLag: offset.lag)
        }
        for member in group.members {
            for partition in member.assignment {
                positions[partition, default: Position(partition: partition)].member = member
            }
        }
        let ends = try await admin.listOffsets(positions.mapValues { _ in .latest })
        for (partition, result) in ends {
            if case .success(let end) = result { positions[partition]?.end = end?.offset }
        }
        return positions.values.sorted { $0.partition < $1.partition }
    }

    private func text(_ group: GroupDescription, _ positions: [Position]) -> String {
        let lag = positions.compactMap(\.lag).reduce(0, +)
        var text = "group \(group.groupID)  state \(group.state)  coordinator \(group.coordinator)"
        if !group.strategy.isEmpty { text += "  assignment \(group.strategy)" }
        text += "  members \(group.members.count)  lag \(Decimals.grouped(lag))\n"
        if let rebalance = group.lastRebalance {
            text +=
                "last rebalance: \(rebalance.reason); took \(milliseconds(rebalance.duration)) ms, generation \(rebalance.generation), \(rebalance.memberCount) members\n"
        }
        if !positions.isEmpty {
            var table = TextTable(
                "TOPIC", "PARTITION#", group.protocolType == "share" ? "START#" : "COMMITTED#", "END#",
                "LAG#",
                "MEMBER", "HOST")
            for position in positions {
                table.add(
                    position.partition.topic, position.partition.partition.description,
                    position.committed?.description ?? "-", position.end?.description ?? "-",
                    position.lag.map { String($0) } ?? "-", position.member?.memberID ?? "-",
                    position.member?.clientHost ?? "-")
            }
            text += "\n" + table.text
        }
        let idle = group.members.filter(\.assignment.isEmpty)
        if !idle.isEmpty {
            text += "\nmembers without partitions: " + idle.map(\.memberID).joined(separator: ", ") + "\n"
        }
        return text
    }

    private func milliseconds(_ duration: Duration) -> Int64 {
        duration.components.seconds * 1_000 + duration.components.attoseconds / 1_000_000_000_000_000
    }

    private func json(_ group: GroupDescription, _ positions: [Position]) -> JSONValue {
        .object([
            ("group", .string(group.groupID)), ("state", .string(group.state)),
            ("strategy", .string(group.strategy)),
            ("coordinator", .integer(Int64(group.coordinator.rawValue))),
            (
                "lastRebalance",
                .optional(group.lastRebalance) {
                    .object([
                        ("reason", .string($0.reason)), ("member", .optional($0.memberID) { .string($0) }),
                        ("generation", .integer(Int64($0.generation))),
                        ("startedAt", .integer($0.startedAt.rawValue)),
                        ("milliseconds", .integer(milliseconds($0.duration))),
                        ("members", .integer(Int64($0.memberCount))),
                    ])
                }
            ),
            (
                "members",
                .array(
                    group.members.map {
                        .object([
                            ("id", .string($0.memberID)),
                            ("instanceID", .optional($0.groupInstanceID) { .string($0) }),
                            ("clientID", .string($0.clientID)), ("host", .string($0.clientHost)),
                            ("partitions", .array($0.assignment.map { .string($0.description) })),
                        ])
                    })
            ),
            (
                "partitions",
                .array(
                    positions.map {
                        .object([
                            ("topic", .string($0.partition.topic)),
                            ("partition", .integer(Int64($0.partition.partition.rawValue))),
                            ("committed", .optional($0.committed) { .integer($0.rawValue) }),
                            ("end", .optional($0.end) { .integer($0.rawValue) }),
                            ("lag", .optional($0.lag) { .integer($0) }),
                            ("member", .optional($0.member) { .string($0.memberID) }),
                        ])
                    })
            ),
        ])
    }
}

struct GroupDelete: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete",
        abstract: "Delete groups without members, with their committed offsets.",
        discussion: """
            Example:
              martlet group delete billing
            """,
        aliases: ["rm"])

    @OptionGroup var groups: GroupNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions

    func run() async throws {
        let names = try groups.required()
        let results = try await connection.withAdmin { try await $0.deleteGroups(names) }
        var report = DeletionReport(kind: "group", listing)
        for name in names { try report.add(name, results[name]) }
        try report.finish()
    }
}
