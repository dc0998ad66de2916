import DequeModule
import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Where records become batches: callers append under a short lock, straight into the batch's final bytes; the
/// sender takes finished batches away. One lock, no allocation per record.
final class ProducerAccumulator: Sendable {
    /// What became of a record that was offered.
    enum Offer {
        /// Taken; the sender must be woken if `wake`.
        case taken(wake: Bool)
        /// No room; wait and offer again.
        case full
        /// The partitions of the topic are not known.
        case unknownTopic
    }

    private struct Topic {
        var queues: [PartitionQueue]
        /// Partitions with a leader, for records without a key; all if none has one.
        var available: [Int]
        /// Partition that records without a key stick to; -1 before the first.
        var sticky = -1
        var nextRoundRobin = 0
    }

    private struct State {
        var topics: [String: Topic] = [:]
        /// Queues that have gained work since the sender last looked.
        var listed: [PartitionQueue] = []
        var spareBuilders: [RecordBatchBuilder] = []
        var roomWaiters = Deque<Reply<Void>>()
        var isClosed = false
        /// Number of the transaction that takes records; `nil` outside one.
        var transaction: Int?
        /// Why a transaction takes no more records.
        var transactionLoss: ClientError?
        var wakePending = false
        // Flush accounting: batches not finished, by the number of flushes before they were made.
        var flushEpoch = 0
        var firstEpoch = 0
        var unfinished = Deque<Int>([0])
        var flushWaiters: [(epoch: Int, reply: Reply<Void>)] = []
        // Failures of enqueued records since the last flush.
        var failure: ClientError?
        var failureCount = 0
        var statistics = ProducerStatistics()
    }

    /// Builders kept for reuse; each holds about one batch of memory.
    private static let spareBuilderLimit = 8
    /// Share of the buffer that must be free again before suspended callers go on, so that they do not wake for
    /// every batch.
    private static let resumeShare = 4

    private let configuration: ProducerConfiguration
    private let state = Guarded(State())

    init(_ configuration: ProducerConfiguration) { self.configuration = configuration }

    // MARK: Callers

    var statistics: ProducerStatistics { state.withLock { $0.statistics } }

    /// Number of partitions of a topic, if known.
    func partitionCount(of topic: String) -> Int? { state.withLock { $0.topics[topic]?.queues.count } }

    /// Appends a record to a batch.
    ///
    /// - Throws: `closed`, `recordTooLarge`, `invalidArgument`; the record was not taken.
    /// - Parameter transaction: Number of the transaction that the record belongs to; `nil` outside one.
    func offer(
        _ record: ProducerRecord, in transaction: Int? = nil, now: Int64, sink: DeliverySink?, slot: Int
    ) throws(ClientError) -> Offer {
        let headers = record.headers.map { MartletRecordBatch.RecordHeader(key: $0.name, value: $0.value) }
        let size = RecordBatchBuilder.byteCountBound(key: record.key, value: record.value, headers: headers)
        guard size <= configuration.requestByteLimit - RecordBatchHeader.byteCount else {
            throw ClientError(
                .recordTooLarge,
                "a record of about \(size) bytes for topic '\(record.topic)' is above requestByteLimit "
                    + "(\(configuration.requestByteLimit)); raise it, and max.message.bytes of the topic, or send less"
            )
        }
        var partition = record.partition.map { Int($0.rawValue) }
        if partition == nil, case .custom(let choose) = configuration.partitioner {
            guard let count = partitionCount(of: record.topic) else { return .unknownTopic }
            partition = choose(record.key, count)
        }
        let timestamp = record.timestamp?.rawValue ?? now
        let outcome = state.withLock { state -> Result<Offer, ClientError> in
            if let refusal = refusal(transaction, state) { return .failure(refusal) }
            return append(
                record, headers, partition: partition, timestamp: timestamp, size: size, sink, slot, &state)
        }
        return try outcome.get()
    }

