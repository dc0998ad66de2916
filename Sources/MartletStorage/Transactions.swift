package import MartletLogModel
import MartletRecordBatch
import NIOCore

// Transactions in a log: markers, the last stable offset, and which transactions were aborted.

extension PartitionLog {
    /// Stages the end of a producer's transaction, as its coordinator decided it. A marker for a producer without an
    /// open transaction here is appended as well: it fences what was sent before it.
    ///
    /// - Throws: `invalidProducerEpoch` and `coordinatorFenced` for markers of a transaction that is over.
    package func stageMarker(
        _ marker: MarkerAppend, leaderEpoch: LeaderEpoch, now: Timestamp
    ) throws(AppendError) -> AppendOutcome {
        if !configuration.suspended.contains(.markerEpoch) { try producers.check(marker) }
        let end = EndTransactionMarker(commits: marker.commits, coordinatorEpoch: marker.coordinatorEpoch)
        let batch: ByteBuffer
        var header: RecordBatchHeader
        do throws(RecordBatchError) {
            batch = try end.batch(
                producerID: marker.producerID, producerEpoch: marker.producerEpoch, timestamp: now.rawValue)
            header = try RecordBatchHeader(reading: batch)
        } catch {
            preconditionFailure("a marker cannot be written: \(error)")
        }
        try requireAppendable(batch.readableBytes)
        header.baseOffset = logEndOffset.rawValue
        header.partitionLeaderEpoch = leaderEpoch.rawValue
        RecordBatchPatch.assign(
            baseOffset: header.baseOffset, leaderEpoch: leaderEpoch.rawValue, throughSharedStorageOf: batch)
        enqueue(batch, header: header, leaderEpoch: leaderEpoch, now: now, marker: end)
        return .staged(base: Offset(header.baseOffset), last: Offset(header.lastOffset), appendTimestamp: nil)
    }

    /// Exclusive end of what consumers with `isolation.level=read_committed` may read: everything before it is
    /// decided, and its markers are below the high watermark, so that no decision that was shown can vanish.
    package func lastStableOffset(highWatermark: Offset) -> Offset {
        while let first = uncommittedMarkers.first, first.lastOffset < highWatermark.rawValue {
            uncommittedMarkers.removeFirst()
        }
        var stable = highWatermark.rawValue
        if let open = producers.openTransactions.first { stable = min(stable, open.firstOffset) }
        for transaction in uncommittedMarkers { stable = min(stable, transaction.firstOffset) }
        return max(Offset(stable), min(logStartOffset, highWatermark))
    }

    /// Aborted transactions with records or marker from `start` on that began before `end`: what a consumer needs
    /// to leave out their records (KIP-98). In the order of their markers.
    ///
    /// Small index files are read where memory does not have them.
    package func abortedTransactions(from start: Offset, upTo end: Offset) throws(ReadError) -> [AbortedTransaction] {
        var found: [AbortedTransaction] = []
        guard start < end, !segments.isEmpty else { return found }
        for index in segmentIndex(for: start)..<segments.count {
            for entry in try aborted(in: segments[index]) {
                if entry.lastOffset >= start, entry.firstOffset < end { found.append(entry) }
                if entry.lastStableOffset >= end { return found }
            }
        }
        return found
    }

    /// Entries of one segment. A damaged file is made anew from the log.
    func aborted(in segment: Segment<D>) throws(ReadError) -> [AbortedTransaction] {
        do {
            let (entries, isWhole) = try segment.loadAborted()
            if isWhole { return entries }
        } catch {
            throw .storage(directory.record(error))
        }
        try rebuildTransactionIndexes()
        return segment.aborted
    }

    /// Writes waiting entries of the transaction index. They must be on the disk before the recovery point passes
    /// their markers: nothing before it is looked at again after a crash.
    func persistAborted(of segment: Segment<D>) {
        do {
            guard let written = try segment.persistAborted() else { return }
            dirty.markFile(written.file)
            if written.isNew || unflushedAborted != nil {
                let sequence = dirty.markDirectory(folder)
                if unflushedAborted != nil { unflushedAborted = sequence }
            }
        } catch {
            _ = directory.record(error)
            // Until it has been written and flushed, the recovery point stays.
            unflushedAborted = .max
        }
    }

