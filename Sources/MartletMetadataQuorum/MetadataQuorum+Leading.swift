import DequeModule
import MartletLogModel
import NIOCore

// The leader: appends, acknowledgements, fetches that wait, and when to give up.
extension MetadataQuorum {
    mutating func becomeLeader(_ granting: [ReplicaKey], _ turn: inout Turn) {
        let now = membership.latest
        var leadership = Leadership(
            epochStart: log.end, quorumDeadline: turn.after(configuration.checkQuorumMilliseconds))
        leadership.isReady = false
        become(
            .leader(leadership), epoch: epoch, vote: vote,
            leader: LeaderAddress(id: node.id, endpoints: configuration.endpoints), &turn)
        var records: [ControlRecord] = [
            .leaderChange(
                LeaderChange(leader: node.id, voters: now.voters.voters.map(\.key), grantingVoters: granting))
        ]
        if now.voters.isOnly(node) {
            // A single voter needs nobody to agree on how its voters are kept, or on its own address.
            let own = Voter(key: node, endpoints: configuration.endpoints)
            if now.version == 0, node.directoryID != nil { records.append(.version(1)) }
            if now.version > 0 || node.directoryID != nil, now.voters != VoterSet([own]) || now.version == 0 {
                records.append(.voters(VoterSet([own])))
            }
        }
        append(records, &turn)
        // Nothing of its log can be taken back: the controller need not wait for the first commit.
        if now.voters.isOnly(node) { becomeReady(&turn) }
    }

    private mutating func becomeReady(_ turn: inout Turn) {
        guard var leadership, !leadership.isReady else { return }
        leadership.isReady = true
        self.leadership = leadership
        turn.effects.append(.leadershipReady(epoch))
    }

    // MARK: Appends

    mutating func append(_ records: [ControlRecord], _ turn: inout Turn) {
        append(
            LogBatch(
                baseOffset: log.end, endOffset: log.end + Int64(records.count), epoch: epoch,
                controlRecords: records,
                bytes: nil), nil, &turn)
    }

    private mutating func append(_ batch: LogBatch, _ proposal: ProposalID?, _ turn: inout Turn) {
        let before = membership.latest
        log.append(upTo: batch.endOffset, epoch: batch.epoch)
        membership.append(batch.controlRecords, at: batch.baseOffset)
        turn.effects.append(.append([batch], proposal))
        membershipChanged(from: before, &turn)
        advanceHighWatermark(&turn)
        answerParked(&turn)
    }

    mutating func propose(_ id: ProposalID, _ batch: LogBatch, _ turn: inout Turn) {
        guard acceptsProposal, var leadership else {
            turn.effects.append(.refused(id, leaderAddress))
            return
        }
        leadership.proposals.append(.init(id: id, end: batch.endOffset))
        self.leadership = leadership
        append(batch, id, &turn)
    }

    // MARK: Commit

    /// Moves the leader's high watermark to what a majority has on the device. An older epoch's record counts only
    /// once one of this epoch does: a majority that holds it can still be outvoted (Raft §5.4.2).
    mutating func advanceHighWatermark(_ turn: inout Turn) {
        guard let leadership else { return }
        let ownEnd = configuration.suspended.contains(.flushBeforeAcknowledgement) ? log.end : log.flushedEnd
        let end = min(leadership.majorityEnd(voters: voters, own: node, ownEnd: ownEnd), log.end)
        let isOwnEpoch = end > leadership.epochStart || configuration.suspended.contains(.ownEpochCommit)
        guard end > highWatermark, isOwnEpoch else { return }
        highWatermark = end
        turn.effects.append(.advanceHighWatermark(end))
        committed(&turn)
        answerParked(&turn)
    }

    private mutating func committed(_ turn: inout Turn) {
        guard var leadership else { return }
        while let next = leadership.proposals.first, next.end <= highWatermark {
            leadership.proposals.removeFirst()
            turn.effects.append(.committed(next.id))
        }
        let highWatermark = highWatermark
        let done = leadership.changes.filter { $0.isCommitted(at: highWatermark) }
        leadership.changes.removeAll { $0.isCommitted(at: highWatermark) }
        let isReady = highWatermark > leadership.epochStart
        self.leadership = leadership
        for change in done { post(.respond(change.request, .voterChange(header(.none))), &turn) }
        if isReady { becomeReady(&turn) }
    }

    // MARK: Fetches

    /// Requests that only the leader of exactly that epoch answers; the error if this is another.
    func leaderError(_ epoch: LeaderEpoch) -> ErrorCode? {
        if epoch < self.epoch { return .fencedLeaderEpoch }
        if epoch > self.epoch { return .unknownLeaderEpoch }
        return leadership == nil ? .notLeaderOrFollower : nil
    }

