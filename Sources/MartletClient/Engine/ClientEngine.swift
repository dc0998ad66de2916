import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletTransport
import NIOCore
import NIOPosix

/// Who is to answer a request.
enum RequestTarget: Hashable, Sendable {
    /// Any broker that can be reached.
    case any
    case broker(BrokerID)
}

/// Which of the connections to a broker carries a request. Answers come in the order of requests, so a request
/// that waits at the broker (a fetch, a join) must not stand before one that is urgent (a commit, a heartbeat).
enum ConnectionPurpose: Hashable, Sendable {
    case general
    case data
    case group
}

/// What a coordinator is responsible for.
enum CoordinatorKey: Hashable, Sendable, CustomStringConvertible {
    case group(String)
    /// A transactional id (KIP-98).
    case transactionalID(String)

    var name: String {
        switch self {
        case .group(let name), .transactionalID(let name): name
        }
    }

    /// Key type of FindCoordinator.
    var wireType: Int8 {
        switch self {
        case .group: 0
        case .transactionalID: 1
        }
    }

    var description: String {
        switch self {
        case .group(let name): "group '\(name)'"
        case .transactionalID(let name): "transactional id '\(name)'"
        }
    }
}

/// An answer with the version it came in and who gave it.
struct Answer<Response: Sendable>: Sendable {
    var response: Response
    var version: Int16
    /// `nil`: a bootstrap broker whose id is not known.
    var broker: BrokerID?
    var address: BrokerAddress
}

/// Connections and metadata of one producer, consumer or admin client: finds brokers, keeps one connection per
/// broker and purpose, waits with growing pauses before it connects again, asks for metadata.
///
/// Everything happens on one event loop; the only entry from elsewhere is `loop.execute`.
// SAFETY: confined to `loop`; `loop` itself and the immutable settings are the only members read elsewhere.
final class ClientEngine: @unchecked Sendable {
    /// A connection or the attempt to have one.
    private final class Slot {
        enum State {
            /// No connection; the next attempt may start at `notBefore`.
            case idle(notBefore: NIODeadline)
            case connecting
            case ready(ClientConnection)
        }
        var state = State.idle(notBefore: .uptimeNanoseconds(0))
        var waiters: [(Result<ClientConnection, ClientError>) -> Void] = []
        var failureCount = 0
        var address: BrokerAddress

        init(address: BrokerAddress) { self.address = address }
    }

    private enum SlotKey: Hashable {
        case bootstrap(BrokerAddress)
        case broker(BrokerID, ConnectionPurpose)
    }

    /// Requests that wait for one connection to come about; more are a sign of a caller without back pressure.
    private static let waiterLimit = 4096

    let loop: any EventLoop
    let configuration: ClientConfiguration
    /// Name of the product in messages: producer, consumer or admin client.
    let role: String
    private(set) var metadata = ClusterMetadata()
    /// Why topics are missing from the metadata, from the latest answer about them.
    private(set) var topicErrors: [String: ErrorCode] = [:]
    /// Topics kept fresh.
    private var wantedTopics: Set<String> = []
    /// Whether asking for a topic may create it on brokers that do so.
    var mayCreateTopics = false
    /// Called after each metadata answer that was taken over.
    var onMetadata: (() -> Void)?

    private var slots: [SlotKey: Slot] = [:]
    /// At most one entry per group or transactional id used through this client: one for a consumer, few for a
    /// producer.
    private var coordinators: [CoordinatorKey: BrokerID] = [:]
    private(set) var isClosed = false
    private var metadataInFlight = false
    private var metadataWanted = false
    private var metadataWaiters: [(ClientError?) -> Void] = []
    private var metadataFailureCount = 0
    private var lastMetadataAsked: NIODeadline?
    private var metadataTimer: Scheduled<Void>?

    init(configuration: ClientConfiguration, role: String) {
        self.loop = NIOSingletons.posixEventLoopGroup.next()
        self.configuration = configuration
        self.role = role
    }

    var logger: Logger { configuration.logger }

    var retryBackoff: Backoff {
        Backoff(first: configuration.retryBackoff, limit: configuration.retryBackoffLimit)
    }

