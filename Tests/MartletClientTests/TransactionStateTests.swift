import MartletLogModel
import Testing

@testable import MartletClient

/// The rules of a transactional producer, without any broker.
@Suite struct TransactionStateTests {
    private let identity = ProducerIdentity(id: 7, epoch: 3)
    private let partition = TopicPartition("t", 0)
    private let error = ClientError(.broker, "trouble", brokerCode: .transactionAbortable)

    private func ready(_ rules: TransactionRules) throws -> TransactionState {
        var state = TransactionState()
        let value1 = try state.prepare()
        #expect(value1)
        state.identified(identity, rules: rules)
        return state
    }

    private func open(_ rules: TransactionRules) throws -> (TransactionState, Int) {
        var state = try ready(rules)
        let number = try state.begin(rules: nil)
        return (state, number)
    }

    @Test func `an identity is asked for once`() throws {
        var state = TransactionState()
        #expect(throws: ClientError.self) { try state.begin(rules: .second) }
        let value2 = try state.prepare()
        #expect(value2)
        let value3 = try state.prepare()
        #expect(!value3)
        state.unidentified()
        let value4 = try state.prepare()
        #expect(value4)
        state.identified(identity, rules: .second)
        let value5 = try state.prepare()
        #expect(!value5)
        #expect(state.phase == .ready && state.identity == identity)
    }

    @Test func `under the second rules a partition needs no introduction`() throws {
        var (state, _) = try open(.second)
        let value6 = state.maySend(to: partition)
        #expect(value6)
        let value7 = state.takeWanted()
        #expect(value7.isEmpty)
        #expect(!state.mustAdd(group: "g"))
    }

    @Test func `under the first rules nothing is sent to a partition before it is added`() throws {
        var (state, _) = try open(.first)
        #expect(!state.hasStarted)
        let value8 = state.maySend(to: partition)
        #expect(!value8)
        let value9 = state.takeWanted()
        #expect(value9 == [partition])
        #expect(state.hasStarted)
        let value10 = state.maySend(to: partition)
        #expect(!value10)
        let value11 = state.maySend(to: TopicPartition("t", 1))
        #expect(!value11)
        let value12 = state.takeWanted()
        #expect(value12.isEmpty, "one request at a time")
        state.finishAdding(true)
        let value13 = state.maySend(to: partition)
        #expect(value13)
        let value14 = state.takeWanted()
        #expect(value14 == [TopicPartition("t", 1)])
        state.finishAdding(false)
        let value15 = state.takeWanted()
        #expect(value15 == [TopicPartition("t", 1)])
        #expect(state.mustAdd(group: "g"))
        state.added(group: "g")
        #expect(!state.mustAdd(group: "g"))
    }

    @Test func `what was added belongs to one transaction`() throws {
        var (state, number) = try open(.first)
        _ = state.maySend(to: partition)
        _ = state.takeWanted()
        state.finishAdding(true)
        state.added(group: "g")
        try state.beginCommit(number)
        state.ended(next: nil)
        let value16 = try state.begin(rules: nil)
        #expect(value16 == number + 1)
        let value17 = state.maySend(to: partition)
        #expect(!value17)
        #expect(state.mustAdd(group: "g"))
        #expect(!state.isOpen(number) && state.isOpen(number + 1))
    }

    @Test func `a lost transaction sends nothing and can only be aborted`() throws {
        var (state, number) = try open(.second)
        state.started()
        state.failed(error, .abortable)
        let value18 = state.maySend(to: partition)
        #expect(!value18 && !state.isOpen(number))
        #expect(throws: ClientError.self) { try state.beginCommit(number) }
        try state.beginAbort(number)
        state.ended(next: ProducerIdentity(id: 7, epoch: 4))
        #expect(state.phase == .ready && state.identity.epoch == 4)
        _ = try state.begin(rules: nil)
        let value19 = state.maySend(to: partition)
        #expect(state.loss == nil && value19)
    }

    @Test func `the first loss is the one that is told`() throws {
        var (state, _) = try open(.second)
        state.failed(error, .abortable)
        state.failed(ClientError(.timedOut, "later"), .abortable)
        #expect(state.loss?.message == "trouble")
    }

