import MartletKafkaProtocol
package import MartletLogModel

/// One committed offset with what the client stored beside it.
package struct CommittedOffset: Sendable, Hashable {
    package var offset: Int64
    /// Epoch of the last consumed record, for truncation checks (KIP-320); `nil` if the client gave none.
    package var leaderEpoch: Int32?
    package var metadata: String
    package var committedAt: Timestamp
    /// Set only in records of clients that chose a retention themselves (before KIP-211).
    package var expiresAt: Timestamp?
    package var topicID: UniversalID

    init(_ value: OffsetCommitValue) {
        offset = value.offset
        leaderEpoch = value.leaderEpoch < 0 ? nil : value.leaderEpoch
        metadata = value.metadata
        committedAt = Timestamp(milliseconds: value.commitTimestamp)
        expiresAt = value.expireTimestamp < 0 ? nil : Timestamp(milliseconds: value.expireTimestamp)
        topicID = value.topicID
    }
}

/// Committed offsets of one shard, by group, topic and partition. Written by replay alone.
struct OffsetStore: ~Copyable {
    private(set) var offsetCount = 0
    private var groups: [String: [String: [Int32: CommittedOffset]]] = [:]
    /// How many groups have offsets of a topic: most topics that are deleted have none, and no scan finds that.
    private var groupCounts: [String: Int] = [:]

    /// Where the offset before went. Offsets are committed group by group, and a log of them is millions. Gone when a
    /// table loses entries.
    private var recent: Recent?

    private struct Recent {
        var group: String
        var topic: String
        var groupIndex: Dictionary<String, [String: [Int32: CommittedOffset]]>.Index
        var topicIndex: Dictionary<String, [Int32: CommittedOffset]>.Index
    }

    mutating func replay(_ key: OffsetCommitKey, _ value: OffsetCommitValue?) {
        guard let value else { return remove(key) }
        let place = place(of: key)
        let previous = groups.values[place.groupIndex].values[place.topicIndex].updateValue(
            CommittedOffset(value), forKey: key.partition)
        if previous == nil { offsetCount += 1 }
    }

    private mutating func place(of key: OffsetCommitKey) -> Recent {
        if let recent, recent.topic == key.topic, recent.group == key.group { return recent }
        if groups[key.group]?[key.topic] == nil {
            groupCounts[key.topic, default: 0] += 1
            groups[key.group, default: [:]][key.topic] = [:]
        }
        guard let groupIndex = groups.index(forKey: key.group),
            let topicIndex = groups.values[groupIndex].index(forKey: key.topic)
        else { preconditionFailure("the tables were just made") }
        let place = Recent(group: key.group, topic: key.topic, groupIndex: groupIndex, topicIndex: topicIndex)
        recent = place
        return place
    }

    private mutating func remove(_ key: OffsetCommitKey) {
        guard groups[key.group]?[key.topic]?.removeValue(forKey: key.partition) != nil else { return }
        offsetCount -= 1
        recent = nil
        // Empty tables would otherwise pile up with every topic and group that ever was.
        if groups[key.group]?[key.topic]?.isEmpty == true {
            groups[key.group]?[key.topic] = nil
            let count = groupCounts[key.topic, default: 1] - 1
            groupCounts[key.topic] = count == 0 ? nil : count
        }
        if groups[key.group]?.isEmpty == true { groups[key.group] = nil }
    }

    func offset(group: String, topic: String, partition: Int32) -> CommittedOffset? {
        groups[group]?[topic]?[partition]
    }

    func hasOffsets(group: String) -> Bool { groups[group] != nil }

    /// Topics for which the group has offsets, in order.
    func topics(group: String) -> [String] { groups[group]?.keys.sorted() ?? [] }

    /// Partitions of a topic for which the group has offsets, in order.
    func partitions(group: String, topic: String) -> [Int32] { groups[group]?[topic]?.keys.sorted() ?? [] }

    /// All topics for which some group has offsets.
    var topics: Set<String> { Set(groupCounts.keys) }

    func hasOffsets(topic: String) -> Bool { groupCounts[topic] != nil }

    func hasOffsets(group: String, topic: String) -> Bool { groups[group]?[topic] != nil }

    /// Number of the group's offsets.
    func count(group: String) -> Int { groups[group]?.values.reduce(0) { $0 + $1.count } ?? 0 }

    /// Groups that have offsets, in order.
    func groupIDs() -> [String] { groups.keys.sorted() }

    /// Keys of offsets of which this is so, by topic and the topic's id; in order. Looks at all of them.
    func keys(where isMeant: (String, UniversalID) -> Bool) -> [OffsetCommitKey] {
        var found: [OffsetCommitKey] = []
        for (group, topics) in groups {
            for (topic, partitions) in topics {
                for (partition, offset) in partitions where isMeant(topic, offset.topicID) {
                    var key = OffsetCommitKey()
                    key.group = group
                    key.topic = topic
                    key.partition = partition
                    found.append(key)
                }
            }
        }
        return found.sorted { ($0.group, $0.topic, $0.partition) < ($1.group, $1.topic, $1.partition) }
    }

    /// Records that remove all offsets of a group, in the order of topic and partition.
    func tombstones(group: String) -> [CoordinatorRecord] {
        topics(group: group).flatMap { topic in tombstones(group: group, topic: topic) }
    }

    func tombstones(group: String, topic: String) -> [CoordinatorRecord] {
        partitions(group: group, topic: topic).map {
            Self.tombstone(group: group, topic: topic, partition: $0)
        }
    }

    static func tombstone(group: String, topic: String, partition: Int32) -> CoordinatorRecord {
        var key = OffsetCommitKey()
        key.group = group
        key.topic = topic
        key.partition = partition
        return .offsetCommit(key, nil)
    }
}
