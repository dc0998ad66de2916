package import MartletKafkaProtocol
package import MartletLogModel
package import NIOCore

/// Between the core's messages and those of the protocol (newest version of each; the codec drops what an older one
/// lacks). Every sentinel of the wire begins and ends here.
package enum QuorumWire {
    /// Why a message is not handed to the core.
    package struct Refusal: Error, Hashable {
        package var error: ErrorCode

        package init(error: ErrorCode) { self.error = error }
    }

    /// Kafka's fixed id of the metadata topic (KIP-516).
    package static let topicID = UniversalID(high: 0, low: 1)
    /// Name of the listener that addresses without one belong to.
    package static let listenerName = "CONTROLLER"

    private static func check(_ named: String?, _ clusterID: String) throws(Refusal) {
        if let named, named != clusterID { throw Refusal(error: .inconsistentClusterID) }
    }

    /// The only partition there is: partition 0 of the metadata topic, once.
    private static func only<Topic, Partition>(
        _ topics: [Topic], _ partitions: (Topic) -> [Partition], where isOurs: (Topic, Partition) -> Bool
    ) throws(Refusal) -> Partition {
        guard topics.count == 1, partitions(topics[0]).count == 1, isOurs(topics[0], partitions(topics[0])[0])
        else {
            throw Refusal(error: .invalidRequest)
        }
        return partitions(topics[0])[0]
    }

    private static func voter(_ id: Int32, _ directory: UniversalID) -> ReplicaKey? {
        id < 0 ? nil : ReplicaKey(wireID: id, wireDirectory: directory)
    }

    private static func header(
        _ error: Int16, _ leaderID: Int32, _ epoch: Int32, _ endpoints: [Endpoint]
    ) -> AnswerHeader {
        AnswerHeader(
            error: ErrorCode(rawValue: error), epoch: LeaderEpoch(epoch),
            leader: leaderID < 0 ? nil : LeaderAddress(id: BrokerID(leaderID), endpoints: endpoints))
    }

    private static func position(_ offset: Int64, _ epoch: Int32) -> LogPosition? {
        offset < 0 || epoch < 0 ? nil : LogPosition(offset: Offset(offset), epoch: LeaderEpoch(epoch))
    }

    // MARK: Vote (52)

    package static func write(_ call: VoteCall, clusterID: String) -> VoteRequest {
        var partition = VoteRequest.PartitionData()
        partition.replicaEpoch = call.epoch.rawValue
        partition.replicaID = call.candidate.id.rawValue
        partition.replicaDirectoryID = call.candidate.wireDirectory
        partition.voterDirectoryID = call.voter?.wireDirectory ?? .zero
        partition.lastOffsetEpoch = call.lastPosition.epoch.rawValue
        partition.lastOffset = call.lastPosition.offset.rawValue
        partition.preVote = call.isPreVote
        var topic = VoteRequest.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var request = VoteRequest()
        request.clusterID = clusterID
        request.voterID = call.voter?.id.rawValue ?? -1
        request.topics = [topic]
        return request
    }

    package static func read(_ request: VoteRequest, clusterID: String) throws(Refusal) -> QuorumRequest {
        try check(request.clusterID, clusterID)
        let partition = try only(request.topics, \.partitions) {
            $0.topicName == TopicName.clusterMetadata && $1.partitionIndex == 0
        }
        guard partition.replicaID >= 0, partition.lastOffset >= 0, partition.replicaEpoch >= 0 else {
            throw Refusal(error: .invalidRequest)
        }
        return .vote(
            VoteCall(
                voter: voter(request.voterID, partition.voterDirectoryID),
                candidate: ReplicaKey(
                    wireID: partition.replicaID, wireDirectory: partition.replicaDirectoryID),
                epoch: LeaderEpoch(partition.replicaEpoch),
                lastPosition: LogPosition(
                    offset: Offset(partition.lastOffset), epoch: LeaderEpoch(partition.lastOffsetEpoch)),
                isPreVote: partition.preVote))
    }

    package static func write(vote header: AnswerHeader, isGranted: Bool) -> VoteResponse {
        var partition = VoteResponse.PartitionData()
        partition.errorCode = header.error.rawValue
        partition.leaderID = header.leader?.id.rawValue ?? -1
        partition.leaderEpoch = header.epoch.rawValue
        partition.voteGranted = isGranted
        var topic = VoteResponse.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var response = VoteResponse()
        response.topics = [topic]
        response.nodeEndpoints = nodes(header.leader).map { id, endpoint in
            var node = VoteResponse.NodeEndpoint()
            node.nodeID = id
            node.host = endpoint.host
            node.port = endpoint.port
            return node
        }
        return response
    }

    package static func read(_ response: VoteResponse) throws(Refusal) -> QuorumAnswer {
        try checkAnswer(response.errorCode)
        let partition = try only(response.topics, \.partitions) { _, partition in
            partition.partitionIndex == 0
        }
        let endpoints = response.nodeEndpoints.filter { $0.nodeID == partition.leaderID }.map {
            Endpoint(name: listenerName, host: $0.host, port: $0.port)
        }
        return .vote(
            header(partition.errorCode, partition.leaderID, partition.leaderEpoch, endpoints),
            isGranted: partition.voteGranted)
    }

    private static func nodes(_ leader: LeaderAddress?) -> [(Int32, Endpoint)] {
        guard let leader, let endpoint = leader.endpoints.first else { return [] }
        return [(leader.id.rawValue, endpoint)]
    }

    private static func checkAnswer(_ error: Int16) throws(Refusal) {
        if error != 0 { throw Refusal(error: ErrorCode(rawValue: error)) }
    }

    // MARK: BeginQuorumEpoch (53)

    package static func write(_ begin: EpochBegin, clusterID: String) -> BeginQuorumEpochRequest {
        var partition = BeginQuorumEpochRequest.PartitionData()
        partition.voterDirectoryID = begin.voter?.wireDirectory ?? .zero
        partition.leaderID = begin.leader.id.rawValue
        partition.leaderEpoch = begin.epoch.rawValue
        var topic = BeginQuorumEpochRequest.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var request = BeginQuorumEpochRequest()
        request.clusterID = clusterID
        request.voterID = begin.voter?.id.rawValue ?? -1
        request.topics = [topic]
        request.leaderEndpoints = begin.leader.endpoints.map {
            var endpoint = BeginQuorumEpochRequest.LeaderEndpoint()
            endpoint.name = $0.name
            endpoint.host = $0.host
            endpoint.port = $0.port
            return endpoint
        }
        return request
    }

    package static func read(_ request: BeginQuorumEpochRequest, clusterID: String) throws(Refusal)
        -> QuorumRequest
    {
        try check(request.clusterID, clusterID)
        let partition = try only(request.topics, \.partitions) {
            $0.topicName == TopicName.clusterMetadata && $1.partitionIndex == 0
        }
        guard partition.leaderID >= 0, partition.leaderEpoch >= 0 else {
            throw Refusal(error: .invalidRequest)
        }
        let endpoints = request.leaderEndpoints.map { Endpoint(name: $0.name, host: $0.host, port: $0.port) }
        return .beginEpoch(
            EpochBegin(
                voter: voter(request.voterID, partition.voterDirectoryID),
                leader: LeaderAddress(id: BrokerID(partition.leaderID), endpoints: endpoints),
                epoch: LeaderEpoch(partition.leaderEpoch)))
    }

    package static func write(beginEpoch header: AnswerHeader) -> BeginQuorumEpochResponse {
        var partition = BeginQuorumEpochResponse.PartitionData()
        partition.errorCode = header.error.rawValue
        partition.leaderID = header.leader?.id.rawValue ?? -1
        partition.leaderEpoch = header.epoch.rawValue
        var topic = BeginQuorumEpochResponse.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var response = BeginQuorumEpochResponse()
        response.topics = [topic]
        return response
    }

    package static func read(_ response: BeginQuorumEpochResponse) throws(Refusal) -> QuorumAnswer {
        try checkAnswer(response.errorCode)
        let partition = try only(response.topics, \.partitions) { _, partition in
            partition.partitionIndex == 0
        }
        return .beginEpoch(header(partition.errorCode, partition.leaderID, partition.leaderEpoch, []))
    }

    // MARK: EndQuorumEpoch (54)

    package static func write(_ end: EpochEnd, clusterID: String) -> EndQuorumEpochRequest {
        var partition = EndQuorumEpochRequest.PartitionData()
        partition.leaderID = end.leaderID.rawValue
        partition.leaderEpoch = end.epoch.rawValue
        partition.preferredSuccessors = end.preferredCandidates.map(\.id.rawValue)
        partition.preferredCandidates = end.preferredCandidates.map {
            var candidate = EndQuorumEpochRequest.ReplicaInfo()
            candidate.candidateID = $0.id.rawValue
            candidate.candidateDirectoryID = $0.wireDirectory
            return candidate
        }
        var topic = EndQuorumEpochRequest.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var request = EndQuorumEpochRequest()
        request.clusterID = clusterID
        request.topics = [topic]
        return request
    }

    package static func read(_ request: EndQuorumEpochRequest, clusterID: String) throws(Refusal)
        -> QuorumRequest
    {
        try check(request.clusterID, clusterID)
        let partition = try only(request.topics, \.partitions) {
            $0.topicName == TopicName.clusterMetadata && $1.partitionIndex == 0
        }
        guard partition.leaderID >= 0, partition.leaderEpoch >= 0 else {
            throw Refusal(error: .invalidRequest)
        }
        let candidates = partition.preferredCandidates.map {
            ReplicaKey(wireID: $0.candidateID, wireDirectory: $0.candidateDirectoryID)
        }
        let successors = partition.preferredSuccessors.map { ReplicaKey(BrokerID($0), nil) }
        return .endEpoch(
            EpochEnd(
                leaderID: BrokerID(partition.leaderID), epoch: LeaderEpoch(partition.leaderEpoch),
                preferredCandidates: candidates.isEmpty ? successors : candidates))
    }

    package static func write(endEpoch header: AnswerHeader) -> EndQuorumEpochResponse {
        var partition = EndQuorumEpochResponse.PartitionData()
        partition.errorCode = header.error.rawValue
        partition.leaderID = header.leader?.id.rawValue ?? -1
        partition.leaderEpoch = header.epoch.rawValue
        var topic = EndQuorumEpochResponse.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var response = EndQuorumEpochResponse()
        response.topics = [topic]
        return response
    }

    package static func read(_ response: EndQuorumEpochResponse) throws(Refusal) -> QuorumAnswer {
        try checkAnswer(response.errorCode)
        let partition = try only(response.topics, \.partitions) { _, partition in
            partition.partitionIndex == 0
        }
        return .endEpoch(header(partition.errorCode, partition.leaderID, partition.leaderEpoch, []))
    }

    // MARK: Fetch (1), version 17 or later between nodes

    package static func write(_ fetch: LogFetch, clusterID: String) -> FetchRequest {
        var partition = FetchRequest.FetchPartition()
        partition.currentLeaderEpoch = fetch.epoch.rawValue
        partition.fetchOffset = fetch.offset.rawValue
        partition.lastFetchedEpoch = fetch.lastEpoch.rawValue
        partition.partitionMaxBytes = Int32(clamping: fetch.maxBytes)
        partition.replicaDirectoryID = fetch.replica.wireDirectory
        if let highWatermark = fetch.highWatermark { partition.highWatermark = highWatermark.rawValue }
        var topic = FetchRequest.FetchTopic()
        topic.topicID = topicID
        topic.partitions = [partition]
        var request = FetchRequest()
        request.clusterID = clusterID
        request.replicaState.replicaID = fetch.replica.id.rawValue
        request.maxWaitMs = Int32(clamping: fetch.maxWaitMilliseconds)
        request.maxBytes = Int32(clamping: fetch.maxBytes)
        request.topics = [topic]
        return request
    }

    /// Whether a fetch is one of the metadata log by a node, for the core; others are a consumer's.
    package static func isMetadataFetch(_ request: FetchRequest) -> Bool {
        guard request.replicaState.replicaID >= 0 || request.replicaID >= 0, request.topics.count == 1 else {
            return false
        }
        return request.topics[0].topicID == topicID || request.topics[0].topic == TopicName.clusterMetadata
    }

    package static func read(_ request: FetchRequest, clusterID: String) throws(Refusal) -> QuorumRequest {
        try check(request.clusterID, clusterID)
        let partition = try only(request.topics, \.partitions) { _, partition in partition.partition == 0 }
        let id = max(request.replicaState.replicaID, request.replicaID)
        guard isMetadataFetch(request), partition.fetchOffset >= 0 else {
            throw Refusal(error: .invalidRequest)
        }
        return .fetch(
            LogFetch(
                replica: ReplicaKey(wireID: id, wireDirectory: partition.replicaDirectoryID),
                epoch: LeaderEpoch(partition.currentLeaderEpoch), offset: Offset(partition.fetchOffset),
                lastEpoch: LeaderEpoch(max(0, partition.lastFetchedEpoch)),
                highWatermark: partition.highWatermark == Int64.max
                    ? nil : Offset(max(0, partition.highWatermark)),
                maxWaitMilliseconds: Int64(max(0, request.maxWaitMs)),
                maxBytes: Int(max(1, min(request.maxBytes, max(1, partition.partitionMaxBytes))))))
    }

    /// - Parameter records: whole batches, as they lie in the log.
    package static func write(_ answer: LogAnswer, records: ByteBuffer?) -> FetchResponse {
        var partition = FetchResponse.PartitionData()
        partition.errorCode = answer.header.error.rawValue
        partition.highWatermark = answer.highWatermark.rawValue
        partition.logStartOffset = answer.logStart.rawValue
        partition.currentLeader.leaderID = answer.header.leader?.id.rawValue ?? -1
        partition.currentLeader.leaderEpoch = answer.header.epoch.rawValue
        if let diverging = answer.diverging {
            partition.divergingEpoch.epoch = diverging.epoch.rawValue
            partition.divergingEpoch.endOffset = diverging.offset.rawValue
        }
        if let snapshot = answer.snapshot {
            partition.snapshotID.epoch = snapshot.epoch.rawValue
            partition.snapshotID.endOffset = snapshot.offset.rawValue
        }
        partition.records = records ?? ByteBuffer()
        var topic = FetchResponse.FetchableTopicResponse()
        topic.topicID = topicID
        topic.partitions = [partition]
        var response = FetchResponse()
        response.responses = [topic]
        response.nodeEndpoints = nodes(answer.header.leader).map { id, endpoint in
            var node = FetchResponse.NodeEndpoint()
            node.nodeID = id
            node.host = endpoint.host
            node.port = Int32(endpoint.port)
            return node
        }
        return response
    }

    package static func read(_ response: FetchResponse) throws -> QuorumAnswer {
        try checkAnswer(response.errorCode)
        let partition = try only(response.responses, \.partitions) { _, partition in
            partition.partitionIndex == 0
        }
        let leader = partition.currentLeader
        let endpoints = response.nodeEndpoints.filter { $0.nodeID == leader.leaderID }.compactMap { node in
            UInt16(exactly: node.port).map { Endpoint(name: listenerName, host: node.host, port: $0) }
        }
        return .fetch(
            LogAnswer(
                header: header(partition.errorCode, leader.leaderID, leader.leaderEpoch, endpoints),
                highWatermark: Offset(max(0, partition.highWatermark)),
                logStart: Offset(max(0, partition.logStartOffset)),
                diverging: position(partition.divergingEpoch.endOffset, partition.divergingEpoch.epoch),
                snapshot: position(partition.snapshotID.endOffset, partition.snapshotID.epoch),
                batches: try partition.records.map(ControlBatch.split) ?? []))
    }
}
