import Logging
import MartletLogModel
import NIOCore

/// Reads topics as a member of a share group (KIP-932): a queue. Records go to whichever member asks, also of one
/// partition to several; each is locked for its member until it is acknowledged, and comes again if it is not.
///
/// Delivery is at least once, without any order across members. A record comes again when it is released, when its lock is
/// over (``lockTimeout``), when the member closes or loses its connection, up to the group's limit of deliveries.
///
/// One task polls; the other methods may be called from any task. Heartbeats go on by themselves, but a member that does
/// not poll for ``ShareConsumerConfiguration/pollIntervalLimit`` leaves its group. Records are fetched only while a poll
/// waits for them, because a record that waits is locked to the others. Call ``close()`` at the end.
public final class ShareConsumer: Sendable {
    private let configuration: ShareConsumerConfiguration
    private let engine: ClientEngine
    private let buffer: ShareBuffer
    private let fetcher: ShareFetcher

    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ShareConsumerConfiguration) throws(ClientError) {
        try configuration.validate()
        let engine = ClientEngine(configuration: configuration.client, role: "share consumer")
        let buffer = ShareBuffer(keepsResults: configuration.onAcknowledged != nil)
        let membership = ShareMembership(engine: engine, buffer: buffer, configuration: configuration)
        let fetcher = ShareFetcher(
            engine: engine, membership: membership, buffer: buffer, configuration: configuration)
        self.configuration = configuration
        self.engine = engine
        self.buffer = buffer
        self.fetcher = fetcher
        engine.loop.execute { fetcher.start() }
    }

    deinit {
        // Dropped without `close()`: the brokers notice by the connections, the coordinator by the silence.
        let fetcher = fetcher
        fetcher.engine.loop.execute { fetcher.shutDown() }
    }

    // MARK: Topics

    /// Joins the group, or changes the topics of a member. Topics that do not exist are read once they do.
    ///
    /// - Throws: ``ClientError``: `invalidArgument` for names that are none, `invalidState` while `unsubscribe` is under
    ///   way, `closed`.
    public func subscribe(to topics: [String]) async throws(ClientError) {
        guard !topics.isEmpty else {
            throw ClientError(.invalidArgument, "no topic is named; unsubscribe leaves the group")
        }
        for topic in topics {
            if let problem = TopicName.problem(topic) { throw ClientError(.invalidArgument, problem) }
        }
        try buffer.subscribe()
        let fetcher = fetcher
        engine.loop.execute { fetcher.membership.subscribe(Set(topics)) }
    }

    /// Acknowledges as ``close()`` does and leaves the group; the consumer may subscribe again.
    ///
    /// - Throws: The first refusal of an acknowledgement, after leaving.
    public func unsubscribe() async throws { try await leave(isClosing: false) }

    // MARK: Records

    /// The next records, as soon as there are any; empty if `timeout` passes first.
    ///
    /// With implicit acknowledgement the records of the poll before count as accepted now.
    /// - Parameter limit: Largest number of records returned; the rest stays for the next call, locked.
    /// - Throws: ``ClientError``: `invalidState` with explicit acknowledgement while a record is not acknowledged;
    ///   `corruptData` for a batch that cannot be read, whose records are given back; again and again, once the
    ///   membership has ended for good, why it did: `subscribe` joins anew. `CancellationError`.
    public func poll(timeout: Duration = .seconds(1), limit: Int = 10_000) async throws -> [SharedRecord] {
        guard limit > 0 else { throw ClientError(.invalidArgument, "limit is \(limit); allowed: 1 or more") }
        try Task.checkCancellation()
        try buffer.beginPoll(configuration.mode)
        await tellResults()
        let fetcher = fetcher
        let deadline = NIODeadline.now() + TimeAmount(timeout)
        var isFirst = true
        defer { if !isFirst { engine.loop.execute { fetcher.want(false) } } }
        while true {
            try Task.checkCancellation()
            let found = buffer.take(limit: limit)
            if case .nothing = found {
                try requireReading()
            } else {
                // No fetch takes along what was said before this poll.
                if isFirst { engine.loop.execute { fetcher.acknowledger.tell() } }
                return try found.records()
            }
            let now = NIODeadline.now()
            guard isFirst || now < deadline else { return [] }
            isFirst = false
            let reply = buffer.whenReady()
            engine.loop.execute { fetcher.want(true) }
            let timer = engine.loop.scheduleTask(in: max(deadline - now, .zero)) { reply.succeed(()) }
            defer {
                timer.cancel()
                buffer.forget(reply)
            }
            try await reply.value()
        }
    }

    private func requireReading() throws(ClientError) {
        guard !buffer.isReading else { return }
        try buffer.requireOpen()
        throw ClientError(
            .invalidState,
            "the consumer was unsubscribed while this poll waited; call subscribe before polling")
    }

    /// How long a record stays locked for a member that says nothing about it; `nil` before a broker has answered.
    public var lockTimeout: Duration? { buffer.lockTimeout }

    // MARK: Acknowledging

    /// Says what became of a record of the latest poll. Brokers hear it with the next `poll`, `commit` or `close`.
    ///
    /// Waits for nothing. With implicit acknowledgement it is for the exceptions: the other records are accepted.
    /// - Throws: ``ClientError``: `invalidState` if the record is not one of the latest poll, or is acknowledged already.
    public func acknowledge(_ record: SharedRecord, _ acknowledgement: ShareAcknowledgement = .accept)
        throws(ClientError)
    {
        try buffer.acknowledge(record, acknowledgement.wireValue)
    }

    /// Sends all acknowledgements and waits for the brokers; with implicit acknowledgement the records of the latest
    /// poll count as accepted. Records that are not acknowledged stay locked.
    ///
    /// - Throws: ``ClientError``: the first refusal, also if it came before the call and after the latest
    ///   records; ``ShareConsumerConfiguration/onAcknowledged`` is told of all.
    ///   Records whose acknowledgement was refused come again. Which code says why: `rebalanced`, or the broker code
    ///   `INVALID_RECORD_STATE`, where the lock was over already. `CancellationError`: what was sent may count or not.
    public func commit() async throws {
        switch configuration.mode {
        case .implicit: try buffer.acceptOutstanding()
        case .explicit: try buffer.requireOpen()
        }
        let fetcher = fetcher
        let results: [ShareAcknowledgementResult] = try await engine.loop.reply {
            fetcher.acknowledger.commit($0)
        }
        let refusal = buffer.takeRefusal()
        await tellResults()
        try Self.throwFirst(results, refusal)
    }

    /// Gives the locks of records of the latest poll their whole time again, for work that takes long (KIP-1222). They
    /// still have to be acknowledged.
    ///
    /// - Throws: ``ClientError``: `invalidState` if a record is not one of the latest poll or is acknowledged already;
    ///   `closed`; `unsupportedByBroker` with brokers before Kafka 4.2; the first refusal, such as of a lock that is
    ///   over. ``ShareConsumerConfiguration/onAcknowledged`` does not hear of it.
    public func renew(_ records: [SharedRecord]) async throws {
        try buffer.requireOutstanding(records)
        let fetcher = fetcher
        let results: [ShareAcknowledgementResult] = try await engine.loop.reply {
            fetcher.acknowledger.renew(records, $0)
        }
        try Self.throwFirst(results, nil)
    }

    /// - Parameter earlier: a refusal that came before anybody waited for these.
    private static func throwFirst(
        _ results: [ShareAcknowledgementResult], _ earlier: ShareAcknowledgementResult?
    ) throws(ClientError) {
        for result in results.sorted(by: { $0.topicPartition < $1.topicPartition }) {
            if let error = result.error { throw error }
        }
        if let error = earlier?.error { throw error }
    }

    private func tellResults() async {
        guard let tell = configuration.onAcknowledged else { return }
        let results = buffer.takeResults()
        if !results.isEmpty { await tell(results) }
    }

    // MARK: Closing

    /// Sends what is acknowledged, gives back the rest, leaves the group and closes all connections. With implicit
    /// acknowledgement the records of the latest poll count as accepted.
    ///
    /// Not cancellable: others would have to wait for the locks. Where brokers do not answer, it ends within about ten
    /// seconds after the request that is under way, which ``ClientConfiguration/requestTimeout`` bounds.
    /// - Throws: The first refusal of an acknowledgement, after closing.
    public func close() async throws { try await leave(isClosing: true) }

    private func leave(isClosing: Bool) async throws {
        guard buffer.end(configuration.mode, isClosing: isClosing) else { return }
        let (fetcher, loop) = (fetcher, engine.loop)
        let reply = Reply<[ShareAcknowledgementResult]>()
        loop.execute { fetcher.endSessions(reply) }
        let results: [ShareAcknowledgementResult]
        let failure: (any Error)?
        do {
            results = try await reply.uncancellableValue()
            failure = nil
        } catch {
            results = []
            failure = error
        }
        await withCheckedContinuation { continuation in
            loop.execute {
                fetcher.membership.leave {
                    if isClosing { fetcher.shutDown() }
                    continuation.resume()
                }
            }
        }
        buffer.ended()
        let refusal = buffer.takeRefusal()
        await tellResults()
        if let failure { throw failure }
        try Self.throwFirst(results, refusal)
    }
}
