import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private let a0 = TopicPartition("a", 0)
private let a1 = TopicPartition("a", 1)
private let b0 = TopicPartition("b", 0)

private func producer(_ id: Int64, _ epoch: Int16) -> ProducerIdentity { ProducerIdentity(id: id, epoch: epoch) }

/// A shard whose transactional id `t` has this state, as if it had been loaded.
private func harness(
    _ phase: TransactionPhase, _ identity: ProducerIdentity, previous: Int64? = nil, next: Int64? = nil,
    partitions: Set<TopicPartition> = [], under rules: TransactionProtocol? = .second,
    _ configuration: TransactionConfiguration = TransactionConfiguration()
) -> TransactionHarness {
    let start = Timestamp(milliseconds: TransactionHarness.epoch)
    let state = TransactionState(
        producer: identity, previousProducerID: previous, nextProducerID: next, timeoutMilliseconds: 60_000,
        phase: phase, partitions: partitions, startedAt: phase == .empty ? nil : start, updatedAt: start,
        transactionProtocol: phase == .empty ? nil : rules)
    let record = TransactionRecord(transactionalID: "t", state: state)
    let (key, value) = try! record.encoded()
    return TransactionHarness(configuration, log: [try! TransactionRecord.decode(key: key, value: value)!]).load()
}

@Suite struct `Transaction records` {
    @Test func `every state survives its bytes`() throws {
        for phase in TransactionPhase.allCases where phase != .dead {
            let rules: [TransactionProtocol?] = phase == .empty ? [nil] : [.first, .second]
            for rules in rules {
                let state = TransactionState(
                    producer: producer(9, 4), previousProducerID: 5, nextProducerID: rules == .second ? 11 : nil,
                    timeoutMilliseconds: 1_234, phase: phase, partitions: phase == .empty ? [] : [b0, a1, a0],
                    startedAt: phase == .empty ? nil : Timestamp(milliseconds: 77),
                    updatedAt: Timestamp(milliseconds: 78), transactionProtocol: rules)
                let record = TransactionRecord(transactionalID: "ünï", state: state)
                let (key, value) = try record.encoded()
                #expect(try TransactionRecord.decode(key: key, value: value) == record)
            }
        }
        let tombstone = TransactionRecord(transactionalID: "x", state: nil)
        let (key, value) = try tombstone.encoded()
        #expect(value == nil)
        #expect(try TransactionRecord.decode(key: key, value: nil) == tombstone)
    }

    @Test func `a record of the old layout is read`() throws {
        var value = TransactionLogValue()
        value.producerID = 3
        value.producerEpoch = 1
        value.transactionStatus = 1
        var topic = TransactionLogValue.PartitionsSchema()
        topic.topic = "a"
        topic.partitionIDs = [1]
        value.transactionPartitions = [topic]
        value.transactionStartTimestampMs = 5
        var writer = ProtocolWriter()
        writer.integer(Int16(0))
        try value.encode(into: &writer, version: 0)
        let (key, _) = try TransactionRecord(transactionalID: "t", state: nil).encoded()
        let state = try #require(try TransactionRecord.decode(key: key, value: writer.buffer)?.state)
        #expect(state.phase == .ongoing && state.partitions == [a1] && state.transactionProtocol == .first)
        #expect(state.previousProducerID == nil && state.nextProducerID == nil)
    }

    @Test func `a record of an unknown type is left alone, a broken one is an error`() throws {
        var key = ByteBuffer()
        key.writeInteger(Int16(4))
        key.writeInteger(Int16(1))
        #expect(try TransactionRecord.decode(key: key, value: nil) == nil)
        #expect(throws: DecodeError.self) { try TransactionRecord.decode(key: ByteBuffer(), value: nil) }
        let (good, _) = try TransactionRecord(transactionalID: "t", state: nil).encoded()
        #expect(throws: DecodeError.self) { try TransactionRecord.decode(key: good, value: ByteBuffer(bytes: [0])) }
    }
}

@Suite struct `InitProducerId with a transactional id` {
    @Test func `a new id starts at epoch 0, a second producer gets the next epoch`() {
        let shard = TransactionHarness().load()
        #expect(shard.initialize()?.producer == producer(1_000, 0))
        #expect(shard.initialize()?.producer == producer(1_000, 1))
        #expect(shard.initialize("other")?.producer == producer(1_001, 0))
        #expect(shard.successor().durableState() == shard.durableState())
    }

