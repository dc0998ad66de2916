package import MartletLogModel
import MartletRecordBatch
import NIOCore

/// What opening a log found and did; the broker logs it once when ``isNoteworthy``.
package struct RecoveryReport: Equatable, Sendable {
    /// The log was checked from the recovery point on, because the last stop was not clean.
    package var wasChecked = false
    /// Bytes whose checksums were verified.
    package var checkedBytes = 0
    /// Bytes of a torn tail, cut off; a copy is in quarantine.
    package var truncatedBytes = 0
    /// Bytes copied to quarantine because the log is damaged or was cut.
    package var quarantinedBytes = 0

    /// Where the folder of a former topic with the same name was moved to.
    package var movedAside: String?

    package var isNoteworthy: Bool { truncatedBytes > 0 || quarantinedBytes > 0 || movedAside != nil }
}

extension PartitionLog {
    /// Opens a partition's log; recovers it when the last stop was not clean. Blocks on the disk. A
    /// partition without a folder is new and empty, unless a checkpoint file remembers data: then it is
    /// offline, never silently empty.
    ///
    /// - Parameters:
    ///   - topicID: nil takes what `partition.metadata` says.
    ///   - now: wall clock.
    package static func open(
        directory: LogDirectory<D>, topicPartition: TopicPartition, topicID: UniversalID?,
        configuration: LogConfiguration, now: Timestamp
    ) throws(StorageError) -> sending PartitionLog<D> {
        try directory.requireAlive()
        let log = PartitionLog(
            directory: directory, topicPartition: topicPartition, topicID: topicID ?? .zero,
            configuration: configuration)
        do {
            try log.load(expected: topicID, now: now)
        } catch let error as StorageError {
            throw error
        } catch let error as ReadError {
            switch error {
            case .storage(let error): throw error
            case .offsetOutOfRange, .wouldBlock: throw .offline(topicPartition, detail: "\(error)")
            }
        } catch let error as DiskError {
            throw directory.record(error)
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        return log
    }

    private func load(expected: UniversalID?, now: Timestamp) throws {
        let wasClean = checkpoint.isClean
        let recoveryPoint = checkpoint.recoveryPoint
        checkpoint.setClean(false)
        let names: [String]
        do {
            names = try disk.list(folder)
        } catch {
            guard error.kind == .notFound else { throw error }
            let known = max(checkpoint.recoveryPoint, checkpoint.durableLogStart)
            guard known == .zero else {
                throw StorageError.offline(
                    topicPartition, detail: "folder \(folder) is missing, but offsets up to \(known) were written")
            }
            return
        }
        if try isOfAnotherTopic(expected) {
            try moveAside()
            return
        }
        folderExists = true
        let present = try finishInterrupted(names, now: now)
        try findSegments(present, now: now)
        guard let first = segments.first else {
            let known = max(checkpoint.recoveryPoint, checkpoint.durableLogStart)
            guard checkpoint.recoveryPoint <= checkpoint.durableLogStart else {
                throw StorageError.offline(
                    topicPartition, detail: "no segments in \(folder), but offsets up to \(known) were written")
            }
            try removeLeftovers(present)
            try disk.syncDirectory(folder)
            setEnds(known, flushed: known)
            try forgetGapsBehindEnd()
            return
        }
        if first.baseOffset > logStartOffset {
            try judgeMissingStart(first.baseOffset)
            if damage == nil { try removeLeftovers(present) }
            try disk.syncDirectory(folder)
            if damage == nil { try forgetGapsBehindEnd() }
            return
        }
        loadEpochs(try disk.readAll(folder + "/" + LogFileName.leaderEpochCheckpoint, limit: 64 << 20))
        let storedEpochs = leaderEpochs

        var isWhole = false
        if wasClean { isWhole = try openTail(now: now) }
        if isWhole { compactedEnd = min(checkpoint.installedEnd, logEndOffset) }
        var checked = Checked(raisesRecoveryPoint: false, foundMarkers: false)
        if !isWhole { checked = try recover(now: now, storedEpochs: storedEpochs) }
        leaderEpochs.truncate(toEnd: logEndOffset)
        if logStartOffset > logEndOffset { setEnds(logStartOffset, flushed: logStartOffset) }
        try loadProducers(present, indexedEnd: checked.foundMarkers ? recoveryPoint : logEndOffset, now: now)
        if checked.raisesRecoveryPoint, unflushedAborted == nil { checkpoint.setRecoveryPoint(logEndOffset) }
        guard damage == nil else { return }
        try forgetGapsBehindEnd()
        try rebuildMissingIndexes(present)
        if leaderEpochs != storedEpochs { markEpochsDirty() }
        // A crash may have come between the log start's way to the disk and the files' way out of the log.
        try retireBelowLogStart(now: now)
    }

    /// What a check of the log found that what follows must know.
    private struct Checked {
        /// Everything that is left is durable; false where the log is damaged.
        var raisesRecoveryPoint: Bool
        /// There are transaction markers past the recovery point, whose index entries may be lost.
        var foundMarkers: Bool
    }

    private func isOfAnotherTopic(_ expected: UniversalID?) throws -> Bool {
        let path = folder + "/" + LogFileName.partitionMetadata
        guard let bytes = try disk.readAll(path, limit: 4096), let found = PartitionMetadata.decode(bytes) else {
            // Written at the first flush: a crash before it leaves none, and nothing acknowledged either.
            if let expected { dirty.markReplacement(path, PartitionMetadata.encode(expected)) }
            return false
        }
        if let expected, found != expected { return true }
        adopt(topicID: found)
        return false
    }

    /// The folder is of a topic that had this name before. Its data is nobody's here, but not ours to
    /// remove (I12): it gets a name of its own, and the new topic starts empty.
    private func moveAside() throws {
        // Its rows in the checkpoint files go first: the new topic must not be measured by them.
        forgetCheckpoint()
        try directory.writeCheckpoints()
        var number = 0
        var target: String
        repeat {
            target = directory.path + "/" + LogDirectory<D>.name(of: topicPartition, suffix: ".stray\(number)")
            number += 1
        } while try disk.exists(target)
        try disk.rename(folder, to: target)
        try disk.syncDirectory(directory.path)
        recovery.movedAside = target
    }

    private func findSegments(_ names: [String], now: Timestamp) throws {
        var bases: [Int64] = []
        for name in names {
            if let (offset, kind) = LogFileName.parse(name), kind == LogFileName.log { bases.append(offset) }
        }
        bases.sort()
        for base in bases {
            let path = folder + "/" + LogFileName.make(base, LogFileName.log)
            let status = try disk.status(path)
            // Names and sizes come from outside: arithmetic on them must not overflow later.
            guard base <= Offset.storedLimit, status.size <= Int(Int32.max) else {
                throw StorageError.offline(
                    topicPartition, detail: "\(path) with \(status.size) bytes cannot be a segment; move it away")
            }
            let segment = Segment(
                disk: disk, folder: folder, baseOffset: Offset(base), size: status.size,
                lastAppend: Timestamp(milliseconds: min(status.modified, now.rawValue)))
            if let previous = segments.last {
                previous.endOffset = segment.baseOffset
                previous.isSealed = true
            }
            segments.append(segment)
        }
    }

    private func loadEpochs(_ bytes: ByteBuffer?) {
        if let bytes, let cache = LeaderEpochCache(decoding: bytes) { leaderEpochs = cache }
    }

    /// Finds the log's end in the last segment without checking checksums. False when that fails.
    private func openTail(now: Timestamp) throws -> Bool {
        guard let active = segments.last else { return true }
        let fileSize = active.size
        let start = try walkStart(in: active, before: Offset(Int64.max))
        let reached = try active.walk(
            from: start, to: fileSize, now: now, indexInterval: configuration.indexIntervalBytes,
            accept: { (_: RecordBatchHeader, _: Int) throws(ReadError) -> Bool in true })
        guard reached == fileSize, active.endOffset >= max(checkpoint.recoveryPoint, logStartOffset) else {
            active.size = fileSize
            return false
        }
        active.firstAppend = active.size > 0 ? try firstTimestamp(of: active, now: now) : nil
        setEnds(active.endOffset, flushed: active.endOffset)
        return true
    }

    /// Makes the offset index of closed segments that have none, unless they are too short for one: without it
    /// each read would walk the segment from its start. An index with wrong entries is found out by the first
    /// search.
    private func rebuildMissingIndexes(_ names: [String]) throws {
        guard directory.isWritable(mayUseReserve: false) else { return }
        let names = Set(names)
        for segment in segments.dropLast()
        where segment.size > 2 * configuration.indexIntervalBytes && segment.indexes.offsetCount == 0
            && !names.contains(LogFileName.make(segment.baseOffset.rawValue, LogFileName.offsetIndex))
        {
            do throws(ReadError) {
                try rebuildIndex(at: segment.baseOffset)
            } catch {
                // Damage in it is for those to know who read there.
                guard case .storage(let error) = error, error.isDamage else { throw error }
            }
            try publishNow(segment)
            segment.releaseFiles()
        }
    }

    /// Position from which a walk has to start so that nothing before it needs to be known: the last place
    /// that both indexes know, before `limit`. Prepares the segment's end and indexes accordingly.
    private func walkStart(in segment: Segment<D>, before limit: Offset) throws -> Int {
        segment.unloadIndexes()
        try segment.loadTimes()
        let fileSize = segment.size
        // Nothing is known of what the files hold after a crash: cut what cannot be true of this log.
        try segment.truncateIndexes(toPosition: fileSize, end: limit)
        if let last = segment.indexes.lastTime,
            try !segment.view(end: segment.endOffset).isTrue(last, isLast: false)
        {
            try segment.truncateIndexes(toPosition: 0, end: segment.baseOffset)
        }
        let view = try segment.view(end: segment.endOffset)
        var scanner = BatchScanner(try segment.file(), end: fileSize, nonBlocking: false)
        var target = limit
        if let time = segment.indexes.lastTime {
            // A later time entry may have been lost: start where the last one is.
            target = min(target, segment.baseOffset + Int64(time.relativeOffset) + 1)
        } else {
            target = segment.baseOffset
        }
        var position = 0
        var end = segment.baseOffset
        if target > segment.baseOffset,
            let entry = try view.index.last(
                nonBlocking: false, where: { segment.baseOffset + Int64($0.relativeOffset) < target }),
            let header = try scanner.header(at: Int(entry.position)),
            header.lastOffset == segment.baseOffset.rawValue + Int64(entry.relativeOffset)
        {
            position = Int(entry.position)
            end = Offset(header.baseOffset)
        }
        try segment.truncateIndexes(toPosition: position, end: end)
        segment.maximum = segment.indexes.lastTime
        segment.indexes.bytesSinceEntry = position == 0 ? 0 : configuration.indexIntervalBytes + 1
        segment.endOffset = end
        segment.size = fileSize
        return position
    }

    /// Finds largest timestamp and index entries of the last segment anew after its end was cut. Returns where its last
    /// batch ends.
    @discardableResult
    func reindexLastSegment() throws -> Offset {
        guard let segment = segments.last else { return logStartOffset }
        let (size, end, firstAppend) = (segment.size, segment.endOffset, segment.firstAppend)
        let reached = try segment.walk(
            from: try walkStart(in: segment, before: Offset(Int64.max)), to: size, now: segment.lastAppend,
            indexInterval: configuration.indexIntervalBytes,
            accept: { (_: RecordBatchHeader, _: Int) throws(ReadError) -> Bool in true })
        guard reached == size else {
            throw try view(of: segment).damaged(topicPartition, at: segment.endOffset, position: reached)
        }
        let found = segment.endOffset
        segment.endOffset = end
        segment.firstAppend = size > 0 ? firstAppend : nil
        return found
    }

    private func firstTimestamp(of segment: Segment<D>, now: Timestamp) throws -> Timestamp {
        var scanner = BatchScanner(try segment.file(), end: segment.size, nonBlocking: false)
        guard let header = try scanner.header(at: 0), header.maxTimestamp >= 0 else { return segment.lastAppend }
        // Old record timestamps do not make a young segment old: its file was made when it was first
        // written, which no portable interface tells, so the last append bounds it.
        return max(
            min(Timestamp(milliseconds: header.maxTimestamp), segment.lastAppend),
            Timestamp(milliseconds: segment.lastAppend.rawValue - configuration.segmentMilliseconds / 2))
    }

    // MARK: After a crash

    /// Checks every batch past the recovery point. See ``TailVerdict`` for what follows from what it finds.
    private func recover(now: Timestamp, storedEpochs: LeaderEpochCache) throws -> Checked {
        recovery.wasChecked = true
        var foundMarkers = false
        var checked: Checked { Checked(raisesRecoveryPoint: false, foundMarkers: foundMarkers) }
        let recoveryPoint = checkpoint.recoveryPoint
        // A log start is taken from what is flushed, so a log that ends before it has lost something. What ends
        // before it is on its way out, perhaps with holes.
        let flushedEnd = max(recoveryPoint, logStartOffset)
        // One that ends exactly at the recovery point may still have room behind its end: the flush that was to cut it
        // off is the one that makes its successor durable.
        let startsAtLogStart = logStartOffset >= recoveryPoint
        let firstIndex =
            segments.lastIndex {
                $0.baseOffset < flushedEnd || (startsAtLogStart && $0.baseOffset == flushedEnd)
            } ?? 0
        var end = segments[firstIndex].baseOffset
        for index in firstIndex..<segments.count {
            let segment = segments[index]
            let fileSize = segment.size
            let isGap = index > firstIndex && segment.baseOffset > end && segment.baseOffset > checkpoint.compactedEnd
            if isGap || (index > firstIndex && segment.baseOffset < end) {
                // The segment before ended early or late, and this one has its own bytes.
                if try judge(segmentIndex: index, position: 0, end: end, flushedEnd: flushedEnd) {
                    _ = try makeDurable()
                    return checked
                }
                break
            }
            let nextBase = index + 1 < segments.count ? segments[index + 1].baseOffset : nil
            let start = try walkStart(in: segment, before: recoveryPoint)
            let reached = try segment.walk(
                from: start, to: fileSize, now: now, indexInterval: configuration.indexIntervalBytes,
                accept: { (header: RecordBatchHeader, position: Int) throws(ReadError) -> Bool in
                    // What the checksum does not cover must fit what is known otherwise.
                    if header.baseOffset > segment.endOffset.rawValue,
                        header.baseOffset > checkpoint.compactedEnd.rawValue
                    {
                        return false
                    }
                    // Nothing is known of the epochs of batches before the log start.
                    if header.partitionLeaderEpoch >= 0,
                        let known = leaderEpochs.epoch(at: Offset(header.baseOffset)),
                        header.partitionLeaderEpoch < known.rawValue
                    {
                        return false
                    }
                    if header.lastOffset >= recoveryPoint.rawValue {
                        recovery.checkedBytes += header.totalByteCount
                        guard
                            try BatchChecksum.matches(
                                header, at: position, in: segment.openFile, end: fileSize)
                        else { return false }
                        if header.isControl { foundMarkers = true }
                    }
                    let epoch = LeaderEpoch(header.partitionLeaderEpoch)
                    if epoch.rawValue >= 0 { leaderEpochs.assign(epoch, startOffset: Offset(header.baseOffset)) }
                    return true
                })
            end = segment.endOffset
            segment.firstAppend = segment.size > 0 ? try firstTimestamp(of: segment, now: now) : nil
            if reached < fileSize {
                let mayBeRoom = nextBase.map { $0 == end } ?? (end >= flushedEnd)
                let isRoom = try mayBeRoom && giveBackRoom(of: segment, to: fileSize)
                if !isRoom {
                    if try judge(segmentIndex: index, position: reached, end: end, flushedEnd: flushedEnd) {
                        _ = try makeDurable()
                        return checked
                    }
                    break
                }
            }
            // Compaction leaves gaps; a sealed segment reaches to the next one all the same.
            if let nextBase, nextBase <= checkpoint.compactedEnd, end < nextBase { segment.endOffset = nextBase }
            if nextBase != nil { completeIndexes(of: segment) }
        }
        if end < flushedEnd {
            _ = try judge(
                segmentIndex: segments.count - 1, position: segments.last?.size ?? 0, end: end,
                flushedEnd: flushedEnd)
            _ = try makeDurable()
            return checked
        }
        setEnds(end, flushed: recoveryPoint)
        // The run that crashed may have reserved blocks ahead.
        if let active = segments.last { active.allocatedEnd = active.size + 1 }
        leaderEpochs.truncate(toEnd: end)
        if leaderEpochs != storedEpochs { markEpochsDirty() }
        // Small files that there is no room for are found again by the next recovery.
        let isComplete = try makeDurable()
        flushedEndOffset = end
        return Checked(raisesRecoveryPoint: isComplete, foundMarkers: foundMarkers)
    }

    /// What survived counts only when it is on the disk: the crash may have been the process's alone, and
    /// pages and names are still only in memory, those of segments that compaction put in others' places among them.
    /// Index files below the recovery point got their names when they were durable.
    /// Returns false when there was no room for the small files.
    private func makeDurable() throws -> Bool {
        for segment in segments where segment.endOffset > checkpoint.recoveryPoint || segment.openFile != nil {
            dirty.markFile(try segment.file())
        }
        dirty.markDirectory(folder)
        dirty.markDirectory(directory.path)
        let result = dirty.take(directory, endOffset: logEndOffset).run()
        if let failure = result.failure {
            throw directory.record(failure, isFlush: !result.canBeRetried && !checkpoint.isDeleted)
        }
        dirty.completed(result.sequence, keepingReplacements: result.lacksSmallFiles)
        return !result.lacksSmallFiles
    }

    /// Decides about bytes that are no batch, at `position` of a segment. Returns true when the log is
    /// damaged: everything from there on is kept, a copy is in quarantine, the log goes no further. Else
    /// the torn tail is cut.
    private func judge(segmentIndex: Int, position: Int, end: Offset, flushedEnd: Offset) throws -> Bool {
        let verdict = try TailVerdict.of(
            segments[segmentIndex...].map { (file: try $0.file(), size: try $0.file().file.size()) },
            from: position, expectedOffset: end)
        recovery.quarantinedBytes += try quarantine(fromSegment: segmentIndex, position: position, end: end)
        let detail: String
        if end < checkpoint.recoveryPoint {
            detail = "offsets up to \(checkpoint.recoveryPoint) were flushed, but no valid batch is at \(end)"
        } else if end < flushedEnd {
            detail = "\(OffsetCheckpoint.logStart) says that the log starts at \(flushedEnd), but it ends at \(end)"
        } else {
            switch verdict {
            case .tornTail:
                try cut(toSegment: segmentIndex, position: position, end: end)
                return false
            case .damage(let found):
                detail = "no valid batch at byte \(position) of segment \(segments[segmentIndex].baseOffset), "
                    + "but \(found) follows"
            }
        }
        damage = LogDamage(offset: end, detail: detail)
        segments[segmentIndex].size = position
        segments[segmentIndex].endOffset = end
        segments.removeSubrange((segmentIndex + 1)...)
        if position == 0, segmentIndex > 0 { segments.removeLast() }
        setEnds(end, flushed: end)
        return true
    }

    /// The first segments' files are not there. When nothing valid is in the others, nothing ever reached
    /// the disk; else it is damage.
    private func judgeMissingStart(_ base: Offset) throws {
        let files = try segments.map { (file: try $0.file(), size: try $0.file().file.size()) }
        let verdict = try TailVerdict.of(files, from: 0, expectedOffset: logStartOffset)
        recovery.wasChecked = true
        recovery.quarantinedBytes += try quarantine(fromSegment: 0, position: 0, end: logStartOffset)
        if checkpoint.recoveryPoint <= logStartOffset, verdict == .tornTail {
            for segment in segments.reversed() { try removeFiles(of: segment) }
            try disk.syncDirectory(folder)
        } else {
            damage = LogDamage(
                offset: logStartOffset,
                detail: "the first segment in \(folder) starts at \(base): what was before it is missing")
        }
        segments = []
        setEnds(logStartOffset, flushed: logStartOffset)
    }

    /// Cuts the log at `position` of a segment and removes the segments behind it.
    func cut(toSegment index: Int, position: Int, end: Offset) throws {
        // One after the other, from the end: a crash in between must leave a log without holes.
        for segment in segments[(index + 1)...].reversed() {
            try removeFiles(of: segment)
            try disk.syncDirectory(folder)
        }
        segments.removeSubrange((index + 1)...)
        let segment = segments[index]
        if position == 0, index > 0, segment.baseOffset != end {
            try removeFiles(of: segment)
            segments.removeLast()
            if let last = segments.last { last.isSealed = false }
            try disk.syncDirectory(folder)
            return
        }
        let file = try segment.file()
        recovery.truncatedBytes += max(0, try file.file.size() - position)
        try segment.truncateIndexes(toPosition: position, end: end)
        try file.file.truncate(to: position)
        try file.file.sync()
        segment.size = position
        segment.endOffset = end
        segment.allocatedEnd = 0
        segment.roomEnd = 0
        segment.isSealed = false
        try disk.syncDirectory(folder)
    }

    func removeFiles(of segment: Segment<D>) throws {
        recovery.truncatedBytes += segment.size
        segment.releaseFiles()
        for kind in [LogFileName.log, LogFileName.offsetIndex, LogFileName.timeIndex, LogFileName.transactionIndex] {
            try disk.removeIfPresent(segment.path(kind))
        }
    }

    /// Copies everything from `position` of a segment on to the quarantine folder, once. Durable when it returns.
    func quarantine(fromSegment index: Int, position: Int, end: Offset) throws -> Int {
        let target = directory.path + "/" + LogDirectory<D>.quarantineName + "/" + topicPartition.description
        var copied = 0
        var isThere = false
        for (number, segment) in segments[index...].enumerated() {
            let start = number == 0 ? position : 0
            let file = try segment.file()
            let size = try file.file.size()
            guard size > start else { continue }
            try disk.createDirectories(target)
            isThere = true
            let base = number == 0 ? end : segment.baseOffset
            if try hasCopy(of: file.file, from: start, to: size, in: target, base: base) { continue }
            let path = try freeCopyPath(in: target, base: base)
            let partial = path + ".tmp"
            let copy = try disk.open(partial, .create)
            defer { copy.close() }
            try copy.truncate(to: 0)
            var position = start
            while position < size {
                var chunk = ByteBuffer()
                let count = try file.file.read(into: &chunk, at: position, count: min(1 << 20, size - position))
                if count == 0 { break }
                try copy.write([chunk], at: position - start)
                position += count
            }
            try copy.sync()
            try disk.rename(partial, to: path)
            copied += size - start
        }
        if isThere { try disk.syncDirectory(target) }
        return copied
    }

    /// `00000000000000000042.bytes`, `00000000000000000042.1.bytes` ...
    private func copyPath(in target: String, base: Offset, number: Int) -> String {
        target + "/" + LogFileName.make(base.rawValue, number == 0 ? "bytes" : "\(number).bytes")
    }

    private func freeCopyPath(in target: String, base: Offset) throws(DiskError) -> String {
        var number = 0
        while try disk.exists(copyPath(in: target, base: base, number: number)) { number += 1 }
        return copyPath(in: target, base: base, number: number)
    }

    /// The same damage is found at each start until it is repaired: one copy is enough.
    private func hasCopy(
        of file: D.File, from start: Int, to end: Int, in target: String, base: Offset
    ) throws(DiskError) -> Bool {
        var number = 0
        while true {
            let path = copyPath(in: target, base: base, number: number)
            guard try disk.exists(path) else { return false }
            let copy = try disk.open(path, .read)
            defer { copy.close() }
            if try copy.size() == end - start, try isSame(copy, file, from: start, count: end - start) { return true }
            number += 1
        }
    }

    private func isSame(_ copy: D.File, _ file: D.File, from start: Int, count: Int) throws(DiskError) -> Bool {
        var position = 0
        while position < count {
            var (copied, original) = (ByteBuffer(), ByteBuffer())
            let step = min(1 << 20, count - position)
            guard try copy.read(into: &copied, at: position, count: step) > 0,
                try file.read(into: &original, at: start + position, count: step) > 0, copied == original
            else { return false }
            position += copied.readableBytes
        }
        return true
    }

    /// Gives up what lies behind the damage (a copy is in quarantine) and makes the log whole again, for
    /// `martlet log repair`. Blocks on the disk.
    package func repair() throws(StorageError) {
        guard let damage else { return }
        var cutEnd = damage.offset
        do {
            // Segments behind the damage are not in the list: find them again.
            for name in try disk.list(folder) {
                if let (base, _) = LogFileName.parse(name), base > damage.offset.rawValue
                    || (base == damage.offset.rawValue && !segments.contains { $0.baseOffset.rawValue == base })
                {
                    try disk.remove(folder + "/" + name)
                }
            }
            if let active = segments.last {
                // Before the damage compaction may have left a gap, and no start takes a log that ends in one.
                try dropTemporaryIndexes(of: active)
                cutEnd = min(cutEnd, try reindexLastSegment())
                active.endOffset = cutEnd
                try cut(toSegment: segments.count - 1, position: active.size, end: cutEnd)
                try reindexLastSegment()
            }
            try disk.syncDirectory(folder)
            try forgetEpochs(from: cutEnd)
        } catch let error as DiskError {
            throw directory.record(error)
        } catch {
            throw .offline(topicPartition, detail: "\(error)")
        }
        self.damage = nil
        if let first = segments.first, logStartOffset > cutEnd {
            // No log reaches to the start on record: better to show what is there than to hide it.
            logStartOffset = first.baseOffset
            checkpoint.lowerLogStart(to: first.baseOffset)
        }
        let end = max(cutEnd, logStartOffset)
        setEnds(end, flushed: end)
        compactedEnd = min(compactedEnd, end)
        _ = checkpoint.logWasCut(to: end)
        // Beside a follower's cut the one place where a recovery point falls: on an operator's word, or where another
        // replica has the records.
        checkpoint.setRecoveryPoint(end)
        try directory.writeCheckpoints()
    }

    /// A crash may have come between a cut and the checkpoint file that was to know of it. What will be written there has
    /// no gaps: one would be a segment that a crash took.
    private func forgetGapsBehindEnd() throws(StorageError) {
        if checkpoint.logWasCut(to: logEndOffset) { try directory.writeCheckpoints() }
    }

    // MARK: Interrupted work

    /// Clears away what a crash left half-done and returns the names that count.
    private func finishInterrupted(_ names: [String], now: Timestamp) throws -> [String] {
        var present: [String] = []
        var changed = false
        for name in names {
            if name.hasSuffix(LogFileName.deletedSuffix) || name.hasSuffix(LogFileName.cleanedSuffix)
                || name.hasSuffix(LogFileName.temporarySuffix)
            {
                try disk.removeIfPresent(folder + "/" + name)
                changed = true
            } else {
                present.append(name)
            }
        }
        if changed { dirty.markDirectory(folder) }
        return present
    }

    // MARK: Producers

    /// Snapshots and epochs of a log that is lost must not come back when the new one has grown there.
    private func removeLeftovers(_ names: [String]) throws(DiskError) {
        for name in names
        where LogFileName.parse(name)?.kind == LogFileName.producerSnapshot || name == LogFileName.leaderEpochCheckpoint {
            try disk.removeIfPresent(folder + "/" + name)
        }
    }

    /// Newest undamaged snapshot at or before the log end, then the batches behind it.
    ///
    /// - Parameter indexedEnd: the transaction index is complete for markers before this.
    private func loadProducers(_ names: [String], indexedEnd: Offset, now: Timestamp) throws {
        var offsets: [Int64] = []
        for name in names {
            if let (offset, kind) = LogFileName.parse(name), kind == LogFileName.producerSnapshot {
                offsets.append(offset)
            }
        }
        offsets.sort()
        // Snapshots of a future that is lost must not come back when the log has grown there again.
        while let last = offsets.last, last > logEndOffset.rawValue {
            try disk.removeIfPresent(folder + "/" + LogFileName.make(last, LogFileName.producerSnapshot))
            dirty.markDirectory(folder)
            offsets.removeLast()
        }
        snapshotOffsets = offsets
        try rebuildProducers(indexedEnd: indexedEnd, now: now)
    }

    /// After a cut: state as of the new end.
    func reloadProducers() throws {
        let newest = producers.entries.values.map(\.lastAppend).max()
        producers = ProducerStateTable()
        try rebuildProducers(indexedEnd: logEndOffset, now: newest ?? Timestamp(milliseconds: 0))
    }

    /// From a snapshot that is not behind `indexedEnd` on the walk sees every marker whose entry in the transaction
    /// index may be missing, together with the state in which its transaction began.
    private func rebuildProducers(indexedEnd: Offset, now: Timestamp) throws {
        var start = logStartOffset
        for offset in snapshotOffsets.reversed() where offset <= indexedEnd.rawValue {
            let path = folder + "/" + LogFileName.make(offset, LogFileName.producerSnapshot)
            if let bytes = try disk.readAll(path, limit: 256 << 20), let table = ProducerStateTable(decoding: bytes),
                // What was open before a compacted end is decided by now, and its marker may have been taken:
                // from here the walk would find no end of it.
                offset >= checkpoint.compactedEnd.rawValue || table.openTransactions.isEmpty
            {
                producers = table
                start = max(Offset(offset), logStartOffset)
                break
            }
        }
        let rebuildEpochs = leaderEpochs.entries.isEmpty
        if rebuildEpochs { start = min(start, segments.first?.baseOffset ?? start) }
        let snapshotEnd = start
        var aborted: [AbortedTransaction] = []
        try walkBatches(from: start) { header, marker in
            if rebuildEpochs, header.partitionLeaderEpoch >= 0 {
                leaderEpochs.assign(
                    LeaderEpoch(header.partitionLeaderEpoch), startOffset: Offset(header.baseOffset))
            }
            if header.lastOffset >= snapshotEnd.rawValue,
                let entry = producers.follow(header, marker: marker, now: now)?.aborted
            {
                aborted.append(entry)
            }
        }
        if let active = segments.last, indexedEnd == logEndOffset, try !active.loadAborted().isWhole {
            try rebuildTransactionIndexes()
        } else {
            try replaceAborted(from: snapshotEnd, with: aborted)
        }
        producers.expire(
            now: now, expiration: configuration.producerExpirationMilliseconds, limit: configuration.producerLimit)
    }

    /// Every batch header from the one that holds `start` to the end, with the marker where the batch is one.
    func walkBatches(
        from start: Offset, _ body: (RecordBatchHeader, EndTransactionMarker?) -> Void
    ) throws(ReadError) {
        for segment in segments where segment.endOffset > start && segment.size > 0 {
            let view: SegmentView<D>
            do { view = try segment.view(end: segment.endOffset) } catch { throw .storage(.file(error)) }
            var scanner = BatchScanner(view.file, end: segment.size, nonBlocking: false)
            var position = 0
            if start > segment.baseOffset {
                position = try view.startPosition(for: start, scanner: &scanner, nonBlocking: false) ?? 0
            }
            while position < segment.size {
                guard let header = try scanner.header(at: position) else {
                    throw view.damaged(topicPartition, at: start, position: position)
                }
                if header.lastOffset >= start.rawValue {
                    var marker: EndTransactionMarker?
                    if header.isControl, header.hasProducerID {
                        let batch = try view.file.readBytes(
                            at: position, count: header.totalByteCount, nonBlocking: false)
                        do throws(RecordBatchError) {
                            marker = try EndTransactionMarker(batch: batch)
                        } catch {
                            throw view.damaged(topicPartition, at: Offset(header.baseOffset), position: position)
                        }
                    }
                    body(header, marker)
                }
                position += header.totalByteCount
            }
        }
    }
}
