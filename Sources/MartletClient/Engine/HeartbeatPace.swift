import Logging
import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// When the next heartbeat of a group's member goes out: one at a time, at the pace that the coordinator gives, at once if
/// there is something to say, and with growing pauses while they fail. For groups whose only request is the heartbeat
/// (KIP-848, KIP-932).
// SAFETY: confined to `engine.loop`, as are the memberships that own it.
final class HeartbeatPace: @unchecked Sendable {
    /// Longest wait for the coordinator's answer when leaving; it will find out by itself otherwise.
    private static let leaveLimit = Duration.seconds(5)

    private let engine: ClientEngine
    private let group: String
    /// As the coordinator says.
    var interval: Duration
    /// Sends the next heartbeat, see `begin`.
    var onBeat: (() -> Void)?
    /// Makes answers to requests of a former membership void.
    private(set) var era = 0
    private(set) var isBeating = false
    /// Something new to say came up while a heartbeat was on its way.
    private var beatsAgain = false
    private var timer: Scheduled<Void>?
    private var failureCount = 0
    /// When joining began to fail without a break.
    private var failingSince: NIODeadline?

    init(engine: ClientEngine, group: String, interval: Duration) {
        self.engine = engine
        self.group = group
        self.interval = interval
    }

    /// Whether a heartbeat may go out now; if one is on its way, the next follows it at once.
    func mayBeat() -> Bool {
        if isBeating { beatsAgain = true }
        return !isBeating
    }

    /// Sends a heartbeat to the group's coordinator. The outcome comes unless the membership is another by then.
    func send<Request: KafkaRequest>(
        _ type: Request.Type, make: @escaping (Int16) -> Request,
        completion: @escaping (Result<Answer<Request.Response>, ClientError>) -> Void
    ) {
        let (group, era) = (group, era)
        isBeating = true
        beatsAgain = false
        engine.coordinator(of: group) { result in
            guard self.era == era else { return }
            switch result {
            case .failure(let error):
                self.isBeating = false
                completion(.failure(error))
            case .success(let coordinator):
                self.engine.request(type, to: .broker(coordinator), purpose: .group, make: make) { result in
                    guard self.era == era else { return }
                    self.isBeating = false
                    if case .failure = result { self.engine.forgetCoordinator(of: group) }
                    completion(result)
                }
            }
        }
    }

    /// The coordinator has answered; the next heartbeat is due after the interval.
    ///
    /// - Returns: Whether there is something to say already.
    func answered() -> Bool {
        failureCount = 0
        failingSince = nil
        schedule(in: interval)
        return beatsAgain
    }

    /// Tries again after a pause.
    ///
    /// - Returns: Whether the polling task must know, because a member has failed to join for `operationTimeout`.
    func again(_ error: ClientError, isJoined: Bool) -> Bool {
        failureCount += 1
        engine.logger.debug(
            "heartbeat will be repeated", metadata: ["group": "\(group)", "cause": "\(error)"])
        schedule(in: engine.retryBackoff.pause(after: failureCount))
        guard !isJoined else {
            failingSince = nil
            return false
        }
        let since = failingSince ?? .now()
        failingSince = since
        guard NIODeadline.now() - since >= TimeAmount(engine.configuration.operationTimeout) else {
            return false
        }
        failingSince = nil
        return true
    }

    private func schedule(in pause: Duration) {
        timer?.cancel()
        let era = era
        timer = engine.loop.assumeIsolated().scheduleTask(in: TimeAmount(pause)) {
            if self.era == era { self.onBeat?() }
        }
    }

    /// No heartbeat until somebody asks for one; what is under way is void.
    func stop() {
        era += 1
        timer?.cancel()
        timer = nil
        isBeating = false
        beatsAgain = false
        failureCount = 0
        failingSince = nil
    }

    /// Sends the last heartbeat; `completion` comes with the answer, or after `leaveLimit`, which includes the search for
    /// the coordinator.
    func leave<Request: KafkaRequest>(_ last: Request, _ completion: @escaping () -> Void) {
        var waiting: (() -> Void)? = completion
        func end() {
            // Whoever is told may close the engine, which fails the request that is under way.
            let completion = waiting
            waiting = nil
            completion?()
        }
        let timer = engine.loop.assumeIsolated().scheduleTask(in: TimeAmount(Self.leaveLimit)) { end() }
        engine.coordinator(of: group) { result in
            guard waiting != nil, case .success(let coordinator) = result else {
                timer.cancel()
                return end()
            }
            self.engine.request(
                Request.self, to: .broker(coordinator), purpose: .group, timeout: Self.leaveLimit
            ) { _ in
                last
            } completion: { _ in
                timer.cancel()
                end()
            }
        }
    }
}
