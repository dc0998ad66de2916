package import MartletKafkaProtocol
package import MartletLogModel
import NIOCore

// FetchSnapshot, changes of voters, and DescribeQuorum.
extension QuorumWire {
    // MARK: FetchSnapshot (59)

    package static func write(_ fetch: SnapshotFetch, clusterID: String) -> FetchSnapshotRequest {
        var partition = FetchSnapshotRequest.PartitionSnapshot()
        partition.currentLeaderEpoch = fetch.epoch.rawValue
        partition.snapshotID.endOffset = fetch.id.offset.rawValue
        partition.snapshotID.epoch = fetch.id.epoch.rawValue
        partition.position = fetch.position
        partition.replicaDirectoryID = fetch.replica.wireDirectory
        var topic = FetchSnapshotRequest.TopicSnapshot()
        topic.name = TopicName.clusterMetadata
        topic.partitions = [partition]
        var request = FetchSnapshotRequest()
        request.clusterID = clusterID
        request.replicaID = fetch.replica.id.rawValue
        request.maxBytes = Int32(clamping: fetch.maxBytes)
        request.topics = [topic]
        return request
    }

    package static func read(_ request: FetchSnapshotRequest, clusterID: String) throws(Refusal)
        -> QuorumRequest
    {
        if let named = request.clusterID, named != clusterID { throw Refusal(error: .inconsistentClusterID) }
        guard request.topics.count == 1, request.topics[0].name == TopicName.clusterMetadata,
            request.topics[0].partitions.count == 1, request.topics[0].partitions[0].partition == 0
        else { throw Refusal(error: .unknownTopicOrPartition) }
        let partition = request.topics[0].partitions[0]
        return .fetchSnapshot(
            SnapshotFetch(
                replica: ReplicaKey(wireID: request.replicaID, wireDirectory: partition.replicaDirectoryID),
                epoch: LeaderEpoch(partition.currentLeaderEpoch),
                id: LogPosition(
                    offset: Offset(partition.snapshotID.endOffset),
                    epoch: LeaderEpoch(partition.snapshotID.epoch)),
                position: partition.position, maxBytes: Int(max(1, request.maxBytes))))
    }

    package static func write(_ answer: SnapshotAnswer) -> FetchSnapshotResponse {
        var partition = FetchSnapshotResponse.PartitionSnapshot()
        partition.errorCode = answer.header.error.rawValue
        partition.snapshotID.endOffset = answer.id.offset.rawValue
        partition.snapshotID.epoch = answer.id.epoch.rawValue
        partition.currentLeader.leaderID = answer.header.leader?.id.rawValue ?? -1
        partition.currentLeader.leaderEpoch = answer.header.epoch.rawValue
        partition.size = answer.size
        partition.position = answer.position
        partition.unalignedRecords = answer.bytes
        var topic = FetchSnapshotResponse.TopicSnapshot()
        topic.name = TopicName.clusterMetadata
        topic.partitions = [partition]
        var response = FetchSnapshotResponse()
        response.topics = [topic]
        return response
    }

    package static func read(_ response: FetchSnapshotResponse) throws(Refusal) -> QuorumAnswer {
        guard response.errorCode == 0 else { throw Refusal(error: ErrorCode(rawValue: response.errorCode)) }
        guard response.topics.count == 1, response.topics[0].partitions.count == 1 else {
            throw Refusal(error: .invalidRequest)
        }
        let partition = response.topics[0].partitions[0]
        let leader = partition.currentLeader
        let address = leader.leaderID < 0 ? nil : LeaderAddress(id: BrokerID(leader.leaderID), endpoints: [])
        return .fetchSnapshot(
            SnapshotAnswer(
                header: AnswerHeader(
                    error: ErrorCode(rawValue: partition.errorCode), epoch: LeaderEpoch(leader.leaderEpoch),
                    leader: address),
                id: LogPosition(
                    offset: Offset(partition.snapshotID.endOffset),
                    epoch: LeaderEpoch(partition.snapshotID.epoch)),
                size: partition.size, position: partition.position, bytes: partition.unalignedRecords))
    }

    // MARK: Voters (80, 81, 82)

    package static func read(_ request: AddRaftVoterRequest, clusterID: String) throws(Refusal)
        -> QuorumRequest
    {
        if let named = request.clusterID, named != clusterID { throw Refusal(error: .inconsistentClusterID) }
        guard request.voterID >= 0 else { throw Refusal(error: .invalidRequest) }
        return .addVoter(
            VoterAddition(
                key: ReplicaKey(wireID: request.voterID, wireDirectory: request.voterDirectoryID),
                endpoints: request.listeners.map { Endpoint(name: $0.name, host: $0.host, port: $0.port) },
                timeoutMilliseconds: Int64(request.timeoutMs), waitsForCommit: request.ackWhenCommitted))
    }

    package static func read(_ request: RemoveRaftVoterRequest, clusterID: String) throws(Refusal)
        -> QuorumRequest
    {
        if let named = request.clusterID, named != clusterID { throw Refusal(error: .inconsistentClusterID) }
        guard request.voterID >= 0 else { throw Refusal(error: .invalidRequest) }
        return .removeVoter(
            VoterRemoval(key: ReplicaKey(wireID: request.voterID, wireDirectory: request.voterDirectoryID)))
    }