    @Test func `a timeout above the cap is INVALID_TRANSACTION_TIMEOUT`() {
        let shard = TransactionHarness(TransactionConfiguration(maxTimeoutMilliseconds: 1_000)).load()
        #expect(shard.initialize(timeout: 1_001)?.error == .invalidTransactionTimeout)
        #expect(shard.initialize(timeout: 0)?.error == .invalidTransactionTimeout)
        #expect(shard.initialize(timeout: 1_000)?.error == ErrorCode.none)
        #expect(shard.initialize("")?.error == .invalidRequest)
    }

    @Test func `nothing is answered before the append is committed`() {
        let shard = TransactionHarness().load()
        shard.commitsAtOnce = false
        #expect(shard.initialize() == nil)
        #expect(shard.log.isEmpty)
        shard.commitNext()
        #expect(shard.unansweredCount == 0)
    }

    @Test func `a producer that names itself gets the next epoch, its repeat the same one`() {
        let shard = TransactionHarness().load()
        let first = producer(1_000, 0)
        #expect(shard.initialize()?.producer == first)
        #expect(shard.initialize(expected: first)?.producer == producer(1_000, 1))
        #expect(shard.initialize(expected: first)?.producer == producer(1_000, 1))
        // Somebody else takes over: the name is worth nothing any more.
        #expect(shard.initialize()?.producer == producer(1_000, 2))
        #expect(shard.initialize(expected: first)?.error == .producerFenced)
        #expect(shard.initialize(expected: producer(1_000, 1))?.error == .producerFenced)
        #expect(shard.initialize(expected: producer(5, 2))?.error == .producerFenced)
    }

    @Test func `an open transaction is aborted first, and its producer is fenced for good`() {
        let shard = TransactionHarness().load()
        let old = producer(1_000, 0)
        _ = shard.initialize()
        #expect(shard.add(old, [a0]) == ErrorCode.none)
        #expect(shard.initialize()?.error == .concurrentTransactions)
        #expect(shard.phase() == .completeAbort)
        #expect(shard.written.map(\.marker.commits) == [false])
        #expect((shard.written.first?.marker.producer.epoch ?? 0) > old.epoch)
        for shard in [shard, shard.successor()] {
            #expect(shard.end(old, commits: true)?.error == .producerFenced)
            #expect(shard.end(old, commits: false)?.error == .producerFenced)
            #expect(shard.add(old, [a0]) == .producerFenced)
            #expect(shard.initialize(expected: old)?.error == .producerFenced)
        }
        let new = shard.initialize()?.producer
        #expect((new?.epoch ?? 0) > 1 && new?.id == 1_000)
    }

    @Test func `a zombie that names itself does not end its successor's transaction`() {
        let shard = harness(.ongoing, producer(5, 3), partitions: [a0])
        #expect(shard.initialize(expected: producer(5, 2))?.error == .producerFenced)
        #expect(shard.phase() == .ongoing)
        // The present producer may: its transaction ends and it gets the epoch after.
        #expect(shard.initialize(expected: producer(5, 3))?.error == .concurrentTransactions)
        #expect(shard.phase() == .completeAbort)
        #expect(shard.initialize(expected: producer(5, 3))?.producer == producer(5, 4))
    }

    @Test func `while markers are on their way the client is told to come again`() {
        for phase in [TransactionPhase.prepareCommit, .prepareAbort] {
            let shard = harness(phase, producer(5, 4), partitions: [a0])
            // The fixture writes markers at once: hold them back in a second life.
            let held = TransactionHarness(log: shard.log.prefix(1).map { $0 })
            held.writesMarkersAtOnce = false
            _ = held.load()
            #expect(held.orders.count == 1)
            #expect(held.initialize()?.error == .concurrentTransactions)
            held.writeNextMarkers()
            #expect(held.initialize()?.producer == producer(5, 5))
        }
    }

    @Test func `an id whose epochs are used up is replaced, and the repeat of that is recognised`() {
        let last = producer(5, ProducerIdentity.lastEpoch)
        let shard = harness(.empty, last)
        shard.allocatesAtOnce = false
        #expect(shard.initialize(expected: last) == nil)
        #expect(shard.log.count == 1, "nothing is decided before the id is there")
        shard.allocateNext()
        #expect(shard.state()?.producer == producer(1_000, 0))
        #expect(shard.state()?.previousProducerID == 5)
        #expect(shard.initialize(expected: last)?.producer == producer(1_000, 0))
        #expect(shard.initialize()?.producer == producer(1_000, 1))
        #expect(shard.initialize(expected: last)?.error == .producerFenced)
    }

