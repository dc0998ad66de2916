internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel

/// Both transaction protocols of Kafka's clients.
enum TransactionGeneration {
    /// Partitions are added by the client, the epoch stays (KIP-98).
    case first
    /// The broker adds partitions, the epoch rises with every transaction (KIP-890).
    case second
}

/// A transactional producer: one transactional id, one transaction at a time.
final class TransactionSession {
    /// After this the coordinator aborts; shorter than some pauses of the clients.
    static let timeoutMilliseconds: Int32 = 15_000

    let transactionalID: String
    let generation: TransactionGeneration
    private let world: World
    /// Coordinator and partitions are reached on connections of their own, so that their requests overtake each other.
    private let coordinator: ClientLink
    private let random: SimulationRandom
    private let session: ProducerSession
    private var added: Set<Place> = []
    private var addedGroup = false
    private var commitAttempts = 0
    private(set) var isOpen = false

    init(
        _ world: World, _ transactionalID: String, _ generation: TransactionGeneration, coordinator: ClientLink,
        data: ClientLink, _ random: SimulationRandom
    ) {
        self.world = world
        self.transactionalID = transactionalID
        self.generation = generation
        self.coordinator = coordinator
        self.random = random
        session = ProducerSession(world, data, random)
    }

    var isReady: Bool { session.stamp != nil }

    func forget() { session.begin(nil) }

    /// InitProducerId: ends whatever an earlier life has left open.
    func initialize() async -> Bool {
        var request = InitProducerIdRequest()
        request.transactionalID = transactionalID
        request.transactionTimeoutMs = Self.timeoutMilliseconds
        do {
            let response = try await coordinator.ask(request, version: generation == .second ? 5 : 4)
            guard response.errorCode == 0 else { return false }
            session.begin(ProducerStamp(id: response.producerID, epoch: response.producerEpoch))
            return true
        } catch {
            return false
        }
    }

    func begin() {
        isOpen = true
        added = []
        addedGroup = false
        commitAttempts = 0
    }

    /// Sequences that were given up leave a gap: under the first protocol the producer begins a new epoch (KIP-360).
    func noteEnd(_ result: SendResult) {
        if generation == .first, result != .acknowledged { forget() }
    }

    func makeBatch(_ place: Place, _ values: [Int64]) -> OutgoingBatch { session.makeBatch(place, values) }

    func send(_ batches: inout [OutgoingBatch]) async -> SendResult {
        let deadline = world.now + 20_000_000_000
        if generation == .first {
            let missing = Set(batches.map(\.place)).subtracting(added)
            if !missing.isEmpty {
                let result = await add(missing, deadline)
                guard result == .acknowledged else { return result }
                added.formUnion(missing)
            }
        }
        return await session.send(
            &batches, transactionalID: transactionalID, version: generation == .second ? 12 : 11, deadline: deadline)
    }

    /// Sends a batch that arrives after `delay`, when the transaction it belongs to is over (F33).
    func sendLate(_ batch: OutgoingBatch, afterNanoseconds delay: Int64) {
        session.sendLate(
            batch, transactionalID: transactionalID, version: generation == .second ? 12 : 11,
            afterNanoseconds: delay)
    }

    private func add(_ places: Set<Place>, _ deadline: Int64) async -> SendResult {
        var request = AddPartitionsToTxnRequest()
        request.v3AndBelowTransactionalID = transactionalID
        request.v3AndBelowProducerID = session.stamp?.id ?? -1
        request.v3AndBelowProducerEpoch = session.stamp?.epoch ?? -1
        request.v3AndBelowTopics = Set(places.map(\.topic)).sorted().map { name in
            var topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic()
            topic.name = name
            topic.partitions = places.filter { $0.topic == name }.map { Int32($0.partition) }.sorted()
            return topic
        }
        return await persist(deadline) { (coordinator) async throws(LinkFailure) -> [ErrorCode] in
            let response = try await coordinator.ask(request, version: 3)
            return response.resultsByTopicV3AndBelow.flatMap(\.resultsByPartition).map {
                ErrorCode(rawValue: $0.partitionErrorCode)
            }
        }
    }

