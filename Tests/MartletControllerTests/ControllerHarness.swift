import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore

/// The one way tests drive the controller: decides, replays and publishes as the shell does, and keeps the log.
final class ControllerHarness {
    private(set) var log: [MetadataRecord] = []
    private var controller: ClusterController
    private(set) var image: MetadataImage
    private(set) var delta = MetadataDelta()
    var generator: SeededGenerator
    private(set) var brokerEpoch: Int64 = -1

    static let clusterID = UniversalID(high: 0x1122_3344_5566_4788, low: 0x8899_aabb_ccdd_eeff)

    init(
        brokers: Int = 1, staticConfiguration: [String: String] = [:], seed: UInt64 = 1,
        bootstrap: Bool = true
    ) throws {
        generator = SeededGenerator(seed: seed)
        controller = ClusterController(localBroker: BrokerID(0), staticConfiguration: staticConfiguration)
        image = MetadataImage(localBroker: BrokerID(0))
        guard bootstrap else { return }
        try append(ClusterController.bootstrapRecords(clusterID: Self.clusterID))
        for id in 0..<Int32(brokers) { try register(id) }
    }

    func register(_ id: Int32) throws {
        var request = BrokerRegistrationRequest()
        request.brokerID = id
        request.clusterID = Self.clusterID.description
        request.incarnationID = UniversalID.random(using: &generator)
        request.logDirs = [UniversalID(high: 7, low: UInt64(id))]
        request.features = Features.supported.map {
            var feature = BrokerRegistrationRequest.Feature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minimum
            feature.maxSupportedVersion = $0.maximum
            return feature
        }
        let decision = controller.decide(request, nextOffset: Offset(Int64(log.count)), now: Instant(nanoseconds: 0))
        try append(decision.records)
        var heartbeat = BrokerHeartbeatRequest()
        heartbeat.brokerID = id
        heartbeat.brokerEpoch = decision.response.brokerEpoch
        heartbeat.currentMetadataOffset = Int64(log.count)
        if id == 0 { brokerEpoch = decision.response.brokerEpoch }
        try append(controller.decide(heartbeat).records)
    }

    /// Records go through their bytes, as they would through the log.
    func append(_ records: [MetadataRecord]) throws {
        for record in records {
            let decoded = try MetadataRecord(reading: try record.encoded())
            try controller.replay(decoded, at: Offset(Int64(log.count)))
            log.append(decoded)
        }
        (image, delta) = controller.publish()
    }

    func snapshotBytes() throws -> [UInt8] {
        var bytes: [UInt8] = []
        for record in controller.snapshotRecords() { bytes += Array(try record.encoded().readableBytesView) }
        return bytes
    }

    func snapshotRecords() -> [MetadataRecord] { controller.snapshotRecords() }

    @discardableResult
    func create(_ request: CreateTopicsRequest, origin: RequestOrigin = .client) throws
        -> CreateTopicsResponse
    {
        let decision = controller.decide(request, origin: origin, generator: &generator)
        try append(decision.records)
        return decision.response
    }

    @discardableResult
    func create(
        _ name: String, partitions: Int32 = 1, replicas: Int16 = 1, configs: [(String, String?)] = [],
        validateOnly: Bool = false, origin: RequestOrigin = .client
    ) throws -> CreateTopicsResponse.CreatableTopicResult {
        var request = CreateTopicsRequest()
        request.topics = [Self.topic(name, partitions: partitions, replicas: replicas, configs: configs)]
        request.validateOnly = validateOnly
        return try create(request, origin: origin).topics[0]
    }

    static func topic(
        _ name: String, partitions: Int32 = 1, replicas: Int16 = 1, configs: [(String, String?)] = [],
        assignments: [(Int32, [Int32])] = []
    ) -> CreateTopicsRequest.CreatableTopic {
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = name
        topic.numPartitions = partitions
        topic.replicationFactor = replicas
        topic.configs = configs.map {
            var config = CreateTopicsRequest.CreatableTopicConfig()
            config.name = $0.0
            config.value = $0.1
            return config
        }
        topic.assignments = assignments.map {
            var assignment = CreateTopicsRequest.CreatableReplicaAssignment()
            assignment.partitionIndex = $0.0
            assignment.brokerIDs = $0.1
            return assignment
        }
        return topic
    }

