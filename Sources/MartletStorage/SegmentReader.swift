import MartletLogModel
package import MartletRecordBatch
package import NIOCore

/// Reads a segment file by its path, without a log around it: for `martlet log dump` and for looking at
/// quarantined bytes. Never changes anything.
package struct SegmentReader<D: Disk> {
    package enum Item: Sendable {
        case batch(position: Int, header: RecordBatchHeader, bytes: ByteBuffer, checksumMatches: Bool)
        /// Bytes that are no batch; the reader goes on behind them where a valid batch follows.
        case invalid(position: Int, byteCount: Int, reason: String)
    }

    package let path: String
    package let byteCount: Int
    private let file: SegmentFile<D>
    private var scanner: BatchScanner<D>
    private var position = 0

    package init(path: String, disk: D) throws(StorageError) {
        self.path = path
        do {
            file = SegmentFile(try disk.open(path, .read), path: path)
            byteCount = try file.file.size()
        } catch {
            throw .file(error)
        }
        scanner = BatchScanner(file, end: byteCount, nonBlocking: false)
    }

    /// The next batch, or nil at the end of the file.
    package mutating func next() throws(StorageError) -> Item? {
        guard position < byteCount else { return nil }
        do throws(ReadError) {
            let start = position
            if let header = try scanner.header(at: start) {
                let bytes = try file.readBytes(at: start, count: header.totalByteCount, nonBlocking: false)
                let matches = try BatchChecksum.matches(header, at: start, in: file, end: byteCount)
                position = start + header.totalByteCount
                return .batch(position: start, header: header, bytes: bytes, checksumMatches: matches)
            }
            position = try nextValid(after: start) ?? byteCount
            return .invalid(
                position: start, byteCount: position - start,
                reason: "no whole record batch of format 2 starts here")
        } catch {
            switch error {
            case .storage(let error): throw error
            case .wouldBlock, .offsetOutOfRange:
                throw .file(DiskError(.other, operation: "read", path: path, detail: "\(error)"))
            }
        }
    }

    private mutating func nextValid(after start: Int) throws(ReadError) -> Int? {
        var candidate = start + 1
        while candidate + RecordBatchHeader.byteCount <= byteCount {
            if let header = try scanner.header(at: candidate),
                try BatchChecksum.matches(header, at: candidate, in: file, end: byteCount)
            {
                return candidate
            }
            candidate += 1
        }
        return nil
    }

    /// Entries of an `.index` file: relative offset and position.
    package static func offsetIndex(path: String, disk: D) throws(StorageError) -> [OffsetIndexEntry] {
        var buffer = try content(path, disk)
        var entries: [OffsetIndexEntry] = []
        while let (offset, position) = buffer.readMultipleIntegers(as: (Int32, Int32).self) {
            entries.append(OffsetIndexEntry(relativeOffset: offset, position: position))
        }
        return entries
    }

    /// Entries of a `.timeindex` file.
    package static func timeIndex(path: String, disk: D) throws(StorageError) -> [TimeIndexEntry] {
        var buffer = try content(path, disk)
        var entries: [TimeIndexEntry] = []
        while let (timestamp, offset) = buffer.readMultipleIntegers(as: (Int64, Int32).self) {
            entries.append(TimeIndexEntry(timestamp: timestamp, relativeOffset: offset))
        }
        return entries
    }

    /// Producers of a `.snapshot` file; nil when it is damaged.
    package static func producerSnapshot(path: String, disk: D) throws(StorageError) -> ProducerStateTable? {
        ProducerStateTable(decoding: try content(path, disk))
    }

    private static func content(_ path: String, _ disk: D) throws(StorageError) -> ByteBuffer {
        do {
            guard let buffer = try disk.readAll(path, limit: 1 << 30) else {
                throw DiskError(.notFound, operation: "open", path: path)
            }
            return buffer
        } catch let error as DiskError {
            throw .file(error)
        } catch {
            throw .file(DiskError(.other, operation: "read", path: path))
        }
    }
}
