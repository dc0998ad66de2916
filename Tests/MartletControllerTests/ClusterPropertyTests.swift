import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import Testing

/// Random histories of a cluster. Beside the controller runs a model of who has every acknowledged record, as KIP-966
/// reasons: whoever is in sync when something is committed, and nobody else. Everybody who may be elected without
/// loss must be among them (I6, I10, I11).
@Suite struct `Histories of a cluster` {
    final class World {
        let harness: ClusterHarness
        var random: SeededGenerator
        let brokerCount: Int32
        /// Epochs of brokers that stopped cleanly, as they will say them.
        var cleanStops: [Int32: Int64] = [:]
        /// Replicas that have every committed record.
        var complete: [PartitionReference: Set<BrokerID>] = [:]
        /// Partitions under a leader that has not recovered, with that leader.
        var recovering: [PartitionReference: BrokerID] = [:]
        /// An attempt to change an in-sync set that its leader has given up and made void since.
        struct Attempt {
            let name: String
            let topicID: UniversalID
            let index: Int32
            let leader: BrokerID
            let leaderEpoch: Int32
            let partitionEpoch: Int32
            let isr: [Int32]
        }
        var voided: [Attempt] = []
        var problems: [String] = []
        var commits = 0
        var losses = 0
        var elections = 0

        init(seed: UInt64, suspended: SuspendedControllerRules = []) throws {
            random = SeededGenerator(seed: seed)
            brokerCount = Int32.random(in: 3...6, using: &random)
            harness = try ClusterHarness(
                brokers: Int(brokerCount), racks: [0: "a", 1: "a", 2: "b", 3: "b"], configured: 3,
                seed: seed &* 7, suspended: suspended)
            for index in 0..<3 { try create("t\(index)") }
            settle()
            harness.afterAppend = { [weak self] in self?.settle() }
        }

        func number(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &random) }
        func broker() -> Int32 { Int32.random(in: 0..<brokerCount, using: &random) }
        func isUp(_ id: BrokerID) -> Bool { harness.epochs[id.rawValue] != nil }

        func create(_ name: String) throws {
            try harness.create(
                name, partitions: Int32(number(1...4)), replicas: Int16(number(1...3)),
                configs: [("min.insync.replicas", "\(number(1...3))")])
        }

        func anyPartition() -> (name: String, index: Int32, image: PartitionImage)? {
            let all = harness.image.sortedTopics().flatMap { topic in
                topic.partitions.enumerated().map { (topic.name, Int32($0.offset), $0.element) }
            }
            return all.isEmpty ? nil : all[number(0...all.count - 1)]
        }

        func reference(_ name: String, _ index: Int32) -> PartitionReference {
            .init(topicID: harness.image.topicID(named: name) ?? .zero, partition: index)
        }

        /// What the last decision means for the model, and whether the model still holds.
        func settle() {
            for topic in harness.image.sortedTopics() {
                for (index, partition) in topic.partitions.enumerated() {
                    let reference = PartitionReference(topicID: topic.id, partition: Int32(index))
                    if !partition.isRecovering || partition.leader == nil {
                        recovering[reference] = nil
                    } else if let leader = partition.leader, recovering[reference] != leader {
                        // An unclean leader: what it lacks is lost, and what it has is all there is.
                        losses += 1
                        complete[reference] = [leader]
                        recovering[reference] = leader
                    }
                    let known = complete[reference] ?? Set(partition.isr)
                    complete[reference] = known
                    for id in partition.isr + partition.eligibleLeaderReplicas where !known.contains(id) {
                        problems.append(
                            "\(topic.name)-\(index): \(id) may lead without every committed record: \(partition)"
                        )
                    }
                }
            }
        }

        func step() throws {
            switch number(0...99) {
            case 0..<8: try crashOrStop()
            case 8..<22: try comeBack()
            case 22..<30: try harness.pass(milliseconds: Int64(number(1...7)) * 500)
            case 30..<33: try giveUp()
            case 33..<36: try arriveLate()
            case 36..<60: try commit()
            case 60..<85: try alter()
            case 85..<88: try reassign()
            case 88..<90:
                if let (name, index, _) = anyPartition() {
                    try harness.elect(name, index, unclean: number(0...9) == 0)
                }
            case 90: try harness.decide { controller, _ in controller.decideBalance() }
            case 91: try harness.failOver(loading: number(0...1) == 0)
            case 92:
                if let (name, _, _) = anyPartition() {
                    try harness.set(
                        2, name, "min.insync.replicas", number(0...3) == 0 ? nil : "\(number(1...3))")
                }
            case 93: try create("t\(number(0...5))")
            case 94:
                if harness.epochs.count > 2 {
                    let id = broker()
                    if harness.epochs[id] != nil { try harness.beat(id, wantFence: true) }
                }
            case 95:
                if let (name, _, _) = anyPartition() {
                    try harness.set(
                        2, name, "unclean.leader.election.enable", number(0...2) == 0 ? "true" : nil)
                }
            case _: for id in harness.epochs.keys.sorted() { try harness.beat(id) }
            }
            settle()
        }

