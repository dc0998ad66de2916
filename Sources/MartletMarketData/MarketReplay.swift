public import MartletClient
public import MartletLogModel
import NIOCore

/// Replays market data files into a topic: one record a message, in the files' order, as fast as possible or
/// at a multiple of the session's own speed.
public struct MarketReplay: Sendable {
    public enum Speed: Sendable, Hashable {
        case max
        /// 1 is the session's own speed.
        case times(Double)
    }

    /// What has been handed to the producer so far; all of it is acknowledged once ``run(files:producer:progress:)``
    /// returns.
    public struct Summary: Sendable, Hashable {
        public var messageCount = 0
        /// Bytes of values, without framing.
        public var byteCount: Int64 = 0
        /// Messages by type: ITCH's letter, LOBSTER's number.
        public var typeCounts: [String: Int] = [:]
        public var seconds = 0.0
    }

    /// Messages handed over in one call; bounds what a cancelled replay still sends.
    static let chunkMessageCount = 512
    /// Nanoseconds that a message is waited for at most, however slow the replay: a century.
    static let pauseLimit = 3.2e18
    /// Longest nap while waiting for the next message, so that a cancelled replay ends soon.
    static let napLimit: Duration = .milliseconds(100)

    public var format: MarketFormat
    public var topic: String
    /// `nil`: by the key, which is the symbol.
    public var partition: PartitionIndex?
    /// Overrides the key of every message.
    public var symbol: String?
    public var speed: Speed = .max
    /// Day of the session, if the files' names do not tell it.
    public var date: TradingDate?
    /// Whether records carry the time of their message instead of the present time. Mind that retention by
    /// time then works on the session's day.
    public var usesEventTime = false

    public init(format: MarketFormat, topic: String) {
        self.format = format
        self.topic = topic
    }

    /// Replays the files and flushes. Throws ``MarketDataError`` for a bad file (the messages before the bad
    /// place are sent), the client's error for a failed delivery.
    public func run(
        files: [String], producer: Producer, progress: @Sendable (Summary) -> Void = { _ in }
    ) async throws -> Summary {
        if case .times(let factor) = speed, !(factor > 0) {
            throw MarketDataError(
                .badArgument, cause: "a replay at \(factor) times the session's speed never ends",
                remedy: "give a positive factor")
        }
        // An unreachable broker or a missing topic is told at once, not after the delivery timeout.
        _ = try await producer.partitions(of: topic)
        let clock = ContinuousClock()
        let start = clock.now
        var summary = Summary()
        var types = [Int](repeating: 0, count: 256)
        var chunk: [ProducerRecord] = []
        chunk.reserveCapacity(Self.chunkMessageCount)
        for path in files {
            let reader = try MarketFileReader(path: path, format: format, symbol: symbol)
            defer { reader.close() }
            let midnight = try midnightMilliseconds(reader)
            let fileStart = clock.now
            var firstNanoseconds: Int64?
            do {
                while let message = try reader.next() {
                    if case .times(let factor) = speed {
                        let first = firstNanoseconds ?? message.nanoseconds
                        firstNanoseconds = first
                        let nanoseconds = Double(message.nanoseconds - first) / factor
                        let due = fileStart + .nanoseconds(Int64(min(nanoseconds, Self.pauseLimit)))
                        if due > clock.now {
                            try await producer.enqueue(contentsOf: chunk)
                            chunk.removeAll(keepingCapacity: true)
                            progress(summary)
                            try await wait(until: due, clock)
                        }
                    }
                    types[Int(typeByte(message))] += 1
                    summary.messageCount += 1
                    summary.byteCount += Int64(message.value.readableBytes)
                    chunk.append(record(message, midnight: midnight))
                    if chunk.count == Self.chunkMessageCount {
                        try Task.checkCancellation()
                        try await producer.enqueue(contentsOf: chunk)
                        chunk.removeAll(keepingCapacity: true)
                        summary.seconds = seconds(clock.now - start)
                        progress(summary)
                    }
                }
            } catch let error as MarketDataError {
                try await producer.enqueue(contentsOf: chunk)
                try await producer.flush()
                throw error
            }
        }
        try await producer.enqueue(contentsOf: chunk)
        try await producer.flush()
        summary.seconds = seconds(clock.now - start)
        for (byte, count) in types.enumerated() where count > 0 {
            summary.typeCounts[String(UnicodeScalar(UInt8(byte)))] = count
        }
        return summary
    }

    private func record(_ message: MarketMessage, midnight: Int64?) -> ProducerRecord {
        ProducerRecord(
            topic: topic, partition: partition, key: message.key, value: message.value,
            headers: message.tail.map { [RecordHeader(MarketMessage.tailHeader, $0.rawValue)] } ?? [],
            timestamp: midnight.map { Timestamp(milliseconds: $0 + message.nanoseconds / 1_000_000) })
    }

    /// First byte of an ITCH message; the second field of a LOBSTER line, which is one digit.
    private func typeByte(_ message: MarketMessage) -> UInt8 {
        let view = message.value.readableBytesView
        switch format {
        case .itch50: return view.first ?? 0
        case .lobster:
            guard let comma = view.firstIndex(of: UInt8(ascii: ",")), view.index(after: comma) < view.endIndex
            else {
                return 0
            }
            return view[view.index(after: comma)]
        }
    }

    private func midnightMilliseconds(_ reader: MarketFileReader) throws(MarketDataError) -> Int64? {
        guard usesEventTime else { return nil }
        guard let day = date ?? reader.date else {
            throw MarketDataError(
                .badArgument, file: reader.path,
                cause: "the file's name does not tell the day of the session",
                remedy: "name the day")
        }
        return day.newYorkMidnightMilliseconds
    }

    private func wait(until due: ContinuousClock.Instant, _ clock: ContinuousClock) async throws {
        while true {
            let now = clock.now
            if now >= due { return }
            try await clock.sleep(until: min(due, now + Self.napLimit), tolerance: .zero)
        }
    }

    private func seconds(_ duration: Duration) -> Double {
        Double(duration.components.seconds) + Double(duration.components.attoseconds) / 1e18
    }
}
