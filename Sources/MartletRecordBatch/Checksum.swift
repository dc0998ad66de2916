import CMartletChecksum
package import NIOCore

/// CRC-32C of `bytes`, continuing from the checksum of what came before (0 at the beginning).
///
/// Costs about 0.05 ns per byte in cache with the processor's instruction, so a frame that arrives in
/// pieces is checksummed piece by piece while it is still in cache.
package func crc32c(_ bytes: UnsafeRawBufferPointer, continuing checksum: UInt32 = 0) -> UInt32 {
    martlet_crc32c(checksum, bytes.baseAddress, bytes.count)
}

/// CRC-32C of the readable bytes of `buffer`.
package func crc32c(_ buffer: ByteBuffer, continuing checksum: UInt32 = 0) -> UInt32 {
    buffer.withUnsafeReadableBytes { crc32c($0, continuing: checksum) }
}

/// CRC-32C of the bytes at `range` (indices of the buffer, as `readerIndex` counts them).
/// `range` must lie within the buffer's readable bytes.
package func crc32c(_ buffer: ByteBuffer, range: Range<Int>, continuing checksum: UInt32 = 0) -> UInt32 {
    precondition(
        range.lowerBound >= buffer.readerIndex && range.upperBound <= buffer.writerIndex,
        "CRC range outside the readable bytes")
    return buffer.withUnsafeReadableBytes { bytes in
        let start = range.lowerBound - buffer.readerIndex
        return crc32c(
            UnsafeRawBufferPointer(rebasing: bytes[start..<start + range.count]), continuing: checksum)
    }
}
