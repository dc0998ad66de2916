package import MartletLogModel
import MartletRecordBatch
import NIOCore

/// What leaders and followers do to a log besides appending: epochs, cuts, a new beginning.
extension PartitionLog {
    /// A leadership begins at the log end (KIP-101). Nothing may be staged. Durable with the next flush; a crash before
    /// its first record forgets it, and the next leadership has a higher epoch anyway.
    package func beginEpoch(_ epoch: LeaderEpoch) {
        precondition(!hasStaged, "an epoch begins with staged batches")
        // Before the first append there is no folder to note it in; that append does.
        if leaderEpochs.assign(epoch, startOffset: logEndOffset), folderExists { markEpochsDirty() }
    }

    /// End of the largest epoch of this log at or below `epoch`, as a follower compares it with its leader's: for an
    /// epoch above all of this log the latest one, which ends at the log end.
    package func epochEnd(atOrBelow epoch: LeaderEpoch) -> (epoch: LeaderEpoch, endOffset: Offset)? {
        guard let latest = leaderEpochs.latest else { return nil }
        if epoch >= latest { return (latest, logEndOffset) }
        return leaderEpochs.endOffset(for: epoch, logEnd: logEndOffset)
    }

    /// Copies everything from `offset` on, from the batch that holds it, to the quarantine folder. Nothing may be staged.
    /// Blocks on the disk and is durable when it returns.
    package func quarantine(from offset: Offset) throws(StorageError) {
        precondition(!hasStaged, "quarantine with staged batches")
        guard offset < writtenEndOffset, !segments.isEmpty else { return }
        do {
            let place = try self.place(of: max(offset, logStartOffset))
            recovery.quarantinedBytes += try quarantine(fromSegment: place.segment, position: place.position, end: place.end)
        } catch let error as DiskError {
            throw directory.record(error)
        } catch let error as StorageError {
            throw error
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
    }

    /// Where the batch that holds `offset`, or is the first behind it, lies in its segment; `end` is where the log ends
    /// without it: with the batch before, because compaction may have left a gap behind that, and no start takes a log
    /// that ends in one.
    private func place(of offset: Offset) throws -> (segment: Int, position: Int, end: Offset) {
        let index = segmentIndex(for: offset)
        let segment = segments[index]
        var end = min(offset, segment.baseOffset)
        guard offset > segment.baseOffset else { return (index, 0, end) }
        let view = try self.view(of: segment)
        var scanner = BatchScanner(view.file, end: segment.size, nonBlocking: false)
        var position = 0
        if checkpoint.compactedEnd <= segment.baseOffset {
            position = try view.startPosition(for: offset, scanner: &scanner, nonBlocking: false) ?? 0
        }
        if position > 0, let header = try scanner.header(at: position) { end = Offset(header.baseOffset) }
        while position < segment.size, let header = try scanner.header(at: position), header.lastOffset < offset.rawValue {
            position += header.totalByteCount
            end = Offset(header.lastOffset + 1)
        }
        return (index, position, end)
    }

    /// A follower of a compacted log is about to have gaps between offsets before `end`: run the work off the event loop
    /// before the first of them is written, or a start after a crash takes it for damage; then call
    /// ``gapsAreAllowed(upTo:)``. Nil when they are allowed already.
    package func allowGaps(upTo end: Offset) -> CheckpointWork<D>? {
        guard end > gapsEnd else { return nil }
        checkpoint.raiseCompactedEnd(end, cutCount: checkpoint.cutCount)
        return CheckpointWork(directory: directory)
    }

    package func gapsAreAllowed(upTo end: Offset) { gapsEnd = max(gapsEnd, end) }

    /// Durable when it returns: to a recovery, batches of older epochs behind where the file says that an epoch began
    /// are damage, and the next leader's history may have such.
    func forgetEpochs(from end: Offset) throws(DiskError) {
        let path = folder + "/" + LogFileName.leaderEpochCheckpoint
        var kept = leaderEpochs
        kept.truncate(toEnd: end)
        if folderExists, kept != leaderEpochs || dirty.hasReplacement(path) {
            try disk.replaceAtomically(path, with: kept.encode())
            dirty.forgetReplacement(path)
        }
        leaderEpochs = kept
    }

    /// A follower's cut: removes everything from `end` on, because the leader has something else there
    /// (KIP-101). Nothing may be staged, no flush under way. Blocks on the disk: the cut is durable when this returns, so that
    /// no crash can bring the old records back under new ones.
    package func truncate(to end: Offset) throws(StorageError) {
        precondition(!hasStaged && !isFlushUnderWay, "truncate with staged batches or during a flush")
        precondition(end >= logStartOffset, "truncate below the log start; use restart(at:)")
        guard damage == nil, !checkpoint.isDeleted else { return }
        guard end < writtenEndOffset else {
            // An epoch that began here and wrote nothing.
            do {
                try forgetEpochs(from: end)
            } catch {
                throw directory.record(error)
            }
            return
        }
        let cutEnd: Offset
        do {
            // A cut inside a batch takes the whole batch.
            let (index, position, wholeEnd) = try place(of: end)
            let segment = segments[index]
            cutEnd = wholeEnd
            // Nothing is left of what was not deleted.
            if cutEnd < logStartOffset { return try restart(at: logStartOffset) }
            // First the promise that the disk has more, or a crash in between looks like damage.
            if cutEnd < max(checkpoint.recoveryPoint, checkpoint.durableRecoveryPoint) {
                checkpoint.setRecoveryPoint(cutEnd)
                try directory.writeCheckpoints()
            }
            // A crash in between: recovery learns them again from the batches.
            try forgetEpochs(from: cutEnd)
            for offset in snapshotOffsets where offset > cutEnd.rawValue {
                try disk.removeIfPresent(folder + "/" + LogFileName.make(offset, LogFileName.producerSnapshot))
            }
            // What is left is flushed by the cut; its size as a closed segment no longer counts.
            for touched in segments[index...] { try forget(touched, withTransactionIndex: touched !== segment) }
            try cut(toSegment: index, position: position, end: cutEnd)
            try reindexLastSegment()
            // The cut has flushed the file, but not what counts as flushed.
            if flushedEndOffset < cutEnd, let last = segments.last { dirty.markFile(try last.file()) }
        } catch let error as DiskError {
            throw directory.record(error)
        } catch let error as StorageError {
            throw error
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        compactedEnd = min(compactedEnd, cutEnd)
        gapsEnd = min(gapsEnd, cutEnd)
        let loweredCompactedEnd = checkpoint.logWasCut(to: cutEnd)
        snapshotOffsets.removeAll { $0 > cutEnd.rawValue }
        uncommittedMarkers.removeAll { $0.lastOffset >= cutEnd.rawValue }
        recent.removeAll()
        let flushed = min(flushedEndOffset, cutEnd)
        setEnds(cutEnd, flushed: flushed)
        checkpoint.setRecoveryPoint(flushed)
        do {
            try reloadProducers()
        } catch let error as ReadError {
            throw .offline(topicPartition, detail: "\(error)")
        } catch let error as DiskError {
            throw directory.record(error)
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        if loweredCompactedEnd { try directory.writeCheckpoints() }
    }

    /// A follower's new beginning: nothing that the log has is the leader's any more, so all of it goes, and the log is
    /// empty and starts at `start`, below or above where it was. Nothing may be staged, no flush under way. Blocks on
    /// the disk and is durable when it returns; a crash before leaves an empty log at the former start, or less taken.
    package func restart(at start: Offset) throws(StorageError) {
        precondition(!hasStaged && !isFlushUnderWay, "restart with staged batches or during a flush")
        guard damage == nil, !checkpoint.isDeleted else { return }
        do {
            // First the promise that the disk has more, or a crash in between looks like damage.
            let promised = min(logStartOffset, start)
            if max(checkpoint.recoveryPoint, checkpoint.durableRecoveryPoint) > promised {
                checkpoint.setRecoveryPoint(promised)
                try directory.writeCheckpoints()
            }
            // A crash in between: recovery learns them again from the batches.
            try forgetEpochs(from: .zero)
            // Whole segments, from the end: what a crash leaves has no hole and reaches to the log start, or is empty.
            for segment in segments.reversed() {
                try forget(segment)
                try removeFiles(of: segment)
                segments.removeLast()
                try disk.syncDirectory(folder)
            }
            for offset in snapshotOffsets {
                try disk.removeIfPresent(folder + "/" + LogFileName.make(offset, LogFileName.producerSnapshot))
            }
            if start > .zero, !folderExists {
                // A log that starts behind zero and has no folder would pass for a lost one.
                try prepareFolder()
                try disk.syncDirectory(directory.path)
            }
        } catch let error as DiskError {
            throw directory.record(error)
        } catch let error as StorageError {
            throw error
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        compactedEnd = start
        gapsEnd = start
        unflushedAborted = nil
        snapshotOffsets = []
        openSealed = []
        uncommittedMarkers = []
        producers = ProducerStateTable()
        recent.removeAll()
        logStartOffset = start
        setEnds(start, flushed: start)
        try directory.writeCheckpoints { checkpoint.restart(at: start) }
    }
}
