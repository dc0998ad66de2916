internal import MartletController
internal import MartletCoordinators
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// What ShareFetch and ShareAcknowledge have in common: who asks, with which session, and what it acknowledges.
enum ShareRequests {
    static let unsupported =
        "the cluster has no share groups: its feature share.version is 0; raise it to 1 (kafka-features, UpdateFeatures)"

    /// Epochs that are no epochs.
    enum Epoch {
        static let open: Int32 = 0
        static let close: Int32 = -1
    }

    struct Problem: Error {
        var code: ErrorCode
        var message: String

        init(_ code: ErrorCode, _ message: String) {
            self.code = code
            self.message = message
        }
    }

    /// Whose request it is.
    static func key(
        group: String?, member: String?, _ context: RequestContext
    ) throws(Problem) -> ShareSessionKey {
        guard context.loop.servesShareGroups else { throw Problem(.unsupportedVersion, unsupported) }
        guard let group else { throw Problem(.invalidRequest, "The group id is missing.") }
        guard let member, !member.isEmpty, member.utf8.count <= ShareLimits.memberIDBytesLimit else {
            throw Problem(
                .invalidRequest,
                "The member id is missing, or longer than \(ShareLimits.memberIDBytesLimit) bytes.")
        }
        return ShareSessionKey(group: group, member: member)
    }

    /// The open session that the request belongs to.
    static func session(
        _ key: ShareSessionKey, epoch: Int32, _ context: RequestContext
    ) throws(Problem) -> ShareSession {
        guard let session = context.state.shareSessions[key],
            context.services.shareSessions.isCurrent(session)
        else {
            throw Problem(.shareSessionNotFound, "The member has no share session on this connection.")
        }
        guard epoch != Epoch.close else { return session }
        guard epoch == session.expectedEpoch else {
            throw Problem(
                .invalidShareSessionEpoch,
                "The session's epoch is \(session.expectedEpoch), not \(epoch).")
        }
        session.advanceEpoch()
        return session
    }

    static func close(_ session: ShareSession, _ context: RequestContext) {
        session.release(on: context.loop)
        context.state.shareSessions[session.key] = nil
    }

    // MARK: Acknowledgements

    /// Of one partition.
    struct Entry {
        var topicID: UniversalID
        var partition: Int32
        var acknowledgements: [ShareAcknowledgement]
    }

    struct Outcome: Sendable {
        var topicID: UniversalID
        var partition: Int32
        var code: ErrorCode
        var message: String?
    }

    /// Takes acknowledgements to the leaders' share partitions. The future completes on this connection's loop.
    static func acknowledge(
        _ entries: [Entry], _ key: ShareSessionKey, renews: Bool, _ context: RequestContext
    ) -> EventLoopFuture<[Outcome]> {
        let eventLoop = context.loop.eventLoop
        let futures = entries.map { entry -> EventLoopFuture<Outcome> in
            var outcome = Outcome(topicID: entry.topicID, partition: entry.partition, code: .none)
            let kinds = ShareAcknowledgement.problem(
                entry.acknowledgements, allowsRenewal: context.version >= 2)
            let renewal = entry.acknowledgements.contains {
                $0.types.contains(ShareAcknowledgement.Kind.renew.rawValue)
            }
            if let problem = kinds ?? (renewal && !renews ? "Renewal without IsRenewAck." : nil) {
                outcome.code = .invalidRequest
                outcome.message = problem
                return eventLoop.makeSucceededFuture(outcome)
            }
            if let code = place(entry.topicID, entry.partition, context) {
                outcome.code = code
                return eventLoop.makeSucceededFuture(outcome)
            }
            guard !entry.acknowledgements.isEmpty else { return eventLoop.makeSucceededFuture(outcome) }
            let promise = eventLoop.makePromise(of: Outcome.self)
            let partition = PartitionKey(topicID: entry.topicID, partition: PartitionIndex(entry.partition))
            let id = partition.sharePartition(of: key.group)
            let member = key.member
            let acknowledgements = entry.acknowledgements
            let blank = outcome
            let take: @Sendable (BrokerLoop) -> Void = { loop in
                guard let shell = loop.sharePartitions.existing(id) else {
                    var outcome = blank
                    outcome.code = .invalidRecordState
                    outcome.message = "None of the records is acquired."
                    return promise.succeed(outcome)
                }
                shell.acknowledge(member, acknowledgements) { code, message in
                    var outcome = blank
                    outcome.code = code
                    outcome.message = message
                    promise.succeed(outcome)
                }
            }
            // Before the fetch of the same request, which on this loop runs at once: what it acquires is not what the
            // member speaks of.
            let target = context.services.loops.loop(of: partition, near: context.loop)
            if target === context.loop { take(target) } else { target.post(take) }
            return promise.futureResult
        }
        return EventLoopFuture.whenAllSucceed(futures, on: eventLoop)
    }

    /// Why this broker cannot serve the partition, or `nil` if it can.
    static func place(_ topicID: UniversalID, _ partition: Int32, _ context: RequestContext) -> ErrorCode? {
        guard let topic = context.image.topic(id: topicID) else { return .unknownTopicID }
        guard let registration = topic.partition(PartitionIndex(partition)) else {
            return .unknownTopicOrPartition
        }
        return registration.leader == context.services.settings.nodeID ? nil : .notLeaderOrFollower
    }
}
