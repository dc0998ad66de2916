package import MartletLogModel
package import NIOCore

/// Names a request that somebody sent us; the shell keeps the connection behind it.
package struct RequestID: Hashable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// Names a request that the core sends.
package struct CallToken: Hashable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// Names a batch of metadata records that waits for its commit.
package struct ProposalID: Hashable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// Names one write of the file `quorum-state`.
package struct StateVersion: Hashable, Comparable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: StateVersion, right: StateVersion) -> Bool { left.rawValue < right.rawValue }
}

/// The log as it was when a flush began: what is cut and appended later is not covered.
package struct FlushGeneration: Hashable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// What the core must be told. All of it has happened.
package enum QuorumEvent: Hashable, Sendable {
    /// Time has passed; see ``MetadataQuorum/nextDeadline``.
    case ticked
    case requested(RequestID, QuorumRequest)
    case answered(CallToken, QuorumAnswer)
    /// The connection failed, or the answer made no sense.
    case callFailed(CallToken)
    /// Everything below the offset was on the device; the generation is the one at the flush's begin.
    case flushed(upTo: Offset, FlushGeneration)
    /// That version of the state, and so every one before it, is on the device.
    case persisted(StateVersion)
    /// The disk refused a write or a flush: the node takes no part any more.
    case storageFailed
    /// The controller wants this batch in the log. Its offsets are relative: the first record has 0.
    case proposed(ProposalID, recordCount: Int64, bytes: ByteBuffer)
    /// A snapshot of everything below its offset is durable; it was taken at or below the high watermark and the
    /// flushed end.
    case snapshotTaken(LogPosition)
    /// The snapshot that was fetched is durable and whole; what it says of the voters.
    case snapshotInstalled(LogPosition, QuorumMembership?)
    /// The snapshot that was fetched is damaged.
    case snapshotRefused(LogPosition)
    /// What a voter-to-be answered to ApiVersions; `nil` if it did not.
    case probed(ReplicaKey, KRaftVersionRange?)
    /// This node is about to stop, or hands over.
    case resignationRequested
}

/// Orders to the shell, to be executed in order.
package enum QuorumEffect: Hashable, Sendable {
    /// Write to the log, without waiting for the device. Names the proposal it comes from.
    case append([LogBatch], ProposalID?)
    /// Cut the log: nothing at or above the offset stays.
    case truncate(to: Offset)
    /// Begin a flush soon, one at a time; ``QuorumEvent/flushed(upTo:_:)`` says how far it went.
    case flush(FlushGeneration)
    /// Write and flush the file `quorum-state`; ``QuorumEvent/persisted(_:)`` when done.
    case persist(QuorumStateFile, StateVersion)

    case send(CallToken, to: BrokerID, [Endpoint], QuorumRequest)
    case respond(RequestID, QuorumAnswer)
    /// Answer with batches from the log, from the first offset up to the second, at least one batch if there is one.
    case respondWithRecords(RequestID, LogAnswer, from: Offset, upTo: Offset, maxBytes: Int)
    /// Answer with a part of a snapshot; SNAPSHOT_NOT_FOUND or POSITION_OUT_OF_RANGE if it cannot be read.
    case respondWithSnapshot(RequestID, AnswerHeader, LogPosition, position: Int64, maxBytes: Int)

    /// Everything below is committed: apply it, answer what waited for it.
    case advanceHighWatermark(Offset)
    case committed(ProposalID)
    /// Not appended: this node does not lead, or does not yet.
    case refused(ProposalID, LeaderAddress?)
    /// Appended, and the leadership ended before the commit: nobody knows yet what becomes of it.
    case abandoned(ProposalID)

    /// Another leader, none, or another epoch.
    case leaderChanged(LeaderAddress?, LeaderEpoch)
    /// This node leads, and everything in its log is committed or will be: the controller may decide on top of it.
    case leadershipReady(LeaderEpoch)
    /// The controller's state may hold what never commits: throw it away, load again.
    case leadershipLost(LeaderEpoch)

    /// The log may start at this snapshot.
    case advanceLogStart(to: LogPosition)
    /// Snapshots older than this are not needed.
    case removeSnapshots(before: LogPosition)
    case writeSnapshot(LogPosition, position: Int64, ByteBuffer)
    /// All bytes are there: check them, flush, give the snapshot its name; then report.
    case installSnapshot(LogPosition)
    case discardSnapshot(LogPosition)
    /// Drop the whole log; it starts, empty, at this snapshot.
    case resetLog(to: LogPosition)

    /// Ask the node for its versions (ApiVersions).
    case probe(ReplicaKey, [Endpoint])
    /// The voters in force changed; they may be uncommitted.
    case membershipChanged(QuorumMembership)
    /// The node must stop: going on could lose or contradict what is committed.
    case halt(String)
}
