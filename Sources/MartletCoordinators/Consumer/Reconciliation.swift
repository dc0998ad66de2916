import MartletLogModel

/// One step of a member towards its target (KIP-848): first it gives back what the target does not have, then its
/// epoch rises, then it gets what nobody else holds any more.
///
/// That order is the whole safety of the protocol: a partition is handed out only when nobody owns it, and it is
/// owned until its owner says that it has let go, leaves, or is removed (I17).
struct Reconciliation {
    let targetEpoch: Int32
    /// The member's part of the target, without topics that it does not subscribe to any more.
    let target: TopicPartitions
    /// What the member says it has; `nil` if it did not say.
    let owned: TopicPartitions?
    /// The member that owns a partition now, where one does.
    let owners: [UniversalID: [Int32: String]]

    func next(_ member: ConsumerMember) -> ConsumerMember {
        switch member.state {
        case .stable where member.epoch == targetEpoch:
            return member
        case .unrevoked where owns(member.pendingRevocation):
            return member
        case .stable, .unrevoked, .unreleased, .unknown:
            return advance(member)
        }
    }

    /// Who does not say what it has may still have everything.
    private func owns(_ partitions: OwnedPartitions) -> Bool {
        guard let owned else { return !partitions.isEmpty }
        return partitions.contains { topic, epochs in
            owned[topic].map { held in epochs.keys.contains { held.contains($0) } } ?? false
        }
    }

    private func advance(_ member: ConsumerMember) -> ConsumerMember {
        var kept: OwnedPartitions = [:]
        var surplus: OwnedPartitions = [:]
        for (topic, epochs) in member.assigned {
            let wanted = target[topic] ?? []
            for (partition, epoch) in epochs {
                if wanted.contains(partition) {
                    kept[topic, default: [:]][partition] = epoch
                } else {
                    surplus[topic, default: [:]][partition] = epoch
                }
            }
        }
        var next = member
        if owns(surplus) {
            next.state = .unrevoked
            next.assigned = kept
            next.pendingRevocation = surplus
            return next
        }
        var waits = false
        for (topic, wanted) in target {
            for partition in wanted where kept[topic]?[partition] == nil {
                // What the member itself was to give back, and has, is its own to get again.
                if let holder = owners[topic]?[partition], holder != member.id {
                    waits = true
                } else {
                    kept[topic, default: [:]][partition] = targetEpoch
                }
            }
        }
        if next.epoch != targetEpoch {
            next.previousEpoch = next.epoch
            next.epoch = targetEpoch
        }
        next.state = waits ? .unreleased : .stable
        next.assigned = kept
        next.pendingRevocation = [:]
        return next
    }
}
