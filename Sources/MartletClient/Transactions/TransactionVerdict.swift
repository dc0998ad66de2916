import MartletLogModel

/// Requests that are part of a transaction and answered by an error code.
enum TransactionalRequest: CaseIterable, Sendable {
    case initialize
    case addPartitions
    case addOffsets
    case commitOffsets
    case end
    case produce
}

/// What an error code means for a transactional producer: the classes of KIP-1050, with the exceptions that single
/// requests make.
enum TransactionVerdict: Sendable, Equatable {
    case done
    /// The same request again after a pause.
    case retry
    /// The same request again, after the coordinator has been looked up anew.
    case retryElsewhere
    /// The transaction cannot be committed any more; once it is aborted the producer goes on.
    case abortable
    /// This producer is finished: another one has its place, or it lacks a right that it cannot do without.
    case fatal

    init(_ code: ErrorCode, of request: TransactionalRequest) {
        switch code {
        case .none:
            self = .done
        case .coordinatorNotAvailable, .notCoordinator:
            self = .retryElsewhere
        case .requestTimedOut where request != .produce:
            self = .retryElsewhere
        case .producerFenced, .transactionalIDAuthorizationFailed, .clusterAuthorizationFailed,
            .invalidProducerIDMapping, .unsupportedVersion, .unsupportedForMessageFormat,
            .invalidTransactionTimeout:
            self = .fatal
        case .invalidProducerEpoch:
            // A partition can only say that the epoch is past. Whether somebody else took over is known to the
            // coordinator, who is asked to abort (KIP-588).
            self = request == .produce ? .abortable : .fatal
        case .invalidTxnState:
            // The coordinator has ended the transaction by itself, in all likelihood after transactionTimeout. The
            // abort that follows shows whether we are still its producer.
            self = request == .initialize ? .fatal : .abortable
        case .transactionAbortable:
            // There is no transaction yet that could be aborted.
            self = request == .initialize ? .retry : .abortable
        case .unknownProducerID, .outOfOrderSequenceNumber:
            self = request == .initialize ? .fatal : .abortable
        case .operationNotAttempted:
            // Another partition of the same request was refused, which decides.
            self = .retry
        case .topicAuthorizationFailed, .groupAuthorizationFailed, .illegalGeneration, .unknownMemberID,
            .fencedInstanceID, .rebalanceInProgress, .staleMemberEpoch, .fencedMemberEpoch,
            .offsetMetadataTooLarge, .invalidCommitOffsetSize, .invalidGroupID:
            self = .abortable
        case _ where code.isRetriable:
            self = .retry
        case _:
            self = request == .produce ? .abortable : .fatal
        }
    }
}

extension ClientError {
    /// Codes after which a transaction may be run again as it was.
    private static let repeatableCodes: Set<ErrorCode> = [
        .transactionAbortable, .outOfOrderSequenceNumber, .unknownProducerID, .invalidTxnState,
        .invalidProducerEpoch, .staleMemberEpoch, .fencedMemberEpoch,
    ]

    /// Whether running the whole transaction again may succeed without anybody changing anything.
    private var isTransactionRepeatable: Bool {
        isRetriable || code == .rebalanced || brokerCode.map { Self.repeatableCodes.contains($0) } ?? false
    }

    /// The transaction was rolled back because of `cause`.
    static func transactionAborted(because cause: ClientError) -> ClientError {
        if cause.code == .transactionAborted { return cause }
        let remedy =
            cause.isTransactionRepeatable
            ? "run the transaction again" : "mend the cause before the transaction is run again"
        return ClientError(
            .transactionAborted, "the transaction was rolled back: \(cause.message); \(remedy)",
            isRetriable: cause.isTransactionRepeatable, brokerCode: cause.brokerCode, cause: cause)
    }

    /// The producer can never be used again.
    static func fenced(_ transactionalID: String, _ code: ErrorCode, _ what: String) -> ClientError {
        ClientError(
            .fenced,
            "\(what): \(code.name); another producer with the transactional id '\(transactionalID)' has started, or "
                + "the transaction was open for longer than transactionTimeout; close this producer, and make a new "
                + "one if no other has its work", brokerCode: code)
    }
}
