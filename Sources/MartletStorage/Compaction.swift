package import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Key-latest compaction of closed segments: planned by the log's owner, run on any thread, installed by
/// the owner.
///
/// Each segment is rewritten by itself and replaces its file in one rename, so that every mixture of old
/// and new segments a crash can leave is a correct log: a record goes only if a later one with its key is
/// durable. The exception is a tombstone, whose disappearance relies on older records having gone in an
/// *earlier* pass; hence a pass starts only when the previous one's renames are flushed.
///
/// Records of aborted transactions go at once: everything a plan covers is below the last stable offset, so each
/// transaction in it is decided. A marker goes `delete.retention.ms` after the pass that found its transaction
/// without batches, like a tombstone, and an abort marker only after its entry in the transaction index is gone for
/// good: an entry without its marker would hide what the producer committed later.
package struct CompactionPlan<D: Disk>: Sendable {
    struct Source: Sendable {
        let baseOffset: Offset
        let endOffset: Offset
        let size: Int
        let file: SegmentFile<D>
    }

    let directory: LogDirectory<D>
    let checkpoint: PartitionCheckpoint
    let folder: String
    let partition: TopicPartition
    let sources: [Source]
    /// Keys are collected from here on; what lies before was compacted already.
    let dirtyStart: Offset
    let logStart: Offset
    let now: Timestamp
    let deleteRetention: Int64
    let indexInterval: Int
    /// Keys remembered at once, 40 bytes each; the pass covers fewer offsets when there are more keys.
    let keyLimit: Int
    /// Last batch of each producer: its header stays for the producer's sequence.
    let producerLastOffsets: [Int64: Int64]
    /// Producers whose last batch is a marker of this epoch: its header stays for the epoch.
    let producerMarkerEpochs: [Int64: Int16]
    /// Aborted transactions with records or marker in the sources.
    let aborted: [AbortedTransaction]
    /// ``PartitionCheckpoint/cutCount`` of the log that this is about.
    let cutCount: Int

    /// Two independent 64-bit hashes keyed per process: no two keys of a topic collide by chance (2⁻¹²⁸ a
    /// pair) or by a producer's intention.
    struct KeyHash: Hashable {
        var first: Int
        var second: Int

        init(_ key: ByteBuffer) {
            var first = Hasher()
            first.combine(UInt8(1))
            var second = Hasher()
            second.combine(UInt8(2))
            key.withUnsafeReadableBytes {
                first.combine(bytes: $0)
                second.combine(bytes: $0)
            }
            self.first = first.finalize()
            self.second = second.finalize()
        }
    }

    /// Rewrites what shrinks. Blocks; memory is bounded by `keyLimit` and one batch.
    package func run() throws(StorageError) -> CompactionResult<D> {
        do {
            return try rewrite()
        } catch let error as StorageError {
            throw error
        } catch let error as ReadError {
            if case .storage(let error) = error { throw error }
            throw .offline(partition, detail: "\(error)")
        } catch let error as DiskError {
            throw error.kind == .noSpace ? .diskFull("\(error)") : .file(error)
        } catch {
            throw .corrupt(partition, offset: dirtyStart, detail: "\(error)")
        }
    }

    private func rewrite() throws -> CompactionResult<D> {
        let decompressor = RecordDecompressor()
        var transactions = CompactedTransactions(aborted)
        let (latest, covered) = try collectKeys(transactions, decompressor)
        var rewritten: [CompactionResult<D>.Rewritten] = []
        do {
            for source in sources where source.size > 0 && source.baseOffset < covered {
                if let result = try rewrite(
                    source, latest: latest, covered: covered, transactions: &transactions, decompressor)
                {
                    rewritten.append(result)
                }
            }
            // Gaps are damage unless it is on record that compaction may have made them: that first.
            if !rewritten.isEmpty {
                checkpoint.raiseCompactedEnd(covered, cutCount: cutCount)
                try directory.writeCheckpoints()
            }
        } catch {
            // On a full disk the half-done files would take the room that others wait for.
            for path in sources.flatMap(cleanedPaths) { try directory.disk.removeIfPresent(path) }
            throw error
        }
        return CompactionResult(
            rewritten: rewritten, compactedEnd: covered, emptiedMarkers: transactions.emptiedMarkers, cutCount: cutCount)
    }

    /// The latest offset of each key from `dirtyStart` on, and up to where that is complete.
    private func collectKeys(
        _ transactions: CompactedTransactions, _ decompressor: RecordDecompressor
    ) throws -> (latest: [KeyHash: Int64], covered: Offset) {
        var latest: [KeyHash: Int64] = [:]
        for source in sources where source.endOffset > dirtyStart && source.size > 0 {
            var scanner = BatchScanner(source.file, end: source.size, nonBlocking: false)
            var position = 0
            while position < source.size {
                let header = try self.header(&scanner, source, position)
                if header.lastOffset >= dirtyStart.rawValue, !header.isControl, header.recordCount > 0,
                    !transactions.isAborted(header)
                {
                    if latest.count + Int(header.recordCount) > keyLimit, !latest.isEmpty {
                        return (latest, Offset(header.baseOffset))
                    }
                    var records = try records(header, source, position, decompressor)
                    while let record = try records.next() {
                        if let key = record.key { latest[KeyHash(key)] = record.offset.rawValue }
                    }
                }
                position += header.totalByteCount
            }
        }
        return (latest, sources.last?.endOffset ?? dirtyStart)
    }

    private func header(
        _ scanner: inout BatchScanner<D>, _ source: Source, _ position: Int
    ) throws -> RecordBatchHeader {
        guard let header = try scanner.header(at: position), header.baseOffset >= source.baseOffset.rawValue,
            header.lastOffset < source.endOffset.rawValue,
            try BatchChecksum.matches(header, at: position, in: source.file, end: source.size)
        else {
            throw StorageError.corrupt(
                partition, offset: source.baseOffset,
                detail: "no valid batch at byte \(position) of segment \(source.baseOffset)")
        }
        return header
    }

    private func records(
        _ header: RecordBatchHeader, _ source: Source, _ position: Int, _ decompressor: RecordDecompressor
    ) throws -> RecordIterator {
        let bytes = try source.file.readBytes(at: position, count: header.totalByteCount, nonBlocking: false)
        return try RecordIterator(bytes, decompressor: decompressor)
    }

    /// The log file first.
    private func cleanedPaths(of source: Source) -> [String] {
        [LogFileName.log, LogFileName.offsetIndex, LogFileName.timeIndex].map {
            folder + "/" + LogFileName.make(source.baseOffset.rawValue, $0) + LogFileName.cleanedSuffix
        }
    }

    /// Nil when nothing would change.
    private func rewrite(
        _ source: Source, latest: [KeyHash: Int64], covered: Offset, transactions: inout CompactedTransactions,
        _ decompressor: RecordDecompressor
    ) throws -> CompactionResult<D>.Rewritten? {
        let paths = cleanedPaths(of: source)
        let file = SegmentFile<D>(try directory.disk.open(paths[0], .create), path: paths[0])
        try file.file.truncate(to: 0)
        let indexed = Segment(disk: directory.disk, folder: folder, baseOffset: source.baseOffset, size: 0, lastAppend: now)
        try indexed.startTemporaryIndexes(LogFileName.cleanedSuffix)
        var output = SegmentOutput(file: file, indexed: indexed, indexInterval: indexInterval)
        var changed = false
        var scanner = BatchScanner(source.file, end: source.size, nonBlocking: false)
        var position = 0
        while position < source.size {
            try directory.requireWritable(mayUseReserve: false)
            let header = try self.header(&scanner, source, position)
            let fate: Fate
            if header.baseOffset >= covered.rawValue {
                fate = .keep
            } else if header.isControl {
                fate =
                    transactions.isEmptied(by: header)
                    ? try self.fate(ofEmptiedMarker: header, source, position, &transactions, decompressor) : .keep
            } else {
                transactions.observe(header)
                fate = try self.fate(
                    of: header, source, position, latest: latest, isAborted: transactions.isAborted(header),
                    decompressor)
            }
            switch fate {
            case .keep:
                let bytes = try source.file.readBytes(
                    at: position, count: header.totalByteCount, nonBlocking: false)
                try output.append(bytes, header)
            case .drop:
                changed = true
            case .replace(let batch):
                changed = true
                try output.append(batch, try RecordBatchHeader(reading: batch))
            }
            position += header.totalByteCount
        }
        guard changed else {
            for path in paths { try directory.disk.removeIfPresent(path) }
            return nil
        }
        try output.finish()
        return CompactionResult.Rewritten(
            baseOffset: source.baseOffset, sourceSize: source.size, cleanedPaths: paths, size: output.size,
            maximum: indexed.maximum, indexes: indexed.indexes)
    }

    private enum Fate {
        case keep
        case drop
        case replace(ByteBuffer)
    }

    /// A marker whose transaction has no batches left.
    private func fate(
        ofEmptiedMarker header: RecordBatchHeader, _ source: Source, _ position: Int,
        _ transactions: inout CompactedTransactions, _ decompressor: RecordDecompressor
    ) throws -> Fate {
        let isProducersLast = producerMarkerEpochs[header.producerID] == header.producerEpoch
        if header.recordCount == 0 { return isProducersLast ? .keep : .drop }
        if transactions.dropEntry(ofMarker: header.lastOffset), header.hasDeleteHorizon { return .keep }
        if header.hasDeleteHorizon {
            guard now.rawValue >= header.baseTimestamp else { return .keep }
            guard isProducersLast else { return .drop }
            var builder = RecordBatchBuilder(capacity: RecordBatchHeader.byteCount)
            return .replace(try builder.build(options(header, hasDeleteHorizon: false)))
        }
        let horizon = now.advanced(byMilliseconds: deleteRetention).rawValue
        var builder = RecordBatchBuilder(capacity: header.totalByteCount, baseTimestamp: horizon)
        var records = try records(header, source, position, decompressor)
        while let record = try records.next() {
            try builder.append(
                key: record.key, value: record.value, headers: record.headers,
                timestamp: record.timestamp.rawValue,
                offsetDelta: Int32(record.offset.rawValue - header.baseOffset))
        }
        return .replace(try builder.build(options(header, hasDeleteHorizon: true)))
    }

    private func options(_ header: RecordBatchHeader, hasDeleteHorizon: Bool) -> RecordBatchBuilder.Options {
        RecordBatchBuilder.Options(
            codec: header.codec, baseOffset: header.baseOffset,
            partitionLeaderEpoch: header.partitionLeaderEpoch, producerID: header.producerID,
            producerEpoch: header.producerEpoch, baseSequence: header.baseSequence,
            isTransactional: header.isTransactional, isControl: header.isControl,
            logAppendTime: header.timestampType == .logAppendTime ? header.maxTimestamp : nil,
            lastOffsetDelta: header.lastOffsetDelta, hasDeleteHorizon: hasDeleteHorizon)
    }

    private func fate(
        of header: RecordBatchHeader, _ source: Source, _ position: Int, latest: [KeyHash: Int64], isAborted: Bool,
        _ decompressor: RecordDecompressor
    ) throws -> Fate {
        let isProducersLast = header.hasProducerID && producerLastOffsets[header.producerID] == header.lastOffset
        if header.recordCount == 0 { return isProducersLast ? .keep : .drop }
        let horizon = header.hasDeleteHorizon ? header.baseTimestamp : nil
        var kept: [RecordView] = []
        var keepsTombstone = false
        if isAborted, !isProducersLast { return .drop }
        var records = try records(header, source, position, decompressor)
        while !isAborted, let record = try records.next() {
            guard record.offset >= logStart, let key = record.key else { continue }
            if let later = latest[KeyHash(key)], later > record.offset.rawValue { continue }
            if record.value == nil {
                if let horizon, now.rawValue >= horizon { continue }
                keepsTombstone = true
            }
            kept.append(record)
        }
        let setsHorizon = keepsTombstone && horizon == nil
        if kept.count == Int(header.recordCount), !setsHorizon { return .keep }
        if kept.isEmpty, !isProducersLast { return .drop }

        let keepsHorizon = keepsTombstone
        let base = setsHorizon ? now.advanced(byMilliseconds: deleteRetention).rawValue : header.baseTimestamp
        var builder = RecordBatchBuilder(capacity: header.totalByteCount, baseTimestamp: base)
        for record in kept {
            try builder.append(
                key: record.key, value: record.value, headers: record.headers,
                timestamp: record.timestamp.rawValue,
                offsetDelta: Int32(record.offset.rawValue - header.baseOffset))
        }
        return .replace(try builder.build(options(header, hasDeleteHorizon: keepsHorizon)))
    }
}