    /// The brokers a message can name: those known, else the bootstrap list.
    var brokerNames: String {
        let known = metadata.brokers.values.map(\.address.description).sorted()
        return (known.isEmpty ? configuration.bootstrap.map(\.description) : known).joined(separator: ", ")
    }

    // MARK: Closing

    /// Closes all connections and fails whatever waits. Idempotent.
    func close() {
        guard !isClosed else { return }
        isClosed = true
        metadataTimer?.cancel()
        metadataTimer = nil
        onMetadata = nil
        for slot in slots.values {
            if case .ready(let connection) = slot.state { connection.close() }
            let waiters = slot.waiters
            slot.waiters = []
            for waiter in waiters { waiter(.failure(.closed(role))) }
        }
        slots.removeAll()
        finishMetadata(.closed(role))
    }

    // MARK: Requests

    /// Sends one request, once, in the newest version both sides speak (at most `limit`).
    ///
    /// - Parameter make: builds the request for the version chosen.
    func request<Request: KafkaRequest>(
        _ type: Request.Type, to target: RequestTarget, purpose: ConnectionPurpose = .general,
        limit: Int16 = .max, timeout: Duration? = nil, make: @escaping (Int16) -> Request,
        completion: @escaping (Result<Answer<Request.Response>, ClientError>) -> Void
    ) {
        let timeout = TimeAmount(timeout ?? configuration.requestTimeout)
        connection(to: target, purpose: purpose) { result in
            switch result {
            case .failure(let error):
                completion(.failure(error))
            case .success(let (connection, broker, address)):
                connection.send(type, limit: limit, timeout: timeout, make: make) { result in
                    completion(
                        result.map {
                            Answer(
                                response: $0.response, version: $0.version, broker: broker, address: address)
                        }.mapError { .connection($0, peer: address) })
                }
            }
        }
    }

    /// The form of `request` for tasks.
    func send<Request: KafkaRequest>(
        _ type: Request.Type, to target: RequestTarget, purpose: ConnectionPurpose = .general,
        limit: Int16 = .max, timeout: Duration? = nil, make: @escaping @Sendable (Int16) -> Request
    ) async throws -> Answer<Request.Response> {
        try await loop.reply { reply in
            self.request(
                type, to: target, purpose: purpose, limit: limit, timeout: timeout, make: make
            ) { reply.resolve(with: $0) }
        }
    }

    /// Repeats `body` while it fails with a retriable error, with growing pauses, until `limit` has passed.
    func retrying<Value: Sendable>(
        _ what: String, limit: Duration? = nil, _ body: () async throws -> Value
    ) async throws -> Value {
        let limit = limit ?? configuration.operationTimeout
        let deadline = NIODeadline.now() + TimeAmount(limit)
        var failureCount = 0
        while true {
            do {
                return try await body()
            } catch let error as ClientError where error.isRetriable {
                failureCount += 1
                let pause = retryBackoff.pause(after: failureCount)
                if NIODeadline.now() + TimeAmount(pause) >= deadline {
                    throw ClientError.timedOut(what, after: limit, last: error)
                }
                try await loop.pause(pause)
            }
        }
    }

    // MARK: Connections

    typealias Connected = (connection: ClientConnection, broker: BrokerID?, address: BrokerAddress)

    /// A ready connection, or why there is none.
    func connection(
        to target: RequestTarget, purpose: ConnectionPurpose,
        completion: @escaping (Result<Connected, ClientError>) -> Void
    ) {
        loop.preconditionInEventLoop()
        guard !isClosed else {
            completion(.failure(.closed(role)))
            return
        }
        switch target {
        case .any:
            anyConnection(completion)
        case .broker(let id):
            guard let broker = metadata.brokers[id] else {
                refreshMetadata()
                completion(
                    .failure(
                        ClientError(
                            .brokersUnreachable, "broker \(id) is not in the cluster's metadata at present",
                            isRetriable: true)))
                return
            }
            connect(.broker(id, purpose), broker.address) { result in
                completion(result.map { ($0, id, broker.address) })
            }
        }
    }

