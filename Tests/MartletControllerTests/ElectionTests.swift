import MartletController
import MartletKafkaProtocol
import MartletLogModel
import Testing

@Suite struct `Election of leaders` {
    private func cluster(
        _ assignments: [[Int32]] = [[0, 1, 2]], min: Int = 2, configs: [(String, String?)] = [],
        elr: Bool = true
    ) throws -> ClusterHarness {
        let harness = try ClusterHarness(elr: elr)
        try harness.create("t", assignments, configs: [("min.insync.replicas", "\(min)")] + configs)
        return harness
    }

    private func lose(_ id: Int32, _ harness: ClusterHarness) throws {
        harness.crash(id)
        try harness.pass(milliseconds: 3500)
    }

    @Test func `the first replica in sync takes over, and the epoch rises`() throws {
        let harness = try cluster()
        try harness.alter("t", isr: [0, 2])
        try lose(0, harness)
        #expect(try harness.line("t") == "2/2/0/ e1")
    }

    @Test func `a follower that is lost costs the leader no epoch`() throws {
        let harness = try cluster()
        try lose(2, harness)
        #expect(try harness.line("t") == "0/0,1// e0")
        #expect(try harness.partition("t").partitionEpoch == 1)
    }

    @Test func `KIP-966: below the minimum who leaves stays eligible, at the minimum nobody else is`() throws
    {
        let harness = try cluster()
        try lose(2, harness)
        #expect(try harness.line("t") == "0/0,1// e0")
        try lose(1, harness)
        #expect(try harness.line("t") == "0/0/1/ e0")
        try lose(0, harness)
        #expect(try harness.line("t") == "-//0,1/0 e1")
        // 2 left while the set was sufficient: it may lack what was acknowledged since.
        #expect(try harness.start(2) == .none)
        #expect(try harness.line("t") == "-//0,1/0 e1")
    }

    @Test func `KIP-966: an eligible replica leads when nobody is in sync, and it is no unclean leader`()
        throws
    {
        let harness = try cluster()
        for id in [2, 1] as [Int32] { try lose(id, harness) }
        let epoch = try harness.stop(0)
        #expect(try harness.line("t") == "-//0,1/0 e1")
        // 1 fell silent and lost nothing: it beats again under its own epoch.
        let one = try #require(harness.image.broker(BrokerID(1))?.epoch)
        try harness.beat(1, epoch: one)
        #expect(try harness.line("t") == "1/1/0/ e2")
        #expect(try harness.start(0, previous: epoch) == .none)
        #expect(try harness.line("t") == "1/1/0/ e2")
        try harness.alter("t", isr: [1, 0])
        #expect(try harness.line("t") == "1/1,0// e2")
    }

    @Test func `I11: a run that stopped uncleanly is neither in sync nor eligible`() throws {
        let harness = try cluster()
        for id in [2, 1] as [Int32] { try lose(id, harness) }
        #expect(try harness.line("t") == "0/0/1/ e0")
        #expect(try harness.start(1) == .none)
        #expect(try harness.line("t") == "0/0// e0")
        // The epoch of another run is no proof of a clean stop either.
        let harness2 = try cluster()
        let epoch = try harness2.stop(1)
        #expect(try harness2.start(1, previous: epoch - 1) == .none)
        #expect(try harness2.line("t") == "0/0,2// e0")
    }

    @Test func `KIP-966: a clean stop keeps a replica eligible`() throws {
        let harness = try cluster()
        try lose(2, harness)
        let epoch = try harness.stop(1)
        #expect(try harness.line("t") == "0/0/1/ e0")
        #expect(try harness.start(1, previous: epoch) == .none)
        #expect(try harness.line("t") == "0/0/1/ e0")
    }

