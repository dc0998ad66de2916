package import MartletKafkaProtocol
import MartletLogModel
package import NIOCore

/// One record of `__share_group_state` in Kafka's layout; a value of `nil` is a tombstone.
package enum ShareStateRecord: Sendable, Hashable {
    /// All that is known of a share partition.
    case snapshot(ShareSnapshotKey, ShareSnapshotValue?)
    /// What has changed since.
    case update(ShareUpdateKey, ShareUpdateValue?)

    private enum KeyType {
        static let snapshot: Int16 = 0
        static let update: Int16 = 1
    }

    package var id: SharePartitionID {
        switch self {
        case .snapshot(let key, _):
            SharePartitionID(group: key.groupID, topic: key.topicID, partition: key.partition)
        case .update(let key, _):
            SharePartitionID(group: key.groupID, topic: key.topicID, partition: key.partition)
        }
    }

    /// Key and value bytes of the record.
    package func encoded() throws(EncodeError) -> (key: ByteBuffer, value: ByteBuffer?) {
        var key = ProtocolWriter()
        switch self {
        case .snapshot(let recordKey, let value):
            key.integer(KeyType.snapshot)
            try recordKey.encode(into: &key, version: 0)
            return (key.buffer, try value.map(Self.bytes))
        case .update(let recordKey, let value):
            key.integer(KeyType.update)
            try recordKey.encode(into: &key, version: 0)
            return (key.buffer, try value.map(Self.bytes))
        }
    }

    private static func bytes(_ value: some KafkaMessage) throws(EncodeError) -> ByteBuffer {
        var writer = ProtocolWriter()
        writer.integer(Int16(0))
        try value.encode(into: &writer, version: 0)
        return writer.buffer
    }

    /// Reads a record; `nil` for a type this release does not know, which a newer broker may have written and
    /// which is left alone.
    package static func decode(key: ByteBuffer, value: ByteBuffer?) throws(DecodeError) -> ShareStateRecord? {
        var reader = ProtocolReader(key)
        let type: Int16 = try reader.integer()
        switch type {
        case KeyType.snapshot:
            return .snapshot(try ShareSnapshotKey(reading: &reader, version: 0), try value.map(read))
        case KeyType.update:
            return .update(try ShareUpdateKey(reading: &reader, version: 0), try value.map(read))
        case _:
            return nil
        }
    }

    private static func read<Value: KafkaMessage>(_ bytes: ByteBuffer) throws(DecodeError) -> Value {
        var reader = ProtocolReader(bytes)
        let version: Int16 = try reader.integer()
        return try Value(reading: &reader, version: version)
    }
}

extension ShareStateRecord {
    static func snapshot(_ id: SharePartitionID, _ value: ShareSnapshotValue?) -> ShareStateRecord {
        var key = ShareSnapshotKey()
        key.groupID = id.group
        key.topicID = id.topic
        key.partition = id.partition
        return .snapshot(key, value)
    }

    static func update(_ id: SharePartitionID, _ value: ShareUpdateValue) -> ShareStateRecord {
        var key = ShareUpdateKey()
        key.groupID = id.group
        key.topicID = id.topic
        key.partition = id.partition
        return .update(key, value)
    }
}

extension ShareSnapshotValue.StateBatch {
    init(_ batch: ShareStateBatch) {
        self.init()
        firstOffset = batch.firstOffset
        lastOffset = batch.lastOffset
        deliveryState = batch.state.rawValue
        deliveryCount = batch.deliveryCount
    }
}

extension ShareUpdateValue.StateBatch {
    init(_ batch: ShareStateBatch) {
        self.init()
        firstOffset = batch.firstOffset
        lastOffset = batch.lastOffset
        deliveryState = batch.state.rawValue
        deliveryCount = batch.deliveryCount
    }
}

extension ShareStateBatch {
    /// `nil` for what is no range; a state that no release knows counts as not delivered.
    package init?(_ first: Int64, _ last: Int64, _ state: Int8, _ deliveryCount: Int16) {
        guard first >= 0, first <= last, last < .max else { return nil }
        self.init(
            firstOffset: first, lastOffset: last, state: ShareDeliveryState(rawValue: state) ?? .available,
            deliveryCount: deliveryCount)
    }
}
