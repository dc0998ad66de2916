import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private typealias Join = ShardHarness.Join

@Suite struct `Committed offsets` {
    @Test func `a commit is answered, and seen, when it is durable and not before`() {
        let harness = ShardHarness()
        harness.commitsAtOnce = false
        let commit = harness.commit("g", [("t", 0, 5)], metadata: "note")
        let fetch = harness.fetch("g", [("t", [0, 1])])
        let other = harness.fetch("h", [("t", [0])])
        #expect(harness.commitCode(commit) == nil)
        #expect(harness.fetched(fetch) == nil)
        #expect(harness.fetched(other) == ["t-0": -1])
        harness.commitNext()
        #expect(harness.commitCode(commit) == ErrorCode.none)
        #expect(harness.fetched(fetch) == ["t-0": 5, "t-1": -1])
    }

    @Test func `metadata and leader epoch come back as they were given, also after a restart`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 5)], metadata: "ünï ✓")
        for shard in [harness, harness.successor()] {
            guard case .offsetFetch(let response)? = shard.response(to: shard.fetch("g")) else {
                Issue.record("no answer")
                return
            }
            #expect(response.topics[0].partitions[0].metadata == "ünï ✓")
            #expect(response.topics[0].partitions[0].committedLeaderEpoch == 3)
        }
    }

    @Test func `metadata that is too long fails its partition alone`() {
        let harness = ShardHarness()
        let id = harness.commit("g", [("t", 0, 5)], metadata: String(repeating: "x", count: 4_097))
        #expect(harness.commitCode(id) == .offsetMetadataTooLarge)
        #expect(
            harness.commitCode(
                harness.commit("g", [("t", 0, 5)], metadata: String(repeating: "x", count: 4_096)))
                == ErrorCode.none)
    }

    @Test func `only members of the present generation commit to a group that has members`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        func code(_ member: String, _ generation: Int32) -> ErrorCode? {
            harness.commitCode(harness.commit("g", [("t", 0, 1)], member: member, generation: generation))
        }
        #expect(code(members[0], generation) == ErrorCode.none)
        #expect(code(members[0], generation - 1) == .illegalGeneration)
        #expect(code("ghost", generation) == .unknownMemberID)
        #expect(code("", -1) == .unknownMemberID)
        #expect(
            harness.commitCode(harness.commit("new", [("t", 0, 1)], member: "m", generation: 3))
                == .groupIDNotFound)
        #expect(
            harness.commitCode(
                harness.commit("new", [("t", 0, 1)], member: "m", generation: 3, reportsMissingGroup: false))
                == .illegalGeneration)
    }

    @Test func `a late commit of a member that was thrown out never moves the offset back`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        // The second member stalls, loses its session, the first takes over and moves on.
        for _ in 0..<3 {
            harness.advance(5_000)
            _ = harness.heartbeat("g", members[0], generation)
        }
        let rejoined = harness.joined(harness.join("g", Join(member: members[0])))
        let next = rejoined?.generationID ?? 0
        _ = harness.sync("g", members[0], next, assignments: [members[0]: "all"])
        #expect(
            harness.commitCode(harness.commit("g", [("t", 0, 100)], member: members[0], generation: next))
                == ErrorCode.none)
        let late = harness.commit("g", [("t", 0, 7)], member: members[1], generation: generation)
        #expect(harness.commitCode(late) == .unknownMemberID)
        #expect(harness.fetched(harness.fetch("g")) == ["t-0": 100])
        // Its first life's generation does not help the surviving member either.
        let stale = harness.commit("g", [("t", 0, 7)], member: members[0], generation: generation)
        #expect(harness.commitCode(stale) == .illegalGeneration)
    }

    @Test func `between join and sync nobody commits, while a rebalance gathers members one may`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 2)
        _ = harness.join("g", Join(member: members[0]))
        #expect(
            harness.commitCode(harness.commit("g", [("t", 0, 1)], member: members[1], generation: generation))
                == ErrorCode.none)
        _ = harness.join("g", Join(member: members[1]))
        #expect(harness.summary("g")?.state == "CompletingRebalance")
        #expect(
            harness.commitCode(
                harness.commit("g", [("t", 0, 1)], member: members[1], generation: generation + 1))
                == .rebalanceInProgress)
    }

    @Test func `deleting a topic deletes its offsets, in the log as well`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 1), ("u", 0, 2)])
        _ = harness.commit("h", [("t", 3, 1)])
        harness.handle(.topicsDeleted(["t"]))
        #expect(harness.fetched(harness.fetch("g")) == ["u-0": 2])
        #expect(harness.offsetCount == 1)
        #expect(harness.successor().durableState() == harness.durableState())
        #expect(harness.groupCount == 1)
    }

    @Test func `an offset of a topic before is none of the topic that has its name now`() {
        let harness = ShardHarness()
        let (old, new) = (UniversalID(high: 1, low: 1), UniversalID(high: 1, low: 2))
        var commit = OffsetCommitRequest()
        commit.groupID = "g"
        var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
        partition.committedOffset = 7
        var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
        topic.name = "t"
        topic.topicID = old
        topic.partitions = [partition]
        commit.topics = [topic]
        commit.generationIDOrMemberEpoch = -1
        // It arrived after the deletion of its topic was told.
        #expect(harness.commitCode(harness.send(.offsetCommit(commit, reportsMissingGroup: true))) == ErrorCode.none)
        for (id, offset) in [(old, Int64(7)), (new, -1), (.zero, 7)] {
            var fetch = OffsetFetchRequest.OffsetFetchRequestGroup()
            var named = OffsetFetchRequest.OffsetFetchRequestTopics()
            fetch.groupID = "g"
            named.name = "t"
            named.topicID = id
            named.partitionIndexes = [0]
            fetch.topics = [named]
            #expect(harness.fetched(harness.send(.offsetFetch(fetch, requireStable: true))) == ["t-0": offset])
        }
    }

    @Test func `offsets in use cannot be deleted, others can`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 1)
        _ = harness.commit(
            "g", [("topic", 0, 1), ("other", 0, 2)], member: members[0], generation: generation)
        func delete(_ topic: String) -> (ErrorCode, ErrorCode?) {
            var request = OffsetDeleteRequest()
            request.groupID = "g"
            var entry = OffsetDeleteRequest.OffsetDeleteRequestTopic()
            entry.name = topic
            var partition = OffsetDeleteRequest.OffsetDeleteRequestPartition()
            partition.partitionIndex = 0
            entry.partitions = [partition]
            request.topics = [entry]
            guard case .offsetDelete(let response)? = harness.ask(.offsetDelete(request)) else {
                return (.unknownServerError, nil)
            }
            return (
                ErrorCode(rawValue: response.errorCode),
                response.topics.first.map { ErrorCode(rawValue: $0.partitions[0].errorCode) }
            )
        }
        #expect(delete("topic") == (.none, .groupSubscribedToTopic))
        #expect(delete("other") == (.none, ErrorCode.none))
        #expect(harness.fetched(harness.fetch("g")) == ["topic-0": 1])
        _ = harness.leave("g", [(members[0], nil)])
        #expect(delete("topic") == (.none, ErrorCode.none))
        #expect(harness.offsetCount == 0)
    }

    @Test func `offsets of an empty group outlive it by the retention, those of a living one stay`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 1)
        _ = harness.commit(
            "g", [("topic", 0, 1), ("left", 0, 2)], member: members[0], generation: generation)
        for _ in 0..<4 {
            harness.advance(5_000)
            _ = harness.heartbeat("g", members[0], generation)
        }
        let retention = OffsetRetention(fixedMilliseconds: 15_000)
        harness.handle(.expirationDue(retention))
        // Nobody subscribes to "left" any more.
        #expect(harness.fetched(harness.fetch("g")) == ["topic-0": 1])
        _ = harness.leave("g", [(members[0], nil)])
        harness.advance(14_000)
        harness.handle(.expirationDue(retention))
        #expect(harness.offsetCount == 1)
        harness.advance(1_000)
        harness.handle(.expirationDue(retention))
        #expect(harness.offsetCount == 0)
        #expect(harness.groupCount == 0)
        #expect(harness.successor().groupCount == 0)
    }

    @Test func `by default an offset lives as long as its topic keeps records`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("short", 0, 1), ("forever", 0, 2), ("unknown", 0, 3)])
        harness.advance(1_000_000)
        harness.handle(
            .expirationDue(
                OffsetRetention(fixedMilliseconds: nil, topicMilliseconds: ["short": 1_000, "forever": nil])))
        #expect(harness.fetched(harness.fetch("g")) == ["forever-0": 2, "unknown-0": 3])
    }
}

