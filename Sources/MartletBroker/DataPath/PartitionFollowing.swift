internal import Logging
internal import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletReplication
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// What a follower keeps beside its core.
struct FollowerState {
    /// Whom the fetchers ask for this partition.
    var leader: BrokerID?
    /// The answer that is being handled.
    var answer: (sent: ReplicaFetch, highWatermark: Offset, records: ByteBuffer?)?
    /// From here on the next cut keeps a copy.
    var quarantineStart: Offset?
    /// Waits for a flush, a compaction, a new log start to end.
    var cut: LogCut?
    /// Nothing is asked before: records could not be appended.
    var heldUntil: NIODeadline?
    /// One line per cause.
    var reportedHold = ""
    /// A repair has failed, and is not tried again before.
    var unrepairedUntil: NIODeadline?
    /// The leader's log starts there, and this one does not yet.
    var logStartGoal: Offset?
    /// Offsets before which the log may have gaps are on their way to the device.
    var allowsGaps = false
}

/// What a follower's log loses.
struct LogCut: Sendable {
    enum Kind: Equatable {
        case truncate(to: Offset)
        case restart(at: Offset)
    }

    var kind: Kind
    /// What lies behind was committed once.
    var quarantineStart: Offset?

    /// Blocks on the disk.
    func run(_ log: PartitionLog<AnyDisk>) throws(StorageError) {
        if let quarantineStart { try log.quarantine(from: quarantineStart) }
        switch kind {
        case .truncate(let end): try log.truncate(to: end)
        case .restart(let start): try log.restart(at: start)
        }
    }

    /// Everything at or behind goes.
    var end: Offset {
        switch kind {
        case .truncate(let end): end
        case .restart: .zero
        }
    }
}

extension Partition: FollowedPartition {
    /// How long a follower waits that could not append.
    private static let holdInterval: TimeAmount = .seconds(1)
    private static let repairInterval: TimeAmount = .seconds(30)

    var followedID: PartitionKey { key }

    var followedLogStart: Offset {
        guard case .open(let log) = phase else { return .zero }
        return log.logStartOffset
    }

    // MARK: Fetcher

    /// Begins, goes on, or stops asking, as the newest metadata says.
    func joinFetcher() {
        let leader = registration.leader
        guard isOpen, !isClosing, isReplicated, registration.replicas.contains(replica.local), let leader,
            leader != replica.local
        else { return leaveFetcher() }
        following.leader = leader
        loop.replicaFetchers?.follow(self, leader: leader, at: loop.image.peerAddress(of: leader))
    }

    func leaveFetcher() {
        guard following.leader != nil else { return }
        following.leader = nil
        loop.replicaFetchers?.unfollow(key)
    }

    func nextReplicaFetch() -> ReplicaFetch? {
        // A damaged log takes no records, and says nothing that a leader should count.
        guard case .open(let log) = phase, !isClosing, log.damage == nil, following.cut == nil, !following.allowsGaps
        else { return nil }
        if let until = following.heldUntil, until > loop.eventLoop.now { return nil }
        return replica.nextFetch(lastEpoch: log.leaderEpochs.latest)
    }

    func replicaFetchAnswered(_ sent: ReplicaFetch, _ answer: ReplicaFetchAnswer, records: ByteBuffer?) {
        guard case .open(let log) = phase, !isClosing, following.cut == nil else { return }
        var own: EpochEnd?
        switch answer {
        case .records(let mark, _):
            following.answer = (sent, mark, records)
        case .diverging(let leader):
            own = log.epochEnd(atOrBelow: leader.epoch).map { EpochEnd(epoch: $0.epoch, endOffset: $0.endOffset) }
        case .outOfRange, .refused:
            break
        }
        replica.fetchAnswered(sent, answer, epochEnd: own, into: &effects)
        runEffects()
        following.answer = nil
    }

    // MARK: Append

    /// Writes what the leader sent. What fails is asked for again.
    func appendFetchedRecords() {
        guard let answer = following.answer, case .open(let log) = phase else { return }
        following.answer = nil
        if var rest = answer.records, rest.readableBytes > 0 {
            if let cause = stage(&rest, answer.sent.leaderEpoch, highWatermark: answer.highWatermark, log) {
                hold(cause)
            }
            do throws(StorageError) {
                try log.writeStaged()
                following.reportedHold = following.heldUntil == nil ? "" : following.reportedHold
            } catch {
                hold("\(error)")
            }
        }
        replica.appended(upTo: log.writtenEndOffset, waiter: nil, into: &effects)
        flushAfterAppend(log)
    }

