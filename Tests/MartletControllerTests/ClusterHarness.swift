import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// A cluster as its controller sees it: brokers register, beat and fall silent on a clock of the test. Records go
/// through their bytes, and after every decision the invariants are checked.
final class ClusterHarness {
    private var controller: ClusterController
    private(set) var log: [MetadataRecord] = []
    private(set) var image: MetadataImage
    private(set) var delta = MetadataDelta()
    var now = Instant(nanoseconds: 0)
    var generator: SeededGenerator
    /// Brokers whose process runs, with their present epoch.
    private(set) var epochs: [Int32: Int64] = [:]
    private var incarnations: [Int32: UniversalID] = [:]
    private let racks: [Int32: String]
    private let elr: Bool
    private let suspended: SuspendedControllerRules
    /// Broken rules of state, as sentences.
    private(set) var violations: [String] = []
    var lastRecords: [MetadataRecord] = []
    var afterAppend: () -> Void = {}

    init(
        brokers: Int = 3, racks: [Int32: String] = [:], configured: Int = 1, elr: Bool = true,
        staticConfiguration: [String: String] = [:], seed: UInt64 = 1, suspended: SuspendedControllerRules = []
    ) throws {
        self.suspended = suspended
        generator = SeededGenerator(seed: seed)
        self.racks = racks
        self.elr = elr
        controller = ClusterController(
            localBroker: BrokerID(0), staticConfiguration: staticConfiguration,
            configuredBrokerCount: configured,
            suspended: suspended)
        image = controller.image
        var records = ClusterController.bootstrapRecords(
            clusterID: ControllerHarness.clusterID, configuredBrokerCount: configured)
        if !elr {
            records.removeAll {
                if case .featureLevel(let record) = $0 {
                    return record.name == Features.eligibleLeaderReplicas
                }
                return false
            }
        }
        try append(Decision(records: records, response: ()))
        try append(Decision(records: controller.activate(now: now), response: ()))
        for id in 0..<Int32(brokers) { try start(id) }
    }

    // MARK: The log

    @discardableResult
    func append<Response>(_ decision: Decision<Response>) throws -> Response {
        let before = image
        lastRecords = decision.records
        for batch in decision.batches {
            #expect(batch.count <= ControllerLimits.recordsPerBatchLimit)
            for record in batch {
                let decoded = try MetadataRecord(reading: try record.encoded())
                try controller.replay(decoded, at: Offset(Int64(log.count)))
                log.append(decoded)
            }
        }
        (image, delta) = controller.publish()
        check(before)
        afterAppend()
        return decision.response
    }

    /// The controller dies, and another broker takes over with what is in the log.
    func failOver(loading: Bool) throws {
        if loading {
            controller = ClusterController(localBroker: BrokerID(0), isFollowing: true, suspended: suspended)
            for (offset, record) in log.enumerated() {
                try controller.replay(record, at: Offset(Int64(offset)))
            }
            image = controller.publish().image
        } else {
            controller = ClusterController(image: image, suspended: suspended)
        }
        try append(Decision(records: controller.activate(now: now), response: ()))
    }

    func snapshotBytes() throws -> [UInt8] { try Self.bytes(controller.snapshotRecords()) }
    func snapshotRecords() -> [MetadataRecord] { controller.snapshotRecords() }

    static func bytes(_ records: [MetadataRecord]) throws -> [UInt8] {
        var bytes: [UInt8] = []
        for record in records { bytes += Array(try record.encoded().readableBytesView) }
        return bytes
    }

    @discardableResult
    func decide<Response>(_ body: (borrowing ClusterController, inout SeededGenerator) -> Decision<Response>)
        throws
        -> Response
    {
        try append(body(controller, &generator))
    }

    func query<Result>(_ body: (borrowing ClusterController) -> Result) -> Result { body(controller) }

    // MARK: Brokers

