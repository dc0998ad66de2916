import HashTreeCollections
package import MartletKafkaProtocol
package import MartletLogModel

/// What a request leads to: records to append to the metadata log, and the answer that may be sent once they
/// are committed. An answer without records may be sent at once.
package struct Decision<Response: Sendable>: Sendable {
    package var records: [MetadataRecord]
    package var response: Response
    /// Whether the records take effect together or not at all. Others may be cut anywhere: each batch by itself
    /// leaves a state from which the same request, or the same silence of a broker, leads on.
    package var isAtomic: Bool

    package init(records: [MetadataRecord] = [], response: Response, isAtomic: Bool = true) {
        self.records = records
        self.response = response
        self.isAtomic = isAtomic
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
    case staleBrokerEpoch(BrokerID, found: Int64, expected: Int64)
    case transactionOpen(Bool)

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
        case .staleBrokerEpoch(let id, let found, let expected):
            "a change of broker \(id) names its epoch \(found), which is \(expected)"
        case .transactionOpen(let isOpen):
            isOpen
                ? "a transaction of metadata records begins inside another"
                : "a transaction of metadata records ends that never began"
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
/// (configurations), KIP-730 (producer ids), KIP-584 (features), KIP-455 (reassignment), KIP-497 and KIP-903 (in-sync
/// sets), KIP-966 (eligible leader replicas), KIP-868 (transactions of records).
package struct ClusterController: ~Copyable {
    /// State after the last replayed record, ahead of what is published until ``publish()``. Written by replay alone.
    var state: MetadataImage

    /// The state as an image; may be ahead of what is committed.
    package var image: MetadataImage { state }

    /// Names that contain '.' or '_', by their canonical form, to find collisions without a scan.
    private(set) var collidingNames: [String: [String]] = [:]
    /// `nil` in a core that only follows: decisions need it, replay does not.
    private(set) var index: ReplicaIndex?
    /// What brokers have said of late; lost with the controller, and no part of the metadata.
    var sessions = BrokerSessions()
    var timers = ControllerTimers()
    var pending = PendingChanges()
    /// Rules that the proofs switch off; none in production.
    let suspended: SuspendedControllerRules
    /// What an abort goes back to, while the records of a transaction come in (KIP-868).
    private var transaction: (state: MetadataImage, pending: PendingChanges)?

    struct PendingChanges {
        var created: [UniversalID: String] = [:]
        var deleted: [UniversalID: String] = [:]
        var changed: [UniversalID: Set<Int32>] = [:]
        var reconfigured: Set<UniversalID> = []
        var brokerConfigurations = false
        var brokers: Set<BrokerID> = []
        var features = false
        var access = false
    }

    /// `isFollowing`: a core that keeps the image alone until ``activate(now:)``; it takes no decisions.
    package init(
        localBroker: BrokerID, staticConfiguration: [String: String] = [:], configuredBrokerCount: Int = 1,
        isFollowing: Bool = false, suspended: SuspendedControllerRules = []
    ) {
        self.suspended = suspended
        state = MetadataImage(localBroker: localBroker, staticConfiguration: staticConfiguration)
        state.configuredBrokerCount = configuredBrokerCount
        if !isFollowing { index = ReplicaIndex() }
    }

    /// Goes on from an image: what the core does that lost its leadership, with the last committed image. The records
    /// behind the image follow by replay.
    package init(image: MetadataImage, suspended: SuspendedControllerRules = []) {
        self.suspended = suspended
        state = image
        rebuildNames()
    }

    package var isActive: Bool { index != nil }

    /// Whether records of a transaction have come in, and its end has not. No snapshot can be taken then.
    package var isInTransaction: Bool { transaction != nil }

    /// Becomes the active controller, with everything in the log replayed. Every broker that is let in gets a whole
    /// session to say something: who was heard by the last controller is not known. The ``openingRecords`` returned
    /// come first in the new controller's log.
    package mutating func activate(now: Instant) -> [MetadataRecord] {
        if index == nil { index = ReplicaIndex(state) }
        sessions = BrokerSessions()
        for broker in state.brokers where !broker.isFenced {
            sessions.contacted(broker.id, epoch: broker.epoch, metadataOffset: nil, now: now)
        }
        timers = ControllerTimers()
        return openingRecords
    }

    /// What undoes that the last controller had not finished, with everything in the log replayed.
    package var openingRecords: [MetadataRecord] {
        guard isInTransaction else { return [] }
        var record = AbortTransactionRecord()
        record.reason = "the controller that began it is gone"
        return [.abortTransaction(record)]
    }

    /// The index of a core that decides.
    var activeIndex: ReplicaIndex {
        guard let index else { preconditionFailure("a core that only follows was asked to decide") }
        return index
    }

    private mutating func rebuildNames() {
        collidingNames = [:]
        for name in state.topicIDs.keys.sorted() {
            if let canonical = Self.canonicalName(name) { collidingNames[canonical, default: []].append(name) }
        }
    }

    /// Records that a new cluster starts with. `metadata.version` comes first, as readers of the log expect;
    /// the cluster id has no record of its own in Kafka, so it is a cluster-wide configuration value.
    ///
    /// A cluster that is configured with three or more brokers keeps two copies of what it acknowledges.
    package static func bootstrapRecords(
        clusterID: UniversalID, configuredBrokerCount: Int = 1
    ) -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        for feature in Features.atBootstrap {
            var record = FeatureLevelRecord()
            record.name = feature.name
            record.featureLevel = feature.level
            records.append(.featureLevel(record))
        }
        records.append(
            .config(resource: .broker(nil), name: ClusterIdentity.configName, value: clusterID.description))
        if configuredBrokerCount >= 3 {
            records.append(.config(resource: .broker(nil), name: TopicConfigName.minInsyncReplicas, value: "2"))
        }
        return records
    }

    /// Applies one record. `offset` is its position in the metadata log; a snapshot passes the offset it covers.
    package mutating func replay(_ record: MetadataRecord, at offset: Offset) throws(ReplayError) {
        switch record {
        case .topic(let record): try replay(record)
        case .partition(let record): try replay(record)
        case .partitionChange(let record): try replay(record, at: offset)
        case .removeTopic(let record): try replay(record)
        case .config(let record): replay(record)
        case .clearElr(let record): replay(record)
        case .registerBroker(let record): replay(record)
        case .unregisterBroker(let record): try replay(record)
        case .brokerRegistrationChange(let record): try replay(record)
        case .fenceBroker(let record):
            try setFenced(true, BrokerID(record.id), epoch: record.epoch, "FenceBrokerRecord")
        case .unfenceBroker(let record):
            try setFenced(false, BrokerID(record.id), epoch: record.epoch, "UnfenceBrokerRecord")
        case .featureLevel(let record): replay(record)
        case .producerIDs(let record): state.nextProducerID = record.nextProducerID
        case .clientQuota(let record): replay(record)
        case .userScramCredential(let record): replay(record)
        case .removeUserScramCredential(let record): replay(record)
        case .accessControlEntry(let record): replay(record)
        case .removeAccessControlEntry(let record): replay(record)
        case .beginTransaction:
            guard transaction == nil else { throw .transactionOpen(true) }
            transaction = (state, pending)
        case .endTransaction:
            guard transaction != nil else { throw .transactionOpen(false) }
            transaction = nil
        case .abortTransaction: try abortTransaction()
        case .noOp: break
        case _: throw .unsupportedRecord(type: record.recordType)
        }
        state.lastOffset = offset
    }

    private mutating func abortTransaction() throws(ReplayError) {
        guard let before = transaction else { throw .transactionOpen(false) }
        (state, pending) = before
        transaction = nil
        rebuildNames()
        if index != nil { index = ReplicaIndex(state) }
    }

    /// The image of everything replayed, and what is new since the last call. Topics whose configuration may
    /// have changed are recomputed here, once for a whole batch of records.
    package mutating func publish() -> (image: MetadataImage, delta: MetadataDelta) {
        // Half of a transaction is nobody's business yet.
        if let before = transaction { return (before.state, MetadataDelta()) }
        let changes = pending
        pending = PendingChanges()
        var delta = MetadataDelta()
        delta.changedBrokers = changes.brokers.sorted()
        delta.brokersChanged = !changes.brokers.isEmpty
        delta.accessChanged = changes.access
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
        for (id, partitions) in changes.changed {
            guard changes.created[id] == nil, let topic = state.topics[id] else { continue }
            delta.changedTopics.append(.init(name: topic.name, id: id))
            delta.changedPartitions[id] = partitions.sorted()
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
        let partition = PartitionImage(record)
        state.topics[record.topicID]?.partitions.append(partition)
        state.partitionCount += 1
        index?.insert(partition, topic: record.topicID, index: count)
        noteChange(record.topicID, record.partitionID)
    }

    private mutating func replay(_ record: PartitionChangeRecord, at offset: Offset) throws(ReplayError) {
        guard let count = state.topics[record.topicID]?.partitions.count else {
            throw .unknownTopic(record.topicID, record: "PartitionChangeRecord")
        }
        guard record.partitionID >= 0, Int(record.partitionID) < count else {
            throw .unknownPartition(record.topicID, record.partitionID)
        }
        let position = Int(record.partitionID)
        if index != nil, let old = state.topics[record.topicID]?.partitions[position] {
            var new = old
            new.apply(record)
            index?.replace(old, with: new, topic: record.topicID, index: position, at: offset)
        }
        state.topics[record.topicID]?.partitions[position].apply(record)
        noteChange(record.topicID, record.partitionID)
    }

    /// Partitions of topics that are new as a whole are not listed one by one.
    private mutating func noteChange(_ topic: UniversalID, _ partition: Int32) {
        if pending.created[topic] == nil { pending.changed[topic, default: []].insert(partition) }
    }

    /// What is eligible depends on the minimum of the in-sync set; when that changes, it begins anew (KIP-966).
    private mutating func replay(_ record: ClearElrRecord) {
        let ids: [UniversalID] =
            record.topicName.isEmpty
            ? Array(state.topics.keys) : state.topicIDs[record.topicName].map { [$0] } ?? []
        for id in ids {
            for position in state.topics[id]?.eligiblePositions ?? [] {
                state.topics[id]?.partitions[position].clearEligible()
                noteChange(id, Int32(position))
            }
        }
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
        index?.remove(topic)
        pending.changed[record.topicID] = nil
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
        if record.name == TopicConfigName.uncleanLeaderElection { timers.wantsUncleanElection() }
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
        if let index = state.brokerPosition(broker.id) {
            state.brokers[index] = broker
        } else {
            state.brokers.append(broker)
            state.brokers.sort { $0.id < $1.id }
        }
        sessions.registered(broker.id, epoch: broker.epoch)
        pending.brokers.insert(broker.id)
    }

    private mutating func replay(_ record: UnregisterBrokerRecord) throws(ReplayError) {
        let id = BrokerID(record.brokerID)
        let position = try position(of: id, epoch: record.brokerEpoch, "UnregisterBrokerRecord")
        state.brokers.remove(at: position)
        sessions.ended(id)
        index?.removeBroker(id)
        pending.brokers.insert(id)
    }

    private mutating func replay(_ record: BrokerRegistrationChangeRecord) throws(ReplayError) {
        let id = BrokerID(record.brokerID)
        let position = try position(of: id, epoch: record.brokerEpoch, "BrokerRegistrationChangeRecord")
        if record.fenced != 0 { state.brokers[position].isFenced = record.fenced > 0 }
        // Who is still there says so with the next heartbeat; who is not can come back at once.
        if record.fenced > 0 { sessions.ended(id) }
        if record.inControlledShutdown != 0 { state.brokers[position].isInControlledShutdown = true }
        if !record.logDirs.isEmpty { state.brokers[position].logDirectories = record.logDirs }
        pending.brokers.insert(id)
    }

    private mutating func setFenced(
        _ fenced: Bool, _ id: BrokerID, epoch: Int64, _ record: String
    ) throws(ReplayError) {
        state.brokers[try position(of: id, epoch: epoch, record)].isFenced = fenced
        pending.brokers.insert(id)
    }

    private borrowing func position(
        of id: BrokerID, epoch: Int64, _ record: String
    ) throws(ReplayError) -> Int {
        guard let position = state.brokerPosition(id) else { throw .unknownBroker(id, record: record) }
        guard state.brokers[position].epoch == epoch else {
            throw .staleBrokerEpoch(id, found: epoch, expected: state.brokers[position].epoch)
        }
        return position
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