    @Test func `fencing at the last epochs does not overflow`() {
        for epoch in [ProducerIdentity.lastEpoch - 1, ProducerIdentity.lastEpoch] {
            let shard = harness(.ongoing, producer(5, epoch), partitions: [a0])
            #expect(shard.initialize()?.error == .concurrentTransactions)
            #expect(shard.written.first?.marker.producer == producer(5, .max))
            #expect(shard.initialize()?.producer == producer(1_000, 0))
        }
    }

    @Test func `the epoch of the last fence is nobody's: its producer gets another id`() {
        // 32,766 is the last epoch of a client; whoever replaces it or ends it for being late leaves 32,767.
        let last = producer(5, ProducerIdentity.lastEpoch)
        let fence = producer(5, .max)
        let fenced = harness(.ongoing, last, partitions: [a0])
        #expect(fenced.initialize()?.error == .concurrentTransactions)
        #expect(fenced.state()?.producer == fence && fenced.phase() == .completeAbort)
        // A zombie is not one behind, as its own end would leave it.
        #expect(fenced.end(last, commits: false)?.error == .producerFenced)
        #expect(fenced.end(last, commits: true)?.error != ErrorCode.none)
        for rules in [TransactionProtocol.first, .second] {
            #expect(fenced.end(fence, commits: false, under: rules)?.error == .producerFenced)
            #expect(fenced.add(fence, [a0], under: rules) == .producerFenced)
        }
        #expect(fenced.verify(fence, [a0]) == [.producerFenced])
        #expect(fenced.initialize(expected: fence)?.error == .producerFenced)
        #expect(fenced.state()?.producer == fence, "nothing of this changed anything")
        #expect(fenced.initialize()?.producer == producer(1_000, 0))

        let late = harness(.ongoing, last, partitions: [a0])
        late.advance(60_000)
        #expect(late.state()?.producer == fence)
        #expect(late.initialize(expected: last)?.producer == producer(1_000, 0), "its own, and may go on")
        #expect(late.initialize(expected: last)?.producer == producer(1_000, 0))
    }

    @Test(arguments: [TransactionProtocol.first, .second])
    func `a producer that gives its own transaction up goes on under either protocol`(rules: TransactionProtocol) {
        let own = producer(5, 3)
        let shard = harness(
            .ongoing, own, partitions: [a0], under: rules, TransactionConfiguration(highestProtocol: rules))
        #expect(shard.initialize(expected: own)?.error == .concurrentTransactions)
        #expect(shard.phase() == .completeAbort)
        #expect(shard.initialize(expected: own)?.producer == producer(5, 4))
        #expect(shard.initialize(expected: producer(5, 2))?.error == .producerFenced)
    }

    @Test func `without a producer id the request fails and may be repeated`() {
        let shard = TransactionHarness().load()
        shard.allocatesAtOnce = false
        let request = shard.send(.initialize(transactionalID: "t", timeoutMilliseconds: 1_000, expected: nil))
        shard.handle(.producerIDUnavailable(shard.wantedIDs[0]))
        #expect(shard.response(to: request) == .initialized(nil, .coordinatorNotAvailable))
        #expect(shard.durableState().isEmpty)
    }
}

