import UnixSignals

/// Runs `body` and cancels it on SIGINT or SIGTERM, so that groups are left and files are closed in order.
/// Returns `nil` when a signal ended it.
func untilInterrupted<Result: Sendable>(_ body: @escaping @Sendable () async throws -> Result) async throws -> Result? {
    try await withThrowingTaskGroup(of: Result?.self) { group in
        group.addTask {
            do {
                return try await body()
            } catch is CancellationError {
                return nil
            }
        }
        group.addTask {
            for await _ in await UnixSignalsSequence(trapping: .sigint, .sigterm) { return nil }
            return nil
        }
        let first = try await group.next() ?? nil
        group.cancelAll()
        // The body gets to finish its closing before the command ends; its failure then is news.
        if first == nil { return try await group.next() ?? nil }
        return first
    }
}