    /// Records of a transactional producer belong to the transaction that is open, all others to none.
    private func refusal(_ transaction: Int?, _ state: borrowing State) -> ClientError? {
        guard configuration.transactionalID != nil, !state.isClosed else { return nil }
        if transaction != nil, transaction == state.transaction { return nil }
        if transaction != nil { return state.transactionLoss ?? TransactionState.notOpen }
        return ClientError(
            .invalidState,
            "a producer with a transactionalID sends within transactions; call send on the transaction that "
                + "withTransaction hands to its closure")
    }

    /// Records with this number are taken from now on.
    func openTransaction(_ number: Int) {
        state.withLock { state in
            state.transaction = number
            state.transactionLoss = nil
        }
    }

    /// The end of a transaction has told of them; neither a flush nor the producer's own end does it again.
    func forgetFailures() {
        state.withLock { state in
            state.failure = nil
            state.failureCount = 0
        }
    }

    /// No more records of the transaction are taken; callers that wait for room learn that.
    func closeTransaction(because loss: ClientError? = nil) {
        let waiters = state.withLock { state in
            state.transaction = nil
            if state.transactionLoss == nil { state.transactionLoss = loss }
            let waiters = state.roomWaiters
            state.roomWaiters.removeAll()
            return waiters
        }
        for waiter in waiters { waiter.succeed(()) }
    }

    private func append(
        _ record: ProducerRecord, _ headers: [MartletRecordBatch.RecordHeader], partition explicit: Int?,
        timestamp: Int64, size: Int, _ sink: DeliverySink?, _ slot: Int, _ state: inout State
    ) -> Result<Offer, ClientError> {
        if state.isClosed { return .failure(.closed("producer")) }
        if state.statistics.bufferedBytes + size > configuration.bufferBytes,
            state.statistics.bufferedBytes > 0
        {
            return .success(.full)
        }
        guard let index = choosePartition(record, explicit, &state) else { return .success(.unknownTopic) }
        guard let queue = state.topics[record.topic]?.queues[index] else { return .success(.unknownTopic) }
        guard queue.topicPartition.partition.rawValue >= 0 else { return .success(.unknownTopic) }

        var wake = false
        if let open = queue.open, !open.builder.isEmpty,
            open.builder.sizeEstimate + size > configuration.batchBytes
        {
            queue.ready.append(open)
            queue.open = nil
            wake = true
        }
        let batch: PendingBatch
        if let open = queue.open {
            batch = open
        } else {
            let builder = state.spareBuilders.popLast() ?? RecordBatchBuilder(capacity: firstCapacity(size))
            batch = PendingBatch(
                queue: queue, builder: builder, createdAt: .now(), flushEpoch: state.flushEpoch)
            queue.open = batch
            state.unfinished[state.flushEpoch - state.firstEpoch] += 1
            wake = true
        }
        let before = batch.builder.sizeEstimate
        do {
            try batch.builder.append(
                key: record.key, value: record.value, headers: headers, timestamp: timestamp)
        } catch {
            return .failure(
                ClientError(
                    .invalidArgument, "a record for topic '\(record.topic)' cannot be encoded: \(error)",
                    cause: error))
        }
        if let sink {
            batch.waiters.append(
                .init(index: Int(batch.builder.recordCount) - 1, timestamp: timestamp, sink: sink, slot: slot)
            )
        }
        let bytes = batch.builder.sizeEstimate - before
        batch.accountedBytes += bytes
        state.statistics.bufferedBytes += bytes
        state.statistics.enqueuedRecordCount += 1
        if batch.builder.sizeEstimate >= configuration.batchBytes {
            queue.ready.append(batch)
            queue.open = nil
            wake = true
        }
        if wake, !queue.isListed {
            queue.isListed = true
            state.listed.append(queue)
        }
        let mustWake = wake && !state.wakePending
        if mustWake { state.wakePending = true }
        return .success(.taken(wake: mustWake))
    }