    /// The connection to a broker if it is ready now.
    func readyConnection(to broker: BrokerID, purpose: ConnectionPurpose) -> ClientConnection? {
        guard let slot = slots[.broker(broker, purpose)], case .ready(let connection) = slot.state,
            connection.isOpen
        else { return nil }
        return connection
    }

    private func anyConnection(_ completion: @escaping (Result<Connected, ClientError>) -> Void) {
        for (key, slot) in slots {
            if case .ready(let connection) = slot.state, connection.isOpen {
                switch key {
                case .broker(let id, .general):
                    completion(.success((connection, id, slot.address)))
                    return
                case .bootstrap where metadata.brokers.isEmpty:
                    completion(.success((connection, nil, slot.address)))
                    return
                case _:
                    continue
                }
            }
        }
        var candidates: [(SlotKey, BrokerID?, BrokerAddress)] = metadata.brokers.values.shuffled().map {
            (.broker($0.id, .general), $0.id, $0.address)
        }
        for address in configuration.bootstrap.shuffled()
        where !candidates.contains(where: { $0.2 == address }) {
            candidates.append((.bootstrap(address), nil, address))
        }
        tryCandidates(candidates[...], failures: [], completion)
    }

    private func tryCandidates(
        _ candidates: ArraySlice<(SlotKey, BrokerID?, BrokerAddress)>, failures: [ClientError],
        _ completion: @escaping (Result<Connected, ClientError>) -> Void
    ) {
        guard let (key, id, address) = candidates.first else {
            let causes = failures.map(\.message).joined(separator: "; ")
            completion(
                .failure(
                    ClientError(
                        .brokersUnreachable,
                        "no broker could be reached (\(causes)); check that brokers run and that the addresses, "
                            + "and the advertised listeners behind them, can be reached from here",
                        isRetriable: true, cause: failures.last?.cause)))
            return
        }
        connect(key, address) { result in
            switch result {
            case .success(let connection):
                completion(.success((connection, id, address)))
            case .failure(let error):
                self.tryCandidates(candidates.dropFirst(), failures: failures + [error], completion)
            }
        }
    }

    private func connect(
        _ key: SlotKey, _ address: BrokerAddress,
        _ completion: @escaping (Result<ClientConnection, ClientError>) -> Void
    ) {
        guard !isClosed else {
            completion(.failure(.closed(role)))
            return
        }
        let slot: Slot
        if let known = slots[key] {
            slot = known
        } else {
            slot = Slot(address: address)
            slots[key] = slot
        }
        if slot.address != address, case .ready(let connection) = slot.state {
            // The broker moved; what is on its way over the old connection is tried again elsewhere.
            slot.state = .idle(notBefore: .now())
            connection.close()
        }
        slot.address = address
        switch slot.state {
        case .ready(let connection) where connection.isOpen:
            completion(.success(connection))
            return
        case .ready:
            slot.state = .idle(notBefore: .now())
            enqueue(completion, slot)
            attempt(slot, key)
        case .connecting:
            enqueue(completion, slot)
        case .idle(let notBefore):
            enqueue(completion, slot)
            slot.state = .connecting
            if notBefore <= .now() {
                attempt(slot, key)
            } else {
                loop.assumeIsolated().scheduleTask(deadline: notBefore) { self.attempt(slot, key) }
            }
        }
    }

    private func enqueue(_ waiter: @escaping (Result<ClientConnection, ClientError>) -> Void, _ slot: Slot) {
        guard slot.waiters.count < Self.waiterLimit else {
            waiter(
                .failure(
                    ClientError(
                        .brokersUnreachable,
                        "more than \(Self.waiterLimit) calls wait for the connection to \(slot.address)",
                        isRetriable: true)))
            return
        }
        slot.waiters.append(waiter)
    }

    private func attempt(_ slot: Slot, _ key: SlotKey) {
        guard !isClosed else { return }
        slot.state = .connecting
        var settings = ClientConnection.Settings(clientID: configuration.clientID)
        settings.connectTimeout = TimeAmount(configuration.connectTimeout)
        settings.responseByteLimit = configuration.responseByteLimit
        let address = slot.address
        ClientConnection.connect(host: address.host, port: address.port, loop: loop, settings: settings) {
            result in
            self.attemptFinished(slot, key, address, result)
        }
    }