@Suite struct `A transaction` {
    @Test(arguments: [true, false])
    func `is decided by one record, told to its partitions, and complete when all know`(commits: Bool) {
        let shard = TransactionHarness().load()
        let first = producer(1_000, 0)
        _ = shard.initialize()
        #expect(shard.add(first, [a0, b0]) == ErrorCode.none)
        #expect(shard.add(first, [a1, a0]) == ErrorCode.none)
        shard.commitsAtOnce = false
        shard.writesMarkersAtOnce = false
        let end = shard.send(.end(transactionalID: "t", producer: first, commits: commits, under: .second))
        #expect(shard.orders.isEmpty, "no marker before the decision is durable")
        #expect(shard.ended(end) == nil)
        shard.commitNext()
        #expect(shard.ended(end)?.producer == producer(1_000, 1))
        #expect(shard.orders.count == 1)
        #expect(shard.orders.first?.partitions == [a0, a1, b0])
        #expect(
            shard.orders.first?.marker
                == TransactionMarker(
                    producer: producer(1_000, 1), commits: commits, coordinatorEpoch: 7, transactionProtocol: .second))
        shard.writeNextMarkers()
        #expect(shard.phase() == (commits ? .completeCommit : .completeAbort))
        shard.commitNext()
        #expect(shard.successor().durableState() == shard.durableState())
        #expect(shard.timers.isEmpty)
    }

    @Test func `markers that fail are sent again, only where they failed, until all are there`() {
        let shard = TransactionHarness().load()
        let first = producer(1_000, 0)
        _ = shard.initialize()
        _ = shard.add(first, [a0, a1, b0])
        shard.writesMarkersAtOnce = false
        _ = shard.end(first, commits: true)
        shard.writeNextMarkers { $0 == a0 ? .none : $0 == b0 ? .unknownTopicOrPartition : .notLeaderOrFollower }
        #expect(shard.phase() == .prepareCommit && shard.orders.isEmpty)
        shard.advance(20)
        #expect(shard.orders.map(\.partitions) == [[a1]])
        for _ in 0..<10 {
            shard.writeNextMarkers { _ in .kafkaStorageError }
            shard.advance(1_000)
        }
        shard.writeNextMarkers()
        #expect(shard.phase() == .completeCommit)
        shard.advance(10_000)
        #expect(shard.orders.isEmpty && shard.timers.isEmpty)
    }

    @Test func `a partition that has seen later epochs is not asked for ever`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize()
        _ = shard.add(producer(1_000, 0), [a0, a1])
        shard.writesMarkersAtOnce = false
        _ = shard.end(producer(1_000, 0), commits: false)
        shard.writeNextMarkers { $0 == a0 ? .invalidProducerEpoch : .none }
        #expect(shard.phase() == .completeAbort)
        #expect(shard.reports == [.markerRefused(transactionalID: "t", a0, .invalidProducerEpoch)])
    }

    @Test(arguments: [TransactionPhase.prepareCommit, .prepareAbort])
    func `that was decided before a crash is finished after it, the same way`(phase: TransactionPhase) {
        let shard = harness(phase, producer(5, 4), partitions: [a0, b0])
        #expect(shard.written.map(\.partitions) == [[a0, b0]])
        #expect(shard.written.first?.marker.commits == (phase == .prepareCommit))
        #expect(shard.written.first?.marker.producer == producer(5, 4))
        #expect(shard.phase() == (phase == .prepareCommit ? .completeCommit : .completeAbort))
        // The client's repeat finds the outcome.
        #expect(shard.end(producer(5, 3), commits: phase == .prepareCommit)?.producer == producer(5, 4))
        #expect(shard.end(producer(5, 3), commits: phase != .prepareCommit)?.error == .invalidTxnState)
    }

    @Test func `partitions that are part of it already cost no record, but wait for the one on its way`() {
        let shard = TransactionHarness().load()
        let first = producer(1_000, 0)
        _ = shard.initialize()
        shard.commitsAtOnce = false
        let one = shard.send(
            .addPartitions(transactionalID: "t", producer: first, partitions: [a0], under: .second))
        let two = shard.send(
            .addPartitions(transactionalID: "t", producer: first, partitions: [a0], under: .second))
        #expect(shard.inFlight.count == 1)
        #expect(shard.added(one) == nil && shard.added(two) == nil)
        shard.commitNext()
        #expect(shard.added(one) == ErrorCode.none && shard.added(two) == ErrorCode.none)
    }

    @Test func `unknown ids and foreign producers are INVALID_PRODUCER_ID_MAPPING`() {
        let shard = TransactionHarness().load()
        #expect(shard.add(producer(1, 0), [a0]) == .invalidProducerIDMapping)
        #expect(shard.end(producer(1, 0), commits: true)?.error == .invalidProducerIDMapping)
        #expect(shard.end(producer(1, 0), commits: true, under: .first)?.error == .invalidProducerIDMapping)
        #expect(shard.verify(producer(1, 0), [a0]) == [.invalidProducerIDMapping])
        _ = shard.initialize()
        #expect(shard.add(producer(1, 0), [a0]) == .invalidProducerIDMapping)
        #expect(shard.end(producer(1, 0), commits: true)?.error == .invalidProducerIDMapping)
        #expect(shard.add(producer(1_000, 0), [a0], id: "") == .invalidRequest)
    }

    @Test func `EndTxn without a transaction is INVALID_TXN_STATE, except an abort of the second protocol`() {
        for rules in [TransactionProtocol.first, .second] {
            let shard = TransactionHarness().load()
            _ = shard.initialize()
            #expect(shard.end(producer(1_000, 0), commits: true, under: rules)?.error == .invalidTxnState)
            let abort = shard.end(producer(1_000, 0), commits: false, under: rules)
            #expect(abort?.error == (rules == .first ? .invalidTxnState : ErrorCode.none))
            #expect(abort?.producer == (rules == .first ? nil : producer(1_000, 1)))
            #expect(shard.orders.isEmpty && shard.written.isEmpty)
        }
    }

    @Test func `its repeats under the first protocol are told the outcome, or that it is the other one`() {
        let shard = TransactionHarness().load()
        let p = producer(1_000, 0)
        _ = shard.initialize()
        _ = shard.add(p, [a0], under: .first)
        shard.writesMarkersAtOnce = false
        #expect(shard.end(p, commits: true, under: .first)?.error == ErrorCode.none)
        #expect(shard.end(p, commits: true, under: .first)?.error == .concurrentTransactions)
        #expect(shard.end(p, commits: false, under: .first)?.error == .invalidTxnState)
        #expect(shard.state()?.producer == p)
        shard.writeNextMarkers()
        #expect(shard.end(p, commits: true, under: .first)?.error == ErrorCode.none)
        #expect(shard.end(p, commits: false, under: .first)?.error == .invalidTxnState)
        #expect(shard.end(producer(1_000, 1), commits: true, under: .first)?.error == .producerFenced)
        #expect(shard.written.count == 1)
    }

    @Test func `its end at the last epoch gives the next producer id at once`() {
        let last = producer(5, ProducerIdentity.lastEpoch)
        let shard = harness(.ongoing, last, partitions: [a0])
        shard.writesMarkersAtOnce = false
        let next = producer(1_000, 0)
        #expect(shard.end(last, commits: true)?.producer == next)
        #expect(shard.orders.first?.marker.producer == producer(5, .max))
        #expect(shard.end(last, commits: true)?.error == .concurrentTransactions)
        #expect(shard.end(next, commits: false)?.error == .concurrentTransactions)
        let add = shard.send(
            .addPartitions(transactionalID: "t", producer: next, partitions: [b0], under: .second))
        #expect(shard.added(add) == nil, "waits for the markers")
        shard.writeNextMarkers()
        #expect(shard.added(add) == ErrorCode.none)
        #expect(shard.state()?.producer == next && shard.state()?.partitions == [b0])
        _ = shard.end(next, commits: false)
        shard.writeNextMarkers()
        // Two transactions on, the old id means nothing.
        #expect(shard.end(last, commits: true)?.error == .invalidProducerIDMapping)
    }

    @Test func `the repeat of an end at the last epoch is recognised by the id before`() {
        let last = producer(5, ProducerIdentity.lastEpoch)
        let shard = harness(.ongoing, last, partitions: [a0])
        #expect(shard.end(last, commits: true)?.producer == producer(1_000, 0))
        for shard in [shard, shard.successor()] {
            #expect(shard.end(last, commits: true)?.producer == producer(1_000, 0))
            #expect(shard.end(last, commits: false)?.error == .invalidTxnState)
        }
    }

    @Test func `the next one waits for the markers of the one before, not longer than its patience`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize()
        _ = shard.add(producer(1_000, 0), [a0])
        shard.writesMarkersAtOnce = false
        _ = shard.end(producer(1_000, 0), commits: true)
        func add() -> RequestID {
            shard.send(
                .addPartitions(
                    transactionalID: "t", producer: producer(1_000, 1), partitions: [b0], under: .second))
        }
        let impatient = add()
        shard.advance(99)
        #expect(shard.added(impatient) == nil)
        shard.advance(1)
        #expect(shard.added(impatient) == .concurrentTransactions)
        let patient = add()
        shard.writeNextMarkers()
        #expect(shard.added(patient) == ErrorCode.none)
        #expect(shard.phase() == .ongoing && shard.state()?.partitions == [b0])
        #expect(shard.timers.count == 1, "only the clock of the new transaction runs")
    }

    @Test func `only so many requests wait`() {
        let shard = harness(.ongoing, producer(5, 0), partitions: [a0])
        shard.writesMarkersAtOnce = false
        _ = shard.end(producer(5, 0), commits: true)
        let requests = (0..<TransactionLimits.completionWaiterLimit + 1).map { _ in
            shard.send(
                .addPartitions(transactionalID: "t", producer: producer(5, 1), partitions: [b0], under: .second))
        }
        #expect(shard.added(requests[requests.count - 1]) == .concurrentTransactions)
        #expect(requests.dropLast().allSatisfy { shard.added($0) == nil })
        shard.handle(.resigned)
        #expect(requests.dropLast().allSatisfy { shard.added($0) == .notCoordinator })
    }

    @Test func `too many partitions are refused and change nothing`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize()
        let many = (0...Int32(TransactionLimits.partitionCountLimit)).map { TopicPartition("a", $0) }
        #expect(shard.add(producer(1_000, 0), many) == .policyViolation)
        #expect(shard.phase() == .empty)
    }
}

