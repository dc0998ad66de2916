import MartletLogModel
import MartletReplication
import Testing

@Suite struct PartitionReplicaTests {
    typealias Effect = PartitionReplica.Effect

    @Test func `an fsync append is acknowledged by its flush and not before`() {
        var replica = PartitionReplica(durability: .fsync, recoveredEnd: Offset(10))
        replica.becameLeader(epoch: LeaderEpoch(3))
        var effects: [Effect] = []
        replica.appended(upTo: Offset(12), waiter: AppendID(rawValue: 1), into: &effects)
        #expect(effects.isEmpty)
        #expect(replica.highWatermark == Offset(10))
        replica.flushed(upTo: Offset(11), into: &effects)
        #expect(effects == [.advanceHighWatermark(Offset(11))])
        replica.flushed(upTo: Offset(12), into: &effects)
        #expect(
            effects == [
                .advanceHighWatermark(Offset(11)), .advanceHighWatermark(Offset(12)),
                .acknowledge(AppendID(rawValue: 1)),
            ])
    }

    @Test func `a relaxed append is acknowledged by the write`() {
        var replica = PartitionReplica(durability: .relaxed, recoveredEnd: .zero)
        replica.becameLeader(epoch: .zero)
        var effects: [Effect] = []
        replica.appended(upTo: Offset(5), waiter: AppendID(rawValue: 7), into: &effects)
        #expect(effects == [.advanceHighWatermark(Offset(5)), .acknowledge(AppendID(rawValue: 7))])
    }

    @Test func `appends are acknowledged in the order of their offsets, repeats included`() {
        var replica = PartitionReplica(durability: .fsync, recoveredEnd: .zero)
        replica.becameLeader(epoch: .zero)
        var effects: [Effect] = []
        replica.appended(upTo: Offset(1), waiter: AppendID(rawValue: 1), into: &effects)
        replica.appended(upTo: Offset(2), waiter: AppendID(rawValue: 2), into: &effects)
        replica.repeated(upTo: Offset(1), waiter: AppendID(rawValue: 3), into: &effects)
        replica.flushed(upTo: Offset(1), into: &effects)
        #expect(
            effects == [
                .advanceHighWatermark(Offset(1)), .acknowledge(AppendID(rawValue: 1)),
                .acknowledge(AppendID(rawValue: 3)),
            ])
        effects = []
        replica.repeated(upTo: Offset(1), waiter: AppendID(rawValue: 4), into: &effects)
        #expect(effects == [.acknowledge(AppendID(rawValue: 4))])
    }

    @Test func `a leader that resigns answers every waiting append`() {
        var replica = PartitionReplica(durability: .fsync, recoveredEnd: .zero)
        replica.becameLeader(epoch: .zero)
        var effects: [Effect] = []
        replica.appended(upTo: Offset(1), waiter: AppendID(rawValue: 1), into: &effects)
        replica.resigned(into: &effects)
        #expect(effects == [.abandon(AppendID(rawValue: 1))])
        #expect(replica.snapshot().waitingAppendCount == 0)
        #expect(replica.leaderEpoch == nil)
    }

    @Test(arguments: 0..<32 as Range<UInt64>)
    func `the high watermark never falls and never passes the flushed end`(seed: UInt64) {
        var generator = SplitMix(state: seed)
        var replica = PartitionReplica(durability: .fsync, recoveredEnd: .zero)
        replica.becameLeader(epoch: .zero)
        var end: Int64 = 0
        var flushed: Int64 = 0
        var acknowledged = 0
        var mark = Offset.zero
        for step in 0..<500 {
            var effects: [Effect] = []
            if Bool.random(using: &generator) {
                end += Int64.random(in: 1...4, using: &generator)
                replica.appended(upTo: Offset(end), waiter: AppendID(rawValue: UInt64(step)), into: &effects)
            } else if flushed < end {
                flushed = Int64.random(in: flushed...end, using: &generator)
                replica.flushed(upTo: Offset(flushed), into: &effects)
            }
            #expect(replica.highWatermark >= mark)
            #expect(replica.highWatermark <= Offset(flushed))
            mark = replica.highWatermark
            acknowledged += effects.count { if case .acknowledge = $0 { true } else { false } }
        }
        var effects: [Effect] = []
        replica.flushed(upTo: Offset(end), into: &effects)
        #expect(replica.snapshot().waitingAppendCount == 0)
    }
}
