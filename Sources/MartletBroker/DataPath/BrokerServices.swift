package import Logging
package import MartletLogModel
package import MartletStorage
package import MartletTransport
package import NIOCore
internal import Synchronization

/// What all loops of a broker share. Immutable after start, or thread-safe by itself.
package final class BrokerServices: Sendable {
    package let settings: BrokerSettings
    package let logger: Logger
    package let budget: MemoryBudget
    private let surroundings: Surroundings
    package var flushPool: any WorkQueue { surroundings.flushPool }
    package var workPool: any WorkQueue { surroundings.workPool }
    package var clock: BrokerClock { surroundings.clock }
    package var random: RandomSource { surroundings.random }
    package var peers: any PeerNetwork { surroundings.peers }
    package var suspended: SuspendedRules { surroundings.suspended }
    package let directory: LogDirectory<AnyDisk>
    package let controller: ControllerShell
    package let controllerChannel: ControllerChannel
    package let lifecycle: BrokerLifecycle
    /// Epoch of the present registration of this broker; -1 before there is one. Thread-safe.
    package var brokerEpoch: Int64 { lifecycle.brokerEpoch }
    /// Whether loops serve clients from their start on: a node of several is let into its cluster first.
    package let servesAtOnce: Bool
    package let producerIDs = ProducerIDBlocks()
    package let loops: LoopRegistry
    package let folders = FolderHolds()
    package let shareSessions = ShareSessionRegistry()
    package let memberBytes = MemberBytesTotal()

    package init(
        settings: BrokerSettings, logger: Logger, budget: MemoryBudget, surroundings: Surroundings,
        directory: LogDirectory<AnyDisk>, controller: ControllerShell, controllerChannel: ControllerChannel,
        lifecycle: BrokerLifecycle, servesAtOnce: Bool, loops: LoopRegistry
    ) {
        self.settings = settings
        self.logger = logger
        self.budget = budget
        self.surroundings = surroundings
        self.directory = directory
        self.controller = controller
        self.controllerChannel = controllerChannel
        self.lifecycle = lifecycle
        self.servesAtOnce = servesAtOnce
        self.loops = loops
    }
}

/// What the members of groups make the broker hold, in bytes, over the shards of all its loops.
///
/// Loops that change it at the same time may let it exceed its limit by the members of one request each.
package final class MemberBytesTotal: Sendable {
    private let byteCount = Atomic<Int>(0)

    package var value: Int { byteCount.load(ordering: .relaxed) }

    /// What one shard holds has become another.
    package func change(from old: Int, to new: Int) {
        if new != old { byteCount.wrappingAdd(new - old, ordering: .relaxed) }
    }
}

/// The loops of a broker and which partition lives on which.
///
/// A partition goes to the loop of the first connection that asks for it: where the partitions of a client live
/// with its connection, a batch needs no wake-up of another thread, which for small batches is a quarter of the
/// whole cost (16 KiB produce: 0.70 against 0.95 CPU-seconds per GB). It stays there as long as its topic lives.
// SAFETY: `all` is set once, before the listener accepts and before any loop runs a task of ours; where partitions
// live is behind a lock.
package final class LoopRegistry: @unchecked Sendable {
    /// Partitions that a loop may have beyond the one with the fewest. Few clients must not put all their work
    /// on one core.
    private static let surplusLimit = 4

    private struct Homes {
        var byPartition: [PartitionKey: Int] = [:]
        /// Partitions of each loop.
        var counts: [Int] = []
        /// Connections of each loop.
        var connectionCounts: [Int] = []
    }

    package private(set) var all: [BrokerLoop] = []
    private let homes = Guarded(Homes())

    package init() {}

    /// Lets go of the loops, which refer to this.
    func clear() { all = [] }

    package var count: Int { all.count }

    package func install(_ loops: [BrokerLoop]) {
        precondition(all.isEmpty && !loops.isEmpty, "loops are installed once")
        all = loops
        homes.withLock {
            $0.counts = Array(repeating: 0, count: loops.count)
            $0.connectionCounts = $0.counts
        }
    }

    /// Where the partition lives. Who asks first decides: near `asker` if that is given and has not far more
    /// than others, else dealt out by topic and index.
    package func index(of key: PartitionKey, near asker: BrokerLoop? = nil) -> Int {
        let loopCount = UInt64(all.count)
        return homes.withLock { homes in
            if let home = homes.byPartition[key] { return home }
            var home = Int((key.topicID.low &+ UInt64(UInt32(bitPattern: key.partition.rawValue))) % loopCount)
            if let asker, homes.counts[asker.index] < (homes.counts.min() ?? 0) + Self.surplusLimit {
                home = asker.index
            }
            homes.byPartition[key] = home
            homes.counts[home] += 1
            return home
        }
    }

    package func loop(of key: PartitionKey, near asker: BrokerLoop? = nil) -> BrokerLoop {
        all[index(of: key, near: asker)]
    }

    /// The topic was deleted and every loop knows it: nobody asks for its partitions any more.
    func forget(topic: UniversalID, partitionCount: Int) {
        homes.withLock { homes in
            for index in 0..<partitionCount {
                let key = PartitionKey(topicID: topic, partition: PartitionIndex(Int32(index)))
                if let home = homes.byPartition.removeValue(forKey: key) { homes.counts[home] -= 1 }
            }
        }
    }

    func noteConnections(_ count: Int, of loop: BrokerLoop) {
        homes.withLock { $0.connectionCounts[loop.index] = count }
    }

    /// Whether a connection may go from one loop to the other: not if it would leave the others with much more
    /// than their share.
    func mayMove(from: BrokerLoop, to: BrokerLoop) -> Bool {
        homes.withLock { $0.connectionCounts[to.index] <= $0.connectionCounts[from.index] + 1 }
    }

    package func loop(for eventLoop: any EventLoop) -> BrokerLoop {
        guard let loop = all.first(where: { $0.eventLoop === eventLoop }) else {
            preconditionFailure("the event loop is not one of this broker's")
        }
        return loop
    }
}
