/// Rules of the controller that its own proofs switch off one at a time, to see that they would be missed. Empty in
/// production; what the simulator switches off stands in `SuspendedRules`.
package struct SuspendedControllerRules: OptionSet, Hashable, Sendable {
    package var rawValue: UInt8

    package init(rawValue: UInt8) { self.rawValue = rawValue }

    /// A replica whose last run ended uncleanly is not eligible to lead (KIP-966).
    package static let lossyReplicas = SuspendedControllerRules(rawValue: 1 << 0)
    /// Nobody beside an in-sync set of sufficient size is eligible to lead (KIP-966).
    package static let eligibleMinimum = SuspendedControllerRules(rawValue: 1 << 1)
    /// A member comes into the in-sync set under the epoch of its present run alone (KIP-903).
    package static let membersBrokerEpoch = SuspendedControllerRules(rawValue: 1 << 2)
    /// Another minimum of the in-sync set forgets who was eligible under the one before (KIP-966).
    package static let eligibleReset = SuspendedControllerRules(rawValue: 1 << 3)
    /// An accepted AlterPartition raises the partition epoch whether or not it changes anything.
    package static let alterationEpoch = SuspendedControllerRules(rawValue: 1 << 4)

    package static let all: [SuspendedControllerRules] = [
        .lossyReplicas, .eligibleMinimum, .membersBrokerEpoch, .eligibleReset, .alterationEpoch,
    ]
}
