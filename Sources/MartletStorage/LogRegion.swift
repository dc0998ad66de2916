package import MartletLogModel
import MartletRecordBatch

/// Whole, consecutive batches of one segment file, found by ``PartitionLog/locate(from:upTo:maxBytes:minOneBatch:nonBlocking:)``.
/// Sendable: it may be read or sent from any thread, also after the segment's deletion.
package struct LogRegion<D: Disk>: Sendable {
    /// `nil` for an empty region.
    package let file: SegmentFile<D>?
    package let position: Int
    package let byteCount: Int
    /// First offset of the first batch, at most the offset asked for.
    package let baseOffset: Offset
    /// Where to go on.
    package let nextOffset: Offset
    /// The index misled the search and the log was walked instead; see ``PartitionLog/rebuildIndex(at:)``.
    package let indexDamaged: Bool

    package var isEmpty: Bool { byteCount == 0 }

    package static func empty(at offset: Offset) -> LogRegion {
        LogRegion(
            file: nil, position: 0, byteCount: 0, baseOffset: offset, nextOffset: offset, indexDamaged: false)
    }

    func markedDamaged() -> LogRegion {
        LogRegion(
            file: file, position: position, byteCount: byteCount, baseOffset: baseOffset, nextOffset: nextOffset,
            indexDamaged: true)
    }
}

package enum ReadOutcome: Equatable, Sendable {
    case read
    /// Not everything is in memory; nothing was added to the buffer.
    case wouldBlock
}

/// A look-up to be run where waiting for the disk is allowed.
package struct ColdLocate<D: Disk>: Sendable {
    let view: SegmentView<D>
    /// Where to go on when compaction has emptied the end of the first: the next segment with batches.
    let next: SegmentView<D>?
    /// Compaction may have left gaps before this.
    let gapsEnd: Offset
    let partition: TopicPartition
    let from: Offset
    let bound: Offset
    let maxBytes: Int
    let minOneBatch: Bool

    package func run() throws(ReadError) -> LogRegion<D> {
        let region = try view.locate(
            from: from, upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch, partition: partition,
            nonBlocking: false)
        guard let next, region.isEmpty, try view.isExhausted(from: from, upTo: bound, nonBlocking: false) else {
            return region
        }
        guard next.baseOffset <= gapsEnd else { throw view.missing(partition, from: from, to: next.baseOffset) }
        return try next.locate(
            from: max(from, next.baseOffset), upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch,
            partition: partition, nonBlocking: false)
    }
}

/// What a segment looked like at one moment: enough to search it from any thread.
struct SegmentView<D: Disk>: Sendable {
    let baseOffset: Offset
    /// Exclusive; the next segment's base or the log's written end.
    let endOffset: Offset
    let size: Int
    let file: SegmentFile<D>
    let index: IndexSearch<D>

    func locate(
        from: Offset, upTo bound: Offset, maxBytes: Int, minOneBatch: Bool, partition: TopicPartition,
        nonBlocking: Bool
    ) throws(ReadError) -> LogRegion<D> {
        if let region = try search(
            from: from, upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch, partition: partition,
            nonBlocking: nonBlocking, useIndex: true)
        {
            return region
        }
        guard
            let region = try search(
                from: from, upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch, partition: partition,
                nonBlocking: nonBlocking, useIndex: false)
        else { return .empty(at: from) }
        return region.markedDamaged()
    }

    /// Position of the batch that an index search may start at for `offset`; `nil` if the entry does not
    /// point to the batch it names.
    func startPosition(
        for offset: Offset, scanner: inout BatchScanner<D>, nonBlocking: Bool
    ) throws(ReadError) -> Int? {
        let target = offset - baseOffset
        guard let entry = try index.last(nonBlocking: nonBlocking, where: { Int64($0.relativeOffset) <= target })
        else { return 0 }
        return try isTrue(entry, scanner: &scanner) ? Int(entry.position) : nil
    }

    private func isTrue(_ entry: OffsetIndexEntry, scanner: inout BatchScanner<D>) throws(ReadError) -> Bool {
        guard let header = try scanner.header(at: Int(entry.position)) else { return false }
        return header.lastOffset == baseOffset.rawValue + Int64(entry.relativeOffset)
    }