    /// Asks until all codes are good, one is bad for good, or the deadline has passed.
    private func persist(
        _ deadline: Int64, _ ask: (ClientLink) async throws(LinkFailure) -> [ErrorCode]
    ) async -> SendResult {
        while true {
            do {
                let codes = try await ask(coordinator)
                if let bad = codes.first(where: { $0 != .none && !$0.asksForPatience }) { return .refused(bad) }
                if codes.allSatisfy({ $0 == .none }) { return .acknowledged }
            } catch {
                if case .malformed(let cause) = error { world.fail("malformed-response", cause) }
            }
            if world.now > deadline || world.act == .over { return .gaveUp }
            await world.pause(nanoseconds: random.nanoseconds(20...300))
        }
    }

    /// Offsets of a group as part of the transaction.
    func commit(
        _ offsets: [Place: Int64], group: String, member: String, instance: String?, epoch: Int32
    ) async -> SendResult {
        let deadline = world.now + 20_000_000_000
        let stamp = session.stamp
        if generation == .first, !addedGroup {
            var request = AddOffsetsToTxnRequest()
            request.transactionalID = transactionalID
            request.producerID = stamp?.id ?? -1
            request.producerEpoch = stamp?.epoch ?? -1
            request.groupID = group
            let result = await persist(deadline) { (coordinator) async throws(LinkFailure) -> [ErrorCode] in
                [ErrorCode(rawValue: try await coordinator.ask(request, version: 3).errorCode)]
            }
            guard result == .acknowledged else { return result }
            addedGroup = true
        }
        var request = TxnOffsetCommitRequest()
        request.transactionalID = transactionalID
        request.groupID = group
        request.producerID = stamp?.id ?? -1
        request.producerEpoch = stamp?.epoch ?? -1
        request.generationIDOrMemberEpoch = epoch
        request.memberID = member
        request.groupInstanceID = instance
        request.topics = Set(offsets.keys.map(\.topic)).sorted().map { name in
            var topic = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic()
            topic.name = name
            topic.partitions = offsets.filter { $0.key.topic == name }.sorted { $0.key < $1.key }.map { place, offset in
                var partition = TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition()
                partition.partitionIndex = Int32(place.partition)
                partition.committedOffset = offset
                return partition
            }
            return topic
        }
        return await persist(deadline) { (coordinator) async throws(LinkFailure) -> [ErrorCode] in
            let response = try await coordinator.ask(request, version: generation == .second ? 5 : 4)
            return response.topics.flatMap(\.partitions).map { ErrorCode(rawValue: $0.errorCode) }
        }
    }

    /// Ends the transaction; what its fate is, as far as a client can know.
    ///
    /// - Parameter lateCopy: the same request arrives once more after so many nanoseconds, when the next transaction
    ///   may have begun. Only under the second protocol: the first cannot tell the two apart (KIP-890).
    func end(committing: Bool, lateCopy: Int64? = nil) async -> Outcome {
        isOpen = false
        let deadline = world.now + 30_000_000_000
        var request = EndTxnRequest()
        request.transactionalID = transactionalID
        request.producerID = session.stamp?.id ?? -1
        request.producerEpoch = session.stamp?.epoch ?? -1
        request.committed = committing
        if let lateCopy, generation == .second, session.stamp != nil {
            coordinator.sendLate(request, version: 5, afterNanoseconds: lateCopy)
        }
        // Machine and client go together: nobody tries again, a later life ends what is open.
        let isLast = committing && world.takeCommitFault()
        while true {
            if committing { commitAttempts += 1 }
            do {
                let response = try await coordinator.ask(request, version: generation == .second ? 5 : 4)
                let code = ErrorCode(rawValue: response.errorCode)
                if code == .none {
                    if generation == .second, response.producerID >= 0 {
                        session.begin(ProducerStamp(id: response.producerID, epoch: response.producerEpoch))
                    }
                    return committing ? .succeeded : .failed
                }
                if !code.asksForPatience {
                    session.begin(nil)
                    // Refused at the first try: it did not commit. After an unanswered try nobody knows.
                    return commitAttempts <= 1 ? .failed : .unknown
                }
                // Refused without a doubt: the try does not count.
                if committing, code == .concurrentTransactions || code == .coordinatorLoadInProgress {
                    commitAttempts -= 1
                }
            } catch {
                if case .refused = error, committing { commitAttempts -= 1 }
                if case .malformed(let cause) = error { world.fail("malformed-response", "EndTxn: \(cause)") }
            }
            if isLast {
                session.begin(nil)
                return commitAttempts == 0 ? .failed : .unknown
            }
            if world.now > deadline || world.act == .over {
                session.begin(nil)
                return commitAttempts == 0 ? .failed : .unknown
            }
            await world.pause(nanoseconds: random.nanoseconds(20...300))
        }
    }
}

