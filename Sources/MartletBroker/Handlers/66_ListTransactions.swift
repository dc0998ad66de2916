internal import DequeModule
package import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore

/// ListTransactions (key 66, KIP-664). Version 1 filters by duration (KIP-994), 2 by a pattern of transactional ids
/// (KIP-1152).
package enum ListTransactionsHandler {
    package static func handle(_ request: ListTransactionsRequest, _ context: RequestContext) {
        var pattern: TransactionalIDPattern?
        if let text = request.transactionalIDPattern, !text.isEmpty {
            do throws(PatternError) {
                pattern = try TransactionalIDPattern(text)
            } catch {
                return context.respond(refusal(error, of: text, context))
            }
        }
        let filter = TransactionFilter(
            phases: request.stateFilters, producerIDs: request.producerIDFilters,
            minimumDurationMilliseconds: request.durationFilter < 0 ? nil : request.durationFilter)
        let futures = context.loop.allTransactionShards.map { context.coordinate($0, .list(filter)) }
        let listed = EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map {
            answers -> ListTransactionsResponse in
            var response = ListTransactionsResponse()
            let known = Set(TransactionPhase.allCases.map(\.name))
            response.unknownStateFilters = request.stateFilters.filter { !known.contains($0) }
            for answer in answers {
                guard case .listed(let part) = answer else { return answer.mismatch() }
                if part.errorCode != 0 { response.errorCode = part.errorCode }
                response.transactionStates += part.transactionStates
            }
            if response.errorCode != 0 { response.transactionStates = [] }
            response.transactionStates.sort { $0.transactionalID < $1.transactionalID }
            return response
        }
        guard let pattern else { return context.respond(when: listed) }
        let promise = context.loop.eventLoop.makePromise(of: ListTransactionsResponse.self)
        listed.assumeIsolated().whenComplete { result in
            switch result {
            case .success(let response):
                pattern.filter(response, context.loop.patternTurns) { result in
                    promise.completeWith(result.flatMapError { .success(refusal($0, of: pattern.text, context)) })
                }
            case .failure(let error): promise.fail(error)
            }
        }
        context.respond(when: promise.futureResult)
    }

    /// The response has no place for words, so the log says them.
    private static func refusal(
        _ error: PatternError, of pattern: String, _ context: RequestContext
    ) -> ListTransactionsResponse {
        context.loop.logRefusal(
            .invalidRegularExpression, error.reason, client: context.header.clientID,
            about: [("api", "\(context.header.apiKey)"), ("pattern", pattern)])
        var response = ListTransactionsResponse()
        response.errorCode = ErrorCode.invalidRegularExpression.rawValue
        return response
    }
}

/// Work of one event loop that is done a piece at a time: one piece of one job in each turn, whatever waits.
/// Confined to the loop.
package final class PatternTurns {
    private let eventLoop: any EventLoop
    /// Each does a piece and says whether it is done.
    private var jobs: Deque<() -> Bool> = []

    package init(eventLoop: any EventLoop) { self.eventLoop = eventLoop }

    func add(_ job: @escaping () -> Bool) {
        jobs.append(job)
        if jobs.count == 1 { runLater() }
    }

    private func runLater() { eventLoop.assumeIsolated().execute { self.run() } }

    private func run() {
        guard let job = jobs.first else { return }
        let isDone = job()
        jobs.removeFirst()
        if !isDone { jobs.append(job) }
        if !jobs.isEmpty { runLater() }
    }
}

/// A pattern on its way through transactional ids, a bounded number of steps at a time, so that many ids and a costly
/// pattern hold up nothing else on the loop.
package final class TransactionalIDPattern {
    /// Steps for all transactional ids together, about a second of one core. A pattern that needs more is refused:
    /// transactional ids are up to 8 KiB long, and nobody should keep a core busy by asking for a list.
    package static let stepLimit = 500_000_000

    package let text: String
    private var pattern: TopicPattern
    private let stepLimit: Int
    private var next = 0
    /// Of the id at `next`, if its match was begun.
    private var match: TopicPattern.Match?
    private var stepCount = 0
    private var kept: [ListTransactionsResponse.TransactionState] = []

    /// Letters beyond ASCII in the pattern itself are refused rather than matched wrongly.
    package init(_ text: String, stepLimit: Int = TransactionalIDPattern.stepLimit) throws(PatternError) {
        guard text.utf8.allSatisfy({ $0 < 128 }) else {
            throw PatternError(reason: "the pattern has letters beyond ASCII; write . for each of them")
        }
        self.text = text
        self.stepLimit = stepLimit
        pattern = try TopicPattern(text)
    }

    /// Keeps the transactions whose ids match. `done` runs on the loop of `turns`.
    package func filter(
        _ response: ListTransactionsResponse, _ turns: PatternTurns,
        done: @escaping (Result<ListTransactionsResponse, PatternError>) -> Void
    ) {
        turns.add {
            guard let result = self.goOn(response) else { return false }
            done(result)
            return true
        }
    }

    /// Some more steps; the result when they were the last.
    private func goOn(_ response: ListTransactionsResponse) -> Result<ListTransactionsResponse, PatternError>? {
        let allowance = min(PatternLimits.stepsPerEvent, stepLimit - stepCount)
        var steps = allowance
        while next < response.transactionStates.count {
            let state = response.transactionStates[next]
            var match = self.match.take() ?? TopicPattern.Match(Self.matchable(state.transactionalID))
            guard steps > 0, let matches = pattern.goOn(&match, steps: &steps) else {
                self.match = match
                stepCount += allowance - steps
                guard stepCount < stepLimit else {
                    return .failure(
                        PatternError(
                            reason: "the pattern takes more than \(stepLimit) steps over the transactional ids; use a simpler one, or ask for fewer transactions by state or producer id"))
                }
                return nil
            }
            if matches { kept.append(state) }
            next += 1
        }
        var response = response
        response.transactionStates = kept
        return .success(response)
    }

    /// Patterns know ASCII. Any other character stands for one that only `.` and inverted classes match.
    private static func matchable(_ id: String) -> String {
        guard !id.utf8.allSatisfy({ $0 < 128 }) else { return id }
        return String(String.UnicodeScalarView(id.unicodeScalars.map { $0.isASCII ? $0 : "\u{1}" }))
    }
}
