import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

extension ShardHarness {
    func shareBeat(
        _ group: String, _ member: String, _ epoch: Int32 = 0, _ names: [String]? = nil
    ) -> ShareGroupHeartbeatResponse {
        var request = ShareGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = member
        request.memberEpoch = epoch
        request.subscribedTopicNames = names
        let id = send(.shareGroupHeartbeat(request, ClientIdentity(clientID: "client", host: "/127.0.0.1")))
        while !commitsAtOnce, response(to: id) == nil, !inFlight.isEmpty { commitNext() }
        guard case .shareGroupHeartbeat(let answer)? = response(to: id) else {
            Issue.record("no answer to a heartbeat of \(member)")
            return ShareGroupHeartbeatResponse()
        }
        return answer
    }

    func shareParts(_ response: ShareGroupHeartbeatResponse) -> Parts? {
        response.assignment.map { assignment in
            var parts: Parts = [:]
            for entry in assignment.topicPartitions {
                parts[topics.first { $0.id == entry.topicID }?.name ?? "?"] = Set(entry.partitions)
            }
            return parts
        }
    }

    /// Joins, and beats once more so that what was initialized is assigned.
    func shareJoin(_ group: String, _ member: String, _ names: [String]) -> (epoch: Int32, parts: Parts) {
        var last = shareBeat(group, member, 0, names)
        var parts = shareParts(last) ?? [:]
        for _ in 0..<2 {
            last = shareBeat(group, member, last.memberEpoch)
            parts = shareParts(last) ?? parts
        }
        return (last.memberEpoch, parts)
    }

    func shareState(_ group: String) -> ShareGroupState? { durableState().shareGroups[group] }

    func alter(_ group: String, _ offsets: [(String, Int32, Int64)]) -> AlterShareGroupOffsetsResponse {
        var request = AlterShareGroupOffsetsRequest()
        request.groupID = group
        request.topics = offsets.map { name, partition, offset in
            var entry = AlterShareGroupOffsetsRequest.AlterShareGroupOffsetsRequestPartition()
            entry.partitionIndex = partition
            entry.startOffset = offset
            var topic = AlterShareGroupOffsetsRequest.AlterShareGroupOffsetsRequestTopic()
            topic.topicName = name
            topic.partitions = [entry]
            return topic
        }
        guard case .alterShareOffsets(let answer)? = ask(.alterShareOffsets(request)) else {
            Issue.record("no answer")
            return AlterShareGroupOffsetsResponse()
        }
        return answer
    }

    func deleteGroup(_ group: String) -> ErrorCode? {
        guard case .deleteGroups(let results)? = ask(.deleteGroups([group])) else { return nil }
        return results.first.map { ErrorCode(rawValue: $0.errorCode) }
    }
}

/// Share groups in the group coordinator: keys 76, 77, 91, 92.
@Suite struct ShareGroupTests {
    private static let topics = [ShardHarness.topic("t", 3), ShardHarness.topic("u", 1)]

    private func harness() -> ShardHarness { ShardHarness(topics: Self.topics) }

    @Test func `a member gets its partitions once their state is kept`() {
        let harness = harness()
        harness.carriesOutOrders = false
        let joined = harness.shareBeat("g", "a", 0, ["t"])
        #expect(joined.errorCode == 0 && joined.memberEpoch == 1 && joined.heartbeatIntervalMs == 5_000)
        #expect(harness.shareParts(joined) == [:])
        #expect(harness.shareState("g")?.register.initializing.values.map(\.partitions) == [[0, 1, 2]])
        guard case .initialize(let epoch, let offsets)? = harness.shareOrders.first?.order.work else {
            Issue.record("nothing is ordered")
            return
        }
        #expect(epoch == 1 && offsets == [ShardHarness.topicID("t"): [0: -1, 1: -1, 2: -1]])
        // Nothing is ordered twice while that is on its way.
        #expect(harness.shareBeat("g", "a", 1).assignment == nil)
        #expect(harness.shareOrders.count == 1)
        harness.answerOrder(.none)
        let assigned = harness.shareBeat("g", "a", 1)
        #expect(harness.shareParts(assigned) == ["t": [0, 1, 2]] && assigned.memberEpoch == 2)
        #expect(harness.shareBeat("g", "a", 2).assignment == nil)
        // The epoch before counts as well: its answer may have been lost.
        #expect(harness.shareParts(harness.shareBeat("g", "a", 1)) == ["t": [0, 1, 2]])
        #expect(harness.shareBeat("g", "a", 3).errorCode == ErrorCode.fencedMemberEpoch.rawValue)
    }

