import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import Synchronization
import Testing

@testable import MartletClient

/// Reading, processing and writing in one transaction.
@Suite(.timeLimit(.minutes(5))) struct ExactlyOnceTests {
    private struct Interrupted: Error {}

    private static let partitionCount: Int32 = 3

    /// `count` records in the topic `in`, by number over its partitions, and an empty topic `out`.
    private func prepare(_ broker: ProxiedBroker, _ count: Int) async throws {
        try await broker.topic("in", Self.partitionCount)
        try await broker.topic("out", Self.partitionCount)
        let producer = try broker.producer(nil)
        for number in 0..<count {
            try await producer.enqueue(
                ProducerRecord(
                    topic: "in", partition: PartitionIndex(Int32(number) % Self.partitionCount), value: "\(number)"))
        }
        try await producer.close()
    }

    private func expected(_ count: Int) -> [[String]] {
        (0..<Int(Self.partitionCount)).map { partition in
            stride(from: partition, to: count, by: Int(Self.partitionCount)).map { "\($0)" }
        }
    }

    /// One transaction: the copies have the partitions of their originals.
    private static func copy(_ producer: Producer, _ consumer: Consumer, limit: Int = 40) async throws -> Int {
        try await producer.withTransaction(consuming: consumer, timeout: .milliseconds(50), limit: limit) {
            transaction, records in
            for record in records {
                try await transaction.enqueue(
                    ProducerRecord(topic: "out", partition: record.partition, key: record.key, value: record.value))
            }
        }
    }

    /// Copies until the group has committed `count` records.
    private static func copyAll(
        _ broker: ProxiedBroker, _ producer: Producer, _ consumer: Consumer, _ count: Int
    ) async throws {
        let admin = try broker.admin()
        while true {
            do {
                if try await copy(producer, consumer) > 0 { continue }
                let offsets = try await admin.groupOffsets("g")
                if offsets.values.reduce(0, { $0 + $1.offset.rawValue }) == Int64(count) { break }
            } catch let error as ClientError where error.isRetriable {
                continue
            }
        }
        await admin.close()
    }

    @Test(arguments: [TransactionRules.first, .second])
    func `a copy holds each record once, through faults and restarts of the broker`(
        rules: TransactionRules
    ) async throws {
        let count = 900
        var generator = SeededGenerator(seed: 20_261_121)
        try await ProxiedBroker.run { broker in
            if rules == .first { broker.proxy.hideFeatures() }
            try await prepare(broker, count)
            let keys: [APIKey] = [
                .produce, .endTxn, .txnOffsetCommit, .addPartitionsToTxn, .addOffsetsToTxn, .fetch, .heartbeat,
                .findCoordinator, .metadata, .offsetFetch, .initProducerID,
            ]
            for _ in 0..<30 {
                let key = keys[Int.random(in: 0..<keys.count, using: &generator)]
                broker.proxy.next(key, .forward, Bool.random(using: &generator) ? .drop : .loseAnswer)
            }
            let producer = try broker.producer()
            let consumer = try broker.consumer("g")
            try await consumer.subscribe(to: ["in"])
            for restart in 1...3 {
                while producer.statistics.deliveredRecordCount < restart * 150 {
                    do {
                        _ = try await Self.copy(producer, consumer)
                    } catch let error as ClientError where error.isRetriable {
                        continue
                    }
                }
                await broker.stop()
                try await broker.start()
            }
            try await Self.copyAll(broker, producer, consumer, count)
            try await consumer.close()
            try await producer.close()
            #expect(try await broker.values(of: "out", Self.partitionCount) == expected(count))
        }
    }

    @Test func `what is rolled back is read again`() async throws {
        try await ProxiedBroker.run { broker in
            try await prepare(broker, 30)
            let producer = try broker.producer()
            let consumer = try broker.consumer("g")
            try await consumer.subscribe(to: ["in"])
            var seen: [[String]] = []
            for attempt in 0..<3 {
                let isLast = attempt == 2
                while seen.count <= attempt {
                    do {
                        try await producer.withTransaction(
                            consuming: consumer, timeout: .milliseconds(50), limit: 10
                        ) { transaction, records in
                            seen.append(records.map { "\($0.topicPartition)@\($0.offset)" }.sorted())
                            for record in records {
                                try await transaction.enqueue(
                                    ProducerRecord(topic: "out", partition: record.partition, value: record.value))
                            }
                            if !isLast { throw Interrupted() }
                        }
                    } catch is Interrupted {
                        #expect(!isLast)
                    }
                }
            }
            try await Self.copyAll(broker, producer, consumer, 30)
            try await consumer.close()
            try await producer.close()
            #expect(try await broker.values(of: "out", Self.partitionCount) == expected(30))
        }
    }

    @Test(arguments: GroupProtocol.allCases)
    func `two members share the work and a leaver's part moves on`(groupProtocol: GroupProtocol) async throws {
        let count = 600
        try await ProxiedBroker.run { broker in
            try await prepare(broker, count)
            func member(_ name: String) throws -> (Producer, Consumer) {
                (
                    try broker.producer("copier-\(name)"),
                    try broker.consumer("g") { $0.groupProtocol = groupProtocol }
                )
            }
            let (firstProducer, first) = try member("a")
            let (secondProducer, second) = try member("b")
            try await first.subscribe(to: ["in"])
            try await second.subscribe(to: ["in"])
            func step(_ producer: Producer, _ consumer: Consumer) async throws {
                do {
                    _ = try await Self.copy(producer, consumer, limit: 7)
                } catch let error as ClientError where error.isRetriable {}
            }
            while secondProducer.statistics.deliveredRecordCount < 50
                || firstProducer.statistics.deliveredRecordCount < 50
            {
                try await step(firstProducer, first)
                try await step(secondProducer, second)
            }
            try await second.close()
            try await secondProducer.close()
            try await Self.copyAll(broker, firstProducer, first, count)
            try await first.close()
            try await firstProducer.close()
            #expect(try await broker.values(of: "out", Self.partitionCount) == expected(count))
        }
    }

    @Test(arguments: GroupProtocol.allCases)
    func `a member that its group has left behind cannot commit`(groupProtocol: GroupProtocol) async throws {
        try await ProxiedBroker.run { broker in
            try await prepare(broker, 30)
            let producer = try broker.producer()
            let consumer = try broker.consumer("g") {
                $0.groupProtocol = groupProtocol
                $0.pollIntervalLimit = .milliseconds(300)
            }
            try await consumer.subscribe(to: ["in"])
            let admin = try broker.admin()
            var isLate = true
            var refusals = 0
            while refusals == 0 {
                do {
                    try await producer.withTransaction(consuming: consumer, timeout: .milliseconds(50)) {
                        transaction, records in
                        for record in records {
                            try await transaction.enqueue(
                                ProducerRecord(topic: "out", partition: record.partition, value: record.value))
                        }
                        if isLate { try await until { try await admin.describeGroup("g").members.isEmpty } }
                        isLate = false
                    }
                } catch let error as ClientError {
                    #expect(error.code == .transactionAborted && error.isRetriable, "\(error)")
                    refusals += 1
                }
            }
            try await Self.copyAll(broker, producer, consumer, 30)
            try await consumer.close()
            try await producer.close()
            await admin.close()
            #expect(try await broker.values(of: "out", Self.partitionCount) == expected(30))
        }
    }

    /// Two members, of which the first has read what was there and the second has joined after that; returns a record of
    /// a partition that is the second's now.
    private func handOver(
        _ broker: ProxiedBroker, _ groupProtocol: GroupProtocol, _ first: Consumer, _ records: [ConsumedRecord]
    ) async throws -> (second: Consumer, moved: [ConsumedRecord]) {
        let second = try broker.consumer("g") { $0.groupProtocol = groupProtocol }
        try await second.subscribe(to: ["in"])
        while second.assignment.isEmpty || first.assignment.isEmpty || !first.assignment.isDisjoint(with: second.assignment) {
            _ = try await first.poll(timeout: .milliseconds(10), limit: 1)
            // Not to be moved by what it is about to read.
            second.pause(second.assignment)
            _ = try await second.poll(timeout: .milliseconds(10), limit: 1)
        }
        return (second, records.filter { second.assignment.contains($0.topicPartition) })
    }

    @Test(arguments: GroupProtocol.allCases)
    func `partitions that left between poll and commit are refused`(groupProtocol: GroupProtocol) async throws {
        try await ProxiedBroker.run { broker in
            try await prepare(broker, 30)
            let consumer = try broker.consumer("g") { $0.groupProtocol = groupProtocol }
            try await consumer.subscribe(to: ["in"])
            var records: [ConsumedRecord] = []
            while records.count < 30 { records += try await consumer.poll(timeout: .milliseconds(50)) }
            let claim = try await consumer.claim(records)
            #expect(claim.positions.mapValues(\.offset.rawValue).values.sorted() == [10, 10, 10])
            let (second, moved) = try await handOver(broker, groupProtocol, consumer, records)
            #expect(!moved.isEmpty)
            await #expect { try await consumer.claim(moved) } throws: { ($0 as? ClientError)?.code == .rebalanced }
            try await second.close()
            try await consumer.close()
        }
    }

    @Test(arguments: GroupProtocol.allCases)
    func `a transaction in which the group moves on is rolled back`(groupProtocol: GroupProtocol) async throws {
        try await ProxiedBroker.run { broker in
            try await prepare(broker, 30)
            let producer = try broker.producer()
            let consumer = try broker.consumer("g") { $0.groupProtocol = groupProtocol }
            try await consumer.subscribe(to: ["in"])
            var second: Consumer?
            while second == nil {
                do {
                    try await producer.withTransaction(consuming: consumer, timeout: .milliseconds(50)) {
                        transaction, records in
                        // One of all partitions is going to be the other member's.
                        guard Set(records.map(\.partition)).count == Int(Self.partitionCount) else { throw Interrupted() }
                        for record in records {
                            try await transaction.enqueue(
                                ProducerRecord(topic: "out", partition: record.partition, value: record.value))
                        }
                        second = try await handOver(broker, groupProtocol, consumer, records).second
                    }
                    #expect(second == nil)
                } catch is Interrupted {
                    continue
                } catch let error as ClientError {
                    #expect(error.code == .transactionAborted && error.isRetriable, "\(error)")
                }
            }
            let admin = try broker.admin()
            #expect(try await admin.groupOffsets("g").isEmpty)
            await admin.close()
            try await second?.close()
            try await Self.copyAll(broker, producer, consumer, 30)
            try await consumer.close()
            try await producer.close()
            #expect(try await broker.values(of: "out", Self.partitionCount) == expected(30))
        }
    }

    @Test func `a consumer that commits by itself is refused`() async throws {
        try await ProxiedBroker.run { broker in
            let producer = try broker.producer()
            let consumer = try broker.consumer("g") { $0.isAutoCommitEnabled = true }
            await #expect { try await Self.copy(producer, consumer) } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            let alone = try broker.consumer()
            await #expect { try await Self.copy(producer, alone) } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            try await consumer.close()
            try await alone.close()
            try await producer.close()
        }
    }

    @Test func `positions of another group's member are taken with its metadata`() async throws {
        try await ProxiedBroker.run { broker in
            try await prepare(broker, 9)
            let producer = try broker.producer()
            let consumer = try broker.consumer("g")
            try await consumer.subscribe(to: ["in"])
            var count = 0
            while count < 9 { count += try await consumer.poll(timeout: .milliseconds(50)).count }
            let metadata = try await consumer.groupMetadata()
            #expect(metadata.groupID == "g" && (metadata.generation ?? 0) > 0 && metadata.memberID != nil)
            try await producer.withTransaction { try await $0.commitOffsets(of: consumer) }
            let admin = try broker.admin()
            let offsets = try await admin.groupOffsets("g").values.map(\.offset.rawValue)
            #expect(offsets == [3, 3, 3])
            var stale = metadata
            stale.generation = 99
            await #expect {
                try await producer.withTransaction {
                    try await $0.commitOffsets([TopicPartition("in", 0): CommittedOffset(Offset(1))], as: stale)
                }
            } throws: { ($0 as? ClientError)?.code == .transactionAborted }
            #expect(try await admin.groupOffsets("g")[TopicPartition("in", 0)]?.offset == Offset(3))
            await admin.close()
            try await consumer.close()
            try await producer.close()
        }
    }
}
