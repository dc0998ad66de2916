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

    @Test(arguments: 0..<24 as Range<UInt64>)
    func `no power cut leaves a transaction open that its coordinator takes for ended`(seed: UInt64) throws {
        let settings = ["transaction.state.log.num.partitions": "1"]
        let disk = SimulatedDisk()
        let broker = try SteppedBroker(settings, folder: "/data", disk: disk)
        var create = CreateTopicsRequest()
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = "t"
        topic.numPartitions = 1
        topic.replicationFactor = 1
        var config = CreateTopicsRequest.CreatableTopicConfig()
        config.name = "martlet.durability"
        config.value = "relaxed"
        topic.configs = [config]
        create.topics = [topic]
        let id = try #require(try broker.call(create).topics.first?.topicID)
        var find = FindCoordinatorRequest()
        find.keyType = 1
        find.coordinatorKeys = ["x"]
        _ = try broker.call(find)
        var initialize = InitProducerIdRequest(transactionalID: "x")
        initialize.transactionTimeoutMs = 1_000
        let initialized = try broker.call(initialize, version: 5)
        var producer = (id: initialized.producerID, epoch: initialized.producerEpoch)
        for commits in [true, false] {
            var builder = RecordBatchBuilder()
            try builder.append(key: nil, value: ByteBuffer(string: "\(commits)"), timestamp: 1)
            let batch = try builder.build(
                RecordBatchBuilder.Options(
                    producerID: producer.id, producerEpoch: producer.epoch, baseSequence: 0, isTransactional: true))
            var data = ProduceRequest.PartitionProduceData()
            data.records = batch
            var part = ProduceRequest.TopicProduceData()
            part.name = "t"
            part.partitionData = [data]
            var produce = ProduceRequest()
            produce.transactionalID = "x"
            produce.acks = -1
            produce.timeoutMs = 1_000
            produce.topicData = [part]
            let produced = try broker.call(produce, version: 12)
            #expect(produced.responses.first?.partitionResponses.first?.errorCode == 0)
            var end = EndTxnRequest()
            end.transactionalID = "x"
            end.producerID = producer.id
            end.producerEpoch = producer.epoch
            end.committed = commits
            let ended = try broker.call(end, version: 5)
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
