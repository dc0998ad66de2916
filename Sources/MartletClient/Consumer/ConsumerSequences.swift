import MartletLogModel

/// All records that a consumer reads, one by one. Made by ``Consumer/records``; one iteration at a time.
public struct ConsumerRecords: AsyncSequence, Sendable {
    public typealias Element = ConsumedRecord
    let consumer: Consumer

    public func makeAsyncIterator() -> Iterator { Iterator(consumer: consumer) }

    public struct Iterator: AsyncIteratorProtocol {
        private let consumer: Consumer
        private var batch: ConsumedBatch?
        private var records: ConsumedBatch.Iterator?
        private var last: ConsumedRecord?

        init(consumer: Consumer) { self.consumer = consumer }

        /// - Throws: ``ClientError``, `CancellationError`. The iteration may go on after a ``ClientError``.
        public mutating func next() async throws -> ConsumedRecord? {
            while true {
                if let batch {
                    if let last {
                        batch.cursor.advance(
                            to: last.offset + 1, leaderEpoch: batch.leaderEpoch, version: batch.version)
                    }
                    // A seek or a rebalance in between makes the rest of the batch void.
                    if batch.cursor.version == batch.version, let record = records?.next() {
                        last = record
                        return record
                    }
                    consumer.finish(batch)
                    self.batch = nil
                    records = nil
                    last = nil
                }
                batch = try await consumer.nextBatch(timeout: ConsumerBatches.slice)
                records = batch?.makeIterator()
            }
        }
    }
}

/// All records that a consumer reads, in batches. Made by ``Consumer/batches``; one iteration at a time.
public struct ConsumerBatches: AsyncSequence, Sendable {
    public typealias Element = ConsumedBatch
    let consumer: Consumer

    /// Longest single wait; automatic commits fall due between two.
    static let slice = Duration.seconds(1)

    public func makeAsyncIterator() -> Iterator { Iterator(consumer: consumer) }

    public struct Iterator: AsyncIteratorProtocol {
        private let consumer: Consumer
        private var last: ConsumedBatch?

        init(consumer: Consumer) { self.consumer = consumer }

        /// - Throws: ``ClientError``, `CancellationError`. The iteration may go on after a ``ClientError``.
        public mutating func next() async throws -> ConsumedBatch? {
            if let last { consumer.finish(last) }
            last = nil
            while true {
                if let batch = try await consumer.nextBatch(timeout: ConsumerBatches.slice) {
                    last = batch
                    return batch
                }
            }
        }
    }
}
