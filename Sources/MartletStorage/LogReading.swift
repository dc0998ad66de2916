package import MartletLogModel
import MartletRecordBatch
package import NIOCore

extension PartitionLog {
    /// Whole batches from the one that contains `from` on, all with last offset below `bound`, at most
    /// `maxBytes` (but one batch when `minOneBatch`), never beyond one segment. Empty at the end of what
    /// may be read.
    ///
    /// Tail fetches are answered from memory. Others look at index and log file: with `nonBlocking` that
    /// throws ``ReadError/wouldBlock`` when a page is not cached; then use
    /// ``coldLocate(from:upTo:maxBytes:minOneBatch:)``.
    ///
    /// - Parameter bound: exclusive; high watermark or last stable offset for consumers.
    @_specialize(where D == AnyDisk)
    package func locate(
        from: Offset, upTo bound: Offset, maxBytes: Int, minOneBatch: Bool, nonBlocking: Bool = false
    ) throws(ReadError) -> LogRegion<D> {
        guard let segment = try readableSegment(from: from, bound: bound) else { return .empty(at: from) }
        let bound = min(bound, writtenEndOffset)
        if segment === segments.last, let file = segment.openFile,
            let run = recent.locate(from: from, upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch)
        {
            if run.byteCount == 0 { return .empty(at: from) }
            return LogRegion(
                file: file, position: run.position, byteCount: run.byteCount, baseOffset: run.base,
                nextOffset: run.next, indexDamaged: false)
        }
        let view = try view(of: segment)
        var region = try view.locate(
            from: from, upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch, partition: topicPartition,
            nonBlocking: nonBlocking)
        if region.indexDamaged { try rebuildIndex(at: from) }
        // Compaction may have emptied the end of a segment: go on with the next one.
        var index = segmentIndex(for: from) + 1
        while region.isEmpty, index < segments.count, segments[index].baseOffset < bound,
            try view.isExhausted(from: from, upTo: bound, nonBlocking: nonBlocking)
        {
            let next = segments[index]
            guard next.baseOffset <= checkpoint.compactedEnd else {
                throw view.missing(topicPartition, from: from, to: next.baseOffset)
            }
            region = try self.view(of: next).locate(
                from: max(from, next.baseOffset), upTo: bound, maxBytes: maxBytes, minOneBatch: minOneBatch,
                partition: topicPartition, nonBlocking: nonBlocking)
            if next.size > 0 { break }
            index += 1
        }
        return region
    }

    /// The look-up of ``locate(from:upTo:maxBytes:minOneBatch:nonBlocking:)`` as a work item for a thread
    /// that may wait.
    package func coldLocate(
        from: Offset, upTo bound: Offset, maxBytes: Int, minOneBatch: Bool
    ) throws(ReadError) -> ColdLocate<D>? {
        guard let segment = try readableSegment(from: from, bound: bound) else { return nil }
        let later = segments[(segmentIndex(for: from) + 1)...].prefix { $0.baseOffset < bound }
        let next = later.first { $0.size > 0 }
        return ColdLocate(
            view: try view(of: segment), next: try next.map { segment throws(ReadError) in try view(of: segment) },
            gapsEnd: checkpoint.compactedEnd, partition: topicPartition, from: from,
            bound: min(bound, writtenEndOffset), maxBytes: maxBytes, minOneBatch: minOneBatch)
    }

    /// Appends the region's bytes to `buffer`.
    package func read(
        _ region: LogRegion<D>, into buffer: inout ByteBuffer, nonBlocking: Bool
    ) throws(ReadError) -> ReadOutcome {
        try region.read(into: &buffer, nonBlocking: nonBlocking)
    }

