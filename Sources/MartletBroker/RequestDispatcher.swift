internal import Logging
package import MartletKafkaProtocol
internal import MartletLogModel
package import MartletTransport
package import NIOCore

/// One API the broker serves and the range of versions it tells clients.
package struct ServedAPI: Sendable {
    package let key: APIKey
    /// What ApiVersions says.
    package let advertised: ClosedRange<Int16>
    private let encodeDefault: @Sendable (inout ProtocolWriter, Int16) throws(EncodeError) -> Void
    fileprivate let serve: @Sendable (inout ProtocolReader, RequestContext) throws(DecodeError) -> Void

    private init<Request: KafkaRequest>(
        _ type: Request.Type, advertised: ClosedRange<Int16>? = nil,
        _ handle: @escaping @Sendable (Request, RequestContext) -> Void
    ) {
        self.init(type, advertised: advertised ?? Request.versions) {
            (reader: inout ProtocolReader, context: RequestContext) throws(DecodeError) in
            let request = try Request(reading: &reader, version: context.version)
            context.connection.charge(reader.decodedByteCount, to: context.ticket)
            handle(request, context)
        }
    }

    /// For a handler that reads the request itself.
    private init<Request: KafkaRequest>(
        _ type: Request.Type, advertised: ClosedRange<Int16>,
        serve: @escaping @Sendable (inout ProtocolReader, RequestContext) throws(DecodeError) -> Void
    ) {
        key = Request.apiKey
        self.advertised = advertised
        self.serve = serve
        encodeDefault = { (writer: inout ProtocolWriter, version: Int16) throws(EncodeError) in
            try Request().encode(into: &writer, version: version)
        }
    }

    /// Everything that has a working handler, and nothing else: the one list behind dispatch and ApiVersions.
    package static let all: [ServedAPI] = [
        // librdkafka before 2.11.1 stops compressing when the smallest Produce version is above 0 (KAFKA-18659).
        ServedAPI(
            ProduceRequest.self, advertised: 0...ProduceRequest.versions.upperBound, serve: ProduceHandler.receive),
        ServedAPI(FetchRequest.self, FetchHandler.handle),
        ServedAPI(ListOffsetsRequest.self, ListOffsetsHandler.handle),
        ServedAPI(MetadataRequest.self, MetadataHandler.handle),
        ServedAPI(OffsetCommitRequest.self, OffsetCommitHandler.handle),
        ServedAPI(OffsetFetchRequest.self, OffsetFetchHandler.handle),
        ServedAPI(FindCoordinatorRequest.self, FindCoordinatorHandler.handle),
        ServedAPI(JoinGroupRequest.self, JoinGroupHandler.handle),
        ServedAPI(HeartbeatRequest.self, HeartbeatHandler.handle),
        ServedAPI(LeaveGroupRequest.self, LeaveGroupHandler.handle),
        ServedAPI(SyncGroupRequest.self, SyncGroupHandler.handle),
        ServedAPI(DescribeGroupsRequest.self, DescribeGroupsHandler.handle),
        ServedAPI(ListGroupsRequest.self, ListGroupsHandler.handle),
        ServedAPI(ApiVersionsRequest.self, ApiVersionsHandler.handle),
        ServedAPI(CreateTopicsRequest.self, ControllerHandlers.createTopics),
        ServedAPI(DeleteTopicsRequest.self, ControllerHandlers.deleteTopics),
        ServedAPI(DeleteRecordsRequest.self, DeleteRecordsHandler.handle),
        ServedAPI(InitProducerIdRequest.self, InitProducerIDHandler.handle),
        ServedAPI(AddPartitionsToTxnRequest.self, AddPartitionsToTxnHandler.handle),
        ServedAPI(AddOffsetsToTxnRequest.self, AddOffsetsToTxnHandler.handle),
        ServedAPI(EndTxnRequest.self, EndTxnHandler.handle),
        ServedAPI(WriteTxnMarkersRequest.self, WriteTxnMarkersHandler.handle),
        ServedAPI(TxnOffsetCommitRequest.self, TxnOffsetCommitHandler.handle),
        ServedAPI(OffsetForLeaderEpochRequest.self, OffsetForLeaderEpochHandler.handle),
        ServedAPI(DescribeConfigsRequest.self, ControllerHandlers.describeConfigs),
        ServedAPI(AlterConfigsRequest.self, ControllerHandlers.alterConfigs),
        ServedAPI(DescribeLogDirsRequest.self, DescribeLogDirsHandler.handle),
        ServedAPI(CreatePartitionsRequest.self, ControllerHandlers.createPartitions),
        ServedAPI(DeleteGroupsRequest.self, DeleteGroupsHandler.handle),
        ServedAPI(ElectLeadersRequest.self, ControllerHandlers.electLeaders),
        ServedAPI(IncrementalAlterConfigsRequest.self, ControllerHandlers.incrementalAlterConfigs),
        ServedAPI(AlterPartitionReassignmentsRequest.self, ControllerHandlers.alterReassignments),
        ServedAPI(ListPartitionReassignmentsRequest.self, ControllerHandlers.listReassignments),
        ServedAPI(OffsetDeleteRequest.self, OffsetDeleteHandler.handle),
        ServedAPI(VoteRequest.self, QuorumHandlers.vote),
        ServedAPI(BeginQuorumEpochRequest.self, QuorumHandlers.beginEpoch),
        ServedAPI(EndQuorumEpochRequest.self, QuorumHandlers.endEpoch),
        ServedAPI(DescribeQuorumRequest.self, QuorumHandlers.describe),
        ServedAPI(AlterPartitionRequest.self, ControllerHandlers.alterPartition),
        ServedAPI(UpdateFeaturesRequest.self, ControllerHandlers.updateFeatures),
        ServedAPI(FetchSnapshotRequest.self, QuorumHandlers.fetchSnapshot),
        ServedAPI(DescribeClusterRequest.self, DescribeClusterHandler.handle),
        ServedAPI(DescribeProducersRequest.self, DescribeProducersHandler.handle),
        ServedAPI(BrokerRegistrationRequest.self, ControllerHandlers.registerBroker),
        ServedAPI(BrokerHeartbeatRequest.self, ControllerHandlers.heartbeat),
        ServedAPI(UnregisterBrokerRequest.self, ControllerHandlers.unregisterBroker),
        ServedAPI(DescribeTransactionsRequest.self, DescribeTransactionsHandler.handle),
        ServedAPI(ListTransactionsRequest.self, ListTransactionsHandler.handle),
        ServedAPI(AllocateProducerIdsRequest.self, ControllerHandlers.allocateProducerIDs),
        ServedAPI(ConsumerGroupHeartbeatRequest.self, ConsumerGroupHeartbeatHandler.handle),
        ServedAPI(ConsumerGroupDescribeRequest.self, ConsumerGroupDescribeHandler.handle),
        ServedAPI(ListConfigResourcesRequest.self, ListConfigResourcesHandler.handle),
        ServedAPI(DescribeTopicPartitionsRequest.self, DescribeTopicPartitionsHandler.handle),
        ServedAPI(ShareGroupHeartbeatRequest.self, ShareGroupHeartbeatHandler.handle),
        ServedAPI(ShareGroupDescribeRequest.self, ShareGroupDescribeHandler.handle),
        ServedAPI(ShareFetchRequest.self, ShareFetchHandler.handle),
        ServedAPI(ShareAcknowledgeRequest.self, ShareAcknowledgeHandler.handle),
        ServedAPI(AddRaftVoterRequest.self, QuorumHandlers.addVoter),
        ServedAPI(RemoveRaftVoterRequest.self, QuorumHandlers.removeVoter),
        ServedAPI(UpdateRaftVoterRequest.self, QuorumHandlers.updateVoter),
        ServedAPI(InitializeShareGroupStateRequest.self, InitializeShareGroupStateHandler.handle),
        ServedAPI(ReadShareGroupStateRequest.self, ReadShareGroupStateHandler.handle),
        ServedAPI(WriteShareGroupStateRequest.self, WriteShareGroupStateHandler.handle),
        ServedAPI(DeleteShareGroupStateRequest.self, DeleteShareGroupStateHandler.handle),
        ServedAPI(ReadShareGroupStateSummaryRequest.self, ReadShareGroupStateSummaryHandler.handle),
        ServedAPI(DescribeShareGroupOffsetsRequest.self, DescribeShareGroupOffsetsHandler.handle),
        ServedAPI(AlterShareGroupOffsetsRequest.self, AlterShareGroupOffsetsHandler.handle),
        ServedAPI(DeleteShareGroupOffsetsRequest.self, DeleteShareGroupOffsetsHandler.handle),
    ]

    /// Indexed by API key: looked at for each request.
    private static let byKey: [ServedAPI?] = {
        var table: [ServedAPI?] = Array(repeating: nil, count: Int(all.map(\.key.rawValue).max() ?? 0) + 1)
        for api in all { table[Int(api.key.rawValue)] = api }
        return table
    }()

    /// Writes the body of a request with every field at its default, for tests of all keys and versions.
    package func encodeDefaultRequest(into writer: inout ProtocolWriter, version: Int16) throws(EncodeError) {
        try encodeDefault(&writer, version)
    }

    package static func find(_ key: APIKey) -> ServedAPI? {
        let index = Int(key.rawValue)
        return byKey.indices.contains(index) ? byKey[index] : nil
    }
}

