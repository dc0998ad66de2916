import MartletLogModel
package import NIOCore

/// Judges batches from outside. Neither function changes the batch.
package enum RecordBatchValidator {
    /// Checks everything that the 61 header bytes and the checksum can tell; walks no record. `batch` holds
    /// exactly one batch in its readable bytes. Costs one pass of the checksum.
    ///
    /// - Throws: see ``RecordBatchError``; the order of checks is damage, size, checksum, then meaning.
    package static func checkHeader(
        _ batch: ByteBuffer, limits: BatchLimits
    ) throws(RecordBatchError) -> RecordBatchHeader {
        let outcome: Result<RecordBatchHeader, RecordBatchError> = batch.withUnsafeReadableBytes { bytes in
            Result { () throws(RecordBatchError) in
                try checkHeaderBytes(bytes, limits: limits, knownChecksum: nil)
            }
        }
        return try outcome.get()
    }

    /// The same where the checksum over bytes 21 to the end was already folded while they arrived.
    package static func checkHeader(
        _ batch: ByteBuffer, limits: BatchLimits, checksum: UInt32
    ) throws(RecordBatchError) -> RecordBatchHeader {
        let outcome: Result<RecordBatchHeader, RecordBatchError> = batch.withUnsafeReadableBytes { bytes in
            Result { () throws(RecordBatchError) in
                try checkHeaderBytes(bytes, limits: limits, knownChecksum: checksum)
            }
        }
        return try outcome.get()
    }

    /// Walks the records: in place, or through a streaming decompressor with bounded output, which comes from
    /// a small pool shared by all threads.
    package static func checkRecords(
        _ batch: ByteBuffer, header: RecordBatchHeader, limits: BatchLimits, requireKeys: Bool
    ) throws(RecordBatchError) -> RecordFacts {
        if header.codec == .none {
            return try checkUncompressedRecords(
                batch, header: header, limits: limits, requireKeys: requireKeys)
        }
        let validator = ValidatorPool.take()
        defer { ValidatorPool.giveBack(validator) }
        return try validator.checkRecords(batch, header: header, limits: limits, requireKeys: requireKeys)
    }
}

/// Idle validators: making one costs more than checking a small batch (a zlib state is 40 KiB).
private enum ValidatorPool {
    /// Validators kept; about as many as threads that validate at the same time.
    private static let keptLimit = 8

    // SAFETY: a validator is in the pool or with one thread, never both; the mutex hands it over.
    private struct Idle: @unchecked Sendable {
        var validators: [RecordValidator] = []
    }

    private static let idle = Guarded(Idle())

    static func take() -> RecordValidator {
        let kept = idle.withLock { idle in idle.validators.popLast().map(Handover.init) }
        return kept?.validator ?? RecordValidator()
    }

    static func giveBack(_ validator: RecordValidator) {
        let handover = Handover(validator: validator)
        idle.withLock { idle in
            if idle.validators.count < keptLimit { idle.validators.append(handover.validator) }
        }
    }

    // SAFETY: as for `Idle`.
    private struct Handover: @unchecked Sendable {
        let validator: RecordValidator
    }
}

/// The header rules over raw bytes.
func checkHeaderBytes(
    _ bytes: UnsafeRawBufferPointer, limits: BatchLimits, knownChecksum: UInt32?
) throws(RecordBatchError) -> RecordBatchHeader {
    guard !bytes.isEmpty else { throw .empty }
    let header = try RecordBatchHeader(reading: bytes)
    let byteCount = header.totalByteCount
    guard byteCount <= limits.maxBatchBytes else {
        throw .tooLarge(byteCount: byteCount, limit: limits.maxBatchBytes)
    }
    guard byteCount <= bytes.count else { throw .truncated(available: bytes.count, needed: byteCount) }
    guard byteCount == bytes.count else { throw .bytesAfterBatch(bytes.count - byteCount) }
    let computed =
        knownChecksum
        ?? crc32c(UnsafeRawBufferPointer(rebasing: bytes[RecordBatchHeader.checksumStart...]))
    guard computed == header.crc else { throw .checksumMismatch(stored: header.crc, computed: computed) }
    try checkMeaning(header, limits: limits)
    return header
}

/// Rules between the fields of a header whose bytes are sound.
private func checkMeaning(_ header: RecordBatchHeader, limits: BatchLimits) throws(RecordBatchError) {
    typealias Attribute = RecordBatchHeader.Attribute
    guard header.attributes & Attribute.reserved == 0 else { throw .reservedAttributes(header.attributes) }
    guard header.knownCodec != nil else {
        throw .unknownCodec(UInt8(truncatingIfNeeded: header.attributes & Attribute.codecMask))
    }
    guard header.baseOffset >= 0, header.baseOffset <= Int64.max - Int64(Int32.max) - 1 else {
        throw .negativeBaseOffset(header.baseOffset)
    }
    if header.producerID >= 0 {
        // A stored marker of a transaction has an epoch but no sequence.
        guard header.producerEpoch >= 0, header.baseSequence >= 0 || header.isControl else {
            throw invalidProducerFields(header)
        }
    } else {
        guard header.producerID == -1 else { throw invalidProducerFields(header) }
        if header.isTransactional, !header.isControl { throw .transactionalWithoutProducer }
    }
    switch limits.origin {
    case .producer:
        guard header.recordCount > 0, header.lastOffsetDelta == header.recordCount - 1 else {
            throw countMismatch(header)
        }
        guard !header.isControl else { throw .controlBatchFromClient }
        guard !header.hasDeleteHorizon else { throw .deleteHorizonFromClient }
        guard header.timestampType == .createTime else { throw .logAppendTimeFromClient }
        // The base is the first record's time and the maximum the last word on all of them.
        try checkTimestamp(header.baseTimestamp, limits: limits)
        try checkTimestamp(header.maxTimestamp, limits: limits)
    case .stored:
        // Compaction may have removed records from anywhere, all of them even.
        guard header.recordCount >= 0, header.lastOffsetDelta >= 0,
            Int64(header.recordCount) <= Int64(header.lastOffsetDelta) + 1
        else { throw countMismatch(header) }
    }
}

