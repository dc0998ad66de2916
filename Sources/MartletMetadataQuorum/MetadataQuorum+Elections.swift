import MartletLogModel

// Votes, and the begin and end of epochs: what others say, and what this node says when it is due.
extension MetadataQuorum {
    /// Whether a request is meant for this node on this disk (KIP-853). Who does not know the disk means the voter by
    /// configuration; a node that came later, or lost that voter's disk, is not it.
    private func isMeant(_ key: ReplicaKey?) -> Bool {
        guard let key else { return configuration.startsCluster }
        guard key.id == node.id else { return false }
        guard let directory = key.directoryID else { return configuration.startsCluster }
        return node.directoryID == nil || directory == node.directoryID
    }

    // MARK: Requests

    mutating func take(_ call: VoteCall, _ id: RequestID, _ turn: inout Turn) {
        func refuse(_ error: ErrorCode) -> QuorumEffect {
            .respond(id, .vote(header(error), isGranted: false))
        }
        guard isMeant(call.voter) else { return post(refuse(.invalidVoterKey), &turn) }
        guard call.candidate.id != node.id else { return post(refuse(.invalidRequest), &turn) }
        guard call.epoch >= epoch else { return post(refuse(.fencedLeaderEpoch), &turn) }
        if call.epoch > epoch { become(unattached(&turn), epoch: call.epoch, vote: nil, leader: nil, &turn) }
        let isGranted = grants(call)
        if isGranted, !call.isPreVote, vote != call.candidate {
            become(unattached(&turn), epoch: epoch, vote: call.candidate, leader: nil, &turn)
        }
        post(.respond(id, .vote(header(.none), isGranted: isGranted)), &turn)
    }

    private func grants(_ call: VoteCall) -> Bool {
        let isUpToDate = configuration.suspended.contains(.logUpToDate) || call.lastPosition >= log.position
        let isSticky = !configuration.suspended.contains(.preVoteStickiness)
        switch state {
        case .unattached, .prospective:
            if call.isPreVote { return isUpToDate }
            if let vote { return vote == call.candidate }
            return leaderAddress == nil && isUpToDate
        case .candidate: return call.isPreVote && isUpToDate
        case .resigned: return call.isPreVote && isUpToDate
        case .follower(let following):
            if call.isPreVote { return isUpToDate && !(following.hasFetched && isSticky) }
            return vote == call.candidate
        case .leader: return call.isPreVote && isUpToDate && !isSticky
        case .halted: return false
        }
    }

    mutating func take(_ begin: EpochBegin, _ id: RequestID, _ turn: inout Turn) {
        guard isMeant(begin.voter) else {
            return post(.respond(id, .beginEpoch(header(.invalidVoterKey))), &turn)
        }
        guard begin.epoch >= epoch else {
            return post(.respond(id, .beginEpoch(header(.fencedLeaderEpoch))), &turn)
        }
        let isAccepted = follow(begin.leader, epoch: begin.epoch, &turn)
        post(.respond(id, .beginEpoch(header(isAccepted ? .none : .invalidRequest))), &turn)
    }

    mutating func take(_ end: EpochEnd, _ id: RequestID, _ turn: inout Turn) {
        guard end.epoch >= epoch else {
            return post(.respond(id, .endEpoch(header(.fencedLeaderEpoch))), &turn)
        }
        guard end.leaderID != node.id else {
            return post(.respond(id, .endEpoch(header(.invalidRequest))), &turn)
        }
        var hasEnded = end.epoch > epoch
        switch state {
        case .follower, .prospective: hasEnded = hasEnded || leaderAddress?.id == end.leaderID
        case .unattached: hasEnded = true
        case .candidate, .leader, .resigned, .halted: break
        }
        if hasEnded {
            // The best successor stands at once, the others one after the other behind it.
            let rank = end.preferredCandidates.firstIndex { $0.id == node.id && isMeant($0) }
            var deadline = turn.spread(configuration.electionTimeoutMilliseconds)
            if rank == 0 {
                deadline = turn.now
            } else if let rank {
                let share = configuration.electionBackoffMilliseconds * Int64(min(rank, 10)) / 10
                deadline = turn.spread(max(1, share))
            }
            become(
                .unattached(
                    Unattached(
                        electionDeadline: deadline,
                        nextSearch: turn.after(configuration.retryBackoffMilliseconds))),
                epoch: end.epoch, vote: end.epoch == epoch ? vote : nil, leader: nil, &turn)
        }
        post(.respond(id, .endEpoch(header(.none))), &turn)
    }

    // MARK: Answers

    mutating func take(_ answer: QuorumAnswer, _ call: PeerCalls.Call, _ turn: inout Turn) {
        if note(answer.header, &turn) { return }
        let failurePause = turn.spread(configuration.retryBackoffMilliseconds)
        switch answer {
        case .vote(let header, let isGranted):
            if header.error != .none {
                calls.pause(call.peer, call.lane, until: failurePause)
            } else if header.epoch == epoch {
                record(vote: isGranted, from: call.peer)
            }
        case .beginEpoch(let header):
            let again =
                header.error == .none ? turn.after(configuration.fetchTimeoutMilliseconds / 2) : failurePause
            leadership?.announceAgain(to: call.peer, at: again)
        case .endEpoch(let header):
            guard case .resigned(var resignation) = state else { return }
            if header.error == .none {
                resignation.unaware.removeAll { $0 == call.peer }
                state = .resigned(resignation)
            } else {
                calls.pause(call.peer, call.lane, until: failurePause)
            }
        case .fetch(let answer): take(answer, from: call.peer, &turn)
        case .fetchSnapshot(let answer): take(answer, from: call.peer, &turn)
        case .voterChange:
            calls.pause(call.peer, call.lane, until: turn.spread(configuration.fetchTimeoutMilliseconds))
        }
    }

