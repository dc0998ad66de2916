internal import Logging
internal import MartletController
package import MartletLogModel
internal import MartletReplication
internal import MartletStorage
package import NIOCore
internal import NIOPosix

extension Partition {
    /// Raises the log start offset to `offset`, -1 for the high watermark, and answers once that is durable.
    ///
    /// - Parameter timeout: waits so long for the other replicas to get there too, and answers with the lowest log start
    ///   of all; nil does not wait for them.
    package func deleteRecords(
        before offset: Int64, timeout: TimeAmount? = nil, done: @escaping (Result<Offset, PartitionUnavailable>) -> Void
    ) {
        let log: PartitionLog<AnyDisk>
        switch openLog {
        case .success(let open): log = open
        case .failure(let unavailable):
            done(.failure(unavailable))
            return
        }
        guard leaderEpoch != nil else { return done(.failure(unavailable(.notLeaderOrFollower))) }
        guard let mark = visibleEnd else { return done(.failure(unavailable(.offsetNotAvailable))) }
        let target = offset == -1 ? mark : Offset(offset)
        guard target.rawValue >= 0, target <= mark else {
            done(.failure(PartitionUnavailable(code: .offsetOutOfRange, cause: "beyond the high watermark")))
            return
        }
        func raised() {
            guard isReplicated, let timeout else { return done(.success(log.logStartOffset)) }
            whenLowWatermark(reaches: target, timeout: timeout, done)
        }
        let work: LogStartWork<AnyDisk>?
        do throws(ReadError) {
            work = try log.deleteRecords(before: target, highWatermark: mark)
        } catch {
            done(.failure(PartitionUnavailable(code: error.errorCode, cause: error.description)))
            return
        }
        guard let work else { return raised() }
        raiseLogStart(work) { result in
            switch result {
            case .success: raised()
            case .failure(let error): done(.failure(PartitionUnavailable(code: .kafkaStorageError, cause: "\(error)")))
            }
        }
    }

    /// A new log start counts once it is durable: checkpoint on the work pool, then adopt it here.
    func raiseLogStart(
        _ work: LogStartWork<AnyDisk>, done: @escaping (Result<Void, any Error>) -> Void
    ) {
        let name = self.name
        logStartWorkCount += 1
        loop.services.workPool.runIfActive(eventLoop: loop.eventLoop) { try work.run() }
            .flatMapThrowing {
                guard case .success(let log) = self.openLog else { return }
                try log.adoptLogStart(now: self.loop.wallTime)
                self.replica.logStartRaised(to: log.logStartOffset)
            }
            .assumeIsolated().whenComplete { result in
                self.logStartWorkCount -= 1
                if case .failure(let error) = result {
                    self.loop.logger.error(
                        "log start not raised", metadata: ["partition": "\(name)", "cause": "\(error)"])
                }
                done(result)
                self.removeDeletedFiles()
                self.requestFlush()
                self.cutIfReady()
                self.pursueLogStart()
            }
    }

    /// Closes a log that nobody has used since `deadline`, so that memory and files follow use, not the number
    /// of partitions. A request that arrives meanwhile opens it again.
    func letGoIfUnused(since deadline: NIODeadline) {
        // Followers must be able to fetch, and a leader must see that they do.
        guard !isReplicated else { return }
        if wasUsed {
            wasUsed = false
            lastUse = loop.eventLoop.now
        }
        guard case .open(let log) = phase, lastUse <= deadline, isQuiet else { return }
        phase = .opening([])
        let transfer = LogTransfer(log)
        let loop = self.loop
        loop.services.workPool.submit { _ in
            self.closeLog(transfer.log, clean: true)
            loop.post { _ in self.wasLetGo() }
        }
    }

    private func wasLetGo() {
        guard case .opening(let queue) = phase else {
            folderWorkEnded()
            return
        }
        if queue.isEmpty {
            phase = .closed
            loop.forget(key)
        } else {
            open()
        }
    }

    /// Rolls by time, removes what retention allows, starts the removal of files that are due.
    package func applyRetention(now: Timestamp) {
        guard case .success(let log) = openLog, following.cut == nil else { return }
        do throws(StorageError) {
            try log.tick(now: now)
            if let mark = visibleEnd, let work = try log.applyRetention(now: now, highWatermark: mark) {
                raiseLogStart(work) { _ in
                    self.loop.logger.info(
                        "old segments removed",
                        metadata: ["partition": "\(self.name)", "start": "\(log.logStartOffset)"])
                }
            }
        } catch {
            loop.logger.error("retention failed", metadata: ["partition": "\(name)", "cause": "\(error)"])
        }
        removeDeletedFiles()
        requestFlush()
    }

    /// Unlinking a large file blocks, so it happens on the work pool.
    private func removeDeletedFiles() {
        guard case .success(let log) = openLog, let removal = log.purgeDeleted(now: loop.wallTime) else { return }
        let (logger, name) = (loop.logger, self.name)
        loop.services.workPool.submit { _ in
            do {
                try removal.run()
            } catch {
                logger.error("files not removed", metadata: ["partition": "\(name)", "cause": "\(error)"])
            }
        }
    }

