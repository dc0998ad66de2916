internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// A member of a consumer group, of either protocol. Keeps the partitions it may read.
class Membership {
    /// Shorter than some faults last, so that members are given up.
    static let sessionTimeoutMilliseconds: Int32 = 10_000
    static let heartbeatInterval: Int64 = 3_000_000_000

    let world: World
    let process: Int
    let link: ClientLink
    let random: SimulationRandom
    let group: String
    let topic: String
    let partitionCount: Int
    fileprivate(set) var memberID = ""
    /// Generation or member epoch.
    fileprivate(set) var epoch: Int32 = -1
    fileprivate(set) var places: Set<Place> = []
    fileprivate var nextHeartbeat: Int64 = 0
    /// A member that comes back under its id is another one: what it held is no longer its own.
    private var lives = 0
    private var name: String { "\(process) \(memberID) \(lives)" }

    init(
        _ world: World, process: Int, link: ClientLink, random: SimulationRandom, group: String, topic: String,
        partitionCount: Int
    ) {
        self.world = world
        self.process = process
        self.link = link
        self.random = random
        self.group = group
        self.topic = topic
        self.partitionCount = partitionCount
    }

    /// Joins, sends the heartbeat that is due, takes and gives partitions. True if partitions came or went.
    ///
    /// - Parameter leaving: called before partitions are given up, while they are still the member's.
    func tend(leaving: () async -> Void) async -> Bool { false }

    func leave() async {}

    /// The broker said that the member is none any more.
    func lost() {
        lives += 1
        places = []
        epoch = -1
        nextHeartbeat = 0
    }

    func touch() { nextHeartbeat = 0 }

    /// The next join is another member's.
    func dropMemberID() { memberID = "" }

    /// The broker accepted a request that was sent at `start`.
    func noteAccepted(since start: Int64) {
        guard epoch >= 0 else { return }
        world.record(
            process, since: start, .succeeded,
            [.hold(group: group, member: name, epoch: Int(epoch), places: places.sorted())])
    }

    /// Where to go on reading; empty if the broker did not say. Members without a committed offset start at 0.
    func fetchOffsets() async -> [Place: Int64] {
        let start = world.now
        var part = OffsetFetchRequest.OffsetFetchRequestGroup()
        part.groupID = group
        if isOfConsumerProtocol {
            part.memberID = memberID
            part.memberEpoch = epoch
        }
        var topics = OffsetFetchRequest.OffsetFetchRequestTopics()
        topics.name = topic
        topics.partitionIndexes = places.map { Int32($0.partition) }.sorted()
        part.topics = [topics]
        var request = OffsetFetchRequest()
        request.groups = [part]
        request.requireStable = true
        let response: OffsetFetchResponse
        do {
            response = try await link.ask(request, version: 9)
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "OffsetFetch: \(cause)") }
            return [:]
        }
        guard let answer = response.groups.first else { return [:] }
        let code = ErrorCode(rawValue: answer.errorCode)
        guard code == .none else {
            if !code.asksForPatience { lost() }
            return [:]
        }
        var found: [Place: Int64] = [:]
        for partition in answer.topics.flatMap(\.partitions) {
            guard partition.errorCode == 0 else { return [:] }
            found[Place(topic, Int(partition.partitionIndex))] = partition.committedOffset
        }
        world.record(
            process, since: start, .succeeded,
            found.sorted { $0.key < $1.key }.map { .committed(GroupOffset(group, $0.key, $0.value)) })
        return found.mapValues { max(0, $0) }
    }

    /// Commits outside of transactions. False if the member has to look after its membership first.
    func commit(_ offsets: [Place: Int64]) async -> Bool {
        guard epoch >= 0, !offsets.isEmpty else { return true }
        let start = world.now
        var request = OffsetCommitRequest()
        request.groupID = group
        request.generationIDOrMemberEpoch = epoch
        request.memberID = memberID
        var part = OffsetCommitRequest.OffsetCommitRequestTopic()
        part.name = topic
        part.partitions = offsets.sorted { $0.key < $1.key }.map { place, offset in
            var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
            partition.partitionIndex = Int32(place.partition)
            partition.committedOffset = offset
            return partition
        }
        request.topics = [part]
        let steps = offsets.sorted { $0.key < $1.key }.map { Step.commit(GroupOffset(group, $0.key, $0.value)) }
        var outcome = Outcome.unknown
        var isMember = true
        do {
            let response = try await link.ask(request, version: 9)
            let codes = response.topics.flatMap(\.partitions).map { ErrorCode(rawValue: $0.errorCode) }
            if codes.allSatisfy({ $0 == .none }) {
                outcome = .succeeded
            } else if codes.allSatisfy({ $0 != .none && $0 != .requestTimedOut && $0 != .kafkaStorageError }) {
                outcome = codes.allSatisfy { !$0.asksForPatience } ? .failed : .unknown
                isMember = codes.allSatisfy(\.asksForPatience)
                if codes.contains(.unknownMemberID) || codes.contains(.fencedMemberEpoch) { lost() }
                nextHeartbeat = 0
            }
        } catch {
            if case .refused = error { outcome = .failed }
            if case .malformed(let cause) = error { world.fail("malformed-response", "OffsetCommit: \(cause)") }
        }
        var all = steps
        if outcome == .succeeded {
            all.append(
                .hold(group: group, member: name, epoch: Int(epoch), places: places.sorted()))
        }
        world.record(process, since: start, outcome, all)
        return isMember
    }

    fileprivate var isOfConsumerProtocol: Bool { false }
}

