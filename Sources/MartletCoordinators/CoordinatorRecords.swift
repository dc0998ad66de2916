package import MartletKafkaProtocol
package import NIOCore

/// One record of `__consumer_offsets` in Kafka's layout; a value of `nil` is a tombstone.
package enum CoordinatorRecord: Hashable, Sendable {
    case offsetCommit(OffsetCommitKey, OffsetCommitValue?)
    case groupMetadata(GroupMetadataKey, GroupMetadataValue?)
    // Consumer groups (KIP-848).
    case consumerGroup(ConsumerGroupMetadataKey, ConsumerGroupMetadataValue?)
    /// Not written any more but as a tombstone, where an older coordinator left one.
    case consumerGroupTopics(ConsumerGroupPartitionMetadataKey, ConsumerGroupPartitionMetadataValue?)
    case consumerMember(ConsumerGroupMemberMetadataKey, ConsumerGroupMemberMetadataValue?)
    case consumerTarget(
        ConsumerGroupTargetAssignmentMetadataKey, ConsumerGroupTargetAssignmentMetadataValue?)
    case consumerMemberTarget(
        ConsumerGroupTargetAssignmentMemberKey, ConsumerGroupTargetAssignmentMemberValue?)
    case consumerMemberCurrent(
        ConsumerGroupCurrentMemberAssignmentKey, ConsumerGroupCurrentMemberAssignmentValue?)
    case consumerPattern(ConsumerGroupRegularExpressionKey, ConsumerGroupRegularExpressionValue?)
    /// Share groups (KIP-932).
    case share(ShareGroupRecord)

    /// Record types as they stand in the first two bytes of a key. 0 and 1 are the same layout: 0 was
    /// written by releases before 0.9.
    private enum KeyType {
        static let legacyOffsetCommit: Int16 = 0
        static let offsetCommit: Int16 = 1
        static let groupMetadata: Int16 = 2
        static let consumerGroup: Int16 = 3
        static let consumerGroupTopics: Int16 = 4
        static let consumerMember: Int16 = 5
        static let consumerTarget: Int16 = 6
        static let consumerMemberTarget: Int16 = 7
        static let consumerMemberCurrent: Int16 = 8
        static let consumerPattern: Int16 = 16
    }

    /// Versions written. 4 of the offset value carries the topic id; 3 of the group value the instance ids.
    /// Every Kafka 4 release and all tools known to read the topic understand them.
    private static let offsetValueVersion: Int16 = 4
    private static let offsetValueVersionWithExpiry: Int16 = 1
    private static let groupValueVersion: Int16 = 3

    /// Key and value bytes of the record.
    package func encoded() throws(EncodeError) -> (key: ByteBuffer, value: ByteBuffer?) {
        var key = ProtocolWriter()
        var value: ByteBuffer?
        switch self {
        case .offsetCommit(let commitKey, let commitValue):
            key.integer(KeyType.offsetCommit)
            try commitKey.encode(into: &key, version: 0)
            if let commitValue {
                let version =
                    commitValue.expireTimestamp >= 0
                    ? Self.offsetValueVersionWithExpiry : Self.offsetValueVersion
                value = try Self.versioned(commitValue, version)
            }
        case .groupMetadata(let groupKey, let groupValue):
            key.integer(KeyType.groupMetadata)
            try groupKey.encode(into: &key, version: 0)
            if let groupValue { value = try Self.versioned(groupValue, Self.groupValueVersion) }
        case .consumerGroup(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerGroup, recordKey, recordValue, &key, &value)
        case .consumerGroupTopics(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerGroupTopics, recordKey, recordValue, &key, &value)
        case .consumerMember(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerMember, recordKey, recordValue, &key, &value)
        case .consumerTarget(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerTarget, recordKey, recordValue, &key, &value)
        case .consumerMemberTarget(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerMemberTarget, recordKey, recordValue, &key, &value)
        case .consumerMemberCurrent(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerMemberCurrent, recordKey, recordValue, &key, &value)
        case .consumerPattern(let recordKey, let recordValue):
            try Self.encode(KeyType.consumerPattern, recordKey, recordValue, &key, &value)
        case .share(let record):
            return try record.encoded()
        }
        return (key.buffer, value)
    }

    /// Records of consumer groups know one version.
    private static func encode(
        _ type: Int16, _ recordKey: some KafkaMessage, _ recordValue: (some KafkaMessage)?,
        _ key: inout ProtocolWriter, _ value: inout ByteBuffer?
    ) throws(EncodeError) {
        key.integer(type)
        try recordKey.encode(into: &key, version: 0)
        if let recordValue { value = try versioned(recordValue, 0) }
    }

    private static func versioned(_ message: some KafkaMessage, _ version: Int16) throws(EncodeError)
        -> ByteBuffer
    {
        var writer = ProtocolWriter()
        writer.integer(version)
        try message.encode(into: &writer, version: version)
        return writer.buffer
    }

    /// Reads a record; `nil` for a type this release does not know, which a newer broker may have written and
    /// which is left alone.
    ///
    /// - Parameter last: the record before, whose texts are shared where they come again.
    package static func decode(
        key: ByteBuffer, value: ByteBuffer?, after last: CoordinatorRecord? = nil
    ) throws(DecodeError) -> CoordinatorRecord? {
        var r = ProtocolReader(key)
        let type = try r.int16()
        switch type {
        case KeyType.legacyOffsetCommit, KeyType.offsetCommit:
            let commitKey: OffsetCommitKey
            if case .offsetCommit(let lastKey, _)? = last {
                commitKey = try OffsetCommitKey(reading: &r, after: lastKey)
            } else {
                commitKey = try OffsetCommitKey(reading: &r, version: 0)
            }
            return .offsetCommit(commitKey, try value.map(read))
        case KeyType.groupMetadata:
            let groupKey = try GroupMetadataKey(reading: &r, version: 0)
            return .groupMetadata(groupKey, try value.map(read))
        case KeyType.consumerGroup:
            return .consumerGroup(try ConsumerGroupMetadataKey(reading: &r, version: 0), try value.map(read))
        case KeyType.consumerGroupTopics:
            return .consumerGroupTopics(
                try ConsumerGroupPartitionMetadataKey(reading: &r, version: 0), try value.map(read))
        case KeyType.consumerMember:
            return .consumerMember(
                try ConsumerGroupMemberMetadataKey(reading: &r, version: 0), try value.map(read))
        case KeyType.consumerTarget:
            return .consumerTarget(
                try ConsumerGroupTargetAssignmentMetadataKey(reading: &r, version: 0), try value.map(read))
        case KeyType.consumerMemberTarget:
            return .consumerMemberTarget(
                try ConsumerGroupTargetAssignmentMemberKey(reading: &r, version: 0), try value.map(read))
        case KeyType.consumerMemberCurrent:
            return .consumerMemberCurrent(
                try ConsumerGroupCurrentMemberAssignmentKey(reading: &r, version: 0), try value.map(read))
        case KeyType.consumerPattern:
            return .consumerPattern(
                try ConsumerGroupRegularExpressionKey(reading: &r, version: 0), try value.map(read))
        case _:
            return try ShareGroupRecord.decode(type, &r, value: value).map { .share($0) }
        }
    }

    private static func read<Value: KafkaMessage>(_ bytes: ByteBuffer) throws(DecodeError) -> Value {
        var r = ProtocolReader(bytes)
        let version = try r.int16()
        return try Value(reading: &r, version: version)
    }
}

