import MartletClient

/// Reading a topic as a member of a share group, until nothing comes any more, or without end. What was handed to `body`
/// counts as accepted with the next poll.
struct ShareReading: Sendable {
    var topic: String
    var follow = false
    /// Most records to hand out; each broker locks no more than that at a time.
    var limit: Int?
    var configuration: ShareConsumerConfiguration

    /// Without `follow`: after so long without a record there is none for this member. The first member of a new group
    /// gets its partitions with its second heartbeat, which brokers want after five seconds unless told otherwise.
    private static let idleLimit: Duration = .seconds(10)

    /// Hands records to `body` until the end or until `stop` is set.
    func run(_ stop: StopFlag, _ body: @Sendable ([SharedRecord]) async throws -> Void) async throws {
        // A member may subscribe to what does not exist yet, and would wait for it without a word.
        let admin = try Admin(configuration.client)
        do {
            _ = try await admin.describeTopic(topic)
        } catch {
            await admin.close()
            throw error
        }
        await admin.close()
        var configuration = configuration
        if let limit {
            configuration.acquireMode = .recordLimit
            configuration.maximumRecords = min(limit, configuration.maximumRecords)
        }
        let consumer = try ShareConsumer(configuration)
        do {
            try await consumer.subscribe(to: [topic])
            if try await read(consumer, stop, body) == 0, !stop.isSet {
                Console.note(
                    "no record came within \(Self.idleLimit.components.seconds) s; a group that is new begins at the "
                        + "end of the topic unless it is told otherwise: martlet config alter group "
                        + "\(configuration.groupID) --set share.auto.offset.reset=earliest")
            }
        } catch {
            do { try await consumer.close() } catch {}
            throw error
        }
        try await consumer.close()
    }

    /// - Returns: How many records there were.
    private func read(
        _ consumer: ShareConsumer, _ stop: StopFlag, _ body: @Sendable ([SharedRecord]) async throws -> Void
    ) async throws -> Int {
        let clock = ContinuousClock()
        let limit = limit ?? Int.max
        var left = limit
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
        return limit - left
    }
}
