import DequeModule
import MartletLogModel
import NIOCore

/// Where a consumer is in one partition. Each jump (seek, new assignment) begins a new version; batches and
/// positions of older versions are void.
final class PartitionCursor: Sendable {
    private struct State {
        /// Offset of the next record to hand out.
        var position: Offset?
        var leaderEpoch: LeaderEpoch?
        var version = 0
    }

    let topicPartition: TopicPartition
    private let state = Guarded(State())
    private let onDamage: @Sendable (ClientError) -> Void

    init(_ topicPartition: TopicPartition, onDamage: @escaping @Sendable (ClientError) -> Void) {
        self.topicPartition = topicPartition
        self.onDamage = onDamage
    }

    var position: Offset? { state.withLock { $0.position } }
    var version: Int { state.withLock { $0.version } }

    /// What a commit of the present position says; `nil` while it is not known.
    var committable: CommittedOffset? {
        state.withLock { state in
            state.position.map { CommittedOffset($0, leaderEpoch: state.leaderEpoch) }
        }
    }

    /// The record before `position` was handed out.
    func advance(to position: Offset, leaderEpoch: LeaderEpoch?, version: Int) {
        state.withLock { state in
            guard state.version == version else { return }
            state.position = position
            state.leaderEpoch = leaderEpoch
        }
    }

    /// Begins a new version and returns its number.
    func jump(to position: Offset?) -> Int {
        state.withLock { state in
            state.version += 1
            state.position = position
            state.leaderEpoch = nil
            return state.version
        }
    }

    /// The position of a jump has become known.
    func settle(_ position: Offset, version: Int) {
        state.withLock { state in
            if state.version == version, state.position == nil { state.position = position }
        }
    }

    func recordDamage(_ error: ClientError) { onDamage(error) }
}

/// Something that the polling task must do before it gets more records, because user code has a say in it.
enum RebalanceStep: Sendable {
    /// Commit, call back, give up these partitions; then the group goes on.
    case revoke([TopicPartition], isLost: Bool)
    /// Call back about these partitions, which are installed already.
    case assigned([TopicPartition])
}

/// What lies between the fetching loop and the polling task: batches in order per partition, positions, pauses,
/// errors, steps of a rebalance. Bounded by the consumer's `bufferBytes`, which the fetcher heeds.
final class FetchBuffer: Sendable {
    private struct Partition {
        let cursor: PartitionCursor
        var isPaused = false
        var batches = Deque<ConsumedBatch>()
        var byteCount = 0
        var endOffset: Offset?
    }

    private struct State {
        var partitions: [TopicPartition: Partition] = [:]
        /// Partitions with batches, in the order in which they are served.
        var turns = Deque<TopicPartition>()
        var byteCount = 0
        var errors = Deque<ClientError>()
        var steps = Deque<RebalanceStep>()
        var waiters: [Reply<Void>] = []
        var isClosed = false
        var lastPoll = NIODeadline.now()
    }

    /// Errors kept for the polling task; later ones repeat the first in nearly every case.
    private static let errorLimit = 16

    private let state = Guarded(State())
    private let byteLimit: Int

    init(byteLimit: Int) { self.byteLimit = byteLimit }

    // MARK: Polling task

    /// What a poll finds first.
    enum Found {
        case step(RebalanceStep)
        case error(ClientError)
        /// `wake`: the fetcher should look for work.
        case batch(ConsumedBatch, wake: Bool)
        case nothing
    }

    func next() -> Found {
        state.withLock { state in
            state.lastPoll = .now()
            if let step = state.steps.popFirst() { return .step(step) }
            if let error = state.errors.popFirst() { return .error(error) }
            return nextBatch(&state)
        }
    }

    /// A batch, if there is one and nothing else must be done first; else `nil`.
    func nextBatchOnly() -> Found? {
        state.withLock { state in
            guard state.steps.isEmpty, state.errors.isEmpty else { return nil }
            return nextBatch(&state)
        }
    }

    private func nextBatch(_ state: inout State) -> Found {
        var rounds = state.turns.count
        while rounds > 0, let partition = state.turns.popFirst() {
            rounds -= 1
            guard var entry = state.partitions[partition] else { continue }
            if entry.isPaused {
                state.turns.append(partition)
                continue
            }
            guard let batch = entry.batches.popFirst() else { continue }
            entry.byteCount -= batch.byteCount
            state.partitions[partition] = entry
            let before = state.byteCount
            state.byteCount -= batch.byteCount
            if !entry.batches.isEmpty { state.turns.append(partition) }
            guard batch.version == entry.cursor.version else {
                rounds += entry.batches.isEmpty ? 0 : 1
                continue
            }
            let half = byteLimit / 2
            let wake = entry.batches.isEmpty || (before >= half && state.byteCount < half)
            return .batch(batch, wake: wake)
        }
        return .nothing
    }

    /// Puts back the rest of a batch that was handed out in part.
    func putBack(_ batch: ConsumedBatch) {
        state.withLock { state in
            guard var entry = state.partitions[batch.topicPartition], batch.version == entry.cursor.version
            else {
                return
            }
            if entry.batches.isEmpty { state.turns.prepend(batch.topicPartition) }
            entry.batches.prepend(batch)
            entry.byteCount += batch.byteCount
            state.byteCount += batch.byteCount
            state.partitions[batch.topicPartition] = entry
        }
    }

    /// A reply that comes as soon as `next` has something; it comes at once if that is so already.
    func whenReady() -> Reply<Void> {
        let reply = Reply<Void>()
        let isReady = state.withLock { state in
            if state.isClosed || !state.steps.isEmpty || !state.errors.isEmpty || Self.hasBatch(state) {
                return true
            }
            state.waiters.append(reply)
            return false
        }
        if isReady { reply.succeed(()) }
        return reply
    }

