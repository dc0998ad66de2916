package import MartletKafkaProtocol
package import MartletLogModel
import NIOCore

/// A record of a share group in `__consumer_offsets`, in Kafka's layout; a value of `nil` is a tombstone.
package enum ShareGroupRecord: Hashable, Sendable {
    case member(ShareGroupMemberMetadataKey, ShareGroupMemberMetadataValue?)
    case group(ShareGroupMetadataKey, ShareGroupMetadataValue?)
    case target(ShareGroupTargetAssignmentMetadataKey, ShareGroupTargetAssignmentMetadataValue?)
    case memberTarget(ShareGroupTargetAssignmentMemberKey, ShareGroupTargetAssignmentMemberValue?)
    case memberCurrent(ShareGroupCurrentMemberAssignmentKey, ShareGroupCurrentMemberAssignmentValue?)
    /// Share partitions whose state the share coordinator keeps, or is to keep.
    case partitions(ShareGroupStatePartitionMetadataKey, ShareGroupStatePartitionMetadataValue?)

    private enum KeyType {
        static let member: Int16 = 10
        static let group: Int16 = 11
        static let target: Int16 = 12
        static let memberTarget: Int16 = 13
        static let memberCurrent: Int16 = 14
        static let partitions: Int16 = 15
    }

    package var groupID: String {
        switch self {
        case .member(let key, _): key.groupID
        case .group(let key, _): key.groupID
        case .target(let key, _): key.groupID
        case .memberTarget(let key, _): key.groupID
        case .memberCurrent(let key, _): key.groupID
        case .partitions(let key, _): key.groupID
        }
    }

    var memberID: String? {
        switch self {
        case .member(let key, _): key.memberID
        case .memberTarget(let key, _): key.memberID
        case .memberCurrent(let key, _): key.memberID
        case .group, .target, .partitions: nil
        }
    }

    var hasValue: Bool {
        switch self {
        case .member(_, let value): value != nil
        case .group(_, let value): value != nil
        case .target(_, let value): value != nil
        case .memberTarget(_, let value): value != nil
        case .memberCurrent(_, let value): value != nil
        case .partitions(_, let value): value != nil
        }
    }

    func encoded() throws(EncodeError) -> (key: ByteBuffer, value: ByteBuffer?) {
        switch self {
        case .member(let key, let value): try Self.encode(KeyType.member, key, value)
        case .group(let key, let value): try Self.encode(KeyType.group, key, value)
        case .target(let key, let value): try Self.encode(KeyType.target, key, value)
        case .memberTarget(let key, let value): try Self.encode(KeyType.memberTarget, key, value)
        case .memberCurrent(let key, let value): try Self.encode(KeyType.memberCurrent, key, value)
        case .partitions(let key, let value): try Self.encode(KeyType.partitions, key, value)
        }
    }

    private static func encode(
        _ type: Int16, _ key: some KafkaMessage, _ value: (some KafkaMessage)?
    ) throws(EncodeError) -> (key: ByteBuffer, value: ByteBuffer?) {
        var keyWriter = ProtocolWriter()
        keyWriter.integer(type)
        try key.encode(into: &keyWriter, version: 0)
        guard let value else { return (keyWriter.buffer, nil) }
        var writer = ProtocolWriter()
        writer.integer(Int16(0))
        try value.encode(into: &writer, version: 0)
        return (keyWriter.buffer, writer.buffer)
    }

    /// The record of a key of this type; `nil` for types of others.
    static func decode(
        _ type: Int16, _ key: inout ProtocolReader, value: ByteBuffer?
    ) throws(DecodeError) -> ShareGroupRecord? {
        switch type {
        case KeyType.member:
            .member(try ShareGroupMemberMetadataKey(reading: &key, version: 0), try value.map(read))
        case KeyType.group:
            .group(try ShareGroupMetadataKey(reading: &key, version: 0), try value.map(read))
        case KeyType.target:
            .target(try ShareGroupTargetAssignmentMetadataKey(reading: &key, version: 0), try value.map(read))
        case KeyType.memberTarget:
            .memberTarget(
                try ShareGroupTargetAssignmentMemberKey(reading: &key, version: 0), try value.map(read))
        case KeyType.memberCurrent:
            .memberCurrent(
                try ShareGroupCurrentMemberAssignmentKey(reading: &key, version: 0), try value.map(read))
        case KeyType.partitions:
            .partitions(
                try ShareGroupStatePartitionMetadataKey(reading: &key, version: 0), try value.map(read))
        case _:
            nil
        }
    }

    private static func read<Value: KafkaMessage>(_ bytes: ByteBuffer) throws(DecodeError) -> Value {
        var reader = ProtocolReader(bytes)
        let version: Int16 = try reader.integer()
        return try Value(reading: &reader, version: version)
    }
}

