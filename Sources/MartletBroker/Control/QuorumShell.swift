internal import DequeModule
internal import Logging
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore

/// The node's part in the metadata quorum, on the controller's event loop: owns the quorum's core, the metadata log, its
/// snapshots and the file `quorum-state`, and carries out what the core orders. It decides nothing.
// SAFETY: all state is touched on `eventLoop` alone, except up to the end of `start()`, which runs before the loops
// have work.
final class QuorumShell: @unchecked Sendable {
    let eventLoop: any EventLoop
    let log: PartitionLog<AnyDisk>
    let disk: AnyDisk
    let clock: BrokerClock
    let logger: Logger
    let flushPool: any WorkQueue
    let workPool: any WorkQueue
    let peers: QuorumPeers
    private let nodeID: BrokerID
    private var random: RandomSource
    private let requestTimeoutMilliseconds: Int64
    private let fetchWaitMilliseconds: Int64
    private var core: MetadataQuorum
    private var events = Deque<QuorumEvent>()
    private var effects = Deque<QuorumEffect>()
    private var isHandling = false
    /// The next effect cuts the log, and waits for the flush under way.
    private var waitsForQuietLog = false
    /// End of the proposal that is in the log already while the core hears of it.
    private var writtenEnd: Offset?
    private var proposalCount: UInt64 = 0
    /// Until the end of ``start()`` the device is waited for.
    private var waitsForDevice = true
    private var isFlushing = false
    /// A flush that the core has ordered and that has not begun.
    private var orderedFlush: FlushGeneration?
    private var timer: (deadline: Instant, task: Scheduled<Void>)?
    private(set) var isClosing = false
    private var closePromise: EventLoopPromise<Void>?
    /// What the device refused last.
    private var failure: String?
    /// Work on the pools that touches the metadata log's folder.
    private var poolWorkCount = 0

    /// Requests of other nodes and of clients that wait for their answer.
    var requests: [RequestID: QuorumShell.Waiting] = [:]
    var lastRequest: UInt64 = 0
    var requestSweep: Scheduled<Void>?
    /// Rises with each cut of the log: what was read before one is not answered after it.
    private(set) var cutCount = 0
    /// What a snapshot holds that has been fetched and is about to be put in place.
    var installed: (id: LogPosition, records: [MetadataRecord])?
    var isTakingSnapshot = false
    /// Voters that have not confirmed yet that this node leads no more.
    private var farewells: Set<CallToken> = []
    private var departure: EventLoopPromise<Void>?

    /// Everything below the offset is committed.
    var advanced: (Offset) -> Void = { _ in }
    /// This node leads, and may propose from the next turn on.
    var ready: (LeaderEpoch) -> Void = { _ in }
    /// It leads no more: what is not committed may never be.
    var lost: () -> Void = {}
    /// The log was replaced by a snapshot of everything below the position.
    var reset: ([MetadataRecord], LogPosition) -> Void = { _, _ in }
    var leaderChanged: (LeaderAddress?, LeaderEpoch) -> Void = { _, _ in }
    /// The node takes no part any more; why.
    var halted: (String) -> Void = { _ in }

