import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct CompactionTests {
    private func configuration(segmentBytes: Int = 600) -> LogConfiguration {
        var configuration = LogConfiguration.small(segmentBytes: segmentBytes)
        configuration.compacts = true
        configuration.deletesOld = false
        configuration.deleteRetentionMilliseconds = 1000
        return configuration
    }

    private func at(_ milliseconds: Int64) -> Timestamp {
        Timestamp(milliseconds: Fixture.now.rawValue + milliseconds)
    }

    private func batch(
        _ records: [(String, String?)], codec: CompressionCodec = .none,
        producer: (id: Int64, epoch: Int16, sequence: Int32)? = nil
    ) throws -> ByteBuffer {
        var builder = RecordBatchBuilder()
        for (key, value) in records {
            try builder.append(
                key: ByteBuffer(string: key), value: value.map { ByteBuffer(string: $0) },
                headers: [RecordHeader(key: "h", value: ByteBuffer(string: key))], timestamp: Fixture.now.rawValue)
        }
        return try builder.build(
            RecordBatchBuilder.Options(
                codec: codec, producerID: producer?.id ?? -1, producerEpoch: producer?.epoch ?? -1,
                baseSequence: producer?.sequence ?? -1))
    }

    @discardableResult
    private func compact(_ log: SimulatedLog, now: Timestamp, keyLimit: Int = 1000) throws -> Bool {
        guard
            let plan = try log.planCompaction(
                now: now, ceiling: log.flushedEndOffset, force: true, keyLimit: keyLimit)
        else { return false }
        try log.installCompaction(try plan.run(), now: now)
        try Fixture.flush(log)
        return true
    }

    /// offset, key, value of every record.
    private func records(_ log: SimulatedLog) throws -> [(offset: Int64, key: String, value: String?)] {
        var found: [(Int64, String, String?)] = []
        for batch in try Fixture.readAll(log) {
            var iterator = try RecordIterator(batch)
            while let record = try iterator.next() {
                #expect(record.headers.first?.key == "h")
                found.append(
                    (
                        record.offset.rawValue, record.key.map { String(buffer: $0) } ?? "",
                        record.value.map { String(buffer: $0) }
                    ))
            }
        }
        return found
    }

    @Test(arguments: [CompressionCodec.none, .gzip])
    func `the newest record of every key stays at its offset, the active segment untouched`(
        codec: CompressionCodec
    ) throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration())
        var newest: [String: (Int64, String)] = [:]
        for index in 0..<60 {
            let keys = ["a\(index % 5)", "b\(index % 3)"]
            for (position, key) in keys.enumerated() { newest[key] = (Int64(index * 2 + position), "v\(index)") }
            try Fixture.append(log, batch(keys.map { ($0, "v\(index)") }, codec: codec))
        }
        let before = log.byteCount
        #expect(try compact(log, now: at(0)))
        #expect(log.byteCount < before)
        func check(_ log: SimulatedLog) throws {
            let found = try records(log)
            for (key, (offset, value)) in newest {
                let last = try #require(found.last { $0.key == key })
                #expect(last.offset == offset && last.value == value)
            }
            #expect(found.map(\.offset) == found.map(\.offset).sorted())
            // Every offset can be asked for, also those that are gone.
            for offset in 0..<120 as Range<Int64> {
                let region = try log.locate(from: Offset(offset), upTo: Offset(120), maxBytes: 1, minOneBatch: true)
                #expect(!region.isEmpty && region.nextOffset > Offset(offset), "offset \(offset)")
                let cold = try log.coldLocate(from: Offset(offset), upTo: Offset(120), maxBytes: 1, minOneBatch: true)
                #expect(try cold?.run().position == region.position)
            }
            #expect(try log.verify().findings.isEmpty)
        }
        try check(log)
        try compact(log, now: at(1))
        try check(log)
        for seed in 0..<5 as Range<UInt64> {
            let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), configuration())
            #expect(again.damage == nil)
            try check(again)
        }
        #expect(try Fixture.append(log, batch([("z", "1")])) == .staged(base: Offset(120), last: Offset(120), appendTimestamp: nil))
    }

    @Test func `a tombstone stays for delete.retention.ms after the pass that saw it, then goes`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration(segmentBytes: 300))
        try Fixture.append(log, batch([("k", "old")]))
        try Fixture.append(log, batch([("k", nil)]))
        for index in 0..<4 { try Fixture.append(log, batch([("filler\(index)", String(repeating: "x", count: 200))])) }
        try compact(log, now: at(0))
        #expect(try records(log).filter { $0.key == "k" }.map(\.value) == [nil])
        let marked = try #require(try Fixture.readAll(log).first)
        #expect(try RecordBatchHeader(reading: marked).hasDeleteHorizon)
        #expect(try RecordBatchHeader(reading: marked).baseTimestamp == at(1000).rawValue)
        try compact(log, now: at(999))
        #expect(try records(log).contains { $0.key == "k" })
        try compact(log, now: at(1000))
        #expect(try !records(log).contains { $0.key == "k" })
    }

    /// A tombstone goes in the belief that an earlier pass has taken what it hides. When a kill came behind that pass,
    /// the names it gave are in memory only, and a power cut keeps any of them.
    @Test func `a deleted key stays deleted when a kill and a power cut follow two passes`() throws {
        var configuration = configuration()
        configuration.segmentMilliseconds = 1000
        configuration.deleteRetentionMilliseconds = 0
        for seed in 0..<40 as Range<UInt64> {
            let disk = SimulatedDisk()
            var directory = try Fixture.directory(disk)
            var log = try Fixture.log(directory, configuration)
            for (index, value) in (["old", nil, "other"] as [String?]).enumerated() {
                try Fixture.append(log, try batch([(index == 2 ? "b" : "a", value)]), now: at(Int64(index) * 2000))
            }
            try Fixture.flush(log)
            try directory.writeCheckpoints()
            #expect(log.segmentCount == 3)
            let first = try #require(
                try log.planCompaction(now: at(10_000), ceiling: log.flushedEndOffset, force: true))
            try log.installCompaction(try first.run(), now: at(10_000))
            disk.processEnded()

            directory = try Fixture.directory(disk)
            log = try Fixture.log(directory, configuration, now: at(20_000))
            let second = try #require(
                try log.planCompaction(now: at(20_000), ceiling: log.flushedEndOffset, force: true))
            try log.installCompaction(try second.run(), now: at(20_000))
            #expect(try records(log).map(\.key) == ["b"])

            let recovered = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), configuration)
            let left = try records(recovered).map(\.value)
            #expect(!left.contains("old") || left.contains(nil), "image \(seed): \(left)")
        }
    }

    @Test func `a producer's last batch keeps its header, so its next sequence is known`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration(segmentBytes: 300))
        try Fixture.append(log, batch([("k", "1"), ("k", "2")], producer: (5, 0, 0)))
        for index in 0..<6 { try Fixture.append(log, batch([("k", "v\(index)" + String(repeating: "x", count: 150))])) }
        try compact(log, now: at(0))
        let header = try RecordBatchHeader(reading: try #require(try Fixture.readAll(log).first))
        #expect(header.producerID == 5 && header.recordCount == 0 && header.lastOffset == 1)
        // Without any snapshot the state comes from that header.
        let image = disk.crashed(seed: 0)
        for path in image.files where path.hasSuffix(".snapshot") { try image.remove(path) }
        let again = try Fixture.log(Fixture.directory(image), configuration(segmentBytes: 300))
        #expect(again.producers.entries[5]?.lastSequence == 1)
    }

    @Test func `more keys than fit are compacted in several passes`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration())
        for round in 0..<4 {
            for key in 0..<20 { try Fixture.append(log, batch([("k\(key)", "r\(round)")])) }
        }
        var passes = 0
        while try compact(log, now: at(0), keyLimit: 7), passes < 40 { passes += 1 }
        let found = try records(log)
        for key in 0..<20 { #expect(found.last { $0.key == "k\(key)" }?.value == "r3") }
        #expect(found.count < 40)
    }

    @Test func `nothing is planned when little is dirty, above the ceiling or while a pass runs`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration(segmentBytes: 300))
        for index in 0..<20 { try Fixture.append(log, batch([("k\(index % 2)", "v\(index)")])) }
        #expect(try log.planCompaction(now: at(0), ceiling: Offset(1)) == nil)
        let plan = try #require(try log.planCompaction(now: at(0), ceiling: Offset(20)))
        #expect(try log.planCompaction(now: at(0), ceiling: Offset(20)) == nil)
        try log.installCompaction(try plan.run(), now: at(0))
        #expect(try log.planCompaction(now: at(0), ceiling: Offset(20), force: true) == nil, "renames not flushed")
        try Fixture.flush(log)
        #expect(try log.planCompaction(now: at(0), ceiling: Offset(20)) == nil, "nothing is dirty")
    }

    @Test func `a log that was closed and is opened again goes on behind what was compacted`() throws {
        let directory = try Fixture.directory(SimulatedDisk())
        let configuration = configuration(segmentBytes: 300)
        let first = try Fixture.log(directory, configuration)
        for index in 0..<20 { try Fixture.append(first, batch([("k\(index % 2)", "v\(index)")])) }
        #expect(try compact(first, now: at(0)))
        try first.close(clean: true)
        let second = try Fixture.log(directory, configuration)
        // What was the active segment is the rest: too little.
        #expect(try second.planCompaction(now: at(0), ceiling: second.flushedEndOffset) == nil)
        for index in 0..<20 { try Fixture.append(second, batch([("k\(index % 2)", "w\(index)")])) }
        #expect(try compact(second, now: at(0)))
        #expect(try records(second).filter { $0.key == "k0" }.count < 4)
        #expect(try records(second).last { $0.key == "k0" }?.value == "w18")
    }

    @Test func `what waited for max.compaction.lag.ms is compacted, however little of it there is`() throws {
        var configuration = configuration(segmentBytes: 300)
        configuration.minimumCleanableRatio = 1
        configuration.maximumCompactionLagMilliseconds = 5_000
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration)
        for index in 0..<20 { try Fixture.append(log, batch([("k\(index)", "old")])) }
        try compact(log, now: at(0))
        for index in 0..<8 { try Fixture.append(log, batch([("k\(index)", "new")]), now: at(1_000)) }
        // The oldest of what is left was the newest of the first pass's active segment.
        #expect(try log.planCompaction(now: at(4_999), ceiling: Offset(28)) == nil)
        #expect(try log.planCompaction(now: at(5_000), ceiling: Offset(28)) != nil)
    }

    @Test func `half-done files of a pass are cleared away at the next start`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration(segmentBytes: 300))
        for index in 0..<20 { try Fixture.append(log, batch([("k\(index % 2)", "v\(index)")])) }
        let plan = try #require(try log.planCompaction(now: at(0), ceiling: Offset(20)))
        _ = try plan.run()
        #expect(disk.files.contains { $0.hasSuffix(".cleaned") })
        let image = disk.crashed(seed: 1)
        let again = try Fixture.log(Fixture.directory(image), configuration(segmentBytes: 300))
        #expect(!image.files.contains { $0.hasSuffix(".cleaned") })
        #expect(try records(again).count == 20)
    }

    @Test func `compaction's gaps are no damage, also to a tool that does not know the topic's settings`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration(segmentBytes: 300))
        for index in 0..<30 { try Fixture.append(log, batch([("k\(index % 2)", "v\(index)")])) }
        try compact(log, now: at(0))
        for seed in 0..<6 as Range<UInt64> {
            let again = try Fixture.log(Fixture.directory(disk.crashed(seed: seed)), LogConfiguration())
            #expect(again.damage == nil)
            #expect(again.logEndOffset == Offset(30))
            #expect(try again.verify().findings.isEmpty)
        }
        // A gap elsewhere is damage: take a segment away behind what was compacted.
        for index in 30..<60 { try Fixture.append(log, batch([("k\(index % 2)", "v\(index)")])) }
        let image = disk.crashed(seed: 0)
        let files = image.files.filter { $0.hasSuffix(".log") }
        try image.remove(files[files.count - 3])
        let broken = try Fixture.log(Fixture.directory(image), configuration(segmentBytes: 300))
        #expect(broken.damage != nil)
    }

    @Test func `a damaged segment stops the pass and is left as it is`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration(segmentBytes: 300))
        for index in 0..<20 { try Fixture.append(log, batch([("k\(index % 2)", "v\(index)")])) }
        disk.flip(Fixture.logPath(0), byte: 80, bit: 2)
        let plan = try #require(try log.planCompaction(now: at(0), ceiling: Offset(20)))
        #expect(throws: StorageError.self) { try plan.run() }
        log.abandonCompaction()
        #expect(log.segmentCount > 3)
    }

    @Test func `cold reads cross a compacted gap also when the topic is compacted no more`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, configuration())
        // Every second batch is superseded, also the last one of a segment.
        for index in 0..<23 { try Fixture.append(log, try batch([(index % 2 == 0 ? "v\(index)" : "k", "\(index)")])) }
        #expect(try compact(log, now: at(0)))
        log.configuration.compacts = false
        var offset = Offset.zero
        var bases: [Int64] = []
        while offset < log.logEndOffset {
            let cold = try #require(
                try log.coldLocate(from: offset, upTo: log.logEndOffset, maxBytes: 1, minOneBatch: true))
            let region = try cold.run()
            #expect(!region.isEmpty, "at \(offset)")
            if region.isEmpty { return }
            bases.append(region.baseOffset.rawValue)
            var bytes = ByteBuffer()
            _ = try log.read(region, into: &bytes, nonBlocking: false)
            // As consumers do.
            offset = Offset(try RecordBatchHeader(reading: bytes).lastOffset + 1)
        }
        #expect(bases == (try Fixture.offsets(Fixture.readAll(log, step: 1))))
    }
}
