internal import Logging
internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// One transaction coordinator shard on its event loop: the shell around the core and its partition of
/// `__transaction_state`.
///
/// Loads by replay when the broker starts or somebody asks first; then it finishes what an earlier run had decided
/// and ends what was left open too long. A failed append discards the core and loads a new one from the log, so that
/// nothing is believed that the log does not have. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone; pools get Sendable regions and post back.
final class TransactionShardShell: @unchecked Sendable {
    /// Bytes of log read and decoded at once.
    private static let loadByteCount = 1024 * 1024
    /// Requests that may wait for the log to load; more are asked to come again.
    private static let loadingQueueLimit = 10_000
    /// How long a shard that could not be loaded stays that way before it is tried again.
    private static let retryDelay: TimeAmount = .seconds(5)
    /// How often transactional ids are looked at that may be forgotten (Kafka's default of the same task).
    private static let expirationInterval: TimeAmount = .hours(1)

    private enum Phase {
        case idle
        case loading([(RequestID, TransactionRequest)])
        case active
        /// The log cannot be read or written; tried again at `until`.
        case failed(until: NIODeadline)
        case resigned
    }

    let index: PartitionIndex
    private let key: PartitionKey
    private unowned let loop: BrokerLoop
    private var phase: Phase = .idle
    private var core: TransactionCoordinatorShard
    /// Counts the cores: results of appends and markers that an earlier one ordered are not for this one.
    private var incarnation = 0
    private var inFlightAppendCount = 0
    private var replies: [RequestID: (TransactionResponse) -> Void] = [:]
    private var nextRequest: UInt64 = 0
    private var timers: [TransactionTimer: Scheduled<Void>] = [:]
    private var expiration: RepeatedTask?
    /// The next try to load without a request.
    private var retry: Scheduled<Void>?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
        self.index = key.partition
        self.loop = loop
        core = Self.makeCore(key, loop)
    }

    private static func makeCore(_ key: PartitionKey, _ loop: BrokerLoop) -> TransactionCoordinatorShard {
        let epoch = loop.image.topic(id: key.topicID)?.partition(key.partition)?.leaderEpoch.rawValue ?? 0
        return TransactionCoordinatorShard(
            configuration: Self.configuration(loop), coordinatorEpoch: epoch)
    }

    private static func configuration(_ loop: BrokerLoop) -> TransactionConfiguration {
        var configuration = TransactionConfiguration(loop.image)
        configuration.suspended = loop.services.suspended
        return configuration
    }

    // MARK: Requests

    /// `reply` runs on this loop, exactly once.
    func submit(_ request: TransactionRequest, reply: @escaping (TransactionResponse) -> Void) {
        nextRequest += 1
        let id = RequestID(nextRequest)
        replies[id] = reply
        switch phase {
        case .active:
            handle(.requested(id, request))
        case .loading(var queue):
            guard queue.count < Self.loadingQueueLimit else {
                answer(id, TransactionCoordinatorShard.refusal(request, .coordinatorLoadInProgress))
                return
            }
            queue.append((id, request))
            phase = .loading(queue)
        case .failed(let until) where loop.eventLoop.now < until:
            answer(id, TransactionCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        case .idle, .failed:
            guard inFlightAppendCount == 0 else {
                // Appends of the discarded core are still on their way; the log must be settled first.
                answer(id, TransactionCoordinatorShard.refusal(request, .coordinatorLoadInProgress))
                return
            }
            phase = .loading([(id, request)])
            load()
        case .resigned:
            answer(id, TransactionCoordinatorShard.refusal(request, .notCoordinator))
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

    /// What was decided must be carried out and open transactions have clocks, whether or not somebody asks.
    private func resumeLater() {
        retry?.cancel()
        retry = loop.eventLoop.assumeIsolated().scheduleTask(in: Self.retryDelay) { self.resume() }
    }

    private func answer(_ id: RequestID, _ response: TransactionResponse) {
        replies.removeValue(forKey: id)?(response)
    }

    // MARK: Events

    private var moment: Moment { Moment(instant: loop.monotonicTime, timestamp: loop.wallTime) }

    private func handle(_ event: TransactionCoordinatorShard.Event) {
        var effects: [TransactionEffect] = []
        core.handle(event, now: moment, into: &effects)
        for effect in effects { run(effect) }
    }

    private func run(_ effect: TransactionEffect) {
        switch effect {
        case .respond(let id, let response):
            answer(id, response)
        case .append(let records, let token):
            append(records, token)
        case .allocateProducerID(let id):
            allocate(id)
        case .writeMarkers(let transactionalID, let marker, let partitions):
            let incarnation = self.incarnation
            MarkerWriter.write(marker, to: partitions, from: loop) { outcomes in
                guard incarnation == self.incarnation else { return }
                self.handle(.markersWritten(transactionalID: transactionalID, marker.producer, outcomes))
            }
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
            log(report)
        }
    }

    private func log(_ report: TransactionReport) {
        switch report {
        case .timedOut(let id, let producer, let milliseconds):
            loop.logger.warning(
                "transaction aborted: its producer did not end it within transaction.timeout.ms",
                metadata: ["transactional.id": "\(id)", "producer": "\(producer)", "milliseconds": "\(milliseconds)"])
        case .fenced(let id, let producer):
            loop.logger.info(
                "transaction aborted: another producer took over its transactional id",
                metadata: ["transactional.id": "\(id)", "producer": "\(producer)"])
        case .markerRefused(let id, let partition, let code):
            loop.logger.warning(
                "transaction marker refused",
                metadata: ["transactional.id": "\(id)", "partition": "\(partition)", "error": "\(code.name)"])
        }
    }

    private func allocate(_ id: RequestID) {
        let incarnation = self.incarnation
        let services = loop.services
        services.producerIDs.next(controller: services.controller, on: loop.eventLoop).assumeIsolated().whenComplete {
            result in
            guard incarnation == self.incarnation else { return }
            switch result {
            case .success(let producerID): self.handle(.producerIDAllocated(id, producerID))
            case .failure(let error):
                self.loop.logger.error("no producer id", metadata: ["cause": "\(error)"])
                self.handle(.producerIDUnavailable(id))
            }
        }
    }

    private func append(_ records: [TransactionRecord], _ token: AppendToken) {
        let incarnation = self.incarnation
        inFlightAppendCount += 1
        let done: (ProduceResult) -> Void = { result in
            self.inFlightAppendCount -= 1
            guard incarnation == self.incarnation else { return }
            switch result {
            case .appended: self.handle(.committed(token))
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
            partition.appendInternal(batch, waitsForFlush: true) { result in
                self.loop.eventLoop.assumeIsolated().execute { done(result) }
            }
        }
    }

    private static func batch(_ records: [TransactionRecord], now: Timestamp) throws -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 128 + records.count * 128)
        for record in records {
            let (key, value) = try record.encoded()
            try builder.append(key: key, value: value, timestamp: now.rawValue)
        }
        return try builder.build()
    }

    private func fail(_ token: AppendToken, _ code: ErrorCode, _ cause: String) {
        loop.logger.error(
            "transaction state cannot be written; the coordinator loads again",
            metadata: ["partition": "\(index)", "error": "\(code.name)", "cause": "\(cause)"])
        handle(.appendFailed(token, code))
        discard()
        phase = .idle
        resumeLater()
    }

    private func discard() {
        incarnation += 1
        for timer in timers.values { timer.cancel() }
        timers = [:]
        expiration?.cancel()
        expiration = nil
        core = Self.makeCore(key, loop)
    }

    func configurationChanged() {
        handle(.reconfigured(Self.configuration(loop)))
    }

    /// Answers everybody who waits; the broker stops or the partition goes.
    func resign() {
        if case .loading(let queue) = phase {
            for (id, request) in queue {
                answer(id, TransactionCoordinatorShard.refusal(request, .notCoordinator))
            }
        }
        handle(.resigned)
        discard()
        retry?.cancel()
        retry = nil
        phase = .resigned
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
                    for record in records { self.core.replay(record) }
                    // The log may have been closed, opened again or compacted meanwhile.
                    self.whenOpen { log in self.load(log, from: region.nextOffset, end: end) }
                case .failure(let error):
                    self.loadFailed("\(error)")
                }
            }
        }
    }

    private static func records(in region: LogRegion<AnyDisk>) throws -> [TransactionRecord] {
        var rest = ByteBuffer()
        _ = try region.read(into: &rest, nonBlocking: false)
        var records: [TransactionRecord] = []
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else {
                throw MetadataLogError(description: "a batch of the transaction topic is cut short")
            }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            guard !header.isControl else { continue }
            var iterator = try RecordIterator(batch)
            while let view = try iterator.next() {
                guard let key = view.key, let record = try TransactionRecord.decode(key: key, value: view.value)
                else { continue }
                records.append(record)
            }
        }
        return records
    }

    private func loaded() {
        guard case .loading(let queue) = phase else { return }
        phase = .active
        handle(.loaded)
        expiration = loop.eventLoop.scheduleRepeatedTask(
            initialDelay: Self.expirationInterval, delay: Self.expirationInterval
        ) { _ in
            if case .active = self.phase { self.handle(.expirationDue) }
        }
        loop.logger.debug(
            "transaction coordinator loaded",
            metadata: ["partition": "\(index)", "transactional.ids": "\(core.transactionalIDCount)"])
        for (id, request) in queue { handle(.requested(id, request)) }
    }

    private func loadFailed(_ cause: String) {
        loop.logger.error(
            "transaction coordinator cannot be loaded",
            metadata: ["partition": "\(index)", "cause": "\(cause)"])
        var waiting: [(RequestID, TransactionRequest)] = []
        if case .loading(let queue) = phase { waiting = queue }
        discard()
        phase = .failed(until: loop.eventLoop.now + Self.retryDelay)
        resumeLater()
        for (id, request) in waiting {
            answer(id, TransactionCoordinatorShard.refusal(request, .coordinatorNotAvailable))
        }
    }
}

extension TransactionConfiguration {
    init(_ image: MetadataImage) {
        self.init(
            maxTimeoutMilliseconds: image.brokerConfiguration.transactionMaxTimeoutMilliseconds,
            expirationMilliseconds: image.brokerConfiguration.transactionalIDExpirationMilliseconds,
            highestProtocol: image.featureLevel(Features.transactionVersion) >= 2 ? .second : .first)
    }
}
