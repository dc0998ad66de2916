internal import Logging
internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import MartletTransport
internal import NIOCore

/// Fetch (key 1). Behaviour: whole batches below the high watermark; the batch that holds the fetch offset is
/// returned whole; the first partition with records may exceed the limits by one batch (KIP-74); waits up to
/// `maxWaitMs` for `minBytes`. Records go from the page cache to the socket without being decoded.
///
/// Versions: 4-12 name topics, 13 and later use ids; 7 adds sessions (KIP-227), 9 the leader epoch check
/// (KIP-320), 12 diverging epochs (KIP-595), 16 leader endpoints (KIP-951).
package enum FetchHandler {
    package static func handle(_ request: FetchRequest, _ context: RequestContext) {
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
            guard count > 0, count <= FetchSession.partitionLimit, context.image.brokerConfiguration.fetchSessionSlots > 0
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
            guard session.partitionCount <= FetchSession.partitionLimit else {
                state.fetchSession = nil
                return .failure(.fetchSessionIDNotFound)
            }
            return .success(OpenSession(session: session, isIncremental: true))
        }
    }

    // MARK: Read

    private static func run(_ request: FetchRequest, session: OpenSession?, _ context: RequestContext) {
        var names: [FetchSession.Name] = []
        var items: [FetchItem] = []
        func add(_ name: FetchSession.Name, _ entry: FetchSession.Entry) {
            names.append(name)
            var item = item(name, entry, context)
            item.readsCommitted = request.isolationLevel == 1
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
                if registration.leader != context.services.settings.nodeID { item.rejection = .notLeaderOrFollower }
            } else {
                item.rejection = .unknownTopicOrPartition
            }
        } else {
            item.rejection = byID ? .unknownTopicID : .unknownTopicOrPartition
        }
        return item
    }

    // MARK: Answer

    private static func respond(
        _ request: FetchRequest, names: [FetchSession.Name], results: [FetchResult], session: OpenSession?,
        _ context: RequestContext
    ) {
        var response = FetchResponse()
        response.sessionID = session?.session.id ?? 0
        var gathered = RecordsGather()
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
            gathered.add(result.records)
            response.responses[response.responses.count - 1].partitions.append(partition)
        }
        send(response, gathered, context)
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
