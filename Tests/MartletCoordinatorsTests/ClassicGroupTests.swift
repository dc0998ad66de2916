import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private typealias Join = ShardHarness.Join

@Suite struct `Joining a classic group` {
    @Test func `a first join only gets an id, the second one the generation`() throws {
        let harness = ShardHarness()
        let first = harness.join("g")
        let required = try #require(harness.joined(first))
        #expect(required.errorCode == ErrorCode.memberIDRequired.rawValue)
        #expect(required.memberID.hasPrefix("client-"))
        #expect(required.memberID.count == "client-".count + 36)
        let second = try #require(harness.joined(harness.join("g", Join(member: required.memberID))))
        #expect(second.errorCode == 0)
        #expect(second.generationID == 1)
        #expect(second.leader == required.memberID)
        #expect(second.protocolName == "range")
        #expect(second.protocolType == "consumer")
        #expect(second.members.map(\.memberID) == [required.memberID])
    }

    @Test func `old versions join in one step`() throws {
        let harness = ShardHarness()
        let response = try #require(harness.joined(harness.join("g", Join(requiresKnownID: false))))
        #expect(response.errorCode == 0)
        #expect(!response.memberID.isEmpty)
    }

    @Test func `an id that nobody uses is forgotten with its group`() {
        let harness = ShardHarness()
        _ = harness.join("g")
        #expect(harness.summary("g")?.pendingMemberCount == 1)
        harness.advance(10_001)
        #expect(harness.groupCount == 0)
        #expect(harness.timers.isEmpty)
    }

    @Test func `all members of a shard together say no more than a limit`() throws {
        let harness = ShardHarness()
        // About 3 MiB each, and in two steps, as members join.
        let join = Join(protocols: [("range", Array(repeating: String(repeating: "t", count: 30_000), count: 100))])
        var members: [String] = []
        for number in 0..<100 {
            let (request, member) = harness.joinTwice("g\(number)", join)
            if harness.joinCode(request) == .groupMaxSizeReached { break }
            #expect(harness.joinCode(request) == ErrorCode.none)
            members.append(member)
        }
        #expect(members.count > 40 && members.count < 50)
        // Who is there already may join again.
        let again = harness.join("g0", Join(member: members[0], protocols: join.protocols))
        #expect(harness.joinCode(again) == ErrorCode.none)
        // Others are not harmed, and room comes back when somebody goes.
        #expect(harness.joinCode(harness.joinTwice("small").request) == ErrorCode.none)
        harness.advance(30 * 60_000)
        #expect(harness.joinCode(harness.joinTwice("large", join).request) == ErrorCode.none)
    }

