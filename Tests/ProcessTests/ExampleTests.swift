import MartletTestSupport
import Testing

/// The programs of Tools/examples do what they say.
@Suite struct ExampleTests {
    @Test(.timeLimit(.minutes(3))) func `what one example sends the other reads, to the last record`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder, settings: ["group.initial.rebalance.delay.ms": "0"])
        try CLI(daemon, folder).ok("topic", "create", "greetings", "--partitions", "3")
        let produced = try run("example-produce", daemon.address, "greetings", "100")
        #expect(produced.status == 0, "\(produced)")
        #expect(produced.text.contains("sent 101 records; the last is greetings-"))
        let consumed = try run("example-consume", daemon.address, "greetings", "readers")
        #expect(consumed.status == 0, "\(consumed)")
        #expect(consumed.text.contains(" last: the end\n"))
    }

    @Test(.timeLimit(.minutes(3))) func `a copy that is killed and started again copies each record once`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder, settings: ["group.initial.rebalance.delay.ms": "0"])
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "from", "--partitions", "1")
        try cli.ok("topic", "create", "to", "--partitions", "1")
        let killed = try ChildProcess(
            BuildProducts.executable("example-copy"), [daemon.address, "from", "to", "copiers"],
            errorPath: folder.file("copy.stderr"))
        try cli.ok("produce", "from", input: (0..<2000).map { "\($0)\n" }.joined())
        // It is under way once something has arrived.
        while try cli.records(of: "to", "--read-committed").isEmpty {}
        killed.kill()
        let produced = try run("example-produce", daemon.address, "from", "500")
        #expect(produced.status == 0, "\(produced)")
        let copied = try run("example-copy", daemon.address, "from", "to", "copiers")
        #expect(copied.status == 0, "\(copied)")
        let source = try cli.records(of: "from")
        let target = try cli.records(of: "to", "--read-committed")
        #expect(source.count == 2501)
        #expect(target.map(\.value) == source.map(\.value))
    }

    @Test func `without arguments an example tells into a pipe what it takes`() throws {
        for (name, usage) in [
            ("example-produce", "usage: example-produce HOST:PORT TOPIC COUNT\n"),
            ("example-consume", "usage: example-consume HOST:PORT TOPIC GROUP\n"),
            ("example-copy", "usage: example-copy HOST:PORT FROM TO GROUP\n"),
        ] {
            let result = try run(name)
            #expect(result.text == usage)
            #expect(result.status == 64)
        }
    }

    private func run(_ name: String, _ arguments: String...) throws -> ChildProcess.Result {
        try ChildProcess.run(BuildProducts.executable(name), arguments, seconds: 60)
    }
}