/// Turns frames into typed requests and hands them to their handlers; one per event loop.
package final class RequestDispatcher: ServerRequestHandler {
    private unowned let loop: BrokerLoop
    private let closed: @Sendable () -> Void

    /// - Parameter closed: called once per connection that ends.
    package init(loop: BrokerLoop, closed: @escaping @Sendable () -> Void) {
        self.loop = loop
        self.closed = closed
    }

    package func connectionOpened(_ connection: ServerConnection) {
        connection.attachment = ConnectionState()
        loop.add(connection)
    }

    package func connectionLeft(_ connection: ServerConnection) { loop.remove(connection) }

    package func connectionArrived(_ connection: ServerConnection) {
        loop.add(connection)
        loop.logger.debug("connection goes on where its partition lives", metadata: ["connection": "\(connection.id)"])
    }

    /// The same for the loop that the connection moves to.
    fileprivate func dispatcher(for target: BrokerLoop) -> RequestDispatcher {
        RequestDispatcher(loop: target, closed: closed)
    }

    package func connectionClosed(_ connection: ServerConnection) {
        loop.remove(connection)
        closed()
        guard let state = connection.attachment as? ConnectionState else { return }
        if let lost = state.heartbeats { loop.services.controller.heartbeatsLost(lost.broker, epoch: lost.epoch) }
        for fetch in state.fetches { fetch.cancel() }
        state.fetches = []
        state.fetchSession = nil
        for fetch in state.shareFetches { fetch.cancel() }
        state.shareFetches = []
        for session in state.shareSessions.values.sorted(by: { $0.serial < $1.serial }) {
            session.release(on: loop)
        }
        state.shareSessions = [:]
    }

    package func requestReceived(_ frame: ByteBuffer, ticket: UInt64, connection: ServerConnection) {
        guard let state = connection.attachment as? ConnectionState else {
            preconditionFailure("connection \(connection.id) was opened without its state")
        }
        var reader = ProtocolReader(frame, decodedByteLimit: Framing.decodedRequestBytesLimit)
        let header: RequestHeader
        do throws(DecodeError) {
            header = try RequestHeader(reading: &reader, expecting: state.clientID)
        } catch {
            connection.reject("the request header is malformed: \(error)")
            return
        }
        if state.clientID != header.clientID { state.clientID = header.clientID }
        let context = RequestContext(
            header: header, ticket: ticket, connection: connection, state: state, loop: loop)
        guard let served = ServedAPI.find(header.apiKey),
            !header.apiKey.isOfControllers || PeerClientID.isPeer(header.clientID)
        else {
            connection.reject("API key \(header.apiKey.rawValue) is not served; ApiVersions lists what is")
            return
        }
        guard header.apiKey.isKnown(header.apiVersion) else {
            if header.apiKey == .apiVersions {
                let (response, downgraded) = ApiVersionsHandler.unsupported(header)
                RequestContext(
                    header: downgraded, ticket: ticket, connection: connection, state: state, loop: loop
                ).respond(response)
            } else {
                context.reject("the version is not served; ApiVersions lists \(served.advertised)")
            }
            return
        }
        guard loop.isServing || served.key.isOfPeers || PeerClientID.isPeer(header.clientID) else {
            // As if it did not listen yet: what it knows of the cluster may be old.
            loop.logger.debug("not let into the cluster yet", metadata: ["connection": "\(connection.id)"])
            context.respond(with: .close)
            return
        }
        do throws(DecodeError) {
            try served.serve(&reader, context)
        } catch {
            context.reject("the request is malformed: \(error)")
        }
    }
}

