import HashTreeCollections
package import MartletKafkaProtocol
package import MartletLogModel

/// Who asks. Topics that brokers write themselves cannot be changed by clients.
package enum RequestOrigin: Sendable {
    case client, broker
}

/// A refusal: code and a sentence with cause and remedy.
package struct Refusal: Error, Equatable, Sendable {
    package let code: ErrorCode
    package let message: String

    init(_ code: ErrorCode, _ message: String) {
        self.code = code
        self.message = message
    }
}

extension ClusterController {
    /// CreateTopics (KIP-4, KIP-464 for the -1 defaults, KIP-525 for the configurations in the answer).
    ///
    /// Each topic succeeds or fails alone. `generator` supplies topic ids and the first broker of a placement.
    package borrowing func decide(
        _ request: CreateTopicsRequest, origin: RequestOrigin = .client,
        generator: inout some RandomNumberGenerator
    ) -> Decision<CreateTopicsResponse> {
        var decision = Decision(response: CreateTopicsResponse())
        var batch = TopicBatch()
        var counts: [String: Int] = [:]
        for topic in request.topics { counts[topic.name, default: 0] += 1 }

        for topic in request.topics {
            if counts[topic.name, default: 0] > 1 {
                // One answer for all its occurrences: the client may key answers by name.
                guard batch.reportedDuplicates.insert(topic.name).inserted else { continue }
                decision.response.topics.append(
                    failure(
                        topic.name, .init(.invalidRequest, "Topic \(topic.name) appears twice in the request")
                    ))
                continue
            }
            do throws(Refusal) {
                let plan = try plan(topic, origin: origin, batch: &batch, generator: &generator)
                if !request.validateOnly {
                    decision.records.append(contentsOf: plan.records)
                }
                decision.response.topics.append(success(plan, validateOnly: request.validateOnly))
            } catch {
                decision.response.topics.append(failure(topic.name, error))
            }
        }
        return decision
    }

    /// What the topics before this one in the same request have claimed already.
    struct TopicBatch {
        var reportedDuplicates: Set<String> = []
        var names: [String: [String]] = [:]
        var topicCount = 0
        var partitionCount = 0
    }

    struct TopicPlan {
        var name: String
        var id: UniversalID
        var assignments: [[BrokerID]]
        var overrides: [String: String]
        var records: [MetadataRecord]
    }

    private borrowing func plan(
        _ topic: CreateTopicsRequest.CreatableTopic, origin: RequestOrigin, batch: inout TopicBatch,
        generator: inout some RandomNumberGenerator
    ) throws(Refusal) -> TopicPlan {
        try checkName(topic.name, origin: origin, batch: batch)
        let assignments = try assignments(of: topic, generator: &generator)
        try checkCapacity(adding: assignments.count, topics: 1, batch: batch)
        var overrides = try validatedOverrides(
            topic.configs.map { (name: $0.name, value: $0.value) }, topic: topic.name)
        if let internalOverrides = internalTopicOverrides(topic.name) {
            overrides.merge(internalOverrides) { given, _ in given }
        }

        batch.topicCount += 1
        batch.partitionCount += assignments.count
        if let canonical = Self.canonicalName(topic.name) {
            batch.names[canonical, default: []].append(topic.name)
        }

        let id = UniversalID.random(using: &generator)
        var record = TopicRecord()
        record.name = topic.name
        record.topicID = id
        var records: [MetadataRecord] = [.topic(record)]
        records.reserveCapacity(1 + overrides.count + assignments.count)
        for name in overrides.keys.sorted() {
            records.append(.config(resource: .topic(topic.name), name: name, value: overrides[name]))
        }
        for (index, replicas) in assignments.enumerated() {
            records.append(.partition(partitionRecord(topicID: id, index: index, replicas: replicas)))
        }
        return TopicPlan(
            name: topic.name, id: id, assignments: assignments, overrides: overrides, records: records)
    }

