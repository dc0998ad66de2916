import ArgumentParser
import MartletClient
import MartletLogModel
import NIOCore
import Synchronization

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

struct BenchLatency: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "latency",
        abstract: "Send at a fixed rate and measure acknowledgement and delivery.",
        discussion: """
            The load is open: records are due at fixed times whether or not earlier ones
            were answered, and every latency counts from the time a record was due. So a
            stall is seen by all records that fall due in it.

            Examples:
              martlet bench latency bench --rate 1000 --seconds 30
              martlet bench latency bench --rate 20000 --linger 0 --json
            """)

    @Argument(help: "Name of the topic.") var topic: String
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var producing: ProducerOptions
    @Option(help: "Records per second.") var rate = 1_000
    @Option(help: "Seconds to measure.") var seconds = 10
    @Option(help: "Seconds before that are not measured.") var warmup = 2
    @Option(help: "Bytes of a value (at least 8: its due time is in it).") var recordSize = 100
    @Flag(inversion: .prefixedNo, help: "Consume the records too and measure their whole way.") var endToEnd =
        true
    @Flag(help: "Print the result as JSON.") var json = false

    /// Records on their way at which the load stops being open, to bound memory; reported if met.
    static let outstandingLimit = 200_000

    private struct Results {
        var acknowledged = LatencyRecorder()
        var delivered = LatencyRecorder()
        /// How late the load generator itself handed records over.
        var lateness = LatencyRecorder()
        var outstanding = 0
        var limitMetCount = 0
    }

    func run() async throws {
        try Bounded.check(rate, "--rate", 1...1_000_000)
        try Bounded.check(seconds, "--seconds", 1...86_400)
        try Bounded.check(warmup, "--warmup", 0...3_600)
        try Bounded.check(recordSize, "--record-size", 8...(1 << 20))
        let producer = try Producer(try producing.configuration(connection.configuration()))
        let partitions = try await producer.partitions(of: topic)
        let consumer = try await endToEnd ? startConsumer(partitions) : nil
        let results = SharedResults()
        let total = rate * (warmup + seconds)
        let measured = rate * seconds
        // A little in the future, so that the first records are not late already.
        let start = SystemCall.monotonicNanoseconds() + 50_000_000
        let measureFrom = start + Int64(warmup) * 1_000_000_000
        let load = Load(
            topic: topic, producer: producer, rate: rate, total: total, start: start,
            measureFrom: measureFrom,
            recordSize: recordSize)
        try await withThrowingTaskGroup(of: Void.self) { group in
            if let consumer {
                group.addTask { try await Self.drain(consumer, total, measureFrom, results) }
            }
            group.addTask { try await load.run(results) }
            try await group.waitForAll()
        }
        try await producer.close()
        try await consumer?.close()
        try report(results, measured)
    }

    private func startConsumer(_ partitions: [PartitionIndex]) async throws -> Consumer {
        var configuration = ConsumerConfiguration(try connection.configuration())
        configuration.fetchMaximumWait = .milliseconds(500)
        let consumer = try Consumer(configuration)
        let all = partitions.map { TopicPartition(topic: topic, partition: $0) }
        let ends = try await consumer.offsets(Dictionary(uniqueKeysWithValues: all.map { ($0, .latest) }))
        try await consumer.assign(ends.mapValues { .at($0?.offset ?? .zero) })
        return consumer
    }

    private static func drain(
        _ consumer: Consumer, _ total: Int, _ measureFrom: Int64, _ results: SharedResults
    ) async throws {
        var seen = 0
        while seen < total {
            let batches = try await consumer.pollBatches(timeout: .seconds(1))
            let now = SystemCall.monotonicNanoseconds()
            results.state.withLock { state in
                for batch in batches {
                    for record in batch {
                        seen += 1
                        guard let value = record.value,
                            let due = value.getInteger(at: value.readerIndex, as: Int64.self),
                            due >= measureFrom
                        else { continue }
                        state.delivered.record(now - due)
                    }
                }
            }
        }
    }

    /// Latencies of all tasks. The lock is held for a few recordings at a time and never over a wait.
    private final class SharedResults: Sendable {
        let state = Mutex(Results())
    }

    /// The load generator.
    private struct Load: Sendable {
        var topic: String
        var producer: Producer
        var rate: Int
        var total: Int
        var start: Int64
        var measureFrom: Int64
        var recordSize: Int

        func run(_ results: SharedResults) async throws {
            try await withThrowingDiscardingTaskGroup { group in
                for index in 0..<total {
                    let due = start + Int64(Double(index) * 1e9 / Double(rate))
                    Self.sleep(until: due)
                    let isMeasured = due >= measureFrom
                    let isFull = results.state.withLock { state in
                        if isMeasured { state.lateness.record(SystemCall.monotonicNanoseconds() - due) }
                        state.outstanding += 1
                        if state.outstanding > BenchLatency.outstandingLimit { state.limitMetCount += 1 }
                        return state.outstanding > BenchLatency.outstandingLimit
                    }
                    // Bounded memory goes before an open load; the report says that it happened.
                    if isFull { try await producer.flush() }
                    group.addTask {
                        var value = ByteBufferAllocator().buffer(capacity: recordSize)
                        value.writeInteger(due)
                        value.writeRepeatingByte(0x2e, count: recordSize - 8)
                        _ = try await producer.send(
                            ProducerRecord(topic: topic, key: ByteBuffer?.none, value: value))
                        let now = SystemCall.monotonicNanoseconds()
                        results.state.withLock { state in
                            state.outstanding -= 1
                            if isMeasured { state.acknowledged.record(now - due) }
                        }
                    }
                }
            }
        }

        /// Sleeps in the kernel, since timers of the runtime are too coarse for this purpose. It blocks one
        /// thread of the pool, which the generator has for itself.
        private static func sleep(until due: Int64) {
            var time = timespec(tv_sec: Int(due / 1_000_000_000), tv_nsec: Int(due % 1_000_000_000))
            while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nil) == EINTR {}
        }
    }

    private func report(_ results: SharedResults, _ measured: Int) throws {
        let results = results.state.withLock { $0 }
        if json {
            return try Console.print(
                .object([
                    ("bench", .string("latency")), ("rate", .integer(Int64(rate))),
                    ("seconds", .integer(Int64(seconds))),
                    ("recordSize", .integer(Int64(recordSize))), ("unit", .string("milliseconds")),
                    ("acknowledged", results.acknowledged.json),
                    ("delivered", endToEnd ? results.delivered.json : .null),
                    ("generatorLateness", results.lateness.json),
                    ("outstandingLimitMet", .integer(Int64(results.limitMetCount))),
                ]))
        }
        var table = TextTable("MILLISECONDS", "p50#", "p90#", "p99#", "p99.9#", "p99.99#", "max#")
        func add(_ name: String, _ recorder: LatencyRecorder) {
            let cells = recorder.cells
            table.add(name, cells[0], cells[1], cells[2], cells[3], cells[4], cells[5])
        }
        add("acknowledged", results.acknowledged)
        if endToEnd { add("delivered", results.delivered) }
        add("generator lateness", results.lateness)
        try Console.print(
            "latency at \(Decimals.grouped(Int64(rate))) records/s of \(recordSize) bytes, \(seconds) s\n\n"
                + table.text)
        if results.limitMetCount > 0 {
            Console.note(
                "the broker did not keep up: \(Self.outstandingLimit) records were waiting, so the load was not open"
            )
        }
    }
}
