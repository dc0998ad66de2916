import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletTransport
import NIOCore

/// Speaks with the coordinators for a transactional producer: identity, partitions and groups of the transaction,
/// offsets, the end. What may be done when is ``TransactionState``'s to say; here are the requests and the waiting.
// SAFETY: confined to `engine.loop`, like the sender that owns it.
final class ProducerTransactions: @unchecked Sendable {
    /// Why a call to a coordinator did not succeed.
    private struct Refusal: Error {
        /// `nil`: no answer that says anything, in time.
        var verdict: TransactionVerdict?
        var error: ClientError
    }

    /// A request that is repeated until its answer says something final or time runs out.
    private struct Call<Request: KafkaRequest> {
        var what: String
        var kind: TransactionalRequest
        var coordinator: CoordinatorKey
        var limit = Int16.max
        /// Whether there still is a point in it.
        var isWanted: () -> Bool = { true }
        var make: (Int16) -> Request
        /// The deciding error code of an answer, and what it is about.
        var judge: (Request.Response) -> (code: ErrorCode, subject: String)
        var finish: (Result<Request.Response, Refusal>) -> Void
    }

    /// Newest versions under the first rules (KIP-890): above them the broker takes the second ones as agreed.
    private static let firstRulesEndLimit: Int16 = 4
    private static let firstRulesOffsetsLimit: Int16 = 4
    static let firstRulesProduceLimit: Int16 = 11
    /// From this version on a client may not use AddPartitionsToTxn, it is for brokers.
    private static let addPartitionsLimit: Int16 = 3
    /// First InitProducerId version in which a producer names itself (KIP-360).
    private static let namingVersion: Int16 = 3
    /// First pause after CONCURRENT_TRANSACTIONS: the markers of the transaction before need a few milliseconds.
    private static let concurrentPause = Duration.milliseconds(10)
    private static let featureName = "transaction.version"

    private let engine: ClientEngine
    private let configuration: ProducerConfiguration
    let transactionalID: String
    private(set) var state = TransactionState()
    private weak var sender: ProducerSender?

    private var prepareWaiters: [Reply<Void>] = []
    /// Offset commits without a final answer; the end waits for them.
    private var openOffsetCalls = 0
    private var isAddingPartitions = false
    private var ending: (commits: Bool, reply: Reply<Void>)?
    private var isEndSent = false

    init(engine: ClientEngine, configuration: ProducerConfiguration, transactionalID: String) {
        self.engine = engine
        self.configuration = configuration
        self.transactionalID = transactionalID
    }

    func attach(_ sender: ProducerSender) { self.sender = sender }

    private var coordinator: CoordinatorKey { .transactionalID(transactionalID) }
    private var subject: String { "transactional id '\(transactionalID)'" }

    // MARK: Identity

    /// Resolves `reply` once the producer has its identity and whatever an earlier producer left is ended.
    func prepare(_ reply: Reply<Void>) {
        do {
            let mustAsk = try state.prepare()
            if !mustAsk, state.phase == .ready {
                reply.succeed(())
                return
            }
            prepareWaiters.append(reply)
            if mustAsk { askIdentity() }
        } catch {
            reply.fail(error)
        }
    }

    private func askIdentity() {
        let present = state.identity
        if !present.isNone, let version = connection?.version(of: InitProducerIdRequest.self),
            version < Self.namingVersion
        {
            // Without naming ourselves we might push aside whoever has replaced us.
            let error = ClientError(
                .unsupportedByBroker,
                "\(subject): the broker is too old to give a producer a new epoch (KIP-360); make a new producer")
            return identified(.failure(Refusal(verdict: .fatal, error: error)))
        }
        let (id, timeout) = (transactionalID, configuration.transactionTimeout.wireMilliseconds)
        call(
            Call<InitProducerIdRequest>(
                what: "preparing \(subject)", kind: .initialize, coordinator: coordinator
            ) { version in
                var request = InitProducerIdRequest()
                request.transactionalID = id
                request.transactionTimeoutMs = timeout
                if version >= Self.namingVersion, !present.isNone {
                    request.producerID = present.id
                    request.producerEpoch = present.epoch
                }
                return request
            } judge: { response in
                (ErrorCode(rawValue: response.errorCode), "producer id for \(self.subject)")
            } finish: { result in
                self.identified(result)
            })
    }

