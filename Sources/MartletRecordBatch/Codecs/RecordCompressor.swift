package import NIOCore

/// Compresses record sections; keeps the codecs' contexts between batches. One object per thread or
/// producer. Not thread safe.
package final class RecordCompressor {
    private var gzip: GzipEncoder?
    private var zstd: ZstdEncoder?

    package init() {}

    /// A buffer with `from` zero bytes (room for the header) and the compressed rest of `source` behind them.
    package func compress(
        _ source: ByteBuffer, from start: Int, codec: CompressionCodec, level: Int?
    ) throws(RecordBatchError) -> ByteBuffer {
        let level = level ?? codec.defaultLevel
        if let levels = codec.levels, !levels.contains(level) { throw .invalidLevel(codec, level: level) }
        let byteCount = source.readableBytes - start
        var gzip: GzipEncoder?
        var zstd: ZstdEncoder?
        var bound = 0
        switch codec {
        case .none: preconditionFailure("nothing to compress")
        case .gzip:
            if self.gzip?.level != level { self.gzip = GzipEncoder(level: level) }
            guard let encoder = self.gzip else { throw .compressionFailed(.gzip) }
            gzip = encoder
            bound = encoder.bound(byteCount)
        case .zstd:
            if self.zstd == nil { self.zstd = ZstdEncoder() }
            guard let encoder = self.zstd else { throw .codecUnavailable(.zstd) }
            zstd = encoder
            bound = encoder.bound(byteCount)
        case .lz4:
            guard let library = Lz4Library.shared else { throw .codecUnavailable(.lz4) }
            bound = Lz4Encoder.bound(byteCount, library)
        case .snappy:
            guard let library = SnappyLibrary.shared else { throw .codecUnavailable(.snappy) }
            bound = SnappyEncoder.bound(byteCount, library)
        }

        var output = ByteBufferAllocator().buffer(capacity: start + bound)
        output.writeRepeatingByte(0, count: start)
        var outcome: Result<Int, RecordBatchError> = .success(0)
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: bound) { room in
            source.withUnsafeReadableBytes { bytes in
                let input = UnsafeRawBufferPointer(rebasing: bytes[start...])
                outcome = Result { () throws(RecordBatchError) in
                    if let gzip { return try gzip.compress(input, into: room) }
                    if let zstd { return try zstd.compress(input, into: room, level: level) }
                    if codec == .lz4, let library = Lz4Library.shared {
                        return try Lz4Encoder.compress(input, into: room, level: level, library)
                    }
                    if codec == .snappy, let library = SnappyLibrary.shared {
                        return try SnappyEncoder.compress(input, into: room, library)
                    }
                    throw .codecUnavailable(codec)
                }
            }
            if case .success(let count) = outcome { return count }
            return 0
        }
        _ = try outcome.get()
        return output
    }
}