    /// Returns why it stopped before the end, if it did and nothing was set in motion that goes on with it.
    private func stage(
        _ rest: inout ByteBuffer, _ epoch: LeaderEpoch, highWatermark: Offset, _ log: PartitionLog<AnyDisk>
    ) -> String? {
        do {
            while rest.readableBytes > 0 {
                let header = try RecordBatchHeader(reading: rest, at: rest.readerIndex)
                guard let batch = rest.readSlice(length: header.totalByteCount) else { return nil }
                let base = Offset(header.baseOffset)
                guard base >= log.logEndOffset, header.partitionLeaderEpoch <= epoch.rawValue else {
                    return "batch \(base) of epoch \(header.partitionLeaderEpoch) does not belong at \(log.logEndOffset)"
                }
                if base > log.logEndOffset, let work = log.allowGaps(upTo: max(base, highWatermark)) {
                    allowGaps(work, upTo: max(base, highWatermark))
                    return nil
                }
                try log.stageReplica(batch, header: header, now: loop.wallTime)
            }
            return nil
        } catch {
            return "\(error)"
        }
    }

    /// The leader's log was compacted: this one may have gaps too, which a start must not take for damage. That is
    /// durable before the first of them is written.
    private func allowGaps(_ work: CheckpointWork<AnyDisk>, upTo end: Offset) {
        following.allowsGaps = true
        logStartWorkCount += 1
        loop.services.workPool.runIfActive(eventLoop: loop.eventLoop) { try work.run() }
            .assumeIsolated().whenComplete { result in
                self.following.allowsGaps = false
                self.logStartWorkCount -= 1
                switch result {
                case .success: if case .open(let log) = self.phase { log.gapsAreAllowed(upTo: end) }
                case .failure(let error): self.hold("\(error)")
                }
                self.cutIfReady()
                self.pursueLogStart()
                self.loop.replicaFetchers?.wake(self.key)
            }
    }

    private func hold(_ cause: String) {
        if following.reportedHold != cause {
            following.reportedHold = cause
            loop.logger.error(
                "records of the leader not appended; tried again",
                metadata: ["partition": "\(name)", "cause": "\(cause)"])
        }
        following.heldUntil = loop.eventLoop.now + Self.holdInterval
        loop.eventLoop.assumeIsolated().scheduleTask(in: Self.holdInterval) {
            self.following.heldUntil = nil
            self.loop.replicaFetchers?.wake(self.key)
        }
    }

    // MARK: Log start

    /// The leader has deleted what is before `start`.
    func followLogStart(to start: Offset) {
        following.logStartGoal = max(start, following.logStartGoal ?? start)
        pursueLogStart()
    }

    /// The leader says it once, and something else may be under way just then.
    func pursueLogStart() {
        guard let start = following.logStartGoal, case .open(let log) = phase, !isClosing, following.cut == nil,
            logStartWorkCount == 0
        else { return }
        do throws(ReadError) {
            guard start <= log.flushedEndOffset else { return requestFlush() }
            following.logStartGoal = nil
            guard let work = try log.deleteRecords(before: start, highWatermark: replica.highWatermark) else {
                replica.logStartRaised(to: log.logStartOffset)
                return
            }
            raiseLogStart(work) { _ in self.loop.replicaFetchers?.wake(self.key) }
        } catch {
            loop.logger.error("log start not raised", metadata: ["partition": "\(name)", "cause": "\(error)"])
        }
    }

    // MARK: Repair

