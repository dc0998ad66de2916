import MartletLogModel
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

/// Zeros written ahead of appends that are flushed one by one.
@Suite struct RoomTests {
    private static let batchBytes = Fixture.batch().readableBytes
    private static let threshold = LogConfiguration().roomThreshold

    private func fileSize(_ disk: SimulatedDisk, _ base: Int64 = 0) -> Int {
        disk.content(Fixture.logPath(base))?.count ?? -1
    }

    private func check(_ log: SimulatedLog, has count: Int) throws {
        #expect(try Fixture.offsets(Fixture.readAll(log)) == (0..<count).map { Int64($0) })
    }

    /// A log with room, and how many batches it has.
    private func logWithRoom(
        _ disk: SimulatedDisk, _ configuration: LogConfiguration = LogConfiguration()
    ) throws -> (log: SimulatedLog, directory: SimulatedDirectory, count: Int) {
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, configuration)
        let count = Self.threshold + 3
        for _ in 0..<count { try Fixture.append(log, Fixture.batch()) }
        try #require(fileSize(disk) > count * Self.batchBytes, "no room was made")
        return (log, directory, count)
    }

    @Test func `appends that are flushed one by one get room, whose bytes nobody sees`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        for count in 1...200 {
            try Fixture.append(log, Fixture.batch())
            let size = fileSize(disk)
            if count <= Self.threshold {
                #expect(size == count * Self.batchBytes)
            } else {
                #expect(size % 4096 == 0)
                #expect(size > count * Self.batchBytes)
                // Never more than as much again, or a page.
                #expect(size <= max(2 * count * Self.batchBytes, count * Self.batchBytes + 4096))
            }
        }
        #expect(log.byteCount == 200 * Self.batchBytes)
        try check(log, has: 200)
        // Within its room the file does not change its size.
        let before = fileSize(disk)
        try Fixture.append(log, Fixture.batch())
        #expect(fileSize(disk) == before)
    }

    @Test func `room is given up as soon as two batches are unflushed`() throws {
        let disk = SimulatedDisk()
        let (log, _, count) = try logWithRoom(disk)
        // One in the room, and the next before it is flushed.
        try Fixture.append(log, Fixture.batch(), flush: false)
        #expect(fileSize(disk) > (count + 1) * Self.batchBytes)
        try Fixture.append(log, Fixture.batch(), flush: false)
        #expect(fileSize(disk) == (count + 2) * Self.batchBytes)
        try Fixture.flush(log)
        try check(log, has: count + 2)
    }

    @Test func `room is given up for several batches of one turn and for a large one`() throws {
        for isLarge in [false, true] {
            let disk = SimulatedDisk()
            let (log, _, count) = try logWithRoom(disk)
            let batch = isLarge ? Fixture.batch(bytes: 20_000) : Fixture.batch()
            let more = isLarge ? 1 : 3
            for _ in 0..<more { _ = try Fixture.stage(log, batch) }
            try log.writeStaged()
            #expect(fileSize(disk) == count * Self.batchBytes + more * batch.readableBytes)
            try Fixture.flush(log)
            try check(log, has: count + more)
        }
    }

    @Test func `a crash leaves room that the next start cuts off without a word`() throws {
        for seed in [0, 1] as [UInt64] {
            let disk = SimulatedDisk()
            let (_, _, count) = try logWithRoom(disk)
            let image = disk.crashed(seed: seed)
            let log = try Fixture.log(Fixture.directory(image))
            #expect(log.recovery.wasChecked)
            #expect(!log.recovery.isNoteworthy)
            #expect(log.damage == nil)
            #expect(fileSize(image) == count * Self.batchBytes)
            #expect(image.files.allSatisfy { !$0.contains("quarantine") })
            try check(log, has: count)
        }
    }

    @Test func `a torn batch in room is a torn tail`() throws {
        let disk = SimulatedDisk()
        let (log, _, count) = try logWithRoom(disk)
        try Fixture.append(log, Fixture.batch(), flush: false)
        let image = disk.crashed(seed: 1)
        // Its first bytes never reached the disk.
        var bytes = try #require(image.content(Fixture.logPath(0)))
        for index in 0..<30 { bytes[count * Self.batchBytes + index] = 0 }
        image.setContent(Fixture.logPath(0), bytes)
        let again = try Fixture.log(Fixture.directory(image))
        #expect(again.damage == nil)
        #expect(again.recovery.truncatedBytes > 0)
        try check(again, has: count)
    }

    @Test func `zeros where flushed batches were are damage, not room`() throws {
        let disk = SimulatedDisk()
        let (log, directory, count) = try logWithRoom(disk)
        try directory.writeCheckpoints()
        let image = disk.crashed(seed: 1)
        var bytes = try #require(image.content(Fixture.logPath(0)))
        for index in (count - 1) * Self.batchBytes..<bytes.count { bytes[index] = 0 }
        image.setContent(Fixture.logPath(0), bytes)
        let again = try Fixture.log(Fixture.directory(image))
        #expect(again.damage != nil)
        #expect(log.flushedEndOffset == Offset(Int64(count)))
    }

    @Test func `a closed segment has no room once it is flushed, even if its file was let go before`() throws {
        for releases in [false, true] {
            let disk = SimulatedDisk()
            var configuration = LogConfiguration()
            configuration.segmentMilliseconds = 1000
            let (log, _, count) = try logWithRoom(disk, configuration)
            if releases { log.releaseIdle() }
            let later = Timestamp(milliseconds: Fixture.now.rawValue + 2000)
            try Fixture.append(log, Fixture.batch(), now: later)
            #expect(log.segmentCount == 2)
            #expect(fileSize(disk) == count * Self.batchBytes)
            // The same by the clock alone.
            for _ in 0...Self.threshold { try Fixture.append(log, Fixture.batch(), now: later) }
            #expect(fileSize(disk, Int64(count)) > (Self.threshold + 2) * Self.batchBytes)
            if releases { log.releaseIdle() }
            try log.tick(now: Timestamp(milliseconds: later.rawValue + 2000))
            try Fixture.flush(log)
            #expect(fileSize(disk, Int64(count)) == (Self.threshold + 2) * Self.batchBytes)
            try check(log, has: count + Self.threshold + 2)
        }
    }

    @Test func `a crash between the roll and the cut of the room leaves a whole log`() throws {
        for hasCheckpoint in [false, true] {
            let disk = SimulatedDisk()
            var configuration = LogConfiguration()
            configuration.segmentMilliseconds = 1000
            let (log, directory, count) = try logWithRoom(disk, configuration)
            // The recovery point is then exactly where the next segment will begin.
            if hasCheckpoint { try directory.writeCheckpoints() }
            let later = Timestamp(milliseconds: Fixture.now.rawValue + 2000)
            try Fixture.append(log, Fixture.batch(), now: later, flush: false)
            #expect(fileSize(disk) > count * Self.batchBytes)
            let image = disk.crashed(seed: 1)
            let again = try Fixture.log(Fixture.directory(image), configuration)
            #expect(again.damage == nil)
            #expect(!again.recovery.isNoteworthy)
            #expect(fileSize(image) == count * Self.batchBytes)
            try check(again, has: count + 1)
        }
    }

    @Test func `a segment that a cut makes active again is not cut to the size it was closed with`() throws {
        let disk = SimulatedDisk()
        var configuration = LogConfiguration()
        configuration.segmentMilliseconds = 1000
        let (log, _, count) = try logWithRoom(disk, configuration)
        let later = Timestamp(milliseconds: Fixture.now.rawValue + 2000)
        try Fixture.append(log, Fixture.batch(), now: later, flush: false)
        try log.truncate(to: Offset(Int64(count - 2)))
        #expect(log.segmentCount == 1)
        for _ in 0..<5 { try Fixture.append(log, Fixture.batch(), flush: false) }
        try Fixture.flush(log)
        try check(log, has: count + 3)
        try check(Fixture.log(Fixture.directory(disk.crashed(seed: 0)), configuration), has: count + 3)
    }

    @Test func `a clean stop leaves no room`() throws {
        let disk = SimulatedDisk()
        let (log, directory, count) = try logWithRoom(disk)
        try Fixture.close(log, directory)
        #expect(fileSize(disk) == count * Self.batchBytes)
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)))
        #expect(!again.recovery.wasChecked)
        try check(again, has: count)
    }

    @Test func `no space for room does not refuse the batch`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        for _ in 0..<Self.threshold { try Fixture.append(log, Fixture.batch()) }
        disk.fail(.write, .noSpace)
        try Fixture.append(log, Fixture.batch())
        #expect(directory.state == .ok)
        #expect(fileSize(disk) == (Self.threshold + 1) * Self.batchBytes)
        try check(log, has: Self.threshold + 1)
    }
}
