import MartletLogModel
import MartletReplication

/// A record of the model: who wrote it and what.
struct ModelRecord: Hashable {
    var epoch: LeaderEpoch
    var value: UInt64
}

/// A log as the storage engine keeps it: records, what of them is flushed, and where each epoch begins.
struct ModelLog {
    private(set) var start: Int64 = 0
    private(set) var records: [ModelRecord] = []
    private(set) var flushedEnd: Int64 = 0
    private(set) var epochs: [(epoch: LeaderEpoch, start: Int64)] = []

    var end: Int64 { start + Int64(records.count) }
    /// Also one that began here without a record: what an earlier leader wrote at its place must not count as its.
    var lastEpoch: LeaderEpoch? { epochs.last?.epoch }

    func record(at offset: Int64) -> ModelRecord? {
        offset >= start && offset < end ? records[Int(offset - start)] : nil
    }

    mutating func begin(_ epoch: LeaderEpoch) {
        if let last = epochs.last, epoch <= last.epoch { return }
        while let last = epochs.last, last.start >= end { epochs.removeLast() }
        epochs.append((epoch, end))
    }

    mutating func append(_ record: ModelRecord) {
        begin(record.epoch)
        records.append(record)
    }

    mutating func flush() { flushedEnd = end }

    mutating func truncate(to offset: Int64) {
        let new = max(start, min(offset, end))
        records.removeLast(Int(end - new))
        while let last = epochs.last, last.start >= new { epochs.removeLast() }
        flushedEnd = min(flushedEnd, new)
    }

    mutating func restart(at offset: Int64) {
        self = ModelLog()
        start = offset
        flushedEnd = offset
    }

    mutating func raiseStart(to offset: Int64) {
        guard offset > start, offset <= end else { return }
        records.removeFirst(Int(offset - start))
        start = offset
        flushedEnd = max(flushedEnd, start)
        if let index = epochs.lastIndex(where: { $0.start <= offset }) {
            epochs.removeFirst(index)
            epochs[0].start = offset
        }
    }

    /// End of the largest epoch at or below `epoch`; of the first one when all are later.
    func epochEnd(_ epoch: LeaderEpoch?) -> EpochEnd? {
        guard let epoch, let last = epochs.last else { return nil }
        if epoch >= last.epoch {
            return EpochEnd(epoch: last.epoch, endOffset: Offset(end))
        }
        guard let index = epochs.firstIndex(where: { $0.epoch > epoch }) else { return nil }
        guard index > 0 else { return EpochEnd(epoch: epoch, endOffset: Offset(epochs[0].start)) }
        return EpochEnd(epoch: epochs[index - 1].epoch, endOffset: Offset(epochs[index].start))
    }
}
