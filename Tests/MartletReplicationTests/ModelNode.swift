import MartletLogModel
import MartletReplication

/// One broker of the model: the disk, and while it runs the core with what a shell keeps around it.
final class ModelNode {
    let id: BrokerID
    var log = ModelLog()
    var savedHighWatermark: Int64 = 0
    var isUp = true
    /// Rises with each start: answers to a process that is gone find nobody.
    var incarnation = 0
    var wasUnclean = false
    /// Stopped uncleanly, and not yet in the in-sync set again.
    var isUnrecovered = false
    var brokerEpoch = BrokerEpoch(0)
    var replica: PartitionReplica
    /// Metadata that has been applied; a start begins at the version of its registration.
    var version = -1
    var firstVersion = 0
    var isRegistered = true
    enum Cut {
        case truncate(Int64)
        case restart(Int64)
    }
    var cut: Cut?
    var waiting: [(id: AppendID, offset: Int64, value: UInt64)] = []
    var nextAppendID: UInt64 = 0
    /// It hangs until then: it asks its leader for nothing.
    var pausedUntil = Instant(nanoseconds: 0)
    /// A planned move that is being prepared in this epoch.
    var drain: (number: Int, epoch: LeaderEpoch, target: BrokerID?)?
    /// Below this the log has been compared with what is committed.
    var verified: Int64 = 0

    init(id: BrokerID, settings: PartitionReplica.Settings) {
        self.id = id
        replica = PartitionReplica(
            local: id, settings: settings, logStartOffset: .zero, recoveredEnd: .zero, highWatermark: .zero)
    }

    /// - Parameter kept: what of the log the next start will find.
    func stop(keeping kept: Int64, unclean: Bool) {
        isUp = false
        isRegistered = false
        incarnation += 1
        if kept < log.end { log.truncate(to: kept) }
        // A clean stop of a process that never registered does not make up for the unclean one before it.
        wasUnclean = wasUnclean || unclean
        isUnrecovered = isUnrecovered || unclean
        cut = nil
        waiting = []
        drain = nil
        verified = min(verified, log.end)
    }

    func start(settings: PartitionReplica.Settings) {
        log.flush()
        isUp = true
        version = -1
        replica = PartitionReplica(
            local: id, settings: settings, logStartOffset: Offset(log.start), recoveredEnd: Offset(log.end),
            highWatermark: Offset(savedHighWatermark))
        verified = min(verified, log.end)
    }
}
