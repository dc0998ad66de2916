/// Streams the record section of compressed batches out into a caller's window. One object per thread,
/// used for one batch after the other: the codecs' contexts are made at first use and kept.
///
/// Not thread safe. Between `begin` and `end` the input must stay where it is.
package final class RecordDecompressor {
    private var gzip: GzipDecoder?
    private var lz4: Lz4Decoder?
    private var zstd: ZstdDecoder?
    private var snappy: SnappyDecoder?
    private var codec = CompressionCodec.none

    package init() {}

    /// Starts on `input`, the complete compressed section.
    ///
    /// - Parameter outputLimit: bound of what the caller will take; bounds the size of a snappy block.
    func begin(
        _ codec: CompressionCodec, input: UnsafeRawBufferPointer, outputLimit: Int
    ) throws(RecordBatchError) {
        self.codec = codec
        switch codec {
        case .none: preconditionFailure("nothing to decompress")
        case .gzip:
            if gzip == nil { gzip = GzipDecoder() }
            guard let gzip else { throw .codecUnavailable(.gzip) }
            gzip.begin(input)
        case .lz4:
            if lz4 == nil { lz4 = Lz4Decoder() }
            guard let lz4 else { throw .codecUnavailable(.lz4) }
            try lz4.begin(input)
        case .zstd:
            if zstd == nil { zstd = ZstdDecoder() }
            guard let zstd else { throw .codecUnavailable(.zstd) }
            try zstd.begin(input)
        case .snappy:
            if snappy == nil { snappy = SnappyDecoder() }
            guard let snappy else { throw .codecUnavailable(.snappy) }
            snappy.begin(input, outputLimit: outputLimit)
        }
    }

    /// Fills `output` as far as possible; 0 means that the data ended where the input ended.
    /// `output` must not be empty.
    func read(into output: UnsafeMutableRawBufferPointer) throws(RecordBatchError) -> Int {
        switch codec {
        case .none: 0
        case .gzip: try gzip?.read(into: output) ?? 0
        case .lz4: try lz4?.read(into: output) ?? 0
        case .zstd: try zstd?.read(into: output) ?? 0
        case .snappy: try snappy?.read(into: output) ?? 0
        }
    }

    /// Forgets the input and gives back memory beyond what ordinary batches need.
    func end() {
        switch codec {
        case .none: break
        case .gzip: gzip?.forget()
        case .lz4: lz4?.forget()
        case .zstd: if zstd?.end() == false { zstd = nil }
        case .snappy: snappy?.forget()
        }
        codec = .none
    }
}
