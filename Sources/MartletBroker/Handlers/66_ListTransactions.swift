internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// ListTransactions (key 66, KIP-664). Version 1 filters by duration (KIP-994). Version 2, with a pattern of
/// transactional ids (KIP-1152), is not advertised.
package enum ListTransactionsHandler {
    package static func handle(_ request: ListTransactionsRequest, _ context: RequestContext) {
        guard request.transactionalIDPattern?.isEmpty != false else {
            var response = ListTransactionsResponse()
            response.errorCode = ErrorCode.unsupportedVersion.rawValue
            return context.respond(response)
        }
        let filter = TransactionFilter(
            phases: request.stateFilters, producerIDs: request.producerIDFilters,
            minimumDurationMilliseconds: request.durationFilter < 0 ? nil : request.durationFilter)
        let futures = context.loop.allTransactionShards.map { context.coordinate($0, .list(filter)) }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers -> ListTransactionsResponse in
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
            })
    }
}
