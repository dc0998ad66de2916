import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private typealias Beat = ShardHarness.Beat
private typealias Join = ShardHarness.Join

private func harness(_ policy: ConsumerGroupConfiguration.MigrationPolicy = .bidirectional) -> ShardHarness {
    ShardHarness(
        GroupConfiguration(
            initialRebalanceDelayMilliseconds: 0,
            consumer: ConsumerGroupConfiguration(migrationPolicy: policy)),
        topics: [ShardHarness.topic("t", 4)])
}

/// A classic consumer as librdkafka and the Java client are: joins when told to, says what it has.
private final class ClassicClient {
    let harness: ShardHarness
    let group: String
    var member: String
    var generation: Int32
    var owned: Set<Int32> = []
    /// Keeps what it has over a rebalance.
    let isCooperative: Bool

    init(
        _ harness: ShardHarness, _ group: String, member: String = "", generation: Int32 = -1,
        isCooperative: Bool = true
    ) {
        self.harness = harness
        self.group = group
        self.member = member
        self.generation = generation
        self.isCooperative = isCooperative
    }

    private var metadata: ByteBuffer {
        var subscription = ConsumerProtocolSubscription()
        subscription.topics = ["t"]
        if isCooperative, !owned.isEmpty {
            var entry = ConsumerProtocolSubscription.TopicPartition()
            entry.topic = "t"
            entry.partitions = owned.sorted()
            subscription.ownedPartitions = [entry]
        }
        var writer = ProtocolWriter()
        writer.integer(Int16(1))
        try! subscription.encode(into: &writer, version: 1)
        return writer.buffer
    }

    func joinRequest(instance: String? = nil) -> RequestID {
        if !isCooperative { owned = [] }
        var request = JoinGroupRequest()
        request.groupID = group
        request.memberID = member
        request.groupInstanceID = instance
        request.sessionTimeoutMs = 10_000
        request.rebalanceTimeoutMs = 30_000
        request.protocolType = "consumer"
        var entry = JoinGroupRequest.JoinGroupRequestProtocol()
        entry.name = isCooperative ? "cooperative-sticky" : "range"
        entry.metadata = metadata
        request.protocols = [entry]
        return harness.send(
            .joinGroup(
                request, ClientIdentity(clientID: "classic", host: "/127.0.0.1"),
                JoinTraits(
                    requiresKnownMemberID: true, supportsSkippingAssignment: true,
                    newMemberID: UniversalID(high: 3, low: UInt64(harness.milliseconds) + UInt64(group.count))
                )))
    }

    /// Joins a consumer group and asks for the assignment; false if it must join again.
    @discardableResult
    func join() -> Bool {
        var response = harness.joined(joinRequest())
        if response?.errorCode == ErrorCode.memberIDRequired.rawValue {
            member = response?.memberID ?? ""
            response = harness.joined(joinRequest())
        }
        guard let response, response.errorCode == 0 else { return false }
        #expect(response.leader == "" && response.members.isEmpty)
        generation = response.generationID
        return sync()
    }

    func sync() -> Bool {
        guard let response = harness.synced(harness.sync(group, member, generation)), response.errorCode == 0
        else {
            return false
        }
        var reader = ProtocolReader(response.assignment)
        let version: Int16 = (try? reader.integer()) ?? -1
        let assignment = try? ConsumerProtocolAssignment(reading: &reader, version: version)
        owned = Set(assignment?.assignedPartitions.first?.partitions ?? [])
        return true
    }

    func beat() -> ErrorCode {
        let code = harness.heartbeat(group, member, generation)
        if code == .rebalanceInProgress { join() }
        return code
    }
}

@Suite struct `Classic members of a consumer group` {
    @Test func `a classic member joins, gets its part from the broker, commits and leaves`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        let classic = ClassicClient(harness, "g")
        #expect(classic.join())
        #expect(classic.generation == 2)
        #expect(classic.owned == [])
        #expect(harness.heartbeat("g", classic.member, 2) == .none)
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        // What it waited for is free: it is told to join again.
        #expect(classic.beat() == .rebalanceInProgress)
        #expect(classic.owned.count == 2)
        #expect(harness.summary("g")?.state == "Stable")
        #expect(harness.described("g").members.map(\.memberType).sorted() == [0, 1])

