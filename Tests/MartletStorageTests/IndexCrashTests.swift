import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

/// An index of a closed segment that a start finds below the recovery point is trusted: by the last entry of a time
/// index whole segments are skipped.
@Suite struct IndexCrashTests {
    private static let images: UInt64 = 8

    private func configuration(segmentBytes: Int) -> LogConfiguration {
        var configuration = LogConfiguration.small(segmentBytes: segmentBytes)
        configuration.compacts = true
        configuration.deletesOld = false
        return configuration
    }

    /// Why a look-up by time does not find one of the log's batches, or nil.
    private func problem(_ log: SimulatedLog, every step: Int = 1) throws -> String? {
        if let damage = log.damage { return "damage: \(damage)" }
        let batches = try Fixture.readAll(log)
        for index in stride(from: batches.count - 1, through: 0, by: -step) {
            let header = try RecordBatchHeader(reading: batches[index])
            guard header.recordCount > 0 else { continue }
            let time = Timestamp(milliseconds: header.maxTimestamp)
            guard let answer = try log.offset(for: time, upTo: log.logEndOffset),
                answer.offset.rawValue <= header.lastOffset
            else { return "batch \(header.baseOffset) is not found by its time" }
        }
        return nil
    }

    /// After a kill alone, after a power cut, and after one that follows the next start.
    private func problem(
        after disk: SimulatedDisk, _ configuration: LogConfiguration, images: UInt64, every step: Int = 1
    ) throws -> String? {
        for seed in 0..<images {
            let image = disk.crashed(seed: seed)
            let log = try Fixture.log(Fixture.directory(image), configuration)
            if image.files.contains(where: { $0.hasSuffix(".cleaned") || $0.hasSuffix("index.tmp") }) {
                return "image \(seed): a start leaves \(image.files)"
            }
            if let problem = try problem(log, every: step) { return "power cut, image \(seed): \(problem)" }
        }
        disk.processEnded()
        disk.clearStop()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        if let problem = try problem(log, every: step) { return "kill: \(problem)" }
        disk.processEnded()
        for seed in 0..<images / 2 {
            let log = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), configuration)
            if let problem = try problem(log, every: step) { return "kill and power cut, image \(seed): \(problem)" }
        }
        return nil
    }

    // MARK: Compaction

    /// The first batch of each segment has the latest time, and goes: an index of what is left is wrong for the segment
    /// as it was. The segments are too short for an offset index, by which that might be noticed.
    private func compacted(_ disk: SimulatedDisk, stopAfter stop: Int?) throws -> (SimulatedDirectory, SimulatedLog) {
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, configuration(segmentBytes: 350))
        for index in 0..<8 {
            let isFirst = index % 2 == 0
            let batch = Fixture.batch(
                bytes: 90, seed: UInt64(index), timestamp: Fixture.now.rawValue + Int64(isFirst ? 1000 + index : index),
                key: isFirst ? "again" : "k\(index)")
            try Fixture.append(log, batch)
        }
        try Fixture.flush(log)
        try directory.writeCheckpoints()
        #expect(log.segmentCount > 2)
        if let stop { disk.stop(afterOperations: stop) }
        do {
            let plan = try #require(
                try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true))
            try log.installCompaction(try plan.run(), now: Fixture.now)
            try Fixture.flush(log)
            try Fixture.flush(log)
        } catch {
            guard stop != nil else { throw error }
        }
        return (directory, log)
    }

    @Test func `a crash at any point of a compaction leaves no index that hides a batch from its time`() throws {
        var point = 0
        while true {
            let disk = SimulatedDisk()
            _ = try compacted(disk, stopAfter: point)
            let isOver = !disk.hasStopped
            let found = try problem(after: disk, configuration(segmentBytes: 350), images: Self.images)
            #expect(found == nil, "crash after operation \(point): \(found ?? "")")
            if isOver || found != nil { break }
            point += 1
        }
        #expect(point > 40)
    }

    @Test func `the indexes of a compaction are in their place after its flush, and a start reads none of them`() throws {
        let disk = SimulatedDisk()
        let (_, log) = try compacted(disk, stopAfter: nil)
        #expect(!log.needsFlush)
        #expect(!disk.files.contains { $0.hasSuffix(".cleaned") })
        #expect(disk.files.count { $0.hasSuffix(".timeindex") } == log.segmentCount - 1)
        let image = disk.crashed(seed: 1)
        let again = try Fixture.log(Fixture.directory(image), configuration(segmentBytes: 350))
        #expect(again.recovery.wasChecked)
        #expect(!image.trace.contains { $0.contains("00000000000000000000.") && $0.contains("index") })
        #expect(try problem(again) == nil)
    }

    // MARK: Making an index anew

    /// A segment with more index entries than are held in memory at once. Where the first part of the time index ends
    /// no batch soon after is later, but the last one is.
    private func long() throws -> (SimulatedDisk, LogConfiguration) {
        let disk = SimulatedDisk()
        let configuration = configuration(segmentBytes: 180_000)
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, configuration)
        for index in 0..<600 {
            let time = index < 500 ? index : index < 520 ? 0 : 5000 + index
            let batch = Fixture.batch(
                bytes: 250, seed: UInt64(index), timestamp: Fixture.now.rawValue + Int64(time), key: "k\(index)")
            try Fixture.append(log, batch, flush: false)
        }
        try Fixture.close(log, directory)
        #expect(try #require(disk.content(Fixture.logPath(0, "index"))?.count) > 512 * OffsetIndexEntry.byteCount)
        return (disk, configuration)
    }

    @Test(arguments: [false, true])
    func `a crash at any point of making an index anew leaves a whole one or none`(isMissing: Bool) throws {
        let (source, configuration) = try long()
        if isMissing { try source.remove(Fixture.logPath(0, "index")) }
        var point = 0
        while true {
            let disk = source.crashed(seed: 1)
            if isMissing { disk.stop(afterOperations: point) }
            do {
                let log = try Fixture.log(Fixture.directory(disk), configuration)
                if !isMissing {
                    disk.stop(afterOperations: point)
                    try log.rebuildIndex(at: .zero)
                }
                try Fixture.flush(log)
                try Fixture.flush(log)
            } catch {
                #expect(disk.hasStopped, "\(error)")
            }
            let isOver = !disk.hasStopped
            let found = try problem(after: disk, configuration, images: 4, every: 20)
            #expect(found == nil, "crash after operation \(point): \(found ?? "")")
            if isOver || found != nil { break }
            point += 1
        }
        #expect(point > 10)
    }

    @Test func `an index that is made anew by a read has its name after the next flush`() throws {
        let (disk, configuration) = try long()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        let (index, times) = (disk.content(Fixture.logPath(0, "index")), disk.content(Fixture.logPath(0, "timeindex")))
        disk.setContent(Fixture.logPath(0, "index"), [UInt8](repeating: 1, count: 800))
        log.releaseIdle()
        try log.rebuildIndex(at: .zero)
        #expect(try problem(log, every: 20) == nil)
        try log.rebuildIndex(at: .zero)
        #expect(disk.files.contains(Fixture.logPath(0, "index") + ".tmp"))
        #expect(try problem(log, every: 20) == nil)
        try Fixture.flush(log)
        #expect(disk.content(Fixture.logPath(0, "index")) == index)
        #expect(disk.content(Fixture.logPath(0, "timeindex")) == times)
        #expect(!disk.files.contains { $0.hasSuffix(".tmp") })
        #expect(try problem(log, every: 20) == nil)
    }

    @Test func `a cut and retention take indexes that wait for their flush along`() throws {
        let (source, configuration) = try long()
        for end in [300, 100, 0] as [Int64] {
            let disk = source.crashed(seed: 1)
            let log = try Fixture.log(Fixture.directory(disk), configuration)
            try log.rebuildIndex(at: .zero)
            if end > 0 {
                try log.truncate(to: Offset(end))
                #expect(log.logEndOffset == Offset(end))
            } else {
                let work = try #require(
                    try log.deleteRecords(before: Offset(590), highWatermark: log.flushedEndOffset))
                try work.run()
                try log.adoptLogStart(now: Fixture.now)
            }
            #expect(!disk.files.contains { $0.hasSuffix("index.tmp") })
            try Fixture.append(log, Fixture.batch(key: "after"))
            try Fixture.flush(log)
            #expect(try problem(log, every: 50) == nil)
            let found = try problem(after: disk, configuration, images: 4, every: 50)
            #expect(found == nil, "\(found ?? "")")
        }
    }

    /// The rule of the checkpoint before the cut holds for the second try as well.
    @Test func `a cut that is tried again after its checkpoint could not be written is no damage to a crash`() throws {
        for stop in 0..<60 {
            let disk = SimulatedDisk()
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory, .small())
            for index in 0..<6 { try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index))) }
            try directory.writeCheckpoints()
            disk.fail(.create, .noSpace)
            #expect(throws: StorageError.self) { try log.truncate(to: Offset(2)) }
            disk.clearFaults()
            _ = directory.refreshDiskState()
            disk.stop(afterOperations: stop)
            try? log.truncate(to: Offset(2))
            let isOver = !disk.hasStopped
            for seed in 0..<4 as Range<UInt64> {
                let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), .small())
                try #require(again.damage == nil, "stop \(stop) image \(seed)")
            }
            if isOver { return }
        }
    }
}
