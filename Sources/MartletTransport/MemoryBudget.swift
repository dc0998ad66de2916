internal import Synchronization

/// Bytes that all connections of a broker together may hold in requests (`queued.max.request.bytes`).
///
/// Shared by all loops. Small requests are counted as their bytes arrive, large ones as a whole before they
/// are read; a connection that finds no room stops reading until others are done, so memory stays bounded
/// whatever peers send.
package final class MemoryBudget: Sendable {
    /// Bytes that may be reserved at once.
    package let limit: Int
    private let reserved = Atomic<Int>(0)
    /// Large requests that were admitted and are not answered yet.
    private let admissions = Atomic<Int>(0)

    package init(limit: Int) { self.limit = limit }

    /// Bytes reserved now.
    package var reservedByteCount: Int { reserved.load(ordering: .relaxed) }

    /// Whether further bytes fit. Readers check before they read on; one read may overshoot.
    package var hasRoom: Bool { reservedByteCount < limit }

    /// Counts bytes that have arrived already.
    package func reserve(_ byteCount: Int) { reserved.wrappingAdd(byteCount, ordering: .relaxed) }

    /// Reserves room for the rest of a large request before it is read. One is admitted whatever its size and
    /// whatever others hold, so that requests always go on; the limit may be exceeded by that one.
    ///
    /// - Returns: `false` if there is no room now. A `true` is given back by ``endAdmission()`` (and the bytes
    ///   by ``release(_:)``).
    package func admit(_ byteCount: Int) -> Bool {
        let (_, new) = reserved.wrappingAdd(byteCount, ordering: .relaxed)
        if new <= limit {
            admissions.wrappingAdd(1, ordering: .relaxed)
            return true
        }
        if admissions.compareExchange(expected: 0, desired: 1, ordering: .relaxed).exchanged { return true }
        reserved.wrappingSubtract(byteCount, ordering: .relaxed)
        return false
    }

    package func endAdmission() {
        let (old, _) = admissions.wrappingSubtract(1, ordering: .relaxed)
        precondition(old > 0, "an admission was ended that was never given")
    }

    package func release(_ byteCount: Int) {
        let (old, _) = reserved.wrappingSubtract(byteCount, ordering: .relaxed)
        precondition(old >= byteCount, "released \(byteCount) of \(old) reserved bytes")
    }
}
