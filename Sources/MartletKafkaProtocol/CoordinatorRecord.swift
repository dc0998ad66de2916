package import NIOCore

/// Framing of records in `__consumer_offsets`, `__transaction_state` and `__share_group_state`: the key starts
/// with the number of the record type, the value with the version of its schema, both `Int16`. Keys have
/// version 0 for ever, since compaction compares their bytes.
package enum CoordinatorRecord {
    /// The record type of a key, without reading the rest. Unknown types must be skipped by readers: a newer
    /// broker may have written them (KIP-915).
    package static func recordType(ofKey key: ByteBuffer) throws(DecodeError) -> Int16 {
        var r = ProtocolReader(key)
        return try r.integer()
    }

    /// Reads a key after its record type. Type numbers 0 and 1 of the groups' topic are one and the same
    /// content (``OffsetCommitKey``), so the caller chooses the type by ``recordType(ofKey:)``.
    package static func readKey<K: KafkaRecordData>(_ key: ByteBuffer, as type: K.Type = K.self) throws(DecodeError) -> K {
        var r = ProtocolReader(key)
        _ = try r.integer(as: Int16.self)
        let value = try K(reading: &r, version: 0)
        try r.requireEnd()
        return value
    }

    /// Reads a value; bytes after it are ignored in no version.
    package static func readValue<V: KafkaRecordData>(
        _ value: ByteBuffer, as type: V.Type = V.self
    ) throws(DecodeError) -> V {
        var r = ProtocolReader(value)
        let version: Int16 = try r.integer()
        let result = try V(reading: &r, version: version)
        try r.requireEnd()
        return result
    }

    package static func writeKey<K: KafkaRecordData>(_ key: K) throws(EncodeError) -> ByteBuffer {
        var w = ProtocolWriter()
        w.integer(K.recordType ?? 0)
        try key.encode(into: &w, version: 0)
        return w.buffer
    }

    /// `version`: one that every reader knows; the highest known if left out.
    package static func writeValue<V: KafkaRecordData>(_ value: V, version: Int16? = nil) throws(EncodeError) -> ByteBuffer {
        let version = version ?? V.versions.upperBound
        var w = ProtocolWriter()
        w.integer(version)
        try value.encode(into: &w, version: version)
        return w.buffer
    }
}
