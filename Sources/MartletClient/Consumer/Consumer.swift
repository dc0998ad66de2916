public import MartletLogModel

/// Reads records: of partitions named by the caller (``assign(_:)``) or of topics shared with a group
/// (``subscribe(to:)``).
///
/// One task polls (or iterates ``records`` or ``batches``); the other methods may be called from any task.
/// Fetching ahead stops at ``ConsumerConfiguration/bufferBytes``, so a consumer that nobody polls stays small.
/// Heartbeats go on by themselves, but a member that does not poll for
/// ``ConsumerConfiguration/pollIntervalLimit`` leaves its group. Call ``close()`` at the end.
public final class Consumer: Sendable {
    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ConsumerConfiguration) throws(ClientError) {
        try configuration.validate()
    }

    // MARK: Choosing what to read

    /// Reads exactly these partitions from these positions, replacing what was read before.
    public func assign(_ partitions: [TopicPartition: OffsetSpec]) async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Reads exactly these partitions from their committed positions, or by the reset policy without one.
    public func assign(committed partitions: [TopicPartition]) async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Joins the group and reads the share of these topics that the group gives to this member.
    public func subscribe(to topics: [String]) async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Gives up all partitions, and the membership of the group if there is one.
    public func unsubscribe() async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Partitions read now.
    public var assignment: Set<TopicPartition> { [] }

    // MARK: Reading

    /// The next records, as soon as there are any; empty if `timeout` passes first.
    ///
    /// - Parameter limit: Largest number of records returned; the rest stays for the next call.
    /// - Throws: ``ClientError``, `CancellationError`.
    public func poll(timeout: Duration = .seconds(1), limit: Int = 10_000) async throws -> [ConsumedRecord] {
        throw ClientError(.invalidState, "not yet available")
    }

    /// The next batches of records, as soon as there are any; empty if `timeout` passes first. The fast form.
    public func pollBatches(timeout: Duration = .seconds(1)) async throws -> [ConsumedBatch] {
        throw ClientError(.invalidState, "not yet available")
    }

    /// All records, one by one, without end. A record counts as processed when the next one is asked for.
    public var records: ConsumerRecords { ConsumerRecords(consumer: self) }

    /// All records in batches, without end.
    public var batches: ConsumerBatches { ConsumerBatches(consumer: self) }

    // MARK: Positions

    /// Moves to another position in a partition that is read now. Records fetched before are dropped.
    public func seek(_ partition: TopicPartition, to position: OffsetSpec) async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Offset of the next record to be handed out; `nil` while it is not known yet.
    public func position(of partition: TopicPartition) -> Offset? { nil }

    /// Stops handing out records of these partitions; membership and positions stay.
    public func pause(_ partitions: some Sequence<TopicPartition>) {}

    /// Goes on with partitions that were paused.
    public func resume(_ partitions: some Sequence<TopicPartition>) {}

    /// Partitions paused now.
    public var paused: Set<TopicPartition> { [] }

    /// Where records are, by earliest, latest or time, for any partition. `nil`: no record that late.
    public func offsets(
        _ queries: [TopicPartition: OffsetSpec]
    ) async throws -> [TopicPartition: ListedOffset?] {
        throw ClientError(.invalidState, "not yet available")
    }

    /// End of a partition as of its latest fetch (last stable offset with `readCommitted`); `nil` before the first.
    public func endOffset(of partition: TopicPartition) -> Offset? { nil }

    // MARK: Committing

    /// Commits the position of every partition read now and waits for the coordinator.
    public func commit() async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Commits these positions (the *next* record to read, not the last one read).
    public func commit(_ offsets: [TopicPartition: CommittedOffset]) async throws {
        throw ClientError(.invalidState, "not yet available")
    }

    /// Starts to commit the present positions and returns at once. A failure is logged and repaired by the next
    /// commit, which includes these positions.
    public func commitInBackground() {}

    /// What the group has committed; `nil` for a partition without a committed position.
    public func committed(
        _ partitions: some Sequence<TopicPartition>
    ) async throws -> [TopicPartition: CommittedOffset?] {
        throw ClientError(.invalidState, "not yet available")
    }

    // MARK: Closing

    /// Commits if auto-commit is on, leaves the group (static members stay) and closes all connections.
    public func close() async throws {
        throw ClientError(.invalidState, "not yet available")
    }
}

/// All records that a consumer reads, one by one. Made by ``Consumer/records``; one iteration at a time.
public struct ConsumerRecords: AsyncSequence, Sendable {
    public typealias Element = ConsumedRecord
    let consumer: Consumer

    public func makeAsyncIterator() -> Iterator { Iterator(consumer: consumer) }

    public struct Iterator: AsyncIteratorProtocol {
        let consumer: Consumer
        public mutating func next() async throws -> ConsumedRecord? {
            try await consumer.poll(timeout: .seconds(1), limit: 1).first
        }
    }
}

/// All records that a consumer reads, in batches. Made by ``Consumer/batches``; one iteration at a time.
public struct ConsumerBatches: AsyncSequence, Sendable {
    public typealias Element = ConsumedBatch
    let consumer: Consumer

    public func makeAsyncIterator() -> Iterator { Iterator(consumer: consumer) }

    public struct Iterator: AsyncIteratorProtocol {
        let consumer: Consumer
        public mutating func next() async throws -> ConsumedBatch? {
            try await consumer.pollBatches(timeout: .seconds(1)).first
        }
    }
}