@Suite struct `Groups as a whole` {
    @Test func `groups are listed in order, by state and type`() {
        let harness = ShardHarness()
        _ = harness.stableGroup("b", members: 1)
        _ = harness.commit("a", [("t", 0, 1)])
        func list(states: [String] = [], types: [String] = []) -> [String] {
            var request = ListGroupsRequest()
            request.statesFilter = states
            request.typesFilter = types
            guard case .listGroups(let response)? = harness.ask(.listGroups(request)) else { return [] }
            return response.groups.map { "\($0.groupID)/\($0.groupState)/\($0.protocolType)/\($0.groupType)" }
        }
        #expect(list() == ["a/Empty//classic", "b/Stable/consumer/classic"])
        #expect(list(states: ["stable"]) == ["b/Stable/consumer/classic"])
        #expect(list(types: ["Classic"]).count == 2)
        #expect(list(types: ["consumer"]) == [])
    }

    @Test func `a stable group shows strategy, subscriptions and assignments`() throws {
        let harness = ShardHarness()
        let (members, _) = harness.stableGroup("g", members: 2)
        guard case .describeGroups(let groups)? = harness.ask(.describeGroups(["g", "none"])) else {
            Issue.record("no answer")
            return
        }
        #expect(groups[0].groupState == "Stable")
        #expect(groups[0].protocolData == "range")
        #expect(groups[0].members.map(\.memberID) == members)
        #expect(groups[0].members[1].memberAssignment == ByteBuffer(string: "part 1"))
        #expect(groups[0].members[0].clientHost == "/127.0.0.1")
        #expect(groups[1].groupState == "Dead")
        #expect(groups[1].errorCode == ErrorCode.groupIDNotFound.rawValue)
    }

