import MartletLogModel
import MartletTestSupport
import Testing

@testable import MartletCoordinators

private func id(_ number: UInt64) -> UniversalID { UniversalID(high: 0, low: number) }

private func spec(
    _ members: [(String, [UInt64], TopicPartitions)], _ counts: [UInt64: Int32],
    instances: [String: String] = [:]
) -> AssignmentSpec {
    AssignmentSpec(
        members: members.map {
            AssignmentSpec.Member(
                id: $0.0, instanceID: instances[$0.0], topics: Set($0.1.map(id)), target: $0.2)
        },
        partitionCounts: Dictionary(uniqueKeysWithValues: counts.map { (id($0.key), $0.value) }))
}

@Suite struct `Server assignors` {
    @Test func `range gives runs, the first members one more`() {
        let result = ServerAssignor.range.assign(
            spec([("a", [1, 2], [:]), ("b", [1, 2], [:]), ("c", [2], [:])], [1: 3, 2: 4]))
        #expect(result["a"] == [id(1): [0, 1], id(2): [0, 1]])
        #expect(result["b"] == [id(1): [2], id(2): [2]])
        #expect(result["c"] == [id(2): [3]])
    }

    @Test func `range puts static members first, by instance`() {
        let result = ServerAssignor.range.assign(
            spec(
                [("a", [1], [:]), ("b", [1], [:]), ("c", [1], [:])], [1: 3], instances: ["c": "1", "b": "2"]))
        #expect(result == ["a": [id(1): [2]], "b": [id(1): [1]], "c": [id(1): [0]]])
    }

    @Test func `uniform keeps what it can and evens out the rest`() {
        let before: TopicPartitions = [id(1): [0, 1, 2, 3, 4]]
        let result = ServerAssignor.uniform.assign(spec([("a", [1], before), ("b", [1], [:])], [1: 5]))
        // The one that has more keeps the odd one.
        #expect(result["a"] == [id(1): [0, 1, 2]])
        #expect(result["b"] == [id(1): [3, 4]])
    }

    @Test func `uniform with nobody, nothing and too few partitions`() {
        #expect(ServerAssignor.uniform.assign(spec([], [:])) == [:])
        #expect(ServerAssignor.uniform.assign(spec([("a", [], [:])], [:])) == ["a": [:]])
        let result = ServerAssignor.uniform.assign(spec([("a", [1], [:]), ("b", [1], [:])], [1: 1]))
        #expect(result == ["a": [id(1): [0]], "b": [:]])
    }

    @Test func `uniform with unlike subscriptions`() {
        let result = ServerAssignor.uniform.assign(
            spec([("a", [1, 2], [:]), ("b", [1], [:]), ("c", [2], [:])], [1: 3, 2: 3]))
        #expect(result.values.map { $0.values.reduce(0) { $0 + $1.count } }.sorted() == [2, 2, 2])
        #expect(result["b"]?[id(2)] == nil && result["c"]?[id(1)] == nil)
    }

    /// A thousand members times ten thousand partitions: the cost must not be their product.
    @Test(.timeLimit(.minutes(1))) func `uniform with many members of unlike subscriptions`() {
        let topics = Array(1...100 as ClosedRange<UInt64>)
        let counts = Dictionary(uniqueKeysWithValues: topics.map { ($0, 100 as Int32) })
        let members = (0..<1_000).map { number in
            ("m\(10_000 + number)", topics.filter { $0 != UInt64(number % 100) + 1 }, [:] as TopicPartitions)
        }
        let given = spec(members, counts)
        let result = ServerAssignor.uniform.assign(given)
        check(given, result, .uniform, 0)
        #expect(result.values.allSatisfy { $0.values.reduce(0) { $0 + $1.count } == 10 })
    }

    @Test(arguments: 1...60 as ClosedRange<UInt64>)
    func `assignments are whole, disjoint, balanced, sticky and repeatable`(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var counts: [UInt64: Int32] = [:]
        for topic in 1...UInt64.random(in: 1...5, using: &random) {
            counts[topic] = Int32.random(in: 0...12, using: &random)
        }
        let isAlike = Bool.random(using: &random)
        var members: [(String, [UInt64], TopicPartitions)] = (0..<Int.random(in: 1...8, using: &random)).map {
            (
                "m\($0)",
                isAlike ? Array(counts.keys) : counts.keys.filter { _ in Bool.random(using: &random) }, [:]
            )
        }
        for round in 0..<6 {
            for assignor in ServerAssignor.allCases {
                let given = spec(members, counts)
                let result = assignor.assign(given)
                #expect(result == assignor.assign(given), "seed \(seed)")
                check(given, result, assignor, seed)
                if assignor == .uniform {
                    // Nothing has changed: nothing moves.
                    for index in members.indices { members[index].2 = result[members[index].0] ?? [:] }
                    #expect(assignor.assign(spec(members, counts)) == result, "seed \(seed)")
                }
            }
            switch Int.random(in: 0..<3, using: &random) {
            case 0 where members.count > 1:
                members.remove(at: Int.random(in: 0..<members.count, using: &random))
            case 1: counts[1, default: 0] += 2
            case _:
                members.append(("n\(round)", isAlike ? Array(counts.keys) : [1], [:]))
                members.sort { $0.0 < $1.0 }
            }
        }
    }

    private func check(
        _ spec: AssignmentSpec, _ result: [String: TopicPartitions], _ assignor: ServerAssignor,
        _ seed: UInt64
    ) {
        var owners: TopicPartitions = [:]
        for member in spec.members {
            for (topic, partitions) in result[member.id] ?? [:] {
                #expect(member.topics.contains(topic), "seed \(seed): not subscribed")
                for partition in partitions {
                    #expect(owners[topic, default: []].insert(partition).inserted, "seed \(seed): two owners")
                    #expect((0..<(spec.partitionCounts[topic] ?? 0)).contains(partition), "seed \(seed)")
                }
            }
        }
        let wanted = spec.members.reduce(into: Set<UniversalID>()) { $0.formUnion($1.topics) }
        for topic in wanted {
            #expect(
                owners[topic, default: []].count == Int(spec.partitionCounts[topic] ?? 0),
                "seed \(seed): a partition has no owner")
        }
        guard assignor == .uniform else { return }
        let loads = Dictionary(
            uniqueKeysWithValues: spec.members.map { member in
                (member.id, (result[member.id] ?? [:]).values.reduce(0) { $0 + $1.count })
            })
        // No single partition could move from one to another member and make them more alike.
        for from in spec.members {
            for to in spec.members where (loads[to.id] ?? 0) + 1 < (loads[from.id] ?? 0) {
                let canMove = (result[from.id] ?? [:]).keys.contains { to.topics.contains($0) }
                #expect(!canMove, "seed \(seed): \(from.id) has more than \(to.id)")
            }
        }
    }
}
