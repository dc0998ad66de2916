import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// What members make a broker hold has one limit, whatever kind of group they are in and whatever they say it with.
@Suite struct MemberBytesTests {
    private static let limit = 64 * 1024
    /// There is no room for twice as much.
    private static let part = 40 * 1024

    private func harness() -> ShardHarness {
        ShardHarness(
            GroupConfiguration(initialRebalanceDelayMilliseconds: 0, memberBytesLimit: Self.limit),
            topics: [ShardHarness.topic("t", 1)])
    }

    /// Names of topics that have so many bytes.
    private func names(_ byteCount: Int) -> [String] {
        (0..<(byteCount / 100)).map { String(repeating: "n", count: 92) + String(10_000_000 + $0) }
    }

    @Test func `a share group's members count`() {
        let harness = harness()
        #expect(harness.shareBeat("a", "m", 0, names(Self.part)).errorCode == 0)
        let refused = harness.shareBeat("b", "m", 0, names(Self.part))
        #expect(refused.errorCode == ErrorCode.groupMaxSizeReached.rawValue)
        #expect(refused.errorMessage?.contains("fewer topics") == true)
        #expect(harness.summary("b") == nil, "a refused member founds no group")
        // Who is there stays, and may say less.
        #expect(harness.shareBeat("a", "m", 0, ["t"]).errorCode == 0)
        #expect(harness.shareBeat("b", "m", 0, names(Self.part)).errorCode == 0)
        #expect(harness.shareBeat("b", "m", -1).errorCode == 0)
        #expect(harness.shareBeat("c", "m", 0, names(Self.part)).errorCode == 0)
    }

    @Test func `a consumer group's members count`() {
        let harness = harness()
        let many = ShardHarness.Beat.join("m", names(Self.part))
        #expect(harness.code("a", many) == .none)
        let refused = harness.beat("b", many)
        #expect(refused.errorCode == ErrorCode.groupMaxSizeReached.rawValue)
        #expect(refused.errorMessage?.contains("fewer topics") == true)
        #expect(harness.code("b", .join("m", ["t"])) == .none)
        #expect(harness.successor().code("b", many) == .groupMaxSizeReached, "the same after a restart")
    }

    @Test func `names of strategies of a classic member count`() {
        let harness = harness()
        var request = JoinGroupRequest()
        request.protocolType = "consumer"
        request.sessionTimeoutMs = 10_000
        request.rebalanceTimeoutMs = 10_000
        request.protocols = (0..<8).map {
            var entry = JoinGroupRequest.JoinGroupRequestProtocol()
            entry.name = String(repeating: "s", count: 7_000) + "\($0)"
            return entry
        }
        var codes: [ErrorCode?] = []
        for group in ["a", "b"] {
            request.groupID = group
            let traits = JoinTraits(
                requiresKnownMemberID: false, supportsSkippingAssignment: true, newMemberID: UniversalID(high: 1, low: 2))
            let client = ClientIdentity(clientID: "client", host: "/127.0.0.1")
            codes.append(harness.joinCode(harness.send(.joinGroup(request, client, traits))))
        }
        #expect(codes == [ErrorCode.none, .groupMaxSizeReached])
    }

    @Test func `an assignment counts before it is persisted`() {
        let harness = harness()
        let bytes = String(repeating: "a", count: Self.part)
        for group in ["a", "b"] {
            let joined = harness.joinTwice(group)
            let sync = harness.sync(group, joined.member, 1, assignments: [joined.member: bytes])
            #expect(harness.syncCode(sync) == (group == "a" ? ErrorCode.none : .groupMaxSizeReached))
        }
        #expect(harness.durableState().groups["a"]?.members[0].assignment.readableBytes == bytes.utf8.count)
        #expect(harness.durableState().groups["b"] == nil)
        // The same assignment again takes no more room.
        let member = harness.summary("a")!.memberIDs[0]
        let joined = harness.join("a", ShardHarness.Join(member: member))
        #expect(harness.joinCode(joined) == ErrorCode.none)
        let again = harness.sync("a", member, 2, assignments: [member: bytes])
        #expect(harness.syncCode(again) == ErrorCode.none)
    }

    @Test func `a group that changes its members gives back what they held`() {
        let harness = harness()
        for round in 0..<20 {
            #expect(harness.code("g", .join("m", names(Self.part))) == .none, "round \(round)")
            #expect(harness.code("g", ShardHarness.Beat(member: "m", epoch: -1)) == .none)
            #expect(harness.shareBeat("s", "m", 0, names(Self.part)).errorCode == 0, "round \(round)")
            #expect(harness.shareBeat("s", "m", -1).errorCode == 0)
            let joined = harness.joinTwice("c")
            let sync = harness.sync(
                "c", joined.member, harness.summary("c")?.generation ?? 0,
                assignments: [joined.member: String(repeating: "a", count: Self.part)])
            #expect(harness.syncCode(sync) == ErrorCode.none)
            #expect(harness.memberByteCount > Self.part)
            #expect(harness.leave("c", [(joined.member, nil)]) == [.none])
            #expect(harness.memberByteCount < 4_096, "round \(round)")
        }
    }

    @Test func `what other shards of the broker hold counts`() {
        let harness = harness()
        harness.memberBytesElsewhere = Self.limit
        #expect(harness.code("g", .join("m", ["t"])) == .groupMaxSizeReached)
        #expect(harness.shareBeat("s", "m", 0, ["t"]).errorCode == ErrorCode.groupMaxSizeReached.rawValue)
        harness.memberBytesElsewhere = 0
        #expect(harness.code("g", .join("m", ["t"])) == .none)
    }

    @Test func `a static member that starts again takes no more room than it has`() {
        let harness = harness()
        let place = ShardHarness.Join(instance: "i")
        let joined = harness.joined(harness.join("g", place))
        #expect(joined?.errorCode == 0)
        #expect(harness.syncCode(harness.sync("g", joined?.memberID ?? "", 1)) == ErrorCode.none)
        harness.memberBytesElsewhere = Self.limit
        #expect(harness.joinCode(harness.join("g", place)) == ErrorCode.none)
        #expect(harness.joinCode(harness.join("g", ShardHarness.Join(instance: "j"))) == .groupMaxSizeReached)
    }

    @Test func `ids given out and not used yet make no room for an assignment`() {
        let harness = harness()
        let joined = harness.joinTwice("g")
        for _ in 0..<60 { _ = harness.join("g") }
        let bytes = String(repeating: "a", count: Self.part)
        let sync = harness.sync("g", joined.member, 1, assignments: [joined.member: bytes])
        #expect(harness.syncCode(sync) == .groupMaxSizeReached)
    }

    @Test func `ids given out and not used yet count`() {
        let harness = harness()
        var refusedCount = 0
        for index in 0..<200 where harness.joinCode(harness.join("g\(index)")) == .groupMaxSizeReached {
            refusedCount += 1
        }
        #expect(refusedCount > 0)
        #expect(harness.memberByteCount <= Self.limit)
        harness.advance(60_000)
        #expect(harness.memberByteCount == 0)
    }
}
