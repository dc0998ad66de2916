import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTestSupport
import NIOCore
import Testing

/// Every request gets an answer, and the right one, whatever is going on and whatever it asks.
@Suite(.timeLimit(.minutes(2))) struct AnswerTests {
    @Test func `requests that wait for a partition to open are answered when its topic is deleted`() async throws {
        let count: Int32 = 400
        try await withTemporaryFolder { folder in
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t", partitions: count)
                var topic = ProduceRequest.TopicProduceData()
                topic.name = "t"
                topic.partitionData = try (0..<count).map {
                    var data = ProduceRequest.PartitionProduceData()
                    data.index = $0
                    data.records = try makeBatch(["v"])
                    return data
                }
                var request = ProduceRequest()
                request.acks = -1
                request.timeoutMs = 60_000
                request.topicData = [topic]
                let answer = try client.call(request, version: 12)
                #expect(answer.responses.flatMap(\.partitionResponses).allSatisfy { $0.errorCode == 0 })
            }
            try await withBroker(folder: folder) { broker in
                let asking = try WireClient(port: broker.address.port)
                let deleting = try WireClient(port: broker.address.port)
                var topic = ListOffsetsRequest.ListOffsetsTopic()
                topic.name = "t"
                topic.partitions = (0..<count).map {
                    var partition = ListOffsetsRequest.ListOffsetsPartition()
                    partition.partitionIndex = $0
                    partition.timestamp = -1
                    return partition
                }
                var request = ListOffsetsRequest()
                request.topics = [topic]
                try asking.post(request, version: 7)
                var delete = DeleteTopicsRequest()
                delete.topicNames = ["t"]
                #expect(try deleting.call(delete, version: 5).responses.map(\.errorCode) == [0])
                let answer = try asking.read(ListOffsetsResponse.self, version: 7)
                let codes = Set(answer.topics.flatMap(\.partitions).map(\.errorCode))
                #expect(answer.topics.flatMap(\.partitions).count == Int(count))
                #expect(codes.isSubset(of: [0, 3, 6]), "\(codes)")
            }
        }
    }

    @Test func `a fetch that found too little is answered by the append that makes it enough`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            _ = try client.produce(try makeBatch(["first"]), topic: "t")
            let waiting = try WireClient(port: broker.address.port)
            var request = waiting.fetchRequest("t", from: 0, maxWait: 60_000)
            request.minBytes = 1000
            try waiting.post(request, version: 12)
            // The fetch waits when its connection's next request is not answered either.
            _ = try client.produce(try makeBatch([String(repeating: "x", count: 300)]), topic: "t")
            _ = try client.produce(try makeBatch([String(repeating: "x", count: 300)]), topic: "t")
            _ = try client.produce(try makeBatch([String(repeating: "x", count: 600)]), topic: "t")
            let response = try waiting.read(FetchResponse.self, version: 12)
            #expect(response.responses.first?.partitions.first?.records?.readableBytes ?? 0 >= 1000)
        }
    }

    @Test func `an idempotent producer that asks again gets another id`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let first = try client.call(InitProducerIdRequest(transactionalID: nil), version: 4)
            var again = InitProducerIdRequest(transactionalID: nil)
            again.producerID = first.producerID
            again.producerEpoch = 5
            let second = try client.call(again, version: 4)
            #expect(second.errorCode == 0)
            #expect(second.producerID != first.producerID && second.producerEpoch == 0)
        }
    }

    @Test func `a commit that names a missing partition twice says nothing wrong about others`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            for name in ["a", "c"] { try client.createTopic(name) }
            var find = FindCoordinatorRequest()
            find.key = "g"
            #expect(try client.call(find, version: 2).errorCode == 0)
            func topic(_ name: String, _ partitions: [Int32], metadata: String = "") -> OffsetCommitRequest
                .OffsetCommitRequestTopic
            {
                var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
                topic.name = name
                topic.partitions = partitions.map {
                    var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
                    partition.partitionIndex = $0
                    partition.committedOffset = 5
                    partition.committedMetadata = metadata
                    return partition
                }
                return topic
            }
            var request = OffsetCommitRequest()
            request.groupID = "g"
            request.generationIDOrMemberEpoch = -1
            let long = String(repeating: "m", count: 5000)
            request.topics = [topic("a", [7, 7]), topic("c", [0], metadata: long), topic("a", [0])]
            let answer = try client.call(request, version: 7)
            let codes = answer.topics.map { $0.partitions.map { ErrorCode(rawValue: $0.errorCode) } }
            #expect(
                codes == [
                    [.unknownTopicOrPartition, .unknownTopicOrPartition], [.offsetMetadataTooLarge], [.none],
                ])
        }
    }

    @Test func `who asks for the operations allowed is told all that exist`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            let clusterOperations: Int32 = 8096
            let topicOperations: Int32 = 3576
            var metadata = MetadataRequest(topics: [metadataTopic("t")])
            #expect(try client.call(metadata, version: 9).topics.first?.topicAuthorizedOperations == .min)
            metadata.includeTopicAuthorizedOperations = true
            metadata.includeClusterAuthorizedOperations = true
            let answer = try client.call(metadata, version: 9)
            #expect(answer.topics.first?.topicAuthorizedOperations == topicOperations)
            #expect(answer.clusterAuthorizedOperations == clusterOperations)
            var cluster = DescribeClusterRequest()
            #expect(try client.call(cluster).clusterAuthorizedOperations == .min)
            cluster.includeClusterAuthorizedOperations = true
            #expect(try client.call(cluster).clusterAuthorizedOperations == clusterOperations)
            var topic = DescribeTopicPartitionsRequest.TopicRequest()
            topic.name = "t"
            var partitions = DescribeTopicPartitionsRequest()
            partitions.topics = [topic]
            #expect(try client.call(partitions).topics.first?.topicAuthorizedOperations == topicOperations)
        }
    }

    private func metadataTopic(_ name: String) -> MetadataRequest.MetadataRequestTopic {
        var topic = MetadataRequest.MetadataRequestTopic()
        topic.name = name
        return topic
    }
}