    @discardableResult
    func register(
        _ id: Int32, incarnation: UniversalID? = nil, previous: Int64 = -1, cluster: String? = nil,
        directories: [UniversalID]? = nil, features: [FeatureRange] = Features.supported
    ) throws -> BrokerRegistrationResponse {
        var request = BrokerRegistrationRequest()
        request.brokerID = id
        request.clusterID = cluster ?? ControllerHarness.clusterID.description
        request.incarnationID = incarnation ?? UniversalID.random(using: &generator)
        request.logDirs = directories ?? [UniversalID(high: 7, low: UInt64(id) + 1000)]
        request.previousBrokerEpoch = previous
        request.rack = racks[id]
        var listener = BrokerRegistrationRequest.Listener()
        listener.name = "PLAINTEXT"
        listener.host = "host-\(id)"
        listener.port = 9092
        request.listeners = [listener]
        request.features = features.map {
            var feature = BrokerRegistrationRequest.Feature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minimum
            feature.maxSupportedVersion = $0.maximum
            return feature
        }
        let decision = controller.decide(request, nextOffset: Offset(Int64(log.count)), now: now)
        if decision.response.errorCode == 0 {
            controller.contacted(BrokerID(id), epoch: decision.response.brokerEpoch, now: now)
            epochs[id] = decision.response.brokerEpoch
            incarnations[id] = request.incarnationID
        }
        return try append(decision)
    }

    @discardableResult
    func beat(
        _ id: Int32, epoch: Int64? = nil, offset: Int64? = nil, wantFence: Bool = false,
        wantShutDown: Bool = false,
        lost: [UniversalID] = []
    ) throws -> BrokerHeartbeatResponse {
        var request = BrokerHeartbeatRequest()
        request.brokerID = id
        request.brokerEpoch = epoch ?? epochs[id] ?? -1
        request.currentMetadataOffset = offset ?? Int64(log.count) - 1
        request.wantFence = wantFence
        request.wantShutDown = wantShutDown
        request.offlineLogDirs = lost
        if request.brokerEpoch == image.broker(BrokerID(id))?.epoch {
            controller.contacted(
                BrokerID(id), epoch: request.brokerEpoch, metadataOffset: request.currentMetadataOffset,
                now: now)
        }
        let response = try append(controller.decide(request))
        if response.shouldShutDown { controller.sessionEnded(BrokerID(id)) }
        return response
    }

    /// Registers and is let in. `previous` as a broker says it that stopped cleanly.
    @discardableResult
    func start(_ id: Int32, previous: Int64 = -1, directories: [UniversalID]? = nil) throws -> ErrorCode {
        let response = try register(id, previous: previous, directories: directories)
        guard response.errorCode == 0 else { return response.errorCode.code }
        try beat(id)
        return .none
    }

    /// Falls silent; the session goes on.
    func crash(_ id: Int32) { epochs[id] = nil }

    /// Time passes in steps of half a second; who runs beats, and the controller ticks.
    func pass(milliseconds: Int64) throws {
        var left = milliseconds
        while left > 0 {
            let step = min(500, left)
            left -= step
            now = now.advanced(byMilliseconds: step)
            for id in epochs.keys.sorted() { try beat(id) }
            try tick()
        }
    }

    @discardableResult
    func tick() throws -> [BrokerID] {
        var fenced: [BrokerID] = []
        while true {
            let tick = controller.tick(now: now)
            fenced += tick.fencedBrokers
            try append(Decision(records: tick.records, response: (), isAtomic: false))
            if !tick.isMoreLeft {
                #expect(tick.next > now)
                return fenced
            }
        }
    }

    /// A clean stop; the epoch is what the broker says when it comes back.
    func stop(_ id: Int32) throws -> Int64 {
        let epoch = try #require(epochs[id])
        for _ in 0..<10 {
            if try beat(id, wantShutDown: true).shouldShutDown {
                epochs[id] = nil
                return epoch
            }
            for other in epochs.keys.sorted() where other != id { try beat(other) }
        }
        Issue.record("broker \(id) is not let go")
        return epoch
    }

    // MARK: Topics

    @discardableResult
    func create(
        _ name: String, _ assignments: [[Int32]], configs: [(String, String?)] = []
    ) throws -> CreateTopicsResponse.CreatableTopicResult {
        var request = CreateTopicsRequest()
        request.topics = [
            ControllerHarness.topic(
                name, partitions: -1, replicas: -1, configs: configs,
                assignments: assignments.enumerated().map { (Int32($0.offset), $0.element) })
        ]
        return try decide { $0.decide(request, generator: &$1) }.topics[0]
    }

