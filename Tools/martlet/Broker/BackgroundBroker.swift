import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Files of a background broker.
struct StateFolder {
    let path: String
    var pidPath: String { path + "/martletd.pid" }
    var logPath: String { path + "/martletd.log" }
    var dataPath: String { path + "/data" }

    /// Makes the folder and those above it.
    func make() throws {
        var made = ""
        for part in path.split(separator: "/", omittingEmptySubsequences: false) {
            made += made.isEmpty && !path.hasPrefix("/") ? String(part) : (part.isEmpty ? "" : "/" + part)
            if made.isEmpty { continue }
            if mkdir(made, 0o755) != 0, errno != EEXIST {
                throw CommandFailure("\(made) cannot be made: \(SystemCall.text(errno))", exitCode: .file)
            }
        }
    }
}

/// A broker process that outlives the command.
///
/// Whether it runs is decided by a lock (flock) on the pid file, which the daemon inherits and holds until it
/// ends, however it ends: a pid alone may be stale or belong to another process by now.
enum BackgroundBroker {
    struct Running {
        var pid: pid_t
        /// Address it accepts on; `nil` while it starts.
        var address: String?
    }

    /// Pause between two looks at log, child and lock.
    private static let pollMilliseconds: Int32 = 2
    /// glibc's and musl's POSIX_SPAWN_SETSID, which their headers hide from Swift.
    private static let newSession: Int32 = 0x80
    /// Descriptor that carries the lock in the daemon.
    private static let lockDescriptor: Int32 = 3