/// The transactions of one compaction pass, met in the order of the log.
private struct CompactedTransactions {
    private var ranges: [Int64: [AbortedTransaction]] = [:]
    /// Markers of aborted transactions that the index knows.
    private var indexed: Set<Int64>
    /// Producers with a transactional batch since their last marker. A batch that compaction has emptied counts:
    /// without the marker it would look like the beginning of a transaction.
    private var open: Set<Int64> = []
    /// Abort markers without anything left to hide; their entries in the index can go.
    private(set) var emptiedMarkers: Set<Int64> = []

    init(_ aborted: [AbortedTransaction]) {
        indexed = Set(aborted.map(\.lastOffset.rawValue))
        for transaction in aborted { ranges[transaction.producerID, default: []].append(transaction) }
    }

    func isAborted(_ header: RecordBatchHeader) -> Bool {
        guard header.isTransactional, let known = ranges[header.producerID] else { return false }
        return known.contains {
            $0.firstOffset.rawValue <= header.baseOffset && header.baseOffset < $0.lastOffset.rawValue
        }
    }

    mutating func observe(_ header: RecordBatchHeader) {
        if header.isTransactional { open.insert(header.producerID) }
    }

    /// The marker's transaction has no batches any more.
    mutating func isEmptied(by marker: RecordBatchHeader) -> Bool {
        marker.hasProducerID && open.remove(marker.producerID) == nil
    }