    /// Whether the batch that a time index entry names ends there and brought that time. Of the last entry of
    /// a closed segment also whether the next batches are no later: then entries behind it are missing.
    func isTrue(_ entry: TimeIndexEntry, isLast: Bool) throws(ReadError) -> Bool {
        var scanner = BatchScanner(file, end: size, nonBlocking: false)
        let offset = baseOffset + Int64(entry.relativeOffset)
        guard var position = try startPosition(for: offset, scanner: &scanner, nonBlocking: false) else { return false }
        while position < size, let header = try scanner.header(at: position), header.lastOffset < offset.rawValue {
            position += header.totalByteCount
        }
        guard let header = try scanner.header(at: position), header.lastOffset == offset.rawValue,
            header.maxTimestamp == entry.timestamp
        else { return false }
        if !isLast { return true }
        position += header.totalByteCount
        for _ in 0..<Self.followersChecked {
            guard let follower = try scanner.header(at: position) else { break }
            if follower.maxTimestamp > entry.timestamp { return false }
            position += follower.totalByteCount
        }
        return true
    }

    /// Batches behind the last time entry that are looked at: where times rise the next one tells already.
    private static var followersChecked: Int { 16 }

    /// `nil` when the index is wrong.
    private func search(
        from: Offset, upTo bound: Offset, maxBytes: Int, minOneBatch: Bool, partition: TopicPartition,
        nonBlocking: Bool, useIndex: Bool
    ) throws(ReadError) -> LogRegion<D>? {
        var scanner = BatchScanner(file, end: size, nonBlocking: nonBlocking)
        var position = 0
        if useIndex {
            guard let start = try startPosition(for: from, scanner: &scanner, nonBlocking: nonBlocking) else {
                return nil
            }
            position = start
        }
        // The first batch that ends at or after `from`; compaction may have left none of `from` itself.
        var found: RecordBatchHeader?
        while position < size {
            guard let header = try scanner.header(at: position) else {
                throw damaged(partition, at: from, position: position)
            }
            if header.lastOffset >= from.rawValue {
                found = header
                break
            }
            position += header.totalByteCount
        }
        guard let first = found, first.lastOffset < bound.rawValue else { return .empty(at: from) }
        let base = Offset(first.baseOffset)
        let room = max(maxBytes, minOneBatch ? first.totalByteCount : 0)
        guard first.totalByteCount <= room else { return .empty(at: from) }

        if endOffset <= bound, size - position <= room {
            return LogRegion(
                file: file, position: position, byteCount: size - position, baseOffset: base,
                nextOffset: endOffset, indexDamaged: false)
        }
        var end = position + first.totalByteCount
        var next = Offset(first.lastOffset + 1)
        if useIndex {
            let limit = position + room
            let entry = try index.last(nonBlocking: nonBlocking) {
                Int($0.position) <= limit && Int64($0.relativeOffset) < bound - baseOffset
            }
            if let entry, Int(entry.position) > end {
                guard try isTrue(entry, scanner: &scanner), let header = try scanner.header(at: Int(entry.position))
                else { return nil }
                end = Int(entry.position)
                next = Offset(header.baseOffset)
            }
        }
        while end < size {
            guard let header = try scanner.header(at: end) else {
                throw damaged(partition, at: next, position: end)
            }
            let following = end + header.totalByteCount
            guard following - position <= room, header.lastOffset < bound.rawValue else { break }
            end = following
            next = Offset(header.lastOffset + 1)
        }
        return LogRegion(
            file: file, position: position, byteCount: end - position, baseOffset: base, nextOffset: next,
            indexDamaged: false)
    }

    /// Only compaction leaves the end of a segment without batches: elsewhere the file was cut short.
    func missing(_ partition: TopicPartition, from: Offset, to next: Offset) -> ReadError {
        .storage(
            .corrupt(
                partition, offset: from,
                detail: "segment \(baseOffset) ends before offset \(from), and the next one starts at \(next)"))
    }

    func damaged(_ partition: TopicPartition, at offset: Offset, position: Int) -> ReadError {
        .storage(
            .corrupt(
                partition, offset: offset,
                detail: "no valid batch header at byte \(position) of segment \(baseOffset)"))
    }
}
