internal import Logging
internal import MartletController
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// Periodic work: retention, compaction, rolling by time, checkpoints, coming back from a full disk.
///
/// Partitions that nobody uses are opened one at a time, looked after, and let go again, so that retention
/// reaches them without holding them all in memory.
// SAFETY: timers are touched on the first loop alone.
package final class Maintenance: @unchecked Sendable {
    /// How often checkpoint files are written: bounds what recovery reads after a crash, beside the roll.
    private static let checkpointInterval: TimeAmount = .seconds(5)
    /// How often a full disk is looked at again.
    private static let diskProbeInterval: TimeAmount = .seconds(1)

    private let services: BrokerServices
    private var tasks: [RepeatedTask] = []

    package init(services: BrokerServices) { self.services = services }

    package func start() {
        let services = self.services
        let loop = services.loops.all[0]
        loop.post { loop in
            let configuration = loop.image.brokerConfiguration
            func every(_ interval: TimeAmount, _ body: @escaping @Sendable (BrokerLoop) -> Void) {
                self.tasks.append(
                    loop.eventLoop.scheduleRepeatedTask(initialDelay: interval, delay: interval) { _ in body(loop) })
            }
            every(Self.checkpointInterval) { _ in
                services.workPool.submit { _ in Self.writeCheckpoints(services) }
            }
            every(Self.diskProbeInterval) { _ in Self.probeDisk(services) }
            every(.milliseconds(max(100, configuration.logRetentionCheckIntervalMilliseconds))) { _ in
                for loop in services.loops.all { loop.post { $0.sweepRetention() } }
            }
            every(.milliseconds(max(100, configuration.logCleanerBackoffMilliseconds))) { _ in
                for loop in services.loops.all { loop.post { $0.sweepCompaction() } }
            }
        }
    }

    package func stop() async {
        let loop = services.loops.all[0]
        do {
            try await loop.eventLoop.submit {
                for task in self.tasks { task.cancel() }
                self.tasks = []
            }.get()
        } catch {
            services.logger.debug("maintenance was stopped already", metadata: ["cause": "\(error)"])
        }
    }

    private static func writeCheckpoints(_ services: BrokerServices) {
        do {
            try services.directory.writeCheckpoints()
        } catch {
            services.logger.error("checkpoints cannot be written", metadata: ["cause": "\(error)"])
        }
    }

    private static func probeDisk(_ services: BrokerServices) {
        guard case .full = services.directory.state else { return }
        services.workPool.submit { _ in
            if case .ok = services.directory.refreshDiskState() {
                services.logger.notice("log directory has space again; writes are taken")
            }
        }
    }
}