    /// True when the index still had an entry for the marker.
    mutating func dropEntry(ofMarker offset: Int64) -> Bool {
        guard indexed.contains(offset) else { return false }
        emptiedMarkers.insert(offset)
        return true
    }
}

/// Writes the batches of a rewritten segment, gathering them into few calls.
private struct SegmentOutput<D: Disk> {
    let file: SegmentFile<D>
    /// Holds the indexes; no segment of any log.
    let indexed: Segment<D>
    let indexInterval: Int
    private(set) var size = 0
    private var waiting: [ByteBuffer] = []
    private var waitingBytes = 0
    private static var gatherBytes: Int { 1 << 20 }

    init(file: SegmentFile<D>, indexed: Segment<D>, indexInterval: Int) {
        self.file = file
        self.indexed = indexed
        self.indexInterval = indexInterval
    }

    mutating func append(_ batch: ByteBuffer, _ header: RecordBatchHeader) throws {
        let base = indexed.baseOffset.rawValue
        if header.maxTimestamp > indexed.maximum?.timestamp ?? -1 {
            indexed.maximum = TimeIndexEntry(
                timestamp: header.maxTimestamp, relativeOffset: Int32(header.lastOffset - base))
        }
        indexed.indexes.append(
            lastOffset: header.lastOffset, position: size + waitingBytes, byteCount: batch.readableBytes, base: base,
            interval: indexInterval, maximum: indexed.maximum)
        if indexed.indexes.pendingOffsets.count >= SegmentIndexes.pendingLimit { try indexed.persistIndexes() }
        waiting.append(batch)
        waitingBytes += batch.readableBytes
        if waitingBytes >= Self.gatherBytes { try flush() }
    }

