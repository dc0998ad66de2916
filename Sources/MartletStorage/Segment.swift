import MartletLogModel
import MartletRecordBatch
import NIOCore

/// One segment of a partition's log: a `.log` file and what goes with it. Confined to the log's owner.
///
/// Files are opened when first needed and may be let go at any time while nothing of them is unflushed.
final class Segment<D: Disk> {
    let disk: D
    let folder: String
    let baseOffset: Offset
    /// Bytes of whole batches.
    var size: Int
    /// Exclusive end of the last batch; ``baseOffset`` when empty.
    var endOffset: Offset
    /// Wall-clock time of the first append; what `segment.ms` counts from.
    var firstAppend: Timestamp?
    /// Wall-clock time of the last append, from the file system for older segments.
    var lastAppend: Timestamp
    /// Largest record timestamp with the last offset of its batch.
    var maximum: TimeIndexEntry?
    /// End of the blocks reserved so far.
    var allocatedEnd = 0
    /// End of the zeros written behind the last batch; see ``PartitionLog/writeIntoRoom(_:at:of:_:)``. Not above
    /// ``size`` when there are none.
    var roomEnd = 0
    /// Appends in a row of which each was flushed before the next came.
    var loneAppendCount = 0
    var indexes = SegmentIndexes()
    /// Entry counts have been read from the index files.
    var indexesAreLoaded: Bool
    /// The last time entry has been read as well.
    private(set) var timesAreLoaded: Bool
    var isSealed = false
    /// What the names of the index files end in until they are known to be durable; see
    /// ``PartitionLog/publishAfterFlush(_:)``.
    private var indexSuffix = ""
    private(set) var openFile: SegmentFile<D>?
    private(set) var openOffsetIndex: SegmentFile<D>?
    private(set) var openTimeIndex: SegmentFile<D>?
    private(set) var openTransactionIndex: SegmentFile<D>?
    /// Aborted transactions whose markers lie in this segment, when ``abortedAreLoaded``.
    private(set) var aborted: [AbortedTransaction] = []
    private var abortedAreLoaded: Bool
    private var persistedAbortedCount = 0

    /// A segment that exists on disk.
    init(disk: D, folder: String, baseOffset: Offset, size: Int, lastAppend: Timestamp) {
        self.disk = disk
        self.folder = folder
        self.baseOffset = baseOffset
        self.size = size
        self.endOffset = baseOffset
        self.lastAppend = lastAppend
        self.indexesAreLoaded = false
        self.timesAreLoaded = false
        self.abortedAreLoaded = false
    }

    /// A new, empty segment.
    init(creatingIn folder: String, disk: D, baseOffset: Offset, now: Timestamp) throws(DiskError) {
        self.disk = disk
        self.folder = folder
        self.baseOffset = baseOffset
        self.size = 0
        self.endOffset = baseOffset
        self.lastAppend = now
        self.indexesAreLoaded = true
        self.timesAreLoaded = true
        self.abortedAreLoaded = true
        let path = folder + "/" + LogFileName.make(baseOffset.rawValue, LogFileName.log)
        // A file of that name can only be a rest that recovery found empty or cut to nothing.
        let file = try disk.open(path, .create)
        do {
            try file.truncate(to: 0)
            for kind in [LogFileName.offsetIndex, LogFileName.timeIndex, LogFileName.transactionIndex] {
                try disk.removeIfPresent(folder + "/" + LogFileName.make(baseOffset.rawValue, kind))
            }
        } catch {
            file.close()
            try disk.removeIfPresent(path)
            throw error
        }
        openFile = SegmentFile(file, path: path)
    }

    func path(_ kind: String) -> String { folder + "/" + LogFileName.make(baseOffset.rawValue, kind) }

    func file() throws(DiskError) -> SegmentFile<D> {
        if let openFile { return openFile }
        let path = path(LogFileName.log)
        let file = SegmentFile<D>(try disk.open(path, .write), path: path)
        openFile = file
        return file
    }

    func releaseFiles() {
        openFile = nil
        releaseIndexFiles()
    }

    func releaseIndexFiles() {
        openOffsetIndex = nil
        openTimeIndex = nil
        if !hasWaitingAborted { openTransactionIndex = nil }
        // Of a closed segment they can be had again.
        if isSealed, abortedAreLoaded, !hasWaitingAborted, !aborted.isEmpty {
            aborted = []
            abortedAreLoaded = false
            persistedAbortedCount = 0
        }
    }

    // MARK: Aborted transactions

    var hasWaitingAborted: Bool { abortedAreLoaded && aborted.count > persistedAbortedCount }

