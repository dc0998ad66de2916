package import Logging
internal import MartletLogModel
package import MartletStorage
package import MartletTransport
package import NIOCore
package import NIOPosix

/// What all loops of a broker share. Immutable after start, or thread-safe by itself.
package final class BrokerServices: Sendable {
    package let settings: BrokerSettings
    package let logger: Logger
    package let budget: MemoryBudget
    /// Threads that wait for the device in `fdatasync`. Concurrent flushes of several files share one
    /// commit of the file system's journal, so there are more of them than cores.
    package let flushPool: NIOThreadPool
    /// Threads for everything else that blocks or computes for long: opening and recovery, cold reads,
    /// inflating compressed batches, compaction.
    package let workPool: NIOThreadPool
    package let directory: LogDirectory<PosixDisk>
    package let controller: ControllerShell
    package let producerIDs = ProducerIDBlocks()
    package let loops: LoopRegistry

    package init(
        settings: BrokerSettings, logger: Logger, budget: MemoryBudget, flushPool: NIOThreadPool,
        workPool: NIOThreadPool, directory: LogDirectory<PosixDisk>, controller: ControllerShell,
        loops: LoopRegistry
    ) {
        self.settings = settings
        self.logger = logger
        self.budget = budget
        self.flushPool = flushPool
        self.workPool = workPool
        self.directory = directory
        self.controller = controller
        self.loops = loops
    }
}

/// The loops of a broker and which partition lives on which.
// SAFETY: `all` is set once, before the listener accepts and before any loop runs a task of ours.
package final class LoopRegistry: @unchecked Sendable {
    package private(set) var all: [BrokerLoop] = []

    package init() {}

    package var count: Int { all.count }

    package func install(_ loops: [BrokerLoop]) {
        precondition(all.isEmpty && !loops.isEmpty, "loops are installed once")
        all = loops
    }

    /// Partitions of one topic are dealt out in turn, starting at a place that depends on the topic.
    package func index(of key: PartitionKey) -> Int {
        Int((key.topicID.low &+ UInt64(UInt32(bitPattern: key.partition.rawValue))) % UInt64(all.count))
    }

    package func loop(of key: PartitionKey) -> BrokerLoop { all[index(of: key)] }

    package func loop(for eventLoop: any EventLoop) -> BrokerLoop {
        guard let loop = all.first(where: { $0.eventLoop === eventLoop }) else {
            preconditionFailure("the event loop is not one of this broker's")
        }
        return loop
    }
}
