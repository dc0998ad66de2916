package import MartletLogModel

/// Why the storage engine refuses or cannot go on. Peers' mistakes are ``AppendError`` and ``ReadError``;
/// these are the world's.
package enum StorageError: Error, Equatable, Sendable, CustomStringConvertible {
    /// No space left in the log directory. Reads, deletes and internal topics go on; writes come back by
    /// themselves when there is space again (``LogDirectory/refreshDiskState()``).
    case diskFull(String)
    /// The whole log directory failed (EIO, failed flush): final until the process restarts.
    case directoryFailed(String)
    /// The partition's log is damaged from `offset` on; the bytes are kept in quarantine.
    case corrupt(TopicPartition, offset: Offset, detail: String)
    /// The partition cannot be opened at all, for example because its folder is gone.
    case offline(TopicPartition, detail: String)
    /// One file operation failed without telling anything about the directory (too many open files, a
    /// denied permission).
    case file(DiskError)
    /// The log directory belongs to somebody else: another process, cluster or node.
    case directoryRefused(String)

    /// One log's bytes are wrong; the disk itself works.
    var isDamage: Bool {
        switch self {
        case .corrupt: true
        case .diskFull, .directoryFailed, .offline, .file, .directoryRefused: false
        }
    }

    /// Code for clients. All are storage errors to them: retriable, since another replica or a later
    /// moment may answer.
    package var errorCode: ErrorCode { .kafkaStorageError }

    package var description: String {
        switch self {
        case .diskFull(let detail): "log directory is full: \(detail); free space or extend the volume"
        case .directoryFailed(let detail): "log directory failed: \(detail); replace the disk and restart the broker"
        case .corrupt(let partition, let offset, let detail):
            "log of \(partition) is damaged from offset \(offset): \(detail); "
                + "restore it from a replica or run `martlet log repair`"
        case .offline(let partition, let detail): "log of \(partition) is offline: \(detail)"
        case .file(let error): "file operation failed: \(error)"
        case .directoryRefused(let detail): detail
        }
    }
}

/// Why a batch was not appended.
package enum AppendError: Error, Equatable, Sendable, CustomStringConvertible {
    /// OUT_OF_ORDER_SEQUENCE_NUMBER: a batch before this one is missing.
    case outOfOrderSequence(ProducerID, expected: Int32, found: Int32)
    /// INVALID_PRODUCER_EPOCH: a newer instance of the producer has written since.
    case invalidProducerEpoch(ProducerID, current: Int16, found: Int16)
    /// INVALID_TXN_STATE: a batch outside of transactions while its producer has one open here.
    case outsideTransaction(ProducerID)
    /// TRANSACTION_COORDINATOR_FENCED: a marker of a coordinator that has been replaced.
    case coordinatorFenced(ProducerID, current: Int32, found: Int32)
    /// The batch can never fit: RECORD_LIST_TOO_LARGE.
    case batchTooLarge(bytes: Int, limit: Int)
    case storage(StorageError)

    package var errorCode: ErrorCode {
        switch self {
        case .outOfOrderSequence: .outOfOrderSequenceNumber
        case .invalidProducerEpoch: .invalidProducerEpoch
        case .outsideTransaction: .invalidTxnState
        case .coordinatorFenced: .transactionCoordinatorFenced
        case .batchTooLarge: .recordListTooLarge
        case .storage(let error): error.errorCode
        }
    }

    package var description: String {
        switch self {
        case .outOfOrderSequence(let producer, let expected, let found):
            "producer \(producer) sent sequence \(found), expected \(expected): a batch is missing"
        case .invalidProducerEpoch(let producer, let current, let found):
            "producer \(producer) has epoch \(found), but \(current) has written already: this instance is fenced"
        case .outsideTransaction(let producer):
            "producer \(producer) has an open transaction here, but the batch is not part of one"
        case .coordinatorFenced(let producer, let current, let found):
            "marker for producer \(producer) is from coordinator epoch \(found), but \(current) has written already"
        case .batchTooLarge(let bytes, let limit): "batch of \(bytes) bytes exceeds segment.bytes \(limit)"
        case .storage(let error): error.description
        }
    }
}

package enum ReadError: Error, Equatable, Sendable, CustomStringConvertible {
    case offsetOutOfRange(start: Offset, end: Offset)
    /// Only for non-blocking calls: the answer is not in memory; run it where waiting is allowed.
    case wouldBlock
    case storage(StorageError)

    package var errorCode: ErrorCode {
        switch self {
        case .offsetOutOfRange: .offsetOutOfRange
        case .wouldBlock: .unknownServerError
        case .storage(let error): error.errorCode
        }
    }

    package var description: String {
        switch self {
        case .offsetOutOfRange(let start, let end): "offset is outside the log, which has \(start) to \(end)"
        case .wouldBlock: "the data is not in memory"
        case .storage(let error): error.description
        }
    }
}
