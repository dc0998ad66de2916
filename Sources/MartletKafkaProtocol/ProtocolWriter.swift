package import MartletLogModel
package import NIOCore

/// Appends the primitive types of the Kafka protocol to a buffer.
package struct ProtocolWriter: Sendable {
    package var buffer: ByteBuffer

    package init(buffer: ByteBuffer = ByteBuffer()) { self.buffer = buffer }

    // MARK: Fixed-size values

    package mutating func integer(_ value: some FixedWidthInteger) { buffer.writeInteger(value) }
    package mutating func bool(_ value: Bool) { buffer.writeInteger(value ? 1 : 0, as: UInt8.self) }
    package mutating func float64(_ value: Double) { buffer.writeInteger(value.bitPattern) }

    package mutating func uuid(_ value: UniversalID) {
        buffer.writeInteger(value.high)
        buffer.writeInteger(value.low)
    }

    // MARK: Variable-length integers

    package mutating func unsignedVarint(_ value: UInt32) {
        var rest = value
        while rest >= 0x80 {
            buffer.writeInteger(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        buffer.writeInteger(UInt8(truncatingIfNeeded: rest))
    }

    package mutating func varint(_ value: Int32) {
        unsignedVarint(UInt32(bitPattern: (value << 1) ^ (value >> 31)))
    }

    package mutating func varlong(_ value: Int64) {
        var rest = UInt64(bitPattern: (value << 1) ^ (value >> 63))
        while rest >= 0x80 {
            buffer.writeInteger(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        buffer.writeInteger(UInt8(truncatingIfNeeded: rest))
    }

    // MARK: Text and bytes

    package mutating func string(_ value: String, _ flexible: Bool) throws(EncodeError) {
        let length = value.utf8.count
        if flexible { try compactLength(length) } else { try shortLength(length) }
        buffer.writeString(value)
    }

    package mutating func nullableString(_ value: String?, _ flexible: Bool) throws(EncodeError) {
        if let value { try string(value, flexible) } else if flexible { null() } else { integer(Int16(-1)) }
    }

    package mutating func bytes(_ value: ByteBuffer, _ flexible: Bool) throws(EncodeError) {
        try length(value.readableBytes, flexible)
        buffer.writeImmutableBuffer(value)
    }

    package mutating func nullableBytes(_ value: ByteBuffer?, _ flexible: Bool) throws(EncodeError) {
        if let value { try bytes(value, flexible) } else { nullArray(flexible) }
    }

    // MARK: Records

    /// Byte counts of the records of a message, field by field in the order of encoding, when the records
    /// themselves are sent beside the encoded bytes: the fetch path sends them from files. `nil`: the
    /// records are part of the encoded bytes.
    package var externalRecordByteCounts: [Int]?

    /// For each external records field, the index in ``buffer`` where its bytes belong.
    package private(set) var externalRecordPositions: [Int] = []

    package mutating func records(_ value: ByteBuffer, _ flexible: Bool) throws(EncodeError) {
        guard let counts = externalRecordByteCounts else {
            try bytes(value, flexible)
            return
        }
        precondition(
            externalRecordPositions.count < counts.count, "more records fields than external records")
        try length(counts[externalRecordPositions.count], flexible)
        externalRecordPositions.append(buffer.writerIndex)
    }

    package mutating func nullableRecords(_ value: ByteBuffer?, _ flexible: Bool) throws(EncodeError) {
        if let value { try records(value, flexible) } else { nullArray(flexible) }
    }

    // MARK: Arrays

    package mutating func integers(
        _ values: [some FixedWidthInteger], _ flexible: Bool
    ) throws(EncodeError) {
        try length(values.count, flexible)
        for value in values { buffer.writeInteger(value) }
    }

    package mutating func nullableIntegers(
        _ values: [some FixedWidthInteger]?, _ flexible: Bool
    ) throws(EncodeError) {
        if let values { try integers(values, flexible) } else { nullArray(flexible) }
    }

    package mutating func uuids(_ values: [UniversalID], _ flexible: Bool) throws(EncodeError) {
        try length(values.count, flexible)
        for value in values { uuid(value) }
    }

    package mutating func nullableUUIDs(_ values: [UniversalID]?, _ flexible: Bool) throws(EncodeError) {
        if let values { try uuids(values, flexible) } else { nullArray(flexible) }
    }

    package mutating func strings(_ values: [String], _ flexible: Bool) throws(EncodeError) {
        try length(values.count, flexible)
        for value in values { try string(value, flexible) }
    }

    package mutating func nullableStrings(_ values: [String]?, _ flexible: Bool) throws(EncodeError) {
        if let values { try strings(values, flexible) } else { nullArray(flexible) }
    }

    package mutating func structures(
        _ values: [some KafkaStructure], _ flexible: Bool, _ version: Int16
    ) throws(EncodeError) {
        try length(values.count, flexible)
        for value in values { try value.encode(into: &self, version: version) }
    }

    package mutating func nullableStructures(
        _ values: [some KafkaStructure]?, _ flexible: Bool, _ version: Int16
    ) throws(EncodeError) {
        if let values { try structures(values, flexible, version) } else { nullArray(flexible) }
    }

    /// A structure that may be null is preceded by a byte: 1 for a value, -1 for null.
    package mutating func nullableStructure(
        _ value: (some KafkaStructure)?, _ version: Int16
    ) throws(EncodeError) {
        integer(Int8(value == nil ? -1 : 1))
        try value?.encode(into: &self, version: version)
    }

    // MARK: Tagged fields (KIP-482)

    /// Starts a tagged field; hand the result to ``endTaggedField(_:)`` after the value.
    package mutating func beginTaggedField(_ tag: UInt32) -> Int {
        unsignedVarint(tag)
        integer(UInt8(0))
        return buffer.writerIndex
    }

    /// Puts in the size of the tagged field that began at `start`. One byte was kept for it; the rare longer
    /// value is moved up.
    package mutating func endTaggedField(_ start: Int) throws(EncodeError) {
        let size = buffer.writerIndex - start
        guard let size32 = UInt32(exactly: size), size32 <= Self.lengthLimit else {
            throw .tooLong(count: size, limit: Int(Self.lengthLimit))
        }
        if size < 0x80 {
            buffer.setInteger(UInt8(size), at: start - 1)
            return
        }
        guard let value = buffer.getSlice(at: start, length: size) else { return }
        buffer.moveWriterIndex(to: start - 1)
        unsignedVarint(size32)
        buffer.writeImmutableBuffer(value)
    }

    // MARK: Lengths

    /// Longest byte string or array that a signed 32-bit length, plus one for the compact form, can say.
    package static let lengthLimit: UInt32 = 0x7fff_fffe

    private mutating func null() { integer(UInt8(0)) }

    private mutating func nullArray(_ flexible: Bool) {
        if flexible { null() } else { integer(Int32(-1)) }
    }

    private mutating func length(_ length: Int, _ flexible: Bool) throws(EncodeError) {
        if flexible { return try compactLength(length) }
        guard length <= Int(Self.lengthLimit) else {
            throw .tooLong(count: length, limit: Int(Self.lengthLimit))
        }
        integer(Int32(length))
    }

    private mutating func compactLength(_ length: Int) throws(EncodeError) {
        guard length <= Int(Self.lengthLimit) else {
            throw .tooLong(count: length, limit: Int(Self.lengthLimit))
        }
        unsignedVarint(UInt32(length) + 1)
    }

    private mutating func shortLength(_ length: Int) throws(EncodeError) {
        guard length <= Int(Int16.max) else { throw .tooLong(count: length, limit: Int(Int16.max)) }
        integer(Int16(length))
    }
}