    private static func hasBatch(_ state: borrowing State) -> Bool {
        for partition in state.turns {
            if let entry = state.partitions[partition], !entry.isPaused, !entry.batches.isEmpty {
                return true
            }
        }
        return false
    }

    /// A waiter whose time is over.
    func forget(_ reply: Reply<Void>) { state.withLock { $0.waiters.removeAll { $0 === reply } } }

    private func wake(_ waiters: [Reply<Void>]) { for waiter in waiters { waiter.succeed(()) } }

    private func takeWaiters(_ state: inout State) -> [Reply<Void>] {
        let waiters = state.waiters
        state.waiters = []
        return waiters
    }

    /// When there was a poll; now, while one waits.
    var lastPoll: NIODeadline { state.withLock { $0.waiters.isEmpty ? $0.lastPoll : .now() } }
    var isClosed: Bool { state.withLock { $0.isClosed } }

    // MARK: Partitions

    var assignment: Set<TopicPartition> { state.withLock { Set($0.partitions.keys) } }

    func cursor(of partition: TopicPartition) -> PartitionCursor? {
        state.withLock { $0.partitions[partition]?.cursor }
    }

    func endOffset(of partition: TopicPartition) -> Offset? {
        state.withLock { $0.partitions[partition]?.endOffset }
    }

    func position(of partition: TopicPartition) -> Offset? { cursor(of: partition)?.position }

    /// Positions of all partitions that have one.
    func positions() -> [TopicPartition: CommittedOffset] {
        state.withLock { state in
            var offsets: [TopicPartition: CommittedOffset] = [:]
            for (partition, entry) in state.partitions { offsets[partition] = entry.cursor.committable }
            return offsets
        }
    }

    /// Adds a partition, or starts a present one anew; returns its cursor and version.
    func install(_ partition: TopicPartition, at position: Offset?) -> (cursor: PartitionCursor, version: Int)
    {
        state.withLock { state in
            if let entry = state.partitions[partition] {
                clear(partition, &state)
                return (entry.cursor, entry.cursor.jump(to: position))
            }
            let cursor = PartitionCursor(partition) { [weak self] in self?.report($0) }
            state.partitions[partition] = Partition(cursor: cursor)
            return (cursor, cursor.jump(to: position))
        }
    }

    private func clear(_ partition: TopicPartition, _ state: inout State) {
        guard var entry = state.partitions[partition] else { return }
        state.byteCount -= entry.byteCount
        entry.byteCount = 0
        entry.batches.removeAll()
        state.partitions[partition] = entry
    }

    func remove(_ partitions: some Sequence<TopicPartition>) {
        state.withLock { state in
            for partition in partitions {
                clear(partition, &state)
                if let entry = state.partitions.removeValue(forKey: partition) {
                    _ = entry.cursor.jump(to: nil)
                }
            }
        }
    }

    func setPaused(_ isPaused: Bool, _ partitions: some Sequence<TopicPartition>) {
        let waiters = state.withLock { state in
            for partition in partitions { state.partitions[partition]?.isPaused = isPaused }
            return isPaused ? [] : takeWaiters(&state)
        }
        wake(waiters)
    }

    var paused: Set<TopicPartition> {
        state.withLock { state in Set(state.partitions.filter { $0.value.isPaused }.keys) }
    }

    // MARK: Fetching loop

    /// Bytes that may still be fetched.
    var roomBytes: Int { state.withLock { byteLimit - $0.byteCount } }

    /// Whether a partition may be fetched, and the bytes buffered of it.
    func demand(of partition: TopicPartition) -> (isPaused: Bool, byteCount: Int) {
        state.withLock { state in
            guard let entry = state.partitions[partition] else { return (true, 0) }
            return (entry.isPaused, entry.byteCount)
        }
    }

    func append(_ batches: [ConsumedBatch], endOffset: Offset?, to partition: TopicPartition) {
        let waiters = state.withLock { state -> [Reply<Void>] in
            guard var entry = state.partitions[partition] else { return [] }
            if let endOffset { entry.endOffset = endOffset }
            let wasEmpty = entry.batches.isEmpty
            let version = entry.cursor.version
            for batch in batches where batch.version == version {
                entry.batches.append(batch)
                entry.byteCount += batch.byteCount
                state.byteCount += batch.byteCount
            }
            let isEmpty = entry.batches.isEmpty
            state.partitions[partition] = entry
            if wasEmpty, !isEmpty { state.turns.append(partition) }
            return isEmpty ? [] : takeWaiters(&state)
        }
        wake(waiters)
    }

    /// Reports an error to the polling task.
    func report(_ error: ClientError) {
        let waiters = state.withLock { state in
            if state.errors.count < Self.errorLimit { state.errors.append(error) }
            return takeWaiters(&state)
        }
        wake(waiters)
    }

    /// Asks the polling task for a step of a rebalance.
    func request(_ step: RebalanceStep) {
        let waiters = state.withLock { state in
            state.steps.append(step)
            return takeWaiters(&state)
        }
        wake(waiters)
    }

    /// Forgets steps not taken yet; returns the partitions that they would have given up.
    func cancelSteps() -> [TopicPartition] {
        state.withLock { state in
            var partitions: [TopicPartition] = []
            for case .revoke(let revoked, _) in state.steps { partitions.append(contentsOf: revoked) }
            state.steps.removeAll()
            return partitions
        }
    }

    func close() {
        let waiters = state.withLock { state in
            state.isClosed = true
            for partition in state.partitions.keys { clear(partition, &state) }
            return takeWaiters(&state)
        }
        wake(waiters)
    }
}