extension APIKey {
    /// What a released broker serves on the listener of controllers alone.
    var isOfControllers: Bool {
        switch self {
        case .vote, .beginQuorumEpoch, .endQuorumEpoch, .fetchSnapshot, .updateRaftVoter, .brokerRegistration,
            .brokerHeartbeat, .alterPartition, .allocateProducerIDs:
            true
        case _: false
        }
    }

    /// What other nodes ask, and the exchange of versions that comes first.
    fileprivate var isOfPeers: Bool {
        switch self {
        case .apiVersions, .fetch, .offsetForLeaderEpoch: true
        case _: isOfControllers
        }
    }
}

extension RequestContext {
    /// Requests in a row for partitions of one other loop after which the connection moves there.
    private static let awayLimit = 64
    /// Moves of one connection: one whose partitions lie on several loops stays in the end.
    private static let moveLimit = 8

    /// Notes where the request's partition lives. A connection that works for another loop all the time moves
    /// there, unless that loop has the more connections already: every batch it sends would cost a wake-up of
    /// that loop's thread, and its bytes would pass from one core's cache to the other's.
    func noteHome(_ home: BrokerLoop) {
        guard home !== loop else {
            state.awayCount = 0
            return
        }
        state.awayCount += 1
        guard state.awayCount >= Self.awayLimit else { return }
        state.awayCount = 0
        guard state.moveCount < Self.moveLimit, services.loops.mayMove(from: loop, to: home),
            let dispatcher = connection.requestHandler as? RequestDispatcher
        else { return }
        state.moveCount += 1
        connection.move(to: home.eventLoop, handler: dispatcher.dispatcher(for: home))
    }
}
