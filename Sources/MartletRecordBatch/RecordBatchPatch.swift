package import NIOCore

/// Changes to a batch in place. `buffer` holds exactly one batch of format 2 in its readable bytes.
///
/// Offset and leader epoch lie outside the checksum, so assigning them costs two stores; the timestamp
/// changes need a new checksum over the batch. None of them touches the records.
///
/// The `set…` functions have `ByteBuffer`'s value semantics: when other slices share the storage (as the
/// record section of a received frame does), the whole batch is copied first. On the append path use
/// ``assign(baseOffset:leaderEpoch:throughSharedStorageOf:)``, which never copies.
package enum RecordBatchPatch {
    /// Offset and epoch in one step and without a copy, as the leader does at each append: the bytes change for every
    /// buffer that shares them.
    ///
    /// The caller owns the bytes: they were received for this append alone, nobody reads the header at
    /// the same time, and the same storage is not appended twice (a batch that is to go to two places
    /// must be copied first).
    package static func assign(
        baseOffset: Int64, leaderEpoch: Int32, throughSharedStorageOf buffer: ByteBuffer
    ) {
        precondition(buffer.readableBytes >= RecordBatchHeader.byteCount, "no batch header to patch")
        buffer.withUnsafeReadableBytes { bytes in
            // SAFETY: ByteBuffer storage is always mutable heap memory, and the caller owns these bytes (above).
            let writable = UnsafeMutableRawBufferPointer(mutating: bytes)
            writable.storeBytes(of: baseOffset.bigEndian, toByteOffset: 0, as: Int64.self)
            writable.storeBytes(of: leaderEpoch.bigEndian, toByteOffset: 12, as: Int32.self)
        }
    }

    /// `message.timestamp.type=LogAppendTime`: all records count as appended at `timestamp` (KIP-32).
    package static func setLogAppendTime(_ timestamp: Int64, in buffer: inout ByteBuffer) {
        precondition(buffer.readableBytes >= RecordBatchHeader.byteCount, "no batch header to patch")
        let start = buffer.readerIndex
        let low = UInt8(truncatingIfNeeded: RecordBatchHeader.Attribute.logAppendTime)
        buffer.withUnsafeMutableReadableBytes { bytes in bytes[22] |= low }
        buffer.setInteger(timestamp, at: start + 35)
        updateChecksum(in: &buffer)
    }

    /// Repairs a header whose maximum differs from its records' (see ``RecordFacts/maxTimestamp``): time
    /// index and retention rely on it.
    package static func setMaxTimestamp(_ timestamp: Int64, in buffer: inout ByteBuffer) {
        precondition(buffer.readableBytes >= RecordBatchHeader.byteCount, "no batch header to patch")
        buffer.setInteger(timestamp, at: buffer.readerIndex + 35)
        updateChecksum(in: &buffer)
    }

    /// Recomputes the checksum after a change within its region.
    package static func updateChecksum(in buffer: inout ByteBuffer) {
        let start = buffer.readerIndex
        let checksum = crc32c(buffer, range: start + RecordBatchHeader.checksumStart..<buffer.writerIndex)
        buffer.setInteger(checksum, at: start + 17)
    }
}
