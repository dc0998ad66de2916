import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct RetentionTests {
    private let minute: Int64 = 60_000

    private func log(
        _ disk: SimulatedDisk, milliseconds: Int64? = nil, bytes: Int? = nil
    ) throws -> SimulatedLog {
        var configuration = LogConfiguration.small(segmentBytes: 400)
        configuration.retentionMilliseconds = milliseconds
        configuration.retentionBytes = bytes
        return try Fixture.log(Fixture.directory(disk), configuration)
    }

    private func at(_ milliseconds: Int64) -> Timestamp {
        Timestamp(milliseconds: Fixture.now.rawValue + milliseconds)
    }

    private func apply(_ log: SimulatedLog, now: Timestamp, highWatermark: Offset? = nil) throws {
        if let work = try log.applyRetention(now: now, highWatermark: highWatermark ?? log.flushedEndOffset) {
            try work.run()
            try log.adoptLogStart(now: now)
        }
    }

    /// One batch a minute; two to a segment.
    private func fill(_ log: SimulatedLog, _ count: Int, timestamp: (Int64) -> Int64) throws {
        for index in 0..<Int64(count) {
            try Fixture.append(
                log, Fixture.batch(bytes: 100, seed: UInt64(index), timestamp: timestamp(index)),
                now: at(index * minute))
        }
    }

    @Test func `old segments go, young ones stay`() throws {
        let log = try log(SimulatedDisk(), milliseconds: 5 * minute)
        try fill(log, 10) { Fixture.now.rawValue + $0 * minute }
        try apply(log, now: at(9 * minute))
        #expect(log.logStartOffset == Offset(4))
        #expect(try Fixture.offsets(Fixture.readAll(log)) == Array(4..<10))
        #expect(throws: ReadError.offsetOutOfRange(start: Offset(4), end: Offset(10))) {
            try log.locate(from: Offset(3), upTo: Offset(10), maxBytes: 1, minOneBatch: true)
        }
    }

    @Test func `a record timestamp in the future does not pin a segment`() throws {
        let log = try log(SimulatedDisk(), milliseconds: 5 * minute)
        try fill(log, 10) { _ in Fixture.now.rawValue + 1_000_000 * minute }
        try apply(log, now: at(9 * minute))
        #expect(log.logStartOffset == Offset(4))
    }

    @Test func `nothing at or above the high watermark goes`() throws {
        let log = try log(SimulatedDisk(), milliseconds: 1)
        try fill(log, 10) { Fixture.now.rawValue + $0 * minute }
        try apply(log, now: at(10_000 * minute), highWatermark: Offset(5))
        #expect(log.logStartOffset == Offset(4))
    }

    @Test func `everything may go and the log end stays, also after a power cut`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk, milliseconds: minute)
        try fill(log, 10) { Fixture.now.rawValue + $0 * minute }
        try apply(log, now: at(10_000 * minute))
        #expect(log.logStartOffset == Offset(10))
        #expect(log.logEndOffset == Offset(10))
        for seed in 0..<20 as Range<UInt64> {
            let again = try self.log(disk.crashed(seed: seed), milliseconds: minute)
            #expect(again.logStartOffset == Offset(10), "image \(seed)")
            #expect(again.logEndOffset == Offset(10), "image \(seed)")
        }
        try Fixture.append(log, Fixture.batch(), now: at(10_001 * minute))
        #expect(try Fixture.offsets(Fixture.readAll(log)) == [10])
    }

    @Test func `size keeps at least what is allowed`() throws {
        let log = try log(SimulatedDisk(), bytes: 700)
        try fill(log, 10) { Fixture.now.rawValue + $0 * minute }
        try apply(log, now: at(10 * minute))
        #expect(log.byteCount >= 700)
        #expect(log.byteCount < 700 + 400)
    }

    @Test func `a log start that was told never falls, whatever the crash`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk)
        try fill(log, 10) { Fixture.now.rawValue + $0 * minute }
        let work = try #require(try log.deleteRecords(before: Offset(5), highWatermark: Offset(10)))
        #expect(log.logStartOffset == .zero, "not before it is durable")
        try work.run()
        try log.adoptLogStart(now: at(0))
        #expect(log.logStartOffset == Offset(5))
        for seed in 0..<20 as Range<UInt64> {
            let again = try self.log(disk.crashed(seed: seed))
            #expect(again.logStartOffset == Offset(5), "image \(seed)")
            #expect(again.logEndOffset == Offset(10), "image \(seed)")
        }
    }

    @Test func `records above the high watermark cannot be deleted`() throws {
        let log = try log(SimulatedDisk())
        try fill(log, 4) { Fixture.now.rawValue + $0 * minute }
        #expect(throws: ReadError.offsetOutOfRange(start: .zero, end: Offset(3))) {
            try log.deleteRecords(before: Offset(4), highWatermark: Offset(3))
        }
        #expect(try log.deleteRecords(before: .zero, highWatermark: Offset(3)) == nil)
    }

    @Test func `a follower's cut takes records, epochs and producers with it, for good`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk)
        for index in 0..<10 as Range<Int32> {
            try Fixture.append(log, Fixture.batch(bytes: 100, producer: (1, 0, index)), epoch: index / 3)
        }
        try log.truncate(to: Offset(5))
        #expect(log.logEndOffset == Offset(5))
        #expect(log.flushedEndOffset == Offset(5))
        #expect(log.leaderEpochs.latest == LeaderEpoch(1))
        #expect(log.producers.entries[1]?.lastSequence == 4)
        for seed in 0..<10 as Range<UInt64> {
            let again = try self.log(disk.crashed(seed: seed))
            #expect(again.logEndOffset == Offset(5))
        }
        try Fixture.append(log, Fixture.batch(bytes: 100, seed: 77, producer: (1, 0, 5)), epoch: 9)
        #expect(try Fixture.offsets(Fixture.readAll(log)) == Array(0..<6))
    }

    @Test func `a flipped bit in a time index does not make a segment old`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        var configuration = LogConfiguration.small(segmentBytes: 1000)
        configuration.retentionMilliseconds = 60 * minute
        let log = try Fixture.log(directory, configuration)
        disk.setTime(at(20 * minute).rawValue)
        try fill(log, 20) { Fixture.now.rawValue + $0 * minute }
        try Fixture.close(log, directory)
        for bit in 0..<8 {
            for byte in 0..<12 {
                let image = disk.crashed(seed: 1)
                let path = Fixture.logPath(0, "timeindex")
                let size = try #require(image.content(path)?.count)
                image.flip(path, byte: size - 12 + byte, bit: bit)
                let again = try Fixture.log(Fixture.directory(image), configuration)
                try apply(again, now: at(30 * minute))
                #expect(again.logStartOffset == .zero, "byte \(byte) bit \(bit)")
            }
        }
    }

    @Test func `a cut into a closed segment that is not flushed loses nothing written behind it`() throws {
        let disk = SimulatedDisk()
        var configuration = LogConfiguration.small(segmentBytes: 1000)
        configuration.preallocationStepBytes = 512
        configuration.preallocationThresholdBytes = 100
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        for index in 0..<6 { try Fixture.append(log, Fixture.batch(bytes: 150, seed: UInt64(index)), flush: false) }
        #expect(log.segmentCount > 1)
        try log.truncate(to: Offset(2))
        for index in 0..<2 { try Fixture.append(log, Fixture.batch(bytes: 180, seed: UInt64(100 + index)), flush: false) }
        try Fixture.flush(log)
        #expect(try Fixture.offsets(Fixture.readAll(log)) == Array(0..<4))
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), configuration)
        #expect(again.damage == nil)
        #expect(try Fixture.offsets(Fixture.readAll(again)) == Array(0..<4))
    }

    @Test func `a cut below the recovery point is no damage to the next start, whenever the crash comes`() throws {
        for stop in 0..<40 {
            let disk = SimulatedDisk()
            let directory = try Fixture.directory(disk)
            let log = try Fixture.log(directory, .small(segmentBytes: 400))
            // Three records to a batch: the cut falls inside one.
            for index in 0..<6 { try Fixture.append(log, Fixture.batch(count: 3, bytes: 20, seed: UInt64(index))) }
            try directory.writeCheckpoints()
            disk.stop(afterOperations: stop)
            let isDone = (try? log.truncate(to: Offset(7))) != nil
            for seed in 0..<5 as Range<UInt64> {
                let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), .small(segmentBytes: 400))
                #expect(again.damage == nil, "stop \(stop) image \(seed)")
                if isDone { #expect(again.logEndOffset == Offset(6)) }
            }
            if isDone { return }
        }
        Issue.record("the cut never finished")
    }

    @Test func `times are found after a cut`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), .small(segmentBytes: 1 << 20))
        func append(_ time: Int64) throws {
            try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(time), timestamp: time))
        }
        for index in 0..<20 as Range<Int64> { try append(1000 + index) }
        try log.truncate(to: Offset(10))
        for index in 0..<20 as Range<Int64> { try append(index == 5 ? 2000 : 900 + index) }
        #expect(try log.offset(for: Timestamp(milliseconds: 1005), upTo: log.logEndOffset)?.offset == Offset(5))
        #expect(try log.offset(for: Timestamp(milliseconds: 1010), upTo: log.logEndOffset)?.offset == Offset(15))
        #expect(try log.offset(for: Timestamp(milliseconds: 1500), upTo: log.logEndOffset)?.offset == Offset(15))
        #expect(try log.offsetOfMaxTimestamp(upTo: log.logEndOffset)?.offset == Offset(15))
    }

    @Test func `segments below a durable log start leave the log after a crash as well`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk)
        try fill(log, 10) { Fixture.now.rawValue + $0 * minute }
        #expect(log.segmentCount == 5)
        try #require(try log.deleteRecords(before: Offset(7), highWatermark: Offset(10))).run()
        for (seed, lost) in [(1, [0]), (1, [2]), (1, [0, 4]), (0, []), (7, [])] as [(UInt64, [Int64])] {
            // Between the new start and the renames, or amid these.
            let image = disk.crashed(seed: seed)
            for base in lost { try image.remove(Fixture.logPath(base)) }
            let again = try self.log(image)
            #expect(again.damage == nil)
            #expect(again.logStartOffset == Offset(7) && again.logEndOffset == Offset(10))
            #expect(again.segmentCount == 2, "\(lost)")
            try #require(again.purgeDeleted(now: at(1_000_000))).run()
            #expect(!image.files.contains(Fixture.logPath(2)) && !image.files.contains(Fixture.logPath(2, "log.deleted")))
            #expect(try Fixture.offsets(Fixture.readAll(again)).last == 9)
        }
    }
}
