import MartletController
import MartletKafkaProtocol
import MartletLogModel
import Testing

@Suite struct `Reassignment of partitions` {
    @Test func `KIP-455: new replicas join, and when all that stay are in sync the others leave`() throws {
        let harness = try ClusterHarness(brokers: 5)
        try harness.create("t", [[0, 1, 2]])
        #expect(try harness.reassign("t", to: [3, 4, 0]) == .none)
        var partition = try harness.partition("t")
        #expect(partition.replicas.map(\.rawValue) == [3, 4, 0, 1, 2])
        #expect(partition.addingReplicas.map(\.rawValue) == [3, 4])
        #expect(partition.removingReplicas.map(\.rawValue) == [1, 2])
        #expect(partition.directory(of: BrokerID(3)) == UniversalID(high: 7, low: 1003))
        let list = harness.query { $0.describe(ListPartitionReassignmentsRequest()) }
        #expect(list.topics.map(\.name) == ["t"])
        #expect(list.topics[0].partitions[0].addingReplicas == [3, 4])
        #expect(list.topics[0].partitions[0].removingReplicas == [1, 2])
        #expect(try harness.alter("t", isr: [0, 1, 2, 3]) == .none)
        #expect(try harness.partition("t").isBeingReassigned)
        #expect(try harness.alter("t", isr: [0, 1, 2, 3, 4]) == .none)
        partition = try harness.partition("t")
        #expect(partition.replicas.map(\.rawValue) == [3, 4, 0])
        #expect(partition.isr.map(\.rawValue) == [0, 3, 4])
        #expect(!partition.isBeingReassigned)
        // Replicas that left may not count in the old epoch.
        #expect(partition.leader == BrokerID(0))
        #expect(partition.leaderEpoch == LeaderEpoch(1))
        #expect(partition.directories.count == 3)
        #expect(harness.query { $0.describe(ListPartitionReassignmentsRequest()) }.topics.isEmpty)
    }

    @Test
    func `NEW_LEADER_ELECTED: the change that completes a reassignment may take the leader's leadership`()
        throws
    {
        let harness = try ClusterHarness(brokers: 4)
        try harness.create("t", [[0, 1]])
        try harness.reassign("t", to: [2, 3])
        #expect(try harness.alter("t", isr: [0, 1, 2]) == .none)
        #expect(try harness.alter("t", isr: [0, 1, 2, 3]) == .newLeaderElected)
        #expect(try harness.line("t") == "2/2,3// e1")
    }

