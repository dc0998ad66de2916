internal import Logging
package import MartletLogModel
package import MartletReplication
package import MartletStorage
package import NIOCore
internal import NIOPosix

/// One partition of a Fetch request, whatever version or session it came from.
package struct FetchItem: Sendable {
    package var topicID: UniversalID
    package var topicName: String
    package var key: PartitionKey
    package var fetchOffset: Int64
    package var partitionMaxBytes: Int
    /// -1: not checked.
    package var currentLeaderEpoch: Int32
    /// -1: not checked.
    package var lastFetchedEpoch: Int32
    /// Only what is decided, with the transactions to leave out (`isolation.level=read_committed`).
    package var readsCommitted = false
    /// Set where a replica fetches.
    package var replica: ReplicaItem?
    /// Where the consumer is, if it wants to read near by (KIP-392).
    package var rack: String?
    /// The consumer's version reads from followers too.
    package var mayReadFollower = false
    /// Set when the request itself is wrong for this partition; nothing is read then.
    package var rejection: ErrorCode = .none
}

/// What a replica's fetch says beside a consumer's.
package struct ReplicaItem: Sendable {
    package var fetch: FollowerFetch
    /// The high watermark that it was told last: a higher one is worth an answer. Nil where nobody knows.
    package var knownMark: Offset?
}

/// The records part of one partition's answer.
package enum FetchedRecords: Sendable {
    case none
    /// Read already.
    case bytes(ByteBuffer)
    /// To be sent from the file by the kernel.
    case region(LogRegion<AnyDisk>)

    package var byteCount: Int {
        switch self {
        case .none: 0
        case .bytes(let buffer): buffer.readableBytes
        case .region(let region): region.byteCount
        }
    }
}

/// A read that must wait for the device; done on the work pool.
package enum ColdRead: Sendable {
    /// Known place, bytes not in the page cache.
    case region(LogRegion<AnyDisk>)
    /// Not even the place is known: the index is not in memory. `limit` bounds what will be found.
    case locate(ColdLocate<AnyDisk>, limit: Int)

    package var byteCount: Int {
        switch self {
        case .region(let region): region.byteCount
        case .locate(_, let limit): limit
        }
    }
}

/// Answer for one partition of a Fetch request.
package struct FetchResult: Sendable {
    package var error: ErrorCode = .none
    package var highWatermark: Int64 = -1
    package var lastStableOffset: Int64 = -1
    package var logStartOffset: Int64 = -1
    /// Largest epoch and its end where the client's log diverges from ours (KIP-320), if it does.
    package var divergingEpoch: (epoch: Int32, endOffset: Int64)?
    package var records: FetchedRecords = .none
    /// Transactions whose records the consumer must leave out; `nil` unless it asked for what is committed.
    package var abortedTransactions: [AbortedTransaction]?
    /// With NOT_LEADER_OR_FOLLOWER and FENCED_LEADER_EPOCH: who leads instead (KIP-951).
    package var leader: (id: Int32, epoch: Int32)?
    /// Where the consumer should read instead of here (KIP-392).
    package var preferredReplica: Int32?
    /// There is something to tell though there are no records.
    package var isUrgent = false
    /// The page cache lacks these bytes: they must be read on the work pool before they can be sent.
    package var cold: ColdRead?

    package init(error: ErrorCode = .none) { self.error = error }

    /// Bytes this partition adds to the answer.
    package var byteCount: Int { records.byteCount + (cold?.byteCount ?? 0) }
}

/// Somebody to wake when a partition's high watermark moves.
package struct FetchWaiter {
    package var fetch: FetchRequestState
    package var index: Int
    /// Set for a follower, which waits for records that are not committed yet, or for a higher mark.
    package var knownMark: Offset?

    package func wake(from loop: BrokerLoop) {
        let (fetch, index) = (self.fetch, self.index)
        if fetch.loop === loop {
            fetch.partitionAdvanced(index)
        } else {
            fetch.loop.post { _ in fetch.partitionAdvanced(index) }
        }
    }
}

