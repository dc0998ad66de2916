package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// ElectLeaders (KIP-183, KIP-460): type 0 makes the preferred replica lead if it is in sync, type 1 finds a
    /// leader for a partition that has none, clean if possible. Without a list all partitions that want it are meant,
    /// and those that do not are left out of the answer. Version 0 knows type 0 alone.
    package borrowing func decide(_ request: ElectLeadersRequest) -> Decision<ElectLeadersResponse> {
        var decision = Decision(response: ElectLeadersResponse(), isAtomic: false)
        guard request.electionType == 0 || request.electionType == 1 else {
            decision.response.errorCode = ErrorCode.invalidRequest.rawValue
            return decision
        }
        let election: Election = request.electionType == 0 ? .preferred : .unclean
        let candidates = LeaderCandidates(image: state)
        var count = 0
        for asked in request.topicPartitions ?? everyPartition(for: election) {
            var answer = ElectLeadersResponse.ReplicaElectionResult()
            answer.topic = asked.topic
            let topic = state.topic(named: asked.topic)
            var seen: Set<Int32> = []
            for index in asked.partitions where seen.insert(index).inserted {
                count += 1
                var result = ElectLeadersResponse.PartitionResult()
                result.errorMessage = nil
                result.partitionID = index
                do throws(Refusal) {
                    guard count <= ControllerLimits.partitionChangesPerRequestLimit else {
                        throw .init(
                            .operationNotAttempted,
                            "One request elects at most \(ControllerLimits.partitionChangesPerRequestLimit) leaders; ask again for the rest"
                        )
                    }
                    decision.records.append(
                        .partitionChange(try elect(election, topic, asked.topic, index, candidates)))
                } catch {
                    result.errorCode = error.code.rawValue
                    result.errorMessage = error.message
                }
                answer.partitionResult.append(result)
            }
            decision.response.replicaElectionResults.append(answer)
        }
        return decision
    }

    private borrowing func everyPartition(for election: Election) -> [ElectLeadersRequest.TopicPartitions] {
        let references =
            election == .preferred ? activeIndex.displacedPartitions : activeIndex.leaderlessPartitions
        var topics: [ElectLeadersRequest.TopicPartitions] = []
        visit(references) { topic, _, reference in
            if topics.last?.topic != topic.name {
                var entry = ElectLeadersRequest.TopicPartitions()
                entry.topic = topic.name
                topics.append(entry)
            }
            topics[topics.count - 1].partitions.append(reference.partition)
            return true
        }
        return topics
    }

    private borrowing func elect(
        _ election: Election, _ topic: TopicImage?, _ name: String, _ index: Int32,
        _ candidates: LeaderCandidates
    ) throws(Refusal) -> PartitionChangeRecord {
        guard let topic else {
            throw .init(.unknownTopicOrPartition, "There is no topic '\(ConfigText.shortened(name))'")
        }
        guard let partition = topic.partition(PartitionIndex(index)) else {
            throw .init(.unknownTopicOrPartition, "Topic \(name) has no partition \(index)")
        }
        let isPreferred = election == .preferred
        guard isPreferred ? partition.leader != partition.replicas.first : partition.leader == nil else {
            throw .init(
                .electionNotNeeded,
                isPreferred ? "The preferred replica leads already" : "The partition has a leader")
        }
        var update = update(of: partition, in: topic)
        update.election = election
        guard let record = update.record(topicID: topic.id, index: index, candidates),
            record.leader != PartitionChange.leaderUnchanged
        else {
            throw isPreferred
                ? .init(
                    .preferredLeaderNotAvailable,
                    "The preferred replica is fenced, shutting down or not in sync; it can lead when it is in sync"
                )
                : .init(.eligibleLeadersNotAvailable, "No replica of the partition is on a live broker")
        }
        return record
    }
}
