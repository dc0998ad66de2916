internal import Glibc
internal import Logging
internal import MartletLogModel
internal import MartletReplication
package import MartletStorage
package import NIOCore

/// The part of a Fetch that runs on the loop of the partitions.
package enum FetchReader {
    /// Up to this size a region is read into the response; larger ones go out with sendfile
    /// (measured crossover of `pread` against a file region).
    private static let inlineByteLimit = 64 * 1024
    /// Largest region taken from the device into memory at once when the page cache lacks it.
    private static let coldByteLimit = 1024 * 1024

    /// Reads `items`, which all live on `loop`, and answers once with their results in order.
    ///
    /// - Parameters:
    ///   - isRepeated: the same request has asked these partitions before.
    ///   - maxBytes: bound over all items; the first one with records may exceed it by one batch.
    ///   - waiter: registered with each partition that has less than its `minBytes` to read, under its index in `indexes`.
    package static func read(
        _ items: [FetchItem], isRepeated: Bool, maxBytes: Int, on loop: BrokerLoop, waiter: FetchRequestState?,
        at indexes: [Int], answer: @escaping ([FetchResult]) -> Void
    ) {
        // The common case, all partitions open, answers synchronously.
        var partitions: [Partition?] = []
        partitions.reserveCapacity(items.count)
        var opening: [Partition] = []
        for item in items {
            let partition = loop.partition(item.key)
            partition?.reopenIfDue()
            partitions.append(partition)
            if let partition, partition.isOpening { opening.append(partition) }
        }
        guard opening.isEmpty else {
            let counter = Countdown(opening.count) {
                answer(
                readOpen(
                    items, partitions, isRepeated: isRepeated, maxBytes: maxBytes, on: loop, waiter: waiter, at: indexes))
            }
            for partition in opening { partition.whenOpen { _ in counter.countDown() } }
            return
        }
        answer(
                readOpen(
                    items, partitions, isRepeated: isRepeated, maxBytes: maxBytes, on: loop, waiter: waiter, at: indexes))
    }

    private static func readOpen(
        _ items: [FetchItem], _ partitions: [Partition?], isRepeated: Bool, maxBytes: Int, on loop: BrokerLoop,
        waiter: FetchRequestState?, at indexes: [Int]
    ) -> [FetchResult] {
        var results: [FetchResult] = []
        results.reserveCapacity(items.count)
        var left = maxBytes
        var isFirst = true
        for (position, item) in items.enumerated() {
            guard let partition = partitions[position] else {
                results.append(FetchResult(error: loop.absence(of: item.key)))
                continue
            }
            let result = partition.fetch(
                item, isRepeated: isRepeated, maxBytes: left, minOneBatch: isFirst, inlineByteLimit: inlineByteLimit)
            let size = result.byteCount
            if size > 0 {
                isFirst = false
                left = max(0, left - size)
            }
            // What is here may be too little for the request: more of it is news as well.
            if let waiter, size < waiter.minBytes, result.error == .none {
                let knownMark = item.replica.map { $0.knownMark ?? Offset(result.highWatermark) }
                partition.addFetchWaiter(FetchWaiter(fetch: waiter, index: indexes[position], knownMark: knownMark))
            }
            results.append(result)
        }
        return results
    }

    package static func stopWaiting(_ fetch: FetchRequestState, items: [FetchItem], on loop: BrokerLoop) {
        for item in items { loop.existingPartition(item.key)?.removeFetchWaiters(of: fetch) }
    }

    /// Blocking read, for the work pool.
    package static func readCold(_ read: ColdRead) -> Result<FetchedRecords, ReadError> {
        do throws(ReadError) {
            let region =
                switch read {
                case .region(let region): region
                case .locate(let locate, _): try locate.run()
                }
            guard region.byteCount > 0 else { return .success(.none) }
            if region.byteCount <= coldByteLimit {
                var buffer = ByteBuffer()
                buffer.reserveCapacity(region.byteCount)
                _ = try region.read(into: &buffer, nonBlocking: false)
                return .success(.bytes(buffer))
            }
            // Too large to hold: bring it into the page cache piece by piece, then let the kernel send it.
            try region.warm(pieceByteCount: coldByteLimit)
            return .success(.region(region))
        } catch {
            return .failure(error)
        }
    }
}