    @Test func `what cannot join is told why`() {
        let harness = ShardHarness()
        #expect(harness.joinCode(harness.join("")) == .invalidGroupID)
        #expect(harness.joinCode(harness.join("g", Join(session: 5_999))) == .invalidSessionTimeout)
        #expect(harness.joinCode(harness.join("g", Join(session: 1_800_001))) == .invalidSessionTimeout)
        #expect(harness.joinCode(harness.join("g", Join(member: "ghost"))) == .unknownMemberID)
        #expect(harness.joinCode(harness.join("g", Join(protocols: []))) == .inconsistentGroupProtocol)
        #expect(harness.joinCode(harness.join("g", Join(type: ""))) == .inconsistentGroupProtocol)
        #expect(harness.groupCount == 0)
        _ = harness.stableGroup("g", members: 1)
        #expect(
            harness.joinCode(harness.join("g", Join(protocols: [("sticky", ["t"])])))
                == .inconsistentGroupProtocol)
        #expect(harness.joinCode(harness.join("g", Join(type: "connect"))) == .inconsistentGroupProtocol)
    }

    @Test func `a second member makes the first come back, the leader assigns, both get their part`() throws {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        #expect(generation == 2)
        #expect(harness.summary("g")?.state == "Stable")
        let again = harness.sync("g", members[1], generation)
        #expect(harness.synced(again)?.assignment == ByteBuffer(string: "part 1"))
        #expect(harness.heartbeat("g", members[0], generation) == .none)
    }

    @Test func `an empty group waits for more members before its first generation`() {
        let harness = ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: 3_000))
        let first = harness.joinTwice("g")
        harness.advance(2_000)
        #expect(harness.joined(first.request) == nil)
        let second = harness.joinTwice("g")
        harness.advance(1_500)
        // Somebody came during the first delay, so it starts over once.
        #expect(harness.joined(first.request) == nil)
        harness.advance(3_000)
        #expect(harness.joined(first.request)?.generationID == 1)
        #expect(harness.joined(first.request)?.members.count == 2)
        #expect(harness.joined(second.request)?.members.isEmpty == true)
    }

    @Test func `the strategy is one that all know, by most votes`() {
        let harness = ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: 100))
        let requests = [
            [("a", ["t"]), ("b", ["t"]), ("c", ["t"])], [("c", ["t"]), ("b", ["t"])],
            [("b", ["t"]), ("c", ["t"])],
            [("b", ["t"]), ("c", ["t"])],
        ].map { harness.joinTwice("g", Join(protocols: $0)).request }
        harness.advance(60_000)
        #expect(harness.joined(requests[0])?.protocolName == "b")
    }

    @Test func `a group takes no more members than allowed`() {
        let harness = ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: 0, groupMaxSize: 2))
        let (members, generation) = harness.stableGroup("g", members: 2)
        #expect(harness.joinCode(harness.join("g")) == .groupMaxSizeReached)
        #expect(harness.heartbeat("g", members[0], generation) == .none)
    }

    @Test func `a repeated join of an unchanged follower is answered again without a rebalance`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        let again = harness.join("g", Join(member: members[1]))
        #expect(harness.joined(again)?.generationID == generation)
        #expect(harness.summary("g")?.state == "Stable")
        // Another subscription does start one.
        _ = harness.join("g", Join(member: members[1], protocols: [("range", ["other"])]))
        #expect(harness.summary("g")?.state == "PreparingRebalance")
        #expect(harness.heartbeat("g", members[0], generation) == .rebalanceInProgress)
    }

    @Test func `a leader that rejoins starts a rebalance, which is how it asks for a new assignment`() {
        let harness = ShardHarness()
        let (members, _) = harness.stableGroup("g", members: 2)
        _ = harness.join("g", Join(member: members[0], reason: "topic has grown"))
        #expect(harness.summary("g")?.state == "PreparingRebalance")
        _ = harness.join("g", Join(member: members[1]))
        #expect(harness.reports.last?.reason.contains("topic has grown") == true)
        #expect(harness.reports.last?.memberID == members[0])
        #expect(harness.summary("g")?.lastRebalance == harness.reports.last)
    }

    @Test func `who does not come back within the rebalance timeout is out`() {
        let harness = ShardHarness()
        let (members, _) = harness.stableGroup(
            "g", members: 2, join: Join(session: 1_000_000, rebalance: 5_000))
        let rejoin = harness.join("g", Join(member: members[0], session: 1_000_000, rebalance: 5_000))
        harness.advance(5_001)
        #expect(harness.joined(rejoin)?.members.map(\.memberID) == [members[0]])
        #expect(harness.summary("g")?.memberIDs == [members[0]])
    }

    @Test func `who does not fetch the assignment in time is out`() {
        let harness = ShardHarness()
        let join = Join(session: 1_000_000, rebalance: 5_000)
        let first = harness.joinTwice("g", join)
        let generation = harness.joined(first.request)?.generationID ?? 0
        #expect(harness.summary("g")?.state == "CompletingRebalance")
        harness.advance(5_001)
        #expect(harness.heartbeat("g", first.member, generation) == .unknownMemberID)
    }
}

