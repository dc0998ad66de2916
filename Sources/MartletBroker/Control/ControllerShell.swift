internal import DequeModule
package import Logging
package import MartletController
package import MartletKafkaProtocol
package import MartletLogModel
package import MartletMetadataQuorum
package import MartletStorage
package import NIOCore

/// The controller on its event loop: owns the core; the metadata log is the quorum's.
///
/// A request's records are proposed, replayed at once, and committed when the quorum's high watermark passes them; then
/// the new image goes to every loop, and only when all have it is the request answered, so that whoever got the answer
/// finds what it says wherever it asks next.
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
    private let quorum: QuorumShell
    private let clock: BrokerClock
    /// For identifiers of topics.
    package let random: RandomSource
    private let logger: Logger
    private var core: ClusterController
    private var pending = Deque<Pending>()
    private var failure: MetadataLogError?
    private var lastImage: MetadataImage
    private var snapshotEnd: Offset
    private var loops: [BrokerLoop] = []

    /// Loads the metadata, or writes the first records of a new cluster. Blocks; call it before serving.
    ///
    /// - Parameter endpoint: where other nodes of the quorum would find this one.
    package init(
        eventLoop: any EventLoop, directory: LogDirectory<AnyDisk>, surroundings: Surroundings, nodeID: BrokerID,
        endpoint: Endpoint, clusterID: UniversalID, staticValues: [String: String], logger: Logger
    ) throws {
        self.eventLoop = eventLoop
        clock = surroundings.clock
        random = surroundings.random
        self.logger = logger
        var configuration = LogConfiguration()
        configuration.retentionMilliseconds = nil
        configuration.deletesOld = false
        configuration.mayUseReserve = true
        let log = try PartitionLog.open(
            directory: directory, topicPartition: MetadataLog.partition, topicID: MetadataLog.topicID,
            configuration: configuration, now: clock.wallTime)
        self.nodeID = nodeID
        core = ClusterController(localBroker: nodeID, staticConfiguration: staticValues)
        let loaded = try MetadataLog.load(log, disk: surroundings.disk)
        snapshotEnd = loaded.snapshot?.offset ?? .zero
        let node = ReplicaKey(nodeID, directory.meta.directoryID)
        let voters = VoterSet([Voter(key: ReplicaKey(nodeID, nil), endpoints: [endpoint])])
        quorum = try QuorumShell(
            eventLoop: eventLoop, log: log, loaded: loaded, surroundings: surroundings,
            configuration: QuorumConfiguration(node: node, endpoints: [endpoint], bootstrapVoters: voters), logger: logger)
        for (record, offset) in loaded.records { try core.replay(record, at: offset) }
        lastImage = core.publish().image
        try quorum.start()
        try appendBlocking(core.openingRecords)
        if loaded.records.isEmpty {
            try appendBlocking(ClusterController.bootstrapRecords(clusterID: clusterID))
        }
    }

    /// The metadata as of the last commit.
    package var image: MetadataImage { lastImage }

    /// Registers this broker, as each start does. Blocks; before serving.
    package func registerBlocking(_ decide: (borrowing ClusterController, Offset) throws -> [MetadataRecord]) throws {
        try appendBlocking(try decide(core, quorum.log.logEndOffset))
    }

    private func appendBlocking(_ records: [MetadataRecord]) throws {
        guard !records.isEmpty else { return }
        try write(records)
        guard quorum.highWatermark == quorum.log.logEndOffset else {
            throw MetadataLogError(description: "the metadata log cannot be flushed: \(quorum.log.directory.state)")
        }
        lastImage = core.publish().image
    }

    /// The blocking part of the start is over.
    package func install(loops: [BrokerLoop]) {
        self.loops = loops
        quorum.advanced = { [unowned self] end in committed(upTo: end) }
        quorum.halted = { [unowned self] cause in halted(cause) }
        quorum.serve()
    }

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
            let start = quorum.log.logEndOffset
            do {
                for batch in decision.batches { try write(batch) }
                let published = core.publish()
                image = published.image
                deletedTopics = published.delta.deletedTopics.map(\.name)
            } catch {
                logger.error("metadata change failed", metadata: ["cause": "\(error)"])
                if quorum.log.logEndOffset != start {
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
        let end = quorum.log.logEndOffset
        if end <= quorum.highWatermark {
            promise.succeed(response)
            return
        }
        pending.append(
            Pending(
                end: end, image: image, deletedTopics: deletedTopics, succeed: { _ in promise.succeed(response) }, fail: { promise.fail($0) }))
    }

    /// Proposes one batch and replays it. On an error the log's end tells whether the batch is in it; then the core may
    /// have replayed some of it.
    private func write(_ records: [MetadataRecord]) throws {
        let base = try quorum.propose(try MetadataLog.batch(records, now: clock.wallTime), count: records.count)
        for (index, record) in records.enumerated() { try core.replay(record, at: base + Int64(index)) }
    }

    private func halted(_ cause: String) {
        let failure = MetadataLogError(description: cause)
        self.failure = failure
        logger.critical("controller stopped", metadata: ["cause": "\(failure)"])
        while let next = pending.popFirst() { next.fail(failure) }
    }

    private func committed(upTo committed: Offset) {
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
        takeSnapshotIfDue()
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
        guard failure == nil, pending.isEmpty, quorum.highWatermark == quorum.log.logEndOffset,
            quorum.highWatermark - snapshotEnd >= Int64(Self.snapshotRecordInterval)
        else { return }
        do {
            let written = try quorum.takeSnapshot(core.snapshotRecords())
            snapshotEnd = written.end
            logger.info(
                "metadata snapshot written", metadata: ["end": "\(written.end)", "bytes": "\(written.byteCount)"])
        } catch {
            // The log still holds everything: loading is slower until a later snapshot succeeds.
            logger.error("metadata snapshot failed", metadata: ["cause": "\(error)"])
        }
    }

    // MARK: Shutdown

    package func close() -> EventLoopFuture<Void> {
        let promise = eventLoop.makePromise(of: Void.self)
        eventLoop.execute {
            self.failure = MetadataLogError(description: "the broker is shutting down")
            self.quorum.close(promise)
        }
        return promise.futureResult
    }
}
