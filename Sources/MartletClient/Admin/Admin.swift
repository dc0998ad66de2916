import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// Administers topics, settings, groups and records of a cluster.
///
/// Batch calls report per item in a dictionary of results and throw only if the call as a whole failed; the
/// single form beside each throws the item's error. Call ``close()`` at the end.
public final class Admin: Sendable {
    let engine: ClientEngine

    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ClientConfiguration) throws(ClientError) {
        try configuration.validate()
        engine = ClientEngine(configuration: configuration, role: "admin client")
    }

    deinit {
        let engine = engine
        engine.loop.execute { engine.close() }
    }

    /// Closes all connections. Further calls throw `closed`.
    public func close() async {
        let engine = engine
        await withCheckedContinuation { continuation in
            engine.loop.execute {
                engine.close()
                continuation.resume()
            }
        }
    }

    /// Time limit sent along with requests that the broker carries out before it answers.
    var timeoutMilliseconds: Int32 { engine.configuration.requestTimeout.wireMilliseconds }

    /// Sends to the controller as far as one is known; brokers pass such requests on themselves, older ones do not.
    func sendToController<Request: KafkaRequest>(
        _ type: Request.Type, make: @escaping @Sendable (Int16) -> Request
    ) async throws -> Answer<Request.Response> {
        var metadata = try await engine.currentMetadata()
        if metadata.controller == nil {
            _ = try await engine.fetchMetadata(topics: [])
            metadata = try await engine.currentMetadata()
        }
        let target = metadata.controller.map { RequestTarget.broker($0) } ?? .any
        return try await engine.send(type, to: target, make: make)
    }

    /// Runs a call on the coordinator of a group, finding it anew after each retriable failure.
    func onCoordinator<Value: Sendable>(
        of group: String, _ what: String, _ body: (BrokerID) async throws -> Value
    ) async throws -> Value {
        try await onCoordinator(of: .group(group), what, body)
    }

    func onCoordinator<Value: Sendable>(
        of key: CoordinatorKey, _ what: String, _ body: (BrokerID) async throws -> Value
    ) async throws -> Value {
        try await engine.retrying("\(what) of \(key)") {
            let engine = engine
            let coordinator: BrokerID = try await engine.loop.reply { reply in
                engine.findCoordinator(key) { reply.resolve(with: $0) }
            }
            return try await body(coordinator)
        }
    }

    /// Result of one item: `nil` for success.
    func problem(_ code: Int16, _ subject: String, _ detail: String? = nil) -> ClientError? {
        code == 0 ? nil : .broker(ErrorCode(rawValue: code), subject, detail: detail)
    }
}

extension Dictionary {
    /// The entry of the only item asked for; a broker that leaves it out breaks the protocol.
    func single<Success>(_ key: Key) throws(ClientError) -> Result<Success, ClientError>
    where Value == Result<Success, ClientError> {
        guard let result = self[key] else {
            throw ClientError(.protocolViolation, "the broker's answer says nothing about \(key)")
        }
        return result
    }
}
