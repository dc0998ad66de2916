import MartletLogModel

/// Which rules of transactions the cluster follows (feature `transaction.version`).
enum TransactionRules: Sendable, Hashable {
    /// Partitions and groups are added before use; the epoch stays (KIP-98).
    case first
    /// Partitions and groups are added by their first use; the epoch rises with each end (KIP-890).
    case second

    /// Level of `transaction.version` from which the second rules hold.
    static let secondLevel: Int16 = 2
}

/// What a transactional producer may do next. A pure value: no request, no clock, no waiting.
///
/// ```
/// unprepared ──▶ preparing ──▶ ready ──▶ open ──▶ committing ──▶ ready, or unprepared
///                                         └───▶ aborting ◀──┘
/// ```
/// After an end the producer is `unprepared` where a new epoch is needed or the outcome is not known,
/// and from everywhere to `finished`, for good.
///
/// Invariants:
/// - Nothing is sent to a partition under the first rules before the coordinator has added it.
/// - Once a transaction is lost nothing more of it is sent, and it can only be aborted.
/// - An identity under which a numbered batch was given up is not used again without a higher epoch: the broker may
///   or may not have the number (KIP-360). The second rules raise it with each end anyway.
/// - A producer whose last end has an unknown outcome asks for its identity anew, naming the one it had; that
///   completes what was decided, aborts what was not, and fences nobody but ourselves.
struct TransactionState: Sendable {
    enum Phase: Sendable, Equatable {
        /// Without an identity, or with one that may not be used before InitProducerId has been asked again.
        case unprepared
        case preparing
        case ready
        /// Records and offsets are taken.
        case open
        /// Nothing more is taken; EndTxn is to say commit.
        case committing
        /// What is queued is dropped; EndTxn is to say abort.
        case aborting
        case finished
    }

    private(set) var phase = Phase.unprepared
    private(set) var identity = ProducerIdentity.none
    private(set) var rules = TransactionRules.first
    /// Counts the transactions; records carry it, so that late ones cannot slip into the next transaction.
    private(set) var number = 0
    /// Why the transaction can only be aborted.
    private(set) var loss: ClientError?
    /// Why the producer is finished.
    private(set) var end: ClientError?
    /// Whether a broker may know of the transaction; if not, its end needs no request.
    private(set) var hasStarted = false
    private(set) var needsNewEpoch = false

    // The first rules: what the coordinator knows of, is being told, and is to be told. Bounded by the partitions
    // and groups that one transaction touches.
    private var added: Set<TopicPartition> = []
    private var adding: Set<TopicPartition> = []
    private var wanted: Set<TopicPartition> = []
    private var groups: Set<String> = []

    // MARK: Identity

    /// - Returns: Whether InitProducerId must be asked now, naming ``identity``. If not, the producer is ready or
    ///   the answer is on its way.
    mutating func prepare() throws(ClientError) -> Bool {
        switch phase {
        case .unprepared:
            phase = .preparing
            return true
        case .preparing, .ready:
            return false
        case .open, .committing, .aborting:
            throw Self.alreadyOpen
        case .finished:
            throw finalError
        }
    }

    mutating func identified(_ identity: ProducerIdentity, rules: TransactionRules) {
        guard phase == .preparing else { return }
        phase = .ready
        self.identity = identity
        self.rules = rules
        needsNewEpoch = false
    }

    /// InitProducerId failed; a later attempt may succeed.
    mutating func unidentified() {
        if phase == .preparing { phase = .unprepared }
    }

    // MARK: Begin and failure

    /// - Parameter rules: those the cluster follows now; they hold for the whole transaction.
    mutating func begin(rules: TransactionRules?) throws(ClientError) -> Int {
        switch phase {
        case .ready: break
        case .unprepared, .preparing:
            throw ClientError(.invalidState, "the producer is not prepared; call prepareTransactions first")
        case .open, .committing, .aborting: throw Self.alreadyOpen
        case .finished: throw finalError
        }
        if let rules { self.rules = rules }
        phase = .open
        number += 1
        loss = nil
        hasStarted = false
        added = []
        adding = []
        wanted = []
        groups = []
        return number
    }

