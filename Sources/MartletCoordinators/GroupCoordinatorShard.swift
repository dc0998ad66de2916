package import MartletKafkaProtocol
package import MartletLogModel
import NIOCore

/// Coordinator of the groups of one `__consumer_offsets` partition: a pure core, *decide → records → replay*.
///
/// The shell owns the partition's log. It loads by `replay` of each record and then `handle(.loaded)`; it
/// turns requests and timers into events and carries out the effects in order. An append that fails, or a
/// leadership that is lost, ends this core: the shell reports it, throws the core away and loads a new one.
///
/// What is decided is replayed at once, so that the next decision sees it; what is answered waits until the
/// append is committed. Reads of a group wait for that group's appends as well: nobody sees an offset that
/// could still vanish (promise 1 of the architecture).
///
/// Invariants: I17 one owner per partition and generation, I18 no commit from outside the present generation,
/// and replay of the appended records into an empty core gives ``durableState()`` of this one.
///
/// It knows versions and connections as little as the layers below. Topics it knows by a ``TopicCatalog``, for
/// consumer groups alone. ``ClassicGroup``, ``ConsumerGroup``, ``ShareGroup``, ``OffsetStore`` and
/// ``PendingOffsets`` are its sub-machines.
package struct GroupCoordinatorShard: ~Copyable {
    package enum Event: Sendable {
        /// Every record of the log has been replayed.
        case loaded
        case requested(RequestID, GroupRequest)
        case committed(AppendToken)
        /// The append is lost. All that wait are answered; nothing but `resigned` may follow.
        case appendFailed(AppendToken, ErrorCode)
        case timerFired(CoordinatorTimer)
        case topicsDeleted([String])
        /// Offsets of topics that went while nobody looked; see ``GroupCoordinatorShard/obsoleteOffsets(_:)``.
        case offsetsAreObsolete([OffsetCommitKey])
        /// Topics were created, changed or deleted. Also told before or right after `loaded`.
        case topicsChanged(TopicCatalog)
        /// Time to look for offsets that nobody needs any more.
        case expirationDue(OffsetRetention)
        case reconfigured(GroupConfiguration)
        /// How the share coordinator has carried out an order: a code for each partition.
        case shareStateOrdered(ShareOrderID, [UniversalID: [Int32: ErrorCode]])
        /// This broker no longer leads the partition, or stops.
        case resigned
    }

    private enum State: Equatable {
        case loading
        case active
        case closed(ErrorCode)
    }

    private var state: State = .loading
    private(set) var configuration: GroupConfiguration
    /// Classic groups, and groups that only store offsets.
    var groups = GroupTable<ClassicGroup>()
    /// Groups of the consumer protocol; an id is in one of the three.
    var consumerGroups = GroupTable<ConsumerGroup>()
    var shareGroups = GroupTable<ShareGroup>()
    /// Orders to the share coordinator, and requests that wait for several of them.
    var shareOrders: [ShareOrderID: PendingShareOrder] = [:]
    var nextShareOrder: UInt64 = 1
    var groupDeletions: [RequestID: GroupDeletion] = [:]
    private(set) var catalog = TopicCatalog.empty
    /// What the members of groups in other shards of this broker make it hold, in bytes: the shell tells before an
    /// event.
    package var memberBytesElsewhere = 0
    private(set) var offsets = OffsetStore()
    var pendingOffsets = PendingOffsets()
    private var nextToken: UInt64 = 1
    /// Appends on their way, with what waits for each.
    private var waiting: [AppendToken: [Continuation]] = [:]
    /// The last append that touched a group, while it is on its way.
    private var lastAppends: [String: AppendToken] = [:]
    private var touchedGroups: [AppendToken: Set<String>] = [:]
    /// Groups an expiration has still to look at, the next one last.
    private var expiration: (retention: OffsetRetention, groups: [String])?

    package init(configuration: GroupConfiguration) { self.configuration = configuration }

    // MARK: Replay

    /// The only writer of durable state, on the live path and when the log is loaded.
    package mutating func replay(_ record: CoordinatorRecord, now: Timestamp) {
        if case .offsetCommit(let key, _) = record { pendingOffsets.supersede(key) }
        replayCommitted(record, now: now)
    }

    /// A group that has offsets and no more.
    mutating func ensureGroup(_ id: String, now: Timestamp) {
        // Called for each offset of a log.
        if !groups.contains(id), !consumerGroups.contains(id), !shareGroups.contains(id) {
            groups[id] = ClassicGroup(id: id, now: now)
        }
    }

    mutating func replayCommitted(_ record: CoordinatorRecord, now: Timestamp) {
        switch record {
        case .offsetCommit(let key, let value):
            offsets.replay(key, value)
            // Offsets alone make a group as well: a consumer with assigned partitions only commits.
            if value != nil { ensureGroup(key.group, now: now) }
        case .groupMetadata(let key, let value):
            if value != nil {
                consumerGroups[key.group] = nil
                shareGroups[key.group] = nil
            }
            if value != nil, groups[key.group] == nil {
                groups[key.group] = ClassicGroup(id: key.group, now: now)
            }
            groups[key.group]?.replay(value)
        case .consumerGroup(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .consumerGroupTopics(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .consumerMember(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .consumerTarget(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .consumerMemberTarget(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .consumerMemberCurrent(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .consumerPattern(_, let value): replayConsumer(record, hasValue: value != nil, now: now)
        case .share(let record): replayShare(record)
        }
    }

    // MARK: Events

    package mutating func handle(_ event: Event, now: Moment, into effects: inout [CoordinatorEffect]) {
        let taken = memberBytesElsewhere + memberByteCount
        var outbox = Outbox(
            now: now, configuration: configuration, memberRoomBytes: max(0, configuration.memberBytesLimit - taken))
        switch event {
        case .loaded:
            precondition(state == .loading, "the shard is loaded twice")
            state = .active
            for id in groups.ids.sorted() {
                groups[id]?.load(into: &outbox)
                removeIfUnused(id)
            }
            for id in consumerGroups.ids.sorted() { consumerGroups[id]?.load(into: &outbox) }
            for id in shareGroups.ids.sorted() { shareGroups[id]?.load(into: &outbox) }
        case .requested(let id, let request):
            switch state {
            case .active: handle(id, request, &outbox)
            case .loading: outbox.respond(id, Self.refusal(request, .coordinatorLoadInProgress))
            case .closed(let code): outbox.respond(id, Self.refusal(request, code))
            }
        case .committed(let token):
            commit(token, &outbox)
        case .appendFailed(_, let code):
            close(Self.coordinatorCode(code), commitCode: Self.commitCode(code), &outbox)
        case .timerFired(let timer):
            if state == .active { fire(timer, &outbox) }
        case .topicsDeleted(let topics):
            if state == .active { forget(topics, &outbox) }
        case .offsetsAreObsolete(let keys):
            if state == .active { appendInBatches(keys.map { .offsetCommit($0, nil) }, &outbox) }
        case .topicsChanged(let catalog):
            self.catalog = catalog
        case .expirationDue(let retention):
            if state == .active, expiration == nil {
                expiration = (retention, (Array(groups.ids) + Array(consumerGroups.ids)).sorted(by: >))
                continueExpiration(&outbox)
            }
        case .reconfigured(let configuration):
            self.configuration = configuration
        case .shareStateOrdered(let order, let results):
            if state == .active { shareStateOrdered(order, results, &outbox) }
        case .resigned:
            close(.notCoordinator, commitCode: .notCoordinator, &outbox)
        }
        flush(&outbox, into: &effects)
    }

    /// Replays what was decided and orders the appends.
    private mutating func flush(_ outbox: inout Outbox, into effects: inout [CoordinatorEffect]) {
        effects.append(contentsOf: outbox.effects)
        for append in outbox.appends {
            let token = AppendToken(rawValue: nextToken)
            nextToken += 1
            var touched: Set<String> = []
            if let marker = append.marker {
                touched.formUnion(pendingOffsets.groups(producerID: marker.producer.id))
                replayTransactionEnd(
                    producerID: marker.producer.id, commits: marker.commits, now: outbox.now.timestamp)
            }
            for record in append.records {
                if let producer = append.producer {
                    replay(record, producerID: producer.id, now: outbox.now.timestamp)
                } else if !append.isReplayed {
                    replay(record, now: outbox.now.timestamp)
                }
                touched.insert(record.groupID)
            }
            for id in touched { lastAppends[id] = token }
            touchedGroups[token] = touched
            waiting[token] = append.continuations
            if let marker = append.marker {
                effects.append(.appendMarker(marker, token))
            } else if let producer = append.producer {
                effects.append(.appendTransactional(append.records, producer, token))
            } else {
                effects.append(.append(append.records, token))
            }
        }
    }

    private mutating func commit(_ token: AppendToken, _ outbox: inout Outbox) {
        guard state == .active, let continuations = waiting.removeValue(forKey: token) else { return }
        let touched = touchedGroups.removeValue(forKey: token) ?? []
        for id in touched where lastAppends[id] == token { lastAppends[id] = nil }
        for continuation in continuations { run(continuation, &outbox) }
        for id in touched.sorted() { removeIfUnused(id) }
    }

    private mutating func run(_ continuation: Continuation, _ outbox: inout Outbox) {
        switch continuation {
        case .respond(let id, let response): outbox.respond(id, response)
        case .handOutAssignment(let id, let generation):
            groups[id]?.handOutAssignment(generation: generation, &outbox)
        case .orderShareState(let id):
            if let order = shareStateOrder(id) { outbox.effects.append(.orderShareState(order, id)) }
        }
    }

    /// Goes on once the group's appends so far are committed.
    mutating func perform(_ continuation: Continuation, after groupID: String, _ outbox: inout Outbox) {
        if let token = lastAppends[groupID], waiting[token] != nil {
            waiting[token]?.append(continuation)
        } else {
            run(continuation, &outbox)
        }
    }

    /// Sends an answer once the group's appends so far are committed.
    mutating func respond(
        _ id: RequestID, _ response: GroupResponse, after groupIDs: [String], _ outbox: inout Outbox
    ) {
        if let token = groupIDs.compactMap({ lastAppends[$0] }).max() {
            waiting[token]?.append(.respond(id, response))
        } else {
            outbox.respond(id, response)
        }
    }

    private mutating func close(_ code: ErrorCode, commitCode: ErrorCode, _ outbox: inout Outbox) {
        if case .closed = state { return }
        state = .closed(code)
        for token in waiting.keys.sorted() {
            for continuation in waiting[token] ?? [] {
                guard case .respond(let id, let response) = continuation else { continue }
                outbox.respond(id, response.refused(code, commitCode: commitCode))
            }
        }
        waiting = [:]
        closeShareOrders(code, &outbox)
        for id in groups.ids.sorted() { groups[id]?.abandon(code, &outbox) }
    }

    // MARK: Requests

    private mutating func handle(_ id: RequestID, _ request: GroupRequest, _ outbox: inout Outbox) {
        switch request {
        case .joinGroup(let request, let client, let traits):
            join(id, request, client, traits, &outbox)
        case .syncGroup(let request):
            if consumerGroups[request.groupID] != nil { return syncConsumerGroup(id, request, &outbox) }
            guard groups[request.groupID] != nil else {
                return outbox.respond(id, Self.refusal(.syncGroup(request), Self.missing(request.groupID)))
            }
            groups[request.groupID]?.sync(id, request, &outbox)
        case .heartbeat(let request):
            if consumerGroups[request.groupID] != nil { return heartbeatClassicMember(id, request, &outbox) }
            var response = HeartbeatResponse()
            let code = groups[request.groupID]?.heartbeat(request, &outbox) ?? Self.missing(request.groupID)
            response.errorCode = code.rawValue
            outbox.respond(id, .heartbeat(response))
        case .leaveGroup(let request):
            leave(id, request, &outbox)
        case .offsetCommit(let request, let reportsMissingGroup):
            commitOffsets(id, request, reportsMissingGroup: reportsMissingGroup, &outbox)
        case .txnOffsetCommit(let request, let producer):
            commitOffsets(id, request, reportsMissingGroup: false, producer: producer, &outbox)
        case .endTransaction(let marker):
            endTransaction(id, marker, &outbox)
        case .offsetFetch(let request, let requireStable):
            if shareGroups[request.groupID] != nil {
                return outbox.respond(
                    id, Self.refusal(.offsetFetch(request, requireStable: requireStable), .groupIDNotFound))
            }
            if let code = consumerGroups[request.groupID]?.fetchProblem(
                memberID: request.memberID, epoch: request.memberEpoch)
            {
                return outbox.respond(id, Self.refusal(.offsetFetch(request, requireStable: requireStable), code))
            }
            var response = fetchOffsets(request)
            if requireStable { markUnstable(&response, isWhole: request.topics == nil) }
            respond(id, .offsetFetch(response), after: [request.groupID], &outbox)
        case .describeGroups(let ids):
            outbox.respond(id, .describeGroups(ids.map { describe($0) }))
        case .listGroups(let request):
            outbox.respond(id, .listGroups(list(request)))
        case .deleteGroups(let ids):
            deleteGroups(id, ids, &outbox)
        case .offsetDelete(let request):
            deleteOffsets(id, request, &outbox)
        case .consumerGroupHeartbeat(let request, let client, let traits):
            consumerHeartbeat(id, request, client, traits, &outbox)
        case .consumerGroupDescribe(let ids):
            respond(id, .consumerGroupDescribe(ids.map { describeConsumerGroup($0) }), after: ids, &outbox)
        case .lastRebalances(let ids):
            outbox.respond(id, .lastRebalances(ids.compactMap { lastRebalance($0) }))
        case .shareGroupHeartbeat(let request, let client):
            shareHeartbeat(id, request, client, &outbox)
        case .shareGroupDescribe(let ids):
            respond(id, .shareGroupDescribe(ids.map { describeShareGroup($0) }), after: ids, &outbox)
        case .alterShareOffsets(let request):
            alterShareOffsets(id, request, &outbox)
        case .deleteShareOffsets(let request):
            deleteShareOffsets(id, request, &outbox)
        case .sharePartitions(let ids):
            respond(id, .sharePartitions(ids.map { sharePartitions($0) }), after: ids, &outbox)
        }
    }

    private static func missing(_ groupID: String) -> ErrorCode {
        groupID.isEmpty ? .invalidGroupID : .unknownMemberID
    }

    private mutating func join(
        _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity, _ traits: JoinTraits,
        _ outbox: inout Outbox
    ) {
        let groupID = request.groupID
        func refuse(_ code: ErrorCode) {
            ClassicGroup.refuse(id, code, memberID: request.memberID, &outbox)
        }
        guard !groupID.isEmpty, groupID.utf8.count <= GroupLimits.groupIDBytesLimit else {
            return refuse(.invalidGroupID)
        }
        if shareGroups[groupID] != nil { return refuse(.inconsistentGroupProtocol) }
        guard request.sessionTimeoutMs >= configuration.minSessionTimeoutMilliseconds,
            request.sessionTimeoutMs <= configuration.maxSessionTimeoutMilliseconds
        else { return refuse(.invalidSessionTimeout) }
        let byteCount = request.protocols.reduce(0) { $0 + $1.metadata.readableBytes }
        let names =
            [request.memberID, request.groupInstanceID ?? "", request.protocolType]
            + request.protocols.map(\.name)
        guard request.protocols.count <= GroupLimits.protocolCountLimit,
            byteCount <= GroupLimits.memberMetadataBytesLimit,
            names.allSatisfy({ $0.utf8.count <= GroupLimits.nameBytesLimit })
        else { return refuse(.invalidRequest) }
        if servesClassicMembers(groupID) { return joinConsumerGroup(id, request, client, traits, &outbox) }
        let isFirstStep =
            request.memberID.isEmpty && request.groupInstanceID == nil && traits.requiresKnownMemberID
        let growth =
            request.memberByteCount(client, isFirstStep: isFirstStep) - (groups[groupID]?.bytesHeld(by: request) ?? 0)
        guard outbox.hasRoom(forMemberBytes: growth) else { return refuse(.groupMaxSizeReached) }
        if groups[groupID] == nil {
            // Only a newcomer founds a group; who brings an id believes in one that is gone.
            guard request.memberID.isEmpty else { return refuse(.unknownMemberID) }
            guard groupCount < GroupLimits.groupCountLimit else {
                return refuse(.groupMaxSizeReached)
            }
            makeRoomForClassicGroup(groupID, &outbox)
            groups[groupID] = ClassicGroup(id: groupID, now: outbox.now.timestamp)
        }
        groups[groupID]?.join(id, request, client, traits, &outbox)
        removeIfUnused(groupID, pendingAppends: outbox.appends)
    }

    private mutating func leave(_ id: RequestID, _ request: LeaveGroupRequest, _ outbox: inout Outbox) {
        var response = LeaveGroupResponse()
        if request.groupID.isEmpty {
            response.errorCode = ErrorCode.invalidGroupID.rawValue
        } else if consumerGroups[request.groupID] != nil {
            return leaveClassicMembers(id, request, &outbox)
        } else if groups[request.groupID] != nil {
            response.members = groups[request.groupID]?.leave(request.members, &outbox) ?? []
            removeIfUnused(request.groupID, pendingAppends: outbox.appends)
        } else {
            response.members = request.members.map {
                var answer = LeaveGroupResponse.MemberResponse()
                answer.memberID = $0.memberID
                answer.groupInstanceID = $0.groupInstanceID
                answer.errorCode = ErrorCode.unknownMemberID.rawValue
                return answer
            }
        }
        outbox.respond(id, .leaveGroup(response))
    }

    private mutating func fire(_ timer: CoordinatorTimer, _ outbox: inout Outbox) {
        let groupID: String
        switch timer {
        case .session(let group, let member):
            if shareGroups[group] != nil { return shareSessionTimeIsUp(member, of: group, &outbox) }
            if consumerGroups[group] != nil {
                let reason = consumerGroups[group]?.sessionTimeIsUp(member, &outbox)
                return expire(member, of: group, reason, &outbox)
            }
            groupID = group
            groups[group]?.sessionTimeIsUp(member, &outbox)
        case .pendingMember(let group, let member):
            groupID = group
            groups[group]?.pendingTimeIsUp(member, &outbox)
        case .join(let group):
            groupID = group
            groups[group]?.joinTimeIsUp(&outbox)
        case .sync(let group):
            groupID = group
            groups[group]?.syncTimeIsUp(&outbox)
        case .expiration:
            return continueExpiration(&outbox)
        case .revocation(let group, let member):
            return expire(
                member, of: group, consumerGroups[group]?.revocationTimeIsUp(member, &outbox), &outbox)
        case .rejoin(let group, let member):
            return expire(member, of: group, consumerGroups[group]?.joinTimeIsUp(member, &outbox), &outbox)
        case .resync(let group, let member):
            return expire(member, of: group, consumerGroups[group]?.syncTimeIsUp(member, &outbox), &outbox)
        case .patterns(let group):
            return continuePatterns(group, &outbox)
        }
        removeIfUnused(groupID, pendingAppends: outbox.appends)
    }

    /// Forgets a group that has neither members nor a record nor offsets, so that probing for groups or joins
    /// that never come back leave nothing behind.
    private mutating func removeIfUnused(_ id: String, pendingAppends: [Outbox.Append] = []) {
        guard let group = groups[id], group.isUnused, !offsets.hasOffsets(group: id), lastAppends[id] == nil,
            !pendingOffsets.hasOffsets(group: id),
            !pendingAppends.contains(where: { $0.records.contains { $0.groupID == id } })
        else { return }
        groups[id] = nil
    }

    // MARK: Offsets

    private mutating func commitOffsets(
        _ id: RequestID, _ request: OffsetCommitRequest, reportsMissingGroup: Bool,
        producer: ProducerIdentity? = nil, _ outbox: inout Outbox
    ) {
        func refuse(_ code: ErrorCode) {
            outbox.respond(id, .offsetCommit(Self.refusal(request, code)))
        }
        let groupID = request.groupID
        let isUnfenced = configuration.suspended.contains(.memberEpochFence)
        // A consumer without group management may use the empty id; everybody else names a group.
        guard groupID.utf8.count <= GroupLimits.groupIDBytesLimit, !groupID.isEmpty || producer == nil else {
            return refuse(.invalidGroupID)
        }
        /// Clients do not look for the epochs' own code in an answer to TxnOffsetCommit.
        func told(_ code: ErrorCode) -> ErrorCode {
            producer != nil && code == .staleMemberEpoch ? .illegalGeneration : code
        }
        // Clients before KIP-447 do not say of a transaction's offsets which member sends them.
        let isAnonymous =
            producer != nil && request.generationIDOrMemberEpoch < 0 && request.memberID.isEmpty
            && request.groupInstanceID == nil
        if shareGroups[groupID] != nil { return refuse(.groupIDNotFound) }
        if isAnonymous {
            if groups[groupID] == nil, consumerGroups[groupID] == nil,
                groupCount >= GroupLimits.groupCountLimit
            {
                return refuse(.groupMaxSizeReached)
            }
        } else if let group = consumerGroups[groupID] {
            // Offsets in transactions have carried the member epoch from their first version with members on.
            if let code = group.commitProblem(
                memberID: request.memberID, instanceID: request.groupInstanceID,
                epoch: request.generationIDOrMemberEpoch,
                knowsEpochs: reportsMissingGroup || producer != nil), !isUnfenced
            {
                return refuse(told(code))
            }
            if group.members[request.memberID]?.usesClassicProtocol == true {
                consumerGroups[groupID]?.heardOf(request.memberID, &outbox)
            }
        } else if groups[groupID] != nil {
            let code = groups[groupID]?.checkCommit(request, &outbox)
            // The consumer of a transaction commits while the next generation forms; its epoch fences it.
            if let code, producer == nil || code != .rebalanceInProgress, !isUnfenced { return refuse(code) }
        } else if request.generationIDOrMemberEpoch >= 0 {
            return refuse(reportsMissingGroup ? .groupIDNotFound : .illegalGeneration)
        } else if groupCount >= GroupLimits.groupCountLimit {
            return refuse(.groupMaxSizeReached)
        }

        guard Self.byteCount(request) <= GroupLimits.commitBytesLimit else {
            return refuse(.invalidCommitOffsetSize)
        }

        var response = OffsetCommitResponse()
        var records: [CoordinatorRecord] = []
        for topic in request.topics {
            var topicResponse = OffsetCommitResponse.OffsetCommitResponseTopic()
            topicResponse.name = topic.name
            topicResponse.topicID = topic.topicID
            for partition in topic.partitions {
                var answer = OffsetCommitResponse.OffsetCommitResponsePartition()
                answer.partitionIndex = partition.partitionIndex
                let metadata = partition.committedMetadata ?? ""
                // Counted as Kafka counts, whatever the setting is called.
                if metadata.utf16.count > configuration.offsetMetadataMaxBytes {
                    answer.errorCode = ErrorCode.offsetMetadataTooLarge.rawValue
                } else if !isAnonymous, !isUnfenced,
                    let code = consumerGroups[groupID]?.commitProblem(
                        memberID: request.memberID, epoch: request.generationIDOrMemberEpoch,
                        topic: topic.topicID, partition: partition.partitionIndex)
                {
                    answer.errorCode = told(code).rawValue
                } else if offsets.offsetCount + pendingOffsets.offsetCount + records.count
                    >= GroupLimits.offsetCountLimit
                {
                    answer.errorCode = ErrorCode.policyViolation.rawValue
                } else {
                    var key = OffsetCommitKey()
                    key.group = groupID
                    key.topic = topic.name
                    key.partition = partition.partitionIndex
                    var value = OffsetCommitValue()
                    value.offset = partition.committedOffset
                    value.leaderEpoch = partition.committedLeaderEpoch
                    value.metadata = metadata
                    value.commitTimestamp = outbox.now.timestamp.rawValue
                    if request.retentionTimeMs >= 0 {
                        let (sum, overflow) = outbox.now.timestamp.rawValue.addingReportingOverflow(
                            request.retentionTimeMs)
                        value.expireTimestamp = overflow ? .max : sum
                    }
                    value.topicID = topic.topicID
                    records.append(.offsetCommit(key, value))
                }
                topicResponse.partitions.append(answer)
            }
            response.topics.append(topicResponse)
        }
        guard !records.isEmpty else { return outbox.respond(id, .offsetCommit(response)) }
        outbox.appends.append(
            Outbox.Append(
                records: records, continuations: [.respond(id, .offsetCommit(response))], producer: producer))
    }

    /// Roughly what the records of a commit take in the log.
    private static func byteCount(_ request: OffsetCommitRequest) -> Int {
        request.topics.reduce(0) { sum, topic in
            topic.partitions.reduce(sum) {
                $0 + 64 + request.groupID.utf8.count + topic.name.utf8.count
                    + ($1.committedMetadata?.utf8.count ?? 0)
            }
        }
    }

    static func refusal(_ request: OffsetCommitRequest, _ code: ErrorCode) -> OffsetCommitResponse {
        var response = OffsetCommitResponse()
        response.topics = request.topics.map { topic in
            var answer = OffsetCommitResponse.OffsetCommitResponseTopic()
            answer.name = topic.name
            answer.topicID = topic.topicID
            answer.partitions = topic.partitions.map {
                var partition = OffsetCommitResponse.OffsetCommitResponsePartition()
                partition.partitionIndex = $0.partitionIndex
                partition.errorCode = code.rawValue
                return partition
            }
            return answer
        }
        return response
    }

    private mutating func deleteOffsets(
        _ id: RequestID, _ request: OffsetDeleteRequest, _ outbox: inout Outbox
    ) {
        var response = OffsetDeleteResponse()
        guard let facts = facts(request.groupID) else {
            response.errorCode =
                (request.groupID.isEmpty ? ErrorCode.invalidGroupID : ErrorCode.groupIDNotFound).rawValue
            return outbox.respond(id, .offsetDelete(response))
        }
        guard facts.isEmpty || facts.tellsTopics else {
            // Members of another kind do not tell which offsets they need.
            response.errorCode = ErrorCode.nonEmptyGroup.rawValue
            return outbox.respond(id, .offsetDelete(response))
        }
        var records: [CoordinatorRecord] = []
        for topic in request.topics {
            var answer = OffsetDeleteResponse.OffsetDeleteResponseTopic()
            answer.name = topic.name
            let isSubscribed = !facts.isEmpty && isSubscribed(request.groupID, to: topic.name)
            for partition in topic.partitions {
                var result = OffsetDeleteResponse.OffsetDeleteResponsePartition()
                result.partitionIndex = partition.partitionIndex
                if isSubscribed {
                    result.errorCode = ErrorCode.groupSubscribedToTopic.rawValue
                } else if offsets.offset(
                    group: request.groupID, topic: topic.name, partition: partition.partitionIndex) != nil
                    || isUnstable(group: request.groupID, topic: topic.name, partition: partition.partitionIndex)
                {
                    records.append(
                        OffsetStore.tombstone(
                            group: request.groupID, topic: topic.name, partition: partition.partitionIndex))
                }
                answer.partitions.append(result)
            }
            response.topics.append(answer)
        }
        guard !records.isEmpty else { return outbox.respond(id, .offsetDelete(response)) }
        appendInBatches(records, then: [.respond(id, .offsetDelete(response))], &outbox)
    }

    private mutating func forget(_ topics: [String], _ outbox: inout Outbox) {
        forgetShareTopics(Set(topics), &outbox)
        var records: [CoordinatorRecord] = []
        let known = topics.filter { offsets.hasOffsets(topic: $0) }.sorted()
        for group in known.isEmpty ? [] : offsets.groupIDs() {
            for topic in known where offsets.hasOffsets(group: group, topic: topic) {
                records.append(contentsOf: offsets.tombstones(group: group, topic: topic))
            }
        }
        // A transaction that commits later must not bring one back, perhaps for another topic of the name.
        let gone = Set(topics)
        for key in pendingOffsets.keys(where: { key, _ in gone.contains(key.topic) })
        where offsets.offset(group: key.group, topic: key.topic, partition: key.partition) == nil {
            records.append(.offsetCommit(key, nil))
        }
        appendInBatches(records, &outbox)
    }

    /// Looks at some more groups, and comes back for the rest: a million offsets must not hold up the loop.
    private mutating func continueExpiration(_ outbox: inout Outbox) {
        guard var work = expiration else { return }
        var records: [CoordinatorRecord] = []
        var budget = GroupLimits.expirationStepOffsetLimit
        while budget > 0, let id = work.groups.popLast() {
            budget -= 1 + offsets.count(group: id)
            expire(id, work.retention, into: &records, now: outbox.now.timestamp.rawValue)
        }
        appendInBatches(records, &outbox)
        if work.groups.isEmpty {
            expiration = nil
        } else {
            expiration = work
            outbox.effects.append(.schedule(.expiration, at: outbox.now.instant))
        }
    }

    /// Offsets whose time is over, and groups that are empty and have none left (KIP-211).
    ///
    /// The clock of an offset starts when it is committed, and not before its group became empty. While the
    /// group lives, only topics nobody subscribes to any more can expire.
    private func expire(
        _ id: String, _ retention: OffsetRetention, into records: inout [CoordinatorRecord], now: Int64
    ) {
        guard let facts = facts(id) else { return }
        var keptCount = 0
        // A group that never had members only stores offsets: each has its own clock.
        let start = facts.emptySince?.rawValue ?? .min
        for topic in offsets.topics(group: id) {
            let isInUse = !facts.isEmpty && isSubscribed(id, to: topic)
            let limit = retention.milliseconds(topic: topic)
            for partition in offsets.partitions(group: id, topic: topic) {
                guard let offset = offsets.offset(group: id, topic: topic, partition: partition) else {
                    continue
                }
                let isOver: Bool
                if isInUse || isUnstable(group: id, topic: topic, partition: partition) {
                    isOver = false
                } else if let expiresAt = offset.expiresAt {
                    isOver = now >= expiresAt.rawValue
                } else if let limit {
                    let (end, overflow) = max(start, offset.committedAt.rawValue).addingReportingOverflow(
                        limit)
                    isOver = !overflow && now >= end
                } else {
                    isOver = false
                }
                if isOver {
                    records.append(OffsetStore.tombstone(group: id, topic: topic, partition: partition))
                } else {
                    keptCount += 1
                }
            }
        }
        guard keptCount == 0, facts.isEmpty, lastAppends[id] == nil, !pendingOffsets.hasOffsets(group: id) else {
            return
        }
        if let group = consumerGroups[id] {
            records.append(contentsOf: group.tombstones())
        } else if let group = groups[id], group.pendingMembers.isEmpty, group.persisted != nil {
            records.append(ClassicGroup.tombstone(id))
        }
    }

    /// What the handling of offsets must know of a group of either kind.
    private struct GroupFacts {
        var isEmpty: Bool
        /// Members tell which topics they need.
        var tellsTopics: Bool
        /// Since when a classic group has no members; others never had any, or leave each offset its own clock.
        var emptySince: Timestamp?
    }

    private func facts(_ id: String) -> GroupFacts? {
        if let group = consumerGroups[id] {
            return GroupFacts(isEmpty: group.isEmpty, tellsTopics: true, emptySince: nil)
        }
        guard let group = groups[id] else { return nil }
        return GroupFacts(
            isEmpty: group.isEmpty, tellsTopics: group.usesConsumerProtocol,
            emptySince: group.isEmpty && !group.protocolType.isEmpty ? group.phaseChangedAt : nil)
    }

    private func isSubscribed(_ id: String, to topic: String) -> Bool {
        consumerGroups[id]?.isSubscribed(to: topic) ?? groups[id]?.isSubscribed(to: topic) ?? false
    }

    /// Tombstones, each of which is right by itself: as many batches as the log needs to take them.
    private func appendInBatches(
        _ records: [CoordinatorRecord], then continuations: [Continuation] = [], _ outbox: inout Outbox
    ) {
        var batch: [CoordinatorRecord] = []
        var byteCount = 0
        for record in records {
            let size = record.keyByteCount
            if batch.count == GroupLimits.tombstoneBatchLimit
                || (byteCount + size > GroupLimits.commitBytesLimit && !batch.isEmpty)
            {
                outbox.append(batch)
                batch = []
                byteCount = 0
            }
            batch.append(record)
            byteCount += size
        }
        if !batch.isEmpty { outbox.append(batch, then: continuations) }
    }

    /// Records that remove all offsets of a group, those of open transactions too.
    private func allOffsetTombstones(_ groupID: String) -> [CoordinatorRecord] {
        let pending = pendingOffsets.partitions(group: groupID).sorted().filter {
            offsets.offset(group: groupID, topic: $0.topic, partition: $0.partition.rawValue) == nil
        }
        return offsets.tombstones(group: groupID)
            + pending.map {
                OffsetStore.tombstone(group: groupID, topic: $0.topic, partition: $0.partition.rawValue)
            }
    }

    // MARK: Groups as a whole

    private mutating func deleteGroups(_ id: RequestID, _ ids: [String], _ outbox: inout Outbox) {
        var records: [CoordinatorRecord] = []
        var seen: Set<String> = []
        var outstandingCount = 0
        let results = ids.compactMap { groupID -> DeleteGroupsResponse.DeletableGroupResult? in
            guard seen.insert(groupID).inserted else { return nil }
            var result = DeleteGroupsResponse.DeletableGroupResult()
            result.groupID = groupID
            if let group = shareGroups[groupID] {
                if !group.isEmpty {
                    result.errorCode = ErrorCode.nonEmptyGroup.rawValue
                } else if beginDeletion(of: groupID, for: id, &outbox) {
                    outstandingCount += 1
                } else {
                    records.append(contentsOf: group.tombstones())
                }
            } else if let group = consumerGroups[groupID] {
                if group.isEmpty {
                    records.append(contentsOf: allOffsetTombstones(groupID) + group.tombstones())
                } else {
                    result.errorCode = ErrorCode.nonEmptyGroup.rawValue
                }
            } else if let group = groups[groupID] {
                if group.isEmpty {
                    records.append(contentsOf: allOffsetTombstones(groupID))
                    if group.persisted != nil { records.append(ClassicGroup.tombstone(groupID)) }
                } else {
                    result.errorCode = ErrorCode.nonEmptyGroup.rawValue
                }
            } else {
                result.errorCode =
                    (groupID.isEmpty ? ErrorCode.invalidGroupID : ErrorCode.groupIDNotFound).rawValue
            }
            return result
        }
        if outstandingCount > 0 {
            groupDeletions[id] = GroupDeletion(results: results, outstandingCount: outstandingCount)
            appendInBatches(records, &outbox)
            return
        }
        guard !records.isEmpty else { return outbox.respond(id, .deleteGroups(results)) }
        appendInBatches(records, then: [.respond(id, .deleteGroups(results))], &outbox)
    }
}
