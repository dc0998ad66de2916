package import MartletLogModel
package import NIOCore

/// Which leader epoch wrote from which offset on: the basis of log truncation after a change of leader
/// (KIP-101, KIP-279). Epochs and start offsets rise strictly.
package struct LeaderEpochCache: Equatable, Sendable {
    package struct Entry: Equatable, Sendable {
        package var epoch: LeaderEpoch
        package var startOffset: Offset
    }

    package private(set) var entries: [Entry] = []

    package init() {}

    package var latest: LeaderEpoch? { entries.last?.epoch }

    /// Whether ``assign(_:startOffset:)`` would change anything.
    func isNew(_ epoch: LeaderEpoch) -> Bool {
        guard let last = entries.last else { return true }
        return epoch > last.epoch
    }

    /// Records that `epoch` starts at `startOffset`. Entries that contradict it (from a truncated past)
    /// give way. Returns whether anything changed.
    @discardableResult
    package mutating func assign(_ epoch: LeaderEpoch, startOffset: Offset) -> Bool {
        guard isNew(epoch) else { return false }
        while let last = entries.last, last.startOffset >= startOffset { entries.removeLast() }
        entries.append(Entry(epoch: epoch, startOffset: startOffset))
        return true
    }

    /// The largest epoch at or below `epoch` and the offset at which it ends, exclusive: the start of the
    /// next epoch, or `logEnd` for the latest. `nil` when `epoch` is unknown: newer than all, or older
    /// than the log (OffsetForLeaderEpoch, KIP-279).
    package func endOffset(
        for epoch: LeaderEpoch, logEnd: Offset
    ) -> (epoch: LeaderEpoch, endOffset: Offset)? {
        guard let last = entries.last, epoch <= last.epoch else { return nil }
        if epoch == last.epoch { return (epoch, logEnd) }
        // First entry above the epoch asked for.
        guard let index = entries.firstIndex(where: { $0.epoch > epoch }) else { return nil }
        // Older than everything known: the asker is to cut to where our first epoch begins.
        guard index > 0 else { return (epoch, entries[index].startOffset) }
        return (entries[index - 1].epoch, entries[index].startOffset)
    }

    /// The epoch that wrote `offset`.
    package func epoch(at offset: Offset) -> LeaderEpoch? {
        entries.last(where: { $0.startOffset <= offset })?.epoch
    }

    /// Forgets what starts at or after the new end.
    package mutating func truncate(toEnd end: Offset) {
        while let last = entries.last, last.startOffset >= end { entries.removeLast() }
    }

    /// Forgets epochs that ended before the new start; the one that reaches over it starts there now.
    package mutating func truncate(toStart start: Offset) {
        guard let index = entries.lastIndex(where: { $0.startOffset <= start }) else { return }
        entries.removeFirst(index)
        entries[0].startOffset = start
    }

    // The file: version 0, number of entries, then `epoch start` per line (Protocol/Formats/checkpoints.md).

    package func encode() -> ByteBuffer {
        var text = "0\n\(entries.count)\n"
        for entry in entries { text += "\(entry.epoch) \(entry.startOffset)\n" }
        return ByteBuffer(string: text)
    }

    /// `nil` when the bytes are not such a file.
    package init?(decoding buffer: ByteBuffer) {
        guard let rows = CheckpointText.decode(buffer, columns: 2) else { return nil }
        for row in rows {
            guard let epoch = Int32(row[0]), let start = Int64(row[1]) else { return nil }
            if let last = entries.last, last.epoch.rawValue >= epoch || last.startOffset.rawValue >= start {
                return nil
            }
            entries.append(Entry(epoch: LeaderEpoch(epoch), startOffset: Offset(start)))
        }
    }
}

/// The text form of Kafka's checkpoint files: a version line (0), a count line, that many rows.
enum CheckpointText {
    static func decode(_ buffer: ByteBuffer, columns: Int) -> [[Substring]]? {
        let text = String(buffer: buffer)
        var lines = text.split(separator: "\n", omittingEmptySubsequences: true)[...]
        guard lines.popFirst() == "0", let countLine = lines.popFirst(), let count = Int(countLine),
            count == lines.count
        else { return nil }
        var rows: [[Substring]] = []
        rows.reserveCapacity(count)
        for line in lines {
            let fields = line.split(separator: " ")
            guard fields.count == columns else { return nil }
            rows.append(fields)
        }
        return rows
    }
}
