import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// Random members that join, beat, give back late or never, leave, die, come back, change their subscription and
/// repeat old messages, while topics come and grow and the coordinator restarts; appends commit whenever they like.
/// Every run follows from its seed.
private final class ConsumerGroupSimulation {
    final class Client {
        let name: String
        let instance: String?
        var incarnation = 0
        /// Member id of this incarnation.
        var member: String
        var epoch: Int32 = 0
        var isIn = false
        var names: [String] = []
        var regex: String?
        /// What it believes to own, and works on.
        var owned: Parts = [:]
        var waiting: RequestID?
        /// An answer was lost: the next heartbeat says everything.
        var isUnsure = false
        /// The answer that `waiting` brings is a full one to a join.
        var isJoining = false
        /// Heartbeats it once sent, for messages that come too late.
        var past: [ShardHarness.Beat] = []
        /// Milliseconds when it may count as dead for the broker and so must not be sure of its partitions.
        var lastAnswered: Int64 = 0

        init(_ name: String, instance: String?) {
            self.name = name
            self.instance = instance
            member = "\(name)-0"
        }
    }

    let seed: UInt64
    var harness: ShardHarness
    var random: SeededGenerator
    let clients: [Client]
    var topicNames = ["a", "b"]
    let session: Int64 = 10_000
    var steps = 0

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed)
        harness = ShardHarness(
            GroupConfiguration(
                initialRebalanceDelayMilliseconds: 0,
                consumer: ConsumerGroupConfiguration(
                    sessionTimeoutMilliseconds: 10_000,
                    assignors: seed % 2 == 0 ? [.uniform, .range] : [.range, .uniform])),
            topics: [ShardHarness.topic("a", 5), ShardHarness.topic("b", 3)])
        harness.commitsAtOnce = false
        clients = (0..<5).map { Client("c\($0)", instance: seed % 3 == 0 && $0 < 2 ? "i\($0)" : nil) }
        for client in clients { subscribe(client) }
    }

    func subscribe(_ client: Client) {
        switch Int.random(in: 0..<4, using: &random) {
        case 0: (client.names, client.regex) = (["a", "b"], "")
        case 1: (client.names, client.regex) = (["a"], "")
        case 2: (client.names, client.regex) = ([], "[ab].*")
        case _: (client.names, client.regex) = (["a", "b", "later"], "")
        }
    }

    /// One heartbeat; everything is told now and then, as clients do after an error.
    func beat(_ client: Client, full: Bool) {
        guard client.waiting == nil else { return }
        var beat = ShardHarness.Beat(member: client.member, epoch: client.epoch, instance: client.instance)
        if !client.isIn {
            beat = .join(
                client.member, client.names, regex: client.regex, instance: client.instance, rebalance: 5_000)
            client.owned = [:]
            client.epoch = 0
        } else if full || client.isUnsure {
            client.isUnsure = false
            beat.names = client.names
            beat.regex = client.regex
            beat.rebalance = 5_000
            beat.owned = client.owned
        } else if Bool.random(using: &random) {
            beat.owned = client.owned
        }
        client.isJoining = !client.isIn
        if beat.epoch > 0 { client.past.append(beat) }
        client.waiting = harness.beatID("g", beat)
    }

    func receive() {
        for client in clients {
            guard let id = client.waiting, let response = harness.beatResponse(id) else { continue }
            client.waiting = nil
            // Some answers are lost: the client says everything again with the epoch it knows.
            if Int.random(in: 0..<10, using: &random) == 0 {
                if client.isIn { beat(client, full: true) }
                continue
            }
            switch ErrorCode(rawValue: response.errorCode) {
            case .none:
                if response.memberEpoch < 0 { continue }
                client.isIn = true
                client.epoch = response.memberEpoch
                client.lastAnswered = harness.milliseconds
                if let parts = harness.parts(response) { client.owned = parts }
            case .fencedMemberEpoch, .unknownMemberID, .fencedInstanceID, .groupIDNotFound,
                .unreleasedInstanceID:
                client.isIn = false
                client.owned = [:]
            case let code:
                Issue.record("seed \(seed): unexpected \(code)")
            }
        }
    }

    func commitAll() {
        while !harness.inFlight.isEmpty { harness.commitNext() }
    }

    func restart() {
        commitAll()
        let before = harness.durableState()
        let time = harness.milliseconds
        let successor = harness.successor()
        #expect(successor.durableState() == before, "seed \(seed): replay is not the live state")
        successor.commitsAtOnce = false
        // Who waits does not know what was decided for it, and says everything again.
        for client in clients where client.waiting != nil {
            client.waiting = nil
            client.isUnsure = true
        }
        harness = successor
        // Clocks of the new coordinator start where the old one stood.
        harness.advance(time - harness.milliseconds)
    }

    func step() {
        steps += 1
        let client = clients[Int.random(in: 0..<clients.count, using: &random)]
        switch Int.random(in: 0..<40, using: &random) {
        case 0..<18: beat(client, full: Int.random(in: 0..<6, using: &random) == 0)
        case 18..<22: harness.advance(Int64.random(in: 0...2_000, using: &random))
        case 22: harness.advance(Int64.random(in: 0...12_000, using: &random))
        case 23..<31: if !harness.inFlight.isEmpty { harness.commitNext() }
        case 31, 32:
            // Leaves, for good or for a while.
            guard client.isIn, client.waiting == nil else { break }
            let epoch: Int32 = client.instance != nil && Bool.random(using: &random) ? -2 : -1
            _ = harness.beatID(
                "g", ShardHarness.Beat(member: client.member, epoch: epoch, instance: client.instance))
            client.isIn = false
            client.owned = [:]
            restartClient(client)
        case 33:
            // Dies without a word; its next incarnation has another id.
            client.isIn = false
            client.owned = [:]
            client.waiting = nil
            restartClient(client)
        case 34:
            subscribe(client)
            client.isUnsure = true
        case 35:
            // As it was sent, on a connection that was given up; the member has moved on since then.
            if let old = client.past.randomElement(using: &random),
                old.member != client.member || old.epoch < client.epoch
            {
                _ = harness.beatID("g", old)
            }
        case 36:
            let grown = harness.topics.map { ShardHarness.topic($0.name, min(9, $0.partitionCount + 1)) }
            harness.setTopics(Bool.random(using: &random) ? grown : grown.filter { $0.name != "later" })
        case 37:
            if !harness.topics.contains(where: { $0.name == "later" }) {
                harness.setTopics(harness.topics + [ShardHarness.topic("later", 2)])
            }
        case 38:
            if Int.random(in: 0..<4, using: &random) == 0 { restart() }
        case _: receive()
        }
        check()
    }

    func restartClient(_ client: Client) {
        client.incarnation += 1
        client.member = "\(client.name)-\(client.incarnation)"
        client.epoch = 0
    }

    /// I17: what one member owns, or has not given back yet, no other has.
    func check() {
        guard let state = harness.state("g") else { return }
        var owners: [UniversalID: [Int32: String]] = [:]
        for (id, member) in state.members.sorted(by: { $0.key < $1.key }) {
            for parts in [member.assigned, member.pendingRevocation] {
                for (topic, epochs) in parts {
                    for (partition, epoch) in epochs {
                        #expect(
                            owners[topic]?[partition] == nil,
                            "seed \(seed) step \(steps): \(partition) belongs to \(owners[topic]?[partition] ?? "") and \(id)"
                        )
                        owners[topic, default: [:]][partition] = id
                        #expect(epoch <= max(member.epoch, state.epoch), "seed \(seed)")
                    }
                }
            }
            #expect(member.epoch <= state.epoch, "seed \(seed) step \(steps)")
            #expect(state.targetEpoch <= state.epoch, "seed \(seed) step \(steps)")
        }
        // What a living client works on is its own for the broker as well. Clients that might have been removed
        // meanwhile, having been silent for a session, have lost their partitions by their own clock.
        for client in clients where client.isIn {
            if harness.milliseconds - client.lastAnswered >= session { continue }
            for (name, partitions) in client.owned {
                for partition in partitions {
                    let owner = owners[ShardHarness.topicID(name)]?[partition]
                    guard let owner, owner != client.member else { continue }
                    // It was removed for another reason, such as its rebalance timeout, and does not know yet; or it
                    // has confirmed the loss in a heartbeat on its way.
                    let isMember = state.members[client.member] != nil
                    #expect(
                        !isMember || client.waiting != nil,
                        "seed \(seed) step \(steps): \(client.member) works on \(name)-\(partition) of \(owner)"
                    )
                }
            }
        }
    }

    func run() {
        for _ in 0..<400 { step() }
        heal()
    }

    /// No more faults: everybody gets the target, all partitions have an owner, replay gives the same state.
    func heal() {
        harness.setTopics([
            ShardHarness.topic("a", 9), ShardHarness.topic("b", 9), ShardHarness.topic("later", 2),
        ])
        commitAll()
        for client in clients {
            client.waiting = nil
            client.isUnsure = true
        }
        for _ in 0..<40 {
            for client in clients {
                beat(client, full: false)
                commitAll()
                guard let id = client.waiting, let response = harness.beatResponse(id) else {
                    Issue.record("seed \(seed): no answer")
                    continue
                }
                client.waiting = nil
                if response.errorCode == 0 {
                    client.isIn = true
                    client.epoch = response.memberEpoch
                    if let parts = harness.parts(response) { client.owned = parts }
                } else {
                    client.isIn = false
                    client.owned = [:]
                }
            }
            check()
            harness.advance(1_000)
            commitAll()
        }
        #expect(harness.summary("g")?.state == "Stable", "seed \(seed)")
        #expect(harness.summary("g")?.memberIDs.count == clients.count, "seed \(seed)")
        guard let state = harness.state("g") else { return }
        var all: Parts = [:]
        for client in clients {
            #expect(client.epoch == state.epoch, "seed \(seed)")
            for (name, partitions) in client.owned { all[name, default: []].formUnion(partitions) }
            let assigned = state.members[client.member]?.assigned.mapValues { Set($0.keys) } ?? [:]
            #expect(assigned == state.targets[client.member], "seed \(seed): not at its target")
            let own = Dictionary(
                uniqueKeysWithValues: client.owned.map { (ShardHarness.topicID($0.key), $0.value) })
            #expect(own == assigned, "seed \(seed): client and broker differ")
        }
        let wanted = clients.reduce(into: Set<String>()) { names, client in
            names.formUnion(client.names)
            if client.regex?.isEmpty == false { names.formUnion(["a", "b"]) }
        }
        for topic in harness.topics where wanted.contains(topic.name) {
            #expect(
                all[topic.name]?.count == Int(topic.partitionCount),
                "seed \(seed): \(topic.name) is not whole")
        }
        let successor = harness.successor()
        #expect(successor.durableState() == harness.durableState(), "seed \(seed)")
        #expect(successor.summary("g")?.state == "Stable", "seed \(seed)")
    }
}

@Suite struct `Random consumer groups` {
    @Test(.timeLimit(.minutes(2)), arguments: 1...100 as ClosedRange<UInt64>)
    func `one owner per partition, everybody reaches the target, replay is live state`(seed: UInt64) {
        ConsumerGroupSimulation(seed: seed).run()
    }

    @Test func `a hundred members and a thousand partitions settle`() {
        let harness = ShardHarness(topics: [ShardHarness.topic("t", 1_000)])
        var members: [String: ShardHarness.Settled] = [:]
        for index in 0..<100 {
            let name = "m\(index)"
            let response = harness.beat("g", .join(name))
            members[name] = ShardHarness.Settled(
                epoch: response.memberEpoch, parts: harness.parts(response) ?? [:])
        }
        harness.settle("g", &members)
        #expect(members.values.allSatisfy { $0.parts["t"]?.count == 10 })
    }
}
