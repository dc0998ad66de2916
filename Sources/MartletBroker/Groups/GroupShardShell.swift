internal import Logging
internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// One group coordinator shard on its event loop: the shell around the core and its partition of
/// `__consumer_offsets`.
///
/// Loads by replay when first used: the log is read and decoded on the work pool piece by piece, replayed here.
/// A failed append discards the core; the next request loads a new one. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone; pools get Sendable regions and post back.
final class GroupShardShell: @unchecked Sendable {
    /// Bytes of log read and decoded at once.
    private static let loadByteCount = 1024 * 1024
    /// Requests that may wait for the log to load; more are asked to come again.
    private static let loadingQueueLimit = 10_000
    /// How long a shard that could not be loaded stays that way before it is tried again.
    private static let retryDelay: TimeAmount = .seconds(5)

    private enum Phase {
        case idle
        case loading([(RequestID, GroupRequest)])
        case active
        /// The log cannot be read or written; tried again at `until`.
        case failed(until: NIODeadline)
        case resigned
    }

    let index: PartitionIndex
    private let key: PartitionKey
    private unowned let loop: BrokerLoop
    private var phase: Phase = .idle
    private var core: GroupCoordinatorShard
    /// Counts the cores: results of appends that an earlier one ordered are not for this one.
    private var incarnation = 0
    private var inFlightAppendCount = 0
    private var replies: [RequestID: (GroupResponse) -> Void] = [:]
    private var nextRequest: UInt64 = 0
    private var timers: [CoordinatorTimer: Scheduled<Void>] = [:]
    private var expiration: RepeatedTask?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
        self.index = key.partition
        self.loop = loop
        core = GroupCoordinatorShard(configuration: GroupConfiguration(loop.image.brokerConfiguration))
    }

    // MARK: Requests

    /// `reply` runs on this loop, exactly once.
    func submit(_ request: GroupRequest, reply: @escaping (GroupResponse) -> Void) {
        nextRequest += 1
        let id = RequestID(nextRequest)
        replies[id] = reply
        switch phase {
        case .active:
            handle(.requested(id, request))
        case .loading(var queue):
            guard queue.count < Self.loadingQueueLimit else {
                answer(id, GroupCoordinatorShard.refusal(request, .coordinatorLoadInProgress))
                return
            }
            queue.append((id, request))
            phase = .loading(queue)
        case .failed(let until) where NIODeadline.now() < until:
            answer(id, GroupCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        case .idle, .failed:
            guard inFlightAppendCount == 0 else {
                // Appends of the discarded core are still on their way; the log must be settled first.
                answer(id, GroupCoordinatorShard.refusal(request, .coordinatorLoadInProgress))
                return
            }
            phase = .loading([(id, request)])
            load()
        case .resigned:
            answer(id, GroupCoordinatorShard.refusal(request, .notCoordinator))
        }
    }

    private func answer(_ id: RequestID, _ response: GroupResponse) {
        replies.removeValue(forKey: id)?(response)
    }

    // MARK: Events

    private var moment: Moment { Moment(instant: MonotonicClock.now(), timestamp: WallClock.now()) }

    private func handle(_ event: GroupCoordinatorShard.Event) {
        var effects: [CoordinatorEffect] = []
        core.handle(event, now: moment, into: &effects)
        for effect in effects { run(effect) }
    }

    private func run(_ effect: CoordinatorEffect) {
        switch effect {
        case .respond(let id, let response):
            answer(id, response)
        case .append(let records, let token):
            append(records, token)
        case .schedule(let timer, let instant):
            timers[timer]?.cancel()
            let deadline = NIODeadline.uptimeNanoseconds(UInt64(clamping: instant.nanoseconds))
            timers[timer] = loop.eventLoop.assumeIsolated().scheduleTask(deadline: deadline) {
                self.timers[timer] = nil
                self.handle(.timerFired(timer))
            }
        case .cancel(let timer):
            timers.removeValue(forKey: timer)?.cancel()
        case .report(let report):
            loop.logger.info(
                "group rebalanced",
                metadata: [
                    "group": "\(report.group)", "generation": "\(report.generation)",
                    "reason": "\(report.reason)",
                    "members": "\(report.memberCount)", "milliseconds": "\(report.durationMilliseconds)",
                ])
        }
    }

    private func append(_ records: [CoordinatorRecord], _ token: AppendToken) {
        let incarnation = self.incarnation
        inFlightAppendCount += 1
        let done: (ProduceResult) -> Void = { result in
            self.inFlightAppendCount -= 1
            guard incarnation == self.incarnation else { return }
            if result.error == .none {
                self.handle(.committed(token))
            } else {
                self.fail(token, result.error, result.message ?? "")
            }
        }
        let batch: ByteBuffer
        do {
            batch = try Self.batch(records, now: WallClock.now())
        } catch {
            // The core's limits keep a batch far below what the format takes: nothing of it was written.
            loop.eventLoop.assumeIsolated().execute {
                done(ProduceResult(error: .recordListTooLarge, message: "\(error)"))
            }
            return
        }
        guard let partition = loop.partition(key) else {
            loop.eventLoop.assumeIsolated().execute {
                done(ProduceResult(error: .notLeaderOrFollower, message: "the partition is not here"))
            }
            return
        }
        // The answer may come before `appendInternal` returns; the core must have finished its effects by then.
        // A partition that was not used for long may have been closed; appends wait for it in their order.
        partition.whenOpen { partition in
            partition.appendInternal(batch) { result in
                self.loop.eventLoop.assumeIsolated().execute { done(result) }
            }
        }
    }

    private static func batch(_ records: [CoordinatorRecord], now: Timestamp) throws -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 128 + records.count * 128)
        for record in records {
            let (key, value) = try record.encoded()
            try builder.append(key: key, value: value, timestamp: now.rawValue)
        }
        return try builder.build()
    }

    private func fail(_ token: AppendToken, _ code: ErrorCode, _ cause: String) {
        loop.logger.error(
            "group offsets cannot be written; the coordinator loads again",
            metadata: ["partition": "\(index)", "error": "\(code.name)", "cause": "\(cause)"])
        handle(.appendFailed(token, code))
        discard()
        phase = .idle
    }

    private func discard() {
        incarnation += 1
        for timer in timers.values { timer.cancel() }
        timers = [:]
        expiration?.cancel()
        expiration = nil
        core = GroupCoordinatorShard(configuration: GroupConfiguration(loop.image.brokerConfiguration))
    }

    /// Topics that were deleted: their offsets go.
    func topicsDeleted(_ names: [String]) {
        if case .active = phase { handle(.topicsDeleted(names)) }
    }

    func configurationChanged() {
        handle(.reconfigured(GroupConfiguration(loop.image.brokerConfiguration)))
    }

    /// Answers everybody who waits; the broker stops or the partition goes.
    func resign() {
        if case .loading(let queue) = phase {
            for (id, request) in queue { answer(id, GroupCoordinatorShard.refusal(request, .notCoordinator)) }
        }
        handle(.resigned)
        discard()
        phase = .resigned
    }

    // MARK: Loading

    private func load() {
        whenOpen { log in self.load(log, from: log.logStartOffset, end: log.logEndOffset) }
    }

    /// Runs `body` with the open log, unless this core is given up before or the log cannot be opened.
    private func whenOpen(_ body: @escaping (PartitionLog<PosixDisk>) -> Void) {
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

    private func load(_ log: PartitionLog<PosixDisk>, from next: Offset, end: Offset) {
        guard next < end else { return loaded() }
        let region: LogRegion<PosixDisk>
        do {
            region = try log.locate(from: next, upTo: end, maxBytes: Self.loadByteCount, minOneBatch: true)
        } catch {
            return loadFailed("\(error)")
        }
        // Compaction may have taken all that stood before the end.
        guard region.byteCount > 0 else { return loaded() }
        let incarnation = self.incarnation
        loop.services.workPool.submit { state in
            guard case .active = state else { return }
            let result = Result { try Self.records(in: region) }
            self.loop.post { _ in
                guard incarnation == self.incarnation else { return }
                switch result {
                case .success(let records):
                    let now = WallClock.now()
                    for record in records { self.core.replay(record, now: now) }
                    // The log may have been closed, opened again or compacted meanwhile.
                    self.whenOpen { log in self.load(log, from: region.nextOffset, end: end) }
                case .failure(let error):
                    self.loadFailed("\(error)")
                }
            }
        }
    }

    private static func records(in region: LogRegion<PosixDisk>) throws -> [CoordinatorRecord] {
        var rest = ByteBuffer()
        _ = try region.read(into: &rest, nonBlocking: false)
        var records: [CoordinatorRecord] = []
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else {
                throw MetadataLogError(description: "a batch of the offsets topic is cut short")
            }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            guard !header.isControl else { continue }
            var iterator = try RecordIterator(batch)
            while let view = try iterator.next() {
                guard let key = view.key,
                    let record = try CoordinatorRecord.decode(key: key, value: view.value)
                else {
                    continue
                }
                records.append(record)
            }
        }
        return records
    }

    private func loaded() {
        guard case .loading(let queue) = phase else { return }
        phase = .active
        handle(.loaded)
        let obsolete = core.obsoleteTopics { loop.image.topicID(named: $0) }
        if !obsolete.isEmpty { handle(.topicsDeleted(obsolete)) }
        let interval = TimeAmount.milliseconds(
            max(1_000, loop.image.brokerConfiguration.offsetsRetentionCheckIntervalMilliseconds))
        expiration = loop.eventLoop.scheduleRepeatedTask(initialDelay: interval, delay: interval) { _ in
            self.expire()
        }
        loop.logger.debug(
            "group coordinator loaded",
            metadata: [
                "partition": "\(index)", "groups": "\(core.groupCount)", "offsets": "\(core.offsetCount)",
            ])
        for (id, request) in queue { handle(.requested(id, request)) }
    }

    private func loadFailed(_ cause: String) {
        loop.logger.error(
            "group coordinator cannot be loaded", metadata: ["partition": "\(index)", "cause": "\(cause)"])
        var waiting: [(RequestID, GroupRequest)] = []
        if case .loading(let queue) = phase { waiting = queue }
        discard()
        phase = .failed(until: .now() + Self.retryDelay)
        for (id, request) in waiting {
            answer(id, GroupCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        }
    }

    private func expire() {
        guard case .active = phase else { return }
        var retention = OffsetRetention(
            fixedMilliseconds: loop.image.brokerConfiguration.offsetsRetentionMilliseconds)
        if retention.fixedMilliseconds == nil {
            for name in core.topicsWithOffsets() {
                guard let topic = loop.image.topic(named: name) else { continue }
                // A compacted topic keeps the last record of each key, and so its readers' positions.
                let keeps = !topic.configuration.cleanupPolicy.contains(.delete)
                retention.topicMilliseconds[name] = .some(
                    keeps ? nil : topic.configuration.retentionMilliseconds)
            }
        }
        handle(.expirationDue(retention))
    }
}

extension GroupConfiguration {
    init(_ broker: BrokerConfiguration) {
        self.init(
            initialRebalanceDelayMilliseconds: broker.groupInitialRebalanceDelayMilliseconds,
            minSessionTimeoutMilliseconds: broker.groupMinSessionTimeoutMilliseconds,
            maxSessionTimeoutMilliseconds: broker.groupMaxSessionTimeoutMilliseconds,
            groupMaxSize: broker.groupMaxSize, offsetMetadataMaxBytes: broker.offsetMetadataMaxBytes)
    }
}
