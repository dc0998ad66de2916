internal import Logging
internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletReplication
internal import MartletStorage
internal import MartletTransport
internal import NIOCore

/// Fetch (key 1). Behaviour: whole batches below the high watermark, for replicas everything that is written; the
/// batch that holds the fetch offset is returned whole; the first partition with records may exceed the limits by one
/// batch (KIP-74); waits up to `maxWaitMs` for `minBytes`. Records go from the page cache to the socket without being
/// decoded.
///
/// Versions: 4-12 name topics, 13 and later use ids; 7 adds sessions (KIP-227), 9 the leader epoch check
/// (KIP-320), 11 reading from followers (KIP-392), 12 diverging epochs (KIP-595), 15 the follower's broker epoch
/// (KIP-903), 16 leader endpoints (KIP-951).
package enum FetchHandler {
    package static func handle(_ request: FetchRequest, _ context: RequestContext) {
        if QuorumHandlers.isMetadataFetch(request) { return QuorumHandlers.fetch(request, context) }
        switch openSession(request, context) {
        case .failure(let code):
            var response = FetchResponse()
            response.errorCode = code.rawValue
            context.respond(response)
        case .success(let session):
            run(request, session: session, context)
        }
    }

    // MARK: Session

    private struct SessionError: Error {
        let code: ErrorCode
    }

    private enum SessionOutcome {
        case success(OpenSession?)
        case failure(ErrorCode)
    }

    private struct OpenSession {
        let session: FetchSession
        /// The first answer of a session holds every partition, later ones only news.
        let isIncremental: Bool
    }

    private static func openSession(_ request: FetchRequest, _ context: RequestContext) -> SessionOutcome {
        guard context.version >= 7 else { return .success(nil) }
        let state = context.state
        switch request.sessionEpoch {
        case -1:
            if state.fetchSession?.id == request.sessionID { state.fetchSession = nil }
            return .success(nil)
        case 0:
            let count = request.topics.reduce(0) { $0 + $1.partitions.count }
            guard count > 0, count <= sessionLimit(request, context), context.image.brokerConfiguration.fetchSessionSlots > 0
            else {
                state.fetchSession = nil
                return .success(nil)
            }
            let session = FetchSession(id: Int32.random(in: 1...Int32.max))
            session.update(with: request)
            state.fetchSession = session
            return .success(OpenSession(session: session, isIncremental: false))
        case _:
            guard let session = state.fetchSession, session.id == request.sessionID else {
                return .failure(.fetchSessionIDNotFound)
            }
            guard session.expectedEpoch == request.sessionEpoch else { return .failure(.invalidFetchSessionEpoch) }
            session.advanceEpoch()
            session.update(with: request)
            guard session.partitionCount <= sessionLimit(request, context) else {
                state.fetchSession = nil
                return .failure(.fetchSessionIDNotFound)
            }
            return .success(OpenSession(session: session, isIncremental: true))
        }
    }

    /// A follower may have every partition there is in one session.
    private static func sessionLimit(_ request: FetchRequest, _ context: RequestContext) -> Int {
        follower(request) == nil
            ? FetchSession.partitionLimit : max(FetchSession.partitionLimit, context.image.partitionCount)
    }

    private static func follower(_ request: FetchRequest) -> (id: BrokerID, epoch: BrokerEpoch?)? {
        // Version 15 replaces the one field by the other; the one that is not in the request is -1.
        let id = max(request.replicaState.replicaID, request.replicaID)
        guard id >= 0 else { return nil }
        let epoch = request.replicaState.replicaEpoch
        return (BrokerID(id), epoch >= 0 ? BrokerEpoch(epoch) : nil)
    }

    // MARK: Read

    private static func run(_ request: FetchRequest, session: OpenSession?, _ context: RequestContext) {
        var names: [FetchSession.Name] = []
        var items: [FetchItem] = []
        let follower = follower(request)
        let rack = request.rackID.isEmpty ? nil : request.rackID
        func add(_ name: FetchSession.Name, _ entry: FetchSession.Entry) {
            names.append(name)
            var item = item(name, entry, context)
            if let follower {
                item.replica = replicaItem(follower.id, follower.epoch, entry, inSession: session != nil)
            } else {
                item.readsCommitted = request.isolationLevel == 1
                item.mayReadFollower = context.version >= 11
                item.rack = rack
                if item.rejection == .none, !item.mayReadFollower { item.rejection = leadership(item.key, context) }
            }
            items.append(item)
        }
        if let session {
            for (name, entry) in session.session.entries { add(name, entry) }
        } else {
            for topic in request.topics {
                for partition in topic.partitions {
                    add(
                        FetchSession.Name(
                            topicID: topic.topicID, topic: topic.topic, partition: partition.partition),
                        FetchSession.Entry(partition))
                }
            }
        }
        let maxBytes = min(Int(request.maxBytes), context.image.brokerConfiguration.fetchMaxBytes)
        let state = context.state
        var running: FetchRequestState?
        let fetch = FetchRequestState(
            loop: context.loop, items: items, minBytes: Int(request.minBytes), maxBytes: max(0, maxBytes),
            maxWait: .milliseconds(Int64(max(0, request.maxWaitMs)))
        ) { results in
            if let running { state.fetches.removeAll { $0 === running } }
            running = nil
            respond(request, names: names, results: results, session: session, context)
        }
        running = fetch
        state.fetches.append(fetch)
        fetch.start()
    }

    private static func item(
        _ name: FetchSession.Name, _ entry: FetchSession.Entry, _ context: RequestContext
    ) -> FetchItem {
        let byID = context.version >= 13
        let topic = byID ? context.image.topic(id: name.topicID) : context.image.topic(named: name.topic)
        let index = PartitionIndex(name.partition)
        var item = FetchItem(
            topicID: topic?.id ?? name.topicID, topicName: topic?.name ?? name.topic,
            key: PartitionKey(topicID: topic?.id ?? .zero, partition: index), fetchOffset: entry.fetchOffset,
            partitionMaxBytes: Int(max(0, entry.partitionMaxBytes)), currentLeaderEpoch: entry.currentLeaderEpoch,
            lastFetchedEpoch: entry.lastFetchedEpoch)
        if let topic {
            if let registration = topic.partition(index) {
                if !registration.replicas.contains(context.services.settings.nodeID) {
                    item.rejection = .notLeaderOrFollower
                }
            } else {
                item.rejection = .unknownTopicOrPartition
            }
        } else {
            item.rejection = byID ? .unknownTopicID : .unknownTopicOrPartition
        }
        return item
    }

    private static func leadership(_ key: PartitionKey, _ context: RequestContext) -> ErrorCode {
        let registration = context.image.topic(id: key.topicID)?.partition(key.partition)
        return registration?.leader == context.services.settings.nodeID ? .none : .notLeaderOrFollower
    }

    private static func replicaItem(
        _ id: BrokerID, _ epoch: BrokerEpoch?, _ entry: FetchSession.Entry, inSession: Bool
    ) -> ReplicaItem {
        let fetch = FollowerFetch(
            replica: id, brokerEpoch: epoch, leaderEpoch: LeaderEpoch(entry.currentLeaderEpoch),
            offset: Offset(entry.fetchOffset),
            lastFetchedEpoch: entry.lastFetchedEpoch >= 0 ? LeaderEpoch(entry.lastFetchedEpoch) : nil,
            logStartOffset: entry.logStartOffset >= 0 ? Offset(entry.logStartOffset) : nil)
        var knownMark = inSession ? entry.sentHighWatermark : nil
        if entry.knownHighWatermark != .max { knownMark = entry.knownHighWatermark }
        return ReplicaItem(fetch: fetch, knownMark: knownMark.map { Offset($0) })
    }

    // MARK: Answer

    private static func respond(
        _ request: FetchRequest, names: [FetchSession.Name], results: [FetchResult], session: OpenSession?,
        _ context: RequestContext
    ) {
        var response = FetchResponse()
        response.sessionID = session?.session.id ?? 0
        var gathered = RecordsGather()
        var leaders: [Int32] = []
        for (name, result) in zip(names, results) {
            if let session {
                let isNews = session.session.takeNews(name, result)
                if session.isIncremental, !isNews { continue }
            }
            if response.responses.last?.topic != name.topic || response.responses.last?.topicID != name.topicID {
                var topic = FetchResponse.FetchableTopicResponse()
                topic.topic = name.topic
                topic.topicID = name.topicID
                response.responses.append(topic)
            }
            var partition = FetchResponse.PartitionData()
            partition.partitionIndex = name.partition
            partition.errorCode = result.error.rawValue
            partition.highWatermark = result.highWatermark
            partition.lastStableOffset = result.lastStableOffset
            partition.logStartOffset = result.logStartOffset
            partition.abortedTransactions = result.abortedTransactions?.map {
                var aborted = FetchResponse.AbortedTransaction()
                aborted.producerID = $0.producerID
                aborted.firstOffset = $0.firstOffset.rawValue
                return aborted
            }
            if let diverging = result.divergingEpoch {
                partition.divergingEpoch.epoch = diverging.epoch
                partition.divergingEpoch.endOffset = diverging.endOffset
            }
            if let preferred = result.preferredReplica { partition.preferredReadReplica = preferred }
            if context.version >= 16, let leader = result.leader ?? otherLeader(name, result, context) {
                partition.currentLeader.leaderID = leader.id
                partition.currentLeader.leaderEpoch = leader.epoch
                if !leaders.contains(leader.id) { leaders.append(leader.id) }
            }
            gathered.add(result.records)
            response.responses[response.responses.count - 1].partitions.append(partition)
        }
        for leader in leaders {
            guard let address = context.address(of: BrokerID(leader)) else { continue }
            var endpoint = FetchResponse.NodeEndpoint()
            endpoint.nodeID = leader
            endpoint.host = address.host
            endpoint.port = Int32(address.port)
            response.nodeEndpoints.append(endpoint)
        }
        send(response, gathered, context)
    }

    /// Who leads a partition that is not asked for here (KIP-951).
    private static func otherLeader(
        _ name: FetchSession.Name, _ result: FetchResult, _ context: RequestContext
    ) -> (id: Int32, epoch: Int32)? {
        guard result.error == .notLeaderOrFollower || result.error == .fencedLeaderEpoch,
            let registration = context.image.topic(id: name.topicID)?.partition(PartitionIndex(name.partition)),
            let leader = registration.leader, leader != context.services.settings.nodeID
        else { return nil }
        return (leader.rawValue, registration.leaderEpoch.rawValue)
    }

    /// Encodes the answer with the records left out, and sends header pieces and records in turn: small
    /// records are copied in between, large ones go out from the file.
    private static func send(_ response: FetchResponse, _ gathered: RecordsGather, _ context: RequestContext) {
        do {
            var writer = ProtocolWriter()
            writer.externalRecordByteCounts = gathered.byteCounts
            try ResponseFrame.write(
                response, for: context.header, into: &writer, extraByteCount: gathered.totalByteCount)
            context.respond(with: .parts(try gathered.interleave(with: writer)))
        } catch {
            context.loop.logger.error("fetch response failed", metadata: ["cause": "\(error)"])
            context.respond(with: .close)
        }
    }
}

