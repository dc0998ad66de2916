import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import NIOPosix
import Testing

@Suite(.timeLimit(.minutes(2))) struct `Patterns of transactional ids` {
    @Test func `a pattern of transactional ids has so many steps and no more`() async throws {
        func list(_ limit: Int) async throws -> ListTransactionsResponse {
            let loop = MultiThreadedEventLoopGroup.singleton.any()
            let promise = loop.makePromise(of: ListTransactionsResponse.self)
            loop.execute {
                var response = ListTransactionsResponse()
                response.transactionStates = (0..<100).map { number in
                    var state = ListTransactionsResponse.TransactionState()
                    state.transactionalID = "\(number)" + String(repeating: "a", count: 1_000)
                    return state
                }
                TransactionalIDPattern(".*9.*", stepLimit: limit)?.filter(response, on: loop, promise)
            }
            return try await promise.futureResult.get()
        }
        #expect(try await list(10_000_000).transactionStates.count == 19)
        let refused = try await list(50_000)
        #expect(refused.errorCode == ErrorCode.invalidRegularExpression.rawValue)
        #expect(refused.transactionStates.isEmpty)
    }
}
