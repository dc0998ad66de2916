import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private typealias Beat = ShardHarness.Beat

private func harness(_ configuration: ConsumerGroupConfiguration = .init()) -> ShardHarness {
    let harness = ShardHarness(
        GroupConfiguration(initialRebalanceDelayMilliseconds: 0, consumer: configuration),
        topics: [ShardHarness.topic("t", 4), ShardHarness.topic("u", 2)])
    return harness
}

@Suite struct `Joining a consumer group` {
    @Test func `the first heartbeat gives an epoch and all partitions`() {
        let harness = harness()
        let response = harness.beat("g", .join("m1"))
        #expect(response.errorCode == 0)
        #expect(response.memberID == "m1")
        #expect(response.memberEpoch == 1)
        #expect(response.heartbeatIntervalMs == 5_000)
        #expect(harness.parts(response) == ["t": [0, 1, 2, 3]])
        #expect(harness.summary("g")?.state == "Stable")
        // Nothing has changed: no assignment in the answer.
        let again = harness.beat("g", Beat(member: "m1", epoch: 1))
        #expect(again.errorCode == 0 && again.assignment == nil && again.memberEpoch == 1)
    }

    @Test func `a second member gets its half after the first has given it back`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        let joined = harness.beat("g", .join("m2"))
        #expect(joined.memberEpoch == 2)
        #expect(harness.parts(joined) == [:])
        #expect(harness.summary("g")?.state == "Reconciling")