    @Test func `what the share coordinator refused is ordered again`() {
        let harness = harness()
        harness.carriesOutOrders = false
        _ = harness.shareBeat("g", "a", 0, ["t"])
        harness.answerOrder(.coordinatorNotAvailable)
        #expect(harness.shareState("g")?.register.initializing.isEmpty == true)
        _ = harness.shareBeat("g", "a", 1)
        #expect(harness.shareOrders.count == 1)
        // And after a restart, when nobody knows what became of it.
        let successor = harness.successor()
        successor.carriesOutOrders = false
        _ = successor.shareBeat("g", "a", 1)
        #expect(successor.shareOrders.count == 1)
        successor.answerOrder(.none)
        #expect(successor.shareParts(successor.shareBeat("g", "a", 1)) == ["t": [0, 1, 2]])
    }

    @Test func `members share partitions, and all partitions have somebody`() {
        let harness = harness()
        #expect(harness.shareJoin("g", "a", ["t"]).parts == ["t": [0, 1, 2]])
        #expect(harness.shareJoin("g", "b", ["t"]).parts.values.map(\.count) == [1])
        var epochs: [String: Int32] = [:]
        for member in ["a", "b", "c", "d", "e"] {
            epochs[member] = harness.shareJoin("g", member, ["t"]).epoch
        }
        var parts: [String: Set<Int32>] = [:]
        for member in epochs.keys {
            let response = harness.shareBeat("g", member, 0, ["t"])
            parts[member] = harness.shareParts(response)?["t"] ?? []
        }
        #expect(parts.values.allSatisfy { !$0.isEmpty })
        for partition in Int32(0)..<3 {
            let count = parts.values.count { $0.contains(partition) }
            #expect((1...2).contains(count), "\(parts)")
        }
        // Others subscribe to something else.
        _ = harness.shareJoin("g", "f", ["u"])
        #expect(harness.shareJoin("g", "f", ["u"]).parts == ["u": [0]])
    }

    @Test func `partitions that a known topic gets begin at their start`() {
        let harness = harness()
        let epoch = harness.shareJoin("g", "a", ["t"]).epoch
        harness.carriesOutOrders = false
        harness.setTopics([ShardHarness.topic("t", 5)])
        _ = harness.shareBeat("g", "a", epoch)
        guard case .initialize(_, let offsets)? = harness.shareOrders.first?.order.work else {
            Issue.record("nothing is ordered")
            return
        }
        #expect(offsets == [ShardHarness.topicID("t"): [3: 0, 4: 0]])
        harness.answerOrder(.none)
        harness.carriesOutOrders = true
        #expect(harness.shareJoin("g", "a", ["t"]).parts == ["t": [0, 1, 2, 3, 4]])
        harness.setTopics([])
        #expect(harness.shareJoin("g", "a", ["t"]).parts == [:])
        #expect(harness.shareState("g")?.register.initialized.isEmpty == true)
    }