        private func crashOrStop() throws {
            let id = broker()
            guard harness.epochs[id] != nil else { return }
            if number(0...1) == 0 {
                harness.crash(id)
            } else if harness.epochs.keys.count > 1 {
                let epoch = try #require(harness.epochs[id])
                // Others may be down and keep it from going cleanly: then it is killed.
                for _ in 0..<4 where harness.epochs[id] != nil {
                    for other in harness.epochs.keys.sorted() where other != id { try harness.beat(other) }
                    if try harness.beat(id, wantShutDown: true).shouldShutDown {
                        cleanStops[id] = epoch
                        harness.crash(id)
                    }
                }
                if harness.epochs[id] != nil { harness.crash(id) }
            }
        }

        private func comeBack() throws {
            let id = broker()
            guard harness.epochs[id] == nil else { return }
            let previous = number(0...9) == 0 ? nil : cleanStops[id]
            let response = try harness.register(id, previous: previous ?? -1)
            guard response.errorCode == 0 else { return }
            cleanStops[id] = nil
            if previous == nil {
                for reference in Array(complete.keys) { complete[reference]?.remove(BrokerID(id)) }
            }
            settle()
            if number(0...3) > 0 { try harness.beat(id) }
        }

        /// The leader appends and all in sync have it: only then, and only with enough of them, is it committed.
        private func commit() throws {
            guard let (name, index, partition) = anyPartition(), let leader = partition.leader, isUp(leader),
                let topic = harness.image.topic(named: name),
                partition.isr.count
                    >= partition.effectiveMinInsync(configured: topic.configuration.minInsyncReplicas),
                partition.isr.allSatisfy(isUp)
            else { return }
            commits += 1
            complete[reference(name, index)] = Set(partition.isr)
        }

        private func alter() throws {
            guard let (name, index, partition) = anyPartition(), let leader = partition.leader, isUp(leader)
            else { return }
            if partition.isRecovering {
                try harness.alter(name, index, isr: [leader.rawValue])
                return
            }
            var isr = partition.isr
            let outside = partition.replicas.filter { !isr.contains($0) }
            if number(0...3) > 0, let joining = outside.first(where: isUp) {
                isr.append(joining)
                let epoch = try #require(harness.epochs[joining.rawValue])
                // Now and then it was an earlier run that had caught up with the leader, not the present one.
                let claimed = number(0...4) == 0 ? epoch - 1 : epoch
                if claimed == epoch { complete[reference(name, index)]?.insert(joining) }
                try harness.alter(name, index, isr: isr.map(\.rawValue), epochs: [joining.rawValue: claimed])
            } else if isr.count > 1 {
                let leaving = isr.filter { $0 != leader }[number(0...isr.count - 2)]
                try harness.alter(name, index, isr: isr.filter { $0 != leaving }.map(\.rawValue))
            }
        }

        /// The leader hears nothing of an attempt, and makes it void: it has what there is confirmed.
        private func giveUp() throws {
            guard let (name, index, partition) = anyPartition(), let leader = partition.leader, isUp(leader),
                let joining = partition.replicas.first(where: { !partition.isr.contains($0) }), voided.count < 20
            else { return }
            let isr = partition.isr.map(\.rawValue)
            guard try harness.alter(name, index, isr: isr) == .none else { return }
            voided.append(
                Attempt(
                    name: name, topicID: reference(name, index).topicID, index: index, leader: leader,
                    leaderEpoch: partition.leaderEpoch.rawValue, partitionEpoch: partition.partitionEpoch,
                    isr: isr + [joining.rawValue]))
        }

        private func arriveLate() throws {
            guard !voided.isEmpty else { return }
            let attempt = voided.remove(at: number(0...voided.count - 1))
            guard let partition = harness.image.partition(TopicPartition(attempt.name, attempt.index)),
                attempt.topicID == reference(attempt.name, attempt.index).topicID,
                attempt.leaderEpoch <= partition.leaderEpoch.rawValue
            else { return }
            let code = try harness.alter(
                attempt.name, attempt.index, isr: attempt.isr, from: attempt.leader.rawValue,
                leaderEpoch: attempt.leaderEpoch, partitionEpoch: attempt.partitionEpoch)
            if code == .none {
                problems.append("\(attempt.name)-\(attempt.index): an attempt of before is taken: \(attempt)")
            }
        }

