internal import MartletController
package import MartletLogModel

/// A wrong setting: names the key, the value, where it stands and what is allowed.
public struct SettingsError: Error, Hashable, Sendable, CustomStringConvertible {
    public var key: String
    public var reason: String
    /// `--set`, `environment`, or the file and line.
    public var origin: String

    public init(key: String, reason: String, origin: String) {
        self.key = key
        self.reason = reason
        self.origin = origin
    }

    public var description: String { "\(reason) (key '\(key)', from \(origin))" }
}

/// What a broker is started with: address, data directory, and values under Kafka's broker config names.
///
/// Sources, strongest first: flags and `--set`, environment (`MARTLET_LOG_RETENTION_MS` for `log.retention.ms`),
/// file, built-in defaults. Every value is checked against the table of known configurations; unknown names
/// are refused with the nearest known one.
public struct BrokerSettings: Sendable {
    /// Port of Kafka's own default listener.
    public static let defaultPort = 9092

    public struct Address: Hashable, Sendable, CustomStringConvertible {
        public var host: String
        public var port: Int

        public init(host: String, port: Int) {
            self.host = host
            self.port = port
        }

        /// Parses `HOST:PORT`, `[IPv6]:PORT` or `NAME://HOST:PORT`; `nil` if it is none of them.
        public init?(_ text: String) {
            var rest = Substring(text)
            if let scheme = rest.firstRange(of: "://") { rest = rest[scheme.upperBound...] }
            guard let colon = rest.lastIndex(of: ":"), let port = Int(rest[rest.index(after: colon)...]),
                (0...65535).contains(port)
            else { return nil }
            var host = rest[..<colon]
            if host.first == "[", host.last == "]" { host = host.dropFirst().dropLast() }
            self.init(host: host.isEmpty ? "0.0.0.0" : String(host), port: port)
        }

        /// Not an address that others can connect to.
        var isWildcard: Bool { host == "0.0.0.0" || host == "::" }

