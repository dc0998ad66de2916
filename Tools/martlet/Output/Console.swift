import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Standard output and standard error. Data goes to the first, everything said to a person to the second.
enum Console {
    /// Prints a failure.
    static func complain(_ text: String) {
        writeAll(STDERR_FILENO, ByteBuffer(string: "martlet: \(text)\n"))
    }

    /// Says something to the person at the terminal.
    static func note(_ text: String) {
        writeAll(STDERR_FILENO, ByteBuffer(string: text + "\n"))
    }

    static func print(_ text: String) throws {
        try write(ByteBuffer(string: text.hasSuffix("\n") ? text : text + "\n"))
    }

    static func print(_ value: JSONValue) throws { try print(value.pretty) }

    /// Writes to standard output; ends the command quietly if its reader is gone (`martlet … | head`).
    static func write(_ bytes: ByteBuffer) throws {
        let code = writeAll(STDOUT_FILENO, bytes)
        if code == EPIPE { throw CommandFailure("", exitCode: .quiet) }
        if code != 0 {
            throw CommandFailure(
                "standard output cannot be written: \(SystemCall.text(code))", exitCode: .file)
        }
    }

    static var errorIsTerminal: Bool { isatty(STDERR_FILENO) == 1 }
    static var inputIsTerminal: Bool { isatty(STDIN_FILENO) == 1 }
    static var outputIsTerminal: Bool { isatty(STDOUT_FILENO) == 1 }

    @discardableResult
    static func writeAll(_ descriptor: Int32, _ bytes: ByteBuffer) -> Int32 {
        var rest = bytes
        while rest.readableBytes > 0 {
            let count = rest.withUnsafeReadableBytes { Glibc.write(descriptor, $0.baseAddress!, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                if errno == EAGAIN {
                    var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                    _ = poll(&waiting, 1, -1)
                    continue
                }
                return errno
            }
            rest.moveReaderIndex(forwardBy: count)
        }
        return 0
    }
}

enum SystemCall {
    static func text(_ code: Int32) -> String { String(cString: strerror(code)) }

    /// A reading of the monotonic clock in nanoseconds.
    static func monotonicNanoseconds() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    /// Wall-clock time in milliseconds since the epoch.
    static func wallMilliseconds() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000
    }
}

/// One line that is rewritten in place while something takes longer than a second; silent when standard
/// error is no terminal.
struct Progress {
    /// Time before the first line, and between two.
    static let firstNanoseconds: Int64 = 1_000_000_000
    static let pauseNanoseconds: Int64 = 200_000_000

    let start = SystemCall.monotonicNanoseconds()
    private var next: Int64
    private var isShown = false
    private let isOn = Console.errorIsTerminal

    init() { next = start + Self.firstNanoseconds }

    var seconds: Double { Double(SystemCall.monotonicNanoseconds() - start) / 1e9 }

    mutating func show(_ text: () -> String) {
        guard isOn else { return }
        let now = SystemCall.monotonicNanoseconds()
        guard now >= next else { return }
        next = now + Self.pauseNanoseconds
        isShown = true
        Console.writeAll(STDERR_FILENO, ByteBuffer(string: "\r\u{1b}[K" + text()))
    }

    mutating func clear() {
        guard isShown else { return }
        isShown = false
        Console.writeAll(STDERR_FILENO, ByteBuffer(string: "\r\u{1b}[K"))
    }
}
