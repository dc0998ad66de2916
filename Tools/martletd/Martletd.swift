import ArgumentParser
import CMartletPlatform
import Glibc
import Logging
import MartletBroker
import ServiceLifecycle
import UnixSignals

/// The broker daemon: settings in, one ready line out, then it serves until SIGTERM or SIGINT.
@main
struct Martletd: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "martletd",
        abstract: "Martlet broker: an append-only message log that speaks the Kafka protocol.",
        discussion: """
            Runs in the foreground and prints one line 'ready HOST:PORT' on standard output once it accepts \
            requests; logs go to standard error. An acks=all acknowledgement means the record is on disk \
            (--durability relaxed: in memory, as Kafka). SIGTERM stops it cleanly.

            Settings, strongest first: flags and --set, environment (MARTLET_LOG_RETENTION_MS for \
            log.retention.ms), --config file, defaults. Names are Kafka's broker configurations.

            EXAMPLES
              martletd
              martletd --listen 127.0.0.1:0 --data-dir /var/lib/martlet
              martletd --config /etc/martlet/martletd.properties --set num.partitions=3
              martletd --config /etc/martlet/martletd.properties --check-config
              martletd --node-id 1 --cluster-id MkU3OEVBNTcwNTJENDM2Qg --voters 1@a:9092,2@b:9092,3@c:9092 \\
                --listen 0.0.0.0:9092 --advertise a:9092 --new-cluster
            """,
        version: "0.1.0")

    @Option(help: "Address to listen on; port 0 takes a free one. Default 127.0.0.1:9092.")
    var listen: String?

    @Option(name: .customLong("data-dir"), help: "Directory of the data. Default: the platform's state directory.")
    var dataDirectory: String?

    @Option(help: "Properties file with Kafka's broker configurations.")
    var config: String?

    @Option(name: .customLong("node-id"), help: "Number of this node in its cluster. Default 0.")
    var nodeID: Int32?

    @Option(name: .customLong("cluster-id"), help: "Id of the cluster, the same on all its nodes; needed beyond one node.")
    var clusterID: String?

    @Option(help: "Voters of the metadata quorum, ID@HOST:PORT,...; needed beyond one node.")
    var voters: String?

    @Option(help: "HOST:PORT where clients and other nodes reach this one; needed beyond one node.")
    var advertise: String?

    @Flag(name: .customLong("new-cluster"), help: "With a new data directory: this node is one of those that found the cluster.")
    var newCluster = false

    @Flag(help: "With a new data directory: the cluster exists, and this node comes to it or has lost its disk.")
    var join = false

    @Option(help: "Default of topics: fsync (an acknowledgement means on disk) or relaxed.")
    var durability: String?

    @Option(name: .customLong("set"), help: "One broker configuration, key=value; may be repeated.")
    var assignments: [String] = []

    @Option(name: .customLong("log-level"), help: "trace, debug, info, notice, warning, error or critical.")
    var logLevel: String = "info"

    @Flag(name: .customLong("check-config"), help: "Check all settings, print them, and exit.")
    var checkConfig = false

    func run() async throws {
        guard let level = Logger.Level(rawValue: logLevel) else {
            try fail("--log-level '\(logLevel)' is not one of \(Logger.Level.allCases.map(\.rawValue).joined(separator: ", "))")
        }
        LoggingSystem.bootstrap { LineLogHandler(label: $0, level: level) }
        let settings: BrokerSettings
        do throws(SettingsError) {
            settings = try resolve()
        } catch {
            try fail("wrong setting: \(error)")
        }
        if checkConfig {
            say("configuration is valid")
            say("listeners=\(settings.listen)")
            say("log.dirs=\(settings.dataDirectory)")
            for (key, value) in settings.values.sorted(by: { $0.key < $1.key })
            where key != "listeners" && key != "log.dirs" { say("\(key)=\(value)") }
            return
        }
        martlet_keep_freed_memory()
        var logger = Logger(label: "martletd")
        logger.logLevel = level
        raiseFileLimit(logger)
        let broker: Broker
        do {
            broker = try await Broker.start(settings, logger: logger)
        } catch {
            try fail("\(error)")
        }
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [.init(service: BrokerService(broker: broker) { say("ready \(broker.address)") })],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: logger))
        let failure = try await withThrowingTaskGroup(of: String?.self) { tasks in
            tasks.addTask {
                let failure = await broker.failure()
                if failure != nil { await group.triggerGracefulShutdown() }
                return failure
            }
            try await group.run()
            return try await tasks.next() ?? nil
        }
        if let failure { try fail(failure) }
    }

    private func resolve() throws(SettingsError) -> BrokerSettings {
        var settings = BrokerSettings(
            listen: BrokerSettings.Address(host: "127.0.0.1", port: BrokerSettings.defaultPort),
            dataDirectory: Environment.stateDirectory)
        if let config {
            guard let text = Environment.read(file: config) else {
                throw SettingsError(
                    key: "config", reason: "the file cannot be read: \(String(cString: strerror(errno)))", origin: config)
            }
            try settings.load(file: text, name: config)
        }
        try settings.load(environment: Environment.all)
        for assignment in assignments {
            guard let separator = assignment.firstIndex(of: "="), separator != assignment.startIndex else {
                throw SettingsError(key: assignment, reason: "write --set key=value", origin: "--set")
            }
            try settings.set(
                String(assignment[..<separator]), String(assignment[assignment.index(after: separator)...]), origin: "--set")
        }
        if let durability { try settings.set("martlet.durability", durability, origin: "--durability") }
        if let listen { try settings.set("listeners", listen, origin: "--listen") }
        if let dataDirectory { try settings.set("log.dirs", dataDirectory, origin: "--data-dir") }
        if let nodeID { try settings.set("node.id", "\(nodeID)", origin: "--node-id") }
        if let advertise { try settings.set("advertised.listeners", advertise, origin: "--advertise") }
        if let clusterID { try settings.setClusterID(clusterID, origin: "--cluster-id") }
        if let voters { try settings.setVoters(voters, origin: "--voters") }
        if newCluster, join {
            throw SettingsError(
                key: "join", reason: "--new-cluster and --join exclude each other: the cluster exists or it does not", origin: "--join")
        }
        if newCluster { settings.beginning = .newCluster }
        if join { settings.beginning = .join }
        try settings.check()
        return settings
    }

    private func fail(_ message: String) throws -> Never {
        let bytes = Array("martletd: \(message)\n".utf8)
        _ = bytes.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
        throw ExitCode(1)
    }

    /// Unbuffered: whoever started us waits for the ready line on a pipe.
    private func say(_ line: String) {
        let bytes = Array("\(line)\n".utf8)
        _ = bytes.withUnsafeBytes { write(STDOUT_FILENO, $0.baseAddress, $0.count) }
    }

    /// Three files per open segment and one per connection: the usual soft limit of 1024 is a silent trap.
    private func raiseFileLimit(_ logger: Logger) {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < limit.rlim_max else { return }
        limit.rlim_cur = limit.rlim_max
        if setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) != 0 {
            logger.warning("file limit not raised", metadata: ["cause": "\(String(cString: strerror(errno)))"])
        }
    }
}

/// Keeps the broker running until a graceful shutdown is asked for.
private struct BrokerService: Service {
    let broker: Broker
    /// Tells that the broker is ready. Runs with the signal handlers in place: whoever waits for it may stop us at once.
    let announce: @Sendable () -> Void

    func run() async throws {
        announce()
        do {
            try await gracefulShutdown()
        } catch is CancellationError {
            // Cancelled instead of shut down gracefully: the broker is closed in the same way.
        }
        await broker.shutDown()
    }
}