    @discardableResult
    func create(
        _ name: String, partitions: Int32, replicas: Int16, configs: [(String, String?)] = [],
        origin: RequestOrigin = .client
    ) throws -> CreateTopicsResponse.CreatableTopicResult {
        var request = CreateTopicsRequest()
        request.topics = [
            ControllerHarness.topic(name, partitions: partitions, replicas: replicas, configs: configs)
        ]
        return try decide { $0.decide(request, origin: origin, generator: &$1) }.topics[0]
    }

    func partition(_ name: String, _ index: Int32 = 0) throws -> PartitionImage {
        try #require(image.partition(TopicPartition(name, index)))
    }

    /// The partition as `leader/isr/elr/last known`, with the leader epoch.
    func line(_ name: String, _ index: Int32 = 0) throws -> String {
        let partition = try partition(name, index)
        func list(_ ids: [BrokerID]) -> String { ids.map(\.description).joined(separator: ",") }
        return
            "\(partition.leader.map(\.description) ?? "-")/\(list(partition.isr))/\(list(partition.eligibleLeaderReplicas))/\(list(partition.lastKnownEligibleReplicas)) e\(partition.leaderEpoch)\(partition.isRecovering ? " recovering" : "")"
    }

    /// AlterPartition as the leader of the partition, or somebody else, would send it.
    @discardableResult
    func alter(
        _ name: String, _ index: Int32 = 0, isr: [Int32], from broker: Int32? = nil,
        epochs members: [Int32: Int64] = [:],
        leaderEpoch: Int32? = nil, partitionEpoch: Int32? = nil, recovering: Bool = false,
        brokerEpoch: Int64? = nil
    ) throws -> ErrorCode {
        let partition = try partition(name, index)
        let sender = broker ?? partition.leader?.rawValue ?? -1
        var entry = AlterPartitionRequest.PartitionData()
        entry.partitionIndex = index
        entry.leaderEpoch = leaderEpoch ?? partition.leaderEpoch.rawValue
        entry.partitionEpoch = partitionEpoch ?? partition.partitionEpoch
        entry.leaderRecoveryState = recovering ? 1 : 0
        entry.newIsrWithEpochs = isr.map {
            var state = AlterPartitionRequest.BrokerState()
            state.brokerID = $0
            state.brokerEpoch = members[$0] ?? image.broker(BrokerID($0))?.epoch ?? -1
            return state
        }
        var topic = AlterPartitionRequest.TopicData()
        topic.topicID = image.topicID(named: name) ?? .zero
        topic.partitions = [entry]
        var request = AlterPartitionRequest()
        request.brokerID = sender
        request.brokerEpoch = brokerEpoch ?? image.broker(BrokerID(sender))?.epoch ?? -1
        request.topics = [topic]
        let response = try decide { controller, _ in controller.decide(request) }
        guard response.errorCode == 0 else { return response.errorCode.code }
        let result = response.topics[0].partitions[0]
        if result.errorCode == 0 {
            let after = try self.partition(name, index)
            #expect(result.leaderEpoch == after.leaderEpoch.rawValue)
            #expect(result.partitionEpoch == after.partitionEpoch)
            #expect(result.isr == after.isr.map(\.rawValue))
        }
        return result.errorCode.code
    }

    @discardableResult
    func reassign(
        _ name: String, _ index: Int32 = 0, to replicas: [Int32]?, mayResize: Bool = true
    ) throws -> ErrorCode {
        var entry = AlterPartitionReassignmentsRequest.ReassignablePartition()
        entry.partitionIndex = index
        entry.replicas = replicas
        var topic = AlterPartitionReassignmentsRequest.ReassignableTopic()
        topic.name = name
        topic.partitions = [entry]
        var request = AlterPartitionReassignmentsRequest()
        request.allowReplicationFactorChange = mayResize
        request.topics = [topic]
        return try decide { controller, _ in controller.decide(request) }.responses[0].partitions[0].errorCode
            .code
    }

