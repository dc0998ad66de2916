import MartletKafkaProtocol
package import MartletLogModel

/// How far an election may go to find a leader.
enum Election {
    /// The first replica of the assignment if it is in sync, else as `online`.
    case preferred
    /// Whoever leads, if it may go on; else the first replica that is in sync or, with nobody in sync, eligible.
    case online
    /// As `online`, and as a last resort any live replica, which may lack acknowledged records.
    case unclean
}

/// Who may lead while a decision is made: what the image says, changed by what the decision is about to do.
struct LeaderCandidates {
    let image: MetadataImage
    /// Brokers that the decision fences, shuts down or removes.
    var leaving: [BrokerID] = []
    /// A broker that the decision lets in; the image still has it as fenced.
    var arriving: BrokerID?
    /// Log directories that have just been reported as lost.
    var lostDirectories: [UniversalID] = []

    func isLive(_ id: BrokerID) -> Bool {
        guard !leaving.contains(id) else { return false }
        if id == arriving { return true }
        return image.broker(id)?.isActive ?? false
    }

    /// Live, and its log directory is one that the broker has: an empty disk under an old id leads nothing (KIP-858).
    func canLead(_ id: BrokerID, _ partition: PartitionImage) -> Bool {
        isLive(id) && hasDirectory(partition.directory(of: id), on: id)
    }

    func hasDirectory(_ directory: UniversalID, on id: BrokerID) -> Bool {
        guard directory != LogDirectoryID.lost, !lostDirectories.contains(directory) else { return false }
        guard !LogDirectoryID.isReserved(directory), let broker = image.broker(id) else { return true }
        return broker.logDirectories.isEmpty || broker.logDirectories.contains(directory)
    }

    /// The directory of a new replica: known at once where the broker has one only.
    func defaultDirectory(of id: BrokerID) -> UniversalID {
        let directories = image.broker(id)?.logDirectories ?? []
        return directories.count == 1 ? directories[0] : .zero
    }
}

/// Directory ids that mean something else than a directory (KIP-858).
package enum LogDirectoryID {
    /// The replica's directory is not known.
    package static let unknown = UniversalID.zero
    /// The directory has failed, and the broker knows no more than that.
    package static let lost = UniversalID(high: 0, low: 2)

    package static func isReserved(_ id: UniversalID) -> Bool { id.high == 0 && id.low < 100 }
}

/// One change of one partition in the making: set the targets, then ask for the ``record(topicID:index:_:)`` that
/// leads there, which also completes a reassignment, elects a leader, and keeps the eligible replicas.
///
/// Rules (KIP-455, KIP-497, KIP-704, KIP-966):
/// - A leader is in sync, or, when nobody is, eligible; then it is the only one in sync.
/// - A replica that leaves the in-sync set while the set is below its minimum becomes eligible: it has every
///   committed record, since nothing was committed after. At the minimum again, nobody but the set is eligible.
/// - A replica that may have lost records (`lossy`) is neither in sync nor eligible.
/// - With nobody in sync or eligible the last leader is remembered, and may come back as an unclean leader.
/// - A new leader, and a replica set that loses members, begin a new leader epoch.
struct PartitionUpdate {
    let current: PartitionImage
    /// Whether the cluster keeps eligible replicas (`eligible.leader.replicas.version`).
    let tracksEligible: Bool
    let configuredMinInsync: Int
    var election: Election = .online
    var isr: [BrokerID]
    var replicas: [BrokerID]
    var adding: [BrokerID]
    var removing: [BrokerID]
    var isRecovering: Bool
    /// Replicas whose last stop was unclean, or that are gone for good.
    var lossy: [BrokerID] = []
    /// New log directories of replicas.
    var directories: [(BrokerID, UniversalID)] = []
    private var eligible: [BrokerID]
    private let suspended: SuspendedControllerRules

    init(
        _ partition: PartitionImage, tracksEligible: Bool, configuredMinInsync: Int, suspended: SuspendedControllerRules
    ) {
        self.suspended = suspended
        current = partition
        self.tracksEligible = tracksEligible
        self.configuredMinInsync = configuredMinInsync
        isr = partition.isr
        replicas = partition.replicas
        adding = partition.addingReplicas
        removing = partition.removingReplicas
        isRecovering = partition.isRecovering
        eligible = partition.eligibleLeaderReplicas
    }

    /// The change, or `nil` if nothing changes.
    func record(topicID: UniversalID, index: Int32, _ candidates: LeaderCandidates) -> PartitionChangeRecord?
    {
        var target = self
        target.completeReassignment()
        target.updateEligible()

        var record = PartitionChangeRecord()
        record.topicID = topicID
        record.partitionID = index
        let (leader, isUnclean) = target.elect(candidates)
        if leader != current.leader {
            if let leader, target.eligible.contains(leader) {
                target.isr = [leader]
                // With a minimum of one the new leader commits alone: nobody else keeps up with it.
                let commitsAlone = target.minInsync <= 1
                target.eligible.removeAll { $0 == leader || commitsAlone }
            } else if let leader, isUnclean {
                target.isr = [leader]
                target.eligible = []
                target.isRecovering = true
            }
            record.leader = leader?.rawValue ?? -1
        } else if !current.replicas.allSatisfy(target.replicas.contains) {
            // What the removed replica still acknowledges in the old epoch must not count (KIP-320).
            record.leader = current.leader?.rawValue ?? -1
        }
        if target.isr != current.isr, !target.isr.isEmpty || tracksEligible {
            record.isr = target.isr.map(\.rawValue)
        }
        if target.eligible != current.eligibleLeaderReplicas {
            record.eligibleLeaderReplicas = target.eligible.map(\.rawValue)
        }
        if tracksEligible { rememberLeader(in: &record, next: leader) }
        target.describeAssignment(in: &record, candidates)
        if target.isRecovering != current.isRecovering {
            record.leaderRecoveryState = target.isRecovering ? 1 : 0
        }
        return PartitionChange.isEmpty(record) ? nil : record
    }

