package import MartletLogModel
package import NIOCore

/// A Produce request that names one partition, outside transactions: what busy producers send. Reads the same
/// bytes as ``ProduceRequest`` without making arrays, which at small batches cost more than everything else a
/// broker does for them.
package struct SinglePartitionProduce {
    package var acks: Int16
    /// Milliseconds that the broker may take.
    package var timeoutMs: Int32
    /// Empty from version 13 on.
    package var topic: String
    /// Zero before version 13.
    package var topicID: UniversalID
    package var partition: Int32
    /// Exactly one record batch; `nil` if the request says null.
    package var records: ByteBuffer?

    /// Reads the body of a request. `nil` for a request of any other shape, well-formed or not: decode that as
    /// a ``ProduceRequest``, which names the error if there is one.
    ///
    /// - Parameter topic: of the connection's request before, which is likely to be this one's.
    package init?(reading body: ProtocolReader, version: Int16, expecting topic: String = "") {
        guard ProduceRequest.versions.contains(version) else { return nil }
        let flexible = version >= 9
        var r = body
        do throws(DecodeError) {
            guard try r.nullableString(flexible) == nil else { return nil }
            (acks, timeoutMs) = try r.integers()
            guard try r.count(flexible, atLeast: 3) == 1 else { return nil }
            guard let name = version <= 12 ? try r.nullableString(flexible, expecting: topic) : "" else { return nil }
            self.topic = name
            topicID = version >= 13 ? try r.uuid() : .zero
            guard try r.count(flexible, atLeast: 6) == 1 else { return nil }
            partition = try r.integer()
            records = try r.nullableBytes(flexible)
            if flexible {
                // Tagged fields of the partition, the topic and the request; none is defined.
                for _ in 0..<3 {
                    guard try r.unsignedVarint() == 0 else { return nil }
                }
            }
        } catch {
            return nil
        }
    }

    /// Appends the whole response to a successful append, length prefix and header included: the same bytes as
    /// a ``ProduceResponse`` would give.
    package func writeResponse(
        correlationID: Int32, version: Int16, baseOffset: Int64, logAppendTimeMs: Int64, logStartOffset: Int64,
        into output: inout ByteBuffer
    ) {
        let start = output.writerIndex
        if version >= 13 {
            // Length, header without tagged fields; one topic with its id, one partition.
            output.writeMultipleIntegers(
                Int32(0), correlationID, UInt8(0), UInt8(2), topicID.high, topicID.low, UInt8(2))
        } else if version >= 9 {
            output.writeMultipleIntegers(Int32(0), correlationID, UInt8(0), UInt8(2))
            writeUnsignedVarint(UInt32(topic.utf8.count + 1), into: &output)
            output.writeString(topic)
            output.writeInteger(UInt8(2))
        } else {
            output.writeMultipleIntegers(
                Int32(0), correlationID, Int32(1), Int16(truncatingIfNeeded: topic.utf8.count))
            output.writeString(topic)
            output.writeInteger(Int32(1))
        }
        let error = ErrorCode.none.rawValue
        // Then no record errors and no message (from version 8), no tagged fields, no throttling.
        switch version {
        case 9...:
            output.writeMultipleIntegers(
                partition, error, baseOffset, logAppendTimeMs, logStartOffset, UInt8(1), UInt8(0), UInt16(0),
                Int32(0), UInt8(0))
        case 8:
            output.writeMultipleIntegers(
                partition, error, baseOffset, logAppendTimeMs, logStartOffset, Int32(0), Int16(-1), Int32(0))
        case 5...7:
            output.writeMultipleIntegers(
                partition, error, baseOffset, logAppendTimeMs, logStartOffset, Int32(0))
        case _:
            output.writeMultipleIntegers(partition, error, baseOffset, logAppendTimeMs, Int32(0))
        }
        output.setInteger(Int32(output.writerIndex - start - Framing.lengthBytes), at: start)
    }

    private func writeUnsignedVarint(_ value: UInt32, into output: inout ByteBuffer) {
        var rest = value
        while rest >= 0x80 {
            output.writeInteger(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        output.writeInteger(UInt8(truncatingIfNeeded: rest))
    }
}