    @Test func `KIP-966: with nobody eligible the last leader comes back, as an unclean one`() throws {
        let harness = try cluster([[0, 1]])
        for id in [1, 0] as [Int32] { try lose(id, harness) }
        #expect(try harness.line("t") == "-//0,1/0 e1")
        #expect(try harness.start(1) == .none)
        #expect(try harness.line("t") == "-//0/0 e1")
        #expect(try harness.start(0) == .none)
        #expect(try harness.line("t") == "0/0// e2 recovering")
        // KIP-704: nobody joins before the leader has recovered.
        #expect(try harness.alter("t", isr: [0, 1], recovering: true) == .invalidRequest)
        #expect(try harness.alter("t", isr: [0]) == .none)
        #expect(try harness.line("t") == "0/0// e2")
        #expect(try harness.alter("t", isr: [0], recovering: true) == .invalidRequest)
        #expect(try harness.alter("t", isr: [0, 1]) == .none)
    }

    @Test func `brokers that fall silent together leave together`() throws {
        let harness = try cluster([[0, 1, 2], [1, 2, 0]])
        for id in [0, 1] as [Int32] { harness.crash(id) }
        try harness.pass(milliseconds: 3500)
        #expect(try harness.line("t", 0) == "2/2/0,1/ e1")
        #expect(try harness.line("t", 1) == "2/2/0,1/ e1")
    }

