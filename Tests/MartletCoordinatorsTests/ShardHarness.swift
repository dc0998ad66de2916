import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

/// The one way tests drive a shard: keeps its log, its timers, its clock and what it answered.
final class ShardHarness {
    private var shard: GroupCoordinatorShard
    let configuration: GroupConfiguration
    /// What stands in the log, in order.
    enum Entry {
        case record(CoordinatorRecord, producerID: Int64?)
        case end(producerID: Int64, commits: Bool)
    }

    private(set) var entries: [Entry] = []
    /// Records outside of transactions.
    var log: [CoordinatorRecord] {
        entries.compactMap { if case .record(let record, nil) = $0 { record } else { nil } }
    }
    private(set) var timers: [CoordinatorTimer: Instant] = [:]
    private(set) var responses: [RequestID: GroupResponse] = [:]
    private(set) var reports: [RebalanceReport] = []
    /// Orders to the share coordinator that nobody has answered yet.
    private(set) var shareOrders: [(order: ShareStateOrder, id: ShareOrderID)] = []
    /// Answer each order at once, as done.
    var carriesOutOrders = true
    /// Appends on their way, in order.
    private(set) var inFlight: [(records: [CoordinatorRecord], token: AppendToken)] = []
    private var producers: [AppendToken: Int64] = [:]
    private var markers: [AppendToken: TransactionMarker] = [:]
    /// Commit each append at once.
    var commitsAtOnce = true
    /// Milliseconds since the start of the test.
    private(set) var milliseconds: Int64 = 0
    private var nextRequest: UInt64 = 1
    private var generator = SeededGenerator(seed: 42)

    static let epoch: Int64 = 1_700_000_000_000

    /// Topics the coordinator knows.
    private(set) var topics: [TopicCatalog.Topic] = []
    private var catalogVersion: Int64 = 0

    init(
        _ configuration: GroupConfiguration = GroupConfiguration(initialRebalanceDelayMilliseconds: 0),
        log: [CoordinatorRecord] = [], topics: [TopicCatalog.Topic] = []
    ) {
        self.configuration = configuration
        shard = GroupCoordinatorShard(configuration: configuration)
        self.topics = topics
        load(log.map { .record($0, producerID: nil) })
    }

    init(_ configuration: GroupConfiguration, entries: [Entry], topics: [TopicCatalog.Topic] = []) {
        self.configuration = configuration
        shard = GroupCoordinatorShard(configuration: configuration)
        self.topics = topics
        load(entries)
    }

    private func load(_ entries: [Entry]) {
        for entry in entries {
            switch entry {
            case .record(let record, nil): shard.replay(record, now: moment.timestamp)
            case .record(let record, let producerID?):
                shard.replay(record, producerID: producerID, now: moment.timestamp)
            case .end(let producerID, let commits):
                shard.replayTransactionEnd(producerID: producerID, commits: commits, now: moment.timestamp)
            }
        }
        self.entries = entries
        setTopics(topics)
        handle(.loaded)
    }

    func setTopics(_ topics: [TopicCatalog.Topic]) {
        self.topics = topics
        catalogVersion += 1
        handle(.topicsChanged(TopicCatalog(version: catalogVersion, topics: topics)))
    }

    var moment: Moment {
        Moment(
            instant: Instant(nanoseconds: milliseconds * 1_000_000),
            timestamp: Timestamp(milliseconds: Self.epoch + milliseconds))
    }

    func handle(_ event: GroupCoordinatorShard.Event) {
        var effects: [CoordinatorEffect] = []
        shard.handle(event, now: moment, into: &effects)
        for effect in effects {
            switch effect {
            case .respond(let id, let response):
                precondition(responses[id] == nil, "\(id) is answered twice")
                responses[id] = response
            case .append(let records, let token):
                precondition(inFlight.last.map { $0.token < token } ?? true, "tokens rise")
                inFlight.append((records, token))
            case .appendTransactional(let records, let producer, let token):
                producers[token] = producer.id
                inFlight.append((records, token))
            case .appendMarker(let marker, let token):
                markers[token] = marker
                inFlight.append(([], token))
            case .schedule(let timer, let instant): timers[timer] = instant
            case .cancel(let timer): timers[timer] = nil
            case .report(let report): reports.append(report)
            case .orderShareState(let order, let id): shareOrders.append((order, id))
            }
        }
        while carriesOutOrders, !shareOrders.isEmpty { answerOrder(.none) }
        while commitsAtOnce, !inFlight.isEmpty { commitNext() }
    }

    func commitNext() {
        let next = inFlight.removeFirst()
        // Through the bytes, as in the log.
        var byteCount = 0
        for record in next.records {
            let (key, value) = try! record.encoded()
            byteCount += key.readableBytes + (value?.readableBytes ?? 0)
            let decoded = try! CoordinatorRecord.decode(key: key, value: value)!
            entries.append(.record(decoded, producerID: producers[next.token]))
        }
        #expect(byteCount <= 16 << 20, "one decision, one batch: the topic takes 16 MiB")
        if let marker = markers[next.token] {
            entries.append(.end(producerID: marker.producer.id, commits: marker.commits))
        }
        handle(.committed(next.token))
    }

