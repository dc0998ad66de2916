import ArgumentParser
import MartletClient
import MartletLogModel
import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract:
            "Measure any Kafka broker: throughput of producing and consuming, latency under open-loop load.",
        subcommands: [BenchProduce.self, BenchConsume.self, BenchLatency.self])
}

/// Processor time of this process.
struct ProcessorTime {
    var seconds: Double

    static func now() -> ProcessorTime {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
        return ProcessorTime(seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime))
    }
}

/// Values to send: random bytes do not compress, text does, about as market data does.
struct BenchPayload {
    /// Different values, so that compression does not see one value repeated.
    static let distinctCount = 256
    let values: [ByteBuffer]

    init(byteCount: Int, compressible: Bool) {
        var state: UInt64 = 0x9e37_79b9_7f4a_7c15
        let words = ["AAPL", "MSFT", "bid", "ask", "price", "100.25", "size", "300", "add", "delete"].map {
            Array($0.utf8)
        }
        values = (0..<Self.distinctCount).map { _ in
            var buffer = ByteBufferAllocator().buffer(capacity: byteCount + 8)
            while buffer.readableBytes < byteCount {
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                if compressible {
                    buffer.writeBytes(words[Int(state % UInt64(words.count))])
                } else {
                    buffer.writeInteger(state)
                }
            }
            return buffer.getSlice(at: 0, length: byteCount) ?? ByteBuffer()
        }
    }
}

struct BenchProduce: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "produce",
        abstract: "Send records as fast as the broker takes them.",
        discussion: """
            The figure includes the acknowledgement of the last record.

            Examples:
              martlet topic create bench --partitions 4
              martlet bench produce bench --records 5000000 --record-size 100
              martlet bench produce bench --acks 1 --codec lz4 --json
            """)

    @Argument(help: "Name of the topic.") var topic: String
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var producing: ProducerOptions
    @Option(help: "Records to send.") var records = 1_000_000
    @Option(help: "Bytes of a value.") var recordSize = 100
    @Option(help: "Producers, each with connections of its own.") var producers = 1
    @Flag(help: "Values that compress, about as market data does.") var compressible = false
    @Flag(help: "Print the result as JSON.") var json = false

    /// Records handed over in one call.
    static let chunk = 1_000

    func run() async throws {
        try Bounded.check(records, "--records", 1...Int.max / 2)
        try Bounded.check(recordSize, "--record-size", 0...(64 << 20))
        try Bounded.check(producers, "--producers", 1...64)
        var configuration = try producing.configuration(connection.configuration())
        configuration.requestByteLimit = max(configuration.requestByteLimit, recordSize + 4096)
        configuration.bufferBytes = max(configuration.bufferBytes, configuration.requestByteLimit * 4)
        let payload = BenchPayload(byteCount: recordSize, compressible: compressible)
        let topic = topic
        let share = (records + producers - 1) / producers
        let all = try (0..<producers).map { _ in try Producer(configuration) }
        // The first exchange (connections, metadata, producer id) is not what is measured.
        for producer in all { _ = try await producer.partitions(of: topic) }
        let cpu = ProcessorTime.now()
        let progress = BenchProgress(total: records)
        let start = SystemCall.monotonicNanoseconds()
        try await withThrowingTaskGroup(of: Void.self) { group in
            for producer in all {
                group.addTask {
                    var sent = 0
                    while sent < share {
                        let count = min(Self.chunk, share - sent)
                        try await producer.enqueue(
                            contentsOf: (0..<count).lazy.map { index in
                                ProducerRecord(
                                    topic: topic, key: ByteBuffer?.none,
                                    value: payload.values[(sent + index) % BenchPayload.distinctCount])
                            })
                        sent += count
                        progress.add(count)
                    }
                    try await producer.flush()
                }
            }
            try await group.waitForAll()
        }
        let seconds = Double(SystemCall.monotonicNanoseconds() - start) / 1e9
        let used = ProcessorTime.now().seconds - cpu.seconds
        progress.clear()
        let statistics = all.map(\.statistics)
        for producer in all { try await producer.close() }
        try BenchReport(
            kind: "produce", records: share * producers, bytes: Int64(share * producers) * Int64(recordSize),
            seconds: seconds, processorSeconds: used,
            extra: [
                ("requests", .integer(Int64(statistics.map(\.requestCount).reduce(0, +)))),
                ("sentBytes", .integer(Int64(statistics.map(\.sentBatchBytes).reduce(0, +)))),
                ("retries", .integer(Int64(statistics.map(\.retryCount).reduce(0, +)))),
            ]
        ).show(json: json)
    }
}

struct BenchConsume: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "consume",
        abstract: "Read a topic from its start as fast as the broker gives it.",
        discussion: """
            Every record is decoded and counted, checksums are verified.

            Examples:
              martlet bench consume bench
              martlet bench consume bench --records 1000000 --json
            """)

    @Argument(help: "Name of the topic.") var topic: String
    @OptionGroup var connection: ConnectionOptions
    @Option(help: "Stop after so many records (default: all that are there).") var records: Int?
    @Option(help: "Bytes of one answer of a broker.") var fetchBytes = 50 * 1024 * 1024
    @Option(help: "Bytes of one partition in one answer.") var partitionFetchBytes = 1024 * 1024
    @Flag(help: "Print the result as JSON.") var json = false

    func run() async throws {
        try Bounded.check(records, "--records", 1...Int.max)
        var configuration = ConsumerConfiguration(try connection.configuration())
        configuration.fetchMaximumBytes = fetchBytes
        configuration.partitionFetchBytes = partitionFetchBytes
        let partitions = try await connection.withAdmin { try await $0.describeTopic(topic).partitions }
            .map { TopicPartition(topic: topic, partition: $0.index) }
        let consumer = try Consumer(configuration)
        let ends = try await consumer.offsets(
            Dictionary(uniqueKeysWithValues: partitions.map { ($0, .latest) }))
        let starts = try await consumer.offsets(
            Dictionary(uniqueKeysWithValues: partitions.map { ($0, .earliest) }))
        var open: [TopicPartition: Offset] = [:]
        for partition in partitions {
            guard let end = (ends[partition] ?? nil)?.offset, let start = (starts[partition] ?? nil)?.offset,
                start < end
            else { continue }
            open[partition] = end
        }
        guard !open.isEmpty else { throw CommandFailure("topic '\(topic)' has no records") }
        let cpu = ProcessorTime.now()
        let progress = BenchProgress(total: records)
        let start = SystemCall.monotonicNanoseconds()
        try await consumer.assign(open.mapValues { _ in .earliest })
        var count = 0
        var bytes: Int64 = 0
        let limit = records ?? Int.max
        while count < limit, !open.isEmpty {
            for batch in try await consumer.pollBatches(timeout: .seconds(1)) {
                var inBatch = 0
                for record in batch {
                    bytes += Int64(record.value?.readableBytes ?? 0) + Int64(record.key?.readableBytes ?? 0)
                    inBatch += 1
                }
                count += inBatch
                progress.add(inBatch)
                if let end = open[batch.topicPartition], Offset(batch.lastOffset.rawValue + 1) >= end {
                    open[batch.topicPartition] = nil
                }
            }
            open = open.filter { partition, end in (consumer.position(of: partition) ?? .zero) < end }
        }
        let seconds = Double(SystemCall.monotonicNanoseconds() - start) / 1e9
        let used = ProcessorTime.now().seconds - cpu.seconds
        progress.clear()
        try await consumer.close()
        try BenchReport(
            kind: "consume", records: count, bytes: bytes, seconds: seconds, processorSeconds: used, extra: []
        ).show(json: json)
    }
}
