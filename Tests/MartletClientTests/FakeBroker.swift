import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import NIOPosix
import Synchronization

@testable import MartletClient

/// A broker in the test's own process that answers as it is told: it keeps batches per partition, checks
/// sequence numbers, and lets a test put its own answer, or none, in front of any request.
final class FakeBroker: Sendable {
    /// What to do with one request.
    enum Reaction: Sendable {
        /// The broker's usual answer.
        case usual
        /// Carries the request out, but the answer is lost and the connection with it.
        case loseAnswer
        /// Drops the connection without doing anything.
        case close
        /// Never answers.
        case silence
        /// Reads nothing more from the connection.
        case deafness
        /// Another reaction, once something has come about; the connection waits for it.
        indirect case hold(until: @Sendable () -> Bool, then: Reaction)
        /// These bytes instead of an answer, length prefix included.
        case bytes(ByteBuffer)
        /// An answer made for the version and correlation id of the request.
        case answer(@Sendable (RequestHeader) throws -> ByteBuffer)
        /// This error for each partition of a produce request, nothing appended.
        case produceError(ErrorCode)
        /// This error for each partition of a fetch request.
        case fetchError(ErrorCode)
    }

    struct StoredBatch: Sendable {
        var bytes: ByteBuffer
        var header: RecordBatchHeader
    }

    private struct ProducerState {
        var epoch: Int16
        var nextSequence: Int32
        var recent: [(sequence: Int32, offset: Int64)] = []
    }

    private struct State {
        var port = 0
        var partitionCounts: [String: Int] = [:]
        var ids: [String: UniversalID] = [:]
        var logs: [TopicPartition: [StoredBatch]] = [:]
        var ends: [TopicPartition: Int64] = [:]
        var starts: [TopicPartition: Int64] = [:]
        var producers: [TopicPartition: [Int64: ProducerState]] = [:]
        var nextProducerID: Int64 = 1000
        var script: [APIKey: [Reaction]] = [:]
        var always: [APIKey: Reaction] = [:]
        var requests: [APIKey] = []
        var versions: [APIKey: ClosedRange<Int16>] = FakeBroker.served
        var channels: [ObjectIdentifier: any Channel] = [:]
        var acceptedCount = 0
        var hasIDs = true
        var lateTopics: [String: Int] = [:]
        // One group with at most one member.
        var generation: Int32 = 0
        var joinedMembers: [String] = []
        var committed: [TopicPartition: Int64] = [:]
    }

    static let served: [APIKey: ClosedRange<Int16>] = [
        .apiVersions: ApiVersionsRequest.versions, .metadata: MetadataRequest.versions,
        .produce: ProduceRequest.versions, .fetch: FetchRequest.versions,
        .listOffsets: ListOffsetsRequest.versions, .initProducerID: InitProducerIdRequest.versions,
        .createTopics: CreateTopicsRequest.versions, .findCoordinator: FindCoordinatorRequest.versions,
        .joinGroup: JoinGroupRequest.versions, .syncGroup: SyncGroupRequest.versions,
        .heartbeat: HeartbeatRequest.versions, .leaveGroup: LeaveGroupRequest.versions,
        .offsetFetch: OffsetFetchRequest.versions, .offsetCommit: OffsetCommitRequest.versions,
    ]

    private let state = Mutex(State())
    private let server = Mutex<(any Channel)?>(nil)

    static func start(topics: [String: Int] = ["t": 1]) async throws -> FakeBroker {
        let broker = FakeBroker()
        broker.state.withLock { state in
            state.partitionCounts = topics
            for (index, topic) in topics.keys.sorted().enumerated() {
                state.ids[topic] = UniversalID(high: 77, low: UInt64(index) + 1)
            }
        }
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(FakeConnection(broker))
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        broker.server.withLock { $0 = channel }
        broker.state.withLock { $0.port = channel.localAddress?.port ?? 0 }
        return broker
    }

    var bootstrap: String { "127.0.0.1:\(state.withLock { $0.port })" }

    func stop() async throws {
        let channel = server.withLock { $0 }
        try await channel?.close()
        dropConnections()
    }

    // MARK: What tests tell it

