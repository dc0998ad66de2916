package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// AlterPartitionReassignments (KIP-455): other replicas for partitions, or with `nil` the end of a reassignment
    /// under way. New replicas join at once and catch up; when all that stay are in sync, the rest leaves. What only
    /// changes the order is complete at once. KIP-860: the factor may be held fast.
    package borrowing func decide(
        _ request: AlterPartitionReassignmentsRequest
    ) -> Decision<AlterPartitionReassignmentsResponse> {
        var decision = Decision(response: AlterPartitionReassignmentsResponse())
        decision.response.errorMessage = nil
        decision.response.allowReplicationFactorChange = request.allowReplicationFactorChange
        let candidates = LeaderCandidates(image: state)
        var seen: Set<TopicPartition> = []
        for asked in request.topics {
            var answer = AlterPartitionReassignmentsResponse.ReassignableTopicResponse()
            answer.name = asked.name
            let topic = state.topic(named: asked.name)
            for entry in asked.partitions {
                var result = AlterPartitionReassignmentsResponse.ReassignablePartitionResponse()
                result.errorMessage = nil
                result.partitionIndex = entry.partitionIndex
                do throws(Refusal) {
                    guard let topic, let partition = topic.partition(PartitionIndex(entry.partitionIndex))
                    else {
                        throw .init(
                            .unknownTopicOrPartition,
                            "There is no partition \(entry.partitionIndex) of topic '\(ConfigText.shortened(asked.name))'"
                        )
                    }
                    guard seen.insert(TopicPartition(asked.name, entry.partitionIndex)).inserted else {
                        throw .init(.invalidRequest, "The partition appears twice in the request")
                    }
                    guard seen.count <= ControllerLimits.partitionChangesPerRequestLimit else {
                        throw .init(
                            .operationNotAttempted,
                            "One request reassigns at most \(ControllerLimits.partitionChangesPerRequestLimit) partitions; ask again for the rest"
                        )
                    }
                    var update = update(of: partition, in: topic)
                    if let replicas = entry.replicas {
                        try retarget(
                            &update, replicas, entry.partitionIndex,
                            mayResize: request.allowReplicationFactorChange)
                    } else {
                        try revert(&update)
                    }
                    append(
                        update, .init(topicID: topic.id, partition: entry.partitionIndex), candidates,
                        to: &decision.records)
                } catch {
                    result.errorCode = error.code.rawValue
                    result.errorMessage = error.message
                }
                answer.partitions.append(result)
            }
            decision.response.responses.append(answer)
        }
        return decision
    }

    private borrowing func retarget(
        _ update: inout PartitionUpdate, _ replicas: [Int32], _ index: Int32, mayResize: Bool
    ) throws(Refusal) {
        let partition = update.current
        let target = try ReplicaPlacement.checked(
            replicas, partition: Int(index), image: state, replicationFactor: nil)
        let original = partition.replicas.filter { !partition.addingReplicas.contains($0) }
        guard mayResize || target.count == original.count else {
            throw .init(
                .invalidReplicationFactor,
                "The partition has \(original.count) replicas and is to keep that number; the target has \(target.count)"
            )
        }
        // What an earlier reassignment was adding and this one does not want goes at once, unless it alone is in sync.
        let dropped = partition.addingReplicas.filter { !target.contains($0) }
        let isKept = partition.isr.allSatisfy(dropped.contains) && !partition.isr.isEmpty
        let leaving = (isKept ? partition.replicas : original).filter { !target.contains($0) }
        update.replicas = target + leaving
        update.removing = leaving.sorted()
        update.adding = target.filter { !original.contains($0) }.sorted()
        if !isKept { update.isr.removeAll(where: dropped.contains) }
    }

    private borrowing func revert(_ update: inout PartitionUpdate) throws(Refusal) {
        let partition = update.current
        guard partition.isBeingReassigned else {
            throw .init(.noReassignmentInProgress, "The partition is not being reassigned")
        }
        let original = partition.replicas.filter { !partition.addingReplicas.contains($0) }
        let inSync = partition.isr.filter { !partition.addingReplicas.contains($0) }
        guard let first = original.first else {
            throw .init(.invalidReplicaAssignment, "No replica would be left of the partition")
        }
        // With the ELR empty and nobody of the old set in sync, going back may lose what the new ones acknowledged.
        let isClean =
            !inSync.isEmpty
            || partition.isr.isEmpty && partition.eligibleLeaderReplicas.contains(where: original.contains)
        guard isClean || update.election == .unclean else {
            throw .init(
                .invalidReplicaAssignment,
                "Only replicas that the reassignment adds are in sync: going back needs an unclean leader election; wait, or set unclean.leader.election.enable"
            )
        }
        update.replicas = original
        update.adding = []
        update.removing = []
        if isClean {
            update.isr = inSync
        } else {
            update.isr = [first]
            update.isRecovering = true
        }
    }

    /// ListPartitionReassignments (KIP-455).
    package borrowing func describe(
        _ request: ListPartitionReassignmentsRequest
    ) -> ListPartitionReassignmentsResponse {
        var response = ListPartitionReassignmentsResponse()
        response.errorMessage = nil
        func add(_ topic: TopicImage, _ index: Int32) {
            guard let partition = topic.partition(PartitionIndex(index)), partition.isBeingReassigned else {
                return
            }
            var entry = ListPartitionReassignmentsResponse.OngoingPartitionReassignment()
            entry.partitionIndex = index
            entry.replicas = partition.replicas.map(\.rawValue)
            entry.addingReplicas = partition.addingReplicas.map(\.rawValue)
            entry.removingReplicas = partition.removingReplicas.map(\.rawValue)
            if response.topics.last?.name != topic.name {
                var answer = ListPartitionReassignmentsResponse.OngoingTopicReassignment()
                answer.name = topic.name
                response.topics.append(answer)
            }
            response.topics[response.topics.count - 1].partitions.append(entry)
        }
        if let asked = request.topics {
            for entry in asked {
                guard let topic = state.topic(named: entry.name) else { continue }
                for index in entry.partitionIndexes { add(topic, index) }
            }
        } else {
            visit(activeIndex.movingPartitions) { topic, _, reference in
                add(topic, reference.partition)
                return true
            }
        }
        return response
    }
}
