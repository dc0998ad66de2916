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
    /// Of a static member (KIP-345): whoever joins under it takes its place.
    var instanceID: String? { nil }
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

    /// The group has gone on without the member for a while: what it held was its own only until then.
    fileprivate func beginTenure() {
        lives += 1
        hasMissedGeneration = true
    }

    fileprivate var hasMissedGeneration = false
    /// What it has still to give up and what was another's meanwhile.
    fileprivate var stale: Set<Place> = []

    func touch() { nextHeartbeat = 0 }

    /// The next join is another member's.
    func dropMemberID() { memberID = "" }

    /// The broker accepted a request that was sent at `start`.
    func noteAccepted(since start: Int64) {
        guard epoch >= 0 else { return }
        world.record(
            process, since: start, .succeeded,
            [.hold(group: group, member: name, epoch: Int(epoch), places: places.subtracting(stale).sorted())])
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
        request.groupInstanceID = instanceID
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
                if codes.contains(.unknownMemberID) || codes.contains(.fencedMemberEpoch)
                    || codes.contains(.fencedInstanceID)
                {
                    lost()
                }
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

/// How members of a classic group behave.
struct ClassicStyle {
    /// Keep what they have while the group is rebalanced (KIP-429); otherwise they give everything up.
    var isCooperative = false
    /// Known by an instance id (KIP-345).
    var isStatic = false

    init(_ random: SimulationRandom) {
        isCooperative = random.chance(50)
        isStatic = random.chance(40)
    }
}

/// The classic protocol (KIP-394 joins in two steps), eager or cooperative; assignments are the leader's.
final class ClassicMembership: Membership {
    private let style: ClassicStyle
    /// It has begun to join again and has no new assignment yet, however long that takes.
    private var isJoining = false

    init(
        _ world: World, process: Int, link: ClientLink, random: SimulationRandom, group: String, topic: String,
        partitionCount: Int, style: ClassicStyle
    ) {
        self.style = style
        super.init(
            world, process: process, link: link, random: random, group: group, topic: topic,
            partitionCount: partitionCount)
    }

    override var instanceID: String? { style.isStatic ? "instance-\(process)" : nil }

    override func tend(leaving: () async -> Void) async -> Bool {
        if epoch < 0 || isJoining { return await join(leaving) }
        guard world.now >= nextHeartbeat else { return false }
        let start = world.now
        var request = HeartbeatRequest()
        request.groupID = group
        request.generationID = epoch
        request.memberID = memberID
        request.groupInstanceID = instanceID
        do {
            let code = ErrorCode(rawValue: try await link.ask(request, version: 4).errorCode)
            switch code {
            case .none:
                nextHeartbeat = world.now + Self.heartbeatInterval
                noteAccepted(since: start)
                return false
            case .rebalanceInProgress:
                if !style.isCooperative { await leaving() }
                return await join(leaving)
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

    private func join(_ leaving: () async -> Void) async -> Bool {
        // The eager protocol: nothing is the member's from here on, and what it gets again is a tenure of its own.
        if epoch >= 0, !style.isCooperative { lost() }
        isJoining = true
        var request = JoinGroupRequest()
        request.groupID = group
        request.sessionTimeoutMs = Self.sessionTimeoutMilliseconds
        request.rebalanceTimeoutMs = 8_000
        request.memberID = memberID
        request.groupInstanceID = instanceID
        request.protocolType = "consumer"
        var option = JoinGroupRequest.JoinGroupRequestProtocol()
        option.name = style.isCooperative ? "cooperative-sticky" : "range"
        option.metadata = subscription()
        request.protocols = [option]
        do {
            let answer = try await link.ask(request, version: 5, timeoutMilliseconds: 20_000)
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                memberID = answer.memberID
                // A static member keeps its place in a generation that it did not join in time, with what it said of
                // itself before: what it was given since may be another's in it (KIP-345, KIP-429). Nor does it help to
                // have joined one: a coordinator that cannot write a generation down counts it again, without it.
                if style.isStatic, epoch >= 0, answer.generationID > epoch + 1 { beginTenure() }
                return await sync(answer, leaving)
            case .memberIDRequired:
                memberID = answer.memberID
                return await join(leaving)
            case .unknownMemberID, .fencedInstanceID:
                memberID = ""
                if epoch >= 0 { lost() }
            case _:
                break
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "JoinGroup: \(cause)") }
        }
        await world.pause(nanoseconds: random.nanoseconds(100...600))
        return true
    }

    private func sync(_ joined: JoinGroupResponse, _ leaving: () async -> Void) async -> Bool {
        let start = world.now
        var request = SyncGroupRequest()
        request.groupID = group
        request.generationID = joined.generationID
        request.memberID = memberID
        request.groupInstanceID = instanceID
        if joined.leader == memberID {
            request.assignments = assign(joined).sorted { $0.key < $1.key }.map { member, partitions in
                var assignment = ConsumerProtocolAssignment()
                var part = ConsumerProtocolAssignment.TopicPartition()
                part.topic = topic
                part.partitions = partitions.map { Int32($0) }
                assignment.assignedPartitions = [part]
                var item = SyncGroupRequest.SyncGroupRequestAssignment()
                item.memberID = member
                item.assignment = Self.encode(assignment, version: 0)
                return item
            }
        }
        do {
            let answer = try await link.ask(request, version: 3, timeoutMilliseconds: 15_000)
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                return await take(
                    Self.places(answer.assignment), generation: joined.generationID, since: start, leaving)
            case .unknownMemberID, .fencedInstanceID:
                memberID = ""
                if epoch >= 0 { lost() }
            case _:
                // With the cooperative protocol what it has stays its own; it joins again.
                break
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "SyncGroup: \(cause)") }
        }
        nextHeartbeat = 0
        return true
    }

    private func take(
        _ wanted: Set<Place>, generation: Int32, since start: Int64, _ leaving: () async -> Void
    ) async -> Bool {
        epoch = generation
        nextHeartbeat = world.now + Self.heartbeatInterval
        if hasMissedGeneration { stale = places.subtracting(wanted) }
        hasMissedGeneration = false
        if !places.subtracting(wanted).isEmpty {
            // Given up now, for others to get when the member has joined again.
            noteAccepted(since: start)
            await leaving()
            stale = []
            guard epoch >= 0 else { return true }
            places.formIntersection(wanted)
            // From here on others may have the rest, whatever becomes of the join.
            noteAccepted(since: world.now)
            return await join(leaving)
        }
        isJoining = false
        places = wanted
        noteAccepted(since: start)
        return true
    }

    // MARK: Assignment

    private func subscription() -> ByteBuffer {
        var subscription = ConsumerProtocolSubscription()
        subscription.topics = [topic]
        guard style.isCooperative else { return Self.encode(subscription, version: 0) }
        var owned = ConsumerProtocolSubscription.TopicPartition()
        owned.topic = topic
        owned.partitions = places.map { Int32($0.partition) }.sorted()
        subscription.ownedPartitions = owned.partitions.isEmpty ? [] : [owned]
        subscription.generationID = epoch
        return Self.encode(subscription, version: 2)
    }

    /// The leader's work: partitions by member.
    private func assign(_ joined: JoinGroupResponse) -> [String: [Int]] {
        let members = joined.members.map(\.memberID).sorted()
        var result = Dictionary(uniqueKeysWithValues: members.map { ($0, [Int]()) })
        guard style.isCooperative else {
            for partition in 0..<partitionCount { result[members[partition % members.count]]?.append(partition) }
            return result
        }
        // Who has a partition keeps it, up to its share; what is above that is nobody's until it has been given up.
        var owners: [Int: (member: String, generation: Int32)] = [:]
        for member in joined.members.sorted(by: { $0.memberID < $1.memberID }) {
            guard let claim = Self.claim(member.metadata) else { continue }
            for partition in claim.ownedPartitions.flatMap(\.partitions) {
                if let known = owners[Int(partition)], known.generation >= claim.generationID { continue }
                owners[Int(partition)] = (member.memberID, claim.generationID)
            }
        }
        let share = (partitionCount + members.count - 1) / members.count
        for partition in 0..<partitionCount {
            if let owner = owners[partition]?.member {
                if result[owner, default: []].count < share { result[owner, default: []].append(partition) }
            } else if let least = members.min(by: {
                (claims(owners, $0) + (result[$0]?.count ?? 0), $0) < (claims(owners, $1) + (result[$1]?.count ?? 0), $1)
            }) {
                result[least, default: []].append(partition)
            }
        }
        return result
    }

    private func claims(_ owners: [Int: (member: String, generation: Int32)], _ member: String) -> Int {
        owners.values.count { $0.member == member }
    }

    private static func claim(_ bytes: ByteBuffer) -> ConsumerProtocolSubscription? {
        var reader = ProtocolReader(bytes)
        do throws(DecodeError) {
            let version: Int16 = try reader.integer()
            return try ConsumerProtocolSubscription(reading: &reader, version: version)
        } catch {
            return nil
        }
    }

    override func leave() async {
        guard epoch >= 0 else { return }
        // A static member only stops: its place is kept for its next life.
        if !style.isStatic || world.act == .over {
            var request = LeaveGroupRequest()
            request.groupID = group
            var member = LeaveGroupRequest.MemberIdentity()
            member.memberID = memberID
            member.groupInstanceID = instanceID
            request.members = [member]
            _ = link.start(request, version: 4)
        }
        memberID = ""
        lost()
    }

    private static func encode(_ value: some KafkaRecordData, version: Int16) -> ByteBuffer {
        var writer = ProtocolWriter()
        writer.integer(version)
        do throws(EncodeError) {
            try value.encode(into: &writer, version: version)
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