        let own = classic.owned.min() ?? -1
        #expect(
            harness.commitCode(harness.commit("g", [("t", own, 4)], member: classic.member, generation: 2))
                == ErrorCode.none)
        #expect(
            harness.commitCode(harness.commit("g", [("t", own, 4)], member: classic.member, generation: 1))
                == .illegalGeneration)
        #expect(harness.heartbeat("g", classic.member, 1) == .illegalGeneration)
        #expect(harness.heartbeat("g", "m1", 2) == .unknownMemberID)
        #expect(
            harness.leave("g", [("m1", nil), (classic.member, nil), (classic.member, nil)]) == [
                .unknownMemberID, .none, .unknownMemberID,
            ])
        #expect(harness.summary("g")?.memberIDs == ["m1"])
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `a cooperative member gives back in two joins`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        let classic = ClassicClient(harness, "g")
        classic.join()
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        _ = classic.beat()
        let before = classic.owned
        harness.beat("g", Beat(member: "m1", epoch: 2, owned: ["t": [0, 1]]))
        let joined = harness.beat("g", .join("m2"))
        #expect(joined.memberEpoch == 3)
        // First it sees less, at its old generation, then it says so and gets the new one.
        #expect(classic.beat() == .rebalanceInProgress)
        let members = ["m1", "m2"]
        #expect(classic.owned.isSubset(of: before))
        _ = classic.beat()
        for member in members {
            let described = harness.described("g").members.first { $0.memberID == member }
            harness.beat(
                "g",
                Beat(
                    member: member, epoch: described?.memberEpoch ?? 0,
                    owned: ["t": Set(described?.assignment.topicPartitions.first?.partitions ?? [])]))
        }
        _ = classic.beat()
        for member in members {
            let described = harness.described("g").members.first { $0.memberID == member }
            harness.beat(
                "g",
                Beat(
                    member: member, epoch: described?.memberEpoch ?? 0,
                    owned: ["t": Set(described?.assignment.topicPartitions.first?.partitions ?? [])]))
        }
        #expect(harness.summary("g")?.state == "Stable")
        #expect(classic.generation == 3)
    }

    @Test func `strategies that not all classic members know are refused`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        ClassicClient(harness, "g").join()
        let other = ClassicClient(harness, "g", member: "eager", isCooperative: false)
        #expect(harness.joinCode(other.joinRequest()) == .inconsistentGroupProtocol)
        var join = Join(member: "x")
        join.type = "connect"
        #expect(harness.joinCode(harness.join("g", join)) == .inconsistentGroupProtocol)
        join = Join(member: "x")
        join.protocols = []
        #expect(harness.joinCode(harness.join("g", join)) == .inconsistentGroupProtocol)
    }

    @Test func `a classic member that does not join or sync in time is removed`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        let classic = ClassicClient(harness, "g", member: "c")
        _ = harness.joined(classic.joinRequest())
        // Alive, but never asks for its assignment.
        for _ in 0..<8 {
            harness.advance(4_000)
            harness.beat("g", Beat(member: "m1", epoch: harness.state("g")?.members["m1"]?.epoch ?? 0))
            _ = harness.heartbeat("g", "c", 2)
        }
        #expect(harness.summary("g")?.memberIDs == ["m1"])
        #expect(harness.heartbeat("g", "c", 2) == .unknownMemberID)
    }

    @Test func `a classic join finds an empty consumer group gone`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        harness.beat("g", Beat(member: "m1", epoch: -1))
        let (members, generation) = harness.stableGroup("g", members: 1)
        #expect(generation == 1)
        #expect(harness.summary("g")?.memberIDs == members)
        #expect(harness.state("g") == nil)
        #expect(harness.successor().durableState() == harness.durableState())
        #expect(harness.successor().summary("g")?.state == "Stable")
    }
}

@Suite struct `Upgrade and downgrade` {
    /// A classic group of two members with two partitions each.
    private func classicGroup(_ harness: ShardHarness) -> ([ClassicClient], generation: Int32) {
        let first = ClassicClient(harness, "g")
        first.member = harness.joined(first.joinRequest())?.memberID ?? ""
        let second = ClassicClient(harness, "g")
        harness.advance(1)
        let firstJoin = first.joinRequest()
        second.member = harness.joined(second.joinRequest())?.memberID ?? ""
        let secondJoin = second.joinRequest()
        let again = harness.joined(firstJoin) != nil ? first.joinRequest() : firstJoin
        let generation = harness.joined(again)?.generationID ?? -1
        #expect(harness.joined(secondJoin)?.generationID == generation)
        func bytes(_ partitions: [Int32]) -> ByteBuffer {
            var assignment = ConsumerProtocolAssignment()
            var entry = ConsumerProtocolAssignment.TopicPartition()
            entry.topic = "t"
            entry.partitions = partitions
            assignment.assignedPartitions = [entry]
            var writer = ProtocolWriter()
            writer.integer(Int16(1))
            try! assignment.encode(into: &writer, version: 1)
            return writer.buffer
        }
        var request = SyncGroupRequest()
        request.groupID = "g"
        request.memberID = harness.joined(again)?.leader ?? ""
        request.generationID = generation
        request.assignments = zip([first, second], [[0, 1], [2, 3]] as [[Int32]]).map {
            var entry = SyncGroupRequest.SyncGroupRequestAssignment()
            entry.memberID = $0.member
            entry.assignment = bytes($1)
            return entry
        }
        _ = harness.send(.syncGroup(request))
        for client in [first, second] {
            client.generation = generation
            #expect(client.sync())
        }
        #expect(first.owned == [0, 1] && second.owned == [2, 3])
        return ([first, second], generation)
    }

