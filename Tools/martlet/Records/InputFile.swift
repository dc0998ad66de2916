import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Lines of a descriptor in the chunks in which they arrive, so that typed lines go out at once and files go
/// out fast. The newline is not part of a line; a last line without one counts.
struct LineReader {
    static let chunkBytes = 256 * 1024

    private let descriptor: Int32
    private let lineBytesLimit: Int
    private var pending = ByteBuffer()
    private var ended = false

    init(descriptor: Int32, lineBytesLimit: Int) {
        self.descriptor = descriptor
        self.lineBytesLimit = lineBytesLimit
    }

    /// At least one line, or `nil` at the end. Waits for input.
    mutating func nextLines() throws -> [ByteBuffer]? {
        while !ended {
            var chunk = ByteBufferAllocator().buffer(capacity: pending.readableBytes + Self.chunkBytes)
            chunk.writeImmutableBuffer(pending)
            let searched = pending.readableBytes
            var count = 0
            var code: Int32 = 0
            chunk.writeWithUnsafeMutableBytes(minimumWritableBytes: Self.chunkBytes) { bytes in
                count = read(descriptor, bytes.baseAddress!, bytes.count)
                code = errno
                return max(0, count)
            }
            if count < 0, code == EINTR { continue }
            guard count >= 0 else {
                throw CommandFailure("the input cannot be read: \(SystemCall.text(code))", exitCode: .file)
            }
            if count == 0 {
                ended = true
                pending = ByteBuffer()
                return chunk.readableBytes > 0 ? [chunk] : nil
            }
            var lines: [ByteBuffer] = []
            var from = chunk.readerIndex + searched
            while let end = chunk.viewBytes(at: from, length: chunk.writerIndex - from)?.firstIndex(of: 10) {
                guard let line = chunk.readSlice(length: end - chunk.readerIndex) else { break }
                lines.append(line)
                chunk.moveReaderIndex(forwardBy: 1)
                from = chunk.readerIndex
            }
            pending = chunk
            guard pending.readableBytes <= lineBytesLimit else {
                throw CommandFailure(
                    "a line is longer than \(Decimals.bytes(Int64(lineBytesLimit)))",
                    remedy: "--file sends a whole file as one record", exitCode: .file)
            }
            if !lines.isEmpty { return lines }
        }
        return nil
    }
}

/// Whole small files.
enum InputFile {
    static func contents(_ path: String, limit: Int) throws -> ByteBuffer {
        let descriptor = path == "-" ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw CommandFailure("\(path) cannot be opened: \(SystemCall.text(errno))", exitCode: .file)
        }
        defer { _ = close(descriptor) }
        var buffer = ByteBuffer()
        while true {
            var count = 0
            var code: Int32 = 0
            buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: 64 * 1024) { bytes in
                count = read(descriptor, bytes.baseAddress!, bytes.count)
                code = errno
                return max(0, count)
            }
            if count == 0 { return buffer }
            if count < 0, code != EINTR {
                throw CommandFailure("\(path) cannot be read: \(SystemCall.text(code))", exitCode: .file)
            }
            guard buffer.readableBytes <= limit else {
                throw CommandFailure(
                    "\(path) is larger than \(Decimals.bytes(Int64(limit)))", exitCode: .file)
            }
        }
    }
}
