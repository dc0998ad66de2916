internal import Logging
internal import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore
internal import Synchronization

/// This broker's membership of the cluster (KIP-631): registers with the active controller, is heard by heartbeats, and
/// leaves in order. On the controller's event loop.
///
/// ```
///  registering ── accepted ──► member (fenced until the controller lets it in) ── wants to stop ──► leaving ──► left
///      ▲                          │
///      └── epoch unknown there ───┘
/// ```
/// A node that stands alone is registered before it serves and says nothing: nobody listens but itself.
// SAFETY: all state is touched on `eventLoop` alone, but for the epoch, which is atomic, and what is set before the
// start.
package final class BrokerLifecycle: @unchecked Sendable {
    private enum State {
        case registering
        case member
        case leaving(EventLoopPromise<Void>, deadline: NIODeadline)
        case left
    }

    /// Between two tries to reach a controller.
    private static let retryInterval: TimeAmount = .milliseconds(100)
    /// Distance of heartbeats while the broker waits for others to take over what it leads.
    private static let leavingInterval: TimeAmount = .milliseconds(10)
    /// Longest time that leaving may take, and the part of it in which no controller answers.
    private static let leavingLimit: TimeAmount = .seconds(10)
    private static let leavingAloneLimit: TimeAmount = .seconds(2)

    private let eventLoop: any EventLoop
    private let settings: BrokerSettings
    private let controller: ControllerShell
    private let channel: ControllerChannel
    private let directoryID: UniversalID
    private let previousEpoch: Int64
    private let incarnationID: UniversalID
    private let logger: Logger
    private var state = State.registering
    private var isSending = false
    private var isHeartbeatWanted = false
    private var timer: Scheduled<Void>?
    private var lastAnswer: NIODeadline
    private var isDuplicateTold = false
    private var isServing = false
    private let epoch = Atomic<Int64>(-1)

    /// The controller has let this broker in, and every loop knows it.
    var served: () -> Void = {}
    /// This broker cannot be part of the cluster; why.
    var refused: (String) -> Void = { _ in }

    init(
        eventLoop: any EventLoop, settings: BrokerSettings, controller: ControllerShell, channel: ControllerChannel,
        directoryID: UniversalID, previousEpoch: Int64?, logger: Logger
    ) {
        self.eventLoop = eventLoop
        self.settings = settings
        self.controller = controller
        self.channel = channel
        self.directoryID = directoryID
        self.previousEpoch = previousEpoch ?? -1
        self.logger = logger
        var generator = controller.random
        incarnationID = .random(using: &generator)
        lastAnswer = eventLoop.now
    }

    /// Epoch of the present registration; -1 before there is one. Thread-safe.
    package var brokerEpoch: Int64 { epoch.load(ordering: .acquiring) }

    // MARK: Alone

    /// Each start is a new incarnation with a new broker epoch (KIP-631), unfenced at once: alone there is no
    /// older state to catch up with. Blocks; before serving.
    func registerBlocking() throws {
        var registered: Int64 = -1
        try controller.registerBlocking { core, end in
            // Alone no session counts, so neither does the time.
            let decision = core.decide(registration, nextOffset: end, now: Instant(nanoseconds: 0))
            guard decision.response.errorCode == 0 else {
                throw BrokerStartError(
                    "registration was refused: \(ErrorCode(rawValue: decision.response.errorCode).name)")
            }
            registered = decision.response.brokerEpoch
            return decision.records
        }
        var heartbeat = BrokerHeartbeatRequest()
        heartbeat.brokerID = settings.nodeID.rawValue
        heartbeat.brokerEpoch = registered
        heartbeat.currentMetadataOffset = .max
        try controller.registerBlocking { core, _ in core.decide(heartbeat).records }
        accept(registered)
        isServing = true
    }

    private func accept(_ registered: Int64) {
        epoch.store(registered, ordering: .releasing)
        controller.hasRegistered = true
        state = .member
    }

    private var registration: BrokerRegistrationRequest {
        var request = BrokerRegistrationRequest()
        request.brokerID = settings.nodeID.rawValue
        request.clusterID = controller.clusterID.description
        request.incarnationID = incarnationID
        request.previousBrokerEpoch = previousEpoch
        let address = settings.advertised ?? settings.listen
        var listener = BrokerRegistrationRequest.Listener()
        listener.name = "PLAINTEXT"
        listener.host = address.host
        listener.port = UInt16(clamping: address.port)
        request.listeners = [listener]
        request.features = Features.supported.map {
            var feature = BrokerRegistrationRequest.Feature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minimum
            feature.maxSupportedVersion = $0.maximum
            return feature
        }
        request.rack = settings.values[BrokerConfigName.rack]
        request.logDirs = [directoryID]
        return request
    }

    // MARK: In a cluster

    /// On the loop, when other nodes can reach this one.
    func start() {
        switch state {
        case .registering: register()
        case .member, .leaving, .left: imageApplied(controller.image)
        }
    }

    /// Every loop has the image.
    func imageApplied(_ image: MetadataImage) {
        guard case .member = state else { return }
        let own = image.broker(settings.nodeID).flatMap { $0.epoch == brokerEpoch ? $0 : nil }
        // Knows its own registration now, or hears that it is shut out: it may be let in.
        if let own, own.isFenced { return beat() }
        guard isServing else {
            guard let own else { return }
            isServing = true
            logger.info("the broker is let into the cluster", metadata: ["epoch": "\(own.epoch)"])
            served()
            return
        }
        // A node that stood alone is no longer.
        if timer == nil, !isSending, image.brokers.count > 1 { beat() }
    }

    private func after(_ wait: TimeAmount, _ body: @escaping @Sendable () -> Void) {
        timer?.cancel()
        timer = eventLoop.scheduleTask(in: wait) {
            self.timer = nil
            body()
        }
    }

    private var heartbeatInterval: TimeAmount {
        .milliseconds(max(10, controller.image.brokerConfiguration.brokerHeartbeatIntervalMilliseconds))
    }

    /// A silent controller is asked again while the session still lasts.
    private var answerLimit: TimeAmount {
        .milliseconds(max(500, controller.image.brokerConfiguration.brokerSessionTimeoutMilliseconds / 3))
    }

    private func register() {
        guard case .registering = state, !isSending else { return }
        isSending = true
        channel.send(registration, timeout: .seconds(5), on: eventLoop).whenComplete { result in
            self.isSending = false
            guard case .registering = self.state else { return self.goOn() }
            switch result {
            case .failure: self.after(Self.retryInterval) { self.register() }
            case .success(let response): self.registered(response)
            }
        }
    }

    private func registered(_ response: BrokerRegistrationResponse) {
        let id = settings.nodeID
        switch ErrorCode(rawValue: response.errorCode) {
        case .none:
            accept(response.brokerEpoch)
            logger.info("the broker is registered", metadata: ["epoch": "\(response.brokerEpoch)"])
            beat()
        case .notController:
            after(Self.retryInterval) { self.register() }
        case .duplicateBrokerRegistration:
            if !isDuplicateTold {
                isDuplicateTold = true
                logger.warning(
                    "registration waits",
                    metadata: [
                        "cause": """
                            a broker with node id \(id) is alive, or was a moment ago; if it is another one, stop it or \
                            give one of them another --node-id
                            """
                    ])
            }
            after(heartbeatInterval) { self.register() }
        case .inconsistentClusterID:
            refuse(
                "node \(id) belongs to cluster \(controller.clusterID), the controller to another; "
                    + "check --cluster-id, --voters and --data-dir")
        case .invalidRegistration:
            refuse(
                "the registration of node \(id) is not sound: its data directory is another broker's, a copy of one, "
                    + "or the cluster is full; check --data-dir")
        case .unsupportedVersion:
            refuse("the cluster uses a feature at a level that this release does not know; upgrade this node")
        case let code:
            refuse("the registration of node \(id) was refused with error \(code.name)")
        }
    }

    private func refuse(_ cause: String) {
        state = .left
        logger.critical("the broker cannot join the cluster", metadata: ["cause": "\(cause)"])
        refused(cause)
    }

    /// Sends a heartbeat now, or when the one under way is answered.
    private func beat() {
        guard !isSending else {
            isHeartbeatWanted = true
            return
        }
        timer?.cancel()
        timer = nil
        isHeartbeatWanted = false
        isSending = true
        var request = BrokerHeartbeatRequest()
        request.brokerID = settings.nodeID.rawValue
        request.brokerEpoch = brokerEpoch
        request.currentMetadataOffset = controller.appliedEnd.rawValue - 1
        if case .leaving = state { request.wantShutDown = true }
        channel.send(request, timeout: answerLimit, on: eventLoop).whenComplete { result in
            self.isSending = false
            switch result {
            case .failure: self.unanswered()
            case .success(let response): self.answered(response)
            }
        }
    }

    private func unanswered() {
        switch state {
        case .registering: register()
        case .member: after(Self.retryInterval) { self.goOn() }
        case .leaving(_, let deadline):
            let now = eventLoop.now
            if now >= deadline || now - lastAnswer >= Self.leavingAloneLimit { return finish() }
            after(Self.leavingInterval) { self.goOn() }
        case .left: break
        }
    }

    private func answered(_ response: BrokerHeartbeatResponse) {
        let code = ErrorCode(rawValue: response.errorCode)
        if code == .none { lastAnswer = eventLoop.now }
        switch (state, code) {
        case (.member, .none):
            if isHeartbeatWanted { beat() } else if isMember { after(heartbeatInterval) { self.goOn() } }
        case (.member, .staleBrokerEpoch), (.member, .brokerIDNotRegistered):
            logger.warning("the controller does not know this broker's registration", metadata: ["code": "\(code.name)"])
            state = .registering
            register()
        case (.leaving(_, let deadline), .none):
            if response.shouldShutDown || eventLoop.now >= deadline { return finish() }
            after(Self.leavingInterval) { self.goOn() }
        case (.leaving, .staleBrokerEpoch), (.leaving, .brokerIDNotRegistered): finish()
        case _: unanswered()
        }
    }

    /// Whether anybody listens.
    private var isMember: Bool { !controller.quorum.isAlone || controller.image.brokers.count > 1 }

    private func goOn() {
        switch state {
        case .registering: register()
        case .member, .leaving: beat()
        case .left: break
        }
    }

    // MARK: Leaving

    /// Lets others take over what this broker leads; completes when they have, or when it takes too long.
    func leave() -> EventLoopFuture<Void> {
        let promise = eventLoop.makePromise(of: Void.self)
        eventLoop.execute {
            guard case .member = self.state, self.isMember, self.channel.leaderID != nil else {
                self.state = .left
                self.timer?.cancel()
                return promise.succeed()
            }
            self.lastAnswer = self.eventLoop.now
            self.state = .leaving(promise, deadline: self.eventLoop.now + Self.leavingLimit)
            self.watchLeaving()
            self.beat()
        }
        return promise.futureResult
    }

    /// Also while an answer is waited for that may never come: of a controller here that has no majority any more.
    private func watchLeaving() {
        guard case .leaving(_, let deadline) = state else { return }
        let limit = min(deadline, lastAnswer + Self.leavingAloneLimit)
        if eventLoop.now >= limit { return finish() }
        eventLoop.scheduleTask(deadline: limit) { self.watchLeaving() }
    }

    private func finish() {
        guard case .leaving(let promise, _) = state else { return }
        state = .left
        timer?.cancel()
        timer = nil
        promise.succeed()
    }
}
