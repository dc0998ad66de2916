import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

/// Cuts of logs that have gaps or epochs behind the cut, and what a kill or a power cut makes of them.
@Suite struct CutTests {
    private var configuration: LogConfiguration {
        var configuration = LogConfiguration.small(segmentBytes: 400)
        configuration.compacts = true
        configuration.deletesOld = false
        return configuration
    }

    private func open(_ disk: SimulatedDisk) throws -> (SimulatedDirectory, SimulatedLog) {
        let directory = try Fixture.directory(disk)
        return (directory, try Fixture.log(directory, configuration))
    }

    /// Of twenty batches of one record, compaction leaves those whose offset `keeps` names, and the active segment.
    private func compacted(
        _ disk: SimulatedDisk, keeps: (Int) -> Bool
    ) throws -> (SimulatedDirectory, SimulatedLog) {
        let (directory, log) = try open(disk)
        for index in 0..<20 { try append(log, index, key: keeps(index) ? "k\(index)" : "superseded") }
        let plan = try #require(try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true))
        try log.installCompaction(try plan.run(), now: Fixture.now)
        try Fixture.flush(log)
        try directory.writeCheckpoints()
        return (directory, log)
    }

    private func append(_ log: SimulatedLog, _ seed: Int, key: String, flush: Bool = true) throws {
        try Fixture.append(log, Fixture.batch(bytes: 40, seed: UInt64(seed), key: key), flush: flush)
    }

    private func offsets(_ log: SimulatedLog) throws -> [Int64] { try Fixture.offsets(Fixture.readAll(log)) }

    private func compactedEnd(_ disk: SimulatedDisk) throws -> Offset? {
        let bytes = try #require(disk.content("/data/" + OffsetCheckpoint.compactedEnd))
        return try #require(OffsetCheckpoint.decode(ByteBuffer(bytes: bytes)))[Fixture.partition]
    }

    /// Makes a start check everything and find damage at the batch.
    private func damage(_ disk: SimulatedDisk, at offset: Int64) throws {
        for path in disk.files where path.hasSuffix(".log") {
            guard let content = disk.content(path) else { continue }
            var bytes = ByteBuffer(bytes: content)
            while bytes.readableBytes > 0 {
                let header = try RecordBatchHeader(reading: bytes)
                if header.baseOffset == offset { disk.flip(path, byte: bytes.readerIndex + 70, bit: 1) }
                bytes.moveReaderIndex(forwardBy: header.totalByteCount)
            }
        }
        let start = OffsetCheckpoint.encode([(Fixture.partition, .zero)])
        disk.setContent("/data/" + OffsetCheckpoint.recoveryPoint, Array(start.readableBytesView))
    }

    /// First offset behind a hole, among appends of which nothing may miss.
    private func hole(_ offsets: [Int64], from start: Int64) -> Int64? {
        let appended = offsets.filter { $0 >= start }
        return zip(appended, start...).first { $0 != $1 }?.0
    }

    // MARK: Gaps

    @Test(arguments: [false, true])
    func `what is appended where compaction was before a cut has no holes after a power cut`(repairs: Bool) throws {
        var holes: [String] = []
        var stop = 0
        var isDone = false
        while !isDone {
            let disk = SimulatedDisk()
            var (_, log) = try compacted(disk) { $0 % 4 != 1 }
            #expect(try #require(try compactedEnd(disk)) > Offset(12))
            if repairs {
                disk.processEnded()
                try damage(disk, at: 6)
                (_, log) = try open(disk)
                #expect(log.damage?.offset == Offset(6))
            }
            disk.stop(afterOperations: stop)
            isDone = (try? repairs ? log.repair() : log.truncate(to: Offset(6))) != nil
            disk.clearStop()
            if isDone {
                #expect(log.logEndOffset <= Offset(6))
            } else {
                // Killed in the midst of it: the next start goes on.
                disk.processEnded()
                (_, log) = try open(disk)
                if log.damage != nil { try log.repair() }
            }
            let start = log.logEndOffset
            #expect(try #require(try compactedEnd(disk)) <= start, "stop \(stop)")
            for index in 0..<16 { try append(log, 100 + index, key: "n", flush: index == 0) }
            for seed in 0..<12 as Range<UInt64> {
                let (_, again) = try open(disk.crashed(seed: seed))
                guard again.damage == nil else { continue }
                if let hole = hole(try offsets(again), from: start.rawValue) {
                    holes.append("stop \(stop) image \(seed): hole before \(hole)")
                }
                #expect(again.logEndOffset >= log.flushedEndOffset, "stop \(stop) image \(seed)")
            }
            stop += 1
        }
        #expect(stop > 10)
        #expect(holes.isEmpty, "\(holes.count): \(holes.first ?? "")")
    }

