import MartletTestSupport
import Testing

/// `martlet consume --share-group`.
@Suite struct CLIShareTests {
    @Test(.timeLimit(.minutes(3)))
    func `a share group hands out each record once, and begins where it is told`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "jobs", "--partitions", "2")
        try cli.ok("config", "alter", "group", "workers", "--set", "share.auto.offset.reset=earliest")
        try cli.ok("produce", "jobs", input: (0..<20).map { "job-\($0)\n" }.joined())
        let first = try cli.ok("consume", "jobs", "--share-group", "workers", "--max-messages", "8", "--json")
            .split(separator: "\n")
        #expect(first.count == 8)
        #expect(first.allSatisfy { $0.contains("\"deliveryCount\":1") && $0.contains("\"value\":\"job-") })
        let rest = try cli.ok("consume", "jobs", "--share-group", "workers", "--format", "%s\\n").split(
            separator: "\n")
        #expect(rest.count == 12 && Set(rest).count == 12)
        #expect(rest.allSatisfy { value in !first.contains { $0.contains("\"\(value)\"") } })
        #expect(try cli.ok("consume", "jobs", "--share-group", "workers").isEmpty)
        #expect(try cli.ok("group", "list").contains("workers"))
    }

    @Test(.timeLimit(.minutes(3))) func `a topic that does not exist is named, and so is where a new group begins`()
        throws
    {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        for options in [[], ["--follow"]] {
            let missing = try cli.run(["consume", "typo", "--share-group", "w"] + options)
            #expect(missing.status == 1 && missing.errorOutput.contains("typo"), "\(missing)")
        }
        try cli.ok("topic", "create", "jobs")
        try cli.ok("produce", "jobs", input: "job\n")
        let idle = try cli.run(["consume", "jobs", "--share-group", "w"])
        #expect(idle.status == 0 && idle.output.isEmpty, "\(idle)")
        #expect(idle.errorOutput.contains("share.auto.offset.reset=earliest"), "\(idle)")
    }

    @Test(.timeLimit(.minutes(1))) func `what a share group decides by itself is refused with the remedy`()
        throws
    {
        let folder = TemporaryFolder()
        let cli = CLI("127.0.0.1:1", folder)
        for (options, remedy) in [
            (["--group", "g"], "one or the other"), (["--partition", "0"], "shares out"),
            (["--offset", "earliest"], "share.auto.offset.reset=earliest"),
            (["--from-beginning"], "share.auto.offset.reset=earliest"),
            (["--read-committed"], "share.isolation.level=read_committed"),
            (["--group-protocol", "consumer"], "of their own"),
        ] {
            let result = try cli.run(["consume", "jobs", "--share-group", "w"] + options)
            #expect(result.status == 64 && result.errorOutput.contains(remedy), "\(options): \(result)")
        }
    }
}
