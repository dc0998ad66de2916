import Logging
import MartletLogModel
import NIOCore

extension Producer {
    /// Gets the producer its identity, ends what an earlier producer with the same transactional id left open, and
    /// shuts that one out.
    ///
    /// ``withTransaction(_:)`` does so by itself. Call it before the first positions are read where another process
    /// may have had the work until now.
    /// - Throws: ``ClientError``: `invalidState` without a transactional id, `fenced` if a newer producer has it.
    public func prepareTransactions() async throws {
        let transactions = try transactions()
        try await sender.engine.loop.reply { reply in transactions.prepare(reply) }
    }

    /// Runs `body` within a transaction: commits when it returns, rolls back when it throws.
    ///
    /// What the closure has sent is delivered before the commit. One transaction is open at a time; a producer that
    /// works on several things at once needs one transactional id each. The end cannot be cancelled: a task that is
    /// cancelled inside `body` waits until the transaction is rolled back.
    ///
    /// - Throws: What `body` throws, after the rollback; or ``ClientError``:
    ///   - `transactionAborted`: a part of the transaction failed and it was rolled back. With `isRetriable` running
    ///     it again may succeed.
    ///   - `transactionUndecided`: the coordinator did not confirm the commit in time; it may have taken place. The
    ///     producer settles this before its next transaction, in favour of nobody.
    ///   - `fenced`: another producer with the same transactional id has started, or the transaction was open for
    ///     longer than `transactionTimeout`. This producer is of no use any more.
    public func withTransaction<Value>(
        _ body: (_ transaction: ProducerTransaction) async throws -> Value
    ) async throws -> Value {
        try await prepareTransactions()
        let transactions = try transactions()
        let (loop, accumulator) = (sender.engine.loop, accumulator)
        let begun = Reply<Int>()
        loop.execute { transactions.begin(begun) }
        // Not cancellable either: a transaction that has begun and that nobody knows of would never be ended.
        let number = try await begun.uncancellableValue()
        accumulator.openTransaction(number)
        do {
            let value = try await body(ProducerTransaction(self, number))
            accumulator.closeTransaction()
            if let flushed = accumulator.beginFlush() {
                wakeSender()
                try await flushed.value()
            }
            try await endTransaction { transactions.commit(number, $0) }
            return value
        } catch {
            throw await rollBack(number, because: error)
        }
    }

    /// Reads records and runs `body` with them in a transaction that also holds the consumer's new positions, so that
    /// input and output count exactly once.
    ///
    /// The consumer's membership at the time of the poll goes into the commit, so that a member that its group has
    /// left behind is refused (KIP-447). When the transaction is rolled back, the consumer goes back to where these
    /// records began, or to what has been committed meanwhile. Consumers of the output need
    /// ``IsolationLevel/readCommitted``.
    ///
    /// - Parameter consumer: in a group, with `isAutoCommitEnabled` off.
    /// - Parameter timeout: longest wait for records; without any there is no transaction.
    /// - Parameter limit: largest number of records in the transaction.
    /// - Returns: Number of records read.
    /// - Throws: As ``withTransaction(_:)``; here `transactionUndecided` may be tried again too, since the consumer
    ///   continues where the outcome says.
    @discardableResult
    public func withTransaction(
        consuming consumer: Consumer, timeout: Duration = .seconds(1), limit: Int = 10_000,
        _ body: (_ transaction: ProducerTransaction, _ records: [ConsumedRecord]) async throws -> Void
    ) async throws -> Int {
        try consumer.checkTransactional()
        try await prepareTransactions()
        let records = try await consumer.poll(timeout: timeout, limit: limit)
        guard !records.isEmpty else { return 0 }
        var starts: [TopicPartition: Offset] = [:]
        for record in records {
            starts[record.topicPartition] = min(starts[record.topicPartition] ?? record.offset, record.offset)
        }
        do {
            let (group, positions) = try await consumer.claim(records)
            try await withTransaction { transaction in
                try await body(transaction, records)
                try await transaction.commitOffsets(positions, as: group)
            }
        } catch {
            consumer.rewind(to: starts)
            guard let error = error as? ClientError, error.code == .transactionUndecided || error.code == .rebalanced
            else { throw error }
            throw ClientError(
                error.code, error.message, isRetriable: true, brokerCode: error.brokerCode, cause: error.cause)
        }
        return records.count
    }

    func transactions() throws(ClientError) -> ProducerTransactions {
        guard let transactions = sender.transactions else {
            throw ClientError(.invalidState, "transactions need a name; set transactionalID in the configuration")
        }
        return transactions
    }

    /// Asks for the end of a transaction. Not cancellable: until it is ended its records hold back every reader.
    private func endTransaction(_ ask: @escaping @Sendable (Reply<Void>) -> Void) async throws {
        let reply = Reply<Void>()
        sender.engine.loop.execute { ask(reply) }
        try await reply.uncancellableValue()
    }

    /// Aborts transaction `number` and returns what the caller is told: the producer's own end or the loss of the
    /// transaction where one of these is the reason, else `error`.
    private func rollBack(_ number: Int, because error: any Error) async -> any Error {
        if let error = error as? ClientError, error.code == .transactionUndecided { return error }
        guard let transactions = sender.transactions else { return error }
        accumulator.closeTransaction()
        let loss = await currentLoss(of: transactions)
        do {
            try await endTransaction { transactions.abort(number, $0) }
        } catch {
            sender.engine.logger.warning(
                "transaction was not rolled back by its producer; the coordinator will",
                metadata: ["transactionalID": "\(transactions.transactionalID)", "error": "\(error)"])
        }
        accumulator.forgetFailures()
        if let end = await currentEnd(of: transactions) { return end }
        guard let own = error as? ClientError, let loss else { return error }
        return ClientError.transactionAborted(because: own.code == .transactionAborted ? loss : own)
    }

    private func currentLoss(of transactions: ProducerTransactions) async -> ClientError? {
        let loop = sender.engine.loop
        return await withCheckedContinuation { continuation in
            loop.execute { continuation.resume(returning: transactions.state.loss) }
        }
    }

    private func currentEnd(of transactions: ProducerTransactions) async -> ClientError? {
        let loop = sender.engine.loop
        return await withCheckedContinuation { continuation in
            loop.execute { continuation.resume(returning: transactions.state.end) }
        }
    }

    /// Before closing: a transaction left open would hold back readers until its timeout.
    func abandonTransaction() async {
        guard let transactions = sender.transactions else { return }
        let loop = sender.engine.loop
        let open: Int? = await withCheckedContinuation { continuation in
            loop.execute {
                let state = transactions.state
                continuation.resume(returning: state.phase == .open ? state.number : nil)
            }
        }
        guard let open else { return }
        do {
            try await endTransaction { transactions.abort(open, $0) }
        } catch {
            sender.engine.logger.warning(
                "open transaction was left to its timeout",
                metadata: ["transactionalID": "\(transactions.transactionalID)", "error": "\(error)"])
        }
    }
}
