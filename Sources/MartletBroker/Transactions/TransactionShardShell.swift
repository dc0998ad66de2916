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
/// and ends what was left open too long. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone.
final class TransactionShardShell: ShardOwner, @unchecked Sendable {
    static let title = "transaction coordinator"
    /// What was decided must be carried out and open transactions have clocks, whether or not somebody asks.
    static let goesOnByItself = true
    /// How often transactional ids are looked at that may be forgotten (Kafka's default of the same task).
    private static let expirationInterval: TimeAmount = .hours(1)

    private unowned let loop: BrokerLoop
    private var core: TransactionCoordinatorShard
    private(set) lazy var log = ShardLog(key, loop, owner: self)
    private let key: PartitionKey
    private var replies = WaitingReplies<TransactionResponse>()
    private var timers: [TransactionTimer: Scheduled<Void>] = [:]
    private var expiration: RepeatedTask?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
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
        log.submit(replies.add(reply), request)
    }

    func serve(_ id: RequestID, _ request: TransactionRequest) { handle(.requested(id, request)) }

    func refuse(_ id: RequestID, _ request: TransactionRequest, _ code: ErrorCode) {
        answer(id, TransactionCoordinatorShard.refusal(request, code))
    }

    private func answer(_ id: RequestID, _ response: TransactionResponse) { replies.take(id)?(response) }

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
            let now = loop.wallTime
            log.append(token, waitsForFlush: true, batch: { try RecordBatchBuilder.batch(records, now) }) { _ in
                self.handle(.committed(token))
            }
        case .allocateProducerID(let id):
            allocate(id)
        case .writeMarkers(let transactionalID, let marker, let partitions):
            let done = log.whileItLasts { outcomes in
                self.handle(.markersWritten(transactionalID: transactionalID, marker.producer, outcomes))
            }
            MarkerWriter.write(marker, to: partitions, from: loop, done: done)
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
            note(report)
        }
    }

    private func note(_ report: TransactionReport) {
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
        let services = loop.services
        let allocated = services.producerIDs.next(services: services, on: loop.eventLoop)
        allocated.assumeIsolated().whenComplete(
            log.whileItLasts { result in
                switch result {
                case .success(let producerID): self.handle(.producerIDAllocated(id, producerID))
                case .failure(let error):
                    self.loop.logger.error("no producer id", metadata: ["cause": "\(error)"])
                    self.handle(.producerIDUnavailable(id))
                }
            })
    }

    func appendFailed(_ token: AppendToken, _ code: ErrorCode) { handle(.appendFailed(token, code)) }

    func discardCore() {
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
        handle(.resigned)
        log.resign()
    }

    // MARK: Loading

    static func decode(
        _ batch: ByteBuffer, _ header: RecordBatchHeader, into entries: inout [TransactionRecord]
    ) throws {
        guard !header.isControl else { return }
        var iterator = try RecordIterator(batch)
        while let view = try iterator.next() {
            guard let key = view.key, let record = try TransactionRecord.decode(key: key, value: view.value)
            else { continue }
            entries.append(record)
        }
    }

    func replay(_ entries: [TransactionRecord]) {
        for record in entries { core.replay(record) }
    }

    func becameActive() {
        handle(.loaded)
        expiration = loop.eventLoop.scheduleRepeatedTask(
            initialDelay: Self.expirationInterval, delay: Self.expirationInterval
        ) { _ in
            if self.log.isActive { self.handle(.expirationDue) }
        }
        loop.logger.debug(
            "transaction coordinator loaded",
            metadata: ["partition": "\(key.partition)", "transactional.ids": "\(core.transactionalIDCount)"])
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
