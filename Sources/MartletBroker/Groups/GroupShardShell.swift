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
    /// What the record of an offset usually takes at least.
    private static let commonRecordByteCount = 64
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
    /// By producer id: offsets that wait for the coordinator of their transaction.
    private var admissions: [Int64: [Admission]] = [:]

    // SAFETY: touched on the shard's loop alone; replies of the coordinator come back to it.
    private final class Admission: @unchecked Sendable {
        let epoch: Int16
        /// False once the marker of its transaction has come: the answer on its way is about one that is over.
        var isValid = true

        init(epoch: Int16) { self.epoch = epoch }
    }
    /// Version of the catalog that the core has.
    private var toldCatalogVersion: Int64?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
        self.index = key.partition
        self.loop = loop
        core = GroupCoordinatorShard(configuration: Self.configuration(loop))
    }

    private static func configuration(_ loop: BrokerLoop) -> GroupConfiguration {
        var configuration = GroupConfiguration(loop.image)
        configuration.suspended = loop.services.suspended
        return configuration
    }

    // MARK: Requests

    /// `reply` runs on this loop, exactly once.
    func submit(_ request: GroupRequest, reply: @escaping (GroupResponse) -> Void) {
        nextRequest += 1
        let id = RequestID(nextRequest)
        replies[id] = reply
        switch phase {
        case .active:
            if request.concernsTopics || core.followsTopics { tellTopics() }
            guard request.isProducers, let partition = loop.partition(key), !partition.isOpen else {
                return serve(id, request)
            }
            // A log that nobody used for long was closed; only it knows what a late request is.
            let incarnation = self.incarnation
            partition.whenOpen { _ in
                guard incarnation == self.incarnation, case .active = self.phase else {
                    return self.answer(id, GroupCoordinatorShard.refusal(request, .coordinatorLoadInProgress))
                }
                self.serve(id, request)
            }
        case .loading(var queue):
            guard queue.count < Self.loadingQueueLimit else {
                answer(id, GroupCoordinatorShard.refusal(request, .coordinatorLoadInProgress))
                return
            }
            queue.append((id, request))
            phase = .loading(queue)
        case .failed(let until) where loop.eventLoop.now < until:
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

    private func serve(_ id: RequestID, _ request: GroupRequest) {
        if let code = fence(request) {
            answer(id, GroupCoordinatorShard.refusal(request, code))
        } else {
            handle(.requested(id, request))
        }
    }

    /// Offsets of a transaction. The first ones wait until the transaction's coordinator has said that the partition
    /// is part of it: without that nobody would ever end it here. `reply` runs on this loop, exactly once.
    func submit(
        _ commit: TransactionalCommit, named partition: TopicPartition,
        reply: @escaping @Sendable (GroupResponse) -> Void
    ) {
        let producer = commit.producer
        if case .success(let log)? = loop.existingPartition(key)?.openLog,
            let entry = log.producers.entries[producer.id],
            producer.epoch < entry.epoch || (producer.epoch == entry.epoch && entry.transactionFirstOffset != nil)
        {
            return submit(commit.groupRequest, reply: reply)
        }
        let admission = Admission(epoch: producer.epoch)
        admissions[producer.id, default: []].append(admission)
        loop.coordinate(commit.question(partition)) { response in
            guard case .partitions(let outcomes) = response else { return response.mismatch() }
            self.admissions[producer.id]?.removeAll { $0 === admission }
            if self.admissions[producer.id]?.isEmpty == true { self.admissions[producer.id] = nil }
            let code = outcomes.first?.error ?? .unknownServerError
            if code != .none {
                reply(GroupCoordinatorShard.refusal(commit.groupRequest, commit.code(code)))
            } else if !admission.isValid {
                // Its transaction ended before the offsets arrived.
                reply(GroupCoordinatorShard.refusal(commit.groupRequest, .invalidTxnState))
            } else {
                self.submit(commit.groupRequest, reply: reply)
            }
        }
    }

    /// Hands over the topics if they have changed since they were told last.
    private func tellTopics() {
        let catalog = loop.groups.catalog()
        guard catalog.version != toldCatalogVersion else { return }
        toldCatalogVersion = catalog.version
        handle(.topicsChanged(catalog))
    }

    private func answer(_ id: RequestID, _ response: GroupResponse) {
        replies.removeValue(forKey: id)?(response)
    }

    // MARK: Events

    private var moment: Moment { Moment(instant: loop.monotonicTime, timestamp: loop.wallTime) }

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
            append(records, producer: nil, token)
        case .appendTransactional(let records, let producer, let token):
            append(records, producer: producer, token)
        case .appendMarker(let marker, let token):
            append(marker, token)
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
        case .orderShareState(let order, let id):
            let incarnation = self.incarnation
            ShareStateOrders.run(order, on: loop) { results in
                guard incarnation == self.incarnation else { return }
                self.handle(.shareStateOrdered(id, results))
            }
        }
    }

    /// What the log would refuse of a producer is refused before the core decides on it: a zombie's offsets, or its
    /// coordinator's marker, must not cost the shard its state.
    private func fence(_ request: GroupRequest) -> ErrorCode? {
        guard case .success(let log)? = loop.existingPartition(key)?.openLog else { return nil }
        do throws(AppendError) {
            switch request {
            case .txnOffsetCommit(_, let producer):
                var header = RecordBatchHeader()
                header.producerID = producer.id
                header.producerEpoch = producer.epoch
                header.attributes = RecordBatchHeader.Attribute.transactional
                _ = try log.producers.check(header, checksSequence: false)
            case .endTransaction(let marker):
                try log.producers.check(MarkerAppend(marker))
            case _:
                return nil
            }
            return nil
        } catch {
            return error.errorCode
        }
    }

    /// Reports the outcome of an append to the core that ordered it.
    private func outcome(of token: AppendToken) -> (ProduceResult) -> Void {
        let incarnation = self.incarnation
        inFlightAppendCount += 1
        return { result in
            self.inFlightAppendCount -= 1
            guard incarnation == self.incarnation else { return }
            switch result {
            case .appended: self.handle(.committed(token))
            case .refused(let refusal): self.fail(token, refusal.error, refusal.message ?? "")
            }
        }
    }

    private func append(_ marker: TransactionMarker, _ token: AppendToken) {
        let done = outcome(of: token)
        for admission in admissions[marker.producer.id] ?? [] where MarkerAppend(marker).ends(epoch: admission.epoch) {
            admission.isValid = false
        }
        guard let partition = loop.partition(key) else {
            loop.eventLoop.assumeIsolated().execute {
                done(ProduceResult(error: .notLeaderOrFollower, message: "the partition is not here"))
            }
            return
        }
        partition.whenOpen { partition in
            partition.appendMarker(MarkerAppend(marker)) { result in
                self.loop.eventLoop.assumeIsolated().execute { done(result) }
            }
        }
    }

    private func append(_ records: [CoordinatorRecord], producer: ProducerIdentity?, _ token: AppendToken) {
        let done = outcome(of: token)
        let batch: ByteBuffer
        do {
            batch = try Self.batch(records, producer: producer, now: loop.wallTime)
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
            partition.appendInternal(batch, checksSequence: producer == nil) { result in
                self.loop.eventLoop.assumeIsolated().execute { done(result) }
            }
        }
    }

    private static func batch(
        _ records: [CoordinatorRecord], producer: ProducerIdentity?, now: Timestamp
    ) throws -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 128 + records.count * 128)
        for record in records {
            let (key, value) = try record.encoded()
            try builder.append(key: key, value: value, timestamp: now.rawValue)
        }
        guard let producer else { return try builder.build() }
        // The broker writes for the producer: there is no sequence, which Kafka writes as 0.
        return try builder.build(
            RecordBatchBuilder.Options(
                producerID: producer.id, producerEpoch: producer.epoch, baseSequence: 0, isTransactional: true))
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
        toldCatalogVersion = nil
        core = GroupCoordinatorShard(configuration: Self.configuration(loop))
    }

    /// Topics that were deleted: their offsets go.
    func topicsDeleted(_ names: [String]) {
        if case .active = phase { handle(.topicsDeleted(names)) }
    }

    func configurationChanged() {
        handle(.reconfigured(Self.configuration(loop)))
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
        whenOpen { log in self.load(log, from: log.logStartOffset, end: log.logEndOffset, after: []) }
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

    /// Reads and decodes the log from `next` on, on the work pool, while it replays `entries`, which come before.
    private func load(_ log: PartitionLog<AnyDisk>, from next: Offset, end: Offset, after entries: [Entry]) {
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
        Self.replay(entries, into: &core, now: loop.wallTime)
        if region.byteCount == 0 { loaded() }
    }

    /// What a batch of the log means to the core.
    private enum Entry: Sendable {
        case record(CoordinatorRecord)
        case transactional(CoordinatorRecord, producerID: Int64)
        case end(producerID: Int64, commits: Bool)
    }

    private static func replay(_ entries: [Entry], into core: inout GroupCoordinatorShard, now: Timestamp) {
        for entry in entries {
            switch entry {
            case .record(let record): core.replay(record, now: now)
            case .transactional(let record, let producerID): core.replay(record, producerID: producerID, now: now)
            case .end(let producerID, let commits):
                core.replayTransactionEnd(producerID: producerID, commits: commits, now: now)
            }
        }
    }

    private static func entries(in region: LogRegion<AnyDisk>) throws -> [Entry] {
        var rest = ByteBuffer()
        _ = try region.read(into: &rest, nonBlocking: false)
        var records: [Entry] = []
        records.reserveCapacity(region.byteCount / commonRecordByteCount)
        var last: CoordinatorRecord?
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else {
                throw MetadataLogError(description: "a batch of the offsets topic is cut short")
            }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            if header.isControl {
                if let marker = try EndTransactionMarker(batch: batch) {
                    records.append(.end(producerID: header.producerID, commits: marker.commits))
                }
                continue
            }
            var iterator = try RecordIterator(batch)
            while let view = try iterator.next() {
                guard let key = view.key,
                    let record = try CoordinatorRecord.decode(key: key, value: view.value, after: last)
                else {
                    continue
                }
                last = record
                records.append(
                    header.isTransactional
                        ? .transactional(record, producerID: header.producerID) : .record(record))
            }
        }
        return records
    }

    private func loaded() {
        guard case .loading(let queue) = phase else { return }
        phase = .active
        tellTopics()
        handle(.loaded)
        let obsolete = core.obsoleteOffsets { loop.image.topicID(named: $0) }
        if !obsolete.isEmpty { handle(.offsetsAreObsolete(obsolete)) }
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
        for (id, request) in queue { serve(id, request) }
    }

    private func loadFailed(_ cause: String) {
        loop.logger.error(
            "group coordinator cannot be loaded", metadata: ["partition": "\(index)", "cause": "\(cause)"])
        var waiting: [(RequestID, GroupRequest)] = []
        if case .loading(let queue) = phase { waiting = queue }
        discard()
        phase = .failed(until: loop.eventLoop.now + Self.retryDelay)
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
    init(_ image: MetadataImage) {
        let broker = image.brokerConfiguration
        self.init(
            initialRebalanceDelayMilliseconds: broker.groupInitialRebalanceDelayMilliseconds,
            minSessionTimeoutMilliseconds: broker.groupMinSessionTimeoutMilliseconds,
            maxSessionTimeoutMilliseconds: broker.groupMaxSessionTimeoutMilliseconds,
            groupMaxSize: broker.groupMaxSize, offsetMetadataMaxBytes: broker.offsetMetadataMaxBytes,
            consumer: ConsumerGroupConfiguration(
                heartbeatIntervalMilliseconds: broker.groupConsumerHeartbeatIntervalMilliseconds,
                sessionTimeoutMilliseconds: broker.groupConsumerSessionTimeoutMilliseconds,
                maxSize: broker.groupConsumerMaxSize,
                assignors: broker.groupConsumerAssignors.compactMap(ServerAssignor.init(rawValue:)),
                migrationPolicy: .init(rawValue: broker.groupConsumerMigrationPolicy) ?? .bidirectional),
            share: ShareGroupConfiguration(image))
    }
}
