import MartletLogModel

// Changes of the voters, one at a time (KIP-853).
extension MetadataQuorum {
    /// Whether the newest set of voters may still be taken back.
    var hasUncommittedMembership: Bool { membership.latestOffset.map { $0 >= highWatermark } ?? false }

    mutating func take(_ request: QuorumRequest, _ id: RequestID, _ turn: inout Turn) {
        switch request {
        case .vote(let call): take(call, id, &turn)
        case .beginEpoch(let begin): take(begin, id, &turn)
        case .endEpoch(let end): take(end, id, &turn)
        case .fetch(let fetch): take(fetch, id, &turn)
        case .fetchSnapshot(let fetch): take(fetch, id, &turn)
        case .addVoter(let addition): add(addition, id, &turn)
        case .removeVoter(let removal): remove(removal, id, &turn)
        case .updateVoter(let update): self.update(update, id, &turn)
        }
    }

    /// Why no change may begin now.
    private func changeError() -> ErrorCode? {
        guard let leadership else { return .notLeaderOrFollower }
        guard membership.latest.version >= 1 else { return .unsupportedVersion }
        // Until a record of this epoch is committed, an older leader's change may still be pending somewhere.
        guard leadership.isReady, highWatermark > leadership.epochStart else { return .requestTimedOut }
        if configuration.suspended.contains(.singleVoterChange) { return nil }
        return hasUncommittedMembership || !leadership.changes.isEmpty ? .requestTimedOut : nil
    }

    private mutating func refuse(_ id: RequestID, _ error: ErrorCode, _ turn: inout Turn) {
        post(.respond(id, .voterChange(header(error))), &turn)
    }

    private mutating func add(_ addition: VoterAddition, _ id: RequestID, _ turn: inout Turn) {
        if let error = changeError() { return refuse(id, error, &turn) }
        guard addition.key.directoryID != nil, addition.key.id.rawValue >= 0, !addition.endpoints.isEmpty,
            voters.voters.count < QuorumLimits.voterLimit
        else { return refuse(id, .invalidRequest, &turn) }
        guard voters[addition.key.id] == nil else { return refuse(id, .duplicateVoter, &turn) }
        let voter = Voter(key: addition.key, endpoints: addition.endpoints)
        let wait = min(max(0, addition.timeoutMilliseconds), QuorumLimits.catchUpMilliseconds)
        leadership?.changes.append(
            .init(
                request: id, step: .probing(voter), waitsForCommit: addition.waitsForCommit,
                deadline: turn.after(wait)))
        turn.effects.append(.probe(addition.key, addition.endpoints))
    }

    /// The node answered (or not): it must run our level, and have caught up, or the quorum would wait for it.
    mutating func probed(_ key: ReplicaKey, _ range: KRaftVersionRange?, _ turn: inout Turn) {
        guard var leadership, let index = leadership.changes.firstIndex(where: { $0.isProbing(key) }) else {
            return
        }
        let change = leadership.changes.remove(at: index)
        self.leadership = leadership
        guard case .probing(var voter) = change.step else { return }
        guard let range else { return refuse(change.request, .requestTimedOut, &turn) }
        guard range.contains(membership.latest.version) else {
            return refuse(change.request, .invalidRequest, &turn)
        }
        let oldest = turn.now.advanced(byMilliseconds: -QuorumLimits.catchUpMilliseconds)
        let progress = leadership.progress.first { $0.key == key }
        guard let progress, progress.lastFetch > oldest, let caughtUp = progress.lastCaughtUp,
            caughtUp > oldest
        else {
            return refuse(change.request, .requestTimedOut, &turn)
        }
        guard voters[key.id] == nil else { return refuse(change.request, .duplicateVoter, &turn) }
        voter.versions = range
        appendVoters(voters.adding(voter), for: change, &turn)
    }

    private mutating func remove(_ removal: VoterRemoval, _ id: RequestID, _ turn: inout Turn) {
        if let error = changeError() { return refuse(id, error, &turn) }
        guard let voter = voters[removal.key.id], voter.key == removal.key else {
            return refuse(id, .voterNotFound, &turn)
        }
        guard voters.voters.count > 1 else { return refuse(id, .invalidRequest, &turn) }
        appendVoters(voters.removing(removal.key.id), for: change(id, turn), &turn)
    }

    private mutating func update(_ update: VoterUpdate, _ id: RequestID, _ turn: inout Turn) {
        if let error = leaderError(update.epoch) { return refuse(id, error, &turn) }
        if let error = changeError() { return refuse(id, error, &turn) }
        guard let voter = voters[update.voter.key.id], voter.key == update.voter.key else {
            return refuse(id, .voterNotFound, &turn)
        }
        guard !update.voter.endpoints.isEmpty, update.voter.versions.contains(membership.latest.version)
        else {
            return refuse(id, .invalidRequest, &turn)
        }
        guard voter != update.voter else { return refuse(id, .none, &turn) }
        appendVoters(voters.replacing(update.voter), for: change(id, turn), &turn)
    }

    private func change(_ id: RequestID, _ turn: borrowing Turn) -> Leadership.VoterChange {
        .init(
            request: id, step: .appended(end: log.end), waitsForCommit: true,
            deadline: turn.after(configuration.requestTimeoutMilliseconds))
    }

    private mutating func appendVoters(
        _ next: VoterSet, for change: Leadership.VoterChange, _ turn: inout Turn
    ) {
        var change = change
        if change.waitsForCommit {
            change.step = .appended(end: log.end + 1)
            leadership?.changes.append(change)
        } else {
            refuse(change.request, .none, &turn)
        }
        append([.voters(next)], &turn)
    }

    /// Takes the voters from the configuration into the log, with their disks, once every one of them has fetched and so
    /// told its directory. From then on a node that comes back empty is another replica. Also puts right the leader's
    /// own address, which no one else would.
    mutating func upgradeMembership(_ turn: inout Turn) {
        guard let leadership, leadership.isReady, highWatermark > leadership.epochStart,
            !hasUncommittedMembership,
            leadership.changes.isEmpty, let ownDirectory = node.directoryID
        else { return }
        let own = Voter(key: ReplicaKey(node.id, ownDirectory), endpoints: configuration.endpoints)
        let now = membership.latest
        if now.version > 0 {
            guard let voter = voters[node.id], voter.key == own.key, voter != own else { return }
            append([.voters(voters.replacing(own))], &turn)
            return
        }
        var known: [Voter] = []
        for voter in voters.voters {
            if voter.key.id == node.id {
                known.append(own)
            } else if let directory = leadership.progress(of: voter)?.key.directoryID {
                known.append(
                    Voter(
                        key: ReplicaKey(voter.key.id, directory), endpoints: voter.endpoints,
                        versions: voter.versions))
            } else {
                return
            }
        }
        append([.version(1), .voters(VoterSet(known))], &turn)
    }

    /// A voter that listens elsewhere than the set says tells the leader.
    mutating func updateOwnVoter(at leader: LeaderAddress, _ turn: inout Turn) {
        guard membership.latest.version > 0, let voter = voters[node.id], voter.key == node,
            calls.isFree(leader.id, .control, now: turn.now)
        else { return }
        let own = Voter(key: node, endpoints: configuration.endpoints)
        guard own != voter else { return }
        call(
            leader.id, leader.endpoints, .control, .updateVoter(VoterUpdate(voter: own, epoch: epoch)), &turn)
    }
}

extension Leadership.VoterChange {
    func isProbing(_ key: ReplicaKey) -> Bool {
        switch step {
        case .probing(let voter): voter.key == key
        case .appended: false
        }
    }
}