// From what they say. Lists are in order, so that equal states give equal bytes.
extension ShareGroupRecord {
    static func group(_ group: String, epoch: Int32, metadataHash: Int64) -> ShareGroupRecord {
        var value = ShareGroupMetadataValue()
        value.epoch = epoch
        value.metadataHash = metadataHash
        return .group(groupKey(group), value)
    }

    static func groupTombstone(_ group: String) -> ShareGroupRecord { .group(groupKey(group), nil) }

    private static func groupKey(_ group: String) -> ShareGroupMetadataKey {
        var key = ShareGroupMetadataKey()
        key.groupID = group
        return key
    }

    static func member(
        _ group: String, _ member: String, _ value: ShareGroupMemberMetadataValue?
    ) -> ShareGroupRecord {
        var key = ShareGroupMemberMetadataKey()
        key.groupID = group
        key.memberID = member
        return .member(key, value)
    }

    static func target(_ group: String, epoch: Int32, at timestamp: Timestamp) -> ShareGroupRecord {
        var value = ShareGroupTargetAssignmentMetadataValue()
        value.assignmentEpoch = epoch
        value.assignmentTimestamp = timestamp.rawValue
        return .target(targetKey(group), value)
    }

    static func targetTombstone(_ group: String) -> ShareGroupRecord { .target(targetKey(group), nil) }

    private static func targetKey(_ group: String) -> ShareGroupTargetAssignmentMetadataKey {
        var key = ShareGroupTargetAssignmentMetadataKey()
        key.groupID = group
        return key
    }

    static func memberTarget(
        _ group: String, _ member: String, _ partitions: TopicPartitions?
    ) -> ShareGroupRecord {
        var key = ShareGroupTargetAssignmentMemberKey()
        key.groupID = group
        key.memberID = member
        guard let partitions else { return .memberTarget(key, nil) }
        var value = ShareGroupTargetAssignmentMemberValue()
        value.topicPartitions = partitions.sorted { $0.key < $1.key }.map { topic, indexes in
            var entry = ShareGroupTargetAssignmentMemberValue.TopicPartition()
            entry.topicID = topic
            entry.partitions = indexes.sorted()
            return entry
        }
        return .memberTarget(key, value)
    }

    static func memberCurrent(_ group: String, _ member: ShareMember) -> ShareGroupRecord {
        var value = ShareGroupCurrentMemberAssignmentValue()
        value.memberEpoch = member.epoch
        value.previousMemberEpoch = member.previousEpoch
        // The one state there is: nothing has to be given back before another gets it.
        value.state = 0
        value.assignedPartitions = member.assigned.sorted { $0.key < $1.key }.map { topic, indexes in
            var entry = ShareGroupCurrentMemberAssignmentValue.TopicPartitions()
            entry.topicID = topic
            entry.partitions = indexes.sorted()
            return entry
        }
        return .memberCurrent(currentKey(group, member.id), value)
    }

    static func memberCurrentTombstone(_ group: String, _ member: String) -> ShareGroupRecord {
        .memberCurrent(currentKey(group, member), nil)
    }