/// The case that Jepsen found in every system of this kind: a request of an earlier transaction, held up on its
/// way, arrives in a later one.
@Suite struct `Late requests of an earlier transaction never touch a later one` {
    /// Two transactions in a row; the second is open. Returns the identities they used.
    private func secondTransaction(_ shard: TransactionHarness) -> (first: ProducerIdentity, second: ProducerIdentity) {
        let first = shard.initialize()?.producer ?? producer(0, 0)
        #expect(shard.add(first, [a0]) == ErrorCode.none)
        let second = shard.end(first, commits: true)?.producer ?? first
        #expect(shard.add(second, [b0]) == ErrorCode.none)
        return (first, second)
    }

    @Test(arguments: [true, false])
    func `a late EndTxn of an earlier transaction neither commits nor aborts a later one`(commits: Bool) {
        let shard = TransactionHarness().load()
        let (first, second) = secondTransaction(shard)
        for shard in [shard, shard.successor()] {
            #expect(shard.end(first, commits: commits)?.error == .producerFenced)
            #expect(shard.phase() == .ongoing)
            #expect(shard.end(first, commits: commits, under: .first)?.error == .producerFenced)
            #expect(shard.phase() == .ongoing)
        }
        #expect(shard.end(second, commits: false)?.error == ErrorCode.none)
        #expect(shard.end(first, commits: commits)?.error == .producerFenced)
        #expect(shard.phase() == .completeAbort)
    }

