import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletReplication

/// The real controller with one partition: registration, fencing, elections and AlterPartition are its decisions, each
/// of whose records is one version of the metadata.
final class ModelController {
    struct Broker {
        var epoch: BrokerEpoch
        /// Or on its way out: it may neither lead nor join.
        var isFenced: Bool
    }

    /// One version of the metadata.
    struct Version {
        var assignment: PartitionAssignment
        var brokers: [Broker]
    }

    private static let topic = "model"
    private static let clusterID = UniversalID(high: 0x1122_3344_5566_4788, low: 0x8899_aabb_ccdd_eeff)

    /// Every replica, by its id; the preferred order is the partition's own.
    let replicas: [BrokerID]
    private var controller: ClusterController
    private var image: MetadataImage
    private var current: PartitionImage?
    private var topicID = UniversalID.zero
    private var nextOffset: Int64 = 0
    private var generator = SplitMix(state: 1)
    private(set) var history: [Version] = []
    private(set) var electionCount = 0

    init(replicaCount: Int, minInSyncReplicas: Int, suspended: SuspendedControllerRules) {
        replicas = (0..<Int32(replicaCount)).map { BrokerID($0) }
        controller = ClusterController(
            localBroker: BrokerID(0), configuredBrokerCount: replicaCount, suspended: suspended)
        image = controller.image
        append(
            ClusterController.bootstrapRecords(
                clusterID: Self.clusterID, configuredBrokerCount: replicaCount))
        append(controller.activate(now: Instant(nanoseconds: 0)))
        for replica in replicas {
            _ = register(replica, wasUnclean: false, removesUnclean: false)
            unfence(replica)
        }
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = Self.topic
        topic.numPartitions = -1
        topic.replicationFactor = -1
        var assignment = CreateTopicsRequest.CreatableReplicaAssignment()
        assignment.partitionIndex = 0
        assignment.brokerIDs = replicas.map(\.rawValue)
        topic.assignments = [assignment]
        var minimum = CreateTopicsRequest.CreatableTopicConfig()
        minimum.name = "min.insync.replicas"
        minimum.value = "\(minInSyncReplicas)"
        topic.configs = [minimum]
        var request = CreateTopicsRequest()
        request.topics = [topic]
        let decision = controller.decide(request, generator: &generator)
        precondition(decision.response.topics[0].errorCode == 0, "the topic of the model is refused")
        append(decision.records)
        precondition(leader != nil, "the topic of the model has no leader")
    }

    // MARK: Metadata

    private var partition: PartitionImage {
        guard let current else { preconditionFailure("the partition of the model is not there yet") }
        return current
    }

    var leader: BrokerID? { partition.leader }
    var leaderEpoch: LeaderEpoch { partition.leaderEpoch }
    var partitionEpoch: PartitionEpoch { PartitionEpoch(partition.partitionEpoch) }
    var inSync: [BrokerID] { partition.isr }
    var eligible: [BrokerID] { partition.eligibleLeaderReplicas }
    var isRecovering: Bool { partition.isRecovering }

    var standings: [ReplicaStanding] {
        replicas.map { id in
            let broker = self.broker(id)
            return ReplicaStanding(brokerEpoch: broker.epoch, canJoin: !broker.isFenced)
        }
    }

    func isFenced(_ broker: BrokerID) -> Bool { self.broker(broker).isFenced }

    private func broker(_ id: BrokerID) -> Broker {
        let broker = image.broker(id)
        return Broker(epoch: BrokerEpoch(broker?.epoch ?? -1), isFenced: !(broker?.isActive ?? false))
    }

    /// A decision may be cut after any of its records, and brokers may see it so.
    private func append(_ records: [MetadataRecord]) {
        for record in records {
            do {
                try controller.replay(record, at: Offset(nextOffset))
            } catch {
                preconditionFailure("the controller does not take its own record: \(error)")
            }
            nextOffset += 1
            image = controller.publish().image
            if topicID == .zero { topicID = image.topicID(named: Self.topic) ?? .zero }
            guard let next = image.partition(TopicPartition(Self.topic, 0)) else { continue }
            if next.leaderEpoch != current?.leaderEpoch { electionCount += 1 }
            current = next
            history.append(
                Version(
                    assignment: PartitionAssignment(
                        leader: next.leader, leaderEpoch: next.leaderEpoch,
                        partitionEpoch: PartitionEpoch(next.partitionEpoch), replicas: next.replicas,
                        inSyncReplicas: next.isr, isRecovering: next.isRecovering),
                    brokers: replicas.map { broker($0) }))
        }
    }

