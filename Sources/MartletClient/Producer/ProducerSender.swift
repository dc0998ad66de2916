import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTransport
import NIOCore

/// The sending half of a producer: takes batches, numbers them, sends them to the leaders, repeats what failed
/// in order, and reports each batch's end to the accumulator.
///
/// Order and numbers (KIP-98, KIP-360):
/// - Batches of a partition are numbered when they are first sent, in the order in which records were handed over.
/// - A batch that failed retriably waits until nothing of its partition is in flight; then it and all that
///   failed behind it are sent again with their numbers, before anything new.
/// - A numbered batch that is given up leaves a gap. The partition then goes on under the next epoch with
///   numbers from 0; other partitions keep theirs, as the broker counts per partition.
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class ProducerSender: @unchecked Sendable {
    /// The sender's view of one broker.
    private final class Broker {
        var inFlightCount = 0
        var isConnecting = false
        var notBefore = NIODeadline.uptimeNanoseconds(0)
        var failureCount = 0
    }

    /// Largest sum of batch bytes in one request, counted before compression; brokers accept 100 MiB.
    private static let requestBatchByteLimit = 8 * 1024 * 1024
    /// Batches that may be in flight for one partition; the broker remembers five (KIP-98).
    private static let partitionInFlightLimit = 5
    /// How often waiting batches are checked against the delivery timeout, at most.
    private static let expiryInterval = TimeAmount.milliseconds(500)
    /// First Produce version that may carry zstd (KIP-110).
    private static let zstdVersion: Int16 = 7

    let engine: ClientEngine
    private let accumulator: ProducerAccumulator
    private let configuration: ProducerConfiguration
    /// Callers that wait for a topic's partitions to be known.
    let lookup: TopicLookup
    private let compressor = RecordCompressor()

    private var active: [PartitionQueue] = []
    private var brokers: [BrokerID: Broker] = [:]
    private var identity = ProducerIdentity.none
    private var isAskingIdentity = false
    private var identityFailureCount = 0
    private var wakeTimer: Scheduled<Void>?
    private var wakeAt = NIODeadline.distantFuture
    private var expiryTimer: Scheduled<Void>?
    /// `nil` without a transactional id.
    let transactions: ProducerTransactions?
    /// Batches sent and not answered yet.
    private(set) var inFlightBatchCount = 0
    private var isPumping = false

    init(engine: ClientEngine, accumulator: ProducerAccumulator, configuration: ProducerConfiguration) {
        self.engine = engine
        self.accumulator = accumulator
        self.configuration = configuration
        self.lookup = TopicLookup(engine: engine, accumulator: accumulator, configuration: configuration.client)
        self.transactions = configuration.transactionalID.map {
            ProducerTransactions(engine: engine, configuration: configuration, transactionalID: $0)
        }
    }

    private var loop: any EventLoop { engine.loop }

    /// Connects callbacks; called once, on the loop.
    func start() {
        engine.mayCreateTopics = configuration.mayCreateTopics
        engine.onMetadata = { [weak self] in self?.metadataChanged() }
        transactions?.attach(self)
    }

    // MARK: Topics

    private func metadataChanged() {
        for (name, topic) in engine.metadata.topics where engine.isWanted(name) {
            guard !topic.partitions.isEmpty else { continue }
            accumulator.update(
                topic: name, partitionCount: topic.partitions.count,
                available: topic.partitions.indices.filter { topic.partitions[$0].leader != nil })
            lookup.found(name)
        }
        pump()
    }

    // MARK: Pump

    /// There is new work, or an answer, a connection, a point in time has come.
    func pump() {
        loop.preconditionInEventLoop()
        guard !isPumping, !engine.isClosed else { return }
        isPumping = true
        defer { isPumping = false }
        for queue in accumulator.takeListed() where !queue.isActive {
            queue.isActive = true
            active.append(queue)
        }
        guard !active.isEmpty else { return }
        scheduleExpiry()
        if configuration.isIdempotent, identity.isNone {
            if transactions == nil { askIdentity() }
            return
        }
        let now = NIODeadline.now()
        var byLeader: [BrokerID: [PartitionQueue]] = [:]
        var isLeaderless = false
        var kept: [PartitionQueue] = []
        kept.reserveCapacity(active.count)
        for queue in active {
            if queue.retries.isEmpty, queue.inFlight.isEmpty, accumulator.isEmpty(queue) {
                queue.isActive = false
                continue
            }
            kept.append(queue)
            if queue.notBefore > now {
                wake(at: queue.notBefore)
            } else if let leader = engine.metadata.partition(queue.topicPartition)?.leader {
                byLeader[leader, default: []].append(queue)
            } else {
                isLeaderless = true
                queue.lastError = leaderless(queue.topicPartition)
                // Without the pause each answer that still names no leader would lead to the next question.
                queue.notBefore = now + TimeAmount(configuration.client.retryBackoff)
                wake(at: queue.notBefore)
            }
        }
        active = kept
        if isLeaderless { engine.refreshMetadata() }
        for (leader, queues) in byLeader { send(queues, to: leader, now: now) }
    }

    private func leaderless(_ partition: TopicPartition) -> ClientError {
        if let code = engine.topicErrors[partition.topic] {
            if code == .unknownTopicOrPartition {
                return .unknownTopic(partition.topic, askedOf: engine.brokerNames)
            }
            return .broker(code, "topic '\(partition.topic)'")
        }
        return .broker(.leaderNotAvailable, "partition \(partition)")
    }

    private func wake(at time: NIODeadline) {
        guard time < wakeAt else { return }
        wakeTimer?.cancel()
        wakeAt = time
        wakeTimer = loop.assumeIsolated().scheduleTask(deadline: time) {
            self.wakeAt = .distantFuture
            self.pump()
        }
    }

    private func send(_ queues: [PartitionQueue], to leader: BrokerID, now: NIODeadline) {
        let broker = self.broker(leader)
        guard !broker.isConnecting else { return }
        guard broker.notBefore <= now else {
            wake(at: broker.notBefore)
            return
        }
        guard let connection = engine.readyConnection(to: leader, purpose: .data) else {
            broker.isConnecting = true
            connect(leader, queues)
            return
        }
        while broker.inFlightCount < configuration.inFlightLimit, connection.isOpen {
            let batches = gather(queues, now: now)
            if batches.isEmpty { return }
            dispatch(batches, to: leader, over: connection, broker)
        }
    }

    private func broker(_ id: BrokerID) -> Broker {
        if let known = brokers[id] { return known }
        let broker = Broker()
        brokers[id] = broker
        return broker
    }

    private func connect(_ leader: BrokerID, _ queues: [PartitionQueue]) {
        engine.connection(to: .broker(leader), purpose: .data) { result in
            let broker = self.broker(leader)
            broker.isConnecting = false
            switch result {
            case .success:
                broker.failureCount = 0
            case .failure(let error):
                broker.failureCount += 1
                broker.notBefore =
                    .now() + TimeAmount(self.engine.retryBackoff.pause(after: broker.failureCount))
                for queue in queues { queue.lastError = error }
                self.engine.refreshMetadata()
            }
            // Never inside a pump: the connection may have been ready at once.
            self.loop.assumeIsolated().execute { self.pump() }
        }
    }

    /// One batch of each queue that has one to send, up to the byte limit.
    private func gather(_ queues: [PartitionQueue], now: NIODeadline) -> [PendingBatch] {
        var batches: [PendingBatch] = []
        var byteCount = 0
        // Begin with another queue each time, so that none starves while the requests in flight are few.
        let start = queues.count > 1 ? Int.random(in: 0..<queues.count) : 0
        for step in 0..<queues.count where byteCount < Self.requestBatchByteLimit {
            guard let batch = next(queues[(start + step) % queues.count], now: now) else { continue }
            byteCount += batch.accountedBytes
            batches.append(batch)
        }
        return batches
    }

    private func next(_ queue: PartitionQueue, now: NIODeadline) -> PendingBatch? {
        guard queue.notBefore <= now else { return nil }
        if let transactions, !transactions.maySend(to: queue.topicPartition) { return nil }
        if queue.needsNewEpoch {
            guard queue.inFlight.isEmpty else { return nil }
            startNewEpoch(queue)
            if configuration.isIdempotent, identity.isNone { return nil }
        }
        guard queue.inFlight.count < Self.partitionInFlightLimit else { return nil }
        if !queue.retries.isEmpty {
            // Until the answers of all attempts are in, a repeated batch could overtake or be overtaken. The
            // batches behind the first may follow at once: one connection keeps their order.
            if queue.inFlight.isEmpty { queue.isReplaying = true }
            guard queue.isReplaying else { return nil }
            return queue.retries.removeFirst()
        }
        queue.isReplaying = false
        switch accumulator.take(from: queue, now: now, isIdle: queue.inFlight.isEmpty) {
        case .batch(let batch):
            batch.order = queue.nextOrder
            queue.nextOrder += 1
            return batch
        case .lingering(let until):
            wake(at: until)
            return nil
        case .nothing:
            return nil
        }
    }

    // MARK: Requests

    private func dispatch(
        _ batches: [PendingBatch], to leader: BrokerID, over connection: ClientConnection, _ broker: Broker
    ) {
        var sending: [PendingBatch] = []
        sending.reserveCapacity(batches.count)
        for batch in batches {
            do {
                try prepare(batch)
                sending.append(batch)
            } catch {
                finish(batch, .failure(error))
            }
        }
        guard !sending.isEmpty else { return }
        let topicIDs = Set(sending.map(\.queue.topicPartition.topic)).allSatisfy {
            engine.metadata.topics[$0]?.id != nil
        }
        var limit = topicIDs ? Int16.max : ProduceRequest.lastNameVersion
        if transactions?.state.rules == .first {
            limit = min(limit, ProducerTransactions.firstRulesProduceLimit)
        }
        guard let version = connection.version(of: ProduceRequest.self, limit: limit) else {
            let error = ClientError.connection(
                .unsupportedAPI(
                    .produce, served: connection.versions[.produce], spoken: ProduceRequest.versions),
                peer: address(leader))
            for batch in sending { finish(batch, .failure(error)) }
            return
        }
        if case .zstd = configuration.compression, version < Self.zstdVersion {
            let error = ClientError(
                .unsupportedByBroker,
                "broker \(address(leader)) is too old for zstd (KIP-110); choose another compression")
            for batch in sending { finish(batch, .failure(error)) }
            return
        }
        if transactions?.state.rules == .second, version <= ProducerTransactions.firstRulesProduceLimit {
            let error = ClientError(
                .unsupportedByBroker,
                "broker \(address(leader)) is older than the cluster's transaction.version (KIP-890)")
            for batch in sending { finish(batch, .failure(error)) }
            return
        }
        transactions?.dispatched()
        let request = ProduceRequest(
            sending, version: version, configuration: configuration, metadata: engine.metadata)
        var byteCount = 0
        var retryCount = 0
        for batch in sending {
            batch.queue.inFlight.append(batch)
            byteCount += batch.encoded?.readableBytes ?? 0
            if batch.retryCount > 0 { retryCount += 1 }
        }
        accumulator.count {
            $0.requestCount += 1
            $0.sentBatchBytes += byteCount
            $0.retryCount += retryCount
        }
        let timeout = TimeAmount(configuration.client.requestTimeout)
        broker.inFlightCount += 1
        inFlightBatchCount += sending.count
        if configuration.acknowledgement == .none {
            connection.sendUnanswered(request, version: version, timeout: timeout) { result in
                broker.inFlightCount -= 1
                for batch in sending {
                    self.landed(batch)
                    switch result {
                    case .success: self.finish(batch, .success((offset: nil, timestamp: nil)))
                    case .failure(let error): self.retry(batch, .connection(error, peer: self.address(leader)))
                    }
                }
                self.transactions?.settle()
                self.loop.assumeIsolated().execute { self.pump() }
            }
            return
        }
        connection.send(request, version: version, timeout: timeout) { result in
            broker.inFlightCount -= 1
            for batch in sending { self.landed(batch) }
            switch result {
            case .success(let response):
                self.answered(sending, response, version: version, leader: leader)
            case .failure(let error):
                let error = ClientError.connection(error, peer: self.address(leader))
                for batch in sending { self.retry(batch, error) }
                self.engine.refreshMetadata()
            }
            self.transactions?.settle()
            self.loop.assumeIsolated().execute { self.pump() }
        }
    }

    private func landed(_ batch: PendingBatch) {
        batch.queue.inFlight.removeAll { $0 === batch }
        inFlightBatchCount -= 1
    }

    private func address(_ broker: BrokerID) -> BrokerAddress {
        engine.metadata.brokers[broker]?.address ?? configuration.client.bootstrap[0]
    }

    /// Numbers a batch and finishes its bytes.
    private func prepare(_ batch: PendingBatch) throws(ClientError) {
        let queue = batch.queue
        let isForeign =
            transactions == nil ? queue.identity.id != identity.id : queue.identity != identity
        if configuration.isIdempotent, isForeign { adoptIdentity(queue) }
        if batch.encoded == nil {
            batch.recordCount = Int(batch.builder.recordCount)
            var options = RecordBatchBuilder.Options()
            switch configuration.compression {
            case .none: options.codec = .none
            case .gzip(let level):
                options.codec = .gzip
                options.level = level
            case .snappy: options.codec = .snappy
            case .lz4: options.codec = .lz4
            case .zstd(let level):
                options.codec = .zstd
                options.level = level
            }
            options.isTransactional = transactions != nil
            if configuration.isIdempotent {
                number(batch)
                options.producerID = batch.identity.id
                options.producerEpoch = batch.identity.epoch
                options.baseSequence = batch.baseSequence
            }
            do {
                batch.encoded = try batch.builder.build(options, compressor: compressor)
            } catch {
                throw ClientError(
                    error.errorCode == .unsupportedCompressionType ? .invalidConfiguration : .invalidArgument,
                    "a batch for \(queue.topicPartition) cannot be built: \(error)",
                    brokerCode: error.errorCode,
                    cause: error)
            }
            accumulator.recycle(batch.builder)
            batch.builder = RecordBatchBuilder(capacity: 0)
        } else if configuration.isIdempotent, batch.identity != queue.identity {
            number(batch)
            if var bytes = batch.encoded {
                batch.encoded = nil
                let start = bytes.readerIndex
                bytes.setInteger(batch.identity.id, at: start + 43)
                bytes.setInteger(batch.identity.epoch, at: start + 51)
                bytes.setInteger(batch.baseSequence, at: start + 53)
                RecordBatchPatch.updateChecksum(in: &bytes)
                batch.encoded = bytes
            }
        }
    }

    private func number(_ batch: PendingBatch) {
        batch.identity = batch.queue.identity
        batch.baseSequence = batch.queue.nextSequence
        batch.queue.nextSequence = RecordBatchHeader.sequence(
            batch.baseSequence, plus: Int32(truncatingIfNeeded: batch.recordCount))
    }

    // MARK: Answers

    private func answered(
        _ batches: [PendingBatch], _ response: ProduceResponse, version: Int16, leader: BrokerID
    ) {
        for endpoint in response.nodeEndpoints {
            engine.add(nodeID: endpoint.nodeID, host: endpoint.host, port: endpoint.port, rack: endpoint.rack)
        }
        var results: [TopicPartition: ProduceResponse.PartitionProduceResponse] = [:]
        for topic in response.responses {
            let name = version > ProduceRequest.lastNameVersion ? engine.metadata.names[topic.topicID] : topic.name
            guard let name else { continue }
            for partition in topic.partitionResponses {
                results[TopicPartition(name, partition.index)] = partition
            }
        }
        for batch in batches {
            guard let result = results[batch.queue.topicPartition] else {
                retry(
                    batch,
                    ClientError(
                        .protocolViolation,
                        "broker \(address(leader)) left \(batch.queue.topicPartition) out of its answer",
                        isRetriable: true))
                continue
            }
            answered(batch, result)
        }
    }

    private func answered(_ batch: PendingBatch, _ result: ProduceResponse.PartitionProduceResponse) {
        let queue = batch.queue
        let code = ErrorCode(rawValue: result.errorCode)
        switch code {
        case .none, .duplicateSequenceNumber:
            finish(
                batch,
                .success(
                    (
                        offset: result.baseOffset >= 0 ? Offset(result.baseOffset) : nil,
                        timestamp: result.logAppendTimeMs >= 0
                            ? Timestamp(milliseconds: result.logAppendTimeMs) : nil
                    )))
        case .outOfOrderSequenceNumber, .unknownProducerID, .invalidProducerEpoch:
            let error = ClientError.broker(
                code, "partition \(queue.topicPartition)", detail: result.errorMessage)
            guard configuration.isIdempotent else {
                finish(batch, .failure(error))
                return
            }
            // Behind a batch that is to be repeated the number had to be refused. As the first of those without
            // an answer it means that the broker has lost or never had our state: go on under a new epoch.
            let isFirst =
                queue.retries.allSatisfy { $0.order > batch.order }
                && queue.inFlight.allSatisfy { $0.order > batch.order }
            if transactions != nil {
                // The epoch of a transactional producer is the coordinator's to raise.
                if isFirst || code == .invalidProducerEpoch {
                    finish(batch, .failure(error))
                } else {
                    retry(batch, error)
                }
                return
            }
            if isFirst { queue.needsNewEpoch = true }
            retry(batch, error)
        case _ where code.isRetriable:
            let error = ClientError.broker(
                code, "partition \(queue.topicPartition)", detail: result.errorMessage)
            retry(batch, error)
            let hinted = engine.hint(
                leader: result.currentLeader.leaderID, epoch: result.currentLeader.leaderEpoch,
                of: queue.topicPartition)
            if hinted { queue.notBefore = .now() } else { engine.refreshMetadata() }
        case _:
            finish(batch, .failure(refusal(batch, code, result)))
        }
    }

    private func refusal(
        _ batch: PendingBatch, _ code: ErrorCode, _ result: ProduceResponse.PartitionProduceResponse
    ) -> ClientError {
        var detail = result.errorMessage
        if let first = result.recordErrors.first {
            let text = first.batchIndexErrorMessage ?? ""
            detail = (detail.map { $0 + "; " } ?? "") + "record \(first.batchIndex) of the batch: \(text)"
        }
        if code == .messageTooLarge, detail == nil {
            detail =
                "batch of \(batch.encoded?.readableBytes ?? 0) bytes; lower the producer's batchBytes or raise "
                + "max.message.bytes of the topic"
        }
        return .broker(code, "partition \(batch.queue.topicPartition)", detail: detail)
    }

    /// Puts a batch back, in front of everything newer of its partition.
    private func retry(_ batch: PendingBatch, _ error: ClientError) {
        let queue = batch.queue
        queue.lastError = error
        queue.isReplaying = false
        batch.retryCount += 1
        if transactions?.isDropping == true {
            finish(batch, .failure(error))
            return
        }
        if engine.isClosed {
            finish(batch, .failure(.closed("producer")))
            return
        }
        let age = NIODeadline.now() - batch.createdAt
        if batch.retryCount > configuration.retryLimit {
            finish(batch, .failure(error))
            return
        }
        if age >= TimeAmount(configuration.deliveryTimeout) {
            expire(batch)
            return
        }
        let place = queue.retries.firstIndex { $0.order > batch.order } ?? queue.retries.endIndex
        queue.retries.insert(batch, at: place)
        let pause = engine.retryBackoff.pause(after: batch.retryCount)
        queue.notBefore = .now() + TimeAmount(pause)
        engine.logger.debug(
            "batch will be sent again",
            metadata: ["partition": "\(queue.topicPartition)", "cause": "\(error.message)"])
        wake(at: queue.notBefore)
    }

    private func finish(
        _ batch: PendingBatch, _ result: Result<(offset: Offset?, timestamp: Timestamp?), ClientError>
    ) {
        let queue = batch.queue
        let failure: ClientError?
        switch result {
        case .success(let (offset, timestamp)):
            failure = nil
            queue.lastError = nil
            for waiter in batch.waiters {
                waiter.sink.complete(
                    waiter.slot,
                    .success(
                        RecordMetadata(
                            topicPartition: queue.topicPartition,
                            offset: offset.map { $0 + Int64(waiter.index) },
                            timestamp: timestamp ?? Timestamp(milliseconds: waiter.timestamp))))
            }
        case .failure(let error):
            failure = error
            if batch.recordCount == 0 { batch.recordCount = Int(batch.builder.recordCount) }
            if let transactions {
                transactions.gaveUp(error, isNumbered: !batch.identity.isNone)
            } else if !batch.identity.isNone {
                queue.needsNewEpoch = true
            }
            for waiter in batch.waiters { waiter.sink.complete(waiter.slot, .failure(error)) }
        }
        batch.encoded = nil
        accumulator.finished(batch, failure: failure)
    }

    // MARK: Idempotence

    private func askIdentity() {
        guard !isAskingIdentity else { return }
        isAskingIdentity = true
        engine.request(InitProducerIdRequest.self, to: .any) { _ in
            var request = InitProducerIdRequest()
            request.transactionalID = nil
            request.transactionTimeoutMs = Int32.max
            return request
        } completion: { result in
            self.isAskingIdentity = false
            let result = result.flatMap { answer -> Result<ProducerIdentity, ClientError> in
                let response = answer.response
                guard response.errorCode == 0 else {
                    return .failure(
                        .broker(ErrorCode(rawValue: response.errorCode), "producer id for idempotent sending")
                    )
                }
                guard response.producerID >= 0, response.producerEpoch >= 0 else {
                    return .failure(
                        ClientError(
                            .protocolViolation, "broker \(answer.address) gave an impossible producer id"))
                }
                return .success(ProducerIdentity(id: response.producerID, epoch: response.producerEpoch))
            }
            switch result {
            case .success(let identity):
                self.identity = identity
                self.identityFailureCount = 0
                self.pump()
            case .failure(let error):
                self.identityFailureCount += 1
                for queue in self.active { queue.lastError = error }
                if error.isRetriable {
                    self.wake(
                        at: .now()
                            + TimeAmount(self.engine.retryBackoff.pause(after: self.identityFailureCount)))
                } else {
                    let remedy =
                        error.code == .unsupportedByBroker
                        ? "; set isIdempotent to false for this broker" : ""
                    self.failAll(
                        ClientError(
                            error.code, error.message + remedy, brokerCode: error.brokerCode,
                            cause: error.cause))
                }
            }
        }
    }

    /// The coordinator has given this identity; partitions adopt it with their next batch.
    func take(_ identity: ProducerIdentity) { self.identity = identity }

    /// Gives up all batches that are not on their way, and takes no more of the transaction.
    func dropAll(_ error: ClientError) {
        accumulator.closeTransaction(because: error)
        failAll(error)
    }

    private func adoptIdentity(_ queue: PartitionQueue) {
        queue.identity = identity
        queue.nextSequence = 0
        queue.needsNewEpoch = false
    }

    /// Moves a partition to a new epoch; nothing of it is in flight.
    private func startNewEpoch(_ queue: PartitionQueue) {
        queue.needsNewEpoch = false
        guard configuration.isIdempotent, !queue.identity.isNone else { return }
        if queue.identity.epoch < identity.epoch {
            queue.identity = identity
        } else if identity.epoch < Int16.max {
            identity.epoch += 1
            queue.identity = identity
        } else {
            // The epochs of this id are used up; partitions adopt the next id when they send.
            identity = .none
            queue.identity = .none
            askIdentity()
        }
        queue.nextSequence = 0
        engine.logger.debug(
            "partition continues under a new producer epoch",
            metadata: ["partition": "\(queue.topicPartition)", "epoch": "\(queue.identity.epoch)"])
    }

    // MARK: Expiry and end

    private func scheduleExpiry() {
        guard expiryTimer == nil, !active.isEmpty, !engine.isClosed else { return }
        expiryTimer = loop.assumeIsolated().scheduleTask(in: Self.expiryInterval) {
            self.expiryTimer = nil
            self.expireWaiting()
            self.pump()
            self.scheduleExpiry()
        }
    }

    private func expireWaiting() {
        let limit = NIODeadline.now() - TimeAmount(configuration.deliveryTimeout)
        for queue in active {
            while let first = queue.retries.first, first.createdAt < limit {
                queue.retries.removeFirst()
                expire(first)
            }
            guard queue.retries.isEmpty else { continue }
            while let batch = accumulator.takeExpired(from: queue, before: limit) { expire(batch) }
        }
    }

    private func expire(_ batch: PendingBatch) {
        let partition = batch.queue.topicPartition
        let cause = batch.queue.lastError
        finish(
            batch,
            .failure(
                ClientError(
                    .deliveryTimedOut,
                    "records for \(partition) were not acknowledged within \(configuration.deliveryTimeout); "
                        + (cause.map { "last obstacle: \($0.message)" }
                            ?? "the brokers were too slow for the load"),
                    isRetriable: true, brokerCode: cause?.brokerCode, cause: cause)))
    }

    private func failAll(_ error: ClientError) {
        for queue in accumulator.takeListed() where !queue.isActive {
            queue.isActive = true
            active.append(queue)
        }
        for queue in active {
            let retries = queue.retries
            queue.retries = []
            for batch in retries { finish(batch, .failure(error)) }
            while let batch = accumulator.takeExpired(from: queue, before: .distantFuture) {
                finish(batch, .failure(error))
            }
        }
    }

    /// Fails whatever is left and closes the connections.
    func shutDown() {
        wakeTimer?.cancel()
        expiryTimer?.cancel()
        expiryTimer = nil
        let error = ClientError.closed("producer")
        lookup.close(error)
        transactions?.close(error)
        engine.close()
        failAll(error)
    }
}
