import ArgumentParser
import MartletClient

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// How to reach the cluster; part of every command that talks to one.
struct ConnectionOptions: ParsableArguments {
    @Option(
        name: [.customShort("b"), .long, .customLong("bootstrap-server"), .customLong("broker-list")],
        help: ArgumentHelp(
            "Brokers to ask first (default: $MARTLET_BOOTSTRAP, else 127.0.0.1:9092).",
            valueName: "host:port,…"))
    var bootstrap: String?

    @Option(help: ArgumentHelp("Name of this client in the brokers' logs.", valueName: "name"))
    var clientID = "martlet-cli"

    @Option(help: ArgumentHelp("Seconds a call may take, all attempts together.", valueName: "seconds"))
    var timeout: Double = 10

    static let defaultBootstrap = "127.0.0.1:9092"

    var address: String { bootstrap ?? Environment["MARTLET_BOOTSTRAP"] ?? Self.defaultBootstrap }

    func configuration() throws -> ClientConfiguration {
        guard timeout > 0, timeout <= 86_400 else {
            throw CommandFailure(
                "--timeout is \(timeout); allowed: more than 0, up to 86400 seconds", exitCode: .usage)
        }
        var configuration = try ClientConfiguration(bootstrap: address)
        configuration.clientID = clientID
        configuration.operationTimeout = .seconds(timeout)
        configuration.requestTimeout = .seconds(timeout)
        return configuration
    }

    /// Runs `body` with an admin client, which is closed afterwards.
    func withAdmin<Result>(_ body: (Admin) async throws -> Result) async throws -> Result {
        let admin = try Admin(configuration())
        do {
            let result = try await body(admin)
            await admin.close()
            return result
        } catch {
            await admin.close()
            throw error
        }
    }
}

/// Whether a listing is for people or for programs.
struct ListingOptions: ParsableArguments {
    @Flag(help: "Print JSON instead of a table.") var json = false
}

/// Variables of the process's environment.
enum Environment {
    static subscript(name: String) -> String? {
        guard let value = getenv(name), value.pointee != 0 else { return nil }
        return String(cString: value)
    }

    /// `NAME=value` of every variable, without those that are ours alone: the daemon refuses variables with
    /// our prefix that are none of its settings.
    static var forDaemon: [String] {
        var result: [String] = []
        var entry = environ
        // SAFETY: the environment block ends with a null pointer and nothing in this process changes it.
        while let variable = entry.pointee {
            let text = String(cString: variable)
            if !ownNames.contains(where: { text.hasPrefix($0 + "=") }) { result.append(text) }
            entry += 1
        }
        return result
    }

    private static let ownNames = ["MARTLET_STATE", "MARTLET_BOOTSTRAP", "MARTLET_DEMO_CONFIGURATION"]
}

/// `KEY=VALUE` on the command line; the value may be empty and may contain `=`.
struct Assignment: ExpressibleByArgument, Hashable {
    var key: String
    var value: String

    init?(argument: String) {
        guard let cut = argument.firstIndex(of: "="), cut != argument.startIndex else { return nil }
        key = String(argument[..<cut])
        value = String(argument[argument.index(after: cut)...])
    }
}

/// Options with a bounded whole number.
enum Bounded {
    static func check(_ value: Int?, _ name: String, _ range: ClosedRange<Int>) throws {
        guard let value, !range.contains(value) else { return }
        throw CommandFailure(
            "\(name) is \(value); allowed: \(range.lowerBound) to \(range.upperBound)", exitCode: .usage)
    }
}
