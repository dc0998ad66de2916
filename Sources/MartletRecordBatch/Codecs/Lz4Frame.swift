/// LZ4 frame format through liblz4. Exactly one frame, with independent blocks and without dictionary:
/// Java's consumer reads nothing else, so a linked frame that were accepted would stop it.
final class Lz4Decoder {
    private let library: Lz4Library
    private let context: OpaquePointer?
    private var input = UnsafeRawBufferPointer(start: nil, count: 0)
    private var position = 0
    private var frameEnded = false

    /// Nil when the library is missing.
    init?() {
        guard let library = Lz4Library.shared else { return nil }
        var context: OpaquePointer?
        guard library.isError(library.createDecoder(&context, Lz4Library.version)) == 0 else { return nil }
        self.library = library
        self.context = context
    }

    deinit { _ = library.freeDecoder(context) }

    func begin(_ input: UnsafeRawBufferPointer) throws(RecordBatchError) {
        library.resetDecoder(context)
        self.input = input
        position = 0
        frameEnded = false
        // Magic 0x184D2204 little-endian, then FLG: version 01 in bits 7-6, independence in bit 5,
        // reserved bit 1, dictionary in bit 0.
        guard input.count >= 7, input[0] == 0x04, input[1] == 0x22, input[2] == 0x4D, input[3] == 0x18,
            input[4] >> 6 == 1, input[4] & 0x02 == 0
        else { throw .damagedCompression(.lz4) }
        guard input[4] & 0x20 != 0, input[4] & 0x01 == 0 else { throw .unsupportedCompressionFeature(.lz4) }
    }

    func read(into output: UnsafeMutableRawBufferPointer) throws(RecordBatchError) -> Int {
        var written = 0
        while written < output.count, !frameEnded {
            var room = output.count - written
            var taken = input.count - position
            let hint = library.decompress(
                context, output.baseAddress?.advanced(by: written), &room,
                input.baseAddress?.advanced(by: position), &taken, nil)
            guard library.isError(hint) == 0 else { throw .damagedCompression(.lz4) }
            written += room
            position += taken
            if hint == 0 {
                frameEnded = true
                guard position == input.count else { throw .bytesAfterCompression(.lz4) }
            } else if room == 0, taken == 0 {
                throw .damagedCompression(.lz4)  // wants more than there is
            }
        }
        return written
    }

    func forget() { input = UnsafeRawBufferPointer(start: nil, count: 0) }
}

enum Lz4Encoder {
    /// Size of LZ4F_preferences_t.
    private static let preferencesByteCount = 56

    static func bound(_ byteCount: Int, _ library: Lz4Library) -> Int {
        library.frameBound(byteCount, nil) + 64
    }

    static func compress(
        _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer, level: Int,
        _ library: Lz4Library
    ) throws(RecordBatchError) -> Int {
        let count = withUnsafeTemporaryAllocation(byteCount: preferencesByteCount, alignment: 8) {
            preferences in
            preferences.initializeMemory(as: UInt8.self, repeating: 0)
            preferences.storeBytes(of: 4, toByteOffset: 0, as: UInt32.self)  // blocks of 64 KiB
            preferences.storeBytes(of: 1, toByteOffset: 4, as: UInt32.self)  // independent
            // The library's levels start at 3 for the slow compressor; Kafka's 9 is its default too.
            preferences.storeBytes(of: Int32(level), toByteOffset: 32, as: Int32.self)
            return library.compressFrame(
                output.baseAddress, output.count, input.baseAddress, input.count,
                UnsafeRawPointer(preferences.baseAddress))
        }
        guard library.isError(count) == 0 else { throw .compressionFailed(.lz4) }
        return count
    }
}