    @Test func `a late AddPartitionsToTxn of an earlier transaction adds nothing to a later one`() {
        let shard = TransactionHarness().load()
        let (first, second) = secondTransaction(shard)
        #expect(shard.add(first, [a1]) == .producerFenced)
        #expect(shard.state()?.partitions == [b0])
        // Nor does it open one when none is open.
        _ = shard.end(second, commits: true)
        #expect(shard.add(first, [a1]) == .producerFenced)
        #expect(shard.add(second, [a1]) == .producerFenced)
        #expect(shard.phase() == .completeCommit)
    }

    @Test func `a late Produce of an earlier transaction is not verified for a later one`() {
        let shard = TransactionHarness().load()
        let (first, second) = secondTransaction(shard)
        #expect(shard.verify(first, [a0, b0]) == [.producerFenced, .producerFenced])
        #expect(shard.verify(second, [a0, b0]) == [.transactionAbortable, .none])
        #expect(shard.state()?.partitions == [b0])
    }

    @Test func `a late abort after an abort without partitions does not bump the epoch again`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize()
        #expect(shard.end(producer(1_000, 0), commits: false)?.producer == producer(1_000, 1))
        #expect(shard.end(producer(1_000, 0), commits: false)?.producer == producer(1_000, 1))
        #expect(shard.state()?.producer == producer(1_000, 1))
        #expect(shard.add(producer(1_000, 1), [a0]) == ErrorCode.none)
        #expect(shard.end(producer(1_000, 0), commits: false)?.error == .producerFenced)
        #expect(shard.phase() == .ongoing)
    }

    @Test func `markers of an earlier transaction reported late do not complete a later one`() {
        let shard = TransactionHarness().load()
        let (first, second) = secondTransaction(shard)
        shard.writesMarkersAtOnce = false
        _ = shard.end(second, commits: true)
        shard.handle(
            .markersWritten(
                transactionalID: "t", producer(first.id, first.epoch + 1), [PartitionOutcome(partition: b0, error: .none)]))
        #expect(shard.phase() == .prepareCommit)
        shard.writeNextMarkers()
        #expect(shard.phase() == .completeCommit)
    }
}

