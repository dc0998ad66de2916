/// Zstandard through libzstd. Concatenated frames are read as one stream, as Java's consumer does.
final class ZstdDecoder {
    /// Largest window a frame may ask for, as a power of two: 128 MiB, which the highest levels of Kafka's
    /// producer use. The window is address space; its pages are touched only as far as output is written,
    /// which the output limit bounds.
    private static let windowLogLimit: Int32 = 27
    /// A context above this size is given back after the batch.
    private static let keptByteLimit = 16 * 1024 * 1024

    private let library: ZstdLibrary
    private let context: OpaquePointer
    private var input = ZstdInput(source: nil, byteCount: 0, position: 0)
    private var frameEnded = true

    /// Nil when the library is missing.
    init?() {
        guard let library = ZstdLibrary.shared, let context = library.createDecoder() else { return nil }
        self.library = library
        self.context = context
    }

    deinit { _ = library.freeDecoder(context) }

    func begin(_ bytes: UnsafeRawBufferPointer) throws(RecordBatchError) {
        _ = library.resetDecoder(context, ZstdLibrary.resetSession)
        let status = library.setDecoderParameter(
            context, ZstdLibrary.windowLogLimitParameter, Self.windowLogLimit)
        guard library.isError(status) == 0 else { throw .codecUnavailable(.zstd) }
        input = ZstdInput(source: bytes.baseAddress, byteCount: bytes.count, position: 0)
        frameEnded = bytes.isEmpty
    }

    func read(into bytes: UnsafeMutableRawBufferPointer) throws(RecordBatchError) -> Int {
        var output = ZstdOutput(destination: bytes.baseAddress, byteCount: bytes.count, position: 0)
        while output.position < output.byteCount {
            if frameEnded, input.position == input.byteCount { break }
            let (inputBefore, outputBefore) = (input.position, output.position)
            let hint = library.decompress(context, &output, &input)
            guard library.isError(hint) == 0 else { throw .damagedCompression(.zstd) }
            frameEnded = hint == 0
            if !frameEnded, input.position == inputBefore, output.position == outputBefore {
                throw .damagedCompression(.zstd)  // wants more than there is
            }
        }
        return output.position
    }

    /// Returns false when the context has grown too large to keep.
    func end() -> Bool {
        input = ZstdInput(source: nil, byteCount: 0, position: 0)
        return library.decoderByteCount(context) <= Self.keptByteLimit
    }
}

/// A reusable compression context.
final class ZstdEncoder {
    private let library: ZstdLibrary
    private let context: OpaquePointer

    init?() {
        guard let library = ZstdLibrary.shared, let context = library.createEncoder() else { return nil }
        self.library = library
        self.context = context
    }

    deinit { _ = library.freeEncoder(context) }

    func bound(_ byteCount: Int) -> Int { library.compressBound(byteCount) }

    func compress(
        _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer, level: Int
    ) throws(RecordBatchError) -> Int {
        let count = library.compress(
            context, output.baseAddress, output.count, input.baseAddress, input.count, Int32(level))
        guard library.isError(count) == 0 else { throw .compressionFailed(.zstd) }
        return count
    }
}