/// The records of a response in order, and their places in the encoded bytes.
struct RecordsGather {
    private var records: [FetchedRecords] = []
    private(set) var totalByteCount = 0

    /// Up to this size records are copied between the header pieces: one write instead of three.
    private static let copyByteLimit = 16 * 1024

    var byteCounts: [Int] { records.map(\.byteCount) }

    mutating func add(_ fetched: FetchedRecords) {
        records.append(fetched)
        totalByteCount += fetched.byteCount
    }

    /// The writer's buffer cut at the places of the records, with the records in between.
    func interleave(with writer: ProtocolWriter) throws -> [ServerResponsePart] {
        let encoded = writer.buffer
        var parts: [ServerResponsePart] = []
        var pending = ByteBuffer()
        var position = encoded.readerIndex
        for (fetched, place) in zip(records, writer.externalRecordPositions) {
            guard fetched.byteCount > 0 else { continue }
            if let piece = encoded.getSlice(at: position, length: place - position) {
                pending.writeImmutableBuffer(piece)
            }
            position = place
            switch fetched {
            case .none:
                continue
            case .bytes(let buffer) where buffer.readableBytes <= Self.copyByteLimit:
                pending.writeImmutableBuffer(buffer)
            case .bytes(let buffer):
                parts.append(.bytes(pending))
                pending = ByteBuffer()
                parts.append(.bytes(buffer))
            case .region(let region):
                parts.append(.bytes(pending))
                pending = ByteBuffer()
                parts.append(
                    .file(try region.duplicatedHandle(), offset: Int64(region.position), byteCount: region.byteCount))
            }
        }
        if let rest = encoded.getSlice(at: position, length: encoded.writerIndex - position) {
            pending.writeImmutableBuffer(rest)
        }
        parts.append(.bytes(pending))
        return parts
    }
}