@Suite struct `Verification for clients of the first protocol` {
    @Test func `answers whether a partition is part of the open transaction and adds nothing`() {
        let shard = TransactionHarness().load()
        let p = producer(1_000, 0)
        _ = shard.initialize()
        #expect(shard.verify(p, [a0]) == [.transactionAbortable])
        _ = shard.add(p, [a0], under: .first)
        #expect(shard.verify(p, [a0, a1]) == [.none, .transactionAbortable])
        #expect(shard.state()?.partitions == [a0])
        shard.writesMarkersAtOnce = false
        _ = shard.end(p, commits: true, under: .first)
        #expect(shard.verify(p, [a0]) == [.concurrentTransactions])
        shard.writeNextMarkers()
        #expect(shard.verify(p, [a0]) == [.transactionAbortable])
    }

    @Test func `waits for the partition's record on its way`() {
        let shard = TransactionHarness().load()
        let p = producer(1_000, 0)
        _ = shard.initialize()
        shard.commitsAtOnce = false
        shard.send(.addPartitions(transactionalID: "t", producer: p, partitions: [a0], under: .first))
        let verify = shard.send(.verifyPartitions(transactionalID: "t", producer: p, partitions: [a0]))
        #expect(shard.response(to: verify) == nil)
        shard.commitNext()
        #expect(shard.added(verify) == ErrorCode.none)
    }
}

@Suite struct `Time and transactions` {
    @Test func `a transaction left open for its timeout is aborted, and its producer is behind`() {
        let shard = TransactionHarness().load()
        let p = producer(1_000, 0)
        _ = shard.initialize(timeout: 5_000)
        _ = shard.add(p, [a0])
        shard.advance(3_000)
        _ = shard.add(p, [a1])
        shard.advance(1_999)
        #expect(shard.phase() == .ongoing)
        shard.advance(1)
        #expect(shard.phase() == .completeAbort)
        #expect(shard.written.map(\.partitions) == [[a0, a1]])
        #expect(shard.written.first?.marker.producer == producer(1_000, 1))
        #expect(shard.reports == [.timedOut(transactionalID: "t", producer: p, openMilliseconds: 5_000)])
        #expect(shard.add(p, [b0]) == .producerFenced)
        #expect(shard.end(p, commits: true)?.error == .invalidTxnState)
        // Its own abort is what has happened: it may go on with the next epoch.
        #expect(shard.end(p, commits: false)?.producer == producer(1_000, 1))
        #expect(shard.add(producer(1_000, 1), [b0]) == ErrorCode.none)
    }

    @Test func `each transaction has its own clock`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize(timeout: 5_000)
        _ = shard.add(producer(1_000, 0), [a0])
        shard.advance(4_000)
        _ = shard.end(producer(1_000, 0), commits: true)
        _ = shard.add(producer(1_000, 1), [a0])
        shard.advance(4_000)
        #expect(shard.phase() == .ongoing)
        shard.advance(1_000)
        #expect(shard.phase() == .completeAbort)
    }

    @Test func `the clock goes on over a restart`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize(timeout: 5_000)
        _ = shard.add(producer(1_000, 0), [a0])
        shard.advance(3_000)
        let next = shard.successor()
        next.advance(1_999)
        #expect(next.phase() == .ongoing)
        next.advance(1)
        #expect(next.phase() == .completeAbort)
    }

    @Test func `a wall clock that jumped neither aborts before a further timeout nor waits longer`() {
        let start = Timestamp(milliseconds: TransactionHarness.epoch + 1_000_000_000)
        let state = TransactionState(
            producer: producer(5, 0), previousProducerID: nil, nextProducerID: nil, timeoutMilliseconds: 5_000,
            phase: .ongoing, partitions: [a0], startedAt: start, updatedAt: start, transactionProtocol: .second)
        let shard = TransactionHarness(log: [TransactionRecord(transactionalID: "t", state: state)]).load()
        shard.advance(4_999)
        #expect(shard.phase() == .ongoing)
        shard.advance(1)
        #expect(shard.phase() == .completeAbort)
    }

    @Test func `transactional ids that rest are forgotten after their time, open ones never`() {
        let shard = TransactionHarness(TransactionConfiguration(expirationMilliseconds: 10_000)).load()
        for id in ["empty", "done", "open"] { _ = shard.initialize(id, timeout: 900_000) }
        let done = shard.durableState()["done"]?.producer ?? producer(0, 0)
        let open = shard.durableState()["open"]?.producer ?? producer(0, 0)
        _ = shard.add(done, [a0], id: "done")
        _ = shard.end(done, commits: true, id: "done")
        _ = shard.add(open, [a0], id: "open")
        shard.advance(9_999)
        shard.handle(.expirationDue)
        #expect(shard.durableState().count == 3)
        shard.advance(1)
        shard.handle(.expirationDue)
        shard.advance(0)
        #expect(shard.durableState().keys.sorted() == ["open"])
        #expect(shard.successor().durableState() == shard.durableState())
        #expect(shard.end(done, commits: true, id: "done")?.error == .invalidProducerIDMapping)
        #expect(shard.initialize("done")?.producer?.id != done.id)
    }
}

