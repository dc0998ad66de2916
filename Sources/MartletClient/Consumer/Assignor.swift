import MartletLogModel

/// Shares the partitions of subscribed topics among the members of a group. Pure functions, so that the group
/// leader decides the same whatever the order in which members arrived.
enum Assignor {
    /// A member as the leader of the group sees it.
    struct Member: Sendable {
        var id: String
        var groupInstanceID: String?
        var topics: Set<String>
        /// Partitions it held in `generation`, for the sticky strategy.
        var owned: [TopicPartition] = []
        var generation: Int32 = -1

        /// Static members come in the order of their instance ids, so that a restart changes nothing.
        var order: (Bool, String) { groupInstanceID.map { (false, $0) } ?? (true, id) }
    }

    /// - Parameter partitionCounts: topics that do not exist are absent.
    static func assign(
        _ strategy: AssignmentStrategy, members: [Member], partitionCounts: [String: Int]
    ) -> [String: [TopicPartition]] {
        let sorted = members.sorted { $0.order < $1.order }
        let result =
            switch strategy {
            case .range: range(sorted, partitionCounts)
            case .roundRobin: roundRobin(sorted, partitionCounts)
            case .cooperativeSticky: cooperative(sorted, sticky(sorted, partitionCounts))
            }
        return result.mapValues { $0.sorted() }
    }

    // MARK: Eager strategies

    private static func range(_ members: [Member], _ counts: [String: Int]) -> [String: [TopicPartition]] {
        var result = empty(members)
        for (topic, count) in counts.sorted(by: { $0.key < $1.key }) {
            let takers = members.filter { $0.topics.contains(topic) }
            guard !takers.isEmpty else { continue }
            let (share, extra) = count.quotientAndRemainder(dividingBy: takers.count)
            var next = 0
            for (place, member) in takers.enumerated() {
                let size = share + (place < extra ? 1 : 0)
                for index in next..<next + size {
                    result[member.id]?.append(TopicPartition(topic, Int32(index)))
                }
                next += size
            }
        }
        return result
    }

    private static func roundRobin(_ members: [Member], _ counts: [String: Int]) -> [String: [TopicPartition]]
    {
        var result = empty(members)
        guard !members.isEmpty else { return result }
        var turn = 0
        for partition in allPartitions(counts) {
            guard members.contains(where: { $0.topics.contains(partition.topic) }) else { continue }
            while !members[turn % members.count].topics.contains(partition.topic) { turn += 1 }
            result[members[turn % members.count].id]?.append(partition)
            turn += 1
        }
        return result
    }

    // MARK: Sticky

    /// Balanced to within one partition where subscriptions allow it, keeping what members own.
    private static func sticky(_ members: [Member], _ counts: [String: Int]) -> [String: [TopicPartition]] {
        var result = empty(members)
        var owner: [TopicPartition: (id: String, generation: Int32)] = [:]
        for member in members {
            for partition in member.owned where isValid(partition, member, counts) {
                // Two members claim it if one missed a rebalance: the later generation is right (KIP-792).
                if let other = owner[partition], other.generation >= member.generation { continue }
                owner[partition] = (member.id, member.generation)
            }
        }
        for (partition, holder) in owner.sorted(by: { $0.key < $1.key }) {
            result[holder.id]?.append(partition)
        }
        let unowned = allPartitions(counts).filter { owner[$0] == nil }
        trim(members, counts, &result)
        let trimmed = allPartitions(counts).filter { partition in
            owner[partition] != nil && !(result[owner[partition]?.id ?? ""]?.contains(partition) ?? false)
        }
        for partition in (unowned + trimmed).sorted() {
            let taker =
                members.filter { $0.topics.contains(partition.topic) }
                .min { (result[$0.id]?.count ?? 0) < (result[$1.id]?.count ?? 0) }
            if let taker { result[taker.id]?.append(partition) }
        }
        level(members, &result)
        return result
    }

    /// Where all members want the same topics, nobody keeps more than the fair share, rounded up for as many
    /// members as the remainder says.
    private static func trim(
        _ members: [Member], _ counts: [String: Int], _ result: inout [String: [TopicPartition]]
    ) {
        guard let topics = members.first?.topics, members.allSatisfy({ $0.topics == topics }) else { return }
        let total = counts.filter { topics.contains($0.key) }.values.reduce(0, +)
        let (share, extra) = total.quotientAndRemainder(dividingBy: members.count)
        var extraLeft = extra
        // Those who own most keep the larger shares.
        let byLoad = members.sorted {
            (result[$0.id]?.count ?? 0, $1.id) > (result[$1.id]?.count ?? 0, $0.id)
        }
        for member in byLoad {
            guard let owned = result[member.id] else { continue }
            var quota = share
            if owned.count > share, extraLeft > 0 {
                quota += 1
                extraLeft -= 1
            }
            if owned.count > quota { result[member.id] = Array(owned.sorted().prefix(quota)) }
        }
    }

    /// Moves single partitions from fuller to emptier members until no move helps.
    private static func level(_ members: [Member], _ result: inout [String: [TopicPartition]]) {
        var moved = true
        while moved {
            moved = false
            let byLoad = members.sorted {
                (result[$0.id]?.count ?? 0, $1.id) > (result[$1.id]?.count ?? 0, $0.id)
            }
            search: for giver in byLoad {
                for taker in byLoad.reversed() {
                    let difference = (result[giver.id]?.count ?? 0) - (result[taker.id]?.count ?? 0)
                    if difference < 2 { break }
                    guard let place = result[giver.id]?.lastIndex(where: { taker.topics.contains($0.topic) }),
                        let partition = result[giver.id]?.remove(at: place)
                    else { continue }
                    result[taker.id]?.append(partition)
                    moved = true
                    break search
                }
            }
        }
    }

    /// Takes out what another member still holds: it must be given up first, and is handed on in the rebalance
    /// that follows (KIP-429).
    private static func cooperative(
        _ members: [Member], _ target: [String: [TopicPartition]]
    ) -> [String: [TopicPartition]] {
        var holder: [TopicPartition: String] = [:]
        for member in members.sorted(by: { $0.generation < $1.generation }) {
            for partition in member.owned { holder[partition] = member.id }
        }
        return target.reduce(into: [:]) { result, entry in
            result[entry.key] = entry.value.filter { partition in
                holder[partition].map { $0 == entry.key } ?? true
            }
        }
    }

    // MARK: Parts

    private static func isValid(_ partition: TopicPartition, _ member: Member, _ counts: [String: Int])
        -> Bool
    {
        guard member.topics.contains(partition.topic), let count = counts[partition.topic] else {
            return false
        }
        return (0..<count).contains(Int(partition.partition.rawValue))
    }

    private static func empty(_ members: [Member]) -> [String: [TopicPartition]] {
        Dictionary(members.map { ($0.id, []) }, uniquingKeysWith: { first, _ in first })
    }

    private static func allPartitions(_ counts: [String: Int]) -> [TopicPartition] {
        counts.sorted { $0.key < $1.key }.flatMap { topic, count in
            (0..<Int32(count)).map { TopicPartition(topic, $0) }
        }
    }
}

private func < (left: (Bool, String), right: (Bool, String)) -> Bool {
    left.0 == right.0 ? left.1 < right.1 : !left.0
}
