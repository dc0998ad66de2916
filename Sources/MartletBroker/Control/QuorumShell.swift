internal import DequeModule
internal import Logging
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore

/// The node's part in the metadata quorum, on the controller's event loop: owns the quorum's core, the metadata log and
/// the file `quorum-state`, and carries out what the core orders. It decides nothing.
///
/// A quorum of one so far: the effects that speak to peers do not come up.
// SAFETY: all state is touched on `eventLoop` alone, except up to the end of `start()`, which runs before the loops
// have work.
final class QuorumShell: @unchecked Sendable {
    let eventLoop: any EventLoop
    let log: PartitionLog<AnyDisk>
    private let disk: AnyDisk
    private let clock: BrokerClock
    private var random: RandomSource
    private let logger: Logger
    private let flushPool: any WorkQueue
    private var core: MetadataQuorum
    private var events = Deque<QuorumEvent>()
    private var isHandling = false
    /// End of the proposal that is in the log already while the core hears of it.
    private var writtenEnd: Offset?
    private var proposalCount: UInt64 = 0
    /// Until the end of ``start()`` the device is waited for.
    private var waitsForDevice = true
    private var isFlushing = false
    /// A flush that the core has ordered and that has not begun.
    private var orderedFlush: FlushGeneration?
    private var timer: (deadline: Instant, task: Scheduled<Void>)?
    private var isClosing = false
    private var closePromise: EventLoopPromise<Void>?
    /// What the device refused last.
    private var failure: String?

    /// Everything below the offset is committed.
    var advanced: (Offset) -> Void = { _ in }
    /// The node takes no part any more; why.
    var halted: (String) -> Void = { _ in }