    /// The topics of coordinators keep the last record per key, in segments that compaction gets through quickly,
    /// and take the record of a large group or transaction.
    private borrowing func internalTopicOverrides(_ name: String) -> [String: String]? {
        let segmentBytes: Int
        switch name {
        case TopicName.consumerOffsets: segmentBytes = state.brokerConfiguration.offsetsTopicSegmentBytes
        case TopicName.transactionState: segmentBytes = state.brokerConfiguration.transactionTopicSegmentBytes
        case TopicName.shareGroupState:
            // Each record counts until a snapshot comes after it: its coordinator cuts off what is superseded.
            return [
                TopicConfigName.cleanupPolicy: "delete",
                TopicConfigName.retention: "-1",
                TopicConfigName.retentionBytes: "-1",
                TopicConfigName.compressionType: "producer",
                TopicConfigName.maxMessageBytes: String(ControllerLimits.coordinatorTopicMessageBytes),
                TopicConfigName.segmentBytes: String(
                    max(1_048_576, state.brokerConfiguration.share.topicSegmentBytes)),
            ]
        case _: return nil
        }
        return [
            TopicConfigName.cleanupPolicy: "compact",
            TopicConfigName.compressionType: "producer",
            TopicConfigName.maxMessageBytes: String(ControllerLimits.coordinatorTopicMessageBytes),
            TopicConfigName.segmentBytes: String(max(1_048_576, segmentBytes)),
        ]
    }

    private borrowing func checkName(_ name: String, origin: RequestOrigin, batch: TopicBatch) throws(Refusal)
    {
        if let problem = TopicName.problem(name) { throw .init(.invalidTopicException, problem) }
        if name == TopicName.clusterMetadata {
            throw .init(.invalidRequest, "Topic \(name) belongs to the cluster itself and cannot be created")
        }
        if state.topicIDs[name] != nil {
            throw .init(.topicAlreadyExists, "Topic '\(name)' already exists.")
        }
        if TopicName.isInternal(name), origin == .client {
            throw .init(.invalidRequest, "Topic \(name) is internal: the broker creates it when it is needed")
        }
        if TopicName.isInternal(name), state.activeBrokerCount < state.brokersForInternalTopics {
            throw .init(
                .coordinatorNotAvailable,
                "Topic \(name) waits for \(state.brokersForInternalTopics) brokers; \(state.activeBrokerCount) are here"
            )
        }
        guard let canonical = Self.canonicalName(name) else { return }
        if let other = (collidingNames[canonical] ?? batch.names[canonical])?.first {
            throw .init(
                .invalidTopicException,
                "Topic '\(name)' collides with existing topic '\(other)': names may not differ only in '.' and '_'"
            )
        }
    }

    private borrowing func assignments(
        of topic: CreateTopicsRequest.CreatableTopic, generator: inout some RandomNumberGenerator
    ) throws(Refusal) -> [[BrokerID]] {
        guard topic.assignments.isEmpty else { return try manualAssignments(of: topic) }
        var partitionCount = topic.numPartitions
        if partitionCount == -1 {
            partitionCount =
                switch topic.name {
                case TopicName.consumerOffsets: state.brokerConfiguration.offsetsTopicPartitionCount
                case TopicName.transactionState: state.brokerConfiguration.transactionTopicPartitionCount
                case TopicName.shareGroupState: state.brokerConfiguration.share.topicPartitionCount
                case _: state.brokerConfiguration.defaultPartitionCount
                }
        }
        guard partitionCount > 0 else {
            throw .init(
                .invalidPartitions,
                "Number of partitions is \(partitionCount); it must be positive, or -1 for the default")
        }
        guard Int(partitionCount) <= ControllerLimits.partitionsPerTopicLimit else {
            throw .init(
                .invalidPartitions,
                "Number of partitions is \(partitionCount); a topic may have at most \(ControllerLimits.partitionsPerTopicLimit)"
            )
        }
        let configured =
            switch topic.name {
            case TopicName.consumerOffsets: state.brokerConfiguration.offsetsTopicReplicationFactor
            case TopicName.transactionState: state.brokerConfiguration.transactionTopicReplicationFactor
            case TopicName.shareGroupState: state.brokerConfiguration.share.topicReplicationFactor
            case _: state.brokerConfiguration.defaultReplicationFactor
            }
        let factor =
            topic.replicationFactor == -1
            ? state.replicationFactor(configured: configured) : topic.replicationFactor
        return try ReplicaPlacement.place(
            partitions: 0..<Int(partitionCount), replicationFactor: Int(factor), brokers: state.brokers,
            generator: &generator)
    }

