import MartletLogModel
import MartletRecordBatch
import MartletReplication
import NIOCore

/// Records that came from a leader, as far as they may be appended as they are.
///
/// A leader sends bytes of its files unread. What is checked here is all that stands between damage on its disk, or on
/// the way, and the log of this replica: each batch's header and checksum, and that offsets and leader epochs continue
/// what was asked for (I4).
struct FetchedBatches {
    /// Why the records from some batch on cannot be used.
    enum Flaw: Equatable, CustomStringConvertible {
        case unsound(RecordBatchError, at: Offset)
        /// The batch begins before the end of what is there already.
        case overlap(base: Offset, end: Offset)
        case epochFell(LeaderEpoch, after: LeaderEpoch, at: Offset)
        /// The batch was written by a later leader than the one that was asked.
        case epochAhead(LeaderEpoch, leader: LeaderEpoch, at: Offset)
        /// Not even the first batch came whole, though nothing came before it (KIP-74).
        case incomplete(byteCount: Int)

        var description: String {
            switch self {
            case .unsound(let cause, let offset): "batch at \(offset): \(cause)"
            case .overlap(let base, let end): "batch begins at \(base), before \(end) where the records before it end"
            case .epochFell(let epoch, let last, let offset):
                "batch at \(offset) is of leader epoch \(epoch), the records before it of \(last)"
            case .epochAhead(let epoch, let leader, let offset):
                "batch at \(offset) is of leader epoch \(epoch), the leader's own is \(leader)"
            case .incomplete(let byteCount): "the first batch is cut after \(byteCount) bytes"
            }
        }
    }

    /// Whole and sound batches from the fetch offset on; nil for none.
    private(set) var sound: ByteBuffer?
    /// Exclusive; the fetch offset if there are none.
    private(set) var end: Offset
    private(set) var flaw: Flaw?
    /// Bytes of a batch that the leader cut off at its limit.
    private(set) var remainder = 0

    init(_ records: ByteBuffer?, answering fetch: ReplicaFetch) {
        end = fetch.offset
        guard let records, records.readableBytes > 0 else { return }
        let first = records.readerIndex
        var index = first
        var epoch = fetch.lastFetchedEpoch ?? .zero
        scan: while index < records.writerIndex {
            let left = records.writerIndex - index
            switch Self.read(records, at: index) {
            case .cut:
                remainder = left
                break scan
            case .failure(let error):
                flaw = .unsound(error, at: end)
                break scan
            case .success(let header):
                flaw = check(header, after: epoch, leader: fetch.leaderEpoch)
                guard flaw == nil else { break scan }
                epoch = LeaderEpoch(header.partitionLeaderEpoch)
                end = Offset(header.lastOffset) + 1
                index += header.totalByteCount
            }
        }
        if index > first { sound = records.getSlice(at: first, length: index - first) }
    }

    /// The flaw of an answer that begins with this partition and must hold a whole batch.
    mutating func requireWhole() {
        if sound == nil, flaw == nil, remainder > 0 { flaw = .incomplete(byteCount: remainder) }
    }

    private enum Reading {
        case success(RecordBatchHeader)
        case failure(RecordBatchError)
        case cut
    }

    private static func read(_ records: ByteBuffer, at index: Int) -> Reading {
        do throws(RecordBatchError) {
            let left = records.writerIndex - index
            guard left >= RecordBatchHeader.byteCount else { return .cut }
            let header = try RecordBatchHeader(reading: records, at: index)
            guard header.totalByteCount <= left, let batch = records.getSlice(at: index, length: header.totalByteCount)
            else { return .cut }
            return .success(try RecordBatchValidator.checkHeader(batch, limits: .stored))
        } catch {
            return .failure(error)
        }
    }

    private func check(_ header: RecordBatchHeader, after epoch: LeaderEpoch, leader: LeaderEpoch) -> Flaw? {
        let base = Offset(header.baseOffset)
        // Later is no flaw: compaction leaves gaps.
        if base < end { return .overlap(base: base, end: end) }
        let own = LeaderEpoch(header.partitionLeaderEpoch)
        if own < epoch { return .epochFell(own, after: epoch, at: base) }
        if own > leader { return .epochAhead(own, leader: leader, at: base) }
        return nil
    }
}
