import ProtogenCore
import Testing

/// The rules of the house, on the whole working tree.
@Suite struct TidyTests {
    private func expectNone(_ violations: [Violation]) {
        for violation in violations { Issue.record("\(violation)") }
    }

    private func check(_ rule: (SwiftFile) -> [Violation]) throws {
        let files = try Repository.swiftFiles()
        #expect(files.count > 100, "the tree was not found")
        expectNone(files.flatMap(rule))
    }

    @Test func `imports go down only`() throws { try check(Rules.imports) }
    @Test func `banned calls are absent`() throws { try check(Rules.words) }
    @Test func `cores are pure`() throws { try check(Rules.corePurity) }
    @Test func `state enums are switched over case by case`() throws { try check(Rules.stateSwitches) }
    @Test func `unsafe code names its confinement`() throws { try check(Rules.safety) }
    @Test func `files are short enough`() throws { try check(Rules.length) }

    @Test func `only what belongs there lies at the top`() throws {
        expectNone(Rules.topLevelEntries(try Repository.topLevel()))
    }

    @Test func `file names say what the file holds`() throws {
        expectNone(try Repository.files().flatMap(Rules.fileName))
    }

    @Test func `no file names a path of one machine`() throws {
        let texts = [
            ".swift", ".md", ".c", ".h", ".py", ".sh", ".txt", ".service", ".yml", ".json", ".modulemap",
        ]
        for path in try Repository.files() {
            let name = path.split(separator: "/").last ?? ""
            guard texts.contains(where: path.hasSuffix) || !name.dropFirst().contains(".") else { continue }
            guard let text = try? Repository.text(path) else { continue }
            expectNone(Rules.machinePaths(path, text))
        }
    }

    @Test func `links in documents resolve`() throws {
        for path in try Repository.files() where path.hasSuffix(".md") {
            expectNone(Rules.links(path, try Repository.text(path), exists: Repository.exists))
        }
    }

    @Test func `every library target has a README`() throws {
        let folders = Set(try Repository.swiftFiles().filter { $0.path.hasPrefix("Sources/") }.map(\.target))
        for folder in folders.sorted() {
            #expect(
                Repository.exists("Sources/\(folder)/README.md"), "Sources/\(folder)/README.md is missing")
        }
    }

    @Test func `handlers carry the number and name of their schema`() throws {
        let files = try Repository.files()
        let prefix = Generator.messagesFolder + "/"
        let schemas = Set(files.filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) })
        expectNone(files.flatMap { Rules.handlerName($0, schemas: schemas) })
    }
}

/// Committed generated code is what the generator makes of the committed schemas.
@Suite struct GeneratedCodeTests {
    private func inputs() throws -> [String: String] {
        var inputs: [String: String] = [:]
        for path in try Repository.files()
        where path.hasPrefix(Generator.messagesFolder + "/") || path.hasPrefix(Generator.recordsFolder + "/")
            || path == Generator.errorsFile
        {
            inputs[path] = try Repository.text(path)
        }
        return inputs
    }

    @Test func `generated code is fresh`() throws {
        let outputs = Generator.generate(try Generator.parse(try inputs()))
        #expect(outputs.count > 150)
        for (path, text) in outputs.sorted(by: { $0.key < $1.key }) {
            guard Repository.exists(path) else {
                Issue.record("\(path) is missing; run 'swift run protogen'")
                continue
            }
            #expect(try Repository.text(path) == text, "\(path) is not fresh; run 'swift run protogen'")
        }
        for path in try Repository.files()
        where Generator.outputFolders.contains(where: { path.hasPrefix($0 + "/") }) {
            #expect(outputs[path] != nil, "\(path) comes from no schema")
        }
    }

    @Test func `a changed schema makes the committed code stale`() throws {
        var inputs = try inputs()
        let path = Generator.messagesFolder + "/12_Heartbeat"
        let text = try #require(inputs[path])
        let range = try #require(text.firstRange(of: "GenerationId"))
        inputs[path] = text[..<range.lowerBound] + "GenerationNumber" + text[range.upperBound...]
        let output = "Sources/MartletKafkaProtocol/Generated/12_Heartbeat.swift"
        #expect(Generator.generate(try Generator.parse(inputs))[output] != (try Repository.text(output)))
    }
}
