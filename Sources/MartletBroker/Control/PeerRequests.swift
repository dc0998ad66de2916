internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore

/// What the coordinators and partitions of one loop ask of those on other brokers: one connection to each broker, opened
/// when it is needed. Confined to the loop.
final class PeerRequests {
    /// Longest wait for an answer; whoever asks asks again, perhaps somebody else.
    private static let answerLimit: TimeAmount = .seconds(10)

    private let eventLoop: any EventLoop
    private let network: any PeerNetwork
    private let settings: ClientConnection.Settings
    private var links: [BrokerID: PeerLink] = [:]
    private var isClosed = false

    init(eventLoop: any EventLoop, network: any PeerNetwork, nodeID: BrokerID) {
        self.eventLoop = eventLoop
        self.network = network
        var settings = ClientConnection.Settings(clientID: PeerClientID.broker("\(nodeID)"))
        settings.connectTimeout = .seconds(2)
        self.settings = settings
    }

    /// Sends once. `completion` runs on the loop, with nothing where there is no answer.
    ///
    /// - Parameter oldest: the first version that can say it.
    func send<Request: KafkaRequest>(
        _ request: Request, to broker: BrokerID, at address: BrokerSettings.Address, from oldest: Int16,
        completion: @escaping (Request.Response?) -> Void
    ) {
        eventLoop.preconditionInEventLoop()
        guard !isClosed else { return completion(nil) }
        link(to: broker).withConnection(to: address) { result in
            guard case .success(let connection) = result, connection.version(of: Request.self) ?? -1 >= oldest else {
                return completion(nil)
            }
            connection.send(Request.self, timeout: Self.answerLimit, make: { _ in request }) { result in
                if case .success(let answer) = result { completion(answer.response) } else { completion(nil) }
            }
        }
    }

    private func link(to broker: BrokerID) -> PeerLink {
        if let link = links[broker] { return link }
        let link = PeerLink(network: network, loop: eventLoop, settings: settings)
        links[broker] = link
        return link
    }

    func close() {
        isClosed = true
        let open = links.sorted { $0.key < $1.key }
        links = [:]
        for (_, link) in open { link.close() }
    }
}
