import Logging
import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// Membership in a group of the consumer protocol (KIP-848): one kind of request, the heartbeat, by which the member
/// joins, learns its partitions, confirms what it has, and leaves. The coordinator shares out the partitions.
/// ``MemberState`` decides what is said; here are the requests and the waiting.
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class ConsumerGroupMembership: GroupMembership, @unchecked Sendable {
    /// Member epochs with a meaning of their own.
    private static let leavingEpoch: Int32 = -1
    private static let leavingForAWhileEpoch: Int32 = -2
    /// First version in which the member makes its own id (KIP-1082) and the broker matches patterns.
    private static let ownIDVersion: Int16 = 1
    /// First Metadata version that is asked by topic id (KIP-516).
    private static let topicIDVersion: Int16 = 12

    private let engine: ClientEngine
    private let buffer: FetchBuffer
    private let configuration: ConsumerConfiguration
    private let group: String
    private var member = MemberState()
    /// Made once per consumer, kept through fences, given by the coordinator only in version 0.
    private var memberID: String
    private let pace: HeartbeatPace
    private var isLearning = false
    private var hasWarned = false

    init(engine: ClientEngine, buffer: FetchBuffer, configuration: ConsumerConfiguration, group: String) {
        self.engine = engine
        self.buffer = buffer
        self.configuration = configuration
        self.group = group
        pace = HeartbeatPace(engine: engine, group: group, interval: configuration.heartbeatInterval)
        var generator = SystemRandomNumberGenerator()
        memberID = UniversalID.random(using: &generator).description
        pace.onBeat = { [weak self] in self?.beat() }
    }

    private var loop: any EventLoop { engine.loop }

    var commitIdentity: ClientEngine.CommitIdentity {
        guard member.isJoined else { return ClientEngine.CommitIdentity() }
        return ClientEngine.CommitIdentity(
            generation: member.epoch, memberID: memberID, groupInstanceID: configuration.groupInstanceID)
    }

    // MARK: Inputs

    func subscribe(_ subscription: GroupSubscription) {
        hasWarned = false
        engine.want(subscription.topics)
        engine.refreshMetadata { _ in }
        run(member.subscribe(subscription))
    }

    func revoked(_ partitions: [TopicPartition]) {
        run(member.revoked(partitions, names: engine.metadata.names))
    }

    func assigned(_ partitions: [TopicPartition]) {
        run(member.assigned(partitions, names: engine.metadata.names))
    }

    func metadataChanged() {
        warnOfMissing()
        run(member.reconcile(names: engine.metadata.names))
    }

    /// Says once of a subscription that topics in it do not exist; the coordinator sees to them when they do.
    private func warnOfMissing() {
        let missing = member.subscription.topics.filter { engine.topicErrors[$0] == .unknownTopicOrPartition }
        guard !missing.isEmpty, !hasWarned else { return }
        hasWarned = true
        engine.logger.warning(
            "subscribed topics do not exist",
            metadata: ["topics": "\(missing.sorted().joined(separator: ","))", "brokers": "\(engine.brokerNames)"])
    }

    func leave(_ completion: @escaping () -> Void) {
        let wasMember = member.isJoined || pace.isBeating
        stop()
        guard wasMember else {
            completion()
            return
        }
        sendLeave(completion)
    }

    /// Forgets the membership without telling anybody.
    private func stop() {
        pace.stop()
        member.leave()
        isLearning = false
    }

    private func run(_ effects: [MemberState.Effect]) {
        for effect in effects {
            switch effect {
            case .revoke(let partitions, let isLost): buffer.request(.revoke(partitions, isLost: isLost))
            case .assign(let partitions):
                engine.logger.info(
                    "partitions assigned",
                    metadata: ["group": "\(group)", "epoch": "\(member.epoch)", "partitions": "\(partitions.count)"])
                buffer.request(.assigned(partitions))
            case .cancelSteps: _ = buffer.cancelSteps()
            case .heartbeatNow: beat()
            case .learnTopics(let ids): learn(ids)
            }
        }
    }

    // MARK: Names

    /// Asks for topics that the coordinator names by id; those matched by a pattern are not known otherwise.
    private func learn(_ ids: [UniversalID]) {
        guard !isLearning, !engine.isClosed else { return }
        isLearning = true
        let era = pace.era
        engine.request(MetadataRequest.self, to: .any) { version in
            var request = MetadataRequest()
            request.allowAutoTopicCreation = false
            guard version >= Self.topicIDVersion else { return request }
            request.topics = ids.map { id in
                var topic = MetadataRequest.MetadataRequestTopic()
                topic.topicID = id
                topic.name = nil
                return topic
            }
            return request
        } completion: { result in
            guard self.pace.era == era else { return }
            if case .success(let answer) = result { self.engine.adopt(answer.response) }
            self.isLearning = false
            let effects = self.member.reconcile(names: self.engine.metadata.names)
            let isMissing = effects.contains { if case .learnTopics = $0 { true } else { false } }
            guard isMissing else { return self.run(effects) }
            // The broker asked has not heard of the topic yet.
            self.isLearning = true
            self.run(effects)
            self.loop.assumeIsolated().scheduleTask(in: TimeAmount(self.engine.retryBackoff.pause(after: 1))) {
                guard self.pace.era == era else { return }
                self.isLearning = false
                self.metadataChanged()
            }
        }
    }

    // MARK: Heartbeats

    private func beat() {
        guard !engine.isClosed, pace.mayBeat() else { return }
        if member.isJoined, NIODeadline.now() - buffer.lastPoll > TimeAmount(configuration.pollIntervalLimit) {
            return leaveSilently()
        }
        guard let heartbeat = member.nextHeartbeat() else { return }
        let (configuration, group, memberID, ids) = (configuration, group, memberID, member.ids)
        pace.send(ConsumerGroupHeartbeatRequest.self) { version in
            var request = ConsumerGroupHeartbeatRequest()
            request.groupID = group
            // In version 0 the coordinator makes the id of a member that joins.
            let isNamed = version >= Self.ownIDVersion || heartbeat.epoch != 0
            request.memberID = isNamed ? memberID : ""
            request.memberEpoch = heartbeat.epoch
            request.instanceID = configuration.groupInstanceID
            if heartbeat.isFull {
                request.rackID = configuration.rackID
                request.rebalanceTimeoutMs = configuration.pollIntervalLimit.wireMilliseconds
                request.serverAssignor = configuration.serverAssignor
            }
            request.subscribedTopicNames = heartbeat.topics
            let clearsNothing = version < Self.ownIDVersion && heartbeat.pattern == ""
            request.subscribedTopicRegex = clearsNothing ? nil : heartbeat.pattern
            request.topicPartitions = heartbeat.owned.map { owned in
                groupedByTopic(owned).compactMap { topic, indexes in
                    guard let id = ids[topic] else { return nil }
                    var entry = ConsumerGroupHeartbeatRequest.TopicPartitions()
                    entry.topicID = id
                    entry.partitions = indexes
                    return entry
                }
            }
            return request
        } completion: { result in
            switch result {
            case .failure(let error): self.missed(error)
            case .success(let answer): self.heard(answer.response, heartbeat)
            }
        }
    }

    /// No answer.
    private func missed(_ error: ClientError) {
        member.unanswered()
        if let code = error.brokerCode, !code.isRetriable { return refused(error) }
        switch error.code {
        case .unsupportedByBroker:
            fail(unsupported(error))
        case .invalidArgument where member.subscription.pattern != nil:
            fail(
                ClientError(
                    .unsupportedByBroker,
                    "the brokers of group '\(group)' do not match topic patterns (ConsumerGroupHeartbeat version 1); "
                        + "subscribe to topics by name", cause: error))
        case _ where error.isRetriable:
            again(error)
        case _:
            fail(error)
        }
    }

    private func refused(_ error: ClientError) {
        if error.brokerCode == .unsupportedVersion { fail(unsupported(error)) } else { fail(error) }
    }

    private func unsupported(_ error: ClientError) -> ClientError {
        ClientError(
            .unsupportedByBroker,
            "group '\(group)': \(error.message). The consumer protocol of groups (KIP-848) needs brokers of Kafka 4.0 or "
                + "Martlet with group.version 1; set groupProtocol to .classic for these", brokerCode: error.brokerCode,
            cause: error.cause)
    }

    private func again(_ error: ClientError) {
        if pace.again(error, isJoined: member.isJoined) { buffer.report(error) }
    }

    private func heard(_ response: ConsumerGroupHeartbeatResponse, _ heartbeat: MemberState.Heartbeat) {
        let code = ErrorCode(rawValue: response.errorCode)
        guard code == .none else {
            member.unanswered()
            return refused(code, response.errorMessage)
        }
        if let id = response.memberID, !id.isEmpty { memberID = id }
        if response.heartbeatIntervalMs > 0 { pace.interval = .milliseconds(Int64(response.heartbeatIntervalMs)) }
        let assignment = response.assignment.map { assignment in
            Dictionary(
                assignment.topicPartitions.map { ($0.topicID, $0.partitions) }, uniquingKeysWith: { $0 + $1 })
        }
        let beatsAgain = pace.answered()
        run(
            member.answered(
                MemberState.Answer(epoch: response.memberEpoch, assignment: assignment), names: engine.metadata.names))
        if beatsAgain, !pace.isBeating { beat() }
    }

    private func refused(_ code: ErrorCode, _ detail: String?) {
        let error = ClientError.broker(code, "membership in group '\(group)'", detail: detail)
        switch code {
        case .fencedMemberEpoch, .unknownMemberID, .groupIDNotFound:
            // A join cannot be fenced; should a broker say so, not in a tight circle.
            guard member.isJoined else { return again(error) }
            engine.logger.notice(
                "member is out of its group and joins again", metadata: ["group": "\(group)", "code": "\(code.name)"])
            run(member.fenced())
        case .notCoordinator, .coordinatorNotAvailable:
            engine.forgetCoordinator(of: group)
            again(error)
        case .unreleasedInstanceID:
            // The one before us crashed and its session is not over, or it lives; that shows with time.
            again(error)
        case .unsupportedVersion:
            fail(unsupported(error))
        case _ where code.isRetriable || code == .topicAuthorizationFailed:
            if code == .topicAuthorizationFailed { buffer.report(error) }
            again(error)
        case _:
            fail(error)
        }
    }

    private func fail(_ error: ClientError) {
        let owned = member.owned.sorted()
        stop()
        _ = buffer.cancelSteps()
        // Without a membership others may have them; reading on would do their work twice.
        if !owned.isEmpty { buffer.request(.revoke(owned, isLost: true)) }
        buffer.report(error)
    }

    // MARK: Leaving

    private func leaveSilently() {
        engine.logger.warning(
            "member leaves its group because nobody polled in time",
            metadata: ["group": "\(group)", "pollIntervalLimit": "\(configuration.pollIntervalLimit)"])
        pace.stop()
        isLearning = false
        run(member.fellSilent())
        sendLeave {}
    }

    private func sendLeave(_ completion: @escaping () -> Void) {
        var request = ConsumerGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = memberID
        request.instanceID = configuration.groupInstanceID
        request.memberEpoch = configuration.groupInstanceID == nil ? Self.leavingEpoch : Self.leavingForAWhileEpoch
        pace.leave(request, completion)
    }
}
