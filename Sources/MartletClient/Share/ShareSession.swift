/// The share session with one broker (KIP-932): the broker remembers which partitions are fetched, requests say only
/// what changes. A pure value.
///
/// Requests of a session go one at a time, each with the epoch after the one before; 0 opens it, -1 ends it. A request
/// that opens one cannot acknowledge. After any failure it is not known what the broker has carried out, and the next
/// fetch opens another one.
struct ShareSession: Sendable {
    static let openingEpoch: Int32 = 0
    static let finalEpoch: Int32 = -1

    struct Plan: Sendable, Hashable {
        var epoch: Int32
        /// Partitions that are new to the broker.
        var added: [SharePlace]
        /// Partitions that it is to leave out from now on.
        var forgotten: [SharePlace]
    }

    private(set) var epoch = Self.openingEpoch
    private var known: Set<SharePlace> = []
    private var planned: Set<SharePlace> = []

    /// Acknowledgements can only be sent in a session that exists.
    var isOpen: Bool { epoch != Self.openingEpoch }

    mutating func plan(_ wanted: Set<SharePlace>) -> Plan {
        planned = wanted
        guard isOpen else { return Plan(epoch: epoch, added: wanted.sorted(), forgotten: []) }
        return Plan(
            epoch: epoch, added: wanted.subtracting(known).sorted(),
            forgotten: known.subtracting(wanted).sorted())
    }

    /// The broker has carried out the fetch that was planned.
    mutating func fetched() {
        known = planned
        advance()
    }

    /// The broker has carried out a request without fetching.
    mutating func advance() { epoch = epoch == .max ? 1 : epoch + 1 }

    /// The broker has lost the session, or may have; what was locked there is given out again in time.
    mutating func reset() { self = ShareSession() }
}
