/// Which partition of an internal topic is responsible for a group or a transactional id. Clients and tools
/// rely on Kafka's rule, so it is the hash that Java gives a text: over its UTF-16 units, with wrap-around.
package enum GroupPartitioner {
    package static func javaHash(_ text: String) -> Int32 {
        var hash: Int32 = 0
        for unit in text.utf16 { hash = hash &* 31 &+ Int32(unit) }
        return hash
    }

    /// The absolute value of the hash, with the one that has none taken as 0, modulo the partitions.
    package static func partition(for id: String, count: Int32) -> Int32 {
        precondition(count > 0, "an internal topic has partitions")
        let hash = javaHash(id)
        return (hash == .min ? 0 : abs(hash)) % count
    }
}
