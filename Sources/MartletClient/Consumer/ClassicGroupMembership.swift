import Logging
import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// Membership of a consumer in its group (classic protocol): find the coordinator, join, share out, sync,
/// heartbeat, rebalance, leave.
///
/// ```
/// idle ──subscribe──▶ joining ──▶ syncing ──▶ stable ──rebalance──▶ revoking ──polled──▶ joining
///                        ▲            │          │                     ▲
///                        └──stale─────┘          └──expelled, silent───┘
/// ```
/// User code has its say in `revoking` and after `stable` is reached, within the polling task: the membership
/// only asks for a ``RebalanceStep`` and goes on when that is done. With the cooperative strategy there is no
/// `revoking` before a join: what must be given up is known after the sync, and a second join follows (KIP-429).
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class ClassicGroupMembership: GroupMembership, @unchecked Sendable {
    private enum State {
        /// Not a member and not about to be.
        case idle
        /// The polling task has been asked to give up partitions; a join follows.
        case revoking
        /// Looking for the coordinator, joining, or pausing before the next attempt.
        case joining
        case syncing
        case stable
    }

    /// Time beyond the rebalance timeout before the answer to a join is given up.
    private static let joinGrace = Duration.seconds(10)
    /// Pause between questions for topics that do not exist.
    private static let missingTopicInterval = Duration.seconds(3)
    /// Longest wait for the coordinator's answer when leaving; it will find out by itself otherwise.
    private static let leaveLimit = Duration.seconds(5)

    private let engine: ClientEngine
    private let buffer: FetchBuffer
    private let configuration: ConsumerConfiguration
    private let group: String
    private var state = State.idle
    private var topics: Set<String> = []
    private var memberID = ""
    private var generation: Int32 = -1
    private var owned: Set<TopicPartition> = []
    /// What the join under way said is owned. The group's leader gave none of it to others.
    private var claimed: Set<TopicPartition> = []
    /// A second join follows once the polling task has given up what this round took away.
    private var rejoinsAfterRevocation = false
    /// The topics have changed since the join under way was sent.
    private var subscriptionChanged = false
    /// When joining began to fail without a break; the polling task is told after `operationTimeout`.
    private var failingSince: NIODeadline?
    private var missingTopicTimer: Scheduled<Void>?
    /// Partition counts that the present assignment is based on.
    private var knownCounts: [String: Int] = [:]
    private var heartbeatTimer: Scheduled<Void>?
    private var isHeartbeating = false
    private var failureCount = 0
    /// Makes answers to requests of a former membership void.
    private var era = 0

    init(engine: ClientEngine, buffer: FetchBuffer, configuration: ConsumerConfiguration, group: String) {
        self.engine = engine
        self.buffer = buffer
        self.configuration = configuration
        self.group = group
    }

    private var loop: any EventLoop { engine.loop }
    private var isCooperative: Bool { configuration.assignmentStrategies.contains(.cooperativeSticky) }

    /// Under which membership offsets are committed.
    var commitIdentity: ClientEngine.CommitIdentity {
        ClientEngine.CommitIdentity(
            generation: generation, memberID: memberID, groupInstanceID: configuration.groupInstanceID)
    }

    // MARK: Inputs

    /// Joins, or changes the subscription of a member.
    func subscribe(_ subscription: GroupSubscription) {
        let topics = subscription.topics
        self.topics = topics
        engine.want(topics)
        switch state {
        case .idle:
            state = .joining
            let era = era
            // With the metadata first, the partition counts of the first assignment are the true ones, and their
            // arrival later is no reason for another rebalance.
            engine.refreshMetadata { _ in
                if self.era == era, case .joining = self.state { self.join() }
            }
        case .stable:
            engine.refreshMetadata { _ in }
            beginRebalance()
        case .revoking, .joining, .syncing:
            subscriptionChanged = true
            engine.refreshMetadata { _ in }
        }
    }

    /// The polling task has given up these partitions.
    func revoked(_ partitions: [TopicPartition]) {
        owned.subtract(partitions)
        switch state {
        case .revoking:
            join()
        case .stable where rejoinsAfterRevocation:
            rejoinsAfterRevocation = false
            join()
        case .idle, .joining, .syncing, .stable:
            break
        }
    }

    /// Nothing waits for this: the assignment holds from the sync on.
    func assigned(_ partitions: [TopicPartition]) {}

    /// New partitions of a subscribed topic, or a topic that has come about, need a rebalance.
    func metadataChanged() {
        watchMissingTopics()
        guard case .stable = state else { return }
        let counts = partitionCounts(topics)
        if counts != knownCounts {
            engine.logger.info(
                "partitions of subscribed topics have changed", metadata: ["group": "\(group)"])
            beginRebalance()
        }
    }

    /// Asks again soon for topics that do not exist yet; the ordinary refresh would take minutes.
    private func watchMissingTopics() {
        let missing = topics.filter { engine.metadata.topics[$0] == nil }.sorted()
        guard !missing.isEmpty, missingTopicTimer == nil, !engine.isClosed else { return }
        engine.logger.warning(
            "subscribed topics do not exist",
            metadata: ["topics": "\(missing.joined(separator: ","))", "brokers": "\(engine.brokerNames)"])
        missingTopicTimer = loop.assumeIsolated().scheduleTask(in: TimeAmount(Self.missingTopicInterval)) {
            self.missingTopicTimer = nil
            self.engine.refreshMetadata()
        }
    }

    /// Leaves the group; `completion` comes when the coordinator knows, or after a short wait.
    func leave(_ completion: @escaping () -> Void) {
        let wasMember = !memberID.isEmpty
        let id = memberID
        stop()
        guard wasMember, configuration.groupInstanceID == nil else {
            completion()
            return
        }
        sendLeave(id, completion)
    }

    /// Forgets the membership without telling anybody.
    private func stop() {
        era += 1
        state = .idle
        heartbeatTimer?.cancel()
        heartbeatTimer = nil
        isHeartbeating = false
        memberID = ""
        generation = -1
        owned = []
        claimed = []
        rejoinsAfterRevocation = false
        subscriptionChanged = false
        failingSince = nil
        topics = []
        missingTopicTimer?.cancel()
        missingTopicTimer = nil
    }

    private func sendLeave(_ id: String, _ completion: @escaping () -> Void) {
        let group = group
        engine.coordinator(of: group) { result in
            guard case .success(let coordinator) = result else {
                completion()
                return
            }
            self.engine.request(
                LeaveGroupRequest.self, to: .broker(coordinator), timeout: Self.leaveLimit
            ) { version in
                var request = LeaveGroupRequest()
                request.groupID = group
                if version >= 3 {
                    var member = LeaveGroupRequest.MemberIdentity()
                    member.memberID = id
                    if version >= 5 { member.reason = "the consumer was closed or unsubscribed" }
                    request.members = [member]
                } else {
                    request.memberID = id
                }
                return request
            } completion: { _ in
                completion()
            }
        }
    }

    // MARK: Rebalance

    private func beginRebalance() {
        if isCooperative || owned.isEmpty {
            join()
        } else {
            state = .revoking
            buffer.request(.revoke(owned.sorted(), isLost: false))
        }
    }

    /// The coordinator does not know us any more in this generation: what we own may be others' already.
    private func expelled(forgetMember: Bool) {
        generation = -1
        if forgetMember { memberID = "" }
        heartbeatTimer?.cancel()
        let pending = buffer.cancelSteps()
        owned.formUnion(pending)
        if owned.isEmpty {
            join()
        } else {
            state = .revoking
            buffer.request(.revoke(owned.sorted(), isLost: true))
        }
    }

    private func fail(_ error: ClientError) {
        let lost = owned.union(buffer.cancelSteps()).sorted()
        stop()
        // Without a membership others may have them; reading on would do their work twice.
        if !lost.isEmpty { buffer.request(.revoke(lost, isLost: true)) }
        buffer.report(error)
    }

    private func retryJoin(_ error: ClientError) {
        failureCount += 1
        let pause = engine.retryBackoff.pause(after: failureCount)
        engine.logger.debug("join will be repeated", metadata: ["group": "\(group)", "cause": "\(error)"])
        state = .joining
        let since = failingSince ?? .now()
        failingSince = since
        if NIODeadline.now() - since >= TimeAmount(configuration.client.operationTimeout) {
            failingSince = nil
            buffer.report(error)
        }
        let era = era
        loop.assumeIsolated().scheduleTask(in: TimeAmount(pause)) {
            if self.era == era { self.join() }
        }
    }

    private func join() {
        guard !engine.isClosed else { return }
        state = .joining
        heartbeatTimer?.cancel()
        heartbeatTimer = nil
        rejoinsAfterRevocation = false
        let era = era
        engine.coordinator(of: group) { result in
            guard self.era == era, case .joining = self.state else { return }
            switch result {
            case .success(let coordinator): self.sendJoin(to: coordinator)
            case .failure(let error) where error.isRetriable: self.retryJoin(error)
            case .failure(let error): self.fail(error)
            }
        }
    }

    private func sendJoin(to coordinator: BrokerID) {
        subscriptionChanged = false
        var subscription = ConsumerProtocol.Subscription(topics: topics.sorted())
        subscription.rack = configuration.rackID
        if isCooperative {
            claimed = owned
            subscription.owned = owned.sorted()
            subscription.generation = generation
        }
        let metadata: ByteBuffer
        do {
            metadata = try ConsumerProtocol.encode(subscription)
        } catch {
            fail(ClientError(.invalidArgument, "the subscription cannot be encoded: \(error)", cause: error))
            return
        }
        let (configuration, group, memberID, era) = (configuration, group, memberID, era)
        engine.request(
            JoinGroupRequest.self, to: .broker(coordinator), purpose: .group,
            timeout: configuration.pollIntervalLimit + Self.joinGrace
        ) { version in
            var request = JoinGroupRequest()
            request.groupID = group
            request.sessionTimeoutMs = configuration.sessionTimeout.wireMilliseconds
            request.rebalanceTimeoutMs = configuration.pollIntervalLimit.wireMilliseconds
            request.memberID = memberID
            request.groupInstanceID = version >= 5 ? configuration.groupInstanceID : nil
            request.protocolType = ConsumerProtocol.type
            request.protocols = configuration.assignmentStrategies.map { strategy in
                var entry = JoinGroupRequest.JoinGroupRequestProtocol()
                entry.name = strategy.name
                entry.metadata = metadata
                return entry
            }
            return request
        } completion: { result in
            guard self.era == era else { return }
            switch result {
            case .failure(let error):
                self.engine.forgetCoordinator(of: group)
                if error.isRetriable { self.retryJoin(error) } else { self.fail(error) }
            case .success(let answer):
                self.joined(answer.response, coordinator: coordinator)
            }
        }
    }

    private func joined(_ response: JoinGroupResponse, coordinator: BrokerID) {
        let code = ErrorCode(rawValue: response.errorCode)
        let error = ClientError.broker(code, "joining group '\(group)'")
        switch code {
        case .none:
            break
        case .memberIDRequired:
            memberID = response.memberID
            join()
            return
        case .unknownMemberID:
            expelled(forgetMember: true)
            return
        case .illegalGeneration:
            generation = -1
            join()
            return
        case .fencedInstanceID:
            fail(error)
            return
        case .notCoordinator, .coordinatorNotAvailable:
            engine.forgetCoordinator(of: group)
            retryJoin(error)
            return
        case _ where code.isRetriable || code == .rebalanceInProgress:
            retryJoin(error)
            return
        case _:
            fail(error)
            return
        }
        failureCount = 0
        failingSince = nil
        memberID = response.memberID
        generation = response.generationID
        state = .syncing
        knownCounts = partitionCounts(topics)
        guard response.leader == response.memberID, !response.skipAssignment else {
            sync([:], response, coordinator)
            return
        }
        lead(response, coordinator)
    }

    /// The leader of the group shares out the partitions, by fresh metadata of all topics that members want.
    private func lead(_ response: JoinGroupResponse, _ coordinator: BrokerID) {
        let members = response.members.map { member in
            let subscription = ConsumerProtocol.subscription(member.metadata)
            return Assignor.Member(
                id: member.memberID, groupInstanceID: member.groupInstanceID,
                topics: Set(subscription?.topics ?? []), owned: subscription?.owned ?? [],
                generation: subscription?.generation ?? -1)
        }
        let strategy = configuration.assignmentStrategies.first { $0.name == response.protocolName } ?? .range
        let wanted = members.reduce(into: Set<String>()) { $0.formUnion($1.topics) }
        engine.want(wanted)
        let era = era
        engine.refreshMetadata { error in
            guard self.era == era, case .syncing = self.state else { return }
            if let error { self.engine.logger.debug("metadata may be old", metadata: ["error": "\(error)"]) }
            for topic in wanted.subtracting(self.topics) { self.engine.unwant(topic) }
            self.knownCounts = self.partitionCounts(self.topics)
            self.sync(
                Assignor.assign(strategy, members: members, partitionCounts: self.partitionCounts(wanted)),
                response,
                coordinator)
        }
    }

    private func partitionCounts(_ topics: Set<String>) -> [String: Int] {
        var counts: [String: Int] = [:]
        for topic in topics { counts[topic] = engine.metadata.topics[topic]?.partitions.count }
        return counts
    }

    private func sync(
        _ assignments: [String: [TopicPartition]], _ joined: JoinGroupResponse, _ coordinator: BrokerID
    ) {
        var encoded: [(String, ByteBuffer)] = []
        do {
            for (member, partitions) in assignments.sorted(by: { $0.key < $1.key }) {
                encoded.append((member, try ConsumerProtocol.encode(assignment: partitions)))
            }
        } catch {
            fail(ClientError(.invalidArgument, "the assignment cannot be encoded: \(error)", cause: error))
            return
        }
        let (group, memberID, generation, era) = (group, memberID, generation, era)
        let instanceID = configuration.groupInstanceID
        engine.request(
            SyncGroupRequest.self, to: .broker(coordinator), purpose: .group,
            timeout: configuration.pollIntervalLimit + Self.joinGrace
        ) { version in
            var request = SyncGroupRequest()
            request.groupID = group
            request.generationID = generation
            request.memberID = memberID
            request.groupInstanceID = version >= 3 ? instanceID : nil
            if version >= 5 {
                request.protocolType = ConsumerProtocol.type
                request.protocolName = joined.protocolName
            }
            request.assignments = encoded.map { member, bytes in
                var entry = SyncGroupRequest.SyncGroupRequestAssignment()
                entry.memberID = member
                entry.assignment = bytes
                return entry
            }
            return request
        } completion: { result in
            guard self.era == era else { return }
            switch result {
            case .failure(let error):
                self.engine.forgetCoordinator(of: group)
                if error.isRetriable { self.retryJoin(error) } else { self.fail(error) }
            case .success(let answer):
                self.synced(answer.response)
            }
        }
    }

    private func synced(_ response: SyncGroupResponse) {
        let code = ErrorCode(rawValue: response.errorCode)
        let error = ClientError.broker(code, "assignment of group '\(group)'")
        switch code {
        case .none:
            break
        case .unknownMemberID:
            expelled(forgetMember: true)
            return
        case .illegalGeneration:
            generation = -1
            join()
            return
        case .rebalanceInProgress:
            join()
            return
        case .notCoordinator, .coordinatorNotAvailable:
            engine.forgetCoordinator(of: group)
            retryJoin(error)
            return
        case _ where code.isRetriable:
            retryJoin(error)
            return
        case _:
            fail(error)
            return
        }
        guard let partitions = ConsumerProtocol.assignment(response.assignment) else {
            fail(
                ClientError(
                    .protocolViolation,
                    "the assignment of group '\(group)' cannot be read; do all members use the consumer protocol?"
                ))
            return
        }
        state = .stable
        let assigned = Set(partitions)
        // Given up since the join, so held back from others and taken by nobody: another round shares it out.
        let isOrphaned = !claimed.subtracting(owned).isSubset(of: assigned)
        claimed = []
        let taken = owned.subtracting(assigned)
        let added = assigned.subtracting(owned)
        owned.formUnion(added)
        if !taken.isEmpty {
            rejoinsAfterRevocation = true
            buffer.request(.revoke(taken.sorted(), isLost: false))
        }
        if !added.isEmpty { buffer.request(.assigned(added.sorted())) }
        engine.logger.info(
            "assignment received",
            metadata: ["group": "\(group)", "generation": "\(generation)", "partitions": "\(assigned.count)"])
        scheduleHeartbeat()
        if subscriptionChanged || (isOrphaned && taken.isEmpty) { beginRebalance() }
    }

    // MARK: Heartbeats

    private func scheduleHeartbeat() {
        heartbeatTimer?.cancel()
        heartbeatTimer = loop.assumeIsolated().scheduleTask(in: TimeAmount(configuration.heartbeatInterval)) {
            self.heartbeat()
        }
    }

    private func heartbeat() {
        guard !engine.isClosed else { return }
        switch state {
        case .stable, .revoking: break
        case .idle, .joining, .syncing: return
        }
        if NIODeadline.now() - buffer.lastPoll > TimeAmount(configuration.pollIntervalLimit) {
            leaveSilently()
            return
        }
        scheduleHeartbeat()
        guard !isHeartbeating, generation >= 0 else { return }
        isHeartbeating = true
        let (group, memberID, generation, era) = (group, memberID, generation, era)
        let instanceID = configuration.groupInstanceID
        engine.coordinator(of: group) { result in
            guard self.era == era else { return }
            guard case .success(let coordinator) = result else {
                self.isHeartbeating = false
                return
            }
            self.engine.request(
                HeartbeatRequest.self, to: .broker(coordinator), purpose: .group,
                timeout: self.configuration.sessionTimeout
            ) { version in
                var request = HeartbeatRequest()
                request.groupID = group
                request.generationID = generation
                request.memberID = memberID
                request.groupInstanceID = version >= 3 ? instanceID : nil
                return request
            } completion: { result in
                guard self.era == era else { return }
                self.isHeartbeating = false
                switch result {
                case .failure: self.engine.forgetCoordinator(of: group)
                case .success(let answer):
                    if self.generation == generation {
                        self.heard(ErrorCode(rawValue: answer.response.errorCode))
                    }
                }
            }
        }
    }

    private func heard(_ code: ErrorCode) {
        switch code {
        case .none: break
        case .rebalanceInProgress:
            if case .stable = state { beginRebalance() }
        case .illegalGeneration: expelled(forgetMember: false)
        case .unknownMemberID: expelled(forgetMember: true)
        case .fencedInstanceID:
            fail(.broker(code, "membership in group '\(group)'"))
        case .notCoordinator, .coordinatorNotAvailable: engine.forgetCoordinator(of: group)
        case _ where code.isRetriable: break
        case _: fail(.broker(code, "membership in group '\(group)'"))
        }
    }

    /// Nobody polls: others should have the partitions. The next poll learns that they are lost, and joins again.
    private func leaveSilently() {
        engine.logger.warning(
            "member leaves its group because nobody polled in time",
            metadata: ["group": "\(group)", "pollIntervalLimit": "\(configuration.pollIntervalLimit)"])
        let id = memberID
        era += 1
        isHeartbeating = false
        generation = -1
        memberID = ""
        heartbeatTimer = nil
        _ = buffer.cancelSteps()
        state = .revoking
        buffer.request(.revoke(owned.sorted(), isLost: true))
        if configuration.groupInstanceID == nil { sendLeave(id) {} }
    }
}
