import MartletLogModel
import NIOCore
import Testing

@testable import MartletClient

@Suite struct AssignorTests {
    private func member(
        _ id: String, _ topics: Set<String> = ["t"], owned: [TopicPartition] = [], generation: Int32 = -1,
        instance: String? = nil
    ) -> Assignor.Member {
        Assignor.Member(
            id: id, groupInstanceID: instance, topics: topics, owned: owned, generation: generation)
    }

    private func partitions(_ topic: String, _ indexes: [Int32]) -> [TopicPartition] {
        indexes.map { TopicPartition(topic, $0) }
    }

    @Test func `range gives contiguous parts, the first members one more`() {
        let result = Assignor.assign(
            .range, members: [member("b"), member("a"), member("c")], partitionCounts: ["t": 7])
        #expect(result["a"] == partitions("t", [0, 1, 2]))
        #expect(result["b"] == partitions("t", [3, 4]))
        #expect(result["c"] == partitions("t", [5, 6]))
    }

    @Test func `range works per topic and for topics that only some want`() {
        let result = Assignor.assign(
            .range, members: [member("a", ["t", "u"]), member("b", ["u"])], partitionCounts: ["t": 2, "u": 2])
        #expect(result["a"] == partitions("t", [0, 1]) + partitions("u", [0]))
        #expect(result["b"] == partitions("u", [1]))
    }

    @Test func `static members are ordered by instance id whatever their member id`() {
        let members = [member("zzz", instance: "1"), member("aaa", instance: "2")]
        let result = Assignor.assign(.range, members: members, partitionCounts: ["t": 2])
        #expect(result["zzz"] == partitions("t", [0]))
        #expect(result["aaa"] == partitions("t", [1]))
    }

    @Test func `round robin deals out over topics and skips who does not want one`() {
        let result = Assignor.assign(
            .roundRobin, members: [member("a", ["t", "u"]), member("b", ["u"])],
            partitionCounts: ["t": 2, "u": 2])
        #expect(result["a"] == partitions("t", [0, 1]) + partitions("u", [1]))
        #expect(result["b"] == partitions("u", [0]))
    }

    @Test func `topics nobody wants and topics that do not exist are left out`() {
        for strategy in AssignmentStrategy.allCases {
            let result = Assignor.assign(
                strategy, members: [member("a", ["t", "absent"])], partitionCounts: ["t": 1, "other": 3])
            #expect(result == ["a": partitions("t", [0])])
        }
    }

    @Test func `sticky keeps what members own`() {
        let result = Assignor.assign(
            .cooperativeSticky,
            members: [
                member("a", owned: partitions("t", [3, 1]), generation: 4),
                member("b", owned: partitions("t", [0, 2]), generation: 4),
            ], partitionCounts: ["t": 4])
        #expect(result["a"] == partitions("t", [1, 3]))
        #expect(result["b"] == partitions("t", [0, 2]))
    }

    @Test func `cooperative hands a partition on only after its holder has given it up`() {
        let first = Assignor.assign(
            .cooperativeSticky,
            members: [member("a", owned: partitions("t", [0, 1, 2, 3]), generation: 1), member("b")],
            partitionCounts: ["t": 4])
        #expect(first["a"]?.count == 2)
        #expect(first["b"] == [])
        let second = Assignor.assign(
            .cooperativeSticky,
            members: [member("a", owned: first["a"] ?? [], generation: 2), member("b", generation: 2)],
            partitionCounts: ["t": 4])
        #expect(second["a"] == first["a"])
        #expect(second["b"]?.count == 2)
        #expect(Set((second["a"] ?? []) + (second["b"] ?? [])).count == 4)
    }

    @Test func `of two claims to a partition the later generation counts`() {
        let result = Assignor.assign(
            .cooperativeSticky,
            members: [
                member("a", owned: partitions("t", [0]), generation: 3),
                member("b", owned: partitions("t", [0, 1]), generation: 2),
            ], partitionCounts: ["t": 2])
        #expect(result["a"] == partitions("t", [0]))
        #expect(result["b"] == partitions("t", [1]))
    }

    @Test(arguments: AssignmentStrategy.allCases)
    func `each partition goes to exactly one member that wants it, evenly`(strategy: AssignmentStrategy) {
        var generator = SplitMix(state: 42)
        for round in 0..<200 {
            let counts = Dictionary(
                uniqueKeysWithValues: (0..<Int.random(in: 1...4, using: &generator)).map {
                    ("topic\($0)", Int.random(in: 1...9, using: &generator))
                })
            let isUniform = round % 2 == 0
            var members = (0..<Int.random(in: 1...6, using: &generator)).map { index in
                member(
                    "m\(index)",
                    isUniform
                        ? Set(counts.keys) : Set(counts.keys.filter { _ in Bool.random(using: &generator) }))
            }
            // Rounds until nothing moves: the cooperative strategy needs two.
            var result: [String: [TopicPartition]] = [:]
            for generation in 0..<3 {
                result = Assignor.assign(
                    strategy, members: members.shuffled(using: &generator), partitionCounts: counts)
                for index in members.indices {
                    members[index].owned = result[members[index].id] ?? []
                    members[index].generation = Int32(generation)
                }
            }
            let wanted = counts.filter { topic in members.contains { $0.topics.contains(topic.key) } }
            let all = result.values.flatMap { $0 }
            #expect(all.count == wanted.values.reduce(0, +), "round \(round)")
            #expect(Set(all).count == all.count, "round \(round)")
            for member in members {
                #expect(
                    (result[member.id] ?? []).allSatisfy { member.topics.contains($0.topic) },
                    "round \(round)")
            }
            if isUniform, strategy != .range {
                let sizes = members.map { result[$0.id]?.count ?? 0 }
                #expect((sizes.max() ?? 0) - (sizes.min() ?? 0) <= 1, "round \(round): \(sizes)")
            }
        }
    }

    @Test func `subscriptions and assignments survive their encoding`() throws {
        let subscription = ConsumerProtocol.Subscription(
            topics: ["a", "b"], owned: partitions("a", [0, 5]), generation: 7, rack: "r")
        #expect(ConsumerProtocol.subscription(try ConsumerProtocol.encode(subscription)) == subscription)
        let assignment = partitions("a", [1, 2]) + partitions("b", [0])
        #expect(
            ConsumerProtocol.assignment(try ConsumerProtocol.encode(assignment: assignment)) == assignment)
        #expect(ConsumerProtocol.assignment(ByteBuffer()) == [])
        #expect(ConsumerProtocol.assignment(ByteBuffer(bytes: [0])) == nil)
    }

    /// Bytes of a version 0 subscription worked by hand: version, one topic "t1", null user data.
    @Test func `an old client's subscription is read`() {
        let bytes: [UInt8] = [0, 0, 0, 0, 0, 1, 0, 2, 0x74, 0x31, 0xff, 0xff, 0xff, 0xff]
        #expect(ConsumerProtocol.subscription(ByteBuffer(bytes: bytes))?.topics == ["t1"])
    }

    /// A version from the future: ours is read and what follows is left alone.
    @Test func `a newer assignment version is read as ours`() {
        let bytes: [UInt8] = [
            0, 9, 0, 0, 0, 1, 0, 1, 0x74, 0, 0, 0, 1, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff, 1, 2, 3,
        ]
        #expect(ConsumerProtocol.assignment(ByteBuffer(bytes: bytes)) == [TopicPartition("t", 3)])
    }
}

/// Small seeded generator, so that a failing round can be repeated.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
