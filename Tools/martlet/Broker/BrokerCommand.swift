import ArgumentParser
import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

struct BrokerCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "broker",
        abstract: "Run a broker in the background of this machine, without systemd.",
        subcommands: [BrokerStart.self, BrokerStop.self, BrokerStatus.self, BrokerLogs.self])
}

/// Where a background broker keeps its pid file, its log and, by default, its data.
struct StateOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Folder of pid file, log and data (default: $MARTLET_STATE, else $XDG_STATE_HOME/martlet, else ~/.local/state/martlet).",
            valueName: "folder"))
    var stateDir: String?

    func folder() throws -> StateFolder {
        if let path = stateDir ?? Environment["MARTLET_STATE"] { return StateFolder(path: path) }
        if let base = Environment["XDG_STATE_HOME"] { return StateFolder(path: base + "/martlet") }
        guard let home = Environment["HOME"] else {
            throw CommandFailure(
                "no state folder: HOME is not set", remedy: "give --state-dir", exitCode: .usage)
        }
        return StateFolder(path: home + "/.local/state/martlet")
    }
}

struct BrokerStart: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start",
        abstract: "Start a broker in the background and wait until it accepts connections.",
        discussion: """
            Data is acknowledged when it is on the disk (--durability fsync, the
            default).

            Examples:
              martlet broker start
              martlet broker start --listen 127.0.0.1:0 --state-dir /tmp/try
              martlet broker start --listen 0.0.0.0:9092 --set num.partitions=4
            """)

    @OptionGroup var state: StateOptions
    @Option(help: ArgumentHelp("Address to listen on; port 0 takes a free one.", valueName: "host:port"))
    var listen = "127.0.0.1:9092"
    @Option(
        help: ArgumentHelp("Folder of the data (default: data in the state folder).", valueName: "folder"))
    var dataDir: String?
    @Option(help: ArgumentHelp("fsync or relaxed, for topics that do not say.", valueName: "mode"))
    var durability: String?
    @Option(help: ArgumentHelp("A broker setting; may be repeated.", valueName: "key=value")) var set:
        [String] = []
    @Option(help: ArgumentHelp("Seconds to wait until it is ready.", valueName: "seconds")) var wait = 60
    @Option(help: ArgumentHelp("The martletd to run (default: the one beside martlet).", valueName: "file"))
    var martletd: String?
    @Flag(help: "Print the result as JSON.") var json = false

    func run() throws {
        try Bounded.check(wait, "--wait", 1...86_400)
        let folder = try state.folder()
        var arguments = ["--listen", listen, "--data-dir", dataDir ?? folder.dataPath]
        if let durability { arguments += ["--durability", durability] }
        for setting in set { arguments += ["--set", setting] }
        let running = try BackgroundBroker.start(
            folder, executable: try martletd ?? BackgroundBroker.findExecutable(), arguments: arguments,
            waitSeconds: wait)
        if json {
            try Console.print(
                .object([
                    ("pid", .integer(Int64(running.pid))), ("address", .string(running.address ?? "")),
                    ("log", .string(folder.logPath)),
                ]))
        } else {
            try Console.print("ready \(running.address ?? listen)  pid \(running.pid)  log \(folder.logPath)")
        }
    }
}

struct BrokerStop: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stop",
        abstract: "Stop the broker in order (SIGTERM) and wait until it has ended.",
        discussion: """
            Example:
              martlet broker stop
            """)

    @OptionGroup var state: StateOptions
    @Option(help: ArgumentHelp("Seconds to wait for its end.", valueName: "seconds")) var wait = 60
    @Flag(help: "Print the result as JSON.") var json = false

    func run() throws {
        try Bounded.check(wait, "--wait", 1...86_400)
        let folder = try state.folder()
        guard let running = try BackgroundBroker.running(folder) else {
            return try json
                ? Console.print(.object([("stopped", .bool(false)), ("pid", .null)]))
                : Console.print("no broker is running (\(folder.pidPath))")
        }
        guard kill(running.pid, SIGTERM) == 0 else {
            throw CommandFailure("broker \(running.pid) cannot be signalled: \(SystemCall.text(errno))")
        }
        try BackgroundBroker.awaitEnd(folder, seconds: wait, pid: running.pid)
        if json {
            try Console.print(.object([("stopped", .bool(true)), ("pid", .integer(Int64(running.pid)))]))
        } else {
            try Console.print("stopped \(running.pid)")
        }
    }
}

struct BrokerStatus: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status",
        abstract: "Say whether the broker is running; exit code 1 if not.",
        discussion: """
            Example:
              martlet broker status --json
            """)

    @OptionGroup var state: StateOptions
    @Flag(help: "Print the result as JSON.") var json = false

    func run() throws {
        let folder = try state.folder()
        let running = try BackgroundBroker.running(folder)
        if json {
            try Console.print(
                .object([
                    ("running", .bool(running != nil)),
                    ("pid", .optional(running) { .integer(Int64($0.pid)) }),
                    ("address", .optional(running?.address) { .string($0) }), ("state", .string(folder.path)),
                ]))
            if running == nil { throw CommandFailure("") }
            return
        }
        guard let running else {
            throw CommandFailure(
                "no broker is running (\(folder.pidPath))", remedy: "`martlet broker start` starts one")
        }
        try Console.print(
            "running  pid \(running.pid)  \(running.address ?? "starting")  log \(folder.logPath)")
    }
}

struct BrokerLogs: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs",
        abstract: "Print the broker's log.",
        discussion: """
            Examples:
              martlet broker logs --lines 100
              martlet broker logs --follow
            """)

    @OptionGroup var state: StateOptions
    @Option(name: .shortAndLong, help: "So many lines from its end.") var lines = 50
    @Flag(name: .shortAndLong, help: "Go on with new lines until interrupted.") var follow = false

    /// Bytes looked at for the last lines.
    static let tailBytesLimit = 4 << 20

    func run() throws {
        try Bounded.check(lines, "--lines", 0...1_000_000)
        let path = try state.folder().logPath
        let file = try PositionedFile(path)
        let start = max(0, file.byteCount - Int64(Self.tailBytesLimit))
        let tail = try file.read(at: start, Int(file.byteCount - start))
        try Console.write(LastLines.of(tail, count: lines))
        guard follow else { return }
        var position = file.byteCount
        while true {
            let more = try file.read(at: position, 64 * 1024)
            if more.readableBytes > 0 {
                position += Int64(more.readableBytes)
                try Console.write(more)
            } else {
                _ = poll(nil, 0, 200)
            }
        }
    }
}
