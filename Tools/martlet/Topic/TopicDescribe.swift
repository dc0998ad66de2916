import ArgumentParser
import MartletClient
import MartletLogModel

struct TopicDescribe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "describe",
        abstract: "Show partitions, offsets, settings and what retention will delete next.",
        discussion: """
            Examples:
              martlet topic describe orders
              martlet topic describe orders --all-configs --json
            """)

    @OptionGroup var topics: TopicNames
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Flag(help: "Show settings too that have their default value.") var allConfigs = false

    /// A topic with everything the command shows of it.
    struct Report {
        var topic: TopicDescription
        var configs: [ConfigEntry]
        var earliest: [PartitionIndex: Offset]
        var latest: [PartitionIndex: Offset]
        /// Time of the oldest record of each partition that has one.
        var oldest: [PartitionIndex: Timestamp]
    }

    func run() async throws {
        let names = topics.all
        let reports = try await connection.withAdmin { admin in
            let wanted = names.isEmpty ? try await admin.listTopics().map(\.name) : try topics.required()
            var reports: [Report] = []
            for name in wanted { reports.append(try await report(admin, name)) }
            return reports
        }
        if listing.json { return try Console.print(.array(reports.map { json($0) })) }
        for (index, report) in reports.enumerated() {
            if index > 0 { try Console.print("") }
            try Console.print(text(report))
        }
    }

    private func report(_ admin: Admin, _ name: String) async throws -> Report {
        let topic = try await admin.describeTopic(name)
        let configs = try await admin.describeConfig(.topic(name))
        var report = Report(topic: topic, configs: configs, earliest: [:], latest: [:], oldest: [:])
        let online = topic.partitions.filter { $0.leader != nil }.map {
            TopicPartition(topic: name, partition: $0.index)
        }
        for (partition, result) in try await admin.listOffsets(spec(online, .earliest)) {
            report.earliest[partition.partition] = try result.get()?.offset
        }
        for (partition, result) in try await admin.listOffsets(spec(online, .latest)) {
            report.latest[partition.partition] = try result.get()?.offset
        }
        let first = try await admin.listOffsets(spec(online, .timestamp(Timestamp(milliseconds: 0))))
        for (partition, result) in first { report.oldest[partition.partition] = try result.get()?.timestamp }
        return report
    }

    private func spec(_ partitions: [TopicPartition], _ spec: OffsetSpec) -> [TopicPartition: OffsetSpec] {
        Dictionary(uniqueKeysWithValues: partitions.map { ($0, spec) })
    }

    private func shown(_ report: Report) -> [ConfigEntry] {
        report.configs.filter { allConfigs || !$0.isDefault }
    }

    private func text(_ report: Report) -> String {
        let topic = report.topic
        var text = "topic \(topic.name)"
        if let id = topic.id { text += "  id \(id)" }
        if topic.isInternal { text += "  (internal)" }
        text += "\n\n"
        var table = TextTable(
            "PARTITION#", "LEADER#", "EPOCH#", "REPLICAS", "IN SYNC", "EARLIEST#", "LATEST#", "OLDEST RECORD")
        for partition in topic.partitions {
            func list(_ ids: [BrokerID]) -> String { ids.map(\.description).joined(separator: ",") }
            table.add(
                partition.index.description, partition.leader?.description ?? "none",
                partition.leaderEpoch?.description ?? "-", list(partition.replicas),
                list(partition.inSyncReplicas),
                report.earliest[partition.index]?.description ?? "-",
                report.latest[partition.index]?.description ?? "-",
                report.oldest[partition.index].map { CivilTime.text(milliseconds: $0.rawValue) } ?? "-")
        }
        text += table.text
        if let retention = Self.retention(report) { text += "\n" + retention + "\n" }
        let configs = shown(report)
        if !configs.isEmpty {
            var table = TextTable("SETTING", "VALUE", "FROM")
            for config in configs {
                table.add(config.name, ConfigText.value(config), config.source.description)
            }
            text += "\n" + table.text
        }
        return text
    }

    /// One sentence on what retention by time does next. Only closed segments are deleted, so the date is the
    /// earliest possible one.
    static func retention(_ report: Report) -> String? {
        func value(_ name: String) -> String? { report.configs.first { $0.name == name }?.value }
        let policy = value("cleanup.policy") ?? "delete"
        guard policy.contains("delete") else {
            return "retention: compacted only; the latest record of each key stays"
        }
        guard let text = value("retention.ms"), let milliseconds = Int64(text) else { return nil }
        guard milliseconds >= 0 else { return "retention: no limit of time" }
        guard let oldest = report.oldest.values.min() else { return nil }
        let (due, overflow) = oldest.rawValue.addingReportingOverflow(milliseconds)
        guard !overflow else { return "retention: no limit of time within this calendar" }
        return
            "retention: the oldest record may go from \(CivilTime.text(milliseconds: due)) on, with its whole segment "
            + "once that is closed"
    }

    private func json(_ report: Report) -> JSONValue {
        let topic = report.topic
        func ids(_ ids: [BrokerID]) -> JSONValue { .array(ids.map { .integer(Int64($0.rawValue)) }) }
        return .object([
            ("topic", .string(topic.name)), ("id", .optional(topic.id) { .string($0.description) }),
            ("internal", .bool(topic.isInternal)),
            (
                "partitions",
                .array(
                    topic.partitions.map { partition in
                        .object([
                            ("partition", .integer(Int64(partition.index.rawValue))),
                            ("leader", .optional(partition.leader) { .integer(Int64($0.rawValue)) }),
                            (
                                "leaderEpoch",
                                .optional(partition.leaderEpoch) { .integer(Int64($0.rawValue)) }
                            ),
                            ("replicas", ids(partition.replicas)),
                            ("inSyncReplicas", ids(partition.inSyncReplicas)),
                            ("offlineReplicas", ids(partition.offlineReplicas)),
                            (
                                "earliest",
                                .optional(report.earliest[partition.index]) { .integer($0.rawValue) }
                            ),
                            ("latest", .optional(report.latest[partition.index]) { .integer($0.rawValue) }),
                            (
                                "oldestTimestamp",
                                .optional(report.oldest[partition.index]) { .integer($0.rawValue) }
                            ),
                        ])
                    })
            ),
            ("configs", .array(shown(report).map { ConfigText.json($0) })),
        ])
    }
}
