package import MartletController
package import MartletLogModel
package import MartletRecordBatch

/// What a Produce request must know of a partition before its batch can be checked, worked out once per
/// partition and metadata image. Confined to a loop.
package final class ProduceRoute {
    package enum Refusal {
        case `internal`
        case otherLeader(id: BrokerID?, epoch: LeaderEpoch)
    }

    package let topic: TopicImage
    package let key: PartitionKey
    /// Number of the loop's image that this was worked out from.
    package let imageNumber: UInt64
    /// The loop that owns the partition.
    package let target: BrokerLoop
    /// Why clients cannot produce here, if they cannot.
    package let refusal: Refusal?
    package let requiresKeys: Bool
    package let walksRecords: Bool
    /// The topic stamps batches itself.
    package let stampsAppendTime: Bool
    /// Set if batches of every codec stay as their producers made them (`compression.type=producer`).
    package let keepsCodec: Bool
    private let maxBatchBytes: Int
    private let timestampBeforeMax: Int64
    private let timestampAfterMax: Int64

    init(
        topic: TopicImage, partition: PartitionIndex, registration: PartitionImage, imageNumber: UInt64,
        loop: BrokerLoop
    ) {
        self.topic = topic
        self.imageNumber = imageNumber
        self.key = PartitionKey(topicID: topic.id, partition: partition)
        self.target = loop.services.loops.loop(of: key, near: loop)
        if topic.isInternal {
            refusal = .internal
        } else if registration.leader != loop.services.settings.nodeID {
            refusal = .otherLeader(id: registration.leader, epoch: registration.leaderEpoch)
        } else {
            refusal = nil
        }
        let configuration = topic.configuration
        requiresKeys = configuration.cleanupPolicy.contains(.compact)
        walksRecords = configuration.validation == .records || requiresKeys
        stampsAppendTime = configuration.timestampSource == .logAppendTime
        keepsCodec = configuration.compression == .producer
        maxBatchBytes = configuration.maxMessageBytes
        timestampBeforeMax = configuration.timestampBeforeMaxMilliseconds
        timestampAfterMax = configuration.timestampAfterMaxMilliseconds
    }

    package func limits(now: Timestamp) -> BatchLimits {
        BatchLimits(
            maxBatchBytes: maxBatchBytes,
            earliestTimestamp: stampsAppendTime ? .min : now.rawValue.subtractingSaturating(timestampBeforeMax),
            latestTimestamp: stampsAppendTime ? .max : now.rawValue.addingSaturating(timestampAfterMax))
    }
}

/// The routes that a loop has worked out for its present metadata image.
struct ProduceRoutes {
    /// Routes kept; a loop that sees more partitions than this starts over. About 300 bytes each.
    private static let limit = 10_000

    struct Name: Hashable {
        /// Empty where the id is used.
        var topic: String
        var topicID: UniversalID
        var partition: Int32
    }

    private var known: [Name: ProduceRoute] = [:]

    /// Goes up with each image.
    private(set) var imageNumber: UInt64 = 0

    /// The image changed: nothing that was worked out holds any more.
    mutating func imageChanged() {
        imageNumber += 1
        known.removeAll(keepingCapacity: true)
    }

    subscript(name: Name) -> ProduceRoute? {
        get { known[name] }
        set {
            if known.count >= Self.limit { known.removeAll() }
            known[name] = newValue
        }
    }
}
