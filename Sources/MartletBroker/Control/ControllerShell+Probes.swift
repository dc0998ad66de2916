internal import Glibc
internal import Logging
internal import MartletController
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore
internal import NIOPosix

extension ControllerShell {
    /// Longest wait for a broker that may be dead: silence says nothing, its session does.
    private static let probeLimit: TimeAmount = .milliseconds(200)

    /// The connection broke over which a broker's heartbeats came: where nobody listens any more its process has ended,
    /// and others take over at once instead of after its session. From any thread.
    func heartbeatsLost(_ id: BrokerID, epoch: Int64) {
        eventLoop.execute {
            guard self.isActive, self.failure == nil, id != self.nodeID, let broker = self.image.broker(id),
                broker.epoch == epoch, !broker.isFenced, let endpoint = broker.endpoints.first
            else { return }
            let address = BrokerSettings.Address(host: endpoint.host, port: Int(endpoint.port))
            var settings = ClientConnection.Settings(clientID: PeerClientID.broker("\(self.nodeID)"))
            settings.connectTimeout = Self.probeLimit
            self.network.connect(to: address, on: self.eventLoop, settings: settings) { result in
                switch result {
                case .success(let connection): connection.close()
                case .failure(let error) where error.isRefused: self.fence(id, epoch: epoch, address)
                case .failure: break
                }
            }
        }
    }

    private func fence(_ id: BrokerID, epoch: Int64, _ address: BrokerSettings.Address) {
        let logger = self.logger
        submit { core, _, _ in
            core.decideFencing(of: id, epoch: epoch)
        } after: { core, isFenced, _ in
            guard isFenced else { return }
            core.sessionEnded(id)
            logger.notice(
                "broker fenced",
                metadata: ["broker": "\(id)", "cause": "its connection broke and nobody listens at \(address)"])
        }.whenFailure { error in
            logger.debug("broker not fenced", metadata: ["broker": "\(id)", "cause": "\(error)"])
        }
    }
}

extension ClientConnectionError {
    /// The machine is there, and nobody listens on the port.
    fileprivate var isRefused: Bool {
        guard case .connectFailed(let error) = self else { return false }
        if let error = error as? IOError { return error.errnoCode == ECONNREFUSED }
        guard let error = error as? NIOConnectionError else { return false }
        return !error.connectionErrors.isEmpty
            && error.connectionErrors.allSatisfy { ($0.error as? IOError)?.errnoCode == ECONNREFUSED }
    }
}
