import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct ProducerStateTests {
    private func header(
        _ id: Int64, epoch: Int16 = 0, sequence: Int32, count: Int32 = 1, offset: Int64 = 0
    ) -> RecordBatchHeader {
        RecordBatchHeader(
            baseOffset: offset, lastOffsetDelta: count - 1, maxTimestamp: 1, producerID: id, producerEpoch: epoch,
            baseSequence: sequence, recordCount: count)
    }

    @Test func `the last five batches are answered with their first offsets, older ones are out of order`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        var bases: [Offset] = []
        for index in 0..<7 {
            bases.append(log.logEndOffset)
            try Fixture.append(log, Fixture.batch(count: 2, producer: (9, 0, Int32(index * 2))))
            try Fixture.append(log, Fixture.batch())
        }
        for index in 2..<7 {
            let outcome = try Fixture.stage(log, Fixture.batch(count: 2, producer: (9, 0, Int32(index * 2))))
            #expect(
                outcome
                    == .duplicate(
                        base: bases[index], last: bases[index] + 1,
                        timestamp: Timestamp(milliseconds: Fixture.now.rawValue + 1)))
        }
        #expect(!log.hasStaged)
        #expect(throws: AppendError.outOfOrderSequence(ProducerID(9), expected: 14, found: 2)) {
            try Fixture.stage(log, Fixture.batch(count: 2, producer: (9, 0, 2)))
        }
    }

    @Test func `a gap is out of order and changes nothing`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        try Fixture.append(log, Fixture.batch(count: 3, producer: (9, 0, 0)))
        let error = #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.batch(producer: (9, 0, 4))) }
        #expect(error?.errorCode == .outOfOrderSequenceNumber)
        #expect(log.logEndOffset == Offset(3))
        try Fixture.append(log, Fixture.batch(producer: (9, 0, 3)))
    }

    @Test func `an older epoch is fenced, a newer one starts at zero`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        try Fixture.append(log, Fixture.batch(producer: (9, 3, 0)))
        let error = #expect(throws: AppendError.self) { try Fixture.stage(log, Fixture.batch(producer: (9, 2, 1))) }
        #expect(error?.errorCode == .invalidProducerEpoch)
        #expect(throws: AppendError.outOfOrderSequence(ProducerID(9), expected: 0, found: 1)) {
            try Fixture.stage(log, Fixture.batch(producer: (9, 4, 1)))
        }
        try Fixture.append(log, Fixture.batch(producer: (9, 4, 0)))
        try Fixture.append(log, Fixture.batch(producer: (9, 4, 1)))
    }

    @Test func `sequences wrap from the largest to zero`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        // A producer whose state was lost may start anywhere.
        try Fixture.append(log, Fixture.batch(count: 2, producer: (9, 0, Int32.max - 3)))
        try Fixture.append(log, Fixture.batch(count: 4, producer: (9, 0, Int32.max - 1)))
        try Fixture.append(log, Fixture.batch(count: 1, producer: (9, 0, 2)))
        let outcome = try Fixture.stage(log, Fixture.batch(count: 4, producer: (9, 0, Int32.max - 1)))
        #expect(
            outcome
                == .duplicate(
                    base: Offset(2), last: Offset(5), timestamp: Timestamp(milliseconds: Fixture.now.rawValue + 3)))
    }

    @Test func `a retry is recognised while its original is only staged`() throws {
        let log = try Fixture.log(Fixture.directory(SimulatedDisk()))
        _ = try Fixture.stage(log, Fixture.batch(producer: (9, 0, 0)))
        guard case .duplicate = try Fixture.stage(log, Fixture.batch(producer: (9, 0, 0))) else {
            Issue.record("not recognised")
            return
        }
        try log.writeStaged()
        #expect(log.logEndOffset == Offset(1))
    }

    @Test(arguments: [true, false]) func `all five batches are known after a restart`(clean: Bool) throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(segmentBytes: 400))
        for index in 0..<9 { try Fixture.append(log, Fixture.batch(producer: (9, 0, Int32(index)))) }
        if clean { try Fixture.close(log, directory) }
        let image = disk.crashed(seed: 0)
        let again = try Fixture.log(Fixture.directory(image), .small(segmentBytes: 400))
        #expect(again.recovery.wasChecked != clean)
        #expect(again.producers.entries == log.producers.entries)
        for index in 4..<9 {
            guard case .duplicate(let base, _, _) = try Fixture.stage(again, Fixture.batch(producer: (9, 0, Int32(index))))
            else {
                Issue.record("batch \(index) is forgotten")
                continue
            }
            #expect(base == Offset(Int64(index)))
        }
    }

    @Test func `a failed write takes producers, epochs and offsets back`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        try Fixture.append(log, Fixture.batch(producer: (9, 0, 0)))
        let before = log.producers.entries
        _ = try Fixture.stage(log, Fixture.batch(producer: (9, 0, 1)), epoch: 5)
        _ = try Fixture.stage(log, Fixture.batch(producer: (10, 0, 0)), epoch: 6)
        disk.fail(.write, .noSpace)
        #expect(throws: StorageError.self) { try log.writeStaged() }
        #expect(log.producers.entries == before)
        #expect(log.leaderEpochs.latest == LeaderEpoch(0))
        #expect(log.logEndOffset == Offset(1))
    }

    @Test func `producers are forgotten after silence and beyond the limit, but not in a transaction`() {
        var table = ProducerStateTable()
        var transactional = header(1, sequence: 0)
        transactional.attributes = 0x10
        table.apply(transactional, now: Timestamp(milliseconds: 0))
        table.apply(header(2, sequence: 0), now: Timestamp(milliseconds: 0))
        table.apply(header(3, sequence: 0), now: Timestamp(milliseconds: 500))
        table.expire(now: Timestamp(milliseconds: 1000), expiration: 1000, limit: 100)
        #expect(table.entries.keys.sorted() == [1, 3])
        #expect(table.firstOpenTransactionOffset == Offset(0))
        for id in 10..<60 { table.apply(header(Int64(id), sequence: 0), now: Timestamp(milliseconds: Int64(1000 + id))) }
        table.expire(now: Timestamp(milliseconds: 1100), expiration: 10_000, limit: 32)
        #expect(table.entries.count == 30)
        #expect(table.entries[1] != nil && table.entries[59] != nil && table.entries[3] == nil)
        var marker = header(1, epoch: 0, sequence: -1)
        marker.attributes = 0x30
        table.apply(
            marker, now: Timestamp(milliseconds: 1100), marker: EndTransactionMarker(commits: true, coordinatorEpoch: 4))
        #expect(table.entries[1]?.transactionFirstOffset == nil)
        #expect(table.entries[1]?.coordinatorEpoch == 4)
    }

    @Test func `the snapshot has Kafka's bytes and comes back whole`() throws {
        var table = ProducerStateTable()
        table.apply(
            header(0x0102, epoch: 3, sequence: 7, count: 2, offset: 40), now: Timestamp(milliseconds: 0x55))
        let bytes = Array(table.encode().readableBytesView)
        // Version 1; after the CRC: one entry of 46 bytes (KIP-98's layout), then our mark and no addition.
        let entry: [UInt8] =
            [0, 0, 0, 1] + [0, 0, 0, 0, 0, 0, 1, 2] + [0, 3] + [0, 0, 0, 8] + [0, 0, 0, 0, 0, 0, 0, 41] + [0, 0, 0, 1]
            + [0, 0, 0, 0, 0, 0, 0, 0x55] + [255, 255, 255, 255] + [UInt8](repeating: 255, count: 8)
        #expect(Array(bytes[..<2]) == [0, 1])
        #expect(Array(bytes[6..<56]) == entry)
        let checksum = crc32c(ByteBuffer(bytes: bytes[6...]))
        #expect(Array(bytes[2..<6]) == withUnsafeBytes(of: checksum.bigEndian, Array.init))

        for index in 1..<8 {
            table.apply(
                header(0x0102, epoch: 3, sequence: Int32(7 + 2 * index), count: 2, offset: Int64(40 + 2 * index)),
                now: Timestamp(milliseconds: 0x55))
        }
        let decoded = try #require(ProducerStateTable(decoding: table.encode()))
        #expect(decoded.entries[0x0102]?.batches.map(\.baseOffset) == [46, 48, 50, 52, 54])
        #expect(decoded.entries[0x0102]?.batches.map(\.baseSequence) == [13, 15, 17, 19, 21])
    }

    @Test func `a snapshot with any flipped bit or missing end is not taken`() {
        var table = ProducerStateTable()
        for index in 0..<3 { table.apply(header(5, sequence: Int32(index), offset: Int64(index)), now: Fixture.now) }
        let good = Array(table.encode().readableBytesView)
        for byte in good.indices {
            for bit in 0..<8 as Range<UInt8> {
                var bad = good
                bad[byte] ^= 1 << bit
                #expect(ProducerStateTable(decoding: ByteBuffer(bytes: bad)) == nil)
            }
            #expect(ProducerStateTable(decoding: ByteBuffer(bytes: good[..<byte])) == nil)
        }
    }
}