/// The classic protocol with the eager assignor `range` (KIP-394 joins in two steps).
final class ClassicMembership: Membership {
    override func tend(leaving: () async -> Void) async -> Bool {
        if epoch < 0 { return await join() }
        guard world.now >= nextHeartbeat else { return false }
        let start = world.now
        var request = HeartbeatRequest()
        request.groupID = group
        request.generationID = epoch
        request.memberID = memberID
        do {
            let code = ErrorCode(rawValue: try await link.ask(request, version: 4).errorCode)
            switch code {
            case .none:
                nextHeartbeat = world.now + Self.heartbeatInterval
                noteAccepted(since: start)
                return false
            case .rebalanceInProgress:
                await leaving()
                return await join()
            case .unknownMemberID, .fencedInstanceID:
                memberID = ""
                lost()
                return true
            case .illegalGeneration:
                lost()
                return true
            case _:
                nextHeartbeat = world.now + 500_000_000
                return false
            }
        } catch {
            nextHeartbeat = world.now + 200_000_000
            return false
        }
    }

    private func join() async -> Bool {
        // The eager protocol: nothing is the member's from here on, and what it gets again is a tenure of its own.
        if epoch >= 0 { lost() }
        var request = JoinGroupRequest()
        request.groupID = group
        request.sessionTimeoutMs = Self.sessionTimeoutMilliseconds
        request.rebalanceTimeoutMs = 8_000
        request.memberID = memberID
        request.protocolType = "consumer"
        var option = JoinGroupRequest.JoinGroupRequestProtocol()
        option.name = "range"
        var subscription = ConsumerProtocolSubscription()
        subscription.topics = [topic]
        option.metadata = Self.encode(subscription)
        request.protocols = [option]
        do {
            let answer = try await link.ask(request, version: 5, timeoutMilliseconds: 20_000)
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                memberID = answer.memberID
                return await sync(answer)
            case .memberIDRequired:
                memberID = answer.memberID
                return await join()
            case .unknownMemberID, .fencedInstanceID:
                memberID = ""
            case _:
                break
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "JoinGroup: \(cause)") }
        }
        await world.pause(nanoseconds: random.nanoseconds(100...600))
        return true
    }

    private func sync(_ joined: JoinGroupResponse) async -> Bool {
        let start = world.now
        var request = SyncGroupRequest()
        request.groupID = group
        request.generationID = joined.generationID
        request.memberID = memberID
        if joined.leader == memberID {
            let members = joined.members.map(\.memberID).sorted()
            request.assignments = members.enumerated().map { index, member in
                var assignment = ConsumerProtocolAssignment()
                var part = ConsumerProtocolAssignment.TopicPartition()
                part.topic = topic
                part.partitions = (0..<partitionCount).filter { $0 % members.count == index }.map { Int32($0) }
                assignment.assignedPartitions = [part]
                var item = SyncGroupRequest.SyncGroupRequestAssignment()
                item.memberID = member
                item.assignment = Self.encode(assignment)
                return item
            }
        }
        do {
            let answer = try await link.ask(request, version: 3, timeoutMilliseconds: 15_000)
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                epoch = joined.generationID
                places = Self.places(answer.assignment)
                nextHeartbeat = world.now + Self.heartbeatInterval
                noteAccepted(since: start)
            case .unknownMemberID, .fencedInstanceID:
                memberID = ""
            case _:
                break
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "SyncGroup: \(cause)") }
        }
        return true
    }

    override func leave() async {
        guard epoch >= 0 else { return }
        var request = LeaveGroupRequest()
        request.groupID = group
        var member = LeaveGroupRequest.MemberIdentity()
        member.memberID = memberID
        request.members = [member]
        _ = link.start(request, version: 4)
        memberID = ""
        lost()
    }

    private static func encode(_ value: some KafkaRecordData) -> ByteBuffer {
        var writer = ProtocolWriter()
        writer.integer(Int16(0))
        do throws(EncodeError) {
            try value.encode(into: &writer, version: 0)
        } catch {
            preconditionFailure("a client's own subscription cannot be encoded: \(error)")
        }
        return writer.buffer
    }

    private static func places(_ bytes: ByteBuffer) -> Set<Place> {
        var reader = ProtocolReader(bytes)
        do throws(DecodeError) {
            let version: Int16 = try reader.integer()
            let assignment = try ConsumerProtocolAssignment(reading: &reader, version: version)
            return Set(
                assignment.assignedPartitions.flatMap { part in
                    part.partitions.map { Place(part.topic, Int($0)) }
                })
        } catch {
            return []
        }
    }
}

