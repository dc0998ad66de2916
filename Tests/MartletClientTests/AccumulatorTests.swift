import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@testable import MartletClient

@Suite struct AccumulatorTests {
    @Test func `a record for an unknown topic is not taken`() throws {
        let accumulator = ProducerAccumulator(try ProducerConfiguration(bootstrap: "localhost:1"))
        guard case .unknownTopic = try accumulator.offer(record(), now: 0, sink: nil, slot: 0) else {
            Issue.record("taken")
            return
        }
        #expect(accumulator.statistics.enqueuedRecordCount == 0)
    }

    @Test func `only the first of many records wakes the sender`() throws {
        let accumulator = try knownTopic(partitionCount: 1)
        var wakes = 0
        for _ in 0..<100 {
            if case .taken(let wake) = try accumulator.offer(record(), now: 0, sink: nil, slot: 0), wake {
                wakes += 1
            }
        }
        #expect(wakes == 1)
    }

    @Test func `a full batch is handed over and a new one begun`() throws {
        let accumulator = try knownTopic(partitionCount: 1) { $0.batchBytes = 2000 }
        for _ in 0..<30 {
            _ = try accumulator.offer(
                record(value: String(repeating: "x", count: 100)), now: 0, sink: nil, slot: 0)
        }
        let queue = try #require(accumulator.takeListed().first)
        var sizes: [Int] = []
        while case .batch(let batch) = accumulator.take(from: queue, now: .distantFuture, isIdle: true) {
            #expect(batch.builder.sizeEstimate <= 2000)
            sizes.append(Int(batch.builder.recordCount))
        }
        #expect(sizes.count >= 2)
        #expect(sizes.reduce(0, +) == 30)
    }

    @Test func `the buffer limit refuses records and the end of batches makes room`() async throws {
        let accumulator = try knownTopic(partitionCount: 1) {
            $0.requestByteLimit = 1024
            $0.bufferBytes = 4096
        }
        let large = record(value: String(repeating: "x", count: 500))
        var taken = 0
        while case .taken = try accumulator.offer(large, now: 0, sink: nil, slot: 0) { taken += 1 }
        #expect(taken > 1 && taken * 500 <= 4096)
        async let resumed: Void = accumulator.waitForRoom()
        let queue = try #require(accumulator.takeListed().first)
        while case .batch(let batch) = accumulator.take(from: queue, now: .distantFuture, isIdle: true) {
            batch.recordCount = Int(batch.builder.recordCount)
            accumulator.finished(batch, failure: nil)
        }
        try await resumed
        #expect(accumulator.statistics.bufferedBytes == 0)
        #expect(accumulator.statistics.deliveredRecordCount == taken)
    }

    @Test func `a record above the request limit is refused with the limit's name`() throws {
        let accumulator = try knownTopic(partitionCount: 1) { $0.requestByteLimit = 1024 }
        #expect {
            try accumulator.offer(
                record(value: String(repeating: "x", count: 1024)), now: 0, sink: nil, slot: 0)
        } throws: { error in
            let error = error as? ClientError
            return error?.code == .recordTooLarge && error?.message.contains("requestByteLimit") == true
        }
    }

    @Test func `an open batch lingers unless flushed, awaited while idle, or late`() throws {
        let accumulator = try knownTopic(partitionCount: 1) { $0.linger = .seconds(10) }
        _ = try accumulator.offer(record(), now: 0, sink: nil, slot: 0)
        let queue = try #require(accumulator.takeListed().first)
        guard case .lingering = accumulator.take(from: queue, now: .now(), isIdle: true) else {
            Issue.record("did not linger")
            return
        }
        let sink = DeliverySink()
        _ = try accumulator.offer(record(), now: 0, sink: sink, slot: sink.addSlot())
        guard case .lingering = accumulator.take(from: queue, now: .now(), isIdle: false) else {
            Issue.record("did not linger behind another batch")
            return
        }
        guard case .batch = accumulator.take(from: queue, now: .now(), isIdle: true) else {
            Issue.record("lingered although somebody waits")
            return
        }
        _ = try accumulator.offer(record(), now: 0, sink: nil, slot: 0)
        _ = accumulator.beginFlush()
        guard case .batch = accumulator.take(from: queue, now: .now(), isIdle: false) else {
            Issue.record("lingered although flushed")
            return
        }
    }

    @Test func `flush waits for all batches made before it and none made later`() async throws {
        let accumulator = try knownTopic(partitionCount: 2)
        #expect(accumulator.beginFlush() == nil)
        var first = record()
        first.partition = PartitionIndex(0)
        _ = try accumulator.offer(first, now: 0, sink: nil, slot: 0)
        let reply = try #require(accumulator.beginFlush())
        var second = record()
        second.partition = PartitionIndex(1)
        _ = try accumulator.offer(second, now: 0, sink: nil, slot: 0)
        let queues = accumulator.takeListed()
        let early = try #require(queues.first { $0.topicPartition.partition == PartitionIndex(0) })
        guard case .batch(let batch) = accumulator.take(from: early, now: .now(), isIdle: true) else {
            Issue.record("nothing to take")
            return
        }
        accumulator.finished(batch, failure: nil)
        try await reply.value()
    }

    @Test func `failures of enqueued records are counted and reported once`() throws {
        let accumulator = try knownTopic(partitionCount: 1)
        for _ in 0..<3 { _ = try accumulator.offer(record(), now: 0, sink: nil, slot: 0) }
        let queue = try #require(accumulator.takeListed().first)
        guard case .batch(let batch) = accumulator.take(from: queue, now: .distantFuture, isIdle: true) else {
            Issue.record("nothing to take")
            return
        }
        batch.recordCount = 3
        accumulator.finished(batch, failure: ClientError(.broker, "no room"))
        let failure = try #require(accumulator.takeFailure())
        #expect(failure.message.contains("3 records") && failure.message.contains("no room"))
        #expect(accumulator.takeFailure() == nil)
        #expect(accumulator.statistics.failedRecordCount == 3)
    }

    @Test func `a closed accumulator takes nothing`() throws {
        let accumulator = try knownTopic(partitionCount: 1)
        accumulator.close()
        #expect { try accumulator.offer(record(), now: 0, sink: nil, slot: 0) } throws: {
            ($0 as? ClientError)?.code == .closed
        }
    }

    @Test func `a sink gives results in the order of its slots`() async throws {
        let sink = DeliverySink()
        let slots = (0..<3).map { _ in sink.addSlot() }
        sink.seal()
        for slot in slots.reversed() {
            sink.complete(
                slot,
                .success(
                    RecordMetadata(
                        topicPartition: TopicPartition("t", 0), offset: Offset(Int64(slot)),
                        timestamp: Timestamp(milliseconds: 0))))
        }
        #expect(try await sink.reply.value().map(\.offset) == [Offset(0), Offset(1), Offset(2)])
    }

    @Test func `a sink throws the first failure once all records have ended`() async throws {
        let sink = DeliverySink()
        let slots = (0..<2).map { _ in sink.addSlot() }
        sink.complete(slots[1], .failure(ClientError(.deliveryTimedOut, "late")))
        sink.seal()
        sink.complete(slots[0], .failure(ClientError(.broker, "later")))
        await #expect { try await sink.reply.value() } throws: { ($0 as? ClientError)?.message == "late" }
    }
}
