/// Pauses between attempts: doubling from a first value to a limit, each spread by 20 % so that many clients do
/// not come back in step.
struct Backoff: Sendable {
    let first: Duration
    let limit: Duration

    /// Share of the pause by which it varies up and down.
    private static let jitter = 0.2
    /// Doublings after which the limit is reached in any sensible configuration; keeps the shift in range.
    private static let doublingLimit = 20

    /// The pause after `failureCount` failures in a row (1 or more).
    func pause(after failureCount: Int, using generator: inout some RandomNumberGenerator) -> Duration {
        let doublings = min(max(failureCount - 1, 0), Self.doublingLimit)
        let plain = min(first * (1 << doublings), limit)
        return plain * Double.random(in: 1 - Self.jitter...1 + Self.jitter, using: &generator)
    }

    func pause(after failureCount: Int) -> Duration {
        var generator = SystemRandomNumberGenerator()
        return pause(after: failureCount, using: &generator)
    }
}