    /// First capacity of a builder: small batches must not cost a full one's memory.
    private func firstCapacity(_ size: Int) -> Int {
        min(configuration.batchBytes, max(4096, size * 4)) + RecordBatchHeader.byteCount
    }

    private func choosePartition(_ record: ProducerRecord, _ explicit: Int?, _ state: inout State) -> Int? {
        guard let index = state.topics.index(forKey: record.topic) else { return nil }
        let count = state.topics.values[index].queues.count
        guard count > 0 else { return nil }
        if let explicit { return (0..<count).contains(explicit) ? explicit : nil }
        switch configuration.partitioner {
        case .custom:
            return nil
        case .roundRobin:
            let next = state.topics.values[index].nextRoundRobin
            state.topics.values[index].nextRoundRobin = (next + 1) % count
            return next % count
        case .standard:
            if let key = record.key { return keyPartition(key, partitionCount: count) }
            let sticky = state.topics.values[index].sticky
            if sticky >= 0, sticky < count, state.topics.values[index].queues[sticky].open != nil {
                return sticky
            }
            let available = state.topics.values[index].available
            var next = available.randomElement() ?? 0
            // Move on to another partition than the one just filled, as KIP-480 has it.
            if next == sticky, available.count > 1, let place = available.firstIndex(of: sticky) {
                next = available[(place + 1) % available.count]
            }
            state.topics.values[index].sticky = next
            return next
        }
    }

    /// Waits until there is room again.
    func waitForRoom() async throws {
        let reply = Reply<Void>()
        let hasRoom = state.withLock { state in
            if state.isClosed || !isFull(state) { return true }
            state.roomWaiters.append(reply)
            return false
        }
        if !hasRoom { try await reply.value() }
    }

    private func isFull(_ state: borrowing State) -> Bool {
        state.statistics.bufferedBytes > configuration.bufferBytes - configuration.bufferBytes
            / Self.resumeShare
    }

    /// Begins a flush: all batches made so far may be sent at once.
    ///
    /// - Returns: A reply that comes when they are finished, or `nil` if there are none.
    func beginFlush() -> Reply<Void>? {
        state.withLock { state in
            let epoch = state.flushEpoch
            guard state.unfinished.contains(where: { $0 > 0 }) else { return nil }
            state.flushEpoch += 1
            state.unfinished.append(0)
            let reply = Reply<Void>()
            state.flushWaiters.append((epoch, reply))
            return reply
        }
    }

    /// The first failure of an enqueued record since the last call, with the number of records that failed.
    func takeFailure() -> ClientError? {
        state.withLock { state in
            guard let failure = state.failure else { return nil }
            let count = state.failureCount
            state.failure = nil
            state.failureCount = 0
            return ClientError(
                failure.code,
                count == 1
                    ? failure.message
                    : "\(count) records were not delivered; the first because: \(failure.message)",
                isRetriable: failure.isRetriable, brokerCode: failure.brokerCode, cause: failure.cause)
        }
    }

    /// No more records from now on.
    func close() {
        let waiters = state.withLock { state in
            state.isClosed = true
            let waiters = state.roomWaiters
            state.roomWaiters.removeAll()
            return waiters
        }
        for waiter in waiters { waiter.succeed(()) }
    }

    // MARK: Sender

    /// Takes over what metadata says about a topic. Partitions are only ever added: one that vanishes with its
    /// topic fails at the broker, with the broker's reason.
    func update(topic: String, partitionCount: Int, available: [Int]) {
        state.withLock { state in
            var entry = state.topics[topic] ?? Topic(queues: [], available: [])
            while entry.queues.count < partitionCount {
                entry.queues.append(
                    PartitionQueue(TopicPartition(topic, Int32(entry.queues.count))))
            }
            entry.available = available.isEmpty ? Array(0..<partitionCount) : available
            state.topics[topic] = entry
        }
    }

