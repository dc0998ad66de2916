import MartletBroker
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Synchronization
import Testing

/// Finds no free descriptor for files of one topic for as long as the test says so.
private final class ScarceDisk: Disk {
    private let base = PosixDisk()
    private let topic: String
    private let fails = Mutex(true)

    init(failing topic: String) { self.topic = topic }

    func recover() { fails.withLock { $0 = false } }

    func open(_ path: String, _ mode: DiskOpenMode) throws(DiskError) -> PosixDisk.File {
        if path.contains("/\(topic)-"), fails.withLock({ $0 }) {
            throw DiskError(.tooManyFiles, operation: "open", path: path)
        }
        return try base.open(path, mode)
    }

    func createDirectory(_ path: String) throws(DiskError) { try base.createDirectory(path) }
    func syncDirectory(_ path: String) throws(DiskError) { try base.syncDirectory(path) }
    func rename(_ path: String, to target: String) throws(DiskError) { try base.rename(path, to: target) }
    func remove(_ path: String) throws(DiskError) { try base.remove(path) }
    func removeDirectory(_ path: String) throws(DiskError) { try base.removeDirectory(path) }
    func list(_ path: String) throws(DiskError) -> [String] { try base.list(path) }
    func status(_ path: String) throws(DiskError) -> DiskStatus { try base.status(path) }
    func space(_ path: String) throws(DiskError) -> DiskSpace { try base.space(path) }
    func lock(_ path: String) throws(DiskError) -> PosixDisk.File { try base.lock(path) }
}

