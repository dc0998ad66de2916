import HashTreeCollections
package import MartletKafkaProtocol
package import MartletLogModel

/// What a request leads to: records to append to the metadata log, and the answer that may be sent once they
/// are committed. An answer without records may be sent at once.
package struct Decision<Response: Sendable>: Sendable {
    package var records: [MetadataRecord]
    package var response: Response

    package init(records: [MetadataRecord] = [], response: Response) {
        self.records = records
        self.response = response
    }
}

/// Why a record of the metadata log cannot be applied. The log then comes from another release or is not
/// ours: the broker stops rather than serve half of its metadata.
package enum ReplayError: Error, Equatable, CustomStringConvertible {
    case unsupportedRecord(type: Int16)
    case unknownTopic(UniversalID, record: String)
    case unknownBroker(BrokerID, record: String)
    case partitionGap(UniversalID, expected: Int, found: Int32)
    case unknownPartition(UniversalID, Int32)
    case duplicateTopic(String)

    package var description: String {
        switch self {
        case .unsupportedRecord(let type):
            "metadata record type \(type) is not supported by this release"
        case .unknownTopic(let id, let record):
            "\(record) names topic \(id), which no earlier record created"
        case .unknownBroker(let id, let record):
            "\(record) names broker \(id), which no earlier record registered"
        case .partitionGap(let id, let expected, let found):
            "partition \(found) of topic \(id) appears where \(expected) is next"
        case .unknownPartition(let id, let index):
            "a change names partition \(index) of topic \(id), which does not exist"
        case .duplicateTopic(let name):
            "topic \(name) is created twice"
        }
    }
}