    /// Reactions for the next requests of an API, in order.
    func next(_ key: APIKey, _ reactions: Reaction...) {
        state.withLock { $0.script[key, default: []].append(contentsOf: reactions) }
    }

    /// Reaction to all requests of an API that have no reaction of their own.
    func always(_ key: APIKey, _ reaction: Reaction) { state.withLock { $0.always[key] = reaction } }

    func serve(_ key: APIKey, _ versions: ClosedRange<Int16>?) {
        state.withLock { $0.versions[key] = versions }
    }

    func setTopicIDs(_ hasIDs: Bool) { state.withLock { $0.hasIDs = hasIDs } }

    func setLogStart(_ offset: Int64, of partition: TopicPartition) {
        state.withLock { $0.starts[partition] = offset }
    }

    /// A topic of one partition that begins to exist after it was asked for so many times.
    func addTopic(_ name: String, afterQuestions count: Int) {
        state.withLock { $0.lateTopics[name] = count }
    }

    /// The broker forgets all producers, as after their expiry.
    func forgetProducers() { state.withLock { $0.producers.removeAll() } }

    func append(_ batch: ByteBuffer, to partition: TopicPartition) throws {
        var batch = batch
        let header = try RecordBatchHeader(reading: batch)
        state.withLock { state in
            let base = state.ends[partition] ?? 0
            batch.setInteger(base, at: batch.readerIndex)
            Self.store(batch, header, partition, base, &state)
        }
    }

    func dropConnections() {
        let channels = state.withLock { Array($0.channels.values) }
        for channel in channels { channel.close(promise: nil) }
    }

    // MARK: What tests ask it

    /// All records of a partition as (offset, value).
    func values(of partition: TopicPartition) throws -> [String] {
        try state.withLock { $0.logs[partition] ?? [] }.flatMap { batch in
            var records = try RecordIterator(batch.bytes)
            var values: [String] = []
            while let record = try records.next() {
                values.append(record.value.map { String(buffer: $0) } ?? "")
            }
            return values
        }
    }

    func batches(of partition: TopicPartition) -> [RecordBatchHeader] {
        state.withLock { ($0.logs[partition] ?? []).map(\.header) }
    }

    /// Offsets that the group has committed.
    var committed: [TopicPartition: Int64] { state.withLock { $0.committed } }
    /// Member ids of all joins that were carried out.
    var joinedMembers: [String] { state.withLock { $0.joinedMembers } }

    func count(_ key: APIKey) -> Int { requests.filter { $0 == key }.count }

    var requests: [APIKey] { state.withLock { $0.requests } }
    var acceptedCount: Int { state.withLock { $0.acceptedCount } }

    // MARK: Connections

    fileprivate func opened(_ channel: any Channel) {
        state.withLock {
            $0.channels[ObjectIdentifier(channel)] = channel
            $0.acceptedCount += 1
        }
    }

    fileprivate func closed(_ channel: any Channel) {
        state.withLock { $0.channels[ObjectIdentifier(channel)] = nil }
    }

    fileprivate func reaction(to key: APIKey) -> Reaction {
        state.withLock { state in
            state.requests.append(key)
            if state.script[key]?.isEmpty == false { return state.script[key]!.removeFirst() }
            return state.always[key] ?? .usual
        }
    }

    // MARK: Usual answers

