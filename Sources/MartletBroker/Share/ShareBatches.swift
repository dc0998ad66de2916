internal import MartletCoordinators
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore

/// What was read of a partition for a share group: where its batches are, and which of them nobody shall see.
struct ShareBatches {
    private struct Place {
        var batch: ShareFetchedBatch
        var start: Int
        var byteCount: Int
    }

    private let bytes: ByteBuffer
    private var places: [Place] = []

    /// - Parameter aborted: transactions whose records are hidden; `nil` where all are shown.
    init(_ bytes: ByteBuffer, aborted: [AbortedTransaction]?) throws(RecordBatchError) {
        self.bytes = bytes
        var waiting = (aborted ?? []).sorted { $0.firstOffset < $1.firstOffset }[...]
        var abortedProducers: Set<Int64> = []
        var position = bytes.readerIndex
        while position < bytes.writerIndex {
            let header = try RecordBatchHeader(reading: bytes, at: position)
            guard position + header.totalByteCount <= bytes.writerIndex else { break }
            while let next = waiting.first, next.firstOffset.rawValue <= header.lastOffset {
                abortedProducers.insert(next.producerID)
                waiting.removeFirst()
            }
            var isHidden = header.isControl
            if header.isControl {
                // The marker ends the producer's transaction, whether that was aborted or not.
                abortedProducers.remove(header.producerID)
            } else if header.isTransactional, abortedProducers.contains(header.producerID) {
                isHidden = true
            }
            places.append(
                Place(
                    batch: ShareFetchedBatch(
                        firstOffset: header.baseOffset, lastOffset: header.lastOffset, isHidden: isHidden),
                    start: position, byteCount: header.totalByteCount))
            position += header.totalByteCount
        }
    }

    var batches: [ShareFetchedBatch] { places.map(\.batch) }

    /// The batches that hold records of these ranges, which are in order.
    func bytes(of acquired: [AcquiredRecords]) -> ByteBuffer {
        var ranges = acquired[...]
        var pieces: [(start: Int, end: Int)] = []
        for place in places {
            while let range = ranges.first, range.lastOffset < place.batch.firstOffset {
                ranges.removeFirst()
            }
            guard let range = ranges.first, range.firstOffset <= place.batch.lastOffset, !place.batch.isHidden
            else { continue }
            let end = place.start + place.byteCount
            if let last = pieces.last, last.end == place.start {
                pieces[pieces.count - 1].end = end
            } else {
                pieces.append((place.start, end))
            }
        }
        guard pieces.count > 1 else {
            return pieces.first.flatMap { bytes.getSlice(at: $0.start, length: $0.end - $0.start) }
                ?? ByteBuffer()
        }
        var result = ByteBuffer()
        result.reserveCapacity(pieces.reduce(0) { $0 + $1.end - $1.start })
        for piece in pieces {
            if let slice = bytes.getSlice(at: piece.start, length: piece.end - piece.start) {
                result.writeImmutableBuffer(slice)
            }
        }
        return result
    }
}
