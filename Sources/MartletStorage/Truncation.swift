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

    private func forgetEpochs(from end: Offset) {
        let before = leaderEpochs
        leaderEpochs.truncate(toEnd: end)
        if leaderEpochs != before, folderExists { markEpochsDirty() }
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
            forgetEpochs(from: end)
            return
        }
        let index = segmentIndex(for: end)
        let segment = segments[index]
        var cutEnd = end
        do {
            var position = 0
            if end > segment.baseOffset {
                let view = try self.view(of: segment)
                var scanner = BatchScanner(view.file, end: segment.size, nonBlocking: false)
                position = try view.startPosition(for: end, scanner: &scanner, nonBlocking: false) ?? 0
                while position < segment.size, let header = try scanner.header(at: position),
                    header.lastOffset < end.rawValue
                {
                    position += header.totalByteCount
                }
                // A cut inside a batch takes the whole batch.
                if let header = try scanner.header(at: position) { cutEnd = min(end, Offset(header.baseOffset)) }
            }
            // First the promise that the disk has more, or a crash in between looks like damage.
            if cutEnd < checkpoint.recoveryPoint {
                checkpoint.setRecoveryPoint(cutEnd)
                try directory.writeCheckpoints()
            }
            for offset in snapshotOffsets where offset > cutEnd.rawValue {
                try disk.removeIfPresent(folder + "/" + LogFileName.make(offset, LogFileName.producerSnapshot))
            }
            // What is left is flushed by the cut; its size as a closed segment no longer counts.
            for touched in segments[index...] { forget(touched, withTransactionIndex: touched !== segment) }
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
        cutCount += 1
        compactedEnd = min(compactedEnd, cutEnd)
        checkpoint.lowerInstalledEnd(to: cutEnd)
        snapshotOffsets.removeAll { $0 > cutEnd.rawValue }
        uncommittedMarkers.removeAll { $0.lastOffset >= cutEnd.rawValue }
        recent.removeAll()
        forgetEpochs(from: cutEnd)
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
            if checkpoint.recoveryPoint > promised {
                checkpoint.setRecoveryPoint(promised)
                try directory.writeCheckpoints()
            }
            // Whole segments, from the end: what a crash leaves has no hole and reaches to the log start, or is empty.
            for segment in segments.reversed() {
                forget(segment)
                try removeFiles(of: segment)
                segments.removeLast()
                try disk.syncDirectory(folder)
            }
            for offset in snapshotOffsets {
                try disk.removeIfPresent(folder + "/" + LogFileName.make(offset, LogFileName.producerSnapshot))
            }
            leaderEpochs = LeaderEpochCache()
            if folderExists {
                try disk.replaceAtomically(
                    folder + "/" + LogFileName.leaderEpochCheckpoint, with: leaderEpochs.encode())
                dirty.forgetReplacement(folder + "/" + LogFileName.leaderEpochCheckpoint)
            }
        } catch let error as DiskError {
            throw directory.record(error)
        } catch let error as StorageError {
            throw error
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        cutCount += 1
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