        // The first is asked to give back; it keeps its epoch until it has.
        let asked = harness.beat("g", Beat(member: "m1", epoch: 1))
        #expect(asked.memberEpoch == 1)
        #expect(harness.parts(asked) == ["t": [0, 1]])
        let still = harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1, 2, 3]]))
        #expect(still.memberEpoch == 1)
        let early = harness.beat("g", Beat(member: "m2", epoch: 2, owned: [:]))
        #expect(early.assignment == nil)

        let done = harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        #expect(done.memberEpoch == 2)
        let got = harness.beat("g", Beat(member: "m2", epoch: 2, owned: [:]))
        #expect(harness.parts(got) == ["t": [2, 3]])
        #expect(harness.summary("g")?.state == "Stable")
    }

    @Test func `a member that brings no id gets one where its version allows`() {
        let harness = harness()
        var join = Beat.join("")
        #expect(harness.code("g", join) == .invalidRequest)
        join.requiresID = false
        let response = harness.beat("g", join)
        #expect(response.errorCode == 0)
        #expect(response.memberID?.count == 36)
    }

    @Test func `a request that cannot be meant is refused, and no group stays behind`() {
        let harness = harness()
        var cases: [(String, Beat)] = []
        cases.append(("no rebalance timeout", .join("m", rebalance: -1)))
        var join = Beat.join("m")
        join.owned = nil
        cases.append(("no partitions", join))
        join.owned = ["t": [0]]
        cases.append(("partitions at a join", join))
        cases.append(("no subscription", .join("m", nil)))
        cases.append(("an empty instance", .join("m", instance: "")))
        cases.append(("a static leave without instance", Beat(member: "m", epoch: -2)))
        cases.append(("an epoch that means nothing", Beat(member: "m", epoch: -3)))
        join = .join("m")
        join.rack = ""
        cases.append(("an empty rack", join))
        for (words, beat) in cases { #expect(harness.code("g", beat) == .invalidRequest, "\(words)") }
        #expect(harness.code("", .join("m")) == .invalidRequest)
        #expect(harness.code("g", .join("m", assignor: "sticky")) == .unsupportedAssignor)
        #expect(harness.code("g", .join("m", nil, regex: "a(")) == .invalidRegularExpression)
        #expect(harness.code("g", Beat(member: "m", epoch: 5)) == .groupIDNotFound)
        #expect(harness.code("g", Beat(member: "m", epoch: -1)) == .groupIDNotFound)
        #expect(harness.groupCount == 0)
        #expect(harness.log.isEmpty)
        #expect(harness.timers.isEmpty)
    }

    @Test func `a full group takes nobody, but lets its members come back`() {
        let harness = harness(ConsumerGroupConfiguration(maxSize: 1))
        harness.beat("g", .join("m1"))
        #expect(harness.code("g", .join("m2")) == .groupMaxSizeReached)
        #expect(harness.code("g", .join("m1")) == .none)
    }

    @Test func `members whose subscriptions fill a batch are not taken, and the others go on`() {
        let harness = harness()
        let topics = (0..<1_000).map { "\($0)" + String(repeating: "t", count: 900) }
        var taken = 0
        while harness.code("g", .join("m\(taken)", topics)) == .none { taken += 1 }
        #expect((10..<20).contains(taken))
        #expect(harness.code("g", .join("m\(taken)", topics)) == .groupMaxSizeReached)
        #expect(harness.code("g", .join("short")) == .none)
        #expect(harness.successor().durableState() == harness.durableState())
        #expect(harness.successor().code("g", .join("m\(taken)", topics)) == .groupMaxSizeReached)
        #expect(harness.code("g", Beat(member: "m0", epoch: -1)) == .none)
        #expect(harness.code("g", .join("m\(taken)", topics)) == .none)
    }

    @Test func `names that no record can hold are refused`() {
        let harness = harness()
        let long = String(repeating: "m", count: 40_000)
        #expect(harness.code("g", .join(long)) == .invalidRequest)
        #expect(harness.code("g", .join("m", instance: long)) == .invalidRequest)
        #expect(harness.groupCount == 0)
        #expect(harness.code("g", .join("m")) == .none)
    }

    @Test func `subscriptions to topics that do not exist wait for them`() {
        let harness = harness()
        let response = harness.beat("g", .join("m1", ["later"]))
        #expect(harness.parts(response) == [:])
        harness.setTopics(harness.topics + [ShardHarness.topic("later", 2)])
        let next = harness.beat("g", Beat(member: "m1", epoch: 1))
        #expect(next.memberEpoch == 2)
        #expect(harness.parts(next) == ["later": [0, 1]])
        // A topic nobody subscribes to is no reason for a rebalance.
        harness.setTopics(harness.topics + [ShardHarness.topic("other", 2)])
        #expect(harness.beat("g", Beat(member: "m1", epoch: 2)).memberEpoch == 2)
    }

    @Test func `new partitions are handed out, those of deleted topics taken away`() {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1", "m2"], names: ["t", "u"])
        #expect(members["m1"]?.parts.values.reduce(0) { $0 + $1.count } == 3)
        harness.setTopics([ShardHarness.topic("t", 6), ShardHarness.topic("u", 2)])
        harness.settle("g", &members)
        let all = members.values.reduce(into: Set<Int32>()) { $0.formUnion($1.parts["t"] ?? []) }
        #expect(all == [0, 1, 2, 3, 4, 5])
        harness.setTopics([ShardHarness.topic("t", 6)])
        harness.settle("g", &members)
        #expect(members.values.allSatisfy { $0.parts["u"] == nil && $0.parts["t"]?.count == 3 })
    }

    @Test func `a changed subscription moves partitions`() {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1"])
        let changed = harness.beat(
            "g", Beat(member: "m1", epoch: 1, names: ["u"], rebalance: 1_000, owned: ["t": [0, 1, 2, 3]]))
        // First it gives back what it does not want any more, then it gets the rest.
        #expect(harness.parts(changed) == [:])
        members["m1"]?.parts = [:]
        harness.settle("g", &members)
        #expect(members["m1"]?.parts == ["u": [0, 1]])
        #expect(members["m1"]?.epoch == 2)
    }
}

@Suite struct `Epochs of a consumer group` {
    @Test func `an epoch that is not the member's is fenced`() {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1", "m2"])
        let epoch = members["m1"]?.epoch ?? 0
        #expect(harness.code("g", Beat(member: "m1", epoch: epoch + 1)) == .fencedMemberEpoch)
        #expect(harness.code("g", Beat(member: "m1", epoch: epoch - 1)) == .fencedMemberEpoch)
        #expect(harness.code("g", Beat(member: "ghost", epoch: epoch)) == .unknownMemberID)
        harness.settle("g", &members)
    }

