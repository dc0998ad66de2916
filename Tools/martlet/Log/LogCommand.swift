import ArgumentParser

struct LogCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "log",
        abstract: "Look into the files of a stopped or running broker, and repair them.",
        subcommands: [LogDump.self, LogRepair.self])
}

struct LogDump: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dump",
        abstract:
            "Print segments (.log), their indexes (.index, .timeindex) and producer states (.snapshot).",
        discussion: """
            Files are only read. Checksums are verified; the first damage is named with
            its position and ends the dump of that file with exit code 1.

            Examples:
              martlet log dump /var/lib/martlet/orders-0/00000000000000000000.log
              martlet log dump orders-0/*.log --records --format '%o %k=%s\\n'
              martlet log dump orders-0/*.index --json
            """)

    @Argument(help: "Files to print.") var files: [String] = []
    @Option(name: .customLong("files"), help: .hidden) var kafkaFiles: String?
    @Flag(name: [.long, .customLong("print-data-log")], help: "Print the records in the batches too.")
    var records = false
    @Option(help: ArgumentHelp("With --records: format of a record, as in consume.", valueName: "format"))
    var format = "    %o %T %k=%s\\n"
    @Flag(help: "Print one JSON object a line.") var json = false

    func run() throws {
        let all = files + (kafkaFiles?.split(separator: ",").map(String.init) ?? [])
        guard !all.isEmpty else { throw CommandFailure("no file is named", exitCode: .usage) }
        let format = try RecordFormat(format)
        var failures: [CommandFailure] = []
        for path in all {
            if all.count > 1, !json { try Console.print("== \(path)") }
            do {
                switch path.split(separator: ".").last {
                case "log"?, "deleted"?, "cleaned"?, "swap"?:
                    try SegmentDump(path: path, showsRecords: records || json, format: format, json: json)
                        .run(
                            showsRecords: records)
                case "index"?: try IndexDump.run(path: path, entryBytes: 8, json: json)
                case "timeindex"?: try IndexDump.run(path: path, entryBytes: 12, json: json)
                case "snapshot"?: try SnapshotDump.run(path: path, json: json)
                case _:
                    throw CommandFailure(
                        "\(path) is no segment, index or snapshot by its name",
                        remedy: "known endings: .log .index .timeindex .snapshot", exitCode: .usage)
                }
            } catch let failure as CommandFailure
                where failure.exitCode == .failed || failure.exitCode == .file
            {
                failures.append(failure)
                if all.count > 1 { Console.complain(failure.description) }
            }
        }
        guard let last = failures.last else { return }
        throw all.count == 1
            ? last : CommandFailure("\(failures.count) of \(all.count) files are damaged or cannot be read")
    }
}