    /// - Parameter loaded: what ``MetadataLog/load(_:disk:)`` found.
    init(
        eventLoop: any EventLoop, log: PartitionLog<AnyDisk>, loaded: MetadataLog.Loaded, surroundings: Surroundings,
        configuration: QuorumConfiguration, logger: Logger
    ) throws {
        self.eventLoop = eventLoop
        self.log = log
        disk = surroundings.disk
        clock = surroundings.clock
        random = surroundings.random
        flushPool = surroundings.flushPool
        self.logger = logger
        let path = log.folder + "/" + QuorumStateFile.name
        var recovered = RecoveredQuorum()
        if let bytes = try disk.readAll(path, limit: QuorumStateFile.byteLimit) {
            guard let state = QuorumStateFile(decoding: bytes) else {
                throw MetadataLogError(
                    description: "\(path) is damaged; restore it, or remove it if this broker runs alone")
            }
            recovered.state = state
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

    var highWatermark: Offset { core.highWatermark }

    /// Takes part; a quorum of one leads when this returns. Blocks on the device; before serving.
    func start() throws {
        handle(.ticked)
        guard !core.isReady else { return }
        let known = core.snapshot()
        guard known.isVoter || known.role == .halted else {
            throw MetadataLogError(
                description: "this directory is not the voter that the metadata log knows: directory.id in "
                    + "\(MetaProperties.fileName) is not what it was; restore that file")
        }
        throw MetadataLogError(
            description: "the metadata log cannot be written: \(failure ?? "\(log.directory.state)")")
    }

    /// From here on the device is not waited for.
    func serve() { waitsForDevice = false }

    // MARK: Proposals

    /// Appends a batch of `count` metadata records; committed once ``highWatermark`` is past them.
    ///
    /// - Returns: the offset of the first one.
    /// - Throws: where it cannot be written, and then nothing of it is in the log.
    func propose(_ batch: ByteBuffer, count: Int) throws -> Offset {
        guard core.acceptsProposal else {
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

    private func handle(_ event: QuorumEvent) {
        events.append(event)
        // Effects may have events at once: those wait until all effects of this one are carried out.
        guard !isHandling else { return }
        isHandling = true
        var effects: [QuorumEffect] = []
        while let next = events.popFirst() {
            effects.removeAll(keepingCapacity: true)
            core.handle(next, now: now, jitter: random.next(), into: &effects)
            for effect in effects {
                do {
                    try execute(effect)
                } catch {
                    logger.critical("metadata log cannot be written", metadata: ["cause": "\(error)"])
                    failure = "\(error)"
                    events.append(.storageFailed)
                    break
                }
            }
        }
        isHandling = false
        arm()
    }

    private var now: Instant { Instant(nanoseconds: Int64(clamping: eventLoop.now.uptimeNanoseconds)) }

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
        case .append(let batches, let proposal):
            for batch in batches { try append(batch, isProposal: proposal != nil) }
        case .flush(let generation):
            orderedFlush = generation
            // What else is proposed in this turn goes with it.
            if waitsForDevice { startFlush() } else { eventLoop.execute { self.startFlush() } }
        case .persist(let file, let version): persist(file, version)
        case .advanceHighWatermark(let end): advanced(end)
        case .advanceLogStart(let snapshot): tidy { try advanceLogStart(to: snapshot.offset) }
        case .removeSnapshots(let snapshot):
            tidy { try MetadataLog.removeSnapshots(before: snapshot.offset, in: log.folder, disk: disk) }
        case .halt(let cause): halted(cause)
        case .leaderChanged(let leader, let epoch):
            logger.debug(
                "metadata quorum", metadata: ["leader": "\(leader.map { "\($0.id)" } ?? "none")", "epoch": "\(epoch)"])
        case .committed, .leadershipReady, .membershipChanged: break
        // Alone only before a halt, which tells whoever waits.
        case .abandoned, .leadershipLost: break
        case .refused, .truncate, .send, .respond, .respondWithRecords,
            .respondWithSnapshot, .writeSnapshot, .installSnapshot, .discardSnapshot, .resetLog, .probe:
            preconditionFailure("a quorum of one does not order \(effect)")
        }
    }

    private func append(_ batch: LogBatch, isProposal: Bool) throws {
        if isProposal {
            precondition(batch.endOffset == writtenEnd, "the quorum and its log differ at \(batch.endOffset)")
            writtenEnd = nil
            return
        }
        let now = clock.wallTime
        let bytes = try batch.bytes
            ?? ControlBatch.encode(batch.controlRecords, at: batch.baseOffset, epoch: batch.epoch, timestamp: now)
        try log.stageReplica(bytes, header: try RecordBatchHeader(reading: bytes), now: now)
        try log.writeStaged()
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
        if orderedFlush != nil { startFlush() }
        if let closePromise, !isFlushing { finishClosing(closePromise) }
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
        if waitsForDevice {
            persisted(write())
        } else {
            flushPool.submit { _ in
                let outcome = write()
                self.eventLoop.execute { if !self.isClosing { self.persisted(outcome) } }
            }
        }
    }

    private func persisted(_ outcome: (event: QuorumEvent, failure: String?)) {
        failure = outcome.failure ?? failure
        handle(outcome.event)
    }

    // MARK: Snapshots

    /// Writes a snapshot of everything below the high watermark; the core then lets go of the log before it.
    ///
    /// - Returns: its end, and its length in bytes.
    func takeSnapshot(_ records: [MetadataRecord]) throws -> (end: Offset, byteCount: Int) {
        let id = LogPosition(offset: highWatermark, epoch: core.epoch(before: highWatermark))
        let bytes = try MetadataLog.snapshot(
            records, membership: core.membership(asOf: id.offset), now: clock.wallTime, epoch: id.epoch)
        try log.directory.replaceAtomically(
            log.folder + "/" + MetadataLog.snapshotName(end: id.offset, epoch: id.epoch), with: bytes)
        handle(.snapshotTaken(id))
        return (id.offset, bytes.readableBytes)
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

    // MARK: Shutdown

    /// On the loop; the promise succeeds when the log is closed.
    func close(_ promise: EventLoopPromise<Void>) {
        timer?.task.cancel()
        if orderedFlush != nil { startFlush() }
        if isFlushing { closePromise = promise } else { finishClosing(promise) }
    }

    private func finishClosing(_ promise: EventLoopPromise<Void>) {
        isClosing = true
        closePromise = nil
        do {
            try log.close(clean: true)
        } catch {
            logger.error("metadata log not closed cleanly", metadata: ["cause": "\(error)"])
        }
        promise.succeed()
    }
}
