import MartletLogModel
import MartletRecordBatch
import NIOCore

/// CRC-32C of a batch in a file, in pieces: bounded memory whatever its length field says.
enum BatchChecksum {
    static let pieceBytes = 256 << 10

    static func matches<D: Disk>(
        _ header: RecordBatchHeader, at position: Int, in file: SegmentFile<D>?, end: Int
    ) throws(ReadError) -> Bool {
        guard let file, header.totalByteCount <= end - position else { return false }
        var checksum: UInt32 = 0
        var next = position + RecordBatchHeader.checksumStart
        let stop = position + header.totalByteCount
        while next < stop {
            let piece = try file.readBytes(at: next, count: min(pieceBytes, stop - next), nonBlocking: false)
            if piece.readableBytes == 0 { return false }
            checksum = crc32c(piece, continuing: checksum)
            next += piece.readableBytes
        }
        return checksum == header.crc
    }
}

/// What bytes mean that are no batch.
enum TailVerdict: Equatable, Sendable {
    /// Nothing valid follows: the crash came while they were written, so nobody was told of them.
    case tornTail
    /// A whole, valid batch follows: writes are in order, so these bytes were a batch once. The text names
    /// what was found.
    case damage(String)

    /// Looks for a valid batch anywhere from `position` of the first file on. Memory is bounded by the
    /// chunk; time is linear, because a candidate's checksum is computed only when its header is possible,
    /// and the bytes spent on that are limited to a multiple of the size.
    static func of<D: Disk>(
        _ files: [(file: SegmentFile<D>, size: Int)], from position: Int, expectedOffset: Offset
    ) throws(ReadError) -> TailVerdict {
        var budget = 64 << 20
        for (_, size) in files { budget += 8 * size }
        for (number, (file, size)) in files.enumerated() {
            var start = number == 0 ? position : 0
            while size - start >= RecordBatchHeader.byteCount {
                let chunk = try file.readBytes(at: start, count: min(chunkBytes, size - start), nonBlocking: false)
                guard chunk.readableBytes >= RecordBatchHeader.byteCount else { break }
                for candidate in candidates(in: chunk, expectedOffset: expectedOffset, room: size - start) {
                    let header: RecordBatchHeader
                    do { header = try RecordBatchHeader(reading: chunk, at: candidate) } catch { continue }
                    budget -= header.totalByteCount
                    if budget < 0 {
                        // Too many look-alikes to tell: keeping everything is the safe answer.
                        return .damage("data that may be a batch at byte \(start + candidate) of \(file.path)")
                    }
                    if try BatchChecksum.matches(header, at: start + candidate, in: file, end: size) {
                        return .damage("a valid batch with offset \(header.baseOffset) at byte \(start + candidate)")
                    }
                }
                start += chunk.readableBytes - RecordBatchHeader.byteCount + 1
            }
        }
        return .tornTail
    }

    private static let chunkBytes = 1 << 20

    /// Indices in `chunk` where a batch header is possible; `room` is the number of bytes from the chunk's
    /// start to the end of the file.
    private static func candidates(in chunk: ByteBuffer, expectedOffset: Offset, room: Int) -> [Int] {
        chunk.withUnsafeReadableBytes { bytes in
            var found: [Int] = []
            let last = bytes.count - RecordBatchHeader.byteCount
            var index = 0
            while index <= last {
                // SAFETY: index + 61 <= count, and each load stays within those 61 bytes.
                if bytes[index + 16] == 2, bytes[index + 21] == 0, bytes[index + 22] & 0x80 == 0 {
                    let base = Int64(bigEndian: bytes.loadUnaligned(fromByteOffset: index, as: Int64.self))
                    let length = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: index + 8, as: Int32.self))
                    let delta = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: index + 23, as: Int32.self))
                    let count = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: index + 57, as: Int32.self))
                    if base >= expectedOffset.rawValue, base - expectedOffset.rawValue <= Int64(Int32.max),
                        length >= 49, Int(length) + 12 <= room - index, delta >= 0, count >= 0, count <= delta &+ 1
                    {
                        found.append(index)
                    }
                }
                index += 1
            }
            return found
        }
    }
}
