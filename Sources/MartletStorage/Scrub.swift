package import MartletLogModel
import MartletRecordBatch
import NIOCore

/// What a scrub found wrong.
package struct ScrubFinding: Equatable, Sendable {
    /// First offset of the batch, as far as it can be told.
    package let offset: Offset
    package let detail: String
}

package struct ScrubResult: Equatable, Sendable {
    /// Where to go on; equal to the end that was asked for when everything was looked at.
    package let nextOffset: Offset
    package let checkedBytes: Int
    package let findings: [ScrubFinding]
}

/// Re-reads stored batches and checks all that can be checked: CRC, order of offsets, leader epochs
/// against the epoch file. Consumers check the CRC of what they fetch; this finds the rot in what nobody
/// fetches. Run it off the event loop, at whatever pace the disk has to spare.
package struct ScrubWork<D: Disk>: Sendable {
    let sources: [CompactionPlan<D>.Source]
    let from: Offset
    let end: Offset
    let maxBytes: Int
    let epochs: LeaderEpochCache
    /// Compaction may have left gaps before this.
    let gapsEnd: Offset

    /// At most this many findings per run: a dead disk must not fill the memory.
    package static var findingLimit: Int { 100 }

    package func run() throws(ReadError) -> ScrubResult {
        var checked = 0
        var findings: [ScrubFinding] = []
        var next = from
        for source in sources where source.endOffset > from {
            var scanner = BatchScanner(source.file, end: source.size, nonBlocking: false)
            var position = 0
            var expected = source.baseOffset
            while position < source.size {
                guard let header = try scanner.header(at: position) else {
                    findings.append(
                        ScrubFinding(
                            offset: expected,
                            detail: "no batch header at byte \(position) of \(source.file.path)"))
                    next = source.endOffset
                    break
                }
                if header.lastOffset >= from.rawValue {
                    if checked >= maxBytes || findings.count >= Self.findingLimit {
                        return ScrubResult(nextOffset: next, checkedBytes: checked, findings: findings)
                    }
                    if let problem = try problem(header, at: position, in: source, expected: expected) {
                        findings.append(ScrubFinding(offset: expected, detail: problem))
                    }
                    checked += header.totalByteCount
                }
                expected = Offset(header.lastOffset + 1)
                next = expected
                position += header.totalByteCount
            }
            if position == source.size, expected < source.endOffset, source.endOffset > gapsEnd {
                findings.append(
                    ScrubFinding(
                        offset: expected,
                        detail: "\(source.file.path) ends at offset \(expected), not \(source.endOffset)"))
            }
            next = max(next, source.endOffset)
        }
        return ScrubResult(nextOffset: max(next, from), checkedBytes: checked, findings: findings)
    }

    private func problem(
        _ header: RecordBatchHeader, at position: Int, in source: CompactionPlan<D>.Source, expected: Offset
    ) throws(ReadError) -> String? {
        let place = "batch \(header.baseOffset) at byte \(position) of \(source.file.path)"
        if try !BatchChecksum.matches(header, at: position, in: source.file, end: source.size) {
            return "the CRC of \(place) does not match"
        }
        if header.baseOffset < expected.rawValue
            || (header.baseOffset > expected.rawValue && header.baseOffset > gapsEnd.rawValue)
        {
            return "\(place) should have offset \(expected)"
        }
        if header.lastOffset >= source.endOffset.rawValue { return "\(place) reaches over the segment's end" }
        if header.partitionLeaderEpoch >= 0,
            let epoch = epochs.epoch(at: Offset(header.baseOffset)), epoch.rawValue != header.partitionLeaderEpoch
        {
            return "\(place) has leader epoch \(header.partitionLeaderEpoch), not \(epoch)"
        }
        return nil
    }
}

extension PartitionLog {
    /// A check of the stored batches from `from` on, about `maxBytes` of them.
    package func scrub(from: Offset, maxBytes: Int) throws(StorageError) -> ScrubWork<D> {
        var sources: [CompactionPlan<D>.Source] = []
        do {
            for segment in segments where segment.endOffset > from {
                let end = segment === segments.last ? writtenEndOffset : segment.endOffset
                sources.append(
                    CompactionPlan.Source(
                        baseOffset: segment.baseOffset, endOffset: end, size: segment.size,
                        file: try segment.file()))
                // The work holds the file from here on.
                if segment.isSealed { segment.releaseFiles() }
            }
        } catch {
            throw directory.record(error)
        }
        return ScrubWork(
            sources: sources, from: max(from, logStartOffset), end: writtenEndOffset, maxBytes: maxBytes,
            epochs: leaderEpochs, gapsEnd: checkpoint.compactedEnd)
    }

    /// Checks the whole log; blocks on the disk.
    package func verify() throws(ReadError) -> ScrubResult {
        let work: ScrubWork<D>
        do {
            work = try scrub(from: logStartOffset, maxBytes: Int.max)
        } catch {
            throw .storage(error)
        }
        return try work.run()
    }
}
