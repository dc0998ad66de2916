import MartletTestSupport
import Testing

#if canImport(Glibc)
import Glibc
#endif

/// The Python scripts of `clients/`, and what this machine has of what they need.
enum ForeignClients {
    /// Made by `Tools/test`: a virtual environment with the pinned client libraries.
    static let python: String? = {
        let path = BuildProducts.source(".venv/bin/python")
        return access(path, X_OK) == 0 ? path : nil
    }()

    static let kcat: String? = find("kcat")

    static let venvAbsent: Comment = "no .venv with the foreign clients: run Tools/test, which makes it"
    static let kcatAbsent: Comment = "no kcat in PATH: run Tools/test, which installs it"
    static let dataAbsent: Comment = "no ../shared/data beside the package: the proof on real data is skipped"

    static func find(_ command: String) -> String? {
        let path = getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin"
        return path.split(separator: ":").map { "\($0)/\(command)" }.first { access($0, X_OK) == 0 }
    }

    /// Any Python 3; enough for the scripts that speak the protocol themselves.
    static let plainPython: String? = python ?? find("python3")

    /// Runs one scenario of a script and fails the test with its output unless it holds.
    static func hold(
        _ script: String, _ scenario: String, seconds: Int, environment extra: [String: String] = [:],
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let python = try #require(script.needsVirtualEnvironment ? Self.python : plainPython)
        var environment: [String: String?] = [
            "MARTLET_PRODUCTS": BuildProducts.folder, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore",
        ]
        if let data = BuildProducts.sharedData { environment["MARKET_DATA"] = data }
        for (name, value) in extra { environment[name] = value }
        let result = try ChildProcess.run(
            python, [BuildProducts.source("Tests/InteropTests/clients/\(script).py"), scenario],
            environment: environment, seconds: seconds)
        #expect(
            result.status == 0, "\(script) \(scenario)\n\(result.text)\n\(result.errorOutput.suffix(4000))",
            sourceLocation: sourceLocation)
        if BuildProducts.isLong { print("\(script) \(scenario): \(result.text)") }
    }

    /// The scenarios that a script has.
    static func scenarios(of script: String) throws -> [String] {
        let python = try #require(script.needsVirtualEnvironment ? Self.python : plainPython)
        let result = try ChildProcess.run(
            python, [BuildProducts.source("Tests/InteropTests/clients/\(script).py"), "--list"],
            environment: ["MARTLET_PRODUCTS": BuildProducts.folder, "PYTHONDONTWRITEBYTECODE": "1"], seconds: 30)
        try #require(result.status == 0, "\(result)")
        return result.text.split(separator: "\n").map(String.init)
    }
}

extension String {
    /// Whether a script imports a client library.
    fileprivate var needsVirtualEnvironment: Bool {
        [
            "confluent_client", "share_client", "kafka_python_client", "aiokafka_client", "market", "recorded_copy",
        ].contains(self)
    }
}
