import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

extension Fixture {
    /// A transactional batch.
    static func transactional(
        _ producer: (id: Int64, epoch: Int16, sequence: Int32), count: Int = 1, bytes: Int = 20, seed: UInt64 = 1,
        key: String? = nil, value: String? = nil
    ) -> ByteBuffer {
        var generator = SplitMix64(seed: seed)
        var builder = RecordBatchBuilder()
        do {
            for _ in 0..<count {
                var bytesLeft = ByteBuffer(repeating: UInt8(truncatingIfNeeded: generator.next()), count: bytes)
                if let value { bytesLeft = ByteBuffer(string: value) }
                try builder.append(
                    key: key.map { ByteBuffer(string: $0) }, value: bytesLeft, timestamp: now.rawValue)
            }
            return try builder.build(
                RecordBatchBuilder.Options(
                    producerID: producer.id, producerEpoch: producer.epoch, baseSequence: producer.sequence,
                    isTransactional: true))
        } catch {
            preconditionFailure("the fixture cannot build a batch: \(error)")
        }
    }

    @discardableResult
    static func mark(
        _ log: SimulatedLog, _ id: Int64, _ epoch: Int16, commits: Bool, coordinatorEpoch: Int32 = 0,
        raisesEpoch: Bool = true, flush: Bool = true, now: Timestamp = now
    ) throws -> AppendOutcome {
        let outcome = try log.stageMarker(
            MarkerAppend(
                producerID: id, producerEpoch: epoch, commits: commits, coordinatorEpoch: coordinatorEpoch,
                raisesEpoch: raisesEpoch), leaderEpoch: LeaderEpoch(0), now: now)
        try log.writeStaged()
        if flush { try self.flush(log) }
        return outcome
    }

    /// What a consumer with read_committed is shown of the batches up to `end`, as clients work it out: base
    /// offsets of batches with visible records.
    static func visible(_ log: SimulatedLog, from: Offset? = nil, upTo end: Offset, step: Int = 1 << 20) throws
        -> [Int64]
    {
        var offset = from ?? log.logStartOffset
        var found: [Int64] = []
        while offset < end {
            let region = try log.locate(from: offset, upTo: end, maxBytes: step, minOneBatch: true)
            if region.isEmpty { break }
            var pending = try log.abortedTransactions(from: offset, upTo: region.nextOffset)
                .sorted { $0.firstOffset < $1.firstOffset }[...]
            var hidden: Set<Int64> = []
            var bytes = ByteBuffer()
            _ = try log.read(region, into: &bytes, nonBlocking: false)
            while bytes.readableBytes > 0 {
                let header = try RecordBatchHeader(reading: bytes)
                let slice = bytes.readSlice(length: header.totalByteCount)
                let batch = try #require(slice)
                while let first = pending.first, first.firstOffset.rawValue <= header.lastOffset {
                    hidden.insert(first.producerID)
                    pending.removeFirst()
                }
                if header.isControl {
                    if try EndTransactionMarker(batch: batch)?.commits == false { hidden.remove(header.producerID) }
                } else if header.recordCount > 0, !(header.isTransactional && hidden.contains(header.producerID)) {
                    found.append(header.baseOffset)
                }
            }
            offset = region.nextOffset
        }
        return found
    }

    /// The same from the markers alone.
    static func committed(_ log: SimulatedLog, upTo end: Offset) throws -> [Int64] {
        var open: [Int64: [Int64]] = [:]
        var found: [Int64] = []
        for batch in try readAll(log) {
            let header = try RecordBatchHeader(reading: batch)
            if header.isControl {
                if let marker = try EndTransactionMarker(batch: batch), marker.commits {
                    found += open[header.producerID] ?? []
                }
                open[header.producerID] = nil
            } else if header.isTransactional {
                open[header.producerID, default: []].append(header.baseOffset)
            } else {
                found.append(header.baseOffset)
            }
        }
        return found.filter { $0 < end.rawValue }.sorted()
    }
}

@Suite struct TransactionLogTests {
    private func log(_ disk: SimulatedDisk = SimulatedDisk(), segmentBytes: Int = 1 << 20) throws -> SimulatedLog {
        try Fixture.log(Fixture.directory(disk), .small(segmentBytes: segmentBytes))
    }

