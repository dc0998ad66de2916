internal import Logging
internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// What a member wants of one share partition, once.
struct ShareFetchAsk: Sendable {
    var acquisition: ShareAcquisition
    var maxBytes: Int
    /// Records never delivered before are left until there are so many bytes of them, or `isFinal`.
    var minBytes: Int
    var isFinal: Bool
}

/// The answer: nothing, records with the ranges that were acquired, or an error.
struct ShareFetchOutcome: Sendable {
    var error: ErrorCode = .none
    var message: String?
    var records = ByteBuffer()
    var acquired: [AcquiredRecords] = []

    var recordCount: Int { acquired.reduce(0) { $0 + Int(clamping: $1.lastOffset - $1.firstOffset + 1) } }
}

/// Somebody to wake when a share partition may have records to acquire.
struct ShareFetchWaiter {
    var fetch: ShareFetchState
    var index: Int
}

/// One share partition on the loop of its partition: the shell around the core. It reads the log where the core
/// says, hands over what is acquired, and writes to the share coordinator what the core has decided.
///
/// Made when a member first fetches: reads the state from the share coordinator, finds the start offset where there is
/// none yet and writes that down first, so that a crash before the first acknowledgement does not move it.
// SAFETY: touched on `loop.eventLoop` alone; pools get Sendable work items and post back.
final class SharePartitionShell: @unchecked Sendable {
    /// Requests that may wait for the state, or for a read from the device.
    private static let queueLimit = 10_000
    /// Bytes read of one partition for one request, above one batch: a request takes few records of each.
    private static let readByteLimit = 1024 * 1024
    /// Reads in a row that found nothing but what nobody shall see, before others get their turn.
    private static let roundLimit = 16

    private enum Phase {
        case loading
        case active
        /// Given up: whoever comes next makes a new one.
        case closed(ErrorCode, String)
    }

    /// A read of the device on its way, with whom it is for.
    private struct PendingRead {
        var ask: ShareFetchAsk
        var offset: Int64
        var aborted: [AbortedTransaction]?
        var rounds: Int
        var reply: (ShareFetchOutcome) -> Void
    }

    let id: SharePartitionID
    private let key: PartitionKey
    private unowned let loop: BrokerLoop
    private var phase: Phase = .loading
    private var core: SharePartition
    private var leaderEpoch: Int32 = -1
    /// What waits for the state to load, or for a read to end.
    private var queue: [() -> Void] = []
    private var isReading = false
    private var coldRead: PendingRead?
    private var waiters: [ShareFetchWaiter] = []
    private var isObserving = false
    private var timer: Scheduled<Void>?
    private var replies: [RequestID: (ErrorCode, String?) -> Void] = [:]
    private var nextRequest: UInt64 = 0
    private(set) var lastUse: NIODeadline

    init(id: SharePartitionID, key: PartitionKey, loop: BrokerLoop) {
        self.id = id
        self.key = key
        self.loop = loop
        lastUse = loop.eventLoop.now
        core = SharePartition(
            stateEpoch: 0, startOffset: 0, batches: [], settings: loop.shareSettings(of: id.group))
        load()
    }

    var isClosed: Bool {
        if case .closed = phase { true } else { false }
    }

    /// Nothing would be lost with it.
    var isIdle: Bool {
        switch phase {
        case .loading: false
        case .active: core.isIdle && waiters.isEmpty && queue.isEmpty && !isReading && replies.isEmpty
        case .closed: true
        }
    }

    // MARK: Loading

    private func load() {
        guard let partition = loop.partition(key) else {
            return close(loop.absence(of: key), "the partition is not here")
        }
        partition.whenOpen { partition in
            guard case .loading = self.phase else { return }
            if case .failure(let unavailable) = partition.openLog {
                return self.close(unavailable.code, unavailable.cause)
            }
            guard let epoch = partition.leaderEpoch?.rawValue else {
                return self.close(.notLeaderOrFollower, "this broker does not lead the partition")
            }
            self.leaderEpoch = epoch
            self.loop.shareState(.read(self.id, leaderEpoch: epoch)) { self.stateRead($0) }
        }
    }

