public import MartletLogModel

/// A transaction that is open: takes records and positions which are seen together or not at all by consumers with
/// ``IsolationLevel/readCommitted``. Handed to the closure of ``Producer/withTransaction(_:)`` and of no use after it.
public struct ProducerTransaction: Sendable {
    private let producer: Producer
    let number: Int

    init(_ producer: Producer, _ number: Int) {
        self.producer = producer
        self.number = number
    }

    /// Sends one record and waits until the broker has acknowledged it, which says nothing about the transaction.
    ///
    /// - Throws: ``ClientError``, `CancellationError`. After a ``ClientError`` the transaction may be lost, and then
    ///   it is aborted even if the closure catches the error.
    @discardableResult
    public func send(_ record: ProducerRecord) async throws -> RecordMetadata {
        try await producer.send(record, in: number)
    }

    /// Sends records and waits until all are acknowledged; results are in the order of `records`.
    @discardableResult
    public func send(contentsOf records: some Sequence<ProducerRecord>) async throws -> [RecordMetadata] {
        try await producer.send(contentsOf: records, in: number)
    }

    /// Hands one record over. Suspends only while the buffer is full or the topic is not known yet; the end of the
    /// transaction waits for the acknowledgement.
    public func enqueue(_ record: ProducerRecord) async throws {
        if try !producer.tryEnqueue(record, in: number) { try await producer.hand(over: record, nil, number) }
    }

    /// Hands records over in order.
    public func enqueue(contentsOf records: some Sequence<ProducerRecord>) async throws {
        for record in records { try await enqueue(record) }
    }

    /// Hands one record over if that needs no waiting; `false` if it was not taken.
    public func tryEnqueue(_ record: ProducerRecord) throws(ClientError) -> Bool {
        try producer.tryEnqueue(record, in: number)
    }

    /// Makes the present positions of a consumer part of the transaction: everything that ``Consumer/poll(timeout:limit:)``
    /// and ``Consumer/pollBatches(timeout:)`` have returned counts as processed.
    ///
    /// A record that comes from iterating ``Consumer/records`` counts only when the next one is asked for, so that it
    /// would not be part of this commit; use `poll` here. Where the transaction is rolled back, read again with
    /// ``Consumer/rewind()``. ``Producer/withTransaction(consuming:timeout:limit:_:)`` does both.
    /// - Throws: ``ClientError``: `rebalanced` if the group has gone on without this member.
    public func commitOffsets(of consumer: Consumer) async throws {
        try await commitOffsets(consumer.positions, as: try await consumer.groupMetadata())
    }

    /// Makes these positions (the *next* record to read, not the last one read) of a group part of the transaction.
    public func commitOffsets(
        _ offsets: [TopicPartition: CommittedOffset], as group: ConsumerGroupMetadata
    ) async throws {
        let (transactions, number) = (try producer.transactions(), number)
        try await producer.sender.engine.loop.reply { reply in
            transactions.commitOffsets(offsets, group, in: number, reply)
        }
    }
}
