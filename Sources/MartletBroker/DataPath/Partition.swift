internal import Logging
package import MartletController
internal import MartletKafkaProtocol
package import MartletLogModel
internal import MartletRecordBatch
internal import MartletReplication
package import MartletStorage
package import NIOCore
internal import NIOPosix

/// One partition on its event loop: the shell around its log and its replication core.
///
/// It decides nothing about replication: it translates metadata, appends, flushes and fetches into events of
/// ``PartitionReplica`` and runs the effects in order. Opening, flushing, cutting and cold reads happen on pools;
/// their results come back as messages to the loop. Confined to `loop`.
// SAFETY: touched on `loop.eventLoop` alone; pools get Sendable work items and post back.
package final class Partition: @unchecked Sendable {
    /// Operations that may wait for a partition to open. More are refused with a retriable error.
    private static let openingQueueLimit = 10_000

    /// How long a partition that failed to open answers with the cause before it is tried again.
    private static let reopenInterval: TimeAmount = .seconds(5)

    /// How soon a flush is tried again that found no free file descriptor.
    private static let flushRetryInterval: TimeAmount = .milliseconds(100)
    /// So many times while the broker stops, then the log is left to the next start's recovery.
    private static let closingRetryLimit = 50

    enum Phase {
        case opening([(Partition) -> Void])
        case open(PartitionLog<AnyDisk>)
        /// The log is being cut on the work pool, which has it meanwhile.
        case cutting
        /// The log cannot be used; requests are answered with the code and the cause.
        /// A later request tries again: what failed may have been a passing lack of files or memory.
        case failed(ErrorCode, String, since: NIODeadline)
        case closed
    }

    /// An append of this turn, staged in memory.
    private struct Staged {
        var request: ProduceRequestState?
        var index: Int
        var outcome: AppendOutcome
        var whenCommitted: ((ProduceResult) -> Void)?
        /// Answered when it is flushed, also where the topic answers before.
        var waitsForFlush = false
    }

    /// An append that waits for the flush of a relaxed topic.
    private struct FlushWaiter {
        /// Exclusive end of what must be flushed.
        var end: Offset
        var result: ProduceResult
        var whenFlushed: (ProduceResult) -> Void
    }

    /// An append that waits for the high watermark.
    private struct Waiting {
        var request: ProduceRequestState?
        var index: Int
        var result: ProduceResult
        var whenCommitted: ((ProduceResult) -> Void)?
        /// Exclusive end of what must be flushed as well, where the high watermark does not say that.
        var flushEnd: Offset?
    }

    package let key: PartitionKey
    package let name: TopicPartition
    package unowned let loop: BrokerLoop
    package private(set) var topic: TopicImage
    var registration: PartitionImage
    var phase: Phase = .opening([])
    var replica: PartitionReplica
    /// Cores this shell has had: what an earlier one asked for is not for this one.
    private(set) var replicaNumber = 0
    var effects: [PartitionReplica.Effect] = []
    private var runsEffects = false
    private var staged: [Staged] = []
    private var isDirty = false
    private var waiting: [AppendID: Waiting] = [:]
    /// In the order of the log.
    private var flushWaiters: [FlushWaiter] = []
    private var nextAppendID: UInt64 = 0
    private var fetchWaiters: [FetchWaiter] = []
    /// Followers that wait for records, or for a mark above the one they know.
    private var replicaWaiters: [FetchWaiter] = []
    /// Told once when the high watermark moves, or everybody has to look again.
    private var observers: [() -> Void] = []
    private(set) var isFlushing = false
    private var flushWanted = false
    /// Tries since the last flush that succeeded.
    private var failedFlushCount = 0
    private var closePromise: EventLoopPromise<Void>?
    private var closeClean = true
    private var segmentCount = 1
    /// What belongs to the part of a follower.
    var following = FollowerState()
    /// What belongs to the part of a leader with followers.
    var leading = LeaderState()
    /// New log starts on their way to the device.
    var logStartWorkCount = 0
    /// A client appended or fetched since ``letGoIfUnused(since:)`` looked last.
    var wasUsed = false
    /// When ``letGoIfUnused(since:)`` last saw that it was used.
    var lastUse: NIODeadline
    /// Background work on the log (retention, compaction) that must not overlap.
    package var maintenanceRunning = false {
        didSet { if oldValue, !maintenanceRunning { folderWorkEnded() } }
    }
    /// Work on the pools that goes on in the folder of a partition that is deleted; see ``FolderHolds``.
    private var folderWorkCount = 0
    /// Opening has not begun: a former partition of the name is still at work in the folder.
    private var waitsForFolder = false
    private var isDeleted = false
    /// By producer id: batches that wait for the coordinator of their transaction.
    var admissions: [Int64: TransactionAdmission] = [:]
    var refusedSequences = RefusedSequences()

    init(key: PartitionKey, topic: TopicImage, registration: PartitionImage, loop: BrokerLoop) {
        self.key = key
        self.name = TopicPartition(topic: topic.name, partition: key.partition)
        self.loop = loop
        self.topic = topic
        self.registration = registration
        self.lastUse = loop.eventLoop.now
        self.replica = PartitionReplica(
            local: loop.services.settings.nodeID, settings: .init(durability: topic.replicaDurability),
            logStartOffset: .zero, recoveredEnd: .zero, highWatermark: .zero)
    }

    // MARK: Life

    func open() {
        let loop = self.loop
        guard loop.services.folders.isFree(name, otherwise: { loop.post { _ in self.folderIsFree() } }) else {
            waitsForFolder = true
            return
        }
        openLogFiles()
    }

    private func folderIsFree() {
        waitsForFolder = false
        if isOpening { open() }
    }

    private func openLogFiles() {
        let services = loop.services
        let name = self.name
        let topicID = key.topicID
        let configuration = logConfiguration
        let loop = self.loop
        services.workPool.submit { _ in
            let result: Result<LogTransfer, StorageError>
            do throws(StorageError) {
                result = .success(
                    LogTransfer(
                        try PartitionLog.open(
                            directory: services.directory, topicPartition: name, topicID: topicID,
                            configuration: configuration, now: loop.wallTime)))
            } catch {
                result = .failure(error)
            }
            loop.post { _ in self.opened(result) }
        }
    }

    private func opened(_ result: Result<LogTransfer, StorageError>) {
        guard case .opening(let queue) = phase else {
            // A deleted partition's log must write nothing any more: its folder may be another's by now.
            if case .success(let transfer) = result { closeLog(transfer.log, clean: !isDeleted) }
            folderWorkEnded()
            return
        }
        switch result {
        case .success(let transfer):
            let log = transfer.log
            replica = PartitionReplica(
                local: loop.services.settings.nodeID, settings: replicaSettings, logStartOffset: log.logStartOffset,
                recoveredEnd: log.logEndOffset, highWatermark: log.recordedHighWatermark)
            replicaNumber += 1
            segmentCount = log.segmentCount
            phase = .open(log)
            if let damage = log.damage {
                loop.logger.error(
                    "log is damaged; appends and reads from there on are refused until `martlet log repair`",
                    metadata: ["partition": "\(name)", "offset": "\(damage.offset)", "cause": "\(damage.detail)"])
            }
            if log.recovery.isNoteworthy {
                loop.logger.warning(
                    "log recovered",
                    metadata: [
                        "partition": "\(name)", "truncated": "\(log.recovery.truncatedBytes)",
                        "quarantined": "\(log.recovery.quarantinedBytes)", "end": "\(log.logEndOffset)",
                    ])
            }
        case .failure(let error):
            loop.logger.error(
                "partition is offline", metadata: ["partition": "\(name)", "cause": "\(error)"])
            phase = .failed(error.errorCode, error.description, since: loop.eventLoop.now)
        }
        takeRole()
        for operation in queue { operation(self) }
    }

    /// Runs `operation` once the partition is open or has failed to open; at once if that is so already.
    package func whenOpen(_ operation: @escaping (Partition) -> Void) {
        reopenIfDue()
        guard case .opening(var queue) = phase else {
            operation(self)
            return
        }
        guard queue.count < Self.openingQueueLimit else {
            operation(self)
            return
        }
        queue.append(operation)
        phase = .opening(queue)
    }

    /// Tries again to open a partition that failed to open some time ago.
    package func reopenIfDue() {
        guard case .failed(_, _, let since) = phase, loop.eventLoop.now - since > Self.reopenInterval else { return }
        phase = .opening([])
        open()
    }

    /// The log, or why there is none.
    package var openLog: Result<PartitionLog<AnyDisk>, PartitionUnavailable> {
        switch phase {
        case .open(let log): .success(log)
        case .failed(let code, let cause, _): .failure(PartitionUnavailable(code: code, cause: cause))
        case .opening, .cutting, .closed:
            .failure(PartitionUnavailable(code: .notLeaderOrFollower, cause: "the partition is not open here"))
        }
    }

    func metadataChanged(topic: TopicImage, registration: PartitionImage) {
        // Under the role that it was staged in.
        writeStaged()
        self.topic = topic
        self.registration = registration
        if case .open(let log) = phase { log.configuration = logConfiguration }
        takeRole()
    }

    var durability: PartitionReplica.Durability {
        loop.services.suspended.contains(.flushBeforeAcknowledgement) ? .relaxed : topic.replicaDurability
    }

    var logConfiguration: LogConfiguration {
        topic.logConfiguration(
            producerExpirationMilliseconds: loop.image.brokerConfiguration.producerIDExpirationMilliseconds,
            suspended: loop.services.suspended)
    }

    package var isOpen: Bool {
        if case .open = phase { true } else { false }
    }

    package var isOpening: Bool {
        if case .opening = phase { true } else { false }
    }

    func closeLog(_ log: PartitionLog<AnyDisk>, clean: Bool) {
        do throws(StorageError) {
            try log.close(clean: clean)
        } catch {
            loop.logger.error("log not closed cleanly", metadata: ["partition": "\(name)", "cause": "\(error)"])
        }
    }

    /// The topic was deleted: whoever waits gets an answer, the files are moved away and removed later.
    func topicDeleted() {
        isDeleted = true
        folderWorkCount = (isOpening && !waitsForFolder ? 1 : 0) + (isFlushing ? 1 : 0) + (maintenanceRunning ? 1 : 0)
        if folderWorkCount > 0 { loop.services.folders.hold(name) }
        failEverything(.unknownTopicOrPartition, "topic \(name.topic) was deleted")
        resign(.unknownTopicOrPartition)
        guard case .open(let log) = phase else {
            giveUpOpening()
            loop.removeFiles(of: name)
            return
        }
        phase = .closed
        closeLog(log, clean: false)
        loop.removeFiles(of: name)
    }

    /// The replica was taken away from this broker: as with a deleted topic, but clients find it elsewhere.
    func movedAway() {
        failEverything(.notLeaderOrFollower, "\(name) has moved to other brokers")
        topicDeleted()
    }

    func folderWorkEnded() {
        guard folderWorkCount > 0 else { return }
        folderWorkCount -= 1
        if folderWorkCount == 0 { loop.services.folders.release(name) }
    }

    /// A partition that is not open will not open any more: whoever waits for it finds it closed.
    private func giveUpOpening() {
        let former = phase
        phase = .closed
        guard case .opening(let queue) = former else { return }
        for operation in queue { operation(self) }
    }

    /// Nobody waits for anything here, and nothing is under way.
    var isQuiet: Bool {
        !isFlushing && !isDirty && !maintenanceRunning && logStartWorkCount == 0 && waiting.isEmpty && flushWaiters.isEmpty
            && fetchWaiters.isEmpty && replicaWaiters.isEmpty && observers.isEmpty
    }

    /// Writes and flushes what is left and closes the files. The future succeeds in any case; a failed
    /// last flush is logged and leaves the log to recovery.
    func close(clean: Bool) -> EventLoopFuture<Void> {
        let promise = loop.eventLoop.makePromise(of: Void.self)
        leaveFetcher()
        following.cut = nil
        if case .cutting = phase {
            closePromise = promise
            closeClean = clean
            return promise.futureResult
        }
        guard case .open = phase else {
            giveUpOpening()
            promise.succeed()
            return promise.futureResult
        }
        closePromise = promise
        closeClean = clean
        writeStaged()
        if !isFlushing { finishClosing() }
        return promise.futureResult
    }

    var isClosing: Bool { closePromise != nil }

    /// Goes on with closing, if it is asked for.
    func finishClosing() {
        guard let promise = closePromise, case .open(let log) = phase else { return }
        if closeClean, let work = log.takeFlush() {
            runFlush(work)
            return
        }
        closePromise = nil
        failEverything(.notLeaderOrFollower, "the broker is shutting down")
        resign(.notLeaderOrFollower)
        phase = .closed
        let transfer = LogTransfer(log)
        let clean = closeClean
        loop.services.workPool.submit { _ in
            self.closeLog(transfer.log, clean: clean)
            promise.succeed()
        }
    }

    // MARK: Append

    /// Takes a validated batch of a client. The result goes to the request when the acknowledgement it
    /// asked for is reached.
    package func append(_ item: consuming ProduceItem, for request: ProduceRequestState) {
        if let transaction = item.transaction { return appendTransactional(item, transaction, for: request) }
        appendAdmitted(item, for: request)
    }

    func appendAdmitted(_ item: consuming ProduceItem, for request: ProduceRequestState) {
        let index = item.index
        wasUsed = true
        switch stage(item.batch, header: item.header, needsAll: request.acks == -1) {
        case .success(let outcome):
            staged.append(Staged(request: request, index: index, outcome: outcome))
        case .failure(let rejection):
            loop.complete(ProduceCompletion(request: request, index: index, result: ProduceResult(rejection)))
        }
    }

    /// Appends a batch of the broker itself (group offsets); `whenCommitted` runs on this loop once the
    /// high watermark has passed it, or with the error.
    ///
    /// - Parameters:
    ///   - checksSequence: false for offsets that are part of a producer's transaction.
    ///   - waitsForFlush: what depends on the batch must not outlive it, not even on a relaxed topic.
    package func appendInternal(
        _ batch: ByteBuffer, checksSequence: Bool = true, waitsForFlush: Bool = false,
        whenCommitted: @escaping (ProduceResult) -> Void
    ) {
        wasUsed = true
        do throws(RecordBatchError) {
            let header = try RecordBatchHeader(reading: batch, at: batch.readerIndex)
            switch stage(batch, header: header, needsAll: true, checksSequence: checksSequence) {
            case .success(let outcome):
                staged.append(
                    Staged(
                        request: nil, index: 0, outcome: outcome, whenCommitted: whenCommitted,
                        waitsForFlush: waitsForFlush))
            case .failure(let rejection):
                whenCommitted(ProduceResult(rejection))
            }
        } catch {
            whenCommitted(ProduceResult(error: error.errorCode, message: error.description))
        }
    }

    /// Appends the end of a producer's transaction; `whenCommitted` as for
    /// ``appendInternal(_:checksSequence:waitsForFlush:whenCommitted:)``, but not before the marker is flushed: its
    /// coordinator forgets the transaction then, and a marker that vanished with the power would leave it open here
    /// for ever, or to the outcome of the producer's next one.
    package func appendMarker(_ marker: MarkerAppend, whenCommitted: @escaping (ProduceResult) -> Void) {
        wasUsed = true
        let outcome = stage(needsAll: true) { (log, epoch) throws(AppendError) in
            try log.stageMarker(marker, leaderEpoch: epoch, now: loop.wallTime)
        }
        switch outcome {
        case .success(let outcome):
            admissions[marker.producerID]?.met(marker)
            staged.append(
                Staged(request: nil, index: 0, outcome: outcome, whenCommitted: whenCommitted, waitsForFlush: true))
        case .failure(let rejection):
            whenCommitted(ProduceResult(rejection))
        }
    }

    private func stage(
        _ batch: consuming ByteBuffer, header: RecordBatchHeader, needsAll: Bool, checksSequence: Bool = true
    ) -> Result<AppendOutcome, PartitionUnavailable> {
        var batch = batch
        return stage(needsAll: needsAll) { (log, epoch) throws(AppendError) in
            try log.stage(
                &batch, header: header, leaderEpoch: epoch, now: loop.wallTime, checksSequence: checksSequence)
        }
    }

    @inline(__always)
    private func stage(
        needsAll: Bool, _ body: (PartitionLog<AnyDisk>, LeaderEpoch) throws(AppendError) -> AppendOutcome
    ) -> Result<AppendOutcome, PartitionUnavailable> {
        guard case .open(let log) = phase else {
            if case .failure(let unavailable) = openLog { return .failure(unavailable) }
            preconditionFailure("a log that is not open has a reason")
        }
        if let refusal = replica.appendRefusal(needsAll: needsAll) { return .failure(unavailable(refusal)) }
        guard let epoch = replica.leaderEpoch else { return .failure(unavailable(.notLeaderOrFollower)) }
        do throws(AppendError) {
            let outcome = try body(log, epoch)
            if !isDirty {
                isDirty = true
                loop.markDirty(self)
            }
            return .success(outcome)
        } catch {
            return .failure(PartitionUnavailable(code: error.errorCode, cause: error.description))
        }
    }

    /// End of the loop's turn: one vectored write for everything staged, then acknowledgements.
    func writeStaged() {
        guard isDirty, case .open(let log) = phase else { return }
        isDirty = false
        let appends = staged
        staged.removeAll(keepingCapacity: true)
        do throws(StorageError) {
            try log.writeStaged()
        } catch {
            loop.logger.error(
                "append failed",
                metadata: ["partition": "\(name)", "cause": "\(error)", "batches": "\(appends.count)"])
            let result = ProduceResult(error: error.errorCode, message: error.description)
            for append in appends { deliver(append.request, append.index, result, append.whenCommitted) }
            return
        }
        let logStart = log.logStartOffset.rawValue
        for append in appends {
            let base: Offset
            let end: Offset
            var appendTime: Int64 = -1
            let isRepeat: Bool
            switch append.outcome {
            case .staged(let first, let last, let appendTimestamp):
                base = first
                end = last + 1
                appendTime = appendTimestamp?.rawValue ?? -1
                isRepeat = false
            case .duplicate(let first, let last, _):
                // The time of the first append is not kept where it is the producer's own (KIP-98).
                base = first
                end = last + 1
                isRepeat = true
            }
            let result = ProduceResult.appended(
                baseOffset: base.rawValue, logAppendTime: appendTime, logStartOffset: logStart)
            let waitsForFlush = append.waitsForFlush && replica.durability == .relaxed
            if waitsForFlush, !isReplicated, let whenFlushed = append.whenCommitted {
                replica.appended(upTo: end, waiter: nil, into: &effects)
                flushWaiters.append(FlushWaiter(end: end, result: result, whenFlushed: whenFlushed))
                continue
            }
            let waits = append.request.map { $0.acks == -1 } ?? true
            guard waits else {
                if !isRepeat { replica.appended(upTo: end, waiter: nil, into: &effects) }
                deliver(append.request, append.index, result, append.whenCommitted)
                continue
            }
            let id = AppendID(rawValue: nextAppendID)
            nextAppendID += 1
            waiting[id] = Waiting(
                request: append.request, index: append.index, result: result, whenCommitted: append.whenCommitted,
                flushEnd: waitsForFlush ? end : nil)
            loop.appendBeganWaiting()
            if isRepeat {
                replica.repeated(upTo: end, waiter: id, into: &effects)
            } else {
                replica.appended(upTo: end, waiter: id, into: &effects)
            }
        }
        runEffects()
        if !replicaWaiters.isEmpty { wakeReplicas(above: nil) }
        flushAfterAppend(log)
    }

    func noteSegments(_ log: PartitionLog<AnyDisk>) { segmentCount = log.segmentCount }

    func flushAfterAppend(_ log: PartitionLog<AnyDisk>) {
        // Relaxed topics flush what a roll completed, in the background, so that recovery never reads more than
        // the active segment.
        let hasRolled = log.segmentCount != segmentCount
        segmentCount = log.segmentCount
        if replica.durability == .fsync || hasRolled || !flushWaiters.isEmpty { requestFlush() }
    }

    /// Runs what the core has ordered, in order. Orders that arise meanwhile come behind.
    func runEffects() {
        guard !effects.isEmpty, !runsEffects else { return }
        runsEffects = true
        var next = 0
        while next < effects.count {
            let effect = effects[next]
            next += 1
            switch effect {
            case .advanceHighWatermark(let mark):
                if case .open(let log) = phase { log.recordHighWatermark(mark) }
                wakeFetches()
                if !replicaWaiters.isEmpty { wakeReplicas(above: mark) }
            case .acknowledge(let id):
                acknowledge(id)
            case .abandon(let id):
                finish(id, unavailable(.notLeaderOrFollower))
            case .refuse(let id, let code):
                finish(id, unavailable(code))
            case .flushLog:
                requestFlush()
            case .startEpoch:
                beginEpoch()
            case .proposeInSyncReplicas(let number):
                propose(number)
            case .appendFetchedRecords:
                appendFetchedRecords()
            case .quarantine(let start):
                following.quarantineStart = start
            case .truncate(let end):
                order(.truncate(to: end))
            case .restartLog(let start):
                order(.restart(at: start))
            case .raiseLogStart(let start):
                followLogStart(to: start)
            case .readyForHandOver:
                handOverEnded(isReady: true)
            }
        }
        effects.removeAll(keepingCapacity: true)
        runsEffects = false
    }

    private func acknowledge(_ id: AppendID) {
        guard let append = waiting.removeValue(forKey: id) else { return }
        loop.appendStoppedWaiting()
        if let end = append.flushEnd, let whenFlushed = append.whenCommitted, case .open(let log) = phase,
            log.flushedEndOffset < end
        {
            flushWaiters.append(FlushWaiter(end: end, result: append.result, whenFlushed: whenFlushed))
            requestFlush()
            return
        }
        deliver(append.request, append.index, append.result, append.whenCommitted)
    }

    /// Answers an append that waits with an error.
    private func finish(_ id: AppendID, _ why: PartitionUnavailable) {
        guard let append = waiting.removeValue(forKey: id) else { return }
        loop.appendStoppedWaiting()
        deliver(append.request, append.index, ProduceResult(why), append.whenCommitted)
    }

    private func deliver(
        _ request: ProduceRequestState?, _ index: Int, _ result: ProduceResult,
        _ whenCommitted: ((ProduceResult) -> Void)?
    ) {
        if let request {
            loop.complete(ProduceCompletion(request: request, index: index, result: result))
        }
        whenCommitted?(result)
    }

    /// Answers appends whose producers have waited for their time-out: the records are in the log and may
    /// still commit.
    func expireAppends(now: NIODeadline) {
        for (id, append) in waiting.sorted(by: { $0.key.rawValue < $1.key.rawValue }) {
            guard let request = append.request, request.deadline <= now else { continue }
            waiting[id] = nil
            loop.appendStoppedWaiting()
            deliver(
                request, append.index,
                ProduceResult(
                    error: .requestTimedOut,
                    message: isReplicated
                        ? "\(name): the replicas in sync did not have the records within the request's time-out"
                        : "\(name): the flush did not finish within the request's time-out"),
                nil)
        }
    }

    func failEverything(_ code: ErrorCode, _ cause: String) {
        let result = ProduceResult(error: code, message: cause)
        let unwritten = staged
        staged = []
        isDirty = false
        for append in unwritten { deliver(append.request, append.index, result, append.whenCommitted) }
        let pending = waiting
        waiting = [:]
        for (_, append) in pending.sorted(by: { $0.key.rawValue < $1.key.rawValue }) {
            loop.appendStoppedWaiting()
            deliver(append.request, append.index, result, append.whenCommitted)
        }
        let unflushed = flushWaiters
        flushWaiters = []
        for waiter in unflushed { waiter.whenFlushed(result) }
        wakeAllFetches()
    }

    /// What is cut away was never flushed for anybody.
    func failFlushWaiters(above end: Offset) {
        let lost = flushWaiters.filter { $0.end > end }
        guard !lost.isEmpty else { return }
        flushWaiters.removeAll { $0.end > end }
        for waiter in lost { waiter.whenFlushed(ProduceResult(unavailable(.notLeaderOrFollower))) }
    }

    // MARK: Flush

    /// Makes the log durable up to its present end, soon. Appends that arrive while a flush is under way
    /// share the next one: group commit.
    package func requestFlush() {
        guard !isFlushing, following.cut == nil else {
            flushWanted = true
            return
        }
        guard case .open(let log) = phase, let work = log.takeFlush() else { return }
        runFlush(work)
    }

    private func runFlush(_ work: FlushWork<AnyDisk>) {
        isFlushing = true
        flushWanted = false
        let loop = self.loop
        loop.services.flushPool.submit { _ in
            let result = work.run()
            loop.post { _ in self.flushFinished(result) }
        }
    }

    private func flushFinished(_ result: FlushResult) {
        isFlushing = false
        guard case .open(let log) = phase else {
            folderWorkEnded()
            return
        }
        log.flushCompleted(result)
        if let failure = result.failure, result.canBeRetried {
            retryFlush(after: failure)
            cutIfReady()
            return
        }
        if let failure = result.failure {
            loop.logger.critical(
                "flush failed; the log directory is offline until the disk is replaced and the broker restarted",
                metadata: ["partition": "\(name)", "cause": "\(failure)"])
            phase = .failed(.kafkaStorageError, "flush failed: \(failure)", since: loop.eventLoop.now)
            failEverything(.kafkaStorageError, "flush failed: \(failure)")
            resign(.kafkaStorageError)
            closingEnded()
            return
        }
        failedFlushCount = 0
        replica.flushed(upTo: log.flushedEndOffset, into: &effects)
        runEffects()
        while let waiter = flushWaiters.first, waiter.end <= log.flushedEndOffset {
            flushWaiters.removeFirst()
            waiter.whenFlushed(waiter.result)
        }
        if following.cut != nil {
            cutIfReady()
            return
        }
        if flushWanted { requestFlush() }
        if closePromise != nil, !isFlushing {
            // Small files that there is no room for are found again by the next start; another flush would not write
            // them.
            if result.lacksSmallFiles { closeClean = false }
            finishClosing()
        }
        guard following.leader != nil else { return }
        // A follower asks for more once it has what it has.
        loop.replicaFetchers?.wake(key)
        pursueLogStart()
    }

    func closingEnded() {
        closePromise?.succeed()
        closePromise = nil
    }

    /// The appends go on waiting, as long as their producers do.
    private func retryFlush(after failure: DiskError) {
        if failedFlushCount == 0 {
            loop.logger.error(
                "flush waits for a free file descriptor; raise the limit of open files (ulimit -n)",
                metadata: ["partition": "\(name)", "cause": "\(failure)"])
        }
        failedFlushCount += 1
        if closePromise != nil, failedFlushCount >= Self.closingRetryLimit {
            closeClean = false
            finishClosing()
            return
        }
        loop.eventLoop.assumeIsolated().scheduleTask(in: Self.flushRetryInterval) {
            guard !self.isFlushing else { return }
            if self.closePromise != nil { self.finishClosing() } else { self.requestFlush() }
        }
    }

    // MARK: Read

    /// Exclusive end of what is known to be committed. What clients are told: ``visibleEnd``.
    package var highWatermark: Offset { replica.highWatermark }

    /// Exclusive end of what consumers may read. Nil while it is not known, see ``PartitionReplica/visibleEnd``.
    package var visibleEnd: Offset? { replica.visibleEnd }

    package func addFetchWaiter(_ waiter: FetchWaiter) {
        if waiter.knownMark == nil { fetchWaiters.append(waiter) } else { replicaWaiters.append(waiter) }
    }

    func noteUse() { wasUsed = true }

    package func removeFetchWaiters(of fetch: FetchRequestState) {
        fetchWaiters.removeAll { $0.fetch === fetch }
        replicaWaiters.removeAll { $0.fetch === fetch }
    }

    /// Calls `body` once, when there may be more to read.
    func whenAdvanced(_ body: @escaping () -> Void) { observers.append(body) }

    private func wakeFetches() {
        if !observers.isEmpty {
            let told = observers
            observers = []
            for body in told { body() }
        }
        guard !fetchWaiters.isEmpty else { return }
        let woken = fetchWaiters
        fetchWaiters.removeAll(keepingCapacity: true)
        for waiter in woken { waiter.wake(from: loop) }
    }

    /// - Parameter mark: wakes those that know of a lower one; nil wakes everybody.
    private func wakeReplicas(above mark: Offset?) {
        let woken = mark.map { mark in replicaWaiters.filter { ($0.knownMark ?? .zero) < mark } } ?? replicaWaiters
        guard !woken.isEmpty else { return }
        if let mark {
            replicaWaiters.removeAll { ($0.knownMark ?? .zero) < mark }
        } else {
            replicaWaiters.removeAll(keepingCapacity: true)
        }
        for waiter in woken { waiter.wake(from: loop) }
    }

    /// Everybody has to look again: the role is another, or there is none.
    func wakeAllFetches() {
        wakeFetches()
        wakeReplicas(above: nil)
    }
}
