package import MartletLogModel
package import NIOCore

/// A transaction that was aborted: its records lie between `firstOffset` and its marker at `lastOffset`. 34 bytes
/// on disk (Protocol/Formats/transaction-index.md).
package struct AbortedTransaction: Hashable, Sendable {
    package static let byteCount = 34

    package var producerID: Int64
    package var firstOffset: Offset
    /// Of the abort marker.
    package var lastOffset: Offset
    /// First offset still undecided right after the marker: no transaction behind the marker reaches before this.
    package var lastStableOffset: Offset

    package init(producerID: Int64, firstOffset: Offset, lastOffset: Offset, lastStableOffset: Offset) {
        self.producerID = producerID
        self.firstOffset = firstOffset
        self.lastOffset = lastOffset
        self.lastStableOffset = lastStableOffset
    }
}

/// The `.txnindex` file of a segment: the aborted transactions whose markers lie in the segment, by offset of the
/// marker.
package enum TransactionIndexFile {
    private static let version: Int16 = 0

    package static func encode(_ entries: some Sequence<AbortedTransaction>) -> ByteBuffer {
        var buffer = ByteBuffer()
        for entry in entries {
            buffer.writeMultipleIntegers(
                version, entry.producerID, entry.firstOffset.rawValue, entry.lastOffset.rawValue,
                entry.lastStableOffset.rawValue)
        }
        return buffer
    }

    /// Entries up to the first impossible one. `isWhole`: nothing was left over, as it must be after a clean stop.
    package static func decode(
        _ bytes: ByteBuffer, base: Offset
    ) -> (entries: [AbortedTransaction], isWhole: Bool) {
        var buffer = bytes
        var entries: [AbortedTransaction] = []
        entries.reserveCapacity(buffer.readableBytes / AbortedTransaction.byteCount)
        while buffer.readableBytes > 0 {
            guard
                let (version, producerID, first, last, stable) = buffer.readMultipleIntegers(
                    as: (Int16, Int64, Int64, Int64, Int64).self),
                version == Self.version, producerID >= 0, first >= 0, first < last, last >= base.rawValue,
                last <= Offset.storedLimit, stable >= 0, last > entries.last?.lastOffset.rawValue ?? -1
            else { return (entries, false) }
            entries.append(
                AbortedTransaction(
                    producerID: producerID, firstOffset: Offset(first), lastOffset: Offset(last),
                    lastStableOffset: Offset(stable)))
        }
        return (entries, true)
    }
}

/// A transaction that has its marker in the log.
struct CompletedTransaction: Equatable, Sendable {
    var firstOffset: Int64
    /// Of the marker.
    var lastOffset: Int64
    /// Set when the marker says abort.
    var aborted: AbortedTransaction?
}

/// A marker as the leader of a partition is asked to write it.
package struct MarkerAppend: Sendable, Hashable {
    package var producerID: Int64
    package var producerEpoch: Int16
    package var commits: Bool
    package var coordinatorEpoch: Int32
    /// The transaction follows the second protocol: its marker's epoch lies above that of its records (KIP-1228).
    package var raisesEpoch: Bool

    package init(
        producerID: Int64, producerEpoch: Int16, commits: Bool, coordinatorEpoch: Int32, raisesEpoch: Bool
    ) {
        self.producerID = producerID
        self.producerEpoch = producerEpoch
        self.commits = commits
        self.coordinatorEpoch = coordinatorEpoch
        self.raisesEpoch = raisesEpoch
    }
}
