import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTestSupport
import NIOCore
import Testing

/// Every request gets an answer, and the right one, whatever is going on and whatever it asks.
@Suite(.timeLimit(.minutes(2))) struct AnswerTests {
    private static let extremes32: [Int32] = [.min, -2, -1, 0, 1, .max]
    private static let extremes64: [Int64] = [.min, -7, -6, -1, 0, 1, .max - 1, .max]

    @Test func `a request that would take far more memory than its frame ends its connection, nothing else`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let attacker = try WireClient(port: broker.address.port)
            var writer = ProtocolWriter()
            writer.buffer.writeInteger(Int32(0))
            try RequestHeader(apiKey: .deleteTopics, apiVersion: 5, correlationID: 1, clientID: "test").encode(into: &writer)
            // Two million empty names: sixteen bytes each where the frame has one.
            writer.unsignedVarint(2_000_001)
            writer.buffer.writeRepeatingByte(1, count: 2_000_000)
            writer.buffer.writeInteger(Int32(1000))
            writer.unsignedVarint(0)
            writer.buffer.setInteger(Int32(writer.buffer.readableBytes - 4), at: 0)
            attacker.send(writer.buffer)
            #expect(throws: WireClient.Failure.self) { try attacker.receive(4) }
            try client.createTopic("t")
        }
    }

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

    @Test func `numbers from the ends of their ranges are answered, not trapped on`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            _ = try client.produce(try makeBatch(["v"]), topic: "t")
            for partition in Self.extremes32 {
                for number in Self.extremes64 {
                    try listOffsets(client, partition, number)
                    try deleteRecords(client, partition, number)
                    try fetch(client, partition, number)
                    try commit(client, partition, number)
                }
                for epoch in Self.extremes32 { try offsetForEpoch(client, partition, epoch) }
                try describePartitions(client, partition)
                try changeTopics(client, partition)
                try join(client, partition)
            }
            #expect(try client.fetch("t", from: 0).errorCode == 0 || client.fetch("t", from: 1).errorCode == 0)
        }
    }

    private func metadataTopic(_ name: String) -> MetadataRequest.MetadataRequestTopic {
        var topic = MetadataRequest.MetadataRequestTopic()
        topic.name = name
        return topic
    }

    private func listOffsets(_ client: WireClient, _ index: Int32, _ time: Int64) throws {
        var partition = ListOffsetsRequest.ListOffsetsPartition()
        partition.partitionIndex = index
        partition.timestamp = time
        partition.currentLeaderEpoch = index
        var topic = ListOffsetsRequest.ListOffsetsTopic()
        topic.name = "t"
        topic.partitions = [partition]
        var request = ListOffsetsRequest()
        request.topics = [topic]
        #expect(try client.call(request, version: 7).topics.count == 1)
    }

    private func deleteRecords(_ client: WireClient, _ index: Int32, _ offset: Int64) throws {
        var partition = DeleteRecordsRequest.DeleteRecordsPartition()
        partition.partitionIndex = index
        partition.offset = offset
        var topic = DeleteRecordsRequest.DeleteRecordsTopic()
        topic.name = "t"
        topic.partitions = [partition]
        var request = DeleteRecordsRequest()
        request.topics = [topic]
        request.timeoutMs = index
        #expect(try client.call(request).topics.count == 1)
    }

    private func fetch(_ client: WireClient, _ index: Int32, _ offset: Int64) throws {
        // Negative sizes and waits mean none; a large wait would be kept, so only small ones are asked for.
        var request = client.fetchRequest("t", from: offset, partition: index, maxWait: min(index, 1), maxBytes: index)
        request.maxBytes = index
        request.minBytes = index
        request.topics[0].partitions[0].currentLeaderEpoch = index
        request.topics[0].partitions[0].lastFetchedEpoch = index
        #expect(try client.call(request, version: 12).responses.count == 1)
    }

    private func commit(_ client: WireClient, _ index: Int32, _ offset: Int64) throws {
        var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
        partition.partitionIndex = index
        partition.committedOffset = offset
        var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
        topic.name = "t"
        topic.partitions = [partition]
        var request = OffsetCommitRequest()
        request.groupID = "g"
        request.generationIDOrMemberEpoch = index
        request.retentionTimeMs = offset
        request.topics = [topic]
        #expect(try client.call(request, version: 3).topics.count == 1)
    }

    private func offsetForEpoch(_ client: WireClient, _ index: Int32, _ epoch: Int32) throws {
        var partition = OffsetForLeaderEpochRequest.OffsetForLeaderPartition()
        partition.partition = index
        partition.currentLeaderEpoch = epoch
        partition.leaderEpoch = epoch
        var topic = OffsetForLeaderEpochRequest.OffsetForLeaderTopic()
        topic.topic = "t"
        topic.partitions = [partition]
        var request = OffsetForLeaderEpochRequest()
        request.topics = [topic]
        #expect(try client.call(request).topics.count == 1)
    }

    private func describePartitions(_ client: WireClient, _ number: Int32) throws {
        var cursor = DescribeTopicPartitionsRequest.Cursor()
        cursor.topicName = "t"
        cursor.partitionIndex = number
        var request = DescribeTopicPartitionsRequest()
        request.responsePartitionLimit = number
        request.cursor = cursor
        #expect(try client.call(request).topics.count == 1)
    }

    private func changeTopics(_ client: WireClient, _ number: Int32) throws {
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = "other"
        topic.numPartitions = number
        topic.replicationFactor = Int16(clamping: number)
        var assignment = CreateTopicsRequest.CreatableReplicaAssignment()
        assignment.partitionIndex = number
        assignment.brokerIDs = [number]
        var manual = topic
        manual.name = "manual"
        (manual.numPartitions, manual.replicationFactor) = (-1, -1)
        manual.assignments = [assignment]
        var create = CreateTopicsRequest()
        create.topics = [topic, manual]
        create.validateOnly = true
        #expect(try client.call(create).topics.count == 2)
        var growing = CreatePartitionsRequest.CreatePartitionsTopic()
        growing.name = "t"
        growing.count = number
        growing.assignments = nil
        var grow = CreatePartitionsRequest()
        grow.topics = [growing]
        grow.validateOnly = true
        #expect(try client.call(grow).results.count == 1)
    }

    private func join(_ client: WireClient, _ number: Int32) throws {
        var entry = JoinGroupRequest.JoinGroupRequestProtocol()
        entry.name = "range"
        var request = JoinGroupRequest()
        request.groupID = "members"
        request.sessionTimeoutMs = number
        request.rebalanceTimeoutMs = number
        request.protocolType = "consumer"
        request.protocols = [entry]
        #expect(try client.call(request, version: 5).errorCode != 0)
        var sync = SyncGroupRequest()
        sync.groupID = "members"
        sync.generationID = number
        #expect(try client.call(sync, version: 3).errorCode != 0)
        var heartbeat = HeartbeatRequest()
        heartbeat.groupID = "members"
        heartbeat.generationID = number
        #expect(try client.call(heartbeat, version: 3).errorCode != 0)
    }
}
