import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// AlterPartition (KIP-497): the leader of a partition asks for another in-sync set. Each member comes with the
    /// broker epoch that its leader knows it by, so that a run which the controller has already given up does not
    /// come in again (KIP-903); version 2 has no epochs, and its handler puts -1.
    ///
    /// Whatever is accepted raises the partition epoch, also when the set stays as it is: that is how a leader makes void
    /// an attempt of which it does not know whether it arrives (I10).
    ///
    /// The members of `newIsrWithEpochs` are the whole set; the handler brings version 2's list there.
    package borrowing func decide(_ request: AlterPartitionRequest) -> Decision<AlterPartitionResponse> {
        var decision = Decision(response: AlterPartitionResponse(), isAtomic: false)
        if let code = staleness(of: request.brokerID, epoch: request.brokerEpoch) {
            decision.response.errorCode =
                code == .brokerIDNotRegistered ? ErrorCode.staleBrokerEpoch.rawValue : code.rawValue
            return decision
        }
        let candidates = LeaderCandidates(image: state)
        var count = 0
        var seen: Set<PartitionReference> = []
        for asked in request.topics {
            var answer = AlterPartitionResponse.TopicData()
            answer.topicID = asked.topicID
            let topic = state.topics[asked.topicID]
            for entry in asked.partitions {
                count += 1
                var result = AlterPartitionResponse.PartitionData()
                result.partitionIndex = entry.partitionIndex
                do throws(Refusal) {
                    guard count <= ControllerLimits.partitionChangesPerRequestLimit else {
                        throw .init(.operationNotAttempted, "")
                    }
                    guard let topic else { throw .init(.unknownTopicID, "") }
                    guard seen.insert(.init(topicID: topic.id, partition: entry.partitionIndex)).inserted
                    else {
                        throw .init(.invalidRequest, "")
                    }
                    try alter(
                        entry, of: topic, for: BrokerID(request.brokerID), candidates, &decision.records,
                        &result)
                } catch {
                    result.errorCode = error.code.rawValue
                }
                answer.partitions.append(result)
            }
            decision.response.topics.append(answer)
        }
        return decision
    }

    private borrowing func alter(
        _ entry: AlterPartitionRequest.PartitionData, of topic: TopicImage, for broker: BrokerID,
        _ candidates: LeaderCandidates, _ records: inout [MetadataRecord],
        _ result: inout AlterPartitionResponse.PartitionData
    ) throws(Refusal) {
        guard var partition = topic.partition(PartitionIndex(entry.partitionIndex)) else {
            throw .init(.unknownTopicOrPartition, "")
        }
        try check(entry, against: partition, from: broker)
        var update = update(of: partition, in: topic)
        update.isr = entry.newIsrWithEpochs.map { BrokerID($0.brokerID) }
        update.isRecovering = entry.leaderRecoveryState == 1
        var change = update.record(topicID: topic.id, index: entry.partitionIndex, candidates)
        if change == nil, !suspended.contains(.alterationEpoch) {
            change = update.unchangedRecord(topicID: topic.id, index: entry.partitionIndex)
        }
        if let record = change {
            records.append(.partitionChange(record))
            partition.apply(record)
            // The last member of a reassignment came in, and the leader is not among those that stay.
            if partition.leader != broker { throw .init(.newLeaderElected, "") }
        }
        result.leaderID = partition.leader?.rawValue ?? -1
        result.leaderEpoch = partition.leaderEpoch.rawValue
        result.isr = partition.isr.map(\.rawValue)
        result.leaderRecoveryState = partition.isRecovering ? 1 : 0
        result.partitionEpoch = partition.partitionEpoch
    }

    private borrowing func check(
        _ entry: AlterPartitionRequest.PartitionData, against partition: PartitionImage, from broker: BrokerID
    ) throws(Refusal) {
        // A leader that knows more than this controller asks one that is controller no more.
        guard entry.leaderEpoch <= partition.leaderEpoch.rawValue,
            entry.partitionEpoch <= partition.partitionEpoch
        else { throw .init(.notController, "") }
        guard entry.leaderEpoch == partition.leaderEpoch.rawValue else { throw .init(.fencedLeaderEpoch, "") }
        guard broker == partition.leader else { throw .init(.invalidRequest, "") }
        guard entry.partitionEpoch == partition.partitionEpoch else { throw .init(.invalidUpdateVersion, "") }

        let members = entry.newIsrWithEpochs.map { BrokerID($0.brokerID) }
        guard !members.isEmpty, Set(members).count == members.count, members.contains(broker),
            members.allSatisfy(partition.replicas.contains)
        else { throw .init(.invalidRequest, "") }
        switch entry.leaderRecoveryState {
        case 0: break
        // Until an unclean leader has recovered nobody can be in sync with it, and what is recovered stays so.
        case 1 where partition.isRecovering && members.count == 1: break
        case _: throw .init(.invalidRequest, "")
        }
        for member in entry.newIsrWithEpochs {
            guard let image = state.broker(BrokerID(member.brokerID)), image.isActive,
                member.brokerEpoch == -1 || member.brokerEpoch == image.epoch
                    || suspended.contains(.membersBrokerEpoch)
            else { throw .init(.ineligibleReplica, "") }
        }
    }

    /// AssignReplicasToDirs (KIP-858): a broker says in which of its log directories replicas lie.
    package borrowing func decide(
        _ request: AssignReplicasToDirsRequest
    ) -> Decision<AssignReplicasToDirsResponse> {
        var decision = Decision(response: AssignReplicasToDirsResponse(), isAtomic: false)
        if let code = staleness(of: request.brokerID, epoch: request.brokerEpoch) {
            decision.response.errorCode =
                code == .brokerIDNotRegistered ? ErrorCode.staleBrokerEpoch.rawValue : code.rawValue
            return decision
        }
        let id = BrokerID(request.brokerID)
        let candidates = LeaderCandidates(image: state)
        var count = 0
        for asked in request.directories {
            var answer = AssignReplicasToDirsResponse.DirectoryData()
            answer.id = asked.id
            for askedTopic in asked.topics {
                var topicAnswer = AssignReplicasToDirsResponse.TopicData()
                topicAnswer.topicID = askedTopic.topicID
                for entry in askedTopic.partitions {
                    count += 1
                    var result = AssignReplicasToDirsResponse.PartitionData()
                    result.partitionIndex = entry.partitionIndex
                    let reference = PartitionReference(
                        topicID: askedTopic.topicID, partition: entry.partitionIndex)
                    do throws(Refusal) {
                        guard count <= ControllerLimits.partitionChangesPerRequestLimit else {
                            throw .init(.operationNotAttempted, "")
                        }
                        try assign(reference, to: asked.id, on: id, candidates, &decision.records)
                    } catch {
                        result.errorCode = error.code.rawValue
                    }
                    topicAnswer.partitions.append(result)
                }
                answer.topics.append(topicAnswer)
            }
            decision.response.directories.append(answer)
        }
        return decision
    }

    private borrowing func assign(
        _ reference: PartitionReference, to directory: UniversalID, on broker: BrokerID,
        _ candidates: LeaderCandidates, _ records: inout [MetadataRecord]
    ) throws(Refusal) {
        guard let topic = state.topics[reference.topicID] else { throw .init(.unknownTopicID, "") }
        guard let partition = topic.partition(PartitionIndex(reference.partition)) else {
            throw .init(.unknownTopicOrPartition, "")
        }
        guard partition.replicas.contains(broker) else { throw .init(.notLeaderOrFollower, "") }
        var update = update(of: partition, in: topic)
        update.directories = [(broker, directory)]
        let isLost = !LogDirectoryID.isReserved(directory) && !candidates.hasDirectory(directory, on: broker)
        if isLost || directory == LogDirectoryID.lost {
            update.isr.removeAll { $0 == broker }
            update.lossy = [broker]
        }
        append(update, reference, candidates, to: &records)
    }
}
