import Synchronization
import UnixSignals

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Set by the first SIGINT or SIGTERM: whoever loops looks at it and ends in order.
final class StopFlag: Sendable {
    private let value = Atomic(false)

    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}

/// Who interrupts a second time does not want to wait for an orderly end, which a broker that does not answer can
/// delay for minutes.
private func endAtNextSignal() {
    signal(SIGINT, SIG_DFL)
    signal(SIGTERM, SIG_DFL)
}

/// Runs `body` and, on SIGINT or SIGTERM, cancels it; `nil` when a signal ended it.
func untilInterrupted<Result: Sendable>(_ body: @escaping @Sendable () async throws -> Result) async throws
    -> Result?
{
    try await withThrowingTaskGroup(of: Result?.self) { group in
        group.addTask {
            do {
                return try await body()
            } catch is CancellationError {
                return nil
            }
        }
        group.addTask {
            for await _ in await UnixSignalsSequence(trapping: .sigint, .sigterm) { break }
            endAtNextSignal()
            return nil
        }
        let first = try await group.next() ?? nil
        group.cancelAll()
        // The body gets to finish its closing before the command ends; its failure then is news.
        if first == nil { return try await group.next() ?? nil }
        return first
    }
}

/// Runs `body`, which looks at the flag that SIGINT and SIGTERM set and returns. Nothing is cancelled, so that
/// it can still commit, leave its group and close.
func untilStopped(_ body: @escaping @Sendable (StopFlag) async throws -> Void) async throws {
    let flag = StopFlag()
    try await withThrowingTaskGroup(of: Bool.self) { group in
        group.addTask {
            try await body(flag)
            return true
        }
        group.addTask {
            for await _ in await UnixSignalsSequence(trapping: .sigint, .sigterm) {
                flag.set()
                endAtNextSignal()
                break
            }
            return false
        }
        while let isBody = try await group.next() {
            if isBody { group.cancelAll() }
        }
    }
}