    /// - Parameter loaded: what ``MetadataLog/load(_:disk:)`` found.
    init(
        eventLoop: any EventLoop, log: PartitionLog<AnyDisk>, loaded: MetadataLog.Loaded, surroundings: Surroundings,
        configuration: QuorumConfiguration, clusterID: String, logger: Logger
    ) throws {
        self.eventLoop = eventLoop
        self.log = log
        disk = surroundings.disk
        clock = surroundings.clock
        random = surroundings.random
        flushPool = surroundings.flushPool
        workPool = surroundings.workPool
        self.logger = logger
        nodeID = configuration.node.id
        requestTimeoutMilliseconds = configuration.requestTimeoutMilliseconds
        fetchWaitMilliseconds = configuration.fetchWaitMilliseconds
        peers = QuorumPeers(
            network: surroundings.peers, loop: eventLoop, nodeID: configuration.node.id, clusterID: clusterID, logger: logger)
        let path = log.folder + "/" + QuorumStateFile.name
        var recovered = RecoveredQuorum()
        if let bytes = try disk.readAll(path, limit: QuorumStateFile.byteLimit) {
            guard let state = QuorumStateFile(decoding: bytes) else {
                throw MetadataLogError(
                    description: "\(path) is damaged; restore it, or remove it if this broker runs alone")
            }
            recovered.state = state
        }
        let voters = loaded.snapshotMembership?.voters ?? configuration.bootstrapVoters
        if let snapshot = loaded.snapshot, Self.isForeign(snapshot, to: log, isShared: voters.voters.count > 1) {
            // A crash between the name of a fetched snapshot and the new beginning of the log.
            try log.restart(at: snapshot.offset)
        }
        recovered.logStart = log.logStartOffset
        recovered.logEnd = log.logEndOffset
        recovered.epochs = log.leaderEpochs.entries.map { .init(epoch: $0.epoch, offset: $0.startOffset) }
        recovered.snapshot = loaded.snapshot
        recovered.snapshotMembership = loaded.snapshotMembership
        recovered.controlBatches = loaded.controlBatches
        core = MetadataQuorum(
            configuration: configuration, recovered: recovered,
            now: Instant(nanoseconds: Int64(clamping: eventLoop.now.uptimeNanoseconds)), jitter: random.next())
    }

    /// Whether the log is not the one that the snapshot was taken of: it ends before it, or another epoch wrote what
    /// comes before the snapshot's end. None of it can be committed then.
    private static func isForeign(_ snapshot: LogPosition, to log: PartitionLog<AnyDisk>, isShared: Bool) -> Bool {
        if snapshot.offset > log.logEndOffset { return true }
        guard isShared, snapshot.offset > log.logStartOffset,
            let entry = log.leaderEpochs.entries.last(where: { $0.startOffset < snapshot.offset })
        else { return false }
        return entry.epoch < snapshot.epoch
    }

    var highWatermark: Offset { core.highWatermark }
    var epoch: LeaderEpoch { core.epoch }
    var isReady: Bool { core.isReady }
    /// Whether this node is the only voter.
    var isAlone: Bool { core.isAlone }
    /// Everything below is on the device.
    var flushedEnd: Offset { core.log.flushedEnd }
    var proposalRoom: Int { core.proposalRoom }

    /// Takes part. A quorum of one leads when this returns; it blocks on the device, before serving. Others take part
    /// from ``serve()`` on.
    func start() throws {
        guard isAlone else { return try requireKnownDirectory() }
        handle(.ticked)
        guard core.isReady else {
            throw MetadataLogError(
                description: "the metadata log cannot be written: \(failure ?? "\(log.directory.state)")")
        }
    }

    /// The only voter of its log is this node with another directory: nobody could ever lead.
    private func requireKnownDirectory() throws {
        let voters = core.membership(asOf: log.logEndOffset).voters.voters
        guard voters.count == 1, voters[0].key.id == nodeID else { return }
        throw MetadataLogError(
            description: "this directory is not the voter that the metadata log knows: directory.id in "
                + "\(MetaProperties.fileName) is not what it was; restore that file")
    }

    /// From here on the device is not waited for.
    func serve() {
        waitsForDevice = false
        if !core.isReady { eventLoop.execute { self.handle(.ticked) } }
    }

    // MARK: Proposals

    /// Appends a batch of `count` metadata records; committed once ``highWatermark`` is past them. Not to be called by
    /// what the core has ordered, since the core must hear of it at once.
    ///
    /// - Returns: the offset of the first one.
    /// - Throws: where it cannot be written, and then nothing of it is in the log.
    func propose(_ batch: ByteBuffer, count: Int) throws -> Offset {
        guard core.acceptsProposal, !isHandling else {
            throw MetadataLogError(
                description: core.isReady ? "too many metadata changes wait for their commit" : "this node does not lead")
        }
        var batch = batch
        let outcome = try log.stage(
            &batch, header: try RecordBatchHeader(reading: batch), leaderEpoch: core.epoch, now: clock.wallTime)
        try log.writeStaged()
        guard case .staged(let base, let last, _) = outcome else {
            preconditionFailure("a metadata batch has no producer and is never a duplicate")
        }
        proposalCount += 1
        writtenEnd = last + 1
        handle(.proposed(ProposalID(rawValue: proposalCount), recordCount: Int64(count), bytes: batch))
        precondition(writtenEnd == nil, "the quorum refused a proposal that it accepts")
        return base
    }

