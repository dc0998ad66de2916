import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct TransactionCompactionTests {
    private var configuration: LogConfiguration {
        var configuration = LogConfiguration.small(segmentBytes: 300)
        configuration.compacts = true
        configuration.deletesOld = false
        configuration.deleteRetentionMilliseconds = 1000
        return configuration
    }

    private func at(_ milliseconds: Int64) -> Timestamp {
        Timestamp(milliseconds: Fixture.now.rawValue + milliseconds)
    }

    @discardableResult
    private func compact(_ log: SimulatedLog, now: Timestamp) throws -> Bool {
        guard let plan = try log.planCompaction(now: now, ceiling: log.flushedEndOffset, force: true) else { return false }
        try log.installCompaction(try plan.run(), now: now)
        try Fixture.flush(log)
        return true
    }

    /// Closes the segment that is being written, so that it takes part.
    private func fill(_ log: SimulatedLog, _ number: Int) throws {
        for index in 0..<3 {
            try Fixture.append(log, Fixture.batch(bytes: 200, key: "filler\(number)-\(index)"))
        }
    }

    private func batches(_ log: SimulatedLog, of producer: Int64) throws -> [RecordBatchHeader] {
        try Fixture.readAll(log).map { try RecordBatchHeader(reading: $0) }.filter { $0.producerID == producer }
    }

    private func values(_ log: SimulatedLog, _ key: String) throws -> [String] {
        let visible = Set(try Fixture.visible(log, upTo: log.flushedEndOffset))
        var found: [String] = []
        for batch in try Fixture.readAll(log) where visible.contains(try RecordBatchHeader(reading: batch).baseOffset) {
            var records = try RecordIterator(batch)
            while let record = try records.next() {
                if record.key == ByteBuffer(string: key), let value = record.value { found.append(String(buffer: value)) }
            }
        }
        return found
    }

    @Test func `aborted records go, and supersede nothing`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration)
        try Fixture.append(log, Fixture.transactional((1, 0, 0), key: "k", value: "good"))
        try Fixture.mark(log, 1, 1, commits: true)
        try Fixture.append(log, Fixture.transactional((1, 1, 0), key: "k", value: "aborted"))
        try Fixture.mark(log, 1, 2, commits: false)
        try fill(log, 0)
        #expect(try compact(log, now: at(0)))
        #expect(try values(log, "k") == ["good"])
        #expect(try batches(log, of: 1).map(\.isControl) == [false, true, true])
        #expect(try Fixture.visible(log, upTo: log.flushedEndOffset).contains(0))
    }

    @Test func `nothing at or behind an open transaction is touched`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration)
        try Fixture.append(log, Fixture.batch(bytes: 200, key: "k"))
        try Fixture.append(log, Fixture.batch(bytes: 200, key: "k"))
        try Fixture.append(log, Fixture.transactional((1, 0, 0), bytes: 200, key: "k"))
        for index in 0..<4 { try Fixture.append(log, Fixture.batch(bytes: 200, seed: UInt64(index), key: "k")) }
        let before = try Fixture.offsets(Fixture.readAll(log, from: Offset(2)))
        try compact(log, now: at(0))
        #expect(try Fixture.offsets(Fixture.readAll(log, from: Offset(2))) == before)
        try Fixture.mark(log, 1, 1, commits: false)
        try fill(log, 0)
        try compact(log, now: at(1))
        #expect(try batches(log, of: 1).map(\.isControl) == [true])
    }

    @Test func `an abort marker outlives its records, then its index entry, then its retention`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        try Fixture.append(log, Fixture.transactional((1, 0, 0), key: "k", value: "aborted"))
        try Fixture.mark(log, 1, 1, commits: false)
        // The producer goes on, so that nothing of this transaction is kept for its sake.
        try Fixture.append(log, Fixture.transactional((1, 1, 0), key: "k", value: "good"))
        try Fixture.mark(log, 1, 2, commits: true)
        try fill(log, 0)
        func entries() throws -> Int { try log.abortedTransactions(from: .zero, upTo: log.flushedEndOffset).count }

        try compact(log, now: at(0))
        #expect(try batches(log, of: 1).map(\.baseOffset) == [1, 2, 3])
        #expect(try entries() == 1)
        #expect(try batches(log, of: 1)[0].hasDeleteHorizon == false)

        try compact(log, now: at(10))
        #expect(try batches(log, of: 1)[0].hasDeleteHorizon)
        #expect(try entries() == 0)
        #expect(try EndTransactionMarker(batch: Fixture.readAll(log)[0])?.commits == false)

        try compact(log, now: at(1009))
        #expect(try batches(log, of: 1).map(\.baseOffset) == [1, 2, 3])
        try compact(log, now: at(1010))
        #expect(try batches(log, of: 1).map(\.baseOffset) == [2, 3])
        #expect(try values(log, "k") == ["good"])
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), configuration)
        #expect(try again.abortedTransactions(from: .zero, upTo: again.logEndOffset).isEmpty)
        #expect(try values(again, "k") == ["good"])
    }

    @Test func `a commit marker goes when its transaction has no records left`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()), configuration)
        for round in 0..<3 as Range<Int16> {
            try Fixture.append(log, Fixture.transactional((1, round, 0), key: "k", value: "v\(round)"))
            try Fixture.mark(log, 1, round + 1, commits: true)
        }
        try fill(log, 0)
        for pass in 0..<4 as Range<Int64> { try compact(log, now: at(pass * 2000)) }
        #expect(try batches(log, of: 1).map(\.baseOffset) == [4, 5])
        #expect(try values(log, "k") == ["v2"])
    }

    @Test func `the last marker of a producer keeps its header, so its epoch stays known`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        try Fixture.append(log, Fixture.transactional((1, 0, 0), key: "k", value: "old"))
        try Fixture.mark(log, 1, 1, commits: false)
        try fill(log, 0)
        for pass in 0..<5 as Range<Int64> { try compact(log, now: at(pass * 2000)) }
        let left = try batches(log, of: 1)
        #expect(left.count == 1 && left[0].isControl && left[0].recordCount == 0 && left[0].producerEpoch == 1)
        let image = disk.crashed(seed: 0)
        for path in image.files where path.hasSuffix(".snapshot") { try image.remove(path) }
        let again = try Fixture.log(Fixture.directory(image), configuration)
        #expect(again.producers.entries[1]?.epoch == 1)
        #expect(again.producers.openTransactions.isEmpty)
        #expect(throws: AppendError.self) { try Fixture.stage(again, Fixture.transactional((1, 0, 1))) }
    }

    @Test func `the last batch of a producer is emptied only together with its marker's stay`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        // First protocol: the marker leaves the sequence, so the batch's header is kept for it.
        try Fixture.append(log, Fixture.transactional((1, 0, 0), key: "k", value: "aborted"))
        try Fixture.mark(log, 1, 0, commits: false, raisesEpoch: false)
        try fill(log, 0)
        for pass in 0..<5 as Range<Int64> { try compact(log, now: at(pass * 2000)) }
        #expect(try batches(log, of: 1).map(\.recordCount) == [0, 1])
        let image = disk.crashed(seed: 0)
        for path in image.files where path.hasSuffix(".snapshot") { try image.remove(path) }
        let again = try Fixture.log(Fixture.directory(image), configuration)
        #expect(again.producers.openTransactions.isEmpty, "an emptied batch must not look like an open transaction")
        #expect(again.producers.entries[1]?.lastSequence == 0)
    }

    @Test func `an old snapshot does not open a transaction again whose marker compaction took`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk), configuration)
        try Fixture.append(log, Fixture.transactional((1, 0, 0), key: "k", value: "old"))
        try fill(log, 0)
        try Fixture.mark(log, 1, 1, commits: true)
        try Fixture.append(log, Fixture.batch(bytes: 200, key: "k"))
        try fill(log, 1)
        for pass in 0..<5 as Range<Int64> { try compact(log, now: at(pass * 2000)) }
        #expect(try batches(log, of: 1).map(\.recordCount) == [0], "nothing but the marker's header is left")
        let image = disk.crashed(seed: 0)
        let snapshots = image.files.filter { $0.hasSuffix(".snapshot") }.sorted()
        // The newer ones are damaged.
        #expect(snapshots.count > 3)
        for path in snapshots.dropFirst(2) { try image.remove(path) }
        let again = try Fixture.log(Fixture.directory(image), configuration)
        #expect(again.producers.openTransactions.isEmpty)
        #expect(again.lastStableOffset(highWatermark: again.logEndOffset) == again.logEndOffset)
        #expect(again.producers.entries[1]?.epoch == 1)
    }

    @Test(arguments: 0..<12 as Range<UInt64>)
    func `what consumers are shown of each key is the same before and after any passes`(seed: UInt64) throws {
        var generator = SplitMix64(seed: seed)
        let disk = SimulatedDisk()
        var log = try Fixture.log(Fixture.directory(disk), configuration)
        var producers: [Int64: (epoch: Int16, sequence: Int32, isOpen: Bool)] = [:]
        var pending: [Int64: [String: String]] = [:]
        var expected: [String: String] = [:]
        var value = 0
        for step in 0..<160 {
            let id = Int64.random(in: 1...3, using: &generator)
            var producer = producers[id] ?? (0, 0, false)
            switch Int.random(in: 0..<10, using: &generator) {
            case 0..<6:
                value += 1
                let key = "k\(Int.random(in: 0..<5, using: &generator))"
                try Fixture.append(
                    log, Fixture.transactional((id, producer.epoch, producer.sequence), key: key, value: "v\(value)"))
                pending[id, default: [:]][key] = "v\(value)"
                producer.sequence += 1
                producer.isOpen = true
            case 6..<9 where producer.isOpen:
                let commits = Bool.random(using: &generator)
                producer = (producer.epoch + 1, 0, false)
                try Fixture.mark(log, id, producer.epoch, commits: commits)
                if commits {
                    // The newest record by offset wins, not the last to commit.
                    for (key, value) in pending[id] ?? [:] {
                        let old = expected[key].flatMap { Int($0.dropFirst()) } ?? -1
                        if (Int(value.dropFirst()) ?? -1) > old { expected[key] = value }
                    }
                }
                pending[id] = nil
            case 9:
                try compact(log, now: at(Int64(step) * 300))
                if Bool.random(using: &generator) {
                    log = try Fixture.log(Fixture.directory(disk.crashed(seed: generator.next() % 4)), configuration)
                    // The image is another disk: what follows is checked there and not carried on.
                    try check(log, expected, pending, seed)
                    return
                }
            case _: break
            }
            producers[id] = producer
        }
        try check(log, expected, pending, seed)
    }

    private func check(
        _ log: SimulatedLog, _ expected: [String: String], _ pending: [Int64: [String: String]], _ seed: UInt64
    ) throws {
        // End what is open, so that everything is decided.
        for id in pending.keys.sorted() where log.producers.entries[id]?.transactionFirstOffset != nil {
            try Fixture.mark(log, id, (log.producers.entries[id]?.epoch ?? 0) + 1, commits: false)
        }
        for (key, value) in expected { #expect(try values(log, key).last == value, "seed \(seed) key \(key)") }
        for key in 0..<5 where expected["k\(key)"] == nil { #expect(try values(log, "k\(key)").isEmpty, "seed \(seed)") }
    }
}
