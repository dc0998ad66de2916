import Foundation

/// A broken rule, with the place.
struct Violation: Equatable, CustomStringConvertible {
    var path: String
    var line: Int
    var text: String

    var description: String { "\(path):\(line): \(text)" }
}

/// The rules of the house that a machine can check. Each is a function of one file, so that each is tested on
/// a bad sample as well.
enum Rules {
    // MARK: Layers

    /// What each target may import besides the standard library; imports go down only.
    static let allowedImports: [String: Set<String>] = {
        let system: Set<String> = ["Glibc", "Musl", "Darwin", "Synchronization"]
        let collections: Set<String> = ["DequeModule", "OrderedCollections", "HashTreeCollections"]
        let nio: Set<String> = ["NIOCore", "NIOPosix"]
        let cli: Set<String> = [
            "ArgumentParser", "Logging", "ServiceLifecycle", "UnixSignals", "CMartletPlatform",
            "MartletLogModel",
        ]
        return [
            // L0: the C library only to tell the thread sanitizer of locks.
            "MartletLogModel": ["Synchronization", "CMartletPlatform"],
            // L1: the C library only to load codecs at run time.
            "MartletRecordBatch": [
                "MartletLogModel", "NIOCore", "Synchronization", "CMartletChecksum", "CMartletZlib",
                "CMartletPlatform", "Glibc",
                "Musl", "Darwin",
            ],
            "MartletKafkaProtocol": ["MartletLogModel", "NIOCore"],
            // L2
            "MartletReplication": collections.union(["MartletLogModel"]),
            "MartletMetadataQuorum": collections.union([
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "NIOCore",
            ]),
            "MartletController": collections.union(["MartletLogModel", "MartletKafkaProtocol", "NIOCore"]),
            "MartletCoordinators": collections.union(["MartletLogModel", "MartletKafkaProtocol", "NIOCore"]),
            // L3
            "MartletStorage": system.union(collections).union([
                "MartletLogModel", "MartletRecordBatch", "CMartletPlatform", "NIOCore",
            ]),
            "MartletTransport": system.union(collections).union(nio).union([
                "MartletLogModel", "MartletKafkaProtocol", "CMartletPlatform", "Logging",
            ]),
            // L4
            "MartletBroker": system.union(collections).union(nio).union([
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletReplication",
                "MartletMetadataQuorum", "MartletController", "MartletCoordinators", "MartletStorage", "MartletTransport",
                "CMartletPlatform", "Logging", "ServiceLifecycle",
            ]),
            "MartletClient": system.union(collections).union(nio).union([
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletTransport",
                "Logging",
                "ServiceLifecycle",
            ]),
            // L5: sees the log through the client alone.
            "MartletMarketData": system.union([
                "MartletLogModel", "MartletClient", "CMartletZlib", "CMartletPlatform", "NIOCore",
            ]),
            // Tools
            "martletd": system.union(cli).union(["MartletBroker"]),
            "martlet": system.union(cli).union([
                "MartletRecordBatch", "MartletKafkaProtocol", "MartletStorage", "MartletBroker",
                "MartletClient",
                "MartletMarketData", "Histogram", "NIOCore",
            ]),
            "protogen/Core": [],
            "protogen/Main": ["ProtogenCore", "Foundation"],
            "simulator/Kit": system.union([
                "MartletLogModel", "MartletRecordBatch", "MartletStorage", "NIOCore",
            ]),
            "simulator/World": system.union(nio).union([
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletStorage",
                "MartletTransport", "MartletBroker", "MartletSimulatorKit", "MartletChecker", "Logging",
                "Dispatch",
            ]),
            "simulator/Main": system.union([
                "MartletLogModel", "MartletChecker", "MartletSimulation", "ArgumentParser",
            ]),
            // Foundation reads the lines of recorded histories.
            "simulator/Checker": ["Foundation"],
            // The system for `exit` alone: an error thrown from the top loses what was printed into a pipe.
            "examples/Produce": system.union(["MartletClient", "MartletLogModel"]),
            "examples/Consume": system.union(["MartletClient", "MartletLogModel"]),
            "examples/Copy": system.union(["MartletClient", "MartletLogModel"]),
            "bench": system.union(cli).union([
                "MartletRecordBatch", "MartletKafkaProtocol", "MartletStorage", "MartletTransport",
                "MartletBroker",
                "MartletClient", "MartletMarketData", "CMartletChecksum", "Histogram", "NIOCore", "NIOPosix",
            ]),
        ]
    }()

    static let cores: Set<String> = [
        "MartletReplication", "MartletMetadataQuorum", "MartletController", "MartletCoordinators",
    ]

