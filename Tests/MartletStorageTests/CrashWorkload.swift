import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore

/// A seeded run over one partition that remembers what was promised, and the check of what is left of it
/// after a crash.
struct CrashWorkload {
    /// What a client may hold the log to.
    struct Promises {
        /// Every batch that was ever staged, by its base offset: nothing else may appear.
        var written: [Int64: [ByteBuffer]] = [:]
        /// Batches acknowledged as durable.
        var acknowledged: [(base: Int64, bytes: ByteBuffer, producer: (id: Int64, epoch: Int16, sequence: Int32)?)] = []
        var visibleLogStart: Int64 = 0
        var proposedLogStart: Int64 = 0
        /// Newest acknowledged value of each key (compacted topics).
        var latest: [String: ByteBuffer] = [:]
        /// Keys whose newest record was staged but not acknowledged.
        var unsure: Set<String> = []
    }

    let seed: UInt64
    let compacts: Bool
    var steps = 30
    private(set) var promises = Promises()

    init(seed: UInt64, compacts: Bool = false, steps: Int = 30) {
        self.seed = seed
        self.compacts = compacts
        self.steps = steps
    }

    var configuration: LogConfiguration {
        var configuration = LogConfiguration.small(segmentBytes: 1500)
        configuration.compacts = compacts
        configuration.deletesOld = !compacts
        configuration.segmentMilliseconds = 400
        configuration.deleteRetentionMilliseconds = 50
        configuration.minimumCleanableRatio = 0
        configuration.preallocationStepBytes = 512
        configuration.preallocationThresholdBytes = 600
        configuration.roomThreshold = seed.isMultiple(of: 2) ? 0 : 8
        return configuration
    }

    /// Runs until the end or the first failure (the disk stopped). Never throws: what happened is in
    /// ``promises``.
    mutating func run(on disk: SimulatedDisk) {
        var generator = SplitMix64(seed: seed)
        do {
            try run(on: disk, &generator)
        } catch {
            // The crash. Promises made so far stand.
        }
    }

    private mutating func run(on disk: SimulatedDisk, _ generator: inout SplitMix64) throws {
        var now = Fixture.now
        var directory = try Fixture.directory(disk)
        var log = try Fixture.log(directory, configuration, now: now)
        var epoch: Int32 = 0
        var sequences: [Int64: Int32] = [:]
        var pending: [(base: Int64, last: Int64, bytes: ByteBuffer, producer: (id: Int64, epoch: Int16, sequence: Int32)?, key: String?)] = []

        func acknowledge() {
            while let first = pending.first, first.last < log.flushedEndOffset.rawValue {
                promises.acknowledged.append((first.base, first.bytes, first.producer))
                if let key = first.key {
                    promises.latest[key] = first.bytes
                    if !pending.dropFirst().contains(where: { $0.key == key }) { promises.unsure.remove(key) }
                }
                pending.removeFirst()
            }
        }

        for step in 0..<steps {
            now = Timestamp(milliseconds: now.rawValue + 20)
            disk.setTime(now.rawValue)
            switch Int.random(in: 0..<21, using: &generator) {
            case 0..<9:
                for _ in 0...Int.random(in: 0..<3, using: &generator) {
                    let count = Int.random(in: 1...3, using: &generator)
                    var producer: (id: Int64, epoch: Int16, sequence: Int32)?
                    if Bool.random(using: &generator) {
                        let id = Int64.random(in: 1...2, using: &generator)
                        producer = (id, 0, sequences[id] ?? 0)
                        sequences[id] = (sequences[id] ?? 0) + Int32(count)
                    }
                    let key = compacts ? "k\(Int.random(in: 0..<4, using: &generator))" : nil
                    let batch = Fixture.batch(
                        count: count, bytes: Int.random(in: 1...300, using: &generator), seed: generator.next(),
                        timestamp: now.rawValue, producer: producer, key: key)
                    var copy = ByteBuffer(bytes: batch.readableBytesView)
                    let outcome = try log.stage(
                        &copy, header: try RecordBatchHeader(reading: copy), leaderEpoch: LeaderEpoch(epoch), now: now)
                    guard case .staged(let base, let last, _) = outcome else { continue }
                    promises.written[base.rawValue, default: []].append(copy)
                    pending.append((base.rawValue, last.rawValue, copy, producer, key))
                    if let key { promises.unsure.insert(key) }
                }
                try log.writeStaged()
            case 9..<14:
                try Fixture.flush(log)
                acknowledge()
            case 14:
                epoch += 1
            case 15:
                try directory.writeCheckpoints()
            case 16 where !compacts:
                let target = Int64.random(in: 0...log.flushedEndOffset.rawValue, using: &generator)
                if let work = try log.deleteRecords(before: Offset(target), highWatermark: log.flushedEndOffset) {
                    promises.proposedLogStart = max(promises.proposedLogStart, target)
                    try work.run()
                    try log.adoptLogStart(now: now)
                    promises.visibleLogStart = max(promises.visibleLogStart, log.logStartOffset.rawValue)
                }
            case 16 where compacts, 17 where compacts:
                if let plan = try log.planCompaction(now: now, ceiling: log.flushedEndOffset, force: true) {
                    try log.installCompaction(try plan.run(), now: now)
                }
            case 17:
                try log.tick(now: now)
                if let removal = log.purgeDeleted(now: Timestamp(milliseconds: now.rawValue + 100_000)) {
                    try removal.run()
                }
            case 18 where step > 5:
                try log.close(clean: true)
                acknowledge()
                try directory.close(clean: true, brokerEpoch: 1)
                directory = try Fixture.directory(disk)
                log = try Fixture.log(directory, configuration, now: now)
            case 19:
                // Long silence: the active segment is closed, and its successor is empty.
                try log.tick(now: Timestamp(milliseconds: now.rawValue + configuration.segmentMilliseconds))
            case 20:
                // kill -9: what was written is still there, and not on the disk.
                disk.processEnded()
                directory = try Fixture.directory(disk)
                log = try Fixture.log(directory, configuration, now: now)
            case _:
                log.releaseIdle()
            }
        }
        try Fixture.flush(log)
        acknowledge()
    }

