import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

/// A seeded run of transactions over one partition that remembers what was acknowledged, and the check of what is
/// left of it after a crash.
private struct TransactionWorkload {
    /// A decided transaction whose marker is durable.
    struct Outcome {
        var batches: [Int64]
        var marker: Int64
        var commits: Bool
    }

    let seed: UInt64
    let compacts: Bool
    var steps = 40
    private(set) var outcomes: [Outcome] = []
    /// Newest committed value by key as of the last acknowledged marker, with its offset.
    private(set) var latest: [String: (offset: Int64, value: String)] = [:]
    /// Producers' epochs after their last acknowledged marker.
    private(set) var epochs: [Int64: Int16] = [:]
    /// Values that some marker aborted: never to be seen.
    private(set) var aborted: Set<String> = []

    init(seed: UInt64, compacts: Bool) {
        self.seed = seed
        self.compacts = compacts
    }

    var configuration: LogConfiguration {
        var configuration = LogConfiguration.small(segmentBytes: 700)
        configuration.compacts = compacts
        configuration.deletesOld = !compacts
        configuration.deleteRetentionMilliseconds = 50
        configuration.minimumCleanableRatio = 0
        return configuration
    }

    mutating func run(on disk: SimulatedDisk) {
        var generator = SplitMix64(seed: seed)
        do {
            try run(on: disk, &generator)
        } catch {
            // The crash. What was acknowledged so far stands.
        }
    }

    private struct Open {
        var batches: [Int64] = []
        var values: [(key: String, offset: Int64, value: String)] = []
    }

    private mutating func run(on disk: SimulatedDisk, _ generator: inout SplitMix64) throws {
        var now = Fixture.now
        var directory = try Fixture.directory(disk)
        var log = try Fixture.log(directory, configuration, now: now)
        var producers: [Int64: (epoch: Int16, sequence: Int32)] = [:]
        var open: [Int64: Open] = [:]
        var unsure: [(id: Int64, epoch: Int16, open: Open, marker: Int64, commits: Bool)] = []

        func acknowledge() {
            while let first = unsure.first, first.marker < log.flushedEndOffset.rawValue {
                outcomes.append(Outcome(batches: first.open.batches, marker: first.marker, commits: first.commits))
                epochs[first.id] = first.epoch
                if first.commits {
                    for (key, offset, value) in first.open.values where offset > latest[key]?.offset ?? -1 {
                        latest[key] = (offset, value)
                    }
                }
                unsure.removeFirst()
            }
        }

        for _ in 0..<steps {
            now = Timestamp(milliseconds: now.rawValue + 20)
            disk.setTime(now.rawValue)
            let id = Int64.random(in: 1...3, using: &generator)
            var producer = producers[id] ?? (0, 0)
            switch Int.random(in: 0..<21, using: &generator) {
            case 0..<8:
                let key = "k\(Int.random(in: 0..<4, using: &generator))"
                let value = "v\(generator.next())"
                var batch = Fixture.transactional(
                    (id, producer.epoch, producer.sequence), bytes: Int.random(in: 1...100, using: &generator),
                    key: key, value: value)
                let outcome = try log.stage(
                    &batch, header: try RecordBatchHeader(reading: batch), leaderEpoch: LeaderEpoch(0), now: now)
                guard case .staged(let base, _, _) = outcome else { continue }
                producer.sequence += 1
                open[id, default: Open()].batches.append(base.rawValue)
                open[id, default: Open()].values.append((key, base.rawValue, value))
                try log.writeStaged()
            case 8..<13:
                guard let transaction = open.removeValue(forKey: id) else { continue }
                producer = (producer.epoch + 1, 0)
                let commits = Bool.random(using: &generator)
                if !commits { aborted.formUnion(transaction.values.map(\.value)) }
                let outcome = try log.stageMarker(
                    MarkerAppend(
                        producerID: id, producerEpoch: producer.epoch, commits: commits, coordinatorEpoch: 0,
                        raisesEpoch: true), leaderEpoch: LeaderEpoch(0), now: now)
                guard case .staged(let base, _, _) = outcome else { continue }
                try log.writeStaged()
                unsure.append((id, producer.epoch, transaction, base.rawValue, commits))
            case 13..<16:
                try Fixture.flush(log)
                acknowledge()
            case 16:
                try directory.writeCheckpoints()
            case 17 where compacts, 18 where compacts:
                if let plan = try log.planCompaction(now: now, ceiling: log.flushedEndOffset, force: true) {
                    try log.installCompaction(try plan.run(), now: now)
                }
            case 18:
                try log.close(clean: true)
                acknowledge()
                try directory.close(clean: true, brokerEpoch: 1)
                directory = try Fixture.directory(disk)
                log = try Fixture.log(directory, configuration, now: now)
            case 20:
                // kill -9: what was written is still there, and not on the disk.
                disk.processEnded()
                directory = try Fixture.directory(disk)
                log = try Fixture.log(directory, configuration, now: now)
            case _:
                log.releaseIdle()
                if let removal = log.purgeDeleted(now: Timestamp(milliseconds: now.rawValue + 100_000)) {
                    try removal.run()
                }
            }
            producers[id] = producer
        }
        try Fixture.flush(log)
        acknowledge()
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
        let later = Timestamp(milliseconds: Fixture.now.rawValue + 10_000)
        let log = try Fixture.log(Fixture.directory(disk), configuration, now: later)
        // Unflushed bytes may be lost out of order: reported as damage, and nothing acknowledged lies behind it.
        if log.damage != nil { try log.repair() }
        for (id, epoch) in epochs.sorted(by: { $0.key < $1.key }) {
            guard let entry = log.producers.entries[id], entry.epoch >= epoch else {
                return "producer \(id) fell behind epoch \(epoch): \(String(describing: log.producers.entries[id]))"
            }
        }
        // Whatever is open is ended, then every record is decided.
        for open in log.producers.openTransactions {
            let entry = log.producers.entries[open.producerID]
            try Fixture.mark(log, open.producerID, (entry?.epoch ?? 0) + 1, commits: false, now: later)
        }
        let end = log.lastStableOffset(highWatermark: log.flushedEndOffset)
        guard end == log.logEndOffset else { return "the last stable offset stays at \(end)" }
        let shown = try Fixture.visible(log, upTo: end)
        let visible = Set(shown)
        if !compacts {
            if shown != (try Fixture.committed(log, upTo: end)) { return "shown \(shown) is not what the markers say" }
            for outcome in outcomes {
                for batch in outcome.batches where visible.contains(batch) != outcome.commits {
                    return "batch \(batch) of a transaction that was \(outcome.commits ? "committed" : "aborted")"
                        + " at \(outcome.marker) is\(outcome.commits ? " not" : "") shown"
                }
            }
        }
        var values: [String: (offset: Int64, value: String)] = [:]
        for batch in try Fixture.readAll(log) {
            let header = try RecordBatchHeader(reading: batch)
            guard visible.contains(header.baseOffset) else { continue }
            var records = try RecordIterator(batch)
            while let record = try records.next() {
                let value = record.value.map { String(buffer: $0) } ?? ""
                if aborted.contains(value) { return "aborted value \(value) at \(record.offset) is shown" }
                values[record.key.map { String(buffer: $0) } ?? ""] = (record.offset.rawValue, value)
            }
        }
        for (key, newest) in latest {
            guard let found = values[key], found.offset >= newest.offset else {
                return "key \(key) shows \(String(describing: values[key])) instead of \(newest)"
            }
        }
        return nil
    }
}