    /// Starts a compaction on the work pool if the log is dirty enough; the result is installed on the loop.
    ///
    /// - Parameter done: called once, when there is nothing to do or it is done.
    package func compactIfDue(now: Timestamp, done: @escaping () -> Void = {}) {
        guard !maintenanceRunning, following.cut == nil, case .success(let log) = openLog, let mark = visibleEnd else {
            return done()
        }
        let plan: CompactionPlan<AnyDisk>?
        do throws(StorageError) {
            try log.tick(now: now)
            plan = try log.planCompaction(now: now, ceiling: mark)
        } catch {
            loop.logger.error("compaction not planned", metadata: ["partition": "\(name)", "cause": "\(error)"])
            return done()
        }
        guard let plan else { return done() }
        maintenanceRunning = true
        let loop = self.loop
        let finished = NIOLoopBound(done, eventLoop: loop.eventLoop)
        let start = loop.eventLoop.now
        loop.services.workPool.submit { state in
            // A stopping broker does not rewrite gigabytes first.
            let outcome =
                state == .active ? Result { () throws(StorageError) in try plan.run() } : nil
            loop.post { loop in
                if let outcome {
                    self.compactionFinished(outcome, after: loop.eventLoop.now - start)
                } else {
                    self.maintenanceRunning = false
                }
                finished.value()
            }
        }
    }

    private func compactionFinished(
        _ outcome: Result<CompactionResult<AnyDisk>, StorageError>, after duration: TimeAmount
    ) {
        maintenanceRunning = false
        guard case .success(let log) = openLog else { return }
        do throws(StorageError) {
            let result = try outcome.get()
            try log.installCompaction(result, now: loop.wallTime)
            loop.logger.info(
                "compacted",
                metadata: [
                    "partition": "\(name)", "before": "\(result.bytesBefore)", "after": "\(result.bytesAfter)",
                    "milliseconds": "\(duration.nanoseconds / 1_000_000)",
                ])
        } catch {
            log.abandonCompaction()
            loop.logger.error("compaction failed", metadata: ["partition": "\(name)", "cause": "\(error)"])
        }
        removeDeletedFiles()
        requestFlush()
        cutIfReady()
    }
}

extension BrokerLoop {
    /// A partition that nobody has used for this long is closed; the next request opens it again.
    private static let unusedLimit: TimeAmount = .minutes(10)

    /// Retention and compaction for every partition of this loop that has files. One that nobody uses is opened for it
    /// and let go again, one after the other. That may take longer than the time until the next sweep, which then goes
    /// over the open ones alone: never are two opened at once.
    package func sweepRetention() {
        let now = wallTime
        for partition in openPartitions {
            partition.whenOpen { partition in
                partition.applyRetention(now: now)
                // One that was opened for it, and rolled, could not be compacted before the roll was flushed.
                if partition.topic.configuration.cleanupPolicy.contains(.compact) { partition.compactIfDue(now: now) }
                partition.letGoIfUnused(since: self.eventLoop.now - Self.unusedLimit)
            }
        }
        guard !sweepsUnopened else { return }
        sweepsUnopened = true
        let onDisk = Set(services.directory.partitions)
        var unopened: [PartitionKey] = []
        for topic in image.sortedTopics() where !topic.configuration.cleanupPolicy.isEmpty {
            for index in topic.partitions.indices {
                let key = PartitionKey(topicID: topic.id, partition: PartitionIndex(Int32(index)))
                guard services.loops.loop(of: key) === self, existingPartition(key) == nil,
                    onDisk.contains(TopicPartition(topic.name, Int32(index)))
                else { continue }
                unopened.append(key)
            }
        }
        sweepUnopened(unopened[...])
    }

    package func sweepCompaction() {
        let now = wallTime
        for partition in openPartitions where partition.topic.configuration.cleanupPolicy.contains(.compact) {
            partition.whenOpen { $0.compactIfDue(now: now) }
        }
    }

    private func sweepUnopened(_ keys: ArraySlice<PartitionKey>) {
        guard let key = keys.first, !isStopping else {
            sweepsUnopened = false
            return
        }
        guard existingPartition(key) == nil, let partition = partition(key) else {
            eventLoop.execute { self.sweepUnopened(keys.dropFirst()) }
            return
        }
        partition.whenOpen { partition in
            func goOn() {
                partition.letGoIfUnused(since: self.eventLoop.now)
                self.eventLoop.execute { self.sweepUnopened(keys.dropFirst()) }
            }
            partition.applyRetention(now: self.wallTime)
            guard partition.topic.configuration.cleanupPolicy.contains(.compact) else { return goOn() }
            partition.compactIfDue(now: self.wallTime, done: goOn)
        }
    }
}
