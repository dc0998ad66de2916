import MartletLogModel
import NIOCore

/// The answer that a task awaits from the event loop. The first resolution counts, later ones are ignored, so
/// cancellation and the real answer may race.
final class Reply<Value: Sendable>: Sendable {
    private enum State {
        case empty
        case waiting(CheckedContinuation<Value, any Error>)
        case early(Result<Value, any Error>)
        case done
    }

    private let state = Guarded(State.empty)

    func resolve(_ result: Result<Value, any Error>) {
        let continuation: CheckedContinuation<Value, any Error>? = state.withLock { state in
            switch state {
            case .empty:
                state = .early(result)
                return nil
            case .waiting(let continuation):
                state = .done
                return continuation
            case .early, .done:
                return nil
            }
        }
        continuation?.resume(with: result)
    }

    func succeed(_ value: Value) { resolve(.success(value)) }
    func fail(_ error: any Error) { resolve(.failure(error)) }
    func resolve(with result: Result<Value, ClientError>) { resolve(result.mapError { $0 as any Error }) }

    /// Waits for the resolution; cancelling the waiting task resolves with `CancellationError`.
    func value() async throws -> Value {
        try await withTaskCancellationHandler {
            try await uncancellableValue()
        } onCancel: {
            fail(CancellationError())
        }
    }

    /// Waits for the resolution, also in a task that has been cancelled. For what must not be left half done.
    func uncancellableValue() async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            let result: Result<Value, any Error>? = state.withLock { state in
                switch state {
                case .empty:
                    state = .waiting(continuation)
                    return nil
                case .early(let result):
                    state = .done
                    return result
                case .waiting, .done:
                    return .failure(CancellationError())
                }
            }
            if let result { continuation.resume(with: result) }
        }
    }
}

extension EventLoop {
    /// Runs `body` on the loop and waits for the reply it is given.
    func reply<Value: Sendable>(
        _ body: @escaping @Sendable (Reply<Value>) -> Void
    ) async throws -> Value {
        let reply = Reply<Value>()
        execute { body(reply) }
        return try await reply.value()
    }

    /// Waits on the loop's clock; cancellable.
    func pause(_ duration: Duration) async throws {
        let reply = Reply<Void>()
        let task = scheduleTask(in: TimeAmount(duration)) { reply.succeed(()) }
        defer { task.cancel() }
        try await reply.value()
    }
}

extension Duration {
    /// Whole milliseconds, rounded up, clamped to what the wire's Int32 holds.
    var wireMilliseconds: Int32 {
        let (seconds, attoseconds) = components
        if seconds >= Int64(Int32.max) / 1000 { return .max }
        return Int32(max(0, seconds * 1000 + (attoseconds + 999_999_999_999_999) / 1_000_000_000_000_000))
    }
}
