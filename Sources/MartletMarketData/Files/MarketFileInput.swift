import CMartletZlib
import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Streaming reader of a plain or gzip-compressed file (told apart by the two magic bytes, not by name).
/// Several gzip members in one file read as one stream, as `gzip -d` does.
///
/// Bytes are handed out as slices of chunk buffers, so a message costs no allocation of its own. Not
/// `Sendable`: one reader belongs to one task.
public final class MarketFileInput {
    /// Bytes unpacked per refill. Large enough that system calls and zlib calls vanish in the profile,
    /// small enough that a retained slice pins little memory.
    public static let chunkBytes = 256 * 1024
    /// Longest single piece a caller may ask for: above any ITCH message (65,535) and any CSV line.
    public static let pieceBytesLimit = 128 * 1024

    /// The file as named by the caller; used in errors.
    public let path: String
    /// Offset in the unpacked stream of the next byte to be handed out.
    public private(set) var offset: Int64 = 0

    private var descriptor: Int32
    private var unpacked: ByteBuffer
    private var packed: [UInt8]
    private var packedRange: Range<Int>
    private var inflater: Inflater?
    private var fileEnded = false

    /// Opens `path`; `-` is standard input.
    public init(path: String) throws(MarketDataError) {
        self.path = path
        self.unpacked = ByteBufferAllocator().buffer(capacity: Self.chunkBytes)
        self.packed = [UInt8](repeating: 0, count: Self.chunkBytes)
        self.packedRange = 0..<0
        self.descriptor = path == "-" ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw Self.systemError("cannot be opened", path: path, code: errno) }
        var status = stat()
        if fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFDIR {
            _ = Glibc.close(descriptor)
            throw MarketDataError(.file, file: path, cause: "is a directory", remedy: "name a file")
        }
        while packedRange.count < 2, !fileEnded { try fillPacked() }
        if packedRange.count >= 2, packed[0] == 0x1f, packed[1] == 0x8b {
            guard let inflater = Inflater() else {
                throw MarketDataError(.gzip, file: path, cause: "zlib could not allocate its state")
            }
            self.inflater = inflater
        }
    }

    deinit { close() }

    /// Closes the file; harmless to repeat.
    public func close() {
        guard descriptor >= 0 else { return }
        _ = Glibc.close(descriptor)
        descriptor = -1
    }

    /// Whether the file is gzip-compressed.
    public var isCompressed: Bool { inflater != nil }

    /// Bytes that can be handed out without touching the file.
    var available: Int { unpacked.readableBytes }

    /// Makes at least `count` bytes available if the stream still has that many; returns what there is.
    @discardableResult
    func require(_ count: Int) throws(MarketDataError) -> Int {
        precondition(count <= Self.pieceBytesLimit, "piece of \(count) bytes is above the limit")
        while unpacked.readableBytes < count {
            guard try refill() else { break }
        }
        return unpacked.readableBytes
    }

    /// The next `count` bytes, which the caller has made available with ``require(_:)``.
    func take(_ count: Int) -> ByteBuffer {
        guard let slice = unpacked.readSlice(length: count) else {
            preconditionFailure("take(\(count)) with \(unpacked.readableBytes) bytes available")
        }
        offset += Int64(count)
        return slice
    }

    /// Byte `index` places ahead, which the caller has made available.
    func peek(_ index: Int) -> UInt8 {
        guard let byte = unpacked.getInteger(at: unpacked.readerIndex + index, as: UInt8.self) else {
            preconditionFailure("peek(\(index)) with \(unpacked.readableBytes) bytes available")
        }
        return byte
    }

    func skip(_ count: Int) {
        unpacked.moveReaderIndex(forwardBy: count)
        offset += Int64(count)
    }

    /// Distance to the next `byte` among the available bytes from `start` on.
    func distance(to byte: UInt8, from start: Int) -> Int? {
        unpacked.readableBytesView.dropFirst(start).firstIndex(of: byte).map { $0 - unpacked.readerIndex }
    }

    // MARK: Refilling

    /// Unpacks one more chunk behind what is left; `false` at the end of the stream.
    private func refill() throws(MarketDataError) -> Bool {
        // A new buffer each time: slices of the old one may be alive, and writing on would copy all of it.
        var next = ByteBufferAllocator().buffer(capacity: unpacked.readableBytes + Self.chunkBytes)
        next.writeImmutableBuffer(unpacked)
        unpacked = next
        var added = 0
        while added < Self.chunkBytes {
            if packedRange.isEmpty {
                if fileEnded { break }
                try fillPacked()
                continue
            }
            if inflater == nil {
                added += unpacked.writeBytes(packed[packedRange])
                packedRange = packedRange.upperBound..<packedRange.upperBound
            } else {
                added += try inflateSome()
            }
        }
        if added == 0, let inflater, !inflater.atMemberEnd {
            throw MarketDataError(
                .gzip, file: path, offset: offset + Int64(unpacked.readableBytes),
                cause: "the gzip stream ends before its trailer", remedy: "fetch the file again")
        }
        return added > 0
    }

    private func fillPacked() throws(MarketDataError) {
        let start = packedRange.isEmpty ? 0 : packedRange.upperBound
        let count = packed.withUnsafeMutableBytes { bytes in
            retryingInterrupts { read(descriptor, bytes.baseAddress! + start, bytes.count - start) }
        }
        guard count >= 0 else { throw Self.systemError("cannot be read", path: path, code: errno) }
        if count == 0 { fileEnded = true }
        packedRange = (packedRange.isEmpty ? 0 : packedRange.lowerBound)..<(start + count)
    }

    private func inflateSome() throws(MarketDataError) -> Int {
        guard let inflater else { return 0 }
        if inflater.atMemberEnd {
            // Another member follows, or zero padding (tapes and some tools pad), which is skipped.
            while let first = packedRange.first, packed[first] == 0 { packedRange.removeFirst() }
            if packedRange.isEmpty { return 0 }
            inflater.reset()
        }
        let outcome = packed.withUnsafeMutableBytes { input in
            unpacked.writeWithUnsafeMutableBytesAndOutcome(minimumWritableBytes: 1) { output in
                inflater.run(
                    input: UnsafeMutableRawBufferPointer(rebasing: input[packedRange]),
                    output: output)
            }
        }
        packedRange = (packedRange.lowerBound + outcome.consumed)..<packedRange.upperBound
        if let problem = outcome.problem {
            throw MarketDataError(
                .gzip, file: path, offset: offset + Int64(unpacked.readableBytes),
                cause: "the gzip stream is damaged (\(problem))", remedy: "fetch the file again")
        }
        return outcome.produced
    }

    static func systemError(_ what: String, path: String, code: Int32) -> MarketDataError {
        MarketDataError(.file, file: path, cause: "\(what): \(String(cString: strerror(code)))")
    }
}

