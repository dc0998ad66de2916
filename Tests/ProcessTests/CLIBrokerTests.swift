import MartletTestSupport
import Testing

#if canImport(Glibc)
    import Glibc
#endif

@Suite struct CLIBrokerTests {
    @Test(.timeLimit(.minutes(5))) func `a background broker starts once, answers, logs and stops`() throws {
        let folder = TemporaryFolder()
        let state = folder.file("state")
        let cli = CLI("127.0.0.1:1", folder)
        let down = try cli.run("broker", "status", "--state-dir", state)
        #expect(down.status == 1 && down.errorOutput.contains("broker start"))
        let ready = try cli.ok("broker", "start", "--state-dir", state, "--listen", "127.0.0.1:0")
        defer { _ = try? cli.run("broker", "stop", "--state-dir", state) }
        let address = String(try #require(ready.split(separator: " ").dropFirst().first))
        #expect(try cli.ok("broker", "status", "--state-dir", state).contains(address))
        let twice = try cli.run("broker", "start", "--state-dir", state, "--listen", "127.0.0.1:0")
        #expect(twice.status == 1 && twice.errorOutput.contains("running already"))
        try cli.ok("topic", "create", "orders", "--bootstrap", address)
        #expect(try cli.ok("broker", "logs", "--state-dir", state).contains("ready \(address)"))
        #expect(try cli.ok("broker", "stop", "--state-dir", state).hasPrefix("stopped "))
        #expect(try cli.run("broker", "status", "--state-dir", state).status == 1)
        #expect(try cli.ok("broker", "stop", "--state-dir", state).contains("no broker is running"))
        // What it held is there at the next start.
        let again = try cli.ok("broker", "start", "--state-dir", state, "--listen", "127.0.0.1:0")
        let second = String(try #require(again.split(separator: " ").dropFirst().first))
        #expect(try cli.ok("topic", "list", "--bootstrap", second).contains("orders"))
    }

    @Test(.timeLimit(.minutes(5))) func `a broker that was killed does not count as running`() throws {
        let folder = TemporaryFolder()
        let state = folder.file("state")
        let cli = CLI("127.0.0.1:1", folder)
        try cli.ok("broker", "start", "--state-dir", state, "--listen", "127.0.0.1:0")
        let words = try cli.ok("broker", "status", "--state-dir", state).split(separator: " ")
        let pid = try #require(words.firstIndex(of: "pid").flatMap { Int32(words[$0 + 1]) })
        kill(pid, SIGKILL)
        // Stop waits until the lock of the pid file is free, which is when the process is gone.
        _ = try cli.run("broker", "stop", "--state-dir", state)
        #expect(try cli.run("broker", "status", "--state-dir", state).status == 1)
        try cli.ok("broker", "start", "--state-dir", state, "--listen", "127.0.0.1:0")
        try cli.ok("broker", "stop", "--state-dir", state)
    }

    @Test(.timeLimit(.minutes(5))) func `a daemon that is stopped the moment it is ready stops in order`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        for _ in 0..<20 {
            #expect(try daemon.stop() == 0)
            try daemon.restart()
        }
        #expect(try daemon.stop() == 0)
    }

    @Test(.timeLimit(.minutes(5))) func `a broker that cannot start says why`() throws {
        let folder = TemporaryFolder()
        let cli = CLI("127.0.0.1:1", folder)
        let result = try cli.run(
            "broker", "start", "--state-dir", folder.file("state"), "--listen", "127.0.0.1:0", "--set",
            "no.such.key=1")
        #expect(result.status == 1)
        #expect(result.errorOutput.contains("no.such.key"), "\(result.errorOutput)")
    }

    @Test(.timeLimit(.minutes(5))) func `a dev broker makes topics on first use and leaves nothing behind`()
        throws
    {
        let folder = TemporaryFolder()
        let temporary = folder.file("tmp")
        mkdir(temporary, 0o755)
        var environment = CLI.environment(bootstrap: nil)
        environment["TMPDIR"] = temporary
        let dev = try ChildProcess(
            BuildProducts.executable("martlet"), ["dev", "--listen", "127.0.0.1:0"], environment: environment,
            errorPath: folder.file("dev.stderr"))
        let line = try #require(try dev.readLine(seconds: 30))
        try #require(line.hasPrefix("ready "))
        let cli = CLI(String(line.dropFirst(6)), folder)
        try cli.ok("produce", "fresh", input: "hello\n")
        #expect(try cli.ok("consume", "fresh") == "hello\n")
        dev.signal(SIGTERM)
        #expect(try dev.finish(seconds: 30).status == 0)
        let left = try ChildProcess.run("ls", ["-A", temporary], seconds: 10).text
        #expect(left.isEmpty, "\(left)")
    }

    @Test(.timeLimit(.minutes(5))) func `a dump shows batches and records and finds a flipped bit`() throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders")
        for codec in ["none", "gzip"] {
            try cli.ok(
                "produce", "orders", "--codec", codec, "--key", "k",
                input: "first-\(codec)\nsecond-\(codec)\n")
        }
        #expect(try daemon.stop() == 0)
        let segment = daemon.dataFolder + "/orders-0/00000000000000000000.log"
        let text = try cli.ok("log", "dump", segment, "--records", "--format", "%o %k=%s\\n")
        #expect(text.contains("codec gzip"))
        #expect(text.contains("0 k=first-none\n1 k=second-none\n"))
        #expect(text.contains("3 k=second-gzip\n"))
        #expect(text.contains("producer "))
        #expect(try cli.ok("log", "dump", segment, "--json").split(separator: "\n").count == 2)
        // Indexes of segments as small as these stay in memory: one by hand.
        try write(
            [0, 0, 0, 5, 0, 0, 16, 0, 0, 0, 0, 9, 0, 0, 32, 0] + [UInt8](repeating: 0, count: 16),
            to: folder.file("00000000000000000100.index"))
        #expect(
            try cli.ok("log", "dump", folder.file("00000000000000000100.index"))
                == "offset 105  position 4096\noffset 109  position 8192\n2 entries\n")
        var bytes = try contents(segment)
        bytes[80] ^= 1
        try write(bytes, to: folder.file("00000000000000000000.log"))
        let damaged = try cli.run("log", "dump", folder.file("00000000000000000000.log"))
        #expect(damaged.status == 1)
        #expect(damaged.errorOutput.contains("position 0"), "\(damaged.errorOutput)")
    }

    @Test(.timeLimit(.minutes(5))) func `repair lists a damaged log and cuts it only with --execute`() throws
    {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders")
        for value in ["a", "b", "c"] { try cli.ok("produce", "orders", input: value + "\n") }
        daemon.kill()
        let busyFree = try cli.ok("log", "repair", daemon.dataFolder, "--partition", "orders-0")
        #expect(busyFree.contains("0 damaged"))
        let segment = daemon.dataFolder + "/orders-0/00000000000000000000.log"
        var bytes = try contents(segment)
        // Inside the second of three batches of equal size.
        let second = 12 + (Int(bytes[8]) << 24 | Int(bytes[9]) << 16 | Int(bytes[10]) << 8 | Int(bytes[11]))
        bytes[second + 64] ^= 1
        try write(bytes, to: segment)
        let listed = try cli.run("log", "repair", daemon.dataFolder)
        #expect(listed.status == 1, "\(listed)")
        #expect(listed.text.contains("orders-0: whole up to offset 1"), "\(listed)")
        let cut = try cli.ok("log", "repair", daemon.dataFolder, "--execute")
        #expect(cut.contains("orders-0: cut at offset 1"))
        try daemon.restart()
        #expect(try cli.ok("consume", "orders") == "a\n")
        let busy = try cli.run("log", "repair", daemon.dataFolder)
        #expect(busy.status == 1 && busy.errorOutput.contains("in use"))
        // After an orderly stop no start looks at old batches: repair does.
        for value in ["d", "e"] { try cli.ok("produce", "orders", input: value + "\n") }
        #expect(try daemon.stop() == 0)
        bytes = try contents(segment)
        bytes[second + 64] ^= 1
        try write(bytes, to: segment)
        let hidden = try cli.run("log", "repair", daemon.dataFolder)
        #expect(hidden.status == 1 && hidden.text.contains("orders-0: whole up to offset 1"), "\(hidden)")
        try cli.ok("log", "repair", daemon.dataFolder, "--execute")
        try daemon.restart()
        #expect(try cli.ok("consume", "orders") == "a\n")
    }
}
