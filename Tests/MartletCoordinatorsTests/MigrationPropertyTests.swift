import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// One group whose members are restarted now with the one, now with the other protocol, so that it goes over and back
/// again and again, while answers are late, members die and the coordinator restarts. Follows from its seed.
private final class MigrationSimulation {
    enum Speech { case classic, consumer }

    enum Phase: Equatable {
        case out
        case joining(RequestID)
        case syncing(RequestID, Int32)
        case beating(RequestID)
        /// Generation or member epoch.
        case member(Int32)
    }

    final class Client {
        let name: String
        var speech: Speech
        var incarnation = 0
        var member = ""
        var phase: Phase = .out
        var epoch: Int32 = 0
        var owned: Set<Int32> = []
        var isUnsure = false

        init(_ name: String, _ speech: Speech) {
            self.name = name
            self.speech = speech
        }
    }

    let seed: UInt64
    var harness: ShardHarness
    var random: SeededGenerator
    var clients: [Client]
    let partitionCount: Int32 = 6
    var steps = 0
    var kinds: Set<String> = []

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed)
        harness = ShardHarness(
            GroupConfiguration(
                initialRebalanceDelayMilliseconds: 0,
                consumer: ConsumerGroupConfiguration(sessionTimeoutMilliseconds: 6_000)),
            topics: [ShardHarness.topic("t", 6)])
        harness.commitsAtOnce = false
        clients = (0..<4).map { Client("c\($0)", $0 % 2 == 0 ? .classic : .consumer) }
        for client in clients where client.speech == .consumer { client.member = client.name }
    }

    // MARK: Clients

    func act(_ client: Client) {
        switch (client.speech, client.phase) {
        case (.classic, .out):
            client.owned = []
            client.phase = .joining(
                harness.join(
                    "g",
                    ShardHarness.Join(
                        member: client.member, protocols: [("range", ["t"])], session: 6_000,
                        rebalance: 5_000,
                        client: "\(client.name)-\(client.incarnation)")))
        case (.classic, .member(let generation)):
            let code = harness.heartbeat("g", client.member, generation)
            if code == .rebalanceInProgress || code == .illegalGeneration { rejoin(client) }
            if code == .unknownMemberID || code == .fencedInstanceID || code == .invalidGroupID {
                drop(client)
            }
        case (.consumer, .out):
            client.owned = []
            client.epoch = 0
            client.phase = .beating(harness.beatID("g", .join(client.member, ["t"], rebalance: 5_000)))
        case (.consumer, .member(let epoch)):
            var beat = ShardHarness.Beat(member: client.member, epoch: epoch, owned: ["t": client.owned])
            if client.isUnsure {
                beat.names = ["t"]
                beat.rebalance = 5_000
            }
            client.isUnsure = false
            client.phase = .beating(harness.beatID("g", beat))
        case (_, .joining), (_, .syncing), (_, .beating):
            break
        }
    }

    /// An eager member gives everything up before it joins again.
    func rejoin(_ client: Client) {
        client.owned = []
        client.phase = .out
    }

    func drop(_ client: Client) {
        client.owned = []
        client.phase = .out
        client.incarnation += 1
        client.member = client.speech == .consumer ? "\(client.name)-\(client.incarnation)" : ""
    }

    func receive() {
        for client in clients {
            switch client.phase {
            case .out, .member: continue
            case .joining(let id):
                guard let response = harness.joined(id) else { continue }
                switch ErrorCode(rawValue: response.errorCode) {
                case .none:
                    client.member = response.memberID
                    let assignments =
                        response.leader == response.memberID ? assign(response.members.map(\.memberID)) : [:]
                    client.phase = .syncing(
                        sync(client.member, response.generationID, assignments), response.generationID)
                case .memberIDRequired:
                    client.member = response.memberID
                    client.phase = .out
                case .rebalanceInProgress: client.phase = .out
                case .unknownMemberID: drop(client)
                case let code: Issue.record("seed \(seed): join ended with \(code)")
                }
            case .syncing(let id, let generation):
                guard let response = harness.synced(id) else { continue }
                switch ErrorCode(rawValue: response.errorCode) {
                case .none:
                    client.owned = Self.partitions(response.assignment)
                    client.phase = .member(generation)
                case .rebalanceInProgress, .illegalGeneration: rejoin(client)
                case .unknownMemberID: drop(client)
                case let code: Issue.record("seed \(seed): sync ended with \(code)")
                }
            case .beating(let id):
                guard let response = harness.beatResponse(id) else { continue }
                switch ErrorCode(rawValue: response.errorCode) {
                case .none:
                    client.epoch = response.memberEpoch
                    if let parts = harness.parts(response) { client.owned = parts["t"] ?? [] }
                    client.phase = .member(response.memberEpoch)
                case .fencedMemberEpoch: rejoin(client)
                case .unknownMemberID, .groupIDNotFound: drop(client)
                case let code:
                    Issue.record("seed \(seed): heartbeat ended with \(code) \(response.errorMessage ?? "")")
                }
            }
        }
    }

    func assign(_ members: [String]) -> [String: ByteBuffer] {
        var result: [String: ByteBuffer] = [:]
        for (place, member) in members.enumerated() {
            var assignment = ConsumerProtocolAssignment()
            var entry = ConsumerProtocolAssignment.TopicPartition()
            entry.topic = "t"
            entry.partitions = (0..<partitionCount).filter { Int($0) % members.count == place }
            assignment.assignedPartitions = [entry]
            var writer = ProtocolWriter()
            writer.integer(Int16(0))
            try! assignment.encode(into: &writer, version: 0)
            result[member] = writer.buffer
        }
        return result
    }

    func sync(_ member: String, _ generation: Int32, _ assignments: [String: ByteBuffer]) -> RequestID {
        var request = SyncGroupRequest()
        request.groupID = "g"
        request.memberID = member
        request.generationID = generation
        request.assignments = assignments.sorted { $0.key < $1.key }.map {
            var entry = SyncGroupRequest.SyncGroupRequestAssignment()
            entry.memberID = $0.key
            entry.assignment = $0.value
            return entry
        }
        return harness.send(.syncGroup(request))
    }

    static func partitions(_ bytes: ByteBuffer) -> Set<Int32> {
        var reader = ProtocolReader(bytes)
        guard let version: Int16 = try? reader.integer(),
            let assignment = try? ConsumerProtocolAssignment(reading: &reader, version: version)
        else { return [] }
        return Set(assignment.assignedPartitions.flatMap(\.partitions))
    }

    // MARK: Faults

    func leave(_ client: Client) {
        guard case .member = client.phase else { return }
        switch client.speech {
        case .classic: _ = harness.leave("g", [(client.member, nil)])
        case .consumer: _ = harness.beatID("g", ShardHarness.Beat(member: client.member, epoch: -1))
        }
        restart(client)
    }

    /// The process starts again, perhaps with the other protocol.
    func restart(_ client: Client) {
        if Bool.random(using: &random) { client.speech = client.speech == .classic ? .consumer : .classic }
        drop(client)
    }

    func commitAll() {
        while !harness.inFlight.isEmpty { harness.commitNext() }
    }

    func restartCoordinator() {
        commitAll()
        let before = harness.durableState()
        let time = harness.milliseconds
        harness = harness.successor()
        #expect(harness.durableState() == before, "seed \(seed): replay is not the live state")
        harness.commitsAtOnce = false
        for client in clients {
            switch client.phase {
            case .out, .member: break
            case .joining, .syncing: client.phase = .out
            case .beating: client.phase = client.epoch > 0 ? .member(client.epoch) : .out
            }
            client.isUnsure = true
        }
        harness.advance(time)
    }

    func step() {
        steps += 1
        let client = clients[Int.random(in: 0..<clients.count, using: &random)]
        switch Int.random(in: 0..<40, using: &random) {
        case 0..<20: act(client)
        case 20..<24: harness.advance(Int64.random(in: 0...1_000, using: &random))
        case 24: harness.advance(Int64.random(in: 0...8_000, using: &random))
        case 25..<33: if !harness.inFlight.isEmpty { harness.commitNext() }
        case 33: leave(client)
        case 34:
            client.owned = []
            restart(client)
        case 35: if Int.random(in: 0..<4, using: &random) == 0 { restartCoordinator() }
        case _: receive()
        }
        check()
    }

    func check() {
        if let state = harness.state("g") {
            kinds.insert("consumer")
            var owners: [Int32: String] = [:]
            for (id, member) in state.members.sorted(by: { $0.key < $1.key }) {
                for parts in [member.assigned, member.pendingRevocation] {
                    for partition in parts.values.flatMap(\.keys) {
                        #expect(
                            owners[partition] == nil,
                            "seed \(seed) step \(steps): \(partition) belongs to \(owners[partition] ?? "") and \(id)"
                        )
                        owners[partition] = id
                    }
                }
            }
        } else if harness.summary("g") != nil {
            kinds.insert("classic")
        }
        // What two clients work on, both of them members in good standing, does not overlap.
        var workers: [Int32: String] = [:]
        for client in clients {
            guard case .member(let epoch) = client.phase else { continue }
            if let state = harness.state("g") {
                guard state.members[client.member]?.epoch == epoch else { continue }
            } else {
                guard let summary = harness.summary("g"), summary.memberIDs.contains(client.member),
                    summary.generation == epoch, client.speech == .classic
                else { continue }
            }
            for partition in client.owned {
                #expect(
                    workers[partition] == nil,
                    "seed \(seed) step \(steps): \(client.name) and \(workers[partition] ?? "") work on \(partition)"
                )
                workers[partition] = client.name
            }
        }
    }

    func run() {
        for _ in 0..<400 { step() }
        heal()
    }

    func heal() {
        for _ in 0..<120 {
            commitAll()
            receive()
            for client in clients { act(client) }
            commitAll()
            receive()
            check()
            harness.advance(500)
        }
        commitAll()
        receive()
        let owned = clients.flatMap { client in client.owned.sorted() }
        #expect(
            owned.sorted() == Array(0..<partitionCount),
            "seed \(seed): \(clients.map(\.owned)) \(clients.map(\.phase))")
        #expect(harness.summary("g")?.state == "Stable", "seed \(seed)")
        #expect(harness.summary("g")?.memberIDs.count == clients.count, "seed \(seed)")
        let hasNew = clients.contains { $0.speech == .consumer }
        if hasNew { #expect(harness.state("g") != nil, "seed \(seed)") }
        #expect(harness.successor().durableState() == harness.durableState(), "seed \(seed)")
    }
}

@Suite struct `Random migrations` {
    @Test(.timeLimit(.minutes(2)), arguments: 1...100 as ClosedRange<UInt64>)
    func `a group goes over and back, nobody works on what another has, all are served`(seed: UInt64) {
        MigrationSimulation(seed: seed).run()
    }
}