/// Repeats a system call that a signal interrupted.
func retryingInterrupts(_ call: () -> Int) -> Int {
    while true {
        let result = call()
        if result >= 0 || errno != EINTR { return result }
    }
}

struct InflateOutcome {
    var consumed: Int
    var produced: Int
    var problem: String?
}

extension ByteBuffer {
    mutating func writeWithUnsafeMutableBytesAndOutcome(
        minimumWritableBytes: Int, _ body: (UnsafeMutableRawBufferPointer) -> InflateOutcome
    ) -> InflateOutcome {
        var result = InflateOutcome(consumed: 0, produced: 0, problem: nil)
        writeWithUnsafeMutableBytes(minimumWritableBytes: minimumWritableBytes) { bytes in
            result = body(bytes)
            return result.produced
        }
        return result
    }
}

/// Owner of one zlib inflate state. The state lives on the heap since zlib keeps a pointer to it.
final class Inflater {
    // SAFETY: allocated in init, freed in deinit, used only by the one reader that owns this object.
    private let stream: UnsafeMutablePointer<z_stream>
    private(set) var atMemberEnd = false

    init?() {
        stream = .allocate(capacity: 1)
        stream.initialize(to: z_stream())
        // 16 on top of the window size: gzip wrapping with its CRC-32 check.
        guard martlet_inflate_init(stream, 15 + 16) == Z_OK else {
            stream.deallocate()
            return nil
        }
    }

    deinit {
        inflateEnd(stream)
        stream.deallocate()
    }

    func reset() {
        inflateReset(stream)
        atMemberEnd = false
    }

    func run(input: UnsafeMutableRawBufferPointer, output: UnsafeMutableRawBufferPointer) -> InflateOutcome {
        // SAFETY: both buffers are bytes that outlive the call; zlib keeps no pointer between calls that is read
        // before it is set here again.
        // SAFETY: zlib keeps these pointers only until its call below returns; both buffers outlive that.
        stream.pointee.next_in = input.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.pointee.avail_in = UInt32(clamping: input.count)
        stream.pointee.next_out = output.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.pointee.avail_out = UInt32(clamping: output.count)
        let code = inflate(stream, Z_NO_FLUSH)
        var outcome = InflateOutcome(
            consumed: input.count - Int(stream.pointee.avail_in),
            produced: output.count - Int(stream.pointee.avail_out), problem: nil)
        switch code {
        case Z_STREAM_END: atMemberEnd = true
        case Z_OK: break
        case Z_BUF_ERROR where outcome.consumed > 0 || outcome.produced > 0: break
        case _: outcome.problem = stream.pointee.msg.map { String(cString: $0) } ?? "zlib code \(code)"
        }
        return outcome
    }
}
