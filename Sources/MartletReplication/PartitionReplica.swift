package import MartletLogModel
internal import DequeModule

/// Names one waiting produce request to the core. The shell keeps the connection and promise behind it.
@frozen
package struct AppendID: Hashable, Sendable {
    package var rawValue: UInt64

    @inlinable
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// The replication state of one partition on one broker.
///
/// Purpose: says how far consumers may read (the high watermark), which appends are acknowledged, what a follower
/// asks for and where it cuts its log, and whom the leader counts as in sync.
///
/// Legal transitions, each by metadata with a higher partition epoch; older metadata changes nothing:
/// ```
///            partitionChanged                    partitionChanged
/// offline <--------------------> follower <--------------------> leader <----> offline
///                                   | fetchAnswered(diverging, outOfRange)
///                                   v
///                                cutting --truncated, restarted--> what the newest metadata says
/// ```
/// While a cut is under way the log belongs to the disk: a change of role waits for its end.
///
/// The high watermark has one rule in every role: it rises to the smaller of what this replica's log holds safely
/// and what the others allow (the *ceiling*: a leader's maximal in-sync set, a follower's leader).
///
/// Invariants:
/// - I3: the high watermark never falls within one leadership and never passes the log end. It falls at a follower
///   alone, by a cut that is reported first.
/// - I6: an append is acknowledged only when the high watermark has passed its last record. In the `fsync` mode no
///   replica counts more of its own log than is flushed (architecture page, promise 1).
/// - I10: a leader's mark waits for everybody that may be elected cleanly (``InSyncSet``).
/// - Appends are acknowledged in the order in which they were made.
///
/// Sources: KIP-101, KIP-279, KIP-320 (epochs), KIP-497 (AlterPartition), KIP-841 and KIP-903 (who may join),
/// KIP-966 (what the high watermark may count), KIP-392 (read replicas).
/// It does not check epochs of producers, store records, keep the history of epochs (the log does, its answers come
/// as arguments), or keep time: the shell expires appends and passes the clock.
package struct PartitionReplica: ~Copyable {
    /// What lets the high watermark move.
    package enum Durability: Hashable, Sendable {
        /// Flushed to the device. The default.
        case fsync
        /// Written to the operating system's page cache, as Kafka does.
        case relaxed
    }

    package struct Settings: Hashable, Sendable {
        package var durability: Durability
        /// `min.insync.replicas`; more than there are replicas means all of them. The controller does not count what a
        /// reassignment is still adding, and leader and controller must agree, so a cluster's shell passes what
        /// `PartitionImage.effectiveMinInsync(configured:)` makes of the configured value, and passes it again with
        /// each change of the partition. A higher value is safe, and refuses appends that could be taken.
        package var minInSyncReplicas: Int
        /// `replica.lag.time.max.ms`.
        package var replicaLagMilliseconds: Int64
        /// The feature `eligible.leader.replicas.version` (KIP-966).
        package var usesEligibleLeaderReplicas: Bool
        package var suspended: SuspendedRules

        package init(
            durability: Durability, minInSyncReplicas: Int = 1, replicaLagMilliseconds: Int64 = 30_000,
            usesEligibleLeaderReplicas: Bool = true, suspended: SuspendedRules = SuspendedRules()
        ) {
            self.durability = durability
            self.minInSyncReplicas = minInSyncReplicas
            self.replicaLagMilliseconds = replicaLagMilliseconds
            self.usesEligibleLeaderReplicas = usesEligibleLeaderReplicas
            self.suspended = suspended
        }
    }

    /// Orders to the shell, to be executed in order. Plain bits: they are copied for every append.
    package enum Effect: Hashable, Sendable {
        /// Consumers may read up to here (exclusive); wake those that wait.
        case advanceHighWatermark(Offset)
        /// Answer this `acks=all` append with success.
        case acknowledge(AppendID)
        /// Answer this append with an error; its records are in the log and may still commit.
        case refuse(AppendID, ErrorCode)
        /// Answer this append with NOT_LEADER_OR_FOLLOWER: the leadership ended before it committed.
        case abandon(AppendID)
        /// Note in the log that the leader epoch of this replica begins here.
        case startEpoch(at: Offset)
        /// Something depends on what is written and not flushed yet.
        case flushLog
        /// Send ``PartitionReplica/inSyncProposal`` of this number to the controller.
        case proposeInSyncReplicas(number: UInt64)
        /// Write the records of the answer that is being handled, then report ``PartitionReplica/appended(upTo:waiter:into:)``.
        case appendFetchedRecords
        /// Records that were committed once are about to be cut from here on: log it as an error, keep a copy.
        case quarantine(from: Offset)
        /// Remove every record and every epoch that starts at or behind this offset, durably, then report
        /// ``PartitionReplica/truncated(to:now:into:)``.
        case truncate(to: Offset)
        /// Remove everything and begin an empty log there, durably, then report
        /// ``PartitionReplica/restarted(at:now:into:)``.
        case restartLog(at: Offset)
        /// The leader's log starts there: drop what is before.
        case raiseLogStart(to: Offset)
        /// Whoever takes over has everything; ask the controller for the move. It may cease to be so, and is said
        /// again when it holds again: ``PartitionReplica/isReadyForHandOver`` tells before the order goes out.
        case readyForHandOver(LeaderEpoch)
    }

    /// A copyable picture of the state for tests, traces and crash reports.
    package struct Snapshot: Hashable, Sendable {
        package var leaderEpoch: LeaderEpoch?
        package var followedEpoch: LeaderEpoch?
        package var partitionEpoch: PartitionEpoch?
        package var logEndOffset: Offset
        package var flushedEndOffset: Offset
        package var highWatermark: Offset
        package var ceiling: Offset
        package var waitingAppendCount: Int
        package var inSyncReplicas: [BrokerID]
        package var maximalInSyncReplicas: [BrokerID]
        package var isCutting: Bool
    }

    private struct Waiting {
        /// Exclusive end of the append: acknowledged once the high watermark is at or above it.
        var endOffset: Offset
        var id: AppendID
    }

    private enum Role: ~Copyable {
        case offline
        case leader(Leadership)
        case follower(Following)

        /// The role to work on; the caller puts it back. Nothing is copied this way.
        mutating func taken() -> Role {
            let role = consume self
            self = .offline
            return role
        }
    }

    package let local: BrokerID
    private var role: Role
    /// The newest metadata that was applied; nil for a broker without a cluster.
    private var assignment: PartitionAssignment?
    /// Newest metadata that waits for the end of a cut.
    private var deferred: PartitionAssignment?
    private var isCutting = false
    private var logStartOffset: Offset
    private var logEndOffset: Offset
    private var flushedEndOffset: Offset
    /// What the other replicas allow the high watermark to be; exclusive.
    private var ceiling: Offset
    /// The in-sync set is below the minimum.
    private var isUnderMinimum = false
    private var waiting: Deque<Waiting>
    private var proposalCount: UInt64 = 0
    /// Answers that this replica has taken as a follower.
    private var answerCount: UInt64 = 0
    private var settings: Settings

    /// Exclusive end of what is known to be committed. What consumers may see of it: ``visibleEnd``.
    package private(set) var highWatermark: Offset

    /// A replica that was opened from disk and leads nothing yet. Everything that recovery left in the log
    /// is flushed, see the storage engine.
    ///
    /// - Parameter highWatermark: as the last run noted it.
    package init(
        local: BrokerID, settings: Settings, logStartOffset: Offset, recoveredEnd: Offset, highWatermark: Offset
    ) {
        self.local = local
        self.role = .offline
        self.settings = settings
        self.logStartOffset = logStartOffset
        self.logEndOffset = recoveredEnd
        self.flushedEndOffset = recoveredEnd
        self.highWatermark = max(logStartOffset, min(highWatermark, recoveredEnd))
        self.ceiling = .zero
        self.waiting = []
    }

    /// The only replica of a broker without a cluster: all it has is committed.
    package init(durability: Durability, recoveredEnd: Offset) {
        self.init(
            local: BrokerID(0), settings: Settings(durability: durability), logStartOffset: .zero,
            recoveredEnd: recoveredEnd, highWatermark: recoveredEnd)
    }

    // MARK: Metadata

    /// How the high watermark may move; changing it takes effect with the next event.
    package var durability: Durability {
        get { settings.durability }
        set { settings.durability = newValue }
    }

    package mutating func settingsChanged(_ settings: Settings, into effects: inout [Effect]) {
        self.settings = settings
        othersMoved(into: &effects)
    }

    /// The controller made this replica the leader, and there are no others.
    package mutating func becameLeader(epoch: LeaderEpoch) {
        if let current = leaderEpoch { precondition(epoch >= current, "leader epoch fell from \(current) to \(epoch)") }
        role = .leader(Leadership(alone: local, epoch: epoch, start: logEndOffset))
        ceiling = Offset(Int64.max)
        isUnderMinimum = false
    }

    /// The log cannot be used any more, or the replica is taken away: every append that waits gets an answer.
    package mutating func resigned(into effects: inout [Effect]) {
        role = .offline
        ceiling = .zero
        isUnderMinimum = false
        deferred = nil
        abandonWaiting(into: &effects)
    }

    private mutating func abandonWaiting(into effects: inout [Effect]) {
        while let next = waiting.popFirst() { effects.append(.abandon(next.id)) }
    }

    /// News of the partition from the metadata log. Anything not newer than what is known is ignored.
    package mutating func partitionChanged(
        _ news: PartitionAssignment, now: Instant, into effects: inout [Effect]
    ) {
        if let known = deferred ?? assignment {
            guard news.partitionEpoch > known.partitionEpoch, news.leaderEpoch >= known.leaderEpoch else { return }
        }
        guard !isCutting else {
            deferred = news
            return
        }
        assignment = news
        guard news.replicas.contains(local) else { return resigned(into: &effects) }
        if news.leader == local {
            lead(news, now: now, into: &effects)
        } else {
            follow(news, into: &effects)
        }
    }

    private mutating func lead(_ news: PartitionAssignment, now: Instant, into effects: inout [Effect]) {
        if leaderEpoch == news.leaderEpoch {
            withLeadership(into: &effects) { leadership, replica in
                leadership.changed(news, now: now, replica.settings)
            }
            return
        }
        role = .leader(Leadership(news, local: local, start: logEndOffset, now: now))
        effects.append(.startEpoch(at: logEndOffset))
        askForFlush(into: &effects)
        othersMoved(into: &effects)
    }

    private mutating func follow(_ news: PartitionAssignment, into effects: inout [Effect]) {
        if let following, following.epoch == news.leaderEpoch, following.leader == news.leader { return }
        role = .follower(Following(epoch: news.leaderEpoch, leader: news.leader))
        ceiling = .zero
        isUnderMinimum = false
        abandonWaiting(into: &effects)
        askForFlush(into: &effects)
        if settings.suspended.contains(.epochTruncation), highWatermark < logEndOffset {
            cut(to: highWatermark, into: &effects)
        }
    }

    /// Nobody but this replica knows of its unflushed records, and its next step needs them flushed.
    private func askForFlush(into effects: inout [Effect]) {
        if settings.durability == .fsync, flushedEndOffset < logEndOffset { effects.append(.flushLog) }
    }

    // MARK: Own log

    /// The log took records up to `end` (exclusive) into the page cache. `waiter` names the append if its
    /// producer asked for `acks=all`.
    package mutating func appended(upTo end: Offset, waiter: AppendID?, into effects: inout [Effect]) {
        precondition(end >= logEndOffset, "log end fell from \(logEndOffset) to \(end)")
        logEndOffset = end
        if let waiter { waiting.append(Waiting(endOffset: end, id: waiter)) }
        advance(into: &effects)
    }

    /// A producer repeated an append that is in the log already, ending at `end` (exclusive): it waits for
    /// the same mark as the original.
    package mutating func repeated(upTo end: Offset, waiter: AppendID, into effects: inout [Effect]) {
        precondition(end <= logEndOffset, "a repeated append ends at \(end), beyond the log end \(logEndOffset)")
        if end <= highWatermark {
            effects.append(answer(waiter))
            return
        }
        // Kept sorted by end offset; repeats are rare, so the scan from the back is cheap.
        var index = waiting.endIndex
        while index > waiting.startIndex, waiting[index - 1].endOffset > end { index -= 1 }
        waiting.insert(Waiting(endOffset: end, id: waiter), at: index)
    }

    /// Everything below `end` (exclusive) is on the device.
    package mutating func flushed(upTo end: Offset, into effects: inout [Effect]) {
        precondition(end <= logEndOffset, "flushed to \(end), beyond the log end \(logEndOffset)")
        if end > flushedEndOffset { flushedEndOffset = end }
        advance(into: &effects)
    }

    /// Records before `start` are gone, by retention or by order.
    package mutating func logStartRaised(to start: Offset) {
        precondition(start <= logEndOffset, "log start \(start) beyond the log end \(logEndOffset)")
        logStartOffset = max(logStartOffset, start)
    }

    /// How much of its own log this replica may count.
    private var countedEnd: Offset {
        switch settings.durability {
        case .fsync: flushedEndOffset
        case .relaxed: logEndOffset
        }
    }

    private mutating func advance(into effects: inout [Effect]) {
        var mark = countedEnd
        if settings.suspended.contains(.leaderFlush) { mark = logEndOffset }
        if ceiling < mark { mark = ceiling }
        guard mark > highWatermark else { return }
        highWatermark = mark
        effects.append(.advanceHighWatermark(mark))
        while let next = waiting.first, next.endOffset <= mark {
            waiting.removeFirst()
            effects.append(answer(next.id))
        }
    }

    /// The mark has passed the append. Without KIP-966 it also moves with too few in sync, which the producer is told.
    private func answer(_ id: AppendID) -> Effect {
        isUnderMinimum ? .refuse(id, .notEnoughReplicasAfterAppend) : .acknowledge(id)
    }

    // MARK: Leader

    /// Why an append is refused before it reaches the log; nil when it may.
    ///
    /// - Parameter needsAll: its producer asked for `acks=all`.
    package func appendRefusal(needsAll: Bool) -> ErrorCode? {
        guard leading({ $0.handOver == nil }) == true else { return .notLeaderOrFollower }
        return needsAll && isUnderMinimum ? .notEnoughReplicas : nil
    }

    /// A follower fetches, and acknowledges everything below its offset.
    ///
    /// - Parameters:
    ///   - standing: of its broker in the newest metadata.
    ///   - epochEnd: end of the largest epoch of this log at or below `fetch.lastFetchedEpoch`.
    package mutating func followerFetched(
        _ fetch: FollowerFetch, standing: ReplicaStanding, epochEnd: EpochEnd?, now: Instant,
        into effects: inout [Effect]
    ) -> FollowerFetchAnswer {
        switch role.taken() {
        case .offline:
            return .refused(.notLeaderOrFollower)
        case .follower(let following):
            role = .follower(following)
            return .refused(.notLeaderOrFollower)
        case .leader(var leadership):
            let answer = check(fetch, leadership, epochEnd)
            let before = leadership.inSync.inFlight?.number
            if case .records = answer {
                leadership.fetched(
                    fetch, standing: standing, leaderEnd: logEndOffset, highWatermark: highWatermark, now: now,
                    settings, proposalCount: &proposalCount)
            }
            order(leadership.inSync.inFlight?.number, before: before, into: &effects)
            role = .leader(leadership)
            if case .records = answer { othersMoved(into: &effects) }
            return answer
        }
    }

    private func check(
        _ fetch: FollowerFetch, _ leadership: borrowing Leadership, _ epochEnd: EpochEnd?
    ) -> FollowerFetchAnswer {
        let divergence = fetch.lastFetchedEpoch.flatMap {
            LogDivergence.answer(
                lastFetchedEpoch: $0, offset: fetch.offset, own: epochEnd, suspended: settings.suspended)
        }
        if fetch.leaderEpoch != leadership.epoch {
            if settings.suspended.contains(.truncationFence), let divergence { return .diverging(divergence) }
            guard settings.suspended.contains(.acknowledgementEpoch) else {
                return .refused(fetch.leaderEpoch < leadership.epoch ? .fencedLeaderEpoch : .unknownLeaderEpoch)
            }
        }
        guard let known = leadership.follower(fetch.replica) else { return .refused(.notLeaderOrFollower) }
        if let newest = known.brokerEpoch, let epoch = fetch.brokerEpoch, epoch < newest {
            // Sent before that broker started again (KIP-903).
            return .refused(.notLeaderOrFollower)
        }
        if let divergence { return .diverging(divergence) }
        if let last = fetch.lastFetchedEpoch, last < leadership.epoch, let epochEnd,
            epochEnd.endOffset <= logStartOffset
        {
            // All of that epoch is deleted here, and with it what could tell whether the follower's log is the same: it
            // may hold records that were never committed. It begins again at the log start.
            return .refused(.offsetOutOfRange)
        }
        guard fetch.offset >= logStartOffset, fetch.offset <= logEndOffset else { return .refused(.offsetOutOfRange) }
        return .records(from: fetch.offset, upTo: logEndOffset)
    }

    private func order(_ number: UInt64?, before: UInt64?, into effects: inout [Effect]) {
        if let number, number != before { effects.append(.proposeInSyncReplicas(number: number)) }
    }

    /// Time passes. Call it a few times within `replica.lag.time.max.ms`; it also repeats proposals that were lost.
    package mutating func tick(now: Instant, into effects: inout [Effect]) {
        withLeadership(into: &effects) { leadership, replica in
            leadership.tick(
                leaderEnd: replica.logEndOffset, now: now, replica.settings, proposalCount: &replica.proposalCount)
        }
    }

    /// The broker of a follower was fenced, began to shut down, or came back.
    package mutating func standingChanged(
        of broker: BrokerID, _ standing: ReplicaStanding, into effects: inout [Effect]
    ) {
        withLeadership(into: &effects) { leadership, _ in leadership.standingChanged(of: broker, standing) }
    }

    /// The controller took a proposal, and answers with the partition as it is now. Its partition epoch has risen even
    /// where nothing else changed, so that no attempt of before can be taken later; an answer in which it has not risen
    /// leaves the outcome in doubt.
    package mutating func proposalAccepted(
        _ number: UInt64, leaderEpoch: LeaderEpoch, partitionEpoch: PartitionEpoch, inSyncReplicas: [BrokerID],
        into effects: inout [Effect]
    ) {
        withLeadership(into: &effects) { leadership, replica in
            guard leadership.epoch == leaderEpoch else { return }
            leadership.accepted(number, inSyncReplicas, partitionEpoch: partitionEpoch, replica.settings)
        }
    }

    /// The controller refused a proposal.
    package mutating func proposalRefused(_ number: UInt64, _ error: ErrorCode, into effects: inout [Effect]) {
        withLeadership(into: &effects) { leadership, _ in
            switch error {
            case .ineligibleReplica, .operationNotAttempted, .invalidRequest:
                leadership.refused(number)
            case .fencedLeaderEpoch, .invalidUpdateVersion, .newLeaderElected, .unknownTopicOrPartition,
                .unknownTopicID:
                // The controller knows better; it may even have taken an earlier attempt. Metadata will tell.
                break
            case _:
                leadership.lost(number)
            }
        }
    }

    /// The answer to a proposal will not come: a connection was lost, a time-out passed. ``tick(now:into:)`` tries again.
    package mutating func proposalLost(_ number: UInt64, into effects: inout [Effect]) {
        withLeadership(into: &effects) { leadership, _ in leadership.lost(number) }
    }

    /// Prepares a planned move: no more appends from here on. `target` is nil when the controller will choose.
    ///
    /// What the shell has taken already is written, and reported, before this: the controller may move the leadership
    /// the moment it is asked, and an append that comes after the others have everything is lost.
    package mutating func drain(to target: BrokerID?, into effects: inout [Effect]) {
        withLeadership(into: &effects) { leadership, _ in leadership.handOver = HandOver(target: target) }
    }

    /// The move is called off, and appends are taken again: only while no order for it is on its way, since what an
    /// order that arrives later moves does not wait for them.
    package mutating func drainCancelled() {
        switch role.taken() {
        case .offline: break
        case .follower(let following): role = .follower(following)
        case .leader(var leadership):
            leadership.handOver = nil
            role = .leader(leadership)
        }
    }

    /// Runs `body` if this replica leads, and what follows from it.
    private mutating func withLeadership(
        into effects: inout [Effect], _ body: (inout Leadership, inout PartitionReplica) -> Void
    ) {
        switch role.taken() {
        case .offline: break
        case .follower(let following): role = .follower(following)
        case .leader(var leadership):
            let before = leadership.inSync.inFlight?.number
            body(&leadership, &self)
            order(leadership.inSync.inFlight?.number, before: before, into: &effects)
            role = .leader(leadership)
            othersMoved(into: &effects)
        }
    }

    /// What a leader knows of the others has changed.
    private mutating func othersMoved(into effects: inout [Effect]) {
        switch role.taken() {
        case .offline: break
        case .follower(let following): role = .follower(following)
        case .leader(var leadership):
            ceiling = leadership.ceiling(settings)
            isUnderMinimum = leadership.isUnderMinimum(settings)
            let isReady = leadership.handOverBecomesReady(logEnd: logEndOffset, settings)
            let epoch = leadership.epoch
            role = .leader(leadership)
            advance(into: &effects)
            if isReady { effects.append(.readyForHandOver(epoch)) }
        }
    }

    // MARK: Follower

    /// What to ask the leader next; nil while there is nobody to ask, or something must happen here first: a cut, a
    /// flush (the offset acknowledges everything before it), newer metadata.
    ///
    /// - Parameter lastEpoch: the latest epoch that the log knows, also one that this replica began as leader and wrote
    ///   nothing in: the leader's answer then cuts it away, and records of earlier leaders may take its place.
    package func nextFetch(lastEpoch: LeaderEpoch?) -> ReplicaFetch? {
        guard let following, let leader = following.leader, !following.isFenced, !isCutting else { return nil }
        guard countedEnd >= logEndOffset || settings.suspended.contains(.followerFlush) else { return nil }
        let isBlind = !settings.suspended.isDisjoint(with: [.alignment, .epochTruncation])
        return ReplicaFetch(
            leader: leader, leaderEpoch: following.epoch, offset: logEndOffset,
            lastFetchedEpoch: isBlind ? nil : lastEpoch, state: answerCount)
    }

    /// The leader answered. Answers to questions of another epoch or another state of the log are ignored.
    ///
    /// - Parameter epochEnd: for a diverging answer, end of the largest epoch of this log at or below the leader's.
    package mutating func fetchAnswered(
        _ fetch: ReplicaFetch, _ answer: ReplicaFetchAnswer, epochEnd: EpochEnd?, into effects: inout [Effect]
    ) {
        guard let following, !isCutting else { return }
        if case .diverging = answer, settings.suspended.contains(.truncationFence) {
            // As if the question had been asked just now.
        } else {
            guard fetch.leaderEpoch == following.epoch, fetch.leader == following.leader,
                fetch.offset == logEndOffset, fetch.state == answerCount
            else { return }
        }
        switch answer {
        case .records(let leaderMark, let leaderStart):
            answerCount += 1
            // Below the leader's mark both logs are equal as far as this one goes: the leader has compared epochs.
            if leaderMark > ceiling { ceiling = leaderMark }
            effects.append(.appendFetchedRecords)
            advance(into: &effects)
            let start = min(leaderStart, highWatermark)
            if start > logStartOffset { effects.append(.raiseLogStart(to: start)) }
        case .diverging(let leaderEnd):
            cut(
                to: LogDivergence.cut(
                    leader: leaderEnd, own: epochEnd, logEnd: logEndOffset, suspended: settings.suspended),
                into: &effects)
        case .outOfRange(let leaderStart):
            // Retention at the leader has overtaken this replica: what is lost here is deleted there. A log without a
            // record has no epoch to compare and may lie anywhere. Any other log gets a diverging answer instead.
            guard logEndOffset <= leaderStart || fetch.lastFetchedEpoch == nil else { return }
            restart(at: leaderStart, into: &effects)
        case .refused(.fencedLeaderEpoch):
            role = .follower(Following(epoch: fetch.leaderEpoch, leader: fetch.leader, isFenced: true))
        case .refused:
            break
        }
    }

    private mutating func cut(to end: Offset, into effects: inout [Effect]) {
        guard end >= logStartOffset else { return restart(at: end, into: &effects) }
        isCutting = true
        answerCount += 1
        if end < highWatermark { effects.append(.quarantine(from: end)) }
        effects.append(.truncate(to: end))
    }

    private mutating func restart(at start: Offset, into effects: inout [Effect]) {
        isCutting = true
        answerCount += 1
        if start < highWatermark { effects.append(.quarantine(from: start)) }
        effects.append(.restartLog(at: start))
    }

    /// The cut is durable. It may have gone lower than ordered: a cut inside a batch takes the whole batch.
    package mutating func truncated(to end: Offset, now: Instant, into effects: inout [Effect]) {
        precondition(isCutting, "a cut that was not ordered")
        precondition(end <= logEndOffset, "cut to \(end), beyond the log end \(logEndOffset)")
        logEndOffset = end
        flushedEndOffset = min(flushedEndOffset, end)
        highWatermark = min(highWatermark, end)
        cutEnded(now: now, into: &effects)
    }

    /// The log is empty and begins at `start`.
    package mutating func restarted(at start: Offset, now: Instant, into effects: inout [Effect]) {
        precondition(isCutting, "a restart that was not ordered")
        logStartOffset = start
        logEndOffset = start
        flushedEndOffset = start
        highWatermark = start
        cutEnded(now: now, into: &effects)
    }

    private mutating func cutEnded(now: Instant, into effects: inout [Effect]) {
        isCutting = false
        guard let news = deferred else { return }
        deferred = nil
        partitionChanged(news, now: now, into: &effects)
    }

    // MARK: Queries

    /// Epoch of the current leadership, if this replica leads.
    package var leaderEpoch: LeaderEpoch? { leading { $0.epoch } }

    /// Exclusive end of what consumers may read here, and what every answer that depends on the mark is made of. Nil
    /// without a role, and at a leader that cannot know yet how far its predecessor committed: it may have less in its
    /// own mark, so answers wait (OFFSET_NOT_AVAILABLE) until the mark has reached the start of its epoch.
    package var visibleEnd: Offset? {
        switch role {
        case .offline: nil
        case .follower: highWatermark
        case .leader(let leadership):
            highWatermark >= leadership.start || settings.suspended.contains(.markAtEpochStart) ? highWatermark : nil
        }
    }

    /// Who leads, as far as this replica knows; for answers that send a client elsewhere (KIP-951).
    package var leaderHint: (leader: BrokerID?, epoch: LeaderEpoch)? {
        assignment.map { ($0.leader, $0.leaderEpoch) }
    }

    /// The proposal that is on its way to the controller.
    package var inSyncProposal: InSyncProposal? {
        leading { $0.inSync.inFlight } ?? nil
    }

    /// Whether whoever takes over a leadership that is being drained has everything at this moment.
    package var isReadyForHandOver: Bool {
        leading { $0.isReadyForHandOver(logEnd: logEndOffset, settings) } ?? false
    }

    /// A leader whose in-sync set is smaller than the set of replicas.
    package var isUnderReplicated: Bool {
        leading { $0.inSync.committed.count < $0.followers.count + 1 } ?? false
    }

    /// A leader whose in-sync set is below `min.insync.replicas`.
    package var isUnderMinimumInSync: Bool { isUnderMinimum }

    /// Lowest log start offset of all replicas: what DeleteRecords has reached everywhere. Nil while a follower has
    /// not told its own.
    package var lowWatermark: Offset? { lowWatermark { _ in true } }

    /// Lowest log start offset of this replica and of those whose broker `isLive`: nobody waits for one that is gone,
    /// it gets there when it comes back. Nil while one of them has not told its own.
    package func lowWatermark(where isLive: (BrokerID) -> Bool) -> Offset? {
        guard let starts = leading({ $0.followers.filter { isLive($0.broker) }.map(\.logStartOffset) }) else { return nil }
        var lowest = logStartOffset
        for start in starts {
            guard let start else { return nil }
            lowest = min(lowest, start)
        }
        return lowest
    }

    /// The replica that a consumer near `nearby` should read from, nil for the leader itself (KIP-392). In sync, so
    /// that it stays close behind, and at or beyond the consumer's offset; of several the one that has most.
    ///
    /// - Parameter nearby: live replicas in the consumer's rack.
    package func preferredReadReplica(from offset: Offset, nearby: [BrokerID]) -> BrokerID? {
        guard !nearby.contains(local) else { return nil }
        return leading { $0.nearestReplica(from: offset, nearby: nearby) } ?? nil
    }

    package func snapshot() -> Snapshot {
        var snapshot = Snapshot(
            leaderEpoch: nil, followedEpoch: following?.epoch, partitionEpoch: assignment?.partitionEpoch,
            logEndOffset: logEndOffset, flushedEndOffset: flushedEndOffset, highWatermark: highWatermark,
            ceiling: ceiling, waitingAppendCount: waiting.count, inSyncReplicas: [], maximalInSyncReplicas: [],
            isCutting: isCutting)
        switch role {
        case .offline: break
        case .follower: break
        case .leader(let leadership):
            snapshot.leaderEpoch = leadership.epoch
            snapshot.partitionEpoch = leadership.inSync.partitionEpoch
            snapshot.inSyncReplicas = leadership.inSync.committed
            snapshot.maximalInSyncReplicas = leadership.inSync.maximal
        }
        return snapshot
    }

    private func leading<Result>(_ body: (borrowing Leadership) -> Result) -> Result? {
        switch role {
        case .offline: nil
        case .follower: nil
        case .leader(let leadership): body(leadership)
        }
    }

    private var following: Following? {
        switch role {
        case .offline: nil
        case .follower(let following): following
        case .leader: nil
        }
    }
}
