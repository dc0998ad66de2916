internal import Logging
internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletRecordBatch
internal import MartletTransport
internal import NIOCore
internal import NIOPosix

/// Produce (key 0). Behaviour: acks 0 gets no answer, 1 is answered after the leader's append, -1 once the high
/// watermark has passed the batch. One batch per partition. The batch stays the producer's bytes.
///
/// Versions: 3-12 name topics, 13 uses ids (KIP-516); 8 adds record errors (KIP-467), 10 leader hints (KIP-951).
/// Versions 0-2 are advertised for old librdkafka (KAFKA-18659) and refused.
package enum ProduceHandler {
    /// One partition of the request whose header is good.
    private struct Candidate {
        var index: Int
        var batch: ByteBuffer
        var header: RecordBatchHeader
        var limits: BatchLimits
        var route: ProduceRoute
        var reencode: (codec: CompressionCodec, level: Int32)?
        /// Set where the batch is part of a transaction.
        var transaction: ProduceTransaction?

        /// Whether looking at the records takes long enough to be done elsewhere.
        var needsPool: Bool { (route.walksRecords && header.codec != .none) || reencode != nil }
    }

    private enum Examined {
        case candidate(Candidate)
        case refused(ProduceRefusal)
    }

    /// What a request says beside its partitions.
    private struct Terms {
        var acks: Int16
        /// Set if the request names a transactional id.
        var transaction: ProduceTransaction?
    }

    /// Entry point: reads the request in its usual shape, one partition, without making arrays.
    package static func receive(_ body: inout ProtocolReader, _ context: RequestContext) throws(DecodeError) {
        let known = context.state.lastRoute
        guard
            let request = SinglePartitionProduce(
                reading: body, version: context.version, expecting: known?.topic.name ?? "")
        else {
            let request = try ProduceRequest(reading: &body, version: context.version)
            context.connection.charge(body.decodedByteCount, to: context.ticket)
            handle(request, context)
            return
        }
        let state = ProduceRequestState(single: request, context)
        let examined = examine(
            request.records, topic: request.topic, topicID: request.topicID, partition: request.partition,
            Terms(acks: request.acks), index: 0, context)
        switch examined {
        case .refused(let refusal):
            state.complete(ProduceCompletion(request: state, index: 0, result: .refused(refusal)))
        case .candidate(let candidate):
            if candidate.needsPool {
                validateOnPool([candidate], state, context)
            } else if let item = item(from: candidate, state, context) {
                context.noteHome(candidate.route.target)
                if context.state.produceGate.isEmpty {
                    context.loop.forward(item, for: state, to: candidate.route.target)
                } else {
                    enterGate([item], state, context)
                }
            }
        }
    }

    package static func handle(_ request: ProduceRequest, _ context: RequestContext) {
        let count = request.topicData.reduce(0) { $0 + $1.partitionData.count }
        guard count > 0 else {
            answer(request, [], context)
            return
        }
        let state = ProduceRequestState(request, partitionCount: count, context)
        let transaction = request.transactionalID.map {
            ProduceTransaction(transactionalID: $0, version: context.version)
        }
        let terms = Terms(acks: request.acks, transaction: transaction)
        var candidates: [Candidate] = []
        candidates.reserveCapacity(count)
        var index = 0
        for topic in request.topicData {
            for partition in topic.partitionData {
                let examined = examine(
                    partition.records, topic: topic.name, topicID: topic.topicID, partition: partition.index, terms,
                    index: index, context)
                switch examined {
                case .candidate(let candidate):
                    candidates.append(candidate)
                case .refused(let refusal):
                    state.complete(ProduceCompletion(request: state, index: index, result: .refused(refusal)))
                }
                index += 1
            }
        }
        guard !candidates.isEmpty else { return }
        if candidates.contains(where: \.needsPool) {
            validateOnPool(candidates, state, context)
        } else {
            let items = candidates.compactMap { item(from: $0, state, context) }
            enterGate(items, state, context)
        }
    }

    // MARK: Checks

    /// Everything that can be said without looking at the records.
    private static func examine(
        _ records: ByteBuffer?, topic: String, topicID: UniversalID, partition: Int32, _ terms: Terms, index: Int,
        _ context: RequestContext
    ) -> Examined {
        guard (-1...1).contains(terms.acks) else {
            return .refused(
                ProduceRefusal(error: .invalidRequiredAcks, message: "acks=\(terms.acks); allowed are -1, 0 and 1"))
        }
        let state = context.state
        guard
            let route = context.loop.route(
                topic: topic, topicID: topicID, partition: partition, last: state.lastRoute)
        else { return .refused(absence(topic, topicID, partition, context)) }
        if state.lastRoute !== route { state.lastRoute = route }
        switch route.refusal {
        case nil:
            break
        case .internal:
            return .refused(
                ProduceRefusal(
                    error: .invalidTopicException,
                    message: "\(route.topic.name) is internal; only brokers write to it"))
        case .otherLeader(let id, let epoch):
            return .refused(
                ProduceRefusal(
                    error: .notLeaderOrFollower, message: "another broker leads the partition",
                    leader: id.map { ($0.rawValue, epoch.rawValue) }))
        }
        guard let batch = records, batch.readableBytes > 0 else {
            return .refused(ProduceRefusal(error: .invalidRecord, message: RecordBatchError.empty.description))
        }
        let limits = route.limits(now: context.loop.wallTime)
        do throws(RecordBatchError) {
            let header = try RecordBatchValidator.checkHeader(batch, limits: limits)
            if header.isTransactional, terms.transaction?.transactionalID.isEmpty != false {
                return .refused(
                    ProduceRefusal(
                        error: .transactionalIDAuthorizationFailed,
                        message: "a batch is part of a transaction, but the request names no transactional id"))
            }
            if header.codec == .zstd, context.version < 7 {
                return .refused(
                    ProduceRefusal(
                        error: .unsupportedCompressionType,
                        message: "zstd needs Produce version 7 or later (KIP-110); the client sent \(context.version)"))
            }
            return .candidate(
                Candidate(
                    index: index, batch: batch, header: header, limits: limits, route: route,
                    reencode: route.keepsCodec ? nil : route.topic.configuration.targetCodec(for: header.codec),
                    transaction: header.isTransactional ? terms.transaction : nil))
        } catch {
            return .refused(rejection(error))
        }
    }

    private static func absence(
        _ name: String, _ id: UniversalID, _ partition: Int32, _ context: RequestContext
    ) -> ProduceRefusal {
        let byID = context.version >= 13
        guard let topic = byID ? context.image.topic(id: id) : context.image.topic(named: name) else {
            return ProduceRefusal(
                error: byID ? .unknownTopicID : .unknownTopicOrPartition,
                message: "the topic does not exist; create it first")
        }
        return ProduceRefusal(
            error: .unknownTopicOrPartition,
            message: "topic \(topic.name) has \(topic.partitions.count) partitions, none with index \(partition)")
    }

    private static func rejection(_ error: RecordBatchError) -> ProduceRefusal {
        ProduceRefusal(
            error: error.errorCode, message: error.description,
            recordErrors: error.recordIndexes.map { index in
                guard case .missingKeys = error else { return (index, error.description) }
                return (index, RecordBatchError.missingKeys(recordIndexes: [index]).description)
            })
    }

    // SAFETY: values only; the batch's bytes are owned by this request alone.
    private enum Checked: @unchecked Sendable {
        case good(ProduceItem)
        case bad(RecordBatchError)
    }

    /// Everything that looks at records. Runs on the loop for uncompressed batches, else on the work pool.
    private static func check(_ candidate: Candidate) -> Checked {
        var batch = candidate.batch
        var header = candidate.header
        do throws(RecordBatchError) {
            if candidate.route.walksRecords {
                let facts = try RecordBatchValidator.checkRecords(
                    batch, header: header, limits: candidate.limits, requireKeys: candidate.route.requiresKeys)
                if !candidate.route.stampsAppendTime, facts.maxTimestamp != header.maxTimestamp {
                    RecordBatchPatch.setMaxTimestamp(facts.maxTimestamp, in: &batch)
                    header = try RecordBatchHeader(reading: batch, at: batch.readerIndex)
                }
            }
            if let target = candidate.reencode {
                batch = try RecordBatchRecoder.recode(
                    batch, to: target.codec, level: target.level, limits: candidate.limits)
                header = try RecordBatchHeader(reading: batch, at: batch.readerIndex)
            }
            return .good(
                ProduceItem(
                    index: candidate.index, key: candidate.route.key, batch: batch, header: header,
                    transaction: candidate.transaction))
        } catch {
            return .bad(error)
        }
    }

    private static func item(
        from candidate: Candidate, _ state: ProduceRequestState, _ context: RequestContext
    ) -> ProduceItem? {
        switch check(candidate) {
        case .good(let item):
            return item
        case .bad(let error):
            state.complete(ProduceCompletion(request: state, index: candidate.index, result: .refused(rejection(error))))
            return nil
        }
    }

    private struct CandidateTransfer: @unchecked Sendable {
        // SAFETY: values only; handed over whole to the pool.
        var candidates: [Candidate]
    }

    private static func validateOnPool(
        _ candidates: [Candidate], _ state: ProduceRequestState, _ context: RequestContext
    ) {
        let slot = GateSlot()
        let connectionState = context.state
        let entry = connectionState.produceGate.enter { forward(slot.items, state, context.loop) }
        let handle = NIOLoopBound((entry, slot, connectionState), eventLoop: context.loop.eventLoop)
        let transfer = CandidateTransfer(candidates: candidates)
        let loop = context.loop
        context.services.workPool.submit { _ in
            let checked = transfer.candidates.map { (index: $0.index, outcome: check($0)) }
            loop.post { _ in
                let (entry, slot, connectionState) = handle.value
                for (index, outcome) in checked {
                    switch outcome {
                    case .good(let item):
                        slot.items.append(item)
                    case .bad(let error):
                        state.complete(ProduceCompletion(request: state, index: index, result: .refused(rejection(error))))
                    }
                }
                ProduceGate.run(connectionState.produceGate.ready(entry))
            }
        }
    }

    private final class GateSlot {
        var items: [ProduceItem] = []
    }

    private static func enterGate(_ items: [ProduceItem], _ state: ProduceRequestState, _ context: RequestContext) {
        guard !items.isEmpty else { return }
        let connectionState = context.state
        guard !connectionState.produceGate.isEmpty else {
            forward(items, state, context.loop)
            return
        }
        let entry = connectionState.produceGate.enter { forward(items, state, context.loop) }
        ProduceGate.run(connectionState.produceGate.ready(entry))
    }

    // MARK: Append

    private static func forward(_ items: [ProduceItem], _ state: ProduceRequestState, _ loop: BrokerLoop) {
        let loops = loop.services.loops
        for item in items { loop.forward(item, for: state, to: loops.loop(of: item.key, near: loop)) }
    }

    // MARK: Answer

    /// Answers a request that named one partition.
    static func answer(_ request: SinglePartitionProduce, _ result: ProduceResult, _ context: RequestContext) {
        switch result {
        case .appended(let baseOffset, let logAppendTime, let logStartOffset):
            guard request.acks != 0 else {
                context.respond(with: .nothing)
                return
            }
            context.connection.respond(to: context.ticket) { output in
                request.writeResponse(
                    correlationID: context.header.correlationID, version: context.version, baseOffset: baseOffset,
                    logAppendTimeMs: logAppendTime, logStartOffset: logStartOffset, into: &output)
            }
        case .refused:
            var whole = ProduceRequest()
            var topic = ProduceRequest.TopicProduceData()
            var partition = ProduceRequest.PartitionProduceData()
            partition.index = request.partition
            topic.name = request.topic
            topic.topicID = request.topicID
            topic.partitionData = [partition]
            whole.acks = request.acks
            whole.topicData = [topic]
            answer(whole, [result], context)
        }
    }

    static func answer(_ request: ProduceRequest, _ results: [ProduceResult], _ context: RequestContext) {
        if request.acks == 0 {
            if let failed = results.lazy.compactMap(\.refusal).first {
                // There is no answer to put the error in: Kafka closes the connection so that the client notices.
                context.loop.logger.warning(
                    "produce with acks=0 failed",
                    metadata: [
                        "client": "\(context.header.clientID ?? "")", "code": "\(failed.error.name)",
                        "cause": "\(failed.message ?? "")",
                    ])
                context.respond(with: .close)
            } else {
                context.respond(with: .nothing)
            }
            return
        }
        var response = ProduceResponse()
        response.responses.reserveCapacity(request.topicData.count)
        var index = 0
        var leaders: [Int32] = []
        var firstRefusal: (ProduceRefusal, partition: String)?
        var refusedCount = 0
        for topicData in request.topicData {
            var topic = ProduceResponse.TopicProduceResponse()
            topic.name = topicData.name
            topic.topicID = topicData.topicID
            topic.partitionResponses.reserveCapacity(topicData.partitionData.count)
            for partitionData in topicData.partitionData {
                var partition = ProduceResponse.PartitionProduceResponse()
                partition.index = partitionData.index
                switch results[index] {
                case .appended(let baseOffset, let logAppendTime, let logStartOffset):
                    partition.baseOffset = baseOffset
                    partition.logAppendTimeMs = logAppendTime
                    partition.logStartOffset = logStartOffset
                case .refused(let refusal):
                    fill(&partition, with: refusal)
                    if let leader = refusal.leader, !leaders.contains(leader.id) { leaders.append(leader.id) }
                    if refusal.error.isWorthALine {
                        refusedCount += 1
                        if firstRefusal == nil {
                            let name = context.image.topic(id: topic.topicID)?.name ?? topic.name
                            firstRefusal = (refusal, "\(name)-\(partition.index)")
                        }
                    }
                }
                index += 1
                topic.partitionResponses.append(partition)
            }
            response.responses.append(topic)
        }
        if let (refusal, partition) = firstRefusal {
            var about = [("api", "\(context.header.apiKey)"), ("partition", partition)]
            if refusedCount > 1 { about.append(("more partitions", "\(refusedCount - 1)")) }
            context.loop.logRefusal(refusal.error, refusal.message, client: context.header.clientID, about: about)
        }
        for leader in leaders {
            guard let address = context.address(of: BrokerID(leader)) else { continue }
            var endpoint = ProduceResponse.NodeEndpoint()
            endpoint.nodeID = leader
            endpoint.host = address.host
            endpoint.port = Int32(address.port)
            response.nodeEndpoints.append(endpoint)
        }
        context.respond(response)
    }

    private static func fill(_ partition: inout ProduceResponse.PartitionProduceResponse, with refusal: ProduceRefusal) {
        partition.errorCode = refusal.error.rawValue
        partition.errorMessage = refusal.message
        partition.baseOffset = -1
        partition.recordErrors = refusal.recordErrors.map {
            var error = ProduceResponse.BatchIndexAndErrorMessage()
            error.batchIndex = $0.index
            error.batchIndexErrorMessage = $0.message
            return error
        }
        if let leader = refusal.leader {
            partition.currentLeader.leaderID = leader.id
            partition.currentLeader.leaderEpoch = leader.epoch
        }
    }
}

extension Int64 {
    /// Sum clamped to the range of the type.
    func addingSaturating(_ other: Int64) -> Int64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? (other < 0 ? .min : .max) : sum
    }

    /// Difference clamped to the range of the type.
    func subtractingSaturating(_ other: Int64) -> Int64 {
        let (difference, overflow) = subtractingReportingOverflow(other)
        return overflow ? (other < 0 ? .max : .min) : difference
    }
}