    /// The process has died somewhere in ``run(on:)``; the next one opens what it left and makes promises of its own.
    ///
    /// - Returns: why it cannot, where that breaks a promise already.
    mutating func goOn(on disk: SimulatedDisk) -> String? {
        disk.processEnded()
        disk.clearStop()
        let now = Timestamp(milliseconds: Fixture.now.rawValue + 5000)
        do {
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory, configuration, now: now)
            if let damage = log.damage { return "a kill alone did damage: \(damage)" }
            for index in 0..<2 {
                let key = compacts ? "k\(index)" : nil
                let batch = Fixture.batch(
                    count: 1, bytes: 50, seed: seed &+ UInt64(index), timestamp: now.rawValue, key: key)
                var copy = ByteBuffer(bytes: batch.readableBytesView)
                let outcome = try log.stage(
                    &copy, header: try RecordBatchHeader(reading: copy), leaderEpoch: LeaderEpoch(100), now: now)
                guard case .staged(let base, _, _) = outcome else { return "an append got \(outcome)" }
                try log.writeStaged()
                promises.written[base.rawValue, default: []].append(copy)
                try Fixture.flush(log)
                promises.acknowledged.append((base.rawValue, copy, nil))
                if let key {
                    promises.latest[key] = copy
                    promises.unsure.remove(key)
                }
                if compacts, let plan = try log.planCompaction(now: now, ceiling: log.flushedEndOffset, force: true) {
                    try log.installCompaction(try plan.run(), now: now)
                }
            }
            // Written, and nobody is told of it.
            let last = Fixture.batch(count: 3, bytes: 300, seed: seed, timestamp: now.rawValue, key: compacts ? "k2" : nil)
            var copy = ByteBuffer(bytes: last.readableBytesView)
            let outcome = try log.stage(
                &copy, header: try RecordBatchHeader(reading: copy), leaderEpoch: LeaderEpoch(100), now: now)
            guard case .staged(let base, _, _) = outcome else { return "an append got \(outcome)" }
            try log.writeStaged()
            promises.written[base.rawValue, default: []].append(copy)
            if compacts { promises.unsure.insert("k2") }
            return nil
        } catch {
            return "the next process cannot go on: \(error)"
        }
    }

    /// Why the image breaks a promise, or nil.
    func problem(on disk: SimulatedDisk) -> String? {
        do {
            return try check(disk)
        } catch {
            return "unexpected error: \(error)"
        }
    }

    private func check(_ disk: SimulatedDisk) throws -> String? {
        let directory = try Fixture.directory(disk)
        let later = Timestamp(milliseconds: Fixture.now.rawValue + 10_000)
        let log = try Fixture.log(directory, configuration, now: later)
        guard log.logStartOffset.rawValue >= promises.visibleLogStart else {
            return "log start fell from \(promises.visibleLogStart) to \(log.logStartOffset)"
        }
        guard log.logStartOffset.rawValue <= max(promises.proposedLogStart, 0) else {
            return "log start \(log.logStartOffset) was never asked for"
        }
        if log.flushedEndOffset != log.logEndOffset { return "recovery left something unflushed" }
        let found = try Fixture.readAll(log)
        var byBase: [Int64: ByteBuffer] = [:]
        var expected = log.logStartOffset.rawValue
        for batch in found {
            let header = try RecordBatchHeader(reading: batch)
            byBase[header.baseOffset] = batch
            if !compacts {
                guard promises.written[header.baseOffset]?.contains(batch) == true else {
                    return "batch \(header.baseOffset) was never written like this"
                }
                if header.lastOffset >= log.logStartOffset.rawValue, header.baseOffset > expected {
                    return "gap before \(header.baseOffset)"
                }
            }
            expected = header.lastOffset + 1
        }
        if compacts {
            if let problem = try compactionProblem(found, log) { return problem }
        } else {
            for batch in promises.acknowledged {
                let last = try RecordBatchHeader(reading: batch.bytes).lastOffset
                if last < log.logStartOffset.rawValue { continue }
                guard byBase[batch.base] == batch.bytes else {
                    return "acknowledged batch \(batch.base) is missing (log end \(log.logEndOffset), "
                        + "damage \(String(describing: log.damage)))"
                }
            }
        }
        if let problem = try producerProblem(log) { return problem }
        for batch in found {
            let header = try RecordBatchHeader(reading: batch)
            guard header.recordCount > 0, header.baseOffset >= log.logStartOffset.rawValue else { continue }
            let time = Timestamp(milliseconds: header.maxTimestamp)
            guard let answer = try log.offset(for: time, upTo: log.logEndOffset),
                answer.offset.rawValue <= header.lastOffset
            else { return "batch \(header.baseOffset) is not found by its time" }
        }
        if !(try log.verify().findings.isEmpty) { return "verify finds damage in what recovery let through" }
        if log.damage != nil { try log.repair() }
        let end = log.logEndOffset
        let outcome = try Fixture.append(log, Fixture.batch(count: 2, key: "after"), epoch: 1000, now: later)
        guard outcome == .staged(base: end, last: Offset(end.rawValue + 1), appendTimestamp: nil) else {
            return "an append after recovery got \(outcome), the log end was \(end)"
        }
        guard try Fixture.offsets(Fixture.readAll(log, from: end)) == [end.rawValue] else {
            return "the append after recovery cannot be read"
        }
        return nil
    }

    /// The newest acknowledged batch of each producer is known; none is known that is not in the log.
    private func producerProblem(_ log: SimulatedLog) throws -> String? {
        var newest: [Int64: (base: Int64, bytes: ByteBuffer)] = [:]
        for batch in promises.acknowledged {
            if let producer = batch.producer { newest[producer.id] = (batch.base, batch.bytes) }
        }
        for (id, batch) in newest.sorted(by: { $0.key < $1.key }) {
            let header = try RecordBatchHeader(reading: batch.bytes)
            if header.lastOffset < log.logStartOffset.rawValue { continue }
            guard let entry = log.producers.entries[id] else { return "producer \(id) is forgotten" }
            guard entry.batches.contains(where: { $0.baseOffset == batch.base }) || (entry.batches.last?.lastOffset ?? -1) > header.lastOffset
            else { return "producer \(id): batch \(batch.base) is forgotten" }
        }
        for (id, entry) in log.producers.entries {
            if let last = entry.batches.last, last.lastOffset >= log.logEndOffset.rawValue {
                return "producer \(id) knows offset \(last.lastOffset), which is lost"
            }
        }
        return nil
    }

    private func compactionProblem(_ found: [ByteBuffer], _ log: SimulatedLog) throws -> String? {
        var values: [String: (offset: Int64, value: ByteBuffer?)] = [:]
        for batch in found {
            var records = try RecordIterator(batch)
            while let record = try records.next() {
                if let key = record.key {
                    values[String(buffer: key)] = (record.offset.rawValue, record.value)
                }
            }
        }
        for (key, bytes) in promises.latest where !promises.unsure.contains(key) {
            var records = try RecordIterator(bytes)
            var newest: (offset: Int64, value: ByteBuffer?)?
            while let record = try records.next() { newest = (record.offset.rawValue, record.value) }
            guard let found = values[key] else { return "key \(key) is gone" }
            if found.offset != newest?.offset || found.value != newest?.value {
                return "key \(key) shows offset \(found.offset) instead of \(newest?.offset ?? -1)"
            }
        }
        return nil
    }
}
