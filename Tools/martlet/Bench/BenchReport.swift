import Histogram
import Synchronization

/// Progress line of a benchmark; the lock only guards the line's own state.
final class BenchProgress: Sendable {
    private struct State {
        var progress = Progress()
        var count = 0
    }

    private let state = Mutex(State())
    private let total: Int?

    init(total: Int?) { self.total = total }

    func add(_ count: Int) {
        state.withLock { state in
            state.count += count
            let done = state.count
            let seconds = state.progress.seconds
            state.progress.show {
                "\(Decimals.grouped(Int64(done)))"
                    + (total.map { " of \(Decimals.grouped(Int64($0)))" } ?? "")
                    + " records, \(Decimals.grouped(Int64(Double(done) / seconds)))/s"
            }
        }
    }

    func clear() { state.withLock { $0.progress.clear() } }
}

/// Result of a throughput benchmark.
struct BenchReport {
    var kind: String
    var records: Int
    /// Payload: keys and values.
    var bytes: Int64
    var seconds: Double
    /// Processor time of this client, all threads.
    var processorSeconds: Double
    var extra: [(String, JSONValue)]

    var json: JSONValue {
        .object(
            [
                ("bench", .string(kind)), ("records", .integer(Int64(records))), ("bytes", .integer(bytes)),
                ("seconds", .number(seconds)),
                ("recordsPerSecond", .number((Double(records) / seconds).rounded())),
                ("megabytesPerSecond", .number(Double(bytes) / seconds / 1e6)),
                ("clientProcessorSeconds", .number(processorSeconds)),
                (
                    "clientProcessorSecondsPerGB",
                    bytes > 0 ? .number(processorSeconds / Double(bytes) * 1e9) : .null
                ),
            ] + extra)
    }

    var text: String {
        "\(kind): \(Decimals.grouped(Int64(records))) records, \(Decimals.bytes(bytes)) in \(Decimals.text(seconds, 3)) s\n"
            + "  \(Decimals.grouped(Int64(Double(records) / seconds))) records/s, "
            + "\(Decimals.text(Double(bytes) / seconds / 1e6, 1)) MB/s, client processor "
            + "\(Decimals.text(processorSeconds, 2)) s"
            + (bytes > 0 ? " (\(Decimals.text(processorSeconds / Double(bytes) * 1e9, 2)) s/GB)" : "") + "\n"
    }

    func show(json asJSON: Bool) throws {
        if asJSON { try Console.print(json) } else { try Console.print(text) }
    }
}

/// Latencies in nanoseconds, kept to three digits up to ten minutes.
struct LatencyRecorder: Sendable {
    static let limitNanoseconds: UInt64 = 600_000_000_000
    private(set) var histogram = Histogram<UInt64>(
        lowestDiscernibleValue: 1_000, highestTrackableValue: limitNanoseconds,
        numberOfSignificantValueDigits: .three)

    mutating func record(_ nanoseconds: Int64) {
        histogram.record(min(UInt64(max(0, nanoseconds)), Self.limitNanoseconds))
    }

    static let percentiles: [(name: String, value: Double)] = [
        ("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9), ("p99.99", 99.99),
    ]

    var count: UInt64 { histogram.totalCount }

    var json: JSONValue {
        .object(
            [("count", .integer(Int64(clamping: histogram.totalCount)))]
                + Self.percentiles.map { ($0.name, .number(milliseconds($0.value))) }
                + [("max", .number(Double(histogram.max) / 1e6)), ("mean", .number(histogram.mean / 1e6))])
    }

    /// Cells of a table: percentiles and maximum in milliseconds.
    var cells: [String] {
        Self.percentiles.map { Decimals.text(milliseconds($0.value), 3) } + [
            Decimals.text(Double(histogram.max) / 1e6, 3)
        ]
    }

    private func milliseconds(_ percentile: Double) -> Double {
        Double(histogram.valueAtPercentile(percentile)) / 1e6
    }
}