/// The consumer protocol (KIP-848): the broker assigns, the member gives up and takes one after the other.
final class ConsumerMembership: Membership {
    private var needsFull = true

    override var isOfConsumerProtocol: Bool { true }

    override func lost() {
        super.lost()
        needsFull = true
    }

    override func tend(leaving: () async -> Void) async -> Bool {
        if epoch >= 0, world.now < nextHeartbeat { return false }
        if memberID.isEmpty { memberID = "m\(process)-\(random.next() % 1_000_000)" }
        let start = world.now
        var request = ConsumerGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = memberID
        request.memberEpoch = max(0, epoch)
        if needsFull || epoch < 0 {
            request.rebalanceTimeoutMs = 8_000
            request.subscribedTopicNames = [topic]
            request.topicPartitions = owned
        } else {
            request.topicPartitions = owned
        }
        do {
            let answer = try await link.ask(request, version: 1)
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                needsFull = false
                nextHeartbeat = world.now + max(100_000_000, Int64(answer.heartbeatIntervalMs) * 1_000_000)
                return await take(answer, since: start, leaving: leaving)
            case .unknownMemberID, .fencedMemberEpoch:
                let had = !places.isEmpty
                lost()
                return had
            case _:
                nextHeartbeat = world.now + 500_000_000
                needsFull = true
                if epoch < 0 { await world.pause(nanoseconds: random.nanoseconds(100...600)) }
                return false
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "ConsumerGroupHeartbeat: \(cause)") }
            needsFull = true
            nextHeartbeat = world.now + 200_000_000
            if epoch < 0 { await world.pause(nanoseconds: random.nanoseconds(100...600)) }
            return false
        }
    }

    private var owned: [ConsumerGroupHeartbeatRequest.TopicPartitions] {
        guard let id = world.topicIDs[topic], !places.isEmpty else { return [] }
        var part = ConsumerGroupHeartbeatRequest.TopicPartitions()
        part.topicID = id
        part.partitions = places.map { Int32($0.partition) }.sorted()
        return [part]
    }

    private func take(
        _ answer: ConsumerGroupHeartbeatResponse, since start: Int64, leaving: () async -> Void
    ) async -> Bool {
        epoch = answer.memberEpoch
        guard let assignment = answer.assignment else {
            noteAccepted(since: start)
            return false
        }
        let wanted = Set(
            assignment.topicPartitions.flatMap { part in
                part.partitions.map { Place(world.topicNames[part.topicID] ?? "?", Int($0)) }
            })
        let gone = places.subtracting(wanted)
        let changed = wanted != places
        if !gone.isEmpty {
            noteAccepted(since: start)
            await leaving()
            // It may have turned out meanwhile that the member is none any more.
            guard epoch >= 0 else { return true }
        }
        places = wanted
        if gone.isEmpty {
            noteAccepted(since: start)
        }
        // The broker waits for word of it.
        if changed { nextHeartbeat = world.now }
        return changed
    }

    override func leave() async {
        guard epoch >= 0 else { return }
        var request = ConsumerGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = memberID
        request.memberEpoch = -1
        _ = link.start(request, version: 1)
        lost()
        memberID = ""
    }
}
