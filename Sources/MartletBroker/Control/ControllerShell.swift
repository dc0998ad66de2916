internal import DequeModule
package import Logging
package import MartletController
internal import MartletKafkaProtocol
package import MartletLogModel
internal import MartletMetadataQuorum
package import MartletStorage
package import NIOCore

/// Why a request to the controller has no answer of its own.
package enum ControllerUnavailable: Error, Equatable, CustomStringConvertible {
    /// This node does not lead the metadata quorum, or does not yet; nothing was done.
    case notController
    /// It stopped leading before the records were committed: nobody knows what becomes of them.
    case outcomeUnknown

    package var description: String {
        switch self {
        case .notController: "this node is not the active controller"
        case .outcomeUnknown: "the controller changed while the request was carried out"
        }
    }
}

/// The controller on its event loop: owns the core; the metadata log is the quorum's.
///
/// Everywhere but on the leader of the quorum it follows: what is committed is replayed and goes as an image to every
/// loop. On the leader a request's records are proposed, replayed at once, and committed when the quorum's high watermark
/// passes them; then the new image goes to every loop, and only when all have it is the request answered, so that whoever
/// got the answer finds what it says wherever it asks next. When the leadership is lost, what is not committed is thrown
/// away with the core.
// SAFETY: all state is touched on `eventLoop` alone, except in `init`, which runs before the loops have work.
package final class ControllerShell: @unchecked Sendable {
    /// Answers that wait for a commit: far more than a quorum that commits at all leaves waiting.
    private static let pendingLimit = 20_000
    /// Longest time between two looks of the active controller at what time has brought.
    private static let tickLimitMilliseconds: Int64 = 500

    struct Pending {
        /// Exclusive end of the records this waits for.
        var end: Offset
        var image: MetadataImage?
        /// Topics that `image` no longer has.
        var deletedTopics: [String] = []
        var succeed: () -> Void
        var fail: (any Error) -> Void
    }

    package let eventLoop: any EventLoop
    package let nodeID: BrokerID
    let clusterID: UniversalID
    let quorum: QuorumShell
    let network: any PeerNetwork
    private let clock: BrokerClock
    /// For identifiers of topics.
    package let random: RandomSource
    let logger: Logger
    private let configuredBrokerCount: Int
    private var core: ClusterController
    /// Everything below is replayed.
    private var replayedEnd: Offset
    /// Whether this node decides.
    private(set) var isActive = false
    /// The other node that led last, as far as this one knows.
    private var formerLeader: BrokerID?
    /// Whether this process has registered its broker: an earlier run's session is then over for sure.
    var hasRegistered = false
    private var pending = Deque<Pending>()
    private(set) var failure: MetadataLogError?
    private var lastImage: MetadataImage
    /// The last committed image outside of a transaction of records, and the end of what it contains.
    private var base: (image: MetadataImage, end: Offset)
    private var snapshotEnd: Offset
    private let snapshotInterval: Int64
    private var loops: [BrokerLoop] = []
    private var tickTask: (deadline: Instant, task: Scheduled<Void>)?
    /// Everything below is known to every loop.
    private(set) var appliedEnd: Offset
    private var appliedWaiters: [(end: Offset, promise: EventLoopPromise<Void>)] = []

    /// Every loop has the image, which holds everything below the offset.
    var applied: (MetadataImage, Offset) -> Void = { _, _ in }
    /// Whether loops may act on an image: on none from before the registration of this process, in which they may be
    /// leaders that others have replaced meanwhile (KIP-903).
    var isCurrent: (MetadataImage) -> Bool = { _ in true }
    /// Who leads the quorum, as far as this node knows.
    var leaderChanged: (LeaderAddress?) -> Void = { _ in }
    /// This node cannot go on; why.
    var stopped: (String) -> Void = { _ in }

    /// Loads the metadata, or writes the first records of a new cluster where this node is the whole quorum. Blocks; call
    /// it before serving.
    package init(
        eventLoop: any EventLoop, directory: LogDirectory<AnyDisk>, surroundings: Surroundings, settings: BrokerSettings,
        clusterID: UniversalID, logger: Logger
    ) throws {
        self.eventLoop = eventLoop
        self.clusterID = clusterID
        nodeID = settings.nodeID
        clock = surroundings.clock
        random = surroundings.random
        network = surroundings.peers
        self.logger = logger
        var configuration = LogConfiguration()
        configuration.retentionMilliseconds = nil
        configuration.deletesOld = false
        configuration.mayUseReserve = true
        let log = try PartitionLog.open(
            directory: directory, topicPartition: MetadataLog.partition, topicID: MetadataLog.topicID,
            configuration: configuration, now: clock.wallTime)
        let loaded = try MetadataLog.load(log, disk: surroundings.disk)
        snapshotEnd = loaded.snapshot?.offset ?? .zero
        quorum = try QuorumShell(
            eventLoop: eventLoop, log: log, loaded: loaded, surroundings: surroundings,
            configuration: settings.quorumConfiguration(directory.meta), clusterID: clusterID.description, logger: logger)
        configuredBrokerCount = max(1, settings.voters.count)
        snapshotInterval = settings.recordsPerMetadataSnapshot
        core = ClusterController(
            localBroker: nodeID, staticConfiguration: settings.values, configuredBrokerCount: configuredBrokerCount,
            isFollowing: !quorum.isAlone)
        // Alone everything in the log is committed; else what lies behind the snapshot may still be taken back.
        let known = quorum.isAlone ? log.logEndOffset : quorum.highWatermark
        for (record, offset) in loaded.records where offset < known { try core.replay(record, at: offset) }
        replayedEnd = known
        appliedEnd = known
        lastImage = core.publish().image
        base = (lastImage, known)
        try quorum.start()
        guard quorum.isReady else { return }
        isActive = true
        try appendBlocking(core.openingRecords)
        if loaded.records.isEmpty {
            try appendBlocking(
                ClusterController.bootstrapRecords(clusterID: clusterID, configuredBrokerCount: configuredBrokerCount))
        }
        settle()
    }

    /// The metadata as of the last commit.
    package var image: MetadataImage { lastImage }

    var now: Instant { Instant(nanoseconds: Int64(clamping: eventLoop.now.uptimeNanoseconds)) }

    /// Registers this broker, as each start does of a node that is the whole quorum. Blocks; before serving.
    func registerBlocking(_ decide: (borrowing ClusterController, Offset) throws -> [MetadataRecord]) throws {
        try appendBlocking(try decide(core, quorum.log.logEndOffset))
        settle()
    }

    private func appendBlocking(_ records: [MetadataRecord]) throws {
        guard !records.isEmpty else { return }
        try write(records)
        guard quorum.highWatermark == quorum.log.logEndOffset else {
            throw MetadataLogError(description: "the metadata log cannot be flushed: \(quorum.log.directory.state)")
        }
        lastImage = core.publish().image
    }

    /// Everything written is committed.
    private func settle() {
        replayedEnd = quorum.highWatermark
        base = (lastImage, replayedEnd)
        appliedEnd = replayedEnd
    }

    /// The blocking part of the start is over.
    package func install(loops: [BrokerLoop]) {
        self.loops = loops
        quorum.advanced = { [unowned self] end in advanced(to: end) }
        quorum.ready = { [unowned self] epoch in activate(epoch) }
        quorum.lost = { [unowned self] in deactivate() }
        quorum.reset = { [unowned self] records, position in reset(records, position) }
        quorum.leaderChanged = { [unowned self] leader, _ in
            if let leader, leader.id != nodeID { formerLeader = leader.id }
            leaderChanged(leader)
        }
        quorum.halted = { [unowned self] cause in halted(cause) }
        quorum.serve()
    }

    // MARK: Requests

    /// Runs `decide` on the controller's loop; the future holds its response once the records are committed
    /// and every loop has the new image. Fails with ``ControllerUnavailable`` where this node does not decide, else
    /// only if the metadata log cannot be written.
    package func submit<Response: Sendable>(
        _ decide: @escaping @Sendable (borrowing ClusterController) -> Decision<Response>
    ) -> EventLoopFuture<Response> {
        submit { core, _, _ in decide(core) } after: { _, _, _ in }
    }

    /// - Parameters:
    ///   - decide: is given the offset that its first record will get; may note what is no part of the metadata.
    ///   - after: runs at once when the records are replayed.
    func submit<Response: Sendable>(
        _ decide: @escaping @Sendable (inout ClusterController, Offset, Instant) -> Decision<Response>,
        after: @escaping @Sendable (inout ClusterController, Response, Instant) -> Void
    ) -> EventLoopFuture<Response> {
        let promise = eventLoop.makePromise(of: Response.self)
        eventLoop.execute { self.process(decide, after, promise) }
        return promise.futureResult
    }

    private func process<Response: Sendable>(
        _ decide: (inout ClusterController, Offset, Instant) -> Decision<Response>,
        _ after: (inout ClusterController, Response, Instant) -> Void, _ promise: EventLoopPromise<Response>
    ) {
        if let failure { return promise.fail(failure) }
        guard isActive, pending.count < Self.pendingLimit else { return promise.fail(ControllerUnavailable.notController) }
        let decision = decide(&core, quorum.log.logEndOffset, now)
        guard decision.batches.count <= quorum.proposalRoom else {
            return promise.fail(ControllerUnavailable.notController)
        }
        var image: MetadataImage?
        var deletedTopics: [String] = []
        if !decision.records.isEmpty {
            do {
                (image, deletedTopics) = try write(decision)
            } catch {
                promise.fail(error)
                return
            }
        }
        let response = decision.response
        after(&core, response, now)
        scheduleTick()
        // An answer without records may still speak of records that are not committed: it waits for them.
        let end = quorum.log.logEndOffset
        if end <= quorum.highWatermark {
            promise.succeed(response)
            return
        }
        pending.append(
            Pending(
                end: end, image: image, deletedTopics: deletedTopics, succeed: { promise.succeed(response) },
                fail: { promise.fail($0) }))
    }

    /// Writes and replays all batches of a decision; what is new since the one before.
    private func write<Response>(_ decision: Decision<Response>) throws -> (MetadataImage, [String]) {
        let start = quorum.log.logEndOffset
        do {
            for batch in decision.batches { try write(batch) }
        } catch {
            guard isActive else { throw ControllerUnavailable.outcomeUnknown }
            logger.error("metadata change failed", metadata: ["cause": "\(error)"])
            if quorum.log.logEndOffset != start { writtenInPart(error) }
            throw error
        }
        let published = core.publish()
        return (published.image, published.delta.deletedTopics.map(\.name))
    }

    /// Half of a transaction is in the log, or a record is that the core does not take: what the core knows is no longer
    /// what the log says. Among several the next controller undoes it; alone the next start does.
    private func writtenInPart(_ error: any Error) {
        guard quorum.isAlone else {
            // At once: no commit may pass for one of what this core has.
            deactivate()
            eventLoop.execute { self.quorum.handle(.resignationRequested) }
            return
        }
        failure = MetadataLogError(
            description: "a metadata change was written in part: \(error); restart the broker")
    }

    /// Proposes one batch and replays it. On an error the log's end tells whether the batch is in it; then the core may
    /// have replayed some of it.
    private func write(_ records: [MetadataRecord]) throws {
        let base = try quorum.propose(try MetadataLog.batch(records, now: clock.wallTime), count: records.count)
        // The quorum may have found, when it heard of the batch, that this node leads no more: the core is another one
        // then.
        guard isActive else { throw ControllerUnavailable.outcomeUnknown }
        for (index, record) in records.enumerated() { try core.replay(record, at: base + Int64(index)) }
        replayedEnd = base + Int64(records.count)
    }

    /// Appends what nobody asked for; it is published when it is committed.
    private func append(_ decision: Decision<Void>) {
        guard !decision.records.isEmpty else { return }
        do {
            let (image, deletedTopics) = try write(decision)
            publishWhenCommitted(image, deletedTopics, end: quorum.log.logEndOffset)
        } catch {
            logger.error("the controller cannot write", metadata: ["cause": "\(error)"])
        }
    }

    private func publishWhenCommitted(_ image: MetadataImage, _ deletedTopics: [String], end: Offset) {
        if end <= quorum.highWatermark {
            if end > base.end { publish(image, deletedTopics, end: end, then: []) }
        } else {
            pending.append(Pending(end: end, image: image, deletedTopics: deletedTopics, succeed: {}, fail: { _ in }))
        }
    }

    private func halted(_ cause: String) {
        let failure = MetadataLogError(description: cause)
        self.failure = failure
        isActive = false
        logger.critical("controller stopped", metadata: ["cause": "\(failure)"])
        while let next = pending.popFirst() { next.fail(failure) }
        for waiter in appliedWaiters { waiter.promise.fail(failure) }
        appliedWaiters = []
        stopped(cause)
    }

    // MARK: Commit

    private func advanced(to end: Offset) {
        guard failure == nil else { return }
        if isActive { committed(upTo: end) } else { follow(upTo: end) }
        takeSnapshotIfDue()
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
        if let image, let end = done.last?.end {
            publish(image, deletedTopics, end: end, then: done)
        } else {
            for each in done { each.succeed() }
            if pending.isEmpty { passControlRecords(upTo: committed) }
        }
    }

    /// What has been committed since the last image is the quorum's own.
    private func passControlRecords(upTo end: Offset) {
        base.end = end
        let image = lastImage
        // Behind the images that are on their way to the loops.
        let passed = loops.map { $0.eventLoop.submit {} }
        EventLoopFuture.andAllComplete(passed, on: eventLoop).assumeIsolated().whenComplete { _ in
            self.noteApplied(image, end)
        }
    }

    /// Replays what is committed, and publishes it.
    private func follow(upTo end: Offset) {
        guard end > replayedEnd else { return }
        do {
            try replay(upTo: end)
        } catch {
            return halted("the metadata log cannot be replayed: \(error)")
        }
        guard !core.isInTransaction else { return }
        let (image, delta) = core.publish()
        if delta.isEmpty, image.lastOffset == lastImage.lastOffset {
            passControlRecords(upTo: end)
        } else {
            publish(image, delta.deletedTopics.map(\.name), end: end, then: [])
        }
    }

    private func replay(upTo end: Offset) throws {
        try MetadataLog.replay(quorum.log, from: replayedEnd, upTo: end) { records in
            for (record, offset) in records { try core.replay(record, at: offset) }
        }
        replayedEnd = end
    }

    private func publish(_ image: MetadataImage, _ deletedTopics: [String], end: Offset, then done: [Pending]) {
        let gone = deletedTopics.compactMap { lastImage.topic(named: $0) }
        lastImage = image
        base = (image, end)
        var applied = [eventLoop.submit {}]
        if isCurrent(image) {
            applied += loops.map { loop in
                let promise = eventLoop.makePromise(of: Void.self)
                loop.post { loop in
                    loop.apply(image, deletedTopics: deletedTopics)
                    promise.succeed()
                }
                return promise.futureResult
            }
        }
        EventLoopFuture.andAllComplete(applied, on: eventLoop).assumeIsolated().whenComplete { _ in
            for topic in gone {
                self.loops.first?.services.loops.forget(topic: topic.id, partitionCount: topic.partitions.count)
            }
            self.noteApplied(image, end)
            for each in done { each.succeed() }
        }
    }

    private func noteApplied(_ image: MetadataImage, _ end: Offset) {
        guard end >= appliedEnd else { return }
        appliedEnd = end
        applied(image, end)
        guard !appliedWaiters.isEmpty else { return }
        let ready = appliedWaiters.filter { $0.end <= end }
        appliedWaiters.removeAll { $0.end <= end }
        for waiter in ready { waiter.promise.succeed() }
    }

    /// Completes when every loop of this broker knows everything below `end`, or after `limit`. On the controller's loop.
    func whenApplied(_ end: Offset, limit: TimeAmount) -> EventLoopFuture<Void> {
        guard end > appliedEnd, failure == nil, appliedWaiters.count < Self.pendingLimit else {
            return eventLoop.makeSucceededVoidFuture()
        }
        let promise = eventLoop.makePromise(of: Void.self)
        appliedWaiters.append((end, promise))
        let late = eventLoop.scheduleTask(in: limit) {
            self.appliedWaiters.removeAll { $0.promise.futureResult === promise.futureResult }
            promise.succeed()
        }
        promise.futureResult.whenComplete { _ in late.cancel() }
        return promise.futureResult
    }

    // MARK: Leadership of the quorum

    /// Everything in the log is committed or will be: decides on top of it from now on.
    private func activate(_ epoch: LeaderEpoch) {
        guard failure == nil, !isActive, quorum.isReady, quorum.epoch == epoch else { return }
        do {
            try replay(upTo: quorum.log.logEndOffset)
        } catch {
            return halted("the metadata log cannot be replayed: \(error)")
        }
        let first = core.activate(now: now)
        if !hasRegistered { core.sessionEnded(nodeID) }
        isActive = true
        logger.info("this node is the active controller", metadata: ["epoch": "\(epoch)"])
        var records = first
        if core.image.lastOffset == nil {
            records = ClusterController.bootstrapRecords(clusterID: clusterID, configuredBrokerCount: configuredBrokerCount)
        }
        if records.isEmpty {
            let (image, delta) = core.publish()
            publishWhenCommitted(image, delta.deletedTopics.map(\.name), end: replayedEnd)
        } else {
            append(Decision(records: records, response: (), isAtomic: false))
        }
        scheduleTick()
        // Why it leads no more may be that its process has ended.
        if let formerLeader, let broker = image.broker(formerLeader) { heartbeatsLost(formerLeader, epoch: broker.epoch) }
    }

    /// Goes back to what is committed for sure, and follows.
    private func deactivate() {
        guard isActive else { return }
        isActive = false
        tickTask?.task.cancel()
        tickTask = nil
        let unfinished = pending
        pending = []
        core = ClusterController(image: base.image)
        replayedEnd = base.end
        logger.info("this node is no longer the active controller", metadata: ["pending": "\(unfinished.count)"])
        for each in unfinished { each.fail(ControllerUnavailable.outcomeUnknown) }
        follow(upTo: quorum.highWatermark)
    }

    /// The log begins anew behind a snapshot from the leader.
    private func reset(_ records: [MetadataRecord], _ position: LogPosition) {
        core = ClusterController(
            localBroker: nodeID, staticConfiguration: base.image.brokerValues.staticValues,
            configuredBrokerCount: configuredBrokerCount, isFollowing: true)
        do {
            for record in records { try core.replay(record, at: Offset(position.offset.rawValue - 1)) }
        } catch {
            return halted("the metadata snapshot cannot be replayed: \(error)")
        }
        replayedEnd = position.offset
        snapshotEnd = position.offset
        let image = core.publish().image
        let gone = lastImage.sortedTopics().filter { image.topic(id: $0.id) == nil }.map(\.name)
        publish(image, gone, end: position.offset, then: [])
    }

    // MARK: Time

    /// Alone, with no other broker, nobody falls silent and nothing can be balanced.
    private var isTicking: Bool { isActive && failure == nil && (!quorum.isAlone || core.image.brokers.count > 1) }

    private func scheduleTick(at next: Instant? = nil) {
        guard isTicking else { return }
        let limit = now.advanced(byMilliseconds: Self.tickLimitMilliseconds)
        let deadline = min(next ?? limit, limit)
        if let tickTask, tickTask.deadline <= deadline { return }
        tickTask?.task.cancel()
        let task = eventLoop.scheduleTask(deadline: .uptimeNanoseconds(UInt64(clamping: deadline.nanoseconds))) {
            self.tickTask = nil
            self.tick()
        }
        tickTask = (deadline, task)
    }

    private func tick() {
        guard isTicking else { return }
        let now = self.now
        // This process is alive, or it would not ask.
        if hasRegistered, let own = core.image.broker(nodeID) { core.contacted(nodeID, epoch: own.epoch, now: now) }
        guard quorum.proposalRoom > 16, pending.count < Self.pendingLimit else { return scheduleTick() }
        let tick = core.tick(now: now)
        for broker in tick.fencedBrokers {
            logger.notice(
                "broker fenced",
                metadata: [
                    "broker": "\(broker)",
                    "cause": "no heartbeat for \(core.image.brokerConfiguration.brokerSessionTimeoutMilliseconds) ms",
                ])
        }
        append(Decision(records: tick.records, response: (), isAtomic: false))
        scheduleTick(at: tick.isMoreLeft ? now : tick.next)
    }

    // MARK: Snapshots

    private func takeSnapshotIfDue() {
        let end = base.end
        guard failure == nil, !quorum.isTakingSnapshot, end == quorum.highWatermark, end <= quorum.flushedEnd,
            end - snapshotEnd >= snapshotInterval
        else { return }
        quorum.takeSnapshot(base.image, end: end) { [weak self] in self?.snapshotEnd = end }
    }

    // MARK: Shutdown

    /// Lets another node of the quorum lead, if this one does.
    func leave() -> EventLoopFuture<Void> { quorum.leave() }

    package func close() -> EventLoopFuture<Void> {
        let promise = eventLoop.makePromise(of: Void.self)
        eventLoop.execute {
            self.failure = MetadataLogError(description: "the broker is shutting down")
            self.tickTask?.task.cancel()
            self.tickTask = nil
            self.quorum.close(promise)
        }
        promise.futureResult.whenComplete { _ in
            let failure = self.failure ?? MetadataLogError(description: "the broker is shutting down")
            while let next = self.pending.popFirst() { next.fail(failure) }
            let waiters = self.appliedWaiters
            self.appliedWaiters = []
            for waiter in waiters { waiter.promise.succeed() }
        }
        return promise.futureResult
    }
}
