import Testing

/// Each rule finds its bad sample and leaves a good one alone; a rule that cannot fail checks nothing.
@Suite struct RuleTests {
    private func file(_ path: String, _ text: String) -> SwiftFile { SwiftFile(path: path, text: text) }

    private let core = "Sources/MartletReplication/A.swift"
    private let storage = "Sources/MartletStorage/A.swift"
    private let test = "Tests/MartletStorageTests/A.swift"

    @Test func `comments, texts and raw identifiers are no code`() {
        let text = ##"""
            let a = "try? \"quoted\" x" // try?
            /* try? /* nested try? */ still */ let b = 1
            let c = #"try? "inside" \n"# + """
                try? over lines
                """
            func `try? this`() {}
            let d = e
            """##
        let code = SwiftFile.codeOnly(text)
        #expect(!code.contains { $0.contains("try?") })
        #expect(code[1].contains("let b = 1"))
        #expect(code.last == "let d = e")
        #expect(code.count == text.split(separator: "\n", omittingEmptySubsequences: false).count)
    }

    @Test(arguments: [
        ("Sources/MartletLogModel/A.swift", "import Foundation"),
        ("Sources/MartletKafkaProtocol/A.swift", "package import NIOPosix"),
        ("Sources/MartletReplication/A.swift", "import struct MartletStorage.Segment"),
        ("Sources/MartletController/A.swift", "import MartletCoordinators"),
        ("Sources/MartletCoordinators/A.swift", "import Logging"),
        ("Sources/MartletClient/A.swift", "@testable import MartletBroker"),
        ("Sources/MartletMarketData/A.swift", "public import MartletKafkaProtocol"),
        ("Sources/MartletStorage/A.swift", "import Foundation"),
        ("Sources/Unknown/A.swift", "let x = 1"),
    ])
    func `an import upwards or sideways is found`(_ path: String, _ text: String) {
        #expect(Rules.imports(file(path, text)).count == 1)
    }

    @Test func `imports downwards pass`() {
        let text = "package import MartletLogModel\nimport NIOCore\nlet importance = \"import Foundation\"\n"
        #expect(Rules.imports(file(storage, text)) == [])
        #expect(Rules.imports(file(test, "import Foundation")) == [])
    }

    @Test(arguments: [
        "let x = try? read()", "try await Task.sleep(for: .seconds(1))", "DispatchQueue.main.async {}",
        "fatalError(\"no\")", "Task { await go() }", "Task.detached { }", "Task(priority: .low) { }",
    ])
    func `banned calls are found in shipped code`(_ text: String) {
        #expect(Rules.words(file(storage, "// fine: try? in a comment\n" + text)).map(\.line) == [2])
    }

    @Test func `words that only look banned pass`() {
        let text =
            "var entry: Entry?\nlet tasks = TaskGroup<Void>.self\nlet retry = 1\nawait withTaskGroup { }\nself.sleepTask = x"
        #expect(Rules.words(file(storage, text)) == [])
    }

    @Test(arguments: ["try await Task.sleep(for: .seconds(1))", "usleep(1000)", "sleep(1)"])
    func `sleeping tests are found`(_ text: String) {
        #expect(Rules.words(file(test, text)).count == 1)
        #expect(Rules.words(file(test, "let x = try? y()\nclock.sleepless()")) == [])
    }

    @Test(arguments: [
        "let now = ContinuousClock().now", "let x = Int.random(in: 0..<3)", "items.shuffled()",
        "getenv(\"X\")",
        "let file = fopen(path, mode)", "func f(apiVersion: Int16)", "var g = SystemRandomNumberGenerator()",
        "print(x)",
    ])
    func `impure calls are found in cores`(_ text: String) {
        #expect(Rules.corePurity(file(core, text)).count == 1)
        #expect(Rules.corePurity(file(storage, text)) == [])
    }

    @Test func `randomness that is handed in passes`() {
        #expect(Rules.corePurity(file(core, "let x = Int.random(in: 0..<3, using: &generator)")) == [])
    }