    mutating func take(_ fetch: LogFetch, _ id: RequestID, _ turn: inout Turn) {
        if let error = leaderError(fetch.epoch) {
            return post(.respond(id, .fetch(answer(header(error)))), &turn)
        }
        guard fetch.offset >= .zero, fetch.replica.id != node.id else {
            return post(.respond(id, .fetch(answer(header(.invalidRequest)))), &turn)
        }
        var verdict = log.check(fetchOffset: fetch.offset, lastEpoch: fetch.lastEpoch)
        if case .diverging = verdict, configuration.suspended.contains(.epochTruncation) { verdict = .valid }
        heard(from: fetch.replica, at: verdict == .valid ? fetch.offset : nil, &turn)
        switch verdict {
        case .diverging(let position):
            post(.respond(id, .fetch(answer(header(.none), diverging: position))), &turn)
        case .snapshot(let snapshot):
            post(.respond(id, .fetch(answer(header(.none), snapshot: snapshot))), &turn)
        case .valid:
            let parked = Leadership.Parked(
                request: id, offset: fetch.offset, highWatermark: fetch.highWatermark,
                maxBytes: max(1, min(fetch.maxBytes, QuorumLimits.fetchBytesLimit)),
                deadline: turn.after(max(0, fetch.maxWaitMilliseconds)))
            // The acknowledgement first: the answer then has the high watermark that it led to.
            advanceHighWatermark(&turn)
            guard let count = leadership?.parked.count else { return }
            if isAnswerable(parked, turn.now) || count >= QuorumLimits.parkedFetchLimit {
                answer(parked, &turn)
            } else {
                leadership?.parked.append(parked)
            }
        }
    }

    private mutating func heard(from replica: ReplicaKey, at offset: Offset?, _ turn: inout Turn) {
        guard var leadership else { return }
        leadership.fetched(replica, at: offset, logEnd: log.end, now: turn.now)
        leadership.countForQuorum(
            replica, voters: voters, own: node, deadline: turn.after(configuration.checkQuorumMilliseconds))
        self.leadership = leadership
    }

    private func isAnswerable(_ fetch: Leadership.Parked, _ now: Instant) -> Bool {
        if log.end > fetch.offset || fetch.deadline <= now { return true }
        return fetch.highWatermark.map { $0 < highWatermark } ?? false
    }

    mutating func answerParked(_ turn: inout Turn) {
        guard var leadership, !leadership.parked.isEmpty else { return }
        var waiting: [Leadership.Parked] = []
        var due: [Leadership.Parked] = []
        for fetch in leadership.parked {
            if isAnswerable(fetch, turn.now) { due.append(fetch) } else { waiting.append(fetch) }
        }
        guard !due.isEmpty else { return }
        leadership.parked = waiting
        self.leadership = leadership
        for fetch in due { answer(fetch, &turn) }
    }

    private mutating func answer(_ fetch: Leadership.Parked, _ turn: inout Turn) {
        let answer = answer(header(.none))
        guard log.end > fetch.offset else { return post(.respond(fetch.request, .fetch(answer)), &turn) }
        // A log start that moved meanwhile is told by the next fetch.
        guard fetch.offset >= log.start else { return post(.respond(fetch.request, .fetch(answer)), &turn) }
        post(
            .respondWithRecords(
                fetch.request, answer, from: fetch.offset, upTo: log.end, maxBytes: fetch.maxBytes),
            &turn)
    }

    mutating func take(_ fetch: SnapshotFetch, _ id: RequestID, _ turn: inout Turn) {
        func refuse(_ error: ErrorCode) -> QuorumEffect {
            .respond(
                id,
                .fetchSnapshot(
                    SnapshotAnswer(header: header(error), id: fetch.id, size: 0, position: 0, bytes: .init()))
            )
        }
        if let error = leaderError(fetch.epoch) { return post(refuse(error), &turn) }
        guard log.hasSnapshot(fetch.id) else { return post(refuse(.snapshotNotFound), &turn) }
        guard fetch.position >= 0 else { return post(refuse(.positionOutOfRange), &turn) }
        heard(from: fetch.replica, at: nil, &turn)
        post(
            .respondWithSnapshot(
                id, header(.none), fetch.id, position: fetch.position,
                maxBytes: max(1, min(fetch.maxBytes, QuorumLimits.fetchBytesLimit))), &turn)
    }

    // MARK: Time

    mutating func stepAsLeader(_ current: Leadership, _ turn: inout Turn) -> Bool {
        if !voters.isOnly(node), current.quorumDeadline <= turn.now {
            resign(&turn)
            return true
        }
        if !isVoter, !hasUncommittedMembership {
            // Removed, and that is committed: the remaining voters elect one of theirs (KIP-853).
            resign(&turn)
            return true
        }
        var leadership = current
        let late = leadership.changes.filter { $0.deadline <= turn.now }
        leadership.changes.removeAll { $0.deadline <= turn.now }
        let oldest = turn.now.advanced(byMilliseconds: -QuorumLimits.observerSessionMilliseconds)
        leadership.progress.removeAll { $0.lastFetch < oldest && !voters.contains($0.key) }
        self.leadership = leadership
        for change in late { post(.respond(change.request, .voterChange(header(.requestTimedOut))), &turn) }
        answerParked(&turn)
        upgradeMembership(&turn)
        return false
    }

    mutating func resign(_ turn: inout Turn) {
        guard let leadership else { return }
        var others: [(key: ReplicaKey, offset: Offset)] = []
        for voter in voters.voters where voter.key.id != node.id {
            others.append((voter.key, leadership.progress(of: voter)?.offset ?? .zero))
        }
        others.sort { $0.offset == $1.offset ? $0.key < $1.key : $0.offset > $1.offset }
        let resignation = Resignation(
            deadline: turn.spread(configuration.electionTimeoutMilliseconds), unaware: others.map(\.key.id),
            preferred: others.map(\.key))
        become(.resigned(resignation), epoch: epoch, vote: vote, leader: nil, &turn)
    }
}

extension Leadership.VoterChange {
    func isCommitted(at highWatermark: Offset) -> Bool {
        switch step {
        case .probing: false
        case .appended(let end): end <= highWatermark
        }
    }
}