    static func imports(_ file: SwiftFile) -> [Violation] {
        if file.isTest { return [] }
        guard let allowed = allowedImports[file.target] else {
            return [
                Violation(
                    path: file.path, line: 0, text: "target \(file.target) has no list of allowed imports")
            ]
        }
        return each(file) { code in
            guard code.mentions("import") else { return nil }
            let words = code.split(separator: " ")
            guard let place = words.firstIndex(of: "import"), place + 1 < words.count else { return nil }
            let kinds: Set<Substring> = [
                "struct", "class", "enum", "func", "protocol", "let", "var", "typealias",
            ]
            let name =
                kinds.contains(words[place + 1]) && place + 2 < words.count
                ? words[place + 2] : words[place + 1]
            let module = String(name.prefix { $0 != "." })
            return allowed.contains(module) ? nil : "\(file.target) may not import \(module)"
        }
    }

    // MARK: Words

    static func words(_ file: SwiftFile) -> [Violation] {
        let banned: [(String, String)]
        if file.isTest {
            let reason = "tests do not sleep; wait for the event"
            banned = [
                ("Task.sleep", reason), ("usleep(", reason), ("Thread.sleep", reason), ("sleep(", reason),
            ]
        } else {
            banned = [
                ("try?", "'try?' hides the error"),
                ("Task.sleep", "sleeping is no protocol mechanism"),
                ("DispatchQueue", "no queues beside event loops"),
                ("DispatchSemaphore", "no semaphores"),
                ("fatalError", "use precondition with the facts"),
                ("Task {", "a task needs an owner: use a task group"),
                ("Task(", "a task needs an owner: use a task group"),
                ("Task.detached", "a task needs an owner: use a task group"),
            ]
        }
        return find(banned, in: file) { word, code in
            // A method of that name on a clock of the test's own is not the C function; an event loop must have
            // a method that takes a queue.
            (word != "sleep(" || !code.mentions(".sleep("))
                && (word != "DispatchQueue" || !code.mentions("func shutdownGracefully"))
        }
    }

    /// Cores read no clock, no random source, no environment, no file, no socket, and no `apiVersion`.
    static func corePurity(_ file: SwiftFile) -> [Violation] {
        guard cores.contains(file.target) else { return [] }
        let kinds: [(String, [String])] = [
            (
                "clock",
                [
                    "Date(", "DispatchTime", "ContinuousClock", "SuspendingClock", "clock_gettime",
                    "gettimeofday", "NIODeadline",
                ]
            ),
            (
                "randomness",
                [
                    "SystemRandomNumberGenerator", "arc4random", "UUID(", ".randomElement()", ".shuffled()",
                    ".shuffle()", ".random(",
                ]
            ),
            ("environment", ["getenv", "ProcessInfo", "CommandLine"]),
            (
                "file or socket",
                [
                    "FileManager", "FileHandle", "fopen", "socket(", "ServerBootstrap", "ClientBootstrap",
                    "EventLoop",
                ]
            ),
            ("output", ["print("]),
            ("apiVersion: the handler brings every version to one meaning first", ["apiVersion"]),
        ]
        let banned = kinds.flatMap { kind, words in words.map { ($0, "cores are pure: \(kind)") } }
        return find(banned, in: file) { word, code in word != ".random(" || !code.mentions("using") }
    }

    /// No catch-all over a state enum of a core: it brings back the copy on write, and hides new states.
    static func stateSwitches(_ file: SwiftFile) -> [Violation] {
        guard cores.contains(file.target) else { return [] }
        var violations: [Violation] = []
        var openSwitches: [Int] = []
        var depth = 0
        for (index, code) in file.code.enumerated() {
            let words = code.split(separator: " ")
            if words.first == "default:" {
                violations.append(
                    Violation(path: file.path, line: index + 1, text: "'default:' in a core; name the cases"))
            }
            if let innermost = openSwitches.last, depth == innermost + 1, words.prefix(2) == ["case", "_:"] {
                violations.append(
                    Violation(
                        path: file.path, line: index + 1, text: "catch-all over a state; name the cases"))
            }
            let before = depth
            for character in code.utf8 {
                if character == UInt8(ascii: "{") {
                    depth += 1
                } else if character == UInt8(ascii: "}") {
                    depth -= 1
                    if let innermost = openSwitches.last, depth <= innermost { openSwitches.removeLast() }
                }
            }
            let subject = words.filter { $0 != "consume" }
            if subject.first == "switch", subject.count > 2, subject[2] == "{",
                ["state", "self.state", "phase", "self.phase"].contains(subject[1])
            {
                openSwitches.append(before)
            }
        }
        return violations
    }

