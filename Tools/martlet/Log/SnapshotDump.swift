import MartletRecordBatch
import NIOCore

/// Producer state snapshot in Kafka's layout, version 1: version 2 bytes, CRC-32C of all that follows it 4,
/// number of producers 4, and per producer id 8, epoch 2, last sequence 4, last offset 8, offset delta 4,
/// time 8, coordinator epoch 4, first offset of the open transaction 8 (-1: none). Big-endian.
enum SnapshotDump {
    /// Producers that a snapshot may hold.
    static let entryLimit = 10_000_000
    static let entryBytes = 46

    static func run(path: String, json: Bool) throws {
        var bytes = try InputFile.contents(path, limit: entryLimit * entryBytes)
        func damaged(_ what: String) -> CommandFailure {
            CommandFailure(
                "\(path): \(what)",
                remedy: "the broker rebuilds a deleted snapshot from the segments on start")
        }
        guard let version = bytes.readInteger(as: Int16.self) else { throw damaged("shorter than its header") }
        guard version == 1 else { throw damaged("version \(version) is unknown; this tool reads version 1") }
        guard let stored = bytes.readInteger(as: UInt32.self) else { throw damaged("shorter than its header") }
        let computed = crc32c(bytes)
        guard stored == computed else {
            throw damaged("checksum \(String(stored, radix: 16)) where the bytes have \(String(computed, radix: 16))")
        }
        guard let count = bytes.readInteger(as: Int32.self), count >= 0, bytes.readableBytes == Int(count) * entryBytes
        else { throw damaged("the number of producers does not fit the size") }
        for _ in 0..<count {
            guard let id = bytes.readInteger(as: Int64.self), let epoch = bytes.readInteger(as: Int16.self),
                let sequence = bytes.readInteger(as: Int32.self), let offset = bytes.readInteger(as: Int64.self),
                let delta = bytes.readInteger(as: Int32.self), let time = bytes.readInteger(as: Int64.self),
                let coordinator = bytes.readInteger(as: Int32.self), let first = bytes.readInteger(as: Int64.self)
            else { throw damaged("ends inside a producer") }
            if json {
                try Console.print(
                    JSONValue.object([
                        ("producerID", .integer(id)), ("producerEpoch", .integer(Int64(epoch))),
                        ("lastSequence", .integer(Int64(sequence))), ("lastOffset", .integer(offset)),
                        ("offsetDelta", .integer(Int64(delta))), ("timestamp", .integer(time)),
                        ("coordinatorEpoch", .integer(Int64(coordinator))),
                        ("transactionFirstOffset", first < 0 ? .null : .integer(first)),
                    ]).line)
            } else {
                try Console.print(
                    "producer \(id)/\(epoch)  last sequence \(sequence)  last offset \(offset)  offset delta \(delta)  "
                        + "time \(CivilTime.text(milliseconds: time))"
                        + (first < 0 ? "" : "  open transaction from \(first)"))
            }
        }
        if !json { try Console.print("\(count) producers") }
    }
}