/// The cluster's metadata as a pure core: `decide…` functions read the state and yield records, ``replay(_:at:)``
/// is the only writer, on the live path and when a log or snapshot is loaded (style guide §5).
///
/// The shell appends the records of a decision as one batch, replays them at once, so that the next decision
/// sees them, publishes the image when they are committed, and then sends the answer. If the append fails the
/// shell throws the core away and loads the log again; there is no undo.
///
/// Sources: KIP-631 (quorum controller), KIP-516 (topic ids), KIP-599 (partition limits), KIP-339 and KIP-226
/// (configurations), KIP-730 (producer ids), KIP-584 (features).
package struct ClusterController: ~Copyable {
    /// State after the last replayed record, ahead of what is published until ``publish()``.
    private(set) var state: MetadataImage

    /// The state as an image; may be ahead of what is committed.
    package var image: MetadataImage { state }

    /// Names that contain '.' or '_', by their canonical form, to find collisions without a scan.
    private(set) var collidingNames: [String: [String]] = [:]
    private var pending = PendingChanges()

    private struct PendingChanges {
        var created: [UniversalID: String] = [:]
        var deleted: [UniversalID: String] = [:]
        var changed: Set<UniversalID> = []
        var reconfigured: Set<UniversalID> = []
        var brokerConfigurations = false
        var brokers = false
        var features = false
    }

    package init(localBroker: BrokerID, staticConfiguration: [String: String] = [:]) {
        state = MetadataImage(localBroker: localBroker, staticConfiguration: staticConfiguration)
    }

    /// Records that a new cluster starts with. `metadata.version` comes first, as readers of the log expect;
    /// the cluster id has no record of its own in Kafka, so it is a cluster-wide configuration value.
    package static func bootstrapRecords(clusterID: UniversalID) -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        for feature in Features.atBootstrap {
            var record = FeatureLevelRecord()
            record.name = feature.name
            record.featureLevel = feature.level
            records.append(.featureLevel(record))
        }
        records.append(
            .config(resource: .broker(nil), name: ClusterIdentity.configName, value: clusterID.description))
        return records
    }

    /// Applies one record. `offset` is its position in the metadata log; a snapshot passes the offset it covers.
    package mutating func replay(_ record: MetadataRecord, at offset: Offset) throws(ReplayError) {
        switch record {
        case .topic(let record): try replay(record)
        case .partition(let record): try replay(record)
        case .partitionChange(let record): try replay(record)
        case .removeTopic(let record): try replay(record)
        case .config(let record): replay(record)
        case .registerBroker(let record): replay(record)
        case .unregisterBroker(let record): try replay(record)
        case .brokerRegistrationChange(let record): try replay(record)
        case .fenceBroker(let record): try setFenced(true, BrokerID(record.id), "FenceBrokerRecord")
        case .unfenceBroker(let record): try setFenced(false, BrokerID(record.id), "UnfenceBrokerRecord")
        case .featureLevel(let record): replay(record)
        case .producerIDs(let record): state.nextProducerID = record.nextProducerID
        case .noOp: break
        case _: throw .unsupportedRecord(type: record.recordType)
        }
        state.lastOffset = offset
    }

    /// The image of everything replayed, and what is new since the last call. Topics whose configuration may
    /// have changed are recomputed here, once for a whole batch of records.
    package mutating func publish() -> (image: MetadataImage, delta: MetadataDelta) {
        let changes = pending
        pending = PendingChanges()
        var delta = MetadataDelta()
        delta.brokersChanged = changes.brokers
        delta.featuresChanged = changes.features
        delta.brokerConfigurationChanged = changes.brokerConfigurations

        var dirty = changes.reconfigured.union(changes.created.keys)
        if changes.brokerConfigurations {
            state.brokerConfiguration = BrokerConfiguration(state.brokerValues)
            for id in state.topics.keys { dirty.insert(id) }
        }
        let plain = TopicConfiguration(overrides: [:], broker: state.brokerValues)
        for id in dirty {
            guard let topic = state.topics[id] else { continue }
            let configuration =
                topic.overrides.isEmpty
                ? plain : TopicConfiguration(overrides: topic.overrides, broker: state.brokerValues)
            guard configuration != topic.configuration else { continue }
            state.topics[id]?.configuration = configuration
            if changes.created[id] == nil { delta.reconfiguredTopics.append(.init(name: topic.name, id: id)) }
        }
        delta.createdTopics = changes.created.map { .init(name: $0.value, id: $0.key) }
        delta.deletedTopics = changes.deleted.map { .init(name: $0.value, id: $0.key) }
        delta.changedTopics = changes.changed.compactMap { id in
            changes.created[id] == nil ? state.topics[id].map { .init(name: $0.name, id: id) } : nil
        }
        delta.createdTopics.sort(by: MetadataDelta.ascending)
        delta.deletedTopics.sort(by: MetadataDelta.ascending)
        delta.changedTopics.sort(by: MetadataDelta.ascending)
        delta.reconfiguredTopics.sort(by: MetadataDelta.ascending)
        return (state, delta)
    }

    // MARK: Replay of topics and partitions

    private mutating func replay(_ record: TopicRecord) throws(ReplayError) {
        guard state.topicIDs[record.name] == nil, state.topics[record.topicID] == nil else {
            throw .duplicateTopic(record.name)
        }
        var topic = TopicImage(id: record.topicID, name: record.name)
        topic.overrides = state.configs[.topic(record.name)] ?? [:]
        state.topics[record.topicID] = topic
        state.topicIDs[record.name] = record.topicID
        state.topicCount += 1
        if let canonical = Self.canonicalName(record.name) {
            collidingNames[canonical, default: []].append(record.name)
        }
        pending.created[record.topicID] = record.name
    }

    private mutating func replay(_ record: PartitionRecord) throws(ReplayError) {
        guard let count = state.topics[record.topicID]?.partitions.count else {
            throw .unknownTopic(record.topicID, record: "PartitionRecord")
        }
        guard Int(record.partitionID) == count else {
            throw .partitionGap(record.topicID, expected: count, found: record.partitionID)
        }
        state.topics[record.topicID]?.partitions.append(PartitionImage(record))
        state.partitionCount += 1
        pending.changed.insert(record.topicID)
    }

    private mutating func replay(_ record: PartitionChangeRecord) throws(ReplayError) {
        guard let count = state.topics[record.topicID]?.partitions.count else {
            throw .unknownTopic(record.topicID, record: "PartitionChangeRecord")
        }
        guard record.partitionID >= 0, Int(record.partitionID) < count else {
            throw .unknownPartition(record.topicID, record.partitionID)
        }
        state.topics[record.topicID]?.partitions[Int(record.partitionID)].apply(record)
        pending.changed.insert(record.topicID)
    }

    private mutating func replay(_ record: RemoveTopicRecord) throws(ReplayError) {
        guard let topic = state.topics.removeValue(forKey: record.topicID) else {
            throw .unknownTopic(record.topicID, record: "RemoveTopicRecord")
        }
        state.topicIDs.removeValue(forKey: topic.name)
        state.configs.removeValue(forKey: .topic(topic.name))
        state.topicCount -= 1
        state.partitionCount -= topic.partitions.count
        if let canonical = Self.canonicalName(topic.name) {
            collidingNames[canonical]?.removeAll { $0 == topic.name }
            if collidingNames[canonical]?.isEmpty == true { collidingNames[canonical] = nil }
        }
        pending.changed.remove(record.topicID)
        pending.reconfigured.remove(record.topicID)
        if pending.created.removeValue(forKey: record.topicID) == nil {
            pending.deleted[record.topicID] = topic.name
        }
    }

    // MARK: Replay of configurations, brokers, features

    private mutating func replay(_ record: ConfigRecord) {
        guard let resource = ConfigResource(wireType: record.resourceType, name: record.resourceName) else {
            return  // Client metrics: kept by later releases, of no consequence here.
        }
        if resource == .broker(nil), record.name == ClusterIdentity.configName {
            state.clusterID = record.value.flatMap { UniversalID($0) }
            return
        }
        var values = state.configs[resource] ?? [:]
        values[record.name] = record.value
        state.configs[resource] = values.isEmpty ? nil : values
        switch resource {
        case .topic(let name):
            guard let id = state.topicIDs[name] else { return }
            state.topics[id]?.overrides = values
            pending.reconfigured.insert(id)
        case .broker(nil):
            state.brokerValues.clusterDefault = values
            pending.brokerConfigurations = true
        case .broker(.some(let id)):
            guard id == state.localBroker else { return }
            state.brokerValues.own = values
            pending.brokerConfigurations = true
        case .group(let id):
            state.groupValues[id] = values.isEmpty ? nil : values
            state.groupConfigurationNumber += 1
        }
    }

    private mutating func replay(_ record: RegisterBrokerRecord) {
        let broker = BrokerImage(record)
        if let index = state.brokers.firstIndex(where: { $0.id == broker.id }) {
            state.brokers[index] = broker
        } else {
            state.brokers.append(broker)
            state.brokers.sort { $0.id < $1.id }
        }
        pending.brokers = true
    }

    private mutating func replay(_ record: UnregisterBrokerRecord) throws(ReplayError) {
        guard let index = state.brokers.firstIndex(where: { $0.id.rawValue == record.brokerID }) else {
            throw .unknownBroker(BrokerID(record.brokerID), record: "UnregisterBrokerRecord")
        }
        state.brokers.remove(at: index)
        pending.brokers = true
    }

    private mutating func replay(_ record: BrokerRegistrationChangeRecord) throws(ReplayError) {
        guard let index = state.brokers.firstIndex(where: { $0.id.rawValue == record.brokerID }) else {
            throw .unknownBroker(BrokerID(record.brokerID), record: "BrokerRegistrationChangeRecord")
        }
        if record.fenced != 0 { state.brokers[index].isFenced = record.fenced > 0 }
        if record.inControlledShutdown != 0 { state.brokers[index].isInControlledShutdown = true }
        if !record.logDirs.isEmpty { state.brokers[index].logDirectories = record.logDirs }
        pending.brokers = true
    }

    private mutating func setFenced(_ fenced: Bool, _ id: BrokerID, _ record: String) throws(ReplayError) {
        guard let index = state.brokers.firstIndex(where: { $0.id == id }) else {
            throw .unknownBroker(id, record: record)
        }
        state.brokers[index].isFenced = fenced
        pending.brokers = true
    }

    private mutating func replay(_ record: FeatureLevelRecord) {
        state.features.removeAll { $0.name == record.name }
        if record.featureLevel > 0 || record.name == Features.metadataVersion {
            state.features.append(.init(name: record.name, level: record.featureLevel))
            state.features.sort { $0.name < $1.name }
        }
        pending.features = true
    }

    /// The name with each '.' as '_', or `nil` for names that have neither and so collide with nothing.
    static func canonicalName(_ name: String) -> String? {
        let dot = UInt8(ascii: ".")
        let underscore = UInt8(ascii: "_")
        guard name.utf8.contains(where: { $0 == dot || $0 == underscore }) else { return nil }
        return String(decoding: name.utf8.map { $0 == dot ? underscore : $0 }, as: UTF8.self)
    }
}

/// Where the cluster id lives in the metadata log.
package enum ClusterIdentity {
    package static let configName = "martlet.cluster.id"
}

extension MetadataDelta {
    static func ascending(_ left: Topic, _ right: Topic) -> Bool {
        left.name == right.name ? left.id < right.id : left.name < right.name
    }
}

extension ConfigResource {
    /// `nil` for resource types that are not kept here.
    package init?(wireType: Int8, name: String) {
        switch wireType {
        case 2: self = .topic(name)
        case 4 where name.isEmpty: self = .broker(nil)
        case 4:
            guard let id = Int32(name), id >= 0 else { return nil }
            self = .broker(BrokerID(id))
        case 32: self = .group(name)
        case _: return nil
        }
    }
}
