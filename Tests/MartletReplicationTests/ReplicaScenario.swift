import MartletLogModel
import MartletReplication

/// One core and the world around it in few words: brokers are 0 (the core's own), 1 and 2.
struct ReplicaScenario: ~Copyable {
    typealias Effect = PartitionReplica.Effect

    var replica: PartitionReplica
    var effects: [Effect] = []
    var now = Instant(nanoseconds: 0)
    var end: Int64
    var version: Int32 = 0

    init(
        durability: PartitionReplica.Durability = .fsync, end: Int64 = 0, mark: Int64 = 0, minimum: Int = 2,
        isELROn: Bool = true, start: Int64 = 0, suspended: SuspendedRules = SuspendedRules()
    ) {
        self.end = end
        replica = PartitionReplica(
            local: BrokerID(0),
            settings: PartitionReplica.Settings(
                durability: durability, minInSyncReplicas: minimum, replicaLagMilliseconds: 1_000,
                usesEligibleLeaderReplicas: isELROn, suspended: suspended),
            logStartOffset: Offset(start), recoveredEnd: Offset(end), highWatermark: Offset(mark))
    }

    /// What the last event ordered.
    mutating func taken() -> [Effect] {
        let taken = effects
        effects = []
        return taken
    }

    mutating func pass(_ milliseconds: Int64) { now = now.advanced(byMilliseconds: milliseconds) }

    mutating func metadata(
        leader: Int32?, epoch: Int32, inSync: [Int32], replicas: [Int32] = [0, 1, 2], version: Int32? = nil,
        isRecovering: Bool = false
    ) {
        self.version = version ?? self.version + 1
        replica.partitionChanged(
            PartitionAssignment(
                leader: leader.map { BrokerID($0) }, leaderEpoch: LeaderEpoch(epoch),
                partitionEpoch: PartitionEpoch(self.version), replicas: replicas.map { BrokerID($0) },
                inSyncReplicas: inSync.map { BrokerID($0) }, isRecovering: isRecovering),
            now: now, into: &effects)
    }

    mutating func append(_ count: Int64 = 1, waiter: UInt64? = nil) {
        end += count
        replica.appended(upTo: Offset(end), waiter: waiter.map { AppendID(rawValue: $0) }, into: &effects)
    }

    mutating func flush(_ offset: Int64? = nil) { replica.flushed(upTo: Offset(offset ?? end), into: &effects) }

    @discardableResult
    mutating func fetch(
        _ broker: Int32, at offset: Int64, epoch: Int32 = 1, lastEpoch: Int32? = nil, epochEnd: EpochEnd? = nil,
        brokerEpoch: Int64? = nil, registered: Int64 = 10, canJoin: Bool = true, logStart: Int64? = nil
    ) -> FollowerFetchAnswer {
        replica.followerFetched(
            FollowerFetch(
                replica: BrokerID(broker), brokerEpoch: BrokerEpoch(brokerEpoch ?? registered),
                leaderEpoch: LeaderEpoch(epoch), offset: Offset(offset),
                lastFetchedEpoch: lastEpoch.map { LeaderEpoch($0) }, logStartOffset: logStart.map { Offset($0) }),
            standing: ReplicaStanding(brokerEpoch: BrokerEpoch(registered), canJoin: canJoin), epochEnd: epochEnd,
            now: now, into: &effects)
    }

    var mark: Int64 { replica.highWatermark.rawValue }

    var isReadyForHandOver: Bool { replica.isReadyForHandOver }
    var isUnderMinimum: Bool { replica.isUnderMinimumInSync }

    var proposal: InSyncProposal? { replica.inSyncProposal }
    var proposed: [Int32]? { replica.inSyncProposal?.members.map(\.broker.rawValue) }

    /// The controller takes the proposal that is in flight.
    mutating func accept() {
        guard let proposal = replica.inSyncProposal else { return }
        version += 1
        replica.proposalAccepted(
            proposal.number, leaderEpoch: proposal.leaderEpoch, partitionEpoch: PartitionEpoch(version),
            inSyncReplicas: proposal.members.map(\.broker), into: &effects)
    }

    /// The controller answers that all is as it should be, and that the partition epoch is what it was.
    mutating func acceptUnchanged() {
        guard let proposal = replica.inSyncProposal else { return }
        replica.proposalAccepted(
            proposal.number, leaderEpoch: proposal.leaderEpoch, partitionEpoch: proposal.partitionEpoch,
            inSyncReplicas: proposal.members.map(\.broker), into: &effects)
    }

    mutating func refuse(_ error: ErrorCode) {
        guard let proposal = replica.inSyncProposal else { return }
        replica.proposalRefused(proposal.number, error, into: &effects)
    }

    mutating func tick() { replica.tick(now: now, into: &effects) }

    /// The leader's answer to the question that the follower would ask now.
    mutating func answer(_ answer: ReplicaFetchAnswer, lastEpoch: Int32? = nil, own: EpochEnd? = nil) {
        guard let fetch = replica.nextFetch(lastEpoch: lastEpoch.map { LeaderEpoch($0) }) else { return }
        replica.fetchAnswered(fetch, answer, epochEnd: own, into: &effects)
    }

    mutating func records(mark: Int64, count: Int64, logStart: Int64 = 0, lastEpoch: Int32? = nil) {
        answer(.records(highWatermark: Offset(mark), logStartOffset: Offset(logStart)), lastEpoch: lastEpoch)
        if count > 0, effects.contains(.appendFetchedRecords) { append(count) }
    }
}

func epochEnd(_ epoch: Int32, _ offset: Int64) -> EpochEnd {
    EpochEnd(epoch: LeaderEpoch(epoch), endOffset: Offset(offset))
}
