import MartletLogModel
import MartletTestSupport
import Synchronization
import Testing

@testable import MartletClient

/// What a member can rely on in every protocol of groups, against the broker of this package.
@Suite(.timeLimit(.minutes(3))) struct MembershipTests {
    enum Kind: CaseIterable {
        case classicEager, classicCooperative, consumer

        func apply(to configuration: inout ConsumerConfiguration) {
            configuration.groupProtocol = self == .consumer ? .consumer : .classic
            configuration.assignmentStrategies = self == .classicCooperative ? [.cooperativeSticky] : [.range]
        }
    }

    private func fill(_ broker: ProxiedBroker, _ partitionCount: Int32, _ count: Int) async throws {
        try await broker.topic("t", partitionCount)
        let producer = try broker.producer(nil)
        for number in 0..<count {
            try await producer.enqueue(
                ProducerRecord(
                    topic: "t", partition: PartitionIndex(Int32(number) % partitionCount), value: "\(number)")
            )
        }
        try await producer.close()
    }

    private func poll(_ consumers: Consumer..., until condition: () async throws -> Bool) async throws {
        while try await !condition() {
            for consumer in consumers { _ = try await consumer.poll(timeout: .milliseconds(10)) }
        }
    }

    @Test(arguments: Kind.allCases)
    func `what is committed when partitions are given up is where their next owner begins`(kind: Kind)
        async throws
    {
        try await ProxiedBroker.run { broker in
            try await fill(broker, 4, 200)
            let committer = Mutex<Consumer?>(nil)
            let revoked = Mutex<[TopicPartition]>([])
            let first = try broker.consumer("g") {
                kind.apply(to: &$0)
                $0.onRebalance = { event in
                    guard case .revoked(let partitions) = event, let consumer = committer.withLock({ $0 })
                    else { return }
                    do {
                        try await consumer.commit()
                        revoked.withLock { $0 += partitions }
                    } catch {
                        Issue.record("commit of what is given up: \(error)")
                    }
                }
            }
            committer.withLock { $0 = first }
            var values: [String] = []
            try await first.subscribe(to: ["t"])
            while values.count < 100 {
                values += try await first.poll(timeout: .milliseconds(50), limit: 20).compactMap(
                    \.valueString)
            }
            let second = try broker.consumer("g") { kind.apply(to: &$0) }
            try await second.subscribe(to: ["t"])
            while values.count < 200 || second.assignment.isEmpty {
                for consumer in [first, second] {
                    values += try await consumer.poll(timeout: .milliseconds(10), limit: 1).compactMap(
                        \.valueString)
                }
            }
            #expect(!revoked.withLock { $0 }.isEmpty)
            #expect(values.count == 200 && Set(values).count == 200)
            committer.withLock { $0 = nil }
            try await first.close()
            try await second.close()
        }
    }

    @Test(arguments: Kind.allCases)
    func `a static member that restarts gets its partitions back and the others keep theirs`(kind: Kind)
        async throws
    {
        try await ProxiedBroker.run { broker in
            try await broker.topic("t", 4)
            let changes = Mutex(0)
            let other = try broker.consumer("g") {
                kind.apply(to: &$0)
                $0.onRebalance = { _ in changes.withLock { $0 += 1 } }
            }
            try await other.subscribe(to: ["t"])
            func member() throws -> Consumer {
                try broker.consumer("g") {
                    kind.apply(to: &$0)
                    $0.groupInstanceID = "one"
                }
            }
            let first = try member()
            try await first.subscribe(to: ["t"])
            try await poll(first, other) { first.assignment.count == 2 && other.assignment.count == 2 }
            let part = first.assignment
            let before = changes.withLock { $0 }
            try await first.close()
            let again = try member()
            try await again.subscribe(to: ["t"])
            try await poll(again, other) { again.assignment.count == 2 }
            #expect(again.assignment == part)
            #expect(changes.withLock { $0 } == before)
            try await again.close()
            try await other.close()
        }
    }

    @Test(arguments: Kind.allCases)
    func `an isolation level holds in a group`(kind: Kind) async throws {
        struct Interrupted: Error {}
        try await ProxiedBroker.run { broker in
            try await broker.topic("t")
            let producer = try broker.producer()
            for number in 0..<6 {
                do {
                    try await producer.withTransaction { transaction in
                        try await transaction.send(ProducerRecord(topic: "t", value: "\(number)"))
                        if number % 2 == 1 { throw Interrupted() }
                    }
                } catch is Interrupted {}
            }
            try await producer.close()
            for (isolation, expected) in [
                (IsolationLevel.readUncommitted, [0, 1, 2, 3, 4, 5]), (.readCommitted, [0, 2, 4]),
            ] {
                let consumer = try broker.consumer("\(isolation)") {
                    kind.apply(to: &$0)
                    $0.isolation = isolation
                }
                try await consumer.subscribe(to: ["t"])
                var values: [String] = []
                // The position passes the last marker, so that everything has been seen.
                while consumer.position(of: TopicPartition("t", 0)) != Offset(12) {
                    values += try await consumer.poll(timeout: .milliseconds(20)).compactMap(\.valueString)
                }
                #expect(values == expected.map { "\($0)" })
                try await consumer.close()
            }
        }
    }
}
