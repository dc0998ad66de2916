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
/// Loads by replay when first used. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone.
final class GroupShardShell: ShardOwner, @unchecked Sendable {
    static let title = "group coordinator"

    private unowned let loop: BrokerLoop
    private var core: GroupCoordinatorShard
    private(set) lazy var log = ShardLog(key, loop, owner: self)
    private let key: PartitionKey
    private var replies = WaitingReplies<GroupResponse>()
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
    /// What of this shard is in the broker's total.
    private var toldMemberByteCount = 0
    /// Version of the catalog that the core has.
    private var toldCatalogVersion: Int64?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
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
        log.submit(replies.add(reply), request)
    }

    func serve(_ id: RequestID, _ request: GroupRequest) {
        if request.concernsTopics || core.followsTopics { tellTopics() }
        guard request.isProducers, let partition = loop.partition(key), !partition.isOpen else {
            return decide(id, request)
        }
        // A log that nobody used for long was closed; only it knows what a late request is.
        let incarnation = log.incarnation
        partition.whenOpen { _ in
            guard incarnation == self.log.incarnation, self.log.isActive else {
                return self.refuse(id, request, .coordinatorLoadInProgress)
            }
            self.decide(id, request)
        }
    }

    func refuse(_ id: RequestID, _ request: GroupRequest, _ code: ErrorCode) {
        answer(id, GroupCoordinatorShard.refusal(request, code))
    }

    private func decide(_ id: RequestID, _ request: GroupRequest) {
        if let code = fence(request) {
            refuse(id, request, code)
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
        loop.askCoordinator(commit.question(partition)) { response in
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

    private func answer(_ id: RequestID, _ response: GroupResponse) { replies.take(id)?(response) }

    // MARK: Events

    private var moment: Moment { Moment(instant: loop.monotonicTime, timestamp: loop.wallTime) }

    private func handle(_ event: GroupCoordinatorShard.Event) {
        var effects: [CoordinatorEffect] = []
        core.memberBytesElsewhere = loop.services.memberBytes.value - toldMemberByteCount
        core.handle(event, now: moment, into: &effects)
        tellMemberBytes()
        for effect in effects { run(effect) }
    }

    private func tellMemberBytes() {
        let byteCount = core.memberByteCount
        loop.services.memberBytes.change(from: toldMemberByteCount, to: byteCount)
        toldMemberByteCount = byteCount
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
            let incarnation = log.incarnation
            ShareStateOrders.run(order, on: loop) { results in
                guard incarnation == self.log.incarnation else { return }
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

    private func append(_ marker: TransactionMarker, _ token: AppendToken) {
        let end = MarkerAppend(marker)
        for admission in admissions[marker.producer.id] ?? [] where end.ends(epoch: admission.epoch) {
            admission.isValid = false
        }
        log.append(token, end) { _ in self.handle(.committed(token)) }
    }

    private func append(_ records: [CoordinatorRecord], producer: ProducerIdentity?, _ token: AppendToken) {
        let now = loop.wallTime
        var options = RecordBatchBuilder.Options()
        if let producer {
            // The broker writes for the producer: there is no sequence, which Kafka writes as 0.
            options = RecordBatchBuilder.Options(
                producerID: producer.id, producerEpoch: producer.epoch, baseSequence: 0, isTransactional: true)
        }
        log.append(
            token, checksSequence: producer == nil, batch: { try RecordBatchBuilder.batch(records, now, options) }
        ) { _ in self.handle(.committed(token)) }
    }

    func appendFailed(_ token: AppendToken, _ code: ErrorCode) { handle(.appendFailed(token, code)) }

    func discardCore() {
        for timer in timers.values { timer.cancel() }
        timers = [:]
        expiration?.cancel()
        expiration = nil
        toldCatalogVersion = nil
        core = GroupCoordinatorShard(configuration: Self.configuration(loop))
        tellMemberBytes()
    }

    /// Topics that were deleted: their offsets go.
    func topicsDeleted(_ names: [String]) {
        if log.isActive { handle(.topicsDeleted(names)) }
    }

    func configurationChanged() {
        handle(.reconfigured(Self.configuration(loop)))
    }

    /// Answers everybody who waits; the broker stops or the partition goes.
    func resign() {
        handle(.resigned)
        log.resign()
    }

    // MARK: Loading

    enum Entry: Sendable {
        case record(CoordinatorRecord)
        case transactional(CoordinatorRecord, producerID: Int64)
        case end(producerID: Int64, commits: Bool)
    }

    static func decode(_ batch: ByteBuffer, _ header: RecordBatchHeader, into entries: inout [Entry]) throws {
        guard !header.isControl else {
            if let marker = try EndTransactionMarker(batch: batch) {
                entries.append(.end(producerID: header.producerID, commits: marker.commits))
            }
            return
        }
        var last: CoordinatorRecord?
        var iterator = try RecordIterator(batch)
        while let view = try iterator.next() {
            guard let key = view.key,
                let record = try CoordinatorRecord.decode(key: key, value: view.value, after: last)
            else { continue }
            last = record
            entries.append(
                header.isTransactional ? .transactional(record, producerID: header.producerID) : .record(record))
        }
    }

    func replay(_ entries: [Entry]) { Self.replay(entries, into: &core, now: loop.wallTime) }

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

    func becameActive() {
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
                "partition": "\(key.partition)", "groups": "\(core.groupCount)", "offsets": "\(core.offsetCount)",
            ])
    }

    private func expire() {
        guard log.isActive else { return }
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
