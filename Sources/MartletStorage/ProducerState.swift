package import MartletLogModel
package import MartletRecordBatch
package import NIOCore

/// One batch of an idempotent producer, as remembered to answer its retries.
package struct ProducerBatch: Equatable, Sendable {
    package var lastSequence: Int32
    package var lastOffset: Int64
    /// Last offset minus base offset, and last sequence minus base sequence.
    package var offsetDelta: Int32
    package var timestamp: Int64

    package var baseOffset: Int64 { lastOffset - Int64(offsetDelta) }
    package var baseSequence: Int32 {
        Int32(truncatingIfNeeded: (Int64(lastSequence) - Int64(offsetDelta)) & 0x7FFF_FFFF)
    }
}

/// What a partition remembers of one producer id (KIP-98, KIP-360).
package struct ProducerEntry: Equatable, Sendable {
    /// As many as a producer may have in flight, so that the retry of each of them is recognised.
    package static let batchLimit = 5

    package var epoch: Int16
    /// Oldest first, at most ``batchLimit``.
    package var batches: [ProducerBatch]
    /// Epoch of the transaction coordinator whose marker was seen last; -1 before any.
    package var coordinatorEpoch: Int32 = -1
    /// First offset of the transaction that is open.
    package var transactionFirstOffset: Offset?
    /// Wall-clock time of the last append, not the records' time: old records must not make a producer
    /// look silent.
    package var lastAppend: Timestamp

    package var lastSequence: Int32? { batches.last?.lastSequence }

    package init(epoch: Int16, lastAppend: Timestamp) {
        self.epoch = epoch
        self.batches = []
        self.lastAppend = lastAppend
    }
}

/// A transaction without its marker yet.
package struct OpenTransaction: Equatable, Sendable {
    package var firstOffset: Int64
    package var producerID: Int64
}

