import MartletChecker
import MartletClient
import MartletLogModel
import MartletTestSupport
import NIOCore
import NIOPosix
import Synchronization
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Exactly-once copying with `MartletClient` while the daemon is killed with -9 again and again. Everything that the
/// clients did and saw is written down as a history, which the simulator's checker judges.
///
/// `COPY_ROUNDS` and `COPY_SEED` choose how many rounds and which; `COPY_HISTORY` keeps the history in that file, for
/// `simulator check`.
@Suite(.serialized) struct RecordedCopyTests {
    @Test(.timeLimit(.minutes(90)), arguments: GroupProtocol.allCases)
    func `copies over kill -9 have a clean history`(groupProtocol: GroupProtocol) async throws {
        // A typo must not run another seed than the one to be looked at again.
        let rounds = try setting("COPY_ROUNDS").map { try #require(Int($0)) } ?? (BuildProducts.isLong ? 500 : 12)
        let usualSeed = BuildProducts.isLong ? UInt64.random(in: 1...UInt64.max) : 20_261_122
        let seed = try setting("COPY_SEED").map { try #require(UInt64($0)) } ?? usualSeed
        print("recorded copy: seed \(seed), \(rounds) rounds, \(groupProtocol) groups")
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder, settings: ["group.initial.rebalance.delay.ms": "0"])
        let run = CopyRun(seed: seed, groupProtocol: groupProtocol, address: daemon.address)
        let history = try await run.history(rounds: rounds, daemon)
        daemon.kill()
        folder.remove()
        if let path = setting("COPY_HISTORY") {
            try write(Array(HistoryFile.encode(history).utf8), to: "\(path)-\(groupProtocol)")
        }
        let result = Checker.check(history)
        let counts = result.counts
        print(
            """
            recorded copy, \(groupProtocol) groups: \(counts.operations) operations, \(counts.acknowledgedOperations) \
            acknowledged, \(counts.acknowledgedSends) of \(counts.sends) sends acknowledged, \(counts.polledRecords) \
            records read, \(counts.offsetCommits) offsets committed; transactions: \(counts.committedTransactions) \
            committed, \(counts.abortedTransactions) aborted, \(counts.unknownTransactions) of unknown end; \
            \(counts.rebalances) rebalances; \(result.findings.count) anomalies
            """)
        #expect(result.findings.isEmpty, "seed \(seed): \(result.findings.prefix(10).map(\.description))")
        // A history of nothing is clean.
        #expect(history.isComplete)
        #expect(counts.acknowledgedOperations >= rounds * CopyRun.operationsPerRound.lowerBound)
        #expect(counts.committedTransactions >= 2 * rounds)
        #expect(counts.acknowledgedSends >= 20 * rounds)
        #expect(counts.polledRecords >= 40 * rounds)
        #expect(counts.rebalances > 0)
    }

    private func setting(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
}

/// The history as it grows; operations stand in the order of their ends.
private final class Recorder: Sendable {
    private struct State {
        var operations: [MartletChecker.Operation] = []
        var waiters: [(count: Int, continuation: CheckedContinuation<Void, Never>)] = []
    }

    private let state = Mutex(State())

    static var now: Int64 { Int64(NIODeadline.now().uptimeNanoseconds) }

    var operations: [MartletChecker.Operation] { state.withLock { $0.operations } }
    var count: Int { state.withLock { $0.operations.count } }

    func add(
        _ process: Int, from start: Int64, _ outcome: Outcome, isTransaction: Bool = false, _ steps: [Step]
    ) {
        let waiters = state.withLock { state in
            state.operations.append(
                Operation(
                    process: process, start: start, end: Self.now, outcome: outcome,
                    isTransaction: isTransaction,
                    steps: steps))
            let count = state.operations.count
            let ready = state.waiters.filter { $0.count <= count }
            state.waiters.removeAll { $0.count <= count }
            return ready
        }
        for waiter in waiters { waiter.continuation.resume() }
    }

    /// Waits until so many operations have ended.
    func reaches(_ count: Int) async {
        await withCheckedContinuation { continuation in
            let isThere = state.withLock { state in
                if state.operations.count >= count { return true }
                state.waiters.append((count, continuation))
                return false
            }
            if isThere { continuation.resume() }
        }
    }
}

/// What the workers of a run tell each other.
private final class CopyState: Sendable {
    private struct Content {
        var isWriting = true
        var isCopying = true
        var isReading = true
        var values: [String: Set<Int64>] = [:]
        var positions: [TopicPartition: Offset] = [:]
    }

    private let content = Mutex(Content())

    var isWriting: Bool { content.withLock { $0.isWriting } }
    var isCopying: Bool { content.withLock { $0.isCopying } }
    var isReading: Bool { content.withLock { $0.isReading } }
    func stopWriting() { content.withLock { $0.isWriting = false } }
    func stopCopying() { content.withLock { $0.isCopying = false } }
    func stopReading() { content.withLock { $0.isReading = false } }

    func saw(_ records: [ConsumedRecord], _ positions: [TopicPartition: Offset]) {
        content.withLock { content in
            for record in records { content.values[record.topic, default: []].insert(CopyRun.value(record)) }
            for (partition, offset) in positions { content.positions[partition] = offset }
        }
    }

    func values(of topic: String) -> Set<Int64> { content.withLock { $0.values[topic] ?? [] } }
    func position(in partition: TopicPartition) -> Offset {
        content.withLock { $0.positions[partition] ?? Offset(0) }
    }
}

/// One daemon, writers, copiers and readers, and a hand that kills.
private struct CopyRun: Sendable {
    /// Operations that end between two kills.
    static let operationsPerRound = 20...120
    /// Longest time between the last of these and the kill.
    private static let delayMilliseconds: Int64 = 200
    private static let partitionCount: Int32 = 2
    private static let group = "copier"
    private static let source = "source"
    private static let target = "target"

    private struct Interrupted: Error {}

    private let seed: UInt64
    private let groupProtocol: GroupProtocol
    private let address: String
    private let recorder = Recorder()
    private let state = CopyState()

    init(seed: UInt64, groupProtocol: GroupProtocol, address: String) {
        self.seed = seed
        self.groupProtocol = groupProtocol
        self.address = address
    }

    static func value(_ record: ConsumedRecord) -> Int64 { record.valueString.flatMap { Int64($0) } ?? -1 }

    private static func place(_ partition: TopicPartition) -> Place {
        Place(partition.topic, Int(partition.partition.rawValue))
    }

    private static func seen(_ records: [ConsumedRecord]) -> Step {
        .poll(records.map { SeenRecord(place($0.topicPartition), $0.offset.rawValue, value($0)) })
    }

    private static func partitions(of topic: String) -> [TopicPartition] {
        (0..<partitionCount).map { TopicPartition(topic, $0) }
    }

    private func client() throws -> ClientConfiguration {
        var client = try ClientConfiguration(bootstrap: address)
        client.operationTimeout = .seconds(30)
        return client
    }

    // MARK: Course

    func history(rounds: Int, _ daemon: DaemonProcess) async throws -> History {
        var generator = SeededGenerator(seed: seed)
        try await createTopics()
        try await withThrowingTaskGroup(of: Void.self) { tasks in
            for (process, topic) in [(1, Self.source), (2, Self.target)] {
                tasks.addTask { try await read(topic, process) }
            }
            for process in 3...4 { tasks.addTask { try await copy(process) } }
            for process in 5...6 { tasks.addTask { try await write(process) } }
            tasks.addTask { try await observe(7) }
            for _ in 0..<rounds {
                let count = Int.random(in: Self.operationsPerRound, using: &generator)
                await recorder.reaches(recorder.count + count)
                try await pause(.milliseconds(.random(in: 0...Self.delayMilliseconds, using: &generator)))
                daemon.kill()
                try daemon.restart()
            }
            state.stopWriting()
            try await settle()
            state.stopCopying()
            try await settle()
            state.stopReading()
            try await tasks.waitForAll()
        }
        return History(operations: recorder.operations, isComplete: true)
    }

    private func createTopics() async throws {
        let admin = try Admin(client())
        for topic in [Self.source, Self.target] {
            try await admin.createTopic(
                TopicSpecification(name: topic, partitionCount: Int(Self.partitionCount)))
        }
        await admin.close()
    }

    /// Until the readers are at the end of everything and have seen the same in both topics.
    private func settle() async throws {
        let partitions = Self.partitions(of: Self.source) + Self.partitions(of: Self.target)
        let queries = Dictionary(uniqueKeysWithValues: partitions.map { ($0, OffsetSpec.latest) })
        let admin = try Admin(client())
        while true {
            try await pause(.milliseconds(50))
            let stable = try await admin.listOffsets(queries, isolation: .readCommitted)
            let ends = try await admin.listOffsets(queries, isolation: .readUncommitted)
            let isAtEnd = try partitions.allSatisfy { partition in
                let end = try ends[partition]?.get()?.offset ?? Offset(0)
                let lastStable = try stable[partition]?.get()?.offset
                return lastStable == end && state.position(in: partition) >= end
            }
            if isAtEnd, state.values(of: Self.source) == state.values(of: Self.target) { break }
        }
        await admin.close()
    }

    private func pause(_ duration: TimeAmount) async throws {
        try await MultiThreadedEventLoopGroup.singleton.next().scheduleTask(in: duration) {}.futureResult
            .get()
    }

    // MARK: Workers

    private func generator(of process: Int) -> SeededGenerator {
        SeededGenerator(seed: seed &* 31 &+ UInt64(process))
    }

    /// An idempotent producer; each burst an operation. Its values are its own.
    private func write(_ process: Int) async throws {
        var generator = generator(of: process)
        var next = Int64(process)
        while state.isWriting {
            let producer = try Producer(ProducerConfiguration(client()))
            do {
                while state.isWriting {
                    var burst: [(value: Int64, partition: Int32)] = []
                    for _ in 0..<Int.random(in: 1...20, using: &generator) {
                        burst.append((next, .random(in: 0..<Self.partitionCount, using: &generator)))
                        next += 100
                    }
                    let start = Recorder.now
                    func record(_ outcome: Outcome, _ offsets: [Offset?]) {
                        recorder.add(
                            process, from: start, outcome,
                            zip(burst, offsets).map { sent, offset in
                                .send(
                                    Place(Self.source, Int(sent.partition)), value: sent.value,
                                    offset: offset?.rawValue)
                            })
                    }
                    do {
                        let sent = try await producer.send(
                            contentsOf: burst.map {
                                ProducerRecord(
                                    topic: Self.source, partition: PartitionIndex($0.partition),
                                    value: "\($0.value)")
                            })
                        record(.succeeded, sent.map(\.offset))
                    } catch {
                        record(.unknown, burst.map { _ in nil })
                        throw error
                    }
                    try await pause(.milliseconds(.random(in: 0...30, using: &generator)))
                }
                try await producer.close()
            } catch is ClientError {
                // Starts over, as an application does.
                do { try await producer.close() } catch is ClientError {}
            }
        }
    }

    /// What a copier has done and seen since its latest operation.
    private final class Steps: Sendable {
        private let state = Mutex<(steps: [Step], life: Int)>(([.subscribe([CopyRun.source])], 0))

        func add(_ step: Step) { state.withLock { $0.steps.append(step) } }

        func rebalanced(_ event: RebalanceEvent) {
            state.withLock { state in
                state.steps.append(.rebalanced)
                if case .lost = event { state.life += 1 }
            }
        }

        /// How often all was lost: a member that comes back after that is another one.
        var life: Int { state.withLock { $0.life } }

        func take() -> [Step] {
            state.withLock { state in
                let steps = state.steps
                state.steps = []
                return steps
            }
        }
    }

    /// Copies exactly once: the transaction holds the copies and the positions of what was read.
    private func copy(_ process: Int) async throws {
        var generator = generator(of: process)
        while state.isCopying {
            let steps = Steps()
            var writing = ProducerConfiguration(try client())
            writing.transactionalID = "copier-\(process)"
            var reading = ConsumerConfiguration(try client(), groupID: Self.group)
            reading.groupProtocol = groupProtocol
            reading.offsetReset = .earliest
            reading.isolation = .readCommitted
            reading.isAutoCommitEnabled = false
            reading.sessionTimeout = .seconds(6)
            reading.onRebalance = { steps.rebalanced($0) }
            let producer = try Producer(writing)
            let consumer = try Consumer(reading)
            do {
                try await consumer.subscribe(to: [Self.source])
                while state.isCopying { try await copyOnce(process, producer, consumer, steps, &generator) }
                try await consumer.close()
                try await producer.close()
            } catch is ClientError {
                do { try await consumer.close() } catch is ClientError {}
                do { try await producer.close() } catch is ClientError {}
            }
        }
    }

    /// One transaction, written down whatever becomes of it.
    ///
    /// - Throws: ``ClientError`` when this producer or consumer is of no use any more.
    private func copyOnce(
        _ process: Int, _ producer: Producer, _ consumer: Consumer, _ steps: Steps,
        _ generator: inout SeededGenerator
    ) async throws {
        let start = Recorder.now
        let limit = Int.random(in: 1...30, using: &generator)
        let isInterrupted = Int.random(in: 0..<20, using: &generator) == 0
        var before: [Step] = []
        var sends: [Step] = []
        var commits: [Step] = []
        var hold: [Step] = []
        var hasBegun = false
        func record(_ outcome: Outcome) {
            guard hasBegun else { return }
            recorder.add(
                process, from: start, outcome, isTransaction: true,
                before + sends + commits + (outcome == .succeeded ? hold : []))
        }
        do {
            try await producer.withTransaction(consuming: consumer, timeout: .milliseconds(200), limit: limit)
            {
                transaction, records in
                hasBegun = true
                before = steps.take() + [Self.seen(records)]
                let copies = records.map { record in
                    let value = Self.value(record)
                    return (partition: Int32(value / 100 % Int64(Self.partitionCount)), value: value)
                }
                func describe(_ offsets: [Offset?]) -> [Step] {
                    zip(copies, offsets).map { copy, offset in
                        .send(
                            Place(Self.target, Int(copy.partition)), value: copy.value,
                            offset: offset?.rawValue)
                    }
                }
                sends = describe(copies.map { _ in nil })
                for partition in Set(records.map(\.topicPartition)).sorted() {
                    guard let position = consumer.position(of: partition) else { continue }
                    commits.append(.commit(GroupOffset(Self.group, Self.place(partition), position.rawValue)))
                }
                let membership = try await consumer.groupMetadata()
                hold = [
                    .hold(
                        group: Self.group, member: "\(membership.memberID ?? "")/\(steps.life)",
                        epoch: Int(membership.generation ?? -1),
                        places: consumer.assignment.map(Self.place).sorted())
                ]
                let sent = try await transaction.send(
                    contentsOf: copies.map {
                        ProducerRecord(
                            topic: Self.target, partition: PartitionIndex($0.partition), value: "\($0.value)")
                    })
                sends = describe(sent.map(\.offset))
                if isInterrupted { throw Interrupted() }
            }
            record(.succeeded)
        } catch is Interrupted {
            record(.failed)
            steps.add(.rebalanced)
        } catch let error as ClientError {
            // A producer that was replaced does not know how its last transaction ended.
            record(error.code == .transactionUndecided || error.code == .fenced ? .unknown : .failed)
            steps.add(.rebalanced)
            if !error.isRetriable { throw error }
        }
    }

    /// Reads every partition of a topic from the beginning, without a group.
    private func read(_ topic: String, _ process: Int) async throws {
        while state.isReading {
            var configuration = ConsumerConfiguration(try client())
            configuration.isolation = .readCommitted
            let consumer = try Consumer(configuration)
            let partitions = Self.partitions(of: topic)
            var steps = partitions.map { Step.assign(Self.place($0), from: 0) }
            do {
                try await consumer.assign(
                    Dictionary(uniqueKeysWithValues: partitions.map { ($0, .earliest) }))
                while state.isReading {
                    let start = Recorder.now
                    let records = try await consumer.poll(timeout: .milliseconds(200), limit: 500)
                    if !records.isEmpty {
                        recorder.add(process, from: start, .succeeded, steps + [Self.seen(records)])
                        steps = []
                    }
                    state.saw(
                        records,
                        Dictionary(
                            uniqueKeysWithValues: partitions.map {
                                ($0, consumer.position(of: $0) ?? Offset(0))
                            }))
                }
            } catch is ClientError {}
            try await consumer.close()
        }
    }

    /// Asks again and again for what the group has committed.
    private func observe(_ process: Int) async throws {
        let consumer = try Consumer(ConsumerConfiguration(client(), groupID: Self.group))
        while state.isReading {
            let start = Recorder.now
            do {
                let committed = try await consumer.committed(Self.partitions(of: Self.source))
                let found = committed.sorted { $0.key < $1.key }.compactMap { partition, offset in
                    offset.map {
                        Step.committed(GroupOffset(Self.group, Self.place(partition), $0.offset.rawValue))
                    }
                }
                if !found.isEmpty { recorder.add(process, from: start, .succeeded, found) }
            } catch is ClientError {}
            try await pause(.milliseconds(50))
        }
        try await consumer.close()
    }
}
