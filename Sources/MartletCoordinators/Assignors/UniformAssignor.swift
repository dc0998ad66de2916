import MartletLogModel

/// Equal shares: members differ by at most one partition where all subscribe to the same topics; else no single
/// partition could move to make two members more alike. Of such assignments it keeps what members have.
enum UniformAssignor {
    private struct Partition {
        var topic: UniversalID
        var index: Int32
    }

    /// Rounds over all partitions that the balancing of unlike subscriptions may take. Each move makes loads more
    /// alike, so it ends by itself; this bounds the time of groups made to be slow.
    private static let roundLimit = 64

    static func assign(_ spec: AssignmentSpec) -> [String: TopicPartitions] {
        guard let first = spec.members.first else { return [:] }
        return spec.members.allSatisfy { $0.topics == first.topics }
            ? alike(spec, topics: first.topics.sorted()) : unlike(spec)
    }

    /// All partitions of the topics that exist, in order.
    private static func partitions(_ topics: [UniversalID], _ spec: AssignmentSpec) -> [Partition] {
        topics.flatMap { topic in
            (0..<(spec.partitionCounts[topic] ?? 0)).map { Partition(topic: topic, index: $0) }
        }
    }

    /// What each member has of `topics` and may keep, in order; nobody else's.
    private static func kept(_ spec: AssignmentSpec) -> (lists: [[Partition]], taken: TopicPartitions) {
        var taken: TopicPartitions = [:]
        let lists = spec.members.map { member in
            var list: [Partition] = []
            for topic in member.target.keys.sorted() where member.topics.contains(topic) {
                let count = spec.partitionCounts[topic] ?? 0
                for index in (member.target[topic] ?? []).sorted() where index >= 0 && index < count {
                    if taken[topic, default: []].insert(index).inserted {
                        list.append(Partition(topic: topic, index: index))
                    }
                }
            }
            return list
        }
        return (lists, taken)
    }

    // MARK: Members with the same topics

    private static func alike(_ spec: AssignmentSpec, topics: [UniversalID]) -> [String: TopicPartitions] {
        let all = partitions(topics, spec)
        let memberCount = spec.members.count
        let share = all.count / memberCount
        var extraCount = all.count % memberCount
        let (lists, keptPartitions) = kept(spec)
        var taken = keptPartitions

        // One more than the share for those first that have it already: moving nothing beats any other order.
        var quotas = Array(repeating: share, count: memberCount)
        for index in lists.indices where extraCount > 0 && lists[index].count > share {
            quotas[index] += 1
            extraCount -= 1
        }
        for index in lists.indices where extraCount > 0 && quotas[index] == share {
            quotas[index] += 1
            extraCount -= 1
        }
        var result = lists
        for index in lists.indices where lists[index].count > quotas[index] {
            for partition in lists[index][quotas[index]...] {
                taken[partition.topic]?.remove(partition.index)
            }
            result[index] = Array(lists[index][..<quotas[index]])
        }
        var free = all.filter { taken[$0.topic]?.contains($0.index) != true }[...]
        for index in result.indices {
            let room = quotas[index] - result[index].count
            result[index] += free.prefix(room)
            free = free.dropFirst(room)
        }
        return collect(spec, result)
    }

    // MARK: Members with unlike topics

    private static func unlike(_ spec: AssignmentSpec) -> [String: TopicPartitions] {
        var subscribers: [UniversalID: [Int]] = [:]
        for (index, member) in spec.members.enumerated() {
            for topic in member.topics { subscribers[topic, default: []].append(index) }
        }
        let topics = subscribers.keys.sorted()
        let lists = kept(spec).lists
        var loads = lists.map(\.count)
        var owners: [UniversalID: [Int]] = [:]
        for topic in topics {
            owners[topic] = Array(repeating: -1, count: Int(spec.partitionCounts[topic] ?? 0))
        }
        for (index, list) in lists.enumerated() {
            for partition in list { owners[partition.topic]?[Int(partition.index)] = index }
        }
        // Topics with the fewest subscribers first: the others can still even things out.
        let order = topics.sorted {
            (subscribers[$0]?.count ?? 0, $0) < (subscribers[$1]?.count ?? 0, $1)
        }
        for topic in order {
            guard var row = owners.updateValue([], forKey: topic), !row.isEmpty else { continue }
            var queue = LightestFirst(subscribers[topic] ?? [], loads)
            for index in row.indices where row[index] < 0 {
                guard let member = queue.lightest(loads) else { break }
                row[index] = member
                loads[member] += 1
                queue.changed(member, loads[member])
            }
            owners[topic] = row
        }
        for _ in 0..<roundLimit {
            var hasMoved = false
            for topic in topics {
                guard var row = owners.updateValue([], forKey: topic), !row.isEmpty else { continue }
                var queue = LightestFirst(subscribers[topic] ?? [], loads)
                for index in row.indices where row[index] >= 0 {
                    let owner = row[index]
                    guard let member = queue.lightest(loads), loads[member] + 1 < loads[owner] else { continue }
                    row[index] = member
                    loads[member] += 1
                    loads[owner] -= 1
                    queue.changed(member, loads[member])
                    queue.changed(owner, loads[owner])
                    hasMoved = true
                }
                owners[topic] = row
            }
            if !hasMoved { break }
        }
        var result: [[Partition]] = Array(repeating: [], count: spec.members.count)
        for topic in topics {
            for (index, owner) in (owners[topic] ?? []).enumerated() where owner >= 0 {
                result[owner].append(Partition(topic: topic, index: Int32(index)))
            }
        }
        return collect(spec, result)
    }

    /// The subscribers of one topic while its partitions are dealt out, the one with the least first: looking at all of
    /// them for each partition would cost their product. A binary heap; an entry whose load is not the member's any
    /// more is passed over.
    private struct LightestFirst {
        private typealias Entry = (load: Int, member: Int)
        private var heap: [Entry]

        init(_ members: [Int], _ loads: [Int]) {
            heap = members.map { (loads[$0], $0) }
            for index in stride(from: heap.count / 2 - 1, through: 0, by: -1) { sink(index) }
        }

        mutating func lightest(_ loads: [Int]) -> Int? {
            while let first = heap.first {
                if loads[first.member] == first.load { return first.member }
                heap.swapAt(0, heap.count - 1)
                heap.removeLast()
                sink(0)
            }
            return nil
        }

        mutating func changed(_ member: Int, _ load: Int) {
            var index = heap.count
            heap.append((load, member))
            while index > 0, heap[index] < heap[(index - 1) / 2] {
                heap.swapAt(index, (index - 1) / 2)
                index = (index - 1) / 2
            }
        }

        private mutating func sink(_ start: Int) {
            var index = start
            while true {
                var least = index
                for child in [2 * index + 1, 2 * index + 2] where child < heap.count && heap[child] < heap[least] {
                    least = child
                }
                if least == index { return }
                heap.swapAt(index, least)
                index = least
            }
        }
    }

    private static func collect(_ spec: AssignmentSpec, _ lists: [[Partition]]) -> [String: TopicPartitions] {
        var result: [String: TopicPartitions] = [:]
        for (member, list) in zip(spec.members, lists) {
            var assigned: TopicPartitions = [:]
            for partition in list { assigned[partition.topic, default: []].insert(partition.index) }
            result[member.id] = assigned
        }
        return result
    }
}
