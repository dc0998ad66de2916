import Logging
import MartletBroker
import MartletKafkaProtocol
import NIOCore
import Synchronization
import Testing

/// A connection follows its partition to another event loop without anybody noticing.
@Suite(.timeLimit(.minutes(2))) struct ConnectionMoveTests {
    /// Counts the log lines of moves.
    private final class MoveLog: LogHandler, Sendable {
        let count = Atomic<Int>(0)

        func log(event: LogEvent) {
            if event.message.description == "connection goes on where its partition lives" {
                count.wrappingAdd(1, ordering: .relaxed)
            }
        }

        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { nil }
            set {}
        }
        var metadata: Logger.Metadata {
            get { [:] }
            set {}
        }
        var logLevel: Logger.Level {
            get { .debug }
            set {}
        }
    }

    private static func request(_ text: String, partition: Int32) throws -> ProduceRequest {
        var data = ProduceRequest.PartitionProduceData()
        data.index = partition
        data.records = try makeBatch([text])
        var topic = ProduceRequest.TopicProduceData()
        topic.name = "t"
        topic.partitionData = [data]
        var request = ProduceRequest()
        request.acks = 1
        request.timeoutMs = 10_000
        request.topicData = [topic]
        return request
    }

    @Test func `pipelined requests are answered in order while their connection moves`() async throws {
        let moves = MoveLog()
        try await withBroker(eventLoopCount: 3, logger: Logger(label: "test") { _ in moves }) { broker in
            let first = try WireClient(port: broker.address.port)
            try first.createTopic("t", configs: ["martlet.durability": "relaxed"])
            // The partition lives with this connection; three more, dealt out to the loops in turn, follow.
            _ = try first.produce(try makeBatch(["home"]), topic: "t")
            let count = 300
            for number in 0..<3 {
                let client = try WireClient(port: broker.address.port)
                // In pieces that break frames anywhere, with many requests in flight at the moment of the move.
                var bytes = ByteBuffer()
                for index in 0..<count {
                    bytes.writeImmutableBuffer(
                        try client.encoded(try Self.request("\(number) \(index)", partition: 0), version: 9))
                }
                while let piece = bytes.readSlice(length: min(bytes.readableBytes, 701)), piece.readableBytes > 0 {
                    client.send(piece)
                }
                var offsets: [Int64] = []
                for _ in 0..<count {
                    let answer = try client.read(ProduceResponse.self, version: 9)
                    let partition = try #require(answer.responses.first?.partitionResponses.first)
                    #expect(partition.errorCode == 0)
                    offsets.append(partition.baseOffset)
                }
                let start = Int64(1 + number * count)
                #expect(offsets == Array(start..<start + Int64(count)))
                // It goes on answering, and its other state has come along.
                #expect(try client.fetch("t", from: start).errorCode == 0)
            }
            #expect(moves.count.load(ordering: .relaxed) >= 1, "no connection moved")
        }
    }

    @Test func `a broker stops while connections move`() async throws {
        let moves = MoveLog()
        for _ in 0..<20 {
            try await withBroker(eventLoopCount: 3, logger: Logger(label: "test") { _ in moves }) { broker in
                let first = try WireClient(port: broker.address.port)
                try first.createTopic("t", configs: ["martlet.durability": "relaxed"])
                _ = try first.produce(try makeBatch(["home"]), topic: "t")
                let clients = try (0..<3).map { _ in try WireClient(port: broker.address.port) }
                for client in clients {
                    for index in 0..<70 { try client.post(try Self.request("\(index)", partition: 0), version: 9) }
                }
                // One answer shows that the requests before the move are under way; the rest is cut off.
                for client in clients { _ = try client.read(ProduceResponse.self, version: 9) }
            }
        }
        #expect(moves.count.load(ordering: .relaxed) >= 1, "no connection moved")
    }
}