/// The producers of one partition: accepts each sequence number once, in order.
///
/// Bounded by ``LogConfiguration/producerLimit``. Deterministic: eviction and encoding go by time, then id.
package struct ProducerStateTable: Sendable {
    package enum Check: Equatable, Sendable {
        case accepted
        case duplicate(ProducerBatch)
    }

    package private(set) var entries: [Int64: ProducerEntry] = [:]
    /// By first offset. Follows from `entries`; kept because the oldest one bounds every read_committed fetch.
    package private(set) var openTransactions: [OpenTransaction] = []

    package init() {}

    /// Judges a batch that is to be appended by its producer; changes nothing.
    ///
    /// - Parameter checksSequence: false for what the broker itself writes for a producer (offsets that are part of
    ///   a transaction), which has no sequence of its own.
    package func check(
        _ header: RecordBatchHeader, checksSequence: Bool = true, suspended: SuspendedRules = []
    ) throws(AppendError) -> Check {
        guard header.hasProducerID, let entry = entries[header.producerID] else { return .accepted }
        let producer = ProducerID(header.producerID)
        guard header.producerEpoch >= entry.epoch || suspended.contains(.producerEpoch) else {
            throw .invalidProducerEpoch(producer, current: entry.epoch, found: header.producerEpoch)
        }
        if header.isControl { return .accepted }
        guard header.isTransactional || entry.transactionFirstOffset == nil else {
            throw .outsideTransaction(producer)
        }
        guard checksSequence, !suspended.contains(.sequence) else { return .accepted }
        if header.producerEpoch > entry.epoch {
            guard header.baseSequence == 0 else {
                throw .outOfOrderSequence(producer, expected: 0, found: header.baseSequence)
            }
            return .accepted
        }
        for batch in entry.batches
        where batch.baseSequence == header.baseSequence && batch.offsetDelta == header.lastOffsetDelta {
            return .duplicate(batch)
        }
        let expected = entry.lastSequence.map { RecordBatchHeader.sequence($0, plus: 1) } ?? 0
        guard header.baseSequence == expected else {
            throw .outOfOrderSequence(producer, expected: expected, found: header.baseSequence)
        }
        return .accepted
    }

    /// Records an appended batch with its final offsets. Returns what was known before, for ``restore(_:of:)``.
    @discardableResult
    package mutating func apply(
        _ header: RecordBatchHeader, now: Timestamp, marker: EndTransactionMarker? = nil
    ) -> ProducerEntry? {
        let before = entries[header.producerID]
        var entry = before ?? ProducerEntry(epoch: header.producerEpoch, lastAppend: now)
        if header.producerEpoch > entry.epoch {
            entry.epoch = header.producerEpoch
            entry.batches = []
        }
        entry.lastAppend = max(entry.lastAppend, now)
        if header.isControl {
            // A marker ends the transaction; only batches with records have sequences. One that compaction has
            // emptied only keeps the epoch.
            if let marker {
                entry.coordinatorEpoch = max(entry.coordinatorEpoch, marker.coordinatorEpoch)
                entry.transactionFirstOffset = nil
            }
        } else {
            if entry.batches.count == ProducerEntry.batchLimit { entry.batches.removeFirst() }
            entry.batches.append(
                ProducerBatch(
                    lastSequence: RecordBatchHeader.sequence(header.baseSequence, plus: header.lastOffsetDelta),
                    lastOffset: header.lastOffset, offsetDelta: header.lastOffsetDelta,
                    timestamp: header.maxTimestamp))
            if header.isTransactional, entry.transactionFirstOffset == nil {
                entry.transactionFirstOffset = Offset(header.baseOffset)
            }
        }
        set(entry, of: header.producerID, before: before)
        return before
    }

    /// Takes an append back.
    mutating func restore(_ entry: ProducerEntry?, of producerID: Int64) {
        set(entry, of: producerID, before: entries[producerID])
    }

    private mutating func set(_ entry: ProducerEntry?, of producerID: Int64, before: ProducerEntry?) {
        entries[producerID] = entry
        let (old, new) = (before?.transactionFirstOffset, entry?.transactionFirstOffset)
        guard old != new else { return }
        if let old {
            openTransactions.removeAll { $0.firstOffset == old.rawValue && $0.producerID == producerID }
        }
        if let new {
            // At the end unless an append is taken back.
            var index = openTransactions.count
            while index > 0, openTransactions[index - 1].firstOffset > new.rawValue { index -= 1 }
            openTransactions.insert(
                OpenTransaction(firstOffset: new.rawValue, producerID: producerID), at: index)
        }
    }

    /// Forgets producers that were silent for `expiration` milliseconds and have no open transaction, and
    /// beyond `limit` the longest silent ones.
    package mutating func expire(now: Timestamp, expiration: Int64, limit: Int) {
        if entries.contains(where: { Self.isExpired($0.value, now: now, expiration: expiration) }) {
            entries = entries.filter { !Self.isExpired($0.value, now: now, expiration: expiration) }
        }
        guard entries.count > limit else { return }
        // Room for a sixteenth more, so that this does not run at every append.
        let goal = limit - limit / 16
        let silent = entries.filter { $0.value.transactionFirstOffset == nil }
            .sorted { ($0.value.lastAppend, $0.key) < ($1.value.lastAppend, $1.key) }
        for (id, _) in silent.prefix(entries.count - goal) { entries[id] = nil }
    }

    private static func isExpired(_ entry: ProducerEntry, now: Timestamp, expiration: Int64) -> Bool {
        entry.transactionFirstOffset == nil && now.rawValue - entry.lastAppend.rawValue >= expiration
    }

    /// First offset of the oldest open transaction: the last stable offset cannot be beyond it.
    package var firstOpenTransactionOffset: Offset? { openTransactions.first.map { Offset($0.firstOffset) } }

    /// Last offset each producer wrote: compaction must keep those batches' headers.
    package var lastOffsets: [Int64: Int64] { entries.compactMapValues { $0.batches.last?.lastOffset } }

    /// Epochs of producers that have written nothing since their last marker, which alone shows the epoch:
    /// compaction must keep that batch's header.
    package var markerEpochs: [Int64: Int16] {
        entries.filter { $0.value.batches.isEmpty }.mapValues(\.epoch)
    }
}

// The file; Protocol/Formats/producer-snapshot.md.
extension ProducerStateTable {
    private static let version: Int16 = 1
    private static let entryBytes = 46
    private static let earlierBytes = 24
    /// Marks our addition behind Kafka's entries: the batches before the last one, which Kafka forgets.
    private static let earlierMark: UInt32 = 0x4d41_5254