@Suite struct `A shard that is not active` {
    @Test func `refuses while it loads and after it resigned`() {
        let shard = TransactionHarness()
        #expect(shard.initialize()?.error == .coordinatorLoadInProgress)
        _ = shard.load()
        shard.handle(.resigned)
        #expect(shard.initialize()?.error == .notCoordinator)
        #expect(shard.add(producer(1, 0), [a0]) == .notCoordinator)
        #expect(shard.end(producer(1, 0), commits: true)?.error == .notCoordinator)
    }

    @Test func `whose append fails answers all that wait and decides nothing more`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize()
        shard.commitsAtOnce = false
        let p = producer(1_000, 0)
        let add = shard.send(.addPartitions(transactionalID: "t", producer: p, partitions: [a0], under: .second))
        let end = shard.send(.end(transactionalID: "t", producer: p, commits: true, under: .second))
        shard.failNext(.kafkaStorageError)
        #expect(shard.added(add) == .notCoordinator)
        #expect(shard.ended(end)?.error == .notCoordinator)
        #expect(shard.orders.isEmpty)
        #expect(shard.end(p, commits: true)?.error == .notCoordinator)
        // The log knows nothing of it.
        #expect(shard.successor().phase() == .empty)
    }
}

@Suite struct `Transaction queries` {
    @Test func `describe tells state, producer, clock and partitions`() {
        let shard = TransactionHarness().load()
        _ = shard.initialize(timeout: 5_000)
        shard.advance(10)
        _ = shard.add(producer(1_000, 0), [b0, a1, a0])
        guard case .described(let states)? = shard.response(to: shard.send(.describe(["t", "nobody", ""]))) else {
            Issue.record("no answer")
            return
        }
        #expect(states.map(\.errorCode) == [0, 105, 42])
        #expect(states[0].transactionState == "Ongoing" && states[0].transactionTimeoutMs == 5_000)
        #expect(states[0].transactionStartTimeMs == TransactionHarness.epoch + 10)
        #expect(states[0].producerID == 1_000 && states[0].producerEpoch == 0)
        #expect(states[0].topics.map(\.topic) == ["a", "b"])
        #expect(states[0].topics.map(\.partitions) == [[0, 1], [0]])
    }

    @Test func `list filters by state, producer and age, and names unknown states`() {
        let shard = TransactionHarness().load()
        for id in ["u", "t", "s"] { _ = shard.initialize(id) }
        let t = shard.durableState()["t"]?.producer ?? producer(0, 0)
        _ = shard.add(t, [a0])
        shard.advance(100)
        func list(_ filter: TransactionFilter) -> (ids: [String], unknown: [String])? {
            guard case .listed(let response)? = shard.response(to: shard.send(.list(filter))) else { return nil }
            return (response.transactionStates.map(\.transactionalID), response.unknownStateFilters)
        }
        #expect(list(TransactionFilter())?.ids == ["s", "t", "u"])
        #expect(list(TransactionFilter(phases: ["Ongoing", "Lost"]))?.ids == ["t"])
        #expect(list(TransactionFilter(phases: ["Ongoing", "Lost"]))?.unknown == ["Lost"])
        #expect(list(TransactionFilter(phases: ["Lost"]))?.ids == [])
        #expect(list(TransactionFilter(producerIDs: [t.id]))?.ids == ["t"])
        #expect(list(TransactionFilter(minimumDurationMilliseconds: 99))?.ids == ["t"])
        #expect(list(TransactionFilter(minimumDurationMilliseconds: 100))?.ids == [])
    }
}
