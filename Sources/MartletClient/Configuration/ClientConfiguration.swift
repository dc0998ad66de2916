public import Logging

/// How to reach a cluster and how patient to be; shared by ``Producer``, ``Consumer`` and ``Admin``.
public struct ClientConfiguration: Sendable {
    /// Brokers to ask first. Any one that answers is enough: it names the others.
    public var bootstrap: [BrokerAddress]
    /// Name of this client in the brokers' logs and quotas.
    public var clientID = "martlet"
    /// Longest time for one TCP connection attempt including the first exchange of versions.
    public var connectTimeout: Duration = .seconds(10)
    /// Longest wait for one answer of a broker; the connection is given up after that.
    public var requestTimeout: Duration = .seconds(30)
    /// Longest time a whole call may take, all attempts together, where no other limit is given.
    public var operationTimeout: Duration = .seconds(60)
    /// First pause before a broker that could not be reached is tried again; doubles up to
    /// ``reconnectBackoffLimit``, with 20 % of jitter.
    public var reconnectBackoff: Duration = .milliseconds(50)
    /// Longest pause between two attempts to connect to one broker.
    public var reconnectBackoffLimit: Duration = .seconds(1)
    /// First pause before a failed request is tried again; doubles up to ``retryBackoffLimit``.
    public var retryBackoff: Duration = .milliseconds(100)
    /// Longest pause between two attempts of one request.
    public var retryBackoffLimit: Duration = .seconds(1)
    /// Age at which topic metadata is asked for again although nothing failed.
    public var metadataMaximumAge: Duration = .seconds(300)
    /// Largest answer accepted from a broker; a longer one is a broken peer and closes the connection.
    public var responseByteLimit = 128 * 1024 * 1024
    /// Where the client reports what an operator can act on. Silent unless set.
    public var logger = Logger(label: "martlet.client", factory: { _ in SwiftLogNoOpLogHandler() })

    public init(bootstrap: [BrokerAddress]) {
        self.bootstrap = bootstrap
    }

    /// Takes the brokers from a comma-separated list of `HOST:PORT`.
    ///
    /// - Throws: ``ClientError`` with code `invalidConfiguration` for a list that cannot be read.
    public init(bootstrap: String) throws(ClientError) {
        self.bootstrap = try BrokerAddress.list(bootstrap)
    }

    /// The first setting that cannot work, with what is allowed instead.
    func validate() throws(ClientError) {
        if bootstrap.isEmpty {
            throw ClientError(.invalidConfiguration, "bootstrap is empty; give at least one HOST:PORT")
        }
        try Self.require(connectTimeout > .zero, "connectTimeout", connectTimeout, "more than zero")
        try Self.require(requestTimeout > .zero, "requestTimeout", requestTimeout, "more than zero")
        try Self.require(operationTimeout > .zero, "operationTimeout", operationTimeout, "more than zero")
        try Self.require(reconnectBackoff >= .zero, "reconnectBackoff", reconnectBackoff, "zero or more")
        try Self.require(retryBackoff >= .zero, "retryBackoff", retryBackoff, "zero or more")
        try Self.require(
            responseByteLimit >= 1024 && responseByteLimit <= Int(Int32.max), "responseByteLimit",
            responseByteLimit,
            "1024 to \(Int32.max)")
    }

    static func require(
        _ holds: Bool, _ key: String, _ value: some CustomStringConvertible, _ allowed: String
    ) throws(ClientError) {
        if !holds {
            throw ClientError(.invalidConfiguration, "\(key) is \(value); allowed: \(allowed)")
        }
    }
}
