import Logging
import MartletBroker
import MartletLogModel
import MartletTestSupport
import NIOCore
import Synchronization
import Testing

@testable import MartletClient

/// Client and broker of this package together, in one process over a real socket.
@Suite(.timeLimit(.minutes(3))) struct BrokerIntegrationTests {
    /// Runs `body` with a fresh broker in a directory of its own.
    private func run(_ body: (_ bootstrap: String) async throws -> Void) async throws {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        var settings = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder.path)
        settings.reserveBytes = 0
        try settings.set("auto.create.topics.enable", "true", origin: "test")
        try settings.set("group.initial.rebalance.delay.ms", "0", origin: "test")
        let broker = try await Broker.start(
            settings, logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        let outcome: Result<Void, any Error>
        do {
            try await body("\(broker.address)")
            outcome = .success(())
        } catch {
            outcome = .failure(error)
        }
        await broker.shutDown()
        try outcome.get()
    }

    private func admin(_ bootstrap: String) throws -> Admin {
        try Admin(ClientConfiguration(bootstrap: bootstrap))
    }

    private func producer(
        _ bootstrap: String, _ change: (inout ProducerConfiguration) -> Void = { _ in }
    ) throws -> Producer {
        var configuration = try ProducerConfiguration(bootstrap: bootstrap)
        change(&configuration)
        return try Producer(configuration)
    }

    private func consumer(
        _ bootstrap: String, group: String? = nil, _ change: (inout ConsumerConfiguration) -> Void = { _ in }
    ) throws -> Consumer {
        var configuration = try ConsumerConfiguration(bootstrap: bootstrap, groupID: group)
        configuration.offsetReset = .earliest
        configuration.heartbeatInterval = .milliseconds(50)
        change(&configuration)
        return try Consumer(configuration)
    }

    private func read(_ count: Int, _ consumer: Consumer) async throws -> [ConsumedRecord] {
        var records: [ConsumedRecord] = []
        while records.count < count { records += try await consumer.poll(timeout: .seconds(5)) }
        return records
    }

    @Test(arguments: [Compression.none, .gzip(), .lz4, .zstd(), .snappy])
    func `what is sent is what is read, with each codec`(compression: Compression) async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 3))
            let producer = try producer(bootstrap) {
                $0.compression = compression
                $0.batchBytes = 8192
            }
            var sent: [String: [String]] = [:]
            for number in 0..<5000 {
                let key = "key \(number % 17)"
                sent[key, default: []].append("value \(number)")
                do {
                    try await producer.enqueue(
                        ProducerRecord(
                            topic: "t", key: key, value: "value \(number)",
                            headers: [RecordHeader("n", "\(number)"), RecordHeader("null", nil)],
                            timestamp: Timestamp(milliseconds: 1_700_000_000_000 + Int64(number))))
                }
            }
            do {
                try await producer.flush()
            } catch let error as ClientError where error.brokerCode == .unsupportedCompressionType {
                return
            }
            let consumer = try consumer(bootstrap)
            try await consumer.assign(
                Dictionary(
                    uniqueKeysWithValues: (0..<3).map { (TopicPartition("t", $0), OffsetSpec.earliest) }))
            var found: [String: [String]] = [:]
            for record in try await read(5000, consumer) {
                let value = record.valueString ?? ""
                found[record.keyString ?? "", default: []].append(value)
                let number = value.split(separator: " ").last.map(String.init) ?? ""
                #expect(record.headers == [RecordHeader("n", number), RecordHeader("null", nil)])
                #expect(record.timestamp.rawValue == 1_700_000_000_000 + (Int64(number) ?? 0))
            }
            #expect(found == sent)
            try await consumer.close()
            try await producer.close()
            await admin.close()
        }
    }

    @Test func `topics are made, listed, described, grown, configured and deleted`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            let made = try await admin.createTopic(
                TopicSpecification(name: "a", partitionCount: 2, configs: ["retention.ms": "1000000"]))
            #expect(made.partitionCount == 2 && made.id != nil)
            await #expect { try await admin.createTopic(TopicSpecification(name: "a")) } throws: {
                ($0 as? ClientError)?.brokerCode == .topicAlreadyExists
            }
            let checked = try await admin.createTopics([TopicSpecification(name: "b")], validateOnly: true)
            #expect(throws: Never.self) { try checked["b"]?.get() }
            #expect(try await admin.listTopics().map(\.name) == ["a"])
            try await admin.createPartitions(topic: "a", total: 5)
            #expect(try await admin.describeTopic("a").partitions.map(\.index.rawValue) == [0, 1, 2, 3, 4])
            await #expect { try await admin.createPartitions(topic: "a", total: 3) } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidPartitions
            }
            try await admin.alterConfig(
                .topic("a"), [.set("retention.ms", to: "5000"), .set("max.message.bytes", to: "2000000")])
            var entries = try await admin.describeConfig(.topic("a"))
            let retention = try #require(entries.first { $0.name == "retention.ms" })
            #expect(retention.value == "5000" && retention.source == .topic && !retention.isDefault)
            try await admin.alterConfig(.topic("a"), [.delete("retention.ms")])
            entries = try await admin.describeConfig(.topic("a"))
            #expect(entries.first { $0.name == "retention.ms" }?.isDefault == true)
            await #expect {
                try await admin.alterConfig(.topic("a"), [.set("retention.ms", to: "soon")])
            } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidConfig
            }
            await #expect { try await admin.describeTopic("absent") } throws: {
                ($0 as? ClientError)?.code == .unknownTopic
            }
            try await admin.deleteTopic("a")
            #expect(try await admin.listTopics().isEmpty)
            await admin.close()
        }
    }

    @Test func `the cluster, its broker, directories and versions are described`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            let cluster = try await admin.describeCluster()
            #expect(cluster.brokers.count == 1 && !cluster.clusterID.isEmpty)
            #expect(cluster.brokers.first?.address.description == bootstrap)
            let versions = try await admin.brokerVersions()
            #expect(versions.apis.first { $0.name == "Produce" }?.versions == 0...13)
            #expect(try await admin.brokerVersions(cluster.brokers[0].id) == versions)
            try await admin.createTopic(TopicSpecification(name: "a", partitionCount: 1))
            let producer = try producer(bootstrap)
            try await producer.send(ProducerRecord(topic: "a", value: "x"))
            let directories = try await admin.describeLogDirectories()
            let replica = directories.flatMap(\.replicas).first {
                $0.topicPartition == TopicPartition("a", 0)
            }
            #expect((replica?.byteCount ?? 0) > 0)
            try await producer.close()
            await admin.close()
        }
    }

    @Test func `offsets are found by time, and records before one are deleted`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 1))
            let partition = TopicPartition("t", 0)
            let producer = try producer(bootstrap)
            for number in 0..<10 {
                try await producer.send(
                    ProducerRecord(
                        topic: "t", value: "\(number)",
                        timestamp: Timestamp(milliseconds: 1_700_000_000_000 + Int64(number) * 1000)))
            }
            func list(_ spec: OffsetSpec) async throws -> Offset? {
                try await admin.listOffsets([partition: spec])[partition]?.get()?.offset
            }
            #expect(try await list(.earliest) == Offset(0))
            #expect(try await list(.latest) == Offset(10))
            #expect(try await list(.timestamp(Timestamp(milliseconds: 1_700_000_003_500))) == Offset(4))
            #expect(try await list(.timestamp(Timestamp(milliseconds: 1_800_000_000_000))) == nil)
            let start = try await admin.deleteRecords(before: [partition: .at(Offset(6))])[partition]?.get()
            #expect(start == Offset(6))
            #expect(try await list(.earliest) == Offset(6))
            let consumer = try consumer(bootstrap)
            try await consumer.assign([partition: .at(Offset(2))])
            #expect(try await read(4, consumer).map(\.valueString) == ["6", "7", "8", "9"])
            try await consumer.close()
            try await producer.close()
            await admin.close()
        }
    }

    @Test(arguments: AssignmentStrategy.allCases)
    func `two members share a topic and a leaver's part moves on`(strategy: AssignmentStrategy) async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 4))
            let events = Mutex<[RebalanceEvent]>([])
            let first = try consumer(bootstrap, group: "g") {
                $0.assignmentStrategies = [strategy]
                $0.onRebalance = { event in events.withLock { $0.append(event) } }
            }
            try await first.subscribe(to: ["t"])
            while first.assignment.count < 4 { _ = try await first.poll(timeout: .milliseconds(50)) }
            let second = try consumer(bootstrap, group: "g") { $0.assignmentStrategies = [strategy] }
            try await second.subscribe(to: ["t"])
            while first.assignment.count != 2 || second.assignment.count != 2 {
                _ = try await first.poll(timeout: .milliseconds(20))
                _ = try await second.poll(timeout: .milliseconds(20))
            }
            #expect(first.assignment.isDisjoint(with: second.assignment))
            let description = try await admin.describeGroup("g")
            #expect(description.members.count == 2)
            #expect(description.strategy == strategy.name)
            #expect(Set(description.members.flatMap(\.assignment)).count == 4)
            try await second.close()
            while first.assignment.count < 4 { _ = try await first.poll(timeout: .milliseconds(50)) }
            let revoked = events.withLock { $0 }.flatMap { event in
                if case .revoked(let partitions) = event { partitions } else { [TopicPartition]() }
            }
            // Eager members give up all, cooperative ones only what moves.
            if strategy == .cooperativeSticky {
                #expect(revoked.count == 2)
            } else {
                #expect(revoked.count >= 4)
            }
            try await first.close()
            await admin.close()
        }
    }

    @Test func `committed positions outlive the member and are moved by the administrator`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 1))
            let partition = TopicPartition("t", 0)
            let producer = try producer(bootstrap)
            for number in 0..<10 { try await producer.send(ProducerRecord(topic: "t", value: "\(number)")) }
            let first = try consumer(bootstrap, group: "g") { $0.isAutoCommitEnabled = false }
            try await first.subscribe(to: ["t"])
            _ = try await read(10, first)
            try await first.commit([partition: CommittedOffset(Offset(4), metadata: "note")])
            #expect(try await first.committed([partition])[partition]??.metadata == "note")
            try await first.close()
            #expect(try await admin.groupOffsets("g")[partition]?.offset == Offset(4))
            #expect(try await admin.listGroups().map(\.groupID) == ["g"])
            let second = try consumer(bootstrap, group: "g")
            try await second.subscribe(to: ["t"])
            #expect(try await read(6, second).first?.offset == Offset(4))
            await #expect {
                try await admin.alterGroupOffsets("g", [partition: CommittedOffset(Offset(1))])[partition]?
                    .get()
            } throws: { _ in true }
            try await second.close()
            #expect(try await admin.groupOffsets("g")[partition]?.offset == Offset(10))
            let plan = try await admin.planGroupReset("g", to: .earliest)
            #expect(plan == [partition: CommittedOffset(Offset(0))])
            try await admin.alterGroupOffsets("g", plan)[partition]?.get()
            let third = try consumer(bootstrap, group: "g")
            try await third.subscribe(to: ["t"])
            #expect(try await read(10, third).count == 10)
            try await third.close()
            try await admin.deleteGroupOffsets("g", [partition])[partition]?.get()
            #expect(try await admin.groupOffsets("g").isEmpty)
            try await admin.deleteGroup("g")
            #expect(try await admin.listGroups().isEmpty)
            try await producer.close()
            await admin.close()
        }
    }

    @Test func `a static member that restarts gets its partitions back without a rebalance`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 4))
            let other = try consumer(bootstrap, group: "g")
            try await other.subscribe(to: ["t"])
            let first = try consumer(bootstrap, group: "g") { $0.groupInstanceID = "one" }
            try await first.subscribe(to: ["t"])
            while first.assignment.count != 2 || other.assignment.count != 2 {
                _ = try await first.poll(timeout: .milliseconds(20))
                _ = try await other.poll(timeout: .milliseconds(20))
            }
            let part = first.assignment
            try await first.close()
            let again = try consumer(bootstrap, group: "g") { $0.groupInstanceID = "one" }
            try await again.subscribe(to: ["t"])
            while again.assignment.count != 2 {
                _ = try await again.poll(timeout: .milliseconds(20))
                _ = try await other.poll(timeout: .milliseconds(20))
            }
            #expect(again.assignment == part)
            try await again.close()
            try await other.close()
            await admin.close()
        }
    }

    @Test func `a subscription finds new partitions`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 1))
            let consumer = try consumer(bootstrap, group: "g") {
                $0.client.metadataMaximumAge = .milliseconds(100)
            }
            try await consumer.subscribe(to: ["t"])
            while consumer.assignment.count != 1 { _ = try await consumer.poll(timeout: .milliseconds(20)) }
            try await admin.createPartitions(topic: "t", total: 3)
            while consumer.assignment.count != 3 { _ = try await consumer.poll(timeout: .milliseconds(20)) }
            try await consumer.close()
            await admin.close()
        }
    }

    @Test func `a member that nobody polls leaves, and its next poll says so and rejoins`() async throws {
        try await run { bootstrap in
            let admin = try admin(bootstrap)
            try await admin.createTopic(TopicSpecification(name: "t", partitionCount: 1))
            let lost = Mutex(0)
            let consumer = try consumer(bootstrap, group: "g") {
                $0.pollIntervalLimit = .milliseconds(300)
                $0.onRebalance = { event in
                    if case .lost = event { lost.withLock { $0 += 1 } }
                }
            }
            try await consumer.subscribe(to: ["t"])
            while consumer.assignment.isEmpty { _ = try await consumer.poll(timeout: .milliseconds(20)) }
            try await until { try await admin.describeGroup("g").members.isEmpty }
            while lost.withLock({ $0 }) == 0 || consumer.assignment.isEmpty {
                _ = try await consumer.poll(timeout: .milliseconds(20))
            }
            try await consumer.close()
            await admin.close()
        }
    }

    @Test func `many tasks send at once and each learns its own offset`() async throws {
        try await run { bootstrap in
            let producer = try producer(bootstrap)
            let offsets = try await withThrowingTaskGroup(of: Int64.self) { group in
                for number in 0..<500 {
                    group.addTask {
                        let result = try await producer.send(
                            ProducerRecord(topic: "auto", partition: PartitionIndex(0), value: "\(number)"))
                        return result.offset?.rawValue ?? -1
                    }
                }
                return try await group.reduce(into: [Int64]()) { $0.append($1) }
            }
            #expect(offsets.sorted() == Array(0..<500))
            #expect(producer.statistics.deliveredBatchCount < 500)
            try await producer.close()
        }
    }
}
