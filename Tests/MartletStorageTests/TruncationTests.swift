import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import Testing

@Suite struct TruncationTests {
    private func filled(_ disk: SimulatedDisk, from start: Int64 = 0) throws -> (SimulatedDirectory, SimulatedLog) {
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 400))
        if start > 0 { try log.restart(at: Offset(start)) }
        for index in 0..<6 as Range<Int32> {
            try Fixture.append(
                log, Fixture.batch(count: 3, bytes: 20, seed: UInt64(index), producer: (1, 0, index * 3)), epoch: index / 2)
        }
        try directory.writeCheckpoints()
        return (directory, log)
    }

    @Test func `an epoch begins where its leader found the log, records or none`() throws {
        let disk = SimulatedDisk()
        let (_, log) = try filled(disk)
        let end = log.logEndOffset
        log.beginEpoch(LeaderEpoch(7))
        #expect(log.leaderEpochs.latest == LeaderEpoch(7))
        #expect(log.leaderEpochs.endOffset(for: LeaderEpoch(2), logEnd: end)?.endOffset == end)
        log.beginEpoch(LeaderEpoch(6))
        #expect(log.leaderEpochs.latest == LeaderEpoch(7), "an older one changes nothing")
        try Fixture.append(log, Fixture.batch(), epoch: 7)
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), .small(segmentBytes: 400))
        #expect(again.leaderEpochs == log.leaderEpochs)
        // The follower's part: the leader knows nothing of that epoch.
        try log.truncate(to: end)
        #expect(log.leaderEpochs.latest == LeaderEpoch(2))
        log.beginEpoch(LeaderEpoch(9))
        try log.truncate(to: end)
        #expect(log.leaderEpochs.latest == LeaderEpoch(2), "nor of one without a record")
    }

    @Test func `what a cut leaves unflushed is flushed next, without an append`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        try Fixture.append(log, Fixture.batch())
        for _ in 0..<4 { try Fixture.append(log, Fixture.batch(), flush: false) }
        try log.truncate(to: Offset(3))
        #expect(log.logEndOffset == Offset(3))
        try Fixture.flush(log)
        #expect(log.flushedEndOffset == Offset(3))
    }

    @Test func `after a new beginning compaction begins anew, and a pass of before means nothing`() throws {
        let disk = SimulatedDisk()
        var configuration = LogConfiguration.small(segmentBytes: 120)
        configuration.compacts = true
        configuration.deletesOld = false
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        func fill() throws {
            for seed in 0..<6 as Range<UInt64> { try Fixture.append(log, Fixture.batch(seed: seed, key: "k")) }
        }
        func plan() throws -> CompactionPlan<SimulatedDisk> {
            try #require(try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true))
        }
        func compacts() throws {
            try log.installCompaction(try plan().run(), now: Fixture.now)
            try Fixture.flush(log)
            #expect(try Fixture.offsets(Fixture.readAll(log)).count == 2)
        }
        try fill()
        try compacts()
        try log.restart(at: .zero)
        try fill()
        let stale = try plan().run()
        try log.restart(at: .zero)
        try fill()
        try log.installCompaction(stale, now: Fixture.now)
        try Fixture.flush(log)
        #expect(try Fixture.offsets(Fixture.readAll(log)) == [0, 1, 2, 3, 4, 5])
        #expect(disk.files.allSatisfy { !$0.hasSuffix(".cleaned") })
        try compacts()
    }

    @Test func `an epoch that begins before the first record is in the file with it`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        log.beginEpoch(LeaderEpoch(4))
        try Fixture.append(log, Fixture.batch(), epoch: 4)
        #expect(disk.content("/data/orders-0/leader-epoch-checkpoint") != nil)
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)))
        #expect(again.leaderEpochs.entries.map(\.startOffset) == [.zero])
        #expect(again.leaderEpochs.latest == LeaderEpoch(4))
    }

    @Test(arguments: [5, 10, 18, 500] as [Int64])
    func `a new beginning leaves nothing, wherever it is`(start: Int64) throws {
        let disk = SimulatedDisk()
        let (directory, log) = try filled(disk, from: 10)
        #expect(log.logStartOffset == Offset(10) && log.logEndOffset == Offset(28))
        try log.restart(at: Offset(start))
        for log in [log] + (try (0..<6 as Range<UInt64>).map { seed in
            try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), .small(segmentBytes: 400))
        }) {
            #expect(log.logStartOffset == Offset(start) && log.logEndOffset == Offset(start))
            #expect(log.flushedEndOffset == Offset(start) && log.damage == nil)
            #expect(log.leaderEpochs.entries.isEmpty && log.producers.entries.isEmpty)
        }
        try Fixture.append(log, Fixture.batch(producer: (1, 3, 0)), epoch: 12)
        try directory.writeCheckpoints()
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), .small(segmentBytes: 400))
        #expect(try Fixture.offsets(Fixture.readAll(again)) == [start])
        #expect(again.producers.entries[1]?.epoch == 3 && again.leaderEpochs.latest == LeaderEpoch(12))
    }

    @Test(arguments: [5, 500] as [Int64])
    func `a power cut amid a new beginning leaves a whole log, with less or empty`(start: Int64) throws {
        for stop in 0..<200 {
            let disk = SimulatedDisk()
            let (_, log) = try filled(disk, from: 10)
            // Some records are below the log start, in a segment that stays.
            try #require(try log.deleteRecords(before: Offset(12), highWatermark: log.logEndOffset)).run()
            try log.adoptLogStart(now: Fixture.now)
            disk.stop(afterOperations: stop)
            let isDone = (try? log.restart(at: Offset(start))) != nil
            for seed in 0..<6 as Range<UInt64> {
                let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), .small(segmentBytes: 400))
                let problem = "stop \(stop) image \(seed): \(again.logStartOffset)..<\(again.logEndOffset)"
                #expect(again.damage == nil, "\(problem)")
                let ends = try Fixture.readAll(again).isEmpty ? [start, 12] : [12]
                #expect(ends.contains(again.logStartOffset.rawValue), "\(problem)")
                if isDone { #expect(again.logStartOffset == Offset(start) && again.logEndOffset == Offset(start)) }
            }
            if isDone { return }
        }
        Issue.record("the new beginning never finished")
    }
}

