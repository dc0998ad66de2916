import MartletLogModel
import MartletReplication
import Testing

@Suite struct FollowerScenarioTests {
    @Test func `a follower asks again when what it has is flushed`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 1, epoch: 1, inSync: [0, 1])
        scenario.records(mark: 0, count: 4)
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(1)) == nil)
        scenario.flush(3)
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(1)) == nil)
        scenario.flush()
        #expect(
            scenario.replica.nextFetch(lastEpoch: LeaderEpoch(1))
                == ReplicaFetch(
                    leader: BrokerID(1), leaderEpoch: LeaderEpoch(1), offset: Offset(4),
                    lastFetchedEpoch: LeaderEpoch(1), state: 1))
    }

    @Test func `a relaxed follower asks at its log end`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 1, epoch: 1, inSync: [0, 1])
        scenario.records(mark: 0, count: 4)
        #expect(scenario.replica.nextFetch(lastEpoch: nil)?.offset == Offset(4))
    }

    @Test func `a follower's mark is its leader's, as far as its own log goes`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 1, epoch: 1, inSync: [0, 1])
        scenario.records(mark: 9, count: 4)
        #expect(scenario.mark == 0)
        scenario.flush()
        #expect(scenario.mark == 4)
        #expect(scenario.replica.visibleEnd == Offset(4))
        // A new leader that knows less does not take it back.
        scenario.metadata(leader: 2, epoch: 2, inSync: [0, 2])
        scenario.records(mark: 2, count: 1)
        scenario.flush()
        #expect(scenario.mark == 4)
    }

    @Test func `KIP-101: a new follower keeps what lies above its mark until the leader's epochs say otherwise`() {
        var scenario = ReplicaScenario(end: 8, mark: 3)
        scenario.metadata(leader: 1, epoch: 5, inSync: [0, 1])
        #expect(scenario.taken().isEmpty)
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(4))?.offset == Offset(8))
        scenario.answer(.diverging(epochEnd(4, 6)), lastEpoch: 4, own: epochEnd(4, 8))
        #expect(scenario.taken() == [.truncate(to: Offset(6))])
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(4)) == nil, "the cut is not done")
        scenario.replica.truncated(to: Offset(6), now: scenario.now, into: &scenario.effects)
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(4))?.offset == Offset(6))
        #expect(scenario.mark == 3)
    }

    @Test func `KIP-279: a follower with epochs that the leader lacks walks back one by one`() {
        // Follower: epoch 1 to 5, epoch 3 to 10. Leader: epoch 1 to 7, then 4.
        var scenario = ReplicaScenario(end: 10, mark: 2)
        scenario.metadata(leader: 1, epoch: 4, inSync: [0, 1])
        let answer = LogDivergence.answer(lastFetchedEpoch: LeaderEpoch(3), offset: Offset(10), own: epochEnd(1, 7))
        #expect(answer == epochEnd(1, 7))
        scenario.answer(.diverging(epochEnd(1, 7)), lastEpoch: 3, own: epochEnd(1, 5))
        #expect(scenario.taken() == [.truncate(to: Offset(5))])
        // At its cut end both logs agree.
        #expect(
            LogDivergence.answer(lastFetchedEpoch: LeaderEpoch(1), offset: Offset(5), own: epochEnd(1, 7)) == nil)
        // An epoch without a record in common: the leader's shorter one wins.
        #expect(
            LogDivergence.cut(leader: epochEnd(2, 4), own: epochEnd(1, 6), logEnd: Offset(9)) == Offset(4))
        #expect(LogDivergence.cut(leader: epochEnd(2, 4), own: nil, logEnd: Offset(3)) == Offset(3))
    }

    @Test func `KIP-320 rule 1: the first question in an epoch names the last record's`() {
        var scenario = ReplicaScenario(end: 4)
        scenario.metadata(leader: 1, epoch: 7, inSync: [0, 1])
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(2))?.lastFetchedEpoch == LeaderEpoch(2))
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(2))?.leaderEpoch == LeaderEpoch(7))
    }

    @Test func `KIP-320 rule 2: an answer of an older epoch is ignored`() {
        var scenario = ReplicaScenario(end: 8, mark: 3)
        scenario.metadata(leader: 1, epoch: 5, inSync: [0, 1])
        let before = scenario.replica.nextFetch(lastEpoch: LeaderEpoch(4))
        scenario.metadata(leader: 2, epoch: 6, inSync: [0, 2])
        guard let before else {
            Issue.record("no question")
            return
        }
        scenario.replica.fetchAnswered(
            before, .diverging(epochEnd(3, 4)), epochEnd: epochEnd(3, 4), into: &scenario.effects)
        scenario.replica.fetchAnswered(
            before, .records(highWatermark: Offset(8), logStartOffset: .zero), epochEnd: nil,
            into: &scenario.effects)
        #expect(scenario.taken().isEmpty)
        #expect(scenario.mark == 3)
    }

    @Test func `an answer for another log end is ignored`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 1, epoch: 1, inSync: [0, 1])
        guard let early = scenario.replica.nextFetch(lastEpoch: nil) else {
            Issue.record("no question")
            return
        }
        scenario.records(mark: 0, count: 2)
        _ = scenario.taken()
        scenario.replica.fetchAnswered(
            early, .records(highWatermark: Offset(2), logStartOffset: .zero), epochEnd: nil, into: &scenario.effects)
        #expect(scenario.taken().isEmpty)
    }

    @Test func `a late answer that meets its log end again after a cut is ignored`() {
        var scenario = ReplicaScenario(durability: .relaxed, end: 1)
        scenario.metadata(leader: 1, epoch: 2, inSync: [0, 1])
        guard let early = scenario.replica.nextFetch(lastEpoch: LeaderEpoch(1)) else {
            Issue.record("no question")
            return
        }
        scenario.answer(.diverging(epochEnd(1, 0)), lastEpoch: 1, own: epochEnd(1, 1))
        scenario.replica.truncated(to: .zero, now: scenario.now, into: &scenario.effects)
        scenario.end = 0
        scenario.records(mark: 1, count: 1)
        _ = scenario.taken()
        scenario.replica.fetchAnswered(
            early, .diverging(epochEnd(1, 0)), epochEnd: epochEnd(1, 0), into: &scenario.effects)
        #expect(scenario.taken().isEmpty)
        #expect(scenario.mark == 1)
    }

    @Test func `a cut below the mark is reported first`() {
        var scenario = ReplicaScenario(end: 8, mark: 6)
        scenario.metadata(leader: 1, epoch: 5, inSync: [1])
        scenario.answer(.diverging(epochEnd(2, 4)), lastEpoch: 4, own: epochEnd(2, 5))
        #expect(scenario.taken() == [.quarantine(from: Offset(4)), .truncate(to: Offset(4))])
        scenario.replica.truncated(to: Offset(3), now: scenario.now, into: &scenario.effects)
        #expect(scenario.mark == 3)
    }

    @Test func `a cut below the log start begins a new log, reported first`() {
        var scenario = ReplicaScenario(end: 8, mark: 6, start: 5)
        scenario.metadata(leader: 1, epoch: 5, inSync: [1])
        scenario.answer(.diverging(epochEnd(2, 4)), lastEpoch: 4, own: nil)
        #expect(scenario.taken() == [.quarantine(from: Offset(4)), .restartLog(at: Offset(4))])
    }

    @Test func `metadata that comes during a cut counts after it`() {
        var scenario = ReplicaScenario(end: 8, mark: 3)
        scenario.metadata(leader: 1, epoch: 5, inSync: [0, 1])
        scenario.answer(.diverging(epochEnd(4, 6)), lastEpoch: 4, own: epochEnd(4, 8))
        _ = scenario.taken()
        scenario.metadata(leader: 0, epoch: 6, inSync: [0, 1])
        #expect(scenario.replica.leaderEpoch == nil)
        scenario.replica.truncated(to: Offset(6), now: scenario.now, into: &scenario.effects)
        #expect(scenario.taken() == [.startEpoch(at: Offset(6))])
        #expect(scenario.replica.leaderEpoch == LeaderEpoch(6))
        #expect(scenario.mark == 3)
    }

    @Test func `a follower that retention has overtaken begins again at the leader's log start`() {
        var scenario = ReplicaScenario(end: 8, mark: 8)
        scenario.metadata(leader: 1, epoch: 5, inSync: [1])
        scenario.answer(.outOfRange(leaderLogStartOffset: Offset(20)), lastEpoch: 4)
        #expect(scenario.taken() == [.restartLog(at: Offset(20))])
        scenario.replica.restarted(at: Offset(20), now: scenario.now, into: &scenario.effects)
        #expect(scenario.replica.nextFetch(lastEpoch: nil)?.offset == Offset(20))
        #expect(scenario.mark == 20)
    }

    @Test func `out of range is no reason to drop records that the leader may have`() {
        var scenario = ReplicaScenario(end: 8, mark: 8)
        scenario.metadata(leader: 1, epoch: 5, inSync: [1])
        scenario.answer(.outOfRange(leaderLogStartOffset: Offset(3)), lastEpoch: 4)
        #expect(scenario.taken().isEmpty)
    }

    @Test func `the log start follows the leader's, up to the mark`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 1, epoch: 1, inSync: [0, 1])
        scenario.records(mark: 4, count: 9, logStart: 6)
        _ = scenario.taken()
        scenario.answer(.records(highWatermark: Offset(5), logStartOffset: Offset(6)))
        #expect(scenario.taken().contains(.raiseLogStart(to: Offset(5))))
    }

    @Test func `a fenced follower waits for metadata`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 1, epoch: 1, inSync: [0, 1])
        scenario.answer(.refused(.unknownLeaderEpoch))
        #expect(scenario.replica.nextFetch(lastEpoch: nil) != nil)
        scenario.answer(.refused(.fencedLeaderEpoch))
        #expect(scenario.replica.nextFetch(lastEpoch: nil) == nil)
        scenario.metadata(leader: 2, epoch: 2, inSync: [0, 2])
        #expect(scenario.replica.nextFetch(lastEpoch: nil)?.leader == BrokerID(2))
    }

    @Test func `a leader that becomes a follower answers what waits, and flushes what it has before it asks`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.append(2, waiter: 1)
        _ = scenario.taken()
        scenario.metadata(leader: 1, epoch: 2, inSync: [0, 1])
        #expect(scenario.taken() == [.abandon(AppendID(rawValue: 1)), .flushLog])
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(1)) == nil)
        scenario.flush()
        #expect(scenario.replica.nextFetch(lastEpoch: LeaderEpoch(1)) != nil)
    }

    @Test func `a partition without a leader asks nobody, and one that is taken away is offline`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: nil, epoch: 1, inSync: [])
        #expect(scenario.replica.nextFetch(lastEpoch: nil) == nil)
        scenario.metadata(leader: 1, epoch: 2, inSync: [1], replicas: [1, 2])
        #expect(scenario.replica.visibleEnd == nil)
        #expect(scenario.replica.nextFetch(lastEpoch: nil) == nil)
    }
}
