internal import Logging
internal import MartletCoordinators
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// What makes one kind of coordinator shard of the life that ``ShardLog`` leads. Everything runs on the loop of the
/// shard's partition, but ``decode(_:_:into:)``.
protocol ShardOwner: AnyObject, SendableMetatype {
    associatedtype Request
    /// What a record of the log, or a marker, means to the core.
    associatedtype Entry: Sendable

    /// For the log: "group coordinator".
    static var title: String { get }
    /// Whether a shard whose log could not be written or read is loaded again without being asked.
    static var goesOnByItself: Bool { get }

    /// Reads one valid batch of the log, on the work pool.
    static func decode(_ batch: ByteBuffer, _ header: RecordBatchHeader, into entries: inout [Entry]) throws
    func replay(_ entries: [Entry])
    /// The log has been replayed to its end.
    func becameActive()
    func serve(_ id: RequestID, _ request: Request)
    func refuse(_ id: RequestID, _ request: Request, _ code: ErrorCode)
    /// An append of this core failed; it answers who waits, and is discarded next.
    func appendFailed(_ token: AppendToken, _ code: ErrorCode)
    /// The core is no longer believed: a new one takes its place, clocks stop.
    func discardCore()
}

extension ShardOwner {
    static var goesOnByItself: Bool { false }
}

/// The life of a coordinator shard: its partition's log is replayed before it serves, and takes what it decides.
///
/// Loads when first used: pieces of the log are read and decoded on the work pool while the loop replays the piece
/// before. A failed append discards the core, and the next request loads a new one, so that nothing is believed that
/// the log does not have. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone; pools get Sendable regions and post back.
final class ShardLog<Owner: ShardOwner>: @unchecked Sendable {
    /// Bytes of log read and decoded at once.
    private static var loadByteCount: Int { 1024 * 1024 }
    /// What a record takes at least, usually.
    private static var commonRecordByteCount: Int { 64 }
    /// Requests that may wait for the log to load; more are asked to come again.
    private static var loadingQueueLimit: Int { 10_000 }
    /// How long a shard that could not be loaded stays that way before it is tried again.
    private static var retryDelay: TimeAmount { .seconds(5) }

    private enum Phase {
        case idle
        case loading([(RequestID, Owner.Request)])
        case active
        /// The log cannot be read or written; tried again at `until`.
        case failed(until: NIODeadline)
        case resigned
    }

    let key: PartitionKey
    private unowned let loop: BrokerLoop
    /// The shard, which owns this.
    private unowned let owner: Owner
    private var phase: Phase = .idle
    /// Counts the cores: what an earlier one ordered is not for this one.
    private(set) var incarnation = 0
    private var inFlightAppendCount = 0
    /// Of the leadership that the core was loaded in; nil where there is no other broker that could lead.
    private var leaderEpoch: LeaderEpoch?
    /// The log's end may not be committed, and what is not may not be replayed.
    private var awaitsHighWatermark = false
    /// The next try to load without a request.
    private var nextAttempt: Scheduled<Void>?

    init(_ key: PartitionKey, _ loop: BrokerLoop, owner: Owner) {
        self.key = key
        self.loop = loop
        self.owner = owner
    }

    var isActive: Bool {
        if case .active = phase { true } else { false }
    }

    /// `body`, which does nothing once the present core has been discarded.
    func whileItLasts<Value>(_ body: @escaping (Value) -> Void) -> (Value) -> Void {
        let incarnation = self.incarnation
        return { value in
            if incarnation == self.incarnation { body(value) }
        }
    }

    // MARK: Requests

    func submit(_ id: RequestID, _ request: Owner.Request) {
        if isActive, leaderEpoch != nil, loop.existingPartition(key)?.leaderEpoch != leaderEpoch {
            // Somebody else has decided since.
            discard()
            phase = .idle
        }
        switch phase {
        case .active:
            owner.serve(id, request)
        case .loading(var queue):
            guard queue.count < Self.loadingQueueLimit, !awaitsHighWatermark else {
                return owner.refuse(id, request, .coordinatorLoadInProgress)
            }
            queue.append((id, request))
            phase = .loading(queue)
        case .failed(let until) where loop.eventLoop.now < until:
            owner.refuse(id, request, .coordinatorNotAvailable)
        case .idle, .failed:
            guard inFlightAppendCount == 0 else {
                // Appends of the discarded core are still on their way; the log must be settled first.
                return owner.refuse(id, request, .coordinatorLoadInProgress)
            }
            phase = .loading([(id, request)])
            load()
        case .resigned:
            owner.refuse(id, request, .notCoordinator)
        }
    }

