internal import MartletCoordinators
package import MartletLogModel
internal import MartletRecordBatch
internal import MartletStorage
internal import NIOCore

/// The transaction a Produce request belongs to; one object for all its partitions.
package final class ProduceTransaction: Sendable {
    let transactionalID: String
    /// Under the second protocol the broker adds partitions itself (Produce 12 and later); under the first the client
    /// has, and the broker makes sure of it (KIP-890).
    let rules: TransactionProtocol
    /// The client knows TRANSACTION_ABORTABLE (Produce 11 and later, KIP-1050).
    let knowsAbortable: Bool

    package init(transactionalID: String, version: Int16) {
        self.transactionalID = transactionalID
        rules = version >= 12 ? .second : .first
        knowsAbortable = version >= 11
    }

    /// A coordinator's answer as Produce says it.
    func code(_ code: ErrorCode) -> ErrorCode {
        switch code {
        case .producerFenced: .invalidProducerEpoch
        case .transactionAbortable: knowsAbortable ? .transactionAbortable : .invalidTxnState
        // Retriable for every client; without it an old one would give up.
        case .coordinatorLoadInProgress, .coordinatorNotAvailable, .notCoordinator: .notEnoughReplicas
        case .concurrentTransactions: rules == .second ? .concurrentTransactions : .notEnoughReplicas
        case _: code
        }
    }
}

/// First batches of a producer's transaction on a partition, while the coordinator is asked about them.
struct TransactionAdmission {
    /// Of the batch that is asked about.
    let epoch: Int16
    var items: [(item: ProduceItem, request: ProduceRequestState)] = []
    /// False once the marker has come of the transaction that is asked about: the answer on its way is about one
    /// that is over.
    private(set) var isValid = true

    mutating func met(_ marker: MarkerAppend) {
        if marker.ends(epoch: epoch) { isValid = false }
    }
}

extension MarkerAppend {
    /// Whether it ends transactions of this epoch of its producer. Under the second protocol its epoch is that of the
    /// next one, whose first batch may be here before it.
    func ends(epoch: Int16) -> Bool { raisesEpoch ? epoch < producerEpoch : epoch <= producerEpoch }
}

/// Sequences of batches that were refused before the partition knew their producer: what followed them must not
/// pass for the producer's first.
struct RefusedSequences {
    private var lowest: [Int64: (epoch: Int16, sequence: Int32)] = [:]
    /// Producers remembered; a refusal is rare, and forgetting costs only this check.
    private static let limit = 1_000

    mutating func refused(_ header: RecordBatchHeader) {
        if lowest.count >= Self.limit { lowest = [:] }
        if let known = lowest[header.producerID], known.epoch == header.producerEpoch {
            lowest[header.producerID] = (known.epoch, min(known.sequence, header.baseSequence))
        } else {
            lowest[header.producerID] = (header.producerEpoch, header.baseSequence)
        }
    }

    /// True when a batch before this one was refused and has not come again.
    func lacksPredecessor(_ header: RecordBatchHeader) -> Bool {
        guard let known = lowest[header.producerID], known.epoch == header.producerEpoch else { return false }
        return header.baseSequence > known.sequence
    }

    mutating func accepted(_ header: RecordBatchHeader) {
        if !lowest.isEmpty { lowest[header.producerID] = nil }
    }
}

extension Partition {
    /// Exclusive end of what `read_committed` consumers may read; at most ``highWatermark``, and not told while there is
    /// no ``visibleEnd``.
    package var lastStableOffset: Offset {
        guard case .success(let log) = openLog else { return highWatermark }
        return log.lastStableOffset(highWatermark: highWatermark)
    }

    /// Takes a validated transactional batch. The first one of a transaction waits until the coordinator has said
    /// that the partition is part of it: without that nobody would ever write the marker that ends it here.
    func appendTransactional(
        _ item: consuming ProduceItem, _ transaction: ProduceTransaction, for request: ProduceRequestState
    ) {
        let header = item.header
        if admissions[header.producerID] != nil {
            // Behind those that wait: sequences must arrive in order.
            admissions[header.producerID]?.items.append((item, request))
            return
        }
        let isUnverified = transaction.rules == .first && loop.services.suspended.contains(.transactionVerification)
        guard case .success(let log) = openLog, !isUnverified, needsAdmission(header, log) else {
            return appendAdmitted(item, for: request)
        }
        if log.producers.entries[header.producerID] == nil, refusedSequences.lacksPredecessor(header) {
            return refuse(
                item, request, .outOfOrderSequenceNumber,
                "a batch before sequence \(header.baseSequence) of producer \(header.producerID) was refused")
        }
        admissions[header.producerID] = TransactionAdmission(epoch: header.producerEpoch, items: [(item, request)])
        let producer = ProducerIdentity(id: header.producerID, epoch: header.producerEpoch)
        let question: TransactionRequest =
            switch transaction.rules {
            case .first:
                .verifyPartitions(
                    transactionalID: transaction.transactionalID, producer: producer, partitions: [name])
            case .second:
                .addPartitions(
                    transactionalID: transaction.transactionalID, producer: producer, partitions: [name],
                    under: .second)
            }
        loop.askCoordinator(question) { response in
            guard case .partitions(let outcomes) = response else { return response.mismatch() }
            self.admit(producer, outcomes.first?.error ?? .unknownServerError)
        }
    }

    private func needsAdmission(_ header: RecordBatchHeader, _ log: PartitionLog<AnyDisk>) -> Bool {
        guard let entry = log.producers.entries[header.producerID] else { return true }
        // A zombie is refused by the log at once.
        if header.producerEpoch < entry.epoch { return false }
        return header.producerEpoch > entry.epoch || entry.transactionFirstOffset == nil
    }

    /// The coordinator has answered.
    private func admit(_ producer: ProducerIdentity, _ code: ErrorCode) {
        guard let admission = admissions.removeValue(forKey: producer.id) else { return }
        for (item, request) in admission.items {
            guard let transaction = item.transaction else { continue }
            if item.header.producerEpoch != producer.epoch {
                // Another life of the producer: a question of its own.
                appendTransactional(item, transaction, for: request)
            } else if code != .none {
                refusedSequences.refused(item.header)
                refuse(
                    item, request, transaction.code(code),
                    "the coordinator of transaction '\(transaction.transactionalID)' says \(code.name)")
            } else if !admission.isValid {
                refuse(
                    item, request, .invalidTxnState,
                    "transaction '\(transaction.transactionalID)' ended before the batch arrived")
            } else {
                refusedSequences.accepted(item.header)
                appendAdmitted(item, for: request)
            }
        }
    }

    private func refuse(
        _ item: ProduceItem, _ request: ProduceRequestState, _ code: ErrorCode, _ cause: String
    ) {
        loop.complete(
            ProduceCompletion(
                request: request, index: item.index, result: ProduceResult(error: code, message: cause)))
    }
}
