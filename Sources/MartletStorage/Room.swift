import MartletLogModel
import NIOCore

/// Room: zeros written behind the end of a segment, for appends that are flushed one by one.
///
/// An append that makes its file longer costs its flush three waits for the device: the data, the journal of the
/// file system with the new size, the device's own cache. One that replaces bytes the file has already costs one
/// (measured with a C loop on ext4: 131 µs against 206; PostgreSQL writes its log in files of zeros for
/// the same reason).
///
/// Room is used only while each append is alone: one batch, everything before it flushed. The bytes of several
/// unflushed batches may reach the disk in any order where the size does not wait for them, and a hole with a valid
/// batch behind it looks like damage to recovery (``TailVerdict``). One batch has none behind it.
///
/// Invariant: a closed segment has no room by the time the recovery point is *past* its end. Its room is cut off by
/// the flush that makes its successor durable (``FlushWork/Step/sealedFile(_:size:)``). Recovery cuts the others'.
extension PartitionLog {
    /// Writes a batch, before which everything is flushed, into the room behind the segment's end; makes the room when
    /// so many came alone that it pays. False when the batch is still to be written in the ordinary way.
    func writeIntoRoom(
        _ batch: ByteBuffer, at position: Int, of segment: Segment<D>, _ file: SegmentFile<D>
    ) throws(DiskError) -> Bool {
        guard batch.readableBytes <= Self.roomBatchLimit else {
            segment.loneAppendCount = 0
            return false
        }
        segment.loneAppendCount += 1
        let end = position + batch.readableBytes
        if end <= segment.roomEnd {
            try file.file.write([batch], at: position)
            return true
        }
        guard segment.loneAppendCount > configuration.roomThreshold, configuration.roomBytes > 0 else { return false }
        // As much as the segment has already, so that short logs stay small files.
        let room = min(max(position, Self.pageBytes), configuration.roomBytes)
        let goal = min((end + room) / Self.pageBytes * Self.pageBytes, configuration.segmentBytes)
        guard goal > end else { return false }
        do {
            try file.file.write([batch, ByteBuffer(repeating: 0, count: goal - end)], at: position)
            segment.roomEnd = goal
            return true
        } catch {
            guard error.kind == .noSpace else { throw error }
            // There may be space for the batch alone.
            segment.loneAppendCount = 0
            segment.roomEnd = goal
            return false
        }
    }

    /// Before an ordinary append: from here on the size must not be ahead of the data.
    func giveUpRoom(of segment: Segment<D>, _ file: SegmentFile<D>, at position: Int) throws(DiskError) {
        guard segment.roomEnd > position else { return }
        try file.file.truncate(to: position)
        segment.roomEnd = position
        segment.allocatedEnd = position
    }

    /// Cuts off what follows the last batch of a segment if it is nothing but zeros. True when it was.
    func giveBackRoom(of segment: Segment<D>, to fileSize: Int) throws(DiskError) -> Bool {
        let file = try segment.file()
        guard try file.isZero(from: segment.size, to: fileSize) else { return false }
        try file.file.truncate(to: segment.size)
        dirty.markFile(file)
        return true
    }

    /// Larger ones gain little.
    private static var roomBatchLimit: Int { 16 << 10 }
    private static var pageBytes: Int { 4096 }
}

extension SegmentFile {
    /// Whether there is nothing but zeros from `start` to `end`.
    func isZero(from start: Int, to end: Int) throws(DiskError) -> Bool {
        var position = start
        var piece = ByteBuffer()
        while position < end {
            piece.clear()
            let count = try file.read(into: &piece, at: position, count: min(256 << 10, end - position))
            let isZero = piece.withUnsafeReadableBytes { bytes in bytes.allSatisfy { $0 == 0 } }
            guard count > 0, isZero else { return false }
            position += count
        }
        return true
    }
}
