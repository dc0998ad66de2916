internal import Synchronization

/// Bytes that all connections of a broker together may hold in requests (`queued.max.request.bytes`).
///
/// Shared by all loops. Reservations follow the bytes received; a connection that finds no room stops
/// reading until others are done, so memory stays bounded whatever peers send.
package final class MemoryBudget: Sendable {
    /// Bytes that may be reserved at once.
    package let limit: Int
    private let reserved = Atomic<Int>(0)

    package init(limit: Int) { self.limit = limit }

    /// Bytes reserved now.
    package var reservedByteCount: Int { reserved.load(ordering: .relaxed) }

    /// Whether further bytes fit. Readers check before they read on; one read may overshoot.
    package var hasRoom: Bool { reservedByteCount < limit }

    /// Counts bytes that have arrived already.
    package func reserve(_ byteCount: Int) { reserved.wrappingAdd(byteCount, ordering: .relaxed) }

    package func release(_ byteCount: Int) {
        let (old, _) = reserved.wrappingSubtract(byteCount, ordering: .relaxed)
        precondition(old >= byteCount, "released \(byteCount) of \(old) reserved bytes")
    }
}