    /// Log and indexes are durable when it returns, their names aside.
    mutating func finish() throws {
        try flush()
        if let maximum = indexed.maximum { indexed.indexes.appendTime(maximum) }
        try indexed.persistIndexes()
        try indexed.syncIndexes()
        try file.file.sync()
    }

    private mutating func flush() throws {
        try file.file.write(waiting, at: size)
        size += waitingBytes
        waiting = []
        waitingBytes = 0
    }
}

/// What a compaction pass wrote; not part of the log until installed.
package struct CompactionResult<D: Disk>: Sendable {
    struct Rewritten: Sendable {
        let baseOffset: Offset
        let sourceSize: Int
        /// Log file, offset index, time index; of the indexes those that have entries.
        let cleanedPaths: [String]
        let size: Int
        let maximum: TimeIndexEntry?
        let indexes: SegmentIndexes
    }

    let rewritten: [Rewritten]
    let compactedEnd: Offset
    /// Abort markers whose entries in the transaction index serve nobody any more.
    let emptiedMarkers: Set<Int64>
    let cutCount: Int

    /// Bytes before and after, for metrics.
    package var bytesBefore: Int { rewritten.reduce(0) { $0 + $1.sourceSize } }
    package var bytesAfter: Int { rewritten.reduce(0) { $0 + $1.size } }
}

