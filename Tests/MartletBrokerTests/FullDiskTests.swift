import MartletBroker
import MartletKafkaProtocol
import MartletSimulatorKit
import MartletStorage
import Testing

@Suite(.timeLimit(.minutes(1))) struct `A full disk` {
    private func produce(to broker: SteppedBroker) throws -> [Int16] {
        var partition = ProduceRequest.PartitionProduceData()
        partition.records = try makeBatch(["v"])
        var topic = ProduceRequest.TopicProduceData()
        topic.name = "t"
        topic.partitionData = [partition]
        var request = ProduceRequest()
        request.acks = -1
        request.timeoutMs = 10_000
        request.topicData = [topic]
        return try broker.call(request, version: 12).responses.flatMap(\.partitionResponses).map(\.errorCode)
    }

    private func brokerWithTopic(_ disk: SimulatedDisk) throws -> SteppedBroker {
        let broker = try SteppedBroker(folder: "/data", disk: disk)
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = "t"
        topic.numPartitions = 1
        topic.replicationFactor = 1
        var request = CreateTopicsRequest()
        request.topics = [topic]
        #expect(try broker.call(request).topics.map(\.errorCode) == [0])
        return broker
    }

    @Test func `does not keep a broker from stopping`() throws {
        // How many files are made before the partition's small ones.
        let rehearsal = SimulatedDisk()
        let first = try brokerWithTopic(rehearsal)
        #expect(try produce(to: first) == [0])
        let created = rehearsal.trace.filter { $0.contains(" create ") }
        let index = try #require(created.firstIndex { $0.contains("/t-0/\(LogFileName.leaderEpochCheckpoint)") })
        try first.stop()

        let disk = SimulatedDisk()
        disk.fail(.create, .noSpace, skipping: index, count: 1_000)
        let broker = try brokerWithTopic(disk)
        #expect(try produce(to: broker) == [0])
        // The mark of a clean stop has no room either.
        #expect(throws: StorageError.self) { try broker.stop() }
        disk.clearFaults()
        let next = try SteppedBroker(folder: "/data", disk: disk)
        var partition = ListOffsetsRequest.ListOffsetsPartition()
        partition.timestamp = -1
        var topic = ListOffsetsRequest.ListOffsetsTopic()
        topic.name = "t"
        topic.partitions = [partition]
        var request = ListOffsetsRequest()
        request.topics = [topic]
        #expect(try next.call(request, version: 7).topics.first?.partitions.map(\.offset) == [1])
        try next.stop()
    }
}
