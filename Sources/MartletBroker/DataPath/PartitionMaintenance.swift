internal import Logging
internal import MartletController
package import MartletLogModel
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

extension Partition {
    /// Raises the log start offset to `offset`, -1 for the high watermark, and answers once that is durable.
    package func deleteRecords(
        before offset: Int64, done: @escaping (Result<Offset, PartitionUnavailable>) -> Void
    ) {
        let log: PartitionLog<PosixDisk>
        switch openLog {
        case .success(let open): log = open
        case .failure(let unavailable):
            done(.failure(unavailable))
            return
        }
        let target = offset == -1 ? highWatermark : Offset(offset)
        guard target.rawValue >= 0, target <= highWatermark else {
            done(.failure(PartitionUnavailable(code: .offsetOutOfRange, cause: "beyond the high watermark")))
            return
        }
        let work: LogStartWork<PosixDisk>?
        do throws(ReadError) {
            work = try log.deleteRecords(before: target, highWatermark: highWatermark)
        } catch {
            done(.failure(PartitionUnavailable(code: error.errorCode, cause: error.description)))
            return
        }
        guard let work else {
            done(.success(log.logStartOffset))
            return
        }
        raiseLogStart(work) { result in
            switch result {
            case .success: done(.success(log.logStartOffset))
            case .failure(let error): done(.failure(PartitionUnavailable(code: .kafkaStorageError, cause: "\(error)")))
            }
        }
    }

    /// A new log start counts once it is durable: checkpoint on the work pool, then adopt it here.
    private func raiseLogStart(
        _ work: LogStartWork<PosixDisk>, done: @escaping (Result<Void, any Error>) -> Void
    ) {
        let name = self.name
        loop.services.workPool.runIfActive(eventLoop: loop.eventLoop) { try work.run() }
            .flatMapThrowing {
                guard case .success(let log) = self.openLog else { return }
                try log.adoptLogStart(now: WallClock.now())
            }
            .assumeIsolated().whenComplete { result in
                if case .failure(let error) = result {
                    self.loop.logger.error(
                        "log start not raised", metadata: ["partition": "\(name)", "cause": "\(error)"])
                }
                done(result)
                self.removeDeletedFiles()
                self.requestFlush()
            }
    }

    /// Rolls by time, removes what retention allows, starts the removal of files that are due.
    package func applyRetention(now: Timestamp) {
        guard case .success(let log) = openLog else { return }
        do throws(StorageError) {
            try log.tick(now: now)
            if let work = try log.applyRetention(now: now, highWatermark: highWatermark) {
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
        guard case .success(let log) = openLog, let removal = log.purgeDeleted(now: WallClock.now()) else { return }
        let (logger, name) = (loop.logger, self.name)
        loop.services.workPool.submit { _ in
            do {
                try removal.run()
            } catch {
                logger.error("files not removed", metadata: ["partition": "\(name)", "cause": "\(error)"])
            }
        }
    }
}

extension BrokerLoop {
    /// Retention for every partition of this loop that has files. One that nobody uses is opened for it and
    /// let go again.
    package func sweepRetention() {
        let now = WallClock.now()
        for partition in openPartitions { partition.whenOpen { $0.applyRetention(now: now) } }
    }

    package func sweepCompaction() {
        let now = WallClock.now()
        for partition in openPartitions where partition.topic.configuration.cleanupPolicy.contains(.compact) {
            _ = (partition, now)
        }
    }
}
