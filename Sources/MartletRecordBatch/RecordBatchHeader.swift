package import NIOCore

/// Whose clock the timestamps of a batch are: bit 3 of its attributes.
package enum TimestampType: Sendable {
    case createTime
    case logAppendTime
}

/// A copy of the 61 header bytes of a record batch v2, in host order. Layout and reasons:
/// `Protocol/Formats/record-batch.md`.
///
/// Reading one proves only that the bytes are there and that magic and length are possible; see
/// ``RecordBatchValidator`` for everything else.
package struct RecordBatchHeader: Hashable, Sendable {
    /// Bytes of the header, length field included.
    package static let byteCount = 61
    /// Bytes before the region that the length field counts: base offset and the length itself.
    package static let lengthPrefixByteCount = 12
    /// First byte that the checksum covers (the attributes).
    package static let checksumStart = 21

    package var baseOffset: Int64
    /// Bytes after the length field, at least 49.
    package var batchLength: Int32
    package var partitionLeaderEpoch: Int32
    package var magic: Int8
    package var crc: UInt32
    package var attributes: Int16
    /// Offset of the last record minus the base offset; also the last sequence minus the base sequence.
    package var lastOffsetDelta: Int32
    package var baseTimestamp: Int64
    package var maxTimestamp: Int64
    /// -1 without idempotence.
    package var producerID: Int64
    package var producerEpoch: Int16
    package var baseSequence: Int32
    package var recordCount: Int32

    package init(
        baseOffset: Int64 = 0, batchLength: Int32 = 49, partitionLeaderEpoch: Int32 = -1, magic: Int8 = 2,
        crc: UInt32 = 0, attributes: Int16 = 0, lastOffsetDelta: Int32 = -1, baseTimestamp: Int64 = -1,
        maxTimestamp: Int64 = -1, producerID: Int64 = -1, producerEpoch: Int16 = -1, baseSequence: Int32 = -1,
        recordCount: Int32 = 0
    ) {
        self.baseOffset = baseOffset
        self.batchLength = batchLength
        self.partitionLeaderEpoch = partitionLeaderEpoch
        self.magic = magic
        self.crc = crc
        self.attributes = attributes
        self.lastOffsetDelta = lastOffsetDelta
        self.baseTimestamp = baseTimestamp
        self.maxTimestamp = maxTimestamp
        self.producerID = producerID
        self.producerEpoch = producerEpoch
        self.baseSequence = baseSequence
        self.recordCount = recordCount
    }

    /// Reads the header at `index` (an index of the buffer, as `readerIndex` counts them).
    ///
    /// - Throws: `truncated`, `unknownMagic`, `oldFormat`, `invalidLength`.
    package init(reading buffer: ByteBuffer, at index: Int) throws(RecordBatchError) {
        let outcome: Result<RecordBatchHeader, RecordBatchError> = buffer.withUnsafeReadableBytes { bytes in
            let start = index - buffer.readerIndex
            guard start >= 0, start <= bytes.count else {
                return .failure(.truncated(available: 0, needed: RecordBatchHeader.byteCount))
            }
            return Result { () throws(RecordBatchError) in
                try RecordBatchHeader(reading: UnsafeRawBufferPointer(rebasing: bytes[start...]))
            }
        }
        self = try outcome.get()
    }

    /// Reads the header at the start of the readable bytes.
    package init(reading buffer: ByteBuffer) throws(RecordBatchError) {
        self = try RecordBatchHeader(reading: buffer, at: buffer.readerIndex)
    }

    /// Reads the header at the start of `bytes`, which need not hold the whole batch.
    package init(reading bytes: UnsafeRawBufferPointer) throws(RecordBatchError) {
        // The magic byte is at the same place in all formats, so it comes first: an old batch may be shorter.
        guard bytes.count > 16 else { throw .truncated(available: bytes.count, needed: Self.byteCount) }
        let magic = Int8(bitPattern: bytes[16])
        guard magic == 2 else {
            throw magic == 0 || magic == 1 ? .oldFormat(magic: magic) : .unknownMagic(magic)
        }
        guard bytes.count >= Self.byteCount else {
            throw .truncated(available: bytes.count, needed: Self.byteCount)
        }
        self.baseOffset = Int64(bigEndian: bytes.loadUnaligned(fromByteOffset: 0, as: Int64.self))
        self.batchLength = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: Int32.self))
        self.partitionLeaderEpoch = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: 12, as: Int32.self))
        self.magic = magic
        self.crc = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 17, as: UInt32.self))
        self.attributes = Int16(bigEndian: bytes.loadUnaligned(fromByteOffset: 21, as: Int16.self))
        self.lastOffsetDelta = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: 23, as: Int32.self))
        self.baseTimestamp = Int64(bigEndian: bytes.loadUnaligned(fromByteOffset: 27, as: Int64.self))
        self.maxTimestamp = Int64(bigEndian: bytes.loadUnaligned(fromByteOffset: 35, as: Int64.self))
        self.producerID = Int64(bigEndian: bytes.loadUnaligned(fromByteOffset: 43, as: Int64.self))
        self.producerEpoch = Int16(bigEndian: bytes.loadUnaligned(fromByteOffset: 51, as: Int16.self))
        self.baseSequence = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: 53, as: Int32.self))
        self.recordCount = Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: 57, as: Int32.self))
        guard batchLength >= Int32(Self.byteCount - Self.lengthPrefixByteCount) else {
            throw .invalidLength(batchLength)
        }
    }

    /// Writes the 61 bytes to the start of `bytes`, as they stand (the checksum is not computed).
    func write(to bytes: UnsafeMutableRawBufferPointer) {
        bytes.storeBytes(of: baseOffset.bigEndian, toByteOffset: 0, as: Int64.self)
        bytes.storeBytes(of: batchLength.bigEndian, toByteOffset: 8, as: Int32.self)
        bytes.storeBytes(of: partitionLeaderEpoch.bigEndian, toByteOffset: 12, as: Int32.self)
        bytes[16] = UInt8(bitPattern: magic)
        bytes.storeBytes(of: crc.bigEndian, toByteOffset: 17, as: UInt32.self)
        bytes.storeBytes(of: attributes.bigEndian, toByteOffset: 21, as: Int16.self)
        bytes.storeBytes(of: lastOffsetDelta.bigEndian, toByteOffset: 23, as: Int32.self)
        bytes.storeBytes(of: baseTimestamp.bigEndian, toByteOffset: 27, as: Int64.self)
        bytes.storeBytes(of: maxTimestamp.bigEndian, toByteOffset: 35, as: Int64.self)
        bytes.storeBytes(of: producerID.bigEndian, toByteOffset: 43, as: Int64.self)
        bytes.storeBytes(of: producerEpoch.bigEndian, toByteOffset: 51, as: Int16.self)
        bytes.storeBytes(of: baseSequence.bigEndian, toByteOffset: 53, as: Int32.self)
        bytes.storeBytes(of: recordCount.bigEndian, toByteOffset: 57, as: Int32.self)
    }
}