    /// A damaged log of a follower that nobody counts on is cut at the damage, of which a copy is in quarantine; the leader
    /// has the rest. One that may be elected must first leave the in-sync set: it has lost what it acknowledged.
    func repairIfPossible() {
        guard case .open(let log) = phase, let damage = log.damage, isReplicated, !isClosing, !isFlushing,
            !maintenanceRunning, logStartWorkCount == 0, let leader = registration.leader, leader != replica.local,
            registration.replicas.contains(replica.local), !registration.isr.contains(replica.local),
            !registration.eligibleLeaderReplicas.contains(replica.local),
            following.unrepairedUntil.map({ $0 <= self.loop.eventLoop.now }) ?? true
        else { return }
        loop.logger.warning(
            "damaged log is cut and fetched again from its leader",
            metadata: ["partition": "\(name)", "offset": "\(damage.offset)", "leader": "\(leader)"])
        resign(.notLeaderOrFollower)
        phase = .opening([])
        maintenanceRunning = true
        let transfer = LogTransfer(log)
        let loop = self.loop
        loop.services.workPool.submit { _ in
            let result = Result { () throws(StorageError) in try transfer.log.repair() }
            self.closeLog(transfer.log, clean: false)
            loop.post { _ in self.repaired(result) }
        }
    }

    private func repaired(_ result: Result<Void, StorageError>) {
        let isStillWanted = isOpening
        maintenanceRunning = false
        guard isStillWanted else {
            folderWorkEnded()
            return
        }
        if case .failure(let error) = result {
            loop.logger.error("log not repaired", metadata: ["partition": "\(name)", "cause": "\(error)"])
            following.unrepairedUntil = loop.eventLoop.now + Self.repairInterval
        }
        open()
    }

    // MARK: Cut

    /// The core orders one cut at a time, and asks and appends nothing before it is done.
    func order(_ kind: LogCut.Kind) {
        let cut = LogCut(kind: kind, quarantineStart: following.quarantineStart)
        following.quarantineStart = nil
        following.logStartGoal = nil
        if let start = cut.quarantineStart {
            loop.logger.error(
                "records that were committed once are cut, because the leader does not have them; a copy is kept",
                metadata: [
                    "partition": "\(name)", "from": "\(start)", "end": "\(replica.snapshot().logEndOffset)",
                    "epoch": "\(registration.leaderEpoch)",
                ])
        }
        following.cut = cut
        cutIfReady()
    }

    /// A cut has the log for itself: no flush, no compaction, no new log start goes on meanwhile.
    func cutIfReady() {
        guard let cut = following.cut, case .open(let log) = phase, !isFlushing, !log.isFlushUnderWay,
            !maintenanceRunning, logStartWorkCount == 0, !log.hasStaged
        else { return }
        following.cut = nil
        maintenanceRunning = true
        phase = .cutting
        failFlushWaiters(above: cut.end)
        let transfer = LogTransfer(log)
        let loop = self.loop
        loop.services.workPool.submit { _ in
            let result = Result { () throws(StorageError) in try cut.run(transfer.log) }
            loop.post { _ in self.cutFinished(cut, transfer.log, result) }
        }
    }

    private func cutFinished(_ cut: LogCut, _ log: PartitionLog<AnyDisk>, _ result: Result<Void, StorageError>) {
        guard case .cutting = phase else {
            // Deleted meanwhile.
            closeLog(log, clean: false)
            maintenanceRunning = false
            return
        }
        maintenanceRunning = false
        if case .failure(let error) = result {
            loop.logger.error(
                "log not cut; partition is offline", metadata: ["partition": "\(name)", "cause": "\(error)"])
            phase = .failed(error.errorCode, error.description, since: loop.eventLoop.now)
            failEverything(error.errorCode, error.description)
            resign(error.errorCode)
            closeLog(log, clean: false)
            closingEnded()
            return
        }
        phase = .open(log)
        log.configuration = logConfiguration
        let now = loop.monotonicTime
        switch cut.kind {
        case .truncate: replica.truncated(to: log.logEndOffset, now: now, into: &effects)
        case .restart(let start): replica.restarted(at: start, now: now, into: &effects)
        }
        runEffects()
        log.recordHighWatermark(replica.highWatermark)
        loop.logger.info(
            "log cut",
            metadata: [
                "partition": "\(name)", "to": "\(log.logEndOffset)", "start": "\(log.logStartOffset)",
                "epoch": "\(registration.leaderEpoch)",
            ])
        noteSegments(log)
        if isClosing { return finishClosing() }
        roleChanged()
        // What is left of the log may never have been flushed, and the next question says that it is.
        requestFlush()
    }
}
