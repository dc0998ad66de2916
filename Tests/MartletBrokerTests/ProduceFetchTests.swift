import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@Suite(.timeLimit(.minutes(2))) struct ProduceFetchTests {
    @Test func `an acknowledged batch comes back with offset and epoch patched and nothing else`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            let first = try client.produce(try makeBatch(["a", "b"]), topic: "t")
            #expect(first.errorCode == 0 && first.baseOffset == 0)
            let sent = try makeBatch(["c", "d", "e"])
            let second = try client.produce(sent, topic: "t")
            #expect(second.baseOffset == 2)
            let fetched = try client.fetch("t", from: 2)
            #expect(fetched.highWatermark == 5)
            let records = try #require(fetched.records)
            let header = try RecordBatchHeader(reading: records, at: records.readerIndex)
            #expect(header.baseOffset == 2 && header.partitionLeaderEpoch == 0)
            // From the magic byte on, checksum included, these are the producer's bytes.
            #expect(
                records.getSlice(at: records.readerIndex + 16, length: records.readableBytes - 16)
                    == sent.getSlice(at: sent.readerIndex + 16, length: sent.readableBytes - 16))
        }
    }

    @Test func `a fetch from the middle of a batch returns the whole batch`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            _ = try client.produce(try makeBatch((0..<10).map { "v\($0)" }), topic: "t")
            let records = try #require(try client.fetch("t", from: 7).records)
            let header = try RecordBatchHeader(reading: records, at: records.readerIndex)
            #expect(header.baseOffset == 0 && header.recordCount == 10)
        }
    }

    @Test func `the first batch is returned even above the byte limit`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            for _ in 0..<3 { _ = try client.produce(try makeBatch([String(repeating: "x", count: 5000)]), topic: "t") }
            let records = try #require(try client.fetch("t", from: 0, maxBytes: 10).records)
            let header = try RecordBatchHeader(reading: records, at: records.readerIndex)
            #expect(header.totalByteCount == records.readableBytes)
        }
    }

    @Test func `large fetches go out from the file unchanged`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", configs: ["max.message.bytes": "4000000"])
            let value = String(repeating: "0123456789", count: 20_000)
            for _ in 0..<3 { _ = try client.produce(try makeBatch([value]), topic: "t") }
            let records = try #require(try client.fetch("t", from: 0, maxBytes: 1 << 20).records)
            var count = 0
            var rest = records
            while rest.readableBytes > 0 {
                let header = try RecordBatchHeader(reading: rest, at: rest.readerIndex)
                guard let batch = rest.readSlice(length: header.totalByteCount) else {
                    Issue.record("a batch is cut short")
                    break
                }
                _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
                var iterator = try RecordIterator(batch)
                #expect(try iterator.next()?.value == ByteBuffer(string: value))
                count += 1
            }
            #expect(count == 3)
        }
    }

    @Test func `a waiting fetch is answered by the append`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            let waiting = try WireClient(port: broker.address.port)
            try waiting.post(waiting.fetchRequest("t", from: 0, maxWait: 60_000), version: 12)
            _ = try client.produce(try makeBatch(["now"]), topic: "t")
            let response = try waiting.read(FetchResponse.self, version: 12)
            #expect(response.responses.first?.partitions.first?.records?.readableBytes ?? 0 > 61)
        }
    }

    @Test func `an incremental session answers only what has news`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", partitions: 3)
            var request = FetchRequest()
            request.sessionEpoch = 0
            var topic = FetchRequest.FetchTopic()
            topic.topic = "t"
            topic.partitions = (Int32(0)..<3).map {
                var part = FetchRequest.FetchPartition()
                part.partition = $0
                part.partitionMaxBytes = 1 << 20
                return part
            }
            request.topics = [topic]
            let opened = try client.call(request, version: 12)
            #expect(opened.sessionID != 0)
            #expect(opened.responses.first?.partitions.count == 3)

            _ = try client.produce(try makeBatch(["x"]), topic: "t", partition: 1)
            var next = FetchRequest()
            next.sessionID = opened.sessionID
            next.sessionEpoch = 1
            let news = try client.call(next, version: 12)
            #expect(news.responses.flatMap(\.partitions).map(\.partitionIndex) == [1])

            #expect(try client.call(next, version: 12).errorCode == ErrorCode.invalidFetchSessionEpoch.rawValue)
            next.sessionID = opened.sessionID &+ 1
            #expect(try client.call(next, version: 12).errorCode == ErrorCode.fetchSessionIDNotFound.rawValue)
        }
    }

    @Test func `a repeated idempotent batch gets its first offset and a gap is refused`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            let id = try client.call(InitProducerIdRequest(transactionalID: nil), version: 4)
            #expect(id.errorCode == 0)
            func batch(_ sequence: Int32) throws -> ByteBuffer {
                try makeBatch(["s\(sequence)"], producerID: id.producerID, producerEpoch: 0, baseSequence: sequence)
            }
            #expect(try client.produce(try batch(0), topic: "t").baseOffset == 0)
            #expect(try client.produce(try batch(1), topic: "t").baseOffset == 1)
            let again = try client.produce(try batch(0), topic: "t")
            #expect(again.errorCode == 0 && again.baseOffset == 0)
            #expect(
                try client.produce(try batch(5), topic: "t").errorCode == ErrorCode.outOfOrderSequenceNumber.rawValue)
            #expect(try client.fetch("t", from: 0).highWatermark == 2)
        }
    }

    @Test func `bad batches get the code and a message that names the cause`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", configs: ["max.message.bytes": "2000"])
            try client.createTopic("compacted", configs: ["cleanup.policy": "compact"])
            var flipped = try makeBatch(["payload"])
            flipped.setInteger(UInt8(0x55), at: flipped.writerIndex - 2)
            let corrupt = try client.produce(flipped, topic: "t")
            #expect(corrupt.errorCode == ErrorCode.corruptMessage.rawValue)
            #expect(corrupt.errorMessage?.contains("CRC") == true)
            let large = try client.produce(try makeBatch([String(repeating: "z", count: 3000)]), topic: "t")
            #expect(large.errorCode == ErrorCode.messageTooLarge.rawValue)
            #expect(large.errorMessage?.contains("max.message.bytes") == true)
            let keyless = try client.produce(try makeBatch(["v", "w"], key: nil), topic: "compacted")
            #expect(keyless.errorCode == ErrorCode.invalidRecord.rawValue)
            #expect(keyless.recordErrors.map(\.batchIndex) == [0, 1])
            #expect(keyless.recordErrors.last?.batchIndexErrorMessage?.hasPrefix("record 1 has no key") == true)
            #expect(try client.produce(nil, topic: "t").errorCode == ErrorCode.invalidRecord.rawValue)
            #expect(try client.produce(try makeBatch(["v"]), topic: "nowhere").errorCode
                == ErrorCode.unknownTopicOrPartition.rawValue)
            #expect(try client.produce(try makeBatch(["v"]), topic: "t", acks: 7).errorCode
                == ErrorCode.invalidRequiredAcks.rawValue)
            #expect(try client.fetch("t", from: 0).highWatermark == 0)
        }
    }

    @Test func `deleting records raises the log start for good`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            for value in ["a", "b", "c"] { _ = try client.produce(try makeBatch([value]), topic: "t") }
            var partition = DeleteRecordsRequest.DeleteRecordsPartition()
            partition.offset = 2
            var topic = DeleteRecordsRequest.DeleteRecordsTopic()
            topic.name = "t"
            topic.partitions = [partition]
            var request = DeleteRecordsRequest()
            request.topics = [topic]
            let response = try client.call(request)
            #expect(response.topics.first?.partitions.first?.lowWatermark == 2)
            #expect(try client.fetch("t", from: 1).errorCode == ErrorCode.offsetOutOfRange.rawValue)
            #expect(try client.fetch("t", from: 2).errorCode == 0)
        }
    }
}
