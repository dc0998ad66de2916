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
        guard damage == nil else { return }
        guard end < writtenEndOffset else {
            // An epoch that began here and wrote nothing.
            do {
                try forgetEpochs(from: end)
            } catch {
                throw directory.record(error)
            }
            return
        }
        let index = segmentIndex(for: end)
        let segment = segments[index]
        // Where what is left ends: behind it compaction may have left a gap, and no start takes a log that ends in one.
        var cutEnd = min(end, segment.baseOffset)
        do {
            var position = 0
            if end > segment.baseOffset {
                let view = try self.view(of: segment)
                var scanner = BatchScanner(view.file, end: segment.size, nonBlocking: false)
                if checkpoint.compactedEnd <= segment.baseOffset {
                    position = try view.startPosition(for: end, scanner: &scanner, nonBlocking: false) ?? 0
                }
                if position > 0, let header = try scanner.header(at: position) { cutEnd = Offset(header.baseOffset) }
                // A cut inside a batch takes the whole batch.
                while position < segment.size, let header = try scanner.header(at: position),
                    header.lastOffset < end.rawValue
                {
                    position += header.totalByteCount
                    cutEnd = Offset(header.lastOffset + 1)
                }
            }
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
        guard damage == nil else { return }
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
        } catch let error as DiskError {
            throw directory.record(error)
        } catch let error as StorageError {
            throw error
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        compactedEnd = start
        unflushedAborted = nil
        snapshotOffsets = []
        openSealed = []
        uncommittedMarkers = []
        producers = ProducerStateTable()
        recent.removeAll()
        logStartOffset = start
        setEnds(start, flushed: start)
        checkpoint.restart(at: start)
        try directory.writeCheckpoints()
    }
}