    /// The share coordinator answers the order that came first.
    func answerOrder(_ code: ErrorCode) {
        let next = shareOrders.removeFirst()
        var results: [UniversalID: [Int32: ErrorCode]] = [:]
        switch next.order.work {
        case .initialize(_, let offsets):
            for (topic, partitions) in offsets { results[topic] = partitions.mapValues { _ in code } }
        case .delete(let partitions):
            for (topic, indexes) in partitions {
                for index in indexes { results[topic, default: [:]][index] = code }
            }
        }
        handle(.shareStateOrdered(next.id, results))
    }

    func failNext(_ code: ErrorCode) {
        let next = inFlight.removeFirst()
        handle(.appendFailed(next.token, code))
    }

    /// Lets time pass, firing timers in order.
    func advance(_ duration: Int64) {
        let end = milliseconds + duration
        while let (timer, instant) = timers.min(by: {
            $0.value == $1.value ? "\($0.key)" < "\($1.key)" : $0.value < $1.value
        }),
            instant.nanoseconds / 1_000_000 <= end
        {
            timers[timer] = nil
            milliseconds = max(milliseconds, instant.nanoseconds / 1_000_000)
            handle(.timerFired(timer))
        }
        milliseconds = end
    }

    @discardableResult
    func send(_ request: GroupRequest) -> RequestID {
        let id = RequestID(nextRequest)
        nextRequest += 1
        handle(.requested(id, request))
        return id
    }

    func response(to id: RequestID) -> GroupResponse? { responses[id] }

    /// Sends and returns the answer, if it came at once.
    func ask(_ request: GroupRequest) -> GroupResponse? {
        let id = send(request)
        return responses[id]
    }

    var unansweredCount: Int { Int(nextRequest) - 1 - responses.count }

    func durableState() -> GroupCoordinatorShard.DurableState { shard.durableState() }
    func summary(_ group: String) -> GroupCoordinatorShard.GroupSummary? { shard.summary(group: group) }
    var groupCount: Int { shard.groupCount }
    func obsoleteOffsets(_ currentID: (String) -> UniversalID?) -> [OffsetCommitKey] {
        shard.obsoleteOffsets(currentID)
    }
    var offsetCount: Int { shard.offsetCount }
    var memberByteCount: Int { shard.memberByteCount }
    var memberBytesElsewhere: Int {
        get { shard.memberBytesElsewhere }
        set { shard.memberBytesElsewhere = newValue }
    }

    /// A new coordinator that has loaded this one's log.
    func successor() -> ShardHarness { ShardHarness(configuration, entries: entries, topics: topics) }

    // MARK: Requests in short form

    struct Join {
        var member = ""
        var instance: String?
        var protocols: [(String, [String])] = [("range", ["topic"])]
        var session: Int32 = 10_000
        var rebalance: Int32 = 60_000
        var client = "client"
        var requiresKnownID = true
        var canSkip = true
        var reason: String?
        var type = "consumer"
    }

    func join(_ group: String, _ join: Join = Join()) -> RequestID {
        var request = JoinGroupRequest()
        request.groupID = group
        request.sessionTimeoutMs = join.session
        request.rebalanceTimeoutMs = join.rebalance
        request.memberID = join.member
        request.groupInstanceID = join.instance
        request.protocolType = join.type
        request.reason = join.reason
        request.protocols = join.protocols.map { name, topics in
            var entry = JoinGroupRequest.JoinGroupRequestProtocol()
            entry.name = name
            entry.metadata = Self.subscription(topics)
            return entry
        }
        return send(
            .joinGroup(
                request, ClientIdentity(clientID: join.client, host: "/127.0.0.1"),
                JoinTraits(
                    requiresKnownMemberID: join.requiresKnownID, supportsSkippingAssignment: join.canSkip,
                    newMemberID: UniversalID.random(using: &generator))))
    }

    static func subscription(_ topics: [String]) -> ByteBuffer {
        var subscription = ConsumerProtocolSubscription()
        subscription.topics = topics
        var writer = ProtocolWriter()
        writer.integer(Int16(0))
        try! subscription.encode(into: &writer, version: 0)
        return writer.buffer
    }

    func sync(
        _ group: String, _ member: String, _ generation: Int32, instance: String? = nil,
        assignments: [String: String] = [:], protocolName: String? = nil
    ) -> RequestID {
        var request = SyncGroupRequest()
        request.groupID = group
        request.memberID = member
        request.generationID = generation
        request.groupInstanceID = instance
        request.protocolName = protocolName
        request.assignments = assignments.sorted { $0.key < $1.key }.map {
            var entry = SyncGroupRequest.SyncGroupRequestAssignment()
            entry.memberID = $0.key
            entry.assignment = ByteBuffer(string: $0.value)
            return entry
        }
        return send(.syncGroup(request))
    }