        private func reassign() throws {
            guard let (name, index, _) = anyPartition() else { return }
            guard number(0...3) > 0 else {
                try harness.reassign(name, index, to: nil)
                return
            }
            var ids = Array(0..<brokerCount)
            ids.shuffle(using: &random)
            try harness.reassign(name, index, to: Array(ids.prefix(number(1...3))))
        }
    }

    static let seeds: ClosedRange<UInt64> = 1...60

    @Test(.timeLimit(.minutes(10)), arguments: seeds)
    func `who may lead has every committed record, whatever happens`(seed: UInt64) throws {
        let world = try World(seed: seed)
        for step in 0..<400 {
            try world.step()
            let problems = world.problems + world.harness.violations
            #expect(problems.isEmpty, "seed \(seed) step \(step)")
            if !problems.isEmpty { return }
        }
        #expect(world.commits > 0)
        // A replay of the log, and of the snapshot, is the live state.
        let bytes = try world.harness.snapshotBytes()
        var replayed = ClusterController(localBroker: BrokerID(0), isFollowing: true)
        for (offset, record) in world.harness.log.enumerated() {
            try replayed.replay(record, at: Offset(Int64(offset)))
        }
        let fromLog = replayed.publish().image
        #expect(try ClusterHarness.bytes(fromLog.snapshotRecords()) == bytes, "seed \(seed)")
        var loaded = ClusterController(localBroker: BrokerID(0))
        for record in world.harness.snapshotRecords() { try loaded.replay(record, at: Offset(1)) }
        let fromSnapshot = loaded.publish().image
        #expect(try ClusterHarness.bytes(fromSnapshot.snapshotRecords()) == bytes, "seed \(seed)")
    }

    /// A proof that cannot fail proves nothing: without any of these rules some history must go wrong.
    @Test(.timeLimit(.minutes(10)), arguments: SuspendedControllerRules.all)
    func `a rule that is missing is noticed`(rule: SuspendedControllerRules) throws {
        for seed in Self.seeds {
            let world = try World(seed: seed, suspended: rule)
            for _ in 0..<400 {
                try world.step()
                // The model's own words count, not the shape of the state.
                if !world.problems.isEmpty { return }
            }
        }
        Issue.record("no history of \(Self.seeds) notices that \(rule) is missing")
    }

    @Test(arguments: 1...5 as ClosedRange<UInt64>)
    func `the same seed gives the same log`(seed: UInt64) throws {
        func history() throws -> [MetadataRecord] {
            let world = try World(seed: seed)
            for _ in 0..<200 { try world.step() }
            return world.harness.log
        }
        #expect(try history() == history())
    }

    @Test(.timeLimit(.minutes(10)), arguments: 1...20 as ClosedRange<UInt64>)
    func `I22: when every broker is back, every partition has a leader and fills its in-sync set`(
        seed: UInt64
    ) throws {
        let world = try World(seed: seed)
        for _ in 0..<200 { try world.step() }
        let harness = world.harness
        try harness.pass(milliseconds: 4000)
        for id in 0..<world.brokerCount where harness.epochs[id] == nil {
            #expect(try harness.start(id) == .none)
        }
        // A broker that was on its way out goes, and comes back.
        for broker in harness.image.brokers where broker.isInControlledShutdown {
            let epoch = try harness.stop(broker.id.rawValue)
            #expect(try harness.start(broker.id.rawValue, previous: epoch) == .none)
        }
        try harness.pass(milliseconds: 1000)
        for topic in harness.image.sortedTopics() {
            for index in topic.partitions.indices {
                // With nobody left who is sure to have everything, somebody has to decide what is lost.
                if try harness.partition(topic.name, Int32(index)).leader == nil {
                    #expect(try harness.partition(topic.name, Int32(index)).eligibleLeaderReplicas.isEmpty)
                    #expect(try harness.elect(topic.name, Int32(index), unclean: true) == .none)
                }
                let partition = try harness.partition(topic.name, Int32(index))
                if partition.isRecovering {
                    try harness.alter(topic.name, Int32(index), isr: partition.isr.map(\.rawValue))
                }
                let code = try harness.alter(
                    topic.name, Int32(index), isr: partition.replicas.map(\.rawValue))
                #expect(code == .none || code == .newLeaderElected, "seed \(seed)")
                let full = try harness.partition(topic.name, Int32(index))
                #expect(full.isr.count == full.replicas.count && !full.isBeingReassigned, "seed \(seed)")
            }
        }
        #expect(harness.violations.isEmpty)
    }
}
