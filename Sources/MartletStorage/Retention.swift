package import MartletLogModel
import MartletRecordBatch
import NIOCore

extension Timestamp {
    /// Saturates: delays come from topic configs, which may be as large as a number can be.
    func advanced(byMilliseconds delay: Int64) -> Timestamp {
        let (sum, overflow) = rawValue.addingReportingOverflow(delay)
        return Timestamp(milliseconds: overflow ? Int64.max : sum)
    }
}

/// Files out of the log that wait for their readers to finish.
struct PendingDeletion: Sendable {
    let paths: [String]
    let due: Timestamp
}

/// Unlinks files; a gigabyte takes milliseconds, so run it off the event loop.
package struct FileRemoval<D: Disk>: Sendable {
    let disk: D
    let paths: [String]

    package func run() throws(StorageError) {
        do {
            for path in paths { try disk.removeIfPresent(path) }
        } catch {
            throw .file(error)
        }
    }
}

extension PartitionLog {
    /// DeleteRecords: asks for a log start at `offset`. The new start counts when it is durable: run the
    /// work off the event loop, then call ``adoptLogStart(now:)``, then answer. Nil when the log starts
    /// there already.
    ///
    /// - Throws: `offsetOutOfRange` beyond the high watermark or the flushed end.
    package func deleteRecords(
        before offset: Offset, highWatermark: Offset
    ) throws(ReadError) -> LogStartWork<D>? {
        guard offset <= min(highWatermark, flushedEndOffset) else {
            throw .offsetOutOfRange(start: logStartOffset, end: min(highWatermark, flushedEndOffset))
        }
        guard offset > logStartOffset else { return nil }
        checkpoint.proposeLogStart(offset)
        return LogStartWork(directory: directory, checkpoint: checkpoint, target: offset)
    }

    /// Retention by time and size: proposes the log start that drops what is too old or too much. Never
    /// above the high watermark. Run the work off the event loop, then call ``adoptLogStart(now:)``.
    ///
    /// A segment is as old as its newest record, but no newer than its last append: a record timestamp in
    /// the future cannot pin it.
    package func applyRetention(
        now: Timestamp, highWatermark: Offset
    ) throws(StorageError) -> LogStartWork<D>? {
        guard configuration.deletesOld, damage == nil, !segments.isEmpty else { return nil }
        let ceiling = min(highWatermark, flushedEndOffset)
        var excess = configuration.retentionBytes.map { byteCount - $0 } ?? 0
        var target = logStartOffset
        for segment in segments {
            guard segment.endOffset <= ceiling, segment.size > 0 || segment.isSealed else { break }
            let isActive = segment === segments.last
            var drops = segment.endOffset <= logStartOffset && !isActive
            if let limit = configuration.retentionMilliseconds, !drops {
                drops = try now.rawValue - age(of: segment) > limit
            }
            if configuration.retentionBytes != nil, !drops, !isActive, excess >= segment.size { drops = true }
            guard drops else { break }
            if isActive {
                // The log end lives in the name of the next, empty segment.
                if hasStaged || !directory.isWritable(mayUseReserve: true) { break }
                try roll(now: now)
            }
            excess -= segment.size
            target = max(target, segment.endOffset)
            if isActive { break }
        }
        guard target > logStartOffset else { return nil }
        checkpoint.proposeLogStart(target)
        return LogStartWork(directory: directory, checkpoint: checkpoint, target: target)
    }

    /// Time of the segment's newest record, at most its last append.
    private func age(of segment: Segment<D>) throws(StorageError) -> Int64 {
        do throws(ReadError) {
            try loadTimes(of: segment)
        } catch {
            // Its times cannot be told: then the time of the last append has to do.
            guard case .storage(let error) = error, !error.isDamage else { return segment.lastAppend.rawValue }
            throw error
        }
        guard let maximum = segment.maximum, maximum.timestamp >= 0 else { return segment.lastAppend.rawValue }
        return min(maximum.timestamp, segment.lastAppend.rawValue)
    }

    /// Raises the log start to what is durable and takes segments below it out of the log. Their files are
    /// renamed now and removed by ``purgeDeleted(now:)`` after `file.delete.delay.ms`.
    package func adoptLogStart(now: Timestamp) throws(StorageError) {
        let start = min(checkpoint.durableLogStart, writtenEndOffset)
        guard start > logStartOffset else { return }
        logStartOffset = start
        try retireBelowLogStart(now: now)
        leaderEpochs.truncate(toStart: start)
        if folderExists { markEpochsDirty() }
        removeOldSnapshots(now: now)
    }

    /// Takes segments that end below the log start out of the log; the active one stays.
    func retireBelowLogStart(now: Timestamp) throws(StorageError) {
        var count = 0
        while count + 1 < segments.count, segments[count].endOffset <= logStartOffset { count += 1 }
        let dropped = Array(segments.prefix(count))
        segments.removeFirst(count)
        try retire(dropped, now: now)
    }

    /// Renames the files of segments that left the log.
    private func retire(_ dropped: [Segment<D>], now: Timestamp) throws(StorageError) {
        guard !dropped.isEmpty else { return }
        var paths: [String] = []
        do throws(DiskError) {
            for segment in dropped {
                try forget(segment)
                segment.releaseFiles()
                for kind in [
                    LogFileName.log, LogFileName.offsetIndex, LogFileName.timeIndex, LogFileName.transactionIndex,
                ] {
                    let path = segment.path(kind)
                    do throws(DiskError) {
                        try disk.rename(path, to: path + LogFileName.deletedSuffix)
                    } catch {
                        if error.kind == .notFound, kind != LogFileName.log { continue }
                        throw error
                    }
                    paths.append(path + LogFileName.deletedSuffix)
                }
            }
        } catch {
            throw directory.record(error)
        }
        dirty.markDirectory(folder)
        deletions.append(
            PendingDeletion(
                paths: paths,
                due: now.advanced(byMilliseconds: configuration.fileDeleteDelayMilliseconds)))
    }

    /// Keeps the newest two snapshots, and those from the recovery point of the checkpoint file on, from which a
    /// start after a crash walks. An older one serves only a log that was cut far back, which can walk its batches
    /// instead.
    func removeOldSnapshots(now: Timestamp) {
        guard snapshotOffsets.count > Self.snapshotLimit else { return }
        let recoveryPoint = checkpoint.durableRecoveryPoint.rawValue
        let needed = snapshotOffsets.count { $0 > recoveryPoint } + 1
        let old = snapshotOffsets.dropLast(min(max(Self.snapshotLimit, needed), Self.snapshotCeiling))
        guard !old.isEmpty else { return }
        deletions.append(
            PendingDeletion(
                paths: old.map { folder + "/" + LogFileName.make($0, LogFileName.producerSnapshot) }, due: now))
        snapshotOffsets.removeFirst(old.count)
    }

    private static var snapshotLimit: Int { 2 }
    /// Beyond this many the checkpoint files have not been written for so long that something else is wrong.
    private static var snapshotCeiling: Int { 64 }

    /// Files whose time has come, as work for a thread that may wait; nil when there are none.
    package func purgeDeleted(now: Timestamp) -> FileRemoval<D>? {
        removeOldSnapshots(now: now)
        guard deletions.contains(where: { $0.due <= now }) else { return nil }
        let paths = deletions.filter { $0.due <= now }.flatMap(\.paths)
        deletions.removeAll { $0.due <= now }
        return FileRemoval(disk: disk, paths: paths)
    }
}
