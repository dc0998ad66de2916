import ArgumentParser
import MartletLogModel
import MartletStorage
import NIOCore

struct LogRepair: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "repair",
        abstract: "Give up what lies behind a damage in partitions that have no other replica.",
        discussion: """
            The broker must be stopped. Every batch of every partition of the data directory
            is checked (a broker's start checks only what lies behind the recovery point);
            damaged partitions are listed with the offset up to which they are whole. With
            --execute the log is cut there; the bytes behind it stay in the folder
            .quarantine of the data directory.

            Examples:
              martlet log repair /var/lib/martlet
              martlet log repair /var/lib/martlet --partition orders-0 --execute
            """)

    @Argument(help: "Data directory of the stopped broker.") var directory: String
    @Option(help: ArgumentHelp("Only this partition; may be repeated.", valueName: "topic-n")) var partition:
        [String] = []
    @Flag(help: "Cut the damaged logs; without it they are only listed.") var execute = false
    @Flag(help: "Print the result as JSON.") var json = false

    /// A damaged partition.
    private struct Finding {
        var partition: TopicPartition
        /// Everything before it is whole.
        var offset: Offset
        var detail: String
        var quarantinedBytes: Int
    }

    func run() throws {
        do {
            try repair()
        } catch let error as StorageError {
            throw CommandFailure("\(error)")
        }
    }

    private func repair() throws {
        let disk = PosixDisk()
        let metaPath = directory + "/" + MetaProperties.fileName
        guard let meta = MetaProperties(decoding: try InputFile.contents(metaPath, limit: 1 << 16)) else {
            throw CommandFailure("\(metaPath) is damaged", exitCode: .file)
        }
        let folder = try LogDirectory.open(
            directory, disk: disk, clusterID: meta.clusterID, nodeID: meta.nodeID,
            newDirectoryID: meta.directoryID)
        let wanted = try wantedPartitions(folder)
        var findings: [Finding] = []
        var failures: [CommandFailure] = []
        var progress = Progress()
        for (count, partition) in wanted.enumerated() {
            progress.show { "\(count) of \(wanted.count) partitions checked" }
            do {
                let log = try PartitionLog.open(
                    directory: folder, topicPartition: partition, topicID: nil,
                    configuration: LogConfiguration(),
                    now: Timestamp(milliseconds: SystemCall.wallMilliseconds()))
                if let damage = log.damage {
                    findings.append(
                        Finding(
                            partition: partition, offset: damage.offset, detail: damage.detail,
                            quarantinedBytes: log.recovery.quarantinedBytes))
                    if execute { try log.repair() }
                } else if let finding = try check(log, partition, disk) {
                    findings.append(finding)
                }
                try log.close(clean: log.damage == nil)
            } catch {
                failures.append(CommandFailure("\(partition): \(error)"))
            }
        }
        progress.clear()
        // The mark of a clean stop is kept if there was one, and never given where logs are still damaged.
        try folder.close(clean: folder.wasCleanShutdown && failures.isEmpty && (execute || findings.isEmpty))
        try report(findings, checkedCount: wanted.count)
        for failure in failures.dropLast() { Console.complain(failure.description) }
        if let last = failures.last { throw last }
        if !findings.isEmpty, !execute {
            throw CommandFailure(
                "\(findings.count) damaged", remedy: "restore them from replicas, or cut them with --execute")
        }
    }

    /// Looks at all that the opening did not, and cuts the log if that is wanted.
    private func check(
        _ log: PartitionLog<PosixDisk>, _ partition: TopicPartition, _ disk: PosixDisk
    ) throws -> Finding? {
        let check = LogCheck(
            disk: disk, folder: directory + "/" + partition.description, end: log.logEndOffset)
        guard log.logEndOffset > log.logStartOffset, let found = try check.run() else { return nil }
        var quarantinedBytes = 0
        if execute {
            quarantinedBytes = try check.quarantine(found, partition: partition, directory: directory)
            try log.truncate(to: max(found.offset, log.logStartOffset))
        }
        return Finding(
            partition: partition, offset: found.offset,
            detail: "byte \(found.position) of \(found.segment): \(found.detail)",
            quarantinedBytes: quarantinedBytes)
    }

    private func wantedPartitions(_ folder: LogDirectory<PosixDisk>) throws -> [TopicPartition] {
        guard !partition.isEmpty else { return folder.partitions }
        return try partition.map { name in
            guard let found = folder.partitions.first(where: { $0.description == name }) else {
                throw CommandFailure("\(directory) has no partition '\(name)'", exitCode: .usage)
            }
            return found
        }
    }

    private func report(_ findings: [Finding], checkedCount: Int) throws {
        if json {
            return try Console.print(
                .object([
                    ("checked", .integer(Int64(checkedCount))), ("executed", .bool(execute)),
                    (
                        "damaged",
                        .array(
                            findings.map {
                                .object([
                                    ("topic", .string($0.partition.topic)),
                                    ("partition", .integer(Int64($0.partition.partition.rawValue))),
                                    ("wholeUpTo", .integer($0.offset.rawValue)),
                                    ("detail", .string($0.detail)),
                                    ("quarantinedBytes", .integer(Int64($0.quarantinedBytes))),
                                ])
                            })
                    ),
                ]))
        }
        for finding in findings {
            try Console.print(
                "\(finding.partition): \(execute ? "cut at" : "whole up to") offset \(finding.offset): "
                    + finding.detail)
        }
        try Console.print("\(checkedCount) partitions checked, \(findings.count) damaged")
    }
}
