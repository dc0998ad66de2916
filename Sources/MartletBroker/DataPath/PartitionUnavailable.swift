internal import MartletController
package import MartletLogModel
internal import MartletReplication
internal import MartletStorage

/// Why a partition cannot serve a request.
package struct PartitionUnavailable: Error {
    package var code: ErrorCode
    package var cause: String
    /// Set with NOT_LEADER_OR_FOLLOWER: who leads instead (KIP-951).
    package var leader: (id: Int32, epoch: Int32)?
}

extension ProduceResult {
    init(_ why: PartitionUnavailable) {
        self = .refused(ProduceRefusal(error: why.code, message: why.cause, leader: why.leader))
    }
}

extension Partition {
    /// What the core refuses, in words.
    func unavailable(_ code: ErrorCode) -> PartitionUnavailable {
        let minimum = topic.configuration.minInsyncReplicas
        switch code {
        case .notLeaderOrFollower:
            return PartitionUnavailable(
                code: code, cause: "this broker does not lead \(name), or is handing it over", leader: otherLeader)
        case .notEnoughReplicas:
            return PartitionUnavailable(
                code: code,
                cause: "min.insync.replicas=\(minimum) of \(name), in sync: \(replica.snapshot().inSyncReplicas.count)")
        case .notEnoughReplicasAfterAppend:
            return PartitionUnavailable(
                code: code,
                cause: "min.insync.replicas=\(minimum) of \(name) is more than are in sync; the records may still commit")
        case .offsetNotAvailable:
            return PartitionUnavailable(
                code: code, cause: "the new leader of \(name) does not know yet how far its records are committed")
        case _:
            return PartitionUnavailable(code: code, cause: "\(name): \(code.name)")
        }
    }

    /// Who leads, if that is another broker.
    private var otherLeader: (id: Int32, epoch: Int32)? {
        guard let (leader, epoch) = replica.leaderHint, let leader, leader != replica.local else { return nil }
        return (leader.rawValue, epoch.rawValue)
    }
}

/// Carries a log between the pool that works on it and the loop that owns it.
// SAFETY: exactly one side holds it at a time; the hand-over is a message.
struct LogTransfer: @unchecked Sendable {
    let log: PartitionLog<AnyDisk>

    init(_ log: PartitionLog<AnyDisk>) { self.log = log }
}