    @Test func `a pass that ends after a cut says nothing about gaps`() throws {
        for restarts in [false, true] {
            let disk = SimulatedDisk()
            let (directory, log) = try open(disk)
            for index in 0..<20 { try append(log, index, key: "k") }
            let plan = try #require(
                try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true))
            if restarts { try log.restart(at: Offset(2)) } else { try log.truncate(to: Offset(2)) }
            if let result = try? plan.run() {
                try log.installCompaction(result, now: Fixture.now)
            } else {
                log.abandonCompaction()
            }
            try directory.writeCheckpoints()
            #expect(try compactedEnd(disk) ?? .zero <= Offset(2))
        }
    }

    @Test(arguments: 1..<20 as Range<Int64>)
    func `a log that is cut in a gap ends with its last batch`(end: Int64) throws {
        // Within segments, at their ends and at their beginnings.
        for keeps in [{ $0 % 5 == 0 }, { $0 % 3 == 0 }, { $0 % 3 == 2 }, { $0 == 0 }] as [(Int) -> Bool] {
            var stop = 0
            var isDone = false
            while !isDone {
                let disk = SimulatedDisk()
                let (_, log) = try compacted(disk, keeps: keeps)
                let kept = try offsets(log).filter { $0 < end }
                disk.stop(afterOperations: stop)
                isDone = (try? log.truncate(to: Offset(end))) != nil
                for seed in 0..<3 as Range<UInt64> {
                    let (_, again) = try open(disk.crashed(seed: seed))
                    let place = "stop \(stop) image \(seed): \(again.logStartOffset)..<\(again.logEndOffset)"
                    #expect(again.damage == nil, "\(place) \(again.damage?.detail ?? "")")
                    #expect(try offsets(again).starts(with: kept), "\(place)")
                    if isDone { #expect(again.logEndOffset == log.logEndOffset, "\(place)") }
                }
                stop += 5
            }
            let disk = SimulatedDisk()
            let (directory, log) = try compacted(disk, keeps: keeps)
            let kept = try offsets(log).filter { $0 < end }
            try log.truncate(to: Offset(end))
            #expect(try offsets(log) == kept && log.logEndOffset <= Offset(end))
            try Fixture.flush(log)
            #expect(log.flushedEndOffset == log.logEndOffset)
            try directory.writeCheckpoints()
            for path in disk.files where path.hasSuffix(".txnindex") {
                #expect(disk.files.contains(path.dropLast("txnindex".count) + "log"), "\(path)")
            }
        }
    }

    @Test func `a cut below the log start, in a batch or a gap that it lies in, leaves an empty log`() throws {
        for gap in [false, true] {
            let disk = SimulatedDisk()
            let (directory, log) = try open(disk)
            if gap {
                for index in 0..<20 { try append(log, index, key: index < 2 || index > 6 ? "k\(index)" : "superseded") }
                let plan = try #require(
                    try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true))
                try log.installCompaction(try plan.run(), now: Fixture.now)
                try Fixture.flush(log)
            } else {
                for index in 0..<3 { try Fixture.append(log, Fixture.batch(count: 8, bytes: 8, seed: UInt64(index))) }
            }
            try #require(try log.deleteRecords(before: Offset(4), highWatermark: log.logEndOffset)).run()
            try log.adoptLogStart(now: Fixture.now)
            try directory.writeCheckpoints()
            try log.truncate(to: Offset(5))
            for seed in 0..<3 as Range<UInt64> {
                let (_, again) = try open(disk.crashed(seed: seed))
                #expect(again.damage == nil && again.logStartOffset == Offset(4) && again.logEndOffset == Offset(4))
            }
            #expect(log.logStartOffset == Offset(4) && log.logEndOffset == Offset(4))
        }
    }

    @Test func `a repair of a compacted log leaves one that the next start takes`() throws {
        for bad in 1..<20 as Range<Int64> {
            for keeps in [{ $0 % 3 == 0 }, { $0 % 5 == 0 }] as [(Int) -> Bool] {
                let disk = SimulatedDisk()
                _ = try compacted(disk, keeps: keeps)
                disk.processEnded()
                try damage(disk, at: bad)
                let (_, log) = try open(disk)
                guard log.damage != nil else { continue }
                try log.repair()
                #expect(try offsets(log).allSatisfy { $0 < bad })
                for seed in 0..<3 as Range<UInt64> {
                    let (_, again) = try open(disk.crashed(seed: seed))
                    #expect(again.damage == nil, "\(bad): \(again.damage?.detail ?? "")")
                    #expect(again.logEndOffset == log.logEndOffset)
                }
            }
        }
    }

    @Test func `gaps that compaction left are known to a start without the recovery points`() throws {
        let disk = SimulatedDisk()
        let (_, log) = try compacted(disk) { $0 % 3 == 0 }
        try disk.remove("/data/" + OffsetCheckpoint.recoveryPoint)
        let (_, again) = try open(disk.crashed(seed: 1))
        #expect(again.damage == nil && again.logEndOffset == log.logEndOffset)
    }

    // MARK: Epochs

    /// A leader of epoch 5 began where this log ends, or wrote some records; the next leader's history has records of
    /// epoch 4 there.
    @Test(arguments: [0, 2], [false, true])
    func `a follower takes records of an older epoch than one that it was cut out of`(
        recordCount: Int, restarts: Bool
    ) throws {
        var stop = 0
        var isDone = false
        while !isDone {
            let disk = SimulatedDisk()
            let (directory, log) = try open(disk)
            for index in 0..<4 { try Fixture.append(log, Fixture.batch(bytes: 40, seed: UInt64(index)), epoch: 4) }
            log.beginEpoch(LeaderEpoch(5))
            for index in 0..<recordCount {
                try Fixture.append(log, Fixture.batch(bytes: 40, seed: UInt64(10 + index)), epoch: 5)
            }
            try Fixture.flush(log)
            try directory.writeCheckpoints()
            disk.stop(afterOperations: stop)
            do {
                if restarts { try log.restart(at: Offset(2)) } else { try log.truncate(to: Offset(4)) }
                for index in 0..<6 {
                    var batch = Fixture.batch(bytes: 40, seed: UInt64(20 + index))
                    RecordBatchPatch.assign(
                        baseOffset: log.logEndOffset.rawValue, leaderEpoch: 4, throughSharedStorageOf: batch)
                    batch = ByteBuffer(bytes: batch.readableBytesView)
                    try log.stageReplica(batch, header: RecordBatchHeader(reading: batch), now: Fixture.now)
                    try log.writeStaged()
                }
                isDone = true
            } catch {
                #expect(disk.hasStopped, "\(error)")
            }
            for seed in 0..<6 as Range<UInt64> {
                let image = disk.crashed(seed: seed)
                let (_, again) = try open(image)
                let place = "stop \(stop) image \(seed): \(again.logStartOffset)..<\(again.logEndOffset)"
                if let damage = again.damage {
                    // Unflushed segments, of which a power cut leaves any: nothing that was flushed is among it.
                    #expect(seed > 1 && damage.offset >= log.flushedEndOffset, "\(place) \(damage.detail)")
                }
                if seed == 1, isDone { #expect(again.logEndOffset == log.logEndOffset, "\(place)") }
                // A cut that did not come to its end has lost no epoch.
                for batch in try Fixture.readAll(again) {
                    let header = try RecordBatchHeader(reading: batch)
                    let known = again.leaderEpochs.epoch(at: Offset(header.baseOffset))
                    #expect(known == LeaderEpoch(header.partitionLeaderEpoch), "\(place) \(header.baseOffset)")
                }
            }
            stop += 1
        }
        #expect(stop > 5)
    }

    @Test func `epochs of a log whose segments are lost do not come back with the next one`() throws {
        let disk = SimulatedDisk()
        let (_, lost) = try open(disk)
        lost.beginEpoch(LeaderEpoch(5))
        try Fixture.append(lost, Fixture.batch(), epoch: 5)
        // As a power cut may leave it, before any checkpoint: the segment's name is gone, the small file's is not.
        try disk.remove(Fixture.logPath(0))
        disk.processEnded()
        let (_, log) = try open(disk)
        try Fixture.append(log, Fixture.batch(), epoch: 4, flush: false)
        let (_, again) = try open(disk.crashed(seed: 1))
        #expect(again.damage == nil && again.logEndOffset == Offset(1))
    }
}