    /// martletd beside this executable, else the first one in PATH.
    static func findExecutable() throws -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        var candidates: [String] = []
        if count > 0 {
            let own = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
            candidates.append(own.split(separator: "/").dropLast().map { "/" + $0 }.joined() + "/martletd")
        }
        candidates += (Environment["PATH"] ?? "").split(separator: ":").map { $0 + "/martletd" }
        guard let found = candidates.first(where: { access($0, X_OK) == 0 }) else {
            throw CommandFailure(
                "martletd was found neither beside martlet nor in PATH", remedy: "name it with --martletd")
        }
        return found
    }

    /// Starts the daemon in a session of its own and waits for its ready line.
    static func start(
        _ folder: StateFolder, executable: String, arguments: [String], waitSeconds: Int
    ) throws -> Running {
        try folder.make()
        let lock = open(folder.pidPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        guard lock >= 0 else {
            throw CommandFailure(
                "\(folder.pidPath) cannot be opened: \(SystemCall.text(errno))", exitCode: .file)
        }
        defer { close(lock) }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            let running = try running(folder)
            throw CommandFailure(
                "a broker is running already"
                    + (running.map { ": pid \($0.pid), \($0.address ?? "starting")" } ?? ""),
                remedy: "`martlet broker stop` stops it; --state-dir starts another one beside it")
        }
        ftruncate(lock, 0)
        let log = open(folder.logPath, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
        guard log >= 0 else {
            throw CommandFailure(
                "\(folder.logPath) cannot be opened: \(SystemCall.text(errno))", exitCode: .file)
        }
        defer { close(log) }
        let logStart = Int64(lseek(log, 0, SEEK_END))
        let pid = try spawn(executable, arguments, lock: lock, log: log)
        write(lock, "\(pid)\n")
        let address = try awaitReady(folder, pid: pid, from: logStart, seconds: waitSeconds)
        write(lock, "\(pid)\n\(address)\n")
        return Running(pid: pid, address: address)
    }

    private static func write(_ descriptor: Int32, _ text: String) {
        ftruncate(descriptor, 0)
        lseek(descriptor, 0, SEEK_SET)
        Console.writeAll(descriptor, ByteBuffer(string: text))
    }

    private static func spawn(_ executable: String, _ arguments: [String], lock: Int32, log: Int32) throws
        -> pid_t
    {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        // Highest source first: no source is overwritten before it was copied (both are above 3).
        let safeLock = fcntl(lock, F_DUPFD_CLOEXEC, 10)
        let safeLog = fcntl(log, F_DUPFD_CLOEXEC, 10)
        defer {
            close(safeLock)
            close(safeLog)
        }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, safeLog, 1)
        posix_spawn_file_actions_adddup2(&actions, safeLog, 2)
        posix_spawn_file_actions_adddup2(&actions, safeLock, lockDescriptor)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // A session of its own: neither Ctrl-C nor the end of the terminal reaches it.
        posix_spawnattr_setflags(
            &attributes, Int16(newSession | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        var defaults = sigset_t()
        sigemptyset(&defaults)
        for signal in [SIGPIPE, SIGINT, SIGTERM, SIGHUP] { sigaddset(&defaults, signal) }
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        var words: [UnsafeMutablePointer<CChar>?] = ([executable] + arguments).map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        var variables: [UnsafeMutablePointer<CChar>?] = Environment.forDaemon.map { strdup($0) } + [nil]
        defer { for variable in variables { free(variable) } }
        var pid: pid_t = 0
        let code = posix_spawn(&pid, executable, &actions, &attributes, &words, &variables)
        guard code == 0 else {
            throw CommandFailure("\(executable) cannot be started: \(SystemCall.text(code))")
        }
        return pid
    }

    /// Watches the log for `ready HOST:PORT`; ends early with the log's last lines if the daemon ends.
    private static func awaitReady(_ folder: StateFolder, pid: pid_t, from: Int64, seconds: Int) throws
        -> String
    {
        let end = SystemCall.monotonicNanoseconds() + Int64(seconds) * 1_000_000_000
        var progress = Progress()
        while true {
            var status: Int32 = 0
            let hasEnded = waitpid(pid, &status, WNOHANG) == pid
            let file = try PositionedFile(folder.logPath)
            let said = try file.read(at: from, Int(min(file.byteCount - from, 1 << 20)))
            if let address = ReadyLine.address(in: said) {
                progress.clear()
                return address
            }
            if hasEnded {
                progress.clear()
                throw CommandFailure(
                    "the broker ended before it was ready:\n"
                        + String(buffer: LastLines.of(said, count: 5)).split(separator: "\n").map {
                            "  \($0)"
                        }
                        .joined(separator: "\n"),
                    remedy: "the whole log is \(folder.logPath)")
            }
            guard SystemCall.monotonicNanoseconds() < end else {
                progress.clear()
                throw CommandFailure(
                    "the broker (pid \(pid)) is not ready after \(seconds) s; it was left running",
                    remedy: "`martlet broker logs` shows what it does, `martlet broker stop` stops it",
                    exitCode: .timedOut)
            }
            let waited = progress.seconds
            progress.show { "waiting for the broker, \(Decimals.text(waited, 0)) s" }
            _ = poll(nil, 0, pollMilliseconds)
        }
    }

    /// The broker of this folder, if its lock is held.
    static func running(_ folder: StateFolder) throws -> Running? {
        let lock = open(folder.pidPath, O_RDWR | O_CLOEXEC)
        if lock < 0 {
            if errno == ENOENT { return nil }
            throw CommandFailure(
                "\(folder.pidPath) cannot be opened: \(SystemCall.text(errno))", exitCode: .file)
        }
        defer { close(lock) }
        if flock(lock, LOCK_SH | LOCK_NB) == 0 { return nil }
        let lines = String(buffer: try InputFile.contents(folder.pidPath, limit: 4096)).split(separator: "\n")
        guard let first = lines.first, let pid = pid_t(first), pid > 1 else {
            throw CommandFailure(
                "\(folder.pidPath) is locked but names no process",
                remedy: "a broker is just starting; try again")
        }
        return Running(pid: pid, address: lines.count > 1 ? String(lines[1]) : nil)
    }

    /// Waits until the lock is free, which is when the process has ended.
    static func awaitEnd(_ folder: StateFolder, seconds: Int, pid: pid_t) throws {
        let end = SystemCall.monotonicNanoseconds() + Int64(seconds) * 1_000_000_000
        var progress = Progress()
        while try running(folder) != nil {
            guard SystemCall.monotonicNanoseconds() < end else {
                progress.clear()
                throw CommandFailure(
                    "broker \(pid) has not ended after \(seconds) s",
                    remedy:
                        "`martlet broker logs` shows what it does; `kill -9 \(pid)` ends it, acknowledged data is safe",
                    exitCode: .timedOut)
            }
            progress.show { "waiting for the end of \(pid)" }
            _ = poll(nil, 0, pollMilliseconds)
        }
        progress.clear()
    }
}

/// The daemon's line `ready HOST:PORT`.
enum ReadyLine {
    static func address(in text: ByteBuffer) -> String? {
        // Only whole lines: the last one may still be on its way.
        let view = text.readableBytesView
        guard let end = view.lastIndex(of: 10) else { return nil }
        for line in view[view.startIndex...end].split(separator: 10) {
            let words = line.split(separator: 32)
            if words.count == 2, words[0].elementsEqual("ready".utf8) {
                return String(decoding: words[1], as: UTF8.self)
            }
        }
        return nil
    }
}

/// The last lines of a text.
enum LastLines {
    static func of(_ text: ByteBuffer, count: Int) -> ByteBuffer {
        let view = text.readableBytesView
        var start = view.endIndex
        var left = count
        while start > view.startIndex {
            if view[start - 1] == 10, start != view.endIndex {
                left -= 1
                if left == 0 { break }
            }
            start -= 1
        }
        return count == 0 ? ByteBuffer() : ByteBuffer(view[start...])
    }
}