    private func identified(_ result: Result<InitProducerIdResponse, Refusal>) {
        switch result {
        case .success(let response) where response.producerID >= 0 && response.producerEpoch >= 0:
            state.identified(
                ProducerIdentity(id: response.producerID, epoch: response.producerEpoch),
                rules: presentRules ?? .first)
            sender?.take(state.identity)
            engine.logger.info(
                "transactional producer is ready",
                metadata: [
                    "transactionalID": "\(transactionalID)", "producerID": "\(state.identity.id)",
                    "epoch": "\(state.identity.epoch)", "rules": "\(state.rules)",
                ])
            finishPreparing(.success(()))
        case .success:
            state.unidentified()
            finishPreparing(
                .failure(ClientError(.protocolViolation, "\(subject): the coordinator gave an impossible producer id")))
        case .failure(let refusal):
            if refusal.verdict == .fatal { state.failed(refusal.error, .fatal) } else { state.unidentified() }
            finishPreparing(.failure(refusal.error))
        }
    }

    private func finishPreparing(_ result: Result<Void, ClientError>) {
        let waiters = prepareWaiters
        prepareWaiters = []
        for waiter in waiters { waiter.resolve(with: result) }
    }

    /// The connection to the coordinator, if there is one.
    private var connection: ClientConnection? {
        engine.knownCoordinator(of: coordinator).flatMap { engine.readyConnection(to: $0, purpose: .general) }
    }

    /// Which rules hold, by what the coordinator's broker said when we connected; `nil` without a connection.
    private var presentRules: TransactionRules? {
        guard let connection else { return nil }
        let level = connection.handshake.finalizedFeatures.first { $0.name == Self.featureName }?.maxVersionLevel ?? 0
        let serves = connection.version(of: EndTxnRequest.self) ?? 0
        return level >= TransactionRules.secondLevel && serves > Self.firstRulesEndLimit ? .second : .first
    }

    // MARK: Records

    /// The number under which records of the new transaction are taken.
    func begin(_ reply: Reply<Int>) {
        do {
            reply.succeed(try state.begin(rules: presentRules))
        } catch {
            reply.fail(error)
        }
    }

    /// Whether a batch of a partition may go out now; if not, what is missing is asked for.
    func maySend(to partition: TopicPartition) -> Bool {
        if state.maySend(to: partition) { return true }
        addPartitions()
        return false
    }

    /// A batch of the transaction goes out.
    func dispatched() { state.started() }

    /// A batch was given up. What the broker's code means for the transaction depends on the code.
    func gaveUp(_ error: ClientError, isNumbered: Bool) {
        let verdict = error.brokerCode.map { TransactionVerdict($0, of: .produce) } ?? .abortable
        let isFatal = verdict == .fatal || error.code == .unsupportedByBroker
        var error = error
        if error.brokerCode == .producerFenced { error = .fenced(transactionalID, .producerFenced, error.message) }
        let wasLost = state.loss != nil
        state.gaveUpBatch(error, isFatal ? .fatal : .abortable, isNumbered: isNumbered)
        guard !wasLost, state.loss != nil else { return }
        let number = state.number
        // Not at once: the sender is in the middle of its queues.
        engine.loop.assumeIsolated().execute {
            if self.state.number == number { self.dropIfLost() }
        }
    }

    /// Once the transaction is lost nothing of it is sent or taken any more.
    private func dropIfLost() {
        if let loss = state.loss { sender?.dropAll(loss) }
    }

    private func addPartitions() {
        guard !isAddingPartitions else { return }
        let partitions = state.takeWanted()
        guard !partitions.isEmpty else { return }
        isAddingPartitions = true
        let (id, identity, number) = (transactionalID, state.identity, state.number)
        call(
            Call<AddPartitionsToTxnRequest>(
                what: "adding partitions to the transaction of \(subject)", kind: .addPartitions,
                coordinator: coordinator, limit: Self.addPartitionsLimit,
                isWanted: { self.state.number == number && self.state.phase != .aborting && self.state.loss == nil }
            ) { _ in
                var request = AddPartitionsToTxnRequest()
                request.v3AndBelowTransactionalID = id
                request.v3AndBelowProducerID = identity.id
                request.v3AndBelowProducerEpoch = identity.epoch
                request.v3AndBelowTopics = groupedByTopic(partitions).map { topic, indexes in
                    var entry = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic()
                    entry.name = topic
                    entry.partitions = indexes
                    return entry
                }
                return request
            } judge: { response in
                var codes: [(ErrorCode, String)] = []
                for topic in response.resultsByTopicV3AndBelow {
                    for item in topic.resultsByPartition where item.partitionErrorCode != 0 {
                        codes.append(
                            (
                                ErrorCode(rawValue: item.partitionErrorCode),
                                "adding \(topic.name)-\(item.partitionIndex) to the transaction of \(self.subject)"
                            ))
                    }
                }
                return Self.worst(codes, of: .addPartitions) ?? (.none, "")
            } finish: { result in
                self.isAddingPartitions = false
                self.state.finishAdding(
                    {
                        if case .success = result { true } else { false }
                    }())
                if case .failure(let refusal) = result {
                    self.state.failed(refusal.error, refusal.verdict ?? .abortable)
                    self.dropIfLost()
                }
                self.sender?.pump()
                self.settle()
            })
    }

