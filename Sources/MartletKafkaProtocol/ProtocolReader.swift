package import MartletLogModel
package import NIOCore

/// Reads the primitive types of the Kafka protocol from a buffer. Every length is checked against the
/// bytes that are left before anything is reserved. An element of an array takes more memory than it has bytes in
/// the frame, up to some thirty times as much, so that memory is counted and has a limit of its own.
package struct ProtocolReader: Sendable {
    /// The unread rest; byte strings handed out are slices of the same storage.
    package private(set) var buffer: ByteBuffer
    /// Memory that the message's arrays and texts take, in bytes. Byte strings take none.
    package private(set) var decodedByteCount = 0
    private let decodedByteLimit: Int
    private let start: Int

    /// - Parameter decodedByteLimit: the most that ``decodedByteCount`` may reach.
    package init(_ buffer: ByteBuffer, decodedByteLimit: Int = .max) {
        self.buffer = buffer
        self.decodedByteLimit = decodedByteLimit
        self.start = buffer.readerIndex
    }

    /// Reads at most the first `limit` bytes.
    package init(_ buffer: ByteBuffer, limit: Int) {
        var limited = buffer
        self.decodedByteLimit = .max
        self.start = buffer.readerIndex
        if limit < buffer.readableBytes { limited.moveWriterIndex(to: buffer.readerIndex + max(0, limit)) }
        self.buffer = limited
    }

    /// Bytes read so far.
    package var position: Int { buffer.readerIndex - start }
    /// Bytes left.
    package var remaining: Int { buffer.readableBytes }

    /// Throws unless everything has been read.
    package func requireEnd() throws(DecodeError) {
        guard remaining == 0 else { throw .trailingBytes(position: position, count: remaining) }
    }

    // MARK: Fixed-size values

    package mutating func integer<T: FixedWidthInteger>(as type: T.Type = T.self) throws(DecodeError) -> T {
        guard let value = buffer.readInteger(as: type) else { throw truncated(MemoryLayout<T>.size) }
        return value
    }

    /// Two values in a row, read together.
    package mutating func integers<T: FixedWidthInteger, U: FixedWidthInteger>(
        as types: (T, U).Type = (T, U).self
    ) throws(DecodeError) -> (T, U) {
        guard let values = buffer.readMultipleIntegers(as: types) else {
            throw truncated(MemoryLayout<T>.size + MemoryLayout<U>.size)
        }
        return values
    }

    // Not generic: other modules cannot specialize ``integer(as:)``, at ten times the cost.
    package mutating func int16() throws(DecodeError) -> Int16 { try integer() }

    package mutating func bool() throws(DecodeError) -> Bool { try integer(as: Int8.self) != 0 }

    package mutating func float64() throws(DecodeError) -> Double {
        Double(bitPattern: try integer(as: UInt64.self))
    }

    package mutating func uuid() throws(DecodeError) -> UniversalID {
        guard remaining >= 16, let high = buffer.readInteger(as: UInt64.self),
            let low = buffer.readInteger(as: UInt64.self)
        else { throw truncated(16) }
        return UniversalID(high: high, low: low)
    }

    // MARK: Variable-length integers

    package mutating func unsignedVarint() throws(DecodeError) -> UInt32 {
        let position = self.position
        var value: UInt32 = 0
        var shift: UInt32 = 0
        while true {
            guard let byte = buffer.readInteger(as: UInt8.self) else { throw truncated(1) }
            if shift == 28 && byte > 0x0f { throw .varintTooLong(position: position) }
            value |= UInt32(byte & 0x7f) << shift
            if byte < 0x80 { return value }
            shift += 7
        }
    }

    package mutating func varint() throws(DecodeError) -> Int32 {
        let raw = try unsignedVarint()
        return Int32(bitPattern: (raw >> 1) ^ (0 &- (raw & 1)))
    }

    package mutating func varlong() throws(DecodeError) -> Int64 {
        let position = self.position
        var raw: UInt64 = 0
        var shift: UInt64 = 0
        while true {
            guard let byte = buffer.readInteger(as: UInt8.self) else { throw truncated(1) }
            if shift == 63 && byte > 0x01 { throw .varintTooLong(position: position) }
            raw |= UInt64(byte & 0x7f) << shift
            if byte < 0x80 { return Int64(bitPattern: (raw >> 1) ^ (0 &- (raw & 1))) }
            shift += 7
        }
    }

    // MARK: Text and bytes

    package mutating func string(_ flexible: Bool) throws(DecodeError) -> String {
        let position = self.position
        guard let value = try nullableString(flexible) else { throw .nullNotAllowed(position: position) }
        return value
    }

    package mutating func nullableString(_ flexible: Bool) throws(DecodeError) -> String? {
        guard let length = try (flexible ? compactLength() : shortLength()) else { return nil }
        return try text(length)
    }

    /// The same where the text is likely to be `expected`: then that is returned, and nothing is decoded.
    package mutating func nullableString(_ flexible: Bool, expecting expected: String) throws(DecodeError) -> String? {
        guard let length = try (flexible ? compactLength() : shortLength()) else { return nil }
        if length == expected.utf8.count, length <= remaining, startsWith(expected.utf8) {
            buffer.moveReaderIndex(forwardBy: length)
            return expected
        }
        return try text(length)
    }

    private func startsWith(_ text: String.UTF8View) -> Bool {
        let bytes = buffer.readableBytesUInt8Span
        var index = 0
        for byte in text {
            if bytes[index] != byte { return false }
            index += 1
        }
        return true
    }

    package mutating func bytes(_ flexible: Bool) throws(DecodeError) -> ByteBuffer {
        let position = self.position
        guard let value = try nullableBytes(flexible) else { throw .nullNotAllowed(position: position) }
        return value
    }

    package mutating func nullableBytes(_ flexible: Bool) throws(DecodeError) -> ByteBuffer? {
        guard let length = try (flexible ? compactLength() : longLength()) else { return nil }
        return try slice(length)
    }

    /// The next `length` bytes as a slice of the same storage.
    package mutating func slice(_ length: Int) throws(DecodeError) -> ByteBuffer {
        guard let value = buffer.readSlice(length: length) else { throw beyondFrame(length) }
        return value
    }

    // MARK: Arrays

    package mutating func integers<T: FixedWidthInteger>(_ flexible: Bool) throws(DecodeError) -> [T] {
        let position = self.position
        guard let values: [T] = try nullableIntegers(flexible) else {
            throw .nullNotAllowed(position: position)
        }
        return values
    }

    package mutating func nullableIntegers<T: FixedWidthInteger>(
        _ flexible: Bool
    ) throws(DecodeError) -> [T]? {
        guard let count = try count(flexible, atLeast: MemoryLayout<T>.size) else { return nil }
        var values: [T] = []
        try makeRoom(for: count, in: &values)
        for _ in 0..<count { values.append(try integer()) }
        return values
    }

    package mutating func uuids(_ flexible: Bool) throws(DecodeError) -> [UniversalID] {
        let position = self.position
        guard let values = try nullableUUIDs(flexible) else { throw .nullNotAllowed(position: position) }
        return values
    }

    package mutating func nullableUUIDs(_ flexible: Bool) throws(DecodeError) -> [UniversalID]? {
        guard let count = try count(flexible, atLeast: 16) else { return nil }
        var values: [UniversalID] = []
        try makeRoom(for: count, in: &values)
        for _ in 0..<count { values.append(try uuid()) }
        return values
    }

    package mutating func strings(_ flexible: Bool) throws(DecodeError) -> [String] {
        let position = self.position
        guard let values = try nullableStrings(flexible) else { throw .nullNotAllowed(position: position) }
        return values
    }

    package mutating func nullableStrings(_ flexible: Bool) throws(DecodeError) -> [String]? {
        guard let count = try count(flexible, atLeast: flexible ? 1 : 2) else { return nil }
        var values: [String] = []
        try makeRoom(for: count, in: &values)
        for _ in 0..<count { values.append(try string(flexible)) }
        return values
    }

    /// `size`: the fewest bytes that one element takes in any version; from the schema.
    package mutating func structures<T: KafkaStructure>(
        _ flexible: Bool, _ version: Int16, atLeast size: Int
    ) throws(DecodeError) -> [T] {
        let position = self.position
        guard let values: [T] = try nullableStructures(flexible, version, atLeast: size) else {
            throw .nullNotAllowed(position: position)
        }
        return values
    }

    package mutating func nullableStructures<T: KafkaStructure>(
        _ flexible: Bool, _ version: Int16, atLeast size: Int
    ) throws(DecodeError) -> [T]? {
        guard let count = try count(flexible, atLeast: size) else { return nil }
        var values: [T] = []
        try makeRoom(for: count, in: &values)
        for _ in 0..<count { values.append(try T(reading: &self, version: version)) }
        return values
    }

    /// A structure that may be null is preceded by a byte: negative for null.
    package mutating func nullableStructure<T: KafkaStructure>(_ version: Int16) throws(DecodeError) -> T? {
        guard try integer(as: Int8.self) >= 0 else { return nil }
        return try T(reading: &self, version: version)
    }

    /// An array's count, `nil` for null. Each element takes at least `size` (≥ 1) bytes, so a count that
    /// the rest of the frame cannot hold is refused before memory is reserved for it.
    package mutating func count(_ flexible: Bool, atLeast size: Int) throws(DecodeError) -> Int? {
        let position = self.position
        guard let count = try (flexible ? compactLength() : longLength()) else { return nil }
        guard count <= remaining / max(1, size) else {
            throw .lengthBeyondFrame(position: position, length: count, available: remaining)
        }
        return count
    }

    /// Counts `count` elements against the limit. Reserves room for them, but never more memory than there are
    /// bytes left: a short frame of tiny elements grows its array as they really come.
    private mutating func makeRoom<T>(for count: Int, in values: inout [T]) throws(DecodeError) {
        guard count > 0 else { return }
        let stride = MemoryLayout<T>.stride
        try take(Self.objectHeaderBytes + count * stride)
        values.reserveCapacity(min(count, remaining / max(1, stride)))
    }

    private mutating func take(_ byteCount: Int) throws(DecodeError) {
        decodedByteCount += byteCount
        guard decodedByteCount <= decodedByteLimit else {
            throw .memoryLimitExceeded(position: position, limit: decodedByteLimit)
        }
    }

    /// What Swift keeps in front of the elements of an array or the bytes of a text.
    private static let objectHeaderBytes = 32
    /// Shorter texts lie within their `String`.
    private static let inlineTextBytes = 15

    // MARK: Tagged fields (KIP-482)

    /// The next tagged field: its tag and the value of `remaining` at which it must end.
    package mutating func taggedField() throws(DecodeError) -> (tag: UInt32, end: Int) {
        let tag = try unsignedVarint()
        let position = self.position
        let size = Int(try unsignedVarint())
        guard size <= remaining else {
            throw .lengthBeyondFrame(position: position, length: size, available: remaining)
        }
        return (tag, remaining - size)
    }

    /// Skips the rest of an unknown tagged field.
    package mutating func skip(to end: Int) {
        buffer.moveReaderIndex(forwardBy: remaining - end)
    }

    package func endTaggedField(_ tag: UInt32, at end: Int) throws(DecodeError) {
        guard remaining == end else { throw .taggedFieldSizeMismatch(position: position, tag: tag) }
    }

    package mutating func skipTaggedFields() throws(DecodeError) {
        for _ in 0..<(try unsignedVarint()) {
            let (_, end) = try taggedField()
            skip(to: end)
        }
    }

    // MARK: Lengths

    private mutating func compactLength() throws(DecodeError) -> Int? {
        let raw = try unsignedVarint()
        return raw == 0 ? nil : Int(raw) - 1
    }

    private mutating func shortLength() throws(DecodeError) -> Int? {
        let position = self.position
        return try checked(Int(try integer(as: Int16.self)), position)
    }

    private mutating func longLength() throws(DecodeError) -> Int? {
        let position = self.position
        return try checked(Int(try integer(as: Int32.self)), position)
    }

    private func checked(_ length: Int, _ position: Int) throws(DecodeError) -> Int? {
        if length >= 0 { return length }
        guard length == -1 else { throw .negativeLength(position: position, length: length) }
        return nil
    }

    private mutating func text(_ length: Int) throws(DecodeError) -> String {
        let position = self.position
        guard length <= remaining else { throw beyondFrame(length) }
        // Validation has a cost of its own, and most texts of most messages are empty.
        if length == 0 { return "" }
        if length > Self.inlineTextBytes { try take(Self.objectHeaderBytes + length) }
        do {
            guard let value = try buffer.readUTF8ValidatedString(length: length) else {
                throw DecodeError.truncated(position: position, needed: length, available: remaining)
            }
            return value
        } catch {
            throw .invalidUTF8(position: position)
        }
    }

    private func truncated(_ needed: Int) -> DecodeError {
        .truncated(position: position, needed: needed, available: remaining)
    }

    private func beyondFrame(_ length: Int) -> DecodeError {
        .lengthBeyondFrame(position: position, length: length, available: remaining)
    }
}
