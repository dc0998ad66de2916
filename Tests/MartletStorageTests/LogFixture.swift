import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

typealias SimulatedLog = PartitionLog<SimulatedDisk>
typealias SimulatedDirectory = LogDirectory<SimulatedDisk>

/// The one place where these tests touch the storage API.
enum Fixture {
    static let partition = TopicPartition("orders", 0)
    static let topicID = UniversalID(high: 7, low: 9)
    static let now = Timestamp(milliseconds: 1_700_000_000_000)
    static let root = "/data"

    static func directory(
        _ disk: SimulatedDisk, configuration: SimulatedDirectory.Configuration? = nil
    ) throws -> SimulatedDirectory {
        var defaults = SimulatedDirectory.Configuration()
        defaults.reserveBytes = 0
        return try SimulatedDirectory.open(
            root, disk: disk, clusterID: "cluster", nodeID: BrokerID(1),
            newDirectoryID: UniversalID(high: 1, low: 2), configuration: configuration ?? defaults)
    }

    static func log(
        _ directory: SimulatedDirectory, _ configuration: LogConfiguration = LogConfiguration(),
        partition: TopicPartition = partition, now: Timestamp = now
    ) throws -> SimulatedLog {
        try SimulatedLog.open(
            directory: directory, topicPartition: partition, topicID: topicID, configuration: configuration,
            now: now)
    }

    /// A batch of `count` records of `bytes` bytes each.
    static func batch(
        count: Int = 1, bytes: Int = 20, seed: UInt64 = 1, timestamp: Int64 = now.rawValue,
        producer: (id: Int64, epoch: Int16, sequence: Int32)? = nil, key: String? = nil,
        codec: CompressionCodec = .none
    ) -> ByteBuffer {
        var generator = SplitMix64(seed: seed)
        var builder = RecordBatchBuilder()
        do {
            for index in 0..<count {
                var value = ByteBuffer()
                while value.readableBytes + 8 <= bytes { value.writeInteger(generator.next()) }
                while value.readableBytes < bytes { value.writeInteger(UInt8(truncatingIfNeeded: generator.next())) }
                try builder.append(
                    key: key.map { ByteBuffer(string: $0) }, value: value, timestamp: timestamp + Int64(index))
            }
            return try builder.build(
                RecordBatchBuilder.Options(
                    codec: codec, producerID: producer?.id ?? -1, producerEpoch: producer?.epoch ?? -1,
                    baseSequence: producer?.sequence ?? -1))
        } catch {
            preconditionFailure("a test batch cannot be built: \(error)")
        }
    }

    /// Stages, writes and flushes one batch; returns its base offset.
    @discardableResult
    static func append(
        _ log: SimulatedLog, _ batch: ByteBuffer, epoch: Int32 = 0, now: Timestamp = now, flush: Bool = true
    ) throws -> AppendOutcome {
        let outcome = try stage(log, batch, epoch: epoch, now: now)
        try log.writeStaged()
        if flush { try self.flush(log) }
        return outcome
    }

    static func stage(
        _ log: SimulatedLog, _ batch: ByteBuffer, epoch: Int32 = 0, now: Timestamp = now
    ) throws -> AppendOutcome {
        // A copy of its own, as a received frame is: staging patches the bytes in place.
        var copy = ByteBuffer(bytes: batch.readableBytesView)
        return try log.stage(
            &copy, header: try RecordBatchHeader(reading: copy), leaderEpoch: LeaderEpoch(epoch), now: now)
    }

    static func flush(_ log: SimulatedLog) throws {
        if let work = log.takeFlush() {
            let result = work.run()
            log.flushCompleted(result)
            if let failure = result.failure { throw failure }
        }
    }

    /// All bytes from `from` up to the bound, fetched in steps.
    static func readAll(
        _ log: SimulatedLog, from: Offset? = nil, upTo bound: Offset? = nil, step: Int = 1 << 20
    ) throws -> [ByteBuffer] {
        var offset = from ?? log.logStartOffset
        let bound = bound ?? log.writtenEndOffset
        var batches: [ByteBuffer] = []
        while offset < bound {
            let region = try log.locate(from: offset, upTo: bound, maxBytes: step, minOneBatch: true)
            if region.isEmpty { break }
            var bytes = ByteBuffer()
            #expect(try log.read(region, into: &bytes, nonBlocking: true) == .read)
            #expect(bytes.readableBytes == region.byteCount)
            while bytes.readableBytes > 0 {
                let header = try RecordBatchHeader(reading: bytes)
                guard let batch = bytes.readSlice(length: header.totalByteCount) else {
                    Issue.record("a region ends inside a batch")
                    return batches
                }
                #expect(
                    crc32c(batch, range: batch.readerIndex + 21..<batch.writerIndex) == header.crc,
                    "checksum of offset \(header.baseOffset)")
                batches.append(batch)
            }
            #expect(region.nextOffset > offset)
            offset = region.nextOffset
        }
        return batches
    }

    static func offsets(_ batches: [ByteBuffer]) throws -> [Int64] {
        try batches.map { try RecordBatchHeader(reading: $0).baseOffset }
    }

    static func logPath(_ base: Int64, _ kind: String = "log") -> String {
        "\(root)/\(partition)/" + LogFileName.make(base, kind)
    }

    static func close(_ log: SimulatedLog, _ directory: SimulatedDirectory) throws {
        try log.close(clean: true)
        try directory.close(clean: true, brokerEpoch: 5)
    }
}

extension LogConfiguration {
    static func small(segmentBytes: Int = 1024) -> LogConfiguration {
        var configuration = LogConfiguration()
        configuration.segmentBytes = segmentBytes
        configuration.indexIntervalBytes = 200
        return configuration
    }
}

var isLong: Bool { environment("MARTLET_LONG") == "1" }
