public import MartletLogModel

/// Every failure that the client reports: what happened, whether trying again can help, what lies beneath it
/// and what to do about it.
///
/// Branch on ``code`` (open: later releases add codes, so keep a general branch) or, for an answer of a broker,
/// on ``brokerCode``. Messages name topics, partitions, brokers and groups; they never contain keys or values
/// of records.
public struct ClientError: Error, Sendable, CustomStringConvertible {
    /// Kind of failure. Open on purpose: compare with the constants and keep a general branch.
    public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public let rawValue: String
        public init(rawValue: String) { self.rawValue = rawValue }

        /// A configuration value that cannot work; the message names the key, the value and what is allowed.
        public static let invalidConfiguration = Code(rawValue: "invalidConfiguration")
        /// An argument that the call does not accept.
        public static let invalidArgument = Code(rawValue: "invalidArgument")
        /// No bootstrap broker, or no broker at all, could be reached.
        public static let brokersUnreachable = Code(rawValue: "brokersUnreachable")
        /// A connection broke while a request was on its way; the request may have been carried out.
        public static let connectionLost = Code(rawValue: "connectionLost")
        /// The time allowed for the call ran out; ``ClientError/cause`` holds the last obstacle met.
        public static let timedOut = Code(rawValue: "timedOut")
        /// The topic or partition does not exist on the brokers asked.
        public static let unknownTopic = Code(rawValue: "unknownTopic")
        /// The broker answered with an error that has no code of its own here; see ``ClientError/brokerCode``.
        public static let broker = Code(rawValue: "broker")
        /// The broker does not offer the operation, or not in a version that this client speaks.
        public static let unsupportedByBroker = Code(rawValue: "unsupportedByBroker")
        /// The peer broke the protocol: a frame that cannot be read, or an answer that fits no request.
        public static let protocolViolation = Code(rawValue: "protocolViolation")
        /// Stored bytes do not match their checksum, or a record batch cannot be read.
        public static let corruptData = Code(rawValue: "corruptData")
        /// One record, or the batch it alone fills, is above the limit of producer or broker.
        public static let recordTooLarge = Code(rawValue: "recordTooLarge")
        /// The record was not acknowledged within the delivery timeout.
        public static let deliveryTimedOut = Code(rawValue: "deliveryTimedOut")
        /// A newer producer with the same identity, or a newer member with the same instance id, has taken over.
        public static let fenced = Code(rawValue: "fenced")
        /// A part of the transaction failed and all of it was rolled back; with ``ClientError/isRetriable`` it may be
        /// run again as it was.
        public static let transactionAborted = Code(rawValue: "transactionAborted")
        /// The commit of a transaction was not confirmed in time: it may have taken place or not. Running it again
        /// is safe only where its input is read again from what was committed.
        public static let transactionUndecided = Code(rawValue: "transactionUndecided")
        /// The position asked for is no longer, or not yet, in the log and no reset policy is set.
        public static let offsetOutOfRange = Code(rawValue: "offsetOutOfRange")
        /// The group has moved on: partitions were handed to other members before the commit arrived.
        public static let rebalanced = Code(rawValue: "rebalanced")
        /// The principal lacks the right for this operation.
        public static let notAuthorized = Code(rawValue: "notAuthorized")
        /// The producer, consumer or admin client has been closed.
        public static let closed = Code(rawValue: "closed")
        /// The call does not fit the present state, such as `commit` without a group.
        public static let invalidState = Code(rawValue: "invalidState")

        public var description: String { rawValue }
    }

    /// Kind of failure.
    public let code: Code
    /// What happened and what to do about it, in one or two sentences.
    public let message: String
    /// Whether the same call may succeed later without anybody changing anything.
    public let isRetriable: Bool
    /// Kafka's error code, if a broker's answer is the reason.
    public let brokerCode: ErrorCode?
    /// The failure beneath this one.
    public let cause: (any Error)?

    public init(
        _ code: Code, _ message: String, isRetriable: Bool = false, brokerCode: ErrorCode? = nil,
        cause: (any Error)? = nil
    ) {
        self.code = code
        self.message = message
        self.isRetriable = isRetriable
        self.brokerCode = brokerCode
        self.cause = cause
    }

    public var description: String {
        guard let cause else { return "\(code): \(message)" }
        return "\(code): \(message) (cause: \(cause))"
    }
}