    private func stateRead(_ response: ShareStateResponse) {
        guard case .loading = phase else { return }
        guard response.code == .none else {
            return close(Self.clientCode(response.code), response.message ?? "")
        }
        guard response.startOffset < 0 else { return activate(response) }
        // The group has never read here.
        guard let partition = loop.partition(key), case .success(let log) = partition.openLog,
            let mark = partition.visibleEnd
        else { return close(.notLeaderOrFollower, "the partition is not open, or its leader has just begun") }
        var found = response
        switch core.settings.offsetReset {
        case .latest: found.startOffset = mark.rawValue
        case .earliest: found.startOffset = log.logStartOffset.rawValue
        case .duration(let milliseconds):
            let time = Timestamp(milliseconds: max(0, loop.wallTime.rawValue - milliseconds))
            do throws(ReadError) {
                let match = try log.offset(for: time, upTo: mark)
                found.startOffset = (match?.offset ?? mark).rawValue
            } catch {
                return close(error.errorCode, "\(error)")
            }
        }
        let write = ShareStateWrite(
            stateEpoch: found.stateEpoch, leaderEpoch: leaderEpoch, startOffset: found.startOffset,
            deliveryCompleteCount: 0, batches: [])
        let known = found
        loop.shareState(.write(id, write)) { written in
            guard case .loading = self.phase else { return }
            guard written.code == .none else {
                return self.close(Self.clientCode(written.code), written.message ?? "")
            }
            self.activate(known)
        }
    }

    private func activate(_ state: ShareStateResponse) {
        core = SharePartition(
            stateEpoch: state.stateEpoch, startOffset: state.startOffset, batches: state.batches,
            settings: loop.shareSettings(of: id.group))
        phase = .active
        drain()
    }

    private func drain() {
        let waiting = queue
        queue = []
        for body in waiting { body() }
    }

    /// Runs `body` when nothing else is read; `refused` when too many wait.
    private func enqueue(_ refused: (ErrorCode, String) -> Void, _ body: @escaping () -> Void) {
        guard queue.count < Self.queueLimit else {
            return refused(.coordinatorLoadInProgress, "too many requests wait for the share partition")
        }
        queue.append(body)
    }

    /// Gives the share partition up: all that wait are answered, and the next request begins anew.
    func close(_ code: ErrorCode, _ cause: String) {
        if case .closed = phase { return }
        phase = .closed(code, cause)
        timer?.cancel()
        timer = nil
        loop.sharePartitions.remove(self)
        let waiting = replies
        replies = [:]
        for id in waiting.keys.sorted() { waiting[id]?(code, cause) }
        drain()
        wake()
    }

    /// Codes of the share coordinator as clients of a leader get them.
    private static func clientCode(_ code: ErrorCode) -> ErrorCode {
        switch code {
        case .notCoordinator, .coordinatorNotAvailable, .coordinatorLoadInProgress: .coordinatorNotAvailable
        case .fencedLeaderEpoch, .fencedStateEpoch: .notLeaderOrFollower
        case .unknownTopicOrPartition, .groupIDNotFound: code
        case _: .unknownServerError
        }
    }

    // MARK: Fetching

    /// `reply` runs on this loop, exactly once. With a waiter, an answer without records leaves it behind.
    func fetch(
        _ ask: ShareFetchAsk, waiter: ShareFetchWaiter?, reply: @escaping (ShareFetchOutcome) -> Void
    ) {
        lastUse = loop.eventLoop.now
        if case .closed(let code, let cause) = phase {
            return reply(ShareFetchOutcome(error: code, message: cause))
        }
        if case .active = phase, !isReading {
            return read(ask, rounds: Self.roundLimit) { outcome in
                if let waiter, outcome.error == .none, outcome.acquired.isEmpty { self.add(waiter) }
                reply(outcome)
            }
        }
        enqueue({ reply(ShareFetchOutcome(error: $0, message: $1)) }) {
            self.fetch(ask, waiter: waiter, reply: reply)
        }
    }