    /// Of several codes the one that decides: what ends the producer, then the transaction, then what needs another
    /// coordinator, then a pause.
    private static func worst(
        _ codes: [(ErrorCode, String)], of kind: TransactionalRequest
    ) -> (code: ErrorCode, subject: String)? {
        func weight(_ code: ErrorCode) -> Int {
            switch TransactionVerdict(code, of: kind) {
            case .done: 0
            case .retry: code == .operationNotAttempted ? 1 : 2
            case .retryElsewhere: 3
            case .abortable: 4
            case .fatal: 5
            }
        }
        return codes.max { weight($0.0) < weight($1.0) }.map { (code: $0.0, subject: $0.1) }
    }

    // MARK: Offsets

    /// Makes positions of a group part of transaction `number`.
    func commitOffsets(
        _ offsets: [TopicPartition: CommittedOffset], _ group: ConsumerGroupMetadata, in number: Int,
        _ reply: Reply<Void>
    ) {
        guard state.isOpen(number) else {
            reply.fail(state.end ?? state.loss ?? TransactionState.notOpen)
            return
        }
        guard !offsets.isEmpty else {
            reply.succeed(())
            return
        }
        openOffsetCalls += 1
        if state.mustAdd(group: group.groupID) {
            addGroup(group.groupID, number) { result in
                switch result {
                case .success: self.sendOffsets(offsets, group, number, reply)
                case .failure(let refusal): self.finishOffsets(.failure(refusal), reply)
                }
            }
        } else {
            sendOffsets(offsets, group, number, reply)
        }
    }

    private func addGroup(
        _ group: String, _ number: Int, _ completion: @escaping (Result<Void, Refusal>) -> Void
    ) {
        let (id, identity) = (transactionalID, state.identity)
        state.started()
        call(
            Call<AddOffsetsToTxnRequest>(
                what: "adding group '\(group)' to the transaction of \(subject)", kind: .addOffsets,
                coordinator: coordinator, isWanted: { self.state.isOpen(number) }
            ) { _ in
                var request = AddOffsetsToTxnRequest()
                request.transactionalID = id
                request.producerID = identity.id
                request.producerEpoch = identity.epoch
                request.groupID = group
                return request
            } judge: { response in
                (
                    ErrorCode(rawValue: response.errorCode),
                    "adding group '\(group)' to the transaction of \(self.subject)"
                )
            } finish: { result in
                if case .success = result { self.state.added(group: group) }
                completion(result.map { _ in })
            })
    }

    private func sendOffsets(
        _ offsets: [TopicPartition: CommittedOffset], _ group: ConsumerGroupMetadata, _ number: Int,
        _ reply: Reply<Void>
    ) {
        let (id, identity) = (transactionalID, state.identity)
        state.started()
        call(
            Call<TxnOffsetCommitRequest>(
                what: "committing offsets of group '\(group.groupID)' in the transaction of \(subject)",
                kind: .commitOffsets, coordinator: .group(group.groupID),
                limit: state.rules == .first ? Self.firstRulesOffsetsLimit : .max,
                isWanted: { self.state.isOpen(number) }
            ) { version in
                TxnOffsetCommitRequest(offsets, group, id, identity, version: version)
            } judge: { response in
                let codes = response.topics.flatMap { topic in
                    topic.partitions.filter { $0.errorCode != 0 }.map { item in
                        (
                            ErrorCode(rawValue: item.errorCode),
                            "offset of \(topic.name)-\(item.partitionIndex) in group '\(group.groupID)'"
                        )
                    }
                }
                return Self.worst(codes, of: .commitOffsets) ?? (.none, "")
            } finish: { result in
                self.finishOffsets(result.map { _ in }, reply)
            })
    }

    private func finishOffsets(_ result: Result<Void, Refusal>, _ reply: Reply<Void>) {
        openOffsetCalls -= 1
        switch result {
        case .success:
            reply.succeed(())
        case .failure(let refusal):
            state.failed(refusal.error, refusal.verdict ?? .abortable)
            dropIfLost()
            reply.fail(refusal.error)
        }
        settle()
    }

    // MARK: End

