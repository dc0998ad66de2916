import MartletKafkaProtocol
package import MartletLogModel

// Offsets as part of transactions (KIP-98, KIP-447): they are appended under the producer's id, wait, and count when
// the marker of the transaction says so.

extension GroupCoordinatorShard {
    /// Replays a record of a producer's transaction. The only writer of pending offsets.
    package mutating func replay(_ record: CoordinatorRecord, producerID: Int64, now: Timestamp) {
        guard case .offsetCommit(let key, let value?) = record, !configuration.suspended.contains(.pendingOffsets)
        else { return replay(record, now: now) }
        pendingOffsets.add(key, value, producerID: producerID)
        ensureGroup(key.group, now: now)
    }

    /// Replays a marker: the offsets of the producer's transaction count, or never will.
    package mutating func replayTransactionEnd(producerID: Int64, commits: Bool, now: Timestamp) {
        for (key, value, order) in pendingOffsets.take(producerID: producerID) where commits {
            pendingOffsets.supersede(key, before: order)
            replayCommitted(.offsetCommit(key, value), now: now)
        }
    }

    /// The marker for this partition: appended here, so that no offset of the transaction can come behind it.
    mutating func endTransaction(_ id: RequestID, _ marker: TransactionMarker, _ outbox: inout Outbox) {
        outbox.appends.append(
            Outbox.Append(records: [], continuations: [.respond(id, .transactionEnded(.none))], marker: marker))
    }

    /// Whether the answer to a reader that wants stable offsets is still open (KIP-447).
    func isUnstable(group: String, topic: String, partition: Int32) -> Bool {
        var key = OffsetCommitKey()
        key.group = group
        key.topic = topic
        key.partition = partition
        return pendingOffsets.contains(key)
    }

    /// An OffsetFetch whose reader must not see an offset that a transaction is about to change.
    ///
    /// - Parameter isWhole: the reader asked for all offsets of the group; those that are only pending are named too.
    func markUnstable(_ response: inout OffsetFetchResponse.OffsetFetchResponseGroup, isWhole: Bool) {
        guard pendingOffsets.hasOffsets(group: response.groupID), !configuration.suspended.contains(.stableOffsets)
        else { return }
        if isWhole {
            for pending in pendingOffsets.partitions(group: response.groupID).sorted() {
                let entry = fetchOffsets(
                    group: response.groupID, topic: pending.topic, topicID: .zero,
                    partitions: [pending.partition.rawValue])
                if let index = response.topics.firstIndex(where: { $0.name == pending.topic }) {
                    let isNamed = response.topics[index].partitions.contains {
                        $0.partitionIndex == pending.partition.rawValue
                    }
                    if !isNamed { response.topics[index].partitions += entry.partitions }
                } else {
                    response.topics.append(entry)
                }
            }
        }
        for topic in response.topics.indices {
            for partition in response.topics[topic].partitions.indices {
                let index = response.topics[topic].partitions[partition].partitionIndex
                guard isUnstable(group: response.groupID, topic: response.topics[topic].name, partition: index)
                else { continue }
                response.topics[topic].partitions[partition].committedOffset = -1
                response.topics[topic].partitions[partition].committedLeaderEpoch = -1
                response.topics[topic].partitions[partition].metadata = ""
                response.topics[topic].partitions[partition].errorCode = ErrorCode.unstableOffsetCommit.rawValue
            }
        }
    }
}
