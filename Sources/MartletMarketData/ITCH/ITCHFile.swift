public import NIOCore

/// Reader of the file form of ITCH (Nasdaq BinaryFILE): a two-byte big-endian length before each message; a
/// zero length ends the stream. Plain or gzip.
///
/// The inverse is ``ITCHFileWriter``: the length prefixes are all that framing adds, so messages written
/// back give the same bytes.
public final class ITCHFileReader {
    private let input: MarketFileInput
    /// Messages handed out so far.
    public private(set) var messageCount: Int64 = 0
    /// Whether the stream ended with a zero length instead of just ending; known after the last message.
    public private(set) var hasEndMark = false

    public init(path: String) throws(MarketDataError) { input = try MarketFileInput(path: path) }

    public var path: String { input.path }
    /// Offset in the unpacked stream of the next length prefix.
    public var offset: Int64 { input.offset }

    public func close() { input.close() }

    /// The next message, or `nil` at the end. Throws on a stream that ends inside a message, on a length
    /// that contradicts the type, on bytes after the end mark; each error names the offset of the prefix.
    public func next() throws(MarketDataError) -> ITCHMessage? {
        guard !hasEndMark else { return nil }
        let place = input.offset
        let prefixBytes = try input.require(2)
        if prefixBytes == 0 { return nil }
        guard prefixBytes >= 2 else {
            throw error(.truncated, place, "the file ends inside a length prefix")
        }
        let count = Int(input.peek(0)) << 8 | Int(input.peek(1))
        if count == 0 {
            input.skip(2)
            guard try input.require(1) == 0 else {
                throw error(.badContent, place, "bytes follow the end mark (a message of length 0)")
            }
            hasEndMark = true
            return nil
        }
        let present = try input.require(2 + count) - 2
        guard present >= count else {
            throw error(
                .truncated, place, "the file ends after \(present) of the \(count) bytes of a message")
        }
        input.skip(2)
        let bytes = input.take(count)
        if var problem = ITCHMessage.problem(bytes) {
            problem.file = input.path
            problem.offset = place
            throw problem
        }
        messageCount += 1
        return ITCHMessage(unchecked: bytes)
    }

    private func error(_ code: MarketDataError.Code, _ place: Int64, _ cause: String) -> MarketDataError {
        MarketDataError(
            code, file: input.path, offset: place, cause: cause,
            remedy: code == .truncated ? "fetch the file again, or cut it at this offset" : "")
    }
}

/// Writer of the file form of ITCH; see ``ITCHFileReader``.
public final class ITCHFileWriter {
    private let output: MarketFileOutput
    public private(set) var messageCount: Int64 = 0

    /// Compresses if `compressed` says so or, when it is `nil`, if the name ends in `.gz`.
    public init(path: String, compressed: Bool? = nil) throws(MarketDataError) {
        output = try MarketFileOutput(path: path, compressed: compressed)
    }

    /// Bytes written, before compression.
    public var byteCount: Int64 { output.byteCount }

    public func append(_ message: ITCHMessage) throws(MarketDataError) {
        try output.writeInteger(UInt16(message.bytes.readableBytes))
        try output.write(message.bytes)
        messageCount += 1
    }

    /// Writes the zero length that some files end with.
    public func appendEndMark() throws(MarketDataError) { try output.writeInteger(0) }

    public func finish() throws(MarketDataError) { try output.finish() }
}

/// Learns which locate number stands for which symbol, so that messages without a symbol get one too.
///
/// The directory (R) says it at the start of the day; streams that were cut later say it through any
/// message that carries its symbol.
public struct ITCHSymbolDirectory: Sendable {
    private var symbols: [UInt16: ByteBuffer] = [:]

    public init() {}

    /// Number of symbols seen; bounded by the 65,536 locate numbers.
    public var count: Int { symbols.count }

    /// Learns from `message` and returns the symbol it is about: trimmed bytes, `nil` for messages about the
    /// whole system and for locate numbers not yet seen. No allocation for a known locate number.
    public mutating func symbol(of message: ITCHMessage) -> ByteBuffer? {
        let locate = message.locate
        if message.type != .stockDirectory, let known = symbols[locate] { return known }
        guard let stock = message.stockBytes, stock.readableBytes > 0 else { return nil }
        // A copy of its own: a slice would keep a whole chunk of the file alive.
        let owned = ByteBuffer(bytes: stock.readableBytesView)
        if locate != 0 { symbols[locate] = owned }
        return owned
    }

    /// The symbol of a locate number already seen.
    public subscript(locate: UInt16) -> String? { symbols[locate].map { String(buffer: $0) } }
}