    /// Reads the transaction index; `isWhole` is false when the file holds something else behind its entries.
    func loadAborted() throws(DiskError) -> (entries: [AbortedTransaction], isWhole: Bool) {
        if abortedAreLoaded { return (aborted, true) }
        guard let bytes = try disk.readAll(path(LogFileName.transactionIndex), limit: Int(Int32.max)) else {
            aborted = []
            abortedAreLoaded = true
            return ([], true)
        }
        let (entries, isWhole) = TransactionIndexFile.decode(bytes, base: baseOffset)
        guard isWhole else { return (entries, false) }
        aborted = entries
        persistedAbortedCount = entries.count
        abortedAreLoaded = true
        return (entries, true)
    }

    /// Takes an entry; ``persistAborted()`` writes it.
    func appendAborted(_ entry: AbortedTransaction) {
        precondition(abortedAreLoaded, "the active segment's transaction index is read when the log is opened")
        aborted.append(entry)
    }

    /// Entries that are in the file, or will be before anything depends on it.
    func adoptAborted(_ entries: [AbortedTransaction]) {
        openTransactionIndex = nil
        aborted = entries
        persistedAbortedCount = entries.count
        abortedAreLoaded = true
    }

    /// Writes waiting entries to the file. On a failure they keep waiting.
    func persistAborted() throws(DiskError) -> (file: SegmentFile<D>, isNew: Bool)? {
        guard hasWaitingAborted else { return nil }
        let file = try transactionIndexFile()
        try file.file.write(
            [TransactionIndexFile.encode(aborted[persistedAbortedCount...])],
            at: persistedAbortedCount * AbortedTransaction.byteCount)
        let isNew = persistedAbortedCount == 0
        persistedAbortedCount = aborted.count
        return (file, isNew)
    }

    /// Puts `entries` in the place of what the file holds and flushes it. False when that is what it held.
    ///
    /// - Parameter areUnflushed: a process that was killed may have written what the file holds, and the disk not have
    ///   it yet.
    func replaceAborted(_ entries: [AbortedTransaction], areUnflushed: Bool) throws(DiskError) -> Bool {
        let path = path(LogFileName.transactionIndex)
        let held = try disk.readAll(path, limit: Int(Int32.max))
        let wanted = TransactionIndexFile.encode(entries)
        aborted = entries
        abortedAreLoaded = true
        persistedAbortedCount = entries.count
        if held == nil && entries.isEmpty { return false }
        if held == wanted {
            if areUnflushed { try transactionIndexFile().file.sync() }
            return areUnflushed
        }
        // On a failure all of them wait to be written.
        persistedAbortedCount = 0
        let file = try transactionIndexFile()
        try file.file.truncate(to: 0)
        try file.file.write([wanted], at: 0)
        try file.file.sync()
        persistedAbortedCount = entries.count
        return true
    }

    private func transactionIndexFile() throws(DiskError) -> SegmentFile<D> {
        if let openTransactionIndex { return openTransactionIndex }
        let path = path(LogFileName.transactionIndex)
        let file = SegmentFile<D>(try disk.open(path, .create), path: path)
        openTransactionIndex = file
        return file
    }

    /// Takes over indexes that a compaction has made, in files that are not yet in their place.
    func adopt(_ indexes: SegmentIndexes, maximum: TimeIndexEntry?) {
        self.indexes = indexes
        self.maximum = maximum
        indexSuffix = LogFileName.cleanedSuffix
        indexesAreLoaded = true
        timesAreLoaded = true
    }

    /// Forgets what is known of the index files.
    func unloadIndexes() {
        indexesAreLoaded = false
        timesAreLoaded = false
        maximum = nil
    }

    // MARK: Indexes

    /// The time index first: a start makes both anew where the offset index is missing.
    private static var indexKinds: [String] { [LogFileName.timeIndex, LogFileName.offsetIndex] }

    /// Index files wait beside the place of their names.
    var hasTemporaryIndexes: Bool { !indexSuffix.isEmpty }

    /// Begins new, empty indexes beside those that are there.
    func startTemporaryIndexes(_ suffix: String) throws(DiskError) {
        try dropTemporaryIndexes()
        releaseIndexFiles()
        indexes = SegmentIndexes()
        maximum = nil
        indexesAreLoaded = true
        timesAreLoaded = true
        indexSuffix = suffix
        for kind in Self.indexKinds { try disk.removeIfPresent(indexPath(kind)) }
    }

    /// What is in the place of the names counts again, if there is anything.
    func dropTemporaryIndexes() throws(DiskError) {
        guard hasTemporaryIndexes else { return }
        releaseIndexFiles()
        indexes = SegmentIndexes()
        unloadIndexes()
        let paths = Self.indexKinds.map(indexPath)
        indexSuffix = ""
        for path in paths { try disk.removeIfPresent(path) }
    }