@Suite(.timeLimit(.minutes(5))) struct `Large groups` {
    @Test func `a thousand members that come at once make one generation`() {
        let harness = ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: 3_000))
        let joins = (0..<1_000).map { _ in harness.joinTwice("g") }
        harness.advance(7_000)
        #expect(joins.allSatisfy { harness.joined($0.request)?.generationID == 1 })
        #expect(joins.filter { harness.joined($0.request)?.members.count == 1_000 }.count == 1)
        #expect(harness.reports.last?.memberCount == 1_000)
    }

    @Test func `what a client sends beyond the limits is refused`() {
        let harness = ShardHarness()
        let many = (0...GroupLimits.protocolCountLimit).map { ("p\($0)", ["t"]) }
        #expect(harness.joinCode(harness.join("g", Join(protocols: many))) == .invalidRequest)
        // Requests can say it; a record of the group cannot.
        let name = String(repeating: "n", count: 40_000)
        #expect(harness.joinCode(harness.join("g", Join(protocols: [(name, ["t"])]))) == .invalidRequest)
        #expect(harness.joinCode(harness.join("g", Join(instance: name))) == .invalidRequest)
        #expect(harness.joinCode(harness.join("g", Join(type: name))) == .invalidRequest)
        // One character, as far as counting characters goes.
        let client = "c" + String(repeating: "\u{301}", count: 16_000)
        let member = harness.joined(harness.join("h", Join(client: client)))?.memberID ?? ""
        #expect(!member.isEmpty && member.utf8.count < 1_000)
        let long = String(repeating: "g", count: GroupLimits.groupIDBytesLimit + 1)
        #expect(harness.joinCode(harness.join(long)) == .invalidGroupID)
        #expect(harness.commitCode(harness.commit(long, [("t", 0, 1)])) == .invalidGroupID)
        #expect(harness.summary("g") == nil && harness.summary(long) == nil)
    }

    @Test func `members whose names alone fill a record get no assignment, and the shard goes on`() {
        let harness = ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: 3_000))
        let name = String(repeating: "c", count: 30_000)
        let joins = (0..<530).map { _ in harness.join("g", Join(client: name, requiresKnownID: false)) }
        harness.advance(7_000)
        let leader = harness.joined(joins[0])
        #expect(leader?.generationID == 1 && leader?.members.count == 530)
        let sync = harness.sync("g", leader?.leader ?? "", 1, assignments: [leader?.leader ?? "": "all"])
        #expect(harness.syncCode(sync) == .unknownServerError)
        #expect(harness.commitCode(harness.commit("h", [("t", 0, 1)])) == ErrorCode.none)
    }

    @Test func `ten thousand groups are served, described and deleted`() {
        let harness = ShardHarness()
        let ids = (0..<10_000).map { "group \($0)" }
        for id in ids {
            let join = harness.joinTwice(id)
            harness.advance(0)
            let generation = harness.joined(join.request)?.generationID ?? -1
            _ = harness.sync(id, join.member, generation, assignments: [join.member: "all"])
            #expect(harness.heartbeat(id, join.member, generation) == .none)
            _ = harness.leave(id, [(join.member, nil)])
            _ = harness.commit(id, [("t", 0, 1)])
        }
        #expect(harness.groupCount == 10_000)
        let next = harness.successor()
        #expect(next.groupCount == 10_000)
        guard case .deleteGroups(let results)? = next.ask(.deleteGroups(ids)) else {
            Issue.record("no answer")
            return
        }
        #expect(results.count == 10_000 && results.allSatisfy { $0.errorCode == 0 })
        #expect(next.groupCount == 0 && next.offsetCount == 0)
    }

    @Test func `six thousand groups expire in steps, and none is forgotten`() {
        let harness = ShardHarness()
        for group in 0..<6_000 { _ = harness.commit("g\(group)", [("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]) }
        harness.advance(1_000)
        harness.handle(.expirationDue(OffsetRetention(fixedMilliseconds: 500)))
        #expect(harness.offsetCount > 0)
        harness.advance(0)
        #expect(harness.offsetCount == 0)
        #expect(harness.groupCount == 0)
        #expect(harness.timers.isEmpty)
    }
}

@Suite struct `Sessions and leaving` {
    @Test func `silence longer than the session removes a member and tells the others`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        for _ in 0..<4 {
            harness.advance(4_000)
            #expect(
                harness.heartbeat("g", members[0], generation)
                    == (harness.milliseconds <= 8_000 ? .none : .rebalanceInProgress))
        }
        #expect(harness.heartbeat("g", members[1], generation) == .unknownMemberID)
        #expect(harness.joined(harness.join("g", Join(member: members[0])))?.generationID == generation + 1)
        #expect(harness.reports.last?.reason.contains("not heard of") == true)
    }

    @Test func `a member that waits for its rebalance needs no heartbeats`() {
        let harness = ShardHarness()
        let (members, _) = harness.stableGroup(
            "g", members: 2, join: Join(session: 10_000, rebalance: 60_000))
        let waiting = harness.join("g", Join(member: members[0]))
        // The other one stays alive by heartbeats without joining.
        for _ in 0..<5 {
            harness.advance(9_000)
            _ = harness.heartbeat("g", members[1], 2)
        }
        #expect(harness.joined(waiting) == nil)
        #expect(harness.summary("g")?.memberIDs == members)
    }

    @Test func `wrong generation, unknown member and unknown group are told apart`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 1)
        #expect(harness.heartbeat("g", members[0], generation - 1) == .illegalGeneration)
        #expect(harness.heartbeat("g", "ghost", generation) == .unknownMemberID)
        #expect(harness.heartbeat("h", members[0], generation) == .unknownMemberID)
        #expect(harness.syncCode(harness.sync("g", members[0], generation + 1)) == .illegalGeneration)
        #expect(harness.syncCode(harness.sync("g", "ghost", generation)) == .unknownMemberID)
        #expect(
            harness.syncCode(harness.sync("g", members[0], generation, protocolName: "other"))
                == .inconsistentGroupProtocol)
    }

    @Test func `members leave in a batch, each with its own answer, and the last one empties the group`() {
        let harness = ShardHarness()
        let (members, _) = harness.stableGroup("g", members: 2)
        #expect(
            harness.leave("g", [(members[0], nil), ("ghost", nil), (members[1], nil)]) == [
                .none, .unknownMemberID, .none,
            ])
        #expect(harness.summary("g")?.state == "Empty")
        #expect(harness.summary("g")?.generation == 3)
        #expect(harness.leave("nowhere", [("m", nil)]) == [.unknownMemberID])
        // The empty generation is in the log: nobody can come back into the old one after a restart.
        #expect(harness.successor().summary("g")?.generation == 3)
    }

    @Test func `a pending member may leave before it joins`() throws {
        let harness = ShardHarness()
        let id = try #require(harness.joined(harness.join("g"))?.memberID)
        #expect(harness.leave("g", [(id, nil)]) == [.none])
        #expect(harness.groupCount == 0)
        #expect(harness.timers.isEmpty)
    }
}