    @Test func `the epoch before is taken if the answer was lost and nothing is claimed`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        harness.beat("g", .join("m2"))
        _ = harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        // The answer with epoch 2 was lost: the member says everything again, with epoch 1.
        let claims = Beat(member: "m1", epoch: 1, owned: ["t": [0, 1, 2]])
        #expect(harness.code("g", claims) == .fencedMemberEpoch)
        let again = harness.beat(
            "g", Beat(member: "m1", epoch: 1, names: ["t"], rebalance: 60_000, owned: ["t": [0, 1]]))
        #expect(again.errorCode == 0 && again.memberEpoch == 2)
        #expect(harness.parts(again) == ["t": [0, 1]])
    }

    @Test func `an older heartbeat that arrives late proves nothing about what its member has by now`() {
        let harness = harness()
        let all: Parts = ["t": [0, 1, 2, 3]]
        harness.beat("g", .join("m1"))
        harness.beat("g", .join("m2"))
        let kept = harness.parts(harness.beat("g", Beat(member: "m1", epoch: 1, owned: all))) ?? [:]
        #expect(kept["t"]?.count == 2)
        #expect(harness.beat("g", Beat(member: "m1", epoch: 1, owned: kept)).memberEpoch == 2)
        // m1 gets everything back, and is asked again.
        harness.beat("g", Beat(member: "m2", epoch: -1))
        let whole = harness.beat("g", Beat(member: "m1", epoch: 2, owned: kept))
        #expect(whole.memberEpoch == 3 && harness.parts(whole) == all)
        let other = harness.beat("g", .join("m3"))
        let asked = harness.beat("g", Beat(member: "m1", epoch: 3, owned: all))
        #expect(asked.memberEpoch == 3 && harness.parts(asked) == kept)
        // From between: it had no more then. It has more now, and works with it.
        #expect(harness.code("g", Beat(member: "m1", epoch: 2, owned: kept)) == .none)
        let waiting = harness.beat("g", Beat(member: "m3", epoch: other.memberEpoch, owned: [:]))
        #expect(harness.parts(waiting).map { $0["t"]?.isEmpty ?? true } ?? true, "one owner at a time (I17)")
        #expect(harness.state("g")?.members["m1"]?.state == .unrevoked)
        // Until it says so itself.
        #expect(harness.beat("g", Beat(member: "m1", epoch: 3, owned: kept)).memberEpoch == 4)
        let given = harness.beat("g", Beat(member: "m3", epoch: waiting.memberEpoch, owned: [:]))
        #expect(harness.parts(given)?["t"]?.count == 2)
    }

    /// The simulator's seed 4062: a heartbeat was held up, and what it was given arrived nowhere.
    @Test func `a member that says to have less than it was given is told again`() {
        let harness = harness()
        let all: Parts = ["t": [0, 1, 2, 3]]
        harness.beat("g", .join("m1"))
        let other = harness.beat("g", .join("m2"))
        let kept = harness.parts(harness.beat("g", Beat(member: "m1", epoch: 1, owned: all))) ?? [:]
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: kept))
        // The answer to this one is lost.
        let lost = harness.parts(harness.beat("g", Beat(member: "m2", epoch: other.memberEpoch, owned: [:])))
        #expect(lost?["t"]?.count == 2)
        let again = harness.beat("g", Beat(member: "m2", epoch: other.memberEpoch, owned: [:]))
        #expect(harness.parts(again) == lost)
        let settled = harness.beat("g", Beat(member: "m2", epoch: other.memberEpoch, owned: lost))
        #expect(settled.errorCode == 0 && harness.parts(settled) == nil, "it knows")
        let silent = harness.beat("g", Beat(member: "m2", epoch: other.memberEpoch))
        #expect(silent.errorCode == 0 && harness.parts(silent) == nil, "it says nothing")
    }

    @Test func `a fenced member joins again under its id and gets its part back`() {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1", "m2"])
        let before = members["m1"]?.parts
        let again = harness.beat("g", .join("m1"))
        #expect(again.errorCode == 0)
        #expect(again.memberEpoch == members["m1"]?.epoch)
        #expect(harness.parts(again) == before)
        harness.settle("g", &members)
    }

    @Test func `a member that left is unknown, and its partitions go to the others`() {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1", "m2"])
        let left = harness.beat("g", Beat(member: "m2", epoch: -1))
        #expect(left.errorCode == 0 && left.memberEpoch == -1)
        #expect(harness.code("g", Beat(member: "m2", epoch: 2)) == .unknownMemberID)
        members["m2"] = nil
        harness.settle("g", &members)
        #expect(members["m1"]?.parts == ["t": [0, 1, 2, 3]])
        harness.beat("g", Beat(member: "m1", epoch: -1))
        #expect(harness.summary("g")?.state == "Empty")
        #expect(harness.timers.isEmpty)
    }
}

