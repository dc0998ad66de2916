import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

extension ShardHarness {
    func txnCommit(
        _ group: String, _ offsets: [(String, Int32, Int64)], producer: Int64, member: String = "",
        generation: Int32 = -1
    ) -> ErrorCode? {
        var request = OffsetCommitRequest()
        request.groupID = group
        request.memberID = member
        request.generationIDOrMemberEpoch = generation
        request.topics = offsets.map { topic, partition, offset in
            var entry = OffsetCommitRequest.OffsetCommitRequestPartition()
            entry.partitionIndex = partition
            entry.committedOffset = offset
            var result = OffsetCommitRequest.OffsetCommitRequestTopic()
            result.name = topic
            result.topicID = Self.topicID(topic)
            result.partitions = [entry]
            return result
        }
        return commitCode(send(.txnOffsetCommit(request, ProducerIdentity(id: producer, epoch: 0))))
    }

    func endTransaction(_ producer: Int64, commits: Bool) -> RequestID {
        send(
            .endTransaction(
                TransactionMarker(
                    producer: ProducerIdentity(id: producer, epoch: 1), commits: commits, coordinatorEpoch: 0,
                    transactionProtocol: .second)))
    }

    /// Code of each partition, by "topic-partition".
    func fetchCodes(_ id: RequestID) -> [String: ErrorCode]? {
        guard case .offsetFetch(let response)? = response(to: id) else { return nil }
        var codes: [String: ErrorCode] = [:]
        for topic in response.topics {
            for partition in topic.partitions {
                codes["\(topic.name)-\(partition.partitionIndex)"] = ErrorCode(rawValue: partition.errorCode)
            }
        }
        return codes
    }

    func fetchLoosely(_ group: String) -> RequestID {
        var request = OffsetFetchRequest.OffsetFetchRequestGroup()
        request.groupID = group
        request.topics = nil
        return send(.offsetFetch(request, requireStable: false))
    }
}

