import MartletKafkaProtocol
package import MartletLogModel

/// Coordinator of the share partitions of one `__share_group_state` partition: keeps what their leaders have written,
/// and fences leaders and incarnations that are over (KIP-932, keys 83 to 87). A pure core, *decide → records → replay*.
///
/// The shell owns the partition's log. It loads by `replay` of each record and then `handle(.loaded)`. An append that
/// fails ends this core: the shell reports it, throws the core away and loads a new one.
///
/// A write becomes an update record; after ``updatesPerSnapshot`` of them a snapshot. The log is not compacted, since
/// each update counts; instead everything before the oldest snapshot that is still needed is cut off (`prune`), and
/// share partitions that are quiet get a new snapshot so that they hold nothing up.
///
/// Invariants: the start offset of an incarnation never falls; a write of an older leader epoch or state epoch changes
/// nothing; nothing is answered before it is committed; replay of the log gives ``durableState()``.
package struct ShareStateShard: ~Copyable {
    package enum Event: Sendable {
        case loaded
        case requested(RequestID, ShareStateRequest)
        /// - Parameter offset: of the first record of the append.
        case committed(AppendToken, offset: Int64)
        case appendFailed(AppendToken, ErrorCode)
        case topicsDeleted([UniversalID])
        /// Time to cut off what is not needed any more.
        case pruningDue(logEnd: Int64)
        case resigned
    }

    package enum Effect: Sendable, Equatable {
        case respond(RequestID, ShareStateResponse)
        case append([ShareStateRecord], AppendToken)
        /// Everything before this offset is superseded.
        case prune(before: Int64)
    }

    /// Of one share partition.
    package struct Entry: Sendable, Equatable {
        package var snapshotEpoch: Int32
        package var stateEpoch: Int32
        package var leaderEpoch: Int32
        /// -1: not known yet, to be found by `share.auto.offset.reset`.
        package var startOffset: Int64
        package var deliveryCompleteCount: Int32
        package var batches: [ShareStateBatch]
        package var createdAt: Int64
    }

    /// Kept beside an entry, not durable.
    private struct Place {
        var snapshotOffset: Int64?
        var updateCount = 0
    }

    private enum State: Equatable {
        case loading
        case active
        case closed(ErrorCode)
    }

    /// Update records between two snapshots (`share.coordinator.snapshot.update.records.per.snapshot`).
    package static let updatesPerSnapshot = 500
    /// Records after which a quiet share partition is written anew, so that the log before it can go.
    package static let coldRecordCount: Int64 = 5_000
    /// Quiet share partitions written anew at a time.
    private static let coldBatchLimit = 1_000

    private var state: State = .loading
    private var entries: [SharePartitionID: Entry] = [:]
    private var places: [SharePartitionID: Place] = [:]
    private var nextToken: UInt64 = 1
    private var waiting: [AppendToken: [(id: RequestID, response: ShareStateResponse)]] = [:]
    private var appended: [AppendToken: [SharePartitionID?]] = [:]
    /// The last append that touched an entry, while it is on its way.
    private var lastAppends: [SharePartitionID: AppendToken] = [:]
    private var prunedBefore: Int64 = 0

    package init() {}

    // MARK: Replay

    /// - Parameter offset: of the record in the log, if it has one already.
    package mutating func replay(_ record: ShareStateRecord, offset: Int64?) {
        let id = record.id
        switch record {
        case .snapshot(_, let value):
            guard let value else {
                entries[id] = nil
                places[id] = nil
                return
            }
            entries[id] = Entry(
                snapshotEpoch: value.snapshotEpoch, stateEpoch: value.stateEpoch,
                leaderEpoch: value.leaderEpoch,
                startOffset: value.startOffset, deliveryCompleteCount: value.deliveryCompleteCount,
                batches: [ShareStateBatch]().merged(
                    with: value.stateBatches.compactMap {
                        ShareStateBatch($0.firstOffset, $0.lastOffset, $0.deliveryState, $0.deliveryCount)
                    }, from: value.startOffset),
                createdAt: value.createTimestamp)
            places[id, default: Place()].updateCount = 0
            if let offset { places[id]?.snapshotOffset = offset }
        case .update(_, let value):
            // Without its snapshot, which was cut off, it is older than the one to come.
            guard let value, var entry = entries[id] else { return }
            entry.leaderEpoch = max(entry.leaderEpoch, value.leaderEpoch)
            entry.deliveryCompleteCount = value.deliveryCompleteCount
            entry.startOffset = max(entry.startOffset, value.startOffset)
            entry.batches = entry.batches.merged(
                with: value.stateBatches.compactMap {
                    ShareStateBatch($0.firstOffset, $0.lastOffset, $0.deliveryState, $0.deliveryCount)
                }, from: entry.startOffset)
            entries[id] = entry
            places[id, default: Place()].updateCount += 1
        }
    }

    // MARK: Events

    package mutating func handle(_ event: Event, now: Timestamp, into effects: inout [Effect]) {
        switch event {
        case .loaded:
            precondition(state == .loading, "the shard is loaded twice")
            state = .active
        case .requested(let id, let request):
            switch state {
            case .active: handle(id, request, now, &effects)
            case .loading: effects.append(.respond(id, ShareStateResponse(.coordinatorLoadInProgress)))
            case .closed(let code): effects.append(.respond(id, ShareStateResponse(code)))
            }
        case .committed(let token, let offset):
            commit(token, offset, &effects)
        case .appendFailed(_, let code):
            close(
                code == .notLeaderOrFollower || code == .kafkaStorageError
                    ? .notCoordinator : .coordinatorNotAvailable,
                &effects)
        case .topicsDeleted(let topics):
            guard state == .active else { return }
            let gone = Set(topics)
            append(
                entries.keys.filter { gone.contains($0.topic) }.sorted().map { .snapshot($0, nil) }, nil,
                &effects)
        case .pruningDue(let logEnd):
            if state == .active { prune(logEnd, now, &effects) }
        case .resigned:
            close(.notCoordinator, &effects)
        }
    }

    private mutating func append(
        _ records: [ShareStateRecord], _ answer: (id: RequestID, response: ShareStateResponse)?,
        _ effects: inout [Effect]
    ) {
        guard !records.isEmpty else { return }
        let token = AppendToken(rawValue: nextToken)
        nextToken += 1
        var snapshots: [SharePartitionID?] = []
        for record in records {
            replay(record, offset: nil)
            lastAppends[record.id] = token
            if case .snapshot(_, .some) = record {
                snapshots.append(record.id)
            } else {
                snapshots.append(nil)
            }
        }
        appended[token] = snapshots
        waiting[token] = answer.map { [$0] } ?? []
        effects.append(.append(records, token))
    }

    private mutating func commit(_ token: AppendToken, _ offset: Int64, _ effects: inout [Effect]) {
        guard state == .active, let answers = waiting.removeValue(forKey: token) else { return }
        for (index, id) in (appended.removeValue(forKey: token) ?? []).enumerated() {
            guard let id, places[id] != nil else { continue }
            places[id]?.snapshotOffset = offset + Int64(index)
        }
        lastAppends = lastAppends.filter { $0.value != token }
        for answer in answers { effects.append(.respond(answer.id, answer.response)) }
    }

    private mutating func close(_ code: ErrorCode, _ effects: inout [Effect]) {
        if case .closed = state { return }
        state = .closed(code)
        for token in waiting.keys.sorted() {
            for answer in waiting[token] ?? [] {
                effects.append(.respond(answer.id, ShareStateResponse(code)))
            }
        }
        waiting = [:]
    }

    // MARK: Requests

    private mutating func handle(
        _ id: RequestID, _ request: ShareStateRequest, _ now: Timestamp, _ effects: inout [Effect]
    ) {
        do throws(GroupRefusal) {
            switch request {
            case .initialize(let key, let stateEpoch, let startOffset):
                try initialize(id, key, stateEpoch, startOffset, now, &effects)
            case .read(let key, let leaderEpoch):
                try read(id, key, leaderEpoch, now, &effects)
            case .write(let key, let write):
                try self.write(id, key, write, now, &effects)
            case .delete(let key):
                guard entries[key] != nil else {
                    return respond(id, ShareStateResponse(), after: key, &effects)
                }
                append([.snapshot(key, nil)], (id, ShareStateResponse()), &effects)
            case .summary(let key):
                respond(id, summary(key), after: key, &effects)
            }
        } catch {
            effects.append(.respond(id, ShareStateResponse(error.code, error.message)))
        }
    }

    /// Answers once what was appended for the share partition so far is committed.
    private mutating func respond(
        _ id: RequestID, _ response: ShareStateResponse, after key: SharePartitionID,
        _ effects: inout [Effect]
    ) {
        if let token = lastAppends[key], waiting[token] != nil {
            waiting[token]?.append((id, response))
        } else {
            effects.append(.respond(id, response))
        }
    }

    private mutating func initialize(
        _ id: RequestID, _ key: SharePartitionID, _ stateEpoch: Int32, _ startOffset: Int64, _ now: Timestamp,
        _ effects: inout [Effect]
    ) throws(GroupRefusal) {
        guard stateEpoch >= 0 else { throw GroupRefusal(.invalidRequest, "The state epoch is negative.") }
        guard startOffset >= -1 else { throw GroupRefusal(.invalidRequest, "The start offset is below -1.") }
        if let entry = entries[key] {
            guard stateEpoch >= entry.stateEpoch else {
                throw GroupRefusal(
                    .fencedStateEpoch,
                    "State epoch \(stateEpoch) is over; the present one is \(entry.stateEpoch).")
            }
            if stateEpoch == entry.stateEpoch, startOffset == entry.startOffset {
                return respond(id, ShareStateResponse(), after: key, &effects)
            }
        } else if entries.count >= ShareLimits.partitionCountLimit {
            throw GroupRefusal(
                .groupMaxSizeReached,
                "This coordinator keeps the state of \(ShareLimits.partitionCountLimit) share partitions, its limit."
            )
        }
        var value = ShareSnapshotValue()
        value.snapshotEpoch = (entries[key]?.snapshotEpoch).map { $0 &+ 1 } ?? 0
        value.stateEpoch = stateEpoch
        value.leaderEpoch = -1
        value.startOffset = startOffset
        value.deliveryCompleteCount = startOffset < 0 ? -1 : 0
        value.createTimestamp = now.rawValue
        value.writeTimestamp = now.rawValue
        append([.snapshot(key, value)], (id, ShareStateResponse()), &effects)
    }

    /// The state for a leader, whose epoch fences those before it from now on.
    private mutating func read(
        _ id: RequestID, _ key: SharePartitionID, _ leaderEpoch: Int32, _ now: Timestamp,
        _ effects: inout [Effect]
    ) throws(GroupRefusal) {
        let entry = try self.entry(key, leaderEpoch)
        var response = ShareStateResponse()
        response.stateEpoch = entry.stateEpoch
        response.leaderEpoch = leaderEpoch
        response.startOffset = entry.startOffset
        response.deliveryCompleteCount = entry.deliveryCompleteCount
        response.batches = entry.batches
        guard entry.leaderEpoch != leaderEpoch else { return respond(id, response, after: key, &effects) }
        let record = changed(
            key, entry,
            ShareStateWrite(
                stateEpoch: entry.stateEpoch, leaderEpoch: leaderEpoch, startOffset: entry.startOffset,
                deliveryCompleteCount: entry.deliveryCompleteCount, batches: []), now)
        append([record], (id, response), &effects)
    }

    private mutating func write(
        _ id: RequestID, _ key: SharePartitionID, _ write: ShareStateWrite, _ now: Timestamp,
        _ effects: inout [Effect]
    ) throws(GroupRefusal) {
        let entry = try self.entry(key, write.leaderEpoch)
        guard write.stateEpoch >= 0 else {
            throw GroupRefusal(.invalidRequest, "The state epoch is negative.")
        }
        guard write.stateEpoch >= entry.stateEpoch else {
            throw GroupRefusal(
                .fencedStateEpoch,
                "State epoch \(write.stateEpoch) is over; the present one is \(entry.stateEpoch).")
        }
        guard write.batches.count <= ShareLimits.batchCountLimit,
            entry.batches.count + write.batches.count <= 2 * ShareLimits.batchCountLimit
        else {
            throw GroupRefusal(.invalidRequest, "More than \(ShareLimits.batchCountLimit) state batches.")
        }
        append([changed(key, entry, write, now)], (id, ShareStateResponse()), &effects)
    }

    private func entry(_ key: SharePartitionID, _ leaderEpoch: Int32) throws(GroupRefusal) -> Entry {
        guard leaderEpoch >= 0 else { throw GroupRefusal(.invalidRequest, "The leader epoch is negative.") }
        guard let entry = entries[key] else {
            throw GroupRefusal(
                .invalidRequest,
                "Share partition \(key) was not initialized; its group's coordinator does that.")
        }
        guard leaderEpoch >= entry.leaderEpoch else {
            throw GroupRefusal(
                .fencedLeaderEpoch,
                "Leader epoch \(leaderEpoch) is over; the present one is \(entry.leaderEpoch).")
        }
        return entry
    }

    /// The record of a change: an update, or a snapshot with it after many updates.
    private func changed(
        _ key: SharePartitionID, _ entry: Entry, _ write: ShareStateWrite, _ now: Timestamp
    ) -> ShareStateRecord {
        let start = max(write.startOffset, entry.startOffset)
        let complete =
            write.startOffset < entry.startOffset
            ? entry.deliveryCompleteCount
            : write.startOffset == entry.startOffset
                ? max(write.deliveryCompleteCount, entry.deliveryCompleteCount) : write.deliveryCompleteCount
        if places[key].map({ $0.updateCount >= Self.updatesPerSnapshot }) ?? false {
            var next = entry
            next.leaderEpoch = write.leaderEpoch
            next.startOffset = start
            next.deliveryCompleteCount = complete
            next.batches = entry.batches.merged(with: write.batches, from: start)
            return snapshot(key, next, now)
        }
        var value = ShareUpdateValue()
        value.snapshotEpoch = entry.snapshotEpoch
        value.leaderEpoch = write.leaderEpoch
        value.startOffset = start
        value.deliveryCompleteCount = complete
        value.stateBatches = [ShareStateBatch]().merged(with: write.batches, from: start).map { .init($0) }
        return .update(key, value)
    }

    private func snapshot(_ key: SharePartitionID, _ entry: Entry, _ now: Timestamp) -> ShareStateRecord {
        var value = ShareSnapshotValue()
        value.snapshotEpoch = entry.snapshotEpoch &+ 1
        value.stateEpoch = entry.stateEpoch
        value.leaderEpoch = entry.leaderEpoch
        value.startOffset = entry.startOffset
        value.deliveryCompleteCount = entry.deliveryCompleteCount
        value.createTimestamp = entry.createdAt
        value.writeTimestamp = now.rawValue
        value.stateBatches = entry.batches.map { .init($0) }
        return .snapshot(key, value)
    }

    private func summary(_ key: SharePartitionID) -> ShareStateResponse {
        var response = ShareStateResponse()
        guard let entry = entries[key] else { return response }
        response.stateEpoch = entry.stateEpoch
        response.leaderEpoch = entry.leaderEpoch
        response.startOffset = entry.startOffset
        response.deliveryCompleteCount = entry.deliveryCompleteCount
        return response
    }

    // MARK: Pruning

    private mutating func prune(_ logEnd: Int64, _ now: Timestamp, _ effects: inout [Effect]) {
        // What is on its way has no place yet, and may be what is still needed.
        guard waiting.isEmpty else { return }
        let oldest = entries.keys.reduce(logEnd) { min($0, places[$1]?.snapshotOffset ?? 0) }
        if oldest > prunedBefore {
            prunedBefore = oldest
            effects.append(.prune(before: oldest))
        }
        let cold = entries.keys.filter { (places[$0]?.snapshotOffset ?? 0) < logEnd - Self.coldRecordCount }
            .sorted { (places[$0]?.snapshotOffset ?? 0, $0) < (places[$1]?.snapshotOffset ?? 0, $1) }
            .prefix(Self.coldBatchLimit)
        append(cold.compactMap { key in entries[key].map { snapshot(key, $0, now) } }, nil, &effects)
    }

    // MARK: For tests and the shell

    package var partitionCount: Int { entries.count }

    package func durableState() -> [SharePartitionID: Entry] { entries }
}

