package import MartletKafkaProtocol
package import MartletLogModel

/// A producer id with its epoch: what fences and what is fenced (KIP-98).
package struct ProducerIdentity: Hashable, Sendable, CustomStringConvertible {
    package var id: Int64
    package var epoch: Int16

    package init(id: Int64, epoch: Int16) {
        self.id = id
        self.epoch = epoch
    }

    package var description: String { "\(id)/\(epoch)" }

    /// No client gets an epoch above this, so that the coordinator can always fence it with one more.
    package static let lastEpoch = Int16.max - 1

    /// The id is used up: the next epoch belongs to another id.
    package var isExhausted: Bool { epoch >= Self.lastEpoch }
}

/// Rules a client's transaction follows (KIP-890). The handler knows it from the request's version.
package enum TransactionProtocol: Int16, Sendable, Comparable {
    /// Partitions are added by the client, the epoch stays until somebody else takes over the transactional id.
    case first = 1
    /// The epoch rises with every end, so that nothing late can touch a later transaction.
    case second = 2

    package static func < (left: TransactionProtocol, right: TransactionProtocol) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// Phase of a transactional id, with the numbers and names that records, tools and clients use.
///
/// ```
/// Empty ──────┐                ┌─> PrepareCommit ──> CompleteCommit ─┐
///             ├──> Ongoing ────┤                                     ├──> Ongoing, Empty, gone
/// Complete* ──┘                └─> PrepareAbort ───> CompleteAbort ──┘
/// ```
/// Also Empty and Complete* to PrepareAbort: under ``TransactionProtocol/second`` a producer may abort without
/// having added a partition, and its epoch rises all the same. InitProducerId leads from every resting phase to
/// Empty. The commit point is the append of a Prepare record.
///
/// Never stored: `dead` (a transactional id that expires gets a tombstone) and `prepareEpochFence` (fencing is one
/// step here, straight to PrepareAbort with a higher epoch). They are known because Kafka names them.
package enum TransactionPhase: Int8, Sendable, CaseIterable {
    case empty = 0
    case ongoing = 1
    case prepareCommit = 2
    case prepareAbort = 3
    case completeCommit = 4
    case completeAbort = 5
    case dead = 6
    case prepareEpochFence = 7

    package var name: String {
        switch self {
        case .empty: "Empty"
        case .ongoing: "Ongoing"
        case .prepareCommit: "PrepareCommit"
        case .prepareAbort: "PrepareAbort"
        case .completeCommit: "CompleteCommit"
        case .completeAbort: "CompleteAbort"
        case .dead: "Dead"
        case .prepareEpochFence: "PrepareEpochFence"
        }
    }

    /// Decided, and the markers are on their way.
    var isPrepared: Bool { self == .prepareCommit || self == .prepareAbort }
}

/// What the log knows of one transactional id.
package struct TransactionState: Sendable, Equatable {
    package var producer: ProducerIdentity
    /// The id before the last change of ids: a retry from just before it is recognised by it.
    package var previousProducerID: Int64?
    /// Takes over when the transaction that is being ended is complete: the epochs of the present id are used up.
    package var nextProducerID: Int64?
    package var timeoutMilliseconds: Int32
    package var phase: TransactionPhase
    package var partitions: Set<TopicPartition>
    package var startedAt: Timestamp?
    package var updatedAt: Timestamp
    /// Under which rules the present or last transaction ended or goes on; `nil` before any.
    package var transactionProtocol: TransactionProtocol?

    package init(
        producer: ProducerIdentity, previousProducerID: Int64?, nextProducerID: Int64?, timeoutMilliseconds: Int32,
        phase: TransactionPhase, partitions: Set<TopicPartition>, startedAt: Timestamp?, updatedAt: Timestamp,
        transactionProtocol: TransactionProtocol?
    ) {
        self.producer = producer
        self.previousProducerID = previousProducerID
        self.nextProducerID = nextProducerID
        self.timeoutMilliseconds = timeoutMilliseconds
        self.phase = phase
        self.partitions = partitions
        self.startedAt = startedAt
        self.updatedAt = updatedAt
        self.transactionProtocol = transactionProtocol
    }

    package var commits: Bool { phase == .prepareCommit || phase == .completeCommit }

    /// Who the client will be once the transaction being ended is complete.
    var successor: ProducerIdentity { nextProducerID.map { ProducerIdentity(id: $0, epoch: 0) } ?? producer }
}

// MARK: Requests

/// A request, brought from its version to one meaning by the handler. Each concerns this shard only.
package enum TransactionRequest: Sendable, Equatable {
    /// InitProducerId with a transactional id. `expected`: what the producer believes to be (KIP-360).
    case initialize(transactionalID: String, timeoutMilliseconds: Int32, expected: ProducerIdentity?)
    /// AddPartitionsToTxn, AddOffsetsToTxn, and what Produce and TxnOffsetCommit add by themselves.
    case addPartitions(
        transactionalID: String, producer: ProducerIdentity, partitions: [TopicPartition],
        under: TransactionProtocol)
    /// Is each partition part of the open transaction? Changes nothing.
    case verifyPartitions(transactionalID: String, producer: ProducerIdentity, partitions: [TopicPartition])
    case end(
        transactionalID: String, producer: ProducerIdentity, commits: Bool, under: TransactionProtocol)
    case describe([String])
    case list(TransactionFilter)

    /// The transactional id it is about, if it is about one.
    package var transactionalID: String? {
        switch self {
        case .initialize(let id, _, _), .addPartitions(let id, _, _, _), .verifyPartitions(let id, _, _),
            .end(let id, _, _, _):
            id
        case .describe, .list: nil
        }
    }

    /// Whom the client takes itself for, if it says so.
    package var producer: ProducerIdentity? {
        switch self {
        case .initialize(_, _, let expected): expected
        case .addPartitions(_, let producer, _, _), .verifyPartitions(_, let producer, _),
            .end(_, let producer, _, _):
            producer
        case .describe, .list: nil
        }
    }
}

/// Which transactions ListTransactions asks for (KIP-664, KIP-994); empty sets and `nil` do not filter.
package struct TransactionFilter: Sendable, Equatable {
    package var phases: [String]
    package var producerIDs: [Int64]
    /// Only transactions open for longer than this.
    package var minimumDurationMilliseconds: Int64?

    package init(phases: [String] = [], producerIDs: [Int64] = [], minimumDurationMilliseconds: Int64? = nil) {
        self.phases = phases
        self.producerIDs = producerIDs
        self.minimumDurationMilliseconds = minimumDurationMilliseconds
    }
}

package struct PartitionOutcome: Sendable, Equatable {
    package var partition: TopicPartition
    package var error: ErrorCode

    package init(partition: TopicPartition, error: ErrorCode) {
        self.partition = partition
        self.error = error
    }
}

package enum TransactionResponse: Sendable, Equatable {
    /// The producer's new identity, or why there is none.
    case initialized(ProducerIdentity?, ErrorCode)
    /// In the order of the request.
    case partitions([PartitionOutcome])
    /// The identity to go on with.
    case ended(ProducerIdentity?, ErrorCode)
    case described([DescribeTransactionsResponse.TransactionState])
    case listed(ListTransactionsResponse)
}

// MARK: Effects

/// The end of a transaction as partitions learn it.
package struct TransactionMarker: Sendable, Hashable {
    package var producer: ProducerIdentity
    package var commits: Bool
    package var coordinatorEpoch: Int32
    /// Under the second protocol the marker's epoch lies above that of the records it closes, and partitions
    /// insist on it (KIP-1228).
    package var transactionProtocol: TransactionProtocol

    package init(
        producer: ProducerIdentity, commits: Bool, coordinatorEpoch: Int32,
        transactionProtocol: TransactionProtocol
    ) {
        self.producer = producer
        self.commits = commits
        self.coordinatorEpoch = coordinatorEpoch
        self.transactionProtocol = transactionProtocol
    }
}

/// A timer of the shard. Scheduling one again replaces it; a stale firing is recognised and ignored.
package enum TransactionTimer: Hashable, Sendable {
    /// The client had `transaction.timeout.ms` to end its transaction.
    case transaction(String)
    /// Markers that failed are sent again.
    case markers(String)
    /// A request has waited long enough for the transaction before it to be complete.
    case waiting(RequestID)
    /// The look for transactional ids that may be forgotten goes on.
    case expiration
}

/// Something the operator may want to know.
package enum TransactionReport: Sendable, Equatable {
    case timedOut(transactionalID: String, producer: ProducerIdentity, openMilliseconds: Int64)
    case fenced(transactionalID: String, producer: ProducerIdentity)
    /// A partition refuses the marker for good; the transaction is complete without it.
    case markerRefused(transactionalID: String, TopicPartition, ErrorCode)
}

/// Orders to the shell, to be carried out in sequence.
package enum TransactionEffect: Sendable, Equatable {
    case respond(RequestID, TransactionResponse)
    /// Append these as one batch; report `committed(token)` when it is flushed and committed.
    case append([TransactionRecord], AppendToken)
    /// Get a producer id that nobody has; report `producerIDAllocated`.
    case allocateProducerID(RequestID)
    /// Write the marker to each partition; report `markersWritten` with all outcomes.
    case writeMarkers(transactionalID: String, TransactionMarker, [TopicPartition])
    case schedule(TransactionTimer, at: Instant)
    case cancel(TransactionTimer)
    case report(TransactionReport)
}

// MARK: Bounds

/// Bounds of one shard. A client that meets one gets a clear error; nothing grows without end.
package enum TransactionLimits {
    /// Transactional ids of one shard: 50 shards of the default topic make ten million.
    package static let transactionalIDCountLimit = 200_000
    package static let transactionalIDBytesLimit = 8 * 1024
    /// Partitions of one transaction: its record names all of them and must fit a batch.
    package static let partitionCountLimit = 50_000
    /// Bytes of topic names in one record; the topic takes batches of 16 MiB.
    package static let partitionNameBytesLimit = 8 * 1024 * 1024
    /// Requests that wait for one transaction to be complete, for at most ``completionWaitMilliseconds``.
    package static let completionWaiterLimit = 16
    /// A request for the next transaction waits this long for the markers of the one before; then the client is
    /// told to come again (KIP-890 gives the broker 100 ms for it).
    package static let completionWaitMilliseconds: Int64 = 100
    /// Milliseconds before failed markers are sent again: doubles from the first to the second.
    package static let markerRetryMilliseconds: ClosedRange<Int64> = 20...1_000
    /// Transactional ids looked at in one event of an expiration.
    package static let expirationStepLimit = 5_000
    /// Bytes of tombstones in one record batch.
    package static let tombstoneBatchBytesLimit = 1024 * 1024
}

/// What an operator can set, from the broker's configuration.
package struct TransactionConfiguration: Sendable, Equatable {
    /// `transaction.max.timeout.ms`
    package var maxTimeoutMilliseconds: Int32
    /// `transactional.id.expiration.ms`
    package var expirationMilliseconds: Int64
    /// Highest rules that are finalized (`transaction.version`): those of the coordinator's own aborts.
    package var highestProtocol: TransactionProtocol
    /// Empty outside of the simulator's mutation table.
    package var suspended: SuspendedRules = []

    package init(
        maxTimeoutMilliseconds: Int32 = 900_000, expirationMilliseconds: Int64 = 7 * 24 * 3_600_000,
        highestProtocol: TransactionProtocol = .second
    ) {
        self.maxTimeoutMilliseconds = maxTimeoutMilliseconds
        self.expirationMilliseconds = expirationMilliseconds
        self.highestProtocol = highestProtocol
    }
}
