import MartletTestSupport
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// The command line against one broker.
struct CLI {
    /// Longest time for one command.
    static let seconds = 120

    let address: String
    let folder: TemporaryFolder

    init(_ daemon: DaemonProcess, _ folder: TemporaryFolder) {
        self.init(daemon.address, folder)
    }

    init(_ address: String, _ folder: TemporaryFolder) {
        self.address = address
        self.folder = folder
    }

    /// The environment of every command: nothing of the machine's own settings.
    static func environment(bootstrap: String?) -> [String: String?] {
        ["MARTLET_BOOTSTRAP": bootstrap, "MARTLET_STATE": nil, "XDG_STATE_HOME": nil]
    }

    /// Runs to the end, whatever the exit code.
    func run(_ arguments: String..., input: String? = nil) throws -> ChildProcess.Result {
        try run(arguments, input: input)
    }

    func run(_ arguments: [String], input: String? = nil) throws -> ChildProcess.Result {
        var path = "/dev/null"
        if let input {
            path = folder.file("input")
            try write(Array(input.utf8), to: path)
        }
        return try ChildProcess.run(
            BuildProducts.executable("martlet"), arguments, environment: Self.environment(bootstrap: address),
            input: path, seconds: Self.seconds)
    }

    /// Runs to the end, which must be a good one; returns standard output.
    @discardableResult
    func ok(
        _ arguments: String..., input: String? = nil, sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> String {
        let result = try run(arguments, input: input)
        #expect(result.status == 0, "\(arguments): \(result)", sourceLocation: sourceLocation)
        return result.text
    }

    /// A command that goes on while the test does something else.
    func start(_ arguments: String...) throws -> ChildProcess {
        try ChildProcess(
            BuildProducts.executable("martlet"), arguments, environment: Self.environment(bootstrap: address),
            errorPath: folder.file("martlet.stderr"))
    }

    /// A record as `consume` shows it.
    struct Record: Equatable {
        var partition: Int
        var offset: Int
        var key: String
        var value: [UInt8]
    }

    /// All records of a topic, whatever bytes are in them.
    func records(of topic: String, _ options: String...) throws -> [Record] {
        let result = try run(["consume", topic, "--format", "%p %o %S %k\\n%s\\n"] + options)
        #expect(result.status == 0, "\(result.errorOutput)")
        var records: [Record] = []
        var rest = result.output[...]
        while !rest.isEmpty {
            let end = try #require(rest.firstIndex(of: 10))
            let words = String(decoding: rest[..<end], as: UTF8.self).split(
                separator: " ", omittingEmptySubsequences: false)
            try #require(words.count == 4)
            let count = try #require(Int(words[2]))
            let start = end + 1
            try #require(start + count < rest.endIndex)
            records.append(
                Record(
                    partition: Int(words[0]) ?? -1, offset: Int(words[1]) ?? -1, key: String(words[3]),
                    value: Array(rest[start..<start + count])))
            rest = rest[(start + count + 1)...]
        }
        return records
    }
}

func write(_ bytes: [UInt8], to path: String) throws {
    let file = try #require(fopen(path, "wb"))
    defer { fclose(file) }
    try #require(fwrite(bytes, 1, bytes.count, file) == bytes.count)
}

func contents(_ path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "rb"), "\(path)")
    defer { fclose(file) }
    var result: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while case let count = fread(&chunk, 1, chunk.count, file), count > 0 { result += chunk[..<count] }
    return result
}

/// The unpacked bytes of a gzip file, by a program that is not ours.
func gunzip(_ path: String) throws -> [UInt8] {
    let result = try ChildProcess.run("gzip", ["--decompress", "--stdout", path], seconds: 60)
    try #require(result.status == 0)
    return result.output
}

/// The object `"types"` of an expected.json.
func expectedTypes(_ path: String) throws -> [String: Int] {
    let text = String(decoding: try contents(path), as: UTF8.self)
    let start = try #require(text.firstRange(of: "\"types\": {")).upperBound
    let end = try #require(text[start...].firstIndex(of: "}"))
    var types: [String: Int] = [:]
    for pair in text[start..<end].split(separator: ",") {
        let sides = pair.split(separator: ":")
        try #require(sides.count == 2)
        types[String(sides[0].filter { $0.isLetter || $0.isNumber })] = Int(sides[1].filter(\.isNumber))
    }
    return types
}
