#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// A shared library of the system, loaded at run time, so that the program starts without it and only the
/// codec that needs it is refused. It is never unloaded.
struct SharedLibrary {
    // SAFETY: the handle is written once and only passed to dlsym, which is thread safe.
    nonisolated(unsafe) private let handle: UnsafeMutableRawPointer

    /// Nil when the library cannot be loaded.
    init?(file: String) {
        guard let handle = dlopen(file, RTLD_NOW | RTLD_LOCAL) else { return nil }
        self.handle = handle
    }

    /// The C function `name`; `type` must be its exact signature. Nil when the library lacks it.
    func function<Signature>(_ name: String, as type: Signature.Type) -> Signature? {
        guard let symbol = dlsym(handle, name) else { return nil }
        // SAFETY: a C function pointer and a data pointer have the same representation (POSIX dlsym), and the
        // callers state the signatures of the libraries' stable interfaces.
        return unsafeBitCast(symbol, to: type)
    }
}

/// liblz4's frame interface (stable since 1.7.3).
struct Lz4Library: Sendable {
    typealias CreateDecoder =
        @convention(c) @Sendable (UnsafeMutablePointer<OpaquePointer?>, UInt32) -> Int
    typealias FreeDecoder = @convention(c) @Sendable (OpaquePointer?) -> Int
    typealias ResetDecoder = @convention(c) @Sendable (OpaquePointer?) -> Void
    typealias Decompress =
        @convention(c) @Sendable (
            OpaquePointer?, UnsafeMutableRawPointer?, UnsafeMutablePointer<Int>, UnsafeRawPointer?,
            UnsafeMutablePointer<Int>, UnsafeRawPointer?
        ) -> Int
    typealias IsError = @convention(c) @Sendable (Int) -> UInt32
    typealias FrameBound = @convention(c) @Sendable (Int, UnsafeRawPointer?) -> Int
    typealias CompressFrame =
        @convention(c) @Sendable (UnsafeMutableRawPointer?, Int, UnsafeRawPointer?, Int, UnsafeRawPointer?) ->
        Int

    /// LZ4F_VERSION of the interface.
    static let version: UInt32 = 100

    let createDecoder: CreateDecoder
    let freeDecoder: FreeDecoder
    let resetDecoder: ResetDecoder
    let decompress: Decompress
    let isError: IsError
    let frameBound: FrameBound
    let compressFrame: CompressFrame

    static let shared = Lz4Library(file: CompressionCodec.lz4.library?.file ?? "")

    init?(file: String) {
        guard let library = SharedLibrary(file: file),
            let createDecoder = library.function("LZ4F_createDecompressionContext", as: CreateDecoder.self),
            let freeDecoder = library.function("LZ4F_freeDecompressionContext", as: FreeDecoder.self),
            let resetDecoder = library.function("LZ4F_resetDecompressionContext", as: ResetDecoder.self),
            let decompress = library.function("LZ4F_decompress", as: Decompress.self),
            let isError = library.function("LZ4F_isError", as: IsError.self),
            let frameBound = library.function("LZ4F_compressFrameBound", as: FrameBound.self),
            let compressFrame = library.function("LZ4F_compressFrame", as: CompressFrame.self)
        else { return nil }
        self.createDecoder = createDecoder
        self.freeDecoder = freeDecoder
        self.resetDecoder = resetDecoder
        self.decompress = decompress
        self.isError = isError
        self.frameBound = frameBound
        self.compressFrame = compressFrame
    }
}

/// ZSTD_inBuffer: bytes to read, their count, how far reading got.
struct ZstdInput {
    var source: UnsafeRawPointer?
    var byteCount: Int
    var position: Int
}

/// ZSTD_outBuffer: room to write, its size, how far writing got.
struct ZstdOutput {
    var destination: UnsafeMutableRawPointer?
    var byteCount: Int
    var position: Int
}

