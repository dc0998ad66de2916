internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel

/// A member of a share group (KIP-932): acquires records, accepts, releases and rejects them, or lets their locks run
/// out; dies with what it holds.
// SAFETY: confined to the thread that runs the simulation.
final class ShareMember: Client, @unchecked Sendable {
    private struct Range {
        var place: Place
        var first: Int64
        var last: Int64
        var kind: Settlement
    }

    private static let heartbeatInterval: Int64 = 3_000_000_000
    /// How long before the client knows of it a connection may have ended for the broker.
    private static let endNotice: Int64 = 100_000_000

    private let group: String
    private let topic: String
    private let coordinator: ClientLink
    private var memberID = ""
    private var life = 0
    private var memberEpoch: Int32 = 0
    private var lastBeat: Int64 = 0
    private var nextBeat: Int64 = 0
    private var assigned: [Int32] = []
    private var sessionEpoch: Int32 = 0
    /// Sent with the next fetch.
    private var pending: [Range] = []
    private(set) var lastDelivery: Int64 = 0

    init(_ world: World, process: Int, group: String, topic: String) {
        self.group = group
        self.topic = topic
        coordinator = ClientLink(world, "share-\(process)-group")
        super.init(
            world, process: process, link: ClientLink(world, "share-\(process)", lingers: false),
            random: world.stream("share \(process)"))
        link.ended = { [weak self] in self?.endSession() }
    }

    override var endsWithThePlay: Bool { false }

    /// It is a member, and nothing has come for so long that locks have run out meanwhile.
    var isIdle: Bool { memberEpoch > 0 && world.now - lastDelivery > 12_000_000_000 }

    override func run() async {
        await pause(0...3_000)
        while world.act < .over {
            if memberID.isEmpty {
                life += 1
                memberID = "share-\(process)-\(life)"
            }
            await beat()
            if !assigned.isEmpty { await work() }
            await pause(world.act == .play ? 2_000...9_000 : 500...2_000)
            if world.act == .play { await misbehave() }
        }
    }

    private func misbehave() async {
        let draw = random.int(0..<1_000)
        if draw < 10 {
            // Dies with what it holds; its successor is another member.
            link.close()
            coordinator.close()
            forget()
            await pause(500...15_000)
        } else if draw < 20 {
            var request = ShareGroupHeartbeatRequest()
            request.groupID = group
            request.memberID = memberID
            request.memberEpoch = -1
            _ = coordinator.start(request, version: 1)
            endSession()
            link.close()
            forget()
            await pause(500...15_000)
        } else if draw < 30 {
            await pause(8_000...25_000)
        }
    }

    private func forget() {
        memberID = ""
        memberEpoch = 0
        assigned = []
        nextBeat = 0
    }

    private func endSession(since start: Int64? = nil) {
        pending = []
        guard sessionEpoch != 0 else { return }
        sessionEpoch = 0
        world.record(
            process, since: start ?? world.now - Self.endNotice, .succeeded, [.sessionEnded(group: group)])
    }

    // MARK: Membership