    /// Commits transaction `number`, all of whose batches have been acknowledged.
    func commit(_ number: Int, _ reply: Reply<Void>) {
        do {
            try state.beginCommit(number)
            ending = (true, reply)
            settle()
        } catch {
            reply.fail(error)
        }
    }

    /// Aborts transaction `number`: what is queued is dropped, what is on its way is waited for.
    func abort(_ number: Int, _ reply: Reply<Void>) {
        do {
            try state.beginAbort(number)
            ending = (false, reply)
            sender?.dropAll(
                ClientError(.transactionAborted, "the record's transaction was rolled back", isRetriable: true))
            settle()
        } catch {
            reply.fail(error)
        }
    }

    /// Whether batches that fail are dropped instead of sent again.
    var isDropping: Bool { state.phase == .aborting || state.loss != nil }

    /// Something that the end waits for may have come about.
    func settle() {
        guard let ending, !isEndSent, !isAddingPartitions, openOffsetCalls == 0, sender?.inFlightBatchCount ?? 0 == 0
        else { return }
        guard state.end == nil else {
            finishEnd(.failure(Refusal(verdict: .fatal, error: state.end ?? TransactionState.notOpen)))
            return
        }
        if ending.commits, let loss = state.loss {
            // An offset commit that nobody waited for was refused.
            finishEnd(.failure(Refusal(verdict: .abortable, error: loss)))
            return
        }
        guard state.hasStarted else {
            state.ended(next: nil)
            finishEnd(.success(()))
            return
        }
        isEndSent = true
        let (id, identity, commits) = (transactionalID, state.identity, ending.commits)
        call(
            Call<EndTxnRequest>(
                what: "\(commits ? "commit" : "abort") of the transaction of \(subject)", kind: .end,
                coordinator: coordinator, limit: state.rules == .first ? Self.firstRulesEndLimit : .max
            ) { _ in
                var request = EndTxnRequest()
                request.transactionalID = id
                request.producerID = identity.id
                request.producerEpoch = identity.epoch
                request.committed = commits
                return request
            } judge: { response in
                (
                    ErrorCode(rawValue: response.errorCode),
                    "\(commits ? "commit" : "abort") of the transaction of \(self.subject)"
                )
            } finish: { result in
                self.isEndSent = false
                self.ended(result)
            })
    }

    private func ended(_ result: Result<EndTxnResponse, Refusal>) {
        switch result {
        case .success(let response):
            state.ended(
                next: response.producerID >= 0 && response.producerEpoch >= 0
                    ? ProducerIdentity(id: response.producerID, epoch: response.producerEpoch) : nil)
            sender?.take(state.identity)
            finishEnd(.success(()))
        case .failure(let refusal):
            switch refusal.verdict {
            case .fatal?:
                state.failed(refusal.error, .fatal)
                finishEnd(.failure(refusal))
            case .abortable?:
                // The coordinator will not commit it; the caller is to abort.
                state.failed(refusal.error, .abortable)
                if ending?.commits == false { state.lostEnd() }
                finishEnd(.failure(refusal))
            case .done?, .retry?, .retryElsewhere?, nil:
                state.lostEnd()
                let commits = ending?.commits ?? false
                finishEnd(
                    .failure(
                        Refusal(
                            verdict: nil,
                            error: commits
                                ? ClientError(
                                    .transactionUndecided,
                                    "the coordinator did not confirm the commit of the transaction of \(subject), which "
                                        + "may have taken place or not: \(refusal.error.message)", cause: refusal.error)
                                : refusal.error)))
            }
        }
    }

    private func finishEnd(_ result: Result<Void, Refusal>) {
        guard let reply = ending?.reply else { return }
        ending = nil
        reply.resolve(with: result.mapError(\.error))
    }

    // MARK: Calls