    private func attemptFinished(
        _ slot: Slot, _ key: SlotKey, _ address: BrokerAddress,
        _ result: Result<ClientConnection, ClientConnectionError>
    ) {
        let waiters = slot.waiters
        slot.waiters = []
        guard !isClosed else {
            if case .success(let connection) = result { connection.close() }
            for waiter in waiters { waiter(.failure(.closed(role))) }
            return
        }
        switch result {
        case .success(let connection):
            slot.failureCount = 0
            slot.state = .ready(connection)
            connection.onClose = { error in
                if case .ready(let current) = slot.state, current === connection {
                    slot.state = .idle(notBefore: .now())
                }
                self.connectionClosed(address, error)
            }
            for waiter in waiters { waiter(.success(connection)) }
        case .failure(let error):
            slot.failureCount += 1
            let backoff = Backoff(
                first: configuration.reconnectBackoff, limit: configuration.reconnectBackoffLimit)
            slot.state = .idle(notBefore: .now() + TimeAmount(backoff.pause(after: slot.failureCount)))
            logger.debug(
                "cannot connect to broker", metadata: ["broker": "\(address)", "error": "\(error)"])
            for waiter in waiters { waiter(.failure(.connection(error, peer: address))) }
        }
    }

    private func connectionClosed(_ address: BrokerAddress, _ error: ClientConnectionError) {
        guard !isClosed else { return }
        logger.debug("connection ended", metadata: ["broker": "\(address)", "error": "\(error)"])
        // Leaders may be elsewhere now; asking costs one small request.
        if !wantedTopics.isEmpty { refreshMetadata() }
    }

    // MARK: Metadata

    /// Keeps a topic in the metadata from now on.
    func want(_ topics: some Sequence<String>) {
        for topic in topics { wantedTopics.insert(topic) }
    }

    func isWanted(_ topic: String) -> Bool { wantedTopics.contains(topic) }

    /// Stops keeping a topic fresh.
    func unwant(_ topic: String) { wantedTopics.remove(topic) }

    /// Asks for the metadata of all wanted topics. Calls while one is asked for share the following one; the
    /// pause between two grows only while they fail.
    func refreshMetadata(_ completion: ((ClientError?) -> Void)? = nil) {
        guard !isClosed else {
            completion?(.closed(role))
            return
        }
        if let completion { metadataWaiters.append(completion) }
        metadataWanted = true
        startMetadata()
    }

    private func startMetadata() {
        guard metadataWanted, !metadataInFlight, !isClosed else { return }
        let pause = TimeAmount(
            metadataFailureCount > 0 ? retryBackoff.pause(after: metadataFailureCount) : .milliseconds(20))
        if let last = lastMetadataAsked, NIODeadline.now() < last + pause {
            metadataTimer?.cancel()
            metadataTimer = loop.assumeIsolated().scheduleTask(deadline: last + pause) {
                self.lastMetadataAsked = nil
                self.startMetadata()
            }
            return
        }
        metadataTimer?.cancel()
        metadataWanted = false
        metadataInFlight = true
        let waiters = metadataWaiters
        metadataWaiters = []
        let names = wantedTopics.sorted()
        let mayCreate = mayCreateTopics
        request(MetadataRequest.self, to: .any) { version in
            var request = MetadataRequest()
            request.allowAutoTopicCreation = version < 4 || mayCreate
            request.topics = names.map {
                var topic = MetadataRequest.MetadataRequestTopic()
                topic.name = $0
                return topic
            }
            return request
        } completion: { result in
            self.metadataInFlight = false
            self.lastMetadataAsked = .now()
            var failure: ClientError?
            switch result {
            case .success(let answer):
                self.metadataFailureCount = 0
                self.take(answer.response, asked: names)
            case .failure(let error):
                self.metadataFailureCount += 1
                failure = error
                self.logger.debug("cannot get metadata", metadata: ["error": "\(error)"])
            }
            for waiter in waiters { waiter(failure) }
            self.scheduleRefresh()
            self.startMetadata()
        }
    }

