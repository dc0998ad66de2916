// The structural walk over records. It reads lengths and numbers and skips the rest, so its cost is per
// record, not per byte. Records come either all at once (uncompressed) or through the window of a
// decompressor; there, a record that is larger than the window is walked piece by piece.

/// Smallest record: attributes, both deltas, key and value length, header count, one byte each.
private let smallestRecordByteCount: Int32 = 6

/// State of a walk over one batch.
struct RecordWalk {
    let recordCount: Int32
    let lastOffsetDelta: Int32
    let baseTimestamp: Int64
    /// Offset deltas must run 0, 1, 2 …; stored batches may have gaps where compaction removed records.
    let consecutive: Bool
    let requireKeys: Bool
    /// False where append times override the records' own, and for batches accepted before.
    let checksTimestamps: Bool
    let earliestTimestamp: Int64
    let latestTimestamp: Int64

    var index: Int32 = 0
    var lastDelta: Int32 = -1
    var maxTimestamp = Int64.min
    var maxTimestampOffsetDelta: Int32 = 0
    /// Set while a record that does not fit the window is being walked.
    var partial: PartialRecord?
    /// Records without the key that they need, the first ones; the client is told of each (KIP-467).
    var keyless: [Int32] = []
    private static let keylessLimit = 1_000

    init(header: RecordBatchHeader, limits: BatchLimits, requireKeys: Bool) {
        recordCount = header.recordCount
        lastOffsetDelta = header.lastOffsetDelta
        baseTimestamp = header.baseTimestamp
        consecutive = limits.origin == .producer
        self.requireKeys = requireKeys
        checksTimestamps = limits.origin == .producer && header.timestampType == .createTime
        earliestTimestamp = limits.earliestTimestamp
        latestTimestamp = limits.latestTimestamp
    }

    /// Takes the fixed fields of the record at `index`.
    mutating func noteRecord(timestampDelta: Int64, offsetDelta: Int32) throws(RecordBatchError) {
        guard index < recordCount else { throw .bytesAfterLastRecord(declared: recordCount) }
        if consecutive {
            guard offsetDelta == index else {
                throw .unexpectedOffsetDelta(recordIndex: index, offsetDelta: offsetDelta)
            }
        } else {
            guard offsetDelta > lastDelta, offsetDelta <= lastOffsetDelta else {
                throw .unexpectedOffsetDelta(recordIndex: index, offsetDelta: offsetDelta)
            }
        }
        lastDelta = offsetDelta
        let (timestamp, overflow) = baseTimestamp.addingReportingOverflow(timestampDelta)
        guard !overflow else { throw .timestampOverflow(recordIndex: index) }
        if checksTimestamps, timestamp != -1, timestamp < earliestTimestamp || timestamp > latestTimestamp {
            throw .timestampOutOfRange(
                timestamp: timestamp, earliest: earliestTimestamp, latest: latestTimestamp)
        }
        if timestamp > maxTimestamp {
            maxTimestamp = timestamp
            maxTimestampOffsetDelta = offsetDelta
        }
    }

    /// The record at `index` has no key.
    mutating func noteMissingKey() {
        if requireKeys, keyless.count < Self.keylessLimit { keyless.append(index) }
    }

    /// After the last byte: were there as many records as declared?
    func finish() throws(RecordBatchError) {
        if partial != nil { throw .recordTruncated(recordIndex: index) }
        guard index == recordCount else { throw .tooFewRecords(found: index, declared: recordCount) }
        guard keyless.isEmpty else { throw .missingKeys(recordIndexes: keyless) }
    }

    func varintError(_ failure: Int) -> RecordBatchError {
        failure == VarintFailure.overflow
            ? .varintOverflow(recordIndex: index) : .recordTruncated(recordIndex: index)
    }
}

/// Walks the records that lie completely in `bytes` and returns how many bytes they take.
///
/// - Parameters:
///   - isEnd: no more bytes follow; a record cut by the end is an error then.
///   - windowIsFull: a record at the start that is cut by the end will not become whole by waiting, so it
///     is walked in pieces, and the return value can lie within it.
func walkRecords(
    _ bytes: UnsafeRawBufferPointer, isEnd: Bool, windowIsFull: Bool, _ walk: inout RecordWalk
) throws(RecordBatchError) -> Int {
    let end = bytes.count
    var position = 0
    if walk.partial != nil {
        position = try walkPartialRecord(bytes, 0, isEnd: isEnd, &walk)
        if walk.partial != nil { return position }
    }
    while position < end {
        var length: Int32 = 0
        let body = readVarint(bytes, position, end, &length)
        if body < 0 {
            if body == VarintFailure.truncated, !isEnd { return position }
            throw walk.varintError(body)
        }
        guard length >= smallestRecordByteCount else {
            throw .recordLength(recordIndex: walk.index, length: length)
        }
        let recordEnd = body + Int(length)
        if recordEnd > end {
            if isEnd { throw .recordTruncated(recordIndex: walk.index) }
            guard windowIsFull, position == 0 else { return position }
            walk.partial = PartialRecord(bytesLeft: Int(length))
            return try walkPartialRecord(bytes, body, isEnd: false, &walk)
        }
        try walkWholeRecord(bytes, body, recordEnd, &walk)
        position = recordEnd
    }
    return position
}