    private func call<Request: KafkaRequest>(
        _ call: Call<Request>, failureCount: Int = 0, since: NIODeadline = .now()
    ) {
        func again(_ error: ClientError, _ pause: Duration? = nil) {
            let pause = TimeAmount(pause ?? engine.retryBackoff.pause(after: failureCount + 1))
            guard call.isWanted(), !engine.isClosed else {
                call.finish(.failure(Refusal(verdict: nil, error: error)))
                return
            }
            guard NIODeadline.now() + pause < since + TimeAmount(configuration.client.operationTimeout) else {
                let late = ClientError.timedOut(call.what, after: configuration.client.operationTimeout, last: error)
                call.finish(.failure(Refusal(verdict: nil, error: late)))
                return
            }
            engine.logger.debug("will be tried again", metadata: ["what": "\(call.what)", "cause": "\(error.message)"])
            engine.loop.assumeIsolated().scheduleTask(in: pause) {
                guard call.isWanted() else {
                    call.finish(.failure(Refusal(verdict: nil, error: error)))
                    return
                }
                self.call(call, failureCount: failureCount + 1, since: since)
            }
        }
        func failed(_ error: ClientError) {
            if error.isRetriable {
                again(error)
            } else {
                call.finish(.failure(refusal(error, call.kind)))
            }
        }
        engine.coordinator(of: call.coordinator) { result in
            let broker: BrokerID
            switch result {
            case .success(let id): broker = id
            case .failure(let error): return failed(error)
            }
            self.engine.request(
                Request.self, to: .broker(broker), limit: call.limit, make: call.make
            ) { result in
                switch result {
                case .failure(let error):
                    self.engine.forgetCoordinator(of: call.coordinator)
                    failed(error)
                case .success(let answer):
                    let (code, subject) = call.judge(answer.response)
                    let error = self.error(code, subject)
                    switch TransactionVerdict(code, of: call.kind) {
                    case .done:
                        call.finish(.success(answer.response))
                    case .retry:
                        again(error, code == .concurrentTransactions ? self.concurrentPause(failureCount) : nil)
                    case .retryElsewhere:
                        self.engine.forgetCoordinator(of: call.coordinator)
                        again(error)
                    case .abortable:
                        call.finish(.failure(Refusal(verdict: .abortable, error: error)))
                    case .fatal:
                        call.finish(.failure(Refusal(verdict: .fatal, error: error)))
                    }
                }
            }
        }
    }

    private func concurrentPause(_ failureCount: Int) -> Duration {
        Backoff(
            first: min(Self.concurrentPause, configuration.client.retryBackoff),
            limit: configuration.client.retryBackoffLimit
        ).pause(after: failureCount + 1)
    }

    private func error(_ code: ErrorCode, _ subject: String) -> ClientError {
        switch code {
        case .producerFenced, .invalidProducerEpoch: .fenced(transactionalID, code, subject)
        case .illegalGeneration, .unknownMemberID, .rebalanceInProgress, .staleMemberEpoch, .fencedMemberEpoch:
            ClientError(
                .rebalanced,
                "\(subject): the group has moved on (\(code.name)); poll again and run the transaction anew",
                brokerCode: code)
        case _: .broker(code, subject)
        }
    }

    /// What a failure means that is no answer to the request itself.
    private func refusal(_ error: ClientError, _ kind: TransactionalRequest) -> Refusal {
        if let code = error.brokerCode { return Refusal(verdict: TransactionVerdict(code, of: kind), error: error) }
        guard error.code == .unsupportedByBroker || error.code == .invalidArgument else {
            return Refusal(verdict: nil, error: error)
        }
        return Refusal(
            verdict: .fatal,
            error: ClientError(
                error.code, "\(error.message); transactions need Kafka 2.1 or later, or Martlet", cause: error.cause))
    }

    /// The client is closed: nobody will be answered any more.
    func close(_ error: ClientError) {
        finishPreparing(.failure(error))
        finishEnd(.failure(Refusal(verdict: nil, error: error)))
    }
}

extension TxnOffsetCommitRequest {
    /// First version with membership (KIP-447).
    private static let membershipVersion: Int16 = 3
    private static let leaderEpochVersion: Int16 = 2

    init(
        _ offsets: [TopicPartition: CommittedOffset], _ group: ConsumerGroupMetadata, _ transactionalID: String,
        _ producer: ProducerIdentity, version: Int16
    ) {
        self.init()
        self.transactionalID = transactionalID
        groupID = group.groupID
        producerID = producer.id
        producerEpoch = producer.epoch
        if version >= Self.membershipVersion {
            generationIDOrMemberEpoch = group.generation ?? -1
            memberID = group.memberID ?? ""
            groupInstanceID = group.groupInstanceID
        }
        topics = groupedByTopic(offsets.keys).map { topic, indexes in
            var entry = TxnOffsetCommitRequestTopic()
            entry.name = topic
            entry.partitions = indexes.compactMap { index in
                guard let offset = offsets[TopicPartition(topic, index)] else { return nil }
                var item = TxnOffsetCommitRequestPartition()
                item.partitionIndex = index
                item.committedOffset = offset.offset.rawValue
                if version >= Self.leaderEpochVersion {
                    item.committedLeaderEpoch = offset.leaderEpoch?.rawValue ?? -1
                }
                item.committedMetadata = offset.metadata
                return item
            }
            return entry
        }
    }
}
