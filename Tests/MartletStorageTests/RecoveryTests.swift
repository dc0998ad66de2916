import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct RecoveryTests {
    /// Ten one-record batches in one segment; nothing closed.
    private func disk(segmentBytes: Int = 1 << 20, checkpointAfter: Int = 0) throws -> SimulatedDisk {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        var configuration = LogConfiguration.small(segmentBytes: segmentBytes)
        // So that the file ends where the log does.
        configuration.roomBytes = 0
        let log = try Fixture.log(directory, configuration)
        for index in 0..<10 {
            try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index)))
            if index + 1 == checkpointAfter { try directory.writeCheckpoints() }
        }
        return disk.crashed(seed: 0)
    }

    private var batchBytes: Int { Fixture.batch(bytes: 100).readableBytes }

    @Test func `a tail torn at any byte is cut back to the last whole batch`() throws {
        let source = try disk()
        let whole = try #require(source.content(Fixture.logPath(0)))
        for size in stride(from: whole.count - 2 * batchBytes, to: whole.count, by: 7) {
            let image = source.crashed(seed: 1)
            image.setContent(Fixture.logPath(0), Array(whole[..<size]))
            let log = try Fixture.log(Fixture.directory(image), .small())
            #expect(log.damage == nil)
            #expect(log.logEndOffset == Offset(Int64(size / batchBytes)))
            // The first bytes of a batch may be zeros, which say nothing.
            let torn = whole[size / batchBytes * batchBytes..<size].allSatisfy { $0 == 0 } ? 0 : size % batchBytes
            #expect(log.recovery.truncatedBytes == torn)
            #expect(image.content(Fixture.logPath(0))?.count == size / batchBytes * batchBytes)
        }
    }

    @Test func `garbage and zeros behind the last batch are cut`() throws {
        for filler in [0, 0xff, 2] as [UInt8] {
            let image = try disk()
            let whole = try #require(image.content(Fixture.logPath(0)))
            image.setContent(Fixture.logPath(0), whole + [UInt8](repeating: filler, count: 5000))
            let log = try Fixture.log(Fixture.directory(image), .small())
            #expect(log.logEndOffset == Offset(10))
            // Zeros alone are room, see RoomTests.
            #expect(log.recovery.truncatedBytes == (filler == 0 ? 0 : 5000))
            #expect(image.content(Fixture.logPath(0))?.count == whole.count)
            #expect(log.damage == nil)
        }
    }

    @Test func `a bad batch with a valid one behind it is damage: kept, quarantined, refused until repaired`() throws {
        let image = try disk()
        let whole = try #require(image.content(Fixture.logPath(0)))
        image.flip(Fixture.logPath(0), byte: 4 * batchBytes + 80, bit: 3)
        let log = try Fixture.log(Fixture.directory(image), .small())
        #expect(log.damage?.offset == Offset(4))
        #expect(image.content(Fixture.logPath(0))?.count == whole.count, "nothing was cut")
        let copy = try #require(image.content("/data/.quarantine/orders-0/00000000000000000004.bytes"))
        #expect(copy.count == 6 * batchBytes)
        #expect(try Fixture.offsets(Fixture.readAll(log)) == [0, 1, 2, 3])
        let append = #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.batch()) }
        #expect(append?.errorCode == .kafkaStorageError)
        #expect(append?.description.contains("martlet log repair") == true)
        let read = #expect(throws: ReadError.self) {
            try log.locate(from: Offset(4), upTo: Offset(10), maxBytes: 1, minOneBatch: true)
        }
        #expect(read?.errorCode == .kafkaStorageError)

        // The same after another start, with one copy all the same.
        let again = try Fixture.log(Fixture.directory(image.crashed(seed: 1)), .small())
        #expect(again.damage?.offset == Offset(4))
        #expect(again.recovery.quarantinedBytes == 0)

        try log.repair()
        #expect(log.damage == nil)
        #expect(try Fixture.append(log, Fixture.batch()) == .staged(base: Offset(4), last: Offset(4), appendTimestamp: nil))
        let repaired = try Fixture.log(Fixture.directory(image.crashed(seed: 0)), .small())
        #expect(repaired.damage == nil)
        #expect(try Fixture.offsets(Fixture.readAll(repaired)) == [0, 1, 2, 3, 4])
    }

    @Test func `damage in an earlier segment stops the log there`() throws {
        let image = try disk(segmentBytes: 400)
        image.flip(Fixture.logPath(2), byte: 70, bit: 0)
        let log = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 400))
        #expect(log.damage?.offset == Offset(2))
        try log.repair()
        try Fixture.append(log, Fixture.batch(seed: 99))
        #expect(try Fixture.offsets(Fixture.readAll(log)) == [0, 1, 2])
        #expect(!image.files.contains(Fixture.logPath(4)))
    }

    @Test func `only what lies behind the recovery point is checked`() throws {
        let log = try Fixture.log(Fixture.directory(disk(checkpointAfter: 7)), .small())
        #expect(log.recovery.wasChecked)
        #expect(log.recovery.checkedBytes == 3 * batchBytes)
        #expect(log.logEndOffset == Offset(10))
    }

    @Test func `bad bytes before the recovery point are damage even with nothing behind them`() throws {
        let image = try disk(checkpointAfter: 10)
        let whole = try #require(image.content(Fixture.logPath(0)))
        image.setContent(Fixture.logPath(0), Array(whole[..<(whole.count - 1)]))
        let log = try Fixture.log(Fixture.directory(image), .small())
        #expect(log.damage?.offset == Offset(9))
    }

    @Test func `a torn tail that is cut has its copy, whatever kill and power cut come between`() throws {
        var cuts = 0
        for stop in 0..<60 {
            let disk = SimulatedDisk()
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory)
            try Fixture.append(log, Fixture.batch())
            try directory.writeCheckpoints()
            let whole = try #require(disk.content(Fixture.logPath(0)))
            let tail: [UInt8] = [1, 2, 3, 4, 5]
            disk.setContent(Fixture.logPath(0), whole + tail)
            disk.processEnded()
            disk.stop(afterOperations: stop)
            _ = try? Fixture.log(Fixture.directory(disk))
            disk.processEnded()
            disk.clearStop()
            _ = try Fixture.log(Fixture.directory(disk))
            for seed in 0..<4 as Range<UInt64> {
                let image = disk.crashed(seed: seed)
                guard image.content(Fixture.logPath(0)) == whole else { continue }
                cuts += 1
                let copy = image.content("/data/.quarantine/orders-0/00000000000000000001.bytes")
                #expect(copy == tail, "stop \(stop) image \(seed): \(String(describing: copy))")
            }
        }
        #expect(cuts > 100)
    }

    @Test func `another tail at the same place gets a copy of its own`() throws {
        let disk = SimulatedDisk()
        try Fixture.append(try Fixture.log(Fixture.directory(disk)), Fixture.batch())
        let whole = try #require(disk.content(Fixture.logPath(0)))
        let tails: [[UInt8]] = [[1, 2, 3], [4, 5, 6], [1, 2, 3]]
        for tail in tails {
            disk.processEnded()
            disk.setContent(Fixture.logPath(0), whole + tail)
            #expect(try Fixture.log(Fixture.directory(disk)).recovery.truncatedBytes == 3)
        }
        let copies = disk.files.filter { $0.contains("/.quarantine/") }.map { disk.content($0) }
        #expect(copies == [[4, 5, 6], [1, 2, 3]])
    }

    @Test func `producer snapshots of a log that is lost do not come back with the next one`() throws {
        let disk = SimulatedDisk()
        var configuration = LogConfiguration()
        configuration.segmentMilliseconds = 1000
        let lost = try Fixture.log(Fixture.directory(disk), configuration)
        try Fixture.append(lost, Fixture.batch(producer: (1, 0, 0)), flush: false)
        try lost.tick(now: Timestamp(milliseconds: Fixture.now.rawValue + 2000))
        let snapshot = "/data/orders-0/00000000000000000001.snapshot"
        #expect(disk.content(snapshot) != nil)
        // As a power cut may leave it: the segments' names are gone, the snapshot's is not.
        for base in [0, 1] as [Int64] { try disk.remove(Fixture.logPath(base)) }
        disk.processEnded()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        #expect(log.logEndOffset == .zero && log.producers.entries.isEmpty)
        #expect(disk.content(snapshot) == nil)
    }

    /// A process that is killed leaves names in memory that the disk does not have; the next one builds on them.
    @Test func `an empty segment of a killed process survives a power cut with what the next process wrote to it`()
        throws
    {
        let disk = SimulatedDisk()
        var configuration = LogConfiguration()
        configuration.segmentMilliseconds = 1000
        let directory = try Fixture.directory(disk)
        let killed = try Fixture.log(directory, configuration)
        try Fixture.append(killed, Fixture.batch())
        try directory.writeCheckpoints()
        try killed.tick(now: Timestamp(milliseconds: Fixture.now.rawValue + 2000))
        #expect(killed.segmentCount == 2)
        disk.processEnded()

        let next = try Fixture.directory(disk)
        let restarted = try Fixture.log(next, configuration)
        #expect(restarted.segmentCount == 2)
        try Fixture.append(restarted, Fixture.batch())
        try next.writeCheckpoints()

        let recovered = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), configuration)
        #expect(recovered.damage == nil)
        #expect(recovered.logEndOffset == Offset(2))
    }

    @Test func `index files that are missing, cut, zeroed or full of nonsense change no answer`() throws {
        let source = try disk(segmentBytes: 600)
        var generator = SplitMix64(seed: 5)
        for round in 0..<40 {
            let image = source.crashed(seed: 1)
            for path in image.files where path.hasSuffix("index") {
                guard let bytes = image.content(path) else { continue }
                switch Int.random(in: 0..<5, using: &generator) {
                case 0: try image.remove(path)
                case 1: image.setContent(path, Array(bytes.prefix(Int.random(in: 0...bytes.count, using: &generator))))
                case 2: image.setContent(path, [UInt8](repeating: 0, count: bytes.count))
                case 3: image.setContent(path, bytes.map { _ in UInt8.random(in: 0...255, using: &generator) })
                case _: image.setContent(path, bytes + bytes)
                }
            }
            let log = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 600))
            #expect(log.logEndOffset == Offset(10), "round \(round)")
            for offset in 0..<10 as Range<Int64> {
                let region = try log.locate(from: Offset(offset), upTo: Offset(10), maxBytes: 1, minOneBatch: true)
                #expect(region.baseOffset == Offset(offset), "round \(round)")
            }
            #expect(try Fixture.offsets(Fixture.readAll(log)) == Array(0..<10))
        }
    }

    @Test(arguments: [true, false])
    func `a missing offset index is made anew when the log is opened`(clean: Bool) throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 2000))
        for index in 0..<60 { try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index))) }
        if clean { try Fixture.close(log, directory) } else { try directory.writeCheckpoints() }
        let image = disk.crashed(seed: 1)
        let paths = image.files.filter { $0.hasSuffix(".index") }.sorted().dropLast()
        #expect(paths.count > 2)
        for path in paths {
            let lost = disk.crashed(seed: 1)
            let content = try #require(lost.content(path))
            #expect(!content.isEmpty)
            try lost.remove(path)
            let again = try Fixture.log(Fixture.directory(lost), .small(segmentBytes: 2000))
            #expect(lost.content(path) == content, "\(path)")
            try Fixture.flush(again)
            #expect(lost.crashed(seed: 1).content(path) == content, "\(path)")
            #expect(try Fixture.offsets(Fixture.readAll(again)) == Array(0..<60))
        }
    }

    @Test func `damage in a segment without an index does not keep the others from being read`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 2000))
        for index in 0..<60 { try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index))) }
        try Fixture.close(log, directory)
        try disk.remove(Fixture.logPath(0, "index"))
        // The length of the fourth batch.
        let content = try #require(disk.content(Fixture.logPath(0)))
        let header = try RecordBatchHeader(reading: ByteBuffer(bytes: content))
        disk.flip(Fixture.logPath(0), byte: 3 * header.totalByteCount + 8, bit: 6)
        let again = try Fixture.log(Fixture.directory(disk), .small(segmentBytes: 2000))
        #expect(try Fixture.offsets(Fixture.readAll(again, from: Offset(30))) == Array(30..<60))
        #expect(throws: ReadError.self) {
            try again.locate(from: Offset(5), upTo: Offset(60), maxBytes: 1, minOneBatch: true)
        }
    }

    @Test func `a batch inside a torn record is not taken for a later batch`() throws {
        // The payload of the torn batch is itself a valid batch, but of offset 0: it cannot follow offset 3.
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), .small(segmentBytes: 1 << 20))
        for index in 0..<3 { try Fixture.append(log, Fixture.batch(seed: UInt64(index))) }
        var builder = RecordBatchBuilder()
        try builder.append(key: nil, value: Fixture.batch(bytes: 50), timestamp: 1)
        try builder.append(key: nil, value: ByteBuffer(repeating: 7, count: 2000), timestamp: 1)
        try Fixture.append(log, try builder.build())
        let image = disk.crashed(seed: 1)
        let whole = try #require(image.content(Fixture.logPath(0)))
        image.setContent(Fixture.logPath(0), Array(whole.dropLast(100)))
        let again = try Fixture.log(Fixture.directory(image))
        #expect(again.damage == nil)
        #expect(again.logEndOffset == Offset(3))
    }

    @Test func `batches of older epochs before the log start are no damage`() throws {
        // Found by the crash enumeration, workload 5003: the epoch file begins at the log start, the
        // segment before it.
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        for epoch in 0..<6 as Range<Int32> { try Fixture.append(log, Fixture.batch(count: 2), epoch: epoch) }
        try #require(try log.deleteRecords(before: Offset(9), highWatermark: Offset(12))).run()
        try log.adoptLogStart(now: Fixture.now)
        try Fixture.flush(log)
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)))
        #expect(again.damage == nil)
        #expect(again.logStartOffset == Offset(9) && again.logEndOffset == Offset(12))
    }

    @Test func `the leader epoch file is made anew when it is lost`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        for epoch in [0, 0, 3, 4, 4] as [Int32] { try Fixture.append(log, Fixture.batch(), epoch: epoch) }
        for damage in 0..<2 {
            let image = disk.crashed(seed: 0)
            if damage == 0 {
                try image.remove("/data/orders-0/leader-epoch-checkpoint")
            } else {
                image.setContent("/data/orders-0/leader-epoch-checkpoint", Array("rubbish".utf8))
            }
            let again = try Fixture.log(Fixture.directory(image))
            #expect(again.leaderEpochs == log.leaderEpochs)
        }
    }

    @Test func `scrub finds every kind of flip that the checksum does not cover`() throws {
        let source = try disk(segmentBytes: 600)
        // Base offset, length, epoch, magic, checksum, and the body, in the second batch.
        for byte in [7, 11, 15, 16, 18, 21, 60, 100] {
            let image = source.crashed(seed: 1)
            let directory = try Fixture.directory(image)
            let log = try Fixture.log(directory, .small(segmentBytes: 600))
            image.flip(Fixture.logPath(0), byte: batchBytes + byte, bit: 1)
            let result = try log.verify()
            #expect(result.findings.first?.offset == Offset(1), "byte \(byte)")
        }
        let sound = try Fixture.log(Fixture.directory(source), .small(segmentBytes: 600))
        #expect(try sound.verify().findings.isEmpty)
        // In steps as well.
        var next = Offset.zero
        var bytes = 0
        while next < sound.logEndOffset {
            let result = try sound.scrub(from: next, maxBytes: 200).run()
            #expect(result.nextOffset > next)
            bytes += result.checkedBytes
            next = result.nextOffset
        }
        #expect(bytes == 10 * batchBytes)
    }

    @Test func `leader epochs learnt from the batches survive the next start`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        for epoch in [0, 0, 3, 4, 4] as [Int32] { try Fixture.append(log, Fixture.batch(), epoch: epoch, flush: epoch < 3) }
        let image = disk.crashed(seed: 1)
        // Recovered, then stopped cleanly: the batches are not read again.
        for clean in [true, false] {
            let second = image.crashed(seed: 1)
            let directory = try Fixture.directory(second)
            let recovered = try Fixture.log(directory)
            #expect(recovered.leaderEpochs == log.leaderEpochs)
            if clean { try Fixture.close(recovered, directory) } else { try directory.writeCheckpoints() }
            let again = try Fixture.log(Fixture.directory(second.crashed(seed: 0)))
            #expect(again.leaderEpochs == log.leaderEpochs, "clean \(clean)")
        }
    }

    /// Rising times, several to a segment; 0...end of `times` are asked for.
    private func checkTimes(_ log: SimulatedLog, _ times: [Int64], _ comment: Comment) throws {
        for (index, time) in times.enumerated() {
            let found = try log.offset(for: Timestamp(milliseconds: time), upTo: log.logEndOffset)
            #expect(found?.offset.rawValue == Int64(index), comment)
        }
        #expect(try log.offsetOfMaxTimestamp(upTo: log.logEndOffset)?.offset.rawValue == Int64(times.count) - 1, comment)
    }

    private func timed(
        flush: Bool, reopenedAfter: Int64? = nil
    ) throws -> (SimulatedDisk, SimulatedDirectory, SimulatedLog, [Int64]) {
        let disk = SimulatedDisk()
        disk.setTime(Fixture.now.rawValue)
        var directory = try Fixture.directory(disk)
        var log = try Fixture.log(directory, .small(segmentBytes: 1500))
        var times: [Int64] = []
        for index in 0..<40 as Range<Int64> {
            if index == reopenedAfter {
                try Fixture.close(log, directory)
                directory = try Fixture.directory(disk)
                log = try Fixture.log(directory, .small(segmentBytes: 1500))
            }
            times.append(Fixture.now.rawValue + index * 10)
            try Fixture.append(
                log, Fixture.batch(bytes: 100, seed: UInt64(index), timestamp: times[Int(index)]), flush: flush)
        }
        return (disk, directory, log, times)
    }

    @Test func `closed segments that recovery walked are found by time after the next start as well`() throws {
        // The recovery point lies in the middle of a segment, and so does the end of its index files.
        let (disk, _, _, times) = try timed(flush: false, reopenedAfter: 6)
        var image = disk.crashed(seed: 1)
        var directory = try Fixture.directory(image)
        let recovered = try Fixture.log(directory, .small(segmentBytes: 1500))
        #expect(recovered.recovery.wasChecked && recovered.segmentCount > 3)
        try checkTimes(recovered, times, "recovered")
        try Fixture.close(recovered, directory)
        let clean = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 1500))
        #expect(!clean.recovery.wasChecked)
        try checkTimes(clean, times, "after a clean stop")
        // The same when the recovered log is not closed but cut off from power.
        image = disk.crashed(seed: 1)
        directory = try Fixture.directory(image)
        _ = try Fixture.log(directory, .small(segmentBytes: 1500))
        try directory.writeCheckpoints()
        let again = try Fixture.log(Fixture.directory(image.crashed(seed: 0)), .small(segmentBytes: 1500))
        try checkTimes(again, times, "after a power cut")
    }

    @Test func `a time index that could not be written when its segment closed misleads nobody`() throws {
        for operation in [SimulatedOperation.write, .create] {
            for skipping in 0..<30 {
                let disk = SimulatedDisk()
                disk.setTime(Fixture.now.rawValue)
                var directory = try Fixture.directory(disk)
                var log = try Fixture.log(directory, .small(segmentBytes: 1500))
                var times: [Int64] = []
                for index in 0..<30 as Range<Int64> {
                    if index == 6 {
                        // From here on the index files hold the beginning of the segment.
                        try Fixture.close(log, directory)
                        directory = try Fixture.directory(disk)
                        log = try Fixture.log(directory, .small(segmentBytes: 1500))
                        disk.fail(operation, .noSpace, skipping: skipping)
                    }
                    let time = Fixture.now.rawValue + index * 10
                    do {
                        try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index), timestamp: time))
                        times.append(time)
                    } catch {
                        #expect(directory.refreshDiskState() == .ok)
                    }
                    _ = directory.refreshDiskState()
                }
                disk.clearFaults()
                try checkTimes(log, times, "\(operation) \(skipping)")
                try Fixture.close(log, directory)
                let again = try Fixture.log(Fixture.directory(disk), .small(segmentBytes: 1500))
                try checkTimes(again, times, "\(operation) \(skipping) after a restart")
            }
        }
    }

    @Test func `any flipped bit and any lost end of an index changes no answer after a clean stop`() throws {
        let (disk, directory, log, times) = try timed(flush: true)
        try Fixture.close(log, directory)
        var generator = SplitMix64(seed: 11)
        let paths = disk.files.filter { $0.hasSuffix("index") && (disk.content($0)?.count ?? 0) > 0 }
        #expect(paths.count > 6)
        for round in 0..<400 {
            let image = disk.crashed(seed: 1)
            let path = try #require(paths.randomElement(using: &generator))
            let bytes = try #require(image.content(path))
            if round % 4 == 0 {
                let entry = path.hasSuffix("timeindex") ? TimeIndexEntry.byteCount : OffsetIndexEntry.byteCount
                image.setContent(path, Array(bytes.prefix(entry * Int.random(in: 0..<bytes.count / entry, using: &generator))))
            } else {
                image.flip(
                    path, byte: Int.random(in: 0..<bytes.count, using: &generator),
                    bit: Int.random(in: 0..<8, using: &generator))
            }
            let again = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 1500))
            try checkTimes(again, times, "round \(round) \(path)")
        }
    }

    @Test func `a closed segment that lost its end is reported by reads and scrub, never skipped`() throws {
        let source = try disk(segmentBytes: 600, checkpointAfter: 10)
        let size = try #require(source.content(Fixture.logPath(0))?.count)
        #expect(size == 3 * batchBytes)
        for missing in 1...3 {
            let image = source.crashed(seed: 1)
            let content = try #require(image.content(Fixture.logPath(0)))
            image.setContent(Fixture.logPath(0), Array(content.dropLast(missing * batchBytes)))
            let log = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 600))
            let from = Offset(Int64(3 - missing))
            #expect(throws: ReadError.self) {
                try log.locate(from: from, upTo: Offset(10), maxBytes: 10_000, minOneBatch: true)
            }
            let cold = try #require(
                try log.coldLocate(from: from, upTo: Offset(10), maxBytes: 10_000, minOneBatch: true))
            #expect(throws: ReadError.self) { try cold.run() }
            #expect(try log.verify().findings.first?.offset == from)
            // What is there can be read.
            #expect(try log.locate(from: Offset(3), upTo: Offset(10), maxBytes: 1, minOneBatch: true).baseOffset == Offset(3))
        }
    }
}
