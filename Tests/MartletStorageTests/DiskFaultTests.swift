import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct DiskFaultTests {
    private func check(_ log: SimulatedLog, has count: Int, _ comment: String) throws {
        #expect(try Fixture.offsets(Fixture.readAll(log)) == (0..<count).map { Int64($0) }, "\(comment)")
    }

    @Test(arguments: [SimulatedOperation.write, .create, .truncate, .rename, .createDirectory])
    func `no space at any operation is a clear error, undone, and over when there is space`(
        operation: SimulatedOperation
    ) throws {
        for skipping in 0..<40 {
            let disk = SimulatedDisk()
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory, .small(segmentBytes: 400))
            disk.fail(operation, .noSpace, skipping: skipping)
            var written = 0
            for index in 0..<12 {
                do {
                    try Fixture.append(log, Fixture.batch(bytes: 80, seed: UInt64(index)), flush: false)
                    written += 1
                } catch let error as StorageError {
                    guard case .diskFull = error else {
                        Issue.record("\(operation) \(skipping): \(error)")
                        return
                    }
                    #expect(log.logEndOffset == Offset(Int64(written)))
                    #expect(log.writtenEndOffset == Offset(Int64(written)))
                }
                if case .full = directory.state {
                    #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.batch()) }
                    // Reads go on.
                    try check(log, has: written, "\(operation) \(skipping)")
                    #expect(directory.refreshDiskState() == .ok)
                }
            }
            if let work = log.takeFlush() {
                // Small files that can be derived do not keep the log from becoming durable.
                let result = work.run()
                log.flushCompleted(result)
                #expect(result.failure == nil, "\(operation) \(skipping)")
            }
            try check(log, has: written, "\(operation) \(skipping)")
            let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), .small(segmentBytes: 400))
            try check(again, has: written, "\(operation) \(skipping) after a power cut")
        }
    }

    @Test func `a full disk refuses writes, lets internal topics and deletes go on, and recovers`() throws {
        let disk = SimulatedDisk(capacity: 60_000)
        var configuration = SimulatedDirectory.Configuration()
        configuration.reserveBytes = 10_000
        configuration.freeSpaceFloorBytes = 5_000
        let directory = try Fixture.directory(disk, configuration: configuration)
        let log = try Fixture.log(directory, .small(segmentBytes: 8_000))
        var internalTopic = LogConfiguration.small(segmentBytes: 8_000)
        internalTopic.mayUseReserve = true
        let offsets = try Fixture.log(
            directory, internalTopic, partition: TopicPartition(TopicName.consumerOffsets, 0))
        var count = 0
        while case .ok = directory.state {
            do {
                try Fixture.append(log, Fixture.batch(bytes: 900, seed: UInt64(count)))
                count += 1
            } catch {
                break
            }
        }
        guard case .full = directory.state else {
            Issue.record("state is \(directory.state)")
            return
        }
        #expect(count > 40)
        let error = #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.batch()) }
        #expect(error?.errorCode == .kafkaStorageError)
        #expect(error?.description.contains("full") == true)
        #expect(directory.refreshDiskState() != .ok)
        // The reserve was given up: commits and checkpoints go on.
        for index in 0..<5 { try Fixture.append(offsets, Fixture.batch(bytes: 500, seed: UInt64(index))) }
        try directory.writeCheckpoints()
        #expect(try Fixture.readAll(log).count == count)
        // A user deletes records: space comes back, and with it the writes.
        let work = try #require(try log.deleteRecords(before: Offset(30), highWatermark: log.flushedEndOffset))
        try work.run()
        try log.adoptLogStart(now: Fixture.now)
        try #require(log.purgeDeleted(now: Timestamp(milliseconds: Fixture.now.rawValue + 60_000))).run()
        #expect(directory.refreshDiskState() == .ok)
        try Fixture.append(log, Fixture.batch(bytes: 900))
        #expect(log.logEndOffset == Offset(Int64(count + 1)))
    }

    @Test func `a failed flush is final for the directory, and what was acknowledged survives`() throws {
        for skipping in 0..<12 {
            let disk = SimulatedDisk()
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory, .small(segmentBytes: 400))
            disk.fail(.sync, .inputOutput, skipping: skipping)
            var acknowledged = 0
            for index in 0..<12 {
                do {
                    try Fixture.append(log, Fixture.batch(bytes: 80, seed: UInt64(index)))
                    acknowledged = index + 1
                } catch {
                    break
                }
            }
            #expect(log.flushedEndOffset == Offset(Int64(acknowledged)))
            guard case .failed = directory.state else {
                Issue.record("flush \(skipping): state is \(directory.state)")
                continue
            }
            #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.batch()) }
            #expect(throws: ReadError.self) {
                try log.locate(from: .zero, upTo: Offset(1), maxBytes: 1, minOneBatch: true)
            }
            // The disk "works" again: nothing may count as flushed all the same.
            disk.clearFaults()
            #expect(directory.refreshDiskState() != .ok)
            for seed in 0..<6 as Range<UInt64> {
                let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), .small(segmentBytes: 400))
                #expect(again.logEndOffset >= Offset(Int64(acknowledged)), "flush \(skipping) image \(seed)")
            }
        }
    }

    @Test func `an input or output error of a read takes the directory out of service`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 400))
        for index in 0..<9 { try Fixture.append(log, Fixture.batch(bytes: 80, seed: UInt64(index))) }
        disk.fail(.read, .inputOutput)
        let error = #expect(throws: ReadError.self) {
            try log.locate(from: .zero, upTo: Offset(1), maxBytes: 1, minOneBatch: true)
        }
        #expect(error?.errorCode == .kafkaStorageError)
    }

    @Test func `a full directory recovers on a file system that cannot reserve blocks`() throws {
        let disk = SimulatedDisk(capacity: 100_000)
        disk.fail(.allocate, .unsupported, count: Int.max)
        var configuration = SimulatedDirectory.Configuration()
        configuration.reserveBytes = 10_000
        configuration.freeSpaceFloorBytes = 5_000
        let directory = try Fixture.directory(disk, configuration: configuration)
        let log = try Fixture.log(directory)
        disk.fail(.write, .noSpace)
        #expect(throws: StorageError.self) { try Fixture.append(log, Fixture.batch()) }
        guard case .full = directory.state else {
            Issue.record("state is \(directory.state)")
            return
        }
        #expect(directory.refreshDiskState() == .ok)
    }

    @Test(arguments: [SimulatedOperation.syncDirectory, .create])
    func `too many open files during a flush fail that flush, not the directory`(operation: SimulatedOperation) throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch(), flush: false)
        disk.fail(operation, .tooManyFiles)
        #expect(throws: DiskError.self) { try Fixture.flush(log) }
        #expect(log.flushedEndOffset == .zero)
        #expect(directory.state == .ok)
        // Nothing counts as flushed that was not.
        #expect(log.needsFlush)
        try Fixture.flush(log)
        #expect(log.flushedEndOffset == Offset(1))
        #expect(try Fixture.log(Fixture.directory(disk.crashed(seed: 0))).logEndOffset == Offset(1))
    }

    @Test(arguments: [SimulatedOperation.create, .syncDirectory])
    func `a log whose last flush lacked a file descriptor is not closed cleanly`(operation: SimulatedOperation) throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch())
        let producer = (id: Int64(4), epoch: Int16(0), sequence: Int32(0))
        try Fixture.append(log, Fixture.batch(seed: 2, producer: producer), epoch: 1, flush: false)
        disk.fail(operation, .tooManyFiles, count: 1000)
        #expect(throws: StorageError.self) { try log.close(clean: true) }
        disk.clearFaults()
        #expect(directory.state == .ok)
        try directory.close(clean: true)
        #expect(try !Fixture.directory(disk).wasCleanShutdown)
    }

    @Test func `a segment whose first write failed does not come back after a power cut`() throws {
        for image in 0..<12 as Range<UInt64> {
            let disk = SimulatedDisk()
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory, .small(segmentBytes: 600))
            for index in 0..<3 { try Fixture.append(log, Fixture.batch(bytes: 80, seed: UInt64(index))) }
            try directory.writeCheckpoints()
            // Too large for what is left of the segment; the disk is full when the new one is written.
            disk.fail(.write, .noSpace)
            #expect(throws: StorageError.self) { try Fixture.append(log, Fixture.batch(bytes: 400)) }
            _ = directory.refreshDiskState()
            // Small enough for the old segment: it goes on, where the new one had begun.
            try Fixture.append(log, Fixture.batch(bytes: 20, seed: 9), flush: false)
            let again = try Fixture.log(Fixture.directory(disk.crashed(seed: image)), .small(segmentBytes: 600))
            try Fixture.append(again, Fixture.batch(bytes: 20, seed: 10))
            let offsets = try Fixture.offsets(Fixture.readAll(again))
            #expect(offsets == (0..<Int64(offsets.count)).map { $0 }, "image \(image)")
            #expect(Int64(offsets.count) == again.logEndOffset.rawValue, "image \(image)")
        }
    }

    @Test func `a compaction that runs out of space leaves no half-done files in the way`() throws {
        for skipping in 0..<8 {
            let disk = SimulatedDisk()
            var configuration = LogConfiguration.small(segmentBytes: 400)
            configuration.compacts = true
            let log = try Fixture.log(Fixture.directory(disk), configuration)
            for index in 0..<12 {
                try Fixture.append(log, Fixture.batch(bytes: 80, seed: UInt64(index), key: "k"))
            }
            let plan = try #require(
                try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true))
            disk.fail(.write, .noSpace, skipping: skipping)
            do {
                try log.installCompaction(try plan.run(), now: Fixture.now)
            } catch {
                log.abandonCompaction()
                #expect(!disk.files.contains { $0.hasSuffix(".cleaned") }, "write \(skipping)")
            }
        }
    }

    @Test(arguments: [false, true])
    func `compaction keeps away from what is left of a full disk`(mayUseReserve: Bool) throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        var configuration = LogConfiguration.small(segmentBytes: 400)
        configuration.compacts = true
        configuration.mayUseReserve = mayUseReserve
        let log = try Fixture.log(directory, configuration)
        for index in 0..<12 {
            try Fixture.append(log, Fixture.batch(bytes: 80, seed: UInt64(index), key: "k"))
        }
        func plan() throws -> CompactionPlan<SimulatedDisk>? {
            try log.planCompaction(now: Fixture.now, ceiling: log.flushedEndOffset, force: true)
        }
        let early = try #require(try plan())
        // Another partition finds the disk full before the pass has begun.
        let other = try Fixture.log(directory, partition: TopicPartition("orders", 1))
        disk.fail(.write, .noSpace)
        #expect(throws: (any Error).self) { try Fixture.append(other, Fixture.batch()) }
        #expect(directory.state != .ok)
        let error = #expect(throws: StorageError.self) { try early.run() }
        guard case .diskFull? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(!disk.files.contains { $0.hasSuffix(".cleaned") })
        log.abandonCompaction()
        #expect(try plan() == nil)
        directory.refreshDiskState()
        #expect(try plan() != nil)
    }
}
