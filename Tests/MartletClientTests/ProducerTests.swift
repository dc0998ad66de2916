import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import NIOPosix
import Testing

@testable import MartletClient

/// A producer against a broker that behaves badly.
@Suite(.timeLimit(.minutes(2))) struct ProducerTests {
    private let partition = TopicPartition("t", 0)

    private func producer(
        _ broker: FakeBroker, _ change: (inout ProducerConfiguration) -> Void = { _ in }
    ) throws -> Producer {
        var configuration = try ProducerConfiguration(bootstrap: broker.bootstrap)
        configuration.client.retryBackoff = .milliseconds(5)
        configuration.client.reconnectBackoff = .milliseconds(5)
        configuration.client.requestTimeout = .seconds(5)
        configuration.client.operationTimeout = .seconds(10)
        change(&configuration)
        return try Producer(configuration)
    }

    private func run(
        topics: [String: Int] = ["t": 1], _ change: (inout ProducerConfiguration) -> Void = { _ in },
        _ body: (FakeBroker, Producer) async throws -> Void
    ) async throws {
        let broker = try await FakeBroker.start(topics: topics)
        let producer = try producer(broker, change)
        try await body(broker, producer)
        try await broker.stop()
    }

    @Test func `an awaited record comes back with its offset`() async throws {
        try await run { broker, producer in
            let first = try await producer.send(record(value: "a"))
            let second = try await producer.send(record(value: "b"))
            #expect(first.offset == Offset(0) && second.offset == Offset(1))
            #expect(first.topicPartition == partition)
            #expect(try broker.values(of: partition) == ["a", "b"])
            try await producer.close()
        }
    }

    @Test(arguments: [Compression.none, .gzip(level: 1), .lz4, .zstd(), .snappy])
    func `records arrive in order with each codec`(compression: Compression) async throws {
        try await run({
            $0.compression = compression
            $0.batchBytes = 4096
        }) { broker, producer in
            let values = (0..<2000).map { "value \($0)" }
            do {
                try await producer.enqueue(contentsOf: values.map { record(value: $0) })
                try await producer.flush()
            } catch let error as ClientError where error.brokerCode == .unsupportedCompressionType {
                // The codec's library is not on this machine: the error must say which one.
                #expect(error.message.contains("lib"))
                return
            }
            #expect(try broker.values(of: partition) == values)
            #expect(broker.batches(of: partition).count > 5)
            try await producer.close()
        }
    }

    @Test func `batch results are in the order of the records`() async throws {
        try await run(topics: ["t": 4]) { broker, producer in
            let records = (0..<200).map { record(key: "key \($0)", value: "\($0)") }
            let results = try await producer.send(contentsOf: records)
            #expect(results.count == 200)
            for (record, result) in zip(records, results) {
                let offset = try #require(result.offset)
                let values = try broker.values(of: result.topicPartition)
                #expect(values[Int(offset.rawValue)] == String(buffer: record.value ?? ByteBuffer()))
            }
            try await producer.close()
        }
    }

    @Test func `a lost answer leads to no duplicate with idempotence`() async throws {
        try await run { broker, producer in
            broker.next(.produce, .loseAnswer)
            let result = try await producer.send(record(value: "once"))
            #expect(result.offset == Offset(0))
            #expect(try broker.values(of: partition) == ["once"])
            try await producer.close()
        }
    }

    @Test func `order survives errors in the middle of five requests in flight`() async throws {
        try await run({ $0.batchBytes = 500 }) { broker, producer in
            _ = try await producer.send(record(value: "first"))
            broker.next(
                .produce, .usual, .produceError(.notLeaderOrFollower), .usual, .usual, .loseAnswer, .usual,
                .produceError(.notEnoughReplicas), .close, .usual, .produceError(.leaderNotAvailable))
            let values = (0..<500).map { "value \($0)" }
            try await producer.enqueue(contentsOf: values.map { record(value: $0) })
            try await producer.flush()
            #expect(try broker.values(of: partition) == ["first"] + values)
            #expect(producer.statistics.retryCount > 0)
            try await producer.close()
        }
    }

    @Test func `a broker that forgot the producer gets a new epoch and nothing is lost`() async throws {
        try await run { broker, producer in
            _ = try await producer.send(record(value: "a"))
            broker.forgetProducers()
            _ = try await producer.send(record(value: "b"))
            _ = try await producer.send(record(value: "c"))
            #expect(try broker.values(of: partition) == ["a", "b", "c"])
            let epochs = broker.batches(of: partition).map(\.producerEpoch)
            #expect(epochs == [0, 1, 1])
            #expect(broker.batches(of: partition).map(\.baseSequence) == [0, 0, 1])
            try await producer.close()
        }
    }

    @Test func `a refused batch is reported and those behind it go on under a new epoch`() async throws {
        try await run { broker, producer in
            _ = try await producer.send(record(value: "a"))
            broker.next(.produce, .produceError(.messageTooLarge))
            await #expect { try await producer.send(record(value: "b")) } throws: { error in
                let error = error as? ClientError
                return error?.code == .recordTooLarge && error?.message.contains("max.message.bytes") == true
            }
            _ = try await producer.send(record(value: "c"))
            #expect(try broker.values(of: partition) == ["a", "c"])
            #expect(broker.batches(of: partition).map(\.producerEpoch) == [0, 1])
            try await producer.close()
        }
    }

    @Test func `duplicate sequence is success`() async throws {
        try await run { broker, producer in
            broker.next(.produce, .produceError(.duplicateSequenceNumber))
            let result = try await producer.send(record())
            #expect(result.offset == nil)
            try await producer.close()
        }
    }

    @Test func `flush throws what enqueued records met`() async throws {
        try await run { broker, producer in
            broker.always(.produce, .produceError(.invalidRecord))
            try await producer.enqueue(record())
            await #expect { try await producer.flush() } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidRecord
            }
            broker.always(.produce, .usual)
            try await producer.enqueue(record())
            try await producer.flush()
            try await producer.close()
        }
    }

    @Test func `delivery times out with the last obstacle`() async throws {
        try await run({ $0.deliveryTimeout = .seconds(8) }) { broker, producer in
            broker.always(.produce, .produceError(.notEnoughReplicas))
            await #expect { try await producer.send(record()) } throws: { error in
                let error = error as? ClientError
                return error?.code == .deliveryTimedOut
                    && error?.message.contains("NOT_ENOUGH_REPLICAS") == true
            }
            broker.always(.produce, .usual)
            _ = try await producer.send(record(value: "after"))
            #expect(try broker.values(of: partition) == ["after"])
            try await producer.close()
        }
    }

    @Test func `an unknown topic is named with the brokers asked and a remedy`() async throws {
        try await run { broker, producer in
            await #expect { try await producer.send(ProducerRecord(topic: "absent", value: "x")) } throws: {
                error in
                let error = error as? ClientError
                return error?.code == .unknownTopic && error?.message.contains("'absent'") == true
                    && error?.message.contains(broker.bootstrap) == true
                    && error?.message.contains("topic create") == true
            }
            try await producer.close()
        }
    }

    @Test func `a topic made while the producer waits is found`() async throws {
        try await run { broker, producer in
            broker.addTopic("late", afterQuestions: 3)
            #expect(try await producer.send(ProducerRecord(topic: "late", value: "x")).offset == Offset(0))
            try await producer.close()
        }
    }

    @Test func `a partition that does not exist is an error that names the range`() async throws {
        try await run { broker, producer in
            var wrong = record()
            wrong.partition = PartitionIndex(5)
            await #expect { try await producer.send(wrong) } throws: { error in
                (error as? ClientError)?.message.contains("partitions 0 to 0") == true
            }
            try await producer.close()
        }
    }

    @Test func `unreachable brokers are named with the cause`() async throws {
        let broker = try await FakeBroker.start()
        let address = broker.bootstrap
        try await broker.stop()
        var configuration = try ProducerConfiguration(bootstrap: address)
        configuration.client.operationTimeout = .milliseconds(300)
        configuration.client.retryBackoff = .milliseconds(5)
        configuration.client.retryBackoffLimit = .milliseconds(20)
        let producer = try Producer(configuration)
        await #expect { try await producer.send(record()) } throws: { error in
            let error = error as? ClientError
            return error?.code == .brokersUnreachable && error?.message.contains(address) == true
                && error?.isRetriable == true
        }
        try await producer.close()
    }

    @Test func `connections dropped again and again lose and repeat nothing`() async throws {
        try await run(topics: ["t": 3], { $0.batchBytes = 1000 }) { broker, producer in
            let values = (0..<3000).map { "\($0)" }
            for (index, value) in values.enumerated() {
                if index % 500 == 250 { broker.dropConnections() }
                try await producer.enqueue(record(key: value, value: value))
            }
            try await producer.flush()
            var found: [String] = []
            for index in 0..<3 {
                let part = try broker.values(of: TopicPartition("t", Int32(index))).map { Int($0) ?? -1 }
                #expect(part == part.sorted())
                found += part.map { "\($0)" }
            }
            #expect(found.count == 3000 && Set(found) == Set(values))
            try await producer.close()
        }
    }

    @Test func `without acknowledgement a broker that does not read holds the caller back`() async throws {
        try await run({
            $0.acknowledgement = .none
            $0.isIdempotent = false
            $0.bufferBytes = 1 << 20
            $0.batchBytes = 64 * 1024
            $0.client.requestTimeout = .seconds(60)
        }) { broker, producer in
            broker.next(.produce, .deafness)
            _ = try await producer.partitions(of: "t")
            let value = String(repeating: "x", count: 60_000)
            // Far more than the buffers of both ends of a connection take.
            var takenCount = 0
            var refusedCount = 0
            while takenCount < 1000, refusedCount < 200 {
                if try producer.tryEnqueue(record(value: value)) {
                    takenCount += 1
                    refusedCount = 0
                } else {
                    refusedCount += 1
                    try await MultiThreadedEventLoopGroup.singleton.next().pause(.milliseconds(5))
                }
            }
            #expect(takenCount < 1000)
            broker.dropConnections()
            try await producer.close()
            #expect(producer.statistics.failedRecordCount == 0)
        }
    }

    @Test func `without acknowledgement nothing is awaited`() async throws {
        try await run({
            $0.acknowledgement = .none
            $0.isIdempotent = false
        }) { broker, producer in
            let result = try await producer.send(record())
            #expect(result.offset == nil)
            try await producer.close()
            try await until { try !broker.values(of: partition).isEmpty }
        }
    }

    @Test func `an old broker without idempotence is named with the remedy`() async throws {
        try await run { broker, producer in
            broker.serve(.initProducerID, nil)
            await #expect { try await producer.send(record()) } throws: { error in
                let error = error as? ClientError
                return error?.code == .unsupportedByBroker && error?.message.contains("isIdempotent") == true
            }
            try await producer.close()
        }
    }

    @Test(arguments: [3, 7, 9, 12] as [Int16])
    func `older produce versions are spoken`(version: Int16) async throws {
        try await run { broker, producer in
            broker.serve(.produce, 3...version)
            #expect(try await producer.send(record()).offset == Offset(0))
            try await producer.close()
        }
    }

    @Test(arguments: [0, 1, 2, 3] as [Int16])
    func `older ApiVersions are met by falling back`(version: Int16) async throws {
        try await run { broker, producer in
            broker.serve(.apiVersions, 0...version)
            #expect(try await producer.send(record()).offset == Offset(0))
            try await producer.close()
        }
    }

    @Test func `a closed producer says so`() async throws {
        try await run { broker, producer in
            try await producer.close()
            await #expect { try await producer.send(record()) } throws: {
                ($0 as? ClientError)?.code == .closed
            }
            try await producer.close()
        }
    }

    @Test func `cancelling an awaited send gives the task back at once`() async throws {
        try await run { broker, producer in
            broker.always(.produce, .silence)
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { _ = try await producer.send(record()) }
                try await until { broker.requests.contains(.produce) }
                group.cancelAll()
                await #expect(throws: CancellationError.self) { try await group.next() }
            }
        }
    }
}
