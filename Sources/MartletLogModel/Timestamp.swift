/// Wall-clock time in milliseconds since 1970-01-01T00:00:00Z, as in record batches. May be negative.
@frozen
public struct Timestamp: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    /// Milliseconds since the epoch.
    public var rawValue: Int64

    @inlinable
    public init(rawValue: Int64) { self.rawValue = rawValue }

    @inlinable
    public init(milliseconds: Int64) { self.rawValue = milliseconds }

    @inlinable
    public static func < (left: Timestamp, right: Timestamp) -> Bool { left.rawValue < right.rawValue }

    public var description: String { String(rawValue) }
}

/// Reading of a monotonic clock in nanoseconds from an arbitrary origin. Passed to cores as an argument;
/// the simulator passes its own.
@frozen
public struct Instant: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var nanoseconds: Int64

    @inlinable
    public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    @inlinable
    public static func < (left: Instant, right: Instant) -> Bool { left.nanoseconds < right.nanoseconds }

    /// The instant `milliseconds` later; saturates instead of overflowing, so any wire value is safe.
    @inlinable
    public func advanced(byMilliseconds milliseconds: Int64) -> Instant {
        let (product, overflow) = milliseconds.multipliedReportingOverflow(by: 1_000_000)
        let (sum, overflow2) = nanoseconds.addingReportingOverflow(overflow ? Int64.max : product)
        return Instant(nanoseconds: overflow2 ? Int64.max : sum)
    }

    /// Whole milliseconds from `earlier` to here.
    @inlinable
    public func milliseconds(since earlier: Instant) -> Int64 { (nanoseconds - earlier.nanoseconds) / 1_000_000 }

    public var description: String { "\(nanoseconds)ns" }
}
