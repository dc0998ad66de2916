package import NIOCore

/// Builds one batch. Records are encoded straight into the batch's final buffer; appending allocates
/// nothing but the growth of that buffer. Not compressed: `build` fills in the header and hands the buffer
/// over. Compressed: the section is compressed into a second buffer.
package struct RecordBatchBuilder: Sendable {
    /// What `build` writes into the header.
    package struct Options: Sendable {
        package var codec: CompressionCodec
        /// Nil: the codec's default.
        package var level: Int?
        package var baseOffset: Int64
        package var partitionLeaderEpoch: Int32
        package var producerID: Int64
        package var producerEpoch: Int16
        package var baseSequence: Int32
        package var isTransactional: Bool
        package var isControl: Bool
        /// Set: the batch gets the log-append-time bit and this time.
        package var logAppendTime: Int64?
        /// Set: the last delta when records after the last one appended were removed by compaction.
        package var lastOffsetDelta: Int32?
        /// Set on rewriting a batch with tombstones (KIP-534): the builder must have been made with this
        /// base timestamp.
        package var hasDeleteHorizon: Bool

        package init(
            codec: CompressionCodec = .none, level: Int? = nil, baseOffset: Int64 = 0,
            partitionLeaderEpoch: Int32 = -1, producerID: Int64 = -1, producerEpoch: Int16 = -1,
            baseSequence: Int32 = -1, isTransactional: Bool = false, isControl: Bool = false,
            logAppendTime: Int64? = nil, lastOffsetDelta: Int32? = nil, hasDeleteHorizon: Bool = false
        ) {
            self.codec = codec
            self.level = level
            self.baseOffset = baseOffset
            self.partitionLeaderEpoch = partitionLeaderEpoch
            self.producerID = producerID
            self.producerEpoch = producerEpoch
            self.baseSequence = baseSequence
            self.isTransactional = isTransactional
            self.isControl = isControl
            self.logAppendTime = logAppendTime
            self.lastOffsetDelta = lastOffsetDelta
            self.hasDeleteHorizon = hasDeleteHorizon
        }
    }

    /// The most a record can take besides its key, value and headers.
    package static let recordOverheadBound = 36

    private var buffer: ByteBuffer
    package private(set) var recordCount: Int32 = 0
    private var lastDelta: Int32 = -1
    private var baseTimestamp: Int64?
    private var maxTimestamp: Int64 = -1

    /// - Parameters:
    ///   - capacity: bytes to reserve at once; the buffer grows beyond it when needed.
    ///   - baseTimestamp: nil takes the first record's.
    package init(
        capacity: Int = 16 * 1024, baseTimestamp: Int64? = nil,
        allocator: ByteBufferAllocator = ByteBufferAllocator()
    ) {
        buffer = allocator.buffer(capacity: max(capacity, RecordBatchHeader.byteCount))
        buffer.writeRepeatingByte(0, count: RecordBatchHeader.byteCount)
        self.baseTimestamp = baseTimestamp
    }

    package var isEmpty: Bool { recordCount == 0 }

    /// Bytes of the batch if it were built now without compression; an upper estimate for every codec
    /// (but for a few bytes of framing on incompressible data).
    package var sizeEstimate: Int { buffer.readableBytes }

    /// Upper bound of the bytes that a record adds.
    package static func byteCountBound(
        key: ByteBuffer?, value: ByteBuffer?, headers: [RecordHeader] = []
    ) -> Int {
        var count = recordOverheadBound + (key?.readableBytes ?? 0) + (value?.readableBytes ?? 0)
        for header in headers { count += 10 + header.key.utf8.count + (header.value?.readableBytes ?? 0) }
        return count
    }

    /// Appends a record with the next offset.
    ///
    /// - Parameter timestamp: milliseconds since 1970, -1 for none.
    /// - Throws: `batchFull` when the batch would exceed what its length field can say; `timestampOverflow`.
    package mutating func append(
        key: ByteBuffer?, value: ByteBuffer?, headers: [RecordHeader] = [], timestamp: Int64
    ) throws(RecordBatchError) {
        guard lastDelta < Int32.max - 1 else { throw .batchFull }
        try append(
            key: key, value: value, headers: headers, timestamp: timestamp, offsetDelta: lastDelta + 1)
    }

    /// Appends a record with a given offset delta, which must exceed those before: compaction keeps gaps.
    package mutating func append(
        key: ByteBuffer?, value: ByteBuffer?, headers: [RecordHeader] = [], timestamp: Int64,
        offsetDelta: Int32
    ) throws(RecordBatchError) {
        precondition(offsetDelta > lastDelta, "offset deltas must rise within a batch")
        let base = baseTimestamp ?? timestamp
        let (timestampDelta, overflow) = timestamp.subtractingReportingOverflow(base)
        guard !overflow else { throw .timestampOverflow(recordIndex: recordCount) }

        let keyCount = key?.readableBytes ?? 0
        let valueCount = value?.readableBytes ?? 0
        var bodyCount =
            1 + varlongByteCount(timestampDelta) + varintByteCount(offsetDelta)
            + (key == nil ? 1 : varintByteCount(clamped(keyCount)) + keyCount)
            + (value == nil ? 1 : varintByteCount(clamped(valueCount)) + valueCount)
            + varintByteCount(clamped(headers.count))
        for header in headers {
            let keyCount = header.key.utf8.count
            bodyCount += varintByteCount(clamped(keyCount)) + keyCount
            let valueCount = header.value?.readableBytes ?? 0
            bodyCount += header.value == nil ? 1 : varintByteCount(clamped(valueCount)) + valueCount
        }
        guard bodyCount <= Int(Int32.max) - RecordBatchHeader.byteCount - 5 else { throw .batchFull }
        let total = varintByteCount(Int32(bodyCount)) + bodyCount
        guard buffer.readableBytes + total <= Int(Int32.max) else { throw .batchFull }

        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: total) { room in
            var position = writeVarint(Int32(bodyCount), room, 0)
            room[position] = 0  // attributes
            position = writeVarlong(timestampDelta, room, position + 1)
            position = writeVarint(offsetDelta, room, position)
            position = writeNullable(key, room, position)
            position = writeNullable(value, room, position)
            position = writeVarint(Int32(headers.count), room, position)
            for header in headers {
                position = writeText(header.key, room, position)
                position = writeNullable(header.value, room, position)
            }
            precondition(position == total, "record size was computed wrong")
            return total
        }
        if baseTimestamp == nil { baseTimestamp = timestamp }
        maxTimestamp = max(maxTimestamp, timestamp)
        lastDelta = offsetDelta
        recordCount += 1
    }

    /// Finishes the batch. The builder is empty and reusable afterwards (with a fresh buffer).
    ///
    /// An empty batch is allowed: compaction keeps the header of a producer's last batch.
    package mutating func build(
        _ options: Options = Options(), compressor: RecordCompressor? = nil
    ) throws(RecordBatchError) -> ByteBuffer {
        let lastOffsetDelta = options.lastOffsetDelta ?? lastDelta
        precondition(lastOffsetDelta >= lastDelta, "the last offset delta lies before the last record")
        var attributes = Int16(recordCount == 0 ? 0 : options.codec.rawValue)
        typealias Attribute = RecordBatchHeader.Attribute
        if options.logAppendTime != nil { attributes |= Attribute.logAppendTime }
        if options.isTransactional { attributes |= Attribute.transactional }
        if options.isControl { attributes |= Attribute.control }
        if options.hasDeleteHorizon { attributes |= Attribute.deleteHorizon }

        var batch = buffer
        if options.codec != .none, recordCount > 0 {
            batch = try (compressor ?? RecordCompressor()).compress(
                buffer, from: RecordBatchHeader.byteCount, codec: options.codec, level: options.level)
            guard batch.readableBytes <= Int(Int32.max) else { throw .batchFull }
        }
        let header = RecordBatchHeader(
            baseOffset: options.baseOffset,
            batchLength: Int32(batch.readableBytes - RecordBatchHeader.lengthPrefixByteCount),
            partitionLeaderEpoch: options.partitionLeaderEpoch, attributes: attributes,
            lastOffsetDelta: lastOffsetDelta, baseTimestamp: baseTimestamp ?? -1,
            maxTimestamp: options.logAppendTime ?? maxTimestamp, producerID: options.producerID,
            producerEpoch: options.producerEpoch, baseSequence: options.baseSequence, recordCount: recordCount
        )
        // Given up first, so that writing the header finds the storage unshared and copies nothing.
        let capacity = buffer.capacity
        buffer = ByteBuffer()
        batch.withUnsafeMutableReadableBytes { header.write(to: $0) }
        RecordBatchPatch.updateChecksum(in: &batch)
        self = RecordBatchBuilder(capacity: min(capacity, Self.keptCapacityLimit))
        return batch
    }

    /// A builder starts its next batch with the capacity that the last one needed, up to this many bytes.
    private static let keptCapacityLimit = 1024 * 1024
}

private func clamped(_ count: Int) -> Int32 { Int32(clamping: count) }

/// A varint length (-1 for nil), then the bytes.
private func writeNullable(_ field: ByteBuffer?, _ room: UnsafeMutableRawBufferPointer, _ position: Int)
    -> Int
{
    guard let field else { return writeVarint(-1, room, position) }
    let start = writeVarint(Int32(field.readableBytes), room, position)
    field.withUnsafeReadableBytes { bytes in
        UnsafeMutableRawBufferPointer(rebasing: room[start..<start + bytes.count]).copyMemory(from: bytes)
    }
    return start + field.readableBytes
}

private func writeText(_ text: String, _ room: UnsafeMutableRawBufferPointer, _ position: Int) -> Int {
    let count = text.utf8.count
    let start = writeVarint(Int32(count), room, position)
    UnsafeMutableRawBufferPointer(rebasing: room[start..<start + count]).copyBytes(from: text.utf8)
    return start + count
}