    private func take(_ response: MetadataResponse, asked: [String]) {
        let errors = metadata.update(response)
        for name in asked { topicErrors[name] = errors[name] }
        onMetadata?()
    }

    /// Takes over a full metadata answer that another part asked for.
    func adopt(_ response: MetadataResponse) { _ = metadata.update(response) }

    private func scheduleRefresh() {
        guard !isClosed, !metadataWanted, !metadataInFlight, !wantedTopics.isEmpty else { return }
        metadataTimer?.cancel()
        let pause: Duration
        if metadataFailureCount > 0 {
            pause = retryBackoff.pause(after: metadataFailureCount)
        } else {
            pause = configuration.metadataMaximumAge
        }
        metadataTimer = loop.assumeIsolated().scheduleTask(in: TimeAmount(pause)) { self.refreshMetadata() }
    }

    private func finishMetadata(_ error: ClientError) {
        let waiters = metadataWaiters
        metadataWaiters = []
        for waiter in waiters { waiter(error) }
    }

    /// Leader hints beside a produce or fetch answer (KIP-951).
    func add(nodeID: Int32, host: String, port: Int32, rack: String?) {
        metadata.add(nodeID: nodeID, host: host, port: port, rack: rack)
    }

    func hint(leader: Int32, epoch: Int32, of partition: TopicPartition) -> Bool {
        metadata.hint(leader: leader, epoch: epoch, of: partition)
    }

    // MARK: Coordinators

    /// The coordinator of a group as far as known, else a look-up.
    func coordinator(of group: String, completion: @escaping (Result<BrokerID, ClientError>) -> Void) {
        coordinator(of: .group(group), completion: completion)
    }

    func coordinator(of key: CoordinatorKey, completion: @escaping (Result<BrokerID, ClientError>) -> Void) {
        if let known = coordinators[key], metadata.brokers[known] != nil {
            completion(.success(known))
            return
        }
        findCoordinator(key) { result in
            if case .success(let id) = result { self.coordinators[key] = id }
            completion(result)
        }
    }

    /// The coordinator as far as known, without a look-up.
    func knownCoordinator(of key: CoordinatorKey) -> BrokerID? { coordinators[key] }

    /// The coordinator known did not answer or said that it is none.
    func forgetCoordinator(of group: String) { forgetCoordinator(of: .group(group)) }

    func forgetCoordinator(of key: CoordinatorKey) { coordinators[key] = nil }

    /// Finds a coordinator. One attempt; retriable failures are the caller's to repeat.
    func findCoordinator(
        _ key: CoordinatorKey, completion: @escaping (Result<BrokerID, ClientError>) -> Void
    ) {
        request(FindCoordinatorRequest.self, to: .any) { version in
            var request = FindCoordinatorRequest()
            if version >= 4 { request.coordinatorKeys = [key.name] } else { request.key = key.name }
            request.keyType = key.wireType
            return request
        } completion: { result in
            completion(result.flatMap { self.coordinator(of: key, $0) })
        }
    }

    private func coordinator(
        of key: CoordinatorKey, _ answer: Answer<FindCoordinatorResponse>
    ) -> Result<BrokerID, ClientError> {
        let response = answer.response
        var found = (
            code: response.errorCode, message: response.errorMessage, id: response.nodeID,
            host: response.host,
            port: response.port
        )
        if answer.version >= 4 {
            guard let entry = response.coordinators.first(where: { $0.key == key.name }) else {
                return .failure(
                    ClientError(
                        .protocolViolation, "broker \(answer.address) named no coordinator of \(key)"))
            }
            found = (entry.errorCode, entry.errorMessage, entry.nodeID, entry.host, entry.port)
        }
        guard found.code == 0 else {
            return .failure(
                .broker(ErrorCode(rawValue: found.code), "coordinator of \(key)", detail: found.message))
        }
        metadata.add(nodeID: found.id, host: found.host, port: found.port, rack: nil)
        let id = BrokerID(found.id)
        guard metadata.brokers[id] != nil else {
            return .failure(
                ClientError(
                    .protocolViolation, "broker \(answer.address) named an impossible coordinator of \(key)"
                ))
        }
        return .success(id)
    }
}