    @Test func `another order is complete at once`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2]])
        #expect(try harness.reassign("t", to: [2, 0, 1]) == .none)
        #expect(try harness.partition("t").replicas.map(\.rawValue) == [2, 0, 1])
        #expect(try harness.line("t") == "0/0,1,2// e0")
    }

    @Test func `a cancelled reassignment leaves what there was`() throws {
        let harness = try ClusterHarness(brokers: 5)
        try harness.create("t", [[0, 1, 2]])
        #expect(try harness.reassign("t", to: nil) == .noReassignmentInProgress)
        try harness.reassign("t", to: [3, 4, 0])
        try harness.alter("t", isr: [0, 1, 2, 3])
        #expect(try harness.reassign("t", to: nil) == .none)
        #expect(try harness.partition("t").replicas.map(\.rawValue) == [0, 1, 2])
        #expect(try harness.line("t") == "0/0,1,2// e1")
    }

    @Test func `going back is refused while only the new replicas are in sync`() throws {
        let harness = try ClusterHarness(brokers: 4)
        try harness.create("t", [[0]])
        try harness.create("u", [[0]], configs: [("unclean.leader.election.enable", "true")])
        for name in ["t", "u"] {
            try harness.reassign(name, to: [2, 3])
            try harness.alter(name, isr: [0, 2])
        }
        harness.crash(0)
        try harness.pass(milliseconds: 3500)
        #expect(try harness.line("t") == "2/2// e1")
        #expect(try harness.reassign("t", to: nil) == .invalidReplicaAssignment)
        try harness.start(0)
        #expect(try harness.reassign("u", to: nil) == .none)
        #expect(try harness.line("u") == "0/0// e2 recovering")
    }

    @Test func `another target drops what the first one was adding`() throws {
        let harness = try ClusterHarness(brokers: 6)
        try harness.create("t", [[0, 1, 2]])
        try harness.reassign("t", to: [3, 4, 0])
        try harness.alter("t", isr: [0, 1, 2, 3])
        #expect(try harness.reassign("t", to: [0, 4, 5]) == .none)
        var partition = try harness.partition("t")
        #expect(partition.replicas.map(\.rawValue) == [0, 4, 5, 1, 2])
        #expect(partition.addingReplicas.map(\.rawValue) == [4, 5])
        #expect(partition.removingReplicas.map(\.rawValue) == [1, 2])
        #expect(partition.isr.map(\.rawValue) == [0, 1, 2])
        try harness.reassign("t", to: nil)
        partition = try harness.partition("t")
        #expect(partition.replicas.map(\.rawValue) == [0, 1, 2])
    }

    @Test func `what cannot be is refused, and KIP-860 keeps the factor where asked`() throws {
        let harness = try ClusterHarness(brokers: 4)
        try harness.create("t", [[0, 1, 2]])
        #expect(try harness.reassign("t", to: []) == .invalidReplicaAssignment)
        #expect(try harness.reassign("t", to: [0, 0]) == .invalidReplicaAssignment)
        #expect(try harness.reassign("t", to: [0, 9]) == .invalidReplicaAssignment)
        #expect(try harness.reassign("t", 1, to: [0]) == .unknownTopicOrPartition)
        #expect(try harness.reassign("u", to: [0]) == .unknownTopicOrPartition)
        #expect(try harness.reassign("t", to: [0, 1], mayResize: false) == .invalidReplicationFactor)
        #expect(try harness.reassign("t", to: [3, 1, 0], mayResize: false) == .none)
        #expect(try harness.reassign("t", to: [0, 1]) == .none)
        #expect(try harness.partition("t").replicas.map(\.rawValue) == [0, 1])
    }

    @Test func `a broker that dies under a reassignment does not stop the others`() throws {
        let harness = try ClusterHarness(brokers: 4)
        try harness.create("t", [[0, 1]], configs: [("min.insync.replicas", "2")])
        try harness.reassign("t", to: [2, 3])
        try harness.alter("t", isr: [0, 1, 2])
        harness.crash(0)
        try harness.pass(milliseconds: 3500)
        #expect(try harness.partition("t").leader == BrokerID(2))
        #expect(try harness.alter("t", isr: [1, 2, 3]) == .none)
        #expect(try harness.line("t") == "2/2,3// e2")
    }

    @Test func `one broker becomes three: every partition gets three replicas and its share of leaders`()
        throws
    {
        let harness = try ClusterHarness(brokers: 1)
        try harness.create("t", partitions: 6, replicas: 1)
        try harness.create("__consumer_offsets", partitions: 3, replicas: 1, origin: .broker)
        #expect(throws: Refusal.self) { try harness.image.growth(toFactor: 3) }
        for id in [1, 2] as [Int32] { try harness.start(id) }
        var rounds = 0
        while true {
            let plan = try harness.image.growth(toFactor: 3, limit: 4)
            if plan.topics.isEmpty { break }
            rounds += 1
            let response = try harness.decide { controller, _ in controller.decide(plan) }
            #expect(response.responses.allSatisfy { $0.partitions.allSatisfy { $0.errorCode == 0 } })
            for topic in plan.topics {
                for entry in topic.partitions {
                    // Adding replicas asks no more of writers before they are there.
                    #expect(
                        try harness.partition(topic.name, entry.partitionIndex).effectiveMinInsync(
                            configured: 2) == 1)
                    #expect(try harness.alter(topic.name, entry.partitionIndex, isr: [0, 1, 2]) == .none)
                }
            }
        }
        #expect(rounds == 3)
        for topic in harness.image.sortedTopics() {
            #expect(topic.partitions.allSatisfy { $0.replicas.count == 3 && $0.isr.count == 3 })
        }
        _ = try harness.decide { controller, _ in controller.decideBalance() }
        for broker in 0..<3 as Range<Int32> {
            let led = harness.image.sortedTopics().flatMap(\.partitions).count {
                $0.leader == BrokerID(broker)
            }
            #expect(led == 3)
        }
    }
}

