internal import Glibc

/// A martletd that a test started, on a port that it chose itself.
package final class DaemonProcess {
    package static let readySeconds = 30

    package let dataFolder: String
    /// HOST:PORT of the ready line; a restart keeps it.
    package private(set) var address = "127.0.0.1:0"
    private let arguments: [String]
    private let errorPath: String
    private var child: ChildProcess

    /// - Parameters:
    ///   - folder: gets `data` and `martletd.log`; outlives the daemon.
    ///   - settings: Kafka's names of broker configuration.
    package init(in folder: TemporaryFolder, settings: [String: String] = [:], arguments: [String] = []) throws {
        dataFolder = folder.file("data")
        errorPath = folder.file("martletd.log")
        self.arguments = settings.sorted { $0.key < $1.key }.flatMap { ["--set", "\($0.key)=\($0.value)"] } + arguments
        child = try Self.start(address, dataFolder, self.arguments, errorPath)
        address = try Self.awaitReady(child)
    }

    package var pid: Int32 { child.pid }
    /// What it logged so far, over all its starts.
    package var log: String { child.errorOutput }

    /// kill -9.
    package func kill() { child.kill() }

    /// SIGTERM; returns its exit code.
    package func stop(seconds: Int = 30) throws -> Int32 {
        child.signal(SIGTERM)
        return try child.finish(seconds: seconds).status
    }

    /// Starts it again after ``kill()`` or ``stop(seconds:)``, on the same port and data.
    package func restart() throws {
        child = try Self.start(address, dataFolder, arguments, errorPath)
        address = try Self.awaitReady(child)
    }

    private static func start(
        _ address: String, _ dataFolder: String, _ arguments: [String], _ errorPath: String
    ) throws -> ChildProcess {
        try ChildProcess(
            BuildProducts.executable("martletd"), ["--listen", address, "--data-dir", dataFolder] + arguments,
            environment: ["MARTLET_LONG": nil, "MARTLET_WARNINGS_AS_ERRORS": nil], errorPath: errorPath)
    }

    private static func awaitReady(_ child: ChildProcess) throws -> String {
        guard let line = try child.readLine(seconds: readySeconds) else {
            throw ChildProcess.Failure(description: "martletd ended before it was ready:\n\(child.errorOutput)")
        }
        guard line.hasPrefix("ready ") else {
            throw ChildProcess.Failure(description: "martletd's first line is '\(line)'")
        }
        return String(line.dropFirst("ready ".count))
    }
}