    @Test func `a classic group goes over with its members, and back when the last new one leaves`() {
        let harness = harness()
        let (clients, generation) = classicGroup(harness)
        #expect(
            harness.commitCode(
                harness.commit("g", [("t", 0, 9)], member: clients[0].member, generation: generation))
                == ErrorCode.none)
        let joined = harness.beat("g", .join("new"))
        #expect(joined.errorCode == 0)
        #expect(joined.memberEpoch == generation + 1)
        #expect(harness.parts(joined) == [:])
        #expect(harness.summary("g")?.memberIDs.count == 3)
        #expect(harness.successor().durableState() == harness.durableState())
        #expect(harness.fetched(harness.fetch("g"))?["t-0"] == 9)
        // The classic members hear of it and give back; nobody loses what it keeps.
        for _ in 0..<4 { for client in clients { _ = client.beat() } }
        var new = ["new": ShardHarness.Settled(epoch: joined.memberEpoch, parts: [:])]
        harness.settle("g", &new)
        for client in clients { _ = client.beat() }
        #expect(harness.summary("g")?.state == "Stable")
        let all = clients.map { $0.owned.count } + [new["new"]?.parts["t"]?.count ?? 0]
        #expect(all.reduce(0, +) == 4)
        #expect(all.min() == 1)

        // Back: only classic members stay.
        let left = harness.beat("g", Beat(member: "new", epoch: -1))
        #expect(left.errorCode == 0)
        #expect(harness.state("g") == nil)
        #expect(harness.summary("g")?.state == "PreparingRebalance")
        #expect(harness.successor().durableState() == harness.durableState())
        #expect(harness.successor().summary("g")?.state == "Stable")
        for client in clients {
            #expect(harness.heartbeat("g", client.member, client.generation) == .rebalanceInProgress)
        }
        let joins = clients.map { $0.joinRequest() }
        let generations = joins.map { harness.joined($0)?.generationID ?? -1 }
        #expect(Set(generations).count == 1 && generations[0] > joined.memberEpoch)
        #expect(harness.fetched(harness.fetch("g"))?["t-0"] == 9)
        #expect(
            harness.summary("g")?.lastRebalance?.reason.contains("went back to the classic protocol") == true)
    }

    @Test func `members that wait in a rebalance are told to join again`() {
        let harness = harness()
        let (clients, _) = classicGroup(harness)
        let waiting = clients[0].joinRequest()
        let waitingForOthers = harness.joined(waiting) == nil
        harness.beat("g", .join("new"))
        if waitingForOthers { #expect(harness.joinCode(waiting) == .rebalanceInProgress) }
        #expect(clients[0].join())
        #expect(harness.unansweredCount == 0)
    }

    @Test func `an empty classic group becomes a consumer group under every policy`() {
        let harness = harness(.disabled)
        #expect(harness.commitCode(harness.commit("g", [("t", 0, 5)])) == ErrorCode.none)
        #expect(harness.code("g", .join("m")) == .none)
        #expect(harness.summary("g")?.memberIDs == ["m"])
        #expect(harness.fetched(harness.fetch("g"))?["t-0"] == 5)
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `the policy decides about groups with members`() {
        for policy in [ConsumerGroupConfiguration.MigrationPolicy.disabled, .downgrade] {
            let harness = harness(policy)
            _ = classicGroup(harness)
            #expect(harness.code("g", .join("new")) == .groupIDNotFound)
            #expect(harness.summary("g")?.state == "Stable")
        }
        let upgrade = harness(.upgrade)
        let (clients, _) = classicGroup(upgrade)
        #expect(upgrade.code("g", .join("new")) == .none)
        upgrade.beat("g", Beat(member: "new", epoch: -1))
        #expect(upgrade.state("g")?.members.count == clients.count)
    }

    @Test func `a group of another kind, or with an assignor of its own, stays what it is`() {
        let harness = harness()
        var join = Join()
        join.type = "connect"
        let (_, _) = harness.stableGroup("connect", members: 1, join: join)
        #expect(harness.code("connect", .join("new")) == .groupIDNotFound)
        // Assignments in this helper are not ones that could be read.
        _ = harness.stableGroup("odd", members: 1)
        #expect(harness.code("odd", .join("new")) == .groupIDNotFound)
        #expect(harness.summary("odd")?.state == "Stable")
    }

    @Test func `a static member that comes back classic as the last new one takes the group back`() {
        let harness = harness()
        harness.beat("g", .join("m1", instance: "i"))
        let other = ClassicClient(harness, "g")
        other.join()
        let back = ClassicClient(harness, "g")
        let request = back.joinRequest(instance: "i")
        #expect(harness.state("g") == nil)
        #expect(harness.joined(request) == nil)
        #expect(harness.summary("g")?.state == "PreparingRebalance")
        #expect(harness.summary("g")?.memberIDs.count == 2)
        let rejoin = other.joinRequest()
        #expect(harness.joined(request)?.errorCode == 0)
        #expect(harness.joined(rejoin)?.errorCode == 0)
        #expect(harness.unansweredCount == 0)
    }
}