    // MARK: Core

    func handle(_ event: QuorumEvent) {
        events.append(event)
        // Effects may have events at once: those wait until all effects of this one are carried out.
        guard !isHandling else { return }
        isHandling = true
        run()
    }

    private func run() {
        var produced: [QuorumEffect] = []
        while true {
            while let effect = effects.popFirst() {
                if effect.cutsLog, log.isFlushUnderWay {
                    effects.prepend(effect)
                    waitsForQuietLog = true
                    return
                }
                do {
                    try execute(effect)
                } catch {
                    logger.critical("metadata log cannot be written", metadata: ["cause": "\(error)"])
                    failure = "\(error)"
                    effects.removeAll()
                    events.append(.storageFailed)
                }
            }
            guard let next = events.popFirst() else { break }
            produced.removeAll(keepingCapacity: true)
            core.handle(next, now: now, jitter: random.next(), into: &produced)
            effects.append(contentsOf: produced)
        }
        isHandling = false
        arm()
    }

    /// Whether orders of the core still wait to be carried out.
    var isBusy: Bool { isHandling }

    var now: Instant { Instant(nanoseconds: Int64(clamping: eventLoop.now.uptimeNanoseconds)) }

    private func arm() {
        guard !waitsForDevice, !isClosing, let deadline = core.nextDeadline, timer.map({ deadline < $0.deadline }) ?? true
        else { return }
        timer?.task.cancel()
        let task = eventLoop.scheduleTask(
            deadline: .uptimeNanoseconds(UInt64(clamping: deadline.nanoseconds))
        ) {
            self.timer = nil
            self.handle(.ticked)
        }
        timer = (deadline, task)
    }

    private func execute(_ effect: QuorumEffect) throws {
        switch effect {
        case .append(let batches, let proposal): try append(batches, isProposal: proposal != nil)
        case .truncate(let end): try truncate(to: end)
        case .flush(let generation):
            orderedFlush = generation
            // What else is proposed in this turn goes with it.
            if waitsForDevice { startFlush() } else { eventLoop.execute { self.startFlush() } }
        case .persist(let file, let version): persist(file, version)
        case .send(let token, let peer, let endpoints, let request): send(token, peer, endpoints, request)
        case .respond(let id, let answer): respond(id, .answer(answer))
        case .respondWithRecords(let id, let answer, let from, let end, let maxBytes):
            respondWithRecords(id, answer, from: from, upTo: end, maxBytes: maxBytes)
        case .respondWithSnapshot(let id, let header, let snapshot, let position, let maxBytes):
            respondWithSnapshot(id, header, snapshot, position: position, maxBytes: maxBytes)
        case .advanceHighWatermark(let end): advanced(end)
        case .advanceLogStart(let snapshot): tidy { try advanceLogStart(to: snapshot.offset) }
        case .removeSnapshots(let snapshot):
            tidy { try MetadataLog.removeSnapshots(before: snapshot.offset, in: log.folder, disk: disk) }
        case .writeSnapshot(let id, let position, let bytes): try writeSnapshot(id, at: position, bytes)
        case .installSnapshot(let id): installSnapshot(id)
        case .discardSnapshot(let id): try discardSnapshot(id)
        case .resetLog(let snapshot): try resetLog(to: snapshot)
        case .probe(let key, let endpoints):
            peers.probe(endpoints) { range in self.handle(.probed(key, range)) }
        case .halt(let cause): halted(cause)
        case .leaderChanged(let leader, let epoch):
            logger.debug(
                "metadata quorum", metadata: ["leader": "\(leader.map { "\($0.id)" } ?? "none")", "epoch": "\(epoch)"])
            leaderChanged(leader, epoch)
        case .leadershipReady(let epoch):
            // The core is in the middle of an event: it takes proposals from the next turn on.
            if !waitsForDevice { eventLoop.execute { self.ready(epoch) } }
        case .leadershipLost: lost()
        case .membershipChanged(let membership):
            if !waitsForDevice {
                logger.info(
                    "voters of the metadata quorum",
                    metadata: ["voters": "\(membership.voters.voters.map { "\($0.key.id)" }.joined(separator: ","))"])
            }
        // What waits for a commit is found by its offset; what is abandoned, by the leadership's end.
        case .committed, .abandoned, .refused: break
        }
    }