@Suite struct `Timeouts of a consumer group` {
    @Test func `who is not heard of for the session timeout is removed`() {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1", "m2"])
        harness.advance(40_000)
        harness.beat("g", Beat(member: "m1", epoch: members["m1"]?.epoch ?? 0))
        harness.advance(6_000)
        #expect(harness.summary("g")?.memberIDs == ["m1"])
        members["m2"] = nil
        harness.settle("g", &members)
        #expect(members["m1"]?.parts == ["t": [0, 1, 2, 3]])
        #expect(harness.summary("g")?.lastRebalance?.reason == "member m2 was not heard of for 45000 ms")
    }

    @Test func `who does not give back in time is removed`() {
        let harness = harness()
        harness.beat("g", .join("m1", rebalance: 10_000))
        harness.beat("g", .join("m2"))
        for _ in 0..<5 {
            harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1, 2, 3]]))
            harness.advance(2_000)
        }
        #expect(harness.summary("g")?.memberIDs == ["m2"])
        #expect(harness.code("g", Beat(member: "m1", epoch: 1)) == .unknownMemberID)
        let got = harness.beat("g", Beat(member: "m2", epoch: 2))
        #expect(harness.parts(got) == ["t": [0, 1, 2, 3]])
    }

    @Test func `who gives back in time keeps its place`() {
        let harness = harness()
        harness.beat("g", .join("m1", rebalance: 10_000))
        harness.beat("g", .join("m2"))
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1, 2, 3]]))
        harness.advance(5_000)
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        harness.advance(20_000)
        #expect(harness.summary("g")?.memberIDs == ["m1", "m2"])
        #expect(!harness.timers.keys.contains(.revocation(group: "g", member: "m1")))
    }

    @Test func `after a restart members have a whole session, and time anew to give back`() {
        let harness = harness()
        harness.beat("g", .join("m1", rebalance: 10_000))
        harness.beat("g", .join("m2"))
        harness.beat("g", Beat(member: "m1", epoch: 1))
        harness.advance(9_000)
        let successor = harness.successor()
        #expect(successor.durableState() == harness.durableState())
        successor.advance(9_000)
        #expect(successor.summary("g")?.memberIDs == ["m1", "m2"])
        successor.advance(2_000)
        #expect(successor.summary("g")?.memberIDs == ["m2"])
        successor.advance(40_000)
        #expect(successor.summary("g")?.state == "Empty")
    }
}

@Suite struct `Static members of a consumer group` {
    @Test func `an instance that is in use is not released`() {
        let harness = harness()
        harness.beat("g", .join("m1", instance: "i"))
        #expect(harness.code("g", .join("m2", instance: "i")) == .unreleasedInstanceID)
        #expect(harness.code("g", Beat(member: "m2", epoch: 1, instance: "i")) == .fencedInstanceID)
        #expect(harness.code("g", Beat(member: "m2", epoch: 1, instance: "other")) == .unknownMemberID)
        #expect(harness.code("g", Beat(member: "m2", epoch: -1, instance: "i")) == .fencedInstanceID)
        #expect(harness.code("g", Beat(member: "m2", epoch: -1, instance: "other")) == .unknownMemberID)
    }

    @Test func `who leaves for a while finds its partitions, without a rebalance`() {
        let harness = harness()
        harness.beat("g", .join("m1", instance: "i"))
        var others = [
            "m2": ShardHarness.Settled(epoch: harness.beat("g", .join("m2")).memberEpoch, parts: [:])
        ]
        harness.beat("g", Beat(member: "m1", epoch: 1, instance: "i", owned: ["t": [0, 1]]))
        harness.settle("g", &others)
        let epoch = harness.state("g")?.epoch
        let left = harness.beat("g", Beat(member: "m1", epoch: -2, instance: "i"))
        #expect(left.errorCode == 0 && left.memberEpoch == -2)
        #expect(harness.code("g", Beat(member: "m1", epoch: 2, instance: "i")) == .fencedMemberEpoch)
        harness.advance(10_000)
        let back = harness.beat("g", .join("m3", instance: "i"))
        #expect(back.errorCode == 0)
        #expect(harness.parts(back) == ["t": [0, 1]])
        #expect(harness.state("g")?.epoch == epoch)
        #expect(back.memberEpoch == epoch)
        #expect(harness.summary("g")?.memberIDs == ["m2", "m3"])
        harness.settle("g", &others)
        #expect(others["m2"]?.parts == ["t": [2, 3]])
        // The old incarnation is gone for good.
        #expect(harness.code("g", Beat(member: "m1", epoch: 2, instance: "i")) == .fencedInstanceID)
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `who does not come back loses its place with its session`() {
        let harness = harness()
        harness.beat("g", .join("m1", instance: "i"))
        harness.beat("g", Beat(member: "m1", epoch: -2, instance: "i"))
        harness.advance(45_001)
        #expect(harness.summary("g")?.state == "Empty")
        #expect(harness.code("g", .join("m2", instance: "i")) == .none)
    }
}

@Suite struct `Offsets of a consumer group` {
    private func commit(
        _ harness: ShardHarness, _ member: String, _ epoch: Int32, _ partition: Int32, _ offset: Int64,
        knowsEpochs: Bool = true
    ) -> ErrorCode? {
        var entry = OffsetCommitRequest.OffsetCommitRequestPartition()
        entry.partitionIndex = partition
        entry.committedOffset = offset
        var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
        topic.name = "t"
        topic.topicID = ShardHarness.topicID("t")
        topic.partitions = [entry]
        var request = OffsetCommitRequest()
        request.groupID = "g"
        request.memberID = member
        request.generationIDOrMemberEpoch = epoch
        request.topics = [topic]
        return harness.commitCode(harness.send(.offsetCommit(request, reportsMissingGroup: knowsEpochs)))
    }