/// libzstd's streaming decoder and one-shot encoder (stable since 1.4.0).
struct ZstdLibrary: Sendable {
    typealias Create = @convention(c) @Sendable () -> OpaquePointer?
    typealias Free = @convention(c) @Sendable (OpaquePointer?) -> Int
    typealias Reset = @convention(c) @Sendable (OpaquePointer?, Int32) -> Int
    typealias SetParameter = @convention(c) @Sendable (OpaquePointer?, Int32, Int32) -> Int
    typealias Decompress =
        @convention(c) @Sendable (OpaquePointer?, UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int
    typealias SizeOf = @convention(c) @Sendable (OpaquePointer?) -> Int
    typealias IsError = @convention(c) @Sendable (Int) -> UInt32
    typealias CompressBound = @convention(c) @Sendable (Int) -> Int
    typealias Compress =
        @convention(c) @Sendable (
            OpaquePointer?, UnsafeMutableRawPointer?, Int, UnsafeRawPointer?, Int, Int32
        ) -> Int

    /// ZSTD_d_windowLogMax.
    static let windowLogLimitParameter: Int32 = 100
    /// ZSTD_reset_session_only.
    static let resetSession: Int32 = 1

    let createDecoder: Create
    let freeDecoder: Free
    let resetDecoder: Reset
    let setDecoderParameter: SetParameter
    let decompress: Decompress
    let decoderByteCount: SizeOf
    let createEncoder: Create
    let freeEncoder: Free
    let compressBound: CompressBound
    let compress: Compress
    let isError: IsError

    static let shared = ZstdLibrary(file: CompressionCodec.zstd.library?.file ?? "")

    init?(file: String) {
        guard let library = SharedLibrary(file: file),
            let createDecoder = library.function("ZSTD_createDCtx", as: Create.self),
            let freeDecoder = library.function("ZSTD_freeDCtx", as: Free.self),
            let resetDecoder = library.function("ZSTD_DCtx_reset", as: Reset.self),
            let setDecoderParameter = library.function("ZSTD_DCtx_setParameter", as: SetParameter.self),
            let decompress = library.function("ZSTD_decompressStream", as: Decompress.self),
            let decoderByteCount = library.function("ZSTD_sizeof_DCtx", as: SizeOf.self),
            let createEncoder = library.function("ZSTD_createCCtx", as: Create.self),
            let freeEncoder = library.function("ZSTD_freeCCtx", as: Free.self),
            let compressBound = library.function("ZSTD_compressBound", as: CompressBound.self),
            let compress = library.function("ZSTD_compressCCtx", as: Compress.self),
            let isError = library.function("ZSTD_isError", as: IsError.self)
        else { return nil }
        self.createDecoder = createDecoder
        self.freeDecoder = freeDecoder
        self.resetDecoder = resetDecoder
        self.setDecoderParameter = setDecoderParameter
        self.decompress = decompress
        self.decoderByteCount = decoderByteCount
        self.createEncoder = createEncoder
        self.freeEncoder = freeEncoder
        self.compressBound = compressBound
        self.compress = compress
        self.isError = isError
    }
}

/// libsnappy's C interface; every function answers 0 for success.
struct SnappyLibrary: Sendable {
    typealias MaxLength = @convention(c) @Sendable (Int) -> Int
    typealias Transform =
        @convention(c) @Sendable (
            UnsafeRawPointer?, Int, UnsafeMutableRawPointer?, UnsafeMutablePointer<Int>
        ) -> Int32
    typealias UncompressedLength =
        @convention(c) @Sendable (UnsafeRawPointer?, Int, UnsafeMutablePointer<Int>) -> Int32

    let maxCompressedLength: MaxLength
    let compress: Transform
    let uncompress: Transform
    let uncompressedLength: UncompressedLength

    static let shared = SnappyLibrary(file: CompressionCodec.snappy.library?.file ?? "")

    init?(file: String) {
        guard let library = SharedLibrary(file: file),
            let maxCompressedLength = library.function("snappy_max_compressed_length", as: MaxLength.self),
            let compress = library.function("snappy_compress", as: Transform.self),
            let uncompress = library.function("snappy_uncompress", as: Transform.self),
            let uncompressedLength = library.function(
                "snappy_uncompressed_length", as: UncompressedLength.self)
        else { return nil }
        self.maxCompressedLength = maxCompressedLength
        self.compress = compress
        self.uncompress = uncompress
        self.uncompressedLength = uncompressedLength
    }
}
