/// Error code of the Kafka protocol. The named codes, their texts and remedies are generated from
/// `Protocol/Errors` into `Generated/ErrorCodes.swift`; unknown codes of newer peers stay representable.
@frozen
public struct ErrorCode: RawRepresentable, Hashable, Sendable {
    public var rawValue: Int16

    @inlinable
    public init(rawValue: Int16) { self.rawValue = rawValue }
}
