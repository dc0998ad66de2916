import CMartletZlib

/// Window bits for a gzip wrapper (RFC 1952) around a 32 KiB window, in zlib's encoding.
private let gzipWindowBits: Int32 = 15 + 16

/// RFC 1952 through zlib. Concatenated members are read as one stream, as Java's consumer does.
final class GzipDecoder {
    // Allocated, because zlib keeps a pointer back to the stream.
    private let stream: UnsafeMutablePointer<z_stream>
    private var memberEnded = false

    init?() {
        stream = .allocate(capacity: 1)
        stream.initialize(to: z_stream())
        guard martlet_inflate_init(stream, gzipWindowBits) == Z_OK else {
            stream.deallocate()
            return nil
        }
    }

    deinit {
        inflateEnd(stream)
        stream.deallocate()
    }

    func begin(_ input: UnsafeRawBufferPointer) {
        inflateReset(stream)
        memberEnded = false
        // SAFETY: zlib does not write through next_in; its field lacks the const.
        stream.pointee.next_in = UnsafeMutablePointer(
            mutating: input.baseAddress?.assumingMemoryBound(to: Bytef.self))
        stream.pointee.avail_in = UInt32(input.count)
    }

    func read(into output: UnsafeMutableRawBufferPointer) throws(RecordBatchError) -> Int {
        stream.pointee.next_out = output.baseAddress?.assumingMemoryBound(to: Bytef.self)
        stream.pointee.avail_out = UInt32(output.count)
        while stream.pointee.avail_out > 0 {
            if memberEnded {
                if stream.pointee.avail_in == 0 { break }
                inflateReset(stream)
                memberEnded = false
            }
            switch inflate(stream, Z_NO_FLUSH) {
            case Z_STREAM_END: memberEnded = true
            case Z_OK:
                if stream.pointee.avail_in == 0, stream.pointee.avail_out > 0 {
                    throw .damagedCompression(.gzip)
                }
            default: throw .damagedCompression(.gzip)
            }
        }
        return output.count - Int(stream.pointee.avail_out)
    }

    func forget() {
        stream.pointee.next_in = nil
        stream.pointee.avail_in = 0
        stream.pointee.next_out = nil
        stream.pointee.avail_out = 0
    }
}

/// A reusable deflate state of one level.
final class GzipEncoder {
    let level: Int
    private let stream: UnsafeMutablePointer<z_stream>

    init?(level: Int) {
        self.level = level
        stream = .allocate(capacity: 1)
        stream.initialize(to: z_stream())
        guard martlet_deflate_init(stream, Int32(level), gzipWindowBits) == Z_OK else {
            stream.deallocate()
            return nil
        }
    }

    deinit {
        deflateEnd(stream)
        stream.deallocate()
    }

    /// Resets first: on a finished stream zlib forgets the gzip wrapper in its bound.
    func bound(_ byteCount: Int) -> Int {
        deflateReset(stream)
        return Int(deflateBound(stream, UInt(byteCount)))
    }

    /// Compresses `input` as one member into `output`, which has room for `bound` bytes.
    func compress(
        _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer
    ) throws(RecordBatchError) -> Int {
        deflateReset(stream)
        // SAFETY: zlib does not write through next_in; its field lacks the const.
        stream.pointee.next_in = UnsafeMutablePointer(
            mutating: input.baseAddress?.assumingMemoryBound(to: Bytef.self))
        stream.pointee.avail_in = UInt32(input.count)
        stream.pointee.next_out = output.baseAddress?.assumingMemoryBound(to: Bytef.self)
        stream.pointee.avail_out = UInt32(output.count)
        guard deflate(stream, Z_FINISH) == Z_STREAM_END else { throw .compressionFailed(.gzip) }
        return output.count - Int(stream.pointee.avail_out)
    }
}
