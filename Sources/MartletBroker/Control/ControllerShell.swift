internal import DequeModule
package import Logging
package import MartletController
package import MartletKafkaProtocol
package import MartletLogModel
internal import MartletRecordBatch
package import MartletStorage
package import NIOCore

/// The controller on its event loop: owns the core and the metadata log.
///
/// A request's records are written, replayed at once, and committed by the flush; then the new image goes to
/// every loop, and only when all have it is the request answered, so that whoever got the answer finds what it
/// says wherever it asks next. Commit rule of a single broker: flushed locally.
// SAFETY: all state is touched on `eventLoop` alone, except in `init`, which runs before the loops have work.
package final class ControllerShell: @unchecked Sendable {
    /// A snapshot is taken after this many records since the last, which bounds loading after a restart.
    private static let snapshotRecordInterval = 50_000

    private struct Pending {
        /// Exclusive end of the records this waits for.
        var end: Offset
        var image: MetadataImage?
        /// Topics that `image` no longer has.
        var deletedTopics: [String] = []
        var succeed: (MetadataImage?) -> Void
        var fail: (any Error) -> Void
    }

    package let eventLoop: any EventLoop
    package let nodeID: BrokerID
    private let log: PartitionLog<AnyDisk>
    private let disk: AnyDisk
    private let clock: BrokerClock
    /// For identifiers of topics.
    package let random: RandomSource
    private let logger: Logger
    /// Runs work away from the loop and calls back on any thread.
    private let flush: @Sendable (FlushWork<AnyDisk>, @escaping @Sendable (FlushResult) -> Void) -> Void
    private var core: ClusterController
    private let epoch: LeaderEpoch
    private var pending = Deque<Pending>()
    private var isFlushing = false
    private var failure: MetadataLogError?
    private var lastImage: MetadataImage
    private var snapshotEnd: Offset
    private var loops: [BrokerLoop] = []
    private var closePromise: EventLoopPromise<Void>?

    /// Loads the metadata, or writes the first records of a new cluster. Blocks; call it before serving.
    package init(
        eventLoop: any EventLoop, directory: LogDirectory<AnyDisk>, surroundings: Surroundings, nodeID: BrokerID,
        clusterID: UniversalID, staticValues: [String: String], logger: Logger
    ) throws {
        self.eventLoop = eventLoop
        disk = surroundings.disk
        clock = surroundings.clock
        random = surroundings.random
        self.logger = logger
        let flushPool = surroundings.flushPool
        flush = { work, done in flushPool.submit { _ in done(work.run()) } }
        var configuration = LogConfiguration()
        configuration.retentionMilliseconds = nil
        configuration.deletesOld = false
        configuration.mayUseReserve = true
        log = try PartitionLog.open(
            directory: directory, topicPartition: MetadataLog.partition, topicID: MetadataLog.topicID,
            configuration: configuration, now: clock.wallTime)
        self.nodeID = nodeID
        epoch = LeaderEpoch(1)
        core = ClusterController(localBroker: nodeID, staticConfiguration: staticValues)
        let loaded = try MetadataLog.load(log, disk: disk)
        snapshotEnd = loaded.snapshotEnd ?? .zero
        for (record, offset) in loaded.records { try core.replay(record, at: offset) }
        lastImage = core.publish().image
        try appendBlocking(core.openingRecords)
        if loaded.records.isEmpty {
            try appendBlocking(ClusterController.bootstrapRecords(clusterID: clusterID))
        }
    }

    /// The metadata as of the last commit.
    package var image: MetadataImage { lastImage }

    /// Registers this broker, as each start does. Blocks; before serving.
    package func registerBlocking(_ decide: (borrowing ClusterController, Offset) throws -> [MetadataRecord]) throws {
        try appendBlocking(try decide(core, log.logEndOffset))
    }

    private func appendBlocking(_ records: [MetadataRecord]) throws {
        guard !records.isEmpty else { return }
        try write(records)
        if let work = log.takeFlush() { log.flushCompleted(work.run()) }
        guard log.flushedEndOffset == log.logEndOffset else {
            throw MetadataLogError(description: "the metadata log cannot be flushed: \(log.directory.state)")
        }
        lastImage = core.publish().image
    }

    package func install(loops: [BrokerLoop]) { self.loops = loops }

    // MARK: Requests

    /// Runs `decide` on the controller's loop; the future holds its response once the records are committed
    /// and every loop has the new image. Fails only if the metadata log cannot be written.
    package func submit<Response: Sendable>(
        _ decide: @escaping @Sendable (borrowing ClusterController) -> Decision<Response>
    ) -> EventLoopFuture<Response> {
        let promise = eventLoop.makePromise(of: Response.self)
        eventLoop.execute { self.process(decide, promise) }
        return promise.futureResult
    }

    private func process<Response: Sendable>(
        _ decide: @Sendable (borrowing ClusterController) -> Decision<Response>, _ promise: EventLoopPromise<Response>
    ) {
        if let failure {
            promise.fail(failure)
            return
        }
        let decision = decide(core)
        let response = decision.response
        var image: MetadataImage?
        var deletedTopics: [String] = []
        if !decision.records.isEmpty {
            let start = log.logEndOffset
            do {
                for batch in decision.batches { try write(batch) }
                let published = core.publish()
                image = published.image
                deletedTopics = published.delta.deletedTopics.map(\.name)
            } catch {
                logger.error("metadata change failed", metadata: ["cause": "\(error)"])
                if log.logEndOffset != start {
                    // Half of a transaction is in the log, which the next start undoes, or a record is that the core
                    // does not take: what the core knows is no longer what the log says.
                    failure = MetadataLogError(
                        description: "a metadata change was written in part: \(error); restart the broker")
                }
                promise.fail(error)
                return
            }
        }
        // An answer without records may still speak of records that are not committed: it waits for them.
        let end = log.logEndOffset
        if end <= log.flushedEndOffset {
            promise.succeed(response)
            return
        }
        pending.append(
            Pending(
                end: end, image: image, deletedTopics: deletedTopics, succeed: { _ in promise.succeed(response) }, fail: { promise.fail($0) }))
        startFlush()
    }

    /// Writes one batch and replays it. On an error the log's end tells whether the batch is in it; then the core may
    /// have replayed some of it.
    private func write(_ records: [MetadataRecord]) throws {
        let now = clock.wallTime
        var batch = try MetadataLog.batch(records, now: now)
        let header = try RecordBatchHeader(reading: batch)
        let outcome = try log.stage(&batch, header: header, leaderEpoch: epoch, now: now)
        try log.writeStaged()
        guard case .staged(let base, _, _) = outcome else {
            preconditionFailure("a metadata batch has no producer and is never a duplicate")
        }
        for (index, record) in records.enumerated() { try core.replay(record, at: base + Int64(index)) }
    }

    private func startFlush() {
        guard !isFlushing, let work = log.takeFlush() else { return }
        isFlushing = true
        flush(work) { result in self.eventLoop.execute { self.flushed(result) } }
    }

    private func flushed(_ result: FlushResult) {
        isFlushing = false
        log.flushCompleted(result)
        if let cause = result.failure {
            let failure = MetadataLogError(description: "the metadata log cannot be flushed: \(cause)")
            self.failure = failure
            logger.critical("controller stopped", metadata: ["cause": "\(failure)"])
            while let next = pending.popFirst() { next.fail(failure) }
        }
        let committed = log.flushedEndOffset
        var done: [Pending] = []
        var image: MetadataImage?
        var deletedTopics: [String] = []
        while let next = pending.first, next.end <= committed {
            pending.removeFirst()
            if let newer = next.image { image = newer }
            deletedTopics += next.deletedTopics
            done.append(next)
        }
        if let image { publish(image, deletedTopics, then: done) } else { for each in done { each.succeed(nil) } }
        if !pending.isEmpty { startFlush() }
        takeSnapshotIfDue()
        if let closePromise, !isFlushing {
            self.closePromise = nil
            finishClosing(closePromise)
        }
    }

    private func publish(_ image: MetadataImage, _ deletedTopics: [String], then done: [Pending]) {
        let gone = deletedTopics.compactMap { lastImage.topic(named: $0) }
        lastImage = image
        let applied = loops.map { loop in
            let promise = eventLoop.makePromise(of: Void.self)
            loop.post { loop in
                loop.apply(image, deletedTopics: deletedTopics)
                promise.succeed()
            }
            return promise.futureResult
        }
        EventLoopFuture.andAllComplete(applied, on: eventLoop).assumeIsolated().whenComplete { _ in
            for topic in gone {
                self.loops.first?.services.loops.forget(topic: topic.id, partitionCount: topic.partitions.count)
            }
            for each in done { each.succeed(image) }
        }
    }

    // MARK: Snapshots

    private func takeSnapshotIfDue() {
        guard failure == nil, pending.isEmpty, log.logEndOffset - snapshotEnd >= Int64(Self.snapshotRecordInterval)
        else { return }
        let end = log.flushedEndOffset
        do {
            let bytes = try MetadataLog.snapshot(core.snapshotRecords(), now: clock.wallTime, epoch: epoch)
            let path = log.folder + "/" + MetadataLog.snapshotName(end: end, epoch: epoch)
            try disk.replaceAtomically(path, with: bytes)
            snapshotEnd = end
            try MetadataLog.removeSnapshots(before: end, in: log.folder, disk: disk)
            if let work = try log.deleteRecords(before: end, highWatermark: end) {
                try work.run()
                try log.adoptLogStart(now: clock.wallTime)
            }
            startFlush()
            logger.info("metadata snapshot written", metadata: ["end": "\(end)", "bytes": "\(bytes.readableBytes)"])
        } catch {
            // The log still holds everything: loading is slower until a later snapshot succeeds.
            logger.error("metadata snapshot failed", metadata: ["cause": "\(error)"])
        }
    }

    // MARK: Shutdown

    package func close() -> EventLoopFuture<Void> {
        let promise = eventLoop.makePromise(of: Void.self)
        eventLoop.execute {
            if self.isFlushing { self.closePromise = promise } else { self.finishClosing(promise) }
        }
        return promise.futureResult
    }

    private func finishClosing(_ promise: EventLoopPromise<Void>) {
        failure = MetadataLogError(description: "the broker is shutting down")
        do {
            try log.close(clean: true)
        } catch {
            logger.error("metadata log not closed cleanly", metadata: ["cause": "\(error)"])
        }
        promise.succeed()
    }
}