    private func beat() async {
        guard world.now >= nextBeat else { return }
        let start = world.now
        var request = ShareGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = memberID
        request.memberEpoch = memberEpoch
        if memberEpoch == 0 { request.subscribedTopicNames = [topic] }
        do {
            let answer = try await coordinator.ask(request, version: 1)
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                // From here on the group is to be done with everything in the topic at the end.
                if memberEpoch == 0 { world.record(process, since: start, .succeeded, [nothingAcquired(of: 0)]) }
                memberEpoch = answer.memberEpoch
                lastBeat = start
                nextBeat = world.now + Self.heartbeatInterval
                guard let assignment = answer.assignment else { return }
                let partitions = assignment.topicPartitions.flatMap(\.partitions)
                if partitions != assigned {
                    assigned = partitions
                    // A session is opened with the partitions it has; a new one is simpler than to change one.
                    endSession()
                }
            case .unknownMemberID, .fencedMemberEpoch:
                endSession(since: lastBeat)
                memberEpoch = 0
                assigned = []
            case _:
                nextBeat = world.now + 500_000_000
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "ShareGroupHeartbeat: \(cause)") }
            nextBeat = world.now + 200_000_000
        }
    }

    // MARK: Records

    private func nothingAcquired(of partition: Int32) -> Step {
        .acquired(group: group, Place(topic, Int(partition)), first: 0, last: -1, count: 0, lockMilliseconds: 0)
    }

    private func work() async {
        guard let topicID = world.topicIDs[topic] else { return }
        let start = world.now
        var request = ShareFetchRequest()
        request.groupID = group
        request.memberID = memberID
        request.shareSessionEpoch = sessionEpoch
        request.maxWaitMs = 300
        request.minBytes = 1
        request.maxBytes = 1 << 20
        request.maxRecords = Int32(world.act == .play ? random.int(1..<80) : 500)
        request.batchSize = request.maxRecords
        let carried = sessionEpoch == 0 ? [] : pending
        pending = []
        if sessionEpoch == 0 || !carried.isEmpty {
            var part = ShareFetchRequest.FetchTopic()
            part.topicID = topicID
            let partitions = sessionEpoch == 0 ? assigned : Set(carried.map { Int32($0.place.partition) }).sorted()
            part.partitions = partitions.map { index in
                var partition = ShareFetchRequest.FetchPartition()
                partition.partitionIndex = index
                partition.acknowledgementBatches = carried.filter { Int32($0.place.partition) == index }.map { range in
                    var batch = ShareFetchRequest.AcknowledgementBatch()
                    batch.firstOffset = range.first
                    batch.lastOffset = range.last
                    batch.acknowledgeTypes = [Self.code(range.kind)]
                    return batch
                }
                return partition
            }
            request.topics = [part]
        }
        let response: ShareFetchResponse
        do {
            response = try await link.ask(request, version: 2)
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "ShareFetch: \(cause)") }
            record(carried, start) { _ in .unknown }
            guard case .refused = error else {
                return world.record(process, since: start, .unknown, assigned.map(nothingAcquired))
            }
            return
        }
        guard response.errorCode == 0 else {
            record(carried, start) { _ in .unknown }
            return endSession()
        }
        sessionEpoch += 1
        let parts = response.responses.flatMap(\.partitions)
        record(carried, start) { partition in
            let code = parts.first { Int($0.partitionIndex) == partition }?.acknowledgeErrorCode
            return Self.outcome(code)
        }
        var steps: [Step] = []
        var ranges: [Range] = []
        for part in parts where part.errorCode == 0 {
            take(part, response.acquisitionLockTimeoutMs, &steps, &ranges)
        }
        guard !steps.isEmpty else { return }
        lastDelivery = world.now
        world.record(process, since: start, .succeeded, steps)
        await settle(ranges, topicID)
    }

    private func take(
        _ part: ShareFetchResponse.PartitionData, _ lockMilliseconds: Int32, _ steps: inout [Step],
        _ ranges: inout [Range]
    ) {
        let place = Place(topic, Int(part.partitionIndex))
        guard let first = part.acquiredRecords.first?.firstOffset else { return }
        do {
            let (records, _) = try Batches.decode(part.records, place, from: first, aborted: [])
            for acquired in part.acquiredRecords {
                // What lies between belongs to others or is done with: each range begins anew.
                steps += [
                    .rebalanced, .poll(records.filter { acquired.firstOffset...acquired.lastOffset ~= $0.offset }),
                    .acquired(
                        group: group, place, first: acquired.firstOffset, last: acquired.lastOffset,
                        count: Int(acquired.deliveryCount), lockMilliseconds: Int64(lockMilliseconds)),
                ]
                var start = acquired.firstOffset
                while start <= acquired.lastOffset {
                    let isWhole = random.chance(70)
                    let end = isWhole ? acquired.lastOffset : min(acquired.lastOffset, start + Int64(random.int(0..<8)))
                    if let kind = verdict() { ranges.append(Range(place: place, first: start, last: end, kind: kind)) }
                    start = end + 1
                }
            }
        } catch {
            world.fail("unreadable-batch", "\(place) from \(first) of a share group: \(error)")
        }
    }

    /// Nothing: its lock runs out.
    private func verdict() -> Settlement? {
        if world.act > .play { return .accept }
        switch random.int(0..<100) {
        case 0..<80: return .accept
        case 80..<90: return .release
        case 90..<93: return .reject
        case _: return nil
        }
    }

    private func settle(_ ranges: [Range], _ topicID: UniversalID) async {
        if world.act == .play {
            if random.chance(25) {
                pending = ranges
                return
            }
            // Some think for so long that the locks run out.
            if random.chance(5) { await pause(2_000...8_000) }
        }
        guard sessionEpoch > 0, !ranges.isEmpty else { return }
        let start = world.now
        var part = ShareAcknowledgeRequest.AcknowledgeTopic()
        part.topicID = topicID
        part.partitions = Set(ranges.map(\.place)).sorted().map { place in
            var partition = ShareAcknowledgeRequest.AcknowledgePartition()
            partition.partitionIndex = Int32(place.partition)
            partition.acknowledgementBatches = ranges.filter { $0.place == place }.map { range in
                var batch = ShareAcknowledgeRequest.AcknowledgementBatch()
                batch.firstOffset = range.first
                batch.lastOffset = range.last
                batch.acknowledgeTypes = [Self.code(range.kind)]
                return batch
            }
            return partition
        }
        var request = ShareAcknowledgeRequest()
        request.groupID = group
        request.memberID = memberID
        request.shareSessionEpoch = sessionEpoch
        request.topics = [part]
        do {
            let response = try await link.ask(request, version: 2)
            let parts = response.responses.flatMap(\.partitions)
            record(ranges, start) { partition in
                let code = parts.first { Int($0.partitionIndex) == partition }?.errorCode
                return response.errorCode == 0 ? Self.outcome(code) : .unknown
            }
            if response.errorCode == 0 { sessionEpoch += 1 } else { endSession() }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "ShareAcknowledge: \(cause)") }
            record(ranges, start) { _ in .unknown }
        }
    }

    private func record(_ ranges: [Range], _ start: Int64, outcome: (Int) -> Outcome) {
        for place in Set(ranges.map(\.place)).sorted() {
            world.record(
                process, since: start, outcome(place.partition),
                ranges.filter { $0.place == place }.map {
                    .settled(group: group, place, first: $0.first, last: $0.last, $0.kind)
                })
        }
    }

    /// What the answer for one partition, if there is one, says of what was said about its records.
    private static func outcome(_ code: Int16?) -> Outcome {
        switch code.map(ErrorCode.init(rawValue:)) {
        case .some(.none): .succeeded
        // All or nothing: the broker looks at everything before it changes anything.
        case .invalidRecordState, .invalidRequest: .failed
        case _: .unknown
        }
    }

    private static func code(_ kind: Settlement) -> Int8 {
        switch kind {
        case .accept: 1
        case .release: 2
        case .reject: 3
        }
    }
}
