internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel

enum GroupProtocol: String, CaseIterable {
    case classic, consumer
}

/// Reads all partitions of some topics from the beginning, without a group.
// SAFETY: confined to the thread that runs the simulation.
final class AssignedReader: Client, @unchecked Sendable {
    private let reader: FetchingReader
    private let places: [Place]
    private var hasAssigned = false

    init(_ world: World, process: Int, places: [Place]) {
        self.places = places
        let random = world.stream("reader \(process)")
        let link = ClientLink(world, "reader-\(process)")
        reader = FetchingReader(world, link, random)
        super.init(world, process: process, link: link, random: random)
    }

    /// Nothing is left to read, and no transaction is open.
    var isAtEnd: Bool { reader.atEnd.count == places.count }

    override var endsWithThePlay: Bool { false }

    /// Where it reads next, for reports.
    var positions: [Place: Int64] { reader.positions }

    override func run() async {
        for place in places { reader.positions[place] = 0 }
        while world.act < .over {
            let start = world.now
            let records = await reader.poll()
            if !records.isEmpty || !hasAssigned {
                var steps: [Step] = []
                if !hasAssigned { steps = places.map { .assign($0, from: 0) } }
                hasAssigned = true
                world.record(process, since: start, .succeeded, steps + [.poll(records)])
            }
            await pause(records.isEmpty ? 700...5_000 : 700...6_000)
            if world.act == .play, random.chance(1) { link.close() }
        }
    }
}

/// A member of a group that reads and commits. Members die and come back.
// SAFETY: confined to the thread that runs the simulation.
class GroupReader: Client, @unchecked Sendable {
    let membership: Membership
    let reader: FetchingReader
    /// Next offset that is not committed yet, of partitions where something was read since.
    private var uncommitted: [Place: Int64] = [:]
    private var isNew = true

    init(
        _ world: World, process: Int, name: String, group: String, protocol kind: GroupProtocol,
        style: ClassicStyle, topic: String, partitionCount: Int
    ) {
        let random = world.stream("\(name) \(process)")
        let link = ClientLink(world, "\(name)-\(process)")
        // As Kafka's clients do, the coordinator is reached on a connection of its own.
        let coordinator = ClientLink(world, "\(name)-\(process)-group")
        membership =
            switch kind {
            case .classic:
                ClassicMembership(
                    world, process: process, link: coordinator, random: random, group: group, topic: topic,
                    partitionCount: partitionCount, style: style)
            case .consumer:
                ConsumerMembership(
                    world, process: process, link: coordinator, random: random, group: group, topic: topic,
                    partitionCount: partitionCount)
            }
        reader = FetchingReader(world, link, random)
        super.init(world, process: process, link: link, random: random)
    }

    override var endsWithThePlay: Bool { false }

    override func run() async {
        await pause(0...3_000)
        while world.act < .over {
            if isNew {
                isNew = false
                world.record(process, since: world.now, .succeeded, [.subscribe([membership.topic])])
            }
            let changed = await membership.tend { [self] in await leaving() }
            if changed || Set(reader.positions.keys) != membership.places {
                await begin()
                guard Set(reader.positions.keys) == membership.places else {
                    await pause(50...400)
                    continue
                }
            }
            if membership.places.isEmpty {
                await pause(200...1_000)
            } else {
                await work()
                await pause(400...7_500)
            }
            if world.act == .play { await misbehave() }
        }
        await membership.leave()
    }

    /// Partitions came or went: everything read starts at what is committed.
    func begin() async {
        uncommitted = [:]
        reader.positions = [:]
        guard !membership.places.isEmpty else { return }
        let offsets = await membership.fetchOffsets()
        guard Set(offsets.keys) == membership.places else { return }
        reader.positions = offsets
        world.record(process, since: world.now, .succeeded, [.rebalanced])
    }

    /// Partitions are about to be given up.
    func leaving() async { await commit() }

    /// One round of reading.
    func work() async {
        let start = world.now
        let before = reader.positions
        let records = await reader.poll()
        if !records.isEmpty { world.record(process, since: start, .succeeded, [.poll(records)]) }
        for (place, offset) in reader.positions where offset != before[place] { uncommitted[place] = offset }
        if random.chance(60) { await commit() }
    }

    private func commit() async {
        let offsets = uncommitted.filter { membership.places.contains($0.key) }
        guard !offsets.isEmpty else { return }
        if await membership.commit(offsets) { uncommitted = [:] }
    }

    private func misbehave() async {
        let draw = random.int(0..<1_000)
        if draw < 2 {
            // Ends properly and comes back.
            await membership.leave()
            reset()
            await pause(500...15_000)
        } else if draw < 4 {
            // Dies without a word; its successor is another member.
            membership.touch()
            membership.lost()
            membership.dropMemberID()
            reset()
            await pause(500...20_000)
        } else if draw < 6 {
            // Stops for longer than its session and goes on as if nothing had been.
            await pause(8_000...25_000)
        }
    }

    private func reset() {
        reader.positions = [:]
        uncommitted = [:]
        link.close()
        isNew = true
    }
}

/// Consume, transform, produce: copies each record to another topic in a transaction with its offsets.
// SAFETY: confined to the thread that runs the simulation.
final class Copier: GroupReader, @unchecked Sendable {
    private let session: TransactionSession
    private let target: String
    private let targetCount: Int

    init(
        _ world: World, process: Int, group: String, protocol kind: GroupProtocol, style: ClassicStyle,
        generation: TransactionGeneration, source: String, sourceCount: Int, target: String, targetCount: Int
    ) {
        self.target = target
        self.targetCount = targetCount
        let random = world.stream("copier transactions \(process)")
        session = TransactionSession(
            world, "copier-\(process)", generation,
            coordinator: ClientLink(world, "copier-\(process)-txn", lingers: generation == .second),
            data: ClientLink(world, "copier-\(process)-data"), random)
        super.init(
            world, process: process, name: "copier", group: group, protocol: kind, style: style, topic: source,
            partitionCount: sourceCount)
    }

    override func leaving() async {}

    override func work() async {
        if !session.isReady {
            guard await session.initialize() else { return }
        }
        let start = world.now
        let before = reader.positions
        let records = await reader.poll()
        guard !records.isEmpty else { return }
        session.begin()
        var steps: [Step] = [.poll(records)]
        var batches: [OutgoingBatch] = []
        for (place, group) in Dictionary(grouping: records, by: { Place(target, Int($0.value) % targetCount) })
            .sorted(by: { $0.key < $1.key })
        {
            batches.append(session.makeBatch(place, group.map(\.value)))
        }
        var result = await session.send(&batches)
        steps += batches.flatMap(\.steps)
        if result == .acknowledged, random.chance(2) { await pause(3_000...25_000) }
        if result == .acknowledged {
            let offsets = reader.positions.filter { before[$0.key] != $0.value }
            result = await session.commit(
                offsets, group: membership.group, member: membership.memberID, instance: membership.instanceID,
                epoch: membership.epoch)
            steps += offsets.sorted { $0.key < $1.key }.map { .commit(GroupOffset(membership.group, $0.key, $0.value)) }
        }
        // Its session ends, its transaction not yet: whoever takes over must wait for these offsets.
        if result == .acknowledged, random.chance(2) { await pause(9_000...14_000) }
        let commits = result == .acknowledged && random.chance(93)
        let outcome = await session.end(committing: commits)
        world.record(process, since: start, outcome, isTransaction: true, steps)
        session.noteEnd(result)
        if outcome != .succeeded {
            // Reads again from what is committed.
            if case .refused = result { membership.touch() }
            reader.positions = [:]
        }
    }
}