@Suite struct `Transaction coordinator shards` {
    @Test func `a shard that cannot be loaded is tried again, without anybody asking for it`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(["transaction.state.log.num.partitions": "1"], folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t")
                var find = FindCoordinatorRequest()
                find.keyType = 1
                find.coordinatorKeys = ["x"]
                _ = try client.call(find)
                var initialize = InitProducerIdRequest(transactionalID: "x")
                initialize.transactionTimeoutMs = 60_000
                let producer = try client.call(initialize, version: 5)
                var builder = RecordBatchBuilder()
                try builder.append(key: nil, value: ByteBuffer(string: "left open"), timestamp: 1)
                let batch = try builder.build(
                    RecordBatchBuilder.Options(
                        producerID: producer.producerID, producerEpoch: producer.producerEpoch, baseSequence: 0,
                        isTransactional: true))
                #expect(try client.produce(batch, topic: "t", transactionalID: "x").errorCode == 0)
            }
            try finishLater(folder)
        }
    }

    private func finishLater(_ folder: String) throws {
        let disk = ScarceDisk(failing: "__transaction_state")
        let broker = try SteppedBroker(folder: folder, disk: disk)
        let topic = try #require(broker.loop.image.topicID(named: "t"))
        let key = PartitionKey(topicID: topic, partition: PartitionIndex(0))
        let partition = try #require(broker.loop.partition(key))
        broker.advance(by: .seconds(30))
        #expect(partition.lastStableOffset == Offset(0), "nobody can end the transaction")
        disk.recover()
        broker.advance(by: .minutes(2))
        #expect(partition.lastStableOffset == Offset(2))
        #expect(partition.highWatermark == Offset(2))
        try broker.stop()
    }

    @Test func `the first batch of a transaction may be here before the marker of the one before`() async throws {
        try await withTemporaryFolder { folder in
            let broker = try SteppedBroker(["transaction.state.log.num.partitions": "1"], folder: folder)
            let id = try createTopic(broker)
            let producer = try initialize(broker)
            #expect(try code(broker.call(produce("one", producer), version: 12)) == .none)
            // The client knows its next epoch without waiting for the answer.
            let next = (id: producer.id, epoch: producer.epoch + 1)
            let (ended, produced) = try broker.call(
                end(producer, commits: true), version: 5, then: produce("two", next), version: 12)
            #expect(ended.errorCode == 0 && ended.producerEpoch == next.epoch)
            #expect(code(produced) == .none)
            let (aborted, late) = try broker.call(
                end(next, commits: false), version: 5, then: produce("three", next, sequence: 1), version: 12)
            #expect(aborted.errorCode == 0)
            // Of the transaction that is being ended: before its marker, or not at all.
            #expect([.none, .invalidProducerEpoch, .concurrentTransactions].contains(code(late)))
            let partition = try #require(
                broker.loop.partition(PartitionKey(topicID: id, partition: PartitionIndex(0))))
            #expect(partition.lastStableOffset == partition.highWatermark)
            try broker.stop()
        }
    }

    // MARK: Requests

    private func createTopic(_ broker: SteppedBroker, _ durability: String = "fsync") throws -> UniversalID {
        var create = CreateTopicsRequest()
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = "t"
        topic.numPartitions = 1
        topic.replicationFactor = 1
        var config = CreateTopicsRequest.CreatableTopicConfig()
        config.name = "martlet.durability"
        config.value = durability
        topic.configs = [config]
        create.topics = [topic]
        var find = FindCoordinatorRequest()
        find.keyType = 1
        find.coordinatorKeys = ["x"]
        _ = try broker.call(find)
        return try #require(try broker.call(create).topics.first?.topicID)
    }

    private func initialize(_ broker: SteppedBroker) throws -> (id: Int64, epoch: Int16) {
        var request = InitProducerIdRequest(transactionalID: "x")
        request.transactionTimeoutMs = 1_000
        let answer = try broker.call(request, version: 5)
        #expect(answer.errorCode == 0)
        return (answer.producerID, answer.producerEpoch)
    }

    private func produce(
        _ value: String, _ producer: (id: Int64, epoch: Int16), sequence: Int32 = 0
    ) throws -> ProduceRequest {
        var builder = RecordBatchBuilder()
        try builder.append(key: nil, value: ByteBuffer(string: value), timestamp: 1)
        var data = ProduceRequest.PartitionProduceData()
        data.records = try builder.build(
            RecordBatchBuilder.Options(
                producerID: producer.id, producerEpoch: producer.epoch, baseSequence: sequence, isTransactional: true))
        var topic = ProduceRequest.TopicProduceData()
        topic.name = "t"
        topic.partitionData = [data]
        var request = ProduceRequest()
        request.transactionalID = "x"
        request.acks = -1
        request.timeoutMs = 1_000
        request.topicData = [topic]
        return request
    }

    private func code(_ response: ProduceResponse) -> ErrorCode {
        ErrorCode(rawValue: response.responses.first?.partitionResponses.first?.errorCode ?? -1)
    }

    private func end(_ producer: (id: Int64, epoch: Int16), commits: Bool) -> EndTxnRequest {
        var request = EndTxnRequest()
        request.transactionalID = "x"
        request.producerID = producer.id
        request.producerEpoch = producer.epoch
        request.committed = commits
        return request
    }

    @Test(arguments: 0..<24 as Range<UInt64>)
    func `no power cut leaves a transaction open that its coordinator takes for ended`(seed: UInt64) throws {
        let settings = ["transaction.state.log.num.partitions": "1"]
        let disk = SimulatedDisk()
        let broker = try SteppedBroker(settings, folder: "/data", disk: disk)
        let id = try createTopic(broker, "relaxed")
        var producer = try initialize(broker)
        for commits in [true, false] {
            #expect(try code(broker.call(produce("\(commits)", producer), version: 12)) == .none)
            let ended = try broker.call(end(producer, commits: commits), version: 5)
            #expect(ended.errorCode == 0)
            producer = (ended.producerID, ended.producerEpoch)
        }
        let next = try SteppedBroker(settings, folder: "/data", disk: disk.crashed(seed: seed))
        next.advance(by: .seconds(30))
        let partition = try #require(
            next.loop.partition(PartitionKey(topicID: id, partition: PartitionIndex(0))))
        next.advance(by: .seconds(1))
        #expect(partition.isOpen)
        #expect(partition.lastStableOffset == partition.highWatermark, "seed \(seed)")
        try next.stop()
    }
}