    func heartbeat(_ group: String, _ member: String, _ generation: Int32, instance: String? = nil)
        -> ErrorCode
    {
        var request = HeartbeatRequest()
        request.groupID = group
        request.memberID = member
        request.generationID = generation
        request.groupInstanceID = instance
        guard case .heartbeat(let response)? = responses[send(.heartbeat(request))] else {
            return .unknownServerError
        }
        return ErrorCode(rawValue: response.errorCode)
    }

    func leave(_ group: String, _ members: [(String, String?)]) -> [ErrorCode] {
        var request = LeaveGroupRequest()
        request.groupID = group
        request.members = members.map {
            var member = LeaveGroupRequest.MemberIdentity()
            member.memberID = $0.0
            member.groupInstanceID = $0.1
            return member
        }
        guard case .leaveGroup(let response)? = responses[send(.leaveGroup(request))] else { return [] }
        return response.members.map { ErrorCode(rawValue: $0.errorCode) }
    }

    func commit(
        _ group: String, _ offsets: [(String, Int32, Int64)], member: String = "", generation: Int32 = -1,
        instance: String? = nil, metadata: String? = nil, reportsMissingGroup: Bool = true
    ) -> RequestID {
        var request = OffsetCommitRequest()
        request.groupID = group
        request.memberID = member
        request.generationIDOrMemberEpoch = generation
        request.groupInstanceID = instance
        request.topics = offsets.map { topic, partition, offset in
            var entry = OffsetCommitRequest.OffsetCommitRequestPartition()
            entry.partitionIndex = partition
            entry.committedOffset = offset
            entry.committedLeaderEpoch = 3
            entry.committedMetadata = metadata
            var result = OffsetCommitRequest.OffsetCommitRequestTopic()
            result.name = topic
            result.partitions = [entry]
            return result
        }
        return send(.offsetCommit(request, reportsMissingGroup: reportsMissingGroup))
    }

    func commitCode(_ id: RequestID) -> ErrorCode? {
        guard case .offsetCommit(let response)? = responses[id] else { return nil }
        return response.topics.first?.partitions.first.map { ErrorCode(rawValue: $0.errorCode) }
    }

    func fetch(_ group: String, _ topics: [(String, [Int32])]? = nil) -> RequestID {
        var request = OffsetFetchRequest.OffsetFetchRequestGroup()
        request.groupID = group
        request.topics = topics?.map {
            var topic = OffsetFetchRequest.OffsetFetchRequestTopics()
            topic.name = $0.0
            topic.partitionIndexes = $0.1
            return topic
        }
        return send(.offsetFetch(request, requireStable: true))
    }

    /// "topic-partition" to offset.
    func fetched(_ id: RequestID) -> [String: Int64]? {
        guard case .offsetFetch(let response)? = responses[id] else { return nil }
        var offsets: [String: Int64] = [:]
        for topic in response.topics {
            for partition in topic.partitions {
                offsets["\(topic.name)-\(partition.partitionIndex)"] = partition.committedOffset
            }
        }
        return offsets
    }

    func joined(_ id: RequestID) -> JoinGroupResponse? {
        guard case .joinGroup(let response)? = responses[id] else { return nil }
        return response
    }

    func joinCode(_ id: RequestID) -> ErrorCode? { joined(id).map { ErrorCode(rawValue: $0.errorCode) } }

    func synced(_ id: RequestID) -> SyncGroupResponse? {
        guard case .syncGroup(let response)? = responses[id] else { return nil }
        return response
    }

    func syncCode(_ id: RequestID) -> ErrorCode? { synced(id).map { ErrorCode(rawValue: $0.errorCode) } }

    /// Joins with the two steps of KIP-394 and returns the second request.
    func joinTwice(_ group: String, _ join: Join = Join()) -> (request: RequestID, member: String) {
        let first = self.join(group, join)
        guard let response = joined(first), response.errorCode == ErrorCode.memberIDRequired.rawValue else {
            Issue.record("expected MEMBER_ID_REQUIRED")
            return (first, "")
        }
        var again = join
        again.member = response.memberID
        return (self.join(group, again), response.memberID)
    }

    /// A stable group of `count` dynamic members, in the order of joining; the leader is the first.
    func stableGroup(_ group: String, members count: Int, join: Join = Join()) -> (
        members: [String], generation: Int32
    ) {
        var requests: [(request: RequestID, member: String)] = []
        for _ in 0..<count {
            requests.append(joinTwice(group, join))
            // Earlier members come back for the rebalance that the new one started.
            for index in requests.indices.dropLast() {
                var again = join
                again.member = requests[index].member
                requests[index].request = self.join(group, again)
            }
        }
        let generation = joined(requests[0].request)?.generationID ?? -1
        let members = requests.map(\.member)
        let assignments = Dictionary(uniqueKeysWithValues: members.enumerated().map { ($1, "part \($0)") })
        for member in members {
            _ = sync(
                group, member, generation,
                assignments: member == joined(requests[0].request)?.leader ? assignments : [:])
        }
        return (members, generation)
    }
}