    /// The frame to send, or `nil` if the request wants none; `retry` asks to be called again later.
    fileprivate func answer(
        _ header: RequestHeader, _ reader: inout ProtocolReader, error: ErrorCode = .none, mayWait: Bool
    ) throws -> (frame: ByteBuffer?, wait: Bool) {
        let version = header.apiVersion
        func frame(_ response: some KafkaResponse) throws -> ByteBuffer {
            try response.frame(version: version, correlationID: header.correlationID)
        }
        switch header.apiKey {
        case .apiVersions:
            let versions = state.withLock { $0.versions }
            var response = ApiVersionsResponse()
            response.apiKeys = versions.sorted { $0.key.rawValue < $1.key.rawValue }.map { key, range in
                var entry = ApiVersionsResponse.ApiVersion()
                (entry.apiKey, entry.minVersion, entry.maxVersion) = (
                    key.rawValue, range.lowerBound, range.upperBound
                )
                return entry
            }
            guard versions[.apiVersions]?.contains(version) == true else {
                response.errorCode = 35
                return (try response.frame(version: 0, correlationID: header.correlationID), false)
            }
            return (try frame(response), false)
        case .metadata:
            return (try frame(metadata(try MetadataRequest(reading: &reader, version: version))), false)
        case .initProducerID:
            var response = InitProducerIdResponse()
            response.producerID = state.withLock { state in
                state.nextProducerID += 1
                return state.nextProducerID
            }
            return (try frame(response), false)
        case .produce:
            let request = try ProduceRequest(reading: &reader, version: version)
            let response = try produce(request, version: version, error: error)
            return (request.acks == 0 ? nil : try frame(response), false)
        case .fetch:
            let request = try FetchRequest(reading: &reader, version: version)
            let (response, isEmpty) = fetch(request, version: version, error: error)
            if isEmpty, mayWait { return (nil, true) }
            return (try frame(response), false)
        case .listOffsets:
            return (try frame(listOffsets(try ListOffsetsRequest(reading: &reader, version: version))), false)
        case .findCoordinator:
            return (
                try frame(
                    coordinator(try FindCoordinatorRequest(reading: &reader, version: version), version)),
                false
            )
        case .joinGroup:
            return (try frame(join(try JoinGroupRequest(reading: &reader, version: version), version)), false)
        case .syncGroup:
            let request = try SyncGroupRequest(reading: &reader, version: version)
            var response = SyncGroupResponse()
            response.assignment = request.assignments.first?.assignment ?? ByteBuffer()
            return (try frame(response), false)
        case .heartbeat:
            return (try frame(HeartbeatResponse()), false)
        case .leaveGroup:
            return (try frame(LeaveGroupResponse()), false)
        case .offsetFetch:
            return (
                try frame(offsetFetch(try OffsetFetchRequest(reading: &reader, version: version), version)),
                false
            )
        case .offsetCommit:
            return (
                try frame(offsetCommit(try OffsetCommitRequest(reading: &reader, version: version))), false
            )
        case _:
            return (nil, false)
        }
    }

    private func join(_ request: JoinGroupRequest, _ version: Int16) -> JoinGroupResponse {
        state.withLock { state in
            var response = JoinGroupResponse()
            if request.memberID.isEmpty, version >= 4 {
                response.errorCode = ErrorCode.memberIDRequired.rawValue
                response.memberID = "member-\(state.joinedMembers.count)"
                return response
            }
            state.generation += 1
            let id = request.memberID.isEmpty ? "member-\(state.joinedMembers.count)" : request.memberID
            state.joinedMembers.append(id)
            response.generationID = state.generation
            response.protocolType = "consumer"
            response.protocolName = request.protocols.first?.name
            response.leader = id
            response.memberID = id
            var member = JoinGroupResponse.JoinGroupResponseMember()
            member.memberID = id
            member.metadata = request.protocols.first?.metadata ?? ByteBuffer()
            response.members = [member]
            return response
        }
    }

    private func offsetFetch(_ request: OffsetFetchRequest, _ version: Int16) -> OffsetFetchResponse {
        state.withLock { state in
            var response = OffsetFetchResponse()
            if version >= 8 {
                response.groups = request.groups.map { group in
                    var entry = OffsetFetchResponse.OffsetFetchResponseGroup()
                    entry.groupID = group.groupID
                    entry.topics = (group.topics ?? []).map { topic in
                        var answer = OffsetFetchResponse.OffsetFetchResponseTopics()
                        answer.name = topic.name
                        answer.partitions = topic.partitionIndexes.map { index in
                            var item = OffsetFetchResponse.OffsetFetchResponsePartitions()
                            item.partitionIndex = index
                            item.committedOffset = state.committed[TopicPartition(topic.name, index)] ?? -1
                            return item
                        }
                        return answer
                    }
                    return entry
                }
            } else {
                response.topics = (request.topics ?? []).map { topic in
                    var answer = OffsetFetchResponse.OffsetFetchResponseTopic()
                    answer.name = topic.name
                    answer.partitions = topic.partitionIndexes.map { index in
                        var item = OffsetFetchResponse.OffsetFetchResponsePartition()
                        item.partitionIndex = index
                        item.committedOffset = state.committed[TopicPartition(topic.name, index)] ?? -1
                        return item
                    }
                    return answer
                }
            }
            return response
        }
    }