    @discardableResult
    func elect(_ name: String, _ index: Int32 = 0, unclean: Bool = false) throws -> ErrorCode {
        var topic = ElectLeadersRequest.TopicPartitions()
        topic.topic = name
        topic.partitions = [index]
        var request = ElectLeadersRequest()
        request.electionType = unclean ? 1 : 0
        request.topicPartitions = [topic]
        return try decide { controller, _ in controller.decide(request) }
            .replicaElectionResults[0].partitionResult[0].errorCode.code
    }

    @discardableResult
    func set(_ type: Int8, _ resource: String, _ name: String, _ value: String?) throws -> ErrorCode {
        var config = IncrementalAlterConfigsRequest.AlterableConfig()
        config.name = name
        config.configOperation = value == nil ? 1 : 0
        config.value = value
        var entry = IncrementalAlterConfigsRequest.AlterConfigsResource()
        entry.resourceType = type
        entry.resourceName = resource
        entry.configs = [config]
        var request = IncrementalAlterConfigsRequest()
        request.resources = [entry]
        return try decide { controller, _ in controller.decide(request) }.responses[0].errorCode.code
    }

    // MARK: Invariants

    private func check(_ before: MetadataImage) {
        let changed = delta.changedTopics + delta.createdTopics
        let topics =
            delta.brokersChanged ? image.sortedTopics() : changed.compactMap { image.topic(id: $0.id) }
        for topic in topics {
            let old = before.topic(id: topic.id)
            for (index, partition) in topic.partitions.enumerated() {
                for problem in problems(partition, topic, old?.partition(PartitionIndex(Int32(index)))) {
                    violations.append("\(topic.name)-\(index): \(problem) (\(partition))")
                }
            }
        }
        // With a rule switched off it is for the test to say what it wants to see.
        if suspended.isEmpty { #expect(violations.isEmpty) }
    }

    private func problems(_ partition: PartitionImage, _ topic: TopicImage, _ old: PartitionImage?)
        -> [String]
    {
        var found: [String] = []
        func demand(_ holds: Bool, _ text: String) { if !holds { found.append(text) } }
        let isr = partition.isr
        let eligible = partition.eligibleLeaderReplicas
        if let leader = partition.leader { demand(isr.contains(leader), "the leader is not in sync") }
        demand(Set(partition.replicas).count == partition.replicas.count, "a replica is listed twice")
        demand(!partition.replicas.isEmpty, "no replicas")
        demand(Set(isr).count == isr.count, "a member of the in-sync set is listed twice")
        demand(isr.allSatisfy(partition.replicas.contains), "in sync without being a replica")
        demand(eligible.allSatisfy(partition.replicas.contains), "eligible without being a replica")
        demand(!eligible.contains(where: isr.contains), "in sync and eligible at once")
        demand(
            partition.directories.count == partition.replicas.count, "directories and replicas do not match")
        demand(
            partition.addingReplicas.allSatisfy(partition.replicas.contains)
                && partition.removingReplicas.allSatisfy(partition.replicas.contains),
            "moving what is no replica")
        if elr {
            let minimum = partition.effectiveMinInsync(configured: topic.configuration.minInsyncReplicas)
            demand(eligible.isEmpty || isr.count < minimum, "eligible beside a sufficient in-sync set")
            demand(partition.leader != nil || isr.isEmpty, "in sync without a leader")
            if image.brokers.count > 1 {
                demand(
                    isr.allSatisfy { image.broker($0)?.isActive == true },
                    "in sync on a broker that is not active")
            }
        } else {
            demand(!isr.isEmpty, "the in-sync set is empty without eligible replicas")
        }
        if image.brokers.count > 1, let leader = partition.leader {
            demand(image.broker(leader)?.isActive == true, "led by a broker that is not active")
        }
        if let old {
            demand(partition.leaderEpoch >= old.leaderEpoch, "the leader epoch falls")
            demand(partition.partitionEpoch >= old.partitionEpoch, "the partition epoch falls")
            demand(
                partition.leader == old.leader || partition.leaderEpoch > old.leaderEpoch,
                "another leader in the same epoch")
            demand(
                partition == old || partition.partitionEpoch > old.partitionEpoch,
                "changed in the same partition epoch")
        }
        return found
    }
}
