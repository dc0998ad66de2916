internal import Logging
internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// One share coordinator shard on its event loop: the shell around the core and its partition of
/// `__share_group_state`.
///
/// What is superseded is cut off the log from time to time. Confined to the partition's loop.
// SAFETY: touched on `loop.eventLoop` alone.
final class ShareStateShardShell: ShardOwner, @unchecked Sendable {
    static let title = "share coordinator"
    /// How often the log is looked at for what is superseded (Kafka's default of the same task).
    private static let pruneInterval: TimeAmount = .minutes(5)

    private unowned let loop: BrokerLoop
    private var core = ShareStateShard()
    private(set) lazy var log = ShardLog(key, loop, owner: self)
    private let key: PartitionKey
    private var replies = WaitingReplies<ShareStateResponse>()
    private var pruning: RepeatedTask?

    init(key: PartitionKey, loop: BrokerLoop) {
        self.key = key
        self.loop = loop
    }

    // MARK: Requests

    /// `reply` runs on this loop, exactly once.
    func submit(_ request: ShareStateRequest, reply: @escaping (ShareStateResponse) -> Void) {
        log.submit(replies.add(reply), request)
    }

    func serve(_ id: RequestID, _ request: ShareStateRequest) { handle(.requested(id, request)) }

    func refuse(_ id: RequestID, _ request: ShareStateRequest, _ code: ErrorCode) {
        answer(id, ShareStateResponse(code))
    }

    private func answer(_ id: RequestID, _ response: ShareStateResponse) { replies.take(id)?(response) }

    // MARK: Events

    private func handle(_ event: ShareStateShard.Event) {
        var effects: [ShareStateShard.Effect] = []
        core.handle(event, now: loop.wallTime, into: &effects)
        for effect in effects { run(effect) }
    }

    private func run(_ effect: ShareStateShard.Effect) {
        switch effect {
        case .respond(let id, let response): answer(id, response)
        case .append(let records, let token):
            let now = loop.wallTime
            log.append(token, batch: { try RecordBatchBuilder.batch(records, now) }) { offset in
                self.handle(.committed(token, offset: offset))
            }
        case .prune(let offset): prune(before: offset)
        }
    }

    func appendFailed(_ token: AppendToken, _ code: ErrorCode) { handle(.appendFailed(token, code)) }

    func discardCore() {
        pruning?.cancel()
        pruning = nil
        core = ShareStateShard()
    }

    /// Topics that were deleted: the state of their partitions goes.
    func topicsDeleted(_ topics: [UniversalID]) {
        if log.isActive { handle(.topicsDeleted(topics)) }
    }

    /// Answers everybody who waits; the broker stops or the partition goes.
    func resign() {
        handle(.resigned)
        log.resign()
    }

    // MARK: Pruning

    private func pruneIfDue() {
        guard log.isActive, let partition = loop.partition(key) else { return }
        partition.whenOpen(
            log.whileItLasts { partition in
                guard self.log.isActive else { return }
                self.handle(.pruningDue(logEnd: partition.highWatermark.rawValue))
            })
    }

    private func prune(before offset: Int64) {
        loop.partition(key)?.whenOpen { partition in
            partition.deleteRecords(before: offset) { result in
                guard case .failure(let unavailable) = result else { return }
                self.loop.logger.warning(
                    "share group state is not pruned",
                    metadata: ["partition": "\(self.key.partition)", "cause": "\(unavailable.cause)"])
            }
        }
    }

    // MARK: Loading

    struct Entry: Sendable {
        var record: ShareStateRecord
        var offset: Int64
    }

    static func decode(_ batch: ByteBuffer, _ header: RecordBatchHeader, into entries: inout [Entry]) throws {
        guard !header.isControl else { return }
        var iterator = try RecordIterator(batch)
        while let view = try iterator.next() {
            guard let key = view.key, let record = try ShareStateRecord.decode(key: key, value: view.value)
            else { continue }
            entries.append(Entry(record: record, offset: view.offset.rawValue))
        }
    }

    func replay(_ entries: [Entry]) {
        for entry in entries { core.replay(entry.record, offset: entry.offset) }
    }

    func becameActive() {
        handle(.loaded)
        let gone = Set(core.durableState().keys.map(\.topic)).filter { loop.image.topic(id: $0) == nil }
        if !gone.isEmpty { handle(.topicsDeleted(gone.sorted())) }
        pruning = loop.eventLoop.scheduleRepeatedTask(
            initialDelay: Self.pruneInterval, delay: Self.pruneInterval
        ) { _ in self.pruneIfDue() }
        loop.logger.debug(
            "share coordinator loaded",
            metadata: ["partition": "\(key.partition)", "share.partitions": "\(core.partitionCount)"])
    }
}
