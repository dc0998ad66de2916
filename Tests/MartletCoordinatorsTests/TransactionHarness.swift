import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

/// The one way tests drive a transaction shard: keeps its log, its timers, its clock, the markers it ordered and
/// what it answered.
final class TransactionHarness {
    struct Order: Equatable {
        var transactionalID: String
        var marker: TransactionMarker
        var partitions: [TopicPartition]
    }

    private var shard: TransactionCoordinatorShard
    let configuration: TransactionConfiguration
    private(set) var log: [TransactionRecord] = []
    private(set) var timers: [TransactionTimer: Instant] = [:]
    private(set) var responses: [RequestID: TransactionResponse] = [:]
    private(set) var reports: [TransactionReport] = []
    private(set) var inFlight: [(records: [TransactionRecord], token: AppendToken)] = []
    /// Markers ordered and not reported yet.
    private(set) var orders: [Order] = []
    /// Every marker that was reported written, in order.
    private(set) var written: [Order] = []
    /// Ids asked for and not given yet.
    private(set) var wantedIDs: [RequestID] = []
    var commitsAtOnce = true
    var writesMarkersAtOnce = true
    var allocatesAtOnce = true
    private(set) var milliseconds: Int64
    private var nextRequest: UInt64 = 1
    private(set) var nextProducerID: Int64
    private var isBusy = false

    static let epoch: Int64 = 1_700_000_000_000

    init(
        _ configuration: TransactionConfiguration = TransactionConfiguration(), log: [TransactionRecord] = [],
        milliseconds: Int64 = 0, nextProducerID: Int64 = 1_000, coordinatorEpoch: Int32 = 7
    ) {
        self.configuration = configuration
        self.milliseconds = milliseconds
        self.nextProducerID = nextProducerID
        shard = TransactionCoordinatorShard(configuration: configuration, coordinatorEpoch: coordinatorEpoch)
        for record in log { shard.replay(record) }
        self.log = log
    }

    func load() -> TransactionHarness {
        handle(.loaded)
        return self
    }

    var moment: Moment {
        Moment(
            instant: Instant(nanoseconds: milliseconds * 1_000_000),
            timestamp: Timestamp(milliseconds: Self.epoch + milliseconds))
    }

    func handle(_ event: TransactionCoordinatorShard.Event) {
        var effects: [TransactionEffect] = []
        shard.handle(event, now: moment, into: &effects)
        for effect in effects {
            switch effect {
            case .respond(let id, let response):
                precondition(responses[id] == nil, "\(id) is answered twice")
                responses[id] = response
            case .append(let records, let token):
                precondition(inFlight.last.map { $0.token < token } ?? true, "tokens rise")
                inFlight.append((records, token))
            case .allocateProducerID(let id): wantedIDs.append(id)
            case .writeMarkers(let id, let marker, let partitions):
                orders.append(Order(transactionalID: id, marker: marker, partitions: partitions))
            case .schedule(let timer, let instant): timers[timer] = instant
            case .cancel(let timer): timers[timer] = nil
            case .report(let report): reports.append(report)
            }
        }
        settle()
    }

    private func settle() {
        guard !isBusy else { return }
        isBusy = true
        while true {
            if commitsAtOnce, !inFlight.isEmpty {
                commitNext()
            } else if allocatesAtOnce, !wantedIDs.isEmpty {
                allocateNext()
            } else if writesMarkersAtOnce, !orders.isEmpty {
                writeNextMarkers()
            } else {
                break
            }
        }
        isBusy = false
    }

    func commitNext() {
        let next = inFlight.removeFirst()
        // Through the bytes, as in the log.
        for record in next.records {
            let (key, value) = try! record.encoded()
            log.append(try! TransactionRecord.decode(key: key, value: value)!)
        }
        handle(.committed(next.token))
    }

    func failNext(_ code: ErrorCode) {
        let next = inFlight.removeFirst()
        handle(.appendFailed(next.token, code))
    }

