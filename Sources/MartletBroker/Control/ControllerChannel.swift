internal import Logging
package import MartletController
package import MartletKafkaProtocol
package import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletTransport
package import NIOCore

/// A request that the active controller decides.
package protocol ControllerRequest: KafkaRequest {
    /// What the controller of this process makes of it; fails with ``ControllerUnavailable`` where it is not the active
    /// one.
    func decided(by controller: ControllerShell, origin: RequestOrigin) -> EventLoopFuture<Response>
    /// The answer that carries this code and nothing else.
    func refused(_ code: ErrorCode) -> Response
    /// Whether asking twice leads to the same state as asking once.
    static var isRepeatable: Bool { get }
    /// Whether the answer speaks of what this broker's image must have when the client gets it.
    static var changesMetadata: Bool { get }
    /// Milliseconds that the client waits.
    var timeoutMilliseconds: Int64 { get }
}

extension ControllerRequest {
    package static var isRepeatable: Bool { true }
    package static var changesMetadata: Bool { true }
    package var timeoutMilliseconds: Int64 { ControllerChannel.standardTimeoutMilliseconds }
}

/// Sends requests of this broker and of its clients to the active controller, wherever it is.
///
/// Two connections to the controller's node: what the broker itself says, such as heartbeats, does not queue behind what
/// clients want.
// SAFETY: links and counters are touched on `eventLoop` alone; who leads is behind a lock.
package final class ControllerChannel: @unchecked Sendable {
    static let standardTimeoutMilliseconds: Int64 = 15_000
    /// Bounds of what a client may make us wait.
    private static let timeoutRange: ClosedRange<Int64> = 100...60_000
    /// Requests of clients that wait for the controller; the rest is refused.
    private static let relayLimit = 10_000
    /// Pause before asking again for a controller.
    private static let retryInterval: TimeAmount = .milliseconds(25)
    /// Longest wait for this broker's image to have what an answer speaks of.
    private static let visibilityLimit: TimeAmount = .seconds(5)

    private enum Target {
        case nowhere
        case here
        case there(BrokerSettings.Address)
    }

    private let eventLoop: any EventLoop
    private let controller: ControllerShell
    private let nodeID: BrokerID
    private let known: Guarded<LeaderAddress?>
    private let brokerLink: PeerLink
    private let relayLink: PeerLink
    private var relayCount = 0
    /// What is about to be asked again; each gives up when it is told to.
    private var retries: [UInt64: () -> Void] = [:]
    private var lastRetry: UInt64 = 0
    private var isClosed = false

    init(eventLoop: any EventLoop, controller: ControllerShell, network: any PeerNetwork, nodeID: BrokerID) {
        self.eventLoop = eventLoop
        self.controller = controller
        self.nodeID = nodeID
        known = Guarded(controller.quorum.leader)
        func link(_ clientID: String) -> PeerLink {
            var settings = ClientConnection.Settings(clientID: clientID)
            settings.connectTimeout = .seconds(2)
            return PeerLink(network: network, loop: eventLoop, settings: settings)
        }
        brokerLink = link(PeerClientID.broker("\(nodeID)"))
        relayLink = link(PeerClientID.relay("\(nodeID)"))
    }

    /// The node of the active controller, if it is known. Thread-safe.
    package var leaderID: BrokerID? { known.withLock { $0?.id } }

    /// On the controller's loop.
    func leaderChanged(_ leader: LeaderAddress?) { known.withLock { $0 = leader } }

    private var target: Target {
        known.withLock { leader in
            guard let leader else { return .nowhere }
            if leader.id == nodeID { return .here }
            guard let endpoint = leader.endpoints.first else { return .nowhere }
            return .there(BrokerSettings.Address(host: endpoint.host, port: Int(endpoint.port)))
        }
    }

    // MARK: Requests of the broker

    /// Never repeats by itself. Completes on `loop`; fails when there is no controller, on a lost connection, on
    /// time-out.
    package func send<Request: ControllerRequest>(
        _ request: Request, timeout: TimeAmount, on loop: any EventLoop
    ) -> EventLoopFuture<Request.Response> {
        exchange(request, brokerLink, timeout, origin: .broker).hop(to: loop)
    }

    private func exchange<Request: ControllerRequest>(
        _ request: Request, _ link: PeerLink, _ timeout: TimeAmount, origin: RequestOrigin
    ) -> EventLoopFuture<Request.Response> {
        let target = target
        if case .here = target { return request.decided(by: controller, origin: origin) }
        guard case .there(let address) = target else {
            return eventLoop.makeFailedFuture(ControllerUnavailable.notController)
        }
        let promise = eventLoop.makePromise(of: Request.Response.self)
        // SAFETY: used on `eventLoop` alone, where it was made.
        nonisolated(unsafe) let link = link
        eventLoop.execute {
            link.withConnection(to: address) { result in
                switch result {
                case .failure(let error): promise.fail(error)
                case .success(let connection):
                    connection.send(Request.self, timeout: timeout, make: { _ in request }) { result in
                        promise.completeWith(result.map(\.response).mapError { $0 as any Error })
                    }
                }
            }
        }
        return promise.futureResult
    }

    // MARK: Requests of clients

    /// Asks the active controller, again where nothing can have been done, until the request's time is over. Completes on
    /// the controller's loop, with an answer in every case but a metadata log of this node that cannot be written; then
    /// this broker's image has what the answer speaks of.
    package func relay<Request: ControllerRequest>(
        _ request: Request, origin: RequestOrigin = .client
    ) -> EventLoopFuture<Request.Response> {
        if case .here = target {
            // The way of a node that stands alone, and of clients that ask the controller's node.
            return request.decided(by: controller, origin: origin).flatMapError { error in
                guard let error = error as? ControllerUnavailable else { return self.eventLoop.makeFailedFuture(error) }
                if error == .outcomeUnknown, !Request.isRepeatable {
                    return self.eventLoop.makeSucceededFuture(request.refused(.requestTimedOut))
                }
                return self.relayInTime(request, origin)
            }
        }
        return eventLoop.flatSubmit { self.relayInTime(request, origin) }
    }

    private func relayInTime<Request: ControllerRequest>(
        _ request: Request, _ origin: RequestOrigin
    ) -> EventLoopFuture<Request.Response> {
        guard relayCount < Self.relayLimit else {
            return eventLoop.makeSucceededFuture(request.refused(.notController))
        }
        relayCount += 1
        let wait = min(max(request.timeoutMilliseconds, Self.timeoutRange.lowerBound), Self.timeoutRange.upperBound)
        let promise = eventLoop.makePromise(of: Request.Response.self)
        promise.futureResult.whenComplete { _ in self.relayCount -= 1 }
        attempt(request, origin, until: eventLoop.now + .milliseconds(wait), promise)
        return promise.futureResult
    }

    private func attempt<Request: ControllerRequest>(
        _ request: Request, _ origin: RequestOrigin, until deadline: NIODeadline, _ promise: EventLoopPromise<Request.Response>
    ) {
        let isLocal: Bool
        if case .here = target { isLocal = true } else { isLocal = false }
        let link = origin == .broker ? brokerLink : relayLink
        let rest = max(deadline - eventLoop.now, .milliseconds(1))
        exchange(request, link, rest, origin: origin).hop(to: eventLoop).assumeIsolated().whenComplete { result in
            switch result {
            case .success(let response) where response == request.refused(.notController):
                // Nothing was done there.
                self.tryAgain(request, origin, until: deadline, promise)
            case .success(let response):
                guard !isLocal, Request.changesMetadata else { return promise.succeed(response) }
                self.whenVisible(link).whenComplete { _ in promise.succeed(response) }
            case .failure(let error):
                if error is MetadataLogError { return promise.fail(error) }
                if Request.isRepeatable || Self.isCertainlyUndone(error) {
                    self.tryAgain(request, origin, until: deadline, promise)
                } else {
                    promise.succeed(request.refused(.requestTimedOut))
                }
            }
        }
    }

    private func tryAgain<Request: ControllerRequest>(
        _ request: Request, _ origin: RequestOrigin, until deadline: NIODeadline, _ promise: EventLoopPromise<Request.Response>
    ) {
        guard eventLoop.now + Self.retryInterval < deadline, controller.failure == nil, !isClosed else {
            return promise.succeed(request.refused(.notController))
        }
        lastRetry += 1
        let number = lastRetry
        retries[number] = { promise.succeed(request.refused(.notController)) }
        eventLoop.scheduleTask(in: Self.retryInterval) {
            guard self.retries.removeValue(forKey: number) != nil else { return }
            self.attempt(request, origin, until: deadline, promise)
        }
    }

    private static func isCertainlyUndone(_ error: any Error) -> Bool {
        if let error = error as? ControllerUnavailable { return error == .notController }
        return (error as? ClientConnectionError)?.isCertainlyUnsent ?? false
    }

    /// Completes when this broker knows what the controller had committed by now.
    private func whenVisible(_ link: PeerLink) -> EventLoopFuture<Void> {
        exchange(DescribeQuorumRequest.ofMetadata, link, Self.visibilityLimit, origin: .broker).hop(to: eventLoop).flatMap {
            response in
            let end = response.topics.first?.partitions.first?.highWatermark ?? 0
            return self.controller.whenApplied(Offset(max(0, end)), limit: Self.visibilityLimit)
        }
    }

    func close() {
        isClosed = true
        brokerLink.close()
        relayLink.close()
        let waiting = retries.sorted { $0.key < $1.key }
        retries = [:]
        for (_, giveUp) in waiting { giveUp() }
    }
}

extension ControllerChannel {
    /// Creates topics that a client asked for by name, with the defaults of the broker. Completes whatever the
    /// outcome per topic is.
    package func autoCreateTopics(_ names: [String]) -> EventLoopFuture<Void> {
        var request = CreateTopicsRequest()
        request.topics = names.map { name in
            var topic = CreateTopicsRequest.CreatableTopic()
            topic.name = name
            topic.numPartitions = -1
            topic.replicationFactor = -1
            return topic
        }
        request.timeoutMs = 5_000
        return relay(request, origin: .broker).map { _ in }
    }
}
