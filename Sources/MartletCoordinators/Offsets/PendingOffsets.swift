import MartletKafkaProtocol
import MartletLogModel

/// Offsets that are part of transactions not decided yet, by producer (KIP-98). Written by replay alone.
///
/// Records count in the order of the log: an offset that was appended after a pending one wins, whenever the
/// transaction of the earlier one commits.
struct PendingOffsets: ~Copyable {
    private struct Entry {
        var value: OffsetCommitValue
        /// Place in the order of the log.
        var order: UInt64
    }

    private var producers: [Int64: [OffsetCommitKey: Entry]] = [:]
    private var groups: [String: Set<Int64>] = [:]
    private var nextOrder: UInt64 = 0
    private(set) var offsetCount = 0

    /// An offset of the producer's open transaction.
    mutating func add(_ key: OffsetCommitKey, _ value: OffsetCommitValue, producerID: Int64) {
        nextOrder += 1
        let entry = Entry(value: value, order: nextOrder)
        if producers[producerID, default: [:]].updateValue(entry, forKey: key) == nil { offsetCount += 1 }
        groups[key.group, default: []].insert(producerID)
    }

    /// A committed offset or a tombstone follows in the log: what was pending before it can change nothing any more.
    mutating func supersede(_ key: OffsetCommitKey, before order: UInt64 = .max) {
        guard let candidates = groups[key.group] else { return }
        for producerID in candidates.sorted() {
            guard let entry = producers[producerID]?[key], entry.order < order else { continue }
            producers[producerID]?[key] = nil
            offsetCount -= 1
            drop(producerID, ifWithout: key.group)
        }
    }

    /// The producer's transaction ends; returns its offsets in order.
    mutating func take(producerID: Int64) -> [(key: OffsetCommitKey, value: OffsetCommitValue, order: UInt64)] {
        guard let entries = producers.removeValue(forKey: producerID) else { return [] }
        offsetCount -= entries.count
        for group in Set(entries.keys.map(\.group)) { remove(producerID, from: group) }
        return entries.sorted { $0.value.order < $1.value.order }.map { ($0.key, $0.value.value, $0.value.order) }
    }

    private mutating func drop(_ producerID: Int64, ifWithout group: String) {
        if producers[producerID]?.keys.contains(where: { $0.group == group }) != true {
            remove(producerID, from: group)
        }
        if producers[producerID]?.isEmpty == true { producers[producerID] = nil }
    }

    private mutating func remove(_ producerID: Int64, from group: String) {
        groups[group]?.remove(producerID)
        if groups[group]?.isEmpty == true { groups[group] = nil }
    }

    /// Groups with offsets in the producer's transaction, in order.
    func groups(producerID: Int64) -> [String] { Set((producers[producerID] ?? [:]).keys.map(\.group)).sorted() }

    func hasOffsets(group: String) -> Bool { groups[group] != nil }

    func contains(_ key: OffsetCommitKey) -> Bool {
        guard let candidates = groups[key.group] else { return false }
        return candidates.contains { producers[$0]?[key] != nil }
    }

    /// Keys whose value says so, in order.
    func keys(where isMeant: (OffsetCommitKey, OffsetCommitValue) -> Bool) -> [OffsetCommitKey] {
        var found: Set<OffsetCommitKey> = []
        for entries in producers.values {
            for (key, entry) in entries where isMeant(key, entry.value) { found.insert(key) }
        }
        return found.sorted { ($0.group, $0.topic, $0.partition) < ($1.group, $1.topic, $1.partition) }
    }

    /// Partitions of the group with a pending offset, as `topic` and index.
    func partitions(group: String) -> Set<TopicPartition> {
        var found: Set<TopicPartition> = []
        for producerID in groups[group] ?? [] {
            for key in (producers[producerID] ?? [:]).keys where key.group == group {
                found.insert(TopicPartition(key.topic, key.partition))
            }
        }
        return found
    }

    /// For tests: by producer and key.
    func summary() -> [Int64: [OffsetCommitKey: OffsetCommitValue]] {
        producers.mapValues { $0.mapValues(\.value) }
    }
}