    @Test func `a commit counts from the member's epoch`() {
        let harness = harness()
        let members = harness.settledGroup("g", ["m1", "m2"])
        let epoch = members["m1"]?.epoch ?? 0
        let own = members["m1"]?.parts["t"]?.min() ?? -1
        #expect(commit(harness, "m1", epoch, own, 7) == ErrorCode.none)
        #expect(commit(harness, "m1", epoch + 1, own, 8) == .staleMemberEpoch)
        #expect(commit(harness, "ghost", epoch, own, 9) == .unknownMemberID)
        #expect(commit(harness, "", -1, own, 10) == .unknownMemberID)
        #expect(commit(harness, "m1", epoch, own, 11, knowsEpochs: false) == .unsupportedVersion)
        #expect(harness.fetched(harness.fetch("g"))?["t-\(own)"] == 7)
    }

    @Test
    func `a commit of an earlier epoch counts for what was the member's all along, and for nothing else`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        harness.beat("g", .join("m2"))
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        harness.beat("g", Beat(member: "m2", epoch: 2, owned: [:]))
        // m1 is at epoch 2 and has not seen that answer.
        #expect(commit(harness, "m1", 1, 0, 5) == ErrorCode.none)
        #expect(commit(harness, "m1", 1, 3, 5) == .staleMemberEpoch)
        // m2 was not in the group then.
        #expect(commit(harness, "m2", 1, 3, 5) == .staleMemberEpoch)
        #expect(commit(harness, "m2", 2, 3, 6) == ErrorCode.none)
    }

    @Test func `reading with an epoch is fenced, reading without is not`() {
        let harness = harness()
        let members = harness.settledGroup("g", ["m1"])
        var request = OffsetFetchRequest.OffsetFetchRequestGroup()
        request.groupID = "g"
        func code() -> ErrorCode? {
            guard case .offsetFetch(let response)? = harness.ask(.offsetFetch(request, requireStable: true))
            else {
                return nil
            }
            return ErrorCode(rawValue: response.errorCode)
        }
        #expect(code() == ErrorCode.none)
        request.memberID = "m1"
        request.memberEpoch = members["m1"]?.epoch ?? 0
        #expect(code() == ErrorCode.none)
        request.memberEpoch += 1
        #expect(code() == .staleMemberEpoch)
        request.memberID = "ghost"
        #expect(code() == .unknownMemberID)
    }

    @Test func `an empty group takes offsets of anybody and goes when they expire`() {
        let harness = harness()
        harness.settledGroup("g", ["m1"]).forEach { _ in }
        harness.beat("g", Beat(member: "m1", epoch: -1))
        #expect(commit(harness, "", -1, 0, 3) == ErrorCode.none)
        harness.advance(1_000)
        harness.handle(.expirationDue(OffsetRetention(fixedMilliseconds: 500)))
        #expect(harness.offsetCount == 0)
        harness.handle(.expirationDue(OffsetRetention(fixedMilliseconds: 500)))
        #expect(harness.groupCount == 0)
        #expect(harness.successor().groupCount == 0)
    }

