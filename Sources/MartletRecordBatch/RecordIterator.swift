package import MartletLogModel
package import NIOCore

/// One record. Key, value and headers are slices of the batch (or of its decompressed section), not copies.
package struct RecordView: Sendable {
    package var offset: Offset
    package var timestamp: Timestamp
    /// Nil is Kafka's null key.
    package var key: ByteBuffer?
    /// Nil is a tombstone on compacted topics.
    package var value: ByteBuffer?
    package var headerCount: Int
    /// The encoded headers, without their count; nil when there are none.
    private var headerBytes: ByteBuffer?

    init(
        offset: Offset, timestamp: Timestamp, key: ByteBuffer?, value: ByteBuffer?, headerCount: Int,
        headerBytes: ByteBuffer?
    ) {
        self.offset = offset
        self.timestamp = timestamp
        self.key = key
        self.value = value
        self.headerCount = headerCount
        self.headerBytes = headerBytes
    }

    /// The headers, in order; the same key may occur more than once. Decoded at each call.
    package var headers: [RecordHeader] {
        var result: [RecordHeader] = []
        guard headerCount > 0, let headerBytes else { return result }
        result.reserveCapacity(headerCount)
        // The iterator has walked these bytes: every length fits and every key is UTF-8.
        headerBytes.withUnsafeReadableBytes { bytes in
            var position = 0
            for _ in 0..<headerCount {
                var length: Int32 = 0
                position = readVarint(bytes, position, bytes.count, &length)
                let keyBytes = UnsafeRawBufferPointer(rebasing: bytes[position..<position + Int(length)])
                let key = String(decoding: keyBytes, as: UTF8.self)
                position = readVarint(bytes, position + Int(length), bytes.count, &length)
                let value =
                    length < 0
                    ? nil : headerBytes.getSlice(at: headerBytes.readerIndex + position, length: Int(length))
                position += max(Int(length), 0)
                result.append(RecordHeader(key: key, value: value))
            }
        }
        return result
    }
}

/// A header of a record (KIP-82).
package struct RecordHeader: Hashable, Sendable {
    package var key: String
    package var value: ByteBuffer?

    package init(key: String, value: ByteBuffer?) {
        self.key = key
        self.value = value
    }
}

