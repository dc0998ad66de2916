/// Features of the Kafka 4.3 profile and the levels at which a new cluster starts. A level rises only when the
/// code behind it is proven: clients switch behaviour on it (KIP-584, KIP-890).
package enum Features {
    package static let metadataVersion = "metadata.version"
    /// Of the quorum's own protocol; it changes through the quorum.
    package static let quorumVersion = "kraft.version"
    package static let transactionVersion = "transaction.version"
    package static let groupVersion = "group.version"
    package static let shareVersion = "share.version"
    package static let eligibleLeaderReplicas = "eligible.leader.replicas.version"

    /// `metadata.version` of Kafka 4.3 (4.3-IV0); 7 (3.3-IV3) is the oldest that Kafka 4 can read.
    package static let metadataVersionRange: ClosedRange<Int16> = 7...30

    /// Levels this broker can work with. `kraft.version` 1 has the voters in the log, with their disks (KIP-853).
    package static let supported: [FeatureRange] = [
        .init(name: quorumVersion, minimum: 0, maximum: 1),
        .init(
            name: metadataVersion, minimum: metadataVersionRange.lowerBound,
            maximum: metadataVersionRange.upperBound),
        // 2: the epoch rises with every transaction, and brokers add partitions themselves (KIP-890).
        .init(name: transactionVersion, minimum: 0, maximum: 2),
        // 1: groups of the consumer protocol (KIP-848).
        .init(name: groupVersion, minimum: 0, maximum: 1),
        // 1: share groups (KIP-932).
        .init(name: shareVersion, minimum: 0, maximum: 1),
        // 1: replicas that left the in-sync set below its minimum stay eligible (KIP-966).
        .init(name: eligibleLeaderReplicas, minimum: 0, maximum: 1),
    ]

    /// Finalized levels of a new cluster.
    static let atBootstrap: [(name: String, level: Int16)] = [
        (metadataVersion, metadataVersionRange.upperBound), (transactionVersion, 2), (groupVersion, 1),
        (shareVersion, 1), (eligibleLeaderReplicas, 1),
    ]
}