    package func encode() -> ByteBuffer {
        var body = ByteBuffer()
        let sorted = entries.sorted { $0.key < $1.key }
        body.reserveCapacity(4 + sorted.count * (Self.entryBytes + 2))
        body.writeInteger(Int32(sorted.count))
        for (id, entry) in sorted {
            let last = entry.batches.last
            body.writeInteger(id)
            body.writeInteger(entry.epoch)
            body.writeInteger(last?.lastSequence ?? -1)
            body.writeInteger(last?.lastOffset ?? -1)
            body.writeInteger(last?.offsetDelta ?? 0)
            body.writeInteger(entry.lastAppend.rawValue)
            body.writeInteger(entry.coordinatorEpoch)
            body.writeInteger(entry.transactionFirstOffset?.rawValue ?? -1)
        }
        let earlier = sorted.filter { $0.value.batches.count > 1 }
        body.writeInteger(Self.earlierMark)
        body.writeInteger(Int32(earlier.count))
        for (id, entry) in earlier {
            body.writeInteger(id)
            body.writeInteger(Int32(entry.batches.count - 1))
            for batch in entry.batches.dropLast() {
                body.writeInteger(batch.lastSequence)
                body.writeInteger(batch.lastOffset)
                body.writeInteger(batch.offsetDelta)
                body.writeInteger(batch.timestamp)
            }
        }
        var buffer = ByteBuffer()
        buffer.reserveCapacity(6 + body.readableBytes)
        buffer.writeInteger(Self.version)
        buffer.writeInteger(crc32c(body))
        buffer.writeBuffer(&body)
        return buffer
    }

    /// `nil` for anything but an undamaged snapshot.
    package init?(decoding buffer: ByteBuffer) {
        var buffer = buffer
        guard buffer.readInteger(as: Int16.self) == Self.version, let crc = buffer.readInteger(as: UInt32.self),
            crc == crc32c(buffer), let count = buffer.readInteger(as: Int32.self), count >= 0,
            Int(count) <= buffer.readableBytes / Self.entryBytes
        else { return nil }
        for _ in 0..<count {
            guard
                let id = buffer.readInteger(as: Int64.self), let epoch = buffer.readInteger(as: Int16.self),
                let lastSequence = buffer.readInteger(as: Int32.self),
                let lastOffset = buffer.readInteger(as: Int64.self),
                let delta = buffer.readInteger(as: Int32.self), let timestamp = buffer.readInteger(as: Int64.self),
                let coordinatorEpoch = buffer.readInteger(as: Int32.self),
                let transaction = buffer.readInteger(as: Int64.self)
            else { return nil }
            var entry = ProducerEntry(epoch: epoch, lastAppend: Timestamp(milliseconds: timestamp))
            entry.coordinatorEpoch = coordinatorEpoch
            entry.transactionFirstOffset = transaction < 0 ? nil : Offset(transaction)
            if lastSequence >= 0 {
                entry.batches = [
                    ProducerBatch(
                        lastSequence: lastSequence, lastOffset: lastOffset, offsetDelta: delta, timestamp: timestamp)
                ]
            }
            set(entry, of: id, before: entries[id])
        }
        guard buffer.readableBytes > 0 else { return }
        guard buffer.readInteger(as: UInt32.self) == Self.earlierMark,
            let producers = buffer.readInteger(as: Int32.self), producers >= 0
        else { return nil }
        for _ in 0..<producers {
            guard let id = buffer.readInteger(as: Int64.self), let batchCount = buffer.readInteger(as: Int32.self),
                batchCount >= 0, Int(batchCount) < ProducerEntry.batchLimit, var entry = entries[id]
            else { return nil }
            var earlier: [ProducerBatch] = []
            for _ in 0..<batchCount {
                guard let lastSequence = buffer.readInteger(as: Int32.self),
                    let lastOffset = buffer.readInteger(as: Int64.self),
                    let delta = buffer.readInteger(as: Int32.self),
                    let timestamp = buffer.readInteger(as: Int64.self)
                else { return nil }
                earlier.append(
                    ProducerBatch(
                        lastSequence: lastSequence, lastOffset: lastOffset, offsetDelta: delta,
                        timestamp: timestamp))
            }
            entry.batches = earlier + entry.batches
            entries[id] = entry
        }
    }
}