    @Test func `who is not heard of is removed, who leaves is gone, and the group stays`() {
        let harness = harness()
        _ = harness.shareJoin("g", "a", ["t"])
        let other = harness.shareJoin("g", "b", ["t"])
        harness.advance(40_000)
        _ = harness.shareBeat("g", "b", other.epoch)
        harness.advance(10_000)
        #expect(harness.shareState("g")?.members.keys.sorted() == ["b"])
        #expect(harness.shareBeat("g", "a", 2).errorCode == ErrorCode.unknownMemberID.rawValue)
        let left = harness.shareBeat("g", "b", -1)
        #expect(left.errorCode == 0 && left.memberEpoch == -1)
        #expect(harness.summary("g")?.state == "Empty")
        #expect(harness.shareBeat("nobody", "b", 5).errorCode == ErrorCode.groupIDNotFound.rawValue)
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `requests that make no sense are refused, and make no group`() {
        let harness = harness()
        for (group, member, epoch, names) in [
            ("", "m", 0, ["t"]), ("g", "", 0, ["t"]), ("g", "m", 0, nil), ("g", "m", 0, []),
            ("g", "m", -2, ["t"]),
            ("g", String(repeating: "m", count: 37), 0, ["t"]),
        ] as [(String, String, Int32, [String]?)] {
            #expect(
                harness.shareBeat(group, member, epoch, names).errorCode == ErrorCode.invalidRequest.rawValue)
        }
        #expect(harness.groupCount == 0)
    }

    @Test func `a group is of one kind`() {
        let harness = harness()
        _ = harness.shareJoin("s", "a", ["t"])
        #expect(
            harness.joinCode(harness.join("s")) == .inconsistentGroupProtocol)
        #expect(harness.code("s", .join("m")) == .groupIDNotFound)
        #expect(harness.commitCode(harness.commit("s", [("t", 0, 1)])) == .groupIDNotFound)
        guard case .offsetFetch(let fetched)? = harness.response(to: harness.fetch("s")) else {
            Issue.record("no answer")
            return
        }
        #expect(fetched.errorCode == ErrorCode.groupIDNotFound.rawValue)
        #expect(harness.described("s").errorMessage == "Group s is not a consumer group.")
        guard case .describeGroups(let described)? = harness.ask(.describeGroups(["s"])) else {
            Issue.record("no answer")
            return
        }
        #expect(described[0].errorMessage == "Group s is not a classic group.")