    private func append(_ batches: [LogBatch], isProposal: Bool) throws {
        if isProposal {
            precondition(batches.last?.endOffset == writtenEnd, "the quorum and its log differ")
            writtenEnd = nil
            return
        }
        let now = clock.wallTime
        for batch in batches {
            let bytes =
                try batch.bytes
                ?? ControlBatch.encode(batch.controlRecords, at: batch.baseOffset, epoch: batch.epoch, timestamp: now)
            guard batch.baseOffset == log.logEndOffset else {
                throw MetadataLogError(
                    description: "a batch at \(batch.baseOffset) where the metadata log ends at \(log.logEndOffset)")
            }
            try log.stageReplica(bytes, header: try RecordBatchHeader(reading: bytes), now: now)
        }
        try log.writeStaged()
    }

    // MARK: Cuts

    private func truncate(to end: Offset) throws {
        cutCount += 1
        try log.truncate(to: end)
        guard log.logEndOffset == end else {
            throw MetadataLogError(description: "the metadata log was cut to \(log.logEndOffset) instead of \(end)")
        }
    }

    private func resetLog(to snapshot: LogPosition) throws {
        cutCount += 1
        try log.restart(at: snapshot.offset)
        guard let installed, installed.id == snapshot else {
            preconditionFailure("the log is reset to \(snapshot), which was not fetched")
        }
        self.installed = nil
        reset(installed.records, snapshot)
    }

    /// What fails here leaves more behind than is needed, and is done again after the next snapshot.
    private func tidy(_ work: () throws -> Void) {
        do {
            try work()
        } catch {
            logger.error("what a metadata snapshot replaces was not removed", metadata: ["cause": "\(error)"])
        }
    }

    private func advanceLogStart(to start: Offset) throws {
        guard let work = try log.deleteRecords(before: start, highWatermark: start) else { return }
        try work.run()
        try log.adoptLogStart(now: clock.wallTime)
        startFlush()
    }

    // MARK: Device

    private func startFlush() {
        guard !isFlushing, !isClosing else { return }
        guard let work = log.takeFlush() else {
            reportFlush()
            return
        }
        let generation = orderedFlush
        orderedFlush = nil
        if waitsForDevice {
            flushed(work.run(), generation)
        } else {
            isFlushing = true
            flushPool.submit { _ in
                let result = work.run()
                self.eventLoop.execute { self.flushed(result, generation) }
            }
        }
    }

    /// Nothing is dirty: what was ordered is done.
    private func reportFlush() {
        guard let generation = orderedFlush else { return }
        orderedFlush = nil
        handle(.flushed(upTo: log.flushedEndOffset, generation))
    }

    private func flushed(_ result: FlushResult, _ generation: FlushGeneration?) {
        isFlushing = false
        log.flushCompleted(result)
        if let cause = result.failure {
            logger.critical("metadata log cannot be flushed", metadata: ["cause": "\(cause)"])
            failure = "\(cause)"
            handle(.storageFailed)
        } else if let generation {
            handle(.flushed(upTo: log.flushedEndOffset, generation))
        }
        if waitsForQuietLog {
            waitsForQuietLog = false
            run()
        }
        if orderedFlush != nil { startFlush() }
        finishClosingWhenQuiet()
    }

    private func persist(_ file: QuorumStateFile, _ version: StateVersion) {
        let (disk, directory, folder, bytes) = (disk, log.directory, log.folder, file.encode())
        let write: @Sendable () -> (event: QuorumEvent, failure: String?) = { [logger] in
            do throws(DiskError) {
                try disk.createDirectories(folder)
                try directory.replaceAtomically(folder + "/" + QuorumStateFile.name, with: bytes)
                return (.persisted(version), nil)
            } catch {
                logger.critical("\(QuorumStateFile.name) cannot be written", metadata: ["cause": "\(error)"])
                return (.storageFailed, "\(error)")
            }
        }
        if waitsForDevice { persisted(write()) } else { onPool(write) { self.persisted($0) } }
    }