    @Test func `catch-alls over a state are found`() {
        let bad = """
            switch consume self.state {
            case .idle: a()
            case _: b()
            }
            """
        #expect(Rules.stateSwitches(file(core, bad)).map(\.line) == [3])
        let worse = "switch value {\ncase 1: a()\ndefault: b()\n}"
        #expect(Rules.stateSwitches(file(core, worse)).map(\.line) == [3])
        #expect(Rules.stateSwitches(file(storage, worse)) == [])
    }

    @Test func `a catch-all over something else passes`() {
        let good = """
            switch self.state {
            case .idle:
                switch number {
                case 1: a()
                case _: b()
                }
            case .busy: c()
            }
            switch number {
            case _: b()
            }
            let x = table(name, default: 1)
                default_(2)
            """
        #expect(Rules.stateSwitches(file(core, good)) == [])
    }

    @Test func `claims of safety without a reason are found`() {
        #expect(Rules.safety(file(storage, "final class A: @unchecked Sendable {}")).count == 1)
        #expect(Rules.safety(file(storage, "nonisolated(unsafe) var x = 1")).count == 1)
        let above = "/// Doc.\n// SAFETY: confined to the loop.\nfinal class A: @unchecked Sendable {}"
        #expect(Rules.safety(file(storage, above)) == [])
        let inside = "struct A: @unchecked Sendable {\n    // SAFETY: values only.\n    var x = 1\n}"
        #expect(Rules.safety(file(storage, inside)) == [])
    }

    @Test func `raw pointers outside their targets or without a reason are found`() {
        #expect(Rules.safety(file(core, "func f(_ p: UnsafeRawPointer) {}")).count == 1)
        #expect(Rules.safety(file(storage, "func f(_ p: UnsafeRawPointer) {}")) == [])
        for escape in [
            "unsafeBitCast(a, to: B.self)", "p.assumingMemoryBound(to: A.self)", "Unmanaged.passRetained(a)",
        ] {
            #expect(Rules.safety(file(storage, "let x = \(escape)")).count == 1)
            #expect(Rules.safety(file(storage, "// SAFETY: p outlives x.\nlet x = \(escape)")) == [])
        }
        let far = "// SAFETY: x\n" + String(repeating: "\n", count: 30) + "let y = unsafe z()"
        #expect(Rules.safety(file("Sources/MartletClient/A.swift", far)).count == 1)
    }

    @Test func `long files are found`() {
        let long = String(repeating: "\n", count: Rules.lineLimit + 1)
        #expect(Rules.length(file(storage, long)).count == 1)
        #expect(Rules.length(file(storage, String(repeating: "\n", count: Rules.lineLimit))) == [])
    }

    @Test func `strangers at the top are found`() {
        #expect(Rules.topLevelEntries(["Sources", "notes.txt"]).map(\.path) == ["notes.txt"])
    }

    @Test func `empty names and placeholders are found`() {
        for name in ["Utils", "StringHelpers", "Placeholder", "Module", "ConnectionManager", "Common"] {
            #expect(Rules.fileName("Sources/A/\(name).swift").count == 1, "\(name)")
        }
        for name in ["NewestFirst", "Threshold", "Manifest", "Commonality"] {
            #expect(Rules.fileName("Sources/A/\(name).swift") == [], "\(name)")
        }
    }

    @Test func `paths of one machine are found`() {
        let slash = "/"
        #expect(Rules.machinePaths("a", "see \(slash)work/x\n`\(slash)home/me/y`").map(\.line) == [1, 2])
        #expect(Rules.machinePaths("a", "Sources\(slash)work/x and https://example.org/home/x and /tmp/x") == [])
    }

    @Test func `links that lead nowhere are found`() {
        let text =
            "[a](B.md) [b](../C.md#part) [c](https://x.y) [d](#here)\n```\n[e](nowhere)\n```\n[f](gone.md)"
        let found = Rules.links("Folder/A.md", text) { ["Folder/B.md", "C.md"].contains($0) }
        #expect(found.map(\.text) == ["link to gone.md leads nowhere"])
    }

    @Test func `handlers without a schema are found`() {
        let schemas: Set<String> = ["01_Fetch"]
        #expect(Rules.handlerName("Sources/MartletBroker/Handlers/01_Fetch.swift", schemas: schemas) == [])
        #expect(
            Rules.handlerName("Sources/MartletBroker/Handlers/02_Fetch.swift", schemas: schemas).count == 1)
    }
}
