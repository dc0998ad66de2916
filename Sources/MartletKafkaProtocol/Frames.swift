package import NIOCore

extension KafkaRequest {
    /// The whole frame: length, header, body.
    package func frame(
        version: Int16, correlationID: Int32, clientID: String?, allocator: ByteBufferAllocator = .init()
    ) throws(EncodeError) -> ByteBuffer {
        var w = ProtocolWriter(buffer: allocator.buffer(capacity: 256))
        w.integer(Int32(0))
        try RequestHeader(
            apiKey: Self.apiKey, apiVersion: version, correlationID: correlationID, clientID: clientID
        ).encode(into: &w)
        try encode(into: &w, version: version)
        try w.setFrameLength()
        return w.buffer
    }
}

extension KafkaResponse {
    /// The whole frame: length, header, body.
    package func frame(
        version: Int16, correlationID: Int32, allocator: ByteBufferAllocator = .init()
    ) throws(EncodeError) -> ByteBuffer {
        var w = ProtocolWriter(buffer: allocator.buffer(capacity: 256))
        w.integer(Int32(0))
        ResponseHeader(correlationID: correlationID).encode(into: &w, apiKey: Self.apiKey, version: version)
        try encode(into: &w, version: version)
        try w.setFrameLength()
        return w.buffer
    }
}

extension ProtocolWriter {
    /// Writes the length of everything after the first four bytes into those four bytes.
    package mutating func setFrameLength() throws(EncodeError) {
        let length = buffer.readableBytes - Framing.lengthBytes
        guard let value = Int32(exactly: length) else { throw .tooLong(count: length, limit: Int(Int32.max)) }
        buffer.setInteger(value, at: buffer.readerIndex)
    }
}