extension RecordBatchHeader {
    /// Bytes of the whole batch, base offset and length field included.
    @inlinable package var totalByteCount: Int { Int(batchLength) + 12 }

    /// Offset of the last record. Wraps on hostile input; ``RecordBatchValidator`` refuses such batches.
    @inlinable package var lastOffset: Int64 { baseOffset &+ Int64(lastOffsetDelta) }

    /// Bits 0-2 of the attributes; nil for the three codes that mean nothing.
    @inlinable package var knownCodec: CompressionCodec? {
        CompressionCodec(rawValue: UInt8(truncatingIfNeeded: attributes & 0x07))
    }

    /// The codec of a validated batch. An unknown code reads as `none`; see ``knownCodec``.
    @inlinable package var codec: CompressionCodec { knownCodec ?? .none }

    @inlinable package var timestampType: TimestampType {
        attributes & Attribute.logAppendTime == 0 ? .createTime : .logAppendTime
    }

    @inlinable package var isTransactional: Bool { attributes & Attribute.transactional != 0 }

    @inlinable package var isControl: Bool { attributes & Attribute.control != 0 }

    /// Whether the base timestamp is the time after which tombstones and abort markers may go (KIP-534).
    @inlinable package var hasDeleteHorizon: Bool { attributes & Attribute.deleteHorizon != 0 }

    @inlinable package var hasProducerID: Bool { producerID >= 0 }

    /// Sequence of the last record; sequences wrap from 2^31 - 1 to 0. Nil without a producer id.
    @inlinable package var lastSequence: Int32? {
        hasProducerID ? RecordBatchHeader.sequence(baseSequence, plus: lastOffsetDelta) : nil
    }

    /// The sequence `count` after `sequence`, both at least 0.
    @inlinable package static func sequence(_ sequence: Int32, plus count: Int32) -> Int32 {
        Int32(truncatingIfNeeded: (Int64(sequence) + Int64(count)) & 0x7FFF_FFFF)
    }

    /// Bits of the attributes beside the codec.
    package enum Attribute {
        @usableFromInline package static let codecMask: Int16 = 0x07
        @usableFromInline package static let logAppendTime: Int16 = 0x08
        @usableFromInline package static let transactional: Int16 = 0x10
        @usableFromInline package static let control: Int16 = 0x20
        @usableFromInline package static let deleteHorizon: Int16 = 0x40
        /// Bits that no release gives a meaning.
        @usableFromInline package static let reserved = ~Int16(0x7F)
    }
}
