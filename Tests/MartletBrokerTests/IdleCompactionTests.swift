import Logging
import MartletBroker
import MartletKafkaProtocol
import Testing

/// A compacted partition that nobody uses is compacted all the same.
@Suite(.timeLimit(.minutes(2))) struct `Compaction of idle partitions` {
    private final class Compactions: LogHandler, Sendable {
        let stream: AsyncStream<String>
        private let continuation: AsyncStream<String>.Continuation

        init() { (stream, continuation) = AsyncStream.makeStream() }

        func log(event: LogEvent) {
            if event.message.description == "compacted" {
                continuation.yield("\(event.metadata?["partition"] ?? "")")
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
            get { .info }
            set {}
        }
    }

    @Test func `after a restart, without a request for it`() async throws {
        let compactions = Compactions()
        // The cleaner of open partitions is out of the way.
        let settings = ["log.cleaner.backoff.ms": "3600000", "log.retention.check.interval.ms": "100"]
        try await withTemporaryFolder { folder in
            try await withBroker(
                ["log.cleaner.backoff.ms": "3600000", "log.retention.check.interval.ms": "3600000"], folder: folder
            ) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic(
                    "idle",
                    configs: [
                        "cleanup.policy": "compact", "segment.ms": "1", "min.cleanable.dirty.ratio": "0.01",
                    ])
                for number in 0..<20 {
                    #expect(try client.produce(try makeBatch(["\(number)"]), topic: "idle").errorCode == 0)
                }
            }
            try await withBroker(settings, folder: folder, logger: Logger(label: "test") { _ in compactions }) { _ in
                var compacted = compactions.stream.makeAsyncIterator()
                #expect(await compacted.next() == "idle-0")
            }
        }
    }
}
