import CMartletAllocationCounter
import Foundation
import MartletLogModel
import MartletRecordBatch
import MartletStorage
import MartletTestSupport
import NIOCore
import Testing

/// No allocation per record from validation to the answer of a fetch. The bounds are in `Allocations`, one row
/// per operation and batch; they hold for debug builds, optimised ones need fewer.
@Suite(.enabled(if: martlet_counts_allocations() == 1)) struct AllocationTests {
    private static let few = 10
    private static let many = 1000
    /// Bytes of keys and values, the same for few and many records.
    private static let payloadBytes = 12_000
    /// The least of these counts: growth of an array now and then is not what is looked for.
    private static let rounds = 12

    private static let bounds: [String: Int] = {
        var rows: [String: Int] = [:]
        do {
            let path = BuildProducts.source("Tests/MartletStorageTests/Allocations")
            for line in try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n") where !line.hasPrefix("#") {
                let parts = line.split(separator: " ")
                if parts.count == 2, let bound = Int(parts[1]) { rows[String(parts[0])] = bound }
            }
        } catch {
            Issue.record("\(error)")
        }
        return rows
    }()

    private func batch(_ count: Int, _ codec: CompressionCodec = .none) -> ByteBuffer {
        Fixture.batch(count: count, bytes: Self.payloadBytes / count, seed: 3, codec: codec)
    }

    private func count(_ body: () throws -> Void) rethrows -> Int {
        let before = martlet_thread_allocation_count()
        try body()
        return Int(martlet_thread_allocation_count() - before)
    }

    private func check(_ name: String, few: Int, many: Int) throws {
        #expect(few == many, "\(name): \(few) allocations for \(Self.few) records, \(many) for \(Self.many)")
        guard let bound = Self.bounds[name] else {
            Issue.record("no row for \(name), which makes \(many)")
            return
        }
        #expect(many <= bound, "\(name)")
    }

    @Test func `the counter sees what a thread allocates`() {
        var kept: [[UInt8]] = []
        kept.reserveCapacity(100)
        let counted = count { for index in 1...100 { kept.append([UInt8](repeating: 1, count: 100 * index)) } }
        #expect(counted >= 100 && counted < 200)
    }

    @Test(arguments: CompressionCodec.allCases) func `validating a batch`(codec: CompressionCodec) throws {
        guard codec.isAvailable else { return }
        func least(_ records: Int) throws -> Int {
            let bytes = batch(records, codec)
            let limits = BatchLimits()
            var least = Int.max
            for _ in 0..<Self.rounds {
                least = min(least, try count {
                    let header = try RecordBatchValidator.checkHeader(bytes, limits: limits)
                    _ = try RecordBatchValidator.checkRecords(bytes, header: header, limits: limits, requireKeys: false)
                })
            }
            return least
        }
        try check("validate-\(codec.name)", few: least(Self.few), many: least(Self.many))
    }

    @Test func `appending, flushing and reading a batch`() throws {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        var configuration = LogDirectory<PosixDisk>.Configuration()
        configuration.reserveBytes = 0
        let directory = try LogDirectory.open(
            folder.path, disk: PosixDisk(), clusterID: "c", nodeID: BrokerID(1),
            newDirectoryID: UniversalID(high: 1, low: 2), configuration: configuration)
        let log = try PartitionLog<PosixDisk>.open(
            directory: directory, topicPartition: Fixture.partition, topicID: Fixture.topicID,
            configuration: LogConfiguration(), now: Fixture.now)
        var output = ByteBufferAllocator().buffer(capacity: 1 << 20)

        func least(_ records: Int) throws -> [String: Int] {
            let source = batch(records)
            var least = ["stage": Int.max, "write": Int.max, "flush": Int.max, "locate": Int.max, "read": Int.max]
            func note(_ name: String, _ body: () throws -> Void) rethrows {
                least[name] = min(least[name] ?? Int.max, try count(body))
            }
            for _ in 0..<Self.rounds {
                var copy = ByteBuffer(bytes: source.readableBytesView)
                let header = try RecordBatchHeader(reading: copy)
                let from = log.logEndOffset
                try note("stage") {
                    _ = try log.stage(&copy, header: header, leaderEpoch: LeaderEpoch(0), now: Fixture.now)
                }
                try note("write") { try log.writeStaged() }
                note("flush") { if let work = log.takeFlush() { log.flushCompleted(work.run()) } }
                var region = LogRegion<PosixDisk>?.none
                try note("locate") {
                    region = try log.locate(
                        from: from, upTo: log.flushedEndOffset, maxBytes: 1 << 20, minOneBatch: true, nonBlocking: true)
                }
                let found = try #require(region)
                #expect(found.byteCount == source.readableBytes)
                output.clear()
                try note("read") { _ = try log.read(found, into: &output, nonBlocking: false) }
            }
            return least
        }
        let (few, many) = (try least(Self.few), try least(Self.many))
        for name in few.keys.sorted() { try check(name, few: few[name] ?? -1, many: many[name] ?? -1) }
        try log.close(clean: true)
        try directory.close(clean: true)
    }

    @Test(arguments: [CompressionCodec.none, .gzip]) func `iterating over the records of a batch`(codec: CompressionCodec) throws {
        let decompressor = RecordDecompressor()
        func least(_ records: Int) throws -> Int {
            let bytes = batch(records, codec)
            var least = Int.max
            for _ in 0..<Self.rounds {
                var seen = 0
                least = min(least, try count {
                    var iterator = try RecordIterator(bytes, decompressor: decompressor)
                    while let record = try iterator.next() { seen += record.value?.readableBytes ?? 0 }
                })
                #expect(seen == Self.payloadBytes)
            }
            return least
        }
        try check("iterate-\(codec.name)", few: least(Self.few), many: least(Self.many))
    }
}