    private func offsetCommit(_ request: OffsetCommitRequest) -> OffsetCommitResponse {
        state.withLock { state in
            var response = OffsetCommitResponse()
            response.topics = request.topics.map { topic in
                var answer = OffsetCommitResponse.OffsetCommitResponseTopic()
                answer.name = topic.name
                answer.partitions = topic.partitions.map { item in
                    state.committed[TopicPartition(topic.name, item.partitionIndex)] = item.committedOffset
                    var result = OffsetCommitResponse.OffsetCommitResponsePartition()
                    result.partitionIndex = item.partitionIndex
                    return result
                }
                return answer
            }
            return response
        }
    }

    private func coordinator(_ request: FindCoordinatorRequest, _ version: Int16) -> FindCoordinatorResponse {
        var response = FindCoordinatorResponse()
        let port = Int32(state.withLock { $0.port })
        if version >= 4 {
            var entry = FindCoordinatorResponse.Coordinator()
            (entry.key, entry.nodeID, entry.host, entry.port) = (
                request.coordinatorKeys.first ?? "", 1, "127.0.0.1", port
            )
            response.coordinators = [entry]
        } else {
            (response.nodeID, response.host, response.port) = (1, "127.0.0.1", port)
        }
        return response
    }

    private func metadata(_ request: MetadataRequest) -> MetadataResponse {
        state.withLock { state in
            var response = MetadataResponse()
            var broker = MetadataResponse.MetadataResponseBroker()
            (broker.nodeID, broker.host, broker.port) = (1, "127.0.0.1", Int32(state.port))
            response.brokers = [broker]
            response.clusterID = "fake"
            response.controllerID = 1
            for name in request.topics?.compactMap(\.name) ?? [] {
                guard let left = state.lateTopics[name] else { continue }
                state.lateTopics[name] = left > 0 ? left - 1 : nil
                if left == 0 {
                    state.partitionCounts[name] = 1
                    state.ids[name] = UniversalID(high: 78, low: UInt64(state.ids.count) + 1)
                }
            }
            let names = request.topics.map { $0.compactMap(\.name) } ?? state.partitionCounts.keys.sorted()
            response.topics = names.map { name in
                var topic = MetadataResponse.MetadataResponseTopic()
                topic.name = name
                guard let count = state.partitionCounts[name] else {
                    topic.errorCode = 3
                    return topic
                }
                if state.hasIDs, let id = state.ids[name] { topic.topicID = id }
                topic.partitions = (0..<count).map { index in
                    var partition = MetadataResponse.MetadataResponsePartition()
                    partition.partitionIndex = Int32(index)
                    partition.leaderID = 1
                    partition.leaderEpoch = 0
                    partition.replicaNodes = [1]
                    partition.isrNodes = [1]
                    return partition
                }
                return topic
            }
            return response
        }
    }

    private static func store(
        _ batch: ByteBuffer, _ header: RecordBatchHeader, _ partition: TopicPartition, _ base: Int64,
        _ state: inout State
    ) {
        var stored = header
        stored.baseOffset = base
        state.logs[partition, default: []].append(StoredBatch(bytes: batch, header: stored))
        state.ends[partition] = base + Int64(header.lastOffsetDelta) + 1
    }

    private func produce(_ request: ProduceRequest, version: Int16, error: ErrorCode) throws
        -> ProduceResponse
    {
        var response = ProduceResponse()
        for topic in request.topicData {
            let name = version >= 13 ? name(of: topic.topicID) : topic.name
            var answer = ProduceResponse.TopicProduceResponse()
            answer.name = topic.name
            answer.topicID = topic.topicID
            for data in topic.partitionData {
                var result = ProduceResponse.PartitionProduceResponse()
                result.index = data.index
                if error != .none {
                    result.errorCode = error.rawValue
                    result.baseOffset = -1
                } else if let batch = data.records {
                    let header = try RecordBatchValidator.checkHeader(batch, limits: BatchLimits())
                    let (code, offset) = append(batch, header, TopicPartition(name, data.index))
                    result.errorCode = code.rawValue
                    result.baseOffset = offset
                }
                answer.partitionResponses.append(result)
            }
            response.responses.append(answer)
        }
        return response
    }