        public var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }
    }

    public var listen: Address
    public var dataDirectory: String
    /// Address given to clients; `nil` for the one they used themselves.
    public var advertised: Address?
    /// Values under Kafka's names, as DescribeConfigs shows them with source STATIC_BROKER_CONFIG.
    public private(set) var values: [String: String] = [:]
    /// Bytes kept in a reserve file for the day the disk is full; 0 keeps none.
    public var reserveBytes = 32 * 1024 * 1024
    /// A voter of the metadata quorum.
    public struct Voter: Hashable, Sendable {
        public var nodeID: Int32
        public var address: Address

        public init(nodeID: Int32, address: Address) {
            self.nodeID = nodeID
            self.address = address
        }
    }

    /// What a data directory that is new means, where there are several nodes. A disk that was lost must not pass for
    /// one that never was.
    public enum Beginning: Sendable {
        /// Refused.
        case unspecified
        /// The node is one of those that found the cluster.
        case newCluster
        /// The node comes to a cluster that exists, or comes back to it with an empty disk.
        case join
    }

    /// The nodes that found the metadata quorum, this one included if it is one; empty for a node that stands alone.
    /// Once the cluster runs its log says who the voters are; these are then the addresses to ask.
    public private(set) var voters: [Voter] = []
    /// Of a new data directory; one that exists must be of this cluster. `nil` draws one for a node that stands alone.
    public private(set) var clusterID: String?
    /// What a new data directory means.
    public var beginning = Beginning.unspecified
    /// A snapshot of the metadata is taken after so many records since the last, which bounds loading after a restart.
    package var recordsPerMetadataSnapshot: Int64 = 50_000
    /// Threads that serve connections and partitions, at least 1; `nil` for one per core. For programs that embed
    /// a broker and share their cores with it.
    public var eventLoopCount: Int?

    public init(listen: Address, dataDirectory: String) {
        self.listen = listen
        self.dataDirectory = dataDirectory
    }

    /// Number of this broker (`node.id`).
    package var nodeID: BrokerID { BrokerID(values[BrokerConfigName.nodeID].flatMap { Int32($0) } ?? 0) }

    /// Sets one value; the stronger source is set last.
    public mutating func set(_ key: String, _ value: String, origin: String) throws(SettingsError) {
        guard let definition = BrokerConfigTable.table[key] else {
            let hint = Self.nearest(key).map { "; did you mean '\($0)'?" } ?? ""
            throw SettingsError(
                key: key, reason: "unknown broker configuration\(hint) `martlet config explain` lists all", origin: origin)
        }
        if let problem = definition.problem(with: value) {
            throw SettingsError(key: key, reason: problem, origin: origin)
        }
        let normalized = definition.normalized(value)
        switch key {
        case BrokerConfigName.listeners:
            listen = try Self.address(normalized, key: key, origin: origin)
        case BrokerConfigName.advertisedListeners:
            advertised = normalized.isEmpty ? nil : try Self.address(normalized, key: key, origin: origin)
        case BrokerConfigName.logDir, BrokerConfigName.logDirs:
            guard !normalized.isEmpty, !normalized.contains(",") else {
                throw SettingsError(key: key, reason: "one directory is supported, found '\(value)'", origin: origin)
            }
            dataDirectory = normalized
        case _:
            break
        }
        values[key] = normalized
    }

    /// Takes `ID@HOST:PORT,…`, the voters of the metadata quorum.
    public mutating func setVoters(_ text: String, origin: String) throws(SettingsError) {
        var found: [Voter] = []
        for entry in text.split(separator: ",", omittingEmptySubsequences: false) {
            let parts = entry.split(separator: "@", maxSplits: 1)
            guard parts.count == 2, let id = Int32(parts[0]), id >= 0, let address = Address(String(parts[1])),
                address.port > 0, !address.isWildcard
            else {
                throw SettingsError(
                    key: "voters", reason: "'\(entry)' is no voter; write ID@HOST:PORT with an address others can reach",
                    origin: origin)
            }
            if found.contains(where: { $0.nodeID == id || $0.address == address }) {
                throw SettingsError(
                    key: "voters", reason: "'\(entry)' repeats an id or an address of another voter", origin: origin)
            }
            found.append(Voter(nodeID: id, address: address))
        }
        voters = found.sorted { $0.nodeID < $1.nodeID }
    }

    /// Takes the cluster's id: 22 characters, as `meta.properties` has it.
    public mutating func setClusterID(_ text: String, origin: String) throws(SettingsError) {
        guard let id = UniversalID(text), id != .zero else {
            throw SettingsError(
                key: "cluster.id", reason: "'\(text)' is no cluster id; write 22 characters of base64, such as \(Self.exampleID)",
                origin: origin)
        }
        clusterID = id.description
    }

    private static let exampleID = "MkU3OEVBNTcwNTJENDM2Qg"

    /// Whether this node is to be one of several.
    package var isPartOfCluster: Bool { beginning == .join || voters.contains { $0.nodeID != nodeID.rawValue } }

    /// Rules between values, once all sources are read.
    public func check() throws(SettingsError) {
        try checkCluster()
        if let conflict = BrokerConfigTable.conflict({ values[$0] }) {
            throw SettingsError(key: conflict.key, reason: conflict.reason, origin: "all settings together")
        }
    }

    private func checkCluster() throws(SettingsError) {
        if beginning == .join, voters.isEmpty {
            throw SettingsError(
                key: "voters", reason: "a node that joins needs --voters to know whom to ask", origin: "--join")
        }
        guard isPartOfCluster else { return }
        guard values[BrokerConfigName.nodeID] != nil else {
            throw SettingsError(
                key: BrokerConfigName.nodeID, reason: "a node of several needs --node-id, a number of its own",
                origin: "--voters")
        }
        guard let advertised, advertised.port > 0, !advertised.isWildcard else {
            throw SettingsError(
                key: BrokerConfigName.advertisedListeners,
                reason: "a node of several needs --advertise HOST:PORT, where the others and clients reach it",
                origin: "--voters")
        }
    }

    /// Reads a properties file's text.
    public mutating func load(file text: String, name: String) throws(SettingsError) {
        let entries: [PropertiesFile.Entry]
        do throws(PropertiesFile.SyntaxError) {
            entries = try PropertiesFile.parse(text)
        } catch {
            throw SettingsError(key: "", reason: error.description, origin: name)
        }
        for entry in entries { try set(entry.key, entry.value, origin: "\(name):\(entry.line)") }
    }

    /// Takes `MARTLET_…` variables that name a broker configuration; others of that prefix are refused, since
    /// a misspelt setting that is ignored is worse than none.
    public mutating func load(environment: [String: String]) throws(SettingsError) {
        let names = Dictionary(
            BrokerConfigTable.table.definitions.map { (Self.environmentName($0.name), $0.name) },
            uniquingKeysWith: { first, _ in first })
        for (variable, value) in environment.sorted(by: { $0.key < $1.key }) where variable.hasPrefix("MARTLET_") {
            if Self.otherVariables.contains(variable) { continue }
            guard let name = names[variable] else {
                throw SettingsError(
                    key: variable, reason: "the variable names no broker configuration; unset it", origin: "environment")
            }
            try set(name, value, origin: "environment")
        }
    }

    /// Variables with our prefix that mean something else: the CLI's default brokers, switches of the tests.
    private static let otherVariables: Set<String> = [
        "MARTLET_BOOTSTRAP", "MARTLET_WARNINGS_AS_ERRORS", "MARTLET_LONG", "MARTLET_DATA",
    ]

    private static func environmentName(_ key: String) -> String {
        "MARTLET_" + String(key.uppercased().map { $0 == "." ? "_" : $0 })
    }

    private static func address(_ text: String, key: String, origin: String) throws(SettingsError) -> Address {
        if text.contains(",") {
            throw SettingsError(key: key, reason: "one listener is supported, found '\(text)'", origin: origin)
        }
        if let scheme = text.firstRange(of: "://"), text[..<scheme.lowerBound].uppercased() != "PLAINTEXT" {
            throw SettingsError(
                key: key, reason: "'\(text)': only PLAINTEXT listeners are supported by this release", origin: origin)
        }
        guard let address = Address(text) else {
            throw SettingsError(
                key: key, reason: "'\(text)' is not an address; write PLAINTEXT://HOST:PORT or HOST:PORT", origin: origin)
        }
        return address
    }

    /// The known name with the fewest differing characters, if it is close at all.
    private static func nearest(_ key: String) -> String? {
        let candidates = BrokerConfigTable.table.definitions.map { ($0.name, distance(key, $0.name)) }
        guard let best = candidates.min(by: { $0.1 < $1.1 }), best.1 <= max(2, key.count / 4) else { return nil }
        return best.0
    }

    private static func distance(_ left: String, _ right: String) -> Int {
        let left = Array(left.utf8.prefix(128))
        let right = Array(right.utf8)
        var row = Array(0...right.count)
        for (i, a) in left.enumerated() {
            var previous = row[0]
            row[0] = i + 1
            for (j, b) in right.enumerated() {
                let replaced = previous + (a == b ? 0 : 1)
                previous = row[j + 1]
                row[j + 1] = min(replaced, row[j] + 1, row[j + 1] + 1)
            }
        }
        return row[right.count]
    }
}