    /// A request failed in a way that ends the transaction, or the producer.
    mutating func failed(_ error: ClientError, _ verdict: TransactionVerdict) {
        switch verdict {
        case .fatal:
            guard phase != .finished else { return }
            phase = .finished
            end = error
            loss = error
        case .abortable, .done, .retry, .retryElsewhere:
            switch phase {
            case .open, .committing: if loss == nil { loss = error }
            case .unprepared, .preparing, .ready, .aborting, .finished: break
            }
        }
    }

    /// A batch was given up. `isNumbered`: a broker may have it, or wait for its number.
    mutating func gaveUpBatch(_ error: ClientError, _ verdict: TransactionVerdict, isNumbered: Bool) {
        if isNumbered { needsNewEpoch = true }
        failed(error, verdict)
    }

    // MARK: Partitions and groups

    /// Whether a batch of a partition may be sent now. If not, the partition may be among ``takeWanted()``.
    mutating func maySend(to partition: TopicPartition) -> Bool {
        switch phase {
        case .open, .committing: break
        case .unprepared, .preparing, .ready, .aborting, .finished: return false
        }
        guard loss == nil else { return false }
        switch rules {
        case .second: return true
        case .first:
            if added.contains(partition) { return true }
            if !adding.contains(partition) { wanted.insert(partition) }
            return false
        }
    }

    /// A request that adds to the transaction is on its way.
    mutating func started() { hasStarted = true }

    /// Partitions to be added by one request, once none is on its way; sorted.
    mutating func takeWanted() -> [TopicPartition] {
        guard adding.isEmpty, !wanted.isEmpty else { return [] }
        adding = wanted
        wanted = []
        hasStarted = true
        return adding.sorted()
    }

    /// All partitions on their way are added, or none is.
    mutating func finishAdding(_ succeeded: Bool) {
        if succeeded { added.formUnion(adding) } else { wanted.formUnion(adding) }
        adding = []
    }

    /// Whether a group must be added before its offsets are committed.
    func mustAdd(group: String) -> Bool { rules == .first && !groups.contains(group) }

    mutating func added(group: String) { groups.insert(group) }

    /// Whether a part of transaction `number` may still be sent.
    func isOpen(_ number: Int) -> Bool { phase == .open && number == self.number && loss == nil }

    // MARK: End

    /// Nothing more is taken. Throws if the transaction can only be aborted.
    mutating func beginCommit(_ number: Int) throws(ClientError) {
        guard phase != .finished else { throw finalError }
        guard phase == .open, number == self.number else { throw Self.notOpen }
        if let loss { throw loss }
        phase = .committing
    }

    mutating func beginAbort(_ number: Int) throws(ClientError) {
        switch phase {
        case .open, .committing:
            guard number == self.number else { throw Self.notOpen }
            phase = .aborting
        case .finished: throw finalError
        case .unprepared, .preparing, .ready, .aborting: throw Self.notOpen
        }
    }

    /// EndTxn was carried out, or was not needed. `next`: the identity that the coordinator gave for what follows.
    mutating func ended(next: ProducerIdentity?) {
        switch phase {
        case .committing, .aborting: break
        case .unprepared, .preparing, .ready, .open, .finished: return
        }
        if let next, !next.isNone {
            identity = next
            needsNewEpoch = false
        }
        phase = needsNewEpoch ? .unprepared : .ready
    }

    /// No answer to EndTxn in time: the coordinator may have decided either way, or not at all.
    mutating func lostEnd() {
        switch phase {
        case .committing, .aborting: phase = .unprepared
        case .unprepared, .preparing, .ready, .open, .finished: break
        }
    }

    // MARK: Errors

    private var finalError: ClientError {
        end ?? ClientError(.invalidState, "the transactional producer is finished; make a new one")
    }

    private static let alreadyOpen = ClientError(
        .invalidState,
        "a transaction of this producer is open; end it first, or use a second producer with another transactional id")

    static let notOpen = ClientError(
        .invalidState,
        "the transaction is over; records and offsets are taken only inside the closure of withTransaction")
}
