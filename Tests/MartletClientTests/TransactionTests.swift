import MartletKafkaProtocol
import MartletLogModel
import Synchronization
import Testing

@testable import MartletClient

/// Transactions of the client against the broker of this package, over a network that loses what a test tells it to.
@Suite(.timeLimit(.minutes(5))) struct TransactionTests {
    private struct Interrupted: Error {}

    private func run(
        _ rules: TransactionRules = .second, _ body: (ProxiedBroker) async throws -> Void
    ) async throws {
        try await ProxiedBroker.run { broker in
            if rules == .first { broker.proxy.hideFeatures() }
            try await body(broker)
        }
    }

    private func record(_ value: String, _ topic: String = "t", key: String? = nil) -> ProducerRecord {
        ProducerRecord(topic: topic, key: key, value: value)
    }

    @Test(arguments: [TransactionRules.first, .second])
    func `what is committed is seen, what is rolled back is not`(rules: TransactionRules) async throws {
        try await run(rules) { broker in
            try await broker.topic("t", 3)
            let producer = try broker.producer()
            for round in 0..<6 {
                do {
                    let count = try await producer.withTransaction { transaction in
                        for number in 0..<20 {
                            try await transaction.enqueue(record("\(round)-\(number)", key: "\(number)"))
                        }
                        try await transaction.send(record("\(round)-sent", key: "x"))
                        if round % 2 == 1 { throw Interrupted() }
                        return 21
                    }
                    #expect(count == 21 && round % 2 == 0)
                } catch is Interrupted {
                    #expect(round % 2 == 1)
                }
            }
            let seen = try await broker.values(of: "t", 3).flatMap(\.self)
            #expect(seen.count == 63 && Set(seen).count == 63)
            #expect(seen.allSatisfy { ["0-", "2-", "4-"].contains(String($0.prefix(2))) })
            let all = try await broker.values(of: "t", 3, .readUncommitted).flatMap(\.self)
            #expect(all.count > 63, "what was acknowledged before the rollback is in the log")
            try await producer.close()
            let proxy = broker.proxy
            if rules == .first {
                #expect(proxy.count(.addPartitionsToTxn) >= 6)
                #expect(proxy.versions(.produce) == [11] && proxy.versions(.endTxn) == [4])
            } else {
                #expect(proxy.count(.addPartitionsToTxn) == 0)
                #expect(proxy.versions(.produce) == [13] && proxy.versions(.endTxn) == [5])
            }
        }
    }

    @Test func `an empty transaction needs no request`() async throws {
        try await run { broker in
            let producer = try broker.producer()
            #expect(try await producer.withTransaction { _ in 5 } == 5)
            await #expect(throws: Interrupted.self) { try await producer.withTransaction { _ in throw Interrupted() } }
            #expect(broker.proxy.count(.endTxn) == 0)
            try await producer.close()
        }
    }

    @Test func `records and offsets are taken inside a transaction only`() async throws {
        try await run { broker in
            try await broker.topic("t")
            let producer = try broker.producer()
            await #expect { try await producer.send(record("a")) } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            let leaked = try await producer.withTransaction { transaction in
                try await transaction.send(record("b"))
                return transaction
            }
            await #expect { try await leaked.send(record("c")) } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            try await producer.withTransaction { transaction in
                await #expect { try await leaked.enqueue(record("d")) } throws: {
                    ($0 as? ClientError)?.code == .invalidState
                }
                await #expect { try await leaked.commitOffsets([:], as: ConsumerGroupMetadata(groupID: "g")) } throws: {
                    ($0 as? ClientError)?.code == .invalidState
                }
                await #expect { try await producer.withTransaction { _ in } } throws: {
                    ($0 as? ClientError)?.code == .invalidState
                }
                try await transaction.send(record("e"))
            }
            #expect(try await broker.values(of: "t") == [["b", "e"]])
            try await producer.close()
            let plain = try broker.producer(nil)
            await #expect { try await plain.withTransaction { _ in } } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            try await plain.close()
        }
    }

    @Test func `a task that is cancelled rolls back before it ends`() async throws {
        try await run { broker in
            try await broker.topic("t")
            let producer = try broker.producer()
            let (reached, signal) = AsyncStream.makeStream(of: Void.self)
            await #expect(throws: CancellationError.self) {
                try await withThrowingTaskGroup(of: Void.self) { group in
                    group.addTask {
                        try await producer.withTransaction { transaction in
                            try await transaction.send(record("a"))
                            signal.yield()
                            let (never, _) = AsyncStream.makeStream(of: Void.self)
                            for await _ in never {}
                            try Task.checkCancellation()
                        }
                    }
                    for await _ in reached { break }
                    group.cancelAll()
                    try await group.waitForAll()
                }
            }
            #expect(broker.proxy.count(.endTxn) == 1)
            try await producer.withTransaction { try await $0.enqueue(record("b")) }
            #expect(try await broker.values(of: "t") == [["b"]])
            try await producer.close()
        }
    }

    @Test func `a cancellation at whatever moment leaves no transaction open`() async throws {
        try await run { broker in
            try await broker.topic("t")
            let producer = try broker.producer()
            for round in 0..<40 {
                await withTaskGroup(of: Void.self) { group in
                    group.addTask {
                        do {
                            try await producer.withTransaction { transaction in
                                try await transaction.enqueue(record("\(round)"))
                                if round % 2 == 0 { try await transaction.send(record("\(round)")) }
                            }
                        } catch is CancellationError {
                        } catch {
                            Issue.record("round \(round): \(error)")
                        }
                    }
                    for _ in 0..<round { await Task.yield() }
                    group.cancelAll()
                }
            }
            try await producer.withTransaction { try await $0.enqueue(record("last")) }
            let values = try await broker.values(of: "t")[0]
            #expect(values.last == "last")
            for round in stride(from: 0, to: 40, by: 2) {
                let count = values.count { $0 == "\(round)" }
                #expect(count == 0 || count == 2, "round \(round): \(count)")
            }
            try await producer.close()
        }
    }

    @Test(arguments: [TransactionRules.first, .second])
    func `a zombie is shut out and nothing of it is seen`(rules: TransactionRules) async throws {
        try await run(rules) { broker in
            try await broker.topic("t")
            let zombie = try broker.producer()
            let heir = try broker.producer()
            await #expect { 
                try await zombie.withTransaction { transaction in
                    try await transaction.send(record("zombie"))
                    try await heir.withTransaction { try await $0.enqueue(record("heir")) }
                }
            } throws: { ($0 as? ClientError)?.code == .fenced }
            await #expect { try await zombie.withTransaction { try await $0.send(record("again")) } } throws: {
                let error = $0 as? ClientError
                return error?.code == .fenced && error?.message.contains("copier") == true
            }
            try await heir.withTransaction { try await $0.enqueue(record("heir 2")) }
            #expect(try await broker.values(of: "t") == [["heir", "heir 2"]])
            try await zombie.close()
            try await heir.close()
        }
    }

    @Test func `a zombie that sends learns it from the partition and stops`() async throws {
        try await run { broker in
            try await broker.topic("t")
            let zombie = try broker.producer()
            let heir = try broker.producer()
            await #expect {
                try await zombie.withTransaction { transaction in
                    try await transaction.send(record("zombie"))
                    try await heir.prepareTransactions()
                    try await transaction.send(record("zombie 2"))
                }
            } throws: { ($0 as? ClientError)?.code == .fenced }
            #expect(try await broker.values(of: "t") == [[]])
            try await zombie.close()
            try await heir.close()
        }
    }

    @Test(
        arguments: [TransactionRules.first, .second],
        [[Proxy.Reaction.loseAnswer], [.drop], [.loseAnswer, .loseAnswer, .drop]])
    func `a connection that breaks at the end changes nothing`(
        rules: TransactionRules, faults: [Proxy.Reaction]
    ) async throws {
        try await run(rules) { broker in
            try await broker.topic("t")
            let producer = try broker.producer()
            for fault in faults { broker.proxy.next(.endTxn, fault) }
            try await producer.withTransaction { try await $0.enqueue(record("a")) }
            for fault in faults { broker.proxy.next(.endTxn, fault) }
            await #expect(throws: Interrupted.self) {
                try await producer.withTransaction { transaction in
                    try await transaction.send(record("b"))
                    throw Interrupted()
                }
            }
            try await producer.withTransaction { try await $0.enqueue(record("c")) }
            #expect(try await broker.values(of: "t") == [["a", "c"]])
            try await producer.close()
        }
    }

    @Test(arguments: [TransactionRules.first, .second])
    func `lost requests of every kind are repeated within the transaction`(rules: TransactionRules) async throws {
        try await run(rules) { broker in
            try await broker.topic("t", 2)
            let proxy = broker.proxy
            for key in [
                APIKey.initProducerID, .findCoordinator, .addPartitionsToTxn, .addOffsetsToTxn, .txnOffsetCommit,
                .produce,
            ] {
                proxy.next(key, .loseAnswer, .drop)
            }
            let producer = try broker.producer()
            try await producer.withTransaction { transaction in
                for number in 0..<10 { try await transaction.enqueue(record("\(number)", key: "\(number)")) }
                try await transaction.commitOffsets(
                    [TopicPartition("t", 0): CommittedOffset(Offset(5))], as: ConsumerGroupMetadata(groupID: "g"))
            }
            let values = try await broker.values(of: "t", 2).flatMap(\.self)
            #expect(values.sorted() == (0..<10).map { "\($0)" })
            let admin = try broker.admin()
            #expect(try await admin.groupOffsets("g")[TopicPartition("t", 0)]?.offset == Offset(5))
            await admin.close()
            try await producer.close()
        }
    }

    @Test(arguments: [TransactionRules.first, .second])
    func `a record that is refused costs the transaction, not the producer`(rules: TransactionRules) async throws {
        try await run(rules) { broker in
            let admin = try broker.admin()
            try await admin.createTopic(
                TopicSpecification(name: "t", partitionCount: 1, configs: ["max.message.bytes": "2000"]))
            await admin.close()
            let producer = try broker.producer()
            await #expect {
                try await producer.withTransaction { transaction in
                    try await transaction.enqueue(record("small"))
                    try await transaction.enqueue(record(String(repeating: "x", count: 5000)))
                }
            } throws: { error in
                let error = error as? ClientError
                return error?.code == .transactionAborted && error?.brokerCode == .messageTooLarge
                    && error?.isRetriable == false
            }
            // Catching the error inside does not save the transaction.
            await #expect {
                try await producer.withTransaction { transaction in
                    do {
                        try await transaction.send(record(String(repeating: "x", count: 5000)))
                    } catch {}
                    try await transaction.send(record("after"))
                }
            } throws: { ($0 as? ClientError)?.code == .transactionAborted }
            try await producer.withTransaction { try await $0.enqueue(record("good")) }
            #expect(try await broker.values(of: "t") == [["good"]])
            try await producer.close()
        }
    }

    @Test func `an end that nobody confirms is told as such and settled before the next transaction`() async throws {
        try await run { broker in
            try await broker.topic("t")
            let producer = try broker.producer { $0.client.operationTimeout = .seconds(1) }
            try await producer.withTransaction { try await $0.enqueue(record("a")) }
            broker.proxy.always(.endTxn, .loseAnswer)
            await #expect { try await producer.withTransaction { try await $0.enqueue(record("b")) } } throws: {
                let error = $0 as? ClientError
                return error?.code == .transactionUndecided && error?.isRetriable == false
            }
            broker.proxy.always(.endTxn, .drop)
            await #expect { try await producer.withTransaction { try await $0.enqueue(record("c")) } } throws: {
                ($0 as? ClientError)?.code == .transactionUndecided
            }
            broker.proxy.always(.endTxn, nil)
            try await producer.withTransaction { try await $0.enqueue(record("d")) }
            // The first took place, the second did not; neither left anything open.
            #expect(try await broker.values(of: "t") == [["a", "b", "d"]])
            try await producer.close()
        }
    }

    @Test func `a transaction that is open too long is ended by the coordinator`() async throws {
        try await run { broker in
            try await broker.topic("t")
            let producer = try broker.producer { $0.transactionTimeout = .milliseconds(300) }
            await #expect {
                try await producer.withTransaction { transaction in
                    try await transaction.send(record("late"))
                    // The abort marker comes behind the record.
                    while try await !Self.isEnded(broker) {}
                }
            } throws: {
                let code = ($0 as? ClientError)?.code
                return code == .transactionAborted || code == .fenced
            }
            #expect(try await broker.values(of: "t") == [[]])
            try await producer.close()
        }
    }

    /// Whether the one record has been followed by a marker.
    private static func isEnded(_ broker: ProxiedBroker) async throws -> Bool {
        let consumer = try broker.consumer()
        let partition = TopicPartition("t", 0)
        let end = try await consumer.offsets([partition: .latest])[partition]??.offset
        try await consumer.close()
        return end == Offset(2)
    }

    @Test func `a timeout above the broker's limit is refused with its remedy`() async throws {
        try await run { broker in
            let producer = try broker.producer { $0.transactionTimeout = .seconds(1_000_000) }
            await #expect { try await producer.prepareTransactions() } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidTransactionTimeout
            }
            try await producer.close()
        }
    }

    @Test(arguments: [TransactionRules.first, .second])
    func `offsets that nobody waited for and that were refused keep it from committing`(
        rules: TransactionRules
    ) async throws {
        try await run(rules) { broker in
            try await broker.topic("t")
            let producer = try broker.producer()
            // The refusal comes when the commit has begun and waits for it.
            let turns = Mutex<Int?>(nil)
            broker.proxy.next(
                .txnOffsetCommit,
                .hold(until: {
                    turns.withLock { turns in
                        guard let left = turns else { return false }
                        turns = left - 1
                        return left <= 0
                    }
                }))
            var stranger = ConsumerGroupMetadata(groupID: "g")
            stranger.memberID = "nobody"
            stranger.generation = 7
            let (metadata, proxy) = (stranger, broker.proxy)
            await #expect(throws: ClientError.self) {
                try await producer.withTransaction { transaction in
                    try await transaction.send(record("a"))
                    Task {
                        try await transaction.commitOffsets(
                            [TopicPartition("t", 0): CommittedOffset(Offset(1))], as: metadata)
                    }
                    try await until { proxy.count(.txnOffsetCommit) > 0 }
                    turns.withLock { $0 = 50 }
                }
            }
            try await producer.withTransaction { try await $0.enqueue(record("b")) }
            #expect(try await broker.values(of: "t") == [["b"]])
            try await producer.close()
        }
    }
}
