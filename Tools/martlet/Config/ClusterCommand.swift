import ArgumentParser
import MartletClient
import MartletLogModel

struct ClusterCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cluster", abstract: "Look at the cluster.", subcommands: [ClusterDescribe.self])
}

struct ClusterDescribe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "describe",
        abstract: "Show brokers, controller, feature levels and log directories.",
        discussion: """
            Examples:
              martlet cluster describe
              martlet cluster describe --apis --json
            """,
        aliases: ["status"])

    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Flag(help: "Show the APIs and versions that the broker serves.") var apis = false

    func run() async throws {
        let (cluster, versions, directories) = try await connection.withAdmin { admin in
            let cluster = try await admin.describeCluster()
            let versions = try await admin.brokerVersions()
            let directories = try await admin.describeLogDirectories()
            return (cluster, versions, directories)
        }
        if listing.json { return try Console.print(json(cluster, versions, directories)) }
        var text = "cluster \(cluster.clusterID)\n\n"
        var brokers = TextTable("BROKER#", "ADDRESS", "RACK", "ROLE")
        for broker in cluster.brokers {
            brokers.add(
                broker.id.description, broker.address.description, broker.rack ?? "-",
                broker.id == cluster.controller ? "controller" : "")
        }
        text += brokers.text
        if !versions.finalizedFeatures.isEmpty {
            var features = TextTable("FEATURE", "LEVEL#")
            for (name, level) in versions.finalizedFeatures.sorted(by: { $0.key < $1.key }) {
                features.add(name, String(level))
            }
            text += "\n" + features.text
        }
        if !directories.isEmpty {
            var table = TextTable("BROKER#", "LOG DIRECTORY", "STATE", "REPLICAS#", "DATA#", "FREE#")
            for directory in directories {
                table.add(
                    directory.broker.description, directory.path, directory.problem?.name ?? "online",
                    String(directory.replicas.count),
                    Decimals.bytes(directory.replicas.reduce(0) { $0 + $1.byteCount }),
                    directory.usableBytes.map { Decimals.bytes($0) } ?? "-")
            }
            text += "\n" + table.text
        }
        if apis {
            var table = TextTable("KEY#", "API", "VERSIONS")
            for api in versions.apis.sorted(by: { $0.key < $1.key }) {
                table.add(
                    String(api.key), api.name ?? "unknown",
                    "\(api.versions.lowerBound) to \(api.versions.upperBound)")
            }
            text += "\n" + table.text
        }
        try Console.print(text)
    }

    private func json(
        _ cluster: ClusterDescription, _ versions: BrokerVersions, _ directories: [LogDirectoryDescription]
    ) -> JSONValue {
        let brokers = cluster.brokers.map { broker in
            JSONValue.object([
                ("id", .integer(Int64(broker.id.rawValue))), ("host", .string(broker.address.host)),
                ("port", .integer(Int64(broker.address.port))),
                ("rack", .optional(broker.rack) { .string($0) }),
            ])
        }
        let features = versions.finalizedFeatures.sorted { $0.key < $1.key }
            .map { ($0.key, JSONValue.integer(Int64($0.value))) }
        let logs = directories.map { directory in
            JSONValue.object([
                ("broker", .integer(Int64(directory.broker.rawValue))), ("path", .string(directory.path)),
                ("problem", .optional(directory.problem) { .string($0.name) }),
                ("totalBytes", .optional(directory.totalBytes) { .integer($0) }),
                ("usableBytes", .optional(directory.usableBytes) { .integer($0) }),
                (
                    "replicas",
                    .array(
                        directory.replicas.map {
                            .object([
                                ("topic", .string($0.topicPartition.topic)),
                                ("partition", .integer(Int64($0.topicPartition.partition.rawValue))),
                                ("bytes", .integer($0.byteCount)), ("offsetLag", .integer($0.offsetLag)),
                            ])
                        })
                ),
            ])
        }
        var members: [(String, JSONValue)] = [
            ("clusterID", .string(cluster.clusterID)),
            ("controller", .optional(cluster.controller) { .integer(Int64($0.rawValue)) }),
            ("brokers", .array(brokers)), ("features", .object(features)), ("logDirectories", .array(logs)),
        ]
        if apis {
            members.append(
                (
                    "apis",
                    .array(
                        versions.apis.map {
                            .object([
                                ("key", .integer(Int64($0.key))),
                                ("name", .optional($0.name) { .string($0) }),
                                ("minimum", .integer(Int64($0.versions.lowerBound))),
                                ("maximum", .integer(Int64($0.versions.upperBound))),
                            ])
                        })
                ))
        }
        return .object(members)
    }
}
