import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

/// The short way through Produce against the generated one, which it must equal byte for byte.
@Suite struct SinglePartitionProduceTests {
    private static let seed: UInt64 = 20_261_121

    private static func request(_ g: inout Randomness, _ version: Int16) -> ProduceRequest {
        var partition = ProduceRequest.PartitionProduceData()
        partition.index = g.integer()
        partition.records = g.rarely() ? nil : g.bytes()
        var topic = ProduceRequest.TopicProduceData()
        if version >= 13 { topic.topicID = g.uuid() } else { topic.name = g.string() }
        topic.partitionData = [partition]
        var request = ProduceRequest()
        request.acks = g.integer()
        request.timeoutMs = g.integer()
        request.topicData = [topic]
        return request
    }

    private static func encoded(_ request: ProduceRequest, _ version: Int16) throws -> ByteBuffer {
        var writer = ProtocolWriter()
        try request.encode(into: &writer, version: version)
        return writer.buffer
    }

    @Test(arguments: ProduceRequest.versions)
    func `a request with one partition reads as the generated decoder reads it`(version: Int16) throws {
        var g = Randomness(seed: Self.seed)
        for _ in 0..<500 {
            let request = Self.request(&g, version)
            let body = try Self.encoded(request, version)
            let names = [request.topicData[0].name, "", "other"]
            for name in names {
                let single = try #require(
                    SinglePartitionProduce(reading: ProtocolReader(body), version: version, expecting: name))
                #expect(single.acks == request.acks)
                #expect(single.timeoutMs == request.timeoutMs)
                #expect(single.topic == request.topicData[0].name)
                #expect(single.topicID == request.topicData[0].topicID)
                #expect(single.partition == request.topicData[0].partitionData[0].index)
                #expect(single.records == request.topicData[0].partitionData[0].records)
            }
        }
    }

    @Test(arguments: ProduceRequest.versions)
    func `requests of any other shape and broken ones are left to the generated decoder`(version: Int16) throws {
        var g = Randomness(seed: Self.seed)
        for _ in 0..<50 {
            let request = Self.request(&g, version)
            var transactional = request
            transactional.transactionalID = "t"
            var twoPartitions = request
            twoPartitions.topicData[0].partitionData += request.topicData[0].partitionData
            var noPartition = request
            noPartition.topicData[0].partitionData = []
            var twoTopics = request
            twoTopics.topicData += request.topicData
            var noTopic = request
            noTopic.topicData = []
            for other in [transactional, twoPartitions, noPartition, twoTopics, noTopic] {
                let body = try Self.encoded(other, version)
                #expect(SinglePartitionProduce(reading: ProtocolReader(body), version: version) == nil)
            }
            let whole = try Self.encoded(request, version)
            for count in 0..<whole.readableBytes {
                let prefix = try #require(whole.getSlice(at: whole.readerIndex, length: count))
                #expect(SinglePartitionProduce(reading: ProtocolReader(prefix), version: version) == nil)
            }
        }
        #expect(SinglePartitionProduce(reading: ProtocolReader(ByteBuffer()), version: 2) == nil)
        #expect(SinglePartitionProduce(reading: ProtocolReader(ByteBuffer()), version: 14) == nil)
    }

    @Test(arguments: 9...ProduceRequest.versions.upperBound)
    func `a request with tagged fields is left to the generated decoder`(version: Int16) throws {
        var g = Randomness(seed: Self.seed)
        let request = Self.request(&g, version)
        let body = try Self.encoded(request, version)
        // The counts of the partition's, the topic's and the request's tagged fields are the last three bytes.
        for fromEnd in 1...3 {
            var bytes = Array(body.readableBytesView)
            let place = bytes.count - fromEnd
            #expect(bytes[place] == 0)
            // One field: tag 5, one byte.
            bytes.replaceSubrange(place...place, with: [1, 5, 1, 0xff])
            var reader = ProtocolReader(ByteBuffer(bytes: bytes))
            #expect(SinglePartitionProduce(reading: reader, version: version) == nil)
            let general = try ProduceRequest(reading: &reader, version: version)
            #expect(general.topicData.first?.partitionData.first?.records == request.topicData[0].partitionData[0].records)
        }
    }

    @Test(arguments: ProduceRequest.versions)
    func `the response to one append has the bytes of the generated encoder`(version: Int16) throws {
        var g = Randomness(seed: Self.seed)
        for _ in 0..<500 {
            let request = Self.request(&g, version)
            let body = try Self.encoded(request, version)
            let single = try #require(SinglePartitionProduce(reading: ProtocolReader(body), version: version))
            let correlationID: Int32 = g.integer()
            var partition = ProduceResponse.PartitionProduceResponse()
            partition.index = single.partition
            partition.baseOffset = g.integer()
            partition.logAppendTimeMs = g.integer()
            partition.logStartOffset = version >= 5 ? g.integer() : -1
            var topic = ProduceResponse.TopicProduceResponse()
            topic.name = single.topic
            topic.topicID = single.topicID
            topic.partitionResponses = [partition]
            var response = ProduceResponse()
            response.responses = [topic]

            var writer = ProtocolWriter()
            ResponseHeader(correlationID: correlationID).encode(into: &writer, apiKey: .produce, version: version)
            try response.encode(into: &writer, version: version)
            var expected = ByteBuffer(string: "before")
            expected.writeInteger(Int32(writer.buffer.readableBytes))
            expected.writeImmutableBuffer(writer.buffer)

            var output = ByteBuffer(string: "before")
            single.writeResponse(
                correlationID: correlationID, version: version, baseOffset: partition.baseOffset,
                logAppendTimeMs: partition.logAppendTimeMs, logStartOffset: partition.logStartOffset, into: &output)
            #expect(output == expected)
        }
    }
}