extension PartitionLog {
    /// Keys remembered per pass unless said otherwise: 20 MB.
    package static var defaultKeyLimit: Int { 500_000 }

    /// What to compact now; nil when there is too little to gain, a pass is under way, or the last one's
    /// renames or the active segment's name (the log end's memory) are not flushed yet. Nil on a full disk, too,
    /// whatever the topic: a pass needs room for a copy, and what is left is for commits and checkpoints.
    ///
    /// - Parameters:
    ///   - ceiling: exclusive; the high watermark or the last stable offset, whichever is lower.
    ///   - force: whatever `min.cleanable.dirty.ratio` says.
    package func planCompaction(
        now: Timestamp, ceiling: Offset, force: Bool = false, keyLimit: Int = defaultKeyLimit
    ) throws(StorageError) -> CompactionPlan<D>? {
        guard configuration.compacts, damage == nil, !compactionIsUnderWay, unflushedNames == nil,
            directory.isWritable(mayUseReserve: false)
        else { return nil }
        let ceiling = lastStableOffset(highWatermark: min(ceiling, flushedEndOffset))
        let youngest = now.rawValue - configuration.minimumCompactionLagMilliseconds
        let oldest = now.rawValue - (configuration.maximumCompactionLagMilliseconds ?? now.rawValue)
        var isOverdue = false
        var sources: [CompactionPlan<D>.Source] = []
        var dirtyBytes = 0
        var totalBytes = 0
        do {
            for segment in segments.dropLast() {
                guard segment.endOffset <= ceiling, segment.lastAppend.rawValue <= youngest else { break }
                totalBytes += segment.size
                if segment.endOffset > compactedEnd {
                    dirtyBytes += segment.size
                    if (segment.firstAppend ?? segment.lastAppend).rawValue <= oldest { isOverdue = true }
                }
                sources.append(
                    CompactionPlan.Source(
                        baseOffset: segment.baseOffset, endOffset: segment.endOffset, size: segment.size,
                        file: try segment.file()))
                // The plan holds the file from here on.
                segment.releaseFiles()
            }
        } catch {
            throw directory.record(error)
        }
        guard totalBytes > 0, dirtyBytes > 0 || force,
            force || isOverdue || Double(dirtyBytes) / Double(totalBytes) >= configuration.minimumCleanableRatio
        else { return nil }
        let aborted: [AbortedTransaction]
        do throws(ReadError) {
            let end = sources.last?.endOffset ?? logStartOffset
            aborted = try abortedTransactions(from: segments[0].baseOffset, upTo: end)
        } catch {
            switch error {
            case .storage(let error): throw error
            case .offsetOutOfRange, .wouldBlock: throw .offline(topicPartition, detail: "\(error)")
            }
        }
        compactionIsUnderWay = true
        return CompactionPlan(
            directory: directory, checkpoint: checkpoint, folder: folder, partition: topicPartition, sources: sources,
            dirtyStart: min(compactedEnd, sources.last?.endOffset ?? compactedEnd), logStart: logStartOffset,
            now: now, deleteRetention: configuration.deleteRetentionMilliseconds,
            indexInterval: configuration.indexIntervalBytes, keyLimit: keyLimit,
            producerLastOffsets: producers.lastOffsets, producerMarkerEpochs: producers.markerEpochs,
            aborted: aborted, cutCount: checkpoint.cutCount)
    }

    /// The pass failed or is not wanted any more; its files go away at the next start.
    package func abandonCompaction() { compactionIsUnderWay = false }