    @Test func `offsets of topics in use stay, a group with members is not deleted`() {
        let harness = harness()
        let members = harness.settledGroup("g", ["m1"])
        #expect(commit(harness, "m1", members["m1"]?.epoch ?? 0, 0, 3) == ErrorCode.none)
        harness.advance(10_000)
        harness.handle(.expirationDue(OffsetRetention(fixedMilliseconds: 500)))
        #expect(harness.offsetCount == 1)
        var delete = OffsetDeleteRequest()
        delete.groupID = "g"
        var topic = OffsetDeleteRequest.OffsetDeleteRequestTopic()
        topic.name = "t"
        var partition = OffsetDeleteRequest.OffsetDeleteRequestPartition()
        partition.partitionIndex = 0
        topic.partitions = [partition]
        delete.topics = [topic]
        guard case .offsetDelete(let deleted)? = harness.ask(.offsetDelete(delete)) else {
            Issue.record("no answer")
            return
        }
        #expect(deleted.topics[0].partitions[0].errorCode == ErrorCode.groupSubscribedToTopic.rawValue)
        func deleteGroup() -> ErrorCode? {
            guard case .deleteGroups(let results)? = harness.ask(.deleteGroups(["g"])) else { return nil }
            return ErrorCode(rawValue: results[0].errorCode)
        }
        #expect(deleteGroup() == .nonEmptyGroup)
        harness.beat("g", Beat(member: "m1", epoch: -1))
        #expect(deleteGroup() == ErrorCode.none)
        #expect(harness.groupCount == 0 && harness.offsetCount == 0)
        #expect(harness.successor().durableState() == harness.durableState())
    }
}

@Suite struct `What is told of consumer groups` {
    @Test func `describe shows epochs, members and both assignments`() {
        let harness = harness()
        harness.beat("g", .join("m1", instance: "i", assignor: "range"))
        harness.beat("g", .join("m2", ["t"], assignor: "range"))
        harness.beat("g", Beat(member: "m1", epoch: 1, instance: "i"))
        let group = harness.described("g")
        #expect(group.errorCode == 0)
        #expect(group.groupState == "Reconciling")
        #expect(group.groupEpoch == 2 && group.assignmentEpoch == 2)
        #expect(group.assignorName == "range")
        #expect(group.members.map(\.memberID) == ["m1", "m2"])
        #expect(group.members.map(\.memberEpoch) == [1, 2])
        #expect(group.members[0].instanceID == "i")
        #expect(group.members[0].memberType == 1)
        #expect(group.members[0].clientHost == "/127.0.0.1")
        #expect(group.members[0].subscribedTopicNames == ["t"])
        #expect(group.members[0].assignment.topicPartitions.map(\.topicName) == ["t"])
        #expect(group.members[0].assignment.topicPartitions[0].partitions == [0, 1])
        #expect(group.members[1].assignment.topicPartitions.isEmpty)
        #expect(group.members[1].targetAssignment.topicPartitions[0].partitions == [2, 3])
        #expect(harness.described("nobody").errorCode == ErrorCode.groupIDNotFound.rawValue)
        #expect(harness.described("").errorCode == ErrorCode.invalidGroupID.rawValue)
    }

    @Test func `lists tell the type and filter by it; classic describe does not know the group`() {
        let harness = harness()
        harness.beat("g", .join("m1"))
        _ = harness.stableGroup("h", members: 1)
        func list(_ types: [String], _ states: [String] = []) -> [String] {
            var request = ListGroupsRequest()
            request.typesFilter = types
            request.statesFilter = states
            guard case .listGroups(let response)? = harness.ask(.listGroups(request)) else { return [] }
            return response.groups.map { "\($0.groupID) \($0.groupType) \($0.protocolType) \($0.groupState)" }
        }
        #expect(list([]) == ["g consumer consumer Stable", "h classic consumer Stable"])
        #expect(list(["Consumer"]) == ["g consumer consumer Stable"])
        #expect(list(["classic"], ["stable"]) == ["h classic consumer Stable"])
        guard case .describeGroups(let groups)? = harness.ask(.describeGroups(["g"])) else {
            Issue.record("no answer")
            return
        }
        #expect(groups[0].errorCode == ErrorCode.groupIDNotFound.rawValue)
        #expect(groups[0].groupState == "Dead")
    }

