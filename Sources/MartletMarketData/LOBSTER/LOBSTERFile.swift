public import NIOCore

/// Reader of a LOBSTER message file, plain or gzip. Line bytes stay exactly as they are.
public final class LOBSTERFileReader {
    /// Longest line accepted; real ones have about 40 bytes.
    public static let lineBytesLimit = 1024

    private let input: MarketFileInput
    /// Lines handed out so far.
    public private(set) var lineCount: Int64 = 0
    /// Whether the last line lacks its newline; known after the last line.
    public private(set) var lacksFinalNewline = false

    public init(path: String) throws(MarketDataError) { input = try MarketFileInput(path: path) }

    public var path: String { input.path }
    /// Offset in the unpacked stream of the next line.
    public var offset: Int64 { input.offset }

    public func close() { input.close() }

    /// The next message, or `nil` at the end; errors name line and offset.
    public func next() throws(MarketDataError) -> LOBSTERMessage? {
        let place = input.offset
        var end = input.distance(to: UInt8(ascii: "\n"), from: 0)
        if end == nil {
            try input.require(Self.lineBytesLimit + 1)
            end = input.distance(to: UInt8(ascii: "\n"), from: 0)
        }
        if end == nil, input.available == 0 { return nil }
        if end == nil, input.available <= Self.lineBytesLimit {
            lacksFinalNewline = true
            end = input.available
        }
        guard let count = end, count <= Self.lineBytesLimit else {
            throw MarketDataError(
                .badContent, file: path, offset: place, line: lineCount + 1,
                cause: "the line is longer than \(Self.lineBytesLimit) bytes",
                remedy: "check that the file is a LOBSTER message file")
        }
        let bytes = input.take(count)
        if !lacksFinalNewline { input.skip(1) }
        lineCount += 1
        do throws(MarketDataError) {
            return try LOBSTERMessage(bytes)
        } catch {
            var located = error
            located.file = path
            located.offset = place
            located.line = lineCount
            throw located
        }
    }
}

/// Writer of LOBSTER message files.
public final class LOBSTERFileWriter {
    private let output: MarketFileOutput
    public private(set) var lineCount: Int64 = 0

    public init(path: String, compressed: Bool? = nil) throws(MarketDataError) {
        output = try MarketFileOutput(path: path, compressed: compressed)
    }

    public var byteCount: Int64 { output.byteCount }

    /// Writes a line and, unless told otherwise, its newline.
    public func append(line: ByteBuffer, newline: Bool = true) throws(MarketDataError) {
        try output.write(line)
        if newline { try output.writeByte(UInt8(ascii: "\n")) }
        lineCount += 1
    }

    public func finish() throws(MarketDataError) { try output.finish() }
}
