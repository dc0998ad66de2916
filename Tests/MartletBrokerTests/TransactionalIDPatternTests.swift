import MartletBroker
import MartletCoordinators
import MartletKafkaProtocol
import NIOCore
import NIOEmbedded
import Testing

@Suite(.timeLimit(.minutes(2))) struct `Patterns of transactional ids` {
    private typealias Outcome = Result<ListTransactionsResponse, PatternError>

    /// Filters ids with each of the patterns at once. In how many turns of the loop that is done.
    private func filter(
        _ ids: [String], _ patterns: [String], limit: Int = TransactionalIDPattern.stepLimit
    ) throws -> (outcomes: [Outcome], turnCount: Int) {
        let loop = EmbeddedEventLoop()
        let turns = PatternTurns(eventLoop: loop)
        var response = ListTransactionsResponse()
        response.transactionStates = ids.map {
            var state = ListTransactionsResponse.TransactionState()
            state.transactionalID = $0
            return state
        }
        var outcomes: [Outcome] = []
        for text in patterns {
            try TransactionalIDPattern(text, stepLimit: limit).filter(response, turns) { outcomes.append($0) }
        }
        // Somebody else's work on the loop.
        var turnCount = 0
        func takeTurn() {
            turnCount += 1
            if outcomes.count < patterns.count { loop.assumeIsolated().execute { takeTurn() } }
        }
        takeTurn()
        loop.run()
        return (outcomes, turnCount)
    }

    @Test func `a pattern of transactional ids has so many steps and no more`() throws {
        let ids = (0..<100).map { "\($0)" + String(repeating: "a", count: 1_000) }
        #expect(try filter(ids, [".*9.*"], limit: 10_000_000).outcomes.map { try $0.get().transactionStates.count } == [19])
        guard case .failure(let refusal)? = try filter(ids, [".*9.*"], limit: 50_000).outcomes.first else {
            Issue.record("nothing was refused")
            return
        }
        #expect(refusal.reason.contains("50000 steps") && refusal.reason.contains("a simpler one"))
    }

    @Test func `a long id and a costly pattern hold up nobody else`() throws {
        let id = String(repeating: "ab", count: 900)
        let (outcomes, turnCount) = try filter([id, "c"], ["(a?b?){1000}c"])
        #expect(try outcomes.map { try $0.get().transactionStates.map(\.transactionalID) } == [["c"]])
        #expect(turnCount > 10)
        // The limit ends a match, too, and does not only follow it.
        let (refused, fewer) = try filter([id, "c"], ["(a?b?){1000}c"], limit: 400_000)
        #expect(throws: PatternError.self) { try refused[0].get() }
        #expect(fewer < 10)
    }

    @Test func `patterns take turns`() throws {
        let id = String(repeating: "ab", count: 900)
        let one = try filter([id], ["(a?b?){1000}c"])
        let (outcomes, turnCount) = try filter([id], Array(repeating: "(a?b?){1000}c", count: 3) + ["ab.*"])
        #expect(outcomes.count == 4 && turnCount >= 3 * one.turnCount - 3)
        // The cheap one came last and need not wait until the others are done.
        #expect(try outcomes.map { try $0.get().transactionStates.count } == [1, 0, 0, 0])
    }
}