    private borrowing func manualAssignments(
        of topic: CreateTopicsRequest.CreatableTopic
    ) throws(Refusal) -> [[BrokerID]] {
        guard topic.numPartitions == -1 else {
            throw .init(
                .invalidRequest,
                "A manual assignment was given, so the number of partitions must be -1, not \(topic.numPartitions)"
            )
        }
        guard topic.replicationFactor == -1 else {
            throw .init(
                .invalidRequest,
                "A manual assignment was given, so the replication factor must be -1, not \(topic.replicationFactor)"
            )
        }
        guard topic.assignments.count <= ControllerLimits.partitionsPerTopicLimit else {
            throw .init(
                .invalidPartitions,
                "A topic may have at most \(ControllerLimits.partitionsPerTopicLimit) partitions")
        }
        let sorted = topic.assignments.sorted { $0.partitionIndex < $1.partitionIndex }
        var assignments: [[BrokerID]] = []
        for (index, assignment) in sorted.enumerated() {
            guard Int(assignment.partitionIndex) == index else {
                throw .init(
                    .invalidReplicaAssignment,
                    "Manual assignments must cover partitions 0 to n-1 once each; partition \(index) is missing or \(assignment.partitionIndex) repeated"
                )
            }
            assignments.append(
                try ReplicaPlacement.checkedForNew(
                    assignment.brokerIDs, partition: index, image: state,
                    replicationFactor: assignments.first?.count))
        }
        return assignments
    }

    borrowing func checkCapacity(adding partitions: Int, topics: Int, batch: TopicBatch) throws(Refusal) {
        guard batch.partitionCount + partitions <= ControllerLimits.partitionsPerRequestLimit else {
            throw .init(
                .policyViolation,
                "One request may create at most \(ControllerLimits.partitionsPerRequestLimit) partitions; split it"
            )
        }
        guard state.topicCount + batch.topicCount + topics <= ControllerLimits.topicCountLimit else {
            throw .init(
                .policyViolation, "The cluster has its limit of \(ControllerLimits.topicCountLimit) topics")
        }
        guard state.partitionCount + batch.partitionCount + partitions <= ControllerLimits.partitionCountLimit
        else {
            throw .init(
                .policyViolation,
                "The cluster would pass its limit of \(ControllerLimits.partitionCountLimit) partitions")
        }
    }

    /// A partition starts with all active replicas in sync, under the first of them.
    borrowing func partitionRecord(topicID: UniversalID, index: Int, replicas: [BrokerID]) -> PartitionRecord
    {
        let live = replicas.filter { state.broker($0)?.isActive == true }
        var record = PartitionRecord()
        record.partitionID = Int32(index)
        record.topicID = topicID
        record.replicas = replicas.map(\.rawValue)
        record.isr = live.map(\.rawValue)
        record.leader = live.first?.rawValue ?? -1
        record.leaderEpoch = 0
        record.partitionEpoch = 0
        record.directories = replicas.map { id in
            let directories = state.broker(id)?.logDirectories ?? []
            return directories.count == 1 ? directories[0] : .zero
        }
        return record
    }

    // MARK: Answers

    private borrowing func success(
        _ plan: TopicPlan, validateOnly: Bool
    ) -> CreateTopicsResponse.CreatableTopicResult {
        var result = CreateTopicsResponse.CreatableTopicResult()
        result.name = plan.name
        result.topicID = validateOnly ? .zero : plan.id
        result.errorCode = ErrorCode.none.rawValue
        result.numPartitions = Int32(plan.assignments.count)
        result.replicationFactor = Int16(plan.assignments.first?.count ?? 0)
        var configs: [CreateTopicsResponse.CreatableTopicConfigs] = []
        for definition in TopicConfigTable.table.definitions where !definition.isHidden {
            let resolved = state.brokerValues.resolve(definition, overrides: plan.overrides)
            var config = CreateTopicsResponse.CreatableTopicConfigs()
            config.name = definition.name
            config.value = resolved.value
            config.readOnly = false
            config.configSource = resolved.source.wireValue
            config.isSensitive = definition.isSensitive
            configs.append(config)
        }
        result.configs = configs
        return result
    }

    private borrowing func failure(_ name: String, _ refusal: Refusal)
        -> CreateTopicsResponse.CreatableTopicResult
    {
        var result = CreateTopicsResponse.CreatableTopicResult()
        result.name = name
        result.errorCode = refusal.code.rawValue
        result.errorMessage = refusal.message
        result.configs = []
        return result
    }
}