    @Test func `an unclean leader only where the topic asks for it`() throws {
        let harness = try cluster([[0, 1]])
        try harness.create(
            "u", [[0, 1]],
            configs: [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")])
        for name in ["t", "u"] { try harness.alter(name, isr: [0]) }
        try lose(0, harness)
        // 1 left t below the minimum of two, so it has all that was acknowledged; of u it may lack some.
        #expect(try harness.line("t") == "1/1/0/ e1")
        #expect(try harness.line("u") == "1/1// e1 recovering")
    }

    @Test func `a topic that allows unclean leaders later gets one with the next tick`() throws {
        let harness = try cluster([[0, 1]], min: 1)
        try harness.alter("t", isr: [0])
        try lose(0, harness)
        #expect(try harness.line("t") == "-//0/0 e1")
        #expect(try harness.set(2, "t", "unclean.leader.election.enable", "true") == .none)
        try harness.tick()
        #expect(try harness.line("t") == "1/1// e2 recovering")
    }

    @Test func `without eligible replicas the last in sync waits in the set`() throws {
        let harness = try cluster([[0, 1]], min: 1, elr: false)
        try harness.alter("t", isr: [0])
        try lose(0, harness)
        #expect(try harness.line("t") == "-/0// e1")
        #expect(try harness.start(0) == .none)
        #expect(try harness.line("t") == "0/0// e2")
    }

    @Test func `KIP-966: another minimum forgets who was eligible under the old one`() throws {
        let harness = try cluster()
        for id in [2, 1] as [Int32] { try lose(id, harness) }
        #expect(try harness.line("t") == "0/0/1/ e0")
        #expect(try harness.set(2, "t", "min.insync.replicas", "1") == .none)
        #expect(try harness.line("t") == "0/0// e0")
    }

    @Test func `KIP-183: the preferred replica leads again when it is in sync, 80 or 84 otherwise`() throws {
        let harness = try cluster()
        #expect(try harness.elect("t") == .electionNotNeeded)
        try lose(0, harness)
        #expect(try harness.line("t") == "1/1,2// e1")
        #expect(try harness.elect("t") == .preferredLeaderNotAvailable)
        try harness.start(0)
        #expect(try harness.elect("t") == .preferredLeaderNotAvailable)
        try harness.alter("t", isr: [1, 2, 0])
        #expect(try harness.elect("t") == .none)
        #expect(try harness.line("t") == "0/1,2,0// e2")
        #expect(try harness.elect("t", 7) == .unknownTopicOrPartition)
        #expect(try harness.elect("nowhere") == .unknownTopicOrPartition)
    }

    @Test func `KIP-460: an unclean election is made on demand, 83 if nobody is there, 84 if somebody leads`()
        throws
    {
        let harness = try cluster([[0, 1]], min: 1)
        try harness.alter("t", isr: [0])
        #expect(try harness.elect("t", unclean: true) == .electionNotNeeded)
        let epoch = try harness.stop(1)
        try lose(0, harness)
        #expect(try harness.elect("t", unclean: true) == .eligibleLeadersNotAvailable)
        try harness.start(1, previous: epoch)
        #expect(try harness.line("t") == "-//0/0 e1")
        #expect(try harness.elect("t", unclean: true) == .none)
        #expect(try harness.line("t") == "1/1// e2 recovering")
    }

    @Test func `without a list every partition that wants it is elected, the others are not named`() throws {
        let harness = try cluster([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
        try lose(0, harness)
        try harness.start(0)
        for index in 0..<3 as Range<Int32> { try harness.alter("t", index, isr: [0, 1, 2]) }
        var request = ElectLeadersRequest()
        request.topicPartitions = nil
        let response = try harness.decide { controller, _ in controller.decide(request) }
        #expect(response.replicaElectionResults.map(\.topic) == ["t"])
        #expect(response.replicaElectionResults[0].partitionResult.map(\.partitionID) == [0])
        #expect(response.replicaElectionResults[0].partitionResult[0].errorCode == 0)
        request.electionType = 2
        #expect(
            try harness.decide { controller, _ in controller.decide(request) }.errorCode.code
                == .invalidRequest)
    }

    @Test func `leadership goes back to preferred replicas from time to time`() throws {
        let harness = try cluster()
        try lose(0, harness)
        try harness.start(0)
        try harness.alter("t", isr: [0, 1, 2])
        try harness.pass(milliseconds: 290_000)
        #expect(try harness.partition("t").leader == BrokerID(1))
        try harness.pass(milliseconds: 15_000)
        #expect(try harness.partition("t").leader == BrokerID(0))

        let fixed = try ClusterHarness(staticConfiguration: ["auto.leader.rebalance.enable": "false"])
        try fixed.create("t", [[0, 1, 2]])
        fixed.crash(0)
        try fixed.pass(milliseconds: 3500)
        try fixed.start(0)
        try fixed.alter("t", isr: [0, 1, 2])
        try fixed.pass(milliseconds: 310_000)
        #expect(try fixed.partition("t").leader == BrokerID(1))
    }

    @Test func `KIP-858: an empty disk under an old id leads nothing until it has the partition`() throws {
        let harness = try cluster([[0, 1]], min: 1)
        try harness.alter("t", isr: [0])
        try lose(0, harness)
        #expect(try harness.start(0, directories: [UniversalID(high: 8, low: 8000)]) == .none)
        #expect(try harness.line("t") == "-//" + "/0 e1")
        #expect(try harness.elect("t", unclean: true) == .none)
        #expect(try harness.partition("t").leader == BrokerID(1))
        try harness.alter("t", isr: [1])
        try harness.alter("t", isr: [1, 0])
        #expect(try harness.partition("t").directory(of: BrokerID(0)) == UniversalID(high: 8, low: 8000))
    }

    @Test func `KIP-858: a lost directory takes its replicas out, the last one the broker`() throws {
        let harness = try ClusterHarness(brokers: 2)
        let directories = [UniversalID(high: 8, low: 1000), UniversalID(high: 8, low: 1001)]
        #expect(try harness.start(2, directories: directories) == .none)
        try harness.create("t", [[2, 0], [2, 1]])
        let id = try #require(harness.image.topicID(named: "t"))
        for (partition, directory) in directories.enumerated() {
            var entry = AssignReplicasToDirsRequest.PartitionData()
            entry.partitionIndex = Int32(partition)
            var topic = AssignReplicasToDirsRequest.TopicData()
            topic.topicID = id
            topic.partitions = [entry]
            var data = AssignReplicasToDirsRequest.DirectoryData()
            data.id = directory
            data.topics = [topic]
            var request = AssignReplicasToDirsRequest()
            request.brokerID = 2
            request.brokerEpoch = harness.epochs[2] ?? -1
            request.directories = [data]
            let response = try harness.decide { controller, _ in controller.decide(request) }
            #expect(response.directories[0].topics[0].partitions[0].errorCode == 0)
        }
        #expect(try harness.partition("t", 1).directories[0] == directories[1])
        try harness.beat(2, lost: [directories[0]])
        #expect(try harness.line("t", 0) == "0/0// e1")
        #expect(try harness.line("t", 1) == "2/2,1// e0")
        #expect(harness.image.broker(BrokerID(2))?.logDirectories == [directories[1]])
        #expect(try harness.beat(2, lost: directories).isFenced)
        #expect(try harness.line("t", 1) == "1/1// e1")
    }
}

@Suite struct `Changes of the in-sync set` {
    @Test func `KIP-497: each way of being late has its own answer`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2]])
        #expect(try harness.alter("t", isr: [0, 1]) == .none)
        #expect(try harness.line("t") == "0/0,1// e0")
        #expect(try harness.alter("t", isr: [0], leaderEpoch: 1) == .notController)
        #expect(try harness.alter("t", isr: [0], partitionEpoch: 9) == .notController)
        #expect(try harness.alter("t", isr: [0], partitionEpoch: 0) == .invalidUpdateVersion)
        #expect(try harness.alter("t", isr: [1], from: 1) == .invalidRequest)
        #expect(try harness.alter("t", isr: [0], brokerEpoch: 0) == .staleBrokerEpoch)
        #expect(try harness.alter("t", isr: []) == .invalidRequest)
        #expect(try harness.alter("t", isr: [1]) == .invalidRequest)
        #expect(try harness.alter("t", isr: [0, 0]) == .invalidRequest)
        #expect(try harness.alter("t", isr: [0, 7]) == .invalidRequest)
        harness.crash(0)
        try harness.pass(milliseconds: 3500)
        #expect(try harness.line("t") == "1/1// e1")
        #expect(try harness.alter("t", isr: [1], leaderEpoch: 0) == .fencedLeaderEpoch)
    }

    @Test func `KIP-903: a member of an earlier run, fenced or leaving, is INELIGIBLE_REPLICA`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2]])
        let old = try #require(harness.epochs[1])
        let epoch = try harness.stop(1)
        #expect(try harness.alter("t", isr: [0, 1, 2]) == .ineligibleReplica)
        try harness.start(1, previous: epoch)
        #expect(try harness.alter("t", isr: [0, 1, 2], epochs: [1: old]) == .ineligibleReplica)
        #expect(try harness.alter("t", isr: [0, 1, 2], epochs: [1: -1]) == .none)
        _ = try harness.alter("t", isr: [0, 2])
        #expect(try harness.alter("t", isr: [0, 1, 2]) == .none)
    }

    @Test func `what changes nothing raises the partition epoch, so that no attempt of before is taken`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2]])
        try harness.alter("t", isr: [0, 1])
        let before = try harness.partition("t")
        #expect(try harness.alter("t", isr: [0, 1]) == .none)
        var after = try harness.partition("t")
        #expect(after.partitionEpoch == before.partitionEpoch + 1)
        // An attempt to let 2 in that was on its way all the time.
        #expect(
            try harness.alter("t", isr: [0, 1, 2], partitionEpoch: before.partitionEpoch) == .invalidUpdateVersion)
        after.partitionEpoch = before.partitionEpoch
        #expect(after == before)
        // Each time anew.
        #expect(try harness.alter("t", isr: [0, 1]) == .none)
        #expect(try harness.partition("t").partitionEpoch == before.partitionEpoch + 2)
    }

    @Test func `unknown topics, unknown partitions and repeats are answered one by one`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2]])
        func entry(_ index: Int32) -> AlterPartitionRequest.PartitionData {
            var entry = AlterPartitionRequest.PartitionData()
            entry.partitionIndex = index
            entry.leaderEpoch = 0
            var state = AlterPartitionRequest.BrokerState()
            state.brokerID = 0
            entry.newIsrWithEpochs = [state]
            return entry
        }
        var known = AlterPartitionRequest.TopicData()
        known.topicID = try #require(harness.image.topicID(named: "t"))
        known.partitions = [entry(0), entry(0), entry(5)]
        var unknown = AlterPartitionRequest.TopicData()
        unknown.topicID = UniversalID(high: 1, low: 1)
        unknown.partitions = [entry(0)]
        var request = AlterPartitionRequest()
        request.brokerID = 0
        request.brokerEpoch = harness.epochs[0] ?? -1
        request.topics = [known, unknown]
        let response = try harness.decide { controller, _ in controller.decide(request) }
        #expect(
            response.topics.map { $0.partitions.map(\.errorCode.code) } == [
                [.none, .invalidRequest, .unknownTopicOrPartition], [.unknownTopicID],
            ])
    }
}
