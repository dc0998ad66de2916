import MartletKafkaProtocol
import MartletLogModel
import Testing

@testable import MartletClient

/// What an administrator sees of transactions and does to them.
@Suite(.timeLimit(.minutes(3))) struct TransactionAdminTests {
    private struct Interrupted: Error {}

    private let partition = TopicPartition("t", 1)
    private let later = Timestamp(milliseconds: 4_000_000_000_000)

    /// Runs `body` while a transaction with one record in `t-1` is open; it is rolled back after that.
    private func whileOpen(
        _ id: String = "copier", _ body: (ProxiedBroker, Admin, Producer) async throws -> Void
    ) async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 2)
            let producer = try broker.producer(id)
            let admin = try broker.admin()
            do {
                try await producer.withTransaction { transaction in
                    try await transaction.send(
                        ProducerRecord(topic: "t", partition: PartitionIndex(1), value: "open"))
                    try await body(broker, admin, producer)
                    throw Interrupted()
                }
            } catch is Interrupted {
            } catch let error as ClientError where error.code == .fenced || error.code == .transactionAborted {}
            await admin.close()
            try await producer.close()
        }
    }

    @Test func `transactions are listed by state, producer, age and pattern`() async throws {
        try await whileOpen("copy-1") { broker, admin, _ in
            let idle = try broker.producer("idle-ü")
            try await idle.prepareTransactions()
            let all = try await admin.listTransactions()
            #expect(all.map(\.transactionalID) == ["copy-1", "idle-ü"])
            #expect(all.map(\.state) == ["Ongoing", "Empty"])
            func ids(
                _ states: [String] = [], _ producers: [Int64] = [], _ longer: Duration? = nil, _ pattern: String? = nil
            ) async throws -> [String] {
                try await admin.listTransactions(
                    states: states, producerIDs: producers, longerThan: longer, matching: pattern
                ).map(\.transactionalID)
            }
            #expect(try await ids(["Empty"]) == ["idle-ü"])
            #expect(try await ids([], [all[0].producerID]) == ["copy-1"])
            #expect(try await ids([], [], .seconds(3600)) == [])
            #expect(try await ids([], [], nil, "copy-.*") == ["copy-1"])
            #expect(try await ids([], [], nil, "copy") == [])
            #expect(try await ids([], [], nil, "idle-.") == ["idle-ü"])
            #expect(try await ids([], [], nil, "(copy|idle)-[^a]") == ["copy-1", "idle-ü"])
            await #expect { try await ids([], [], nil, "copy-(") } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidRegularExpression
            }
            await #expect { try await ids(["Lost"]) } throws: {
                ($0 as? ClientError)?.code == .invalidArgument
            }
            broker.proxy.limit(.listTransactions, to: 0)
            let old = try broker.admin()
            await #expect { try await old.listTransactions(matching: "a") } throws: {
                ($0 as? ClientError)?.code == .unsupportedByBroker
            }
            #expect(try await old.listTransactions().count == 2)
            await old.close()
            try await idle.close()
        }
    }

    @Test func `a transaction and its producer are described`() async throws {
        try await whileOpen { _, admin, _ in
            let description = try await admin.describeTransaction("copier")
            #expect(description.state == "Ongoing" && description.partitions == [partition])
            #expect(description.timeout == .seconds(60) && description.startedAt != nil)
            await #expect { try await admin.describeTransaction("nobody") } throws: {
                ($0 as? ClientError)?.brokerCode == .transactionalIDNotFound
            }
            let producers = try await admin.describeProducers([partition, TopicPartition("t", 0)])
            #expect(try producers[TopicPartition("t", 0)]?.get() == [])
            let producer = try #require(try producers[partition]?.get().first)
            #expect(producer.producerID == description.producerID && producer.transactionStart == Offset(0))
            #expect(producer.lastSequence == 0)
        }
    }

    @Test func `an id is fenced and its transaction ends`() async throws {
        try await whileOpen { broker, admin, producer in
            try await admin.fenceProducer("copier")
            #expect(try await admin.describeTransaction("copier").state == "Empty")
            #expect(try await broker.values(of: "t", 2) == [[], []])
            await #expect { try await admin.fenceProducer("nobody") } throws: {
                ($0 as? ClientError)?.brokerCode == .transactionalIDNotFound
            }
        }
    }

    @Test func `a transaction that its coordinator knows does not hang`() async throws {
        try await whileOpen { _, admin, _ in
            let partitions = (0..<2).map { TopicPartition("t", $0) }
            var checked = 0
            let found = try await admin.findHangingTransactions(in: partitions, olderThan: .zero, now: later) {
                checked = $0
            }
            #expect(found.isEmpty && checked == 2)
        }
    }

    @Test func `one that nobody knows is found when it is old enough, and ended by a marker`() async throws {
        try await whileOpen { broker, admin, _ in
            broker.proxy.always(
                .listTransactions,
                .answer { header in
                    try ListTransactionsResponse().frame(
                        version: header.apiVersion, correlationID: header.correlationID)
                })
            let partitions = (0..<2).map { TopicPartition("t", $0) }
            func find(_ age: Duration, _ now: Timestamp) async throws -> [HangingTransaction] {
                try await admin.findHangingTransactions(in: partitions, olderThan: age, now: now)
            }
            let young = try #require(
                try await admin.describeProducers([partition])[partition]?.get().first?.lastTimestamp)
            #expect(try await find(.seconds(10), Timestamp(milliseconds: young.rawValue + 9_999)).isEmpty)
            let found = try await find(.seconds(10), Timestamp(milliseconds: young.rawValue + 10_000))
            let hanging = try #require(found.first)
            #expect(found.count == 1 && hanging.topicPartition == partition && hanging.transactionalID == nil)
            #expect(hanging.producer.transactionStart == Offset(0))
            try await admin.writeAbortMarker(
                partition, producerID: hanging.producer.producerID, producerEpoch: hanging.producer.producerEpoch,
                coordinatorEpoch: hanging.producer.coordinatorEpoch ?? 0)
            #expect(try await find(.zero, later).isEmpty)
            let ends = try await admin.listOffsets([partition: .latest], isolation: .readCommitted)
            #expect(try ends[partition]?.get()?.offset == Offset(2), "readers pass the end of it")
            #expect(try await broker.values(of: "t", 2) == [[], []])
        }
    }
}
