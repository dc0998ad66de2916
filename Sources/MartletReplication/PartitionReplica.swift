package import MartletLogModel
internal import DequeModule

/// Names one waiting produce request to the core. The shell keeps the connection and promise behind it.
@frozen
package struct AppendID: Hashable, Sendable {
    package var rawValue: UInt64

    @inlinable
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// The replication state of one partition on one broker.
///
/// Purpose: says how far consumers may read (the high watermark) and which appends are acknowledged.
///
/// Legal transitions:
/// ```
/// offline --becameLeader--> leader --resigned--> offline
/// ```
/// A cluster adds the follower state and the remote members of the in-sync set; the in-sync set of this
/// core is the local replica alone, so its acknowledged end is the minimum over the set.
///
/// Invariants:
/// - I3: the high watermark never falls within one leadership and never passes the log end.
/// - I6: an append is acknowledged only when the high watermark has passed its last record, and in the
///   `fsync` mode the high watermark never passes the flushed end (architecture page, promise 1).
/// - Appends are acknowledged in the order in which they were made.
///
/// Sources: KIP-101 and KIP-320 (epochs), KIP-966 (what the high watermark may count).
/// It does not check epochs of producers, store records, or keep time: the shell expires appends.
package struct PartitionReplica: ~Copyable {
    /// What lets the high watermark move.
    package enum Durability: Hashable, Sendable {
        /// Flushed to the device. The default.
        case fsync
        /// Written to the operating system's page cache, as Kafka does.
        case relaxed
    }

    /// Orders to the shell, to be executed in order.
    package enum Effect: Hashable, Sendable {
        /// Consumers may read up to here (exclusive); wake those that wait.
        case advanceHighWatermark(Offset)
        /// Answer this `acks=all` append with success.
        case acknowledge(AppendID)
        /// Answer this append with NOT_LEADER_OR_FOLLOWER: the leadership ended before it committed.
        case abandon(AppendID)
    }

    /// A copyable picture of the state for tests, traces and crash reports.
    package struct Snapshot: Hashable, Sendable {
        package var leaderEpoch: LeaderEpoch?
        package var logEndOffset: Offset
        package var flushedEndOffset: Offset
        package var highWatermark: Offset
        package var waitingAppendCount: Int
    }

    private struct Waiting {
        /// Exclusive end of the append: acknowledged once the high watermark is at or above it.
        var endOffset: Offset
        var id: AppendID
    }

    private enum State {
        case offline
        case leader(epoch: LeaderEpoch)
    }

    private var state: State
    private var logEndOffset: Offset
    private var flushedEndOffset: Offset
    private var waiting: Deque<Waiting>

    /// How the high watermark may move; changing it takes effect with the next event.
    package var durability: Durability

    /// Exclusive end of what consumers may read.
    package private(set) var highWatermark: Offset

    /// A replica that was opened from disk and leads nothing yet. Everything that recovery left in the log
    /// is flushed, see the storage engine.
    package init(durability: Durability, recoveredEnd: Offset) {
        self.state = .offline
        self.durability = durability
        self.logEndOffset = recoveredEnd
        self.flushedEndOffset = recoveredEnd
        self.highWatermark = recoveredEnd
        self.waiting = []
    }

    /// Epoch of the current leadership, if this replica leads.
    package var leaderEpoch: LeaderEpoch? {
        switch state {
        case .offline: nil
        case .leader(let epoch): epoch
        }
    }

    /// The controller made this replica the leader.
    package mutating func becameLeader(epoch: LeaderEpoch) {
        switch state {
        case .offline:
            break
        case .leader(let current):
            precondition(epoch >= current, "leader epoch fell from \(current) to \(epoch)")
        }
        state = .leader(epoch: epoch)
    }

    /// Leadership ended: every append that waits gets an answer.
    package mutating func resigned(into effects: inout [Effect]) {
        state = .offline
        while let next = waiting.popFirst() { effects.append(.abandon(next.id)) }
    }

    /// The log took records up to `end` (exclusive) into the page cache. `waiter` names the append if its
    /// producer asked for `acks=all`.
    package mutating func appended(upTo end: Offset, waiter: AppendID?, into effects: inout [Effect]) {
        precondition(end >= logEndOffset, "log end fell from \(logEndOffset) to \(end)")
        logEndOffset = end
        if let waiter { waiting.append(Waiting(endOffset: end, id: waiter)) }
        advance(into: &effects)
    }

    /// A producer repeated an append that is in the log already, ending at `end` (exclusive): it waits for
    /// the same mark as the original.
    package mutating func repeated(upTo end: Offset, waiter: AppendID, into effects: inout [Effect]) {
        precondition(end <= logEndOffset, "a repeated append ends at \(end), beyond the log end \(logEndOffset)")
        if end <= highWatermark {
            effects.append(.acknowledge(waiter))
            return
        }
        // Kept sorted by end offset; repeats are rare, so the scan from the back is cheap.
        var index = waiting.endIndex
        while index > waiting.startIndex, waiting[index - 1].endOffset > end { index -= 1 }
        waiting.insert(Waiting(endOffset: end, id: waiter), at: index)
    }

    /// Everything below `end` (exclusive) is on the device.
    package mutating func flushed(upTo end: Offset, into effects: inout [Effect]) {
        precondition(end <= logEndOffset, "flushed to \(end), beyond the log end \(logEndOffset)")
        if end > flushedEndOffset { flushedEndOffset = end }
        advance(into: &effects)
    }

    package func snapshot() -> Snapshot {
        Snapshot(
            leaderEpoch: leaderEpoch, logEndOffset: logEndOffset, flushedEndOffset: flushedEndOffset,
            highWatermark: highWatermark, waitingAppendCount: waiting.count)
    }

    private mutating func advance(into effects: inout [Effect]) {
        let mark =
            switch durability {
            case .fsync: flushedEndOffset
            case .relaxed: logEndOffset
            }
        guard mark > highWatermark else { return }
        highWatermark = mark
        effects.append(.advanceHighWatermark(mark))
        while let next = waiting.first, next.endOffset <= mark {
            waiting.removeFirst()
            effects.append(.acknowledge(next.id))
        }
    }
}