extension Partition {
    /// Reads one partition of a Fetch request: whole batches, for consumers below the high watermark.
    ///
    /// - Parameter isRepeated: the same request has asked before: what it says of a follower was heard then.
    func fetch(
        _ item: FetchItem, isRepeated: Bool = false, maxBytes: Int, minOneBatch: Bool, inlineByteLimit: Int
    ) -> FetchResult {
        let log: PartitionLog<AnyDisk>
        switch openLog {
        case .success(let open): log = open
        case .failure(let unavailable): return FetchResult(error: unavailable.code)
        }
        noteUse()
        let limits = ReadLimits(
            maxBytes: min(maxBytes, item.partitionMaxBytes), minOneBatch: minOneBatch, inlineByteLimit: inlineByteLimit)
        if let replica = item.replica { return fetch(item, for: replica, isRepeated: isRepeated, log, limits) }
        let leadership =
            item.mayReadFollower
            ? checkEpoch(currentLeaderEpoch: item.currentLeaderEpoch)
            : checkLeadership(currentLeaderEpoch: item.currentLeaderEpoch)
        guard leadership == .none else { return refusal(leadership) }
        guard let mark = visibleEnd else { return FetchResult(error: .offsetNotAvailable) }
        var result = FetchResult()
        let stable = log.lastStableOffset(highWatermark: mark)
        result.highWatermark = mark.rawValue
        result.lastStableOffset = stable.rawValue
        if item.readsCommitted { result.abortedTransactions = [] }
        let suspended = loop.services.suspended
        let bound = item.readsCommitted && !suspended.contains(.lastStableOffset) ? stable : mark
        result.logStartOffset = log.logStartOffset.rawValue
        if item.lastFetchedEpoch >= 0,
            let diverging = divergence(log, lastFetchedEpoch: item.lastFetchedEpoch, fetchOffset: item.fetchOffset)
        {
            result.divergingEpoch = diverging
            return result
        }
        if let damage = log.damage, item.fetchOffset >= damage.offset.rawValue {
            // What follows is in quarantine: not out of range, not the end of the log either.
            result.error = .kafkaStorageError
            return result
        }
        guard item.fetchOffset >= log.logStartOffset.rawValue, item.fetchOffset <= mark.rawValue else {
            // What a follower does not know to be committed yet may be read there soon (KIP-392).
            let isAhead = leaderEpoch == nil && item.fetchOffset > mark.rawValue
            result.error =
                isAhead && item.fetchOffset <= log.writtenEndOffset.rawValue ? .offsetNotAvailable : .offsetOutOfRange
            return result
        }
        if let rack = item.rack, let preferred = preferredReplica(from: Offset(item.fetchOffset), rack: rack) {
            result.preferredReplica = preferred.rawValue
            result.isUrgent = true
            return result
        }
        read(item, log, upTo: bound, limits, into: &result)
        return result
    }

    /// What one partition may add to an answer.
    private struct ReadLimits {
        var maxBytes: Int
        var minOneBatch: Bool
        var inlineByteLimit: Int
    }

    private func refusal(_ code: ErrorCode) -> FetchResult {
        var result = FetchResult(error: code)
        if code == .notLeaderOrFollower || code == .fencedLeaderEpoch {
            result.leader = unavailable(.notLeaderOrFollower).leader
        }
        return result
    }

    /// A follower's fetch acknowledges what is before its offset, once, and reads everything that is written.
    private func fetch(
        _ item: FetchItem, for follower: ReplicaItem, isRepeated: Bool, _ log: PartitionLog<AnyDisk>,
        _ limits: ReadLimits
    ) -> FetchResult {
        let fetch = follower.fetch
        let answer: FollowerFetchAnswer
        if isRepeated {
            answer = answerAgain(fetch, log)
        } else {
            let known = fetch.lastFetchedEpoch.flatMap {
                log.leaderEpochs.endOffset(for: $0, logEnd: log.writtenEndOffset)
            }
            answer = replica.followerFetched(
                fetch, standing: loop.image.standing(of: fetch.replica),
                epochEnd: known.map { EpochEnd(epoch: $0.epoch, endOffset: $0.endOffset) }, now: loop.monotonicTime,
                into: &effects)
            runEffects()
            checkLowWatermark()
        }
        var result = FetchResult()
        let mark = replica.highWatermark
        switch answer {
        case .refused(let code):
            result = refusal(code)
            if code == .offsetOutOfRange { result.logStartOffset = log.logStartOffset.rawValue }
        case .diverging(let end):
            result.highWatermark = mark.rawValue
            result.logStartOffset = log.logStartOffset.rawValue
            result.divergingEpoch = (end.epoch.rawValue, end.endOffset.rawValue)
        case .records(let from, let end):
            result.highWatermark = mark.rawValue
            result.logStartOffset = log.logStartOffset.rawValue
            if let damage = log.damage, from >= damage.offset {
                result.error = .kafkaStorageError
                return result
            }
            // Of a mark that moved it hears at once: consumers may read there, and it may lead next.
            if let known = follower.knownMark, mark > known { result.isUrgent = true }
            read(item, log, upTo: end, limits, into: &result)
        }
        return result
    }

    /// To a follower that has waited: its fetch was heard before, but the role may be another since.
    private func answerAgain(_ fetch: FollowerFetch, _ log: PartitionLog<AnyDisk>) -> FollowerFetchAnswer {
        guard let epoch = replica.leaderEpoch else { return .refused(.notLeaderOrFollower) }
        guard fetch.leaderEpoch == epoch else {
            return .refused(fetch.leaderEpoch < epoch ? .fencedLeaderEpoch : .unknownLeaderEpoch)
        }
        guard fetch.offset >= log.logStartOffset, fetch.offset <= log.writtenEndOffset else {
            return .refused(.offsetOutOfRange)
        }
        return .records(from: fetch.offset, upTo: log.writtenEndOffset)
    }

