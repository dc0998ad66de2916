internal import Logging
internal import MartletController
internal import MartletKafkaProtocol
package import MartletLogModel
internal import MartletReplication
internal import MartletStorage
package import NIOCore

/// What a leader with followers keeps beside its core.
struct LeaderState {
    /// DeleteRecords that waits until the replicas have got there.
    struct LowWatermarkWaiter {
        var number: UInt64
        var target: Offset
        var done: (Result<Offset, PartitionUnavailable>) -> Void
    }

    /// Of the leadership whose start was told to those that wait here.
    var epoch: LeaderEpoch?
    var lowWatermarkWaiters: [LowWatermarkWaiter] = []
    var lastWaiterNumber: UInt64 = 0
    /// A planned move that waits for who takes over.
    var handOver: EventLoopPromise<Bool>?
    var handOverTimer: Scheduled<Void>?
}

extension PartitionAssignment {
    init(_ image: PartitionImage) {
        self.init(
            leader: image.leader, leaderEpoch: image.leaderEpoch, partitionEpoch: PartitionEpoch(image.partitionEpoch),
            replicas: image.replicas, inSyncReplicas: image.isr, isRecovering: image.isRecovering)
    }
}

extension MetadataImage {
    /// What a leader must know of a follower's broker.
    func standing(of broker: BrokerID) -> ReplicaStanding {
        guard let image = self.broker(broker) else {
            return ReplicaStanding(brokerEpoch: BrokerEpoch(-1), canJoin: false)
        }
        return ReplicaStanding(brokerEpoch: BrokerEpoch(image.epoch), canJoin: image.isActive)
    }

    func isLive(_ broker: BrokerID) -> Bool { self.broker(broker).map { !$0.isFenced } ?? false }

    /// Where other brokers reach it.
    func peerAddress(of broker: BrokerID) -> BrokerSettings.Address? {
        guard let endpoint = self.broker(broker)?.endpoints.first else { return nil }
        return BrokerSettings.Address(host: endpoint.host, port: Int(endpoint.port))
    }
}

extension Partition {
    /// It has replicas on other brokers too.
    var isReplicated: Bool { registration.replicas.count > 1 }

    package var leaderEpoch: LeaderEpoch? { replica.leaderEpoch }

    var replicaSettings: PartitionReplica.Settings {
        PartitionReplica.Settings(
            durability: durability, minInSyncReplicas: topic.configuration.minInsyncReplicas,
            usesEligibleLeaderReplicas: loop.image.usesEligibleLeaderReplicas, suspended: loop.services.suspended)
    }

    // MARK: Role

    /// Tells the core what the metadata says now, and everybody else what became of it. Nothing may be staged.
    func takeRole() {
        switch phase {
        case .open, .cutting:
            // What was enough before has to be flushed now: a follower asks for nothing before it is.
            if replica.durability == .relaxed, durability == .fsync { requestFlush() }
            replica.settingsChanged(replicaSettings, into: &effects)
            runEffects()
            replica.partitionChanged(PartitionAssignment(registration), now: loop.monotonicTime, into: &effects)
            runEffects()
        case .opening, .failed, .closed:
            break
        }
        roleChanged()
    }

    /// The core's role may be another.
    func roleChanged() {
        if case .open = phase, isReplicated, replica.leaderEpoch != nil { beginEpoch() }
        repairIfPossible()
        joinFetcher()
        guard leading.epoch != replica.leaderEpoch else { return checkLowWatermark() }
        leading.epoch = replica.leaderEpoch
        leadershipEnded(.notLeaderOrFollower)
        wakeAllFetches()
    }

    /// The log is gone, or goes: whoever waits for the replica has an answer after this.
    func resign(_ code: ErrorCode) {
        replica.resigned(into: &effects)
        runEffects()
        leading.epoch = nil
        following.cut = nil
        leadershipEnded(code)
        leaveFetcher()
    }

    private func leadershipEnded(_ code: ErrorCode) {
        let waiters = leading.lowWatermarkWaiters
        leading.lowWatermarkWaiters = []
        for waiter in waiters { waiter.done(.failure(unavailable(code))) }
        // Whoever it was handed over to leads, or nobody does.
        handOverEnded(isReady: true)
    }

    /// Look-ups by followers depend on it, so it comes before their first answer. Where nobody looks it up, the first
    /// record of the epoch notes it.
    func beginEpoch() {
        guard isReplicated, case .open(let log) = phase, let epoch = replica.leaderEpoch, !log.hasStaged else { return }
        log.beginEpoch(epoch)
    }

    /// A broker of the cluster was fenced, began to shut down, or came back.
    func standingChanged(of broker: BrokerID, _ standing: ReplicaStanding) {
        guard broker != replica.local, registration.replicas.contains(broker), isOpen else { return }
        replica.standingChanged(of: broker, standing, into: &effects)
        runEffects()
        checkLowWatermark()
    }

    /// Time passes.
    func tick() {
        if case .failed = phase {
            // A directory that is out of service stays that way, and needs no line in the log each time.
            if case .failed = loop.services.directory.state { return }
            reopenIfDue()
        }
        repairIfPossible()
        guard isOpen, leading.epoch != nil else { return }
        replica.tick(now: loop.monotonicTime, into: &effects)
        runEffects()
        checkLowWatermark()
    }

    // MARK: In-sync set

