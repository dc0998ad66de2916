import MartletLogModel
import MartletStorage
import NIOCore

/// Prints a producer state snapshot (Protocol/Formats/producer-snapshot.md).
enum SnapshotDump {
    /// Largest snapshot read: far above what the limit of producers per partition allows.
    static let fileBytesLimit = 256 * 1024 * 1024

    static func run(path: String, json: Bool) throws {
        let bytes = try InputFile.contents(path, limit: fileBytesLimit)
        guard let table = ProducerStateTable(decoding: bytes) else {
            throw CommandFailure(
                "\(path) is damaged, or not of version 1: its checksum or its lengths do not fit",
                remedy: "the broker rebuilds a removed snapshot from the segments when it starts")
        }
        let entries = table.entries.sorted { $0.key < $1.key }
        for (id, entry) in entries {
            if json {
                try Console.print(self.json(id, entry).line)
            } else {
                try Console.print(text(id, entry))
            }
        }
        if !json { try Console.print("\(entries.count) producers") }
    }

    private static func text(_ id: Int64, _ entry: ProducerEntry) -> String {
        var text =
            "producer \(id)/\(entry.epoch)  last append \(CivilTime.text(milliseconds: entry.lastAppend.rawValue))"
        for batch in entry.batches {
            text +=
                "\n  sequences \(batch.baseSequence)-\(batch.lastSequence)  offsets \(batch.baseOffset)-\(batch.lastOffset)"
        }
        if let first = entry.transactionFirstOffset { text += "\n  open transaction from offset \(first)" }
        return text
    }

    private static func json(_ id: Int64, _ entry: ProducerEntry) -> JSONValue {
        .object([
            ("producerID", .integer(id)), ("producerEpoch", .integer(Int64(entry.epoch))),
            ("lastAppend", .integer(entry.lastAppend.rawValue)),
            ("coordinatorEpoch", .integer(Int64(entry.coordinatorEpoch))),
            ("transactionFirstOffset", .optional(entry.transactionFirstOffset) { .integer($0.rawValue) }),
            (
                "batches",
                .array(
                    entry.batches.map {
                        .object([
                            ("baseSequence", .integer(Int64($0.baseSequence))),
                            ("lastSequence", .integer(Int64($0.lastSequence))),
                            ("baseOffset", .integer($0.baseOffset)),
                            ("lastOffset", .integer($0.lastOffset)), ("timestamp", .integer($0.timestamp)),
                        ])
                    })
            ),
        ])
    }
}
