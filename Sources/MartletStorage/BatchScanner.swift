import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Walks the batch headers of a log file through one small read-ahead buffer, whatever the batches' size.
struct BatchScanner<D: Disk> {
    private let file: SegmentFile<D>
    /// Bytes of the file that belong to the log; what lies behind does not exist.
    private let end: Int
    private let nonBlocking: Bool
    private var chunk = ByteBuffer()
    private var chunkStart = 0

    /// Enough for the batches between two index entries at the default interval.
    private static var chunkBytes: Int { 8192 }

    init(_ file: SegmentFile<D>, end: Int, nonBlocking: Bool) {
        self.file = file
        self.end = end
        self.nonBlocking = nonBlocking
    }

    /// The header at `position`; `nil` when no whole batch with a possible header is there.
    mutating func header(at position: Int) throws(ReadError) -> RecordBatchHeader? {
        guard position >= 0, end - position >= RecordBatchHeader.byteCount else { return nil }
        if position < chunkStart || position + RecordBatchHeader.byteCount > chunkStart + chunk.readableBytes {
            chunk = try file.readBytes(
                at: position, count: min(Self.chunkBytes, end - position), nonBlocking: nonBlocking)
            chunkStart = position
            if chunk.readableBytes < RecordBatchHeader.byteCount { return nil }
        }
        let header: RecordBatchHeader
        do {
            header = try RecordBatchHeader(reading: chunk, at: chunk.readerIndex + position - chunkStart)
        } catch {
            return nil
        }
        guard header.totalByteCount <= end - position, header.lastOffsetDelta >= 0, header.baseOffset >= 0,
            header.baseOffset <= Offset.storedLimit
        else { return nil }
        return header
    }
}
