package import MartletLogModel

/// Folders in which work of a deleted partition is still going on. The pools go by the folder's name, and a topic may
/// be created again under the same name at once: its partitions, perhaps on other loops, wait until that work has
/// ended before they are opened.
package final class FolderHolds: Sendable {
    private struct Hold {
        var count = 1
        var waiting: [@Sendable () -> Void] = []
    }

    private let holds = Guarded<[TopicPartition: Hold]>([:])

    package init() {}

    package func hold(_ name: TopicPartition) {
        holds.withLock { holds in
            if holds[name] == nil { holds[name] = Hold() } else { holds[name]?.count += 1 }
        }
    }

    package func release(_ name: TopicPartition) {
        let free: [@Sendable () -> Void] = holds.withLock { holds in
            holds[name]?.count -= 1
            guard holds[name]?.count == 0 else { return [] }
            return holds.removeValue(forKey: name)?.waiting ?? []
        }
        for action in free { action() }
    }

    /// Whether nobody holds the folder; otherwise `action` runs when the last one lets go, on whichever thread.
    package func isFree(_ name: TopicPartition, otherwise action: @escaping @Sendable () -> Void) -> Bool {
        holds.withLock { holds in
            guard holds[name] != nil else { return true }
            holds[name]?.waiting.append(action)
            return false
        }
    }
}