    // MARK: Unsafe code

    /// Targets that may touch raw pointers: those that speak to C or move bytes.
    static let pointerTargets: Set<String> = [
        "MartletRecordBatch", "MartletStorage", "MartletTransport", "MartletBroker", "MartletClient",
        "MartletMarketData", "martlet", "martletd", "simulator/Kit", "bench",
    ]

    /// In other targets: the lock that tells the thread sanitizer its address.
    static let pointerFiles: Set<String> = ["Sources/MartletLogModel/Guarded.swift"]

    /// Lines above an unsafe expression within which its reason must stand.
    static let safetyDistance = 12

    /// What the compiler cannot follow, in targets where it does not ask for an `unsafe` mark. Pointers that
    /// live only as an argument or inside a `withUnsafe…` closure are not among it.
    static let escapes = [
        "unsafeBitCast", "unsafeDowncast", "assumingMemoryBound", "bindMemory", "(mutating:", "Unmanaged",
        "unowned(unsafe)",
    ]

    static func safety(_ file: SwiftFile) -> [Violation] {
        if file.isTest { return [] }
        var violations: [Violation] = []
        func report(_ index: Int, _ text: String) {
            violations.append(Violation(path: file.path, line: index + 1, text: text))
        }
        for (index, code) in file.code.enumerated() {
            guard
                ["nsafe", "@unchecked", "(mutating:", "Memory", "Unmanaged"].contains(
                    where: code.mentionsPart)
            else {
                continue
            }
            if code.mentions("@unchecked Sendable") || code.mentions("nonisolated(unsafe)") {
                // Above the declaration or first thing inside it.
                if !hasReason(file, index - 4, index + 2) {
                    report(index, "needs a '// SAFETY:' line naming the confinement")
                }
                continue
            }
            let marked = code.mentions("unsafe") && !code.mentions("unowned(unsafe)")
            let pointer =
                code.mentionsPart("withUnsafe")
                || (code.mentionsPart("Unsafe") && code.mentionsPart("Pointer"))
            if (marked || pointer) && !pointerTargets.contains(file.target) && !pointerFiles.contains(file.path) {
                report(index, "no raw pointers in \(file.target)")
            } else if (marked || escapes.contains(where: code.mentions))
                && !hasReason(file, index - safetyDistance, index)
            {
                report(index, "unsafe expression without a '// SAFETY:' line above")
            }
        }
        return violations
    }

    private static func hasReason(_ file: SwiftFile, _ first: Int, _ last: Int) -> Bool {
        file.lines[max(0, first)...min(last, file.lines.count - 1)].contains { $0.mentionsPart("SAFETY:") }
    }

    // MARK: Files

    static let lineLimit = 800

    static func length(_ file: SwiftFile) -> [Violation] {
        let count = file.lines.last == "" ? file.lines.count - 1 : file.lines.count
        return count <= lineLimit
            ? []
            : [
                Violation(
                    path: file.path, line: count,
                    text: "\(count) lines; past \(lineLimit) a file holds two things")
            ]
    }

    static let topLevel: Set<String> = [
        ".ci", ".git", ".gitignore", ".swift-format", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md",
        "LICENSE",
        "Package.swift", "Protocol", "README.md", "Sources", "Tests", "Tools",
    ]

    static func topLevelEntries(_ entries: [String]) -> [Violation] {
        entries.filter { !topLevel.contains($0) }.map {
            Violation(path: $0, line: 0, text: "not one of the entries that belong at the top")
        }
    }

    /// File names that say nothing, and placeholders.
    static func fileName(_ path: String) -> [Violation] {
        guard path.hasSuffix(".swift"), let name = path.split(separator: "/").last?.dropLast(".swift".count)
        else { return [] }
        if ["Module", "Placeholder"].contains(String(name)) {
            return [Violation(path: path, line: 0, text: "placeholder")]
        }
        let empty = [
            "New", "Old", "Util", "Utils", "Utilities", "Helper", "Helpers", "Manager", "Common", "Misc",
        ]
        let text = String(name)
        guard let word = empty.first(where: { text == $0 || ($0.count > 3 && text.hasSuffix($0)) }) else {
            return []
        }
        return [Violation(path: path, line: 0, text: "'\(word)' says nothing; name what it holds")]
    }