/// Walks the body of one record, `start..<end`.
private func walkWholeRecord(
    _ bytes: UnsafeRawBufferPointer, _ start: Int, _ end: Int, _ walk: inout RecordWalk
) throws(RecordBatchError) {
    var fields = RecordFields()
    try parseRecord(bytes, start, end, index: walk.index, &fields)
    try walk.noteRecord(timestampDelta: fields.timestampDelta, offsetDelta: fields.offsetDelta)
    if fields.keyLength < 0 { walk.noteMissingKey() }
    walk.index += 1
}

/// Where the parts of one record lie; positions are those of the bytes it was parsed from.
struct RecordFields {
    var timestampDelta: Int64 = 0
    var offsetDelta: Int32 = 0
    var keyStart = 0
    /// -1 for null, as for the value.
    var keyLength = -1
    var valueStart = 0
    var valueLength = -1
    var headerCount: Int32 = 0
    var headersStart = 0
}

/// Parses the body of one record, which must fill `start..<end` exactly.
func parseRecord(
    _ bytes: UnsafeRawBufferPointer, _ start: Int, _ end: Int, index: Int32, _ fields: inout RecordFields
) throws(RecordBatchError) {
    var length: Int32 = 0

    // The attributes of a record have no meaning yet and are ignored, as Kafka does.
    var position = readVarlong(bytes, start + 1, end, &fields.timestampDelta)
    guard position >= 0 else { throw innerVarintError(position, index) }
    position = readVarint(bytes, position, end, &fields.offsetDelta)
    guard position >= 0 else { throw innerVarintError(position, index) }

    position = readVarint(bytes, position, end, &length)
    guard position >= 0 else { throw innerVarintError(position, index) }
    guard length >= -1, Int(length) <= end - position else {
        throw .fieldLength(recordIndex: index, field: .key, length: length)
    }
    fields.keyStart = position
    fields.keyLength = Int(length)
    position += max(Int(length), 0)

    position = readVarint(bytes, position, end, &length)
    guard position >= 0 else { throw innerVarintError(position, index) }
    guard length >= -1, Int(length) <= end - position else {
        throw .fieldLength(recordIndex: index, field: .value, length: length)
    }
    fields.valueStart = position
    fields.valueLength = Int(length)
    position += max(Int(length), 0)

    position = readVarint(bytes, position, end, &length)
    guard position >= 0 else { throw innerVarintError(position, index) }
    fields.headerCount = length
    fields.headersStart = position
    if length != 0 { position = try walkHeaders(bytes, position, end, count: length, recordIndex: index) }
    guard position == end else { throw .recordLengthMismatch(recordIndex: index) }
}

/// Walks `count` headers and returns the position behind them.
private func walkHeaders(
    _ bytes: UnsafeRawBufferPointer, _ start: Int, _ end: Int, count: Int32, recordIndex: Int32
) throws(RecordBatchError) -> Int {
    var position = start
    // A header takes two bytes at least, which bounds the loop by the bytes there are.
    guard count >= 0, Int(count) <= (end - start) / 2 else {
        throw .fieldLength(recordIndex: recordIndex, field: .headerCount, length: count)
    }
    var length: Int32 = 0
    for _ in 0..<count {
        position = readVarint(bytes, position, end, &length)
        guard position >= 0 else { throw innerVarintError(position, recordIndex) }
        guard length >= 0, Int(length) <= end - position else {
            throw .fieldLength(recordIndex: recordIndex, field: .headerKey, length: length)
        }
        var text = UTF8Check()
        guard text.feed(bytes, position, position + Int(length)), text.isComplete else {
            throw .headerKeyNotUTF8(recordIndex: recordIndex)
        }
        position += Int(length)
        position = readVarint(bytes, position, end, &length)
        guard position >= 0 else { throw innerVarintError(position, recordIndex) }
        guard length >= -1, Int(length) <= end - position else {
            throw .fieldLength(recordIndex: recordIndex, field: .headerValue, length: length)
        }
        position += max(Int(length), 0)
    }
    return position
}

/// Within a record whose length is known, running out of bytes means that the length was wrong.
private func innerVarintError(_ failure: Int, _ recordIndex: Int32) -> RecordBatchError {
    failure == VarintFailure.overflow
        ? .varintOverflow(recordIndex: recordIndex) : .recordLengthMismatch(recordIndex: recordIndex)
}

/// A record that is larger than the window.
struct PartialRecord {
    enum Step {
        case fixedFields, keyLength, key, valueLength, value, headerCount
        case headerKeyLength, headerKey, headerValueLength, headerValue
    }