extension CoordinatorRecord {
    /// Roughly what a tombstone of this key takes in the log.
    var keyByteCount: Int {
        let names =
            switch self {
            case .offsetCommit(let key, _): key.topic.utf8.count
            case .consumerMember(let key, _): key.memberID.utf8.count
            case .consumerMemberTarget(let key, _): key.memberID.utf8.count
            case .consumerMemberCurrent(let key, _): key.memberID.utf8.count
            case .consumerPattern(let key, _): key.regularExpression.utf8.count
            case .share(let record): record.memberID?.utf8.count ?? 0
            case .groupMetadata, .consumerGroup, .consumerGroupTopics, .consumerTarget: 0
            }
        return groupID.utf8.count + names + 64
    }

    package var groupID: String {
        switch self {
        case .offsetCommit(let key, _): key.group
        case .groupMetadata(let key, _): key.group
        case .consumerGroup(let key, _): key.groupID
        case .consumerGroupTopics(let key, _): key.groupID
        case .consumerMember(let key, _): key.groupID
        case .consumerTarget(let key, _): key.groupID
        case .consumerMemberTarget(let key, _): key.groupID
        case .consumerMemberCurrent(let key, _): key.groupID
        case .consumerPattern(let key, _): key.groupID
        case .share(let record): record.groupID
        }
    }
}
