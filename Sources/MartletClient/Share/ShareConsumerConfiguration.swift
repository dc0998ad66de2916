/// How a ``ShareConsumer`` says what became of its records.
public enum ShareAcknowledgementMode: Sendable, Hashable, CaseIterable {
    /// The records of a poll count as accepted with the next poll, with `commit` and with `close`, unless `acknowledge`
    /// has said something else.
    case implicit
    /// Every record must be acknowledged before the next poll.
    case explicit
}

/// How many records a broker gives out at once (KIP-1206).
public enum ShareAcquireMode: Sendable, Hashable, CaseIterable {
    /// Whole batches as they were produced: cheaper, and more than ``ShareConsumerConfiguration/maximumRecords`` if a
    /// batch holds more.
    case wholeBatches
    /// Never more than ``ShareConsumerConfiguration/maximumRecords``. Brokers before Kafka 4.2 give whole batches
    /// nevertheless.
    case recordLimit

    var wireValue: Int8 {
        switch self {
        case .wholeBatches: 0
        case .recordLimit: 1
        }
    }
}

/// Settings of a ``ShareConsumer``.
///
/// What concerns all members is set at the brokers, for the group: how long a lock lasts
/// (`share.record.lock.duration.ms`), how often a record is given out (`share.delivery.count.limit`), where the group
/// begins (`share.auto.offset.reset`, the end of the log unless set) and whether records of open and aborted
/// transactions are left out (`share.isolation.level`). See ``Admin/alterConfig(_:_:)``.
public struct ShareConsumerConfiguration: Sendable {
    /// How to reach the cluster.
    public var client: ClientConfiguration
    /// The share group.
    public var groupID: String
    /// How records are acknowledged.
    public var mode = ShareAcknowledgementMode.implicit
    /// How brokers cut what they give out.
    public var acquireMode = ShareAcquireMode.wholeBatches
    /// Records of one answer of a broker, 1 or more; each is locked for this member until it is acknowledged. A member
    /// that is slow should ask for few, lest their locks end while they wait.
    public var maximumRecords = 500
    /// Bytes a broker waits for before it answers a fetch, 1 or more...
    public var fetchMinimumBytes = 1
    /// ...unless this time is over. `commit` and `close` may have to wait as long.
    public var fetchMaximumWait: Duration = .milliseconds(500)
    /// Bytes of one answer of a broker. A single larger batch is still delivered.
    public var fetchMaximumBytes = 50 * 1024 * 1024
    /// Largest decompressed size accepted of one batch.
    public var decompressedBatchByteLimit = 256 * 1024 * 1024
    /// Longest time between two polls before the member leaves the group, so that others get its partitions.
    public var pollIntervalLimit: Duration = .seconds(300)
    /// Rack of this consumer; the coordinator may heed it when it shares out partitions.
    public var rackID: String?
    /// Called from within `poll`, `commit` and `close` with what brokers have said to acknowledgements since.
    public var onAcknowledged: (@Sendable ([ShareAcknowledgementResult]) async -> Void)?

    public init(_ client: ClientConfiguration, groupID: String) {
        self.client = client
        self.groupID = groupID
    }

    /// Default settings for a comma-separated list of `HOST:PORT`.
    public init(bootstrap: String, groupID: String) throws(ClientError) {
        self.init(try ClientConfiguration(bootstrap: bootstrap), groupID: groupID)
    }

    func validate() throws(ClientError) {
        try client.validate()
        func require(_ holds: Bool, _ key: String, _ value: some CustomStringConvertible, _ allowed: String)
            throws(ClientError)
        { try ClientConfiguration.require(holds, key, value, allowed) }
        try require(!groupID.isEmpty, "groupID", "empty", "a name")
        try require(
            (1...Int(Int32.max)).contains(maximumRecords), "maximumRecords", maximumRecords,
            "1 to \(Int32.max)")
        // With zero a poll that waits would be a busy circle of fetches.
        try require(fetchMinimumBytes >= 1, "fetchMinimumBytes", fetchMinimumBytes, "1 or more")
        try require(fetchMaximumWait > .zero, "fetchMaximumWait", fetchMaximumWait, "more than zero")
        try require(
            fetchMaximumBytes >= 1 && fetchMaximumBytes <= client.responseByteLimit, "fetchMaximumBytes",
            fetchMaximumBytes, "1 to client.responseByteLimit (\(client.responseByteLimit))")
        try require(
            decompressedBatchByteLimit >= 1, "decompressedBatchByteLimit", decompressedBatchByteLimit,
            "1 or more")
        try require(pollIntervalLimit > .zero, "pollIntervalLimit", pollIntervalLimit, "more than zero")
    }
}