    @Test func `a given up number costs the epoch, which the second rules raise anyway`() throws {
        var (first, number) = try open(.first)
        first.gaveUpBatch(error, .abortable, isNumbered: true)
        try first.beginAbort(number)
        first.ended(next: nil)
        #expect(first.phase == .unprepared)
        let value20 = try first.prepare()
        #expect(value20)
        #expect(first.identity == identity, "the producer names itself, so that a zombie learns that it is one")

        var (second, other) = try open(.second)
        second.gaveUpBatch(error, .abortable, isNumbered: true)
        try second.beginAbort(other)
        second.ended(next: ProducerIdentity(id: 7, epoch: 4))
        #expect(second.phase == .ready)

        var (unnumbered, last) = try open(.first)
        unnumbered.gaveUpBatch(error, .abortable, isNumbered: false)
        try unnumbered.beginAbort(last)
        unnumbered.ended(next: nil)
        #expect(unnumbered.phase == .ready)
    }

    @Test func `an end without an answer is settled by asking for the identity again`() throws {
        var (state, number) = try open(.second)
        try state.beginCommit(number)
        state.lostEnd()
        #expect(state.phase == .unprepared)
        #expect(throws: ClientError.self) { try state.begin(rules: nil) }
        let value21 = try state.prepare()
        #expect(value21)
    }

    @Test func `what is fatal stays so`() throws {
        var (state, number) = try open(.second)
        let fatal = ClientError(.fenced, "another producer", brokerCode: .producerFenced)
        state.failed(fatal, .fatal)
        state.failed(error, .fatal)
        #expect(state.end?.message == "another producer")
        #expect { try state.beginCommit(number) } throws: { ($0 as? ClientError)?.code == .fenced }
        #expect { try state.beginAbort(number) } throws: { ($0 as? ClientError)?.code == .fenced }
        #expect { try state.prepare() } throws: { ($0 as? ClientError)?.code == .fenced }
        state.ended(next: identity)
        #expect(state.phase == .finished)
    }

    @Test func `a transaction of another number is none of ours`() throws {
        var (state, number) = try open(.second)
        #expect(throws: ClientError.self) { try state.begin(rules: nil) }
        #expect(throws: ClientError.self) { try state.beginCommit(number + 1) }
        #expect(throws: ClientError.self) { try state.beginAbort(number - 1) }
        #expect(state.phase == .open)
    }

    @Test func `codes mean what KIP-1050 says`() {
        typealias Verdict = TransactionVerdict
        for request in TransactionalRequest.allCases {
            #expect(Verdict(.none, of: request) == .done)
            #expect(Verdict(.producerFenced, of: request) == .fatal)
            #expect(Verdict(.transactionalIDAuthorizationFailed, of: request) == .fatal)
            #expect(Verdict(.notCoordinator, of: request) == .retryElsewhere)
            #expect(Verdict(.coordinatorLoadInProgress, of: request) == .retry)
            #expect(Verdict(.concurrentTransactions, of: request) == .retry)
            #expect(Verdict(.transactionAbortable, of: request) == (request == .initialize ? .retry : .abortable))
        }
        #expect(Verdict(.invalidProducerEpoch, of: .produce) == .abortable)
        #expect(Verdict(.invalidProducerEpoch, of: .end) == .fatal)
        #expect(Verdict(.illegalGeneration, of: .commitOffsets) == .abortable)
        #expect(Verdict(.unknownTopicOrPartition, of: .addPartitions) == .retry)
        #expect(Verdict(.topicAuthorizationFailed, of: .addPartitions) == .abortable)
        #expect(Verdict(.messageTooLarge, of: .produce) == .abortable)
        #expect(Verdict(.invalidTransactionTimeout, of: .initialize) == .fatal)
        #expect(Verdict(.unknownServerError, of: .end) == .fatal)
    }

    @Test func `whether a rolled back transaction may run again depends on its cause`() {
        func aborted(_ code: ErrorCode) -> ClientError { .transactionAborted(because: .broker(code, "x")) }
        #expect(aborted(.transactionAbortable).isRetriable)
        #expect(aborted(.notLeaderOrFollower).isRetriable)
        #expect(aborted(.illegalGeneration).isRetriable)
        #expect(!aborted(.messageTooLarge).isRetriable)
        #expect(!aborted(.topicAuthorizationFailed).isRetriable)
        #expect(aborted(.messageTooLarge).brokerCode == .messageTooLarge)
        let once = aborted(.messageTooLarge)
        #expect(ClientError.transactionAborted(because: once).message == once.message)
    }
}
