import Logging
import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// Membership in a share group: heartbeats, and the partitions that come with them. ``ShareMember`` decides what is said;
/// here are the requests and the waiting.
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class ShareMembership: @unchecked Sendable {
    private static let leavingEpoch: Int32 = -1
    /// Until the coordinator says how often.
    private static let firstInterval = Duration.seconds(3)

    private let engine: ClientEngine
    private let buffer: ShareBuffer
    private let configuration: ShareConsumerConfiguration
    private let pace: HeartbeatPace
    private var member = ShareMember()
    /// Made once per consumer and kept through fences.
    let memberID: String
    /// The assignment may have changed.
    var onChange: (() -> Void)?
    private var hasWarned = false
    /// Left because nobody polled; the next poll joins again.
    private var isSilent = false

    init(engine: ClientEngine, buffer: ShareBuffer, configuration: ShareConsumerConfiguration) {
        self.engine = engine
        self.buffer = buffer
        self.configuration = configuration
        pace = HeartbeatPace(engine: engine, group: configuration.groupID, interval: Self.firstInterval)
        var generator = SystemRandomNumberGenerator()
        memberID = UniversalID.random(using: &generator).description
        pace.onBeat = { [weak self] in self?.beat() }
    }

    private var group: String { configuration.groupID }

    /// Partitions to fetch now.
    var places: Set<SharePlace> { member.places }

    // MARK: Inputs

    func subscribe(_ topics: Set<String>) {
        hasWarned = false
        isSilent = false
        buffer.begins()
        for topic in member.topics.subtracting(topics) { engine.unwant(topic) }
        engine.want(topics)
        engine.refreshMetadata()
        member.subscribe(topics)
        beat()
    }

    /// There is a poll.
    func polled() {
        guard isSilent else { return }
        isSilent = false
        beat()
    }

    /// Says once of a subscription that topics in it do not exist; the coordinator sees to them when they do.
    func metadataChanged() {
        let missing = member.topics.filter { engine.topicErrors[$0] == .unknownTopicOrPartition }
        guard !missing.isEmpty, !hasWarned else { return }
        hasWarned = true
        engine.logger.warning(
            "subscribed topics do not exist",
            metadata: [
                "topics": "\(missing.sorted().joined(separator: ","))", "brokers": "\(engine.brokerNames)",
            ])
    }

    /// Leaves the group; `completion` comes when the coordinator knows, or after a short wait.
    func leave(_ completion: @escaping () -> Void) {
        let wasMember = member.isJoined || pace.isBeating
        stop()
        if wasMember { pace.leave(lastHeartbeat, completion) } else { completion() }
    }

    /// Forgets the membership without telling anybody.
    func stop() {
        pace.stop()
        for topic in member.topics { engine.unwant(topic) }
        member.leave()
        isSilent = false
    }

    private var lastHeartbeat: ShareGroupHeartbeatRequest {
        var request = ShareGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = memberID
        request.memberEpoch = Self.leavingEpoch
        return request
    }

    // MARK: Heartbeats

    private func beat() {
        guard !engine.isClosed, !isSilent else { return }
        if member.isJoined, NIODeadline.now() - buffer.lastPoll > TimeAmount(configuration.pollIntervalLimit)
        {
            return leaveSilently()
        }
        guard pace.mayBeat(), let heartbeat = member.nextHeartbeat() else { return }
        let (group, memberID, rack) = (group, memberID, configuration.rackID)
        pace.send(ShareGroupHeartbeatRequest.self) { _ in
            var request = ShareGroupHeartbeatRequest()
            request.groupID = group
            request.memberID = memberID
            request.memberEpoch = heartbeat.epoch
            request.subscribedTopicNames = heartbeat.topics
            if heartbeat.isFull { request.rackID = rack }
            return request
        } completion: { result in
            switch result {
            case .failure(let error): self.missed(error)
            case .success(let answer): self.heard(answer.response)
            }
        }
    }

    private func leaveSilently() {
        engine.logger.warning(
            "member leaves its share group because nobody polled in time",
            metadata: ["group": "\(group)", "pollIntervalLimit": "\(configuration.pollIntervalLimit)"])
        pace.stop()
        member.fenced()
        isSilent = true
        onChange?()
        pace.leave(lastHeartbeat) {}
    }

    private func missed(_ error: ClientError) {
        member.unanswered()
        if error.code == .unsupportedByBroker {
            fail(unsupported(error))
        } else if error.isRetriable {
            again(error)
        } else {
            fail(error)
        }
    }

    private func unsupported(_ error: ClientError) -> ClientError {
        ClientError(
            .unsupportedByBroker,
            "share group '\(group)': \(error.message). Share groups (KIP-932) need brokers of Kafka 4.1 or Martlet with "
                + "share.version 1; use a Consumer with others", brokerCode: error.brokerCode,
            cause: error.cause)
    }

    private func again(_ error: ClientError) {
        if pace.again(error, isJoined: member.isJoined) { buffer.report(error) }
    }

    private func fail(_ error: ClientError) {
        stop()
        onChange?()
        buffer.fail(
            ClientError(
                error.code,
                "\(error.message); the consumer is no member of the group any more, call subscribe to join again",
                brokerCode: error.brokerCode, cause: error.cause))
    }

    private func heard(_ response: ShareGroupHeartbeatResponse) {
        let code = ErrorCode(rawValue: response.errorCode)
        guard code == .none else { return refused(code, response.errorMessage) }
        if response.heartbeatIntervalMs > 0 {
            pace.interval = .milliseconds(Int64(response.heartbeatIntervalMs))
        }
        let before = member.places
        let assignment = response.assignment.map { assignment in
            Dictionary(
                assignment.topicPartitions.map { ($0.topicID, $0.partitions) }, uniquingKeysWith: { $0 + $1 })
        }
        member.answered(epoch: response.memberEpoch, assignment: assignment)
        if pace.answered() || member.hasNews { beat() }
        guard member.places != before else { return }
        engine.logger.info(
            "partitions assigned",
            metadata: [
                "group": "\(group)", "epoch": "\(member.epoch)", "partitions": "\(member.places.count)",
            ])
        onChange?()
    }

    private func refused(_ code: ErrorCode, _ detail: String?) {
        member.unanswered()
        let error = ClientError.broker(code, "membership in share group '\(group)'", detail: detail)
        switch code {
        case .fencedMemberEpoch, .unknownMemberID, .groupIDNotFound:
            // A join cannot be fenced; should a broker say so, not in a tight circle.
            guard member.isJoined else { return again(error) }
            engine.logger.notice(
                "member is out of its share group and joins again",
                metadata: ["group": "\(group)", "code": "\(code.name)"])
            member.fenced()
            onChange?()
            beat()
        case .notCoordinator, .coordinatorNotAvailable:
            engine.forgetCoordinator(of: group)
            again(error)
        case .unsupportedVersion:
            fail(unsupported(error))
        case .topicAuthorizationFailed, .groupMaxSizeReached:
            // Somebody else can change that.
            buffer.report(error)
            _ = pace.again(error, isJoined: true)
        case _ where code.isRetriable:
            again(error)
        case _:
            fail(error)
        }
    }
}
