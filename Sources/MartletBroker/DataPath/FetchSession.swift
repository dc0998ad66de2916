package import MartletKafkaProtocol
package import MartletLogModel
internal import OrderedCollections

/// An incremental fetch session (KIP-227): the client names only what changed, the broker answers only what
/// has news. Confined to the connection's loop, one per connection.
package final class FetchSession {
    /// Partitions one session may hold; a client that asks for more is answered without a session.
    package static let partitionLimit = 20_000

    /// How the client named the partition: by id from version 13 on, by name before.
    package struct Name: Hashable {
        package var topicID: UniversalID
        package var topic: String
        package var partition: Int32
    }

    package struct Entry {
        package var currentLeaderEpoch: Int32
        package var fetchOffset: Int64
        package var lastFetchedEpoch: Int32
        package var partitionMaxBytes: Int32
        /// Where a follower's log begins; -1 if it does not say.
        package var logStartOffset: Int64
        /// The high watermark that the other side knows; `Int64.max` if it does not say (KIP-1166).
        package var knownHighWatermark: Int64
        /// What the last response said; -1 if the partition was in no response yet.
        package var sentHighWatermark: Int64 = -1
        package var sentLogStartOffset: Int64 = -1

        package init(_ partition: FetchRequest.FetchPartition) {
            currentLeaderEpoch = partition.currentLeaderEpoch
            fetchOffset = partition.fetchOffset
            lastFetchedEpoch = partition.lastFetchedEpoch
            partitionMaxBytes = partition.partitionMaxBytes
            logStartOffset = partition.logStartOffset
            knownHighWatermark = partition.highWatermark
        }
    }

    package let id: Int32
    /// Epoch the next request must carry: 1 after the session was opened, up to `Int32.max`, then 1 again.
    package private(set) var expectedEpoch: Int32 = 1
    private var partitions: OrderedDictionary<Name, Entry> = [:]

    package init(id: Int32) { self.id = id }

    package var partitionCount: Int { partitions.count }

    /// In the order in which they are to be read.
    package var entries: [(name: Name, entry: Entry)] { partitions.map { ($0.key, $0.value) } }

    package func advanceEpoch() { expectedEpoch = expectedEpoch == .max ? 1 : expectedEpoch + 1 }

    /// Adds what the request names, changes what is known already, removes what it forgets.
    package func update(with request: FetchRequest) {
        for topic in request.topics {
            for partition in topic.partitions {
                let name = Name(topicID: topic.topicID, topic: topic.topic, partition: partition.partition)
                var entry = Entry(partition)
                if let known = partitions[name] {
                    entry.sentHighWatermark = known.sentHighWatermark
                    entry.sentLogStartOffset = known.sentLogStartOffset
                }
                partitions[name] = entry
            }
        }
        for topic in request.forgottenTopicsData {
            for partition in topic.partitions {
                partitions[Name(topicID: topic.topicID, topic: topic.topic, partition: partition)] = nil
            }
        }
    }

    /// Whether the answer for `name` must be sent: it has records, an error, or marks that moved. Remembers
    /// what is sent, and lets a partition that had records wait behind the others next time, so that a busy
    /// one cannot starve them.
    package func takeNews(_ name: Name, _ result: FetchResult) -> Bool {
        guard var entry = partitions[name] else { return false }
        let hasRecords = result.records.byteCount > 0
        let isNews =
            hasRecords || result.error != .none || result.divergingEpoch != nil || result.preferredReplica != nil
            || entry.sentHighWatermark != result.highWatermark || entry.sentLogStartOffset != result.logStartOffset
        guard isNews else { return false }
        // After an error the partition is reported anew once it is well again.
        entry.sentHighWatermark = result.error == .none ? result.highWatermark : -1
        entry.sentLogStartOffset = result.error == .none ? result.logStartOffset : -1
        if hasRecords {
            partitions[name] = nil
        }
        partitions[name] = entry
        return true
    }
}