    /// The segment to search; nil when there is nothing to read at `from` yet.
    private func readableSegment(from: Offset, bound: Offset) throws(ReadError) -> Segment<D>? {
        do {
            try directory.requireAlive()
        } catch {
            throw .storage(error)
        }
        guard from >= logStartOffset, from <= logEndOffset else {
            if let damage, from > damage.offset { throw .storage(damage.error(topicPartition)) }
            throw .offsetOutOfRange(start: logStartOffset, end: logEndOffset)
        }
        if from >= min(bound, writtenEndOffset) {
            if let damage, from >= damage.offset { throw .storage(damage.error(topicPartition)) }
            return nil
        }
        if segments.isEmpty { return nil }
        return segments[segmentIndex(for: from)]
    }

    /// Last segment that starts at or before `offset`.
    func segmentIndex(for offset: Offset) -> Int {
        var low = 0
        var high = segments.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if segments[middle].baseOffset <= offset { low = middle } else { high = middle }
        }
        return low
    }

    func view(of segment: Segment<D>) throws(ReadError) -> SegmentView<D> {
        do {
            let end = segment === segments.last ? writtenEndOffset : segment.endOffset
            let view = try segment.view(end: end)
            limitOpenFiles(keeping: segment)
            return view
        } catch {
            throw .storage(directory.record(error))
        }
    }

    /// Closed segments that were looked at stay open for the next look, but only the last few of them.
    private func limitOpenFiles(keeping segment: Segment<D>) {
        guard segment.isSealed, openSealed.last !== segment else { return }
        openSealed.removeAll { $0 === segment }
        openSealed.append(segment)
        guard openSealed.count > Self.openSealedLimit else { return }
        // Unflushed files are held by the dirty set as well and stay open with it.
        openSealed.removeFirst().releaseFiles()
    }

    private static var openSealedLimit: Int { 4 }

    /// Makes the index files of the segment that holds `offset` anew from its log file.
    package func rebuildIndex(at offset: Offset) throws(ReadError) {
        guard !segments.isEmpty else { return }
        let segment = segments[segmentIndex(for: offset)]
        let (size, end, first, maximum) = (segment.size, segment.endOffset, segment.firstAppend, segment.maximum)
        defer { (segment.size, segment.endOffset, segment.firstAppend) = (size, end, first) }
        do {
            if segment.isSealed {
                // A start after a crash looks at no index of a segment below the recovery point, so a short one must
                // not get there.
                try dropTemporaryIndexes(of: segment)
                try segment.startTemporaryIndexes(LogFileName.temporarySuffix)
            } else {
                try segment.truncateIndexes(toPosition: 0, end: segment.baseOffset)
            }
        } catch {
            throw .storage(directory.record(error))
        }
        segment.maximum = nil
        segment.indexes.lastTime = nil
        segment.indexes.bytesSinceEntry = 0
        segment.endOffset = segment.baseOffset
        do throws(ReadError) {
            let reached = try segment.walk(
                from: 0, to: size, now: segment.lastAppend, indexInterval: configuration.indexIntervalBytes,
                accept: { (_: RecordBatchHeader, _: Int) throws(ReadError) -> Bool in true })
            guard reached == size else {
                throw .storage(
                    .corrupt(
                        topicPartition, offset: offset,
                        detail: "no valid batch header at byte \(reached) of segment \(segment.baseOffset)"))
            }
        } catch {
            // What the part that was walked says of the times is not true of the whole.
            discardIndexes(of: segment)
            if segment.isSealed { segment.unloadIndexes() } else { segment.maximum = maximum }
            throw error
        }
        if segment.isSealed {
            completeIndexes(of: segment)
            publishAfterFlush(segment)
        } else {
            persistIndexes(of: segment)
        }
    }

    // MARK: Timestamps

    /// The first record with a timestamp at or after `timestamp` below `bound` (ListOffsets, KIP-79): its
    /// offset and timestamp. Reads one batch; blocks on the disk.
    package func offset(
        for timestamp: Timestamp, upTo bound: Offset
    ) throws(ReadError) -> (offset: Offset, timestamp: Timestamp)? {
        try requireReadable()
        for segment in segments where segment.size > 0 && segment.endOffset > logStartOffset {
            if segment.baseOffset >= bound { break }
            try loadTimes(of: segment)
            if let maximum = segment.maximum, maximum.timestamp < timestamp.rawValue { continue }
            let view = try view(of: segment)
            var scanner = BatchScanner(view.file, end: segment.size, nonBlocking: false)
            var position = 0
            do {
                if let entry = try floorTime(in: segment, timestamp.rawValue), try view.isTrue(entry, isLast: false) {
                    let start = segment.baseOffset + Int64(entry.relativeOffset)
                    position = try view.startPosition(for: start, scanner: &scanner, nonBlocking: false) ?? 0
                }
            } catch let error as ReadError {
                throw error
            } catch let error as DiskError {
                throw .storage(directory.record(error))
            } catch {
                throw .wouldBlock
            }
            while position < segment.size {
                guard let header = try scanner.header(at: position) else {
                    throw view.damaged(topicPartition, at: segment.baseOffset, position: position)
                }
                if header.baseOffset >= bound.rawValue { return nil }
                if header.maxTimestamp >= timestamp.rawValue, header.lastOffset >= logStartOffset.rawValue,
                    let found = try firstRecord(
                        of: header, at: position, in: view, from: logStartOffset, notBefore: timestamp.rawValue)
                {
                    return found.offset < bound ? found : nil
                }
                position += header.totalByteCount
            }
        }
        return nil
    }

    /// The first record that carries the largest timestamp below `bound` (ListOffsets -3, KIP-734).
    package func offsetOfMaxTimestamp(
        upTo bound: Offset
    ) throws(ReadError) -> (offset: Offset, timestamp: Timestamp)? {
        try requireReadable()
        var best: (header: RecordBatchHeader, position: Int, segment: Segment<D>)?
        for segment in segments where segment.size > 0 && segment.endOffset > logStartOffset {
            if segment.baseOffset >= bound { break }
            try loadTimes(of: segment)
            if let maximum = segment.maximum, let best, maximum.timestamp <= best.header.maxTimestamp { continue }
            let view = try view(of: segment)
            var scanner = BatchScanner(view.file, end: segment.size, nonBlocking: false)
            var position = 0
            // Only a segment that `bound` or the log start cuts must be walked: elsewhere the index knows.
            if segment.endOffset <= bound, segment.baseOffset >= logStartOffset, let maximum = segment.maximum {
                position =
                    try view.startPosition(
                        for: segment.baseOffset + Int64(maximum.relativeOffset), scanner: &scanner,
                        nonBlocking: false) ?? 0
            }
            while position < segment.size, let header = try scanner.header(at: position),
                header.baseOffset < bound.rawValue
            {
                if header.lastOffset >= logStartOffset.rawValue, header.lastOffset < bound.rawValue,
                    header.maxTimestamp > best?.header.maxTimestamp ?? -1
                {
                    best = (header, position, segment)
                }
                position += header.totalByteCount
            }
        }
        guard let best else { return nil }
        return try firstRecord(
            of: best.header, at: best.position, in: try view(of: best.segment), from: logStartOffset,
            notBefore: best.header.maxTimestamp)
    }

    /// Makes a segment's largest timestamp known. That of a closed one comes from its time index, checked
    /// against the log; lost or false indexes are made anew.
    func loadTimes(of segment: Segment<D>) throws(ReadError) {
        if segment.timesAreLoaded { return }
        do {
            try segment.loadTimes()
        } catch {
            throw .storage(directory.record(error))
        }
        guard segment.isSealed else { return }
        do throws(ReadError) {
            if let last = segment.indexes.lastTime {
                if try view(of: segment).isTrue(last, isLast: true) { return }
            } else if segment.indexes.offsetCount > 0 || segment.size <= 2 * configuration.indexIntervalBytes {
                // Without timestamps, or too short for an index.
                return
            }
            try rebuildIndex(at: segment.baseOffset)
        } catch {
            segment.unloadIndexes()
            throw error
        }
    }

    private func requireReadable() throws(ReadError) {
        do {
            try directory.requireAlive()
        } catch {
            throw .storage(error)
        }
    }

    private func floorTime(in segment: Segment<D>, _ timestamp: Int64) throws(DiskError) -> TimeIndexEntry? {
        if let first = segment.indexes.pendingTimes.first, first.timestamp < timestamp {
            return segment.indexes.pendingTimes.last { $0.timestamp < timestamp }
        }
        var low = 0
        var high = segment.indexes.persistedTimeCount
        while high - low > 1 {
            let middle = (low + high) / 2
            guard let entry = try segment.readTimes(at: middle, count: 1).first else { return nil }
            if entry.timestamp < timestamp { low = middle } else { high = middle }
        }
        guard high > low, let entry = try segment.readTimes(at: low, count: 1).first,
            entry.timestamp < timestamp
        else { return nil }
        return entry
    }

    /// The batch's first record at or after `from` whose timestamp is at least `notBefore`.
    private func firstRecord(
        of header: RecordBatchHeader, at position: Int, in view: SegmentView<D>, from: Offset, notBefore: Int64
    ) throws(ReadError) -> (offset: Offset, timestamp: Timestamp)? {
        if header.timestampType == .logAppendTime || header.recordCount == 0 || header.isControl {
            let offset = max(from.rawValue, header.baseOffset)
            return (Offset(offset), Timestamp(milliseconds: header.maxTimestamp))
        }
        let batch = try view.file.readBytes(at: position, count: header.totalByteCount, nonBlocking: false)
        do {
            var iterator = try RecordIterator(batch)
            while let record = try iterator.next() {
                if record.offset >= from, record.timestamp.rawValue >= notBefore {
                    return (record.offset, record.timestamp)
                }
            }
        } catch {
            // The header told the truth about times if anything did (validation `header` lets such
            // batches in): answer with the batch.
            return (Offset(max(from.rawValue, header.baseOffset)), Timestamp(milliseconds: header.maxTimestamp))
        }
        return nil
    }
}

