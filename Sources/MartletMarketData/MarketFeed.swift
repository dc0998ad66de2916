public import NIOCore

/// Formats that can be replayed into a topic and recorded from one.
public enum MarketFormat: String, CaseIterable, Sendable {
    case itch50
    case lobster
}

/// One message on its way from a file into a record.
public struct MarketMessage: Sendable, Hashable {
    /// Symbol of the instrument, trimmed; `nil` where unknown.
    public var key: ByteBuffer?
    /// The message without its framing: no length prefix, no newline.
    public var value: ByteBuffer
    /// Nanoseconds since midnight of the exchange.
    public var nanoseconds: Int64
    /// What follows this message in the file where framing alone would not say it: set on the last message
    /// of a file that ends unusually, so that recording gives the same bytes back. Carried as the record
    /// header ``tailHeader``.
    public var tail: MarketTail?

    /// Record header that carries ``tail``.
    public static let tailHeader = "martlet.tail"
}

/// Unusual ends of files.
public enum MarketTail: String, Sendable, Hashable {
    /// An ITCH file that ends with a zero length.
    case endMark = "end-mark"
    /// A LOBSTER file whose last line lacks its newline.
    case noNewline = "no-newline"
}

/// Messages of one file of either format, each with its symbol.
public final class MarketFileReader {
    private enum Reader {
        case itch(ITCHFileReader)
        case lobster(LOBSTERFileReader)
    }

    public let path: String
    public let format: MarketFormat
    /// Day of the session if the file's name tells it.
    public let date: TradingDate?
    private let reader: Reader
    private var directory = ITCHSymbolDirectory()
    private let fixedKey: ByteBuffer?
    /// One message is held back: only the end of the file tells whether it needs a tail.
    private var held: MarketMessage?
    /// Trouble found while looking ahead; thrown after the held message was handed out.
    private var trouble: MarketDataError?

    /// `symbol` overrides the key of every message (LOBSTER files hold one instrument, named in the file name).
    public init(path: String, format: MarketFormat, symbol: String? = nil) throws(MarketDataError) {
        self.path = path
        self.format = format
        switch format {
        case .itch50:
            reader = .itch(try ITCHFileReader(path: path))
            fixedKey = symbol.map { ByteBuffer(string: $0) }
            date = TradingDate(inFileName: path)
        case .lobster:
            reader = .lobster(try LOBSTERFileReader(path: path))
            let name = LOBSTERFileName(path: path)
            fixedKey = (symbol ?? name?.symbol).map { ByteBuffer(string: $0) }
            date = name?.date ?? TradingDate(inFileName: path)
        }
        held = try read()
    }

    /// The next message, or `nil` at the end. All messages before a damaged place come out before the error.
    public func next() throws(MarketDataError) -> MarketMessage? {
        guard var message = held else {
            if let trouble { throw trouble }
            return nil
        }
        do throws(MarketDataError) {
            held = try read()
            if held == nil { message.tail = tail }
        } catch {
            held = nil
            trouble = error
        }
        return message
    }

    public func close() {
        switch reader {
        case .itch(let reader): reader.close()
        case .lobster(let reader): reader.close()
        }
    }

    private var tail: MarketTail? {
        switch reader {
        case .itch(let reader): reader.hasEndMark ? .endMark : nil
        case .lobster(let reader): reader.lacksFinalNewline ? .noNewline : nil
        }
    }

    private func read() throws(MarketDataError) -> MarketMessage? {
        switch reader {
        case .itch(let reader):
            guard let message = try reader.next() else { return nil }
            let key = fixedKey ?? directory.symbol(of: message)
            return MarketMessage(key: key, value: message.bytes, nanoseconds: message.nanoseconds)
        case .lobster(let reader):
            guard let message = try reader.next() else { return nil }
            return MarketMessage(key: fixedKey, value: message.bytes, nanoseconds: message.nanoseconds)
        }
    }
}

/// The inverse of ``MarketFileReader``: record values back into a file.
public final class MarketFileWriter {
    private enum Writer {
        case itch(ITCHFileWriter)
        case lobster(LOBSTERFileWriter)
    }

    private let writer: Writer
    private let path: String
    public private(set) var messageCount: Int64 = 0

    public init(path: String, format: MarketFormat, compressed: Bool? = nil) throws(MarketDataError) {
        self.path = path
        switch format {
        case .itch50: writer = .itch(try ITCHFileWriter(path: path, compressed: compressed))
        case .lobster: writer = .lobster(try LOBSTERFileWriter(path: path, compressed: compressed))
        }
    }

    /// Bytes written, before compression.
    public var byteCount: Int64 {
        switch writer {
        case .itch(let writer): writer.byteCount
        case .lobster(let writer): writer.byteCount
        }
    }

    /// Appends a record's value; throws if it is not a message of this file's format.
    public func append(value: ByteBuffer, tail: MarketTail? = nil) throws(MarketDataError) {
        do throws(MarketDataError) {
            switch writer {
            case .itch(let writer):
                try writer.append(try ITCHMessage(value))
                if tail == .endMark { try writer.appendEndMark() }
            case .lobster(let writer):
                _ = try LOBSTERMessage(value)
                try writer.append(line: value, newline: tail != .noNewline)
            }
        } catch {
            var located = error
            located.file = located.file ?? path
            located.cause = "message \(messageCount): \(located.cause)"
            throw located
        }
        messageCount += 1
    }

    public func finish() throws(MarketDataError) {
        switch writer {
        case .itch(let writer): try writer.finish()
        case .lobster(let writer): try writer.finish()
        }
    }
}
