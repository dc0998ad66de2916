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
    /// One partition of the request before it is known to be good.
    private struct Candidate {
        var index: Int
        var key: PartitionKey
        var batch: ByteBuffer
        var header: RecordBatchHeader
        var limits: BatchLimits
        var requiresKeys: Bool
        var walksRecords: Bool
        var appendTime: Bool
        var reencode: (codec: CompressionCodec, level: Int32)?
        var transaction: ProduceTransaction?
    }

    package static func handle(_ request: ProduceRequest, _ context: RequestContext) {
        let count = request.topicData.reduce(0) { $0 + $1.partitionData.count }
        let acks = request.acks
        let state = ProduceRequestState(
            loop: context.loop, acks: acks,
            deadline: .now() + .milliseconds(Int64(max(0, request.timeoutMs))), partitionCount: count
        ) { results in answer(request, results, context) }
        guard count > 0 else {
            answer(request, [], context)
            return
        }
        let transaction = request.transactionalID.map {
            ProduceTransaction(transactionalID: $0, version: context.version)
        }
        var candidates: [Candidate] = []
        candidates.reserveCapacity(count)
        var index = 0
        for topicData in request.topicData {
            let topic =
                context.version >= 13
                ? context.image.topic(id: topicData.topicID) : context.image.topic(named: topicData.name)
            for partitionData in topicData.partitionData {
                let partitionIndex = PartitionIndex(partitionData.index)
                if let result = examine(
                    partitionData.records, topic: topic, partition: partitionIndex, request: request,
                    index: index, transaction, context, into: &candidates)
                {
                    state.complete(ProduceCompletion(request: state, index: index, result: result))
                }
                index += 1
            }
        }
        guard !candidates.isEmpty else { return }
        let needsPool = candidates.contains { ($0.walksRecords && $0.header.codec != .none) || $0.reencode != nil }
        if needsPool {
            validateOnPool(candidates, state, context)
        } else {
            let items = candidates.compactMap { item(from: $0, state, context) }
            enterGate(items, state, context)
        }
    }

    // MARK: Checks

    /// Returns a result if the partition is answered already, else appends a candidate.
    private static func examine(
        _ records: ByteBuffer?, topic: TopicImage?, partition: PartitionIndex, request: ProduceRequest,
        index: Int, _ transaction: ProduceTransaction?, _ context: RequestContext, into candidates: inout [Candidate]
    ) -> ProduceResult? {
        guard (-1...1).contains(request.acks) else {
            return ProduceResult(error: .invalidRequiredAcks, message: "acks=\(request.acks); allowed are -1, 0 and 1")
        }
        guard let topic, let registration = topic.partition(partition) else {
            return ProduceResult(
                error: context.version >= 13 && topic == nil ? .unknownTopicID : .unknownTopicOrPartition,
                message: topic.map { "topic \($0.name) has \($0.partitions.count) partitions, none with index \(partition)" }
                    ?? "the topic does not exist; create it first")
        }
        if topic.isInternal {
            return ProduceResult(
                error: .invalidTopicException, message: "\(topic.name) is internal; only brokers write to it")
        }
        guard registration.leader == context.services.settings.nodeID else {
            var result = ProduceResult(error: .notLeaderOrFollower, message: "another broker leads the partition")
            result.leader = registration.leader.map { ($0.rawValue, registration.leaderEpoch.rawValue) }
            return result
        }
        guard let batch = records, batch.readableBytes > 0 else {
            return ProduceResult(error: .invalidRecord, message: RecordBatchError.empty.description)
        }
        let configuration = topic.configuration
        let now = WallClock.now().rawValue
        let appendTime = configuration.timestampSource == .logAppendTime
        let limits = BatchLimits(
            maxBatchBytes: configuration.maxMessageBytes,
            earliestTimestamp: appendTime ? .min : now.subtractingSaturating(configuration.timestampBeforeMaxMilliseconds),
            latestTimestamp: appendTime ? .max : now.addingSaturating(configuration.timestampAfterMaxMilliseconds))
        do throws(RecordBatchError) {
            let header = try RecordBatchValidator.checkHeader(batch, limits: limits)
            if header.isTransactional, request.transactionalID?.isEmpty != false {
                return ProduceResult(
                    error: .transactionalIDAuthorizationFailed,
                    message: "a batch is part of a transaction, but the request names no transactional id")
            }
            if header.codec == .zstd, context.version < 7 {
                return ProduceResult(
                    error: .unsupportedCompressionType,
                    message: "zstd needs Produce version 7 or later (KIP-110); the client sent \(context.version)")
            }
            candidates.append(
                Candidate(
                    index: index, key: PartitionKey(topicID: topic.id, partition: partition), batch: batch,
                    header: header, limits: limits, requiresKeys: configuration.cleanupPolicy.contains(.compact),
                    walksRecords: configuration.validation == .records
                        || configuration.cleanupPolicy.contains(.compact),
                    appendTime: appendTime, reencode: configuration.targetCodec(for: header.codec),
                    transaction: header.isTransactional ? transaction : nil))
            return nil
        } catch {
            return rejection(error)
        }
    }

    private static func rejection(_ error: RecordBatchError) -> ProduceResult {
        var result = ProduceResult(error: error.errorCode, message: error.description)
        if let index = error.recordIndex {
            result.recordErrors = [(index, error.description)]
        }
        return result
    }

    private enum Checked: @unchecked Sendable {
        // SAFETY: values only; the batch's bytes are owned by this request alone.
        case good(ProduceItem)
        case bad(RecordBatchError)
    }

    /// Everything that looks at records. Runs on the loop for uncompressed batches, else on the work pool.
    private static func check(_ candidate: Candidate) -> Checked {
        var batch = candidate.batch
        var header = candidate.header
        do throws(RecordBatchError) {
            if candidate.walksRecords {
                let facts = try RecordBatchValidator.checkRecords(
                    batch, header: header, limits: candidate.limits, requireKeys: candidate.requiresKeys)
                if !candidate.appendTime, facts.maxTimestamp != header.maxTimestamp {
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
                    index: candidate.index, key: candidate.key, batch: batch, header: header,
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
            state.complete(ProduceCompletion(request: state, index: candidate.index, result: rejection(error)))
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
                        state.complete(ProduceCompletion(request: state, index: index, result: rejection(error)))
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
        if items.count == 1 || loops.count == 1 {
            for item in items { loop.forward([item], for: state, to: loops.loop(of: item.key)) }
            return
        }
        var byLoop: [[ProduceItem]] = Array(repeating: [], count: loops.count)
        for item in items { byLoop[loops.index(of: item.key)].append(item) }
        for (index, items) in byLoop.enumerated() where !items.isEmpty {
            loop.forward(items, for: state, to: loops.all[index])
        }
    }

    // MARK: Answer

    private static func answer(_ request: ProduceRequest, _ results: [ProduceResult], _ context: RequestContext) {
        if request.acks == 0 {
            if let failed = results.first(where: { $0.error != .none }) {
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
        for topicData in request.topicData {
            var topic = ProduceResponse.TopicProduceResponse()
            topic.name = topicData.name
            topic.topicID = topicData.topicID
            topic.partitionResponses.reserveCapacity(topicData.partitionData.count)
            for partitionData in topicData.partitionData {
                let result = results[index]
                index += 1
                var partition = ProduceResponse.PartitionProduceResponse()
                partition.index = partitionData.index
                partition.errorCode = result.error.rawValue
                partition.errorMessage = result.message
                partition.baseOffset = result.baseOffset
                partition.logAppendTimeMs = result.logAppendTime
                partition.logStartOffset = result.logStartOffset
                partition.recordErrors = result.recordErrors.map {
                    var error = ProduceResponse.BatchIndexAndErrorMessage()
                    error.batchIndex = $0.index
                    error.batchIndexErrorMessage = $0.message
                    return error
                }
                if let leader = result.leader {
                    partition.currentLeader.leaderID = leader.id
                    partition.currentLeader.leaderEpoch = leader.epoch
                    if !leaders.contains(leader.id) { leaders.append(leader.id) }
                }
                topic.partitionResponses.append(partition)
            }
            response.responses.append(topic)
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
