import MartletLogModel

/// The assignor of share groups: each partition has somebody, each member has something, and both have about equally
/// much (KIP-932). A partition may go to several members. What a member had it keeps as far as that goes.
///
/// Where all subscribe to the same topics they share all of their partitions; else the subscribers of each topic share
/// that topic's.
enum SimpleAssignor {
    static let name = "simple"

    struct Member {
        var id: String
        var topics: Set<UniversalID>
        var target: TopicPartitions
    }

    private struct Place: Hashable, Comparable {
        var topic: UniversalID
        var partition: Int32

        static func < (left: Place, right: Place) -> Bool {
            (left.topic, left.partition) < (right.topic, right.partition)
        }
    }

    /// - Parameters:
    ///   - members: ascending by id.
    ///   - partitions: those that may be assigned.
    static func assign(_ members: [Member], _ partitions: TopicPartitions) -> [String: TopicPartitions] {
        var result = Dictionary(uniqueKeysWithValues: members.map { ($0.id, TopicPartitions()) })
        guard let first = members.first else { return result }
        if members.allSatisfy({ $0.topics == first.topics }) {
            share(places(of: first.topics, partitions), members, &result)
        } else {
            for topic in Set(members.flatMap(\.topics)).sorted() {
                share(places(of: [topic], partitions), members.filter { $0.topics.contains(topic) }, &result)
            }
        }
        return result
    }

    private static func places(of topics: Set<UniversalID>, _ partitions: TopicPartitions) -> [Place] {
        topics.flatMap { topic in (partitions[topic] ?? []).map { Place(topic: topic, partition: $0) } }
            .sorted()
    }

    private static func share(
        _ places: [Place], _ members: [Member], _ result: inout [String: TopicPartitions]
    ) {
        guard !places.isEmpty, !members.isEmpty else { return }
        /// Members that a partition goes to, and partitions that the members get in all.
        let sharing = (members.count + places.count - 1) / places.count
        let total = sharing * places.count
        var counts: [Place: Int] = [:]
        for place in places { counts[place] = 0 }
        var had: [Set<Place>] = []
        // Everybody keeps what it had, up to its share.
        for (index, member) in members.enumerated() {
            let quota = quota(index, of: total, over: members.count)
            var kept: Set<Place> = []
            for topic in member.target.keys.sorted() {
                for partition in (member.target[topic] ?? []).sorted() where kept.count < quota {
                    let place = Place(topic: topic, partition: partition)
                    guard let count = counts[place], count < sharing else { continue }
                    counts[place] = count + 1
                    kept.insert(place)
                }
            }
            had.append(kept)
        }
        // Then those with less get the partitions that fewest have.
        for (index, member) in members.enumerated() {
            let quota = quota(index, of: total, over: members.count)
            var missing = quota - had[index].count
            if missing > 0 {
                let open = places.filter { counts[$0, default: 0] < sharing && !had[index].contains($0) }
                    .sorted { (counts[$0, default: 0], $0) < (counts[$1, default: 0], $1) }
                for place in open where missing > 0 {
                    counts[place, default: 0] += 1
                    had[index].insert(place)
                    missing -= 1
                }
            }
            for place in had[index] {
                result[member.id, default: [:]][place.topic, default: []].insert(place.partition)
            }
        }
        // Quotas may leave a partition without anybody where members keep what others would need.
        for place in places where counts[place] == 0 {
            guard
                let index = members.indices.min(by: { (had[$0].count, $0) < (had[$1].count, $1) })
            else { continue }
            had[index].insert(place)
            result[members[index].id, default: [:]][place.topic, default: []].insert(place.partition)
        }
    }

    /// How many of `total` the member at `index` gets: shares differ by at most one.
    private static func quota(_ index: Int, of total: Int, over count: Int) -> Int {
        func upTo(_ index: Int) -> Int { (total * index + count - 1) / count }
        return upTo(index + 1) - upTo(index)
    }
}