@Suite struct `Placement of replicas` {
    @Test func `KIP-36: every partition is in as many racks as it can be, and leaders are spread`() throws {
        let racks: [Int32: String] = [0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "b", 6: "c", 7: "c", 8: "c"]
        let harness = try ClusterHarness(brokers: 9, racks: racks)
        try harness.create("t", partitions: 90, replicas: 3)
        let partitions = try #require(harness.image.topic(named: "t")?.partitions)
        for partition in partitions {
            #expect(Set(partition.replicas.map { racks[$0.rawValue] }).count == 3)
        }
        for id in 0..<9 as Range<Int32> {
            #expect(partitions.count { $0.leader == BrokerID(id) } == 10)
            #expect(partitions.count { $0.replicas.contains(BrokerID(id)) } == 30)
        }
        // More replicas than racks: each rack has at least one, none more than two.
        try harness.create("u", partitions: 20, replicas: 5)
        for partition in try #require(harness.image.topic(named: "u")?.partitions) {
            let counts = Dictionary(grouping: partition.replicas) { racks[$0.rawValue] }.values.map(\.count)
            #expect(counts.count == 3 && counts.max() == 2)
        }
    }

    @Test func `racks of unlike size, one rack only, one replica only: it always ends`() throws {
        let seed: UInt64 = 17
        for round in 0..<40 as Range<UInt64> {
            var racks: [Int32: String] = [:]
            let count = Int32(1 + (seed + round) % 7)
            for id in 0..<count { racks[id] = ["a", "b", "c"][Int((seed &+ round &* 7 &+ UInt64(id)) % 3)] }
            let harness = try ClusterHarness(brokers: Int(count), racks: racks, seed: seed + round)
            for factor in 1...count {
                let code = try harness.create("t\(factor)", partitions: 23, replicas: Int16(factor)).errorCode
                    .code
                #expect(code == .none, "seed \(seed) round \(round)")
                for partition in try #require(harness.image.topic(named: "t\(factor)")?.partitions) {
                    #expect(Set(partition.replicas).count == Int(factor), "seed \(seed) round \(round)")
                }
            }
        }
    }

    @Test func `fenced brokers hold followers when the others do not suffice, and never lead`() throws {
        let harness = try ClusterHarness()
        harness.crash(2)
        try harness.pass(milliseconds: 3500)
        #expect(try harness.create("two", partitions: 20, replicas: 2).errorCode == 0)
        #expect(
            try #require(harness.image.topic(named: "two")).partitions.allSatisfy {
                !$0.replicas.contains(BrokerID(2))
            })
        #expect(try harness.create("three", partitions: 20, replicas: 3).errorCode == 0)
        for partition in try #require(harness.image.topic(named: "three")?.partitions) {
            #expect(partition.replicas.last == BrokerID(2))
            #expect(partition.isr.count == 2)
        }
        let refused = try harness.create("four", partitions: 1, replicas: 4)
        #expect(refused.errorCode.code == .invalidReplicationFactor)
        #expect(refused.errorMessage?.contains("3 broker(s)") == true)
    }

    @Test func `INVALID_REPLICA_ASSIGNMENT: nobody in a manual assignment could lead`() throws {
        let harness = try ClusterHarness()
        harness.crash(2)
        try harness.pass(milliseconds: 3500)
        #expect(try harness.create("t", [[2]]).errorCode.code == .invalidReplicaAssignment)
        #expect(try harness.create("t", [[2, 0]]).errorCode == 0)
        #expect(try harness.line("t") == "0/0// e0")
    }

    @Test func `COORDINATOR_NOT_AVAILABLE: internal topics wait for three of the configured brokers`() throws
    {
        let harness = try ClusterHarness(brokers: 2, configured: 5)
        let early = try harness.create("__consumer_offsets", partitions: -1, replicas: -1, origin: .broker)
        #expect(early.errorCode.code == .coordinatorNotAvailable)
        #expect(
            try harness.create("user", partitions: 1, replicas: -1).errorCode.code
                == .invalidReplicationFactor)
        try harness.start(2)
        let late = try harness.create("__consumer_offsets", partitions: -1, replicas: -1, origin: .broker)
        #expect(late.errorCode == 0 && late.replicationFactor == 3)
        #expect(harness.image.topic(named: "__consumer_offsets")?.configuration.minInsyncReplicas == 2)
        #expect(try harness.create("user", partitions: 1, replicas: -1).replicationFactor == 3)
        let pair = try ClusterHarness(brokers: 1, configured: 2)
        let waiting = try pair.create("__consumer_offsets", partitions: 1, replicas: -1, origin: .broker)
        #expect(waiting.errorCode.code == .coordinatorNotAvailable)
        try pair.start(1)
        #expect(
            try pair.create("__consumer_offsets", partitions: 1, replicas: -1, origin: .broker)
                .replicationFactor == 1)
    }

    @Test func `partitions that are added keep the factor, also of a topic under reassignment`() throws {
        let harness = try ClusterHarness(brokers: 5)
        try harness.create("t", [[0, 1]])
        try harness.reassign("t", to: [2, 3])
        var topic = CreatePartitionsRequest.CreatePartitionsTopic()
        topic.name = "t"
        topic.count = 3
        topic.assignments = nil
        var request = CreatePartitionsRequest()
        request.topics = [topic]
        #expect(try harness.decide { $0.decide(request, generator: &$1) }.results[0].errorCode == 0)
        #expect(try harness.partition("t", 2).replicas.count == 2)
        #expect(harness.delta.changedPartitions[try #require(harness.image.topicID(named: "t"))] == [1, 2])
    }
}