    func propose(_ number: UInt64) {
        guard let proposal = replica.inSyncProposal, proposal.number == number else { return }
        guard let proposals = loop.inSyncProposals else {
            replica.proposalLost(number, into: &effects)
            return
        }
        let (loop, key, replicaNumber) = (self.loop, self.key, self.replicaNumber)
        proposals.propose(proposal, of: key) { outcome in
            loop.post { loop in
                // Not of a core that has been opened anew since.
                guard let partition = loop.existingPartition(key), partition.replicaNumber == replicaNumber
                else { return }
                partition.proposalSettled(number, outcome)
            }
        }
    }

    private func proposalSettled(_ number: UInt64, _ outcome: InSyncProposalOutcome) {
        switch outcome {
        case .accepted(let leaderEpoch, let partitionEpoch, let inSyncReplicas):
            replica.proposalAccepted(
                number, leaderEpoch: leaderEpoch, partitionEpoch: partitionEpoch, inSyncReplicas: inSyncReplicas,
                into: &effects)
        case .refused(let code):
            replica.proposalRefused(number, code, into: &effects)
        case .lost:
            replica.proposalLost(number, into: &effects)
        }
        runEffects()
    }

    // MARK: Leadership, as requests see it

    /// Leadership checks of requests that only the leader answers. `currentLeaderEpoch` is what the client believes,
    /// -1 if it does not say (KIP-320).
    package func checkLeadership(currentLeaderEpoch: Int32) -> ErrorCode {
        guard let epoch = replica.leaderEpoch else { return .notLeaderOrFollower }
        return compare(currentLeaderEpoch, with: epoch)
    }

    /// The same for what followers answer too (KIP-392).
    func checkEpoch(currentLeaderEpoch: Int32) -> ErrorCode {
        guard isReplicated, replica.leaderEpoch == nil else {
            return checkLeadership(currentLeaderEpoch: currentLeaderEpoch)
        }
        guard replica.visibleEnd != nil, let (_, epoch) = replica.leaderHint else { return .notLeaderOrFollower }
        return compare(currentLeaderEpoch, with: epoch)
    }

    private func compare(_ current: Int32, with epoch: LeaderEpoch) -> ErrorCode {
        if current < 0 || current == epoch.rawValue { return .none }
        return current < epoch.rawValue ? .fencedLeaderEpoch : .unknownLeaderEpoch
    }

    /// Where a consumer in `rack` should read instead, nil for here (KIP-392).
    func preferredReplica(from offset: Offset, rack: String) -> BrokerID? {
        guard isReplicated, replica.leaderEpoch != nil else { return nil }
        let nearby = registration.replicas.filter { id in
            loop.image.broker(id).map { !$0.isFenced && $0.rack == rack } ?? false
        }
        return replica.preferredReadReplica(from: offset, nearby: nearby)
    }

    // MARK: Low watermark

    /// `done` runs when every live replica has a log start at or above `target`, or the time is over.
    func whenLowWatermark(
        reaches target: Offset, timeout: TimeAmount, _ done: @escaping (Result<Offset, PartitionUnavailable>) -> Void
    ) {
        leading.lastWaiterNumber += 1
        let number = leading.lastWaiterNumber
        leading.lowWatermarkWaiters.append(.init(number: number, target: target, done: done))
        checkLowWatermark()
        guard leading.lowWatermarkWaiters.contains(where: { $0.number == number }) else { return }
        loop.eventLoop.assumeIsolated().scheduleTask(in: timeout) {
            guard let index = self.leading.lowWatermarkWaiters.firstIndex(where: { $0.number == number }) else { return }
            let waiter = self.leading.lowWatermarkWaiters.remove(at: index)
            waiter.done(
                .failure(
                    PartitionUnavailable(
                        code: .requestTimedOut, cause: "a replica of \(self.name) has not deleted the records in time")))
        }
    }

    func checkLowWatermark() {
        guard !leading.lowWatermarkWaiters.isEmpty else { return }
        let image = loop.image
        guard let mark = replica.lowWatermark(where: { image.isLive($0) }) else { return }
        let reached = leading.lowWatermarkWaiters.filter { $0.target <= mark }
        guard !reached.isEmpty else { return }
        leading.lowWatermarkWaiters.removeAll { $0.target <= mark }
        for waiter in reached { waiter.done(.success(mark)) }
    }

    // MARK: Planned moves

    /// Prepares a planned move: no more appends from here on, and true once whoever takes over has everything; false
    /// when that took too long, and appends are taken again.
    package func drain(to target: BrokerID?, timeout: TimeAmount) -> EventLoopFuture<Bool> {
        if let known = leading.handOver { return known.futureResult }
        guard isOpen, replica.leaderEpoch != nil else { return loop.eventLoop.makeSucceededFuture(true) }
        writeStaged()
        let promise = loop.eventLoop.makePromise(of: Bool.self)
        leading.handOver = promise
        leading.handOverTimer = loop.eventLoop.assumeIsolated().scheduleTask(in: timeout) {
            self.replica.drainCancelled()
            self.handOverEnded(isReady: false)
        }
        replica.drain(to: target, into: &effects)
        runEffects()
        return promise.futureResult
    }

    func handOverEnded(isReady: Bool) {
        guard let promise = leading.handOver else { return }
        leading.handOver = nil
        leading.handOverTimer?.cancel()
        leading.handOverTimer = nil
        promise.succeed(isReady)
    }
}