    /// Loads without a request: what an earlier run left undone must not wait for one.
    func resume() {
        switch phase {
        case .loading, .active, .resigned:
            return
        case .idle, .failed:
            // The log must be settled first.
            guard inFlightAppendCount == 0 else { return resumeLater() }
            phase = .loading([])
            load()
        }
    }

    private func resumeLater() {
        guard Owner.goesOnByItself else { return }
        nextAttempt?.cancel()
        nextAttempt = loop.eventLoop.assumeIsolated().scheduleTask(in: Self.retryDelay) { self.resume() }
    }

    /// Who waits for the log is answered; the broker stops or the partition goes. The owner answers the others.
    func resign() {
        if case .loading(let queue) = phase {
            for (id, request) in queue { owner.refuse(id, request, .notCoordinator) }
        }
        discard()
        nextAttempt?.cancel()
        nextAttempt = nil
        phase = .resigned
    }

    private func discard() {
        incarnation += 1
        leaderEpoch = nil
        awaitsHighWatermark = false
        owner.discardCore()
    }

    // MARK: Appends

    /// Appends what a core decided. `committed` runs if that core is still there, with the offset of the first record;
    /// never before this returns, so that the core has finished its effects by then.
    ///
    /// - Parameters:
    ///   - checksSequence: false for offsets that are part of a producer's transaction.
    ///   - waitsForFlush: what depends on the batch must not outlive it, not even on a relaxed topic.
    func append(
        _ token: AppendToken, checksSequence: Bool = true, waitsForFlush: Bool = false,
        batch: () throws -> ByteBuffer, committed: @escaping (Int64) -> Void
    ) {
        append(token, committed: committed) { (done: @escaping (ProduceResult) -> Void) in
            let bytes = try batch()
            return { partition in
                partition.appendInternal(
                    bytes, checksSequence: checksSequence, waitsForFlush: waitsForFlush, whenCommitted: done)
            }
        }
    }

    /// The end of a producer's transaction.
    func append(_ token: AppendToken, _ marker: MarkerAppend, committed: @escaping (Int64) -> Void) {
        append(token, committed: committed) { done in
            { $0.appendMarker(marker, whenCommitted: done) }
        }
    }

    private func append(
        _ token: AppendToken, committed: @escaping (Int64) -> Void,
        _ write: (_ done: @escaping (ProduceResult) -> Void) throws -> (Partition) -> Void
    ) {
        let incarnation = self.incarnation
        inFlightAppendCount += 1
        let done: (ProduceResult) -> Void = { result in
            // It may be called before the partition returns.
            self.loop.eventLoop.assumeIsolated().execute {
                self.inFlightAppendCount -= 1
                guard incarnation == self.incarnation else { return }
                switch result {
                case .appended(let offset, _, _): committed(offset)
                case .refused(let refusal): self.fail(token, refusal.error, refusal.message ?? "")
                }
            }
        }
        let operation: (Partition) -> Void
        do {
            operation = try write(done)
        } catch {
            // The core's limits keep a batch far below what the format takes: nothing of it was written.
            return done(ProduceResult(error: .recordListTooLarge, message: "\(error)"))
        }
        guard let partition = loop.partition(key) else {
            return done(ProduceResult(error: .notLeaderOrFollower, message: "the partition is not here"))
        }
        // A partition that was not used for long may have been closed; appends wait for it in their order.
        partition.whenOpen(operation)
    }

    private func fail(_ token: AppendToken, _ code: ErrorCode, _ cause: String) {
        loop.logger.error(
            "\(Owner.title): state cannot be written; it is loaded again",
            metadata: ["partition": "\(key.partition)", "error": "\(code.name)", "cause": "\(cause)"])
        owner.appendFailed(token, code)
        discard()
        phase = .idle
        resumeLater()
    }

    // MARK: Loading

    private func load() {
        awaitsHighWatermark = false
        whenOpen { log in
            guard let partition = self.loop.existingPartition(self.key), partition.isReplicated else {
                return self.load(log, from: log.logStartOffset, end: log.logEndOffset, after: [])
            }
            guard let epoch = partition.leaderEpoch else { return self.refuseLoading(.notCoordinator) }
            guard let mark = partition.visibleEnd, mark >= log.logEndOffset else {
                return self.awaitHighWatermark(partition)
            }
            self.leaderEpoch = epoch
            self.load(log, from: log.logStartOffset, end: mark, after: [])
        }
    }

    /// A new leader must first know that all it has is committed: a core that believed less would decide again what is
    /// decided, one that believed more would tell what may vanish.
    private func awaitHighWatermark(_ partition: Partition) {
        guard case .loading(let queue) = phase else { return }
        awaitsHighWatermark = true
        phase = .loading([])
        let incarnation = self.incarnation
        partition.whenAdvanced {
            // Never at once: whoever wakes is in the middle of something.
            self.loop.eventLoop.assumeIsolated().execute {
                if incarnation == self.incarnation, self.awaitsHighWatermark { self.load() }
            }
        }
        for (id, request) in queue { owner.refuse(id, request, .coordinatorLoadInProgress) }
    }

