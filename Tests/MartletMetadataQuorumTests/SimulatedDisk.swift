import MartletLogModel
import MartletMetadataQuorum
import NIOCore

/// A batch with a digest of itself and everything before it: equal digests are equal logs.
struct StoredBatch: Equatable {
    var batch: LogBatch
    var digest: UInt64

    init(_ batch: LogBatch, after digest: UInt64) {
        self.batch = batch
        self.digest = Self.digest(of: batch, after: digest)
    }

    static func digest(of batch: LogBatch, after digest: UInt64) -> UInt64 {
        var hash = digest
        func mix(_ value: Int64) {
            hash = (hash ^ UInt64(bitPattern: value)) &* 0x9e37_79b9_7f4a_7c15
            hash ^= hash >> 29
        }
        mix(batch.baseOffset.rawValue)
        mix(batch.endOffset.rawValue)
        mix(Int64(batch.epoch.rawValue))
        if let bytes = batch.bytes { mix(bytes.getInteger(at: bytes.readerIndex) ?? 0) }
        for record in batch.controlRecords {
            switch record {
            case .leaderChange(let change): mix(Int64(change.leader.rawValue) + 1_000)
            case .voters(let set): for voter in set.voters { mix(Int64(voter.key.id.rawValue) + 2_000) }
            case .version(let level): mix(Int64(level) + 3_000)
            case .snapshotHeader, .snapshotFooter, .other: mix(4_000)
            }
        }
        return hash
    }
}

struct StoredSnapshot: Equatable {
    var id: LogPosition
    var membership: QuorumMembership
    /// Of everything it covers.
    var digest: UInt64

    /// What a follower fetches: enough bytes for several chunks.
    var bytes: ByteBuffer {
        var buffer = ByteBuffer()
        buffer.writeInteger(digest)
        buffer.writeRepeatingByte(7, count: 16)
        return buffer
    }
}

/// A disk that forgets what was not flushed. A crash keeps what the last flush confirmed and, of what was written since,
/// any beginning; a cut that was not flushed may be undone.
struct SimulatedDisk {
    var directoryID: UniversalID
    /// Not a disk of the first hour.
    var isReplacement = false
    private(set) var log: [StoredBatch] = []
    private(set) var snapshots: [StoredSnapshot] = []
    /// Digest of what the log starts behind.
    private(set) var startDigest: UInt64 = 0
    private(set) var start = Offset.zero
    private var flushed: [StoredBatch] = []
    private(set) var state: QuorumStateFile?

    init(directoryID: UniversalID) { self.directoryID = directoryID }

    var end: Offset { log.last?.batch.endOffset ?? start }
    var durableEnd: Offset { flushed.last?.batch.endOffset ?? start }
    var durableEpoch: LeaderEpoch { flushed.last?.batch.epoch ?? .zero }
    var endDigest: UInt64 { log.last?.digest ?? startDigest }

    mutating func append(_ batch: LogBatch) { log.append(StoredBatch(batch, after: endDigest)) }

    mutating func truncate(to end: Offset) {
        while let last = log.last, last.batch.baseOffset >= end { log.removeLast() }
    }

    /// What a flush that begins now will confirm.
    func written() -> [StoredBatch] { log }

    /// A flush that began with `written` is over: that is what a crash leaves at least. What was cut meanwhile may come
    /// back in a crash.
    /// Returns what is newly confirmed.
    mutating func confirm(_ written: [StoredBatch]) -> ArraySlice<StoredBatch> {
        let isLonger = written.count >= flushed.count && written.first == flushed.first
        let isSame = isLonger && !flushed.isEmpty && written[flushed.count - 1].digest == flushed.last?.digest
        let fresh = isSame ? written[flushed.count...] : written[...]
        let startsLater = written.first.map { $0.batch.baseOffset < start } ?? false
        flushed = startsLater ? written.filter { $0.batch.baseOffset >= start } : written
        return fresh
    }

    mutating func persist(_ state: QuorumStateFile) { self.state = state }

    /// Digest of everything below `end`, if this disk can tell.
    func digest(at end: Offset) -> UInt64? {
        if end == start { return startDigest }
        return batchIndex(endingAt: end).map { log[$0].digest }
    }

    private func batchIndex(endingAt end: Offset) -> Int? {
        var low = 0
        var high = log.count
        while low < high {
            let middle = (low + high) / 2
            if log[middle].batch.endOffset < end { low = middle + 1 } else { high = middle }
        }
        return low < log.count && log[low].batch.endOffset == end ? low : nil
    }

    /// Batches from `from` on, at most `count`.
    func read(from: Offset, upTo end: Offset, count: Int) -> ArraySlice<StoredBatch> {
        var low = 0
        var high = log.count
        while low < high {
            let middle = (low + high) / 2
            if log[middle].batch.endOffset <= from { low = middle + 1 } else { high = middle }
        }
        let region = log[low...].prefix(count)
        guard let last = region.last, last.batch.endOffset > end else { return region }
        return region.prefix { $0.batch.endOffset <= end }
    }

    mutating func take(_ snapshot: StoredSnapshot) { snapshots.append(snapshot) }

    func snapshot(_ id: LogPosition) -> StoredSnapshot? { snapshots.first { $0.id == id } }

    mutating func removeSnapshots(before id: LogPosition) { snapshots.removeAll { $0.id.offset < id.offset } }

    mutating func advanceStart(to id: LogPosition) {
        guard let digest = digest(at: id.offset) else { return }
        startDigest = digest
        start = id.offset
        log.removeAll { $0.batch.baseOffset < id.offset }
        flushed.removeAll { $0.batch.baseOffset < id.offset }
    }

    mutating func reset(to id: LogPosition) {
        guard let snapshot = snapshot(id) else { return }
        startDigest = snapshot.digest
        start = id.offset
        log = []
        flushed = []
    }

    mutating func crash(using generator: inout some RandomNumberGenerator) {
        // How far the written log agrees with the flushed one.
        var common = 0
        while common < log.count, common < flushed.count, log[common] == flushed[common] { common += 1 }
        if common < flushed.count, Bool.random(using: &generator) {
            // The cut did not reach the device, so nothing behind it did either.
            log = flushed
        } else {
            log.removeLast(log.count - Int.random(in: common...max(common, log.count), using: &generator))
        }
        flushed = log
    }

    /// The voters that a start from this disk would find.
    func membership(initially initial: QuorumMembership) -> QuorumMembership {
        var membership = snapshots.last?.membership ?? initial
        for stored in log {
            for record in stored.batch.controlRecords {
                switch record {
                case .version(let level): membership.version = level
                case .voters(let set): membership.voters = set
                case .leaderChange, .snapshotHeader, .snapshotFooter, .other: break
                }
            }
        }
        return membership
    }

    /// What a node finds at its start.
    func recovered() -> RecoveredQuorum {
        var found = RecoveredQuorum()
        found.state = state
        found.logStart = start
        found.logEnd = end
        for stored in log {
            if found.epochs.last?.epoch != stored.batch.epoch {
                found.epochs.append(.init(epoch: stored.batch.epoch, offset: stored.batch.baseOffset))
            }
            if !stored.batch.controlRecords.isEmpty {
                found.controlBatches.append(
                    .init(offset: stored.batch.baseOffset, records: stored.batch.controlRecords))
            }
        }
        if let newest = snapshots.last {
            found.snapshot = newest.id
            found.snapshotMembership = newest.membership
        }
        return found
    }
}