    private mutating func record(vote isGranted: Bool, from voter: BrokerID) {
        switch state {
        case .prospective(var nomination):
            nomination.record(voter, isGranted: isGranted)
            state = .prospective(nomination)
        case .candidate(var nomination):
            nomination.record(voter, isGranted: isGranted)
            state = .candidate(nomination)
        case .unattached, .leader, .follower, .resigned, .halted: break
        }
    }

    /// Takes up what an answer says of epoch and leader; whether that changed the state.
    mutating func note(_ header: AnswerHeader, _ turn: inout Turn) -> Bool {
        let leader = header.leader.flatMap { known in
            known.endpoints.isEmpty ? address(of: known.id) : known
        }
        if header.epoch > epoch {
            if let leader, follow(leader, epoch: header.epoch, &turn) { return true }
            become(unattached(&turn), epoch: header.epoch, vote: nil, leader: nil, &turn)
            return true
        }
        guard header.epoch == epoch, leaderAddress == nil, let leader else { return false }
        return follow(leader, epoch: epoch, &turn)
    }

    // MARK: What is due

    mutating func sendDue(_ turn: inout Turn) {
        switch state {
        case .unattached(let phase): search(phase, &turn)
        case .prospective(let nomination): askVotes(nomination, isPreVote: true, &turn)
        case .candidate(let nomination): askVotes(nomination, isPreVote: false, &turn)
        case .leader(let leadership): announce(leadership, &turn)
        case .follower(let following): fetch(following, &turn)
        case .resigned(let resignation): endEpoch(resignation, &turn)
        case .halted: break
        }
    }

    mutating func call(
        _ peer: BrokerID, _ endpoints: [Endpoint], _ lane: PeerCalls.Lane, _ request: QuorumRequest,
        _ turn: inout Turn
    ) {
        let wait = lane == .fetch ? configuration.fetchWaitMilliseconds : 0
        let token = calls.begin(
            peer, lane, deadline: turn.after(configuration.requestTimeoutMilliseconds + wait))
        post(.send(token, to: peer, endpoints, request), &turn)
    }

    private mutating func askVotes(_ nomination: Nomination, isPreVote: Bool, _ turn: inout Turn) {
        for voter in nomination.undecided where calls.isFree(voter.key.id, .control, now: turn.now) {
            let vote = VoteCall(
                voter: voter.key, candidate: node, epoch: epoch, lastPosition: log.position,
                isPreVote: isPreVote)
            call(voter.key.id, voter.endpoints, .control, .vote(vote), &turn)
        }
    }

    /// Tells voters who leads: those that have not heard, and those that have not fetched for a while (KIP-853).
    private mutating func announce(_ current: Leadership, _ turn: inout Turn) {
        var leadership = current
        leadership.announcements.removeAll { voters[$0.voter] == nil }
        for voter in voters.voters where voter.key.id != node.id {
            if !leadership.announcements.contains(where: { $0.voter == voter.key.id }) {
                leadership.announcements.append(.init(voter: voter.key.id, due: turn.now))
            }
        }
        let due = leadership.announcements.filter { $0.due <= turn.now }.map(\.voter)
        for id in due {
            guard let index = leadership.announcements.firstIndex(where: { $0.voter == id }),
                let voter = voters[id]
            else { continue }
            if let last = leadership.progress(of: voter)?.lastFetch {
                let next = last.advanced(byMilliseconds: configuration.fetchTimeoutMilliseconds / 2)
                if next > turn.now {
                    leadership.announcements[index].due = next
                    continue
                }
            }
            // Asks again when the answer stays away.
            leadership.announcements[index].due = turn.after(configuration.requestTimeoutMilliseconds)
            if calls.isFree(id, .control, now: turn.now) {
                let begin = EpochBegin(
                    voter: voter.key, leader: LeaderAddress(id: node.id, endpoints: configuration.endpoints),
                    epoch: epoch)
                call(id, voter.endpoints, .control, .beginEpoch(begin), &turn)
            }
        }
        self.leadership = leadership
    }

    private mutating func endEpoch(_ resignation: Resignation, _ turn: inout Turn) {
        for id in resignation.unaware where calls.isFree(id, .control, now: turn.now) {
            guard let voter = voters[id] else { continue }
            let end = EpochEnd(leaderID: node.id, epoch: epoch, preferredCandidates: resignation.preferred)
            call(id, voter.endpoints, .control, .endEpoch(end), &turn)
        }
    }

    /// Asks one known voter after the other who leads, by fetches that do not wait.
    private mutating func search(_ current: Unattached, _ turn: inout Turn) {
        guard current.nextSearch <= turn.now, mayFetch else { return }
        var phase = current
        phase.nextSearch = turn.spread(configuration.retryBackoffMilliseconds)
        state = .unattached(phase)
        var known = voters.voters.filter { $0.key.id != node.id }
        for voter in configuration.bootstrapVoters.voters
        where voter.key.id != node.id && voters[voter.key.id] == nil {
            known.append(voter)
        }
        guard !known.isEmpty else { return }
        searchIndex = (searchIndex + 1) % known.count
        let peer = known[searchIndex]
        guard calls.isFree(peer.key.id, .fetch, now: turn.now) else { return }
        call(peer.key.id, peer.endpoints, .fetch, .fetch(logFetch(waiting: 0)), &turn)
    }
}
