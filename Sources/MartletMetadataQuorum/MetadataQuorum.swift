import DequeModule
package import MartletLogModel
import NIOCore

/// One node of the metadata quorum: pull-based Raft (KRaft) as a pure core.
///
/// Purpose: elects one leader per epoch, replicates the metadata log by fetches, and says what is committed.
///
/// ```
///             ┌────────────── higher epoch, or the epoch has no leader for us ──────────────┐
///             ▼                                                                             │
///  start → unattached ── election timeout ──► prospective ── majority ──► candidate ── majority ──► leader
///             ▲  ▲                             ▲   │ lost                     │ lost              │ no majority fetches,
///             │  └──────── no leader known ────┼───┤                          │                   │ removed, handing over
///             │                    fetch       │   │ leader known             │                   ▼
///             │                    timeout     │   ▼                          │                resigned
///             │                            follower ◄─ leader of the epoch ───┘                   │
///             └──────────────────────────── next epoch, after an election timeout ────────────────┘
/// ```
/// Only voters stand for election, and those whose removal is not committed; observers are unattached or follow. A node that is the only voter walks to
/// leader in the call that starts it. `halted` is final: the disk failed, or a committed record would be lost.
///
/// Invariants, checked by the simulation of the test target after every step:
/// - at most one leader per epoch; a node's epoch never falls; a vote is given once per epoch;
/// - the high watermark never falls while the node runs, and what is below it is the same on every node;
/// - a leader has everything that is committed;
/// - no message leaves before the epoch and vote it speaks of are on the device (``PersistenceGate``), and no fetch
///   offset or count of the leader's own is beyond what its device has (Vanlightly's Raft with fsync).
///
/// Sources: KIP-595 (the protocol), KIP-630 (snapshots), KIP-853 (changing voters), KIP-996 (pre-vote), KIP-1166 (high
/// watermark in fetches).
///
/// It does not read records other than control records, know connections, or keep time. What it deliberately leaves out:
/// observers that add themselves as voters; linearisable reads from followers.
package struct MetadataQuorum: ~Copyable {
    enum State {
        case unattached(Unattached)
        case prospective(Nomination)
        case candidate(Nomination)
        case leader(Leadership)
        case follower(Following)
        case resigned(Resignation)
        case halted
    }

    /// What one call of ``handle(_:now:jitter:into:)`` is given and gathers.
    struct Turn {
        let now: Instant
        private var randomness: UInt64
        var effects: [QuorumEffect] = []

        init(now: Instant, jitter: UInt64) {
            self.now = now
            randomness = jitter
        }

        func after(_ milliseconds: Int64) -> Instant { now.advanced(byMilliseconds: milliseconds) }

        /// Between once and twice that from now, so that nodes do not stand at the same time.
        mutating func spread(_ milliseconds: Int64) -> Instant {
            randomness = randomness &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            let extra = Int64((randomness >> 33) % UInt64(max(1, milliseconds)))
            return after(milliseconds + extra)
        }
    }

    let configuration: QuorumConfiguration
    var state: State
    var gate: PersistenceGate
    var calls = PeerCalls()
    /// The leader of the current epoch, as far as known; this node itself while it leads.
    var leaderAddress: LeaderAddress?
    /// The log's bounds and epochs.
    package internal(set) var log: QuorumLog
    /// The voters over the length of the log.
    package internal(set) var membership: MembershipHistory
    /// Everything below is committed, as far as this node knows. Exclusive.
    package internal(set) var highWatermark: Offset
    /// A snapshot that is complete and being put in place; the log is replaced by it. Holds in every state.
    var installing: LogPosition?
    private var isFlushing = false
    /// Which of the known voters to ask next for the leader.
    var searchIndex = 0

    var node: ReplicaKey { configuration.node }
    var voters: VoterSet { membership.latest.voters }
    var isVoter: Bool { voters.contains(node) }
    /// Whether this node stands for election. One that is removed stands until the removal is committed: it may be the
    /// only one that has it, and then nobody else can win (Ongaro's dissertation, §4.2.2). It does not count itself.
    var mayStand: Bool { membership.mayContain(node, committed: highWatermark) }
    package var epoch: LeaderEpoch { gate.current.epoch }
    var vote: ReplicaKey? { gate.current.vote }

    /// A node as its disk left it. Whoever led when the node stopped leads no more: what it had not flushed is gone.
    /// Call `handle(.ticked, …)` next: a single voter leads after it.
    package init(configuration: QuorumConfiguration, recovered: RecoveredQuorum, now: Instant, jitter: UInt64)
    {
        self.configuration = configuration
        var turn = Turn(now: now, jitter: jitter)
        var log = QuorumLog(
            start: recovered.logStart, end: recovered.logEnd, epochs: recovered.epochs,
            snapshot: recovered.snapshot)
        // A crash between the snapshot's name and the new log leaves the log behind it.
        if let snapshot = recovered.snapshot, snapshot.offset > log.end { log.reset(to: snapshot) }
        var membership = MembershipHistory(
            base: recovered.snapshotMembership ?? configuration.initialMembership)
        let covered = recovered.snapshot?.offset ?? .zero
        for batch in recovered.controlBatches where batch.offset >= covered && batch.offset < log.end {
            membership.append(batch.records, at: batch.offset)
        }
        var file = recovered.state ?? QuorumStateFile(epoch: .zero)
        // The log of a single voter may know an epoch that the file does not: it starts to write before.
        if log.lastEpoch > file.epoch { file = QuorumStateFile(epoch: log.lastEpoch) }
        let leader = file.leaderID
        file.leaderID = nil
        gate = PersistenceGate(
            current: file,
            isPersisted: file.epoch == recovered.state?.epoch && file.vote == recovered.state?.vote,
            holds: !configuration.suspended.contains(.voteBeforeAnswer))
        highWatermark = recovered.snapshot?.offset ?? log.start
        let isOnlyVoter = membership.latest.voters.isOnly(configuration.node)
        let deadline = isOnlyVoter ? now : turn.spread(configuration.electionTimeoutMilliseconds)
        state = .unattached(Unattached(electionDeadline: deadline, nextSearch: now))
        self.log = log
        self.membership = membership
        guard let leader, leader != configuration.node.id, let address = address(of: leader) else { return }
        leaderAddress = address
        state = .follower(Following(fetchDeadline: turn.after(configuration.fetchTimeoutMilliseconds)))
    }

    // MARK: Input

    /// - Parameter jitter: a fresh random number; timeouts are spread by it.
    package mutating func handle(
        _ event: QuorumEvent, now: Instant, jitter: UInt64, into effects: inout [QuorumEffect]
    ) {
        var turn = Turn(now: now, jitter: jitter)
        calls.expire(now: now)
        if case .halted = state {
            refuse(event, &turn)
        } else {
            take(event, &turn)
            drive(&turn)
        }
        effects += turn.effects
    }

    private mutating func take(_ event: QuorumEvent, _ turn: inout Turn) {
        switch event {
        case .ticked: break
        case .requested(let id, let request): take(request, id, &turn)
        case .answered(let token, let answer):
            guard let call = calls.end(token) else { return }
            take(answer, call, &turn)
        case .callFailed(let token):
            guard let call = calls.end(token) else { return }
            let pause = turn.spread(configuration.retryBackoffMilliseconds)
            calls.pause(call.peer, call.lane, until: pause)
            leadership?.announceAgain(to: call.peer, at: pause)
            if call.lane == .fetch { leaderUnreachable(call.peer, &turn) }
        case .flushed(let end, let generation):
            isFlushing = false
            log.flushed(upTo: end, generation: generation.rawValue)
            advanceHighWatermark(&turn)
        case .persisted(let version): gate.persisted(version, into: &turn.effects)
        case .storageFailed: halt("the disk of the metadata log failed", &turn)
        case .proposed(let id, let recordCount, let bytes):
            propose(
                id,
                LogBatch(baseOffset: log.end, endOffset: log.end + recordCount, epoch: epoch, bytes: bytes),
                &turn)
        case .snapshotTaken(let id): snapshotTaken(id, &turn)
        case .snapshotInstalled(let id, let membership): snapshotInstalled(id, membership, &turn)
        case .snapshotRefused(let id): if installing == id { installing = nil }
        case .probed(let key, let range): probed(key, range, &turn)
        case .resignationRequested: if leadership != nil, !voters.isOnly(node) { resign(&turn) }
        }
    }

    /// A halted node answers, so that nobody waits, and does nothing else.
    private mutating func refuse(_ event: QuorumEvent, _ turn: inout Turn) {
        switch event {
        case .requested(let id, let request):
            turn.effects.append(.respond(id, request.refusal(header(.kafkaStorageError))))
        case .proposed(let id, _, _): turn.effects.append(.refused(id, nil))
        case .ticked, .answered, .callFailed, .flushed, .persisted, .storageFailed, .snapshotTaken,
            .snapshotInstalled,
            .snapshotRefused, .probed, .resignationRequested:
            break
        }
    }

    // MARK: Progress

    /// Steps until nothing changes by itself, then sends what is due and orders what the disk must do.
    private mutating func drive(_ turn: inout Turn) {
        // From unattached to leader there are three steps; more than a few would be a cycle.
        var remaining = 16
        while step(&turn) {
            remaining -= 1
            precondition(remaining > 0, "the metadata quorum steps in circles: \(snapshot())")
        }
        if case .halted = state { return }
        gate.write(into: &turn.effects)
        sendDue(&turn)
        if !isFlushing, !log.isFlushed {
            isFlushing = true
            turn.effects.append(.flush(FlushGeneration(rawValue: log.generation)))
        }
    }

    /// One transition that time or what is known demands; whether there was one.
    private mutating func step(_ turn: inout Turn) -> Bool {
        switch state {
        case .unattached(let phase):
            guard mayStand, installing == nil, phase.electionDeadline <= turn.now else { return false }
            becomeProspective(&turn)
            return true
        case .prospective(let nomination):
            if nomination.isWon {
                becomeCandidate(&turn)
            } else if nomination.isLost || nomination.deadline <= turn.now {
                loseProspects(&turn)
            } else {
                return false
            }
            return true
        case .candidate(let nomination):
            if nomination.isWon {
                becomeLeader(nomination.grantingVoters, &turn)
            } else if nomination.deadline <= turn.now {
                // A lost vote waits for its timeout too: standing again at once would only split the next one.
                becomeProspective(&turn)
            } else {
                return false
            }
            return true
        case .leader(let leadership):
            return stepAsLeader(leadership, &turn)
        case .follower(let following):
            guard following.fetchDeadline <= turn.now, installing == nil else { return false }
            if mayStand {
                becomeProspective(&turn)
            } else {
                become(unattached(&turn), epoch: epoch, vote: vote, leader: nil, &turn)
            }
            return true
        case .resigned(let resignation):
            guard resignation.deadline <= turn.now else { return false }
            // Not in this epoch: this node is known as its leader.
            guard let next = epoch.next else {
                halt("the epochs of the metadata log are used up", &turn)
                return true
            }
            become(unattached(&turn), epoch: next, vote: nil, leader: nil, &turn)
            return true
        case .halted:
            return false
        }
    }

    // MARK: Transitions

    func unattached(_ turn: inout Turn) -> State {
        // A single voter has nobody to wait for.
        let deadline = voters.isOnly(node) ? turn.now : turn.spread(configuration.electionTimeoutMilliseconds)
        return .unattached(Unattached(electionDeadline: deadline, nextSearch: turn.now))
    }

    /// The only writer of state, epoch, vote and leader together.
    mutating func become(
        _ next: State, epoch: LeaderEpoch, vote: ReplicaKey?, leader: LeaderAddress?, _ turn: inout Turn
    ) {
        precondition(epoch >= self.epoch, "the epoch fell from \(self.epoch) to \(epoch)")
        let before = state
        let epochBefore = self.epoch
        let isNews = epoch != self.epoch || leader?.id != leaderAddress?.id
        state = next
        leaderAddress = leader
        calls.reset()
        gate.change(to: QuorumStateFile(epoch: epoch, vote: vote, leaderID: leader?.id))
        let refusal = header(.notLeaderOrFollower)
        gate.dropStale {
            .respond($0, .fetch(LogAnswer(header: refusal, highWatermark: .zero, logStart: .zero)))
        }
        leave(before, epochBefore, &turn)
        if isNews { turn.effects.append(.leaderChanged(leader, epoch)) }
    }

    /// Whoever waited for the former state is told.
    private mutating func leave(_ before: State, _ epoch: LeaderEpoch, _ turn: inout Turn) {
        switch before {
        case .unattached, .prospective, .candidate, .resigned, .halted: break
        case .follower(let following):
            if let download = following.download { turn.effects.append(.discardSnapshot(download.id)) }
        case .leader(let leadership):
            let refusal = header(.notLeaderOrFollower)
            for parked in leadership.parked { post(.respond(parked.request, .fetch(answer(refusal))), &turn) }
            for change in leadership.changes { post(.respond(change.request, .voterChange(refusal)), &turn) }
            for proposal in leadership.proposals { turn.effects.append(.abandoned(proposal.id)) }
            turn.effects.append(.leadershipLost(epoch))
        }
    }

    private mutating func becomeProspective(_ turn: inout Turn) {
        let nomination = Nomination(
            voters: voters, own: node.id, deadline: turn.spread(configuration.electionTimeoutMilliseconds))
        become(.prospective(nomination), epoch: epoch, vote: vote, leader: leaderAddress, &turn)
    }

    private mutating func loseProspects(_ turn: inout Turn) {
        if let leader = leaderAddress, leader.id != node.id {
            let following = Following(fetchDeadline: turn.spread(configuration.fetchTimeoutMilliseconds))
            become(.follower(following), epoch: epoch, vote: vote, leader: leader, &turn)
        } else {
            become(unattached(&turn), epoch: epoch, vote: vote, leader: nil, &turn)
        }
    }

    private mutating func becomeCandidate(_ turn: inout Turn) {
        guard let next = epoch.next else {
            halt("the epochs of the metadata log are used up", &turn)
            return
        }
        let nomination = Nomination(
            voters: voters, own: node.id, deadline: turn.spread(configuration.electionTimeoutMilliseconds))
        become(.candidate(nomination), epoch: next, vote: node, leader: nil, &turn)
    }

    /// Follows `leader` in `epoch`; whether this node may.
    @discardableResult
    mutating func follow(_ leader: LeaderAddress, epoch: LeaderEpoch, _ turn: inout Turn) -> Bool {
        guard leader.id != node.id, epoch >= self.epoch else { return false }
        if epoch == self.epoch {
            switch state {
            case .unattached, .prospective, .candidate:
                // One epoch has one leader; a second one is a peer's mistake.
                if let known = leaderAddress, known.id != leader.id { return false }
            case .follower:
                guard leaderAddress?.id == leader.id else { return false }
                if !leader.endpoints.isEmpty { leaderAddress = leader }
                return true
            case .leader, .resigned, .halted: return false
            }
        }
        let following = Following(fetchDeadline: turn.spread(configuration.fetchTimeoutMilliseconds))
        become(
            .follower(following), epoch: epoch, vote: epoch == self.epoch ? vote : nil, leader: leader, &turn)
        return true
    }

    mutating func halt(_ cause: String, _ turn: inout Turn) {
        become(.halted, epoch: epoch, vote: vote, leader: nil, &turn)
        turn.effects.append(.halt(cause))
    }

    // MARK: Parts

    /// Sends once what it speaks of is on the device.
    mutating func post(_ effect: QuorumEffect, _ turn: inout Turn) { gate.send(effect, into: &turn.effects) }

    func header(_ error: ErrorCode) -> AnswerHeader {
        AnswerHeader(error: error, epoch: epoch, leader: leaderAddress)
    }

    func answer(
        _ header: AnswerHeader, diverging: LogPosition? = nil, snapshot: LogPosition? = nil
    ) -> LogAnswer {
        LogAnswer(
            header: header, highWatermark: highWatermark, logStart: log.start, diverging: diverging,
            snapshot: snapshot)
    }

    /// Where a node listens, from the voters in force or those of the configuration.
    func address(of id: BrokerID) -> LeaderAddress? {
        if let leader = leaderAddress, leader.id == id, !leader.endpoints.isEmpty { return leader }
        guard let voter = voters[id] ?? configuration.bootstrapVoters[id] else { return nil }
        return LeaderAddress(id: id, endpoints: voter.endpoints)
    }

    mutating func membershipChanged(from before: QuorumMembership, _ turn: inout Turn) {
        if membership.latest != before { turn.effects.append(.membershipChanged(membership.latest)) }
    }

    /// The payload of the leader's state, for changes in place.
    var leadership: Leadership? {
        get {
            guard case .leader(let leadership) = state else { return nil }
            return leadership
        }
        set {
            guard case .leader = state, let newValue else { return }
            state = .leader(newValue)
        }
    }

    /// The payload of the follower's state, for changes in place.
    var following: Following? {
        get {
            guard case .follower(let following) = state else { return nil }
            return following
        }
        set {
            guard case .follower = state, let newValue else { return }
            state = .follower(newValue)
        }
    }
}

extension LeaderEpoch {
    /// `nil` at the end of the range: an epoch may come from outside.
    var next: LeaderEpoch? { rawValue < Int32.max ? LeaderEpoch(rawValue + 1) : nil }
}

extension QuorumRequest {
    /// The answer that refuses this request.
    func refusal(_ header: AnswerHeader) -> QuorumAnswer {
        switch self {
        case .vote: .vote(header, isGranted: false)
        case .beginEpoch: .beginEpoch(header)
        case .endEpoch: .endEpoch(header)
        case .fetch: .fetch(LogAnswer(header: header, highWatermark: .zero, logStart: .zero))
        case .fetchSnapshot(let fetch):
            .fetchSnapshot(SnapshotAnswer(header: header, id: fetch.id, size: 0, position: 0, bytes: .init()))
        case .addVoter, .removeVoter, .updateVoter: .voterChange(header)
        }
    }
}
