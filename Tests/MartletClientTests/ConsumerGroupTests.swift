import MartletKafkaProtocol
import MartletLogModel
import Synchronization
import Testing

@testable import MartletClient

/// Members of the consumer protocol (KIP-848) against the broker of this package.
@Suite(.timeLimit(.minutes(3))) struct ConsumerGroupTests {
    private func member(
        _ broker: ProxiedBroker, _ change: (inout ConsumerConfiguration) -> Void = { _ in }
    ) throws -> Consumer {
        try broker.consumer("g") {
            $0.groupProtocol = .consumer
            change(&$0)
        }
    }

    private func poll(_ consumers: Consumer..., until condition: () async throws -> Bool) async throws {
        while try await !condition() {
            for consumer in consumers { _ = try await consumer.poll(timeout: .milliseconds(10)) }
        }
    }

    private func fill(_ broker: ProxiedBroker, _ topic: String, _ partitionCount: Int32, _ count: Int) async throws {
        try await broker.topic(topic, partitionCount)
        let producer = try broker.producer(nil)
        for number in 0..<count {
            try await producer.enqueue(ProducerRecord(topic: topic, key: "\(number)", value: "\(number)"))
        }
        try await producer.close()
    }

    @Test func `members share partitions, one at a time, and a leaver's part moves on`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 4)
            let holders = Mutex<[TopicPartition: String]>([:])
            let clashes = Mutex(0)
            func tracked(_ name: String) throws -> Consumer {
                try member(broker) {
                    $0.onRebalance = { event in
                        holders.withLock { holders in
                            switch event {
                            case .assigned(let partitions):
                                for partition in partitions {
                                    if holders[partition] != nil { clashes.withLock { $0 += 1 } }
                                    holders[partition] = name
                                }
                            case .revoked(let partitions), .lost(let partitions):
                                for partition in partitions where holders[partition] == name {
                                    holders[partition] = nil
                                }
                            }
                        }
                    }
                }
            }
            let first = try tracked("first")
            try await first.subscribe(to: ["t"])
            try await poll(first) { first.assignment.count == 4 }
            let second = try tracked("second")
            try await second.subscribe(to: ["t"])
            try await poll(first, second) { first.assignment.count == 2 && second.assignment.count == 2 }
            #expect(first.assignment.isDisjoint(with: second.assignment))
            let admin = try broker.admin()
            let description = try await admin.describeGroup("g")
            #expect(description.members.count == 2 && description.protocolType == "consumer")
            #expect(Set(description.members.flatMap(\.assignment)).count == 4)
            try await second.close()
            try await poll(first) { first.assignment.count == 4 }
            #expect(clashes.withLock { $0 } == 0)
            #expect(Set(holders.withLock { $0 }.values) == ["first"])
            try await first.close()
            #expect(try await admin.describeGroup("g").members.isEmpty)
            await admin.close()
        }
    }

    @Test func `what is read and committed is not read again`() async throws {
        try await ProxiedBroker.run { broker in
            try await fill(broker, "t", 3, 60)
            var seen: [String] = []
            for part in 1...2 {
                let consumer = try member(broker)
                try await consumer.subscribe(to: ["t"])
                while seen.count < part * 30 {
                    seen += try await consumer.poll(timeout: .milliseconds(20), limit: part * 30 - seen.count)
                        .compactMap(\.valueString)
                }
                try await consumer.commit()
                try await consumer.close()
            }
            #expect(Set(seen).count == 60 && seen.count == 60)
        }
    }

    @Test func `automatic commits and those on leaving carry the member's epoch`() async throws {
        try await ProxiedBroker.run { broker in
            try await fill(broker, "t", 1, 10)
            let consumer = try member(broker) { $0.isAutoCommitEnabled = true }
            try await consumer.subscribe(to: ["t"])
            var count = 0
            while count < 10 { count += try await consumer.poll(timeout: .milliseconds(20)).count }
            try await consumer.close()
            let admin = try broker.admin()
            #expect(try await admin.groupOffsets("g")[TopicPartition("t", 0)]?.offset == Offset(10))
            await admin.close()
        }
    }

    @Test func `heartbeats that are lost cost nothing`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 2)
            let losses = Mutex(0)
            broker.proxy.next(.consumerGroupHeartbeat, .drop, .loseAnswer, .forward, .loseAnswer, .drop, .loseAnswer)
            let consumer = try member(broker) {
                $0.onRebalance = { event in
                    if case .lost = event { losses.withLock { $0 += 1 } }
                }
            }
            try await consumer.subscribe(to: ["t"])
            let proxy = broker.proxy
            try await poll(consumer) {
                consumer.assignment.count == 2 && proxy.count(.consumerGroupHeartbeat) > 10
            }
            #expect(losses.withLock { $0 } == 0)
            try await consumer.close()
        }
    }

    @Test(arguments: [ErrorCode.fencedMemberEpoch, .unknownMemberID])
    func `a fenced member loses all, says so, and joins again`(code: ErrorCode) async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 2)
            let events = Mutex<[RebalanceEvent]>([])
            let consumer = try member(broker) {
                $0.onRebalance = { event in events.withLock { $0.append(event) } }
            }
            try await consumer.subscribe(to: ["t"])
            try await poll(consumer) { consumer.assignment.count == 2 }
            broker.proxy.next(
                .consumerGroupHeartbeat,
                .answer { header in
                    var response = ConsumerGroupHeartbeatResponse()
                    response.errorCode = code.rawValue
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            let both = [TopicPartition("t", 0), TopicPartition("t", 1)]
            try await poll(consumer) { events.withLock { $0.count } >= 3 }
            #expect(events.withLock { $0 } == [.assigned(both), .lost(both), .assigned(both)])
            try await consumer.close()
        }
    }

    @Test func `a member that is refused for good loses its partitions before it says so`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 2)
            let events = Mutex<[RebalanceEvent]>([])
            let consumer = try member(broker) {
                $0.groupInstanceID = "one"
                $0.onRebalance = { event in events.withLock { $0.append(event) } }
            }
            try await consumer.subscribe(to: ["t"])
            try await poll(consumer) { consumer.assignment.count == 2 }
            broker.proxy.always(
                .consumerGroupHeartbeat,
                .answer { header in
                    var response = ConsumerGroupHeartbeatResponse()
                    response.errorCode = ErrorCode.fencedInstanceID.rawValue
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            await #expect { try await poll(consumer) { false } } throws: { ($0 as? ClientError)?.code == .fenced }
            let both = [TopicPartition("t", 0), TopicPartition("t", 1)]
            #expect(events.withLock { $0 } == [.assigned(both), .lost(both)])
            #expect(consumer.assignment.isEmpty)
            try await consumer.close()
        }
    }

    @Test func `a pattern follows topics that are created later`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("trade-a", 1)
            try await broker.topic("other", 1)
            let consumer = try member(broker)
            try await consumer.subscribe(matching: "trade-.*")
            try await poll(consumer) { consumer.assignment == [TopicPartition("trade-a", 0)] }
            try await fill(broker, "trade-b", 1, 3)
            var count = 0
            while count < 3 { count += try await consumer.poll(timeout: .milliseconds(20)).count }
            #expect(consumer.assignment == [TopicPartition("trade-a", 0), TopicPartition("trade-b", 0)])
            try await consumer.subscribe(to: ["other"])
            try await poll(consumer) { consumer.assignment == [TopicPartition("other", 0)] }
            try await consumer.close()
        }
    }

    @Test func `a pattern that is none is reported`() async throws {
        try await ProxiedBroker.run { broker in
            let consumer = try member(broker)
            try await consumer.subscribe(matching: "trade-(")
            await #expect { try await poll(consumer) { false } } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidRegularExpression
            }
            try await consumer.close()
            let classic = try broker.consumer("h")
            await #expect { try await classic.subscribe(matching: "a") } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            try await classic.close()
        }
    }

    @Test func `a member that nobody polls leaves, and its next poll says so and rejoins`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t")
            let lost = Mutex(0)
            let consumer = try member(broker) {
                $0.pollIntervalLimit = .milliseconds(300)
                $0.onRebalance = { event in
                    if case .lost = event { lost.withLock { $0 += 1 } }
                }
            }
            try await consumer.subscribe(to: ["t"])
            try await poll(consumer) { !consumer.assignment.isEmpty }
            let admin = try broker.admin()
            try await until { try await admin.describeGroup("g").members.isEmpty }
            try await poll(consumer) { lost.withLock { $0 } > 0 && !consumer.assignment.isEmpty }
            try await consumer.close()
            await admin.close()
        }
    }

    @Test func `the coordinator's assignor is chosen by name`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 2)
            let consumer = try member(broker) { $0.serverAssignor = "range" }
            try await consumer.subscribe(to: ["t"])
            try await poll(consumer) { consumer.assignment.count == 2 }
            let admin = try broker.admin()
            #expect(try await admin.describeGroup("g").strategy == "range")
            await admin.close()
            try await consumer.close()
            let wrong = try broker.consumer("h") {
                $0.groupProtocol = .consumer
                $0.serverAssignor = "fair"
            }
            try await wrong.subscribe(to: ["t"])
            await #expect { try await poll(wrong) { false } } throws: {
                ($0 as? ClientError)?.brokerCode == .unsupportedAssignor
            }
            try await wrong.close()
        }
    }

    @Test func `a broker without the protocol is named with the remedy`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t")
            broker.proxy.hide(.consumerGroupHeartbeat)
            let consumer = try member(broker)
            try await consumer.subscribe(to: ["t"])
            await #expect { try await poll(consumer) { false } } throws: { error in
                let error = error as? ClientError
                return error?.code == .unsupportedByBroker && error?.message.contains(".classic") == true
            }
            try await consumer.close()
        }
    }

    @Test func `members of both protocols share a group`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 4)
            let classic = try broker.consumer("g") { $0.assignmentStrategies = [.cooperativeSticky] }
            try await classic.subscribe(to: ["t"])
            try await poll(classic) { classic.assignment.count == 4 }
            let modern = try member(broker)
            try await modern.subscribe(to: ["t"])
            try await poll(classic, modern) { classic.assignment.count == 2 && modern.assignment.count == 2 }
            #expect(classic.assignment.isDisjoint(with: modern.assignment))
            try await classic.close()
            try await poll(modern) { modern.assignment.count == 4 }
            try await modern.close()
        }
    }

    @Test func `a broker that restarts finds its members again`() async throws {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 2)
            let losses = Mutex(0)
            let consumer = try member(broker) {
                $0.onRebalance = { event in
                    if case .lost = event { losses.withLock { $0 += 1 } }
                }
            }
            try await consumer.subscribe(to: ["t"])
            try await poll(consumer) { consumer.assignment.count == 2 }
            await broker.stop()
            try await broker.start()
            let admin = try broker.admin()
            try await poll(consumer) {
                let members = try await admin.describeGroup("g").members
                return members.count == 1 && members[0].assignment.count == 2
            }
            #expect(losses.withLock { $0 } == 0)
            await admin.close()
            try await consumer.close()
        }
    }
}