/// A process that sends transactions over several partitions, some of which it aborts or leaves lying.
// SAFETY: confined to the thread that runs the simulation.
final class TransactionalProducer: Client, @unchecked Sendable {
    private let session: TransactionSession
    private let places: [Place]
    /// How long it waits between transactions, in milliseconds.
    private let idle: ClosedRange<Int64>
    private let coordinator: ClientLink
    /// The end of the transaction before will arrive once more: this one gives it time to.
    private var expectsLateEnd = false

    init(
        _ world: World, process: Int, transactionalID: String, generation: TransactionGeneration, places: [Place],
        idle: ClosedRange<Int64>
    ) {
        self.places = places
        self.idle = idle
        let random = world.stream("transactions \(process)")
        let data = ClientLink(world, "txn-\(process)-data")
        coordinator = ClientLink(world, "txn-\(process)", lingers: generation == .second)
        session = TransactionSession(
            world, transactionalID, generation, coordinator: coordinator, data: data, random)
        super.init(world, process: process, link: data, random: random)
    }

    override func run() async {
        while world.act == .play {
            if !expectsLateEnd || !session.isReady { await pause(idle) }
            if !session.isReady {
                guard await session.initialize() else { continue }
            }
            await transaction()
            // A process that starts anew.
            if random.chance(3) { session.forget() }
        }
    }

    private func transaction() async {
        let start = world.now
        session.begin()
        var steps: [Step] = []
        var result = SendResult.acknowledged
        for round in 0..<random.int(1..<4) where result == .acknowledged {
            var batches = (0..<random.int(1..<4)).map { _ in
                session.makeBatch(random.pick(places), (0..<random.int(1..<3)).map { _ in world.takeValue() })
            }
            result = await session.send(&batches)
            steps += batches.flatMap(\.steps)
            // Some dawdle, some so long that the coordinator gives up on them.
            if round == 0, random.chance(2) { await pause(5_000...40_000) }
        }
        let met = expectsLateEnd
        expectsLateEnd = false
        if met, result == .acknowledged { await pause(500...2_500) }
        if result == .acknowledged, random.chance(3) {
            // A batch that is under way when its client gives up and aborts: it arrives when all is over.
            let batch = session.makeBatch(random.pick(places), [world.takeValue()])
            session.sendLate(batch, afterNanoseconds: random.nanoseconds(200...4_000))
            steps += batch.steps
            result = .gaveUp
            let outcome = await session.end(committing: false)
            world.record(process, since: start, outcome, isTransaction: true, steps)
            return session.noteEnd(result)
        }
        let committing = result == .acknowledged && random.chance(met ? 50 : 85)
        let outcome: Outcome
        if result != .acknowledged, random.chance(50) {
            // It walks away; a later life ends it.
            session.forget()
            outcome = .failed
        } else {
            // While the end before comes again there must be something open: the next transaction begins at once.
            expectsLateEnd = committing && session.generation == .second && random.chance(4)
            outcome = await session.end(
                committing: committing, lateCopy: expectsLateEnd ? random.nanoseconds(300...1_500) : nil)
        }
        world.record(process, since: start, outcome, isTransaction: true, steps)
        session.noteEnd(result)
    }
}
