internal import DequeModule

/// Keeps the Produce requests of one connection in order while some of them are validated on other threads:
/// a batch that is checked quickly must not overtake an earlier one of the same producer.
///
/// Confined to the connection's loop. Its length is bounded by the connection's in-flight limit.
package struct ProduceGate {
    package final class Entry {
        fileprivate var isReady = false
        fileprivate let forward: () -> Void

        fileprivate init(forward: @escaping () -> Void) { self.forward = forward }
    }

    private var entries = Deque<Entry>()

    /// Whether a request may go straight on.
    package var isEmpty: Bool { entries.isEmpty }

    /// Takes a place in the line; `forward` runs once the entry is ready and all before it have gone.
    package mutating func enter(forward: @escaping () -> Void) -> Entry {
        let entry = Entry(forward: forward)
        entries.append(entry)
        return entry
    }

    /// Returns the entries that may go now, in order; the caller runs them.
    package mutating func ready(_ entry: Entry) -> [Entry] {
        entry.isReady = true
        var released: [Entry] = []
        while let first = entries.first, first.isReady {
            entries.removeFirst()
            released.append(first)
        }
        return released
    }

    package static func run(_ entries: [Entry]) {
        for entry in entries { entry.forward() }
    }
}
