import MartletLogModel
import NIOCore

// The follower: fetches, cuts what diverges, and takes whole snapshots.
extension MetadataQuorum {
    /// A fetch offset acknowledges everything below it, so all of it is on the device first.
    var mayFetch: Bool {
        installing == nil && (log.isFlushed || configuration.suspended.contains(.flushBeforeAcknowledgement))
    }

    func logFetch(waiting milliseconds: Int64) -> LogFetch {
        LogFetch(
            replica: node, epoch: epoch, offset: log.end, lastEpoch: log.lastEpoch,
            highWatermark: highWatermark,
            maxWaitMilliseconds: milliseconds, maxBytes: configuration.fetchBytes)
    }

    mutating func fetch(_ following: Following, _ turn: inout Turn) {
        guard let leader = leaderAddress else { return }
        updateOwnVoter(at: leader, &turn)
        guard mayFetch, calls.isFree(leader.id, .fetch, now: turn.now) else { return }
        if let download = following.download {
            let fetch = SnapshotFetch(
                replica: node, epoch: epoch, id: download.id, position: download.position,
                maxBytes: configuration.snapshotChunkBytes)
            call(leader.id, leader.endpoints, .fetch, .fetchSnapshot(fetch), &turn)
        } else {
            let fetch = logFetch(waiting: configuration.fetchWaitMilliseconds)
            call(leader.id, leader.endpoints, .fetch, .fetch(fetch), &turn)
        }
    }

    /// The connection to the leader broke: a leader that died is replaced without waiting for the fetch timeout. One that
    /// lives loses nothing, since whoever still hears it refuses the pre-vote.
    mutating func leaderUnreachable(_ peer: BrokerID, _ turn: inout Turn) {
        guard leaderAddress?.id == peer, let deadline = following?.fetchDeadline else { return }
        let soon = turn.spread(configuration.lostLeaderMilliseconds)
        following?.fetchDeadline = min(deadline, soon)
    }

    // MARK: Records

    /// An answer to a fetch of this state: in order, what the leader says of our log, then its records.
    mutating func take(_ answer: LogAnswer, from peer: BrokerID, _ turn: inout Turn) {
        guard answer.header.error == .none, answer.header.epoch == epoch, var following,
            leaderAddress?.id == peer
        else {
            calls.pause(peer, .fetch, until: turn.spread(configuration.retryBackoffMilliseconds))
            return
        }
        following.fetchDeadline = turn.spread(configuration.fetchTimeoutMilliseconds)
        following.hasFetched = true
        if let snapshot = answer.snapshot {
            // What this node has committed is no reason to fetch a snapshot of less.
            if snapshot.offset > highWatermark {
                following.download = Following.Download(id: snapshot)
            } else {
                calls.pause(peer, .fetch, until: turn.spread(configuration.retryBackoffMilliseconds))
            }
            self.following = following
            return
        }
        self.following = following
        if let diverging = answer.diverging {
            if !configuration.suspended.contains(.epochTruncation) {
                cut(to: log.truncationPoint(diverging: diverging), &turn)
            }
            // What could not be cut is not asked about again at once.
            if log.end > diverging.offset {
                calls.pause(peer, .fetch, until: turn.spread(configuration.retryBackoffMilliseconds))
            }
            return
        }
        guard append(answer.batches, &turn) else {
            calls.pause(peer, .fetch, until: turn.spread(configuration.retryBackoffMilliseconds))
            return
        }
        let committed = min(answer.highWatermark, log.end)
        if committed > highWatermark {
            highWatermark = committed
            turn.effects.append(.advanceHighWatermark(committed))
        }
    }

    private mutating func cut(to end: Offset, _ turn: inout Turn) {
        guard end >= highWatermark else {
            return halt(
                "the leader of epoch \(epoch) lacks records that are committed here: it agrees up to \(end), committed is \(highWatermark)",
                &turn)
        }
        guard end < log.end else { return }
        let before = membership.latest
        log.truncate(to: end)
        membership.truncate(to: end)
        turn.effects.append(.truncate(to: end))
        membershipChanged(from: before, &turn)
    }

    /// Takes the batches that continue the log; `false` if one does not, and nothing of it or behind it was taken.
    private mutating func append(_ batches: [LogBatch], _ turn: inout Turn) -> Bool {
        guard !batches.isEmpty else { return true }
        let before = membership.latest
        var taken: [LogBatch] = []
        for batch in batches {
            let continues =
                batch.baseOffset == log.end && batch.endOffset > batch.baseOffset
                && batch.epoch >= log.lastEpoch
                && batch.epoch <= epoch
            guard continues else { break }
            log.append(upTo: batch.endOffset, epoch: batch.epoch)
            membership.append(batch.controlRecords, at: batch.baseOffset)
            taken.append(batch)
        }
        if !taken.isEmpty { turn.effects.append(.append(taken, nil)) }
        membershipChanged(from: before, &turn)
        return taken.count == batches.count
    }

    // MARK: Snapshots

    mutating func take(_ answer: SnapshotAnswer, from peer: BrokerID, _ turn: inout Turn) {
        guard var following, let download = following.download, leaderAddress?.id == peer else { return }
        let count = Int64(answer.bytes.readableBytes)
        let isUsable =
            answer.header.error == .none && answer.header.epoch == epoch && answer.id == download.id
            && answer.position == download.position && count > 0 && answer.size >= answer.position
            && count <= answer.size - answer.position
        guard isUsable else {
            // Gone, or damaged on the way: the next fetch says which snapshot there is now.
            following.download = nil
            self.following = following
            turn.effects.append(.discardSnapshot(download.id))
            calls.pause(peer, .fetch, until: turn.spread(configuration.retryBackoffMilliseconds))
            return
        }
        following.fetchDeadline = turn.spread(configuration.fetchTimeoutMilliseconds)
        following.hasFetched = true
        following.download?.position += count
        turn.effects.append(.writeSnapshot(download.id, position: download.position, answer.bytes))
        if download.position + count == answer.size {
            following.download = nil
            installing = download.id
            turn.effects.append(.installSnapshot(download.id))
        }
        self.following = following
    }

    /// The snapshot is in place: the log starts anew behind it.
    mutating func snapshotInstalled(_ id: LogPosition, _ found: QuorumMembership?, _ turn: inout Turn) {
        guard installing == id else { return }
        installing = nil
        guard id.offset > highWatermark, leadership == nil else { return }
        let before = membership.latest
        let initial = configuration.initialMembership
        log.reset(to: id)
        membership.reset(to: found ?? initial)
        highWatermark = id.offset
        turn.effects.append(.resetLog(to: id))
        turn.effects.append(.advanceHighWatermark(id.offset))
        membershipChanged(from: before, &turn)
        let deadline = turn.spread(configuration.fetchTimeoutMilliseconds)
        following?.fetchDeadline = deadline
    }

    /// This node's own snapshot lets the log start later. The one before stays for whoever is reading it.
    mutating func snapshotTaken(_ id: LogPosition, _ turn: inout Turn) {
        precondition(
            id.offset <= min(highWatermark, log.flushedEnd),
            "snapshot at \(id), beyond what is committed (\(highWatermark)) or flushed (\(log.flushedEnd))")
        guard id.offset > log.start else { return }
        let previous = log.snapshot
        membership.advanceStart(to: id.offset)
        log.advanceStart(to: id)
        turn.effects.append(.advanceLogStart(to: id))
        if let previous { turn.effects.append(.removeSnapshots(before: previous)) }
    }
}