    private func name(of id: UniversalID) -> String {
        state.withLock { $0.ids.first { $0.value == id }?.key ?? "?" }
    }

    private func append(
        _ batch: ByteBuffer, _ header: RecordBatchHeader, _ partition: TopicPartition
    ) -> (ErrorCode, Int64) {
        state.withLock { state in
            if header.hasProducerID {
                var producer =
                    state.producers[partition]?[header.producerID]
                    ?? ProducerState(epoch: header.producerEpoch, nextSequence: header.baseSequence)
                if state.producers[partition]?[header.producerID] == nil, header.baseSequence != 0 {
                    return (.unknownProducerID, -1)
                }
                if header.producerEpoch < producer.epoch { return (.invalidProducerEpoch, -1) }
                if header.producerEpoch > producer.epoch {
                    guard header.baseSequence == 0 else { return (.outOfOrderSequenceNumber, -1) }
                    producer = ProducerState(epoch: header.producerEpoch, nextSequence: 0)
                }
                if let known = producer.recent.first(where: { $0.sequence == header.baseSequence }) {
                    return (.none, known.offset)
                }
                guard header.baseSequence == producer.nextSequence else {
                    return (.outOfOrderSequenceNumber, -1)
                }
                producer.nextSequence = RecordBatchHeader.sequence(
                    header.baseSequence, plus: header.recordCount)
                producer.recent.append((header.baseSequence, state.ends[partition] ?? 0))
                if producer.recent.count > 5 { producer.recent.removeFirst() }
                state.producers[partition, default: [:]][header.producerID] = producer
            }
            let base = state.ends[partition] ?? 0
            var stored = batch
            stored.setInteger(base, at: stored.readerIndex)
            Self.store(stored, header, partition, base, &state)
            return (.none, base)
        }
    }

    private func fetch(
        _ request: FetchRequest, version: Int16, error: ErrorCode
    ) -> (response: FetchResponse, isEmpty: Bool) {
        var response = FetchResponse()
        var isEmpty = true
        var room = Int(request.maxBytes)
        for topic in request.topics {
            let name = version >= 13 ? name(of: topic.topicID) : topic.topic
            var answer = FetchResponse.FetchableTopicResponse()
            answer.topic = topic.topic
            answer.topicID = topic.topicID
            for wanted in topic.partitions {
                var data = FetchResponse.PartitionData()
                data.partitionIndex = wanted.partition
                let partition = TopicPartition(name, wanted.partition)
                state.withLock { state in
                    let end = state.ends[partition] ?? 0
                    data.highWatermark = end
                    data.lastStableOffset = end
                    data.logStartOffset = state.starts[partition] ?? 0
                    if error != .none {
                        data.errorCode = error.rawValue
                    } else if wanted.fetchOffset > end || wanted.fetchOffset < data.logStartOffset {
                        data.errorCode = ErrorCode.offsetOutOfRange.rawValue
                    } else {
                        var bytes = ByteBuffer()
                        for batch in state.logs[partition] ?? []
                        where batch.header.lastOffset >= wanted.fetchOffset {
                            if bytes.readableBytes > 0,
                                bytes.readableBytes + batch.bytes.readableBytes
                                    > min(room, Int(wanted.partitionMaxBytes))
                            {
                                break
                            }
                            bytes.writeImmutableBuffer(batch.bytes)
                        }
                        room -= bytes.readableBytes
                        data.records = bytes
                        if bytes.readableBytes > 0 { isEmpty = false }
                    }
                }
                if data.errorCode != 0 { isEmpty = false }
                answer.partitions.append(data)
            }
            response.responses.append(answer)
        }
        return (response, isEmpty)
    }

