import DequeModule
import MartletLogModel
import NIOCore

/// What lies between the fetching loop of a share consumer and its polling task: records that are not handed out, those
/// that are and not acknowledged, what was said about records and is not told to a broker, errors, results.
///
/// Bounded by what the brokers give out: nothing is fetched while there are records here.
final class ShareBuffer: Sendable {
    private struct Key: Hashable {
        var place: SharePlace
        var offset: Offset

        init(_ record: SharedRecord) { (place, offset) = (record.place, record.offset) }
    }

    private struct State {
        var isClosed = false
        var isSubscribed = false
        /// Sessions and membership are being ended.
        var isLeaving = false
        /// Why there is no membership any more; every poll says so until somebody subscribes again.
        var failure: ClientError?
        var ready = Deque<SharedRecord>()
        /// Records of the latest poll that are not acknowledged.
        var outstanding: [Key: SharedRecord] = [:]
        /// What was said since the loop looked; `nil`: nothing, the lock was over before the record was handed out.
        var answered: [(record: SharedRecord, word: ShareWord?)] = []
        var errors = Deque<ClientError>()
        var results: [ShareAcknowledgementResult] = []
        /// The first refusal noted since records were handed out, or since somebody was told of one.
        var refusal: ShareAcknowledgementResult?
        var waiter: Reply<Void>?
        var lastPoll = NIODeadline.now()
        var lockTimeout: Duration?

        /// Whether it is this delivery of the record that is to be acknowledged, not an earlier one.
        func isOutstanding(_ record: SharedRecord) -> Bool {
            guard let known = outstanding[Key(record)] else { return false }
            return known.source == record.source && known.sessionNumber == record.sessionNumber
                && known.deliveryCount == record.deliveryCount
        }
    }

    /// Errors kept for the polling task; later ones repeat the first in nearly every case.
    private static let errorLimit = 16

    private let state = Guarded(State())
    private let keepsResults: Bool

    /// - Parameter keepsResults: somebody is to be told what became of acknowledgements.
    init(keepsResults: Bool) { self.keepsResults = keepsResults }

    // MARK: Polling task

    /// What a poll finds.
    enum Found {
        case error(ClientError)
        case records([SharedRecord])
        case nothing

        func records() throws(ClientError) -> [SharedRecord] {
            switch self {
            case .error(let error): throw error
            case .records(let records): records
            case .nothing: []
            }
        }
    }

    func subscribe() throws(ClientError) {
        let problem: ClientError? = state.withLock { state in
            if state.isClosed { return .closed("share consumer") }
            guard !state.isLeaving else {
                return ClientError(
                    .invalidState, "unsubscribe has not finished; subscribe after it has returned")
            }
            state.isSubscribed = true
            state.failure = nil
            return nil
        }
        if let problem { throw problem }
    }

    /// Before records are taken: the former ones are accepted, or must have been acknowledged.
    func beginPoll(_ mode: ShareAcknowledgementMode) throws(ClientError) {
        let problem: ClientError? = state.withLock { state in
            if state.isClosed { return .closed("share consumer") }
            guard state.isSubscribed else {
                return ClientError(.invalidState, "nothing to read: call subscribe before polling")
            }
            state.lastPoll = .now()
            state.refusal = nil
            switch mode {
            case .implicit:
                Self.answerAll(.accept, &state)
                return nil
            case .explicit where state.outstanding.isEmpty:
                return nil
            case .explicit:
                return ClientError(
                    .invalidState,
                    "\(state.outstanding.count) records of the latest poll are not acknowledged; call acknowledge for "
                        + "each before the next poll, or use implicit acknowledgement")
            }
        }
        if let problem { throw problem }
    }

    private static func answerAll(_ word: ShareWord, _ state: inout State) {
        guard !state.outstanding.isEmpty else { return }
        state.answered += state.outstanding.values.map { ($0, word) }
        state.outstanding = [:]
    }

    func take(limit: Int) -> Found {
        state.withLock { state in
            let now = NIODeadline.now()
            state.lastPoll = now
            if let error = state.errors.popFirst() { return .error(error) }
            var records: [SharedRecord] = []
            while records.count < limit, let record = state.ready.popFirst() {
                // Somebody else may have it by now.
                guard record.lockEnd > now else {
                    state.answered.append((record, nil))
                    continue
                }
                records.append(record)
                state.outstanding[Key(record)] = record
            }
            guard !records.isEmpty else { return state.failure.map { .error($0) } ?? .nothing }
            // What was refused until now concerns earlier records.
            state.refusal = nil
            return .records(records)
        }
    }

    /// - Throws: `invalidState` for a record that is not one of the latest poll or is acknowledged already.
    func acknowledge(_ record: SharedRecord, _ word: ShareWord) throws(ClientError) {
        let isKnown = state.withLock { state in
            guard state.isOutstanding(record) else { return false }
            state.outstanding[Key(record)] = nil
            state.answered.append((record, word))
            return true
        }
        if !isKnown { throw Self.unknown(record) }
    }

