import MartletCoordinators
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// Random producers that begin, add, end, repeat themselves, come too late, time out and replace each other, against
/// a shard whose appends and markers take their time and which is thrown away now and then. Every run follows from
/// its seed.
///
/// The partitions are modelled by what the storage engine does with epochs, so that a marker or a write that passes
/// there shows up here.
private final class TransactionSimulation {
    struct Partition {
        var epoch: Int16 = -1
        var producerID: Int64 = -1
        /// Number of the transaction whose records are open here.
        var open: Int?
    }

    struct Client {
        var identity: ProducerIdentity?
        /// Number of the transaction it believes to be in.
        var transaction: Int
        var partitions: Set<TopicPartition> = []
        var hasEnded = false
    }

    let seed: UInt64
    var harness: TransactionHarness
    var random: SeededGenerator
    var client: Client
    var partitions: [TopicPartition: Partition] = [:]
    var nextTransaction = 1
    /// What each transaction's client was told or a marker said: once only.
    var fates: [Int: Bool] = [:]
    var acknowledged: [Int: Bool] = [:]
    /// Requests of the past, to be sent again.
    var past: [TransactionRequest] = []
    var writtenCount = 0
    var committed = 0
    var aborted = 0

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed)
        harness = TransactionHarness(TransactionConfiguration(maxTimeoutMilliseconds: 10_000)).load()
        client = Client(transaction: 0)
        harness.hold()
    }

    /// Does what is under way, some of it or all.
    func settle(_ limit: Int = .max) {
        var budget = limit
        while budget > 0 {
            budget -= 1
            if !harness.wantedIDs.isEmpty {
                harness.allocateNext()
            } else if !harness.orders.isEmpty, Bool.random(using: &random) || harness.inFlight.isEmpty {
                let fails = Int.random(in: 0..<6, using: &random) == 0
                let order = harness.orders[0]
                harness.writeNextMarkers { partition in
                    if fails, Bool.random(using: &self.random) { return .notLeaderOrFollower }
                    return self.mark(partition, order.marker)
                }
            } else if !harness.inFlight.isEmpty {
                harness.commitNext()
            } else {
                return
            }
        }
    }

    /// A partition takes a marker as the storage engine does.
    private func mark(_ name: TopicPartition, _ marker: TransactionMarker) -> ErrorCode {
        var partition = partitions[name] ?? Partition()
        if partition.producerID == marker.producer.id {
            let isTooOld =
                partition.open != nil
                ? marker.producer.epoch <= partition.epoch : marker.producer.epoch < partition.epoch
            if isTooOld { return .invalidProducerEpoch }
        }
        if let transaction = partition.open {
            if let fate = fates[transaction] {
                #expect(fate == marker.commits, "seed \(seed): transaction \(transaction) ends both ways")
            }
            fates[transaction] = marker.commits
            if let told = acknowledged[transaction] {
                #expect(told == marker.commits, "seed \(seed): transaction \(transaction) is not what its client was told")
            }
        }
        partition.open = nil
        partition.epoch = marker.producer.epoch
        partition.producerID = marker.producer.id
        partitions[name] = partition
        writtenCount += 1
        return .none
    }

    /// A record of the transaction reaches the partition after the coordinator added it.
    private func write(_ name: TopicPartition, _ identity: ProducerIdentity, _ transaction: Int) {
        var partition = partitions[name] ?? Partition()
        if partition.producerID == identity.id, identity.epoch < partition.epoch { return }
        if let open = partition.open {
            #expect(open == transaction, "seed \(seed): \(name) mixes transactions \(open) and \(transaction)")
        }
        #expect(fates[transaction] == nil, "seed \(seed): a record of \(transaction) comes after its end")
        partition.epoch = identity.epoch
        partition.producerID = identity.id
        partition.open = transaction
        partitions[name] = partition
    }

    private func send(_ request: TransactionRequest) -> TransactionResponse? {
        past.append(request)
        let id = harness.send(request)
        // Mostly the answer comes; sometimes the client gives up before.
        if Int.random(in: 0..<10, using: &random) == 0 {
            settle(2)
        } else {
            settle()
            harness.advance(100)
            settle()
        }
        return harness.response(to: id)
    }

    func step() {
        switch Int.random(in: 0..<24, using: &random) {
        case 0..<2: initialize(expected: nil)
        case 2: initialize(expected: client.identity)
        case 3..<11: add()
        case 11..<18: end()
        case 18..<21:
            // Something of the past arrives again, perhaps for the third time.
            guard let request = past.randomElement(using: &random) else { return }
            harness.send(request)
            settle(Int.random(in: 0..<4, using: &random))
        case 21:
            harness.advance(Int64.random(in: 0..<6_000, using: &random))
            settle(3)
        case 22:
            // The coordinator dies: what was not committed is gone, its log is loaded anew.
            harness = harness.successor(isHeld: true)
        case _:
            settle(1)
        }
    }

    private func initialize(expected: ProducerIdentity?) {
        let request = TransactionRequest.initialize(
            transactionalID: "t", timeoutMilliseconds: 5_000, expected: expected)
        guard case .initialized(let identity?, .none)? = send(request) else { return }
        if let old = client.identity, old.id == identity.id {
            #expect(identity.epoch > old.epoch || expected != nil, "seed \(seed): an epoch is given twice")
        }
        client = Client(identity: identity, transaction: nextTransaction)
        nextTransaction += 1
    }

    private func add() {
        guard let identity = client.identity, !client.hasEnded else { return }
        let names = (0..<Int.random(in: 1...2, using: &random)).map { _ in
            TopicPartition("topic", Int32.random(in: 0..<4, using: &random))
        }
        let request = TransactionRequest.addPartitions(
            transactionalID: "t", producer: identity, partitions: names, under: .second)
        guard case .partitions(let outcomes)? = send(request) else { return }
        guard outcomes.allSatisfy({ $0.error == .none }) else {
            if outcomes.first?.error == .producerFenced { client.identity = nil }
            return
        }
        for name in names { write(name, identity, client.transaction) }
        client.partitions.formUnion(names)
    }

    private func end() {
        guard let identity = client.identity else { return }
        let commits = Bool.random(using: &random)
        let request = TransactionRequest.end(
            transactionalID: "t", producer: identity, commits: commits, under: .second)
        client.hasEnded = true
        for _ in 0..<5 {
            guard case .ended(let next, let error)? = send(request) else { continue }
            switch error {
            case .none:
                acknowledged[client.transaction] = commits
                if let fate = fates[client.transaction] {
                    #expect(fate == commits, "seed \(seed): transaction \(client.transaction) was told otherwise")
                }
                if commits { committed += 1 } else { aborted += 1 }
                client = Client(identity: next, transaction: nextTransaction)
                nextTransaction += 1
                return
            case .concurrentTransactions: continue
            case .invalidTxnState where client.partitions.isEmpty:
                client.hasEnded = false
                return
            case _:
                client.identity = nil
                return
            }
        }
    }

    func finish() {
        for _ in 0..<200 {
            settle()
            harness.advance(6_000)
        }
        settle()
        let state = harness.state()
        let resting: [TransactionPhase?] = [nil, .empty, .completeCommit, .completeAbort]
        #expect(resting.contains(state?.phase), "seed \(seed): stuck in \(String(describing: state?.phase))")
        for (name, partition) in partitions {
            #expect(partition.open == nil, "seed \(seed): \(name) has an open transaction for ever")
        }
        #expect(harness.unansweredCount == 0)
        #expect(harness.successor().durableState() == harness.durableState(), "seed \(seed): replay differs")
    }
}

@Suite struct `Random transactions` {
    @Test(arguments: 0..<60 as Range<UInt64>)
    func `every transaction ends one way everywhere, none is mixed with another, none hangs`(seed: UInt64) {
        let simulation = TransactionSimulation(seed: seed)
        for _ in 0..<400 { simulation.step() }
        simulation.finish()
        #expect(simulation.committed > 0 && simulation.writtenCount > 0, "seed \(seed) does nothing")
    }
}
