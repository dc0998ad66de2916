import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// Random clients that join, sync, beat, commit, stall, leave, repeat themselves and come too late, against a
/// shard whose appends commit whenever they like. Every run follows from its seed.
private final class GroupSimulation {
    struct Client {
        enum Phase: Equatable {
            case out
            case joining(RequestID)
            case syncing(RequestID, Int32)
            case member(Int32)
        }
        var phase: Phase = .out
        var memberID = ""
        var instance: String?
        /// What the client is sure it owns, for the generation of its phase.
        var owned: Set<Int> = []
        /// (member, generation) of former lives, for messages that come too late.
        var past: [(String, Int32)] = []
    }

    let seed: UInt64
    let harness: ShardHarness
    var random: SeededGenerator
    var clients: [Client]
    /// Assignment that a generation's leader sent, by member; the first one that is handed out counts.
    var sent: [Int32: [String: String]] = [:]
    var handedOut: [Int32: [String: String]] = [:]
    var nextOffset: Int64 = 1
    var commits: [(id: RequestID, partition: Int32, offset: Int64)] = []
    var lastAcknowledged: [Int32: Int64] = [:]
    var accepted: [Int32: [Int64]] = [:]
    let partitionCount = 6

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed)
        let delay: Int64 = seed % 2 == 0 ? 0 : 300
        harness = ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: delay))
        harness.commitsAtOnce = false
        clients = (0..<5).map { index in
            var client = Client()
            if index < 2, seed % 3 == 0 { client.instance = "instance-\(index)" }
            return client
        }
    }

    func join(_ index: Int) {
        var join = ShardHarness.Join(session: 6_000, rebalance: 8_000)
        join.member = clients[index].memberID
        join.instance = clients[index].instance
        join.requiresKnownID = index != 4
        join.protocols = [("range", ["topic"])]
        clients[index].phase = .joining(harness.join("g", join))
    }

    /// Looks at what was answered and goes on from there.
    func deliver() {
        for index in clients.indices {
            switch clients[index].phase {
            case .out, .member: continue
            case .joining(let id):
                guard let response = harness.joined(id) else { continue }
                switch ErrorCode(rawValue: response.errorCode) {
                case .memberIDRequired:
                    clients[index].memberID = response.memberID
                    clients[index].phase = .out
                case .none:
                    clients[index].memberID = response.memberID
                    var assignments: [String: String] = [:]
                    if response.leader == response.memberID, !response.skipAssignment {
                        // Range over the members; the text names the owner, so that a mix-up shows.
                        let members = response.members.map(\.memberID)
                        #expect(Set(members).count == members.count, "seed \(seed): a member twice")
                        for (position, member) in members.enumerated() {
                            let parts = (0..<partitionCount).filter { $0 % members.count == position }
                            assignments[member] = parts.map(String.init).joined(separator: ",")
                        }
                        if sent[response.generationID] == nil { sent[response.generationID] = assignments }
                    }
                    let sync = harness.sync(
                        "g", response.memberID, response.generationID, instance: clients[index].instance,
                        assignments: assignments)
                    clients[index].phase = .syncing(sync, response.generationID)
                case .fencedInstanceID, .unknownMemberID, .groupMaxSizeReached:
                    drop(index)
                case _:
                    clients[index].phase = .out
                }
            case .syncing(let id, let generation):
                guard let response = harness.synced(id) else { continue }
                switch ErrorCode(rawValue: response.errorCode) {
                case .none:
                    let text = String(buffer: response.assignment)
                    // A static member that returns under a new id is the same owner; its old id is fenced.
                    let owner = clients[index].instance ?? clients[index].memberID
                    handedOut[generation, default: [:]][owner] = text
                    clients[index].owned = Set(text.split(separator: ",").compactMap { Int($0) })
                    clients[index].phase = .member(generation)
                case .unknownMemberID, .fencedInstanceID:
                    drop(index)
                case _:
                    clients[index].phase = .out
                }
            }
        }
        for commit in commits {
            guard let code = harness.commitCode(commit.id) else { continue }
            if code == .none {
                lastAcknowledged[commit.partition] = commit.offset
                accepted[commit.partition, default: []].append(commit.offset)
            }
        }
        commits.removeAll { harness.commitCode($0.id) != nil }
    }

    func drop(_ index: Int) {
        clients[index].memberID = ""
        clients[index].owned = []
        clients[index].phase = .out
    }

    func commit(_ member: String, _ generation: Int32, instance: String?) {
        let partition = Int32.random(in: 0..<Int32(partitionCount), using: &random)
        let summary = harness.summary("g")
        let isCurrent = summary?.generation == generation && summary?.memberIDs.contains(member) == true
        let offset = nextOffset
        nextOffset += 1
        let before = harness.inFlight.count
        let id = harness.commit(
            "g", [("topic", partition, offset)], member: member, generation: generation, instance: instance)
        let wasTaken = harness.inFlight.count > before
        // I18: what is not of the present generation is refused at once, without a record.
        #expect(!wasTaken || isCurrent, "seed \(seed): a commit from outside the generation was taken")
        #expect(
            wasTaken || harness.commitCode(id) != ErrorCode.none,
            "seed \(seed): acknowledged without a record")
        commits.append((id, partition, offset))
    }

    func step() {
        let index = Int.random(in: 0..<clients.count, using: &random)
        switch Int.random(in: 0..<20, using: &random) {
        case 0...5:
            if clients[index].phase == .out { join(index) }
        case 6...8:
            guard case .member(let generation) = clients[index].phase else { break }
            let code = harness.heartbeat(
                "g", clients[index].memberID, generation, instance: clients[index].instance)
            clients[index].past.append((clients[index].memberID, generation))
            if code == .rebalanceInProgress || code == .illegalGeneration { clients[index].phase = .out }
            if code == .unknownMemberID || code == .fencedInstanceID { drop(index) }
        case 9...11:
            if case .member(let generation) = clients[index].phase {
                commit(clients[index].memberID, generation, instance: clients[index].instance)
            }
        case 12:
            // A message that was delayed in the network.
            if let (member, generation) = clients[index].past.randomElement(using: &random) {
                commit(member, generation, instance: clients[index].instance)
            }
        case 13:
            // The client dies and starts again without its member id.
            drop(index)
        case 14:
            if case .member = clients[index].phase, clients[index].instance == nil {
                _ = harness.leave("g", [(clients[index].memberID, nil)])
                drop(index)
            }
        case 15:
            harness.advance(Int64.random(in: 0...5_000, using: &random))
        case 16:
            harness.advance(Int64.random(in: 0...200, using: &random))
        case _:
            while !harness.inFlight.isEmpty, Bool.random(using: &random) { harness.commitNext() }
        }
        deliver()
        checkGenerations()
        if harness.inFlight.isEmpty {
            #expect(harness.successor().durableState() == harness.durableState(), "seed \(seed)")
        }
    }

    /// I17: within a generation every partition has one owner, and it is who the leader said.
    func checkGenerations() {
        for (generation, assignments) in handedOut {
            var owners: [Substring: String] = [:]
            for (member, text) in assignments {
                for part in text.split(separator: ",") {
                    #expect(
                        owners[part] == nil, "seed \(seed): partition \(part) has two owners in \(generation)"
                    )
                    owners[part] = member
                }
            }
        }
    }

    func run(steps: Int) {
        for _ in 0..<steps { step() }
        heal()
    }

    /// No more faults: all must come together, everything sent must be answered, nothing acknowledged be lost.
    func heal() {
        for _ in 0..<400 {
            while !harness.inFlight.isEmpty { harness.commitNext() }
            deliver()
            for index in clients.indices {
                switch clients[index].phase {
                case .out: join(index)
                case .joining, .syncing: break
                case .member(let generation):
                    let code = harness.heartbeat(
                        "g", clients[index].memberID, generation, instance: clients[index].instance)
                    if code == .rebalanceInProgress || code == .illegalGeneration {
                        clients[index].phase = .out
                    }
                    if code == .unknownMemberID || code == .fencedInstanceID { drop(index) }
                }
            }
            harness.advance(1_000)
        }
        while !harness.inFlight.isEmpty { harness.commitNext() }
        deliver()
        let generations = clients.map { client -> Int32 in
            if case .member(let generation) = client.phase { generation } else { -1 }
        }
        #expect(Set(generations).count == 1 && generations[0] > 0, "seed \(seed): not stable: \(generations)")
        #expect(
            clients.reduce(into: Set<Int>()) { $0.formUnion($1.owned) } == Set(0..<partitionCount),
            "seed \(seed): a partition has no owner")
        #expect(harness.unansweredCount == 0, "seed \(seed): a caller waits for ever")
        let fetched = harness.fetched(harness.fetch("g")) ?? [:]
        for (partition, offset) in lastAcknowledged {
            #expect(fetched["topic-\(partition)"] == offset, "seed \(seed): an acknowledged commit is lost")
        }
        let successor = harness.successor()
        #expect(successor.durableState() == harness.durableState(), "seed \(seed)")
        #expect(successor.summary("g")?.memberIDs == harness.summary("g")?.memberIDs, "seed \(seed)")
        #expect(successor.summary("g")?.generation == harness.summary("g")?.generation, "seed \(seed)")
    }
}

@Suite struct `Random groups` {
    @Test(.timeLimit(.minutes(2)), arguments: 1...40 as ClosedRange<UInt64>)
    func `one owner per partition, no commit lost, none from outside, replay is live state`(seed: UInt64) {
        GroupSimulation(seed: seed).run(steps: 300)
    }
}