extension TruncationTests {
    private func log(_ disk: SimulatedDisk) throws -> (SimulatedDirectory, SimulatedLog) {
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 400))
        for index in 0..<6 as Range<Int32> {
            try Fixture.append(
                log, Fixture.batch(count: 3, bytes: 20, seed: UInt64(index)), epoch: [0, 0, 2, 2, 5, 5][Int(index)])
        }
        return (directory, log)
    }

    @Test func `a follower knows the end of an epoch that it never saw`() throws {
        let (_, log) = try log(SimulatedDisk())
        #expect(log.epochEnd(atOrBelow: LeaderEpoch(9))?.epoch == LeaderEpoch(5))
        #expect(log.epochEnd(atOrBelow: LeaderEpoch(9))?.endOffset == log.logEndOffset)
        #expect(log.epochEnd(atOrBelow: LeaderEpoch(5))?.endOffset == log.logEndOffset)
        #expect(log.epochEnd(atOrBelow: LeaderEpoch(4))?.epoch == LeaderEpoch(2))
        #expect(log.epochEnd(atOrBelow: LeaderEpoch(4))?.endOffset == Offset(12))
        #expect(log.leaderEpochs.endOffset(for: LeaderEpoch(9), logEnd: log.logEndOffset) == nil, "a client is not told")
        let empty = try Fixture.log(Fixture.directory(SimulatedDisk()))
        #expect(empty.epochEnd(atOrBelow: LeaderEpoch(0)) == nil)
    }

    @Test func `a replicated batch of an earlier epoch takes the place of one that began and wrote nothing`() throws {
        let disk = SimulatedDisk()
        let (_, log) = try log(disk)
        let end = log.logEndOffset
        log.beginEpoch(LeaderEpoch(8))
        let batch = Fixture.batch()
        RecordBatchPatch.assign(baseOffset: end.rawValue, leaderEpoch: 6, throughSharedStorageOf: batch)
        try log.stageReplica(batch, header: try RecordBatchHeader(reading: batch), now: Fixture.now)
        try log.writeStaged()
        #expect(log.leaderEpochs.latest == LeaderEpoch(6))
        #expect(log.leaderEpochs.epoch(at: end) == LeaderEpoch(6))
        try Fixture.flush(log)
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 1)), .small(segmentBytes: 400))
        #expect(again.leaderEpochs == log.leaderEpochs)
    }

    @Test func `a log that never had a record begins where it is told to, also after a power cut`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        try Fixture.log(directory).restart(at: Offset(7))
        for seed in 0..<20 as Range<UInt64> {
            let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)))
            #expect(again.logStartOffset == Offset(7))
            #expect(again.logEndOffset == Offset(7))
        }
    }

    @Test func `what is cut below the high watermark is kept aside first`() throws {
        let disk = SimulatedDisk()
        let (directory, log) = try log(disk)
        let bytes = log.byteCount
        try log.quarantine(from: Offset(7))
        #expect(log.byteCount == bytes, "the log itself is as it was")
        try log.truncate(to: Offset(7))
        #expect(log.logEndOffset == Offset(6))
        let folder = directory.path + "/" + SimulatedDirectory.quarantineName + "/" + log.topicPartition.description
        var kept = 0
        for name in try disk.list(folder) { kept += try disk.status(folder + "/" + name).size }
        #expect(kept == bytes - log.byteCount)
        try log.quarantine(from: log.logEndOffset)
        #expect(try disk.list(folder).count > 0)
    }
}
