import MartletClient
import MartletLogModel
import MartletMarketData
import NIOCore
import Synchronization

/// Progress line of a replay. The lock only guards the line's own state; one task calls it.
final class ReplayProgress: Sendable {
    private let progress = Mutex(Progress())

    func show(_ summary: MarketReplay.Summary) {
        progress.withLock { progress in
            progress.show {
                let rate = summary.seconds > 0 ? Double(summary.messageCount) / summary.seconds : 0
                return
                    "\(Decimals.grouped(Int64(summary.messageCount))) messages, \(Decimals.grouped(Int64(rate)))/s"
            }
        }
    }

    func clear() { progress.withLock { $0.clear() } }
}

/// A market data file being written from records.
final class MarketRecording: Sendable {
    private struct State {
        var writer: MarketFileWriter
        var progress = Progress()
    }

    private let state: Mutex<State>
    private let path: String

    init(path: String, format: MarketFormat) throws {
        self.path = path
        state = Mutex(State(writer: try MarketFileWriter(path: path, format: format)))
    }

    func append(_ records: [ConsumedRecord]) throws {
        try state.withLock { state in
            for record in records {
                guard let value = record.value else {
                    throw CommandFailure("\(record.topicPartition) offset \(record.offset) has no value")
                }
                let tail = record.headers.last { $0.name == MarketMessage.tailHeader }?.value
                    .flatMap { MarketTail(rawValue: String(buffer: $0)) }
                do {
                    try state.writer.append(value: value, tail: tail)
                } catch {
                    throw CommandFailure(
                        "\(record.topicPartition) offset \(record.offset): \(error)",
                        remedy: "check --format, and that the topic holds nothing else")
                }
            }
            let count = state.writer.messageCount
            state.progress.show { "\(Decimals.grouped(count)) messages" }
        }
    }

    func clearProgress() { state.withLock { $0.progress.clear() } }
    func finish() throws { try state.withLock { try $0.writer.finish() } }
    var messageCount: Int64 { state.withLock { $0.writer.messageCount } }
    var byteCount: Int64 { state.withLock { $0.writer.byteCount } }
}

/// Trades of records, printed.
final class TapePrinter: Sendable {
    struct LimitReached: Error {}

    private struct State {
        var tape = ITCHTape()
        var left: Int
    }

    private let format: MarketFormat
    private let symbols: Set<String>
    private let json: Bool
    private let state: Mutex<State>

    init(format: MarketFormat, symbols: Set<String>, limit: Int, json: Bool) {
        self.format = format
        self.symbols = symbols
        self.json = json
        state = Mutex(State(left: limit))
    }

    func print(_ records: [ConsumedRecord]) throws {
        var output = ByteBuffer()
        let ended = try state.withLock { state in
            for record in records {
                guard let value = record.value, let trade = try trade(record, value, &state.tape) else {
                    continue
                }
                guard symbols.isEmpty || symbols.contains(trade.symbol) else { continue }
                guard state.left > 0 else { return true }
                state.left -= 1
                output.writeString((json ? Self.json(trade).line : trade.line) + "\n")
            }
            return state.left == 0
        }
        try Console.write(output)
        if ended { throw LimitReached() }
    }

    private func trade(_ record: ConsumedRecord, _ value: ByteBuffer, _ tape: inout ITCHTape) throws -> Trade?
    {
        do {
            switch format {
            case .itch50: return tape.trade(in: try ITCHMessage(value))
            case .lobster: return try LOBSTERMessage(value).trade(symbol: record.keyString ?? "")
            }
        } catch {
            throw CommandFailure(
                "\(record.topicPartition) offset \(record.offset): \(error)",
                remedy: "check --format, and that the topic holds nothing else")
        }
    }

    static func json(_ trade: Trade) -> JSONValue {
        .object([
            ("time", .string(TimeText.timeOfDay(nanoseconds: trade.nanoseconds))),
            ("symbol", .string(trade.symbol)),
            ("kind", .string(trade.kind.rawValue)),
            ("price", .optional(trade.price) { .string(PriceText.decimal($0, places: 4)) }),
            ("size", .integer(Int64(clamping: trade.size))),
            ("aggressor", .optional(trade.aggressor) { .string($0.description) }),
            ("match", .optional(trade.matchNumber) { .string(String($0)) }),
            ("printable", .bool(trade.isPrintable)),
        ])
    }
}