@Suite struct `Static members` {
    private func stableStaticGroup(_ harness: ShardHarness) -> (members: [String], generation: Int32) {
        let requests = ["i1", "i2"].map { harness.join("g", Join(instance: $0)) }
        harness.advance(200)
        let members = requests.map { harness.joined($0)?.memberID ?? "" }
        let generation = harness.joined(requests[0])?.generationID ?? -1
        _ = harness.sync(
            "g", members[0], generation, instance: "i1", assignments: [members[0]: "a", members[1]: "b"])
        _ = harness.sync("g", members[1], generation, instance: "i2")
        return (members, generation)
    }

    private func harness() -> ShardHarness {
        ShardHarness(GroupConfiguration(initialRebalanceDelayMilliseconds: 100))
    }

    @Test func `a returning instance takes its old place without a rebalance, and fences its old self`()
        throws
    {
        let harness = harness()
        let (members, generation) = stableStaticGroup(harness)
        let back = try #require(harness.joined(harness.join("g", Join(instance: "i2"))))
        #expect(back.errorCode == 0)
        #expect(back.generationID == generation)
        #expect(back.memberID != members[1])
        #expect(harness.summary("g")?.state == "Stable")
        #expect(
            harness.synced(harness.sync("g", back.memberID, generation, instance: "i2"))?.assignment
                == ByteBuffer(string: "b"))
        #expect(harness.heartbeat("g", members[1], generation, instance: "i2") == .fencedInstanceID)
        let late = harness.commit(
            "g", [("topic", 0, 9)], member: members[1], generation: generation, instance: "i2")
        #expect(harness.commitCode(late) == .fencedInstanceID)
        // The change of id survives a restart.
        #expect(harness.successor().heartbeat("g", back.memberID, generation, instance: "i2") == .none)
    }

    @Test func `a returning leader skips the assignment if it can, else it is told the former leader's id`()
        throws
    {
        let harness = harness()
        let (members, _) = stableStaticGroup(harness)
        let modern = try #require(harness.joined(harness.join("g", Join(instance: "i1"))))
        #expect(modern.skipAssignment)
        #expect(modern.leader == modern.memberID)
        #expect(modern.members.count == 2)
        let old = try #require(harness.joined(harness.join("g", Join(instance: "i1", canSkip: false))))
        #expect(!old.skipAssignment)
        #expect(old.leader == modern.memberID)
        #expect(old.members.isEmpty)
        #expect(members[0] != old.memberID)
    }

    @Test func `a static member that stays away keeps its place until its session ends`() {
        let harness = harness()
        let (members, generation) = stableStaticGroup(harness)
        for _ in 0..<3 {
            harness.advance(4_000)
            _ = harness.heartbeat("g", members[0], generation, instance: "i1")
        }
        #expect(harness.summary("g")?.memberIDs == [members[0]])
    }

    @Test func `an administrator removes a static member by its instance alone`() {
        let harness = harness()
        let (members, generation) = stableStaticGroup(harness)
        #expect(
            harness.leave("g", [("", "i2"), ("", "i9"), ("wrong", "i1")]) == [
                .none, .unknownMemberID, .fencedInstanceID,
            ])
        #expect(harness.heartbeat("g", members[0], generation, instance: "i1") == .rebalanceInProgress)
    }
}