    @Test func `the last rebalance has a reason, a member and a duration`() throws {
        let harness = harness()
        var members = harness.settledGroup("g", ["m1"])
        harness.advance(100)
        let joined = harness.beat("g", .join("m2"))
        members["m2"] = ShardHarness.Settled(epoch: joined.memberEpoch, parts: [:])
        harness.advance(700)
        harness.settle("g", &members)
        guard case .lastRebalances(let reports)? = harness.ask(.lastRebalances(["g", "nobody"])) else {
            Issue.record("no answer")
            return
        }
        let report = try #require(reports.first)
        #expect(reports.count == 1)
        #expect(report.reason == "member m2 joined")
        #expect(report.memberID == "m2")
        #expect(report.durationMilliseconds == 700)
        #expect(report.memberCount == 2)
        #expect(report.generation == 2)
        #expect(harness.reports.last == report)
    }

    @Test func `an answer waits until what it tells is durable`() {
        let harness = harness()
        harness.commitsAtOnce = false
        let join = harness.beatID("g", .join("m1"))
        #expect(harness.beatResponse(join) == nil)
        // The same again decides nothing, and must not tell more than the log has.
        let again = harness.beatID("g", .join("m1"))
        #expect(harness.beatResponse(again) == nil)
        #expect(harness.inFlight.count == 1)
        harness.commitNext()
        #expect(harness.beatResponse(join)?.memberEpoch == 1)
        #expect(harness.beatResponse(again)?.memberEpoch == 1)
    }

    @Test func `a lost append answers the heartbeat with a refusal`() {
        let harness = harness()
        harness.commitsAtOnce = false
        let join = harness.beatID("g", .join("m1"))
        harness.failNext(.kafkaStorageError)
        #expect(harness.beatResponse(join)?.errorCode == ErrorCode.notCoordinator.rawValue)
        #expect(harness.beatResponse(join)?.memberEpoch == 0)
    }
}

@Suite struct `Patterns of a consumer group` {
    @Test func `a pattern is matched at once, again when topics come, and forgotten with its last member`() {
        let harness = harness()
        let joined = harness.beat("g", .join("m1", nil, regex: "[tu]"))
        #expect(harness.parts(joined) == ["t": [0, 1, 2, 3], "u": [0, 1]])
        harness.setTopics(harness.topics + [ShardHarness.topic("later", 1)])
        #expect(harness.beat("g", Beat(member: "m1", epoch: 1)).memberEpoch == 1)
        let changed = harness.beat(
            "g",
            Beat(
                member: "m1", epoch: 1, regex: "l.*", rebalance: 1_000,
                owned: ["t": [0, 1, 2, 3], "u": [0, 1]]))
        #expect(harness.parts(changed) == [:])
        #expect(harness.parts(harness.beat("g", Beat(member: "m1", epoch: 1, owned: [:]))) == ["later": [0]])
        #expect(harness.state("g")?.patterns.keys.sorted() == ["l.*"])
        // An empty text takes the pattern back.
        harness.beat("g", Beat(member: "m1", epoch: 2, names: ["u"], regex: "", rebalance: 1_000, owned: [:]))
        #expect(harness.state("g")?.patterns.isEmpty == true)
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `a member that names a topic and one whose pattern finds it share it`() {
        let harness = harness()
        harness.beat("g", .join("m1", ["t"]))
        harness.beat("g", .join("m2", nil, regex: "t"))
        harness.beat("g", Beat(member: "m1", epoch: 1, owned: ["t": [0, 1]]))
        #expect(harness.parts(harness.beat("g", Beat(member: "m2", epoch: 2)))?["t"] == [2, 3])
    }

    @Test func `many topics are matched in pieces, and the heartbeat does not wait for it`() {
        let topics = (0..<30_000).map { ShardHarness.topic("topic-with-a-long-name-\($0)", 1) }
        let harness = ShardHarness(topics: topics)
        let joined = harness.beat("g", .join("m1", nil, regex: ".*-7"))
        #expect(joined.errorCode == 0 && harness.parts(joined) == [:])
        #expect(harness.timers.keys.contains(.patterns(group: "g")))
        #expect(harness.beat("g", Beat(member: "m1", epoch: 1)).assignment == nil)
        harness.advance(0)
        #expect(!harness.timers.keys.contains(.patterns(group: "g")))
        let found = harness.beat("g", Beat(member: "m1", epoch: 1))
        #expect(found.memberEpoch == 2)
        #expect(harness.parts(found) == ["topic-with-a-long-name-7": [0]])
    }
}
