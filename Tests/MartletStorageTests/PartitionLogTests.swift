import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct PartitionLogTests {
    @Test func `an internal topic's batch above segment.bytes gets a segment of its own`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        var configuration = LogConfiguration.small(segmentBytes: 600)
        configuration.oversizeBatchBytes = 5_000
        let log = try Fixture.log(directory, configuration)
        for bytes in [20, 4_000, 20, 4_000, 4_000] { try Fixture.append(log, Fixture.batch(bytes: bytes)) }
        #expect(throws: AppendError.self) { try Fixture.append(log, Fixture.batch(bytes: 6_000)) }
        #expect(try Fixture.offsets(Fixture.readAll(log)) == [0, 1, 2, 3, 4])
        for base in [1, 2, 3, 4] as [Int64] { #expect(disk.files.contains(Fixture.logPath(base))) }
        try Fixture.close(log, directory)
        let again = try Fixture.log(Fixture.directory(disk), configuration)
        #expect(try Fixture.offsets(Fixture.readAll(again)) == [0, 1, 2, 3, 4])
    }

    @Test func `a partition without data has no folder`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        #expect(log.logEndOffset == .zero)
        #expect(!disk.files.contains { $0.contains("orders") })
        #expect(try log.locate(from: .zero, upTo: .zero, maxBytes: 100, minOneBatch: true).isEmpty)
    }

    @Test func `offsets run on over batches and the bytes come back unchanged`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        let first = Fixture.batch(count: 3)
        let second = Fixture.batch(count: 2, seed: 2)
        #expect(try Fixture.append(log, first) == .staged(base: .zero, last: Offset(2), appendTimestamp: nil))
        #expect(
            try Fixture.append(log, second, epoch: 4) == .staged(base: Offset(3), last: Offset(4), appendTimestamp: nil))
        #expect(log.flushedEndOffset == Offset(5))
        let batches = try Fixture.readAll(log)
        #expect(try Fixture.offsets(batches) == [0, 3])
        #expect(try RecordBatchHeader(reading: batches[1]).partitionLeaderEpoch == 4)
        // Everything the checksum covers is the producer's.
        #expect(batches[0].getBytes(at: batches[0].readerIndex + 17, length: 30) == first.getBytes(at: 17, length: 30))
        #expect(log.leaderEpochs.latest == LeaderEpoch(4))
    }

    @Test func `written but unflushed batches do not raise the flushed end`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        try Fixture.append(log, Fixture.batch(), flush: false)
        #expect(log.writtenEndOffset == Offset(1))
        #expect(log.flushedEndOffset == .zero)
        let work = try #require(log.takeFlush())
        try Fixture.append(log, Fixture.batch(), flush: false)
        #expect(log.isFlushUnderWay && log.takeFlush() == nil, "one flush at a time")
        log.flushCompleted(work.run())
        #expect(log.flushedEndOffset == Offset(1))
        #expect(log.needsFlush)
        try Fixture.flush(log)
        #expect(log.flushedEndOffset == Offset(2))
        #expect(!log.needsFlush)
    }

    @Test func `the batch that contains the offset is returned whole`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        try Fixture.append(log, Fixture.batch(count: 10))
        try Fixture.append(log, Fixture.batch(count: 10))
        let region = try log.locate(from: Offset(13), upTo: Offset(20), maxBytes: 1, minOneBatch: true)
        #expect(region.baseOffset == Offset(10))
        #expect(region.nextOffset == Offset(20))
        #expect(try log.locate(from: Offset(13), upTo: Offset(20), maxBytes: 1, minOneBatch: false).isEmpty)
    }

    @Test func `a batch that reaches over the bound is not returned`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        try Fixture.append(log, Fixture.batch(count: 10))
        try Fixture.append(log, Fixture.batch(count: 10))
        for bound in 10..<20 {
            let region = try log.locate(from: .zero, upTo: Offset(Int64(bound)), maxBytes: 9999, minOneBatch: true)
            #expect(region.nextOffset == Offset(10))
        }
        #expect(try log.locate(from: Offset(10), upTo: Offset(19), maxBytes: 9999, minOneBatch: true).isEmpty)
    }

    @Test func `offsets outside the log are refused with its range`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        try Fixture.append(log, Fixture.batch(count: 2))
        #expect(throws: ReadError.offsetOutOfRange(start: .zero, end: Offset(2))) {
            try log.locate(from: Offset(3), upTo: Offset(9), maxBytes: 1, minOneBatch: true)
        }
        #expect(try log.locate(from: Offset(2), upTo: Offset(9), maxBytes: 1, minOneBatch: true).isEmpty)
    }

    @Test func `segments roll by size and every offset is found in memory, by index and without one`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small())
        for index in 0..<60 { try Fixture.append(log, Fixture.batch(count: 2, bytes: 30, seed: UInt64(index))) }
        #expect(log.segmentCount > 5)
        func check(_ log: SimulatedLog) throws {
            #expect(try Fixture.offsets(Fixture.readAll(log)) == (0..<60).map { $0 * 2 })
            for offset in 0..<120 {
                let region = try log.locate(
                    from: Offset(Int64(offset)), upTo: Offset(120), maxBytes: 1, minOneBatch: true)
                #expect(region.baseOffset == Offset(Int64(offset / 2 * 2)))
            }
            for step in [150, 300, 700] {
                #expect(try Fixture.offsets(Fixture.readAll(log, step: step)) == (0..<60).map { $0 * 2 })
            }
        }
        try check(log)
        try Fixture.close(log, directory)
        let again = try Fixture.log(Fixture.directory(disk), .small())
        #expect(again.logEndOffset == Offset(120))
        #expect(!again.recovery.wasChecked)
        try check(again)
        try again.close(clean: true)

        let bare = disk.crashed(seed: 1)
        for path in bare.files where path.hasSuffix("index") { try bare.remove(path) }
        let indexless = try Fixture.log(Fixture.directory(bare), .small())
        try check(indexless)
    }

    @Test func `one turn writes many segments with one call each`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), .small(segmentBytes: 500))
        for index in 0..<20 { _ = try Fixture.stage(log, Fixture.batch(count: 1, bytes: 90, seed: UInt64(index))) }
        #expect(log.logEndOffset == Offset(20))
        #expect(log.writtenEndOffset == .zero)
        let before = disk.trace.count
        try log.writeStaged()
        let writes = disk.trace[before...].filter { $0.contains(" write ") && $0.hasSuffix(".log") }
        #expect(writes.count == log.segmentCount)
        try Fixture.flush(log)
        #expect(try Fixture.offsets(Fixture.readAll(log)) == Array(0..<20))
    }

    @Test func `a segment rolls when its time is over, without traffic`() throws {
        var configuration = LogConfiguration()
        configuration.segmentMilliseconds = 1000
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration)
        try Fixture.append(log, Fixture.batch())
        try log.tick(now: Timestamp(milliseconds: Fixture.now.rawValue + 999))
        #expect(log.segmentCount == 1)
        try log.tick(now: Timestamp(milliseconds: Fixture.now.rawValue + 1000))
        #expect(log.segmentCount == 2)
        try Fixture.append(log, Fixture.batch())
        #expect(try Fixture.offsets(Fixture.readAll(log)) == [0, 1])
    }

    @Test func `log append time is stamped and the checksum follows`() throws {
        var configuration = LogConfiguration()
        configuration.timestampType = .logAppendTime
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration)
        let outcome = try Fixture.append(log, Fixture.batch(timestamp: 5))
        #expect(outcome == .staged(base: .zero, last: .zero, appendTimestamp: Fixture.now))
        let header = try RecordBatchHeader(reading: Fixture.readAll(log)[0])
        #expect(header.maxTimestamp == Fixture.now.rawValue)
        #expect(header.timestampType == .logAppendTime)
    }

    @Test func `records are found by time, also when times go back`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 700))
        var generator = SplitMix64(seed: 42)
        var times: [Int64] = []
        for _ in 0..<80 {
            let time = 1000 + Int64.random(in: 0..<500, using: &generator)
            try Fixture.append(log, Fixture.batch(count: 2, bytes: 40, timestamp: time))
            times += [time, time + 1]
        }
        func check(_ log: SimulatedLog) throws {
            for time in Int64(990)...1510 {
                let expected = times.firstIndex { $0 >= time }
                let found = try log.offset(for: Timestamp(milliseconds: time), upTo: Offset(160))
                #expect(found?.offset.rawValue == expected.map(Int64.init))
                #expect(found?.timestamp.rawValue == expected.map { times[$0] })
            }
            let largest = try #require(try log.offsetOfMaxTimestamp(upTo: Offset(160)))
            let maximum = try #require(times.max())
            #expect(largest.timestamp.rawValue == maximum)
            #expect(times[Int(largest.offset.rawValue)] == maximum)
        }
        try check(log)
        try Fixture.close(log, directory)
        try check(Fixture.log(Fixture.directory(disk), .small(segmentBytes: 700)))
        let crashed = disk.crashed(seed: 1)
        try check(Fixture.log(Fixture.directory(crashed), .small(segmentBytes: 700)))
    }

    @Test func `a cold look-up gives the same answer away from the owner`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), .small())
        for index in 0..<40 { try Fixture.append(log, Fixture.batch(count: 1, bytes: 50, seed: UInt64(index))) }
        for offset in 0..<40 {
            let from = Offset(Int64(offset))
            let here = try log.locate(from: from, upTo: Offset(33), maxBytes: 300, minOneBatch: true)
            let there = try log.coldLocate(from: from, upTo: Offset(33), maxBytes: 300, minOneBatch: true)?.run()
            #expect(there?.position ?? 0 == here.position)
            #expect(there?.byteCount ?? 0 == here.byteCount)
            #expect(there?.nextOffset ?? from == here.nextOffset)
        }
    }

    @Test func `a region outlives its segment`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 300))
        for index in 0..<10 { try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index))) }
        let region = try log.locate(from: .zero, upTo: Offset(10), maxBytes: 100, minOneBatch: true)
        let work = try #require(try log.deleteRecords(before: Offset(8), highWatermark: Offset(10)))
        try work.run()
        try log.adoptLogStart(now: Fixture.now)
        #expect(log.logStartOffset == Offset(8))
        let removal = log.purgeDeleted(now: Timestamp(milliseconds: Fixture.now.rawValue + 120_000))
        try #require(removal).run()
        #expect(!disk.files.contains { $0.contains(".deleted") })
        var bytes = ByteBuffer()
        #expect(try log.read(region, into: &bytes, nonBlocking: false) == .read)
        #expect(try RecordBatchHeader(reading: bytes).baseOffset == 0)
    }
}
