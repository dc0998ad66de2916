import MartletTestSupport
import Testing

@Suite struct CLITopicTests {
    @Test(.timeLimit(.minutes(5))) func `a topic is made, listed, changed, described and deleted`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        #expect(
            try cli.ok("topic", "create", "orders", "--partitions", "3") == "created orders, 3 partitions\n")
        #expect(try cli.run("topic", "create", "orders").status == 1)
        try cli.ok("topic", "create", "orders", "--if-not-exists")
        #expect(try cli.ok("topic", "list").contains("orders"))
        #expect(try cli.ok("topic", "list", "--json").contains("\"partitions\": 3"))
        // Kafka's own words do the same.
        #expect(
            try cli.ok("kafka-topics.sh", "--list", "--bootstrap-server", daemon.address).contains("orders"))
        try cli.ok("topic", "alter", "orders", "--partitions", "4", "--config", "retention.ms=60000")
        let described = try cli.ok("topic", "describe", "orders", "--json")
        #expect(described.contains("\"partition\": 3"))
        #expect(described.contains("\"retention.ms\""))
        #expect(try cli.ok("config", "describe", "topic", "orders").contains("60000"))
        try cli.ok("config", "alter", "topic", "orders", "--delete", "retention.ms")
        #expect(!(try cli.ok("config", "describe", "topic", "orders").contains("60000")))
        #expect(
            try cli.ok("config", "explain", "retention.ms", "--topic", "orders").contains("from: default"))
        #expect(try cli.ok("topic", "delete", "orders") == "deleted orders\n")
        #expect(!(try cli.ok("topic", "list").contains("orders")))
        #expect(try daemon.stop() == 0)
    }

    @Test(.timeLimit(.minutes(5))) func `records go in with keys and headers and come out in every form`()
        throws
    {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders", "--partitions", "2")
        for codec in ["none", "gzip"] {
            try cli.ok(
                "produce", "orders", "--key-separator", ":", "--header", "from=test", "--codec", codec,
                "--partition", "1",
                "--timestamp", "2026-01-31T09:30:00Z", input: "a:1\nb:2\n\(codec):\n")
        }
        let lines = try cli.ok("consume", "orders", "--format", "%t %p %o %T %k=%s [%h]\\n").split(
            separator: "\n")
        #expect(lines.count == 6)
        #expect(lines.first == "orders 1 0 1769851800000 a=1 [from=test]")
        #expect(lines.last == "orders 1 5 1769851800000 gzip= [from=test]")
        #expect(
            try cli.ok("consume", "orders", "--offset", "-1", "--json").contains(#""key":"gzip","value":"""#))
        #expect(
            try cli.ok("consume", "orders", "--partition", "1", "--offset", "4", "--max-messages", "1")
                == "2\n")
        #expect(try cli.ok("consume", "orders", "--offset", "@1769851800001") == "")
        #expect(try cli.ok("consume", "orders", "--offset", "latest") == "")
        let beyond = try cli.run("consume", "orders", "--partition", "1", "--offset", "99")
        #expect(beyond.status == 1 && beyond.errorOutput.contains("offsets 0 to 6"))
        // A file as one record, and the reader of our output going away early.
        try write([0, 1, 2, 255], to: folder.file("blob"))
        #expect(
            try cli.ok("produce", "orders", "--file", folder.file("blob"), "--partition", "0", "--json")
                .contains(#""partition":0,"offset":0"#))
        #expect(try cli.records(of: "orders").contains { $0.value == [0, 1, 2, 255] })
    }

    @Test(.timeLimit(.minutes(5))) func `following shows records that come later and stops after so many`()
        throws
    {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders")
        let follower = try cli.start(
            "consume", "orders", "--follow", "--offset", "earliest", "--max-messages", "3")
        try cli.ok("produce", "orders", input: "one\ntwo\n")
        #expect(try follower.readLine(seconds: 60) == "one")
        try cli.ok("produce", "orders", input: "three\nfour\n")
        let result = try follower.finish(seconds: 60)
        #expect(result.status == 0)
        #expect(result.text == "two\nthree\n")
    }

    @Test(.timeLimit(.minutes(5))) func `a group goes on where it stopped and is reset only with --execute`()
        throws
    {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder, settings: ["group.initial.rebalance.delay.ms": "0"])
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders", "--partitions", "2")
        let numbers = (1...10).map(String.init)
        try cli.ok("produce", "orders", input: numbers.joined(separator: "\n") + "\n")
        let first = try cli.ok("consume", "orders", "--group", "billing", "--max-messages", "4").split(
            separator: "\n")
        let rest = try cli.ok("consume", "orders", "--group", "billing").split(separator: "\n")
        #expect(first.count == 4)
        #expect(Set(first + rest) == Set(numbers.map { Substring($0) }))
        #expect(first.count + rest.count == 10)
        #expect(try cli.ok("group", "list").contains("billing"))
        #expect(try cli.ok("group", "list", "--type", "classic", "--type", "consumer").contains("billing"))
        #expect(!(try cli.ok("group", "list", "--type", "share").contains("billing")))
        #expect(try cli.ok("group", "describe", "billing").contains("lag 0"))
        let plan = try cli.run("group", "reset-offsets", "billing", "--to", "earliest")
        #expect(plan.status == 0 && plan.errorOutput.contains("--execute"))
        #expect(try cli.ok("group", "describe", "billing").contains("lag 0"))
        try cli.ok("group", "reset-offsets", "billing", "--to", "earliest", "--execute")
        #expect(try cli.ok("group", "describe", "billing").contains("lag 10"))
        try cli.ok("group", "reset-offsets", "billing", "--topic", "orders", "--to", "latest", "--execute")
        #expect(try cli.ok("group", "describe", "billing", "--json").contains("\"lag\": 0"))
        try cli.ok("group", "delete", "billing")
        #expect(!(try cli.ok("group", "list").contains("billing")))
    }

    @Test(.timeLimit(.minutes(5))) func `failures say why and have the exit code of their kind`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        let cases: [(arguments: [String], status: Int32, words: String)] = [
            (["consume", "nothing"], 1, "nothing"),
            (["produce", "nothing", "--file", "/dev/null"], 1, "nothing"),
            (["topic", "create", "bad name"], 64, "byte other than"),
            (["topic", "create", "x", "--partitions", "0"], 64, "--partitions is 0"),
            (["topic", "frobnicate"], 64, "frobnicate"),
            (["consume", "x", "--format", "%z"], 64, "%z"),
            (["produce", "x", "--codec", "brotli"], 64, "brotli"),
            (["market", "replay", "/nonexistent", "--format", "itch50", "--topic", "x"], 1, "x"),
            (["market", "generate", "/nonexistent/file"], 74, "No such file"),
            (["log", "dump", "/nonexistent.log"], 74, "No such file"),
            (["log", "dump", "/etc/hostname"], 64, ".timeindex"),
            (["group", "describe", "nobody"], 1, "nobody"),
            (["topic", "list", "--bootstrap", "127.0.0.1:1", "--timeout", "1"], 69, "127.0.0.1:1"),
        ]
        for (arguments, status, words) in cases {
            let result = try cli.run(arguments)
            #expect(result.status == status, "\(arguments): \(result)")
            #expect(result.errorOutput.contains(words), "\(arguments): \(result.errorOutput)")
            #expect(result.text.isEmpty)
        }
    }

    @Test(.timeLimit(.minutes(5))) func `the cluster shows its broker, features and directories`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        let text = try cli.ok("cluster", "describe", "--apis")
        #expect(text.contains(daemon.address))
        #expect(text.contains("controller"))
        #expect(text.contains("Produce"))
        #expect(try cli.ok("cluster", "describe", "--json").contains("\"logDirectories\""))
    }

    @Test(.timeLimit(.minutes(5)), arguments: ["bash", "zsh", "fish"])
    func `the shell completion knows the commands`(shell: String) throws {
        let folder = TemporaryFolder()
        #expect(try CLI("127.0.0.1:1", folder).ok("completion", shell).contains("reset-offsets"))
    }

    @Test(.timeLimit(.minutes(5))) func `benchmarks report what they did`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "bench", "--partitions", "2")
        #expect(
            try cli.ok("bench", "produce", "bench", "--records", "5000", "--json").contains(
                "\"records\": 5000"))
        #expect(try cli.ok("bench", "consume", "bench", "--json").contains("\"records\": 5000"))
        let latency = try cli.ok(
            "bench", "latency", "bench", "--rate", "200", "--seconds", "1", "--warmup", "0", "--json")
        #expect(latency.contains("\"count\": 200"))
        #expect(latency.contains("\"p99.9\""))
    }
}