/// A Fetch request between its arrival and its answer.
///
/// It asks the loops of its partitions, waits (long poll) until `minBytes` are there or `deadline` has
/// passed, and then answers once. A partition that advances is asked again alone; the others keep the
/// answer they gave, so a long poll over many partitions costs what changed.
// SAFETY: mutable state is touched on `loop`, the connection's loop, alone.
package final class FetchRequestState: @unchecked Sendable {
    package let loop: BrokerLoop
    private let items: [FetchItem]
    package let minBytes: Int
    private let maxBytes: Int
    private let maxWait: TimeAmount
    /// Cleared when it was called or the fetch was cancelled: it holds the request's context.
    private var finish: (([FetchResult]) -> Void)?

    private var results: [FetchResult]
    private var stale: [Int]
    private var pendingLoopCount = 0
    private var advancedDuringRound: [Int] = []
    private var isParked = false
    private var isDone = false
    private var timer: Scheduled<Void>?
    private var timedOut: Bool
    private var waitsOn: Set<Int> = []
    /// Every partition has been asked once: what a follower's fetch says has been heard.
    private var isHeard = false

    /// - Parameters:
    ///   - maxWait: longest time to wait for `minBytes`; zero answers with what is there.
    ///   - finish: called once on `loop`, with the results in the order of `items`.
    package init(
        loop: BrokerLoop, items: [FetchItem], minBytes: Int, maxBytes: Int, maxWait: TimeAmount,
        finish: @escaping ([FetchResult]) -> Void
    ) {
        self.loop = loop
        self.items = items
        self.minBytes = minBytes
        self.maxBytes = maxBytes
        self.maxWait = maxWait
        self.finish = finish
        self.results = items.map { FetchResult(error: $0.rejection) }
        self.stale = Array(items.indices)
        self.timedOut = maxWait <= .zero || items.isEmpty
    }

    package func start() { runRound() }

    private func runRound() {
        let loops = loop.services.loops
        var byLoop: [[Int]] = Array(repeating: [], count: loops.count)
        for index in stale where items[index].rejection == .none {
            byLoop[loops.index(of: items[index].key, near: loop)].append(index)
        }
        stale.removeAll(keepingCapacity: true)
        pendingLoopCount = byLoop.count { !$0.isEmpty }
        guard pendingLoopCount > 0 else {
            roundFinished()
            return
        }
        let mayWait = !timedOut
        let isRepeated = isHeard
        isHeard = true
        for (loopIndex, indexes) in byLoop.enumerated() where !indexes.isEmpty {
            if mayWait { waitsOn.insert(loopIndex) }
            let target = loops.all[loopIndex]
            let asked = indexes.map { items[$0] }
            if target === loop {
                FetchReader.read(
                    asked, isRepeated: isRepeated, maxBytes: maxBytes, on: target, waiter: mayWait ? self : nil,
                    at: indexes
                ) {
                    self.loopAnswered(indexes, $0)
                }
            } else {
                let maxBytes = self.maxBytes
                target.post { target in
                    FetchReader.read(
                        asked, isRepeated: isRepeated, maxBytes: maxBytes, on: target, waiter: mayWait ? self : nil,
                        at: indexes
                    ) { results in self.loop.post { _ in self.loopAnswered(indexes, results) }
                    }
                }
            }
        }
    }

    private func loopAnswered(_ indexes: [Int], _ answers: [FetchResult]) {
        guard !isDone else { return }
        for (index, answer) in zip(indexes, answers) { results[index] = answer }
        pendingLoopCount -= 1
        if pendingLoopCount == 0 { roundFinished() }
    }

    private func roundFinished() {
        var byteCount = 0
        var failed = false
        for result in results {
            byteCount += result.byteCount
            if result.error != .none || result.divergingEpoch != nil || result.isUrgent { failed = true }
        }
        if timedOut || failed || byteCount >= minBytes {
            complete()
            return
        }
        if !advancedDuringRound.isEmpty {
            stale = advancedDuringRound
            advancedDuringRound.removeAll()
            runRound()
            return
        }
        isParked = true
        if timer == nil {
            timer = loop.eventLoop.assumeIsolated().scheduleTask(in: maxWait) { self.waitEnded() }
        }
    }

    private func waitEnded() {
        timedOut = true
        guard isParked, !isDone else { return }
        complete()
    }

    /// A partition this request waits for has new records to read.
    package func partitionAdvanced(_ index: Int) {
        guard !isDone else { return }
        guard isParked else {
            advancedDuringRound.append(index)
            return
        }
        isParked = false
        stale = [index]
        runRound()
    }

    /// The connection is gone: whatever arrives later is dropped.
    package func cancel() {
        isDone = true
        finish = nil
        stopWaiting()
    }

    private func stopWaiting() {
        timer?.cancel()
        timer = nil
        guard !waitsOn.isEmpty else { return }
        // Only a partition that had too little to read holds a waiter: a fetch that is answered at once, the usual
        // case of a reader that is behind, wakes no other loop for this.
        var held: Set<Int> = []
        for index in items.indices where results[index].byteCount < minBytes && items[index].rejection == .none {
            held.insert(loop.services.loops.index(of: items[index].key))
        }
        for loopIndex in waitsOn.intersection(held) {
            let target = loop.services.loops.all[loopIndex]
            if target === loop {
                FetchReader.stopWaiting(self, items: items, on: target)
            } else {
                let items = self.items
                target.post { target in FetchReader.stopWaiting(self, items: items, on: target) }
            }
        }
        waitsOn = []
    }

    private func complete() {
        isDone = true
        stopWaiting()
        enforceMaxBytes()
        let cold = results.indices.filter { results[$0].cold != nil }
        guard !cold.isEmpty else {
            answer()
            return
        }
        warm(cold)
    }

    private func answer() {
        let finish = self.finish
        self.finish = nil
        finish?(results)
    }

    /// Each loop kept to `maxBytes` by itself; together they may exceed it. Later partitions wait for the
    /// client's next request then, the first one with records always stays (KIP-74).
    private func enforceMaxBytes() {
        var left = maxBytes
        var isFirst = true
        for index in results.indices {
            let size = results[index].byteCount
            guard size > 0 else { continue }
            if isFirst || size <= left {
                isFirst = false
                left -= size
            } else {
                results[index].records = .none
                results[index].cold = nil
            }
        }
    }

    /// Reads what the page cache lacks on the work pool, so that no loop waits for the device.
    private func warm(_ cold: [Int]) {
        let regions = cold.compactMap { results[$0].cold }
        let loop = self.loop
        loop.services.workPool.submit { _ in
            let outcomes = regions.map { FetchReader.readCold($0) }
            loop.post { _ in
                for (index, outcome) in zip(cold, outcomes) {
                    self.results[index].cold = nil
                    switch outcome {
                    case .success(let records):
                        self.results[index].records = records
                    case .failure(let error):
                        loop.logger.error(
                            "read failed",
                            metadata: ["partition": "\(self.items[index].topicName)", "cause": "\(error)"])
                        self.results[index] = FetchResult(error: .kafkaStorageError)
                    }
                }
                self.answer()
            }
        }
    }
}
