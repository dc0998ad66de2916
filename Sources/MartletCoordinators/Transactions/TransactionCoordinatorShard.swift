package import MartletLogModel

/// Coordinator of the transactional ids of one `__transaction_state` partition: a pure core, *decide → records →
/// replay*.
///
/// The shell owns the partition's log. It loads by `replay` of each record and then `handle(.loaded)`, which also
/// takes up again what was prepared and not finished. An append that fails, or a leadership that is lost, ends this
/// core: the shell throws it away and loads a new one, so that no state exists that the log does not have.
///
/// What is decided is replayed at once; what is answered, and every marker, waits until the append is committed.
///
/// Invariants:
/// - I15: a marker carries the id and epoch of the transaction it closes, and under the second protocol an epoch
///   above every record of it. The epoch rises with the decision, so nothing sent earlier passes as current.
/// - A decision is final: from a Prepare record on only the Complete record of the same outcome follows.
/// - A producer that somebody else replaces (InitProducerId without its identity) is two epochs behind; one whose
///   own transaction ended is one behind. So a retry of EndTxn is told from a zombie by the epoch alone, also after
///   a restart.
/// - The epoch `Int16.max` is never given to a client: it is what the last fence of an id needs (KIP-360).
///
/// Sources: KIP-98, KIP-360, KIP-588, KIP-664, KIP-890, KIP-994, KIP-1228. Where it is stricter than Kafka: an
/// InitProducerId with an outdated epoch never ends the running transaction of its successor.
///
/// It does not know topics, versions or connections, and it does not write markers.
package struct TransactionCoordinatorShard: ~Copyable {
    package enum Event: Sendable {
        /// Every record of the log has been replayed.
        case loaded
        case requested(RequestID, TransactionRequest)
        case committed(AppendToken)
        /// The append is lost. All that wait are answered; nothing but `resigned` may follow.
        case appendFailed(AppendToken, ErrorCode)
        case producerIDAllocated(RequestID, Int64)
        case producerIDUnavailable(RequestID)
        /// Outcome of `writeMarkers`, one for each of its partitions. A partition whose topic is gone counts as
        /// UNKNOWN_TOPIC_OR_PARTITION: there is nothing left to close.
        case markersWritten(transactionalID: String, ProducerIdentity, [PartitionOutcome])
        case timerFired(TransactionTimer)
        /// Time to look for transactional ids that nobody uses any more.
        case expirationDue
        case reconfigured(TransactionConfiguration)
        /// This broker no longer leads the partition, or stops.
        case resigned
    }

    private enum Phase: Equatable {
        case loading
        case active
        case closed(ErrorCode)
    }

    private enum Continuation {
        case respond(RequestID, TransactionResponse)
        /// The decision is durable: tell the partitions.
        case sendMarkers(String)
    }

    /// Markers of one decided transaction.
    private struct Markers {
        var outstanding: Set<TopicPartition>
        var retryMilliseconds = TransactionLimits.markerRetryMilliseconds.lowerBound
    }

    /// A request for the transaction after the one that is being completed.
    private struct Waiter {
        var id: RequestID
        var request: TransactionRequest
    }

    private var phase: Phase = .loading
    private(set) var configuration: TransactionConfiguration
    private let coordinatorEpoch: Int32
    private(set) var states: [String: TransactionState] = [:]
    private var nextToken: UInt64 = 1
    /// Appends on their way, with what waits for each.
    private var waiting: [AppendToken: [Continuation]] = [:]
    /// The last append that touched a transactional id, while it is on its way.
    private var lastAppends: [String: AppendToken] = [:]
    private var touched: [AppendToken: [String]] = [:]

    // Not durable; after a restart clients retry, and the clocks of open transactions start from their records.
    private var markers: [String: Markers] = [:]
    private var waiters: [String: [Waiter]] = [:]
    private var allocations: [RequestID: TransactionRequest] = [:]
    private var deadlines: [String: Instant] = [:]
    /// Epoch a producer had before its last InitProducerId, when it named itself: a repeat of that request is
    /// answered with what the first one gave (KIP-360).
    private var epochsBefore: [String: Int16] = [:]
    /// Transactional ids an expiration has still to look at, the next one last.
    private var expiration: [String]?

    /// - Parameter coordinatorEpoch: leader epoch of the partition.
    package init(configuration: TransactionConfiguration, coordinatorEpoch: Int32) {
        self.configuration = configuration
        self.coordinatorEpoch = coordinatorEpoch
    }

    // MARK: Replay

    /// The only writer of durable state, on the live path and when the log is loaded.
    package mutating func replay(_ record: TransactionRecord) {
        guard var state = record.state, state.phase != .dead else {
            states[record.transactionalID] = nil
            return
        }
        // Kafka's name for a step that it does not store either.
        if state.phase == .prepareEpochFence { state.phase = .ongoing }
        states[record.transactionalID] = state
    }

    // MARK: Events

    package mutating func handle(_ event: Event, now: Moment, into effects: inout [TransactionEffect]) {
        switch event {
        case .loaded:
            precondition(phase == .loading, "the shard is loaded twice")
            phase = .active
            for id in states.keys.sorted() { resume(id, now, &effects) }
        case .requested(let id, let request):
            switch phase {
            case .active: handle(id, request, producerID: nil, now, &effects)
            case .loading: effects.append(.respond(id, Self.refusal(request, .coordinatorLoadInProgress)))
            case .closed(let code): effects.append(.respond(id, Self.refusal(request, code)))
            }
        case .committed(let token):
            commit(token, now, &effects)
        case .appendFailed(_, let code):
            close(Self.coordinatorCode(code), &effects)
        case .producerIDAllocated(let id, let producerID):
            guard let request = allocations.removeValue(forKey: id) else { return }
            handle(id, request, producerID: producerID, now, &effects)
        case .producerIDUnavailable(let id):
            guard let request = allocations.removeValue(forKey: id) else { return }
            effects.append(.respond(id, Self.refusal(request, .coordinatorNotAvailable)))
        case .markersWritten(let id, let producer, let outcomes):
            if phase == .active { markersWritten(id, producer, outcomes, now, &effects) }
        case .timerFired(let timer):
            if phase == .active { fire(timer, now, &effects) }
        case .expirationDue:
            if phase == .active, expiration == nil {
                expiration = states.keys.sorted(by: >)
                continueExpiration(now, &effects)
            }
        case .reconfigured(let configuration):
            self.configuration = configuration
        case .resigned:
            close(.notCoordinator, &effects)
        }
    }

    /// Replays what was decided and orders the append.
    private mutating func append(
        _ records: [TransactionRecord], then continuations: [Continuation] = [],
        _ effects: inout [TransactionEffect]
    ) {
        let token = AppendToken(rawValue: nextToken)
        nextToken += 1
        for record in records {
            replay(record)
            lastAppends[record.transactionalID] = token
        }
        touched[token] = records.map(\.transactionalID)
        waiting[token] = continuations
        effects.append(.append(records, token))
    }

    private mutating func commit(
        _ token: AppendToken, _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        guard phase == .active, let continuations = waiting.removeValue(forKey: token) else { return }
        for id in touched.removeValue(forKey: token) ?? [] where lastAppends[id] == token {
            lastAppends[id] = nil
        }
        for continuation in continuations {
            switch continuation {
            case .respond(let id, let response): effects.append(.respond(id, response))
            case .sendMarkers(let id): sendMarkers(id, now, &effects)
            }
        }
    }

    /// Sends an answer once the appends of the transactional id so far are committed.
    private mutating func respond(
        _ id: RequestID, _ response: TransactionResponse, after transactionalID: String,
        _ effects: inout [TransactionEffect]
    ) {
        respond(id, response, after: lastAppends[transactionalID], &effects)
    }

    private mutating func respond(
        _ id: RequestID, _ response: TransactionResponse, after token: AppendToken?,
        _ effects: inout [TransactionEffect]
    ) {
        if let token {
            waiting[token]?.append(.respond(id, response))
        } else {
            effects.append(.respond(id, response))
        }
    }

    private mutating func close(_ code: ErrorCode, _ effects: inout [TransactionEffect]) {
        if case .closed = phase { return }
        phase = .closed(code)
        for token in waiting.keys.sorted() {
            for continuation in waiting[token] ?? [] {
                guard case .respond(let id, let response) = continuation else { continue }
                effects.append(.respond(id, response.refused(code)))
            }
        }
        waiting = [:]
        for id in waiters.keys.sorted() {
            for waiter in waiters[id] ?? [] {
                effects.append(.respond(waiter.id, Self.refusal(waiter.request, code)))
            }
        }
        waiters = [:]
        for id in allocations.keys.sorted() {
            guard let request = allocations[id] else { continue }
            effects.append(.respond(id, Self.refusal(request, code)))
        }
        allocations = [:]
    }

    /// Codes of a failed append as clients of the coordinator know them: look for it again, or try again.
    private static func coordinatorCode(_ code: ErrorCode) -> ErrorCode {
        switch code {
        case .notLeaderOrFollower, .kafkaStorageError: .notCoordinator
        case .unknownTopicOrPartition, .notEnoughReplicas, .notEnoughReplicasAfterAppend, .requestTimedOut:
            .coordinatorNotAvailable
        case .messageTooLarge, .recordListTooLarge, .invalidFetchSize: .unknownServerError
        case _: code
        }
    }

    // MARK: Requests

    private mutating func handle(
        _ id: RequestID, _ request: TransactionRequest, producerID: Int64?, _ now: Moment,
        _ effects: inout [TransactionEffect]
    ) {
        if let transactionalID = request.transactionalID {
            guard !transactionalID.isEmpty,
                transactionalID.utf8.count <= TransactionLimits.transactionalIDBytesLimit
            else { return effects.append(.respond(id, Self.refusal(request, .invalidRequest))) }
        }
        // Nobody was given that epoch, and what follows would have none that is higher.
        if let epoch = request.producer?.epoch, epoch > ProducerIdentity.lastEpoch {
            return effects.append(.respond(id, Self.refusal(request, .producerFenced)))
        }
        switch request {
        case .initialize(let transactionalID, let timeout, let expected):
            initialize(id, request, transactionalID, timeout, expected, producerID, now, &effects)
        case .addPartitions(let transactionalID, let producer, let partitions, let rules):
            addPartitions(id, request, transactionalID, producer, partitions, rules, now, &effects)
        case .verifyPartitions(let transactionalID, let producer, let partitions):
            respond(
                id, .partitions(verify(transactionalID, producer, partitions)), after: transactionalID,
                &effects)
        case .end(let transactionalID, let producer, let commits, let rules):
            end(id, request, transactionalID, producer, commits: commits, rules, producerID, now, &effects)
        case .describe(let ids):
            respond(
                id, .described(ids.map { describe($0) }), after: ids.compactMap { lastAppends[$0] }.max(), &effects)
        case .list(let filter):
            respond(id, .listed(list(filter, now: now.timestamp)), after: waiting.keys.max(), &effects)
        }
    }

    // MARK: InitProducerId

    private mutating func initialize(
        _ id: RequestID, _ request: TransactionRequest, _ transactionalID: String, _ timeout: Int32,
        _ expected: ProducerIdentity?, _ freshID: Int64?, _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        func refuse(_ code: ErrorCode) { effects.append(.respond(id, .initialized(nil, code))) }
        guard timeout > 0, timeout <= configuration.maxTimeoutMilliseconds else {
            return refuse(.invalidTransactionTimeout)
        }
        guard let state = states[transactionalID] else {
            guard states.count < TransactionLimits.transactionalIDCountLimit else {
                return refuse(.policyViolation)
            }
            guard let freshID else { return allocate(id, request, &effects) }
            let fresh = TransactionState(
                producer: ProducerIdentity(id: freshID, epoch: 0), previousProducerID: nil, nextProducerID: nil,
                timeoutMilliseconds: timeout, phase: .empty, partitions: [], startedAt: nil,
                updatedAt: now.timestamp, transactionProtocol: nil)
            epochsBefore[transactionalID] = nil
            return append(
                [TransactionRecord(transactionalID: transactionalID, state: fresh)],
                then: [.respond(id, .initialized(fresh.producer, .none))], &effects)
        }
        if let expected {
            let isRotated = expected.id == state.previousProducerID && expected.isExhausted
            let isNext = state.phase.isPrepared && expected.id == state.nextProducerID
            guard expected.id == state.producer.id || isRotated || isNext else { return refuse(.producerFenced) }
        }
        switch state.phase {
        case .prepareCommit, .prepareAbort:
            refuse(.concurrentTransactions)
        case .ongoing, .prepareEpochFence:
            // Who names itself and is not the present producer must not end the present one's transaction.
            if let expected, expected != state.producer { return refuse(.producerFenced) }
            if expected == nil {
                effects.append(.report(.fenced(transactionalID: transactionalID, producer: state.producer)))
            }
            abort(
                transactionalID, state, epochs: expected == nil ? 2 : 1,
                then: [.respond(id, .initialized(nil, .concurrentTransactions))], now, &effects)
            // It comes again under the same identity, and the abort was its own wish.
            epochsBefore[transactionalID] = expected?.epoch
        case .empty, .completeCommit, .completeAbort, .dead:
            var next = state
            if let expected, expected != state.producer {
                // Perhaps a repeat of what has been done already.
                let isOwnEnd =
                    state.phase != .empty && state.transactionProtocol == .second
                    && expected.id == state.producer.id && expected.epoch == state.producer.epoch - 1
                guard isOwnEnd || expected.epoch == epochsBefore[transactionalID] else {
                    return refuse(.producerFenced)
                }
                // The epoch of a last fence goes to nobody: another id takes over.
                if state.producer.epoch <= ProducerIdentity.lastEpoch {
                    return respond(id, .initialized(state.producer, .none), after: transactionalID, &effects)
                }
            }
            if state.producer.isExhausted {
                guard let freshID else { return allocate(id, request, &effects) }
                next.producer = ProducerIdentity(id: freshID, epoch: 0)
                next.previousProducerID = state.producer.id
            } else {
                next.producer.epoch += 1
            }
            epochsBefore[transactionalID] = expected?.epoch
            next.phase = .empty
            next.timeoutMilliseconds = timeout
            next.partitions = []
            next.startedAt = nil
            next.updatedAt = now.timestamp
            next.transactionProtocol = nil
            append(
                [TransactionRecord(transactionalID: transactionalID, state: next)],
                then: [.respond(id, .initialized(next.producer, .none))], &effects)
        }
    }

    /// The request goes on when the shell has got a producer id.
    private mutating func allocate(
        _ id: RequestID, _ request: TransactionRequest, _ effects: inout [TransactionEffect]
    ) {
        allocations[id] = request
        effects.append(.allocateProducerID(id))
    }

    // MARK: Partitions

    /// Why a producer may not touch the transaction, as all requests of a running transaction see it.
    private func refusal(of producer: ProducerIdentity, _ state: TransactionState) -> ErrorCode? {
        if state.phase.isPrepared, producer == state.successor { return .concurrentTransactions }
        guard producer.id == state.producer.id else { return .invalidProducerIDMapping }
        guard producer.epoch == state.producer.epoch || configuration.suspended.contains(.coordinatorFence) else {
            return .producerFenced
        }
        return state.phase.isPrepared ? .concurrentTransactions : nil
    }

    private mutating func addPartitions(
        _ id: RequestID, _ request: TransactionRequest, _ transactionalID: String, _ producer: ProducerIdentity,
        _ partitions: [TopicPartition], _ rules: TransactionProtocol, _ now: Moment,
        _ effects: inout [TransactionEffect]
    ) {
        func answer(_ code: ErrorCode) -> TransactionResponse {
            .partitions(partitions.map { PartitionOutcome(partition: $0, error: code) })
        }
        guard let state = states[transactionalID] else {
            return effects.append(.respond(id, answer(.invalidProducerIDMapping)))
        }
        if let code = refusal(of: producer, state) {
            if code == .concurrentTransactions, wait(id, request, transactionalID, now, &effects) { return }
            return effects.append(.respond(id, answer(code)))
        }
        let isOngoing = state.phase == .ongoing
        if isOngoing, partitions.allSatisfy(state.partitions.contains) {
            return respond(id, answer(.none), after: transactionalID, &effects)
        }
        var next = state
        next.partitions = (isOngoing ? state.partitions : []).union(partitions)
        let nameBytes = next.partitions.reduce(0) { $0 + $1.topic.utf8.count }
        guard next.partitions.count <= TransactionLimits.partitionCountLimit,
            nameBytes <= TransactionLimits.partitionNameBytesLimit
        else { return effects.append(.respond(id, answer(.policyViolation))) }
        next.phase = .ongoing
        next.transactionProtocol = rules
        next.updatedAt = now.timestamp
        if !isOngoing {
            next.startedAt = now.timestamp
            let deadline = now.instant.advanced(byMilliseconds: Int64(state.timeoutMilliseconds))
            deadlines[transactionalID] = deadline
            effects.append(.schedule(.transaction(transactionalID), at: deadline))
        }
        append(
            [TransactionRecord(transactionalID: transactionalID, state: next)], then: [.respond(id, answer(.none))],
            &effects)
    }

    private func verify(
        _ transactionalID: String, _ producer: ProducerIdentity, _ partitions: [TopicPartition]
    ) -> [PartitionOutcome] {
        let state = states[transactionalID]
        let code = state.map { refusal(of: producer, $0) } ?? .invalidProducerIDMapping
        return partitions.map { partition in
            if let code { return PartitionOutcome(partition: partition, error: code) }
            let isPart = state?.phase == .ongoing && state?.partitions.contains(partition) == true
            return PartitionOutcome(partition: partition, error: isPart ? .none : .transactionAbortable)
        }
    }

    /// Keeps a request until the transaction before it is complete; false when too many wait already.
    private mutating func wait(
        _ id: RequestID, _ request: TransactionRequest, _ transactionalID: String, _ now: Moment,
        _ effects: inout [TransactionEffect]
    ) -> Bool {
        guard waiters[transactionalID, default: []].count < TransactionLimits.completionWaiterLimit else {
            return false
        }
        waiters[transactionalID, default: []].append(Waiter(id: id, request: request))
        effects.append(
            .schedule(
                .waiting(id), at: now.instant.advanced(byMilliseconds: TransactionLimits.completionWaitMilliseconds)))
        return true
    }

    // MARK: EndTxn

    private mutating func end(
        _ id: RequestID, _ request: TransactionRequest, _ transactionalID: String, _ producer: ProducerIdentity,
        commits: Bool, _ rules: TransactionProtocol, _ freshID: Int64?, _ now: Moment,
        _ effects: inout [TransactionEffect]
    ) {
        func refuse(_ code: ErrorCode) { effects.append(.respond(id, .ended(nil, code))) }
        guard let state = states[transactionalID] else { return refuse(.invalidProducerIDMapping) }
        let verdict =
            switch rules {
            case _ where configuration.suspended.contains(.coordinatorFence) && state.phase == .ongoing:
                EndVerdict.begins
            case .first: Self.judgeFirst(state, producer, commits: commits)
            case .second: Self.judgeSecond(state, producer, commits: commits)
            }
        switch verdict {
        case .refused(let code):
            refuse(code)
        case .repeated where state.producer.epoch > ProducerIdentity.lastEpoch:
            // There is no identity to go on with: the client has to ask for one.
            refuse(.producerFenced)
        case .repeated:
            respond(id, .ended(state.producer, .none), after: transactionalID, &effects)
        case .begins:
            var next = state
            next.phase = commits ? .prepareCommit : .prepareAbort
            next.transactionProtocol = rules
            if configuration.suspended.contains(.epochBumpOnEnd) {
                next.transactionProtocol = .first
            } else if rules == .second {
                if state.producer.isExhausted {
                    guard let freshID else { return allocate(id, request, &effects) }
                    next.nextProducerID = freshID
                }
                next.producer.epoch += 1
            }
            decide(transactionalID, next, then: [.respond(id, .ended(next.successor, .none))], now, &effects)
        }
    }

    private enum EndVerdict {
        case begins
        /// The same request has been carried out already.
        case repeated
        case refused(ErrorCode)
    }

    /// Without an epoch per transaction a late EndTxn cannot be told from a current one with the same outcome:
    /// the gap that the second protocol closes.
    private static func judgeFirst(
        _ state: TransactionState, _ producer: ProducerIdentity, commits: Bool
    ) -> EndVerdict {
        guard producer.id == state.producer.id else { return .refused(.invalidProducerIDMapping) }
        guard producer.epoch == state.producer.epoch else { return .refused(.producerFenced) }
        switch state.phase {
        case .ongoing, .prepareEpochFence: return .begins
        case .completeCommit, .completeAbort:
            return state.commits == commits ? .repeated : .refused(.invalidTxnState)
        case .prepareCommit, .prepareAbort:
            return .refused(state.commits == commits ? .concurrentTransactions : .invalidTxnState)
        case .empty, .dead: return .refused(.invalidTxnState)
        }
    }

    /// A repeat is one epoch behind (or at the end of the id before), a request for the present transaction is
    /// not, and everything else is a zombie.
    private static func judgeSecond(
        _ state: TransactionState, _ producer: ProducerIdentity, commits: Bool
    ) -> EndVerdict {
        if state.phase.isPrepared, producer == state.successor { return .refused(.concurrentTransactions) }
        let isRepeatOverIDs =
            producer.id == state.previousProducerID && producer.epoch == ProducerIdentity.lastEpoch
            && state.producer.epoch == 0
        guard producer.id == state.producer.id || isRepeatOverIDs else {
            return .refused(.invalidProducerIDMapping)
        }
        let isRepeat = isRepeatOverIDs || producer.epoch == state.producer.epoch - 1
        let isCurrent = producer == state.producer
        switch state.phase {
        case .ongoing, .prepareEpochFence:
            return isCurrent ? .begins : .refused(.producerFenced)
        case .prepareCommit, .prepareAbort:
            guard isRepeat else { return .refused(.producerFenced) }
            return .refused(state.commits == commits ? .concurrentTransactions : .invalidTxnState)
        case .completeCommit, .completeAbort:
            // One epoch behind an end under the first protocol is no repeat: that end raised no epoch.
            if isRepeat, state.transactionProtocol == .second {
                return state.commits == commits ? .repeated : .refused(.invalidTxnState)
            }
            guard isCurrent else { return .refused(.producerFenced) }
            // Nothing was added: an abort is fine and raises the epoch, a commit has nothing to commit.
            return commits ? .refused(.invalidTxnState) : .begins
        case .empty, .dead:
            guard isCurrent else { return .refused(.producerFenced) }
            return commits ? .refused(.invalidTxnState) : .begins
        }
    }

    /// Aborts for the coordinator's own reasons: the client was silent for too long or has been replaced.
    private mutating func abort(
        _ transactionalID: String, _ state: TransactionState, epochs: Int16,
        then continuations: [Continuation] = [], _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        var next = state
        next.phase = .prepareAbort
        next.transactionProtocol = configuration.highestProtocol
        let (sum, overflow) = state.producer.epoch.addingReportingOverflow(epochs)
        next.producer.epoch = overflow ? .max : sum
        decide(transactionalID, next, then: continuations, now, &effects)
    }

    /// The commit point of a transaction, whichever way it goes.
    private mutating func decide(
        _ transactionalID: String, _ decided: TransactionState, then continuations: [Continuation],
        _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        var next = decided
        let isOpen = states[transactionalID]?.phase == .ongoing
        if !isOpen { next.startedAt = now.timestamp }
        next.updatedAt = now.timestamp
        if deadlines.removeValue(forKey: transactionalID) != nil {
            effects.append(.cancel(.transaction(transactionalID)))
        }
        epochsBefore[transactionalID] = nil
        let isEarly = configuration.suspended.contains(.decisionBeforeMarkers)
        append(
            [TransactionRecord(transactionalID: transactionalID, state: next)],
            then: isEarly ? continuations : continuations + [.sendMarkers(transactionalID)], &effects)
        if isEarly { sendMarkers(transactionalID, now, &effects) }
    }

    // MARK: Markers

    private mutating func sendMarkers(
        _ transactionalID: String, _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        guard let state = states[transactionalID], state.phase.isPrepared else { return }
        markers[transactionalID] = Markers(outstanding: state.partitions)
        if state.partitions.isEmpty {
            complete(transactionalID, state, now, &effects)
        } else {
            orderMarkers(transactionalID, state, &effects)
        }
    }

    private func orderMarkers(
        _ transactionalID: String, _ state: TransactionState, _ effects: inout [TransactionEffect]
    ) {
        guard let outstanding = markers[transactionalID]?.outstanding else { return }
        let marker = TransactionMarker(
            producer: state.producer, commits: state.commits, coordinatorEpoch: coordinatorEpoch,
            transactionProtocol: state.transactionProtocol ?? .first)
        effects.append(.writeMarkers(transactionalID: transactionalID, marker, outstanding.sorted()))
    }

    private mutating func markersWritten(
        _ transactionalID: String, _ producer: ProducerIdentity, _ outcomes: [PartitionOutcome], _ now: Moment,
        _ effects: inout [TransactionEffect]
    ) {
        guard let state = states[transactionalID], state.phase.isPrepared, state.producer == producer,
            var work = markers[transactionalID]
        else { return }
        var failed = false
        for outcome in outcomes {
            switch outcome.error {
            case .none, .unknownTopicOrPartition:
                work.outstanding.remove(outcome.partition)
            case .invalidProducerEpoch, .producerFenced, .invalidProducerIDMapping:
                // The partition has seen a later epoch of this producer: this transaction is over there.
                work.outstanding.remove(outcome.partition)
                effects.append(
                    .report(.markerRefused(transactionalID: transactionalID, outcome.partition, outcome.error)))
            case .transactionCoordinatorFenced:
                // Another coordinator has taken over and finishes the transaction.
                effects.append(
                    .report(.markerRefused(transactionalID: transactionalID, outcome.partition, outcome.error)))
            case _:
                failed = true
            }
        }
        if work.outstanding.isEmpty { return complete(transactionalID, state, now, &effects) }
        if failed {
            effects.append(
                .schedule(
                    .markers(transactionalID), at: now.instant.advanced(byMilliseconds: work.retryMilliseconds)))
            work.retryMilliseconds = min(
                work.retryMilliseconds * 2, TransactionLimits.markerRetryMilliseconds.upperBound)
        }
        markers[transactionalID] = work
    }

    private mutating func complete(
        _ transactionalID: String, _ state: TransactionState, _ now: Moment,
        _ effects: inout [TransactionEffect]
    ) {
        markers[transactionalID] = nil
        var next = state
        next.phase = state.commits ? .completeCommit : .completeAbort
        next.producer = state.successor
        if state.nextProducerID != nil { next.previousProducerID = state.producer.id }
        next.nextProducerID = nil
        next.partitions = []
        next.updatedAt = now.timestamp
        append([TransactionRecord(transactionalID: transactionalID, state: next)], &effects)
        for waiter in waiters.removeValue(forKey: transactionalID) ?? [] {
            effects.append(.cancel(.waiting(waiter.id)))
            handle(waiter.id, waiter.request, producerID: nil, now, &effects)
        }
    }

    /// After loading: what was decided is carried out, what is open gets its clock back.
    private mutating func resume(
        _ transactionalID: String, _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        guard let state = states[transactionalID] else { return }
        switch state.phase {
        case .prepareCommit, .prepareAbort:
            sendMarkers(transactionalID, now, &effects)
        case .ongoing, .prepareEpochFence:
            let timeout = Int64(state.timeoutMilliseconds)
            let elapsed = now.timestamp.rawValue.subtractingReportingOverflow(
                state.startedAt?.rawValue ?? now.timestamp.rawValue)
            // A wall clock that jumped neither ends a transaction at once nor keeps it beyond one more timeout.
            let left = elapsed.overflow ? timeout : min(max(0, timeout - elapsed.partialValue), timeout)
            let deadline = now.instant.advanced(byMilliseconds: left)
            deadlines[transactionalID] = deadline
            effects.append(.schedule(.transaction(transactionalID), at: deadline))
        case .empty, .completeCommit, .completeAbort, .dead:
            break
        }
    }

    // MARK: Time

    private mutating func fire(
        _ timer: TransactionTimer, _ now: Moment, _ effects: inout [TransactionEffect]
    ) {
        switch timer {
        case .transaction(let transactionalID):
            guard let state = states[transactionalID], let deadline = deadlines[transactionalID],
                deadline <= now.instant
            else { return }
            let opened = state.startedAt?.rawValue ?? now.timestamp.rawValue
            effects.append(
                .report(
                    .timedOut(
                        transactionalID: transactionalID, producer: state.producer,
                        openMilliseconds: now.timestamp.rawValue &- opened)))
            deadlines[transactionalID] = nil
            abort(transactionalID, state, epochs: 1, now, &effects)
        case .markers(let transactionalID):
            guard let state = states[transactionalID], state.phase.isPrepared else { return }
            orderMarkers(transactionalID, state, &effects)
        case .waiting(let id):
            for transactionalID in waiters.keys.sorted() {
                guard let index = waiters[transactionalID]?.firstIndex(where: { $0.id == id }),
                    let waiter = waiters[transactionalID]?.remove(at: index)
                else { continue }
                if waiters[transactionalID]?.isEmpty == true { waiters[transactionalID] = nil }
                effects.append(.respond(id, Self.refusal(waiter.request, .concurrentTransactions)))
                return
            }
        case .expiration:
            continueExpiration(now, &effects)
        }
    }

    /// Forgets transactional ids that have rested long enough (`transactional.id.expiration.ms`), some at a time.
    private mutating func continueExpiration(_ now: Moment, _ effects: inout [TransactionEffect]) {
        guard var ids = expiration else { return }
        var records: [TransactionRecord] = []
        var budget = TransactionLimits.expirationStepLimit
        while budget > 0, let id = ids.popLast() {
            budget -= 1
            guard let state = states[id], lastAppends[id] == nil else { continue }
            switch state.phase {
            case .empty, .completeCommit, .completeAbort, .dead:
                let (age, overflow) = now.timestamp.rawValue.subtractingReportingOverflow(state.updatedAt.rawValue)
                if overflow || age < configuration.expirationMilliseconds { continue }
                epochsBefore[id] = nil
                records.append(TransactionRecord(transactionalID: id, state: nil))
            case .ongoing, .prepareCommit, .prepareAbort, .prepareEpochFence:
                continue
            }
        }
        var batch: [TransactionRecord] = []
        var byteCount = 0
        for record in records {
            let size = record.transactionalID.utf8.count + 64
            if byteCount + size > TransactionLimits.tombstoneBatchBytesLimit {
                append(batch, &effects)
                batch = []
                byteCount = 0
            }
            batch.append(record)
            byteCount += size
        }
        if !batch.isEmpty { append(batch, &effects) }
        expiration = ids.isEmpty ? nil : ids
        if !ids.isEmpty { effects.append(.schedule(.expiration, at: now.instant)) }
    }
}