@Suite struct `Restart and lost appends` {
    @Test func `a new coordinator knows members, generation and assignments`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 3)
        let successor = harness.successor()
        #expect(successor.summary("g")?.state == "Stable")
        #expect(successor.summary("g")?.memberIDs == members)
        for (index, member) in members.enumerated() {
            #expect(successor.heartbeat("g", member, generation) == .none)
            #expect(
                successor.synced(successor.sync("g", member, generation))?.assignment
                    == ByteBuffer(string: "part \(index)"))
        }
        successor.advance(20_000)
        #expect(successor.summary("g")?.state == "Empty")
    }

    @Test func `an assignment is handed out only when it is durable`() throws {
        let harness = ShardHarness()
        let first = harness.joinTwice("g")
        harness.commitsAtOnce = false
        let sync = harness.sync("g", first.member, 1, assignments: [first.member: "all"])
        #expect(harness.synced(sync) == nil)
        #expect(harness.summary("g")?.state == "CompletingRebalance")
        harness.commitNext()
        #expect(harness.synced(sync)?.assignment == ByteBuffer(string: "all"))
        #expect(harness.summary("g")?.state == "Stable")
    }

    @Test func `an assignment that became durable too late is not handed out`() {
        let harness = ShardHarness()
        let first = harness.joinTwice("g")
        harness.commitsAtOnce = false
        let sync = harness.sync("g", first.member, 1, assignments: [first.member: "all"])
        _ = harness.joinTwice("g")
        #expect(harness.syncCode(sync) == .rebalanceInProgress)
        harness.commitNext()
        #expect(harness.summary("g")?.state == "PreparingRebalance")
    }

    @Test func `while it loads and after it has resigned, a shard says so`() {
        var shard = GroupCoordinatorShard(configuration: GroupConfiguration())
        let moment = Moment(instant: Instant(nanoseconds: 0), timestamp: Timestamp(milliseconds: 0))
        var effects: [CoordinatorEffect] = []
        var heartbeat = HeartbeatRequest()
        heartbeat.groupID = "g"
        shard.handle(.requested(RequestID(1), .heartbeat(heartbeat)), now: moment, into: &effects)
        shard.handle(.loaded, now: moment, into: &effects)
        shard.handle(.resigned, now: moment, into: &effects)
        shard.handle(.requested(RequestID(2), .heartbeat(heartbeat)), now: moment, into: &effects)
        let codes = effects.compactMap { effect -> ErrorCode? in
            guard case .respond(_, .heartbeat(let response)) = effect else { return nil }
            return ErrorCode(rawValue: response.errorCode)
        }
        #expect(codes == [.coordinatorLoadInProgress, .notCoordinator])
    }

    @Test func `a lost append answers everybody who waits, as Kafka maps the cause`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        let waiting = harness.join("g", Join(member: members[0]))
        harness.commitsAtOnce = false
        let commit = harness.commit("h", [("topic", 0, 5)])
        let fetch = harness.fetch("h")
        harness.failNext(.kafkaStorageError)
        #expect(harness.commitCode(commit) == .notCoordinator)
        #expect(harness.joinCode(waiting) == .notCoordinator)
        #expect(harness.fetched(fetch) == [:])
        #expect(harness.heartbeat("g", members[1], generation) == .notCoordinator)
        let other = ShardHarness()
        other.commitsAtOnce = false
        let large = other.commit("h", [("topic", 0, 5)])
        other.failNext(.messageTooLarge)
        #expect(other.commitCode(large) == .invalidCommitOffsetSize)
    }
}
