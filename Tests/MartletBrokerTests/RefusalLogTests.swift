import Logging
import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Synchronization
import Testing

/// Lines of a broker's log, as message and metadata.
private final class Lines: LogHandler, Sendable {
    private let all = Mutex<[(message: String, metadata: Logger.Metadata)]>([])

    func log(event: LogEvent) {
        let (message, metadata) = (event.message.description, event.metadata ?? [:])
        all.withLock { $0.append((message, metadata)) }
    }

    /// Values of `key` in lines about refused requests.
    func refused(_ key: String = "code") -> [String] {
        all.withLock { lines in
            lines.filter { $0.message == "request refused" }.map { "\($0.metadata[key] ?? "")" }
        }
    }

    func metadata(_ message: String) -> Logger.Metadata? {
        all.withLock { lines in lines.last { $0.message == message }?.metadata }
    }

    func count(_ message: String) -> Int { all.withLock { lines in lines.count { $0.message == message } } }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }
    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    var logLevel: Logger.Level {
        get { .info }
        set {}
    }
}

@Suite(.timeLimit(.minutes(2))) struct `Refused requests` {
    private static func find(_ client: WireClient, _ key: String, type: Int8) throws {
        var request = FindCoordinatorRequest()
        request.keyType = type
        request.coordinatorKeys = [key]
        #expect(try client.call(request).coordinators.map(\.errorCode) == [0])
    }

    private static func commit(_ client: WireClient, _ metadata: String, member: String = "") throws -> Int16? {
        var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
        partition.committedMetadata = metadata
        var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
        topic.name = "t"
        topic.partitions = [partition]
        var request = OffsetCommitRequest()
        request.groupID = "g"
        request.memberID = member
        request.generationIDOrMemberEpoch = member.isEmpty ? -1 : 3
        request.topics = [topic]
        return try client.call(request, version: 9).topics.first?.partitions.first?.errorCode
    }

    @Test func `each has one line with code, cause and whom it is about`() async throws {
        let lines = Lines()
        try await withBroker(["group.initial.rebalance.delay.ms": "0"], logger: Logger(label: "test") { _ in lines }) {
            broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            try client.createTopic("compacted", configs: ["cleanup.policy": "compact"])
            try Self.find(client, "g", type: 0)
            try Self.find(client, "x", type: 1)

            // Refused as a matter of course, or for reasons that are not the client's: no line.
            var join = JoinGroupRequest()
            join.groupID = "g"
            join.sessionTimeoutMs = 10_000
            join.rebalanceTimeoutMs = 10_000
            join.protocolType = "consumer"
            var strategy = JoinGroupRequest.JoinGroupRequestProtocol()
            strategy.name = "range"
            join.protocols = [strategy]
            #expect(try client.call(join, version: 9).errorCode == ErrorCode.memberIDRequired.rawValue)
            #expect(try client.produce(try makeBatch(["v"]), topic: "none").errorCode == 3)
            #expect(lines.refused() == [])

            #expect(try Self.commit(client, String(repeating: "m", count: 5_000)) == 12)
            var heartbeat = HeartbeatRequest()
            heartbeat.groupID = "g"
            heartbeat.memberID = "nobody"
            #expect(try client.call(heartbeat).errorCode == ErrorCode.unknownMemberID.rawValue)
            var joinConsumers = ConsumerGroupHeartbeatRequest()
            joinConsumers.groupID = "k"
            joinConsumers.memberID = "m"
            joinConsumers.rebalanceTimeoutMs = 1_000
            joinConsumers.topicPartitions = []
            joinConsumers.subscribedTopicRegex = "(" + String(repeating: "x", count: 30_000)
            let refused = try client.call(joinConsumers)
            #expect(refused.errorCode == ErrorCode.invalidRegularExpression.rawValue)
            #expect((refused.errorMessage ?? "").count < 500)
            #expect(
                lines.refused() == ["OFFSET_METADATA_TOO_LARGE", "UNKNOWN_MEMBER_ID", "INVALID_REGULAR_EXPRESSION"])
            #expect(lines.refused("group") == ["g", "g", "k"])
            #expect(lines.refused("member") == ["", "nobody", "m"])
            #expect(lines.refused("cause").allSatisfy { !$0.isEmpty && $0.count < 300 })

            var initialize = InitProducerIdRequest(transactionalID: "x")
            initialize.transactionTimeoutMs = 60_000
            let producer = try client.call(initialize, version: 5)
            #expect(producer.errorCode == 0)
            var end = EndTxnRequest()
            end.transactionalID = "x"
            end.producerID = producer.producerID
            end.producerEpoch = producer.producerEpoch
            end.committed = true
            #expect(try client.call(end, version: 5).errorCode == ErrorCode.invalidTxnState.rawValue)
            // Somebody else takes over.
            #expect(try client.call(initialize, version: 5).errorCode == 0)
            #expect(try client.call(end, version: 5).errorCode == ErrorCode.producerFenced.rawValue)
            #expect(lines.refused().suffix(2) == ["INVALID_TXN_STATE", "PRODUCER_FENCED"])
            #expect(lines.refused("transactional.id").suffix(2) == ["x", "x"])

            let keyless = try client.produce(try makeBatch(["v"], key: nil), topic: "compacted")
            #expect(keyless.errorCode == ErrorCode.invalidRecord.rawValue)
            #expect(lines.refused().last == "INVALID_RECORD")
            #expect(lines.refused("partition").last == "compacted-0")
            #expect(lines.refused().count == 6)

            // The answer to this one has no place for words.
            var list = ListTransactionsRequest()
            list.transactionalIDPattern = "a("
            #expect(try client.call(list).errorCode == ErrorCode.invalidRegularExpression.rawValue)
            #expect(lines.refused().last == "INVALID_REGULAR_EXPRESSION" && lines.refused("pattern").last == "a(")
            #expect(lines.refused("cause").last?.isEmpty == false)
        }
    }

    @Test func `a client that goes on being wrong does not fill the log`() async throws {
        let lines = Lines()
        try await withBroker(logger: Logger(label: "test") { _ in lines }) { broker in
            let client = try WireClient(port: broker.address.port)
            try Self.find(client, "g", type: 0)
            var heartbeat = HeartbeatRequest()
            heartbeat.groupID = "g"
            heartbeat.memberID = "nobody"
            let clock = ContinuousClock()
            let start = clock.now
            for _ in 0..<50 {
                for _ in 0..<100 { try client.post(heartbeat, version: 4) }
                for _ in 0..<100 {
                    #expect(try client.read(HeartbeatResponse.self, version: 4).errorCode == 25)
                }
            }
            let windows = 2 + Int((clock.now - start) / .seconds(1))
            #expect(lines.refused().count >= 1)
            #expect(lines.refused().count <= min(4_999, windows * RefusalLog.clientLineLimit))
        }
    }

    @Test func `a client that goes on being wrong does not hide the others, and what it hides is told by code`() {
        let lines = Lines()
        let logger = Logger(label: "test") { _ in lines }
        var refusals = RefusalLog()
        let start = NIODeadline.uptimeNanoseconds(1)
        func refuse(_ code: ErrorCode, _ client: String, _ now: NIODeadline) {
            refusals.log(code, nil, client: client, about: [], now: now, logger)
        }
        for _ in 0..<40 { refuse(.unknownMemberID, "noisy", start) }
        for _ in 0..<3 { refuse(.invalidRequest, "noisy", start) }
        refuse(.invalidGroupID, "quiet", start)
        #expect(lines.refused("client").count { $0 == "noisy" } == RefusalLog.clientLineLimit)
        #expect(lines.refused("client").last == "quiet")
        // Names alone do not make room for more lines.
        for number in 0..<40 { refuse(.invalidGroupID, "client \(number)", start) }
        #expect(lines.refused().count == RefusalLog.lineLimit)
        refusals.tellOmitted(endedBy: start, logger)
        #expect(lines.count("more requests refused") == 0, "not before the window is over")
        refusals.tellOmitted(endedBy: start + .seconds(1), logger)
        #expect(lines.metadata("more requests refused")?["count"] == "64")
        #expect(
            lines.metadata("more requests refused")?["codes"]
                == "INVALID_GROUP_ID: 31, UNKNOWN_MEMBER_ID: 30, INVALID_REQUEST: 3")
        refuse(.unknownMemberID, "noisy", start + .seconds(1))
        #expect(lines.refused().count == RefusalLog.lineLimit + 1)
    }
}
