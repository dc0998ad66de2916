internal import Glibc

/// A process that a test started, with its standard output on a pipe and its standard error in a file.
///
/// Confined to the test that made it. It is killed when the last reference goes.
package final class ChildProcess {
    package struct Failure: Error, CustomStringConvertible {
        package let description: String
    }

    /// How a process ended, and what it printed.
    package struct Result: Sendable, CustomStringConvertible {
        /// Exit code, or 128 + the number of the signal that ended it.
        package var status: Int32
        package var output: [UInt8]
        package var errorOutput: String
        package var text: String { String(decoding: output, as: UTF8.self) }
        package var description: String { "status \(status)\n\(text)\n\(errorOutput)" }
    }

    package let pid: Int32
    private let command: String
    private var outputDescriptor: Int32
    private let errorPath: String
    private var unread: [UInt8] = []
    private var endOfOutput = false
    private var status: Int32?

    /// - Parameters:
    ///   - environment: added to this process's own; a `nil` value removes a variable.
    ///   - input: path of the file that becomes standard input.
    ///   - errorPath: file that standard error is appended to.
    package init(
        _ executable: String, _ arguments: [String], environment: [String: String?] = [:],
        input: String = "/dev/null", errorPath: String
    ) throws(Failure) {
        command = ([executable] + arguments).joined(separator: " ")
        self.errorPath = errorPath
        let ends = try Self.makePipe()
        outputDescriptor = ends.read
        defer { close(ends.write) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, input, O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, ends.write, 1)
        posix_spawn_file_actions_addopen(&actions, 2, errorPath, O_WRONLY | O_CREAT | O_APPEND, 0o644)
        let words = ([executable] + arguments).map { strdup($0) } + [nil]
        let variables = Self.environment(with: environment).map { strdup($0) } + [nil]
        defer { for word in words + variables { free(word) } }
        var child: pid_t = 0
        let code = posix_spawnp(&child, executable, &actions, nil, words, variables)
        guard code == 0 else {
            close(ends.read)
            throw Failure(description: "\(executable) cannot be started: errno \(code)")
        }
        pid = child
    }

    deinit {
        if status == nil { kill() }
        close(outputDescriptor)
    }

    /// Runs a command to its end.
    ///
    /// - Parameter seconds: after so long it is killed and the call throws with what it had printed.
    package static func run(
        _ executable: String, _ arguments: [String], environment: [String: String?] = [:],
        input: String = "/dev/null", seconds: Int
    ) throws(Failure) -> Result {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        let child = try ChildProcess(
            executable, arguments, environment: environment, input: input, errorPath: folder.file("stderr"))
        return try child.finish(seconds: seconds)
    }

    /// Reads the rest of standard output and waits for the end.
    package func finish(seconds: Int) throws(Failure) -> Result {
        let deadline = Deadline(seconds: seconds)
        while !endOfOutput {
            guard fill(until: deadline) else {
                let printed = String(decoding: unread, as: UTF8.self)
                kill()
                throw Failure(
                    description: "\(command)\ndid not end within \(seconds) s; it printed:\n\(printed)\n\(errorOutput)")
            }
        }
        return Result(status: wait(), output: unread, errorOutput: errorOutput)
    }

    /// The next line of standard output without its newline; `nil` at its end.
    package func readLine(seconds: Int) throws(Failure) -> String? {
        let deadline = Deadline(seconds: seconds)
        while true {
            if let newline = unread.firstIndex(of: 0x0a) {
                let line = String(decoding: unread[..<newline], as: UTF8.self)
                unread.removeSubrange(...newline)
                return line
            }
            if endOfOutput { return nil }
            guard fill(until: deadline) else {
                throw Failure(description: "\(command)\nprinted no line within \(seconds) s\n\(errorOutput)")
            }
        }
    }

    package var errorOutput: String {
        let file = open(errorPath, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return "" }
        defer { close(file) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while case let count = read(file, &chunk, chunk.count), count > 0 { bytes += chunk[..<count] }
        return String(decoding: bytes, as: UTF8.self)
    }

    package func signal(_ number: Int32) {
        if status == nil { Glibc.kill(pid, number) }
    }

    /// Whether the process has ended, without waiting for it.
    package var hasEnded: Bool {
        if status != nil { return true }
        var code: Int32 = 0
        guard waitpid(pid, &code, WNOHANG) == pid else { return false }
        status = Self.exitStatus(code)
        return true
    }

    /// kill -9, and reaps.
    package func kill() {
        signal(SIGKILL)
        wait()
    }

    /// Waits for the end without a limit; the caller knows that it ends (killed, or its output is closed).
    @discardableResult package func wait() -> Int32 {
        if let status { return status }
        var code: Int32 = 0
        while waitpid(pid, &code, 0) < 0, errno == EINTR {}
        let found = Self.exitStatus(code)
        status = found
        return found
    }

    private static func exitStatus(_ code: Int32) -> Int32 {
        code & 0x7f == 0 ? (code >> 8) & 0xff : 128 + (code & 0x7f)
    }

    /// Reads once; `false` when the deadline passed first.
    private func fill(until deadline: Deadline) -> Bool {
        var request = pollfd(fd: outputDescriptor, events: Int16(POLLIN), revents: 0)
        while true {
            let ready = poll(&request, 1, deadline.millisecondsLeft)
            if ready == 0 { return false }
            if ready < 0, errno == EINTR { continue }
            break
        }
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        let count = read(outputDescriptor, &chunk, chunk.count)
        if count <= 0 {
            endOfOutput = true
        } else {
            unread += chunk[..<count]
        }
        return true
    }

    /// A pipe that other children do not inherit: both ends are opened anew, close-on-exec, from the start.
    private static func makePipe() throws(Failure) -> (read: Int32, write: Int32) {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        let path = folder.file("pipe")
        guard mkfifo(path, 0o600) == 0 else { throw Failure(description: "mkfifo \(path): errno \(errno)") }
        // A reader that does not wait for a writer, then the writer, then the reader waits as usual.
        let read = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        let write = open(path, O_WRONLY | O_CLOEXEC)
        guard read >= 0, write >= 0 else { throw Failure(description: "pipe: errno \(errno)") }
        return (read, write)
    }

    private static func environment(with changes: [String: String?]) -> [String] {
        var lines: [String] = []
        var next = environ
        while let entry = next.pointee {
            let line = String(cString: entry)
            let name = String(line.prefix { $0 != "=" })
            if !changes.keys.contains(name) { lines.append(line) }
            next += 1
        }
        for (name, value) in changes {
            if let value { lines.append("\(name)=\(value)") }
        }
        return lines
    }
}

/// A point in time that a test waits for at most.
package struct Deadline {
    private let end: ContinuousClock.Instant

    package init(seconds: Int) { end = .now + .seconds(seconds) }

    package var millisecondsLeft: Int32 {
        let left = ContinuousClock.now.duration(to: end)
        return Int32(max(0, left / .milliseconds(1)))
    }
}
