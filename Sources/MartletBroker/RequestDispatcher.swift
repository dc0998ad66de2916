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
        key = Request.apiKey
        self.advertised = advertised ?? Request.versions
        encodeDefault = { (writer: inout ProtocolWriter, version: Int16) throws(EncodeError) in
            try Request().encode(into: &writer, version: version)
        }
        serve = { (reader: inout ProtocolReader, context: RequestContext) throws(DecodeError) in
            handle(try Request(reading: &reader, version: context.version), context)
        }
    }

    /// Everything that has a working handler, and nothing else: the one list behind dispatch and ApiVersions.
    package static let all: [ServedAPI] = [
        // librdkafka before 2.11.1 stops compressing when the smallest Produce version is above 0 (KAFKA-18659).
        ServedAPI(ProduceRequest.self, advertised: 0...ProduceRequest.versions.upperBound, ProduceHandler.handle),
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
        ServedAPI(IncrementalAlterConfigsRequest.self, ControllerHandlers.incrementalAlterConfigs),
        ServedAPI(OffsetDeleteRequest.self, OffsetDeleteHandler.handle),
        ServedAPI(DescribeClusterRequest.self, DescribeClusterHandler.handle),
        ServedAPI(DescribeProducersRequest.self, DescribeProducersHandler.handle),
        ServedAPI(DescribeTransactionsRequest.self, DescribeTransactionsHandler.handle),
        ServedAPI(ListTransactionsRequest.self, advertised: 0...1, ListTransactionsHandler.handle),
        ServedAPI(ListConfigResourcesRequest.self, ListConfigResourcesHandler.handle),
        ServedAPI(DescribeTopicPartitionsRequest.self, DescribeTopicPartitionsHandler.handle),
    ]

    private static let byKey: [Int16: ServedAPI] = Dictionary(uniqueKeysWithValues: all.map { ($0.key.rawValue, $0) })

    /// Writes the body of a request with every field at its default, for tests of all keys and versions.
    package func encodeDefaultRequest(into writer: inout ProtocolWriter, version: Int16) throws(EncodeError) {
        try encodeDefault(&writer, version)
    }

    package static func find(_ key: APIKey) -> ServedAPI? { byKey[key.rawValue] }
}

/// Turns frames into typed requests and hands them to their handlers; one per event loop.
package final class RequestDispatcher: ServerRequestHandler {
    private unowned let loop: BrokerLoop
    private let closed: () -> Void

    /// - Parameter closed: called once per connection that ends.
    package init(loop: BrokerLoop, closed: @escaping () -> Void) {
        self.loop = loop
        self.closed = closed
    }

    package func connectionOpened(_ connection: ServerConnection) {
        connection.attachment = ConnectionState()
        loop.add(connection)
    }

    package func connectionClosed(_ connection: ServerConnection) {
        loop.remove(connection)
        closed()
        guard let state = connection.attachment as? ConnectionState else { return }
        for fetch in state.fetches { fetch.cancel() }
        state.fetches = []
        state.fetchSession = nil
    }

    package func requestReceived(_ frame: ByteBuffer, ticket: UInt64, connection: ServerConnection) {
        var reader = ProtocolReader(frame)
        let header: RequestHeader
        do throws(DecodeError) {
            header = try RequestHeader(reading: &reader)
        } catch {
            connection.reject("the request header is malformed: \(error)")
            return
        }
        let context = RequestContext(header: header, ticket: ticket, connection: connection, loop: loop)
        guard let served = ServedAPI.find(header.apiKey) else {
            connection.reject("API key \(header.apiKey.rawValue) is not served; ApiVersions lists what is")
            return
        }
        guard header.apiKey.isKnown(header.apiVersion) else {
            if header.apiKey == .apiVersions {
                let (response, downgraded) = ApiVersionsHandler.unsupported(header)
                RequestContext(header: downgraded, ticket: ticket, connection: connection, loop: loop).respond(response)
            } else {
                context.reject("the version is not served; ApiVersions lists \(served.advertised)")
            }
            return
        }
        do throws(DecodeError) {
            try served.serve(&reader, context)
        } catch {
            context.reject("the request is malformed: \(error)")
        }
    }
}
