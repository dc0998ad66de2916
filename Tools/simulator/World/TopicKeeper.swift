internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel

/// An administrator who deletes a topic and creates it again, over and over, while others write and read it. Each
/// time it is another topic: in the history it has a name of its own.
// SAFETY: confined to the thread that runs the simulation.
final class TopicKeeper: Client, @unchecked Sendable {
    private static let topic = "temporary"
    private var count = 0

    init(_ world: World, process: Int) {
        super.init(
            world, process: process, link: ClientLink(world, "keeper-\(process)"),
            random: world.stream("keeper \(process)"))
    }

    override func run() async {
        while world.act == .play {
            guard await create() else { continue }
            await pause(20_000...120_000)
            // The last one stays, to be read to its end.
            guard world.act == .play, let name = world.currentTopic else { return }
            await delete(name)
            await pause(0...4_000)
        }
        if world.currentTopic == nil { _ = await create() }
    }

    /// What the history calls the topic that exists now.
    private func create() async -> Bool {
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = Self.topic
        topic.numPartitions = 1
        topic.replicationFactor = 1
        var request = CreateTopicsRequest()
        request.timeoutMs = 4_000
        request.topics = [topic]
        do {
            let response = try await link.ask(request, version: 7)
            guard let answer = response.topics.first else { return false }
            switch ErrorCode(rawValue: answer.errorCode) {
            case .none:
                return take(answer.topicID)
            case .topicAlreadyExists:
                // The answer of an earlier try was lost.
                guard let id = try await lookUp() else { return false }
                return take(id)
            case let code:
                if !code.asksForPatience { world.fail("create-topic", "\(code.name) \(answer.errorMessage ?? "")") }
                await pause(200...1_000)
                return false
            }
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "CreateTopics: \(cause)") }
            await pause(200...1_000)
            return false
        }
    }

    private func take(_ id: UniversalID) -> Bool {
        if let name = world.topicNames[id], world.deletions[name] != nil {
            world.fail("deleted-topic-served", "\(name) was created again under the id it had")
        }
        count += 1
        let name = "\(Self.topic)~\(count)"
        world.topicIDs[name] = id
        world.topicNames[id] = name
        world.currentTopic = name
        return true
    }

    private func lookUp() async throws(LinkFailure) -> UniversalID? {
        var topic = MetadataRequest.MetadataRequestTopic()
        topic.name = Self.topic
        var request = MetadataRequest()
        request.topics = [topic]
        let response = try await link.ask(request, version: 12)
        guard let found = response.topics.first, found.errorCode == 0 else { return nil }
        return found.topicID
    }

    private func delete(_ name: String) async {
        guard let id = world.topicIDs[name] else { return }
        let start = world.now
        world.deletions[name] = .max
        world.record(process, since: start, .succeeded, [.deleted(topic: name)])
        var state = DeleteTopicsRequest.DeleteTopicState()
        state.name = nil
        state.topicID = id
        var request = DeleteTopicsRequest()
        request.timeoutMs = 4_000
        request.topics = [state]
        while world.act < .over {
            do {
                let response = try await link.ask(request, version: 6)
                switch ErrorCode(rawValue: response.responses.first?.errorCode ?? -1) {
                case .none, .unknownTopicID:
                    world.deletions[name] = world.now
                    world.currentTopic = nil
                    return
                case let code:
                    if !code.asksForPatience { world.fail("delete-topic", code.name) }
                }
            } catch {
                if case .malformed(let cause) = error { world.fail("malformed-response", "DeleteTopics: \(cause)") }
            }
            await pause(200...1_000)
        }
    }
}

/// Writes to the topic that exists now, and sometimes to one that was deleted.
// SAFETY: confined to the thread that runs the simulation.
final class TemporaryProducer: IdempotentProducer, @unchecked Sendable {
    private var before: String?
    private var present: String?

    override var version: Int16 { 13 }

    override var targets: [Place] {
        if world.currentTopic != present {
            before = present ?? before
            present = world.currentTopic
        }
        if let before, random.chance(15) { return [Place(before, 0)] }
        return present.map { [Place($0, 0)] } ?? []
    }
}

/// Reads each topic of a ``TopicKeeper`` from its start.
// SAFETY: confined to the thread that runs the simulation.
final class TemporaryReader: Client, @unchecked Sendable {
    private let reader: FetchingReader
    private var present: String?

    init(_ world: World, process: Int) {
        let random = world.stream("temporary reader \(process)")
        let link = ClientLink(world, "temporary-reader-\(process)")
        reader = FetchingReader(world, link, random)
        reader.usesIDs = true
        super.init(world, process: process, link: link, random: random)
    }

    override var endsWithThePlay: Bool { false }

    var isAtEnd: Bool { present == world.currentTopic && reader.atEnd.isSuperset(of: reader.positions.keys) }

    override func run() async {
        while world.act < .over {
            var steps: [Step] = []
            // It goes on with a deleted topic for a while.
            if let current = world.currentTopic, current != present, present == nil || random.chance(50) {
                present = current
                reader.positions = [Place(current, 0): 0]
                steps = [.assign(Place(current, 0), from: 0)]
            }
            guard present != nil else {
                await pause(500...2_000)
                continue
            }
            let start = world.now
            let records = await reader.poll()
            if !records.isEmpty || !steps.isEmpty {
                world.record(process, since: start, .succeeded, steps + [.poll(records)])
            }
            await pause(1_000...8_000)
        }
    }
}