    @Test func `many offsets under long names go in as many batches as the log takes`() {
        let harness = ShardHarness()
        let group = String(repeating: "g", count: GroupLimits.groupIDBytesLimit)
        for part in 0..<3 as Range<Int32> {
            _ = harness.commit(group, (0..<1_000 as Range<Int32>).map { ("t", part * 1_000 + $0, 1) })
        }
        #expect(harness.offsetCount == 3_000)
        let expiring = harness.successor()
        harness.commitsAtOnce = false
        let request = harness.send(.deleteGroups([group]))
        #expect(harness.inFlight.count == 2)
        harness.commitNext()
        #expect(harness.response(to: request) == nil, "answered when all of it is durable")
        harness.commitNext()
        #expect(harness.response(to: request) != nil)
        #expect(harness.offsetCount == 0 && harness.groupCount == 0)
        expiring.advance(1_000)
        expiring.handle(.expirationDue(OffsetRetention(fixedMilliseconds: 500)))
        expiring.advance(0)
        #expect(expiring.offsetCount == 0)
    }

    @Test func `only groups without members can be deleted, and then nothing is left`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 1)
        _ = harness.commit("g", [("t", 0, 1)], member: members[0], generation: generation)
        func delete(_ ids: [String]) -> [ErrorCode] {
            guard case .deleteGroups(let results)? = harness.ask(.deleteGroups(ids)) else { return [] }
            return results.map { ErrorCode(rawValue: $0.errorCode) }
        }
        #expect(delete(["g", "none", ""]) == [.nonEmptyGroup, .groupIDNotFound, .invalidGroupID])
        _ = harness.leave("g", [(members[0], nil)])
        #expect(delete(["g"]) == [.none])
        #expect(harness.groupCount == 0)
        #expect(harness.successor().groupCount == 0)
        #expect(harness.successor().durableState() == .init())
    }

    @Test func `the text with the smallest hash goes to partition 0`() {
        // "polygenelubricants" is the well-known text whose Java hash is the smallest 32-bit number.
        #expect(GroupPartitioner.javaHash("polygenelubricants") == .min)
        #expect(GroupPartitioner.partition(for: "polygenelubricants", count: 50) == 0)
        #expect(GroupPartitioner.javaHash("hello") == 99_162_322)
        #expect(GroupPartitioner.partition(for: "hello", count: 50) == 22)
    }
}

