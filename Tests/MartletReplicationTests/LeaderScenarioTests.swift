import MartletLogModel
import MartletReplication
import Testing

@Suite struct LeaderScenarioTests {
    @Test func `effects are plain bits`() {
        #expect(_isPOD(PartitionReplica.Effect.self))
        #expect(MemoryLayout<PartitionReplica.Effect>.stride <= 16)
    }

    @Test func `the mark is the minimum of the flushed ends of the in-sync set`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        #expect(scenario.taken() == [.startEpoch(at: .zero)])
        scenario.append(5, waiter: 1)
        scenario.flush(3)
        scenario.fetch(1, at: 4)
        #expect(scenario.mark == 0)
        #expect(scenario.taken().isEmpty)
        scenario.fetch(2, at: 5)
        #expect(scenario.taken() == [.advanceHighWatermark(Offset(3))])
        scenario.flush()
        #expect(scenario.taken() == [.advanceHighWatermark(Offset(4))])
        scenario.fetch(1, at: 5)
        #expect(scenario.taken() == [.advanceHighWatermark(Offset(5)), .acknowledge(AppendID(rawValue: 1))])
    }

    @Test func `a relaxed leader counts its log end`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.append(5)
        scenario.fetch(1, at: 5)
        #expect(scenario.mark == 5)
    }

    @Test func `the mark never falls when a follower falls back`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.append(5)
        scenario.fetch(1, at: 5)
        scenario.fetch(1, at: 2)
        scenario.append(1)
        #expect(scenario.mark == 5)
    }

    @Test func `KIP-320 rule 3: a fetch of another epoch neither acknowledges nor is served`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 3, inSync: [0, 1])
        scenario.append(5)
        scenario.flush()
        #expect(scenario.fetch(1, at: 5, epoch: 2) == .refused(.fencedLeaderEpoch))
        #expect(scenario.fetch(1, at: 5, epoch: 4) == .refused(.unknownLeaderEpoch))
        #expect(scenario.mark == 0)
        #expect(scenario.fetch(1, at: 5, epoch: 3) == .records(from: Offset(5), upTo: Offset(5)))
        #expect(scenario.mark == 5)
    }

    @Test func `KIP-595: a diverging fetch acknowledges nothing`() {
        var scenario = ReplicaScenario(end: 4)
        scenario.metadata(leader: 0, epoch: 3, inSync: [0, 1])
        let answer = scenario.fetch(1, at: 4, epoch: 3, lastEpoch: 2, epochEnd: epochEnd(1, 4))
        #expect(answer == .diverging(epochEnd(1, 4)))
        #expect(scenario.mark == 0)
    }

    @Test func `a follower whose last epoch is deleted at the leader begins again, for nobody can compare`() {
        var scenario = ReplicaScenario(end: 12, mark: 12, start: 10)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0])
        // The leader's history begins with epoch 8 at 10; the follower's epoch 7 may be anything.
        #expect(
            scenario.fetch(1, at: 10, epoch: 9, lastEpoch: 7, epochEnd: epochEnd(7, 10))
                == .refused(.offsetOutOfRange))
        #expect(
            scenario.fetch(1, at: 11, epoch: 9, lastEpoch: 8, epochEnd: epochEnd(8, 12))
                == .records(from: Offset(11), upTo: Offset(12)))
    }

    @Test func `KIP-320 rule 4: a replica joins at the start of the epoch and not below`() {
        var scenario = ReplicaScenario(end: 10, mark: 5)
        scenario.metadata(leader: 0, epoch: 2, inSync: [0, 1])
        _ = scenario.taken()
        scenario.fetch(2, at: 7, epoch: 2)
        #expect(scenario.proposed == nil)
        scenario.fetch(2, at: 10, epoch: 2)
        #expect(scenario.proposed == [0, 1, 2])
        #expect(scenario.taken() == [.proposeInSyncReplicas(number: 1)])
    }

    @Test func `a replica joins at the high watermark and not below`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.append(8)
        scenario.fetch(1, at: 8)
        scenario.fetch(2, at: 7)
        #expect(scenario.proposed == nil)
        scenario.fetch(2, at: 8)
        #expect(scenario.proposed == [0, 1, 2])
    }

    @Test func `AsyncIsr: the mark waits for who is proposed, and stops waiting when the controller refuses`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.fetch(2, at: 0)
        #expect(scenario.proposed == [0, 1, 2])
        scenario.append(4)
        scenario.fetch(1, at: 4)
        #expect(scenario.mark == 0)
        scenario.refuse(.ineligibleReplica)
        #expect(scenario.proposed == nil)
        // Still on its way in: it has just been caught up, so the mark gives it time.
        #expect(scenario.mark == 0)
        scenario.replica.standingChanged(
            of: BrokerID(2), ReplicaStanding(brokerEpoch: BrokerEpoch(10), canJoin: false), into: &scenario.effects)
        #expect(scenario.mark == 4)
    }

    @Test func `AsyncIsr: a shrink counts once the controller has taken it`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        scenario.append(4)
        scenario.pass(2_000)
        scenario.fetch(1, at: 4)
        scenario.tick()
        #expect(scenario.proposed == [0, 1])
        #expect(scenario.mark == 0)
        scenario.accept()
        #expect(scenario.mark == 4)
        #expect(scenario.replica.isUnderReplicated == true)
    }

    @Test func `a follower that has everything stays in sync however long it is silent`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.append(4)
        scenario.fetch(1, at: 4)
        scenario.pass(1_000_000)
        scenario.tick()
        #expect(scenario.proposed == nil)
        scenario.append(1)
        scenario.tick()
        #expect(scenario.proposed == [0])
    }

    @Test func `a follower that keeps the pace of its fetches stays in sync`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        for step in 0..<20 as Range<Int64> {
            scenario.append(10)
            scenario.pass(300)
            // It asks for what the leader had at the fetch before: never at the log end, never behind by more.
            scenario.fetch(1, at: step * 10)
            scenario.tick()
            #expect(scenario.proposed == nil)
        }
    }

    @Test func `KIP-841: a fenced replica is not proposed`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.fetch(2, at: 0, canJoin: false)
        #expect(scenario.proposed == nil)
    }

    @Test func `KIP-903: only the registered process joins, under the epoch of its fetch`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.fetch(2, at: 0, brokerEpoch: 9, registered: 10)
        #expect(scenario.proposed == nil)
        scenario.fetch(2, at: 0, brokerEpoch: 10, registered: 10)
        #expect(scenario.replica.inSyncProposal?.members.last?.brokerEpoch == BrokerEpoch(10))
        #expect(scenario.fetch(2, at: 0, brokerEpoch: 9, registered: 10) == .refused(.notLeaderOrFollower))
    }

    @Test func `min ISR: 19 before the append, 20 after it, without KIP-966`() {
        var scenario = ReplicaScenario(durability: .relaxed, isELROn: false)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        #expect(scenario.replica.appendRefusal(needsAll: true) == nil)
        scenario.append(1, waiter: 1)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0])
        #expect(scenario.taken().last == .refuse(AppendID(rawValue: 1), .notEnoughReplicasAfterAppend))
        #expect(scenario.replica.appendRefusal(needsAll: true) == .notEnoughReplicas)
        #expect(scenario.replica.appendRefusal(needsAll: false) == nil)
        #expect(scenario.replica.isUnderMinimumInSync == true)
    }

    @Test func `KIP-966: below min ISR the mark stands still, and appends go on waiting`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.append(1, waiter: 1)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0])
        #expect(scenario.mark == 0)
        scenario.fetch(2, at: 1)
        scenario.accept()
        #expect(scenario.mark == 1)
        #expect(scenario.taken().contains(.acknowledge(AppendID(rawValue: 1))))
    }

    @Test func `min ISR above the number of replicas means all of them`() {
        var scenario = ReplicaScenario(durability: .relaxed, minimum: 2)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0], replicas: [0])
        scenario.append(1, waiter: 1)
        #expect(scenario.taken().last == .acknowledge(AppendID(rawValue: 1)))
        #expect(scenario.replica.appendRefusal(needsAll: true) == nil)
    }

    @Test func `nothing is visible before the mark has reached the start of the epoch`() {
        var scenario = ReplicaScenario(end: 10, mark: 6)
        scenario.metadata(leader: 0, epoch: 4, inSync: [0, 1])
        scenario.fetch(1, at: 8, epoch: 4)
        #expect(scenario.mark == 8)
        #expect(scenario.replica.visibleEnd == nil)
        scenario.fetch(1, at: 10, epoch: 4)
        #expect(scenario.replica.visibleEnd == Offset(10))
    }

    @Test func `one proposal at a time; a lost one is settled, and its members count until then`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.fetch(2, at: 0)
        scenario.fetch(2, at: 0)
        #expect(scenario.taken().filter { $0 == .proposeInSyncReplicas(number: 1) }.count == 1)
        scenario.replica.proposalLost(1, into: &scenario.effects)
        scenario.append(4)
        scenario.fetch(1, at: 4)
        scenario.pass(5_000)
        scenario.fetch(1, at: 4)
        scenario.tick()
        #expect(scenario.proposed == [0, 1])
        #expect(scenario.mark == 0, "the lost proposal may still be taken")
        // The answer to the first attempt comes too late to be heard.
        scenario.replica.proposalRefused(1, .ineligibleReplica, into: &scenario.effects)
        #expect(scenario.proposed == [0, 1])
        scenario.accept()
        #expect(scenario.mark == 4)
        #expect(scenario.replica.snapshot().maximalInSyncReplicas == [BrokerID(0), BrokerID(1)])
    }

    @Test func `an answer whose partition epoch has not risen settles nothing: an earlier attempt may still arrive`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.fetch(2, at: 0)
        scenario.replica.proposalLost(1, into: &scenario.effects)
        scenario.append(4)
        scenario.pass(5_000)
        scenario.fetch(1, at: 4)
        scenario.tick()
        #expect(scenario.proposed == [0, 1])
        scenario.acceptUnchanged()
        #expect(scenario.mark == 0, "2 may be in sync for the controller")
        #expect(scenario.replica.snapshot().maximalInSyncReplicas.contains(BrokerID(2)))
        // It is tried again, until an answer has a new partition epoch.
        scenario.tick()
        #expect(scenario.replica.inSyncProposal?.number == 3)
        scenario.accept()
        #expect(scenario.mark == 4)
        // An answer that comes after that is nobody's.
        scenario.fetch(2, at: 4)
        #expect(scenario.proposed == [0, 1, 2])
        scenario.replica.proposalAccepted(
            3, leaderEpoch: LeaderEpoch(1), partitionEpoch: PartitionEpoch(scenario.version),
            inSyncReplicas: [BrokerID(0), BrokerID(1)], into: &scenario.effects)
        #expect(scenario.proposed == [0, 1, 2])
    }

    @Test func `a refused version waits for metadata, which supersedes the proposal`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        scenario.fetch(2, at: 0)
        scenario.refuse(.invalidUpdateVersion)
        #expect(scenario.replica.snapshot().maximalInSyncReplicas.contains(BrokerID(2)))
        scenario.tick()
        #expect(scenario.replica.inSyncProposal?.number == 1)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        #expect(scenario.replica.inSyncProposal == nil)
        #expect(scenario.replica.snapshot().inSyncReplicas.count == 3)
    }

    @Test func `metadata older than an accepted proposal changes nothing`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1], version: 5)
        scenario.fetch(2, at: 0)
        scenario.accept()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2], version: 6)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0], version: 5)
        #expect(scenario.replica.snapshot().inSyncReplicas.count == 3)
        scenario.metadata(leader: 1, epoch: 0, inSync: [0], version: 7)
        #expect(scenario.replica.leaderEpoch == LeaderEpoch(1))
    }

    @Test func `KIP-704: an uncleanly elected leader tells that it has taken over`() {
        var scenario = ReplicaScenario(end: 3)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0], isRecovering: true)
        scenario.tick()
        #expect(scenario.proposed == [0])
        scenario.accept()
        scenario.tick()
        #expect(scenario.proposed == nil)
    }

    @Test func `KIP-704: what else the controller changes meanwhile does not make it forget the recovery`() {
        var scenario = ReplicaScenario(end: 3)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0], isRecovering: true)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0], replicas: [0, 1, 2, 3], isRecovering: true)
        scenario.tick()
        #expect(scenario.proposed == [0])
        // The same while it is on its way.
        scenario.refuse(.invalidUpdateVersion)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0], replicas: [0, 1, 3], isRecovering: true)
        #expect(scenario.proposed == nil)
        scenario.tick()
        #expect(scenario.proposed == [0])
        let recovered = scenario.version
        scenario.accept()
        // Metadata that is older than the answer.
        scenario.metadata(
            leader: 0, epoch: 9, inSync: [0], replicas: [0, 1, 3], version: recovered, isRecovering: true)
        scenario.tick()
        #expect(scenario.proposed == nil)
    }

    @Test func `KIP-704: a recovery that metadata reports is not reported again`() {
        var scenario = ReplicaScenario(end: 3)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0], isRecovering: true)
        scenario.metadata(leader: 0, epoch: 9, inSync: [0])
        scenario.tick()
        #expect(scenario.proposed == nil)
    }

    @Test func `a replica that is taken away is under no minimum`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0])
        #expect(scenario.isUnderMinimum == true)
        scenario.replica.resigned(into: &scenario.effects)
        #expect(scenario.isUnderMinimum == false)
    }

    @Test func `a planned move takes no appends and is ready when the target has everything`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        scenario.append(4)
        scenario.replica.drain(to: BrokerID(1), into: &scenario.effects)
        #expect(scenario.replica.appendRefusal(needsAll: false) == .notLeaderOrFollower)
        scenario.fetch(2, at: 4)
        scenario.fetch(1, at: 3)
        #expect(!scenario.effects.contains(.readyForHandOver(LeaderEpoch(1))))
        scenario.fetch(1, at: 4)
        scenario.fetch(1, at: 4)
        #expect(scenario.taken().filter { $0 == .readyForHandOver(LeaderEpoch(1)) }.count == 1)
        scenario.replica.drainCancelled()
        #expect(scenario.replica.appendRefusal(needsAll: false) == nil)
    }

    @Test func `a planned move to whom the controller likes waits for the whole in-sync set`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        scenario.append(4)
        scenario.replica.drain(to: nil, into: &scenario.effects)
        scenario.fetch(1, at: 4)
        #expect(!scenario.effects.contains(.readyForHandOver(LeaderEpoch(1))))
        scenario.fetch(2, at: 4)
        #expect(scenario.effects.last == .readyForHandOver(LeaderEpoch(1)))
    }

    @Test func `a planned move waits for who may have come in, and lets nobody in with less than everything`() {
        let ready = PartitionReplica.Effect.readyForHandOver(LeaderEpoch(1))
        for isProposedBefore in [true, false] {
            var scenario = ReplicaScenario()
            scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
            scenario.append(10)
            scenario.flush(8)
            scenario.fetch(1, at: 8)
            #expect(scenario.mark == 8)
            if isProposedBefore { scenario.fetch(2, at: 8) }
            scenario.replica.drain(to: nil, into: &scenario.effects)
            if !isProposedBefore { scenario.fetch(2, at: 8) }
            #expect(scenario.proposed == (isProposedBefore ? [0, 1, 2] : nil))
            scenario.fetch(1, at: 10)
            // The controller may take the proposal, and then move to 2, which lacks 8..<10.
            #expect(scenario.effects.contains(ready) == !isProposedBefore)
            #expect(scenario.isReadyForHandOver == !isProposedBefore)
            scenario.fetch(2, at: 9)
            #expect(scenario.isReadyForHandOver == !isProposedBefore)
            scenario.fetch(2, at: 10)
            #expect(scenario.proposed == [0, 1, 2])
            #expect(scenario.isReadyForHandOver == true)
            #expect(scenario.effects.filter { $0 == ready }.count == 1)
        }
    }

    @Test func `without either rule of the hand-over it is ready too early, or lets in who lacks records`() {
        func drained(_ rule: SuspendedRules, before: Bool) -> (isReady: Bool, proposed: [Int32]?) {
            var scenario = ReplicaScenario(suspended: rule)
            scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
            scenario.append(10)
            scenario.flush(8)
            scenario.fetch(1, at: 8)
            if before { scenario.fetch(2, at: 8) }
            scenario.replica.drain(to: nil, into: &scenario.effects)
            scenario.fetch(1, at: 10)
            scenario.fetch(2, at: 8)
            return (scenario.isReadyForHandOver, scenario.proposed)
        }
        #expect(drained(.handOverToMaximalSet, before: true) == (true, [0, 1, 2]))
        #expect(drained(SuspendedRules(), before: true) == (false, [0, 1, 2]))
        #expect(drained(.expansionAtLogEnd, before: false).proposed == [0, 1, 2])
        #expect(drained(SuspendedRules(), before: false) == (true, nil))
    }

    @Test func `a planned move with nobody but a proposed replica is not ready`() {
        var scenario = ReplicaScenario(minimum: 1)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0])
        scenario.replica.drain(to: nil, into: &scenario.effects)
        scenario.fetch(1, at: 0)
        #expect(scenario.proposed == [0, 1])
        #expect(scenario.isReadyForHandOver == false)
        scenario.accept()
        #expect(scenario.taken().last == .readyForHandOver(LeaderEpoch(1)))
    }

    @Test func `readiness is taken back when it holds no more, and told again when it does`() {
        let ready = PartitionReplica.Effect.readyForHandOver(LeaderEpoch(1))
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1])
        #expect(scenario.isReadyForHandOver == false)
        scenario.append(4)
        scenario.replica.drain(to: nil, into: &scenario.effects)
        scenario.fetch(1, at: 4)
        #expect(scenario.taken().last == ready)
        #expect(scenario.isReadyForHandOver == true)
        // It began again and lost its log.
        scenario.fetch(1, at: 0)
        #expect(scenario.isReadyForHandOver == false)
        scenario.fetch(1, at: 4)
        #expect(scenario.taken().last == ready)
        // An append that had been taken before.
        scenario.append(1)
        #expect(scenario.isReadyForHandOver == false)
        scenario.fetch(1, at: 5)
        #expect(scenario.taken().last == ready)
        // Another came in, by an attempt of before.
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        #expect(scenario.isReadyForHandOver == false)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0])
        #expect(scenario.isReadyForHandOver == false, "there is nobody")
        scenario.replica.drainCancelled()
        #expect(scenario.isReadyForHandOver == false)
    }

    @Test func `KIP-392: the near replica that has the offset is preferred, the leader where it is near itself`() {
        var scenario = ReplicaScenario(durability: .relaxed)
        scenario.metadata(leader: 0, epoch: 1, inSync: [0, 1, 2])
        scenario.append(9)
        scenario.fetch(1, at: 5, logStart: 2)
        scenario.fetch(2, at: 9, logStart: 0)
        let (zero, one, two) = (BrokerID(0), BrokerID(1), BrokerID(2))
        #expect(scenario.replica.preferredReadReplica(from: Offset(4), nearby: [one]) == one)
        #expect(scenario.replica.preferredReadReplica(from: Offset(6), nearby: [one]) == nil)
        #expect(scenario.replica.preferredReadReplica(from: Offset(1), nearby: [one]) == nil)
        #expect(scenario.replica.preferredReadReplica(from: Offset(4), nearby: [one, two]) == two)
        #expect(scenario.replica.preferredReadReplica(from: Offset(4), nearby: [zero, two]) == nil)
        #expect(scenario.replica.lowWatermark == Offset(0))
    }

    @Test func `KIP-951: a replica that does not lead knows who does`() {
        var scenario = ReplicaScenario()
        scenario.metadata(leader: 2, epoch: 6, inSync: [1, 2])
        #expect(scenario.replica.leaderHint?.leader == BrokerID(2))
        #expect(scenario.replica.leaderHint?.epoch == LeaderEpoch(6))
        #expect(scenario.replica.appendRefusal(needsAll: false) == .notLeaderOrFollower)
        #expect(scenario.fetch(1, at: 0, epoch: 6) == .refused(.notLeaderOrFollower))
    }
}
