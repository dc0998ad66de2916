/// Bounds of the controller's state. They protect memory against a mistaken or hostile client and are far
/// above what one machine serves; raising one needs the memory figure of `Tools/bench` to follow.
package enum ControllerLimits {
    /// Topics in the cluster: about 1 KiB of memory each in every broker's image.
    package static let topicCountLimit = 200_000
    /// Partitions in the cluster: about 200 bytes each in every image; the design aims at a million.
    package static let partitionCountLimit = 1_000_000
    /// Partitions of one topic; one request creates them as one batch of records that is flushed at once.
    package static let partitionsPerTopicLimit = 100_000
    /// Partitions one request may create, over all its topics: bounds the size of one metadata append.
    package static let partitionsPerRequestLimit = 100_000
    /// Replicas of a partition; assignments beyond it are refused before anything is reserved.
    package static let replicationFactorLimit = 100
    /// Bytes of one configuration value.
    package static let configValueBytesLimit = 32_768
    /// Producer ids handed to a broker at a time: one metadata append per this many producers.
    package static let producerIDBlockSize: Int64 = 1_000
    /// Brokers in the cluster.
    package static let brokerCountLimit = 10_000
    /// Log directories of one broker.
    package static let logDirectoryCountLimit = 100
    /// Records of one batch of the metadata log, as in Kafka: bounds what a follower must take in at once. Decisions
    /// with more are cut, see ``Decision/batches``.
    package static let recordsPerBatchLimit = 10_000
    /// Partitions that one request may elect leaders for, reassign, or change the in-sync sets of; for what lies
    /// beyond, the answer is OPERATION_NOT_ATTEMPTED.
    package static let partitionChangesPerRequestLimit = 100_000
    /// Leaders elected between two looks at other work.
    package static let electionsPerTickLimit = 10_000
    /// Entities with quotas.
    package static let quotaEntityCountLimit = 100_000
    /// SCRAM credentials of all users.
    package static let credentialCountLimit = 100_000
    /// Access control entries.
    package static let accessControlCountLimit = 100_000
    /// Groups with configurations of their own.
    package static let configuredGroupCountLimit = 10_000
    /// Bytes of a group's name, as the coordinators bound it.
    package static let groupIDBytesLimit = 8 * 1024
    /// Largest batch of a coordinator's topic: a group's record holds all its members' assignments, a transaction's
    /// all its partitions.
    package static let coordinatorTopicMessageBytes = 16 * 1024 * 1024
}