    private static func currentKey(_ group: String, _ member: String) -> ShareGroupCurrentMemberAssignmentKey
    {
        var key = ShareGroupCurrentMemberAssignmentKey()
        key.groupID = group
        key.memberID = member
        return key
    }

    static func partitions(_ group: String, _ state: SharePartitionRegister?) -> ShareGroupRecord {
        var key = ShareGroupStatePartitionMetadataKey()
        key.groupID = group
        guard let state else { return .partitions(key, nil) }
        func entries(
            _ topics: [UniversalID: SharePartitionRegister.Topic]
        ) -> [ShareGroupStatePartitionMetadataValue.TopicPartitionsInfo] {
            topics.sorted { $0.key < $1.key }.map { id, topic in
                var entry = ShareGroupStatePartitionMetadataValue.TopicPartitionsInfo()
                entry.topicID = id
                entry.topicName = topic.name
                entry.partitions = topic.partitions.sorted()
                return entry
            }
        }
        var value = ShareGroupStatePartitionMetadataValue()
        value.initializingTopics = entries(state.initializing)
        value.initializedTopics = entries(state.initialized)
        value.deletingTopics = state.deleting.sorted { $0.key < $1.key }.map { id, name in
            var entry = ShareGroupStatePartitionMetadataValue.TopicInfo()
            entry.topicID = id
            entry.topicName = name
            return entry
        }
        return .partitions(key, value)
    }
}

/// Which share partitions of a group have state with the share coordinator.
package struct SharePartitionRegister: Sendable, Equatable {
    package struct Topic: Sendable, Equatable {
        package var name: String
        package var partitions: Set<Int32>
    }

    /// Asked for, not confirmed.
    package var initializing: [UniversalID: Topic] = [:]
    package var initialized: [UniversalID: Topic] = [:]
    /// Their state is being deleted.
    package var deleting: [UniversalID: String] = [:]

    package init() {}

    init(_ value: ShareGroupStatePartitionMetadataValue) {
        func topics(
            _ entries: [ShareGroupStatePartitionMetadataValue.TopicPartitionsInfo]
        ) -> [UniversalID: Topic] {
            Dictionary(
                entries.map { ($0.topicID, Topic(name: $0.topicName, partitions: Set($0.partitions))) },
                uniquingKeysWith: { first, _ in first })
        }
        initializing = topics(value.initializingTopics)
        initialized = topics(value.initializedTopics)
        for entry in value.deletingTopics { deleting[entry.topicID] = entry.topicName }
    }

    var isEmpty: Bool { initializing.isEmpty && initialized.isEmpty && deleting.isEmpty }

    /// Everything the share coordinator may keep of the group.
    var partitions: TopicPartitions {
        initialized.mapValues(\.partitions).merging(initializing.mapValues(\.partitions)) { $0.union($1) }
    }

    mutating func begin(_ id: UniversalID, _ name: String, _ partitions: Set<Int32>) {
        initializing[id, default: Topic(name: name, partitions: [])].partitions.formUnion(partitions)
    }

    /// The share coordinator keeps these now.
    mutating func confirm(_ id: UniversalID, _ partitions: Set<Int32>) {
        guard let topic = initializing[id] else { return }
        let confirmed = topic.partitions.intersection(partitions)
        guard !confirmed.isEmpty else { return }
        initialized[id, default: Topic(name: topic.name, partitions: [])].partitions.formUnion(confirmed)
        giveUp(id, confirmed)
    }

    mutating func giveUp(_ id: UniversalID, _ partitions: Set<Int32>) {
        initializing[id]?.partitions.subtract(partitions)
        if initializing[id]?.partitions.isEmpty == true { initializing[id] = nil }
    }

    mutating func forget(_ id: UniversalID) {
        initializing[id] = nil
        initialized[id] = nil
        deleting[id] = nil
    }
}
