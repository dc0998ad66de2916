public import MartletLogModel

/// Where to start when a partition has no committed position, or its position is no longer in the log.
public enum OffsetReset: Sendable, Hashable {
    case earliest
    case latest
    /// Report ``ClientError/Code/offsetOutOfRange`` and leave the decision to the caller.
    case fail
}

/// Whether records of open and aborted transactions are handed out (KIP-98).
public enum IsolationLevel: Sendable, Hashable {
    case readUncommitted
    case readCommitted
}

/// How a consumer is a member of its group.
public enum GroupProtocol: Sendable, Hashable, CaseIterable {
    /// Members join in rounds and one of them shares out the partitions (Kafka's original protocol). Any broker.
    case classic
    /// The coordinator shares out the partitions and moves them one by one; nobody else stops (KIP-848). Brokers of
    /// Kafka 4.0, and Martlet.
    case consumer
}

/// How the group leader shares partitions among members. All members of a group need one in common.
public enum AssignmentStrategy: Sendable, Hashable, CaseIterable {
    /// Contiguous ranges per topic; members with the same topics get the same partition numbers.
    case range
    /// All partitions dealt out one after the other.
    case roundRobin
    /// Balanced, moving as few partitions as possible, without stopping the others (KIP-429).
    case cooperativeSticky

    /// Kafka's name of the protocol.
    public var name: String {
        switch self {
        case .range: "range"
        case .roundRobin: "roundrobin"
        case .cooperativeSticky: "cooperative-sticky"
        }
    }
}

/// A change of the partitions that a member owns. Reported from within `poll`, before the next records.
public enum RebalanceEvent: Sendable, Hashable {
    /// These partitions are about to be given up; commits for them still succeed inside the callback.
    case revoked([TopicPartition])
    /// These partitions went to others without notice (session expired); commits for them fail.
    case lost([TopicPartition])
    /// These partitions are now ours, in addition to those kept.
    case assigned([TopicPartition])
}

/// Settings of a ``Consumer``.
public struct ConsumerConfiguration: Sendable {
    /// How to reach the cluster.
    public var client: ClientConfiguration
    /// Group for `subscribe` and for committed offsets; not needed for `assign` alone.
    public var groupID: String?
    /// Static membership: a restart with the same id within the session timeout causes no rebalance (KIP-345).
    public var groupInstanceID: String?
    /// Protocol of the group. A group may hold members of both while it goes over.
    public var groupProtocol: GroupProtocol = .classic
    /// With ``GroupProtocol/consumer``: which of the coordinator's assignors shares out the partitions, such as `uniform`
    /// or `range`; `nil` leaves it to the coordinator.
    public var serverAssignor: String?
    /// With ``GroupProtocol/classic``: strategies offered to the group, the preferred one first. Do not mix the cooperative with eager ones.
    public var assignmentStrategies: [AssignmentStrategy] = [.range]
    /// Where to start without a usable position.
    public var offsetReset: OffsetReset = .latest
    /// Which records of transactions to hand out.
    public var isolation: IsolationLevel = .readUncommitted
    /// Whether positions are committed by themselves: every ``autoCommitInterval``, before partitions are given
    /// up, and on `close`. Only records handed out *before* the latest `poll` count as processed.
    public var isAutoCommitEnabled = true
    /// Pause between two automatic commits.
    public var autoCommitInterval: Duration = .seconds(5)
    /// With ``GroupProtocol/classic``: silence after which the coordinator takes a member for dead. In the other protocol
    /// the coordinator decides.
    public var sessionTimeout: Duration = .seconds(45)
    /// With ``GroupProtocol/classic``: pause between heartbeats; a third of ``sessionTimeout`` or less.
    public var heartbeatInterval: Duration = .seconds(3)
    /// Longest time between two polls before the member leaves the group, and longest time it may take to
    /// rejoin in a rebalance.
    public var pollIntervalLimit: Duration = .seconds(300)
    /// Bytes a broker waits for before it answers a fetch...
    public var fetchMinimumBytes = 1
    /// ...unless this time is over.
    public var fetchMaximumWait: Duration = .milliseconds(500)
    /// Bytes of one answer of a broker. A single larger batch is still delivered.
    public var fetchMaximumBytes = 50 * 1024 * 1024
    /// Bytes of one partition in one answer.
    public var partitionFetchBytes = 1024 * 1024
    /// Bytes fetched ahead of the caller; fetching pauses above this, so an idle consumer stays small. Answers on
    /// their way may add as much again.
    public var bufferBytes = 64 * 1024 * 1024
    /// Largest decompressed size accepted of one batch.
    public var decompressedBatchByteLimit = 256 * 1024 * 1024
    /// Whether the checksum of each batch is verified.
    public var isChecksumVerified = true
    /// Rack of this consumer, so that brokers can point it to a near replica (KIP-392).
    public var rackID: String?
    /// Called from within `poll` around changes of the assignment. The next records wait for it.
    public var onRebalance: (@Sendable (RebalanceEvent) async -> Void)?

    public init(_ client: ClientConfiguration, groupID: String? = nil) {
        self.client = client
        self.groupID = groupID
    }

    /// Default settings for a comma-separated list of `HOST:PORT`.
    public init(bootstrap: String, groupID: String? = nil) throws(ClientError) {
        self.init(try ClientConfiguration(bootstrap: bootstrap), groupID: groupID)
    }

    func validate() throws(ClientError) {
        try client.validate()
        func require(_ holds: Bool, _ key: String, _ value: some CustomStringConvertible, _ allowed: String)
            throws(ClientError)
        { try ClientConfiguration.require(holds, key, value, allowed) }
        try require(groupID != "", "groupID", "empty", "a name, or nil")
        try require(!assignmentStrategies.isEmpty, "assignmentStrategies", "empty", "at least one")
        let isCooperative = assignmentStrategies.contains(.cooperativeSticky)
        try require(
            !isCooperative || assignmentStrategies.count == 1, "assignmentStrategies",
            assignmentStrategies.map(\.name).joined(separator: ","),
            "cooperative-sticky alone, or eager ones only")
        try require(serverAssignor != "", "serverAssignor", "empty", "a name, or nil")
        try require(
            serverAssignor == nil || groupProtocol == .consumer, "serverAssignor", serverAssignor ?? "",
            "nil with groupProtocol .classic; assignmentStrategies says how members share")
        try require(autoCommitInterval > .zero, "autoCommitInterval", autoCommitInterval, "more than zero")
        try require(
            heartbeatInterval > .zero && heartbeatInterval < sessionTimeout, "heartbeatInterval",
            heartbeatInterval,
            "more than zero and less than sessionTimeout (\(sessionTimeout))")
        try require(pollIntervalLimit > .zero, "pollIntervalLimit", pollIntervalLimit, "more than zero")
        try require(fetchMinimumBytes >= 0, "fetchMinimumBytes", fetchMinimumBytes, "zero or more")
        try require(fetchMaximumWait >= .zero, "fetchMaximumWait", fetchMaximumWait, "zero or more")
        try require(
            fetchMaximumBytes >= 1 && fetchMaximumBytes <= client.responseByteLimit, "fetchMaximumBytes",
            fetchMaximumBytes, "1 to client.responseByteLimit (\(client.responseByteLimit))")
        try require(partitionFetchBytes >= 1, "partitionFetchBytes", partitionFetchBytes, "1 or more")
        try require(bufferBytes >= 1, "bufferBytes", bufferBytes, "1 or more")
    }
}
