import MartletLogModel
import NIOCore

/// "The batch whose last offset is `base + relativeOffset` starts at `position` of the log file."
/// Eight bytes on disk: both numbers as big-endian int32 (Protocol/Formats/offset-index.md).
package struct OffsetIndexEntry: Equatable, Sendable {
    package static let byteCount = 8
    package var relativeOffset: Int32
    package var position: Int32
}

/// "Up to the batch that ends at `base + relativeOffset` no timestamp exceeds `timestamp`."
/// Twelve bytes: int64 and int32, big-endian (Protocol/Formats/time-index.md).
package struct TimeIndexEntry: Equatable, Sendable {
    package static let byteCount = 12
    package var timestamp: Int64
    package var relativeOffset: Int32
}

/// The index files of one segment: what is in the files and what waits in memory to go there. The files
/// are never needed for correctness: an entry is checked against the batch it points to, and the whole is
/// rebuilt from the log file when missing or wrong (I5).
struct SegmentIndexes: Sendable {
    /// Entries in the files.
    var persistedOffsetCount = 0
    var persistedTimeCount = 0
    /// Entries behind those, in memory alone. Bounded by ``pendingLimit``.
    var pendingOffsets: [OffsetIndexEntry] = []
    var pendingTimes: [TimeIndexEntry] = []
    /// Last time entry, in file or memory: entries must rise in both columns.
    var lastTime: TimeIndexEntry?
    /// Log bytes since the last offset entry.
    var bytesSinceEntry = 0

    /// Entries held in memory before they go to the file: 4 KiB, that is about 2 MiB of log.
    static let pendingLimit = 512

    var offsetCount: Int { persistedOffsetCount + pendingOffsets.count }

    /// Notes a batch of `byteCount` bytes at `position`; adds entries when the interval has passed.
    mutating func append(
        lastOffset: Int64, position: Int, byteCount: Int, base: Int64, interval: Int, maximum: TimeIndexEntry?
    ) {
        if bytesSinceEntry > interval {
            pendingOffsets.append(
                OffsetIndexEntry(relativeOffset: Int32(lastOffset - base), position: Int32(position)))
            if let maximum { appendTime(maximum) }
            bytesSinceEntry = 0
        }
        bytesSinceEntry += byteCount
    }

    mutating func appendTime(_ entry: TimeIndexEntry) {
        if let last = lastTime, entry.timestamp <= last.timestamp || entry.relativeOffset <= last.relativeOffset {
            return
        }
        pendingTimes.append(entry)
        lastTime = entry
    }

    static func encode(_ entries: [OffsetIndexEntry]) -> ByteBuffer {
        var buffer = ByteBuffer()
        buffer.reserveCapacity(entries.count * OffsetIndexEntry.byteCount)
        for entry in entries {
            buffer.writeInteger(entry.relativeOffset)
            buffer.writeInteger(entry.position)
        }
        return buffer
    }

    static func encode(_ entries: [TimeIndexEntry]) -> ByteBuffer {
        var buffer = ByteBuffer()
        buffer.reserveCapacity(entries.count * TimeIndexEntry.byteCount)
        for entry in entries {
            buffer.writeInteger(entry.timestamp)
            buffer.writeInteger(entry.relativeOffset)
        }
        return buffer
    }
}

/// Binary search in an index file plus the entries still in memory. Sendable, so cold look-ups can run
/// away from the owner.
struct IndexSearch<D: Disk>: Sendable {
    let file: SegmentFile<D>?
    let persistedCount: Int
    let pending: [OffsetIndexEntry]

    /// Entries read at once at the end of the binary search.
    private static var leafCount: Int { 64 }

    /// Last entry for which `precedes` holds; it must hold for a prefix of all entries.
    func last(
        nonBlocking: Bool, where precedes: (OffsetIndexEntry) -> Bool
    ) throws(ReadError) -> OffsetIndexEntry? {
        if let first = pending.first, precedes(first) {
            var low = 0
            var high = pending.count
            while high - low > 1 {
                let middle = (low + high) / 2
                if precedes(pending[middle]) { low = middle } else { high = middle }
            }
            return pending[low]
        }
        guard let file, persistedCount > 0 else { return nil }
        var low = 0
        var high = persistedCount
        while high - low > Self.leafCount {
            let middle = (low + high) / 2
            guard let entry = try read(file, at: middle, count: 1, nonBlocking: nonBlocking).first else { return nil }
            if precedes(entry) { low = middle } else { high = middle }
        }
        return try read(file, at: low, count: high - low, nonBlocking: nonBlocking).last(where: precedes)
    }

    private func read(
        _ file: SegmentFile<D>, at index: Int, count: Int, nonBlocking: Bool
    ) throws(ReadError) -> [OffsetIndexEntry] {
        var buffer = try file.readBytes(
            at: index * OffsetIndexEntry.byteCount, count: count * OffsetIndexEntry.byteCount,
            nonBlocking: nonBlocking)
        var entries: [OffsetIndexEntry] = []
        entries.reserveCapacity(count)
        while let (offset, position) = buffer.readMultipleIntegers(as: (Int32, Int32).self) {
            entries.append(OffsetIndexEntry(relativeOffset: offset, position: position))
        }
        return entries
    }
}

extension SegmentFile {
    /// Reads up to `count` bytes, fewer at the end of the file.
    func readBytes(at offset: Int, count: Int, nonBlocking: Bool) throws(ReadError) -> ByteBuffer {
        var buffer = ByteBuffer()
        do {
            if nonBlocking {
                // A short answer may be the end of the file or the end of what is cached: a second
                // look at the rest tells.
                while buffer.readableBytes < count {
                    let have = buffer.readableBytes
                    guard let more = try file.readCached(into: &buffer, at: offset + have, count: count - have) else {
                        throw ReadError.wouldBlock
                    }
                    if more == 0 { break }
                }
            } else {
                _ = try file.read(into: &buffer, at: offset, count: count)
            }
        } catch let error as DiskError {
            throw .storage(.file(error))
        } catch {
            throw .wouldBlock
        }
        return buffer
    }
}
