internal import Logging
internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore

/// ShareFetch (key 78, KIP-932): acquires records of the session's partitions for the member, and takes its
/// acknowledgements along. Waits up to `maxWaitMs` for records that it may have.
///
/// Version 2 adds a strict number of records (KIP-1206) and the renewal of locks, with which nothing is fetched
/// (KIP-1222).
package enum ShareFetchHandler {
    /// How records are acquired: whole batches, or never more than asked for.
    private static let strictMode: Int8 = 1

    package static func handle(_ request: ShareFetchRequest, _ context: RequestContext) {
        do throws(ShareRequests.Problem) {
            let key = try ShareRequests.key(group: request.groupID, member: request.memberID, context)
            try check(request)
            run(request, try session(request, key, context), context)
        } catch {
            var response = ShareFetchResponse()
            response.errorCode = error.code.rawValue
            response.errorMessage = error.message
            guard error.code == .shareSessionLimitReached else { return context.respond(response) }
            // Who is told to come again shall not do so at once.
            let refusal = response
            context.loop.eventLoop.assumeIsolated().scheduleTask(in: maxWait(request)) {
                context.respond(refusal)
            }
        }
    }

    private static func maxWait(_ request: ShareFetchRequest) -> TimeAmount {
        .milliseconds(Int64(max(0, request.maxWaitMs)))
    }

    private static func check(_ request: ShareFetchRequest) throws(ShareRequests.Problem) {
        guard request.isRenewAck else { return }
        guard request.maxBytes == 0, request.minBytes == 0, request.maxRecords == 0, request.maxWaitMs == 0
        else {
            throw ShareRequests.Problem(
                .invalidRequest,
                "With IsRenewAck nothing is fetched: MaxBytes, MinBytes, MaxRecords and MaxWaitMs must be 0.")
        }
    }

    // MARK: Session

    private static func session(
        _ request: ShareFetchRequest, _ key: ShareSessionKey, _ context: RequestContext
    ) throws(ShareRequests.Problem) -> ShareSession {
        let session: ShareSession
        if request.shareSessionEpoch == ShareRequests.Epoch.open {
            let acknowledges = request.topics.contains { topic in
                topic.partitions.contains { !$0.acknowledgementBatches.isEmpty }
            }
            guard !acknowledges else {
                throw ShareRequests.Problem(
                    .invalidRequest, "The request that opens a session cannot acknowledge.")
            }
            let limit = context.image.brokerConfiguration.share.maxSessions
            guard let opened = context.services.shareSessions.open(key, limit: limit) else {
                throw ShareRequests.Problem(
                    .shareSessionLimitReached,
                    "This broker has \(limit) share sessions (group.share.max.share.sessions).")
            }
            session = opened
        } else {
            session = try ShareRequests.session(key, epoch: request.shareSessionEpoch, context)
        }
        for topic in request.topics {
            for partition in topic.partitions {
                let name = PartitionKey(
                    topicID: topic.topicID, partition: PartitionIndex(partition.partitionIndex))
                guard session.add(name) else {
                    if request.shareSessionEpoch == ShareRequests.Epoch.open {
                        _ = context.services.shareSessions.close(session)
                    }
                    throw ShareRequests.Problem(
                        .invalidRequest,
                        "A share session has at most \(ShareSession.partitionLimit) partitions.")
                }
            }
        }
        for topic in request.forgottenTopicsData {
            for partition in topic.partitions {
                session.remove(PartitionKey(topicID: topic.topicID, partition: PartitionIndex(partition)))
            }
        }
        context.state.shareSessions[key] = session
        return session
    }

    // MARK: Acknowledge and fetch

    private static func run(_ request: ShareFetchRequest, _ session: ShareSession, _ context: RequestContext)
    {
        let entries = request.topics.flatMap { topic in
            topic.partitions.filter { !$0.acknowledgementBatches.isEmpty }.map { partition in
                ShareRequests.Entry(
                    topicID: topic.topicID, partition: partition.partitionIndex,
                    acknowledgements: partition.acknowledgementBatches.map {
                        ShareAcknowledgement(
                            firstOffset: $0.firstOffset, lastOffset: $0.lastOffset, types: $0.acknowledgeTypes
                        )
                    })
            }
        }
        let acknowledged = ShareRequests.acknowledge(
            entries, session.key, renews: request.isRenewAck, context)
        let isClosing = request.shareSessionEpoch == ShareRequests.Epoch.close
        if isClosing { ShareRequests.close(session, context) }
        guard !isClosing, !request.isRenewAck else {
            return acknowledged.hop(to: context.loop.eventLoop).assumeIsolated().whenSuccess { outcomes in
                respond(request, [], [], outcomes, context)
            }
        }
        let partitions = rotated(session, request.shareSessionEpoch)
        var rejected: [Int: ErrorCode] = [:]
        for (index, key) in partitions.enumerated() {
            rejected[index] = ShareRequests.place(key.topicID, key.partition.rawValue, context)
        }
        let maxBytes = min(Int(request.maxBytes), context.image.brokerConfiguration.fetchMaxBytes)
        let state = context.state
        var running: ShareFetchState?
        let fetch = ShareFetchState(
            loop: context.loop, group: session.key.group, partitions: partitions, rejected: rejected,
            limits: ShareFetchState.Limits(
                member: session.key.member, maxRecords: Int(max(0, request.maxRecords)),
                batchSize: Int(max(1, request.batchSize)), isStrict: request.shareAcquireMode == strictMode,
                minBytes: Int(request.minBytes), maxBytes: max(0, maxBytes), maxWait: maxWait(request))
        ) { fetched in
            if let running { state.shareFetches.removeAll { $0 === running } }
            running = nil
            acknowledged.hop(to: context.loop.eventLoop).assumeIsolated().whenSuccess { outcomes in
                respond(request, partitions, fetched, outcomes, context)
            }
        }
        running = fetch
        state.shareFetches.append(fetch)
        fetch.start()
    }

    /// Each request begins with another partition, so that a busy one cannot starve the others.
    private static func rotated(_ session: ShareSession, _ epoch: Int32) -> [PartitionKey] {
        let keys = Array(session.partitions)
        guard keys.count > 1 else { return keys }
        let start = Int(max(0, epoch)) % keys.count
        return Array(keys[start...] + keys[..<start])
    }

    // MARK: Answer

    private static func respond(
        _ request: ShareFetchRequest, _ partitions: [PartitionKey], _ fetched: [ShareFetchOutcome],
        _ acknowledged: [ShareRequests.Outcome], _ context: RequestContext
    ) {
        var response = ShareFetchResponse()
        response.acquisitionLockTimeoutMs = Int32(
            clamping: context.loop.shareSettings(of: request.groupID ?? "").lockMilliseconds)
        var acknowledgements: [PartitionKey: ShareRequests.Outcome] = [:]
        for outcome in acknowledged {
            acknowledgements[
                PartitionKey(topicID: outcome.topicID, partition: PartitionIndex(outcome.partition))] =
                outcome
        }
        var gathered = RecordsGather()
        func add(_ key: PartitionKey, _ outcome: ShareFetchOutcome, _ acknowledgement: ShareRequests.Outcome?)
        {
            if response.responses.last?.topicID != key.topicID {
                var topic = ShareFetchResponse.ShareFetchableTopicResponse()
                topic.topicID = key.topicID
                response.responses.append(topic)
            }
            var partition = ShareFetchResponse.PartitionData()
            partition.partitionIndex = key.partition.rawValue
            partition.errorCode = outcome.error.rawValue
            partition.errorMessage = outcome.message
            if let acknowledgement {
                partition.acknowledgeErrorCode = acknowledgement.code.rawValue
                partition.acknowledgeErrorMessage = acknowledgement.message
            }
            partition.acquiredRecords = outcome.acquired.map {
                var records = ShareFetchResponse.AcquiredRecords()
                records.firstOffset = $0.firstOffset
                records.lastOffset = $0.lastOffset
                records.deliveryCount = $0.deliveryCount
                return records
            }
            gathered.add(.bytes(outcome.records))
            response.responses[response.responses.count - 1].partitions.append(partition)
        }
        let isFirst = request.shareSessionEpoch == ShareRequests.Epoch.open
        for (key, outcome) in zip(partitions, fetched) {
            let acknowledgement = acknowledgements.removeValue(forKey: key)
            guard isFirst || outcome.error != .none || !outcome.acquired.isEmpty || acknowledgement != nil
            else {
                continue
            }
            add(key, outcome, acknowledgement)
        }
        for outcome in acknowledged {
            let key = PartitionKey(topicID: outcome.topicID, partition: PartitionIndex(outcome.partition))
            if let rest = acknowledgements.removeValue(forKey: key) { add(key, ShareFetchOutcome(), rest) }
        }
        send(response, gathered, context)
    }

    private static func send(
        _ response: ShareFetchResponse, _ gathered: RecordsGather, _ context: RequestContext
    ) {
        do {
            var writer = ProtocolWriter()
            writer.externalRecordByteCounts = gathered.byteCounts
            try ResponseFrame.write(
                response, for: context.header, into: &writer, extraByteCount: gathered.totalByteCount)
            context.respond(with: .parts(try gathered.interleave(with: writer)))
        } catch {
            context.loop.logger.error("share fetch response failed", metadata: ["cause": "\(error)"])
            context.respond(with: .close)
        }
    }
}
