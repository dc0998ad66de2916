import DequeModule
import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Collects the fate of the records of one `send` call, which may lie in several batches.
final class DeliverySink: Sendable {
    private struct State {
        var remaining: Int
        var results: [RecordMetadata?]
        var failure: ClientError?
        var isSealed = false
    }

    private let state: Guarded<State>
    let reply = Reply<[RecordMetadata]>()

    init() { state = Guarded(State(remaining: 0, results: [])) }

    /// Reserves the slot of one more record; called before the record is handed over.
    func addSlot() -> Int {
        state.withLock { state in
            state.remaining += 1
            state.results.append(nil)
            return state.results.count - 1
        }
    }

    /// Gives back the slot reserved last, whose record was not taken.
    func removeLastSlot() {
        state.withLock { state in
            state.remaining -= 1
            state.results.removeLast()
        }
    }

    /// All slots are reserved; from now on the last completion resolves the reply.
    func seal() {
        let outcome = state.withLock { state -> Result<[RecordMetadata], any Error>? in
            state.isSealed = true
            return Self.outcome(state)
        }
        if let outcome { reply.resolve(outcome) }
    }

    func complete(_ slot: Int, _ result: Result<RecordMetadata, ClientError>) {
        let outcome = state.withLock { state -> Result<[RecordMetadata], any Error>? in
            switch result {
            case .success(let metadata): state.results[slot] = metadata
            case .failure(let error): if state.failure == nil { state.failure = error }
            }
            state.remaining -= 1
            return Self.outcome(state)
        }
        if let outcome { reply.resolve(outcome) }
    }

    private static func outcome(_ state: State) -> Result<[RecordMetadata], any Error>? {
        guard state.isSealed, state.remaining == 0 else { return nil }
        if let failure = state.failure { return .failure(failure) }
        return .success(state.results.compactMap { $0 })
    }
}

/// A batch from its first record to its acknowledgement or failure.
// SAFETY: reached only under the accumulator's lock until `ProducerAccumulator.take` hands it over, and only on
// the sender's event loop from then on.
final class PendingBatch: @unchecked Sendable {
    /// Somebody who awaits one record of the batch.
    struct Waiter {
        let index: Int
        let timestamp: Int64
        let sink: DeliverySink
        let slot: Int
    }

    let queue: PartitionQueue
    let createdAt: NIODeadline
    /// Counts calls of `flush`; a batch made before a flush must be sent without waiting for more records.
    let flushEpoch: Int
    var builder: RecordBatchBuilder
    var waiters: [Waiter] = []
    /// Bytes counted against the buffer limit.
    var accountedBytes = 0

    // From here on used by the sender alone.

    /// The finished bytes; kept for retries.
    var encoded: ByteBuffer?
    var recordCount = 0
    /// Attempts that failed.
    var retryCount = 0
    /// Place among the batches of its partition, by first sending.
    var order = 0
    var identity = ProducerIdentity.none
    var baseSequence: Int32 = -1

    init(queue: PartitionQueue, builder: RecordBatchBuilder, createdAt: NIODeadline, flushEpoch: Int) {
        self.queue = queue
        self.builder = builder
        self.createdAt = createdAt
        self.flushEpoch = flushEpoch
    }
}

/// Producer id and epoch under which batches are numbered (KIP-98).
struct ProducerIdentity: Hashable, Sendable {
    var id: Int64
    var epoch: Int16

    static let none = ProducerIdentity(id: -1, epoch: -1)
    var isNone: Bool { id < 0 }
}

/// The batches of one partition on their way out.
// SAFETY: `open`, `ready` and `isListed` belong to the accumulator's lock, everything below the mark to the
// sender's event loop.
final class PartitionQueue: @unchecked Sendable {
    let topicPartition: TopicPartition

    /// The batch that takes records.
    var open: PendingBatch?
    /// Full batches, oldest first. Bounded by the producer's buffer limit.
    var ready = Deque<PendingBatch>()
    /// Whether the sender has been told that there is something to do.
    var isListed = false

    // The sender's part.

    /// Batches whose answers are due; at most five.
    var inFlight: [PendingBatch] = []
    /// Batches to be sent again before any other, in their order.
    var retries: [PendingBatch] = []
    /// Whether batches are being sent again, the first of them with nothing else in flight.
    var isReplaying = false
    /// Order of the next new batch.
    var nextOrder = 0
    /// No attempt before this.
    var notBefore = NIODeadline.uptimeNanoseconds(0)
    /// Whether the queue is in the sender's list of queues with work.
    var isActive = false
    /// Identity and number of the next new batch.
    var identity = ProducerIdentity.none
    var nextSequence: Int32 = 0
    /// A numbered batch was given up: the numbers after it would leave a gap, so a new epoch is needed once
    /// nothing is in flight (KIP-360).
    var needsNewEpoch = false
    /// The obstacle met last; names the cause when the delivery timeout strikes.
    var lastError: ClientError?

    init(_ topicPartition: TopicPartition) { self.topicPartition = topicPartition }
}
