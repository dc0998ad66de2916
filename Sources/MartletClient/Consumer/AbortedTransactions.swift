import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Tells records of aborted transactions from committed ones while walking a fetch answer (KIP-98): the broker
/// names each aborted transaction by producer and first offset, and its end is the abort marker in the log.
struct AbortedTransactions {
    /// Not begun yet at the offset reached, by first offset.
    private var pending: ArraySlice<(producerID: Int64, firstOffset: Int64)>
    private var open: Set<Int64> = []

    /// Record type of an abort marker within a control batch.
    private static let abortType: Int16 = 0

    init(_ transactions: [(producerID: Int64, firstOffset: Int64)]) {
        pending = transactions.sorted { $0.firstOffset < $1.firstOffset }[...]
    }

    /// Whether a data batch may be handed out; control batches never may, but end transactions. Batches must come
    /// in the order of the log.
    mutating func isVisible(_ header: RecordBatchHeader) -> Bool {
        while let first = pending.first, first.firstOffset <= header.lastOffset {
            open.insert(first.producerID)
            pending.removeFirst()
        }
        guard open.contains(header.producerID) else { return true }
        return !header.isTransactional
    }

    /// A control batch: an abort marker ends its producer's transaction.
    mutating func pass(control header: RecordBatchHeader, _ batch: ByteBuffer) {
        guard open.contains(header.producerID) else { return }
        do {
            var records = try RecordIterator(batch)
            guard var key = try records.next()?.key, key.readInteger(as: Int16.self) != nil,
                key.readInteger(as: Int16.self) == Self.abortType
            else { return }
            open.remove(header.producerID)
        } catch {
            // A marker that cannot be read ends nothing: hiding too much is safer than showing aborted records.
            return
        }
    }
}
