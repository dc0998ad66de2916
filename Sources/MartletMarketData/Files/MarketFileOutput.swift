import CMartletZlib
public import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Streaming writer of a plain or gzip-compressed file. The gzip header carries no time and no name, so
/// the same input gives the same file.
public final class MarketFileOutput {
    /// Bytes gathered before the file is touched.
    public static let chunkBytes = 256 * 1024

    public let path: String
    /// Bytes written so far, before compression.
    public private(set) var byteCount: Int64 = 0

    private var descriptor: Int32
    private var pending: ByteBuffer
    private var deflater: Deflater?

    /// Creates or overwrites `path` (`-` is standard output), compressed if `compressed` says so or, when
    /// it is `nil`, if the name ends in `.gz`.
    public init(path: String, compressed: Bool? = nil) throws(MarketDataError) {
        self.path = path
        self.pending = ByteBufferAllocator().buffer(capacity: Self.chunkBytes + 4096)
        if compressed ?? path.hasSuffix(".gz") {
            guard let deflater = Deflater() else {
                throw MarketDataError(.gzip, file: path, cause: "zlib could not allocate its state")
            }
            self.deflater = deflater
        }
        self.descriptor =
            path == "-" ? dup(STDOUT_FILENO) : open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            throw MarketFileInput.systemError("cannot be written", path: path, code: errno)
        }
    }

    deinit {
        // Last resort only: without `finish()` the tail of the stream is missing.
        if descriptor >= 0 { _ = Glibc.close(descriptor) }
    }

    public func write(_ bytes: ByteBuffer) throws(MarketDataError) {
        byteCount += Int64(bytes.readableBytes)
        pending.writeImmutableBuffer(bytes)
        if pending.readableBytes >= Self.chunkBytes { try flush(finishing: false) }
    }

    func writeInteger(_ value: UInt16) throws(MarketDataError) {
        byteCount += 2
        pending.writeInteger(value)
    }

    func writeByte(_ value: UInt8) throws(MarketDataError) {
        byteCount += 1
        pending.writeInteger(value)
    }

    /// Writes what is left, ends the gzip stream and closes the file.
    public func finish() throws(MarketDataError) {
        guard descriptor >= 0 else { return }
        try flush(finishing: true)
        let result = Glibc.close(descriptor)
        descriptor = -1
        guard result == 0 else {
            throw MarketFileInput.systemError("cannot be closed", path: path, code: errno)
        }
    }

    private func flush(finishing: Bool) throws(MarketDataError) {
        guard let deflater else {
            try writeAll(pending)
            pending.clear()
            return
        }
        var packed = ByteBufferAllocator().buffer(capacity: Self.chunkBytes)
        while true {
            let outcome = pending.withUnsafeMutableReadableBytes { input in
                packed.writeWithUnsafeMutableBytesAndOutcome(minimumWritableBytes: 64 * 1024) { output in
                    deflater.run(input: input, output: output, finishing: finishing)
                }
            }
            pending.moveReaderIndex(forwardBy: outcome.consumed)
            if let problem = outcome.problem {
                throw MarketDataError(.gzip, file: path, cause: "compression failed (\(problem))")
            }
            if packed.readableBytes >= Self.chunkBytes {
                try writeAll(packed)
                packed.clear()
            }
            if finishing ? deflater.ended : pending.readableBytes == 0 { break }
        }
        try writeAll(packed)
        pending.clear()
    }

    private func writeAll(_ bytes: ByteBuffer) throws(MarketDataError) {
        var rest = bytes
        while rest.readableBytes > 0 {
            let count = rest.withUnsafeReadableBytes { raw in
                retryingInterrupts { Glibc.write(descriptor, raw.baseAddress!, raw.count) }
            }
            guard count > 0 else {
                throw MarketFileInput.systemError("cannot be written", path: path, code: errno)
            }
            rest.moveReaderIndex(forwardBy: count)
        }
    }
}

/// Owner of one zlib deflate state.
final class Deflater {
    /// zlib's usual trade of speed against size.
    static let level: Int32 = 6

    // SAFETY: allocated in init, freed in deinit, used only by the one writer that owns this object.
    private let stream: UnsafeMutablePointer<z_stream>
    private(set) var ended = false

    init?() {
        stream = .allocate(capacity: 1)
        stream.initialize(to: z_stream())
        guard martlet_deflate_init(stream, Self.level, 15 + 16) == Z_OK else {
            stream.deallocate()
            return nil
        }
    }

    deinit {
        deflateEnd(stream)
        stream.deallocate()
    }

    func run(
        input: UnsafeMutableRawBufferPointer, output: UnsafeMutableRawBufferPointer, finishing: Bool
    ) -> InflateOutcome {
        // SAFETY: both buffers are bytes that outlive the call; zlib keeps no pointer between calls that is read
        // before it is set here again.
        // SAFETY: zlib keeps these pointers only until its call below returns; both buffers outlive that.
        stream.pointee.next_in = input.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.pointee.avail_in = UInt32(clamping: input.count)
        stream.pointee.next_out = output.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.pointee.avail_out = UInt32(clamping: output.count)
        let code = deflate(stream, finishing ? Z_FINISH : Z_NO_FLUSH)
        var outcome = InflateOutcome(
            consumed: input.count - Int(stream.pointee.avail_in),
            produced: output.count - Int(stream.pointee.avail_out), problem: nil)
        if code == Z_STREAM_END { ended = true }
        if code == Z_STREAM_ERROR { outcome.problem = "zlib code \(code)" }
        return outcome
    }
}
