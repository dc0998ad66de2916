import MartletLogModel
import MartletReplication

/// The controller as far as one partition is concerned: registration, fencing, election from ISR, then ELR, then the
/// last known leader, and AlterPartition with all its checks (KIP-497, KIP-841, KIP-903, KIP-966).
struct ModelController {
    struct Broker {
        var epoch = BrokerEpoch(0)
        var isFenced = true
    }

    /// One version of the metadata.
    struct Version {
        var assignment: PartitionAssignment
        var brokers: [Broker]
    }

    let replicas: [BrokerID]
    let minInSyncReplicas: Int
    private(set) var brokers: [Broker]
    private(set) var leader: BrokerID?
    private(set) var leaderEpoch = LeaderEpoch.zero
    private(set) var partitionEpoch = PartitionEpoch.zero
    private(set) var inSync: [BrokerID]
    private(set) var eligible: [BrokerID] = []
    private(set) var lastKnownLeader: BrokerID?
    private(set) var history: [Version] = []
    private(set) var electionCount = 0
    private var nextBrokerEpoch: Int64 = 1

    init(replicaCount: Int, minInSyncReplicas: Int) {
        replicas = (0..<Int32(replicaCount)).map { BrokerID($0) }
        self.minInSyncReplicas = minInSyncReplicas
        brokers = replicas.map { _ in Broker() }
        inSync = replicas
        for replica in replicas { _ = register(replica, wasUnclean: false, removesUnclean: false) }
        for replica in replicas { brokers[Int(replica.rawValue)].isFenced = false }
        inSync = replicas
        eligible = []
        lead(replicas[0])
        commit()
    }

    var standings: [ReplicaStanding] {
        brokers.map { ReplicaStanding(brokerEpoch: $0.epoch, canJoin: !$0.isFenced) }
    }

    func isFenced(_ broker: BrokerID) -> Bool { brokers[Int(broker.rawValue)].isFenced }
    private func isLive(_ broker: BrokerID) -> Bool { !isFenced(broker) }

    private mutating func commit() {
        partitionEpoch = PartitionEpoch(partitionEpoch.rawValue + 1)
        history.append(
            Version(
                assignment: PartitionAssignment(
                    leader: leader, leaderEpoch: leaderEpoch, partitionEpoch: partitionEpoch, replicas: replicas,
                    inSyncReplicas: inSync),
                brokers: brokers))
    }

    private mutating func lead(_ broker: BrokerID?) {
        if leader != nil { lastKnownLeader = leader }
        leader = broker
        leaderEpoch = LeaderEpoch(leaderEpoch.rawValue + 1)
        electionCount += 1
    }

    /// The first live one of those that may, after `preferred`.
    private mutating func elect(preferring preferred: BrokerID? = nil) {
        if let preferred, inSync.contains(preferred), isLive(preferred) { return lead(preferred) }
        if let next = inSync.first(where: isLive) { return lead(next) }
        if let next = eligible.first(where: isLive) {
            eligible.removeAll { $0 == next }
            inSync = [next]
            return lead(next)
        }
        if inSync.isEmpty, eligible.isEmpty, let last = lastKnownLeader, leader == nil, isLive(last) {
            inSync = [last]
            return lead(last)
        }
        if leader != nil { lead(nil) }
    }

    /// KIP-966: who leaves a set that falls below the minimum stays eligible.
    private mutating func setInSync(_ members: [BrokerID], unclean: BrokerID? = nil) {
        let candidates = eligible + inSync.filter { !eligible.contains($0) }
        inSync = members
        let isEnough = members.count >= min(minInSyncReplicas, replicas.count)
        eligible = isEnough ? [] : candidates.filter { !members.contains($0) && $0 != unclean }
    }

    /// A session expired.
    mutating func fence(_ broker: BrokerID) {
        guard isLive(broker) else { return }
        brokers[Int(broker.rawValue)].isFenced = true
        if inSync.contains(broker) { setInSync(inSync.filter { $0 != broker }) }
        if leader == broker { elect() }
        commit()
    }

    mutating func unfence(_ broker: BrokerID) {
        guard isFenced(broker) else { return }
        brokers[Int(broker.rawValue)].isFenced = false
        if leader == nil { elect() }
        commit()
    }

    /// A broker process came up, or an old one came back: a new epoch, fenced at first.
    mutating func register(_ broker: BrokerID, wasUnclean: Bool, removesUnclean: Bool) -> BrokerEpoch {
        fence(broker)
        if wasUnclean, removesUnclean {
            setInSync(inSync.filter { $0 != broker }, unclean: broker)
            eligible.removeAll { $0 == broker }
            if leader == nil, !history.isEmpty { elect() }
        }
        brokers[Int(broker.rawValue)].epoch = BrokerEpoch(nextBrokerEpoch)
        nextBrokerEpoch += 1
        commit()
        return brokers[Int(broker.rawValue)].epoch
    }

    /// A planned or preferred election.
    mutating func move(to broker: BrokerID) {
        guard leader != nil, leader != broker, inSync.contains(broker), isLive(broker) else { return }
        lead(broker)
        commit()
    }

    enum Answer {
        case accepted(LeaderEpoch, PartitionEpoch, [BrokerID])
        case refused(ErrorCode)
    }

    mutating func alter(_ proposal: InSyncProposal, from broker: BrokerID, _ brokerEpoch: BrokerEpoch) -> Answer {
        guard brokers[Int(broker.rawValue)].epoch == brokerEpoch else { return .refused(.staleBrokerEpoch) }
        guard leader == broker, proposal.leaderEpoch == leaderEpoch else { return .refused(.fencedLeaderEpoch) }
        guard proposal.partitionEpoch == partitionEpoch else { return .refused(.invalidUpdateVersion) }
        for member in proposal.members {
            let state = brokers[Int(member.broker.rawValue)]
            if state.isFenced { return .refused(.ineligibleReplica) }
            if let epoch = member.brokerEpoch, epoch != state.epoch { return .refused(.ineligibleReplica) }
        }
        setInSync(proposal.members.map(\.broker))
        // Even when nothing changes: no attempt of before may be taken later.
        commit()
        return .accepted(leaderEpoch, partitionEpoch, inSync)
    }
}