    package static func write(_ update: VoterUpdate, clusterID: String) -> UpdateRaftVoterRequest {
        var request = UpdateRaftVoterRequest()
        request.clusterID = clusterID
        request.currentLeaderEpoch = update.epoch.rawValue
        request.voterID = update.voter.key.id.rawValue
        request.voterDirectoryID = update.voter.key.wireDirectory
        request.listeners = update.voter.endpoints.map {
            var listener = UpdateRaftVoterRequest.Listener()
            listener.name = $0.name
            listener.host = $0.host
            listener.port = $0.port
            return listener
        }
        request.kRaftVersionFeature.minSupportedVersion = update.voter.versions.minimum
        request.kRaftVersionFeature.maxSupportedVersion = update.voter.versions.maximum
        return request
    }

    package static func read(_ request: UpdateRaftVoterRequest, clusterID: String) throws(Refusal)
        -> QuorumRequest
    {
        if let named = request.clusterID, named != clusterID { throw Refusal(error: .inconsistentClusterID) }
        guard request.voterID >= 0 else { throw Refusal(error: .invalidRequest) }
        let feature = request.kRaftVersionFeature
        return .updateVoter(
            VoterUpdate(
                voter: Voter(
                    key: ReplicaKey(wireID: request.voterID, wireDirectory: request.voterDirectoryID),
                    endpoints: request.listeners.map {
                        Endpoint(name: $0.name, host: $0.host, port: $0.port)
                    },
                    versions: KRaftVersionRange(
                        minimum: feature.minSupportedVersion, maximum: feature.maxSupportedVersion)),
                epoch: LeaderEpoch(request.currentLeaderEpoch)))
    }

    package static func write(addVoter header: AnswerHeader) -> AddRaftVoterResponse {
        var response = AddRaftVoterResponse()
        response.errorCode = header.error.rawValue
        response.errorMessage = header.error == .none ? nil : advice(header)
        return response
    }

    package static func write(removeVoter header: AnswerHeader) -> RemoveRaftVoterResponse {
        var response = RemoveRaftVoterResponse()
        response.errorCode = header.error.rawValue
        response.errorMessage = header.error == .none ? nil : advice(header)
        return response
    }

    package static func write(updateVoter header: AnswerHeader) -> UpdateRaftVoterResponse {
        var response = UpdateRaftVoterResponse()
        response.errorCode = header.error.rawValue
        response.currentLeader.leaderID = header.leader?.id.rawValue ?? -1
        response.currentLeader.leaderEpoch = header.epoch.rawValue
        if let endpoint = header.leader?.endpoints.first {
            response.currentLeader.host = endpoint.host
            response.currentLeader.port = Int32(endpoint.port)
        }
        return response
    }

    package static func read(_ response: UpdateRaftVoterResponse) -> QuorumAnswer {
        let leader = response.currentLeader
        let endpoints = UInt16(exactly: leader.port).map {
            [Endpoint(name: listenerName, host: leader.host, port: $0)]
        }
        return .voterChange(
            AnswerHeader(
                error: ErrorCode(rawValue: response.errorCode), epoch: LeaderEpoch(leader.leaderEpoch),
                leader: leader.leaderID < 0
                    ? nil : LeaderAddress(id: BrokerID(leader.leaderID), endpoints: endpoints ?? [])))
    }

    /// Cause and remedy for the operator who changes voters.
    private static func advice(_ header: AnswerHeader) -> String {
        switch header.error {
        case .notLeaderOrFollower:
            header.leader.map { "Node \($0.id) leads the metadata quorum; ask it." }
                ?? "The metadata quorum has no leader now; try again when it has one."
        case .requestTimedOut:
            "The quorum is not ready for this change: another one is under way, or the new voter cannot be reached or has not caught up. Look at the quorum's state and try again."
        case .duplicateVoter: "A voter has this id already; remove it first if its disk was replaced."
        case .voterNotFound: "No voter has this id and directory id; look them up in the quorum's state."
        case .unsupportedVersion:
            "The voters still come from the configuration; wait until every one of them has joined once."
        case .invalidRequest: "The request names no usable voter, or would remove the last one."
        case _: "The change was refused with error \(header.error.rawValue)."
        }
    }

    // MARK: DescribeQuorum (55)

    /// - Parameter wallClock: turns an instant into wall-clock milliseconds.
    package static func write(
        _ description: QuorumDescription, wallClock: (Instant) -> Timestamp
    ) -> DescribeQuorumResponse {
        func state(_ replica: QuorumDescription.Replica) -> DescribeQuorumResponse.ReplicaState {
            var state = DescribeQuorumResponse.ReplicaState()
            state.replicaID = replica.key.id.rawValue
            state.replicaDirectoryID = replica.key.wireDirectory
            state.logEndOffset = replica.logEnd?.rawValue ?? -1
            state.lastFetchTimestamp = replica.lastFetch.map { wallClock($0).rawValue } ?? -1
            state.lastCaughtUpTimestamp = replica.lastCaughtUp.map { wallClock($0).rawValue } ?? -1
            return state
        }
        var partition = DescribeQuorumResponse.PartitionData()
        partition.leaderID = description.leader.rawValue
        partition.leaderEpoch = description.epoch.rawValue
        partition.highWatermark = description.highWatermark.rawValue
        partition.currentVoters = description.voters.map(state)
        partition.observers = description.observers.map(state)
        var topic = DescribeQuorumResponse.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var response = DescribeQuorumResponse()
        response.topics = [topic]
        response.nodes = description.addresses.map { voter in
            var node = DescribeQuorumResponse.Node()
            node.nodeID = voter.key.id.rawValue
            node.listeners = voter.endpoints.map {
                var listener = DescribeQuorumResponse.Listener()
                listener.name = $0.name
                listener.host = $0.host
                listener.port = $0.port
                return listener
            }
            return node
        }
        return response
    }
}