    /// Nothing is wrong with the log, but it is not for this broker to read.
    private func refuseLoading(_ code: ErrorCode) {
        guard case .loading(let queue) = phase else { return }
        discard()
        phase = .idle
        for (id, request) in queue { owner.refuse(id, request, code) }
    }

    /// Runs `body` with the open log, unless this core is given up before or the log cannot be opened.
    private func whenOpen(_ body: @escaping (PartitionLog<AnyDisk>) -> Void) {
        guard let partition = loop.partition(key) else { return loadFailed("the partition is not here") }
        partition.whenOpen(
            whileItLasts { partition in
                switch partition.openLog {
                case .success(let log): body(log)
                case .failure(let unavailable): self.loadFailed(unavailable.cause)
                }
            })
    }

    /// Has the log from `next` on read and decoded while it replays `entries`, which come before.
    private func load(_ log: PartitionLog<AnyDisk>, from next: Offset, end: Offset, after entries: [Owner.Entry]) {
        let region: LogRegion<AnyDisk>
        do {
            region =
                next < end
                ? try log.locate(from: next, upTo: end, maxBytes: Self.loadByteCount, minOneBatch: true)
                : .empty(at: end)
        } catch {
            return loadFailed("\(error)")
        }
        // Compaction may have taken all that stood before the end.
        if region.byteCount > 0 {
            let incarnation = self.incarnation
            loop.services.workPool.submit { state in
                guard case .active = state else { return }
                let result = Result { try Self.entries(in: region) }
                self.loop.post { _ in
                    guard incarnation == self.incarnation else { return }
                    switch result {
                    case .success(let entries):
                        // The log may have been closed, opened again or compacted meanwhile.
                        self.whenOpen { log in self.load(log, from: region.nextOffset, end: end, after: entries) }
                    case .failure(let error):
                        self.loadFailed("\(error)")
                    }
                }
            }
        }
        owner.replay(entries)
        if region.byteCount == 0 { loaded() }
    }

    private static func entries(in region: LogRegion<AnyDisk>) throws -> [Owner.Entry] {
        var rest = ByteBuffer()
        _ = try region.read(into: &rest, nonBlocking: false)
        var entries: [Owner.Entry] = []
        entries.reserveCapacity(region.byteCount / commonRecordByteCount)
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else {
                throw MetadataLogError(description: "a batch of the \(Owner.title) is cut short")
            }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            try Owner.decode(batch, header, into: &entries)
        }
        return entries
    }

    private func loaded() {
        guard case .loading(let queue) = phase else { return }
        phase = .active
        owner.becameActive()
        for (id, request) in queue { owner.serve(id, request) }
    }

    private func loadFailed(_ cause: String) {
        loop.logger.error(
            "\(Owner.title) cannot be loaded", metadata: ["partition": "\(key.partition)", "cause": "\(cause)"])
        var waiting: [(RequestID, Owner.Request)] = []
        if case .loading(let queue) = phase { waiting = queue }
        discard()
        phase = .failed(until: loop.eventLoop.now + Self.retryDelay)
        resumeLater()
        for (id, request) in waiting { owner.refuse(id, request, .coordinatorNotAvailable) }
    }
}

/// A record of a coordinator's log.
protocol ShardRecord {
    func encoded() throws(EncodeError) -> (key: ByteBuffer, value: ByteBuffer?)
}

extension CoordinatorRecord: ShardRecord {}
extension TransactionRecord: ShardRecord {}
extension ShareStateRecord: ShardRecord {}

extension RecordBatchBuilder {
    /// What a coordinator decided at once is one batch: it is in the log as a whole, or not at all.
    static func batch(
        _ records: [some ShardRecord], _ now: Timestamp, _ options: Options = Options()
    ) throws -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 128 + records.count * 128)
        for record in records {
            let (key, value) = try record.encoded()
            try builder.append(key: key, value: value, timestamp: now.rawValue)
        }
        return try builder.build(options)
    }
}

/// Callers that wait for a shard, by the number the core knows them under.
struct WaitingReplies<Response> {
    private var replies: [RequestID: (Response) -> Void] = [:]
    private var lastID: UInt64 = 0

    mutating func add(_ reply: @escaping (Response) -> Void) -> RequestID {
        lastID += 1
        replies[RequestID(lastID)] = reply
        return RequestID(lastID)
    }

    mutating func take(_ id: RequestID) -> ((Response) -> Void)? { replies.removeValue(forKey: id) }
}
