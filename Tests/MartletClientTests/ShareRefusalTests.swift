import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Synchronization
import Testing

@testable import MartletClient

/// What becomes of acknowledgements that brokers refuse, lose or cannot write down, and of members that end meanwhile.
@Suite(.timeLimit(.minutes(3))) struct ShareRefusalTests: ShareGroupTests {
    /// The broker is told nothing and the client hears that the state of the group cannot be written.
    private static let unwritten = Proxy.Reaction.changing(ShareAcknowledgeRequest.self) { request in
        for topic in request.topics.indices {
            for item in request.topics[topic].partitions.indices {
                request.topics[topic].partitions[item].acknowledgementBatches = []
            }
        }
    } answer: { response in
        for topic in response.responses.indices {
            for item in response.responses[topic].partitions.indices {
                response.responses[topic].partitions[item].errorCode =
                    ErrorCode.coordinatorNotAvailable.rawValue
            }
        }
    }

    /// Carried out, and refused all the same.
    private static func refused(_ code: ErrorCode) -> Proxy.Reaction {
        .changing(ShareAcknowledgeRequest.self) { _ in
        } answer: { response in
            for topic in response.responses.indices {
                for item in response.responses[topic].partitions.indices {
                    response.responses[topic].partitions[item].errorCode = code.rawValue
                }
            }
        }
    }

    private static func refusedFetch(_ code: ErrorCode, isCarriedOut: Bool = false) -> Proxy.Reaction {
        .changing(ShareFetchRequest.self) { request in
            guard !isCarriedOut else { return }
            for topic in request.topics.indices {
                for item in request.topics[topic].partitions.indices {
                    request.topics[topic].partitions[item].acknowledgementBatches = []
                }
            }
        } answer: { response in
            for topic in response.responses.indices {
                for item in response.responses[topic].partitions.indices {
                    response.responses[topic].partitions[item].acknowledgeErrorCode = code.rawValue
                }
            }
        }
    }

    private func hasCode(_ code: ClientError.Code) -> (any Error) -> Bool {
        { ($0 as? ClientError)?.code == code }
    }

    /// The first records of a member that acknowledges explicitly. What is said about them goes alone: a fetch that set
    /// out late, for a poll that is over, is on its way by then.
    private func taken(_ consumer: ShareConsumer) async throws -> [SharedRecord] {
        let records = try await first(consumer)
        try await consumer.commit()
        return records
    }

    // MARK: Repetition

    @Test func `acknowledgements of a fetch that a broker cannot write down are sent again`() async throws {
        try await run(30, partitions: 1) { broker in
            let results = Mutex<[ShareAcknowledgementResult]>([])
            let consumer = try await member(broker) {
                ($0.maximumRecords, $0.acquireMode) = (10, .recordLimit)
                $0.onAcknowledged = { part in results.withLock { $0 += part } }
            }
            #expect(try await first(consumer).map(number) == Array(0..<10))
            broker.proxy.always(.shareFetch, Self.refusedFetch(.coordinatorNotAvailable))
            let rest = try await read(consumer, 20)
            #expect(rest.map(number) == Array(10..<30) && rest.allSatisfy { $0.deliveryCount == 1 })
            try await consumer.commit()
            try #require(results.withLock { $0 }.allSatisfy { $0.error == nil })
            #expect(
                Set(results.withLock { $0 }.flatMap(\.offsets)) == [
                    Offset(0)...Offset(9), Offset(10)...Offset(19), Offset(20)...Offset(29),
                ])
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    @Test func `acknowledgements are written down when they are sent again`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            for record in try await taken(consumer) { try consumer.acknowledge(record) }
            broker.proxy.next(.shareAcknowledge, Self.unwritten, Self.unwritten)
            try await consumer.commit()
            #expect(broker.proxy.count(.shareAcknowledge) == 3)
            try await expectDone(broker, partitions: 1)
            try await consumer.close()
        }
    }

    @Test func `acknowledgements are sent again as long as locks last, and no longer`() async throws {
        try await run(3, partitions: 1, Self.shortLock) { broker in
            let consumer = try await member(broker) {
                $0.mode = .explicit
                $0.client.retryBackoff = .milliseconds(10)
            }
            for record in try await taken(consumer) { try consumer.acknowledge(record) }
            broker.proxy.always(.shareAcknowledge, Self.unwritten)
            await #expect { try await consumer.commit() } throws: {
                ($0 as? ClientError)?.brokerCode == .coordinatorNotAvailable
            }
            #expect(broker.proxy.count(.shareAcknowledge) > 5)
            broker.proxy.always(.shareAcknowledge, nil)
            try await consumer.close()
        }
    }

    @Test func `what was accepted is told although the poll that accepts it fails`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker)
            #expect(try await read(consumer, 3).count == 3)
            broker.proxy.always(
                .shareGroupHeartbeat,
                .answer { header in
                    var response = ShareGroupHeartbeatResponse()
                    response.errorCode = ErrorCode.groupAuthorizationFailed.rawValue
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            let count = broker.proxy.count(.shareGroupHeartbeat)
            let proxy = broker.proxy
            try await until { proxy.count(.shareGroupHeartbeat) > count }
            await #expect(throws: ClientError.self) {
                while true { _ = try await consumer.poll(timeout: .zero) }
            }
            try await expectDone(broker, partitions: 1)
            broker.proxy.always(.shareGroupHeartbeat, nil)
            try await consumer.close()
        }
    }

    // MARK: Closing

    @Test func `closing waits for acknowledgements that are to be sent again`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) {
                $0.mode = .explicit
                $0.client.retryBackoff = .milliseconds(300)
            }
            for record in try await taken(consumer) { try consumer.acknowledge(record) }
            let proxy = broker.proxy
            proxy.next(.shareAcknowledge, Self.unwritten)
            let committing = Task { try await consumer.commit() }
            try await until { proxy.count(.shareAcknowledge) == 1 }
            try await consumer.close()
            try await committing.value
            try await expectDone(broker, partitions: 1)
        }
    }

    @Test func `closing tells of a refusal that comes while it waits`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.fetchMaximumWait = .seconds(1) }
            #expect(try await first(consumer).count == 3)
            let proxy = broker.proxy
            let before = proxy.count(.shareFetch) + proxy.count(.shareAcknowledge)
            // With the fetch of this poll, or alone if one of the poll before is still on its way.
            proxy.always(.shareFetch, Self.refusedFetch(.invalidRecordState, isCarriedOut: true))
            proxy.always(.shareAcknowledge, Self.refused(.invalidRecordState))
            #expect(try await consumer.poll(timeout: .milliseconds(20)).isEmpty)
            try await until { proxy.count(.shareFetch) + proxy.count(.shareAcknowledge) > before }
            await #expect { try await consumer.close() } throws: {
                ($0 as? ClientError)?.brokerCode == .invalidRecordState
            }
        }
    }

    @Test func `closing ends soon also where brokers do not answer`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            #expect(try await first(consumer).count == 3)
            let proxy = broker.proxy
            proxy.always(.shareAcknowledge, .hold { false })
            proxy.always(.findCoordinator, .hold { false })
            proxy.always(.shareGroupHeartbeat, .drop)
            try await until { proxy.count(.findCoordinator) > 1 }
            let start = ContinuousClock.now
            try await consumer.close()
            // Each of two steps waits five seconds, instead of `requestTimeout`, which is thirty.
            #expect(ContinuousClock.now - start < .seconds(25))
        }
    }

    // MARK: Results

    @Test func `a renewal is told to nobody but who asked for it`() async throws {
        try await run(3, partitions: 1) { broker in
            let results = Mutex<[ShareAcknowledgementResult]>([])
            let consumer = try await member(broker) {
                $0.mode = .explicit
                $0.onAcknowledged = { part in results.withLock { $0 += part } }
            }
            let records = try await taken(consumer)
            try await consumer.renew(records)
            try await consumer.commit()
            #expect(results.withLock { $0.isEmpty })
            for record in records { try consumer.acknowledge(record) }
            try await consumer.commit()
            #expect(results.withLock { $0 }.flatMap(\.offsets) == [Offset(0)...Offset(2)])
            try await consumer.close()
        }
    }

    @Test func `a record that is named twice is renewed once`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            let records = try await first(consumer)
            try await consumer.renew(records + records)
            for record in records { try consumer.acknowledge(record) }
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
            // Nothing to renew is no reason to be silent about what is wrong.
            await #expect { try await consumer.renew([]) } throws: { hasCode(.closed)($0) }
        }
    }

    @Test func `what an answer does not speak of is not acknowledged`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            for record in try await taken(consumer) { try consumer.acknowledge(record) }
            broker.proxy.next(
                .shareAcknowledge, .changing(ShareAcknowledgeRequest.self, answer: { $0.responses = [] }))
            await #expect { try await consumer.commit() } throws: { hasCode(.protocolViolation)($0) }
            try await consumer.close()
        }
    }

    @Test func `commit tells of what was lost before it`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker) { $0.mode = .explicit }
            let records = try await taken(consumer)
            let proxy = broker.proxy
            proxy.next(.shareAcknowledge, .drop)
            await #expect { try await consumer.renew(records) } throws: { hasCode(.connectionLost)($0) }
            for record in records { try consumer.acknowledge(record) }
            // New metadata are a reason to look at what was said.
            let metadataCount = proxy.count(.metadata)
            proxy.dropConnections()
            try await until { proxy.count(.metadata) > metadataCount }
            let beatCount = proxy.count(.shareGroupHeartbeat)
            try await until { proxy.count(.shareGroupHeartbeat) > beatCount + 2 }
            await #expect { try await consumer.commit() } throws: { hasCode(.rebalanced)($0) }
            // It is told once.
            try await consumer.commit()
            try await consumer.close()
        }
    }

    @Test func `a copy of an earlier delivery says nothing about the present one`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker)
            let former = try await first(consumer)
            broker.proxy.next(.shareFetch, .drop)
            let records = try await first(consumer)
            #expect(records.map(number) == former.map(number) && records[0].deliveryCount == 2)
            #expect { try consumer.acknowledge(former[0], .reject) } throws: { hasCode(.invalidState)($0) }
            await #expect { try await consumer.renew(former) } throws: { hasCode(.invalidState)($0) }
            try await consumer.renew(records)
            try consumer.acknowledge(records[0], .reject)
            try await consumer.commit()
            try await consumer.close()
            try await expectDone(broker, partitions: 1)
        }
    }

    // MARK: Damage

    @Test func `a batch that cannot be read is not fetched again before somebody asks`() async throws {
        try await run(0, partitions: 1) { broker in
            let producer = try broker.producer(nil) { $0.compression = .gzip(level: 1) }
            try await producer.send(ProducerRecord(topic: "t", value: String(repeating: "a", count: 2_000)))
            try await producer.close()
            var configuration = ShareConsumerConfiguration(try broker.client(), groupID: "g")
            configuration.decompressedBatchByteLimit = 1_000
            let engine = ClientEngine(configuration: configuration.client, role: "share consumer")
            let buffer = ShareBuffer(keepsResults: false)
            let membership = ShareMembership(engine: engine, buffer: buffer, configuration: configuration)
            let fetcher = ShareFetcher(
                engine: engine, membership: membership, buffer: buffer, configuration: configuration)
            try buffer.subscribe()
            engine.loop.execute {
                fetcher.start()
                membership.subscribe(["t"])
                fetcher.want(true)
            }
            // A polling task that is not woken: nothing is taken from the buffer, and nothing more is wanted.
            let proxy = broker.proxy
            try await buffer.whenReady().value()
            let beatCount = proxy.count(.shareGroupHeartbeat)
            try await until { proxy.count(.shareGroupHeartbeat) > beatCount + 6 }
            guard case .error(let error) = buffer.take(limit: 1) else {
                Issue.record("no error")
                return
            }
            #expect(error.code == .corruptData)
            #expect(proxy.count(.shareFetch) <= 2)
            engine.loop.execute { fetcher.shutDown() }
        }
    }

    @Test func `errors that nobody takes are kept up to a limit`() throws {
        let buffer = ShareBuffer(keepsResults: false)
        try buffer.subscribe()
        for number in 0..<20 { buffer.report(ClientError(.broker, "\(number)")) }
        var messages: [String] = []
        while case .error(let error) = buffer.take(limit: 1) { messages.append(error.message) }
        #expect(messages == (0..<16).map { "\($0)" })
    }

    // MARK: Membership

    @Test func `a member that may not join says so until it subscribes again`() async throws {
        try await run(3, partitions: 1) { broker in
            broker.proxy.next(
                .shareGroupHeartbeat,
                .answer { header in
                    var response = ShareGroupHeartbeatResponse()
                    response.errorCode = ErrorCode.groupAuthorizationFailed.rawValue
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            let consumer = try await member(broker)
            for _ in 0..<3 {
                await #expect { try await consumer.poll(timeout: .seconds(60)) } throws: { error in
                    (error as? ClientError)?.brokerCode == .groupAuthorizationFailed
                        && (error as? ClientError)?.message.contains("subscribe") == true
                }
            }
            try await consumer.subscribe(to: ["t"])
            #expect(try await read(consumer, 3).count == 3)
            try await consumer.close()
        }
    }

    @Test func `a consumer that is leaving does not subscribe`() async throws {
        try await run(3, partitions: 1) { broker in
            let consumer = try await member(broker)
            #expect(try await first(consumer).count == 3)
            let proxy = broker.proxy
            try await withThrowingTaskGroup(of: Void.self) { group in
                let gate = Gate()
                proxy.next(.shareAcknowledge, .hold { gate.isOpen })
                group.addTask { try await consumer.unsubscribe() }
                try await until { proxy.count(.shareAcknowledge) == 1 }
                await #expect {
                    try await consumer.subscribe(to: ["t"])
                } throws: {
                    hasCode(.invalidState)($0)
                }
                gate.open()
                try await group.waitForAll()
            }
            try await consumer.subscribe(to: ["t"])
            try await fill(broker, 3..<5, 1)
            #expect(try await read(consumer, 2).map(number) == [3, 4])
            try await consumer.close()
        }
    }

    private final class Gate: Sendable {
        private let state = Mutex(false)
        var isOpen: Bool { state.withLock { $0 } }
        func open() { state.withLock { $0 = true } }
    }

    @Test func `a poll that waits while the consumer is unsubscribed names that`() async throws {
        try await run(0, partitions: 1) { broker in
            let consumer = try await member(broker)
            let proxy = broker.proxy
            let waiting = Task { try await consumer.poll(timeout: .seconds(60)) }
            try await until { proxy.count(.shareFetch) > 1 }
            try await consumer.unsubscribe()
            await #expect { try await waiting.value } throws: { hasCode(.invalidState)($0) }
            try await consumer.subscribe(to: ["t"])
            try await fill(broker, 0..<2, 1)
            #expect(try await read(consumer, 2).map(number) == [0, 1])
            try await consumer.close()
        }
    }
}