    /// Puts temporary indexes, which must be durable, in their place.
    func publishIndexes() throws(DiskError) {
        guard hasTemporaryIndexes else { return }
        releaseIndexFiles()
        for kind in Self.indexKinds {
            do throws(DiskError) {
                try disk.rename(indexPath(kind), to: path(kind))
            } catch {
                guard error.kind == .notFound else { throw error }
                // Without entries there is no file.
                try disk.removeIfPresent(path(kind))
            }
        }
        indexSuffix = ""
    }

    func syncIndexes() throws(DiskError) {
        try indexFile(create: false)?.file.sync()
        try timeIndexFile(create: false)?.file.sync()
    }

    /// Removes the index files: searches walk the log instead. The largest timestamp stays known.
    func discardIndexes() throws(DiskError) {
        releaseIndexFiles()
        indexes = SegmentIndexes()
        indexesAreLoaded = true
        let paths = Self.indexKinds.flatMap { hasTemporaryIndexes ? [indexPath($0), path($0)] : [path($0)] }
        indexSuffix = ""
        for path in paths { try disk.removeIfPresent(path) }
    }

    private func indexPath(_ kind: String) -> String { path(kind) + indexSuffix }

    /// Reads the sizes of the index files. Missing or odd files count as shorter ones: a search then walks
    /// more of the log, nothing else.
    func loadIndexes() throws(DiskError) {
        if indexesAreLoaded { return }
        indexes = SegmentIndexes()
        if let file = try indexFile(create: false) {
            indexes.persistedOffsetCount = try file.file.size() / OffsetIndexEntry.byteCount
        }
        if let file = try timeIndexFile(create: false) {
            indexes.persistedTimeCount = try file.file.size() / TimeIndexEntry.byteCount
        }
        indexesAreLoaded = true
    }

    /// Reads the last time entry too, which of a closed segment is its largest timestamp.
    func loadTimes() throws(DiskError) {
        try loadIndexes()
        if timesAreLoaded { return }
        if indexes.persistedTimeCount > 0 {
            indexes.lastTime = try readTimes(at: indexes.persistedTimeCount - 1, count: 1).first
        }
        if maximum == nil { maximum = indexes.lastTime }
        timesAreLoaded = true
    }

    func indexFile(create: Bool) throws(DiskError) -> SegmentFile<D>? {
        if let openOffsetIndex { return openOffsetIndex }
        openOffsetIndex = try openIndex(LogFileName.offsetIndex, create: create)
        return openOffsetIndex
    }

    func timeIndexFile(create: Bool) throws(DiskError) -> SegmentFile<D>? {
        if let openTimeIndex { return openTimeIndex }
        openTimeIndex = try openIndex(LogFileName.timeIndex, create: create)
        return openTimeIndex
    }

    private func openIndex(_ kind: String, create: Bool) throws(DiskError) -> SegmentFile<D>? {
        let path = indexPath(kind)
        do {
            return SegmentFile<D>(try disk.open(path, create ? .create : .write), path: path)
        } catch {
            if error.kind == .notFound { return nil }
            throw error
        }
    }

    func readTimes(at index: Int, count: Int) throws(DiskError) -> [TimeIndexEntry] {
        guard let file = try timeIndexFile(create: false) else { return [] }
        var buffer = ByteBuffer()
        _ = try file.file.read(
            into: &buffer, at: index * TimeIndexEntry.byteCount, count: count * TimeIndexEntry.byteCount)
        var entries: [TimeIndexEntry] = []
        while let (timestamp, offset) = buffer.readMultipleIntegers(as: (Int64, Int32).self) {
            entries.append(TimeIndexEntry(timestamp: timestamp, relativeOffset: offset))
        }
        return entries
    }

    func readOffsets(at index: Int, count: Int) throws(DiskError) -> [OffsetIndexEntry] {
        guard let file = try indexFile(create: false) else { return [] }
        var buffer = ByteBuffer()
        _ = try file.file.read(
            into: &buffer, at: index * OffsetIndexEntry.byteCount, count: count * OffsetIndexEntry.byteCount)
        var entries: [OffsetIndexEntry] = []
        while let (offset, position) = buffer.readMultipleIntegers(as: (Int32, Int32).self) {
            entries.append(OffsetIndexEntry(relativeOffset: offset, position: position))
        }
        return entries
    }

    /// Writes waiting index entries to the files. On a failure they keep waiting: the files are derivable.
    func persistIndexes() throws(DiskError) {
        if !indexes.pendingOffsets.isEmpty, let file = try indexFile(create: true) {
            try file.file.write(
                [SegmentIndexes.encode(indexes.pendingOffsets)],
                at: indexes.persistedOffsetCount * OffsetIndexEntry.byteCount)
            indexes.persistedOffsetCount += indexes.pendingOffsets.count
            indexes.pendingOffsets = []
        }
        if !indexes.pendingTimes.isEmpty, let file = try timeIndexFile(create: true) {
            try file.file.write(
                [SegmentIndexes.encode(indexes.pendingTimes)],
                at: indexes.persistedTimeCount * TimeIndexEntry.byteCount)
            indexes.persistedTimeCount += indexes.pendingTimes.count
            indexes.pendingTimes = []
        }
    }

