import MartletBroker
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
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
}
