import MartletKafkaProtocol
public import MartletLogModel

/// One line of the list of transactional ids.
public struct TransactionListing: Hashable, Sendable {
    public var transactionalID: String
    public var producerID: Int64
    /// `Empty`, `Ongoing`, `PrepareCommit`, `CompleteAbort`, ...
    public var state: String
    /// The broker that coordinates it.
    public var coordinator: BrokerID
}

/// A transactional id as its coordinator knows it.
public struct TransactionDescription: Hashable, Sendable {
    public var transactionalID: String
    /// `Empty`, `Ongoing`, `PrepareCommit`, `CompleteAbort`, ...
    public var state: String
    /// Time after which the coordinator aborts.
    public var timeout: Duration
    /// When the open transaction began; `nil` if none is open.
    public var startedAt: Timestamp?
    public var producerID: Int64
    public var producerEpoch: Int16
    /// Partitions of the open transaction.
    public var partitions: [TopicPartition]
    public var coordinator: BrokerID
}

/// A producer as a partition knows it.
public struct PartitionProducer: Hashable, Sendable {
    public var producerID: Int64
    public var producerEpoch: Int16
    /// Number of the last record; `nil` where only a marker is known.
    public var lastSequence: Int32?
    /// Time of the last record or marker.
    public var lastTimestamp: Timestamp?
    /// Epoch of the coordinator that wrote the last marker; `nil` without one.
    public var coordinatorEpoch: Int32?
    /// First record of the transaction that is open in this partition; `nil` if none is.
    public var transactionStart: Offset?

    init(_ state: DescribeProducersResponse.ProducerState) {
        producerID = state.producerID
        producerEpoch = Int16(clamping: state.producerEpoch)
        lastSequence = state.lastSequence >= 0 ? state.lastSequence : nil
        lastTimestamp = state.lastTimestamp >= 0 ? Timestamp(milliseconds: state.lastTimestamp) : nil
        coordinatorEpoch = state.coordinatorEpoch >= 0 ? state.coordinatorEpoch : nil
        transactionStart = state.currentTxnStartOffset >= 0 ? Offset(state.currentTxnStartOffset) : nil
    }

    /// Whether a transaction is open without news for longer than `age`.
    func isOpen(longerThan age: Duration, _ now: Timestamp) -> Bool {
        guard transactionStart != nil else { return false }
        guard let last = lastTimestamp else { return true }
        return .milliseconds(now.rawValue - last.rawValue) >= age
    }
}

/// A transaction that is open in a partition and that nobody will end.
public struct HangingTransaction: Hashable, Sendable {
    public var topicPartition: TopicPartition
    public var producer: PartitionProducer
    /// The id that has the producer now; `nil` if none has.
    public var transactionalID: String?
}