    /// Forgets index entries that point at or behind `position` or name offsets at or behind `end`, and
    /// cuts the files accordingly.
    func truncateIndexes(toPosition position: Int, end: Offset) throws(DiskError) {
        let relativeEnd = end - baseOffset
        indexes.pendingOffsets.removeAll {
            Int($0.position) >= position || Int64($0.relativeOffset) >= relativeEnd
        }
        indexes.pendingTimes.removeAll { Int64($0.relativeOffset) >= relativeEnd }
        while indexes.persistedOffsetCount > 0 {
            let step = min(indexes.persistedOffsetCount, SegmentIndexes.pendingLimit)
            let tail = try readOffsets(at: indexes.persistedOffsetCount - step, count: step)
            let kept = tail.prefix { Int($0.position) < position && Int64($0.relativeOffset) < relativeEnd }.count
            indexes.persistedOffsetCount -= step - kept
            if kept > 0 { break }
        }
        while indexes.persistedTimeCount > 0 {
            let step = min(indexes.persistedTimeCount, SegmentIndexes.pendingLimit)
            let tail = try readTimes(at: indexes.persistedTimeCount - step, count: step)
            let kept = tail.prefix { Int64($0.relativeOffset) < relativeEnd }.count
            indexes.persistedTimeCount -= step - kept
            if kept > 0 { break }
        }
        if let file = try indexFile(create: false) {
            try file.file.truncate(to: indexes.persistedOffsetCount * OffsetIndexEntry.byteCount)
        }
        if let file = try timeIndexFile(create: false) {
            try file.file.truncate(to: indexes.persistedTimeCount * TimeIndexEntry.byteCount)
        }
        if let last = indexes.pendingTimes.last {
            indexes.lastTime = last
        } else if indexes.persistedTimeCount > 0 {
            indexes.lastTime = try readTimes(at: indexes.persistedTimeCount - 1, count: 1).first
        } else {
            indexes.lastTime = nil
        }
    }

    /// Notes a batch that now lies at the end of the file.
    func noteAppend(
        lastOffset: Int64, maxTimestamp: Int64, byteCount: Int, now: Timestamp, indexInterval: Int
    ) {
        noteTimestamp(maxTimestamp, lastOffset: lastOffset)
        indexes.append(
            lastOffset: lastOffset, position: size, byteCount: byteCount, base: baseOffset.rawValue,
            interval: indexInterval, maximum: maximum)
        size += byteCount
        endOffset = Offset(lastOffset + 1)
        lastAppend = now
        if firstAppend == nil { firstAppend = now }
    }

    private func noteTimestamp(_ timestamp: Int64, lastOffset: Int64) {
        if timestamp > maximum?.timestamp ?? -1 {
            maximum = TimeIndexEntry(timestamp: timestamp, relativeOffset: Int32(lastOffset - baseOffset.rawValue))
        }
    }

    func view(end: Offset) throws(DiskError) -> SegmentView<D> {
        try loadIndexes()
        return SegmentView(
            baseOffset: baseOffset, endOffset: end, size: size, file: try file(),
            index: IndexSearch(
                file: try indexFile(create: false), persistedCount: indexes.persistedOffsetCount,
                pending: indexes.pendingOffsets))
    }

    /// Walks the headers from `start` to the end of `fileSize`, noting end, times and index entries, until
    /// a header is impossible or `accept` refuses a batch. Returns the position reached.
    func walk(
        from start: Int, to fileSize: Int, now: Timestamp, indexInterval: Int,
        accept: (RecordBatchHeader, Int) throws(ReadError) -> Bool
    ) throws(ReadError) -> Int {
        let file: SegmentFile<D>
        do { file = try self.file() } catch { throw .storage(.file(error)) }
        var scanner = BatchScanner(file, end: fileSize, nonBlocking: false)
        size = start
        while size < fileSize {
            guard let header = try scanner.header(at: size), header.baseOffset >= endOffset.rawValue,
                header.lastOffset - baseOffset.rawValue <= Int64(Int32.max), try accept(header, size)
            else { break }
            let appended = lastAppend
            noteAppend(
                lastOffset: header.lastOffset, maxTimestamp: header.maxTimestamp,
                byteCount: header.totalByteCount, now: appended, indexInterval: indexInterval)
            if indexes.pendingOffsets.count >= SegmentIndexes.pendingLimit {
                do { try persistIndexes() } catch { throw .storage(.file(error)) }
            }
        }
        return size
    }
}