    private func listOffsets(_ request: ListOffsetsRequest) -> ListOffsetsResponse {
        state.withLock { state in
            var response = ListOffsetsResponse()
            response.topics = request.topics.map { topic in
                var answer = ListOffsetsResponse.ListOffsetsTopicResponse()
                answer.name = topic.name
                answer.partitions = topic.partitions.map { wanted in
                    let partition = TopicPartition(topic.name, wanted.partitionIndex)
                    var item = ListOffsetsResponse.ListOffsetsPartitionResponse()
                    item.partitionIndex = wanted.partitionIndex
                    switch wanted.timestamp {
                    case -2: item.offset = state.starts[partition] ?? 0
                    case -1: item.offset = state.ends[partition] ?? 0
                    case let time:
                        let batch = state.logs[partition]?.first { $0.header.maxTimestamp >= time }
                        item.offset = batch?.header.baseOffset ?? -1
                        item.timestamp = batch?.header.maxTimestamp ?? -1
                    }
                    return item
                }
                return answer
            }
            return response
        }
    }
}

/// One connection of the fake broker; requests are answered strictly in order.
private final class FakeConnection: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let broker: FakeBroker
    private var input = ByteBuffer()
    private var isWaiting = false

    init(_ broker: FakeBroker) { self.broker = broker }

    func channelActive(context: ChannelHandlerContext) { broker.opened(context.channel) }
    func channelInactive(context: ChannelHandlerContext) { broker.closed(context.channel) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        input.writeImmutableBuffer(unwrapInboundIn(data))
        work(context)
    }

    private func work(_ context: ChannelHandlerContext) {
        while !isWaiting, let length = input.getInteger(at: input.readerIndex, as: Int32.self),
            input.readableBytes >= Int(length) + 4
        {
            input.moveReaderIndex(forwardBy: 4)
            guard let frame = input.readSlice(length: Int(length)) else { return }
            do {
                try handle(frame, context)
            } catch {
                context.close(promise: nil)
                return
            }
        }
    }

    private func handle(_ frame: ByteBuffer, _ context: ChannelHandlerContext) throws {
        var reader = ProtocolReader(frame)
        let header = try RequestHeader(reading: &reader)
        try react(broker.reaction(to: header.apiKey), header, reader, frame, context)
    }

    private func react(
        _ reaction: FakeBroker.Reaction, _ header: RequestHeader, _ body: ProtocolReader, _ frame: ByteBuffer,
        _ context: ChannelHandlerContext
    ) throws {
        var reader = body
        switch reaction {
        case .usual:
            try answer(frame, context, deadline: .now() + .milliseconds(200))
        case .hold(let condition, let then):
            isWaiting = !condition()
            guard isWaiting else { return try react(then, header, body, frame, context) }
            context.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(2)) {
                do {
                    try self.react(reaction, header, body, frame, context)
                    self.work(context)
                } catch {
                    context.close(promise: nil)
                }
            }
        case .loseAnswer:
            _ = try broker.answer(header, &reader, mayWait: false)
            context.close(promise: nil)
        case .close:
            context.close(promise: nil)
        case .silence:
            isWaiting = true
        case .deafness:
            isWaiting = true
            try context.channel.syncOptions?.setOption(.autoRead, value: false)
        case .bytes(let bytes):
            context.writeAndFlush(wrapOutboundOut(bytes), promise: nil)
        case .answer(let make):
            context.writeAndFlush(wrapOutboundOut(try make(header)), promise: nil)
        case .produceError(let code), .fetchError(let code):
            if let frame = try broker.answer(header, &reader, error: code, mayWait: false).frame {
                context.writeAndFlush(wrapOutboundOut(frame), promise: nil)
            }
        }
    }

    /// Answers, or looks again in a moment while a fetch finds nothing.
    private func answer(_ frame: ByteBuffer, _ context: ChannelHandlerContext, deadline: NIODeadline) throws {
        var reader = ProtocolReader(frame)
        let header = try RequestHeader(reading: &reader)
        let (response, wait) = try broker.answer(header, &reader, mayWait: .now() < deadline)
        if let response {
            isWaiting = false
            context.writeAndFlush(wrapOutboundOut(response), promise: nil)
        } else if wait {
            isWaiting = true
            context.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(2)) {
                do {
                    try self.answer(frame, context, deadline: deadline)
                    self.work(context)
                } catch {
                    context.close(promise: nil)
                }
            }
        }
    }
}

/// Looks again and again, giving way to others in between, until something has come about.
func until(_ condition: @Sendable () async throws -> Bool) async throws {
    let loop = MultiThreadedEventLoopGroup.singleton.next()
    while try await !condition() { try await loop.pause(.milliseconds(2)) }
}