    /// Makes the transaction index anew by a walk over the whole log. Blocks; only for damaged files.
    func rebuildTransactionIndexes() throws(ReadError) {
        var table = ProducerStateTable()
        var derived: [AbortedTransaction] = []
        try walkBatches(from: segments.first?.baseOffset ?? logStartOffset) { header, marker in
            if let entry = table.follow(header, marker: marker, now: Timestamp(milliseconds: 0))?.aborted {
                derived.append(entry)
            }
        }
        try replaceAborted(from: .zero, with: derived)
    }

    /// Replaces the entries of markers at or behind `start` with those found by a walk, and makes them durable.
    func replaceAborted(from start: Offset, with derived: [AbortedTransaction]) throws(ReadError) {
        do throws(DiskError) {
            var changed = false
            for (index, segment) in segments.enumerated() where segment.endOffset > start || segment === segments.last {
                let next = index + 1 < segments.count ? segments[index + 1].baseOffset : Offset(Int64.max)
                let kept = try segment.loadAborted().entries.prefix { $0.lastOffset < start }
                let own = derived.filter { $0.lastOffset >= max(start, segment.baseOffset) && $0.lastOffset < next }
                dirty.forgetReplacement(segment.path(LogFileName.transactionIndex))
                do throws(DiskError) {
                    if try segment.replaceAborted(Array(kept) + own, areUnflushed: !own.isEmpty) { changed = true }
                } catch {
                    // On a full disk memory has them, and the recovery point stays until the file has them too.
                    guard error.kind == .noSpace else { throw error }
                    _ = directory.record(error)
                    unflushedAborted = .max
                }
            }
            if changed { try disk.syncDirectory(folder) }
        } catch {
            throw .storage(directory.record(error))
        }
    }
}

extension ProducerStateTable {
    /// Records a batch and says which transaction it completed.
    mutating func follow(
        _ header: RecordBatchHeader, marker: EndTransactionMarker?, now: Timestamp
    ) -> CompletedTransaction? {
        guard header.hasProducerID else { return nil }
        let first = marker == nil ? nil : entries[header.producerID]?.transactionFirstOffset
        apply(header, now: now, marker: marker)
        guard let marker, let first else { return nil }
        return completed(header, marker: marker, first: first)
    }

    /// The transaction that began at `first` and that a marker, already recorded, has ended.
    func completed(
        _ header: RecordBatchHeader, marker: EndTransactionMarker, first: Offset
    ) -> CompletedTransaction {
        var completed = CompletedTransaction(firstOffset: first.rawValue, lastOffset: header.lastOffset)
        if !marker.commits {
            completed.aborted = AbortedTransaction(
                producerID: header.producerID, firstOffset: first, lastOffset: Offset(header.lastOffset),
                lastStableOffset: Offset(openTransactions.first?.firstOffset ?? header.lastOffset + 1))
        }
        return completed
    }

    /// Judges a marker; changes nothing.
    ///
    /// Under the second protocol a marker for an open transaction has a higher epoch than its records: one with the
    /// same epoch belongs to an earlier transaction whose marker came late (KIP-1228). Without an open transaction
    /// the same epoch is a repeat of what is there.
    package func check(_ marker: MarkerAppend) throws(AppendError) {
        guard let entry = entries[marker.producerID] else { return }
        let producer = ProducerID(marker.producerID)
        let isTooOld =
            marker.raisesEpoch && entry.transactionFirstOffset != nil
            ? marker.producerEpoch <= entry.epoch : marker.producerEpoch < entry.epoch
        if isTooOld {
            throw .invalidProducerEpoch(producer, current: entry.epoch, found: marker.producerEpoch)
        }
        if marker.coordinatorEpoch < entry.coordinatorEpoch {
            throw .coordinatorFenced(producer, current: entry.coordinatorEpoch, found: marker.coordinatorEpoch)
        }
    }
}
