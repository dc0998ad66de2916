package import MartletLogModel

/// One partition as one share group works through it (KIP-932).
package struct SharePartitionID: Hashable, Comparable, Sendable, CustomStringConvertible {
    package var group: String
    package var topic: UniversalID
    package var partition: Int32

    package init(group: String, topic: UniversalID, partition: Int32) {
        self.group = group
        self.topic = topic
        self.partition = partition
    }

    /// As FindCoordinator names it; its hash chooses the partition of `__share_group_state`.
    package var coordinatorKey: String { "\(group):\(topic):\(partition)" }

    /// The reverse of ``coordinatorKey``; a group's id may contain colons.
    package init?(coordinatorKey: String) {
        let parts = coordinatorKey.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count >= 3, let index = Int32(parts[parts.count - 1]), index >= 0,
            let topic = UniversalID(parts[parts.count - 2])
        else { return nil }
        group = parts.dropLast(2).joined(separator: ":")
        guard !group.isEmpty else { return nil }
        self.topic = topic
        partition = index
    }

    package var description: String { coordinatorKey }

    package static func < (left: SharePartitionID, right: SharePartitionID) -> Bool {
        (left.group, left.topic, left.partition) < (right.group, right.topic, right.partition)
    }
}

/// Delivery state of a record as it stands in records and requests.
package enum ShareDeliveryState: Int8, Sendable {
    case available = 0
    /// Held by a member; never written, since a lock does not outlive its leader.
    case acquired = 1
    case acknowledged = 2
    /// On its way to a dead-letter topic (KIP-1191): written by later releases, over and done with here.
    case archiving = 3
    case archived = 4

    var isTerminal: Bool { self == .acknowledged || self == .archiving || self == .archived }
}

/// Consecutive records in one delivery state.
package struct ShareStateBatch: Hashable, Sendable {
    package var firstOffset: Int64
    package var lastOffset: Int64
    package var state: ShareDeliveryState
    package var deliveryCount: Int16

    package init(firstOffset: Int64, lastOffset: Int64, state: ShareDeliveryState, deliveryCount: Int16) {
        self.firstOffset = firstOffset
        self.lastOffset = lastOffset
        self.state = state
        self.deliveryCount = deliveryCount
    }
}

extension [ShareStateBatch] {
    /// These batches with `newer` written over them and everything before `startOffset` gone, in order, as few as
    /// possible. `newer` may overlap in itself: the later one counts.
    package func merged(with newer: [ShareStateBatch], from startOffset: Int64) -> [ShareStateBatch] {
        var result = self
        for batch in newer { result.write(batch) }
        var merged: [ShareStateBatch] = []
        merged.reserveCapacity(result.count)
        for var batch in result where batch.lastOffset >= startOffset {
            batch.firstOffset = Swift.max(batch.firstOffset, startOffset)
            if let last = merged.last, last.lastOffset + 1 == batch.firstOffset, last.state == batch.state,
                last.deliveryCount == batch.deliveryCount
            {
                merged[merged.count - 1].lastOffset = batch.lastOffset
            } else {
                merged.append(batch)
            }
        }
        return merged
    }

    private mutating func write(_ batch: ShareStateBatch) {
        guard let last, batch.firstOffset <= last.lastOffset else { return append(batch) }
        // The first that ends at or after the batch begins, and the first that begins after it ends.
        let from = partitioningIndex { $0.lastOffset >= batch.firstOffset }
        let to = partitioningIndex { $0.firstOffset > batch.lastOffset }
        var middle: [ShareStateBatch] = []
        if from < to, self[from].firstOffset < batch.firstOffset {
            var left = self[from]
            left.lastOffset = batch.firstOffset - 1
            middle.append(left)
        }
        middle.append(batch)
        if from < to, self[to - 1].lastOffset > batch.lastOffset {
            var right = self[to - 1]
            right.firstOffset = batch.lastOffset + 1
            middle.append(right)
        }
        replaceSubrange(from..<to, with: middle)
    }
}

extension RandomAccessCollection where Index == Int {
    /// The first index whose element fulfils `predicate`, which all elements after it fulfil as well.
    func partitioningIndex(where predicate: (Element) -> Bool) -> Int {
        var low = startIndex
        var high = endIndex
        while low < high {
            let middle = low + (high - low) / 2
            if predicate(self[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}

/// What an operator can set for share groups, for the broker (`group.share.*`) or for one group (`share.*`).
package struct ShareGroupSettings: Hashable, Sendable {
    package var heartbeatIntervalMilliseconds: Int32 = 5_000
    package var sessionTimeoutMilliseconds: Int32 = 45_000
    /// How long a member may hold a record without saying what became of it.
    package var lockMilliseconds: Int64 = 30_000
    /// How often a record is delivered before it is given up.
    package var deliveryCountLimit: Int16 = 5
    /// Records of one share partition between the first unfinished one and the last that was delivered.
    package var recordLockLimit: Int = 2_000
    package var offsetReset: ShareOffsetReset = .latest
    package var readsCommitted = false
    package var allowsRenewal = true
    /// For the simulator's mutation table; empty in production.
    package var suspended: SuspendedRules = []

    package init() {}
}

/// Bounds of share groups. A client that meets one gets a clear error; nothing grows without end.
package enum ShareLimits {
    /// Share partitions whose state one shard of `__share_group_state` keeps.
    package static let partitionCountLimit = 100_000
    /// Runs of records in one write: ten times what may be in flight by any configuration.
    package static let batchCountLimit = 100_000
    /// Bytes of a member id, as Kafka bounds them: the text of a UUID.
    package static let memberIDBytesLimit = 36
    /// Share partitions that one group may have: also bounds the record that names them.
    package static let groupPartitionCountLimit = 100_000
}
