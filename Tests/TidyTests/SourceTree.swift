import Foundation

/// A Swift file of the repository, with its code separated from comments and texts.
struct SwiftFile {
    /// Relative to the repository.
    var path: String
    /// As written.
    var lines: [String]
    /// The same lines with comments, string literals and raw identifiers blanked out.
    var code: [String]

    init(path: String, text: String) {
        self.path = path
        self.lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        self.code = Self.codeOnly(text)
    }

    /// `Sources/MartletStorage/Segment.swift` → `MartletStorage`; `Tools/protogen/Core/…` → `protogen/Core`.
    var target: String {
        let parts = path.split(separator: "/").map(String.init)
        guard parts.count > 2 else { return "" }
        if parts[0] == "Tools", parts.count > 3, ["protogen", "simulator", "examples"].contains(parts[1]) {
            return parts[1] + "/" + parts[2]
        }
        return parts[1]
    }

    var isTest: Bool { path.hasPrefix("Tests/") }

    /// Blanks out everything that is not code, keeping the lines. Knows nested comments, texts over several
    /// lines, raw texts and raw identifiers; code inside interpolations counts as text. Works on bytes: the
    /// whole tree goes through it in a debug build.
    static func codeOnly(_ text: String) -> [String] {
        enum State: Equatable {
            case code, lineComment
            case blockComment(Int)
            case rawIdentifier
            case string(hashes: Int, multiline: Bool)
        }
        let bytes = Array(text.utf8)
        let newline = UInt8(ascii: "\n")
        let slash = UInt8(ascii: "/")
        let star = UInt8(ascii: "*")
        let quote = UInt8(ascii: "\"")
        let hash = UInt8(ascii: "#")
        let backslash = UInt8(ascii: "\\")
        let backquote = UInt8(ascii: "`")
        func byte(_ index: Int) -> UInt8 { index < bytes.count ? bytes[index] : 0 }
        var result: [String] = []
        var current: [UInt8] = []
        var state = State.code
        var index = 0
        while index < bytes.count {
            let character = bytes[index]
            if character == newline {
                result.append(String(decoding: current, as: UTF8.self))
                current.removeAll(keepingCapacity: true)
                if state == .lineComment { state = .code }
                if case .string(_, multiline: false) = state { state = .code }
                index += 1
                continue
            }
            switch state {
            case .code:
                if character == slash, byte(index + 1) == slash {
                    state = .lineComment
                } else if character == slash, byte(index + 1) == star {
                    state = .blockComment(1)
                    index += 1
                } else if character == backquote {
                    state = .rawIdentifier
                } else if character == quote || character == hash {
                    var hashes = 0
                    while byte(index + hashes) == hash { hashes += 1 }
                    let start = index + hashes
                    if byte(start) == quote {
                        let multiline = byte(start + 1) == quote && byte(start + 2) == quote
                        state = .string(hashes: hashes, multiline: multiline)
                        index = start + (multiline ? 2 : 0)
                        current += [quote, quote]
                    } else {
                        current.append(character)
                    }
                } else {
                    current.append(character)
                }
            case .lineComment: break
            case .blockComment(let depth):
                if character == slash, byte(index + 1) == star {
                    state = .blockComment(depth + 1)
                    index += 1
                } else if character == star, byte(index + 1) == slash {
                    state = depth == 1 ? .code : .blockComment(depth - 1)
                    index += 1
                }
            case .rawIdentifier:
                if character == backquote { state = .code }
            case .string(let hashes, let multiline):
                if character == backslash, hashes == 0 {
                    index += 1
                } else if character == quote {
                    let quotes = multiline ? 3 : 1
                    let closes =
                        (0..<quotes).allSatisfy { byte(index + $0) == quote }
                        && (0..<hashes).allSatisfy { byte(index + quotes + $0) == hash }
                    if closes {
                        index += quotes + hashes - 1
                        state = .code
                    }
                }
            }
            index += 1
        }
        result.append(String(decoding: current, as: UTF8.self))
        return result
    }
}

/// The working tree this test was compiled from.
enum Repository {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().path

    /// Entries that builds and editors leave behind; the same as in `.gitignore`.
    static func isIgnored(_ name: String) -> Bool {
        [".git", ".swiftpm", ".vscode", ".venv", "Package.resolved", "__pycache__", ".DS_Store"].contains(
            name)
            || name.hasPrefix(".build") || name.hasSuffix(".xcodeproj") || name.hasSuffix(".pyc")
    }

    static func topLevel() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: root).filter { !isIgnored($0) }.sorted()
    }

    /// Paths of all files, relative to the root, sorted.
    static func files() throws -> [String] {
        var found: [String] = []
        func visit(_ folder: String) throws {
            for name in try FileManager.default.contentsOfDirectory(atPath: root + "/" + folder).sorted() {
                if isIgnored(name) { continue }
                let path = folder.isEmpty ? name : folder + "/" + name
                var isDirectory: ObjCBool = false
                guard FileManager.default.fileExists(atPath: root + "/" + path, isDirectory: &isDirectory)
                else {
                    continue
                }
                if isDirectory.boolValue { try visit(path) } else { found.append(path) }
            }
        }
        try visit("")
        return found
    }

    static func text(_ path: String) throws -> String {
        try String(contentsOfFile: root + "/" + path, encoding: .utf8)
    }

    static func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: root + "/" + path) }

    /// All hand-written Swift files, read once.
    static func swiftFiles() throws -> [SwiftFile] { try handwritten.get() }

    private static let handwritten = Result {
        try files().filter { $0.hasSuffix(".swift") && $0 != "Package.swift" && !$0.contains("/Generated/") }
            .map {
                SwiftFile(path: $0, text: try text($0))
            }
    }
}
