import MartletKafkaProtocol
import MartletLogModel
import MartletTransport

extension ClientError {
    /// An error code in a broker's answer. `detail` is the broker's own message, which says more than the code.
    static func broker(_ code: ErrorCode, _ subject: String, detail: String? = nil) -> ClientError {
        var message = subject + ": " + code.name
        let text = detail ?? ""
        message += text.isEmpty ? " (\(code.text))" : " (\(text))"
        if !code.remedy.isEmpty { message += "; \(code.remedy)" }
        return ClientError(
            clientCode(of: code), message, isRetriable: code.isRetriable, brokerCode: code)
    }

    private static func clientCode(of code: ErrorCode) -> Code {
        switch code {
        case .unknownTopicOrPartition, .unknownTopicID, .inconsistentTopicID: .unknownTopic
        case .topicAuthorizationFailed, .groupAuthorizationFailed, .clusterAuthorizationFailed,
            .transactionalIDAuthorizationFailed, .saslAuthenticationFailed:
            .notAuthorized
        case .messageTooLarge, .recordListTooLarge: .recordTooLarge
        case .offsetOutOfRange: .offsetOutOfRange
        case .corruptMessage: .corruptData
        case .fencedInstanceID, .producerFenced, .fencedMemberEpoch: .fenced
        case .illegalGeneration, .unknownMemberID, .rebalanceInProgress: .rebalanced
        case .unsupportedVersion: .unsupportedByBroker
        case .requestTimedOut: .timedOut
        case _: .broker
        }
    }

    /// A request that got no usable answer from `peer`.
    static func connection(_ error: ClientConnectionError, peer: BrokerAddress) -> ClientError {
        let code: Code
        var isRetriable = true
        switch error {
        case .connectFailed, .handshakeRefused: code = .brokersUnreachable
        case .connectionLost: code = .connectionLost
        case .timedOut: code = .timedOut
        case .closedLocally, .tooManyInFlight: code = .connectionLost
        case .unsupportedAPI:
            code = .unsupportedByBroker
            isRetriable = false
        case .encode:
            code = .invalidArgument
            isRetriable = false
        case .decode, .badFrame, .wrongCorrelation:
            code = .protocolViolation
            isRetriable = false
        }
        return ClientError(code, "broker \(peer): \(error)", isRetriable: isRetriable, cause: error)
    }

    static func unknownTopic(_ topic: String, askedOf brokers: String) -> ClientError {
        ClientError(
            .unknownTopic,
            "topic '\(topic)' does not exist on the brokers \(brokers); create it, for example with "
                + "`martlet topic create \(topic)`, or check the spelling",
            brokerCode: .unknownTopicOrPartition)
    }

    static func closed(_ what: String) -> ClientError {
        ClientError(.closed, "the \(what) is closed; make a new one")
    }

    /// The deadline of a whole call passed; `last` is the obstacle met most recently.
    static func timedOut(_ what: String, after limit: Duration, last: ClientError?) -> ClientError {
        guard let last else {
            return ClientError(.timedOut, "\(what) did not finish within \(limit)", isRetriable: true)
        }
        return ClientError(
            last.code == .brokersUnreachable ? .brokersUnreachable : .timedOut,
            "\(what) did not finish within \(limit); last obstacle: \(last.message)", isRetriable: true,
            brokerCode: last.brokerCode, cause: last.cause)
    }
}