    /// Paths of the machine it was written on.
    static func machinePaths(_ path: String, _ text: String) -> [Violation] {
        let folders = ["work/", "home/", "Users/", "root/", "opt/swift"].map { "/" + $0 }
        guard folders.contains(where: text.mentionsPart) else { return [] }
        var violations: [Violation] = []
        for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            let found = folders.contains { folder in
                line.parts(of: folder).contains { place in
                    guard place > 0 else { return true }
                    let before = Array(line.utf8)[place - 1]
                    return !isWordByte(before)
                        && ![UInt8(ascii: "."), UInt8(ascii: "-"), UInt8(ascii: "/")].contains(before)
                }
            }
            if found {
                violations.append(Violation(path: path, line: index + 1, text: "path of one machine"))
            }
        }
        return violations
    }

    /// Relative links of a Markdown file must lead somewhere.
    static func links(_ path: String, _ text: String, exists: (String) -> Bool) -> [Violation] {
        var violations: [Violation] = []
        var inCode = false
        let folder = path.split(separator: "/").dropLast().map(String.init)
        for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            if line.hasPrefix("```") { inCode.toggle() }
            if inCode { continue }
            for place in line.parts(of: "](") {
                let rest = Array(line.utf8)[(place + 2)...]
                let target = String(
                    decoding: rest.prefix { $0 != UInt8(ascii: ")") && $0 != UInt8(ascii: " ") },
                    as: UTF8.self)
                if target.contains("://") || target.hasPrefix("#") || target.hasPrefix("mailto:") { continue }
                var parts = folder
                for part in target.split(separator: "#")[0].split(separator: "/") {
                    if part == ".." {
                        if !parts.isEmpty { parts.removeLast() }
                    } else if part != "." {
                        parts.append(String(part))
                    }
                }
                if !exists(parts.joined(separator: "/")) {
                    violations.append(
                        Violation(path: path, line: index + 1, text: "link to \(target) leads nowhere"))
                }
            }
        }
        return violations
    }

    /// `Handlers/01_Fetch.swift` must be called like `Protocol/Messages/01_Fetch`.
    static func handlerName(_ path: String, schemas: Set<String>) -> [Violation] {
        let parts = path.split(separator: "/")
        guard parts.count > 2, parts[parts.count - 2] == "Handlers", let file = parts.last,
            file.hasSuffix(".swift"),
            file.prefix(2).allSatisfy(\.isNumber)
        else { return [] }
        return schemas.contains(String(file.dropLast(".swift".count)))
            ? [] : [Violation(path: path, line: 0, text: "no schema of this number and name")]
    }

    private static func each(_ file: SwiftFile, _ check: (String) -> String?) -> [Violation] {
        var violations: [Violation] = []
        for (index, code) in file.code.enumerated() {
            if let text = check(code) {
                violations.append(Violation(path: file.path, line: index + 1, text: text))
            }
        }
        return violations
    }

    /// Lines of code that mention a banned word; `counts` may except some.
    private static func find(
        _ banned: [(String, String)], in file: SwiftFile, where counts: (String, String) -> Bool
    ) -> [Violation] {
        let whole = file.code.joined(separator: "\n")
        return banned.filter { whole.mentions($0.0) }.flatMap { word, reason in
            each(file) { $0.mentions(word) && counts(word, $0) ? reason : nil }
        }
    }
}

/// Letter, digit, underscore, or part of a character outside ASCII.
private func isWordByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), 0x80...0xff:
        true
    case _: false
    }
}

extension StringProtocol {
    /// Byte positions of `part`.
    func parts(of part: String) -> [Int] {
        let bytes = Array(utf8)
        let needle = Array(part.utf8)
        guard let first = needle.first, bytes.count >= needle.count else { return [] }
        var found: [Int] = []
        var index = 0
        while index <= bytes.count - needle.count {
            if bytes[index] == first && bytes[index..<index + needle.count].elementsEqual(needle) {
                found.append(index)
            }
            index += 1
        }
        return found
    }

    func mentionsPart(_ part: String) -> Bool { !parts(of: part).isEmpty }

    /// Whether `word` stands here as a word of its own: where it begins or ends with a letter, no letter is
    /// before or behind it.
    func mentions(_ word: String) -> Bool {
        let places = parts(of: word)
        if places.isEmpty { return false }
        let bytes = Array(utf8)
        let needle = Array(word.utf8)
        return places.contains { place in
            let end = place + needle.count
            let freeBefore = !isWordByte(needle[0]) || place == 0 || !isWordByte(bytes[place - 1])
            let freeBehind =
                !isWordByte(needle[needle.count - 1]) || end == bytes.count || !isWordByte(bytes[end])
            return freeBefore && freeBehind
        }
    }
}
