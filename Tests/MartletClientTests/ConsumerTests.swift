import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@testable import MartletClient

/// A consumer with assigned partitions against the fake broker.
@Suite(.timeLimit(.minutes(2))) struct ConsumerTests {
    private let partition = TopicPartition("t", 0)

    private func batch(
        _ values: [String], codec: CompressionCodec = .none, timestamp: Int64 = 1000,
        _ change: (inout RecordBatchBuilder.Options) -> Void = { _ in }
    ) throws -> ByteBuffer {
        var builder = RecordBatchBuilder()
        for value in values {
            try builder.append(
                key: ByteBuffer(string: "k"), value: ByteBuffer(string: value),
                headers: [.init(key: "h", value: ByteBuffer(string: value))], timestamp: timestamp)
        }
        var options = RecordBatchBuilder.Options(codec: codec)
        change(&options)
        return try builder.build(options)
    }

    /// A transaction's end.
    private func marker(producer: Int64, isCommit: Bool) throws -> ByteBuffer {
        var builder = RecordBatchBuilder()
        try builder.append(
            key: ByteBuffer(bytes: [0, 0, 0, isCommit ? 1 : 0]),
            value: ByteBuffer(bytes: [0, 0, 0, 0, 0, 0]),
            timestamp: 1000)
        return try builder.build(
            .init(producerID: producer, producerEpoch: 0, isTransactional: true, isControl: true))
    }

    private func run(
        _ change: (inout ConsumerConfiguration) -> Void = { _ in },
        _ body: (FakeBroker, Consumer) async throws -> Void
    ) async throws {
        let broker = try await FakeBroker.start()
        var configuration = try ConsumerConfiguration(bootstrap: broker.bootstrap)
        configuration.client.retryBackoff = .milliseconds(5)
        configuration.client.reconnectBackoff = .milliseconds(5)
        configuration.client.operationTimeout = .seconds(5)
        change(&configuration)
        let consumer = try Consumer(configuration)
        try await body(broker, consumer)
        try await consumer.close()
        try await broker.stop()
    }

    private func read(_ count: Int, _ consumer: Consumer) async throws -> [ConsumedRecord] {
        var records: [ConsumedRecord] = []
        while records.count < count {
            records += try await consumer.poll(timeout: .seconds(10), limit: count - records.count)
        }
        return records
    }

    @Test func `polling before assigning says what to do`() async throws {
        try await run { _, consumer in
            await #expect { try await consumer.poll() } throws: {
                ($0 as? ClientError)?.message.contains("assign or subscribe") == true
            }
        }
    }

    @Test(arguments: [CompressionCodec.none, .gzip, .lz4, .zstd, .snappy])
    func `records come whole and in order with each codec`(codec: CompressionCodec) async throws {
        guard codec.isAvailable else { return }
        try await run { broker, consumer in
            try broker.append(batch(["a", "b"], codec: codec), to: partition)
            try broker.append(batch(["c"], codec: codec, timestamp: 2000), to: partition)
            try await consumer.assign([partition: .earliest])
            let records = try await read(3, consumer)
            #expect(records.map(\.valueString) == ["a", "b", "c"])
            #expect(records.map(\.offset.rawValue) == [0, 1, 2])
            #expect(records.map(\.timestamp.rawValue) == [1000, 1000, 2000])
            #expect(records[1].headers == [RecordHeader("h", "b")])
            #expect(records[0].keyString == "k")
            #expect(consumer.position(of: partition) == Offset(3))
            #expect(consumer.endOffset(of: partition) == Offset(3))
        }
    }

    @Test func `an offset in the middle of a batch skips the records before it`() async throws {
        try await run { broker, consumer in
            try broker.append(batch(["a", "b", "c", "d"], codec: .gzip), to: partition)
            try await consumer.assign([partition: .at(Offset(2))])
            let batches = try await consumer.pollBatches(timeout: .seconds(10))
            #expect(batches.map(\.count) == [2])
            #expect(batches.first?.firstOffset == Offset(2))
            #expect(batches.first?.map(\.valueString) == ["c", "d"])
        }
    }

    @Test func `latest waits for what comes next`() async throws {
        try await run { broker, consumer in
            try broker.append(batch(["old"]), to: partition)
            try await consumer.assign([partition: .latest])
            while consumer.position(of: partition) == nil {
                _ = try await consumer.poll(timeout: .milliseconds(5))
            }
            try broker.append(batch(["new"]), to: partition)
            #expect(try await read(1, consumer).map(\.valueString) == ["new"])
        }
    }

    @Test func `a time finds the first batch that late, and the end if there is none`() async throws {
        try await run { broker, consumer in
            try broker.append(batch(["a"], timestamp: 1000), to: partition)
            try broker.append(batch(["b"], timestamp: 2000), to: partition)
            try await consumer.assign([partition: .timestamp(Timestamp(milliseconds: 1500))])
            #expect(try await read(1, consumer).map(\.valueString) == ["b"])
            try await consumer.seek(partition, to: .timestamp(Timestamp(milliseconds: 9000)))
            try broker.append(batch(["c"], timestamp: 3000), to: partition)
            _ = try await consumer.poll(timeout: .milliseconds(300))
            let found = try await consumer.offsets([partition: .timestamp(Timestamp(milliseconds: 9000))])
            #expect(found == [partition: nil])
        }
    }

    @Test func `a limit leaves the rest for the next poll and the position in between`() async throws {
        try await run { broker, consumer in
            try broker.append(batch(["a", "b", "c"]), to: partition)
            try await consumer.assign([partition: .earliest])
            #expect(
                try await consumer.poll(timeout: .seconds(10), limit: 2).map(\.valueString) == ["a", "b"])
            #expect(consumer.position(of: partition) == Offset(2))
            #expect(try await consumer.poll(timeout: .seconds(10), limit: 2).map(\.valueString) == ["c"])
            #expect(try await consumer.poll(timeout: .milliseconds(20)).isEmpty)
        }
    }

    @Test func `a seek drops what was fetched before, also in the middle of an iteration`() async throws {
        try await run { broker, consumer in
            try broker.append(batch(["a", "b", "c", "d"]), to: partition)
            try await consumer.assign([partition: .earliest])
            var iterator = consumer.records.makeAsyncIterator()
            #expect(try await iterator.next()?.valueString == "a")
            try await consumer.seek(partition, to: .at(Offset(3)))
            #expect(try await iterator.next()?.valueString == "d")
            #expect(consumer.position(of: partition) == Offset(3))
        }
    }

    @Test func `a paused partition is silent and loses nothing`() async throws {
        try await run { broker, consumer in
            try await consumer.assign([partition: .earliest])
            consumer.pause([partition])
            #expect(consumer.paused == [partition])
            try broker.append(batch(["a"]), to: partition)
            #expect(try await consumer.poll(timeout: .milliseconds(50)).isEmpty)
            consumer.resume([partition])
            #expect(try await read(1, consumer).map(\.valueString) == ["a"])
        }
    }

    @Test func `out of range goes where the reset policy says`() async throws {
        for (reset, expected) in [(OffsetReset.earliest, "b"), (.latest, "c")] {
            try await run({ $0.offsetReset = reset }) { broker, consumer in
                try broker.append(batch(["a"]), to: partition)
                try broker.append(batch(["b"]), to: partition)
                broker.setLogStart(1, of: partition)
                try await consumer.assign([partition: .at(Offset(0))])
                while consumer.position(of: partition) == Offset(0), reset == .latest {
                    if try await !consumer.poll(timeout: .milliseconds(20)).isEmpty { break }
                    if broker.requests.filter({ $0 == .listOffsets }).count > 0 { break }
                }
                _ = try await consumer.poll(timeout: .milliseconds(reset == .latest ? 300 : 0), limit: 0)
                if reset == .latest {
                    #expect(try await consumer.poll(timeout: .milliseconds(300)).isEmpty)
                    try broker.append(batch(["c"]), to: partition)
                }
                #expect(try await read(1, consumer).map(\.valueString) == [expected])
            }
        }
    }

    @Test func `out of range without a policy is an error with the log start, until a seek`() async throws {
        try await run({ $0.offsetReset = .fail }) { broker, consumer in
            try broker.append(batch(["a"]), to: partition)
            broker.setLogStart(1, of: partition)
            try await consumer.assign([partition: .at(Offset(0))])
            await #expect { try await consumer.poll(timeout: .seconds(10)) } throws: { error in
                let error = error as? ClientError
                return error?.code == .offsetOutOfRange && error?.message.contains("begins at 1") == true
            }
            try broker.append(batch(["b"]), to: partition)
            try await consumer.seek(partition, to: .earliest)
            #expect(try await read(1, consumer).map(\.valueString) == ["b"])
        }
    }

    @Test func `a flipped bit is reported with its place, and a seek goes on behind it`() async throws {
        try await run { broker, consumer in
            try broker.append(batch(["a"]), to: partition)
            var damaged = try batch(["b"])
            damaged.setInteger(UInt8(0xff), at: damaged.writerIndex - 3)
            try broker.append(damaged, to: partition)
            try broker.append(batch(["c"]), to: partition)
            try await consumer.assign([partition: .earliest])
            await #expect {
                while true { _ = try await consumer.poll(timeout: .seconds(10)) }
            } throws: { error in
                let error = error as? ClientError
                return error?.code == .corruptData && error?.message.contains("t-0 at offset 1") == true
            }
            try await consumer.seek(partition, to: .at(Offset(2)))
            #expect(try await read(1, consumer).map(\.valueString) == ["c"])
        }
    }

    @Test func `leader errors are overcome without the caller noticing`() async throws {
        try await run { broker, consumer in
            broker.next(
                .fetch, .fetchError(.notLeaderOrFollower), .close, .fetchError(.fencedLeaderEpoch),
                .fetchError(.unknownLeaderEpoch), .fetchError(.unknownTopicID),
                .fetchError(.kafkaStorageError))
            broker.next(.listOffsets, .close)
            try broker.append(batch(["a"]), to: partition)
            try await consumer.assign([partition: .earliest])
            #expect(try await read(1, consumer).map(\.valueString) == ["a"])
        }
    }

    @Test func `a reset moves the position even if no record follows`() async throws {
        try await run({ $0.offsetReset = .latest }) { broker, consumer in
            try broker.append(batch(["a", "b", "c"]), to: partition)
            broker.setLogStart(3, of: partition)
            try await consumer.assign([partition: .at(Offset(1))])
            for _ in 0..<100 where consumer.position(of: partition) != Offset(3) {
                #expect(try await consumer.poll(timeout: .milliseconds(20)).isEmpty)
            }
            #expect(consumer.position(of: partition) == Offset(3))
        }
    }

    @Test func `control batches are passed over and the position moves on`() async throws {
        try await run { broker, consumer in
            try broker.append(marker(producer: 5, isCommit: true), to: partition)
            try broker.append(batch(["a"]), to: partition)
            try broker.append(marker(producer: 5, isCommit: false), to: partition)
            try await consumer.assign([partition: .earliest])
            #expect(try await read(1, consumer).map(\.offset.rawValue) == [1])
            while consumer.position(of: partition) != Offset(3) {
                #expect(try await consumer.poll(timeout: .milliseconds(20)).isEmpty)
            }
        }
    }

    @Test func `the buffer stays within its limit when nobody polls`() async throws {
        try await run({
            $0.bufferBytes = 20_000
            $0.partitionFetchBytes = 4_000
        }) { broker, consumer in
            let value = String(repeating: "x", count: 1000)
            for _ in 0..<200 { try broker.append(batch([value]), to: partition) }
            try await consumer.assign([partition: .earliest])
            let first = try await consumer.poll(timeout: .seconds(10), limit: 1)
            #expect(first.count == 1)
            var fetches = -1
            while fetches != broker.requests.filter({ $0 == .fetch }).count {
                fetches = broker.requests.filter { $0 == .fetch }.count
                _ = try await consumer.offsets([partition: .latest])
            }
            #expect(fetches < 30)
            #expect(try await read(199, consumer).count == 199)
        }
    }

    @Test func `an unknown topic is reported with a remedy`() async throws {
        try await run { broker, consumer in
            try await consumer.assign([TopicPartition("absent", 0): .earliest])
            await #expect { try await consumer.poll(timeout: .seconds(10)) } throws: { error in
                (error as? ClientError)?.code == .unknownTopic
            }
        }
    }

    @Test func `a fetch session-less consumer works without topic ids`() async throws {
        try await run { broker, consumer in
            broker.setTopicIDs(false)
            try broker.append(batch(["a"]), to: partition)
            try await consumer.assign([partition: .earliest])
            #expect(try await read(1, consumer).map(\.valueString) == ["a"])
        }
    }

    @Test(arguments: [4, 7, 11, 12] as [Int16])
    func `older fetch versions are spoken`(version: Int16) async throws {
        try await run { broker, consumer in
            broker.serve(.fetch, 4...version)
            broker.serve(.listOffsets, 1...min(version, 6))
            try broker.append(batch(["a"]), to: partition)
            try await consumer.assign([partition: .earliest])
            #expect(try await read(1, consumer).map(\.valueString) == ["a"])
        }
    }

    @Test func `cancelling a poll gives the task back and loses nothing`() async throws {
        try await run { broker, consumer in
            try await consumer.assign([partition: .earliest])
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { _ = try await consumer.poll(timeout: .seconds(60)) }
                try await until { broker.requests.contains(.fetch) }
                group.cancelAll()
                await #expect(throws: CancellationError.self) { try await group.next() }
            }
            try broker.append(batch(["a"]), to: partition)
            #expect(try await read(1, consumer).map(\.valueString) == ["a"])
        }
    }

    @Test func `aborted transactions are hidden, committed and plain records are not`() throws {
        var aborted = AbortedTransactions([(producerID: 7, firstOffset: 2)])
        func header(_ offset: Int64, _ producer: Int64, isTransactional: Bool) throws -> RecordBatchHeader {
            var header = try RecordBatchHeader(
                reading: batch(["x"]) {
                    $0.producerID = producer
                    $0.producerEpoch = 0
                    $0.baseSequence = 0
                    $0.isTransactional = isTransactional
                })
            header.baseOffset = offset
            return header
        }
        func visible(_ header: RecordBatchHeader) -> Bool { aborted.isVisible(header) }
        #expect(visible(try header(0, 7, isTransactional: true)))
        #expect(!visible(try header(2, 7, isTransactional: true)))
        #expect(visible(try header(3, 8, isTransactional: true)))
        #expect(visible(try header(4, -1, isTransactional: false)))
        let end = try marker(producer: 7, isCommit: false)
        aborted.pass(control: try RecordBatchHeader(reading: end), end)
        #expect(visible(try header(6, 7, isTransactional: true)))
    }
}