    private func stable(_ log: SimulatedLog) -> Int64 {
        log.lastStableOffset(highWatermark: log.flushedEndOffset).rawValue
    }

    @Test func `the last stable offset waits for the oldest transaction, and for its marker to be safe`() throws {
        let log = try log()
        try Fixture.append(log, Fixture.batch(count: 2))
        #expect(stable(log) == 2)
        try Fixture.append(log, Fixture.transactional((1, 0, 0), count: 3))
        try Fixture.append(log, Fixture.transactional((2, 0, 0)))
        try Fixture.append(log, Fixture.batch())
        #expect(stable(log) == 2)
        try Fixture.mark(log, 2, 1, commits: true)
        #expect(stable(log) == 2, "an older transaction is open")
        try Fixture.mark(log, 1, 1, commits: false, flush: false)
        #expect(log.lastStableOffset(highWatermark: Offset(8)) == Offset(2), "the marker is not below the mark")
        try Fixture.flush(log)
        #expect(stable(log) == 9)
        #expect(log.lastStableOffset(highWatermark: Offset(9)) == Offset(9))
    }

    @Test func `a late Produce of an earlier transaction never touches a later one`() throws {
        let log = try log()
        try Fixture.append(log, Fixture.transactional((1, 4, 0)))
        try Fixture.mark(log, 1, 5, commits: true)
        // The next transaction of the same producer is open; what was sent in the one before comes now.
        try Fixture.append(log, Fixture.transactional((1, 5, 0)))
        #expect(throws: AppendError.invalidProducerEpoch(ProducerID(1), current: 5, found: 4)) {
            try Fixture.stage(log, Fixture.transactional((1, 4, 1)))
        }
        try Fixture.mark(log, 1, 6, commits: false)
        // And with none open it does not begin one that nobody would end.
        #expect(throws: AppendError.invalidProducerEpoch(ProducerID(1), current: 6, found: 5)) {
            try Fixture.stage(log, Fixture.transactional((1, 5, 1)))
        }
        #expect(log.producers.openTransactions.isEmpty)
    }

    @Test func `a late marker of an earlier transaction never ends a later one`() throws {
        let log = try log()
        try Fixture.append(log, Fixture.transactional((1, 4, 0)))
        try Fixture.mark(log, 1, 5, commits: true)
        // A repeat of the same marker is harmless while nothing is open.
        try Fixture.mark(log, 1, 5, commits: true)
        try Fixture.append(log, Fixture.transactional((1, 5, 0)))
        #expect(throws: AppendError.invalidProducerEpoch(ProducerID(1), current: 5, found: 5)) {
            try Fixture.mark(log, 1, 5, commits: true)
        }
        #expect(log.producers.openTransactions.map(\.producerID) == [1])
        #expect(throws: AppendError.invalidProducerEpoch(ProducerID(1), current: 5, found: 4)) {
            try Fixture.mark(log, 1, 4, commits: true, raisesEpoch: false)
        }
        try Fixture.mark(log, 1, 6, commits: false)
        #expect(log.producers.openTransactions.isEmpty)
    }

    @Test func `markers of the first protocol carry the epoch of the records`() throws {
        let log = try log()
        for round in 0..<3 as Range<Int32> {
            try Fixture.append(log, Fixture.transactional((1, 4, round)))
            try Fixture.mark(log, 1, 4, commits: true, raisesEpoch: false)
        }
        #expect(log.producers.entries[1]?.lastSequence == 2)
        #expect(stable(log) == 6)
    }

    @Test func `a marker of a coordinator that has been replaced is refused`() throws {
        let log = try log()
        try Fixture.append(log, Fixture.transactional((1, 0, 0)))
        try Fixture.mark(log, 1, 1, commits: true, coordinatorEpoch: 7)
        try Fixture.append(log, Fixture.transactional((1, 1, 0)))
        #expect(throws: AppendError.coordinatorFenced(ProducerID(1), current: 7, found: 6)) {
            try Fixture.mark(log, 1, 2, commits: true, coordinatorEpoch: 6)
        }
        #expect(AppendError.coordinatorFenced(ProducerID(1), current: 7, found: 6).errorCode == .transactionCoordinatorFenced)
    }

    @Test func `a batch outside of transactions is refused while its producer has one open`() throws {
        let log = try log()
        try Fixture.append(log, Fixture.transactional((1, 0, 0)))
        #expect(throws: AppendError.outsideTransaction(ProducerID(1))) {
            try Fixture.stage(log, Fixture.batch(producer: (1, 0, 1)))
        }
        #expect(AppendError.outsideTransaction(ProducerID(1)).errorCode == .invalidTxnState)
    }

    @Test func `what the broker writes for a producer has no sequence but is fenced like all`() throws {
        let log = try log()
        func append(epoch: Int16) throws {
            var batch = Fixture.transactional((1, epoch, 0))
            let outcome = try log.stage(
                &batch, header: try RecordBatchHeader(reading: batch), leaderEpoch: LeaderEpoch(0), now: Fixture.now,
                checksSequence: false)
            if case .duplicate = outcome { Issue.record("taken for a repeat") }
            try log.writeStaged()
            try Fixture.flush(log)
        }
        try append(epoch: 0)
        try append(epoch: 0)
        try Fixture.mark(log, 1, 1, commits: true)
        try append(epoch: 1)
        #expect(throws: AppendError.self) { try append(epoch: 0) }
        #expect(log.logEndOffset == Offset(4))
    }

    @Test func `a marker without records here fences and hides nothing`() throws {
        let log = try log()
        try Fixture.mark(log, 1, 3, commits: false)
        #expect(stable(log) == 1)
        #expect(try log.abortedTransactions(from: .zero, upTo: Offset(1)).isEmpty)
        #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.transactional((1, 2, 0))) }
    }

    @Test func `aborted transactions are found by the range they touch`() throws {
        let log = try log()
        try Fixture.append(log, Fixture.transactional((1, 0, 0), count: 2))  // 0, 1
        try Fixture.append(log, Fixture.transactional((2, 0, 0), count: 2))  // 2, 3
        try Fixture.mark(log, 2, 1, commits: false)  // 4
        try Fixture.append(log, Fixture.transactional((3, 0, 0)))  // 5
        try Fixture.mark(log, 3, 1, commits: true)  // 6
        try Fixture.mark(log, 1, 1, commits: false)  // 7
        try Fixture.append(log, Fixture.batch())  // 8
        let first = AbortedTransaction(
            producerID: 1, firstOffset: Offset(0), lastOffset: Offset(7), lastStableOffset: Offset(8))
        let second = AbortedTransaction(
            producerID: 2, firstOffset: Offset(2), lastOffset: Offset(4), lastStableOffset: Offset(0))
        #expect(try log.abortedTransactions(from: Offset(0), upTo: Offset(9)) == [second, first])
        #expect(try log.abortedTransactions(from: Offset(0), upTo: Offset(2)) == [first])
        #expect(try log.abortedTransactions(from: Offset(5), upTo: Offset(6)) == [first])
        #expect(try log.abortedTransactions(from: Offset(8), upTo: Offset(9)) == [])
        #expect(try Fixture.visible(log, upTo: Offset(9)) == [5, 8])
    }

    @Test func `the index file has Kafka's bytes`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk)
        try Fixture.append(log, Fixture.transactional((0x0102, 0, 0)))
        try Fixture.mark(log, 0x0102, 1, commits: false)
        let bytes = try #require(disk.content(Fixture.logPath(0, "txnindex")))
        #expect(
            Array(bytes)
                == [0, 0] + [0, 0, 0, 0, 0, 0, 1, 2] + [UInt8](repeating: 0, count: 8) + [0, 0, 0, 0, 0, 0, 0, 1]
                + [0, 0, 0, 0, 0, 0, 0, 2])
    }

    @Test func `a marker has Kafka's bytes`() throws {
        let marker = EndTransactionMarker(commits: true, coordinatorEpoch: 0x0304)
        let batch = try marker.batch(producerID: 5, producerEpoch: 6, timestamp: 7)
        let header = try RecordBatchValidator.checkHeader(batch, limits: .stored)
        #expect(header.isControl && header.isTransactional && header.baseSequence == -1 && header.recordCount == 1)
        var records = try RecordIterator(batch)
        let record = try #require(try records.next())
        #expect(record.key.map { Array($0.readableBytesView) } == [0, 0, 0, 1])
        #expect(record.value.map { Array($0.readableBytesView) } == [0, 0, 0, 0, 3, 4])
        #expect(try EndTransactionMarker(batch: batch) == marker)
        #expect(try EndTransactionMarker(batch: Fixture.batch(key: "k")) == nil)
    }

    @Test func `everything is as before after a clean restart, and after a crash`() throws {
        for clean in [true, false] {
            let disk = SimulatedDisk()
            var directory = try Fixture.directory(disk)
            var log = try Fixture.log(directory, .small(segmentBytes: 400))
            var model: [AbortedTransaction] = []
            for round in 0..<12 as Range<Int16> {
                try Fixture.append(log, Fixture.transactional((1, round, 0), bytes: 60))
                try Fixture.append(log, Fixture.transactional((2, round, 0), bytes: 60))
                try Fixture.mark(log, 1, round + 1, commits: round % 3 == 0)
                try Fixture.mark(log, 2, round + 1, commits: round % 2 == 0)
            }
            try Fixture.append(log, Fixture.transactional((3, 0, 0)))
            model = try log.abortedTransactions(from: .zero, upTo: log.logEndOffset)
            #expect(model.count == 8 + 6 && log.segmentCount > 4)
            let stableBefore = stable(log)
            let entries = log.producers.entries
            if clean {
                try Fixture.close(log, directory)
                directory = try Fixture.directory(disk)
            } else {
                try directory.writeCheckpoints()
                try Fixture.append(log, Fixture.transactional((2, 12, 0)))
                try Fixture.mark(log, 2, 13, commits: false)
                model = try log.abortedTransactions(from: .zero, upTo: log.logEndOffset)
                directory = try Fixture.directory(disk.crashed(seed: 1))
            }
            log = try Fixture.log(directory, .small(segmentBytes: 400))
            #expect(try log.abortedTransactions(from: .zero, upTo: log.logEndOffset) == model)
            #expect(stable(log) == stableBefore)
            if clean { #expect(log.producers.entries == entries) }
            #expect(log.producers.openTransactions.map(\.producerID) == [3])
            #expect(try Fixture.visible(log, upTo: Offset(stableBefore)) == Fixture.committed(log, upTo: Offset(stableBefore)))
        }
    }

    @Test func `a damaged index file is made anew from the log`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 400))
        for round in 0..<10 as Range<Int16> {
            try Fixture.append(log, Fixture.transactional((1, round, 0), bytes: 60))
            try Fixture.mark(log, 1, round + 1, commits: round % 2 == 0)
        }
        let model = try log.abortedTransactions(from: .zero, upTo: log.logEndOffset)
        #expect(model.count == 5)
        try Fixture.close(log, directory)
        for path in disk.files where path.hasSuffix(".txnindex") {
            let image = disk.crashed(seed: 0)
            let file = try image.open(path, .write)
            try file.truncate(to: 20)
            file.close()
            let again = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 400))
            #expect(try again.abortedTransactions(from: .zero, upTo: again.logEndOffset) == model, "\(path)")
        }
    }

    @Test func `a failed write takes transactions back as well`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk)
        try Fixture.append(log, Fixture.transactional((1, 0, 0)))
        _ = try Fixture.stage(log, Fixture.transactional((2, 0, 0)))
        _ = try log.stageMarker(
            MarkerAppend(producerID: 1, producerEpoch: 1, commits: false, coordinatorEpoch: 0, raisesEpoch: true),
            leaderEpoch: LeaderEpoch(0), now: Fixture.now)
        #expect(log.producers.openTransactions.map(\.producerID) == [2])
        disk.fail(.write, .noSpace)
        #expect(throws: StorageError.self) { try log.writeStaged() }
        #expect(log.producers.openTransactions.map(\.producerID) == [1])
        #expect(stable(log) == 0)
        #expect(try log.abortedTransactions(from: .zero, upTo: Offset(5)).isEmpty)
    }

    @Test func `a follower takes markers as they come, and its cut takes them back`() throws {
        let disk = SimulatedDisk()
        let leader = try log()
        try Fixture.append(leader, Fixture.transactional((1, 0, 0)))
        try Fixture.append(leader, Fixture.transactional((2, 0, 0)))
        try Fixture.mark(leader, 1, 1, commits: false)
        try Fixture.mark(leader, 2, 1, commits: false)
        let follower = try log(disk)
        for batch in try Fixture.readAll(leader) {
            try follower.stageReplica(batch, header: try RecordBatchHeader(reading: batch), now: Fixture.now)
        }
        try follower.writeStaged()
        try Fixture.flush(follower)
        let all = try leader.abortedTransactions(from: .zero, upTo: Offset(4))
        #expect(all.count == 2)
        #expect(try follower.abortedTransactions(from: .zero, upTo: Offset(4)) == all)
        #expect(follower.producers.entries == leader.producers.entries)
        try follower.truncate(to: Offset(3))
        #expect(try follower.abortedTransactions(from: .zero, upTo: Offset(4)) == [all[0]])
        #expect(follower.producers.openTransactions.map(\.producerID) == [2])
        #expect(stable(follower) == 1)
        let again = try Fixture.log(Fixture.directory(disk.crashed(seed: 0)), .small(segmentBytes: 1 << 20))
        #expect(try again.abortedTransactions(from: .zero, upTo: Offset(4)) == [all[0]])
    }

    @Test func `retention removes index files with their segments`() throws {
        let disk = SimulatedDisk()
        let log = try log(disk, segmentBytes: 300)
        for round in 0..<8 as Range<Int16> {
            try Fixture.append(log, Fixture.transactional((1, round, 0), bytes: 60))
            try Fixture.mark(log, 1, round + 1, commits: false)
        }
        let count = disk.files.count { $0.hasSuffix(".txnindex") }
        #expect(count > 3)
        let work = try #require(try log.deleteRecords(before: log.logEndOffset, highWatermark: log.logEndOffset))
        try work.run()
        try log.adoptLogStart(now: Fixture.now)
        try Fixture.flush(log)
        try log.purgeDeleted(now: Timestamp(milliseconds: Fixture.now.rawValue + 100_000))?.run()
        #expect(disk.files.count { $0.contains(".txnindex") } <= 1)
        #expect(try log.abortedTransactions(from: log.logStartOffset, upTo: log.logEndOffset).isEmpty)
    }

    @Test(arguments: 0..<20 as Range<UInt64>)
    func `random transactions read back as their markers say, from any offset in any steps`(seed: UInt64) throws {
        var generator = SplitMix64(seed: seed)
        let log = try log(segmentBytes: 700)
        var producers: [Int64: (epoch: Int16, sequence: Int32, isOpen: Bool)] = [:]
        for _ in 0..<150 {
            let id = Int64.random(in: 1...5, using: &generator)
            var producer = producers[id] ?? (0, 0, false)
            if producer.isOpen, Int.random(in: 0..<3, using: &generator) == 0 {
                producer = (producer.epoch + 1, 0, false)
                try Fixture.mark(log, id, producer.epoch, commits: Bool.random(using: &generator), flush: false)
            } else {
                let count = Int.random(in: 1...3, using: &generator)
                try Fixture.append(
                    log, Fixture.transactional((id, producer.epoch, producer.sequence), count: count), flush: false)
                producer.sequence += Int32(count)
                producer.isOpen = true
            }
            producers[id] = producer
        }
        try Fixture.flush(log)
        let end = log.lastStableOffset(highWatermark: log.flushedEndOffset)
        let open = producers.filter(\.value.isOpen).keys.sorted()
        #expect(log.producers.openTransactions.map(\.producerID).sorted() == open)
        let expected = try Fixture.committed(log, upTo: end)
        for from in stride(from: Int64(0), to: end.rawValue, by: 7) {
            // A fetch answers with whole batches: the first one may begin before.
            let whole = try Fixture.visible(log, from: Offset(from), upTo: end, step: 300).filter { $0 >= from }
            #expect(whole == expected.filter { $0 >= from }, "seed \(seed) from \(from)")
        }
    }
}
