// Snappy has no stream format of its own. Kafka's Java clients write the framing of xerial's snappy-java
// (a 16-byte header, then blocks with a big-endian length each); librdkafka writes one bare block. Both
// are read, the framing is written.

/// First eight bytes of the framing, big-endian: 0x82, "SNAPPY", 0. Two 32-bit versions follow.
private let framingMagic: UInt64 = 0x8253_4E41_5050_5900
private let framingHeaderByteCount = 16

final class SnappyDecoder {
    /// The block buffer is given back after a batch that needed more than this.
    private static let keptByteLimit = 1024 * 1024

    private let library: SnappyLibrary
    private var input = UnsafeRawBufferPointer(start: nil, count: 0)
    private var position = 0
    private var framed = false
    private var outputLimit = 0
    private var block: [UInt8] = []
    private var blockStart = 0
    private var blockEnd = 0

    /// Nil when the library is missing.
    init?() {
        guard let library = SnappyLibrary.shared else { return nil }
        self.library = library
    }

    func begin(_ input: UnsafeRawBufferPointer, outputLimit: Int) {
        self.input = input
        self.outputLimit = outputLimit
        framed =
            input.count >= framingHeaderByteCount
            && UInt64(bigEndian: input.loadUnaligned(as: UInt64.self)) == framingMagic
        position = framed ? framingHeaderByteCount : 0
        blockStart = 0
        blockEnd = 0
    }

    func read(into output: UnsafeMutableRawBufferPointer) throws(RecordBatchError) -> Int {
        var written = 0
        while written < output.count {
            if blockStart == blockEnd {
                guard position < input.count else { break }
                try nextBlock()
            }
            let count = min(blockEnd - blockStart, output.count - written)
            block.withUnsafeBytes { source in
                UnsafeMutableRawBufferPointer(rebasing: output[written..<written + count])
                    .copyMemory(
                        from: UnsafeRawBufferPointer(rebasing: source[blockStart..<blockStart + count]))
            }
            blockStart += count
            written += count
        }
        return written
    }

    private func nextBlock() throws(RecordBatchError) {
        var count = input.count - position
        if framed {
            guard count >= 4 else { throw .damagedCompression(.snappy) }
            let declared = Int32(bigEndian: input.loadUnaligned(fromByteOffset: position, as: Int32.self))
            position += 4
            guard declared > 0, Int(declared) <= count - 4 else { throw .damagedCompression(.snappy) }
            count = Int(declared)
        }
        let source = input.baseAddress?.advanced(by: position)
        var byteCount = 0
        guard library.uncompressedLength(source, count, &byteCount) == 0 else {
            throw .damagedCompression(.snappy)
        }
        // The densest element is a copy of 64 bytes in 3, so a greater length is a lie, known before any
        // memory is taken for it.
        guard byteCount >= 0, byteCount / 64 <= count / 3 + 1 else { throw .damagedCompression(.snappy) }
        guard byteCount <= outputLimit else { throw .inflatedTooLarge(.snappy, limit: outputLimit) }
        if block.count < byteCount { block = [UInt8](repeating: 0, count: byteCount) }
        let status = block.withUnsafeMutableBytes {
            library.uncompress(source, count, $0.baseAddress, &byteCount)
        }
        guard status == 0 else { throw .damagedCompression(.snappy) }
        position += count
        blockStart = 0
        blockEnd = byteCount
    }

    func forget() {
        input = UnsafeRawBufferPointer(start: nil, count: 0)
        if block.count > Self.keptByteLimit { block = [] }
    }
}

enum SnappyEncoder {
    /// Uncompressed bytes of a block, as snappy-java chooses by default.
    private static let blockByteCount = 32 * 1024

    static func bound(_ byteCount: Int, _ library: SnappyLibrary) -> Int {
        let blocks = byteCount / blockByteCount + 1
        return framingHeaderByteCount + blocks * (4 + library.maxCompressedLength(blockByteCount))
    }

    static func compress(
        _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer, _ library: SnappyLibrary
    ) throws(RecordBatchError) -> Int {
        output.storeBytes(of: framingMagic.bigEndian, as: UInt64.self)
        // Version and oldest compatible version are both 1.
        output.storeBytes(of: Int32(1).bigEndian, toByteOffset: 8, as: Int32.self)
        output.storeBytes(of: Int32(1).bigEndian, toByteOffset: 12, as: Int32.self)
        var written = framingHeaderByteCount
        var position = 0
        while position < input.count {
            let count = min(blockByteCount, input.count - position)
            var compressed = output.count - written - 4
            let status = library.compress(
                input.baseAddress?.advanced(by: position), count,
                output.baseAddress?.advanced(by: written + 4),
                &compressed)
            guard status == 0 else { throw .compressionFailed(.snappy) }
            output.storeBytes(of: Int32(compressed).bigEndian, toByteOffset: written, as: Int32.self)
            written += 4 + compressed
            position += count
        }
        return written
    }
}
