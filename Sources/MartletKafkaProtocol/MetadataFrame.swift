package import NIOCore

extension MetadataRecord {
    /// The only frame version there is.
    package static let frameVersion: UInt32 = 1

    /// Reads the value of a record of the metadata log: frame version, record type and record version as
    /// unsigned varints, then the body. All bytes must be used (KIP-631).
    package init(reading value: ByteBuffer) throws(DecodeError) {
        var r = ProtocolReader(value)
        let frame = try r.unsignedVarint()
        guard frame == Self.frameVersion else { throw .unsupportedFrameVersion(frame) }
        let type = Int(try r.unsignedVarint())
        let version = try r.unsignedVarint()
        guard let version = Int16(exactly: version) else {
            throw .unsupportedVersion(message: "metadata record \(type)", version: Int16.max)
        }
        self = try Self.body(type, version: version, reading: &r)
        try r.requireEnd()
    }

    /// The value of a record of the metadata log. `version`: one that every reader of the log knows;
    /// the highest known if left out.
    package func encoded(version: Int16? = nil) throws(EncodeError) -> ByteBuffer {
        let version = version ?? highestVersion
        var w = ProtocolWriter()
        w.unsignedVarint(Self.frameVersion)
        w.unsignedVarint(UInt32(recordType))
        w.unsignedVarint(UInt32(UInt16(bitPattern: version)))
        try encodeBody(into: &w, version: version)
        return w.buffer
    }
}
