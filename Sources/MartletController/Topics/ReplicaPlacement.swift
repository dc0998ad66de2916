import MartletLogModel

/// Which brokers hold a new partition, as Kafka's striped placement (KIP-36, KIP-631) has it.
///
/// Racks take turns, and within a rack its brokers do. Each partition begins one rack further on than the partition
/// before, and each time round the racks, every rack begins one broker further on: so each broker leads once before one
/// leads twice, which Kafka's own step, a broker with every partition, misses where racks and their sizes have a common
/// divisor. When every live broker has led once, the order is shuffled, so that the same sets do not repeat and the
/// load of a failed broker falls on all others. Followers may be put on fenced brokers if the live ones do not suffice; the first replica never is.
struct ReplicaPlacement {
    /// Brokers that take turns; a round hands out each at most once.
    private struct Stripe {
        var brokers: [BrokerID] = []
        private var start = 0
        private var taken = 0
        private var round = 0

        mutating func begin(_ generator: inout some RandomNumberGenerator) {
            guard !brokers.isEmpty else { return }
            start = Int(generator.next(upperBound: UInt(brokers.count)))
        }

        /// The next one for the partition `round`, in the `turn`th time round the racks.
        mutating func next(in round: Int, _ turn: Int) -> BrokerID? {
            if self.round != round {
                self.round = round
                taken = 0
            }
            guard taken < brokers.count else { return nil }
            taken += 1
            return brokers[(start + turn + taken - 1) % brokers.count]
        }
    }

    private struct Rack {
        var name: String?
        var live = Stripe()
        var fenced = Stripe()
    }

    private var racks: [Rack] = []
    private let brokerCount: Int
    private let liveCount: Int
    private var firstRack = 0
    private var round = 0

    /// `brokers` in ascending order of id.
    private init(_ brokers: [BrokerImage], _ generator: inout some RandomNumberGenerator) {
        let usable = brokers.filter { !$0.isInControlledShutdown }
        brokerCount = usable.count
        liveCount = usable.count { !$0.isFenced }
        var positions: [String?: Int] = [:]
        for broker in usable {
            let position = positions[broker.rack] ?? racks.count
            if position == racks.count {
                positions[broker.rack] = position
                racks.append(Rack(name: broker.rack))
            }
            if broker.isFenced {
                racks[position].fenced.brokers.append(broker.id)
            } else {
                racks[position].live.brokers.append(broker.id)
            }
        }
        racks.sort { left, right in
            guard let leftName = left.name else { return right.name != nil }
            guard let rightName = right.name else { return false }
            return leftName < rightName
        }
        for position in racks.indices {
            racks[position].live.begin(&generator)
            racks[position].fenced.begin(&generator)
        }
        if !racks.isEmpty { firstRack = Int(generator.next(upperBound: UInt(racks.count))) }
    }

    static func place(
        partitions: Range<Int>, replicationFactor: Int, brokers: [BrokerImage],
        generator: inout some RandomNumberGenerator
    ) throws(Refusal) -> [[BrokerID]] {
        guard replicationFactor > 0 else {
            throw .init(
                .invalidReplicationFactor,
                "Replication factor is \(replicationFactor); it must be positive, or -1 for the default")
        }
        var placement = ReplicaPlacement(brokers, &generator)
        guard placement.liveCount > 0 else {
            throw .init(
                .invalidReplicationFactor,
                "No broker is available to hold the partitions; try again when one has registered")
        }
        guard replicationFactor <= min(placement.brokerCount, ControllerLimits.replicationFactorLimit) else {
            throw .init(
                .invalidReplicationFactor,
                "Replication factor is \(replicationFactor), but only \(placement.brokerCount) broker(s) are available"
            )
        }
        var placed: [[BrokerID]] = []
        placed.reserveCapacity(partitions.count)
        for _ in partitions { placed.append(placement.next(replicationFactor, &generator)) }
        return placed
    }

    private mutating func next(_ count: Int, _ generator: inout some RandomNumberGenerator) -> [BrokerID] {
        if round > 0, round % liveCount == 0, liveCount > 1 {
            racks.shuffle(using: &generator)
            for position in racks.indices {
                racks[position].live.brokers.shuffle(using: &generator)
                racks[position].fenced.brokers.shuffle(using: &generator)
            }
        }
        let turn = round / racks.count
        var chosen: [BrokerID] = []
        chosen.reserveCapacity(count)
        var leaderRack: Int? = firstRack % racks.count
        while chosen.isEmpty {
            let position = leaderRack ?? 0
            if let broker = racks[position].live.next(in: round, turn) {
                chosen.append(broker)
            } else {
                leaderRack = (position + 1) % racks.count
            }
        }
        var position = firstRack % racks.count
        while chosen.count < count {
            if position == leaderRack {
                // The first time round the leader's rack has had its turn.
                leaderRack = nil
            } else if let broker = racks[position].live.next(in: round, turn)
                ?? racks[position].fenced.next(in: round, turn)
            {
                chosen.append(broker)
            }
            position = (position + 1) % racks.count
        }
        round += 1
        firstRack = (firstRack + 1) % racks.count
        return chosen
    }

    /// A manual assignment of one partition, checked.
    static func checked(
        _ replicas: [Int32], partition: Int, image: MetadataImage, replicationFactor: Int?
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
        for replica in replicas where image.broker(BrokerID(replica)) == nil {
            throw .init(
                .invalidReplicaAssignment,
                "The assignment of partition \(partition) names broker \(replica), which is not registered")
        }
        return replicas.map { BrokerID($0) }
    }

    /// As ``checked(_:partition:image:replicationFactor:)``; a new partition also needs somebody to lead it.
    static func checkedForNew(
        _ replicas: [Int32], partition: Int, image: MetadataImage, replicationFactor: Int?
    ) throws(Refusal) -> [BrokerID] {
        let checked = try checked(
            replicas, partition: partition, image: image, replicationFactor: replicationFactor)
        guard checked.contains(where: { image.broker($0)?.isActive == true }) else {
            throw .init(
                .invalidReplicaAssignment,
                "All brokers in the assignment of partition \(partition) are fenced or shutting down")
        }
        return checked
    }
}
