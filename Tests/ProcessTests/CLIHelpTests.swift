import MartletTestSupport
import Testing

/// What holds for all commands, found by walking the help texts.
@Suite struct CLIHelpTests {
    /// Commands whose output is a stream, a script, or the broker itself.
    private static let withoutJSON: Set<String> = ["broker logs", "completion", "dev"]

    @Test(.timeLimit(.minutes(5))) func `every command has --json and, but for those with one meaning, examples`() throws {
        let cli = CLI("127.0.0.1:1", TemporaryFolder())
        let leaves = try self.leaves([], cli)
        #expect(leaves.count > 25)
        for (path, help) in leaves where !Self.withoutJSON.contains(path) {
            #expect(help.contains("--json"), "martlet \(path)")
        }
        for (path, help) in leaves { #expect(help.contains("martlet \(path)"), "martlet \(path) has no example") }
    }

    private func leaves(_ path: [String], _ cli: CLI) throws -> [(path: String, help: String)] {
        let help = try cli.run(path + ["--help"])
        #expect(help.status == 0, "\(path): \(help)")
        guard let start = help.text.firstRange(of: "SUBCOMMANDS:\n") else {
            return [(path.joined(separator: " "), help.text)]
        }
        // Names stand two blanks in; their descriptions and continuations further.
        let names = help.text[start.upperBound...].split(separator: "\n").compactMap { line -> String? in
            guard line.hasPrefix("  "), !line.hasPrefix("   "), !line.hasPrefix("  See ") else { return nil }
            return line.split(whereSeparator: { $0 == " " || $0 == "," }).first.map(String.init)
        }
        #expect(!names.isEmpty, "\(help.text)")
        return try names.flatMap { try leaves(path + [$0], cli) }
    }

    @Test(.timeLimit(.minutes(5))) func `what changes things says what it did as JSON too`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders", "--json")
        #expect(
            try cli.ok("topic", "alter", "orders", "--partitions", "2", "--config", "retention.ms=5", "--json")
                .contains("\"partitions\": 2"))
        #expect(
            try cli.ok("config", "alter", "topic", "orders", "--delete", "retention.ms", "--json")
                .contains("\"settingsChanged\": 1"))
        let explained = try cli.ok("config", "explain", "retention.ms", "--topic", "orders", "--json")
        #expect(explained.contains("\"documentation\": \"") && explained.contains("\"value\": \"604800000\""))
        try cli.ok("produce", "orders", input: "a\n")
        try cli.ok("consume", "orders", "--group", "g")
        #expect(try cli.ok("group", "delete", "g", "--json").contains("\"deleted\": true"))
        #expect(try cli.ok("topic", "delete", "orders", "--json").contains("\"deleted\": true"))
        let absent = try cli.ok("topic", "delete", "orders", "--if-exists", "--json")
        #expect(absent.contains("\"deleted\": false"))
        #expect(try cli.run("topic", "delete", "orders", "--json").status == 1)
        let state = folder.file("state")
        #expect(try cli.ok("broker", "stop", "--state-dir", state, "--json").contains("\"stopped\": false"))
    }
}