@Suite struct `Records of the offsets topic` {
    @Test func `keys and values have Kafka's bytes`() throws {
        var key = OffsetCommitKey()
        key.group = "g"
        key.topic = "t"
        key.partition = 1
        var value = OffsetCommitValue()
        value.offset = 2
        value.leaderEpoch = 3
        value.metadata = "m"
        value.commitTimestamp = 4
        let (keyBytes, valueBytes) = try CoordinatorRecord.offsetCommit(key, value).encoded()
        #expect(Array(keyBytes.readableBytesView) == [0, 1, 0, 1, 0x67, 0, 1, 0x74, 0, 0, 0, 1])
        // Version 4, offset, leader epoch, metadata as compact string, commit time, no tagged field.
        #expect(
            valueBytes.map { Array($0.readableBytesView) } == [
                0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 2, 0x6d, 0, 0, 0, 0, 0, 0, 0, 4, 0,
            ])
        var groupKey = GroupMetadataKey()
        groupKey.group = "g"
        let (groupBytes, tombstone) = try CoordinatorRecord.groupMetadata(groupKey, nil).encoded()
        #expect(Array(groupBytes.readableBytesView) == [0, 2, 0, 1, 0x67])
        #expect(tombstone == nil)
    }

    @Test func `a key is read the same whatever record came before`() throws {
        let names = ["", "a", "b", "ab", "group-\u{e9}", String(repeating: "x", count: 300)]
        var keys: [OffsetCommitKey] = []
        for group in names {
            for topic in names {
                var key = OffsetCommitKey()
                key.group = group
                key.topic = topic
                key.partition = Int32(keys.count)
                keys.append(key)
            }
        }
        for last in keys {
            for key in keys {
                let bytes = try CoordinatorRecord.offsetCommit(key, nil).encoded().key
                let expected = CoordinatorRecord.offsetCommit(key, nil)
                #expect(try CoordinatorRecord.decode(key: bytes, value: nil, after: .offsetCommit(last, nil)) == expected)
            }
            let bytes = try CoordinatorRecord.offsetCommit(last, nil).encoded().key
            for length in 0..<bytes.readableBytes {
                #expect(throws: DecodeError.self) {
                    try CoordinatorRecord.decode(
                        key: bytes.getSlice(at: 0, length: length) ?? ByteBuffer(), value: nil,
                        after: .offsetCommit(last, nil))
                }
            }
            let null = ByteBuffer(bytes: [0, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
            #expect(throws: DecodeError.self) {
                try CoordinatorRecord.decode(key: null, value: nil, after: .offsetCommit(last, nil))
            }
        }
    }

    @Test func `values of all earlier versions load, unknown record types are left alone`() throws {
        var key = OffsetCommitKey()
        key.group = "g"
        key.topic = "t"
        let keyBytes = try CoordinatorRecord.offsetCommit(key, nil).encoded().key
        for version in OffsetCommitValue.versions {
            var value = OffsetCommitValue()
            value.offset = 7
            value.metadata = "x"
            var writer = ProtocolWriter()
            writer.integer(version)
            try value.encode(into: &writer, version: version)
            let record = try CoordinatorRecord.decode(key: keyBytes, value: writer.buffer)
            guard case .offsetCommit(_, let decoded?)? = record else {
                Issue.record("version \(version) does not load")
                continue
            }
            #expect(decoded.offset == 7)
        }
        #expect(try CoordinatorRecord.decode(key: ByteBuffer(bytes: [0, 99, 1, 2]), value: nil) == nil)
        #expect(throws: DecodeError.self) {
            try CoordinatorRecord.decode(key: ByteBuffer(bytes: [0]), value: nil)
        }
        #expect(throws: DecodeError.self) {
            try CoordinatorRecord.decode(key: ByteBuffer(bytes: [0, 1, 0, 9]), value: nil)
        }
    }
}
