package import MartletLogModel
package import NIOCore

/// A place in the log: an exclusive end and the epoch of the record before it. Ordered as Raft compares logs: by epoch,
/// then by length. Also the identity of a snapshot (KIP-630).
package struct LogPosition: Hashable, Comparable, Sendable, CustomStringConvertible {
    package var offset: Offset
    package var epoch: LeaderEpoch

    package init(offset: Offset, epoch: LeaderEpoch) {
        self.offset = offset
        self.epoch = epoch
    }

    package static func < (left: LogPosition, right: LogPosition) -> Bool {
        left.epoch == right.epoch ? left.offset < right.offset : left.epoch < right.epoch
    }

    package var description: String { "\(offset)@\(epoch)" }
}

/// One batch of the metadata log. The core looks at control records alone; everything else is opaque.
package struct LogBatch: Hashable, Sendable {
    package var baseOffset: Offset
    /// Exclusive.
    package var endOffset: Offset
    package var epoch: LeaderEpoch
    /// Empty for a batch of metadata records.
    package var controlRecords: [ControlRecord]
    /// The batch as it is stored. `nil` for a control batch that this node makes as leader: the shell encodes it with
    /// ``ControlBatch/encode(_:at:epoch:timestamp:)``, which needs the wall clock. A proposed batch still has
    /// the proposer's offset and epoch; whoever stores it patches them in place.
    package var bytes: ByteBuffer?

    package init(
        baseOffset: Offset, endOffset: Offset, epoch: LeaderEpoch, controlRecords: [ControlRecord] = [],
        bytes: ByteBuffer?
    ) {
        self.baseOffset = baseOffset
        self.endOffset = endOffset
        self.epoch = epoch
        self.controlRecords = controlRecords
        self.bytes = bytes
    }
}

/// What the core knows of its node's log: bounds, epochs and what the device has confirmed; never the records.
///
/// Invariants: start ≤ flushed end ≤ end; epochs and their starts rise strictly.
package struct QuorumLog: Sendable {
    package struct EpochStart: Hashable, Sendable {
        package var epoch: LeaderEpoch
        package var offset: Offset

        package init(epoch: LeaderEpoch, offset: Offset) {
            self.epoch = epoch
            self.offset = offset
        }
    }

    /// What a fetch position is to the leader's log (KIP-595, KIP-630).
    package enum Verdict: Hashable, Sendable {
        case valid
        /// The logs agree up to here at most; the follower cuts there and asks again.
        case diverging(LogPosition)
        /// The log no longer reaches back that far.
        case snapshot(LogPosition)
    }

    package private(set) var start: Offset
    package private(set) var end: Offset
    package private(set) var flushedEnd: Offset
    /// Of the record before `start`: that of the snapshot there; zero for a log that starts at 0.
    private var startEpoch: LeaderEpoch
    private var epochs: [EpochStart]
    /// Rises with each cut: a flush that began before one proves nothing of what was appended behind it.
    private(set) var generation: UInt64 = 0
    /// The newest snapshot, and the one before, which a slow follower may still be reading.
    package private(set) var snapshot: LogPosition?
    private(set) var previousSnapshot: LogPosition?

    /// A log as recovered from disk: all of it is flushed.
    package init(start: Offset, end: Offset, epochs: [EpochStart], snapshot: LogPosition?) {
        precondition(start <= end, "the metadata log ends at \(end), before its start \(start)")
        self.start = start
        self.end = end
        self.flushedEnd = end
        self.epochs = epochs
        self.snapshot = snapshot
        startEpoch = start == .zero ? .zero : (snapshot?.epoch ?? .zero)
    }

    package var lastEpoch: LeaderEpoch { epochs.last?.epoch ?? startEpoch }
    package var position: LogPosition { LogPosition(offset: end, epoch: lastEpoch) }
    package var isFlushed: Bool { flushedEnd == end }

    package mutating func append(upTo newEnd: Offset, epoch: LeaderEpoch) {
        precondition(
            newEnd > end && epoch >= lastEpoch, "batch up to \(newEnd) of epoch \(epoch) behind \(position)")
        if epochs.last?.epoch != epoch { epochs.append(EpochStart(epoch: epoch, offset: end)) }
        end = newEnd
    }

    /// The device has everything below `end` of the log as it was in that generation.
    mutating func flushed(upTo flushed: Offset, generation: UInt64) {
        guard generation == self.generation, flushed > flushedEnd else { return }
        precondition(flushed <= end, "flushed to \(flushed), beyond the log end \(end)")
        flushedEnd = flushed
    }

    mutating func truncate(to newEnd: Offset) {
        precondition(newEnd >= start && newEnd <= end, "cut to \(newEnd) outside \(start)..<\(end)")
        end = newEnd
        flushedEnd = min(flushedEnd, newEnd)
        while let last = epochs.last, last.offset >= newEnd { epochs.removeLast() }
        generation += 1
    }

    /// A snapshot covers everything below its end: the log may start there.
    mutating func advanceStart(to snapshot: LogPosition) {
        previousSnapshot = self.snapshot
        self.snapshot = snapshot
        start = snapshot.offset
        startEpoch = snapshot.epoch
        while epochs.count > 1, epochs[1].offset <= start { epochs.removeFirst() }
        guard let first = epochs.first, first.offset < start else { return }
        if start == end { epochs = [] } else { epochs[0].offset = start }
    }

    /// The log is replaced by a snapshot fetched from the leader.
    mutating func reset(to snapshot: LogPosition) {
        previousSnapshot = nil
        self.snapshot = snapshot
        start = snapshot.offset
        end = snapshot.offset
        flushedEnd = snapshot.offset
        startEpoch = snapshot.epoch
        epochs = []
        generation += 1
    }

    func hasSnapshot(_ id: LogPosition) -> Bool { id == snapshot || id == previousSnapshot }

    /// The largest epoch at or below `epoch`, and where it ends.
    package func endOffset(for epoch: LeaderEpoch) -> LogPosition {
        guard let index = epochs.lastIndex(where: { $0.epoch <= epoch }) else {
            return LogPosition(offset: start, epoch: startEpoch)
        }
        return LogPosition(
            offset: index + 1 < epochs.count ? epochs[index + 1].offset : end, epoch: epochs[index].epoch)
    }

    /// Epoch of the record before `offset`, which the log or its snapshot covers.
    package func epoch(before offset: Offset) -> LeaderEpoch {
        epochs.last { $0.offset < offset }?.epoch ?? startEpoch
    }

    func check(fetchOffset: Offset, lastEpoch: LeaderEpoch) -> Verdict {
        if fetchOffset == .zero && start == .zero { return .valid }
        let isBehindStart =
            fetchOffset < start || lastEpoch < startEpoch
            || (fetchOffset == start && start > .zero && lastEpoch != startEpoch)
        if isBehindStart, let snapshot { return .snapshot(snapshot) }
        let agreed = endOffset(for: lastEpoch)
        return agreed.epoch == lastEpoch && fetchOffset <= agreed.offset ? .valid : .diverging(agreed)
    }

    /// Where a follower cuts when the leader says that it agrees up to `leader` at most.
    func truncationPoint(diverging leader: LogPosition) -> Offset {
        let own = endOffset(for: leader.epoch)
        return own.epoch == leader.epoch ? min(own.offset, leader.offset) : own.offset
    }
}
