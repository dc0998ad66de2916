import ArgumentParser
import Logging
import MartletBroker
import UnixSignals

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

struct DevCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dev",
        abstract: "Run a throw-away broker in this terminal: topics make themselves, data goes away.",
        discussion: """
            Data lives in a new temporary folder that is removed at the end, unless
            --data-dir names one to keep. Topics are made on first use, groups do not wait
            before their first assignment, and writes are not flushed (--durability fsync
            flushes them).

            Examples:
              martlet dev
              martlet dev --listen 127.0.0.1:0 --set num.partitions=4
            """)

    @Option(help: ArgumentHelp("Address to listen on; port 0 takes a free one.", valueName: "host:port"))
    var listen = "127.0.0.1:9092"
    @Option(help: ArgumentHelp("Keep the data in this folder.", valueName: "folder")) var dataDir: String?
    @Option(help: "relaxed or fsync.") var durability = "relaxed"
    @Option(help: ArgumentHelp("A broker setting; may be repeated.", valueName: "key=value")) var set:
        [Assignment] = []
    @Flag(name: .shortAndLong, help: "Print the broker's log, not only its warnings.") var verbose = false

    /// What makes a broker convenient to develop against.
    static let defaults = [
        ("auto.create.topics.enable", "true"), ("group.initial.rebalance.delay.ms", "0"),
    ]

    func run() async throws {
        guard let address = BrokerSettings.Address(listen) else {
            throw CommandFailure("--listen '\(listen)' is not HOST:PORT", exitCode: .usage)
        }
        let folder = try dataDir ?? TemporaryFolder.make()
        defer { if dataDir == nil { TemporaryFolder.remove(folder) } }
        var settings = BrokerSettings(listen: address, dataDirectory: folder)
        do throws(SettingsError) {
            for (key, value) in Self.defaults { try settings.set(key, value, origin: "martlet dev") }
            try settings.set("martlet.durability", durability, origin: "--durability")
            for setting in set { try settings.set(setting.key, setting.value, origin: "--set") }
        } catch {
            throw CommandFailure("\(error)", exitCode: .usage)
        }
        let level: Logger.Level = verbose ? .info : .warning
        LoggingSystem.bootstrap { LineLogHandler(label: $0, level: level) }
        // Before the ready line: whoever reads it may stop us at once.
        let signals = await UnixSignalsSequence(trapping: .sigint, .sigterm)
        let broker: Broker
        do {
            broker = try await Broker.start(settings, logger: Logger(label: "martlet.dev"))
        } catch {
            throw CommandFailure("the broker cannot start: \(error)")
        }
        try Console.print("ready \(broker.address)")
        if Console.errorIsTerminal {
            Console.note(
                "data in \(folder); Ctrl-C stops the broker" + (dataDir == nil ? " and removes it" : ""))
        }
        for await _ in signals { break }
        await broker.shutDown()
    }
}

/// A folder for one run.
enum TemporaryFolder {
    static func make() throws -> String {
        var template = Array(((Environment["TMPDIR"] ?? "/tmp") + "/martlet-dev.XXXXXX").utf8CString)
        guard let path = mkdtemp(&template) else {
            throw CommandFailure(
                "no temporary folder can be made: \(SystemCall.text(errno))", exitCode: .file)
        }
        return String(cString: path)
    }

    /// Removes the folder with all that is in it; stays inside it (no symbolic link is followed). What cannot
    /// be removed is left to whoever cleans the temporary directory.
    static func remove(_ path: String) {
        if let folder = opendir(path) {
            while let entry = readdir(folder) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: Int(entry.pointee.d_reclen)) {
                        String(cString: $0)
                    }
                }
                if name == "." || name == ".." { continue }
                var status = stat()
                let child = path + "/" + name
                if lstat(child, &status) == 0, status.st_mode & S_IFMT == S_IFDIR {
                    remove(child)
                } else {
                    unlink(child)
                }
            }
            closedir(folder)
        }
        rmdir(path)
    }
}