/// Yields the records of one batch in offset order. Compressed batches are decompressed once, bounded, at
/// the beginning; after that a record costs its parse and three slices, no allocation.
///
/// The batch must have passed `checkHeader` (or come from a broker that did that): damage behind the
/// header is found and thrown, never trapped on, but the checksum is not looked at here.
package struct RecordIterator: Sendable {
    package let header: RecordBatchHeader
    /// The record section, decompressed.
    private let records: ByteBuffer
    /// Bytes of the record section, decompressed: what keeping the batch costs in memory.
    package var recordByteCount: Int { records.readableBytes }
    private var position = 0
    private var index: Int32 = 0
    private var lastDelta: Int32 = -1

    /// - Parameters:
    ///   - batch: exactly one batch in its readable bytes.
    ///   - decompressor: reused by callers that read many batches on one thread.
    package init(
        _ batch: ByteBuffer, limits: BatchLimits = .stored, decompressor: RecordDecompressor? = nil
    ) throws(RecordBatchError) {
        let header = try RecordBatchHeader(reading: batch)
        guard batch.readableBytes >= header.totalByteCount else {
            throw .truncated(available: batch.readableBytes, needed: header.totalByteCount)
        }
        guard let codec = header.knownCodec else {
            throw .unknownCodec(
                UInt8(truncatingIfNeeded: header.attributes & RecordBatchHeader.Attribute.codecMask))
        }
        guard header.baseOffset >= 0, header.baseOffset <= Int64.max - Int64(Int32.max) - 1 else {
            throw .negativeBaseOffset(header.baseOffset)
        }
        guard header.recordCount >= 0 else {
            throw .recordCountMismatch(
                recordCount: header.recordCount, lastOffsetDelta: header.lastOffsetDelta)
        }
        self.header = header
        let section = batch.getSlice(
            at: batch.readerIndex + RecordBatchHeader.byteCount,
            length: header.totalByteCount - RecordBatchHeader.byteCount)
        guard let section else {
            throw .truncated(available: batch.readableBytes, needed: header.totalByteCount)
        }
        if codec == .none || (section.readableBytes == 0 && header.recordCount == 0) {
            records = section
        } else {
            records = try decompress(
                section, codec, limit: limits.maxInflatedBytes, decompressor ?? RecordDecompressor())
        }
    }

    /// The next record, or nil after the last.
    package mutating func next() throws(RecordBatchError) -> RecordView? {
        let index = index
        let position = position
        let recordCount = header.recordCount
        guard index < recordCount else {
            guard position == records.readableBytes else {
                throw .bytesAfterLastRecord(declared: recordCount)
            }
            return nil
        }
        var fields = RecordFields()
        let outcome: Result<Int, RecordBatchError> = records.withUnsafeReadableBytes { bytes in
            Result { () throws(RecordBatchError) in
                var length: Int32 = 0
                guard position < bytes.count else {
                    throw .tooFewRecords(found: index, declared: recordCount)
                }
                let start = readVarint(bytes, position, bytes.count, &length)
                guard start >= 0 else {
                    throw start == VarintFailure.overflow
                        ? .varintOverflow(recordIndex: index) : .recordTruncated(recordIndex: index)
                }
                guard length > 0 else { throw .recordLength(recordIndex: index, length: length) }
                guard Int(length) <= bytes.count - start else { throw .recordTruncated(recordIndex: index) }
                try parseRecord(bytes, start, start + Int(length), index: index, &fields)
                return start + Int(length)
            }
        }
        let end = try outcome.get()
        guard fields.offsetDelta > lastDelta, fields.offsetDelta <= header.lastOffsetDelta else {
            throw .unexpectedOffsetDelta(recordIndex: index, offsetDelta: fields.offsetDelta)
        }
        let (created, overflow) = header.baseTimestamp.addingReportingOverflow(fields.timestampDelta)
        guard !overflow else { throw .timestampOverflow(recordIndex: index) }
        self.position = end
        self.index = index + 1
        lastDelta = fields.offsetDelta
        return RecordView(
            offset: Offset(header.baseOffset + Int64(fields.offsetDelta)),
            timestamp: Timestamp(
                milliseconds: header.timestampType == .logAppendTime ? header.maxTimestamp : created),
            key: slice(fields.keyStart, fields.keyLength),
            value: slice(fields.valueStart, fields.valueLength),
            headerCount: Int(fields.headerCount),
            headerBytes: fields.headerCount == 0 ? nil : slice(fields.headersStart, end - fields.headersStart)
        )
    }

    private func slice(_ start: Int, _ length: Int) -> ByteBuffer? {
        length < 0 ? nil : records.getSlice(at: records.readerIndex + start, length: length)
    }
}

/// Decompresses `section` completely, into a buffer that grows with what is really there.
private func decompress(
    _ section: ByteBuffer, _ codec: CompressionCodec, limit: Int, _ decompressor: RecordDecompressor
) throws(RecordBatchError) -> ByteBuffer {
    var output = ByteBufferAllocator().buffer(capacity: min(max(section.readableBytes * 4, 4096), limit))
    let outcome: Result<Void, RecordBatchError> = section.withUnsafeReadableBytes { input in
        Result { () throws(RecordBatchError) in
            try decompressor.begin(codec, input: input, outputLimit: limit)
            defer { decompressor.end() }
            while true {
                var step: Result<Int, RecordBatchError> = .success(0)
                if output.writableBytes == 0 { output.reserveCapacity(minimumWritableBytes: output.capacity) }
                output.writeWithUnsafeMutableBytes(minimumWritableBytes: 1) { room in
                    step = Result { () throws(RecordBatchError) in try decompressor.read(into: room) }
                    if case .success(let count) = step { return count }
                    return 0
                }
                if try step.get() == 0 { return }
                guard output.readableBytes <= limit else { throw .inflatedTooLarge(codec, limit: limit) }
            }
        }
    }
    try outcome.get()
    return output
}