/// A request about one share partition, brought from keys 83 to 87.
package enum ShareStateRequest: Sendable, Equatable {
    /// - Parameter startOffset: -1 where the group's reset rule decides.
    case initialize(SharePartitionID, stateEpoch: Int32, startOffset: Int64)
    case read(SharePartitionID, leaderEpoch: Int32)
    case write(SharePartitionID, ShareStateWrite)
    case delete(SharePartitionID)
    case summary(SharePartitionID)

    package var id: SharePartitionID {
        switch self {
        case .initialize(let id, _, _): id
        case .read(let id, _): id
        case .write(let id, _): id
        case .delete(let id): id
        case .summary(let id): id
        }
    }
}

package struct ShareStateWrite: Sendable, Equatable {
    package var stateEpoch: Int32
    package var leaderEpoch: Int32
    package var startOffset: Int64
    package var deliveryCompleteCount: Int32
    package var batches: [ShareStateBatch]

    package init(
        stateEpoch: Int32, leaderEpoch: Int32, startOffset: Int64, deliveryCompleteCount: Int32,
        batches: [ShareStateBatch]
    ) {
        self.stateEpoch = stateEpoch
        self.leaderEpoch = leaderEpoch
        self.startOffset = startOffset
        self.deliveryCompleteCount = deliveryCompleteCount
        self.batches = batches
    }
}

/// The answer; which fields count depends on the request.
package struct ShareStateResponse: Sendable, Equatable {
    package var code: ErrorCode
    package var message: String?
    package var stateEpoch: Int32 = 0
    package var leaderEpoch: Int32 = 0
    package var startOffset: Int64 = -1
    package var deliveryCompleteCount: Int32 = -1
    package var batches: [ShareStateBatch] = []

    package init(_ code: ErrorCode = .none, _ message: String? = nil) {
        self.code = code
        self.message = message
    }
}