    private func read(_ ask: ShareFetchAsk, rounds: Int, _ reply: @escaping (ShareFetchOutcome) -> Void) {
        guard core.canAcquire, rounds > 0 else { return reply(ShareFetchOutcome()) }
        guard let partition = loop.partition(key) else {
            return reply(ShareFetchOutcome(error: loop.absence(of: key)))
        }
        guard partition.isOpen else {
            isReading = true
            return partition.whenOpen { partition in
                self.isReading = false
                if partition.isOpen {
                    self.read(ask, rounds: rounds, reply)
                } else if case .failure(let unavailable) = partition.openLog {
                    reply(ShareFetchOutcome(error: unavailable.code, message: unavailable.cause))
                }
                self.drain()
            }
        }
        let offset = core.fetchOffset
        var item = FetchItem(
            topicID: key.topicID, topicName: partition.name.topic, key: key, fetchOffset: offset,
            partitionMaxBytes: min(ask.maxBytes, Self.readByteLimit), currentLeaderEpoch: -1,
            lastFetchedEpoch: -1)
        item.readsCommitted = core.settings.readsCommitted
        let result = partition.fetch(
            item, maxBytes: item.partitionMaxBytes, minOneBatch: true, inlineByteLimit: .max)
        if result.error == .offsetOutOfRange {
            guard result.logStartOffset > offset else { return reply(ShareFetchOutcome()) }
            handle(.logStartMoved(result.logStartOffset))
            return read(ask, rounds: rounds - 1, reply)
        }
        guard result.error == .none else { return reply(ShareFetchOutcome(error: result.error)) }
        switch (result.cold, result.records) {
        case (let cold?, _):
            isReading = true
            coldRead = PendingRead(
                ask: ask, offset: offset, aborted: result.abortedTransactions, rounds: rounds, reply: reply)
            let loop = self.loop
            loop.services.workPool.submit { _ in
                let bytes = Self.readCold(cold)
                loop.post { _ in self.coldReadEnded(bytes) }
            }
        case (nil, .bytes(let bytes)):
            acquire(ask, bytes, result.abortedTransactions, from: offset, rounds, reply)
        case (nil, .none), (nil, .region):
            reply(ShareFetchOutcome())
        }
    }

    private func coldReadEnded(_ bytes: Result<ByteBuffer, ReadError>) {
        isReading = false
        guard let read = coldRead else { return }
        coldRead = nil
        switch bytes {
        case .success(let bytes):
            acquire(read.ask, bytes, read.aborted, from: read.offset, read.rounds, read.reply)
        case .failure(let error):
            loop.logger.error("read failed", metadata: ["share.partition": "\(id)", "cause": "\(error)"])
            read.reply(ShareFetchOutcome(error: error.errorCode))
        }
        drain()
    }

    /// Blocking read, for the work pool.
    private static func readCold(_ read: ColdRead) -> Result<ByteBuffer, ReadError> {
        do throws(ReadError) {
            let region =
                switch read {
                case .region(let region): region
                case .locate(let locate, _): try locate.run()
                }
            var buffer = ByteBuffer()
            guard region.byteCount > 0 else { return .success(buffer) }
            buffer.reserveCapacity(region.byteCount)
            _ = try region.read(into: &buffer, nonBlocking: false)
            return .success(buffer)
        } catch {
            return .failure(error)
        }
    }

    private func acquire(
        _ ask: ShareFetchAsk, _ bytes: ByteBuffer, _ aborted: [AbortedTransaction]?, from offset: Int64,
        _ rounds: Int, _ reply: @escaping (ShareFetchOutcome) -> Void
    ) {
        guard case .active = phase else {
            if case .closed(let code, let cause) = phase {
                reply(ShareFetchOutcome(error: code, message: cause))
            }
            return
        }
        guard bytes.readableBytes > 0, ask.isFinal || core.hasFree || bytes.readableBytes >= ask.minBytes
        else {
            return reply(ShareFetchOutcome())
        }
        let batches: ShareBatches
        do {
            batches = try ShareBatches(bytes, aborted: aborted)
        } catch {
            loop.logger.error(
                "batch cannot be read", metadata: ["share.partition": "\(id)", "cause": "\(error)"])
            return reply(ShareFetchOutcome(error: .kafkaStorageError))
        }
        var effects: [SharePartition.Effect] = []
        let acquired = core.acquire(
            ask.acquisition, batches.batches, from: offset, now: loop.monotonicTime, into: &effects)
        var outcome = ShareFetchOutcome()
        outcome.acquired = acquired
        if !acquired.isEmpty { outcome.records = batches.bytes(of: acquired) }
        let mayGoOn = acquired.isEmpty && core.fetchOffset > offset
        for effect in effects { run(effect) }
        if mayGoOn { read(ask, rounds: rounds - 1, reply) } else { reply(outcome) }
    }

