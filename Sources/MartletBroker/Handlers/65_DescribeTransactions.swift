internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// DescribeTransactions (key 65, KIP-664): state, producer and partitions of transactional ids.
package enum DescribeTransactionsHandler {
    package static func handle(_ request: DescribeTransactionsRequest, _ context: RequestContext) {
        let futures = request.transactionalIDs.map { id in
            let question = TransactionRequest.describe([id])
            guard let key = context.loop.transactionShard(of: id) else {
                // Without the topic there is no transactional id.
                return context.loop.eventLoop.makeSucceededFuture(
                    TransactionCoordinatorShard.refusal(question, .transactionalIDNotFound))
            }
            return context.coordinate(key, question)
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers in
                var response = DescribeTransactionsResponse()
                response.transactionStates = answers.flatMap { answer -> [DescribeTransactionsResponse.TransactionState] in
                    guard case .described(let states) = answer else { return answer.mismatch() }
                    return states
                }
                return response
            })
    }
}
