internal import MartletTransport
internal import NIOCore

/// One connection to another broker: opened when somebody needs it, and again when it is needed after it broke.
/// Tries once per call; the pace is the caller's. Confined to its event loop.
final class PeerLink {
    /// Callers that wait for one attempt to connect.
    private static let waitingLimit = 1024

    private enum State {
        case closed
        case connecting
        case open(ClientConnection)
    }

    typealias Use = (Result<ClientConnection, ClientConnectionError>) -> Void

    private let network: any PeerNetwork
    private let loop: any EventLoop
    private let settings: ClientConnection.Settings
    private var address: BrokerSettings.Address?
    private var state = State.closed
    private var waiting: [Use] = []
    /// Tells the results of attempts that were given up.
    private var attempt = 0

    init(network: any PeerNetwork, loop: any EventLoop, settings: ClientConnection.Settings) {
        self.network = network
        self.loop = loop
        self.settings = settings
    }

    /// `use` may run before this returns. Another address than the last one closes the connection there.
    func withConnection(to address: BrokerSettings.Address, _ use: @escaping Use) {
        loop.preconditionInEventLoop()
        if address != self.address { close() }
        self.address = address
        switch state {
        case .open(let connection) where connection.isOpen:
            use(.success(connection))
        case .connecting:
            if waiting.count < Self.waitingLimit {
                waiting.append(use)
            } else {
                use(.failure(.tooManyInFlight(limit: Self.waitingLimit)))
            }
        case .closed, .open:
            waiting.append(use)
            connect(address)
        }
    }

    private func connect(_ address: BrokerSettings.Address) {
        state = .connecting
        attempt += 1
        let attempt = attempt
        network.connect(to: address, on: loop, settings: settings) { [weak self] result in
            guard let self, attempt == self.attempt, case .connecting = self.state else {
                if case .success(let connection) = result { connection.close() }
                return
            }
            switch result {
            case .success(let connection):
                self.state = .open(connection)
                connection.onClose = { [weak self, weak connection] _ in
                    guard let self, case .open(let current) = self.state, current === connection else { return }
                    self.state = .closed
                }
            case .failure:
                self.state = .closed
            }
            let served = self.waiting
            self.waiting = []
            for use in served { use(result) }
        }
    }

    /// Requests under way fail.
    func close() {
        attempt += 1
        let before = state
        state = .closed
        let unserved = waiting
        waiting = []
        if case .open(let connection) = before { connection.close() }
        for use in unserved { use(.failure(.closedLocally)) }
    }
}

/// Names under which brokers speak to each other. Whoever takes one for itself gains nothing: its requests are not
/// passed on.
enum PeerClientID {
    private static let broker = "martlet-broker-"
    private static let relay = "martlet-relay-"

    /// What the broker itself wants.
    static func broker(_ id: String) -> String { broker + id }
    /// What its clients want.
    static func relay(_ id: String) -> String { relay + id }

    static func isBroker(_ clientID: String?) -> Bool { clientID?.hasPrefix(broker) ?? false }
    /// Comes from another broker already, so that it is not passed on again.
    static func isPeer(_ clientID: String?) -> Bool { isBroker(clientID) || clientID?.hasPrefix(relay) ?? false }
}
