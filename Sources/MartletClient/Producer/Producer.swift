public import MartletLogModel
import NIOCore

/// Sends records to topics: batched, compressed, idempotent, with back pressure.
///
/// One producer serves any number of tasks. ``send(_:)`` waits for the broker's acknowledgement;
/// ``enqueue(_:)`` only waits for room in the buffer and is the way to high throughput, with ``flush()`` at the
/// points where all records handed over so far must be safe. Failures of enqueued records are reported by the
/// next `flush()` or `close()`.
///
/// The producer works on threads of its own: nothing needs to be run or polled. Call ``close()`` at the end.
public final class Producer: Sendable {
    let configuration: ProducerConfiguration
    let accumulator: ProducerAccumulator
    let sender: ProducerSender

    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ProducerConfiguration) throws(ClientError) {
        try configuration.validate()
        self.configuration = configuration
        let accumulator = ProducerAccumulator(configuration)
        let engine = ClientEngine(configuration: configuration.client, role: "producer")
        let sender = ProducerSender(engine: engine, accumulator: accumulator, configuration: configuration)
        self.accumulator = accumulator
        self.sender = sender
        engine.loop.execute { sender.start() }
    }

    deinit {
        // A producer dropped without `close()` gives up its connections; what was not flushed is lost.
        let (accumulator, sender) = (accumulator, sender)
        accumulator.close()
        sender.engine.loop.execute { sender.shutDown() }
    }

    /// Sends one record and waits until the broker has acknowledged it.
    ///
    /// Cancelling the waiting task does not take the record back: it may still be delivered.
    /// - Throws: ``ClientError``, `CancellationError`.
    @discardableResult
    public func send(_ record: ProducerRecord) async throws -> RecordMetadata { try await send(record, in: nil) }

    func send(_ record: ProducerRecord, in transaction: Int?) async throws -> RecordMetadata {
        let sink = DeliverySink()
        try await hand(over: record, sink, transaction)
        sink.seal()
        let results = try await sink.reply.value()
        return results[0]
    }

    /// Sends records and waits until all are acknowledged; results are in the order of `records`.
    ///
    /// On failure the error of the first record that failed is thrown; others may have been delivered.
    @discardableResult
    public func send(contentsOf records: some Sequence<ProducerRecord>) async throws -> [RecordMetadata] {
        try await send(contentsOf: records, in: nil)
    }

    func send(
        contentsOf records: some Sequence<ProducerRecord>, in transaction: Int?
    ) async throws -> [RecordMetadata] {
        let sink = DeliverySink()
        for record in records { try await hand(over: record, sink, transaction) }
        sink.seal()
        return try await sink.reply.value()
    }

    /// Hands one record over. Suspends only while the buffer is full or the topic is not known yet.
    ///
    /// - Throws: ``ClientError`` if the record itself cannot be sent (too large, topic unknown, producer closed).
    ///   Failures of delivery come from ``flush()``.
    public func enqueue(_ record: ProducerRecord) async throws {
        if try !tryEnqueue(record) { try await hand(over: record, nil, nil) }
    }

    /// Hands records over in order.
    public func enqueue(contentsOf records: some Sequence<ProducerRecord>) async throws {
        for record in records where try !tryEnqueue(record) { try await hand(over: record, nil, nil) }
    }

    /// Hands one record over if that needs no waiting.
    ///
    /// - Returns: `false` if the buffer is full or the topic's partitions are not known yet; the record was not
    ///   taken.
    public func tryEnqueue(_ record: ProducerRecord) throws(ClientError) -> Bool {
        try tryEnqueue(record, in: nil)
    }

    func tryEnqueue(_ record: ProducerRecord, in transaction: Int?) throws(ClientError) -> Bool {
        let offer = try accumulator.offer(record, in: transaction, now: wallClockMilliseconds(), sink: nil, slot: 0)
        switch offer {
        case .taken(let wake):
            if wake { wakeSender() }
            return true
        case .full, .unknownTopic:
            return false
        }
    }

    /// Waits until every record handed over before the call is acknowledged or has failed.
    ///
    /// - Throws: The first failure of an *enqueued* record since the last `flush()`; its message says how many
    ///   failed. Records of ``send(_:)`` report their failure to their own caller instead.
    public func flush() async throws {
        if let reply = accumulator.beginFlush() {
            wakeSender()
            try await reply.value()
        }
        if let failure = accumulator.takeFailure() { throw failure }
    }

    /// Partitions of a topic as the cluster has it now.
    public func partitions(of topic: String) async throws -> [PartitionIndex] {
        try await knowTopic(topic)
        return (0..<(accumulator.partitionCount(of: topic) ?? 0)).map { PartitionIndex(Int32($0)) }
    }

    /// Counters since the start.
    public var statistics: ProducerStatistics { accumulator.statistics }

    /// Flushes, then closes all connections. Further calls throw `closed`. A transaction that is open is aborted.
    ///
    /// - Throws: As ``flush()``; the producer is closed all the same.
    public func close() async throws {
        let outcome: Result<Void, any Error>
        await abandonTransaction()
        do {
            try await flush()
            outcome = .success(())
        } catch {
            outcome = .failure(error)
        }
        accumulator.close()
        let sender = sender
        // Not cancellable: connections must go even if the calling task was cancelled.
        await withCheckedContinuation { continuation in
            sender.engine.loop.execute {
                sender.shutDown()
                continuation.resume()
            }
        }
        try outcome.get()
    }

    // MARK: Handing over

    func hand(over record: ProducerRecord, _ sink: DeliverySink?, _ transaction: Int?) async throws {
        while true {
            let slot = sink?.addSlot() ?? 0
            let offer: ProducerAccumulator.Offer
            do {
                offer = try accumulator.offer(
                    record, in: transaction, now: wallClockMilliseconds(), sink: sink, slot: slot)
            } catch {
                sink?.removeLastSlot()
                throw error
            }
            switch offer {
            case .taken(let wake):
                if wake { wakeSender() }
                return
            case .full:
                sink?.removeLastSlot()
                try await accumulator.waitForRoom()
            case .unknownTopic:
                sink?.removeLastSlot()
                try await knowTopic(record.topic)
                try await checkPartition(record)
            }
            try Task.checkCancellation()
        }
    }

    private func knowTopic(_ topic: String) async throws {
        let sender = sender
        try await sender.engine.loop.reply { reply in sender.lookup.find(topic, reply) }
    }

    /// An explicit or custom partition that the topic does not have, even by fresh metadata, is an error.
    private func checkPartition(_ record: ProducerRecord) async throws {
        guard var count = accumulator.partitionCount(of: record.topic), count > 0 else { return }
        var wanted = record.partition.map { Int($0.rawValue) }
        if wanted == nil, case .custom(let choose) = configuration.partitioner {
            wanted = choose(record.key, count)
        }
        guard let wanted, !(0..<count).contains(wanted) else { return }
        let sender = sender
        try await sender.engine.loop.reply { (reply: Reply<Void>) in
            sender.engine.refreshMetadata { error in
                if let error { reply.fail(error) } else { reply.succeed(()) }
            }
        }
        count = accumulator.partitionCount(of: record.topic) ?? count
        if !(0..<count).contains(wanted) {
            throw ClientError(
                .invalidArgument,
                "topic '\(record.topic)' has no partition \(wanted); it has partitions 0 to \(count - 1)")
        }
    }

    func wakeSender() {
        let sender = sender
        sender.engine.loop.execute { sender.pump() }
    }
}
