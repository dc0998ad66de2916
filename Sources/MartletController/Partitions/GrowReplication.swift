import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

extension MetadataImage {
    /// The reassignment that gives partitions with fewer than `factor` replicas that many, as `martlet cluster grow`
    /// asks for when one broker becomes three. `topics` limits it to these; `nil` means all, the internal ones too.
    ///
    /// Present replicas stay. New ones go where the partition has no rack yet, then to the brokers with the fewest
    /// replicas; the first place, which says who leads, to the one that is first least often. At most `limit`
    /// partitions: an empty answer says that nothing is left to do. Partitions under reassignment are left alone.
    package func growth(
        toFactor factor: Int, topics: [String]? = nil, limit: Int = ControllerLimits.recordsPerBatchLimit
    ) throws(Refusal) -> AlterPartitionReassignmentsRequest {
        let active = brokers.filter(\.isActive)
        guard factor > 0, factor <= min(active.count, ControllerLimits.replicationFactorLimit) else {
            throw .init(
                .invalidReplicationFactor,
                "Replication factor is \(factor), but \(active.count) broker(s) are active; start more brokers first"
            )
        }
        var load: [BrokerID: Int] = [:]
        var firsts: [BrokerID: Int] = [:]
        for topic in self.topics.values {
            for partition in topic.partitions {
                for replica in partition.replicas { load[replica, default: 0] += 1 }
                if let first = partition.replicas.first { firsts[first, default: 0] += 1 }
            }
        }
        let racks = Dictionary(uniqueKeysWithValues: brokers.map { ($0.id, $0.rack) })

        var request = AlterPartitionReassignmentsRequest()
        request.allowReplicationFactorChange = true
        var count = 0
        let wanted = topics.map { $0.compactMap { topic(named: $0) } } ?? sortedTopics()
        for topic in wanted {
            var entry = AlterPartitionReassignmentsRequest.ReassignableTopic()
            entry.name = topic.name
            for (index, partition) in topic.partitions.enumerated() where count < limit {
                guard partition.replicas.count < factor, !partition.isBeingReassigned else { continue }
                var replicas = partition.replicas
                while replicas.count < factor {
                    let next = active.filter { !replicas.contains($0.id) }
                        .map { broker in
                            let sharing = replicas.count {
                                racks[$0].flatMap { $0 } == broker.rack && broker.rack != nil
                            }
                            return (sharing, load[broker.id] ?? 0, broker.id.rawValue)
                        }
                        .min { $0 < $1 }
                    guard let next else { break }
                    replicas.append(BrokerID(next.2))
                    load[BrokerID(next.2), default: 0] += 1
                }
                if let old = replicas.first {
                    let first = replicas.min {
                        (firsts[$0] ?? 0, $0.rawValue) < (firsts[$1] ?? 0, $1.rawValue)
                    }
                    if let first, first != old, (firsts[first] ?? 0) + 1 < firsts[old] ?? 0 {
                        replicas.removeAll { $0 == first }
                        replicas.insert(first, at: 0)
                        firsts[old, default: 0] -= 1
                        firsts[first, default: 0] += 1
                    }
                }
                var target = AlterPartitionReassignmentsRequest.ReassignablePartition()
                target.partitionIndex = Int32(index)
                target.replicas = replicas.map(\.rawValue)
                entry.partitions.append(target)
                count += 1
            }
            if !entry.partitions.isEmpty { request.topics.append(entry) }
        }
        return request
    }
}
