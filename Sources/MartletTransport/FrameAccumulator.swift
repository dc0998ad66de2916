package import NIOCore

/// Why a connection's bytes cannot be cut into frames. Each is final for the connection: after a wrong
/// length nothing that follows can be trusted.
package enum FrameError: Error, Hashable, CustomStringConvertible {
    /// The length prefix is negative or smaller than the smallest request header.
    case lengthTooSmall(Int32)
    /// The length prefix exceeds `socket.request.max.bytes`.
    case lengthTooLarge(Int32, limit: Int)

    package var description: String {
        switch self {
        case .lengthTooSmall(let length):
            "frame length \(length) is smaller than a request header; the peer does not speak the Kafka protocol"
        case .lengthTooLarge(let length, let limit):
            "frame length \(length) exceeds socket.request.max.bytes=\(limit); the peer does not speak the Kafka "
                + "protocol (TLS on a plaintext listener looks like this), or its max.request.size is too large"
        }
    }
}

/// Cuts the bytes of a connection into frames (big-endian int32 length, then that many bytes).
///
/// A frame that lies within one read is a slice of it, never copied. A frame that spans reads is gathered
/// into one buffer of its own, each byte copied once; the buffer grows with the bytes that really arrive,
/// so a lying length costs little.
package struct FrameAccumulator {
    /// Bytes of the length prefix.
    package static let prefixByteCount = 4
    /// First allocation for a frame that spans reads.
    private static let initialCapacity = 64 * 1024
    /// Room that is made for each byte received: most frames then get all they need at once (growing by halves
    /// copies their bytes again), while a lying length still costs its sender a part of what it costs us.
    private static let growthFactor = 16

    private let frameLimit: Int
    private let smallestFrame: Int
    private var input = ByteBuffer()
    private var partial: ByteBuffer?
    private var partialLength: Int?

    /// - Parameters:
    ///   - frameLimit: largest accepted frame in bytes, without the prefix.
    ///   - smallestFrame: smallest accepted frame in bytes, without the prefix.
    package init(frameLimit: Int, smallestFrame: Int) {
        self.frameLimit = frameLimit
        self.smallestFrame = smallestFrame
    }

    /// Bytes held for a frame that has not arrived whole.
    package var partialByteCount: Int { partial?.readableBytes ?? 0 }

    /// Bytes of the frame that has not arrived whole, with its prefix; `nil` while the prefix is incomplete.
    package var partialExpectedByteCount: Int? { partialLength.map { $0 + Self.prefixByteCount } }

    /// Bytes held that ``next()`` has not been asked for.
    package var unparsedByteCount: Int { input.readableBytes }

    /// Takes over what one read delivered.
    package mutating func append(_ incoming: ByteBuffer) {
        if input.readableBytes == 0 {
            input = incoming
        } else {
            input.writeImmutableBuffer(incoming)
        }
    }

    /// The next whole frame without its prefix, or `nil` if more bytes are needed.
    package mutating func next() throws(FrameError) -> ByteBuffer? {
        if partial != nil { return try continuePartial() }
        guard let prefix = input.getInteger(at: input.readerIndex, as: Int32.self) else {
            if input.readableBytes > 0 { beginPartial(length: nil) }
            return nil
        }
        let length = try checked(prefix)
        guard input.readableBytes >= Self.prefixByteCount + length else {
            beginPartial(length: length)
            return nil
        }
        input.moveReaderIndex(forwardBy: Self.prefixByteCount)
        let frame = input.readSlice(length: length)
        if input.readableBytes == 0 { input = ByteBuffer() }
        return frame
    }

    private mutating func beginPartial(length: Int?) {
        let expected = length.map { $0 + Self.prefixByteCount } ?? Self.initialCapacity
        var buffer = ByteBuffer()
        buffer.reserveCapacity(
            max(input.readableBytes, min(expected, max(Self.initialCapacity, input.readableBytes * Self.growthFactor))))
        buffer.writeImmutableBuffer(input)
        partial = buffer
        partialLength = length
        input = ByteBuffer()
    }

    private mutating func continuePartial() throws(FrameError) -> ByteBuffer? {
        guard input.readableBytes > 0, var buffer = partial.take() else { return nil }
        if partialLength == nil {
            let missing = min(Self.prefixByteCount - buffer.readableBytes, input.readableBytes)
            if missing > 0, let bytes = input.readSlice(length: missing) { buffer.writeImmutableBuffer(bytes) }
            guard let prefix = buffer.getInteger(at: buffer.readerIndex, as: Int32.self) else {
                partial = buffer
                return nil
            }
            partialLength = try checked(prefix)
        }
        let total = (partialLength ?? 0) + Self.prefixByteCount
        let take = min(total - buffer.readableBytes, input.readableBytes)
        if buffer.writableBytes < take {
            // Never beyond the frame: memory follows the bytes received.
            let received = buffer.readableBytes + take
            buffer.reserveCapacity(min(total, received * Self.growthFactor))
        }
        if take > 0, let bytes = input.readSlice(length: take) { buffer.writeImmutableBuffer(bytes) }
        guard buffer.readableBytes == total else {
            partial = buffer
            if input.readableBytes == 0 { input = ByteBuffer() }
            return nil
        }
        partialLength = nil
        if input.readableBytes == 0 { input = ByteBuffer() }
        buffer.moveReaderIndex(forwardBy: Self.prefixByteCount)
        return buffer
    }

    private func checked(_ prefix: Int32) throws(FrameError) -> Int {
        if prefix < Int32(smallestFrame) { throw .lengthTooSmall(prefix) }
        if Int(prefix) > frameLimit { throw .lengthTooLarge(prefix, limit: frameLimit) }
        return Int(prefix)
    }
}