@Suite struct TransactionCrashTests {
    private static func enumerate(seed: UInt64, compacts: Bool) -> String? {
        var whole = TransactionWorkload(seed: seed, compacts: compacts)
        let disk = SimulatedDisk()
        whole.run(on: disk)
        let total = disk.operationCount
        for point in Swift.stride(from: Int(seed) % CrashTests.stride, through: total, by: CrashTests.stride) {
            var workload = TransactionWorkload(seed: seed, compacts: compacts)
            let disk = SimulatedDisk()
            disk.stop(afterOperations: point)
            workload.run(on: disk)
            for image in 0..<(2 + CrashTests.imagesPerPoint) {
                let crashSeed = image < 2 ? image : seed &* 1_000_003 &+ UInt64(point) &* 101 &+ image
                if let problem = workload.problem(on: disk.crashed(seed: crashSeed)) {
                    return "workload \(seed) crash after operation \(point) of \(total) image \(crashSeed): \(problem)\n"
                        + disk.trace.suffix(12).joined(separator: "\n")
                }
            }
        }
        return nil
    }

    /// The simulator's seeds 2443 and 4662.
    @Test func `an abort that a kill interrupts survives the power cut after the restart`() throws {
        let disk = SimulatedDisk()
        let configuration = LogConfiguration.small()
        let killed = try Fixture.log(Fixture.directory(disk), configuration)
        try Fixture.append(killed, Fixture.transactional((1, 0, 0)))
        // Log and index are written, neither is flushed.
        try Fixture.mark(killed, 1, 1, commits: false, flush: false)
        disk.processEnded()

        let directory = try Fixture.directory(disk)
        let restarted = try Fixture.log(directory, configuration)
        #expect(restarted.recovery.wasChecked)
        #expect(try aborted(restarted) == [1])
        try directory.writeCheckpoints()

        let recovered = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), configuration)
        #expect(recovered.logEndOffset == Offset(2))
        #expect(try aborted(recovered) == [1])
    }

    private func aborted(_ log: SimulatedLog) throws -> [Int64] {
        try log.abortedTransactions(from: .zero, upTo: log.logEndOffset).map(\.producerID)
    }

    @Test(arguments: CrashTests.base..<(CrashTests.base + CrashTests.workloads * 4))
    func `after a power cut at any point committed records are shown and aborted ones are not`(seed: UInt64) {
        let problem = Self.enumerate(seed: seed, compacts: false)
        #expect(problem == nil, "\(problem ?? "")")
    }

    @Test(arguments: (CrashTests.base + 100)..<(CrashTests.base + 100 + CrashTests.workloads * 4))
    func `after a power cut during compaction of transactions no aborted record comes back`(seed: UInt64) {
        let problem = Self.enumerate(seed: seed, compacts: true)
        #expect(problem == nil, "\(problem ?? "")")
    }
}