private func checkTimestamp(_ timestamp: Int64, limits: BatchLimits) throws(RecordBatchError) {
    guard timestamp == -1 || (timestamp >= limits.earliestTimestamp && timestamp <= limits.latestTimestamp)
    else {
        throw .timestampOutOfRange(
            timestamp: timestamp, earliest: limits.earliestTimestamp, latest: limits.latestTimestamp)
    }
}

private func invalidProducerFields(_ header: RecordBatchHeader) -> RecordBatchError {
    .invalidProducerFields(
        producerID: header.producerID, producerEpoch: header.producerEpoch, baseSequence: header.baseSequence)
}

private func countMismatch(_ header: RecordBatchHeader) -> RecordBatchError {
    .recordCountMismatch(recordCount: header.recordCount, lastOffsetDelta: header.lastOffsetDelta)
}

/// In place; allocates nothing.
private func checkUncompressedRecords(
    _ batch: ByteBuffer, header: RecordBatchHeader, limits: BatchLimits, requireKeys: Bool
) throws(RecordBatchError) -> RecordFacts {
    precondition(
        batch.readableBytes == header.totalByteCount, "checkRecords needs the header of this very batch")
    let outcome: Result<RecordFacts, RecordBatchError> = batch.withUnsafeReadableBytes { bytes in
        Result { () throws(RecordBatchError) in
            var walk = RecordWalk(header: header, limits: limits, requireKeys: requireKeys)
            let records = UnsafeRawBufferPointer(rebasing: bytes[RecordBatchHeader.byteCount...])
            _ = try walkRecords(records, isEnd: true, windowIsFull: false, &walk)
            try walk.finish()
            return walk.facts(header: header, byteCount: records.count)
        }
    }
    return try outcome.get()
}

extension RecordWalk {
    func facts(header: RecordBatchHeader, byteCount: Int) -> RecordFacts {
        let appendTime = header.timestampType == .logAppendTime
        return RecordFacts(
            recordCount: index,
            maxTimestamp: appendTime || index == 0 ? header.maxTimestamp : maxTimestamp,
            maxTimestampOffsetDelta: appendTime ? header.lastOffsetDelta : maxTimestampOffsetDelta,
            recordByteCount: byteCount)
    }
}

/// The record walk with its own decompressors and window: reusable, one per thread of a validation pool.
/// Memory: 64 KiB of window plus the codecs' contexts, whatever the batches hold.
///
/// Not thread safe.
package final class RecordValidator {
    /// Bytes of the window through which compressed records are walked.
    private static let windowByteCount = 64 * 1024

    private let decompressor = RecordDecompressor()
    private let window: UnsafeMutableRawBufferPointer

    package init() {
        window = .allocate(byteCount: Self.windowByteCount, alignment: 16)
    }

    deinit { window.deallocate() }

    /// See ``RecordBatchValidator/checkRecords(_:header:limits:requireKeys:)``. `header` must come from
    /// `checkHeader` on the same batch.
    package func checkRecords(
        _ batch: ByteBuffer, header: RecordBatchHeader, limits: BatchLimits, requireKeys: Bool
    ) throws(RecordBatchError) -> RecordFacts {
        if header.codec == .none {
            return try checkUncompressedRecords(
                batch, header: header, limits: limits, requireKeys: requireKeys)
        }
        precondition(
            batch.readableBytes == header.totalByteCount, "checkRecords needs the header of this very batch")
        let outcome: Result<RecordFacts, RecordBatchError> = batch.withUnsafeReadableBytes { bytes in
            Result { () throws(RecordBatchError) in
                try walkCompressed(
                    UnsafeRawBufferPointer(rebasing: bytes[RecordBatchHeader.byteCount...]), header: header,
                    limits: limits, requireKeys: requireKeys)
            }
        }
        return try outcome.get()
    }

    private func walkCompressed(
        _ input: UnsafeRawBufferPointer, header: RecordBatchHeader, limits: BatchLimits, requireKeys: Bool
    ) throws(RecordBatchError) -> RecordFacts {
        // A batch that compaction emptied has no compressed section at all.
        var walk = RecordWalk(header: header, limits: limits, requireKeys: requireKeys)
        if input.isEmpty, header.recordCount == 0 { return walk.facts(header: header, byteCount: 0) }
        try decompressor.begin(header.codec, input: input, outputLimit: limits.maxInflatedBytes)
        defer { decompressor.end() }

        var filled = 0  // bytes of the window not yet walked
        var total = 0
        var isEnd = false
        while !isEnd {
            let count = try decompressor.read(
                into: UnsafeMutableRawBufferPointer(rebasing: window[filled...]))
            total += count
            guard total <= limits.maxInflatedBytes else {
                throw .inflatedTooLarge(header.codec, limit: limits.maxInflatedBytes)
            }
            filled += count
            isEnd = count == 0
            let walked = try walkRecords(
                UnsafeRawBufferPointer(rebasing: window[..<filled]), isEnd: isEnd,
                windowIsFull: filled == window.count, &walk)
            filled -= walked
            if walked > 0, filled > 0, let base = window.baseAddress {
                base.copyMemory(from: base.advanced(by: walked), byteCount: filled)
            }
        }
        try walk.finish()
        return walk.facts(header: header, byteCount: total)
    }
}