    @discardableResult
    func delete(_ topics: [(name: String?, id: UniversalID)]) throws -> [DeleteTopicsResponse
        .DeletableTopicResult]
    {
        var request = DeleteTopicsRequest()
        request.topics = topics.map {
            var topic = DeleteTopicsRequest.DeleteTopicState()
            topic.name = $0.name
            topic.topicID = $0.id
            return topic
        }
        let decision = controller.decide(request)
        try append(decision.records)
        return decision.response.responses
    }

    @discardableResult
    func grow(
        _ topics: [(String, Int32)], validateOnly: Bool = false
    ) throws -> [CreatePartitionsResponse.CreatePartitionsTopicResult] {
        var request = CreatePartitionsRequest()
        request.topics = topics.map {
            var topic = CreatePartitionsRequest.CreatePartitionsTopic()
            topic.name = $0.0
            topic.count = $0.1
            topic.assignments = nil
            return topic
        }
        request.validateOnly = validateOnly
        let decision = controller.decide(request, generator: &generator)
        try append(decision.records)
        return decision.response.results
    }

    enum Operation: Int8 { case set, delete, append, subtract }

    @discardableResult
    func change(
        _ type: Int8, _ resource: String, _ changes: [(String, Operation, String?)],
        validateOnly: Bool = false
    ) throws -> IncrementalAlterConfigsResponse.AlterConfigsResourceResponse {
        var entry = IncrementalAlterConfigsRequest.AlterConfigsResource()
        entry.resourceType = type
        entry.resourceName = resource
        entry.configs = changes.map {
            var config = IncrementalAlterConfigsRequest.AlterableConfig()
            config.name = $0.0
            config.configOperation = $0.1.rawValue
            config.value = $0.2
            return config
        }
        var request = IncrementalAlterConfigsRequest()
        request.resources = [entry]
        request.validateOnly = validateOnly
        let decision = controller.decide(request)
        try append(decision.records)
        return decision.response.responses[0]
    }

    @discardableResult
    func replace(_ type: Int8, _ resource: String, _ values: [(String, String)]) throws
        -> AlterConfigsResponse.AlterConfigsResourceResponse
    {
        var entry = AlterConfigsRequest.AlterConfigsResource()
        entry.resourceType = type
        entry.resourceName = resource
        entry.configs = values.map {
            var config = AlterConfigsRequest.AlterableConfig()
            config.name = $0.0
            config.value = $0.1
            return config
        }
        var request = AlterConfigsRequest()
        request.resources = [entry]
        let decision = controller.decide(request)
        try append(decision.records)
        return decision.response.responses[0]
    }

    func describe(
        _ type: Int8, _ resource: String, keys: [String]? = nil, synonyms: Bool = false,
        documentation: Bool = false
    ) -> DescribeConfigsResponse.DescribeConfigsResult {
        var entry = DescribeConfigsRequest.DescribeConfigsResource()
        entry.resourceType = type
        entry.resourceName = resource
        entry.configurationKeys = keys
        var request = DescribeConfigsRequest()
        request.resources = [entry]
        request.includeSynonyms = synonyms
        request.includeDocumentation = documentation
        return image.describe(request).results[0]
    }

    func allocate(epoch: Int64? = nil) throws -> AllocateProducerIdsResponse {
        var request = AllocateProducerIdsRequest()
        request.brokerID = 0
        request.brokerEpoch = epoch ?? brokerEpoch
        let decision = controller.decide(request)
        try append(decision.records)
        return decision.response
    }
}

extension Int16 {
    /// The code by name, so that a failed expectation reads well.
    var code: ErrorCode { ErrorCode(rawValue: self) }
}