    /// Puts rewritten segments in the place of the old ones. Segments that changed meanwhile (retention) stay as they
    /// are, and all of them where the log was cut.
    package func installCompaction(_ result: CompactionResult<D>, now: Timestamp) throws(StorageError) {
        precondition(compactionIsUnderWay, "installCompaction without planCompaction")
        compactionIsUnderWay = false
        guard result.cutCount == checkpoint.cutCount else {
            do throws(DiskError) {
                for rewritten in result.rewritten { try removeCleaned(rewritten) }
            } catch {
                throw directory.record(error)
            }
            return
        }
        if !result.emptiedMarkers.isEmpty {
            try dropAborted(result.emptiedMarkers)
            unflushedNames = dirty.markDirectory(folder)
        }
        do {
            for rewritten in result.rewritten {
                guard
                    let index = segments.firstIndex(where: { $0.baseOffset == rewritten.baseOffset }),
                    index + 1 < segments.count, segments[index].size == rewritten.sourceSize
                else {
                    try removeCleaned(rewritten)
                    continue
                }
                try replace(at: index, with: rewritten, now: now)
            }
        } catch {
            throw directory.record(error)
        }
        compactedEnd = max(compactedEnd, result.compactedEnd)
        checkpoint.raiseInstalledEnd(compactedEnd)
        if !result.rewritten.isEmpty { unflushedNames = dirty.markDirectory(folder) }
    }

    /// Takes entries out of the transaction index, so that a crash leaves each file as it was or as it will be.
    private func dropAborted(_ markers: Set<Int64>) throws(StorageError) {
        for segment in segments.dropLast() {
            do throws(DiskError) {
                let (entries, isWhole) = try segment.loadAborted()
                let kept = entries.filter { !markers.contains($0.lastOffset.rawValue) }
                guard isWhole, kept.count < entries.count else { continue }
                if let file = segment.openTransactionIndex { dirty.forget(file) }
                segment.adoptAborted(kept)
                dirty.markReplacement(segment.path(LogFileName.transactionIndex), TransactionIndexFile.encode(kept))
            } catch {
                throw directory.record(error)
            }
        }
    }

    private func replace(
        at index: Int, with rewritten: CompactionResult<D>.Rewritten, now: Timestamp
    ) throws(DiskError) {
        let old = segments[index]
        try forget(old, withTransactionIndex: false)
        // A power cut may keep them all the same: a stale one is found out by the first search. A newer one than the
        // log would not be, so the new ones take their place when the log's name is durable.
        try disk.removeIfPresent(old.path(LogFileName.offsetIndex))
        try disk.removeIfPresent(old.path(LogFileName.timeIndex))
        let aborted = try old.loadAborted()
        old.releaseFiles()
        if rewritten.size == 0, index > 0 {
            // Everything in it is superseded. The first segment stays, empty: its name is the log's start.
            segments.remove(at: index)
            segments[index - 1].endOffset = old.endOffset
            try removeCleaned(rewritten)
            dirty.forgetReplacement(old.path(LogFileName.transactionIndex))
            try disk.removeIfPresent(old.path(LogFileName.transactionIndex))
            try disk.rename(
                old.path(LogFileName.log), to: old.path(LogFileName.log) + LogFileName.deletedSuffix)
            deletions.append(
                PendingDeletion(
                    paths: [old.path(LogFileName.log) + LogFileName.deletedSuffix],
                    due: now.advanced(byMilliseconds: configuration.fileDeleteDelayMilliseconds)))
            return
        }
        try disk.rename(rewritten.cleanedPaths[0], to: old.path(LogFileName.log))
        let segment = Segment(
            disk: disk, folder: folder, baseOffset: old.baseOffset, size: rewritten.size, lastAppend: old.lastAppend)
        segment.endOffset = old.endOffset
        segment.firstAppend = old.firstAppend
        segment.isSealed = true
        segment.adopt(rewritten.indexes, maximum: rewritten.maximum)
        if aborted.isWhole { segment.adoptAborted(aborted.entries) }
        segments[index] = segment
        publishAfterFlush(segment)
    }

    private func removeCleaned(_ rewritten: CompactionResult<D>.Rewritten) throws(DiskError) {
        for path in rewritten.cleanedPaths { try disk.removeIfPresent(path) }
    }
}
