package import MartletChecker
internal import MartletBroker
internal import MartletKafkaProtocol
package import MartletLogModel
internal import MartletSimulatorKit
internal import NIOCore

package struct SimulationOptions: Sendable {
    package var seed: UInt64
    /// Virtual time of the play, before everything heals.
    package var minutes: Int64 = 10
    package var traces = false
    /// After everything has been read, bits flip in what is stored, and it is read again.
    package var rots = false
    package var rules = SuspendedRules()

    package init(seed: UInt64) { self.seed = seed }
}

/// What became of one seed.
package struct SimulationResult: Sendable {
    package var seed: UInt64
    /// `kind: what`, of the checker and of the simulator itself.
    package var problems: [String]
    package var counts: CheckCounts
    package var faults: [String: Int]
    package var virtualSeconds: Int64
    package var events: Int
    package var traceHash: UInt64
    package var traceLineCount: Int
    package var history: History

    package var faultCount: Int { faults.values.reduce(0, +) }
    package var failed: Bool { !problems.isEmpty }
}

/// One broker, its disk, its network and a dozen clients, out of one seed.
package enum Simulation {
    private static let sourceCount = 3
    private static let targetCount = 2
    private static let minute: Int64 = 60_000_000_000
    /// After healing, everything must be read, committed and stable within this.
    private static let drainLimit = 4 * minute

    /// - Parameter output: gets the trace's lines, if the options ask for one.
    package static func run(
        _ options: SimulationOptions, output: @escaping (String) -> Void = { _ in }
    ) async -> SimulationResult {
        let scheduler = Scheduler()
        let trace = Trace(scheduler: scheduler, isOn: options.traces)
        trace.output = output
        let network = VirtualNetwork(
            scheduler: scheduler, random: SimulationRandom(seed: options.seed, purpose: "network"), trace: trace)
        let world = World(seed: options.seed, scheduler: scheduler, network: network, trace: trace)
        let cast = Cast(world, options)
        // The play runs on this thread; the clients' tasks run within it.
        await withDiscardingTaskGroup { group in
            for client in cast.clients {
                group.addTask(executorPreference: scheduler.executor) {
                    await cast.isReady()
                    await client.run()
                    cast.left(client)
                }
            }
            group.addTask(executorPreference: scheduler.executor) { await cast.setUp() }
            cast.play()
        }
        Graveyard.bury(scheduler)
        return cast.result()
    }

    /// Everybody in the play, and its course.
    // SAFETY: confined to the thread that runs the simulation.
    private final class Cast: @unchecked Sendable {
        private let world: World
        private let options: SimulationOptions
        private let broker: VirtualBroker
        private let faults: Faults
        private(set) var clients: [Client] = []
        private var readers: [AssignedReader] = []
        private var shareMembers: [ShareMember] = []
        private var temporaryReader: TemporaryReader?
        private var rotReader: RotReader?
        private var waiting: [CheckedContinuation<Void, Never>] = []
        private var hasBegun = false
        private var present = 0
        /// Clients that still may send something new.
        private var producing = 0
        private let groups = ["copy", "read"]

        init(_ world: World, _ options: SimulationOptions) {
            self.world = world
            self.options = options
            let random = world.stream("cast")
            var settings = BrokerSettings(listen: .init(host: "sim", port: 9092), dataDirectory: "/data")
            settings.reserveBytes = 1 << 16
            do throws(SettingsError) {
                for (name, value) in [
                    ("offsets.topic.num.partitions", "2"), ("transaction.state.log.num.partitions", "2"),
                    ("offsets.topic.segment.bytes", "16384"), ("transaction.state.log.segment.bytes", "16384"),
                    ("group.initial.rebalance.delay.ms", "500"), ("group.consumer.session.timeout.ms", "10000"),
                    ("group.consumer.heartbeat.interval.ms", "3000"),
                    ("group.share.min.record.lock.duration.ms", "1000"), ("group.share.record.lock.duration.ms", "4000"),
                    ("group.share.min.session.timeout.ms", "10000"), ("group.share.session.timeout.ms", "10000"),
                    ("group.share.min.heartbeat.interval.ms", "1000"), ("group.share.heartbeat.interval.ms", "3000"),
                    ("share.coordinator.state.topic.num.partitions", "1"),
                    ("share.coordinator.state.topic.segment.bytes", "16384"),
                ] { try settings.set(name, value, origin: "simulator") }
            } catch {
                preconditionFailure("the simulator's settings are refused: \(error)")
            }
            broker = VirtualBroker(
                scheduler: world.scheduler, network: world.network, trace: world.trace, seed: options.seed,
                settings: settings, loopCount: random.int(1..<4), rules: options.rules)
            faults = Faults(world, broker)
            makeClients(random)
            present = clients.count
            producing = clients.count { $0.endsWithThePlay }
        }

        private func makeClients(_ random: SimulationRandom) {
            let source = (0..<Simulation.sourceCount).map { Place("in", $0) }
            let target = (0..<Simulation.targetCount).map { Place("out", $0) }
            var process = 0
            func next() -> Int {
                process += 1
                return process
            }
            clients.append(IdempotentProducer(world, process: next(), places: source))
            let generations: [TransactionGeneration] = [.second, .first, random.chance(50) ? .second : .first]
            for (index, generation) in generations.enumerated() {
                clients.append(
                    TransactionalProducer(
                        world, process: next(), transactionalID: "t\(index)", generation: generation, places: source,
                        idle: 2_000...15_000))
            }
            // Takes over the id of another from time to time.
            clients.append(
                TransactionalProducer(
                    world, process: next(), transactionalID: "t0", generation: .second, places: source,
                    idle: 20_000...120_000))
            let kinds: [GroupProtocol] = random.chance(50) ? [.classic, .consumer] : [.consumer, .classic]
            let style = ClassicStyle(world.stream("classic style"))
            for index in 0..<2 {
                clients.append(
                    Copier(
                        world, process: next(), group: groups[0], protocol: kinds[0], style: style,
                        generation: index == 0 ? .second : random.chance(50) ? .first : .second, source: "in",
                        sourceCount: Simulation.sourceCount, target: "out", targetCount: Simulation.targetCount))
            }
            for _ in 0..<2 {
                clients.append(
                    GroupReader(
                        world, process: next(), name: "member", group: groups[1], protocol: kinds[1],
                        style: style, topic: "in", partitionCount: Simulation.sourceCount))
            }
            if world.stream("share").chance(60) {
                shareMembers = (0..<2).map { _ in ShareMember(world, process: next(), group: "share", topic: "in") }
                clients += shareMembers
            }
            if world.stream("temporary").chance(50) {
                clients.append(TopicKeeper(world, process: next()))
                clients.append(TemporaryProducer(world, process: next(), places: []))
                let reader = TemporaryReader(world, process: next())
                temporaryReader = reader
                clients.append(reader)
            }
            clients.append(LateAdministrator(world, process: next(), places: source))
            readers = [
                AssignedReader(world, process: next(), places: source),
                AssignedReader(world, process: next(), places: target),
            ]
            clients += readers
            if options.rots {
                let reader = RotReader(world, process: next(), places: source + target)
                rotReader = reader
                clients.append(reader)
            }
        }

        // MARK: Clients

        func isReady() async {
            if hasBegun { return }
            await withCheckedContinuation { waiting.append($0) }
        }

        func left(_ client: Client) {
            present -= 1
            if client.endsWithThePlay { producing -= 1 }
        }

        /// Topics, as an administrator makes them.
        func setUp() async {
            let link = ClientLink(world, "admin")
            var request = CreateTopicsRequest()
            request.timeoutMs = 4_000
            request.topics = [("in", Simulation.sourceCount), ("out", Simulation.targetCount)].map { name, count in
                var topic = CreateTopicsRequest.CreatableTopic()
                topic.name = name
                topic.numPartitions = Int32(count)
                topic.replicationFactor = 1
                var segment = CreateTopicsRequest.CreatableTopicConfig()
                segment.name = "internal.segment.bytes"
                segment.value = options.rots ? "4000" : "20000"
                topic.configs = [segment]
                return topic
            }
            while world.topicIDs.count < 2, world.act < .over {
                do {
                    let response = try await link.ask(request, version: 7)
                    for topic in response.topics {
                        if topic.errorCode != 0 {
                            world.fail("create-topic", "\(topic.name): \(topic.errorCode) \(topic.errorMessage ?? "")")
                        }
                        world.topicIDs[topic.name] = topic.topicID
                        world.topicNames[topic.topicID] = topic.name
                    }
                    try await configureShareGroup(link)
                    for kind: Int8 in 0...1 {
                        var find = FindCoordinatorRequest()
                        find.keyType = kind
                        find.coordinatorKeys = ["x"]
                        _ = try await link.ask(find, version: 4)
                    }
                } catch {
                    await world.pause(nanoseconds: 500_000_000)
                }
            }
            link.close()
            hasBegun = true
            for waiter in waiting { waiter.resume() }
            waiting = []
        }

        /// The share group reads everything, and committed records only.
        private func configureShareGroup(_ link: ClientLink) async throws(LinkFailure) {
            var resource = IncrementalAlterConfigsRequest.AlterConfigsResource()
            resource.resourceType = 32
            resource.resourceName = "share"
            resource.configs = [
                ("share.auto.offset.reset", "earliest"), ("share.isolation.level", "read_committed"),
            ].map { name, value in
                var config = IncrementalAlterConfigsRequest.AlterableConfig()
                config.name = name
                config.value = value
                return config
            }
            var request = IncrementalAlterConfigsRequest()
            request.resources = [resource]
            let response = try await link.ask(request, version: 1)
            for answer in response.responses where answer.errorCode != 0 {
                world.fail("configure", "\(answer.resourceName): \(answer.errorCode) \(answer.errorMessage ?? "")")
            }
        }

        // MARK: Course

        func play() {
            let scheduler = world.scheduler
            scheduler.afterEvent = { [unowned self] in self.broker.dieIfStopped() }
            broker.start()
            scheduler.run(until: scheduler.now + Simulation.minute) { self.hasBegun }
            if !hasBegun { world.fail("set-up", "the topics were not created within a minute") }
            let start = scheduler.now
            faults.begin(until: start + options.minutes * Simulation.minute - 20_000_000_000)
            scheduler.run(until: start + options.minutes * Simulation.minute)
            world.trace.note("act", "drain")
            world.act = .drain
            faults.heal()
            if !broker.isRunning { broker.start() }
            let healed = scheduler.now
            // Producers finish, groups and readers catch up.
            scheduler.run(until: healed + Simulation.minute)
            var writes = -1
            while writes != world.writeCount || !isDrained, scheduler.now < healed + Simulation.drainLimit {
                // Until nobody has written anything for so long that the readers have looked again.
                writes = world.writeCount
                scheduler.run(until: scheduler.now + 20_000_000_000)
            }
            if isDrained {
                world.completeHistory()
                rot()
            } else {
                reportStuck()
            }
            world.trace.note("act", "over")
            world.act = .over
            scheduler.run(until: scheduler.now + 2 * Simulation.minute) { self.present == 0 }
            precondition(present == 0, "seed \(options.seed): \(present) clients did not end")
            broker.end()
        }

        private func rot() {
            guard let rotReader else { return }
            world.trace.note("act", "rot")
            broker.crash(.process, afterOperations: 0)
            broker.dieIfStopped()
            rotReader.strike(broker.disk)
            broker.start()
            world.act = .rot
            world.scheduler.run(until: world.scheduler.now + Simulation.minute) { rotReader.isDone }
            for problem in rotReader.problems { world.fail("rot", problem) }
        }

        private var isDrained: Bool {
            producing == 0 && readers.allSatisfy(\.isAtEnd) && unreadPlaces.isEmpty && shareMembers.allSatisfy(\.isIdle)
                && temporaryReader?.isAtEnd ?? true
        }

        /// Groups and partitions with visible records beyond what is committed.
        private var unreadPlaces: [String] {
            groups.flatMap { group in
                (0..<Simulation.sourceCount).compactMap { index -> String? in
                    let place = Place("in", index)
                    let visible = world.lastVisible[place] ?? -1
                    let committed = world.committed[group]?[place] ?? -1
                    return committed > visible ? nil : "group \(group) \(place) \(committed) of \(visible)"
                }
            }
        }

        private func reportStuck() {
            for reader in readers where !reader.isAtEnd {
                let positions = reader.positions.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
                world.fail("stuck-partition", "not stable after healing; read up to \(positions.joined(separator: ", "))")
            }
            for place in unreadPlaces { world.fail("stuck-group", place) }
            if !shareMembers.allSatisfy(\.isIdle) { world.fail("stuck-share-group", "records are still delivered, or a member cannot join") }
            if temporaryReader?.isAtEnd == false { world.fail("stuck-partition", "the topic created last cannot be read") }
            if producing > 0 { world.fail("stuck-producer", "\(producing) have not ended") }
        }

        func result() -> SimulationResult {
            if world.history.isComplete {
                let missing = (world.visibleValues["in"] ?? []).subtracting(world.visibleValues["out"] ?? [])
                if !missing.isEmpty {
                    world.fail("not-copied", "\(missing.count) values, such as \(missing.min() ?? 0)")
                }
            }
            let checked = Checker.check(world.history)
            return SimulationResult(
                seed: options.seed,
                problems: world.failures.map { "\($0.kind): \($0.detail)" } + checked.findings.map(\.description),
                counts: checked.counts,
                faults: faults.counts.merging(["bit flip": rotReader?.flipCount ?? 0].filter { $0.value > 0 }) { $0 + $1 },
                virtualSeconds: (world.scheduler.now - 1_000_000_000_000) / 1_000_000_000,
                events: world.scheduler.eventCount, traceHash: world.trace.hash, traceLineCount: world.trace.lineCount,
                history: world.history)
        }
    }
}
