import Foundation
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

/// One file of `Protocol/Golden`: bytes from another implementation, with the value of each field.
struct GoldenFile: CustomTestStringConvertible {
    var path: String
    var message = ""
    var version: Int16 = 0
    var bytes: [UInt8] = []
    /// Field path → value, in the notation of `flattened`.
    var fields: [String: String] = [:]

    var testDescription: String { path }

    struct Malformed: Error {
        var path: String
        var line: String
    }

    init(path: String, text: String) throws {
        self.path = path
        for line in text.split(separator: "\n") {
            if line.hasPrefix("message ") {
                message = String(line.dropFirst("message ".count))
            } else if line.hasPrefix("version ") {
                version = try #require(Int16(line.dropFirst("version ".count)))
            } else if !line.hasPrefix("source ") && !line.hasPrefix("#") {
                let end = line.firstRange(of: "  ")?.lowerBound ?? line.endIndex
                for digits in line[..<end].split(separator: " ") {
                    guard digits.count == 2, let byte = UInt8(digits, radix: 16) else {
                        throw Malformed(path: path, line: String(line))
                    }
                    bytes.append(byte)
                }
                let meaning = line[end...].drop { $0 == " " }
                if meaning.isEmpty || meaning.hasPrefix("#") { continue }
                guard let equals = meaning.firstRange(of: " = ") else {
                    throw Malformed(path: path, line: String(line))
                }
                fields[String(meaning[..<equals.lowerBound])] = String(meaning[equals.upperBound...])
            }
        }
    }

    static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent()
        .deletingLastPathComponent().appendingPathComponent("Protocol/Golden")

    static func all() throws -> [GoldenFile] {
        let manager = FileManager.default
        var files: [GoldenFile] = []
        for folder in try manager.contentsOfDirectory(atPath: folder.path).sorted() {
            let base = Self.folder.appendingPathComponent(folder)
            for name in try manager.contentsOfDirectory(atPath: base.path).sorted() {
                let text = try String(contentsOf: base.appendingPathComponent(name), encoding: .utf8)
                files.append(try GoldenFile(path: "\(folder)/\(name)", text: text))
            }
        }
        return files
    }
}

@Suite struct GoldenTests {
    static let types: [String: any KafkaMessage.Type] = Dictionary(
        uniqueKeysWithValues: allMessageTypes.map { ("\($0)", $0) })

    @Test func `bytes of other implementations are read as they meant them and written back alike`() throws {
        let files = try GoldenFile.all()
        #expect(files.count > 400)
        for file in files {
            let type = try #require(Self.types[file.message], "\(file.path): no message \(file.message)")
            try check(type, file)
        }
    }

    /// Defaults that look like values, of fields that some versions lack.
    static let unusualDefaults = [
        "replicaID": "-2", "upgradeType": "1", "endpointType": "1", "resourceType": "16",
    ]

    private func check<T: KafkaMessage>(_ type: T.Type, _ file: GoldenFile) throws {
        var r = ProtocolReader(ByteBuffer(bytes: file.bytes))
        let message: T
        do {
            message = try T(reading: &r, version: file.version)
            try r.requireEnd()
        } catch {
            Issue.record("\(file.path): \(error)")
            return
        }
        var found = flattened(message)
        for (path, value) in file.fields {
            let actual = found.removeValue(forKey: path)
            #expect(actual == value, "\(file.path): \(path)")
        }
        // What the file does not name must be at a default.
        let defaults: Set<String> = [
            "0", "-1", "\"\"", "null", "[]", "false", "true", "bytes(0)", "0.0", "\(Int32.max)",
            "\(Int32.min)",
            "\(Int64.max)", "uuid(00000000000000000000000000000000)",
        ]
        for (path, value) in found where !defaults.contains(value) {
            let name = String(path.split(separator: ".").last ?? "")
            if Self.unusualDefaults[name] == value { continue }
            Issue.record("\(file.path): \(path) = \(value) is not in the file")
        }
        var w = ProtocolWriter()
        try message.encode(into: &w, version: file.version)
        #expect(Array(w.buffer.readableBytesView) == file.bytes, "\(file.path): written differently")
    }

    @Test func `every version of what clients use all the time has golden bytes`() throws {
        let files = try GoldenFile.all()
        let covered = Set(files.map { "\($0.message) \($0.version)" })
        for key in [
            .produce, .fetch, .listOffsets, .metadata, .offsetCommit, .offsetFetch, .findCoordinator,
            .joinGroup, .heartbeat, .leaveGroup, .syncGroup, .apiVersions, .createTopics, .deleteTopics,
            .initProducerID,
        ] as [APIKey] {
            for version in try #require(key.versions) {
                for kind in ["Request", "Response"] {
                    #expect(
                        covered.contains("\(key.name)\(kind) \(version)"), "\(key.name)\(kind) \(version)")
                }
            }
        }
    }
}

/// All leaves of a message: `topics[0].partitions[1].partition` → `"3"`.
func flattened(_ message: some KafkaStructure) -> [String: String] {
    var leaves: [String: String] = [:]
    flatten(message, "", &leaves)
    return leaves
}

private func flatten(_ value: Any, _ path: String, _ leaves: inout [String: String]) {
    switch value {
    case let text as String: leaves[path] = "\"\(text)\""
    case let bytes as ByteBuffer: leaves[path] = "bytes(\(bytes.readableBytes))"
    case let id as UniversalID: leaves[path] = "uuid(\(hex(id.high))\(hex(id.low)))"
    case let number as any BinaryInteger: leaves[path] = "\(number)"
    case let flag as Bool: leaves[path] = "\(flag)"
    case let number as Double: leaves[path] = "\(number)"
    case let structure as any KafkaStructure:
        for child in Mirror(reflecting: structure).children {
            flatten(child.value, path.isEmpty ? child.label ?? "" : "\(path).\(child.label ?? "")", &leaves)
        }
    case _:
        let mirror = Mirror(reflecting: value)
        if mirror.displayStyle == .optional {
            if let wrapped = mirror.children.first {
                flatten(wrapped.value, path, &leaves)
            } else {
                leaves[path] = "null"
            }
        } else if mirror.displayStyle == .collection {
            if mirror.children.isEmpty { leaves[path] = "[]" }
            for (index, child) in mirror.children.enumerated() {
                flatten(child.value, "\(path)[\(index)]", &leaves)
            }
        } else {
            leaves[path] = "?\(value)"
        }
    }
}

private func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}