    func allocateNext() {
        let id = wantedIDs.removeFirst()
        nextProducerID += 1
        handle(.producerIDAllocated(id, nextProducerID - 1))
    }

    func writeNextMarkers(_ outcome: (TopicPartition) -> ErrorCode = { _ in .none }) {
        let order = orders.removeFirst()
        let outcomes = order.partitions.map { PartitionOutcome(partition: $0, error: outcome($0)) }
        var done = order
        done.partitions = outcomes.filter { $0.error == .none }.map(\.partition)
        written.append(done)
        handle(.markersWritten(transactionalID: order.transactionalID, order.marker.producer, outcomes))
    }

    func advance(_ duration: Int64) {
        let end = milliseconds + duration
        while let (timer, instant) = timers.min(by: {
            $0.value == $1.value ? "\($0.key)" < "\($1.key)" : $0.value < $1.value
        }),
            instant.nanoseconds / 1_000_000 <= end
        {
            timers[timer] = nil
            milliseconds = max(milliseconds, instant.nanoseconds / 1_000_000)
            handle(.timerFired(timer))
        }
        milliseconds = end
    }

    @discardableResult
    func send(_ request: TransactionRequest) -> RequestID {
        let id = RequestID(nextRequest)
        nextRequest += 1
        handle(.requested(id, request))
        return id
    }

    func response(to id: RequestID) -> TransactionResponse? { responses[id] }
    var unansweredCount: Int { Int(nextRequest) - 1 - responses.count }
    func durableState() -> [String: TransactionState] { shard.durableState() }
    func state(_ id: String = "t") -> TransactionState? { shard.state(of: id) }
    func phase(_ id: String = "t") -> TransactionPhase? { shard.state(of: id)?.phase }

    /// A new coordinator that has loaded this one's log; nothing else survives.
    ///
    /// - Parameter isHeld: appends, markers and ids wait for the test.
    func successor(isHeld: Bool = false) -> TransactionHarness {
        let next = TransactionHarness(
            configuration, log: log, milliseconds: milliseconds, nextProducerID: nextProducerID, coordinatorEpoch: 8)
        if isHeld { next.hold() }
        return next.load()
    }

    func hold() {
        commitsAtOnce = false
        writesMarkersAtOnce = false
        allocatesAtOnce = false
    }

    // MARK: Requests in short form

    func initialize(
        _ id: String = "t", timeout: Int32 = 60_000, expected: ProducerIdentity? = nil
    ) -> (producer: ProducerIdentity?, error: ErrorCode)? {
        let request = send(.initialize(transactionalID: id, timeoutMilliseconds: timeout, expected: expected))
        guard case .initialized(let producer, let error)? = responses[request] else { return nil }
        return (producer, error)
    }

    func add(
        _ producer: ProducerIdentity, _ partitions: [TopicPartition], id: String = "t",
        under rules: TransactionProtocol = .second
    ) -> ErrorCode? {
        added(
            send(.addPartitions(transactionalID: id, producer: producer, partitions: partitions, under: rules)))
    }

    func added(_ request: RequestID) -> ErrorCode? {
        guard case .partitions(let outcomes)? = responses[request] else { return nil }
        return outcomes.first?.error
    }

    func verify(_ producer: ProducerIdentity, _ partitions: [TopicPartition], id: String = "t") -> [ErrorCode]? {
        let request = send(.verifyPartitions(transactionalID: id, producer: producer, partitions: partitions))
        guard case .partitions(let outcomes)? = responses[request] else { return nil }
        return outcomes.map(\.error)
    }

    func end(
        _ producer: ProducerIdentity, commits: Bool, id: String = "t", under rules: TransactionProtocol = .second
    ) -> (producer: ProducerIdentity?, error: ErrorCode)? {
        ended(send(.end(transactionalID: id, producer: producer, commits: commits, under: rules)))
    }

    func ended(_ request: RequestID) -> (producer: ProducerIdentity?, error: ErrorCode)? {
        guard case .ended(let producer, let error)? = responses[request] else { return nil }
        return (producer, error)
    }
}
