public import MartletLogModel

/// Sends records to topics: batched, compressed, idempotent, with back pressure.
///
/// One producer serves any number of tasks. ``send(_:)`` waits for the broker's acknowledgement;
/// ``enqueue(_:)`` only waits for room in the buffer and is the way to high throughput, with ``flush()`` at the
/// points where all records handed over so far must be safe. Failures of enqueued records are reported by the
/// next `flush()` or `close()`.
///
/// The producer works on threads of its own: nothing needs to be run or polled. Call ``close()`` at the end.
public final class Producer: Sendable {
    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ProducerConfiguration) throws(ClientError) {
        try configuration.validate()
    }

    /// Sends one record and waits until the broker has acknowledged it.
    ///
    /// Cancelling the waiting task does not take the record back: it may still be delivered.
    /// - Throws: ``ClientError``, `CancellationError`.
    @discardableResult
    public func send(_ record: ProducerRecord) async throws -> RecordMetadata {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Sends records and waits until all are acknowledged; results are in the order of `records`.
    ///
    /// On failure the error of the first record that failed is thrown; others may have been delivered.
    @discardableResult
    public func send(contentsOf records: some Sequence<ProducerRecord>) async throws -> [RecordMetadata] {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Hands one record over. Suspends only while the buffer is full or the topic is not known yet.
    ///
    /// - Throws: ``ClientError`` if the record itself cannot be sent (too large, topic unknown, producer closed).
    ///   Failures of delivery come from ``flush()``.
    public func enqueue(_ record: ProducerRecord) async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Hands records over in order; cheaper than one call for each.
    public func enqueue(contentsOf records: some Sequence<ProducerRecord>) async throws {
        for record in records { try await enqueue(record) }
    }

    /// Hands one record over if that needs no waiting.
    ///
    /// - Returns: `false` if the buffer is full or the topic's partitions are not known yet; the record was not
    ///   taken.
    public func tryEnqueue(_ record: ProducerRecord) throws(ClientError) -> Bool {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Waits until every record handed over before the call is acknowledged or has failed.
    ///
    /// - Throws: The first failure of an *enqueued* record since the last `flush()`; its message says how many
    ///   failed. Records of ``send(_:)`` report their failure to their own caller instead.
    public func flush() async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Partitions of a topic as the cluster has it now.
    public func partitions(of topic: String) async throws -> [PartitionIndex] {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Counters since the start.
    public var statistics: ProducerStatistics { ProducerStatistics() }

    /// Flushes, then closes all connections. Further calls throw `closed`.
    ///
    /// - Throws: As ``flush()``; the producer is closed all the same.
    public func close() async throws {
        throw ClientError(.invalidState, "not yet available")
    }
}
