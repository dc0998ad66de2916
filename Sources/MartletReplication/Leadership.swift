internal import MartletLogModel

/// A leader's view of the others: how far each has come, who is in sync, and what follows for the high watermark.
///
/// It knows nothing of the leader's own log but its end; ``PartitionReplica`` takes the minimum of both sides.
struct Leadership: ~Copyable {
    let local: BrokerID
    let epoch: LeaderEpoch
    /// The log end when the epoch began: every record that an earlier leader may have committed lies before it.
    let start: Offset
    private(set) var inSync: InSyncSet
    private(set) var followers: [FollowerProgress]
    var handOver: HandOver?
    /// The controller shall hear that an uncleanly elected leader has taken over (KIP-704).
    private var mustSettle: Bool

    init(_ assignment: PartitionAssignment, local: BrokerID, start: Offset, now: Instant) {
        self.local = local
        self.epoch = assignment.leaderEpoch
        self.start = start
        self.inSync = InSyncSet(committed: assignment.inSyncReplicas, partitionEpoch: assignment.partitionEpoch)
        self.followers = []
        self.mustSettle = assignment.isRecovering
        placeFollowers(assignment.replicas, now: now)
    }

    /// The only replica.
    init(alone local: BrokerID, epoch: LeaderEpoch, start: Offset) {
        self.local = local
        self.epoch = epoch
        self.start = start
        self.inSync = InSyncSet(committed: [local], partitionEpoch: .zero)
        self.followers = []
        self.mustSettle = false
    }

    // MARK: High watermark

    /// Where the others hold the high watermark back; they alone, the leader's own log is not part of it.
    func ceiling(_ settings: PartitionReplica.Settings) -> Offset {
        // KIP-966: who leaves a set below the minimum stays eligible, so it must not miss anything committed.
        if settings.usesEligibleLeaderReplicas, isUnderMinimum(settings), !settings.suspended.contains(.markAtMinimum) {
            return .zero
        }
        var ceiling = Offset(Int64.max)
        for follower in followers where isAwaited(follower, settings) {
            guard let end = follower.acknowledgedEnd else { return .zero }
            if end < ceiling { ceiling = end }
        }
        return ceiling
    }

    private func isAwaited(_ follower: FollowerProgress, _ settings: PartitionReplica.Settings) -> Bool {
        if settings.suspended.contains(.maximalInSyncSet) { return inSync.contains(follower.broker) }
        return inSync.mayContain(follower.broker) || follower.isJoining
    }

    func isUnderMinimum(_ settings: PartitionReplica.Settings) -> Bool {
        inSync.committed.count < min(settings.minInSyncReplicas, followers.count + 1)
    }

    // MARK: Metadata

    /// Newer metadata of the same leader epoch.
    mutating func changed(
        _ assignment: PartitionAssignment, now: Instant, _ settings: PartitionReplica.Settings
    ) {
        placeFollowers(assignment.replicas, now: now)
        guard adopt(assignment.inSyncReplicas, partitionEpoch: assignment.partitionEpoch) else { return }
        mustSettle = assignment.isRecovering && !settings.suspended.contains(.recoveryUntilHeard)
    }

    /// Followers keep their progress; new ones begin without.
    private mutating func placeFollowers(_ replicas: [BrokerID], now: Instant) {
        let known = followers
        followers = replicas.filter { $0 != local }.map { broker in
            known.first { $0.broker == broker }
                ?? FollowerProgress(broker: broker, caughtUpAt: inSync.contains(broker) ? now : nil)
        }
    }

    /// The controller took a proposal; each says that this leader has taken over. An answer without a new partition
    /// epoch is late, or of a controller that may still take an earlier attempt: it settles nothing.
    mutating func accepted(
        _ number: UInt64, _ members: [BrokerID], partitionEpoch: PartitionEpoch,
        _ settings: PartitionReplica.Settings
    ) {
        if adopt(members, partitionEpoch: partitionEpoch) {
            mustSettle = false
        } else if settings.suspended.contains(.settlementByEpoch), inSync.inFlight?.number == number {
            inSync = InSyncSet(committed: inSync.committed, partitionEpoch: inSync.partitionEpoch)
        } else {
            inSync.lost(number)
        }
    }

    /// The controller's decision. Returns whether it is news.
    private mutating func adopt(_ members: [BrokerID], partitionEpoch: PartitionEpoch) -> Bool {
        let before = inSync.committed
        guard inSync.adopt(members, partitionEpoch: partitionEpoch) else { return false }
        for index in followers.indices {
            // Who was put out has to show again that it keeps up; who is in needs no favour.
            let broker = followers[index].broker
            if before.contains(broker) || inSync.contains(broker) { followers[index].isJoining = false }
        }
        return true
    }

    /// What the metadata says of a follower's broker has changed.
    mutating func standingChanged(of broker: BrokerID, _ standing: ReplicaStanding) {
        guard let index = followers.firstIndex(where: { $0.broker == broker }) else { return }
        if !standing.canJoin { followers[index].isJoining = false }
    }

