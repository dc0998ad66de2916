import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import Synchronization
import Testing

@testable import MartletClient

/// Share consumers (KIP-932) against the broker of this package.
@Suite(.timeLimit(.minutes(3))) struct ShareConsumerTests: ShareGroupTests {
    // MARK: Acknowledging

    @Test func `each record is processed by one member`() async throws {
        let count = 400
        try await run(count) { broker in
            var members: [ShareConsumer] = []
            for _ in 0..<3 { members.append(try await member(broker)) }
            var seen: [Int] = []
            while seen.count < count {
                for member in members {
                    let records = try await member.poll(timeout: .milliseconds(20), limit: 10)
                    seen += records.map(number)
                    #expect(records.allSatisfy { $0.deliveryCount == 1 })
                }
            }
            for member in members { try await member.close() }
            #expect(seen.sorted() == Array(0..<count))
            try await expectDone(broker)
        }
    }

    @Test func `two members share one partition`() async throws {
        try await run(40, partitions: 1) { broker in
            let members = [
                try await member(broker) { ($0.maximumRecords, $0.acquireMode) = (4, .recordLimit) },
                try await member(broker) { ($0.maximumRecords, $0.acquireMode) = (4, .recordLimit) },
            ]
            var seen: [[Int]] = [[], []]
            while seen[0].count + seen[1].count < 40 {
                for (index, member) in members.enumerated() {
                    let records = try await member.poll(timeout: .milliseconds(20))
                    #expect(records.count <= 4)
                    seen[index] += records.map(number)
                }
            }
            #expect(!seen[0].isEmpty && !seen[1].isEmpty)
            #expect((seen[0] + seen[1]).sorted() == Array(0..<40))
            for member in members { try await member.close() }
            try await expectDone(broker, partitions: 1)
        }
    }

    @Test func `what is released comes again, what is accepted or rejected does not`() async throws {
        try await run(30) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            var deliveries: [Int: Int] = [:]
            while deliveries.values.reduce(0, +) < 40 {
                for record in try await consumer.poll(timeout: .milliseconds(50)) {
                    let number = number(record)
                    deliveries[number, default: 0] += 1
                    #expect(record.deliveryCount == deliveries[number])
                    switch number % 3 {
                    case 0 where deliveries[number] == 1: try consumer.acknowledge(record, .release)
                    case 1: try consumer.acknowledge(record, .reject)
                    case _: try consumer.acknowledge(record)
                    }
                }
                try await consumer.commit()
            }
            for number in 0..<30 { #expect(deliveries[number] == (number % 3 == 0 ? 2 : 1)) }
            try await expectDone(broker)
            #expect(try await consumer.poll(timeout: .milliseconds(200)).isEmpty)
            try await consumer.close()
        }
    }

    @Test func `acknowledgements go along with fetches`() async throws {
        try await run(30, partitions: 1) { broker in
            let results = Mutex<[ShareAcknowledgementResult]>([])
            let consumer = try await member(broker) {
                ($0.maximumRecords, $0.acquireMode) = (10, .recordLimit)
                $0.onAcknowledged = { part in results.withLock { $0 += part } }
            }
            #expect(try await read(consumer, 30).map(number) == Array(0..<30))
            #expect(try await consumer.poll(timeout: .milliseconds(100)).isEmpty)
            #expect(broker.proxy.count(.shareAcknowledge) == 0 && broker.proxy.count(.shareFetch) >= 4)
            try await expectDone(broker, partitions: 1)
            try await consumer.close()
            let offsets = results.withLock { $0 }.flatMap(\.offsets)
            #expect(offsets == [Offset(0)...Offset(9), Offset(10)...Offset(19), Offset(20)...Offset(29)])
            #expect(results.withLock { $0 }.allSatisfy { $0.error == nil })
        }
    }

    @Test func `a slow reader tells what it has done before it has done all`() async throws {
        try await run(20, partitions: 1) { broker in
            let consumer = try await member(broker)
            var seen = 0
            let admin = try broker.admin()
            while seen < 15 { seen += try await consumer.poll(timeout: .milliseconds(50), limit: 1).count }
            try await until {
                try await admin.shareGroupOffsets("g")[TopicPartition("t", 0)]?.start == Offset(14)
            }
            await admin.close()
            try await consumer.close()
            try await expectDone(broker, partitions: 1, leaving: 5)
        }
    }

    @Test func `explicit acknowledgement leaves no record out`() async throws {
        try await run(4, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            let records = try await first(consumer)
            await #expect { try await consumer.poll() } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            for record in records { try consumer.acknowledge(record) }
            #expect { try consumer.acknowledge(records[0]) } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            try await consumer.commit()
            try await expectDone(broker, partitions: 1)
            try await consumer.close()
            await #expect { try await consumer.poll() } throws: { ($0 as? ClientError)?.code == .closed }
            await #expect { try await consumer.commit() } throws: { ($0 as? ClientError)?.code == .closed }
        }
    }

    @Test func `with implicit acknowledgement exceptions can be named`() async throws {
        try await run(6, partitions: 1) { broker in
            let consumer = try await member(broker)
            let records = try await first(consumer)
            #expect(records.count == 6)
            try consumer.acknowledge(records[2], .release)
            try await consumer.commit()
            let again = try await first(consumer)
            #expect(again.map(number) == [2] && again[0].deliveryCount == 2)
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    // MARK: Locks

    @Test func `closing gives back what was not acknowledged, at once`() async throws {
        for mode in [ShareAcknowledgementMode.implicit, .explicit] {
            try await run(20) { broker in
                let leaver = try await member(broker) { $0.mode = mode }
                let taken = try await first(leaver, limit: 3).map(number)
                try await leaver.close()
                let other = try await member(broker)
                let expected = Array(0..<20).filter { mode == .explicit || !taken.contains($0) }
                #expect(try await read(other, expected.count).map(number).sorted() == expected)
                try await other.close()
                try await expectDone(broker)
            }
        }
    }

    @Test func `a member that is gone without a word loses its locks with its connections`() async throws {
        try await run(20, partitions: 1) { broker in
            var gone: ShareConsumer? = try await member(broker) { $0.mode = .explicit }
            let taken = Set(try await first(gone!, limit: 3).map(number))
            gone = nil
            let other = try await member(broker)
            let records = try await read(other, 20)
            #expect(records.map(number).sorted() == Array(0..<20))
            #expect(records.filter { taken.contains(number($0)) }.allSatisfy { $0.deliveryCount == 2 })
            try await other.close()
        }
    }

    @Test func `a member that hangs loses its records when their locks end, and is told`() async throws {
        try await run(10, partitions: 1, Self.shortLock) { broker in
            let results = Mutex<[ShareAcknowledgementResult]>([])
            let hanging = try await member(broker) {
                $0.mode = .explicit
                $0.onAcknowledged = { part in results.withLock { $0 += part } }
            }
            let taken = try await first(hanging)
            #expect(hanging.lockTimeout == .seconds(1))
            let other = try await member(broker)
            let records = try await read(other, taken.count)
            #expect(records.map(number) == taken.map(number))
            #expect(records.allSatisfy { $0.deliveryCount == 2 })
            for record in taken { try hanging.acknowledge(record) }
            await #expect { try await hanging.commit() } throws: { error in
                (error as? ClientError)?.brokerCode == .invalidRecordState
            }
            #expect(results.withLock { $0 }.contains { $0.error?.brokerCode == .invalidRecordState })
            try await other.close()
            try await hanging.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    @Test func `records whose locks ended before they were handed out are not`() async throws {
        try await run(10, partitions: 1, Self.shortLock) { broker in
            let slow = try await member(broker) { $0.mode = .explicit }
            try slow.acknowledge(try await first(slow, limit: 1)[0])
            let other = try await member(broker)
            let records = try await read(other, 10)
            #expect(records.allSatisfy { $0.deliveryCount == 2 })
            #expect(try await other.poll(timeout: .milliseconds(300)).isEmpty)
            // Nine are in the first one's buffer and are somebody else's work by now.
            #expect(try await slow.poll(timeout: .milliseconds(200)).isEmpty)
            try await other.close()
            try await slow.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    @Test func `a lock that is renewed lasts`() async throws {
        try await run(1, partitions: 1, Self.shortLock) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            let records = try await first(consumer)
            let other = try await member(broker)
            for _ in 0..<6 {
                #expect(try await other.poll(timeout: .milliseconds(400)).isEmpty)
                try await consumer.renew(records)
            }
            try consumer.acknowledge(records[0])
            try await consumer.commit()
            await #expect { try await consumer.renew(records) } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            try await other.close()
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    @Test func `a broker that renews no locks is named, and the record can be acknowledged`() async throws {
        try await run(1, partitions: 1) { broker in
            broker.proxy.limit(.shareAcknowledge, to: 1)
            let consumer = try await member(broker) { $0.mode = .explicit }
            let records = try await first(consumer)
            await #expect { try await consumer.renew(records) } throws: { error in
                let error = error as? ClientError
                return error?.code == .unsupportedByBroker && error?.message.contains("lock.duration") == true
            }
            try consumer.acknowledge(records[0])
            try await consumer.commit()
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    // MARK: Transactions

    @Test func `a group that reads committed records gets no others, and passes over markers`() async throws {
        try await run(0, partitions: 1, isolation: "read_committed") { broker in
            struct Interrupted: Error {}
            let producer = try broker.producer()
            for number in 0..<6 {
                do {
                    try await producer.withTransaction { transaction in
                        try await transaction.enqueue(ProducerRecord(topic: "t", value: "\(number)"))
                        if number % 2 == 1 { throw Interrupted() }
                    }
                } catch is Interrupted {}
            }
            try await producer.close()
            let consumer = try await member(broker)
            #expect(try await read(consumer, 3).map(number) == [0, 2, 4])
            try await consumer.commit()
            #expect(try await consumer.poll(timeout: .milliseconds(100)).isEmpty)
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    // MARK: Faults

    @Test func `a connection that breaks costs no record`() async throws {
        try await run(60) { broker in
            broker.proxy.next(.shareGroupHeartbeat, .drop, .loseAnswer)
            broker.proxy.next(.shareFetch, .forward, .drop, .forward, .loseAnswer, .forward, .loseAnswer)
            let refusals = Mutex(0)
            let consumer = try await member(broker) {
                $0.maximumRecords = 5
                $0.acquireMode = .recordLimit
                $0.onAcknowledged = { part in
                    refusals.withLock { $0 += part.filter { $0.error != nil }.count }
                }
            }
            var seen: Set<Int> = []
            while seen.count < 60 {
                for record in try await consumer.poll(timeout: .milliseconds(50)) {
                    seen.insert(number(record))
                }
            }
            try await consumer.close()
            #expect(refusals.withLock { $0 } > 0)
        }
    }

    @Test func `an acknowledgement whose answer is lost is reported`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            for record in try await first(consumer) { try consumer.acknowledge(record) }
            broker.proxy.next(.shareAcknowledge, .loseAnswer)
            await #expect { try await consumer.commit() } throws: {
                ($0 as? ClientError)?.code == .connectionLost
            }
            // The broker had them.
            try await expectDone(broker, partitions: 1)
            #expect(try await consumer.poll(timeout: .milliseconds(100)).isEmpty)
            try await consumer.close()
        }
    }

    @Test(arguments: [ErrorCode.shareSessionNotFound, .invalidShareSessionEpoch, .shareSessionLimitReached])
    func `a session that is refused is opened again`(code: ErrorCode) async throws {
        try await run(40, Self.shortLock) { broker in
            let refuse = Proxy.Reaction.answer { header in
                var response = ShareFetchResponse()
                response.errorCode = code.rawValue
                return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
            }
            broker.proxy.next(.shareFetch, refuse, .forward, refuse, .forward, .forward, refuse)
            let consumer = try await member(broker) {
                ($0.maximumRecords, $0.acquireMode) = (5, .recordLimit)
            }
            var seen: Set<Int> = []
            while seen.count < 40 {
                for record in try await consumer.poll(timeout: .milliseconds(50)) {
                    seen.insert(number(record))
                }
            }
            try await consumer.close()
        }
    }

    @Test func `acknowledgements that a broker cannot write down are sent again`() async throws {
        try await run(3, partitions: 1) { broker in
            let admin = try broker.admin()
            let id = try #require(try await admin.describeTopic("t").id)
            await admin.close()
            let consumer = try await member(broker) { $0.mode = .explicit }
            for record in try await first(consumer) { try consumer.acknowledge(record) }
            broker.proxy.next(
                .shareAcknowledge,
                .answer { header in
                    var item = ShareAcknowledgeResponse.PartitionData()
                    item.errorCode = ErrorCode.coordinatorNotAvailable.rawValue
                    var topic = ShareAcknowledgeResponse.ShareAcknowledgeTopicResponse()
                    topic.topicID = id
                    topic.partitions = [item]
                    var response = ShareAcknowledgeResponse()
                    response.responses = [topic]
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            // The broker has not seen the first one, so that the second is not the next of its session: the failure is
            // told, and the records come again.
            await #expect { try await consumer.commit() } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidShareSessionEpoch
            }
            #expect(broker.proxy.count(.shareAcknowledge) == 2)
            try await consumer.close()
        }
    }

    @Test(arguments: [ErrorCode.fencedMemberEpoch, .unknownMemberID])
    func `a fenced member joins again`(code: ErrorCode) async throws {
        try await run(20) { broker in
            let consumer = try await member(broker)
            #expect(try await read(consumer, 20).count == 20)
            let proxy = broker.proxy
            proxy.next(
                .shareGroupHeartbeat,
                .answer { header in
                    var response = ShareGroupHeartbeatResponse()
                    response.errorCode = code.rawValue
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            let before = proxy.count(.shareGroupHeartbeat)
            try await until { proxy.count(.shareGroupHeartbeat) > before + 2 }
            try await fill(broker, 20..<40, 2)
            #expect(try await read(consumer, 20).map(number).sorted() == Array(20..<40))
            let admin = try broker.admin()
            #expect(try await admin.describeGroup("g").members.count == 1)
            await admin.close()
            try await consumer.close()
        }
    }

    @Test func `a broker that restarts goes on where the group was`() async throws {
        try await run(20) { broker in
            let consumer = try await member(broker)
            #expect(try await read(consumer, 20).count == 20)
            try await consumer.commit()
            await broker.stop()
            try await broker.start()
            try await fill(broker, 20..<40, 2)
            let records = try await read(consumer, 20)
            #expect(
                Set(records.map(number)) == Set(20..<40),
                "\(records.map { "\(number($0)):\($0.deliveryCount)" })")
            try await consumer.close()
            try await expectDone(broker)
        }
    }

    @Test func `a broker without share groups is named with the remedy`() async throws {
        try await run(1) { broker in
            broker.proxy.hide(.shareGroupHeartbeat)
            let consumer = try await member(broker)
            await #expect { while true { _ = try await consumer.poll(timeout: .milliseconds(50)) } } throws: {
                error in
                let error = error as? ClientError
                return error?.code == .unsupportedByBroker && error?.message.contains("Kafka 4.1") == true
            }
            try await consumer.close()
        }
    }

    // MARK: Membership

    @Test func `a member that nobody polls leaves, and its next poll joins again`() async throws {
        try await run(4) { broker in
            let consumer = try await member(broker) { $0.pollIntervalLimit = .milliseconds(300) }
            #expect(try await read(consumer, 4).count == 4)
            let admin = try broker.admin()
            try await until { try await admin.describeGroup("g").members.isEmpty }
            try await fill(broker, 4..<8, 2)
            #expect(try await read(consumer, 4).map(number).sorted() == Array(4..<8))
            // A poll that waits is one, however long: it hears more heartbeats than fit into the limit.
            let proxy = broker.proxy
            let before = proxy.count(.shareGroupHeartbeat)
            async let waiting = consumer.poll(timeout: .seconds(60))
            try await until { proxy.count(.shareGroupHeartbeat) > before + 20 }
            try await fill(broker, 8..<9, 2)
            #expect(try await waiting.map(number) == [8])
            await admin.close()
            try await consumer.close()
        }
    }

    @Test func `topics can be changed and given up`() async throws {
        try await run(4) { broker in
            let consumer = try await member(broker)
            #expect(try await read(consumer, 4).count == 4)
            try await consumer.unsubscribe()
            await #expect { try await consumer.poll() } throws: {
                ($0 as? ClientError)?.code == .invalidState
            }
            let admin = try broker.admin()
            #expect(try await admin.describeGroup("g").members.isEmpty)
            try await expectDone(broker)
            try await consumer.subscribe(to: ["u", "t"])
            try await fill(broker, 4..<8, 2)
            #expect(try await read(consumer, 4).count == 4)
            // A topic that comes later is read as well, and one that is left out is not.
            try await consumer.subscribe(to: ["u"])
            try await broker.topic("u")
            let producer = try broker.producer(nil)
            try await producer.send(ProducerRecord(topic: "u", value: "100"))
            #expect(try await read(consumer, 1).map(number) == [100])
            try await fill(broker, 8..<10, 2)
            #expect(try await consumer.poll(timeout: .milliseconds(200)).isEmpty)
            try await producer.close()
            await admin.close()
            try await consumer.close()
        }
    }

    @Test func `a poll that is cancelled loses no record`() async throws {
        try await run(0) { broker in
            let consumer = try await member(broker) { $0.maximumRecords = 7 }
            var seen: [SharedRecord] = []
            var round = 0
            while seen.count < 100 {
                let polling = Task { try await consumer.poll(timeout: .seconds(5), limit: 3) }
                if round < 25 { try await fill(broker, round * 4..<(round + 1) * 4, 2) }
                round += 1
                if round % 2 == 0 { polling.cancel() }
                do { seen += try await polling.value } catch is CancellationError {}
            }
            #expect(seen.map(number).sorted() == Array(0..<100))
            #expect(seen.allSatisfy { $0.deliveryCount == 1 })
            try await consumer.close()
            try await expectDone(broker)
        }
    }
}
