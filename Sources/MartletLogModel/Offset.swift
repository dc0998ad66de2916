/// Position of a record in its partition: 0 for the first record ever appended, then +1 each.
///
/// The one offset type of the project. Sentinels of the wire (-1 latest, -2 earliest, ...) never
/// become an `Offset`; see ``OffsetSpec``.
@frozen
public struct Offset: RawRepresentable, Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
    public var rawValue: Int64

    @inlinable
    public init(rawValue: Int64) { self.rawValue = rawValue }

    @inlinable
    public init(_ rawValue: Int64) { self.rawValue = rawValue }

    public static let zero = Offset(0)

    @inlinable
    public static func < (left: Offset, right: Offset) -> Bool { left.rawValue < right.rawValue }

    /// The offset `count` records further on. Offsets never reach `Int64.max` (292 years at 10⁹ records
    /// per second), so overflow is a bug and traps; peers' values must be checked before they get here.
    @inlinable
    public static func + (left: Offset, count: Int64) -> Offset { Offset(left.rawValue + count) }

    /// Number of offsets from `right` up to, not including, `left`.
    @inlinable
    public static func - (left: Offset, right: Offset) -> Int64 { left.rawValue - right.rawValue }

    public var description: String { String(rawValue) }
}

/// Where to start reading, in words instead of the wire's negative sentinels (ListOffsets, KIP-79).
public enum OffsetSpec: Hashable, Sendable {
    /// The log start offset.
    case earliest
    /// The next offset to be written, as far as visible to consumers (high watermark).
    case latest
    /// The first record whose timestamp is at or after this.
    case timestamp(Timestamp)
    /// Exactly this offset.
    case at(Offset)
}
