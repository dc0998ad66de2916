import MartletLogModel
import MartletMetadataQuorum
import MartletRecordBatch
import MartletTestSupport
import NIOCore
import Testing

@Suite struct ControlRecordTests {
    private let first = ReplicaKey(
        BrokerID(1), UniversalID(high: 0x0102_0304_0506_0708, low: 0x090a_0b0c_0d0e_0f10))
    private let second = ReplicaKey(BrokerID(2), UniversalID(high: 3, low: 4))

    private var samples: [[ControlRecord]] {
        let voters = VoterSet([
            Voter(key: first, endpoints: [Endpoint(name: "CONTROLLER", host: "192.0.2.1", port: 9093)]),
            Voter(
                key: second, endpoints: [Endpoint(name: "CONTROLLER", host: "n2.example", port: 65_535)],
                versions: KRaftVersionRange(minimum: 0, maximum: 1)),
        ])
        let change = LeaderChange(leader: BrokerID(1), voters: [first, second], grantingVoters: [first])
        let plain = LeaderChange(
            leader: BrokerID(1), voters: [ReplicaKey(BrokerID(1), nil)], grantingVoters: [])
        return [
            [.leaderChange(change)], [.leaderChange(plain)],
            [.leaderChange(change), .version(1), .voters(voters)],
            [
                .snapshotHeader(lastTimestamp: Timestamp(milliseconds: 1_700_000_000_000)), .version(1),
                .voters(voters),
            ],
            [.snapshotFooter],
        ]
    }

    @Test func `control batches are read as they were written`() throws {
        for records in samples {
            let bytes = try ControlBatch.encode(
                records, at: Offset(40), epoch: LeaderEpoch(3), timestamp: Timestamp(milliseconds: 5))
            let batches = try ControlBatch.split(bytes)
            #expect(
                batches == [
                    LogBatch(
                        baseOffset: Offset(40), endOffset: Offset(40 + Int64(records.count)),
                        epoch: LeaderEpoch(3),
                        controlRecords: records, bytes: bytes)
                ])
        }
    }

    /// Key: version 0, type. Value: the record's own version first, then its fields in flexible encoding (KIP-595, KIP-853).
    @Test func `the layouts are Kafka's`() throws {
        func record(_ record: ControlRecord) throws -> (key: [UInt8], value: [UInt8]) {
            let bytes = try ControlBatch.encode(
                [record], at: .zero, epoch: .zero, timestamp: Timestamp(milliseconds: 0))
            var iterator = try RecordIterator(bytes)
            let view = try #require(try iterator.next())
            return (
                Array(try #require(view.key).readableBytesView),
                Array(try #require(view.value).readableBytesView)
            )
        }
        let version = try record(.version(1))
        #expect(version.key == [0, 0, 0, 5] && version.value == [0, 0, 0, 1, 0])
        #expect(try record(.snapshotFooter).key == [0, 0, 0, 4])
        #expect(try record(.snapshotFooter).value == [0, 0, 0])
        let header = try record(.snapshotHeader(lastTimestamp: Timestamp(milliseconds: 258)))
        #expect(header.key == [0, 0, 0, 3] && header.value == [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0])
        let plain = LeaderChange(
            leader: BrokerID(1), voters: [ReplicaKey(BrokerID(1), nil)], grantingVoters: [])
        let change = try record(.leaderChange(plain))
        #expect(change.key == [0, 0, 0, 2])
        #expect(change.value == [0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 0, 1, 0])
        let voters = try record(
            .voters(VoterSet([Voter(key: first, endpoints: [Endpoint(name: "C", host: "h", port: 9_093)])])))
        #expect(voters.key == [0, 0, 0, 6])
        #expect(
            voters.value == [0, 0, 2, 0, 0, 0, 1] + (1...16).map { UInt8($0) }
                + [2, 2, UInt8(ascii: "C"), 2, UInt8(ascii: "h"), 0x23, 0x85, 0] + [0, 0, 0, 1, 0] + [0, 0])
    }

    @Test func `damaged or cut batches are no batches`() throws {
        let bytes = try ControlBatch.encode(
            samples[2], at: .zero, epoch: LeaderEpoch(1), timestamp: Timestamp(milliseconds: 5))
        for count in 0..<bytes.readableBytes {
            let prefix = try #require(bytes.getSlice(at: 0, length: count))
            #expect(try ControlBatch.split(prefix).isEmpty)
        }
        var random = SeededGenerator(seed: 4)
        for _ in 0..<500 {
            var damaged = ByteBuffer(bytes: Array(bytes.readableBytesView))
            // Behind the epoch, which lies outside the checksum.
            let place = Int.random(in: 16..<damaged.readableBytes, using: &random)
            let old = damaged.getInteger(at: place, as: UInt8.self) ?? 0
            damaged.setInteger(old ^ UInt8.random(in: 1...255, using: &random), at: place)
            #expect(throws: (any Error).self) { try ControlBatch.split(damaged) }
        }
    }

    @Test func `unknown control records are skipped over`() throws {
        var builder = RecordBatchBuilder()
        var key = ByteBuffer()
        key.writeMultipleIntegers(Int16(0), Int16(77))
        try builder.append(key: key, value: ByteBuffer(), timestamp: 0)
        var options = RecordBatchBuilder.Options()
        options.isControl = true
        let batch = try builder.build(options)
        #expect(try ControlBatch.split(batch).first?.controlRecords == [.other(type: 77)])
    }
}
