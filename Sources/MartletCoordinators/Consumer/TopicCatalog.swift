package import MartletLogModel

/// The topics of the cluster, as far as consumer groups must know them: names, ids and numbers of partitions.
/// The shell hands over a new one whenever topics come, grow or go; a copy costs nothing.
package struct TopicCatalog: Sendable {
    package struct Topic: Sendable, Hashable {
        package var id: UniversalID
        package var name: String
        package var partitionCount: Int32

        package init(id: UniversalID, name: String, partitionCount: Int32) {
            self.id = id
            self.name = name
            self.partitionCount = partitionCount
        }
    }

    /// Rises with each change; what was worked out from an older catalog is looked at again.
    package let version: Int64
    /// In ascending order: patterns are matched against them piece by piece.
    package let names: [String]
    private let byName: [String: Topic]
    private let byID: [UniversalID: Topic]

    package init(version: Int64, topics: [Topic]) {
        self.version = version
        names = topics.map(\.name).sorted()
        byName = Dictionary(topics.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        byID = Dictionary(topics.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
    }

    package static let empty = TopicCatalog(version: -1, topics: [])

    func topic(named name: String) -> Topic? { byName[name] }
    func topic(id: UniversalID) -> Topic? { byID[id] }

    /// Equal as long as none of the topics comes, goes, grows or is replaced; 0 if none exists. Only compared,
    /// never sent: any hash that keeps to the order of the names does (FNV-1a, 64 bits).
    func hash(of names: Set<String>) -> Int64 {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        func mix(_ byte: UInt8) {
            hash ^= UInt64(byte)
            hash &*= 0x100_0000_01b3
        }
        func mix(_ word: UInt64) {
            for shift in stride(from: UInt64(0), to: 64, by: 8) {
                mix(UInt8(truncatingIfNeeded: word >> shift))
            }
        }
        var isEmpty = true
        for name in names.sorted() {
            guard let topic = byName[name] else { continue }
            isEmpty = false
            for byte in name.utf8 { mix(byte) }
            mix(topic.id.high)
            mix(topic.id.low)
            mix(UInt64(UInt32(bitPattern: topic.partitionCount)))
        }
        return isEmpty ? 0 : Int64(bitPattern: hash)
    }
}
