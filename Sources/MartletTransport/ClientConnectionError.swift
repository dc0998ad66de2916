package import MartletKafkaProtocol

/// Why a request to a broker has no usable answer. Descriptions name API, version and limit, never payloads.
package enum ClientConnectionError: Error, CustomStringConvertible {
    /// No TCP connection came about.
    case connectFailed(any Error)
    /// The broker answered the first exchange of versions with this error.
    case handshakeRefused(code: Int16)
    /// The connection ended, by the peer or by a fault of the network, while requests were on their way.
    case connectionLost(cause: (any Error)?)
    /// We closed the connection ourselves.
    case closedLocally
    /// No answer within the time allowed. Later answers could no longer be told apart, so the connection closes.
    case timedOut(api: APIKey, milliseconds: Int64)
    /// More than `ClientConnection.Settings.inFlightLimit` requests without an answer.
    case tooManyInFlight(limit: Int)
    /// The peer serves no version of this API that we speak.
    case unsupportedAPI(APIKey, served: ClosedRange<Int16>?, spoken: ClosedRange<Int16>)
    /// The value cannot be said in the version in use.
    case encode(APIKey, EncodeError)
    /// The answer's bytes are not the message they should be.
    case decode(APIKey, version: Int16, DecodeError)
    /// An answer longer than the limit, or with an impossible length.
    case badFrame(length: Int32, limit: Int)
    /// An answer to a request that was not the oldest one without answer.
    case wrongCorrelation(expected: Int32?, found: Int32)

    /// Whether the request cannot have reached the peer whole, so that repeating it is always safe.
    package var isCertainlyUnsent: Bool {
        switch self {
        case .connectFailed, .handshakeRefused, .tooManyInFlight, .unsupportedAPI, .encode: true
        case .connectionLost, .closedLocally, .timedOut, .decode, .badFrame, .wrongCorrelation: false
        }
    }

    package var description: String {
        switch self {
        case .connectFailed(let error):
            "cannot connect: \(error)"
        case .handshakeRefused(let code):
            "the peer refused the exchange of API versions with error \(code)"
        case .connectionLost(let cause):
            cause.map { "connection lost: \($0)" } ?? "connection closed by the broker"
        case .closedLocally:
            "connection closed by this client"
        case .timedOut(let api, let milliseconds):
            "no answer to \(api.name) within \(milliseconds) ms"
        case .tooManyInFlight(let limit):
            "more than \(limit) requests without an answer"
        case .unsupportedAPI(let api, let served, let spoken):
            "broker serves \(api.name) in "
                + (served.map { "versions \($0.lowerBound) to \($0.upperBound)" } ?? "no version")
                + ", this client speaks \(spoken.lowerBound) to \(spoken.upperBound)"
        case .encode(let api, let error):
            "cannot write \(api.name): \(error)"
        case .decode(let api, let version, let error):
            "cannot read the answer to \(api.name) version \(version): \(error)"
        case .badFrame(let length, let limit):
            "frame length \(length) is not between 4 and \(limit); the peer does not speak the Kafka protocol "
                + "(a TLS listener looks like this), or responseByteLimit is too small"
        case .wrongCorrelation(let expected, let found):
            "answer to request \(found) where "
                + (expected.map { "request \($0) was next" } ?? "no request was waiting")
        }
    }
}
