internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore

/// ListTransactions (key 66, KIP-664). Version 1 filters by duration (KIP-994), 2 by a pattern of transactional ids
/// (KIP-1152).
package enum ListTransactionsHandler {
    package static func handle(_ request: ListTransactionsRequest, _ context: RequestContext) {
        var pattern: TransactionalIDPattern?
        if let text = request.transactionalIDPattern, !text.isEmpty {
            pattern = TransactionalIDPattern(text)
            guard pattern != nil else {
                var response = ListTransactionsResponse()
                response.errorCode = ErrorCode.invalidRegularExpression.rawValue
                return context.respond(response)
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
        let loop = context.loop.eventLoop
        let promise = loop.makePromise(of: ListTransactionsResponse.self)
        listed.assumeIsolated().whenComplete { result in
            switch result {
            case .success(let response): pattern.filter(response, on: loop, promise)
            case .failure(let error): promise.fail(error)
            }
        }
        context.respond(when: promise.futureResult)
    }
}

/// A pattern on its way through transactional ids, a bounded number of steps at a time, so that many ids and a costly
/// pattern hold up nothing else on the loop.
package final class TransactionalIDPattern {
    /// Steps for all transactional ids together, about a second of one core. A pattern that needs more is refused:
    /// transactional ids are up to 8 KiB long, and nobody should keep a core busy by asking for a list.
    package static let stepLimit = 500_000_000

    private var pattern: TopicPattern
    private let stepLimit: Int
    private var next = 0
    private var stepCount = 0
    private var kept: [ListTransactionsResponse.TransactionState] = []

    /// `nil` for what is no pattern. Letters beyond ASCII in the pattern itself are refused rather than matched wrongly.
    package init?(_ text: String, stepLimit: Int = TransactionalIDPattern.stepLimit) {
        self.stepLimit = stepLimit
        guard text.utf8.allSatisfy({ $0 < 128 }), TopicPattern.problem(text) == nil else { return nil }
        do throws(PatternError) {
            pattern = try TopicPattern(text)
        } catch {
            return nil
        }
    }

    package func filter(
        _ response: ListTransactionsResponse, on loop: any EventLoop, _ promise: EventLoopPromise<ListTransactionsResponse>
    ) {
        var steps = PatternLimits.stepsPerEvent
        while next < response.transactionStates.count, steps > 0 {
            let state = response.transactionStates[next]
            next += 1
            if pattern.matches(Self.matchable(state.transactionalID), steps: &steps) { kept.append(state) }
        }
        stepCount += PatternLimits.stepsPerEvent - steps
        guard stepCount <= stepLimit else {
            var refused = ListTransactionsResponse()
            refused.errorCode = ErrorCode.invalidRegularExpression.rawValue
            return promise.succeed(refused)
        }
        guard next == response.transactionStates.count else {
            loop.assumeIsolated().execute { self.filter(response, on: loop, promise) }
            return
        }
        var response = response
        response.transactionStates = kept
        promise.succeed(response)
    }

    /// Patterns know ASCII. Any other character stands for one that only `.` and inverted classes match.
    private static func matchable(_ id: String) -> String {
        guard !id.utf8.allSatisfy({ $0 < 128 }) else { return id }
        return String(String.UnicodeScalarView(id.unicodeScalars.map { $0.isASCII ? $0 : "\u{1}" }))
    }
}
