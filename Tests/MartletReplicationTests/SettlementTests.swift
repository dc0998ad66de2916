import MartletController
import MartletLogModel
import MartletReplication
import Testing

/// A leader and the real controller, with one attempt to change the in-sync set that arrives when it was given up long
/// ago.
@Suite struct SettlementTests {
    @Test(arguments: [false, true])
    func `an attempt of unknown outcome is void once another was taken, also one that changed nothing`(
        isSuspended: Bool
    ) throws {
        let controller = ModelController(
            replicaCount: 3, minInSyncReplicas: 2, suspended: isSuspended ? .alterationEpoch : [])
        let epochs = controller.standings.map(\.brokerEpoch)
        var scenario = ReplicaScenario(
            durability: .relaxed, suspended: isSuspended ? .settlementByEpoch : SuspendedRules())
        func fetch(_ broker: Int, at offset: Int64, _ scenario: inout ReplicaScenario) {
            scenario.fetch(Int32(broker), at: offset, epoch: 0, registered: epochs[broker].rawValue)
        }
        func deliver(_ scenario: inout ReplicaScenario) throws {
            let sent = scenario.proposal
            let proposal = try #require(sent)
            guard case .accepted(let epoch, let version, let members) =
                controller.alter(proposal, from: BrokerID(0), epochs[0])
            else {
                Issue.record("\(proposal) is refused")
                return
            }
            scenario.replica.proposalAccepted(
                proposal.number, leaderEpoch: epoch, partitionEpoch: version, inSyncReplicas: members,
                into: &scenario.effects)
        }
        let assignment = try #require(controller.history.last?.assignment)
        scenario.replica.partitionChanged(assignment, now: scenario.now, into: &scenario.effects)
        // 2 lags, and is put out.
        scenario.append(4)
        scenario.pass(2_000)
        fetch(1, at: 4, &scenario)
        scenario.tick()
        try deliver(&scenario)
        #expect(controller.inSync == [BrokerID(0), BrokerID(1)])
        // It is back, the attempt to let it in lies in a broken connection, and it hangs.
        fetch(2, at: 4, &scenario)
        let sent = scenario.proposal
        let attempt = try #require(sent)
        #expect(attempt.members.count == 3)
        scenario.replica.proposalLost(attempt.number, into: &scenario.effects)
        scenario.append(2, waiter: 1)
        scenario.pass(2_000)
        fetch(1, at: 6, &scenario)
        scenario.tick()
        #expect(scenario.mark == 4)
        try deliver(&scenario)
        // Without 2, since nobody can elect it.
        #expect(scenario.mark == 6)
        let late = controller.alter(attempt, from: BrokerID(0), epochs[0])
        if isSuspended {
            #expect(controller.inSync.contains(BrokerID(2)), "the proof sees nothing: \(late)")
        } else {
            guard case .refused(.invalidUpdateVersion) = late else {
                Issue.record("2 is in sync without what was acknowledged: \(late)")
                return
            }
            #expect(controller.inSync == [BrokerID(0), BrokerID(1)])
        }
    }
}