    private func read(
        _ item: FetchItem, _ log: PartitionLog<AnyDisk>, upTo bound: Offset, _ limits: ReadLimits,
        into result: inout FetchResult
    ) {
        let suspended = loop.services.suspended
        let limit = limits.maxBytes
        let minOneBatch = limits.minOneBatch
        guard item.fetchOffset < bound.rawValue, limit > 0 || minOneBatch else { return }
        do throws(ReadError) {
            let region: LogRegion<AnyDisk>
            do throws(ReadError) {
                region = try log.locate(
                    from: Offset(item.fetchOffset), upTo: bound, maxBytes: limit, minOneBatch: minOneBatch,
                    nonBlocking: true)
            } catch .wouldBlock {
                if let locate = try log.coldLocate(
                    from: Offset(item.fetchOffset), upTo: bound, maxBytes: limit, minOneBatch: minOneBatch)
                {
                    // Where the read will end is not known yet: what is aborted up to the bound covers it.
                    if item.readsCommitted {
                        result.abortedTransactions = try log.abortedTransactions(
                            from: Offset(item.fetchOffset), upTo: bound)
                    }
                    result.cold = .locate(locate, limit: max(1, limit))
                }
                return
            }
            guard region.byteCount > 0 else { return }
            if item.readsCommitted, !suspended.contains(.abortedTransactions) {
                result.abortedTransactions = try log.abortedTransactions(
                    from: Offset(item.fetchOffset), upTo: region.nextOffset)
            }
            if region.byteCount <= limits.inlineByteLimit {
                var buffer = ByteBuffer()
                buffer.reserveCapacity(region.byteCount)
                if try region.read(into: &buffer, nonBlocking: true) == .read {
                    result.records = .bytes(buffer)
                } else {
                    result.cold = .region(region)
                }
            } else if try region.seemsCached() {
                result.records = .region(region)
            } else {
                result.cold = .region(region)
            }
        } catch {
            loop.logger.error("read failed", metadata: ["partition": "\(name)", "cause": "\(error)"])
            result.error = error.errorCode
        }
    }

    /// KIP-595: the follower's or consumer's last epoch ends earlier here than where it wants to read.
    private func divergence(
        _ log: PartitionLog<AnyDisk>, lastFetchedEpoch: Int32, fetchOffset: Int64
    ) -> (epoch: Int32, endOffset: Int64)? {
        guard let end = log.leaderEpochs.endOffset(for: LeaderEpoch(lastFetchedEpoch), logEnd: log.logEndOffset)
        else { return nil }
        if end.epoch.rawValue < lastFetchedEpoch || end.endOffset.rawValue < fetchOffset {
            return (end.epoch.rawValue, end.endOffset.rawValue)
        }
        return nil
    }
}

extension LogRegion<AnyDisk> {
    /// Whether the page cache seems to hold the region: looks at its first, middle and last byte.
    package func seemsCached() throws(ReadError) -> Bool {
        guard let file else { return true }
        var byte = ByteBuffer()
        do throws(DiskError) {
            for place in [position, position + byteCount / 2, position + byteCount - 1] {
                byte.clear()
                if try file.file.readCached(into: &byte, at: place, count: 1) == nil { return false }
            }
            return true
        } catch {
            throw .storage(.file(error))
        }
    }

    /// Brings the region into the page cache, waiting for the device; for the work pool.
    package func warm(pieceByteCount: Int) throws(ReadError) {
        guard let file else { return }
        var buffer = ByteBuffer()
        do throws(DiskError) {
            var place = position
            while place < position + byteCount {
                buffer.clear()
                let count = min(pieceByteCount, position + byteCount - place)
                guard try file.file.read(into: &buffer, at: place, count: count) > 0 else { return }
                place += count
            }
        } catch {
            throw .storage(.file(error))
        }
    }

    /// A handle of its own for sendfile, so that responses on different loops never share one.
    package func duplicatedHandle() throws -> NIOFileHandle {
        guard let descriptor = file?.descriptor else {
            throw IOError(errnoCode: EBADF, reason: "the region has no file")
        }
        let copy = dup(descriptor)
        guard copy >= 0 else { throw IOError(errnoCode: errno, reason: "dup") }
        return NIOFileHandle(_deprecatedTakingOwnershipOfDescriptor: copy)
    }
}

/// Runs its action after a number of events; confined to one loop.
final class Countdown {
    private var count: Int
    private let action: () -> Void

    init(_ count: Int, action: @escaping () -> Void) {
        self.count = count
        self.action = action
    }

    func countDown() {
        count -= 1
        if count == 0 { action() }
    }
}
