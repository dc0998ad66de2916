import MartletClient

/// Reading a topic as a member of a share group, until nothing comes any more, or without end. What was handed to `body`
/// counts as accepted with the next poll.
struct ShareReading: Sendable {
    var topic: String
    var follow = false
    /// Most records to hand out; no more than that are locked.
    var limit: Int?
    var configuration: ShareConsumerConfiguration

    /// Without `follow`: after so long without a record there is none for this member. The first member of a new group
    /// gets its partitions with its second heartbeat, which brokers want after five seconds unless told otherwise.
    private static let idleLimit: Duration = .seconds(10)

    /// Hands records to `body` until the end or until `stop` is set.
    func run(_ stop: StopFlag, _ body: @Sendable ([SharedRecord]) async throws -> Void) async throws {
        var configuration = configuration
        if let limit {
            configuration.acquireMode = .recordLimit
            configuration.maximumRecords = min(limit, configuration.maximumRecords)
        }
        let consumer = try ShareConsumer(configuration)
        do {
            try await consumer.subscribe(to: [topic])
            try await read(consumer, stop, body)
        } catch {
            do { try await consumer.close() } catch {}
            throw error
        }
        try await consumer.close()
    }

    private func read(
        _ consumer: ShareConsumer, _ stop: StopFlag, _ body: @Sendable ([SharedRecord]) async throws -> Void
    ) async throws {
        let clock = ContinuousClock()
        var left = limit ?? Int.max
        var latest = clock.now
        while left > 0, !stop.isSet, follow || clock.now - latest < Self.idleLimit {
            let records = try await consumer.poll(timeout: TopicReading.pollTimeout, limit: left)
            guard !records.isEmpty else { continue }
            latest = clock.now
            left -= records.count
            do {
                try await body(records)
            } catch {
                // Not shown: somebody else may have them.
                for record in records { try consumer.acknowledge(record, .release) }
                throw error
            }
        }
    }
}