    func requireOutstanding(_ records: [SharedRecord]) throws(ClientError) {
        let problem: ClientError? = state.withLock { state in
            if state.isClosed { return .closed("share consumer") }
            return records.first { !state.isOutstanding($0) }.map(Self.unknown)
        }
        if let problem { throw problem }
    }

    private static func unknown(_ record: SharedRecord) -> ClientError {
        ClientError(
            .invalidState,
            "\(record.topicPartition)@\(record.offset) is not an unacknowledged record of the latest poll")
    }

    /// Accepts the records of the latest poll.
    func acceptOutstanding() throws(ClientError) {
        let isClosed = state.withLock { state in
            if !state.isClosed { Self.answerAll(.accept, &state) }
            return state.isClosed
        }
        if isClosed { throw .closed("share consumer") }
    }

    func requireOpen() throws(ClientError) {
        if state.withLock({ $0.isClosed }) { throw .closed("share consumer") }
    }

    /// A reply that comes as soon as `take` has something; it comes at once if that is so already.
    func whenReady() -> Reply<Void> {
        let reply = Reply<Void>()
        let (isReady, former) = state.withLock { state in
            let former = state.waiter
            state.waiter = nil
            if state.isClosed || !state.errors.isEmpty || !state.ready.isEmpty
                || state.failure != nil
            {
                return (true, former)
            }
            state.waiter = reply
            return (false, former)
        }
        former?.succeed(())
        if isReady { reply.succeed(()) }
        return reply
    }

    /// A waiter whose time is over.
    func forget(_ reply: Reply<Void>) {
        state.withLock { state in
            if state.waiter === reply { state.waiter = nil }
        }
    }

    func takeResults() -> [ShareAcknowledgementResult] {
        state.withLock { state in
            let results = state.results
            state.results = []
            return results
        }
    }

    /// Ends reading: what was handed out is accepted if that is implied; the rest the brokers free with the session.
    ///
    /// - Returns: Whether there was anything to end.
    func end(_ mode: ShareAcknowledgementMode, isClosing: Bool) -> Bool {
        let (wasOpen, waiter) = state.withLock { state in
            let wasOpen = isClosing ? !state.isClosed : state.isSubscribed
            if mode == .implicit { Self.answerAll(.accept, &state) }
            state.outstanding = [:]
            state.ready = []
            state.errors = []
            state.failure = nil
            state.isSubscribed = false
            state.isLeaving = state.isLeaving || wasOpen
            state.isClosed = state.isClosed || isClosing
            let waiter = state.waiter
            state.waiter = nil
            return (wasOpen, waiter)
        }
        waiter?.succeed(())
        return wasOpen
    }

    /// What ``end(_:isClosing:)`` began is done.
    func ended() { state.withLock { $0.isLeaving = false } }

    /// The first refusal since records were handed out, once.
    func takeRefusal() -> ShareAcknowledgementResult? {
        state.withLock { state in
            let refusal = state.refusal
            state.refusal = nil
            return refusal
        }
    }

    // MARK: Fetching loop

    var isReading: Bool { state.withLock { $0.isSubscribed && !$0.isClosed } }
    var hasReady: Bool { state.withLock { !$0.ready.isEmpty } }

    /// When there was a poll; now, while one waits.
    var lastPoll: NIODeadline { state.withLock { $0.waiter == nil ? $0.lastPoll : .now() } }

    /// How long a record stays locked, as a broker said last.
    var lockTimeout: Duration? { state.withLock { $0.lockTimeout } }

    func setLockTimeout(_ timeout: Duration) { state.withLock { $0.lockTimeout = timeout } }

    func takeAnswered() -> [(record: SharedRecord, word: ShareWord?)] {
        state.withLock { state in
            let answered = state.answered
            state.answered = []
            return answered
        }
    }

    func append(_ records: [SharedRecord]) {
        guard !records.isEmpty else { return }
        wake { $0.ready.append(contentsOf: records) }
    }

    func report(_ error: ClientError) {
        wake { state in
            if state.errors.count < Self.errorLimit { state.errors.append(error) }
        }
    }

    /// There is no membership any more, and none before somebody subscribes.
    func fail(_ error: ClientError) { wake { $0.failure = error } }

    /// A membership begins; what was said of the one before is over.
    func begins() { state.withLock { $0.failure = nil } }

    /// Drops records that are not handed out and were given out by a broker in a session that is over.
    func drop(_ source: BrokerID, before sessionNumber: Int) {
        state.withLock { $0.ready.removeAll { $0.source == source && $0.sessionNumber < sessionNumber } }
    }

    func note(_ results: [ShareAcknowledgementResult]) {
        guard !results.isEmpty else { return }
        state.withLock { state in
            if keepsResults { state.results += results }
            if state.refusal == nil { state.refusal = results.first { $0.error != nil } }
        }
    }

    private func wake(_ change: (inout State) -> Void) {
        let waiter = state.withLock { state -> Reply<Void>? in
            guard state.isSubscribed, !state.isClosed else { return nil }
            change(&state)
            let waiter = state.waiter
            state.waiter = nil
            return waiter
        }
        waiter?.succeed(())
    }
}