        _ = harness.settledGroup("c", ["m"])
        #expect(harness.shareBeat("c", "a", 0, ["t"]).errorMessage == "Group c is not a share group.")
        guard
            case .shareGroupDescribe(let groups)? = harness.ask(.shareGroupDescribe(["s", "c", "none", ""]))
        else {
            Issue.record("no answer")
            return
        }
        #expect(
            groups.map(\.errorCode)
                == [
                    0, ErrorCode.groupIDNotFound.rawValue, ErrorCode.groupIDNotFound.rawValue,
                    ErrorCode.invalidGroupID.rawValue,
                ])
        #expect(groups[0].groupState == "Stable" && groups[0].assignorName == "simple")
        #expect(groups[0].members[0].assignment.topicPartitions.map(\.partitions) == [[0, 1, 2]])
        var list = ListGroupsRequest()
        list.typesFilter = ["Share"]
        guard case .listGroups(let listed)? = harness.ask(.listGroups(list)) else {
            Issue.record("no answer")
            return
        }
        #expect(listed.groups.map(\.groupID) == ["s"] && listed.groups[0].protocolType == "share")
    }

    @Test func `no more members than the limit`() {
        let harness = ShardHarness(
            GroupConfiguration(share: ShareGroupConfiguration(maxSize: 2)), topics: Self.topics)
        for member in ["a", "b"] { #expect(harness.shareBeat("g", member, 0, ["t"]).errorCode == 0) }
        #expect(harness.shareBeat("g", "c", 0, ["t"]).errorCode == ErrorCode.groupMaxSizeReached.rawValue)
        #expect(harness.shareBeat("g", "b", 0, ["t"]).errorCode == 0)
    }

    @Test func `a group may have a configuration of its own`() {
        var settings = ShareGroupSettings()
        settings.heartbeatIntervalMilliseconds = 7_000
        settings.sessionTimeoutMilliseconds = 60_000
        let harness = ShardHarness(
            GroupConfiguration(share: ShareGroupConfiguration(overrides: ["slow": settings])),
            topics: Self.topics)
        #expect(harness.shareBeat("slow", "a", 0, ["t"]).heartbeatIntervalMs == 7_000)
        #expect(harness.shareBeat("other", "a", 0, ["t"]).heartbeatIntervalMs == 5_000)
        harness.advance(50_000)
        #expect(harness.summary("slow")?.state == "Stable" && harness.summary("other")?.state == "Empty")
    }

    @Test func `offsets are set anew where nobody reads`() {
        let harness = harness()
        harness.carriesOutOrders = false
        #expect(harness.alter("", [("t", 0, 5)]).errorCode == ErrorCode.invalidGroupID.rawValue)
        // A group that does not exist is made.
        let id = harness.send(
            .alterShareOffsets(
                {
                    var request = AlterShareGroupOffsetsRequest()
                    request.groupID = "g"
                    var topic = AlterShareGroupOffsetsRequest.AlterShareGroupOffsetsRequestTopic()
                    topic.topicName = "t"
                    topic.partitions = ([(0, 5), (9, 5), (1, -1)] as [(Int32, Int64)]).map { index, offset in
                        var partition = AlterShareGroupOffsetsRequest.AlterShareGroupOffsetsRequestPartition()
                        partition.partitionIndex = index
                        partition.startOffset = offset
                        return partition
                    }
                    request.topics = [topic]
                    return request
                }()))
        #expect(harness.response(to: id) == nil)
        guard case .initialize(let epoch, let offsets)? = harness.shareOrders.first?.order.work else {
            Issue.record("nothing is ordered")
            return
        }
        #expect(epoch == 1 && offsets == [ShardHarness.topicID("t"): [0: 5]])
        harness.answerOrder(.none)
        guard case .alterShareOffsets(let answer)? = harness.response(to: id) else {
            Issue.record("no answer")
            return
        }
        #expect(
            answer.responses[0].partitions.map(\.errorCode)
                == [
                    0, ErrorCode.unknownTopicOrPartition.rawValue, ErrorCode.invalidRequest.rawValue,
                ])
        #expect(harness.shareState("g")?.register.initialized.values.map(\.partitions) == [[0]])
        harness.carriesOutOrders = true
        _ = harness.shareJoin("g", "a", ["t"])
        #expect(harness.alter("g", [("t", 0, 6)]).errorCode == ErrorCode.nonEmptyGroup.rawValue)
        _ = harness.settledGroup("c", ["m"])
        #expect(harness.alter("c", [("t", 0, 6)]).errorCode == ErrorCode.groupIDNotFound.rawValue)
    }

    @Test func `offsets of topics are deleted where nobody reads`() {
        let harness = harness()
        let epoch = harness.shareJoin("g", "a", ["t", "u"]).epoch
        func delete(_ names: [String], group: String = "g") -> DeleteShareGroupOffsetsResponse {
            var request = DeleteShareGroupOffsetsRequest()
            request.groupID = group
            request.topics = names.map {
                var topic = DeleteShareGroupOffsetsRequest.DeleteShareGroupOffsetsRequestTopic()
                topic.topicName = $0
                return topic
            }
            guard case .deleteShareOffsets(let answer)? = harness.ask(.deleteShareOffsets(request)) else {
                Issue.record("no answer")
                return DeleteShareGroupOffsetsResponse()
            }
            return answer
        }
        #expect(delete(["t"]).errorCode == ErrorCode.nonEmptyGroup.rawValue)
        #expect(delete(["t"], group: "none").errorCode == ErrorCode.groupIDNotFound.rawValue)
        _ = harness.shareBeat("g", "a", -1)
        let answer = delete(["t", "none"])
        #expect(answer.responses.map(\.errorCode) == [0, ErrorCode.unknownTopicOrPartition.rawValue])
        #expect(harness.shareState("g")?.register.initialized.keys.sorted() == [ShardHarness.topicID("u")])
        #expect(harness.shareState("g")?.register.deleting.isEmpty == true)
        #expect(epoch > 0)
    }

    @Test func `a group is deleted with its state, when it has no members`() {
        let harness = harness()
        _ = harness.shareJoin("g", "a", ["t"])
        #expect(harness.deleteGroup("g") == .nonEmptyGroup)
        _ = harness.shareBeat("g", "a", -1)
        harness.carriesOutOrders = false
        let id = harness.send(.deleteGroups(["g", "none"]))
        #expect(harness.response(to: id) == nil)
        harness.answerOrder(.coordinatorNotAvailable)
        guard case .deleteGroups(let failed)? = harness.response(to: id) else {
            Issue.record("no answer")
            return
        }
        #expect(
            failed.map(\.errorCode)
                == [ErrorCode.coordinatorNotAvailable.rawValue, ErrorCode.groupIDNotFound.rawValue])
        // What an attempt left behind is deleted by the next.
        harness.carriesOutOrders = true
        #expect(harness.deleteGroup("g") == ErrorCode.none)
        #expect(harness.groupCount == 0 && harness.successor().groupCount == 0)
        #expect(harness.shareBeat("g", "a", 0, ["t"]).memberEpoch == 1)
    }

    @Test func `topics that are deleted leave the register`() {
        let harness = harness()
        _ = harness.shareJoin("g", "a", ["t", "u"])
        harness.handle(.topicsDeleted(["t"]))
        #expect(harness.shareState("g")?.register.initialized.keys.sorted() == [ShardHarness.topicID("u")])
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test(arguments: 1...100 as ClosedRange<UInt64>)
    func `random share groups settle with everything assigned, replay is live state`(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var harness = harness()
        harness.commitsAtOnce = false
        var epochs: [String: Int32] = [:]
        let choices: [[String]] = [["t"], ["u"], ["t", "u"], ["t", "later"]]
        for _ in 0..<80 {
            let member = "m\(Int.random(in: 0..<5, using: &random))"
            switch Int.random(in: 0..<10, using: &random) {
            case 0...1:
                let response = harness.shareBeat(
                    "g", member, 0, choices[Int.random(in: 0..<4, using: &random)])
                epochs[member] = response.memberEpoch
            case 2...6:
                guard let epoch = epochs[member] else { continue }
                let response = harness.shareBeat("g", member, epoch)
                epochs[member] = response.errorCode == 0 ? response.memberEpoch : nil
            case 7:
                guard epochs[member] != nil else { continue }
                _ = harness.shareBeat("g", member, -1)
                epochs[member] = nil
            case 8:
                harness.advance(Int64.random(in: 0..<30_000, using: &random))
            case _:
                while !harness.inFlight.isEmpty { harness.commitNext() }
                let successor = harness.successor()
                #expect(successor.durableState() == harness.durableState(), "seed \(seed)")
                successor.commitsAtOnce = false
                let time = harness.milliseconds
                harness = successor
                harness.advance(time - harness.milliseconds)
            }
        }
        harness.commitsAtOnce = true
        while !harness.inFlight.isEmpty { harness.commitNext() }
        for _ in 0..<3 {
            for member in epochs.keys.sorted() {
                let response = harness.shareBeat("g", member, epochs[member] ?? 0)
                epochs[member] = response.errorCode == 0 ? response.memberEpoch : nil
            }
        }
        guard let state = harness.shareState("g") else { return }
        var wanted: Set<String> = []
        for member in state.members.values { wanted.formUnion(member.about.subscribedTopicNames) }
        for topic in Self.topics where wanted.contains(topic.name) {
            let assigned = state.members.values.reduce(into: Set<Int32>()) {
                $0.formUnion($1.assigned[topic.id] ?? [])
            }
            #expect(assigned == Set(0..<topic.partitionCount), "seed \(seed): \(topic.name)")
        }
    }
}