extension SegmentView {
    /// No batch of this segment ends at or after `from`, so the search must go on in the next segment.
    func isExhausted(from: Offset, upTo bound: Offset, nonBlocking: Bool) throws(ReadError) -> Bool {
        var scanner = BatchScanner(file, end: size, nonBlocking: nonBlocking)
        var position = try startPosition(for: from, scanner: &scanner, nonBlocking: nonBlocking) ?? 0
        while position < size, let header = try scanner.header(at: position) {
            if header.lastOffset >= from.rawValue { return false }
            position += header.totalByteCount
        }
        return true
    }
}

extension LogRegion {
    /// Appends the region's bytes to `buffer`; usable from any thread. Nothing is appended unless
    /// everything is there.
    @_specialize(where D == AnyDisk)
    package func read(into buffer: inout ByteBuffer, nonBlocking: Bool) throws(ReadError) -> ReadOutcome {
        guard let file else { return .read }
        let start = buffer.writerIndex
        do throws(DiskError) {
            while buffer.writerIndex - start < byteCount {
                let done = buffer.writerIndex - start
                let count: Int?
                if nonBlocking {
                    count = try file.file.readCached(into: &buffer, at: position + done, count: byteCount - done)
                } else {
                    count = try file.file.read(into: &buffer, at: position + done, count: byteCount - done)
                }
                guard let count else {
                    buffer.moveWriterIndex(to: start)
                    return .wouldBlock
                }
                if count == 0 {
                    throw DiskError(.inputOutput, operation: "read", path: file.path, detail: "file is cut short")
                }
            }
        } catch {
            buffer.moveWriterIndex(to: start)
            throw .storage(.file(error))
        }
        return .read
    }
}
