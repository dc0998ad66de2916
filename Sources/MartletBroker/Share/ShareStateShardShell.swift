internal import Logging
internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// One share coordinator shard on its event loop: the shell around the core and its partition of
/// `__share_group_state`.
///
/// Loads by replay when first used. A failed append discards the core; the next request loads a new one. What is
/// superseded is cut off the log from time to time. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone; pools get Sendable regions and post back.
final class ShareStateShardShell: @unchecked Sendable {
    /// Bytes of log read and decoded at once.
    private static let loadByteCount = 1024 * 1024
    /// Requests that may wait for the log to load; more are asked to come again.
    private static let loadingQueueLimit = 10_000
    /// How long a shard that could not be loaded stays that way before it is tried again.
    private static let retryDelay: TimeAmount = .seconds(5)
    /// How often the log is looked at for what is superseded (Kafka's default of the same task).
    private static let pruneInterval: TimeAmount = .minutes(5)

    private enum Phase {
        case idle
        case loading([(RequestID, ShareStateRequest)])
        case active
        /// The log cannot be read or written; tried again at `until`.
        case failed(until: NIODeadline)
        case resigned
    }

    let index: PartitionIndex
    private let key: PartitionKey
    private unowned let loop: BrokerLoop
    private var phase: Phase = .idle
    private var core = ShareStateShard()
    /// Counts the cores: results of appends that an earlier one ordered are not for this one.
    private var incarnation = 0
    private var inFlightAppendCount = 0
    private var replies: [RequestID: (ShareStateResponse) -> Void] = [:]
    private var nextRequest: UInt64 = 0
    private var pruning: RepeatedTask?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
        self.index = key.partition
        self.loop = loop
    }

    // MARK: Requests

    /// `reply` runs on this loop, exactly once.
    func submit(_ request: ShareStateRequest, reply: @escaping (ShareStateResponse) -> Void) {
        nextRequest += 1
        let id = RequestID(nextRequest)
        replies[id] = reply
        switch phase {
        case .active:
            handle(.requested(id, request))
        case .loading(var queue):
            guard queue.count < Self.loadingQueueLimit else {
                return answer(id, ShareStateResponse(.coordinatorLoadInProgress))
            }
            queue.append((id, request))
            phase = .loading(queue)
        case .failed(let until) where loop.eventLoop.now < until:
            answer(id, ShareStateResponse(.coordinatorNotAvailable))
        case .idle, .failed:
            guard inFlightAppendCount == 0 else {
                // Appends of the discarded core are still on their way; the log must be settled first.
                return answer(id, ShareStateResponse(.coordinatorLoadInProgress))
            }
            phase = .loading([(id, request)])
            load()
        case .resigned:
            answer(id, ShareStateResponse(.notCoordinator))
        }
    }

    private func answer(_ id: RequestID, _ response: ShareStateResponse) {
        replies.removeValue(forKey: id)?(response)
    }

    // MARK: Events

    private func handle(_ event: ShareStateShard.Event) {
        var effects: [ShareStateShard.Effect] = []
        core.handle(event, now: loop.wallTime, into: &effects)
        for effect in effects { run(effect) }
    }

    private func run(_ effect: ShareStateShard.Effect) {
        switch effect {
        case .respond(let id, let response): answer(id, response)
        case .append(let records, let token): append(records, token)
        case .prune(let offset): prune(before: offset)
        }
    }

    private func append(_ records: [ShareStateRecord], _ token: AppendToken) {
        let incarnation = self.incarnation
        inFlightAppendCount += 1
        let done: (ProduceResult) -> Void = { result in
            self.inFlightAppendCount -= 1
            guard incarnation == self.incarnation else { return }
            switch result {
            case .appended(let offset, _, _): self.handle(.committed(token, offset: offset))
            case .refused(let refusal): self.fail(token, refusal.error, refusal.message ?? "")
            }
        }
        func failLater(_ code: ErrorCode, _ cause: String) {
            loop.eventLoop.assumeIsolated().execute { done(ProduceResult(error: code, message: cause)) }
        }
        let batch: ByteBuffer
        do {
            batch = try Self.batch(records, now: loop.wallTime)
        } catch {
            return failLater(.recordListTooLarge, "\(error)")
        }
        guard let partition = loop.partition(key) else {
            return failLater(.notLeaderOrFollower, "the partition is not here")
        }
        // The answer may come before `appendInternal` returns; the core must have finished its effects by then.
        partition.whenOpen { partition in
            partition.appendInternal(batch) { result in
                self.loop.eventLoop.assumeIsolated().execute { done(result) }
            }
        }
    }

    private static func batch(_ records: [ShareStateRecord], now: Timestamp) throws -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 128 + records.count * 128)
        for record in records {
            let (key, value) = try record.encoded()
            try builder.append(key: key, value: value, timestamp: now.rawValue)
        }
        return try builder.build()
    }

    private func fail(_ token: AppendToken, _ code: ErrorCode, _ cause: String) {
        loop.logger.error(
            "share group state cannot be written; the coordinator loads again",
            metadata: ["partition": "\(index)", "error": "\(code.name)", "cause": "\(cause)"])
        handle(.appendFailed(token, code))
        discard()
        phase = .idle
    }

    private func discard() {
        incarnation += 1
        pruning?.cancel()
        pruning = nil
        core = ShareStateShard()
    }

    /// Topics that were deleted: the state of their partitions goes.
    func topicsDeleted(_ topics: [UniversalID]) {
        if case .active = phase { handle(.topicsDeleted(topics)) }
    }

    /// Answers everybody who waits; the broker stops or the partition goes.
    func resign() {
        if case .loading(let queue) = phase {
            for (id, _) in queue { answer(id, ShareStateResponse(.notCoordinator)) }
        }
        handle(.resigned)
        discard()
        phase = .resigned
    }

    // MARK: Pruning

    private func pruneIfDue() {
        guard case .active = phase, let partition = loop.partition(key) else { return }
        let incarnation = self.incarnation
        partition.whenOpen { partition in
            guard incarnation == self.incarnation, case .active = self.phase else { return }
            self.handle(.pruningDue(logEnd: partition.highWatermark.rawValue))
        }
    }

    private func prune(before offset: Int64) {
        loop.partition(key)?.whenOpen { partition in
            partition.deleteRecords(before: offset) { result in
                guard case .failure(let unavailable) = result else { return }
                self.loop.logger.warning(
                    "share group state is not pruned",
                    metadata: ["partition": "\(self.index)", "cause": "\(unavailable.cause)"])
            }
        }
    }

    // MARK: Loading

    private func load() {
        whenOpen { log in self.load(log, from: log.logStartOffset, end: log.logEndOffset) }
    }

    /// Runs `body` with the open log, unless this core is given up before or the log cannot be opened.
    private func whenOpen(_ body: @escaping (PartitionLog<AnyDisk>) -> Void) {
        guard let partition = loop.partition(key) else { return loadFailed("the partition is not here") }
        let incarnation = self.incarnation
        partition.whenOpen { partition in
            guard incarnation == self.incarnation else { return }
            switch partition.openLog {
            case .success(let log): body(log)
            case .failure(let unavailable): self.loadFailed(unavailable.cause)
            }
        }
    }

    private func load(_ log: PartitionLog<AnyDisk>, from next: Offset, end: Offset) {
        guard next < end else { return loaded() }
        let region: LogRegion<AnyDisk>
        do {
            region = try log.locate(from: next, upTo: end, maxBytes: Self.loadByteCount, minOneBatch: true)
        } catch {
            return loadFailed("\(error)")
        }
        guard region.byteCount > 0 else { return loaded() }
        let incarnation = self.incarnation
        loop.services.workPool.submit { state in
            guard case .active = state else { return }
            let result = Result { try Self.records(in: region) }
            self.loop.post { _ in
                guard incarnation == self.incarnation else { return }
                switch result {
                case .success(let records):
                    for entry in records { self.core.replay(entry.record, offset: entry.offset) }
                    // The log may have been closed and opened again meanwhile.
                    self.whenOpen { log in self.load(log, from: region.nextOffset, end: end) }
                case .failure(let error):
                    self.loadFailed("\(error)")
                }
            }
        }
    }

    private static func records(
        in region: LogRegion<AnyDisk>
    ) throws -> [(record: ShareStateRecord, offset: Int64)] {
        var rest = ByteBuffer()
        _ = try region.read(into: &rest, nonBlocking: false)
        var records: [(record: ShareStateRecord, offset: Int64)] = []
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else {
                throw MetadataLogError(description: "a batch of the share group state is cut short")
            }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            guard !header.isControl else { continue }
            var iterator = try RecordIterator(batch)
            while let view = try iterator.next() {
                guard let key = view.key,
                    let record = try ShareStateRecord.decode(key: key, value: view.value)
                else { continue }
                records.append((record, view.offset.rawValue))
            }
        }
        return records
    }

    private func loaded() {
        guard case .loading(let queue) = phase else { return }
        phase = .active
        handle(.loaded)
        let gone = Set(core.durableState().keys.map(\.topic)).filter { loop.image.topic(id: $0) == nil }
        if !gone.isEmpty { handle(.topicsDeleted(gone.sorted())) }
        pruning = loop.eventLoop.scheduleRepeatedTask(
            initialDelay: Self.pruneInterval, delay: Self.pruneInterval
        ) { _ in self.pruneIfDue() }
        loop.logger.debug(
            "share coordinator loaded",
            metadata: ["partition": "\(index)", "share.partitions": "\(core.partitionCount)"])
        for (id, request) in queue { handle(.requested(id, request)) }
    }

    private func loadFailed(_ cause: String) {
        loop.logger.error(
            "share coordinator cannot be loaded", metadata: ["partition": "\(index)", "cause": "\(cause)"])
        var waiting: [(RequestID, ShareStateRequest)] = []
        if case .loading(let queue) = phase { waiting = queue }
        discard()
        phase = .failed(until: loop.eventLoop.now + Self.retryDelay)
        for (id, _) in waiting { answer(id, ShareStateResponse(.coordinatorNotAvailable)) }
    }
}
