import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import Testing

@Suite struct `Snapshots and replay` {
    /// A few hundred random requests of all kinds.
    private func busyHarness(seed: UInt64, steps: Int) throws -> ControllerHarness {
        let harness = try ControllerHarness(brokers: 1 + Int(seed % 4), seed: seed)
        var random = SeededGenerator(seed: seed &* 31)
        for _ in 0..<steps {
            let name = "t.\(Int.random(in: 0..<12, using: &random))"
            switch Int.random(in: 0..<10, using: &random) {
            case 0...3: try harness.create(name, partitions: Int32.random(in: 1...5, using: &random))
            case 4: try harness.delete([(name, .zero)])
            case 5: try harness.grow([(name, Int32.random(in: 1...12, using: &random))])
            case 6...7:
                try harness.change(
                    2, name,
                    [
                        (
                            "retention.ms", Bool.random(using: &random) ? .set : .delete,
                            "\(random.next() % 1000)"
                        ),
                        ("cleanup.policy", Bool.random(using: &random) ? .append : .subtract, "compact"),
                    ])
            case 8:
                try harness.change(
                    4, Bool.random(using: &random) ? "" : "0",
                    [("log.roll.ms", .set, "\(random.next() % 1000 + 1)")])
            case _: _ = try harness.allocate()
            }
        }
        return harness
    }

    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func `loading a snapshot gives the same snapshot, byte for byte`(seed: UInt64) throws {
        let harness = try busyHarness(seed: seed, steps: 200)
        let loaded = try ControllerHarness(bootstrap: false)
        try loaded.append(harness.snapshotRecords())
        #expect(try loaded.snapshotBytes() == harness.snapshotBytes(), "seed \(seed)")
        #expect(loaded.image.clusterID == ControllerHarness.clusterID)
        #expect(loaded.image.partitionCount == harness.image.partitionCount)
        #expect(loaded.image.nextProducerID == harness.image.nextProducerID)
    }

    @Test(arguments: 1...10 as ClosedRange<UInt64>)
    func `replaying the log gives the live state, and the same seed the same log`(seed: UInt64) throws {
        let harness = try busyHarness(seed: seed, steps: 200)
        let replayed = try ControllerHarness(bootstrap: false)
        try replayed.append(harness.log)
        #expect(try replayed.snapshotBytes() == harness.snapshotBytes(), "seed \(seed)")
        #expect(try busyHarness(seed: seed, steps: 200).log == harness.log, "seed \(seed)")
    }

    @Test func `a published image does not change afterwards`() throws {
        let harness = try ControllerHarness()
        try harness.create("a", partitions: 2)
        let image = harness.image
        try harness.grow([("a", 4)])
        try harness.change(2, "a", [("retention.ms", .set, "1")])
        try harness.create("b")
        #expect(image.topicCount == 1)
        #expect(image.topic(named: "a")?.partitions.count == 2)
        #expect(image.topic(named: "a")?.configuration.retentionMilliseconds == 604_800_000)
        #expect(image.topic(named: "b") == nil)
    }

    @Test func `records that do not fit are an error, not a guess`() throws {
        let harness = try ControllerHarness()
        var partition = PartitionRecord()
        partition.topicID = UniversalID(high: 1, low: 2)
        #expect(throws: ReplayError.self) { try harness.append([.partition(partition)]) }
        var remove = RemoveTopicRecord()
        remove.topicID = UniversalID(high: 1, low: 2)
        #expect(throws: ReplayError.self) { try harness.append([.removeTopic(remove)]) }
        let id = try harness.create("a").topicID
        partition.topicID = id
        partition.partitionID = 5
        #expect(throws: ReplayError.partitionGap(id, expected: 1, found: 5)) {
            try harness.append([.partition(partition)])
        }
        #expect(throws: ReplayError.self) { try harness.append([.delegationToken(DelegationTokenRecord())]) }
    }

    @Test func `a change of leader starts a new leader epoch, any change a new partition epoch`() throws {
        let harness = try ControllerHarness(brokers: 3)
        let id = try harness.create("a", replicas: 3).topicID
        var change = PartitionChangeRecord()
        change.partitionID = 0
        change.topicID = id
        change.isr = [1, 2]
        try harness.append([.partitionChange(change)])
        #expect(harness.image.topic(id: id)?.partitions[0].leaderEpoch == LeaderEpoch(0))
        #expect(harness.image.topic(id: id)?.partitions[0].partitionEpoch == 1)
        change.leader = -1
        try harness.append([.partitionChange(change)])
        #expect(harness.image.topic(id: id)?.partitions[0].leader == nil)
        #expect(harness.image.topic(id: id)?.partitions[0].leaderEpoch == LeaderEpoch(1))
        #expect(harness.image.topic(id: id)?.partitions[0].partitionEpoch == 2)
    }
}

@Suite struct `Brokers and producer ids` {
    @Test func `blocks of producer ids never overlap, also after loading a snapshot`() throws {
        let harness = try ControllerHarness()
        let first = try harness.allocate()
        let second = try harness.allocate()
        #expect(first.producerIDLen == 1000)
        #expect(second.producerIDStart == first.producerIDStart + 1000)
        let loaded = try ControllerHarness(bootstrap: false)
        try loaded.append(harness.snapshotRecords())
        #expect(loaded.image.nextProducerID == 2000)
        #expect(try harness.allocate(epoch: 77).errorCode.code == .staleBrokerEpoch)
    }

    @Test func `a new incarnation gets a higher epoch and comes in fenced until it beats`() throws {
        let harness = try ControllerHarness()
        let first = try #require(harness.image.broker(BrokerID(0)))
        #expect(!first.isFenced)
        try harness.register(0)
        let second = try #require(harness.image.broker(BrokerID(0)))
        #expect(second.epoch > first.epoch)
        #expect(second.incarnationID != first.incarnationID)
        #expect(!second.isFenced)
        #expect(harness.image.brokers.count == 1)
    }

    @Test func `the image knows the cluster id and the metadata version`() throws {
        let harness = try ControllerHarness()
        #expect(harness.image.clusterID == ControllerHarness.clusterID)
        #expect(harness.image.featureLevel("metadata.version") == 30)
        #expect(harness.image.lastOffset == Offset(Int64(harness.log.count - 1)))
    }
}