    private func persisted(_ outcome: (event: QuorumEvent, failure: String?)) {
        failure = outcome.failure ?? failure
        handle(outcome.event)
    }

    /// Runs `work` where it may wait for the device, then `done` on the loop unless the log has been closed meanwhile.
    func onPool<Result: Sendable>(
        _ work: @escaping @Sendable () -> Result, done: @escaping @Sendable (Result) -> Void
    ) {
        poolWorkCount += 1
        flushPool.submit { _ in
            let result = work()
            self.eventLoop.execute {
                self.poolWorkCount -= 1
                if !self.isClosing { done(result) }
                self.finishClosingWhenQuiet()
            }
        }
    }

    /// Whether the log that a read looked at is still the one of the leader of `epoch`.
    func isStill(_ epoch: LeaderEpoch, cutCount: Int) -> Bool {
        core.isLeader && core.epoch == epoch && self.cutCount == cutCount
    }

    // MARK: Peers

    private func send(_ token: CallToken, _ peer: BrokerID, _ endpoints: [Endpoint], _ request: QuorumRequest) {
        // Nothing new is begun while the node stops.
        guard closePromise == nil, !isClosing else { return }
        var timeout = requestTimeoutMilliseconds
        switch request {
        case .fetch: timeout += fetchWaitMilliseconds
        case .endEpoch: farewells.insert(token)
        case .vote, .beginEpoch, .fetchSnapshot, .addVoter, .removeVoter, .updateVoter: break
        }
        peers.send(request, to: peer, at: endpoints, timeout: .milliseconds(timeout)) { answer in
            guard !self.isClosing else { return }
            self.handle(answer.map { .answered(token, $0) } ?? .callFailed(token))
            if self.farewells.remove(token) != nil, self.farewells.isEmpty { self.departed() }
        }
    }

    /// What DescribeQuorum says; `nil` unless this node leads.
    func describe() -> QuorumDescription? { core.describe(now: now) }

    var leader: LeaderAddress? { core.leader }

    /// What a snapshot that ends at `end` must say of the voters, and its name.
    func identity(of end: Offset) -> (id: LogPosition, membership: QuorumMembership) {
        (LogPosition(offset: end, epoch: core.epoch(before: end)), core.membership(asOf: end))
    }

    // MARK: Shutdown

    /// Longest wait for voters to hear that this node leads no more.
    private static let departureLimit: TimeAmount = .milliseconds(500)

    /// Hands the leadership of the quorum over, if this node has it; completes when the others know.
    func leave() -> EventLoopFuture<Void> {
        let promise = eventLoop.makePromise(of: Void.self)
        eventLoop.execute {
            guard self.core.isLeader, !self.core.isAlone, self.departure == nil else { return promise.succeed() }
            self.departure = promise
            self.farewells = []
            self.handle(.resignationRequested)
            if self.farewells.isEmpty { self.departed() }
            self.eventLoop.scheduleTask(in: Self.departureLimit) { self.departed() }
        }
        return promise.futureResult
    }

    private func departed() {
        let promise = departure
        departure = nil
        promise?.succeed()
    }

    /// On the loop; the promise succeeds when the log is closed.
    func close(_ promise: EventLoopPromise<Void>) {
        timer?.task.cancel()
        if orderedFlush != nil, !waitsForQuietLog { startFlush() }
        closePromise = promise
        finishClosingWhenQuiet()
    }

    private func finishClosingWhenQuiet() {
        guard !isFlushing, poolWorkCount == 0, let promise = closePromise else { return }
        isClosing = true
        closePromise = nil
        timer?.task.cancel()
        peers.close()
        dropRequests()
        do {
            try log.close(clean: true)
        } catch {
            logger.error("metadata log not closed cleanly", metadata: ["cause": "\(error)"])
        }
        promise.succeed()
    }
}

extension QuorumEffect {
    /// Needs a log that nothing flushes meanwhile.
    fileprivate var cutsLog: Bool {
        switch self {
        case .truncate, .resetLog: true
        case _: false
        }
    }
}
