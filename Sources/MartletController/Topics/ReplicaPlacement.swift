import MartletLogModel

/// Which brokers hold a new partition.
///
/// Partitions go round the usable brokers from a drawn start; the followers of partition n follow its leader
/// at a distance that grows each round, so that the load of a failed broker spreads over all others.
enum ReplicaPlacement {
    static func place(
        partitions: Range<Int>, replicationFactor: Int, brokers: [BrokerImage],
        generator: inout some RandomNumberGenerator
    ) throws(Refusal) -> [[BrokerID]] {
        guard replicationFactor > 0 else {
            throw .init(
                .invalidReplicationFactor,
                "Replication factor is \(replicationFactor); it must be positive, or -1 for the default")
        }
        let usable = brokers.filter { !$0.isFenced && !$0.isInControlledShutdown }.map(\.id)
        guard !usable.isEmpty else {
            throw .init(
                .invalidReplicationFactor,
                "No broker is available to hold the partitions; try again when one has registered")
        }
        guard replicationFactor <= min(usable.count, ControllerLimits.replicationFactorLimit) else {
            throw .init(
                .invalidReplicationFactor,
                "Replication factor is \(replicationFactor), but only \(usable.count) broker(s) are available"
            )
        }
        let start = Int(generator.next(upperBound: UInt(usable.count)))
        return partitions.map { partition in
            let leader = (start + partition) % usable.count
            guard usable.count > 1 else { return usable }
            let round = partition / usable.count
            return (0..<replicationFactor).map { replica in
                guard replica > 0 else { return usable[leader] }
                let distance = 1 + (round + replica - 1) % (usable.count - 1)
                return usable[(leader + distance) % usable.count]
            }
        }
    }

    /// A manual assignment of one partition, checked.
    static func checked(
        _ replicas: [Int32], partition: Int, brokers: [BrokerImage], replicationFactor: Int?
    ) throws(Refusal) -> [BrokerID] {
        guard !replicas.isEmpty, replicas.count <= ControllerLimits.replicationFactorLimit else {
            throw .init(
                .invalidReplicaAssignment,
                "The assignment of partition \(partition) names \(replicas.count) replicas; 1 to \(ControllerLimits.replicationFactorLimit) are possible"
            )
        }
        guard Set(replicas).count == replicas.count else {
            throw .init(
                .invalidReplicaAssignment, "The assignment of partition \(partition) names a broker twice")
        }
        if let factor = replicationFactor, factor != replicas.count {
            throw .init(
                .invalidReplicaAssignment,
                "The assignment of partition \(partition) has \(replicas.count) replicas, partitions before it \(factor)"
            )
        }
        for replica in replicas where !brokers.contains(where: { $0.id.rawValue == replica }) {
            throw .init(
                .invalidReplicaAssignment,
                "The assignment of partition \(partition) names broker \(replica), which is not registered")
        }
        return replicas.map { BrokerID($0) }
    }
}
