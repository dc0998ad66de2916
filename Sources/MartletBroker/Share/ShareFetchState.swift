internal import MartletCoordinators
internal import MartletLogModel
internal import NIOCore

/// A ShareFetch request between its arrival and its answer.
///
/// It asks its share partitions one after the other, since what one gives is not to be had of the next, waits until
/// one of them has records or the time is over, and then answers once.
// SAFETY: mutable state is touched on `loop`, the connection's loop, alone.
package final class ShareFetchState: @unchecked Sendable {
    /// Bytes of records in one answer, which are in memory until they are sent.
    private static let answerByteLimit = 8 * 1024 * 1024

    struct Limits: Sendable {
        var member: String
        var maxRecords: Int
        var batchSize: Int
        var isStrict: Bool
        var minBytes: Int
        var maxBytes: Int
        /// Longest time to wait; zero answers with what is there.
        var maxWait: TimeAmount
    }

    let loop: BrokerLoop
    private let group: String
    private let partitions: [PartitionKey]
    private let limits: Limits
    /// Cleared when it was called or the fetch was cancelled: it holds the request's context.
    private var finish: (([ShareFetchOutcome]) -> Void)?

    private var outcomes: [ShareFetchOutcome]
    private var queue: [Int]
    private var byteCount = 0
    private var recordCount = 0
    private var failed = false
    private var advanced: [Int] = []
    private var waitsOn: Set<Int> = []
    private var isStepping = false
    private var isAsking = false
    private var isParked = false
    private var isDone = false
    private var isTimedOut = false
    /// Few bytes are enough.
    private var isFinal: Bool
    private var timer: Scheduled<Void>?

    /// - Parameters:
    ///   - partitions: in the order in which they are asked.
    ///   - rejected: errors of partitions that are not asked.
    ///   - finish: called once on `loop`, with the outcomes in the order of `partitions`.
    init(
        loop: BrokerLoop, group: String, partitions: [PartitionKey], rejected: [Int: ErrorCode],
        limits: Limits,
        finish: @escaping ([ShareFetchOutcome]) -> Void
    ) {
        self.loop = loop
        self.group = group
        self.partitions = partitions
        self.limits = limits
        self.finish = finish
        outcomes = partitions.indices.map { ShareFetchOutcome(error: rejected[$0] ?? .none) }
        queue = partitions.indices.filter { rejected[$0] == nil }.reversed()
        failed = !rejected.isEmpty
        isFinal = limits.maxWait <= .zero || limits.minBytes <= 1
    }

    func start() {
        step()
    }

    private var room: Int { max(0, limits.maxRecords - recordCount) }
    private var byteRoom: Int { max(0, min(limits.maxBytes, Self.answerByteLimit) - byteCount) }

    /// Asks until an answer has to be waited for. Answers that come at once do not call it again, which would go one
    /// level deeper for each partition.
    private func step() {
        guard !isStepping, !isDone else { return }
        isStepping = true
        while !isDone, !isAsking, room > 0, byteRoom > 0, let index = queue.popLast() { ask(index) }
        isStepping = false
        if !isDone, !isAsking { roundFinished() }
    }

    private func ask(_ index: Int) {
        isAsking = true
        let key = partitions[index]
        let id = key.sharePartition(of: group)
        let ask = ShareFetchAsk(
            acquisition: ShareAcquisition(
                member: limits.member, maxRecords: room, batchSize: limits.batchSize,
                isStrict: limits.isStrict),
            maxBytes: byteRoom, minBytes: limits.minBytes, isFinal: isFinal)
        let mayWait = limits.maxWait > .zero
        if mayWait { waitsOn.insert(index) }
        let target = loop.services.loops.loop(of: key, near: loop)
        let run: @Sendable (BrokerLoop) -> Void = { target in
            guard let shell = target.sharePartitions.shell(id, key) else {
                return self.deliver(
                    index,
                    ShareFetchOutcome(
                        error: target.isStopping ? .notLeaderOrFollower : .coordinatorLoadInProgress),
                    from: target)
            }
            shell.fetch(ask, waiter: mayWait ? ShareFetchWaiter(fetch: self, index: index) : nil) { outcome in
                self.deliver(index, outcome, from: target)
            }
        }
        if target === loop { run(loop) } else { target.post(run) }
    }

    private func deliver(_ index: Int, _ outcome: ShareFetchOutcome, from target: BrokerLoop) {
        if target === loop {
            answered(index, outcome)
        } else {
            loop.post { _ in self.answered(index, outcome) }
        }
    }

    private func answered(_ index: Int, _ outcome: ShareFetchOutcome) {
        isAsking = false
        guard !isDone else {
            // Nobody is there to get these: others shall.
            if !outcome.acquired.isEmpty { giveBack(index, outcome.acquired) }
            return
        }
        outcomes[index] = outcome
        byteCount += outcome.records.readableBytes
        recordCount += outcome.recordCount
        if outcome.error != .none { failed = true }
        step()
    }

    private func giveBack(_ index: Int, _ records: [AcquiredRecords]) {
        let key = partitions[index]
        let id = key.sharePartition(of: group)
        let member = limits.member
        loop.services.loops.loop(of: key).post {
            $0.sharePartitions.existing(id)?.takeBack(records, from: member)
        }
    }

    private func roundFinished() {
        if recordCount > 0 || failed || isTimedOut || limits.maxWait <= .zero || partitions.isEmpty
            || room == 0
            || byteRoom == 0
        {
            return complete()
        }
        if !advanced.isEmpty {
            queue = advanced.reversed()
            advanced = []
            return step()
        }
        isParked = true
        if timer == nil {
            timer = loop.eventLoop.assumeIsolated().scheduleTask(in: limits.maxWait) { self.waitEnded() }
        }
    }

    private func waitEnded() {
        timer = nil
        isTimedOut = true
        guard isParked, !isDone else { return }
        isParked = false
        // What was too little before is what there is.
        if !isFinal {
            isFinal = true
            queue = partitions.indices.filter { outcomes[$0].error == .none }.reversed()
            return step()
        }
        complete()
    }

    /// A share partition this request waits for may have records to acquire.
    func partitionMayHaveMore(_ index: Int) {
        guard !isDone else { return }
        guard isParked else {
            advanced.append(index)
            return
        }
        isParked = false
        queue = [index]
        step()
    }

    /// The connection is gone: whatever arrives later goes back.
    package func cancel() {
        isDone = true
        finish = nil
        stopWaiting()
    }

    private func stopWaiting() {
        timer?.cancel()
        timer = nil
        for index in waitsOn {
            let key = partitions[index]
            let id = key.sharePartition(of: group)
            let target = loop.services.loops.loop(of: key)
            if target === loop {
                loop.sharePartitions.existing(id)?.removeWaiters(of: self)
            } else {
                target.post { $0.sharePartitions.existing(id)?.removeWaiters(of: self) }
            }
        }
        waitsOn = []
    }

    private func complete() {
        isDone = true
        stopWaiting()
        let finish = self.finish
        self.finish = nil
        finish?(outcomes)
    }
}