@Suite struct `Offsets in transactions` {
    @Test(arguments: [true, false])
    func `count when the marker commits and never when it aborts, also after a restart in between`(commits: Bool) {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 5)])
        #expect(harness.txnCommit("g", [("t", 0, 9), ("t", 1, 3)], producer: 1) == ErrorCode.none)
        for shard in [harness, harness.successor()] {
            #expect(shard.fetched(shard.fetchLoosely("g")) == ["t-0": 5])
            let ended = shard.endTransaction(1, commits: commits)
            #expect(shard.response(to: ended) == .transactionEnded(.none))
            let expected: [String: Int64] = commits ? ["t-0": 9, "t-1": 3] : ["t-0": 5]
            #expect(shard.fetched(shard.fetch("g")) == expected)
            #expect(shard.successor().durableState() == shard.durableState())
        }
    }

    @Test func `are unstable to a reader that asks for stable ones, and to no other`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 5), ("t", 2, 7)])
        _ = harness.txnCommit("g", [("t", 0, 9), ("u", 0, 1)], producer: 1)
        #expect(
            harness.fetchCodes(harness.fetch("g"))
                == ["t-0": .unstableOffsetCommit, "t-2": .none, "u-0": .unstableOffsetCommit])
        #expect(harness.fetchCodes(harness.fetch("g", [("t", [2])])) == ["t-2": .none])
        #expect(harness.fetched(harness.fetchLoosely("g")) == ["t-0": 5, "t-2": 7])
        _ = harness.endTransaction(1, commits: true)
        #expect(harness.fetched(harness.fetch("g")) == ["t-0": 9, "t-2": 7, "u-0": 1])
    }

    @Test func `give way to whatever was appended after them`() {
        let harness = ShardHarness()
        _ = harness.txnCommit("g", [("t", 0, 9)], producer: 1)
        _ = harness.txnCommit("g", [("t", 0, 11), ("t", 1, 2)], producer: 2)
        _ = harness.endTransaction(2, commits: true)
        _ = harness.endTransaction(1, commits: true)
        #expect(harness.fetched(harness.fetch("g")) == ["t-0": 11, "t-1": 2])
        _ = harness.txnCommit("g", [("t", 0, 20)], producer: 1)
        _ = harness.commit("g", [("t", 0, 21)])
        _ = harness.endTransaction(1, commits: true)
        #expect(harness.fetched(harness.fetch("g")) == ["t-0": 21, "t-1": 2])
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `a reader waits for the marker on its way`() {
        let harness = ShardHarness()
        _ = harness.txnCommit("g", [("t", 0, 9)], producer: 1)
        harness.commitsAtOnce = false
        let ended = harness.endTransaction(1, commits: true)
        let fetch = harness.fetch("g")
        #expect(harness.response(to: ended) == nil && harness.fetched(fetch) == nil)
        harness.commitNext()
        #expect(harness.fetched(fetch) == ["t-0": 9])
    }

    @Test func `from members of an earlier generation are refused, anonymous ones of old clients are not`() {
        let harness = ShardHarness()
        let (members, generation) = harness.stableGroup("g", members: 1)
        #expect(
            harness.txnCommit("g", [("t", 0, 1)], producer: 1, member: members[0], generation: generation)
                == ErrorCode.none)
        #expect(
            harness.txnCommit("g", [("t", 0, 1)], producer: 1, member: members[0], generation: generation - 1)
                == .illegalGeneration)
        #expect(
            harness.txnCommit("g", [("t", 0, 1)], producer: 1, member: "ghost", generation: generation)
                == .unknownMemberID)
        #expect(harness.txnCommit("g", [("t", 0, 1)], producer: 1) == ErrorCode.none)
        // A rebalance does not stop the transaction of a member that is still in it.
        _ = harness.join("g", .init())
        _ = harness.joinTwice("g")
        #expect(
            harness.txnCommit("g", [("t", 0, 1)], producer: 1, member: members[0], generation: generation)
                == ErrorCode.none)
    }

    @Test func `keep their group, which an abort lets go again`() {
        let harness = ShardHarness()
        _ = harness.txnCommit("g", [("t", 0, 9)], producer: 1)
        #expect(harness.groupCount == 1)
        _ = harness.endTransaction(1, commits: false)
        #expect(harness.groupCount == 0)
    }

    @Test func `go with their group, or by themselves, where an administrator deletes them`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 1)])
        for group in ["g", "h"] {
            _ = harness.txnCommit(group, [("t", 0, 9), ("t", 1, 9), ("t", 2, 9)], producer: 1)
        }
        var delete = OffsetDeleteRequest()
        delete.groupID = "h"
        var topic = OffsetDeleteRequest.OffsetDeleteRequestTopic()
        topic.name = "t"
        var partition = OffsetDeleteRequest.OffsetDeleteRequestPartition()
        partition.partitionIndex = 2
        topic.partitions = [partition]
        delete.topics = [topic]
        guard case .offsetDelete(let deleted)? = harness.ask(.offsetDelete(delete)),
            case .deleteGroups(let results)? = harness.ask(.deleteGroups(["g"]))
        else {
            Issue.record("no answer")
            return
        }
        #expect(deleted.errorCode == 0 && results.map(\.errorCode) == [0])
        #expect(harness.successor().durableState() == harness.durableState())
        _ = harness.endTransaction(1, commits: true)
        #expect(harness.fetched(harness.fetch("g")) == [:])
        #expect(harness.fetched(harness.fetch("h")) == ["t-0": 9, "t-1": 9])
        #expect(harness.groupCount == 1)
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `from members of the consumer protocol count from their epoch`() {
        let harness = ShardHarness(topics: [ShardHarness.topic("t", 4)])
        let members = harness.settledGroup("g", ["m1", "m2"])
        let epoch = members["m1"]?.epoch ?? 0
        let own = members["m1"]?.parts["t"]?.min() ?? -1
        let other = members["m2"]?.parts["t"]?.min() ?? -1
        func commit(_ member: String, _ epoch: Int32, _ partition: Int32) -> ErrorCode? {
            harness.txnCommit("g", [("t", partition, 7)], producer: 1, member: member, generation: epoch)
        }
        #expect(commit("m1", epoch, own) == ErrorCode.none)
        // Clients know no code of the epochs in this answer.
        #expect(commit("m1", epoch + 1, own) == .illegalGeneration)
        #expect(commit("m1", epoch - 1, other) == .illegalGeneration)
        #expect(commit("ghost", epoch, own) == .unknownMemberID)
        #expect(commit("", -1, other) == ErrorCode.none, "an old client's, whom its producer epoch fences")
        _ = harness.endTransaction(1, commits: true)
        #expect(harness.fetched(harness.fetch("g")) == ["t-\(own)": 7, "t-\(other)": 7])
        // The zombie: it was thrown out while its transaction ran.
        harness.beat("g", ShardHarness.Beat(member: "m1", epoch: -1))
        #expect(commit("m1", epoch, own) == .unknownMemberID)
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `need a group, and metadata as long as Kafka lets it be`() {
        let harness = ShardHarness()
        #expect(harness.txnCommit("", [("t", 0, 1)], producer: 1) == .invalidGroupID)
        #expect(harness.commitCode(harness.commit("", [("t", 0, 1)])) == ErrorCode.none)
        let long = String(repeating: "é", count: 4_096)
        #expect(harness.commitCode(harness.commit("g", [("t", 0, 1)], metadata: long)) == ErrorCode.none)
        #expect(harness.commitCode(harness.commit("g", [("t", 0, 1)], metadata: long + "é")) == .offsetMetadataTooLarge)
    }

    @Test func `of a deleted topic do not come back with their transaction`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 5)])
        _ = harness.txnCommit("g", [("t", 0, 9), ("t", 1, 3), ("u", 0, 4)], producer: 1)
        _ = harness.txnCommit("h", [("t", 2, 1)], producer: 2)
        harness.handle(.topicsDeleted(["t"]))
        #expect(harness.successor().durableState() == harness.durableState())
        // The next topic of the name may have come by now.
        for producer in [Int64(1), 2] { _ = harness.endTransaction(producer, commits: true) }
        #expect(harness.fetched(harness.fetch("g")) == ["u-0": 4])
        #expect(harness.fetched(harness.fetch("h")) == [:])
        #expect(harness.successor().durableState() == harness.durableState())
    }

    @Test func `of a topic that went while the shard was not loaded do not come back either`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 5), ("u", 0, 1)])
        _ = harness.txnCommit("g", [("t", 0, 9), ("t", 1, 3), ("u", 1, 4)], producer: 1)
        let next = harness.successor()
        let obsolete = next.obsoleteOffsets { $0 == "u" ? ShardHarness.topicID("u") : nil }
        #expect(obsolete.map { "\($0.group) \($0.topic)-\($0.partition)" } == ["g t-0", "g t-1"])
        next.handle(.offsetsAreObsolete(obsolete))
        _ = next.endTransaction(1, commits: true)
        #expect(next.fetched(next.fetch("g")) == ["u-0": 1, "u-1": 4])
        #expect(next.successor().durableState() == next.durableState())
    }

    @Test func `markers of producers without offsets here change nothing`() {
        let harness = ShardHarness()
        _ = harness.commit("g", [("t", 0, 5)])
        let before = harness.durableState()
        _ = harness.endTransaction(77, commits: true)
        #expect(harness.durableState() == before)
    }
}