    // MARK: Brokers

    /// A session expired.
    func fence(_ broker: BrokerID) {
        append(controller.decideFencing(of: broker, epoch: self.broker(broker).epoch.rawValue).records)
    }

    func unfence(_ broker: BrokerID) {
        var request = BrokerHeartbeatRequest()
        request.brokerID = broker.rawValue
        request.brokerEpoch = self.broker(broker).epoch.rawValue
        request.currentMetadataOffset = nextOffset - 1
        append(controller.decide(request).records)
    }

    /// A broker process came up, or an old one came back: a new epoch, fenced at first.
    func register(_ broker: BrokerID, wasUnclean: Bool, removesUnclean: Bool) -> BrokerEpoch {
        controller.sessionEnded(broker)
        var request = BrokerRegistrationRequest()
        request.brokerID = broker.rawValue
        request.clusterID = Self.clusterID.description
        request.incarnationID = UniversalID.random(using: &generator)
        request.logDirs = [UniversalID(high: 7, low: UInt64(broker.rawValue) + 1_000)]
        request.previousBrokerEpoch = wasUnclean && removesUnclean ? -1 : self.broker(broker).epoch.rawValue
        request.features = Features.supported.map {
            var feature = BrokerRegistrationRequest.Feature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minimum
            feature.maxSupportedVersion = $0.maximum
            return feature
        }
        let decision = controller.decide(request, nextOffset: Offset(nextOffset), now: Instant(nanoseconds: 0))
        precondition(decision.response.errorCode == 0, "broker \(broker) is refused: \(decision.response.errorCode)")
        append(decision.records)
        return BrokerEpoch(decision.response.brokerEpoch)
    }

    // MARK: Partition

    /// Another preferred order; nothing else changes, and no leader epoch begins.
    func reorder(_ replicas: [BrokerID]) {
        var entry = AlterPartitionReassignmentsRequest.ReassignablePartition()
        entry.partitionIndex = 0
        entry.replicas = replicas.map(\.rawValue)
        var topic = AlterPartitionReassignmentsRequest.ReassignableTopic()
        topic.name = Self.topic
        topic.partitions = [entry]
        var request = AlterPartitionReassignmentsRequest()
        request.topics = [topic]
        append(controller.decide(request).records)
    }

    /// A planned election: `broker` becomes the preferred leader, and the preferred leader is elected if it is in sync.
    func move(to broker: BrokerID) {
        guard leader != nil, leader != broker, inSync.contains(broker), !isFenced(broker) else { return }
        reorder([broker] + partition.replicas.filter { $0 != broker })
        var topic = ElectLeadersRequest.TopicPartitions()
        topic.topic = Self.topic
        topic.partitions = [0]
        var request = ElectLeadersRequest()
        request.topicPartitions = [topic]
        append(controller.decide(request).records)
    }

    enum Answer {
        case accepted(LeaderEpoch, PartitionEpoch, [BrokerID])
        case refused(ErrorCode)
    }

    func alter(_ proposal: InSyncProposal, from broker: BrokerID, _ brokerEpoch: BrokerEpoch) -> Answer {
        var entry = AlterPartitionRequest.PartitionData()
        entry.partitionIndex = 0
        entry.leaderEpoch = proposal.leaderEpoch.rawValue
        entry.partitionEpoch = proposal.partitionEpoch.rawValue
        entry.newIsrWithEpochs = proposal.members.map { member in
            var state = AlterPartitionRequest.BrokerState()
            state.brokerID = member.broker.rawValue
            state.brokerEpoch = (member.broker == broker ? brokerEpoch : member.brokerEpoch)?.rawValue ?? -1
            return state
        }
        var topic = AlterPartitionRequest.TopicData()
        topic.topicID = topicID
        topic.partitions = [entry]
        var request = AlterPartitionRequest()
        request.brokerID = broker.rawValue
        request.brokerEpoch = brokerEpoch.rawValue
        request.topics = [topic]
        let decision = controller.decide(request)
        guard decision.response.errorCode == 0 else {
            return .refused(ErrorCode(rawValue: decision.response.errorCode))
        }
        append(decision.records)
        let result = decision.response.topics[0].partitions[0]
        guard result.errorCode == 0 else { return .refused(ErrorCode(rawValue: result.errorCode)) }
        return .accepted(
            LeaderEpoch(result.leaderEpoch), PartitionEpoch(result.partitionEpoch), result.isr.map { BrokerID($0) })
    }
}
