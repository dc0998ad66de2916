package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// CreatePartitions (KIP-195): `count` is the new total. Answers one result per topic, in order.
    package borrowing func decide(
        _ request: CreatePartitionsRequest, generator: inout some RandomNumberGenerator
    ) -> Decision<CreatePartitionsResponse> {
        var decision = Decision(response: CreatePartitionsResponse())
        var batch = TopicBatch()
        var counts: [String: Int] = [:]
        for topic in request.topics { counts[topic.name, default: 0] += 1 }

        for topic in request.topics {
            var result = CreatePartitionsResponse.CreatePartitionsTopicResult()
            result.name = topic.name
            if counts[topic.name, default: 0] > 1 {
                guard batch.reportedDuplicates.insert(topic.name).inserted else { continue }
                result.errorCode = ErrorCode.invalidRequest.rawValue
                result.errorMessage = "Topic \(topic.name) appears twice in the request"
                decision.response.results.append(result)
                continue
            }
            do throws(Refusal) {
                let records = try growth(of: topic, batch: &batch, generator: &generator)
                if !request.validateOnly { decision.records.append(contentsOf: records) }
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
            }
            decision.response.results.append(result)
        }
        return decision
    }

    private borrowing func growth(
        of request: CreatePartitionsRequest.CreatePartitionsTopic, batch: inout TopicBatch,
        generator: inout some RandomNumberGenerator
    ) throws(Refusal) -> [MetadataRecord] {
        guard let topic = state.topic(named: request.name) else {
            throw .init(.unknownTopicOrPartition, "There is no topic '\(ConfigText.shortened(request.name))'")
        }
        guard !topic.isInternal else {
            throw .init(
                .invalidRequest,
                "Topic \(topic.name) is internal: another number of partitions would send groups to the wrong coordinator"
            )
        }
        let current = topic.partitions.count
        guard Int(request.count) != current else {
            throw .init(.invalidPartitions, "Topic already has \(current) partition(s).")
        }
        guard Int(request.count) > current else {
            throw .init(
                .invalidPartitions,
                "The topic \(topic.name) currently has \(current) partition(s); \(request.count) would not be an increase."
            )
        }
        guard Int(request.count) <= ControllerLimits.partitionsPerTopicLimit else {
            throw .init(
                .invalidPartitions,
                "\(request.count) partitions asked for; a topic may have at most \(ControllerLimits.partitionsPerTopicLimit)"
            )
        }
        let added = Int(request.count) - current
        try checkCapacity(adding: added, topics: 0, batch: batch)
        let factor = topic.partitions.first.map { $0.replicas.count - $0.addingReplicas.count } ?? 1
        let placements: [[BrokerID]]
        if let manual = request.assignments {
            guard manual.count == added else {
                throw .init(
                    .invalidReplicaAssignment,
                    "\(added) partition(s) are added, but \(manual.count) assignment(s) were given")
            }
            var checked: [[BrokerID]] = []
            for (index, assignment) in manual.enumerated() {
                checked.append(
                    try ReplicaPlacement.checkedForNew(
                        assignment.brokerIDs, partition: current + index, image: state,
                        replicationFactor: factor))
            }
            placements = checked
        } else {
            placements = try ReplicaPlacement.place(
                partitions: current..<Int(request.count), replicationFactor: factor, brokers: state.brokers,
                generator: &generator)
        }
        batch.partitionCount += added
        return placements.enumerated().map { index, replicas in
            .partition(partitionRecord(topicID: topic.id, index: current + index, replicas: replicas))
        }
    }
}
