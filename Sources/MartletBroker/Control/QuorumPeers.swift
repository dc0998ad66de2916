internal import Logging
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletTransport
internal import NIOCore

/// The other nodes of the metadata quorum. Two connections per node, since answers of one come in order and a vote must
/// not queue behind a fetch that waits for records. Confined to the controller's event loop.
final class QuorumPeers {
    private enum Lane: Int { case fetch, control }

    private struct LinkKey: Hashable {
        var peer: BrokerID
        var lane: Lane
    }

    /// Fetches of nodes say who has which disk from this version on (KIP-853).
    private static let oldestFetchVersion: Int16 = 17
    /// Nodes that connections are kept to: far above any quorum.
    private static let linkLimit = 1024

    private let network: any PeerNetwork
    private let loop: any EventLoop
    private let clusterID: String
    private let logger: Logger
    private let settings: ClientConnection.Settings
    private var links: [LinkKey: PeerLink] = [:]
    /// Refusals are told once per node.
    private var told: Set<BrokerID> = []

    init(network: any PeerNetwork, loop: any EventLoop, nodeID: BrokerID, clusterID: String, logger: Logger) {
        self.network = network
        self.loop = loop
        self.clusterID = clusterID
        self.logger = logger
        var settings = ClientConnection.Settings(clientID: PeerClientID.broker("\(nodeID)"))
        settings.connectTimeout = .seconds(2)
        settings.inFlightLimit = 16
        self.settings = settings
    }

    /// - Parameter completion: `nil` where there is no usable answer; may run before this returns.
    func send(
        _ request: QuorumRequest, to peer: BrokerID, at endpoints: [Endpoint], timeout: TimeAmount,
        completion: @escaping (QuorumAnswer?) -> Void
    ) {
        guard let endpoint = endpoints.first else { return completion(nil) }
        let address = BrokerSettings.Address(host: endpoint.host, port: Int(endpoint.port))
        func exchange<Request: KafkaRequest>(
            _ lane: Lane, _ message: Request, oldest: Int16 = 0, read: @escaping (Request.Response) throws -> QuorumAnswer
        ) {
            link(peer, lane).withConnection(to: address) { result in
                guard case .success(let connection) = result, connection.version(of: Request.self) ?? -1 >= oldest else {
                    return completion(nil)
                }
                connection.send(Request.self, timeout: timeout, make: { _ in message }) { result in
                    completion(self.answer(result.map(\.response), peer, read))
                }
            }
        }
        switch request {
        case .vote(let call):
            exchange(.control, QuorumWire.write(call, clusterID: clusterID)) { try QuorumWire.read($0) }
        case .beginEpoch(let begin):
            exchange(.control, QuorumWire.write(begin, clusterID: clusterID)) { try QuorumWire.read($0) }
        case .endEpoch(let end):
            exchange(.control, QuorumWire.write(end, clusterID: clusterID)) { try QuorumWire.read($0) }
        case .fetch(let fetch):
            exchange(.fetch, QuorumWire.write(fetch, clusterID: clusterID), oldest: Self.oldestFetchVersion) {
                try QuorumWire.read($0)
            }
        case .fetchSnapshot(let fetch):
            exchange(.fetch, QuorumWire.write(fetch, clusterID: clusterID)) { try QuorumWire.read($0) }
        case .updateVoter(let update):
            exchange(.control, QuorumWire.write(update, clusterID: clusterID)) { QuorumWire.read($0) }
        case .addVoter, .removeVoter:
            preconditionFailure("nodes do not ask each other for \(request)")
        }
    }

    private func answer<Response>(
        _ result: Result<Response, ClientConnectionError>, _ peer: BrokerID, _ read: (Response) throws -> QuorumAnswer
    ) -> QuorumAnswer? {
        guard case .success(let response) = result else { return nil }
        do {
            return try read(response)
        } catch {
            guard told.insert(peer).inserted else { return nil }
            var cause = "\(error)"
            if let refusal = error as? QuorumWire.Refusal {
                cause = refusal.error.name
                if refusal.error == .inconsistentClusterID {
                    cause += ": it belongs to another cluster; check --cluster-id, --voters and the data directories"
                }
            }
            logger.warning("a node of the metadata quorum refuses us", metadata: ["node": "\(peer)", "cause": "\(cause)"])
            return nil
        }
    }

    private func link(_ peer: BrokerID, _ lane: Lane) -> PeerLink {
        let key = LinkKey(peer: peer, lane: lane)
        if let link = links[key] { return link }
        // The leader may name anybody: what a node gone wild names is not kept.
        if links.count >= Self.linkLimit { close() }
        let link = PeerLink(network: network, loop: loop, settings: settings)
        links[key] = link
        return link
    }

    /// The levels of `kraft.version` that a node runs; `nil` where it does not answer.
    func probe(_ endpoints: [Endpoint], completion: @escaping (KRaftVersionRange?) -> Void) {
        guard let endpoint = endpoints.first else { return completion(nil) }
        let address = BrokerSettings.Address(host: endpoint.host, port: Int(endpoint.port))
        network.connect(to: address, on: loop, settings: settings) { result in
            guard case .success(let connection) = result else { return completion(nil) }
            let feature = connection.handshake.supportedFeatures.first { $0.name == KRaftVersionRange.featureName }
            connection.close()
            completion(
                feature.map { KRaftVersionRange(minimum: $0.minVersion, maximum: $0.maxVersion) }
                    ?? KRaftVersionRange(minimum: 0, maximum: 0))
        }
    }

    func close() {
        let open = links.sorted { ($0.key.peer, $0.key.lane.rawValue) < ($1.key.peer, $1.key.lane.rawValue) }
        links = [:]
        for (_, link) in open { link.close() }
    }
}

extension KRaftVersionRange {
    static let featureName = "kraft.version"
}
