import Glibc
import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

@Suite(.timeLimit(.minutes(2))) struct RestartTests {
    @Test func `topics, ids, configs and records survive a restart`() async throws {
        try await withTemporaryFolder { folder in
            var id = UniversalID.zero
            var cluster = ""
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                id = try client.createTopic("kept", partitions: 2, configs: ["retention.ms": "123456"])
                _ = try client.produce(try makeBatch(["one", "two"]), topic: "kept", partition: 1)
                cluster = broker.clusterID
            }
            try await withBroker(folder: folder) { broker in
                #expect(broker.clusterID == cluster)
                let client = try WireClient(port: broker.address.port)
                let metadata = try client.call(MetadataRequest(topics: nil), version: 12)
                #expect(metadata.topics.map(\.topicID) == [id])
                let fetched = try client.call(client.fetchRequest("kept", from: 0, partition: 1), version: 12)
                #expect(fetched.responses.first?.partitions.first?.highWatermark == 2)
                var resource = DescribeConfigsRequest.DescribeConfigsResource()
                resource.resourceType = 2
                resource.resourceName = "kept"
                resource.configurationKeys = ["retention.ms"]
                var describe = DescribeConfigsRequest()
                describe.resources = [resource]
                let configs = try client.call(describe)
                #expect(configs.results.first?.configs.first?.value == "123456")
                let again = try client.produce(try makeBatch(["three"]), topic: "kept", partition: 1)
                #expect(again.baseOffset == 2)
            }
        }
    }

    @Test func `producer ids are never handed out twice, restarts included`() async throws {
        try await withTemporaryFolder { folder in
            var seen: Set<Int64> = []
            for _ in 0..<3 {
                try await withBroker(folder: folder) { broker in
                    let client = try WireClient(port: broker.address.port)
                    for _ in 0..<5 {
                        let response = try client.call(InitProducerIdRequest(transactionalID: nil), version: 4)
                        #expect(seen.insert(response.producerID).inserted)
                    }
                }
            }
            #expect(seen.count == 15)
        }
    }

    @Test func `deleting a topic frees partitions that nobody has used since the start`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t", partitions: 2)
                for index in Int32(0)..<2 { _ = try client.produce(try makeBatch(["x"]), topic: "t", partition: index) }
            }
            #expect(access(folder + "/t-0", F_OK) == 0 && access(folder + "/t-1", F_OK) == 0)
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                var state = DeleteTopicsRequest.DeleteTopicState()
                state.name = "t"
                var request = DeleteTopicsRequest()
                request.topics = [state]
                #expect(try client.call(request).responses.first?.errorCode == 0)
                #expect(access(folder + "/t-0", F_OK) != 0 && access(folder + "/t-1", F_OK) != 0)
            }
        }
    }

    @Test func `a consumer alone gets a partition back whose folder was out of reach for a while`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t")
                _ = try client.produce(try makeBatch(["x"]), topic: "t")
            }
            #expect(rename(folder + "/t-0", folder + "/.away") == 0)
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                #expect(try client.fetch("t", from: 0).errorCode == ErrorCode.kafkaStorageError.rawValue)
                #expect(rename(folder + "/.away", folder + "/t-0") == 0)
                // The broker looks again after some seconds.
                let deadline = NIODeadline.now() + .seconds(30)
                var answer = try client.fetch("t", from: 0)
                while answer.errorCode != 0, NIODeadline.now() < deadline { answer = try client.fetch("t", from: 0) }
                #expect(answer.errorCode == 0 && answer.highWatermark == 1)
            }
        }
    }

    @Test func `a topic deleted and created again and again under load stays usable`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let other = try WireClient(port: broker.address.port)
            for round in 0..<40 {
                try client.createTopic("t", partitions: 3)
                // Opening, appends and flushes are under way when the topic goes.
                for index in Int32(0)..<3 {
                    var data = ProduceRequest.PartitionProduceData()
                    data.index = index
                    data.records = try makeBatch(["round \(round)"], producerID: 7, producerEpoch: 0, baseSequence: 0)
                    var topicData = ProduceRequest.TopicProduceData()
                    topicData.name = "t"
                    topicData.partitionData = [data]
                    var request = ProduceRequest()
                    request.acks = -1
                    request.timeoutMs = 10_000
                    request.topicData = [topicData]
                    try other.post(request, version: 12)
                }
                if round % 2 == 0 { _ = try other.read(ProduceResponse.self, version: 12) }
                var state = DeleteTopicsRequest.DeleteTopicState()
                state.name = "t"
                var request = DeleteTopicsRequest()
                request.topics = [state]
                #expect(try client.call(request).responses.first?.errorCode == 0)
                for _ in 0..<(round % 2 == 0 ? 2 : 3) { _ = try other.read(ProduceResponse.self, version: 12) }
            }
            try client.createTopic("t", partitions: 3)
            for index in Int32(0)..<3 {
                let result = try client.produce(try makeBatch(["last"]), topic: "t", partition: index)
                #expect(result.errorCode == 0 && result.baseOffset == 0)
            }
        }
    }

    @Test func `a start that fails gives the data directory back`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker { other in
                var taken = BrokerSettings(listen: other.address, dataDirectory: folder)
                taken.reserveBytes = 0
                let error = await #expect(throws: BrokerStartError.self) { _ = try await Broker.start(taken) }
                #expect(error?.description.contains("cannot listen") == true)
            }
            // In the same process, with the cluster it has become.
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t")
                #expect(try client.produce(try makeBatch(["x"]), topic: "t").baseOffset == 0)
            }
            #expect(access(folder + "/.kafka_cleanshutdown", F_OK) == 0)
        }
    }

    @Test func `a deleted topic that is created again starts empty with another id`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let first = try client.createTopic("t")
            _ = try client.produce(try makeBatch(["old"]), topic: "t")
            var state = DeleteTopicsRequest.DeleteTopicState()
            state.name = "t"
            var request = DeleteTopicsRequest()
            request.topics = [state]
            #expect(try client.call(request).responses.first?.errorCode == 0)
            #expect(try client.produce(try makeBatch(["x"]), topic: "t").errorCode
                == ErrorCode.unknownTopicOrPartition.rawValue)
            let second = try client.createTopic("t")
            #expect(first != second)
            #expect(try client.fetch("t", from: 0).highWatermark == 0)
            #expect(try client.produce(try makeBatch(["new"]), topic: "t").baseOffset == 0)
        }
    }
}

extension MetadataRequest {
    init(topics: [MetadataRequestTopic]?) {
        self.init()
        self.topics = topics
    }
}