    /// Queues that have gained work since the last call.
    func takeListed() -> [PartitionQueue] {
        state.withLock { state in
            state.wakePending = false
            let listed = state.listed
            state.listed.removeAll(keepingCapacity: true)
            for queue in listed { queue.isListed = false }
            return listed
        }
    }

    /// What a queue offers to the sender.
    enum Taken {
        case batch(PendingBatch)
        /// The open batch waits for more records until this time.
        case lingering(until: NIODeadline)
        case nothing
    }

    /// Takes the next batch of a queue that may be sent now.
    ///
    /// - Parameter isIdle: nothing of the partition is in flight, so a batch somebody awaits need not linger.
    func take(from queue: PartitionQueue, now: NIODeadline, isIdle: Bool) -> Taken {
        state.withLock { state in
            if let batch = queue.ready.popFirst() { return .batch(batch) }
            guard let open = queue.open, !open.builder.isEmpty else { return .nothing }
            let lingersUntil = open.createdAt + TimeAmount(configuration.linger)
            let mayGo =
                lingersUntil <= now || open.flushEpoch < state.flushEpoch || state.isClosed
                || (isIdle && !open.waiters.isEmpty)
                // A full buffer with nothing ready would wait for the linger time with callers suspended.
                || !state.roomWaiters.isEmpty
            guard mayGo else { return .lingering(until: lingersUntil) }
            queue.open = nil
            return .batch(open)
        }
    }

    /// Whether a queue holds anything.
    func isEmpty(_ queue: PartitionQueue) -> Bool {
        state.withLock { _ in queue.ready.isEmpty && queue.open == nil }
    }

    /// Takes the oldest batch away, whatever its state, if it was made before `time`.
    func takeExpired(from queue: PartitionQueue, before time: NIODeadline) -> PendingBatch? {
        state.withLock { _ in
            if let first = queue.ready.first {
                return first.createdAt < time ? queue.ready.popFirst() : nil
            }
            guard let open = queue.open, open.createdAt < time else { return nil }
            queue.open = nil
            return open
        }
    }

    /// Gives back a builder for reuse.
    func recycle(_ builder: consuming RecordBatchBuilder) {
        let spare = builder
        state.withLock { state in
            if state.spareBuilders.count < Self.spareBuilderLimit { state.spareBuilders.append(spare) }
        }
    }

    /// Counters that only the sender knows.
    func count(_ update: (inout ProducerStatistics) -> Void) {
        state.withLock { update(&$0.statistics) }
    }

    /// A batch has reached its end: frees its room, wakes who waited, counts.
    func finished(_ batch: PendingBatch, failure: ClientError?) {
        var resumed: [Reply<Void>] = []
        state.withLock { state in
            state.statistics.bufferedBytes -= batch.accountedBytes
            if let failure {
                state.statistics.failedRecordCount += batch.recordCount
                let unawaited = batch.recordCount - batch.waiters.count
                if unawaited > 0 {
                    if state.failure == nil { state.failure = failure }
                    state.failureCount += unawaited
                }
            } else {
                state.statistics.deliveredRecordCount += batch.recordCount
                state.statistics.deliveredBatchCount += 1
            }
            if !isFull(state) || state.statistics.bufferedBytes == 0 {
                resumed.append(contentsOf: state.roomWaiters)
                state.roomWaiters.removeAll(keepingCapacity: true)
            }
            state.unfinished[batch.flushEpoch - state.firstEpoch] -= 1
            while state.firstEpoch < state.flushEpoch, state.unfinished.first == 0 {
                state.unfinished.removeFirst()
                state.firstEpoch += 1
            }
            let done = state.firstEpoch
            state.flushWaiters.removeAll { waiter in
                guard waiter.epoch < done else { return false }
                resumed.append(waiter.reply)
                return true
            }
        }
        for reply in resumed { reply.succeed(()) }
    }
}
