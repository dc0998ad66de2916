import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

@testable import MartletCoordinators

/// The bytes of a group's life in the log: what tools that read `__consumer_offsets` see.
@Suite struct `Records of consumer groups` {
    private func hex(_ bytes: ByteBuffer?) -> String {
        guard let bytes else { return "tombstone" }
        return bytes.readableBytesView.map { byte in
            let digits = String(byte, radix: 16)
            return digits.count == 1 ? "0" + digits : digits
        }.joined()
    }

    private func lines(_ records: [CoordinatorRecord]) throws -> [String] {
        try records.map { record in
            let (key, value) = try record.encoded()
            #expect(try CoordinatorRecord.decode(key: key, value: value) == record)
            return "\(hex(key)) \(hex(value))"
        }
    }

    @Test func `a join writes member, epoch, target and current assignment, in Kafka's layouts`() throws {
        let harness = ShardHarness(topics: [ShardHarness.topic("t", 2)])
        harness.beat("g", .join("m", instance: "i", assignor: "range"))
        let topic = "0000000000000007" + "0000000000000074"
        let hash = TopicCatalog(version: 1, topics: [ShardHarness.topic("t", 2)]).hash(of: ["t"])
        let hashDigits = String(UInt64(bitPattern: hash), radix: 16)
        let padded = String(repeating: "0", count: 16 - hashDigits.count) + hashDigits
        #expect(
            try lines(harness.log) == [
                // Type 5: instance, no rack, client, host, names, no pattern, timeout, assignor.
                "0005" + "000167" + "00016d" + " 0000" + "0269" + "00" + "07636c69656e74"
                    + "0b2f3132372e302e302e31"
                    + "02" + "0274" + "00" + "0000ea60" + "0672616e6765" + "00",
                // Type 3: epoch, and the hash of the topics under tag 0.
                "0003" + "000167" + " 0000" + "00000001" + "01" + "0008" + padded,
                // Type 7: partitions 0 and 1.
                "0007" + "000167" + "00016d" + " 0000" + "02" + topic + "03" + "00000000" + "00000001" + "00"
                    + "00",
                // Type 6: epoch, and the time under tag 0.
                "0006" + "000167" + " 0000" + "00000001" + "01" + "0008" + "0000018bcfe56800",
                // Type 8: epoch, epoch before, state, partitions with the epochs they came with, none to give back.
                "0008" + "000167" + "00016d" + " 0000" + "00000001" + "00000000" + "00" + "02" + topic + "03"
                    + "00000000" + "00000001" + "01" + "0009" + "03" + "00000001" + "00000001" + "01" + "00",
            ])
    }

    @Test func `leaving writes tombstones, last the member, then the next epoch`() throws {
        let harness = ShardHarness(topics: [ShardHarness.topic("t", 1)])
        harness.beat("g", .join("m", [], regex: "t.*"))
        let before = harness.log.count
        #expect(
            try lines(harness.log).contains(
                // Type 16: topics, version of the metadata, time.
                "0010" + "000167" + "0003742e2a" + " 0000" + "02" + "0274" + "0000000000000001"
                    + "0000018bcfe56800"
                    + "00"))
        harness.beat("g", ShardHarness.Beat(member: "m", epoch: -1))
        #expect(
            try lines(Array(harness.log[before...])) == [
                "0008" + "000167" + "00016d" + " tombstone", "0007" + "000167" + "00016d" + " tombstone",
                "0005" + "000167" + "00016d" + " tombstone", "0010" + "000167" + "0003742e2a" + " tombstone",
                "0003" + "000167" + " 0000" + "00000002" + "00",
            ])
    }

    @Test func `records of an older coordinator are read: no epochs, partition metadata, which goes away`()
        throws
    {
        typealias Value = ConsumerGroupCurrentMemberAssignmentValue
        var entry = Value.TopicPartitions()
        entry.topicID = ShardHarness.topicID("t")
        entry.partitions = [0]
        var current = Value()
        current.memberEpoch = 4
        current.previousMemberEpoch = 3
        current.assignedPartitions = [entry]
        var currentKey = ConsumerGroupCurrentMemberAssignmentKey()
        currentKey.groupID = "g"
        currentKey.memberID = "m"
        var topicsKey = ConsumerGroupPartitionMetadataKey()
        topicsKey.groupID = "g"
        var about = ConsumerMember(id: "m").about
        about.subscribedTopicNames = ["t"]
        about.rebalanceTimeoutMs = 1_000
        let log: [CoordinatorRecord] = [
            .consumerMember("g", "m", about),
            .consumerGroupTopics(topicsKey, ConsumerGroupPartitionMetadataValue()),
            .consumerGroup("g", epoch: 4, metadataHash: 0),
            .consumerMemberTarget("g", "m", [ShardHarness.topicID("t"): [0]]),
            .consumerTarget("g", epoch: 4, at: Timestamp(milliseconds: 0)),
            .consumerMemberCurrent(currentKey, current),
        ]
        let harness = ShardHarness(log: log, topics: [ShardHarness.topic("t", 1)])
        #expect(harness.state("g")?.members["m"]?.assigned == [ShardHarness.topicID("t"): [0: 4]])
        let response = harness.beat("g", ShardHarness.Beat(member: "m", epoch: 4))
        // The hash of the topics is new to this log: one epoch more, and the old record goes.
        #expect(response.errorCode == 0 && response.memberEpoch == 5)
        #expect(harness.log.contains(.consumerGroupTopics(topicsKey, nil)))
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `a state of a newer release makes the member start over`() {
        typealias Value = ConsumerGroupCurrentMemberAssignmentValue
        let harness = ShardHarness(topics: [ShardHarness.topic("t", 1)])
        harness.beat("g", .join("m"))
        var log = harness.log
        guard case .consumerMemberCurrent(let key, var value?)? = log.last else {
            Issue.record("the last record is not the current assignment")
            return
        }
        value.state = 9
        log.append(.consumerMemberCurrent(key, value))
        let successor = ShardHarness(log: log, topics: harness.topics)
        #expect(successor.code("g", ShardHarness.Beat(member: "m", epoch: 1)) == .fencedMemberEpoch)
        let again = successor.beat("g", .join("m"))
        #expect(again.errorCode == 0 && successor.parts(again) == ["t": [0]])
    }
}