    /// Bytes of the record not yet walked.
    var bytesLeft: Int
    var step = Step.fixedFields
    /// Bytes of the current key, value or header part still to skip.
    var skip = 0
    var headersLeft: Int32 = 0
    var headerKey = UTF8Check()

    /// Takes a length or count that was read; `left` bytes of the record follow it.
    mutating func note(length: Int32, left: Int, _ walk: RecordWalk) throws(RecordBatchError) {
        let field = step.field
        let fits = step == .headerCount ? Int(length) <= left / 2 : Int(length) <= left
        guard length >= (step.isNullable ? -1 : 0), fits else {
            throw .fieldLength(recordIndex: walk.index, field: field, length: length)
        }
        switch step {
        case .headerCount:
            headersLeft = length
            step = .headerKeyLength
            return
        case .keyLength:
            step = .key
        case .valueLength: step = .value
        case .headerKeyLength:
            headerKey = UTF8Check()
            step = .headerKey
        case .headerValueLength: step = .headerValue
        case .fixedFields, .key, .value, .headerKey, .headerValue:
            preconditionFailure("no length is read in step \(step)")
        }
        skip = max(Int(length), 0)
    }

    /// The bytes of the current field are behind us.
    mutating func fieldEnded() {
        switch step {
        case .key: step = .valueLength
        case .value: step = .headerCount
        case .headerKey: step = .headerValueLength
        case .headerValue:
            step = .headerKeyLength
            headersLeft -= 1
        case .fixedFields, .keyLength, .valueLength, .headerCount, .headerKeyLength, .headerValueLength:
            preconditionFailure("step \(step) has no bytes to skip")
        }
    }
}

extension PartialRecord.Step {
    fileprivate var isNullable: Bool {
        self == .keyLength || self == .valueLength || self == .headerValueLength
    }

    fileprivate var field: RecordBatchError.RecordField {
        switch self {
        case .fixedFields, .keyLength, .key: .key
        case .valueLength, .value: .value
        case .headerCount: .headerCount
        case .headerKeyLength, .headerKey: .headerKey
        case .headerValueLength, .headerValue: .headerValue
        }
    }
}

/// Goes on with `walk.partial` from `start`; returns the position reached. The record is done when
/// `walk.partial` is nil afterwards; otherwise the bytes left over (a few, of a cut number) come again.
private func walkPartialRecord(
    _ bytes: UnsafeRawBufferPointer, _ start: Int, isEnd: Bool, _ walk: inout RecordWalk
) throws(RecordBatchError) -> Int {
    guard var record = walk.partial else { return start }
    var position = start
    while true {
        if record.step == .headerKeyLength, record.headersLeft == 0 {
            guard record.bytesLeft == 0 else { throw .recordLengthMismatch(recordIndex: walk.index) }
            walk.partial = nil
            walk.index += 1
            return position
        }
        let available = min(bytes.count - position, record.bytesLeft)
        let end = position + available
        // The record's last bytes are here: a number that they cut is wrong, not incomplete.
        let recordEndsHere = available == record.bytesLeft
        let before = position
        var needsMore = false

        switch record.step {
        case .key, .value, .headerKey, .headerValue:
            let count = min(record.skip, available)
            if record.step == .headerKey, !record.headerKey.feed(bytes, position, position + count) {
                throw .headerKeyNotUTF8(recordIndex: walk.index)
            }
            position += count
            record.skip -= count
            if record.skip > 0 {
                needsMore = true
            } else {
                guard record.headerKey.isComplete else { throw .headerKeyNotUTF8(recordIndex: walk.index) }
                record.fieldEnded()
            }
        case .fixedFields:
            var timestampDelta: Int64 = 0
            var offsetDelta: Int32 = 0
            var next =
                available > 0
                ? readVarlong(bytes, position + 1, end, &timestampDelta) : VarintFailure.truncated
            if next >= 0 { next = readVarint(bytes, next, end, &offsetDelta) }
            if next >= 0 {
                try walk.noteRecord(timestampDelta: timestampDelta, offsetDelta: offsetDelta)
                position = next
                record.step = .keyLength
            } else if next == VarintFailure.overflow || recordEndsHere {
                throw innerVarintError(next, walk.index)
            } else {
                needsMore = true
            }
        case .keyLength, .valueLength, .headerCount, .headerKeyLength, .headerValueLength:
            var length: Int32 = 0
            let next = readVarint(bytes, position, end, &length)
            if next >= 0 {
                position = next
                if record.step == .keyLength, length == -1 { walk.noteMissingKey() }
                try record.note(length: length, left: record.bytesLeft - (next - before), walk)
            } else if next == VarintFailure.overflow || recordEndsHere {
                throw innerVarintError(next, walk.index)
            } else {
                needsMore = true
            }
        }
        record.bytesLeft -= position - before
        if needsMore {
            if isEnd { throw .recordTruncated(recordIndex: walk.index) }
            walk.partial = record
            return position
        }
    }
}