    // MARK: Waiting

    private func add(_ waiter: ShareFetchWaiter) {
        waiters.append(waiter)
        guard !isObserving, let partition = loop.existingPartition(key) else { return }
        isObserving = true
        partition.whenAdvanced { [weak self] in
            self?.isObserving = false
            self?.wake()
        }
    }

    func removeWaiters(of fetch: ShareFetchState) { waiters.removeAll { $0.fetch === fetch } }

    private func wake() {
        guard !waiters.isEmpty else { return }
        let woken = waiters
        waiters = []
        for waiter in woken {
            let (fetch, index) = (waiter.fetch, waiter.index)
            // Never at once: whoever wakes is in the middle of something.
            fetch.loop.post { _ in fetch.partitionMayHaveMore(index) }
        }
    }

    // MARK: Acknowledging

    /// `reply` runs on this loop, exactly once.
    func acknowledge(
        _ member: String, _ acknowledgements: [ShareAcknowledgement],
        reply: @escaping (ErrorCode, String?) -> Void
    ) {
        lastUse = loop.eventLoop.now
        switch phase {
        case .closed(let code, let cause):
            reply(code, cause)
        case .loading:
            // Nobody holds anything of what is not loaded.
            reply(.invalidRecordState, "None of the records is acquired.")
        case .active:
            nextRequest += 1
            let id = RequestID(nextRequest)
            replies[id] = reply
            handle(.acknowledged(id, member: member, acknowledgements))
        }
    }

    func release(_ member: String) {
        if case .active = phase { handle(.released(member: member)) }
    }

    /// Records of a request that nobody waits for any more.
    func takeBack(_ records: [AcquiredRecords], from member: String) {
        if case .active = phase { handle(.returned(member: member, records)) }
    }

    func configurationChanged() {
        let settings = loop.shareSettings(of: id.group)
        if settings != core.settings { handle(.reconfigured(settings)) }
    }

    // MARK: Events

    private func handle(_ event: SharePartition.Event) {
        var effects: [SharePartition.Effect] = []
        core.handle(event, now: loop.monotonicTime, into: &effects)
        for effect in effects { run(effect) }
    }

    private func run(_ effect: SharePartition.Effect) {
        switch effect {
        case .respond(let id, let code, let message):
            replies.removeValue(forKey: id)?(code, message)
        case .write(let update, let token):
            write(update, token)
        case .schedule(let instant):
            timer?.cancel()
            let deadline = NIODeadline.uptimeNanoseconds(UInt64(clamping: instant.nanoseconds))
            timer = loop.eventLoop.assumeIsolated().scheduleTask(deadline: deadline) {
                self.timer = nil
                if case .active = self.phase { self.handle(.timerFired) }
            }
        case .wake:
            wake()
        }
    }

    private func write(_ update: ShareStateUpdate, _ token: ShareWriteToken) {
        let write = ShareStateWrite(
            stateEpoch: core.stateEpoch, leaderEpoch: leaderEpoch, startOffset: update.startOffset,
            deliveryCompleteCount: update.deliveryCompleteCount, batches: update.batches)
        loop.shareState(.write(id, write)) { response in
            guard case .active = self.phase else { return }
            guard response.code != .none else { return self.handle(.written(token)) }
            self.loop.logger.warning(
                "share group state was not written",
                metadata: [
                    "share.partition": "\(self.id)", "error": "\(response.code.name)",
                    "cause": "\(response.message ?? "")",
                ])
            self.handle(.writeFailed(token, Self.clientCode(response.code)))
            switch response.code {
            case .notCoordinator, .coordinatorNotAvailable, .coordinatorLoadInProgress: break
            case let code: self.close(Self.clientCode(code), response.message ?? "")
            }
        }
    }
}