    /// A record that raises the partition epoch alone: it names the in-sync set that there is.
    func unchangedRecord(topicID: UniversalID, index: Int32) -> PartitionChangeRecord {
        var record = PartitionChangeRecord()
        record.topicID = topicID
        record.partitionID = index
        record.isr = current.isr.map(\.rawValue)
        return record
    }

    /// A reassignment is complete once every replica that stays is in sync.
    private mutating func completeReassignment() {
        guard !adding.isEmpty || !removing.isEmpty else { return }
        let staying = replicas.filter { !removing.contains($0) }
        let inSync = isr.filter { !removing.contains($0) }
        guard !staying.isEmpty, !inSync.isEmpty, staying.allSatisfy(inSync.contains) else { return }
        replicas = staying
        isr = inSync
        adding = []
        removing = []
    }

    private mutating func updateEligible() {
        guard tracksEligible, isr.count < minInsync || suspended.contains(.eligibleMinimum) else {
            eligible = []
            return
        }
        // Ascending, so that the same facts give the same bytes.
        eligible = Set(eligible).union(current.isr)
            .filter { !isr.contains($0) && !isLossy($0) && replicas.contains($0) }
            .sorted()
    }

    private func isLossy(_ id: BrokerID) -> Bool { lossy.contains(id) && !suspended.contains(.lossyReplicas) }

    private var minInsync: Int {
        PartitionImage.effectiveMinInsync(
            configured: configuredMinInsync, replicas: replicas.count, adding: adding.count)
    }

    private func elect(_ candidates: LeaderCandidates) -> (leader: BrokerID?, isUnclean: Bool) {
        func isClean(_ id: BrokerID) -> Bool {
            (isr.contains(id) || (isr.isEmpty && eligible.contains(id))) && replicas.contains(id)
                && candidates.canLead(id, current)
        }
        if election == .preferred, let preferred = replicas.first, isClean(preferred) {
            return (preferred, false)
        }
        if let leader = current.leader, isClean(leader) { return (leader, false) }
        if let leader = replicas.first(where: isClean) { return (leader, false) }
        if tracksEligible, isr.isEmpty, eligible.isEmpty, current.lastKnownEligibleReplicas.count == 1 {
            let last = current.lastKnownEligibleReplicas[0]
            if replicas.contains(last), candidates.canLead(last, current) { return (last, true) }
        }
        guard election == .unclean else { return (nil, false) }
        let leader =
            replicas.first { candidates.canLead($0, current) } ?? replicas.first { candidates.isLive($0) }
        return (leader, leader != nil)
    }

    /// The last leader is noted when the partition loses it with nobody in sync, and forgotten with a new one.
    private func rememberLeader(in record: inout PartitionChangeRecord, next: BrokerID?) {
        if record.isr?.isEmpty == true, let last = current.leader {
            if current.lastKnownEligibleReplicas != [last] { record.lastKnownElr = [last.rawValue] }
        } else if next != nil, !current.lastKnownEligibleReplicas.isEmpty {
            record.lastKnownElr = []
        }
    }

    private func describeAssignment(in record: inout PartitionChangeRecord, _ candidates: LeaderCandidates) {
        if replicas != current.replicas { record.replicas = replicas.map(\.rawValue) }
        if adding != current.addingReplicas { record.addingReplicas = adding.map(\.rawValue) }
        if removing != current.removingReplicas { record.removingReplicas = removing.map(\.rawValue) }
        let inSync = record.isr ?? []
        let places = replicas.map { id -> UniversalID in
            if let given = directories.last(where: { $0.0 == id }) { return given.1 }
            guard current.replicas.contains(id) else { return candidates.defaultDirectory(of: id) }
            let known = current.directory(of: id)
            // Who comes into the in-sync set has the partition in a directory it has, whatever stood here before.
            guard inSync.contains(id.rawValue), !candidates.hasDirectory(known, on: id) else { return known }
            return candidates.defaultDirectory(of: id)
        }
        if places != current.directories, !(current.directories.isEmpty && places.allSatisfy { $0 == .zero })
        {
            record.directories = places
        }
    }
}

extension PartitionChange {
    static func isEmpty(_ record: PartitionChangeRecord) -> Bool {
        record.isr == nil && record.eligibleLeaderReplicas == nil && record.lastKnownElr == nil
            && record.leader == leaderUnchanged && record.replicas == nil && record.removingReplicas == nil
            && record.addingReplicas == nil && record.leaderRecoveryState < 0 && record.directories == nil
    }
}

extension PartitionImage {
    /// Smallest in-sync set at which `acks=all` is taken and the high watermark moves (KIP-966). Never more than the
    /// replicas there are; what a reassignment adds counts once it is complete. Leaders and the controller must agree
    /// on it: what is eligible depends on it.
    package static func effectiveMinInsync(configured: Int, replicas: Int, adding: Int) -> Int {
        min(configured, max(1, replicas - adding))
    }

    /// See ``effectiveMinInsync(configured:replicas:adding:)``.
    package func effectiveMinInsync(configured: Int) -> Int {
        Self.effectiveMinInsync(
            configured: configured, replicas: replicas.count, adding: addingReplicas.count)
    }

    package var isBeingReassigned: Bool { !addingReplicas.isEmpty || !removingReplicas.isEmpty }

    package func directory(of id: BrokerID) -> UniversalID {
        guard let position = replicas.firstIndex(of: id), position < directories.count else { return .zero }
        return directories[position]
    }
}