    // MARK: Followers

    func follower(_ broker: BrokerID) -> FollowerProgress? { followers.first { $0.broker == broker } }

    /// Of the replicas in `nearby` that are in sync and have `offset`, the one that has most.
    func nearestReplica(from offset: Offset, nearby: [BrokerID]) -> BrokerID? {
        var best: (broker: BrokerID, end: Offset)?
        for follower in followers where nearby.contains(follower.broker) && inSync.contains(follower.broker) {
            guard let end = follower.acknowledgedEnd, end >= offset else { continue }
            if let start = follower.logStartOffset, start > offset { continue }
            if best.map({ end > $0.end }) ?? true { best = (follower.broker, end) }
        }
        return best?.broker
    }

    /// Notes a follower's fetch; whether the high watermark may move for it is for the caller to see.
    mutating func fetched(
        _ fetch: FollowerFetch, standing: ReplicaStanding, leaderEnd: Offset, highWatermark: Offset, now: Instant,
        _ settings: PartitionReplica.Settings, proposalCount: inout UInt64
    ) {
        guard let index = followers.firstIndex(where: { $0.broker == fetch.replica }) else { return }
        followers[index].fetched(fetch, leaderEnd: leaderEnd, now: now)
        guard !inSync.contains(fetch.replica), mayJoin(fetch, standing, settings) else {
            followers[index].isJoining = false
            return
        }
        followers[index].isJoining = followers[index].isCaughtUp(
            leaderEnd: leaderEnd, now: now, lagLimitMilliseconds: settings.replicaLagMilliseconds)
        guard inSync.isFree,
            fetch.offset >= highWatermark || settings.suspended.contains(.expansionAtHighWatermark),
            fetch.offset >= start || settings.suspended.contains(.expansionAtEpochStart),
            // The controller may hand the leadership to whoever is in sync by then.
            handOver == nil || fetch.offset >= leaderEnd || settings.suspended.contains(.expansionAtLogEnd)
        else { return }
        let brokerEpoch =
            settings.suspended.contains(.brokerEpochOfFetch) ? standing.brokerEpoch : fetch.brokerEpoch
        propose(inSync.committed, adding: (fetch.replica, brokerEpoch), count: &proposalCount)
    }

    /// KIP-841: neither fenced nor shutting down. KIP-903: the very process that is registered.
    private func mayJoin(
        _ fetch: FollowerFetch, _ standing: ReplicaStanding, _ settings: PartitionReplica.Settings
    ) -> Bool {
        guard standing.canJoin, !settings.suspended.contains(.brokerEpochOfFetch) else { return standing.canJoin }
        return fetch.brokerEpoch == nil || fetch.brokerEpoch == standing.brokerEpoch
    }

    /// Time passes: who lags for too long is proposed to leave, a proposal of unknown outcome is settled by another.
    mutating func tick(
        leaderEnd: Offset, now: Instant, _ settings: PartitionReplica.Settings, proposalCount: inout UInt64
    ) {
        var lagging: [BrokerID] = []
        for index in followers.indices
        where !followers[index].isCaughtUp(
            leaderEnd: leaderEnd, now: now, lagLimitMilliseconds: settings.replicaLagMilliseconds)
        {
            followers[index].isJoining = false
            if inSync.contains(followers[index].broker) { lagging.append(followers[index].broker) }
        }
        guard inSync.isFree, !lagging.isEmpty || mustSettle || inSync.isDoubtful else { return }
        propose(inSync.committed.filter { !lagging.contains($0) }, adding: nil, count: &proposalCount)
    }

    private mutating func propose(
        _ members: [BrokerID], adding joiner: (BrokerID, BrokerEpoch?)?, count: inout UInt64
    ) {
        count += 1
        var proposed = members.map { member in
            InSyncProposal.Member(broker: member, brokerEpoch: follower(member)?.brokerEpoch)
        }
        if let joiner { proposed.append(InSyncProposal.Member(broker: joiner.0, brokerEpoch: joiner.1)) }
        inSync.propose(
            InSyncProposal(
                number: count, leaderEpoch: epoch, partitionEpoch: inSync.partitionEpoch, members: proposed))
    }

    mutating func refused(_ number: UInt64) { inSync.refused(number) }
    mutating func lost(_ number: UInt64) { inSync.lost(number) }

    // MARK: Hand-over

    mutating func handOverBecomesReady(logEnd: Offset, _ settings: PartitionReplica.Settings) -> Bool {
        handOver?.becomesReady(
            logEnd: logEnd, inSync: inSync, followers: followers, suspended: settings.suspended) ?? false
    }

    func isReadyForHandOver(logEnd: Offset, _ settings: PartitionReplica.Settings) -> Bool {
        handOver?.isReady(
            logEnd: logEnd, inSync: inSync, followers: followers, suspended: settings.suspended) ?? false
    }
}
