public import MartletLogModel

/// Administers topics, settings, groups and records of a cluster.
///
/// Batch calls report per item in a dictionary of results and throw only if the call as a whole failed; the
/// single form beside each throws the item's error. Call ``close()`` at the end.
public final class Admin: Sendable {
    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ClientConfiguration) throws(ClientError) {
        try configuration.validate()
    }

    // MARK: Cluster

    /// Brokers, controller and id of the cluster.
    public func describeCluster() async throws -> ClusterDescription { throw Self.pending }

    /// The API versions of one broker, or of any if `broker` is `nil`.
    public func brokerVersions(_ broker: BrokerID? = nil) async throws -> BrokerVersions { throw Self.pending }

    /// Log directories of these brokers, of all if `nil`.
    public func describeLogDirectories(brokers: [BrokerID]? = nil) async throws -> [LogDirectoryDescription] {
        throw Self.pending
    }

    // MARK: Topics

    /// Makes topics. With `validateOnly` nothing is made, but errors are the same.
    public func createTopics(
        _ topics: [TopicSpecification], validateOnly: Bool = false
    ) async throws -> [String: Result<CreatedTopic, ClientError>] { throw Self.pending }

    /// Makes one topic.
    @discardableResult
    public func createTopic(_ topic: TopicSpecification, validateOnly: Bool = false) async throws -> CreatedTopic {
        try await createTopics([topic], validateOnly: validateOnly).single(topic.name).get()
    }

    /// All topics, sorted by name.
    public func listTopics(includeInternal: Bool = false) async throws -> [TopicListing] { throw Self.pending }

    /// Topics with their partitions.
    public func describeTopics(_ names: [String]) async throws -> [String: Result<TopicDescription, ClientError>] {
        throw Self.pending
    }

    /// One topic with its partitions.
    public func describeTopic(_ name: String) async throws -> TopicDescription {
        try await describeTopics([name]).single(name).get()
    }

    /// Deletes topics with all their records.
    public func deleteTopics(_ names: [String]) async throws -> [String: Result<Void, ClientError>] {
        throw Self.pending
    }

    /// Deletes one topic with all its records.
    public func deleteTopic(_ name: String) async throws {
        try await deleteTopics([name]).single(name).get()
    }

    /// Raises the number of partitions to the given totals. Keys may map to other partitions afterwards.
    public func createPartitions(
        _ totals: [String: Int], validateOnly: Bool = false
    ) async throws -> [String: Result<Void, ClientError>] { throw Self.pending }

    /// Raises the number of partitions of one topic to `total`.
    public func createPartitions(topic: String, total: Int) async throws {
        try await createPartitions([topic: total]).single(topic).get()
    }

    // MARK: Settings

    /// All settings of these resources, sorted by name.
    public func describeConfigs(
        _ resources: [ConfigResource], includeDocumentation: Bool = false
    ) async throws -> [ConfigResource: Result<[ConfigEntry], ClientError>] { throw Self.pending }

    /// All settings of one resource, sorted by name.
    public func describeConfig(_ resource: ConfigResource) async throws -> [ConfigEntry] {
        try await describeConfigs([resource]).single(resource).get()
    }

    /// Changes single settings and leaves the others alone (KIP-339).
    public func alterConfigs(
        _ changes: [ConfigResource: [ConfigChange]], validateOnly: Bool = false
    ) async throws -> [ConfigResource: Result<Void, ClientError>] { throw Self.pending }

    /// Changes single settings of one resource.
    public func alterConfig(_ resource: ConfigResource, _ changes: [ConfigChange]) async throws {
        try await alterConfigs([resource: changes]).single(resource).get()
    }

    // MARK: Groups

    /// Groups of all brokers, sorted by name; `states` filters where the broker can (KIP-518).
    public func listGroups(states: [String] = []) async throws -> [GroupListing] { throw Self.pending }

    /// Groups with their members.
    public func describeGroups(_ groups: [String]) async throws -> [String: Result<GroupDescription, ClientError>] {
        throw Self.pending
    }

    /// One group with its members.
    public func describeGroup(_ group: String) async throws -> GroupDescription {
        try await describeGroups([group]).single(group).get()
    }

    /// Deletes groups without members, with their committed offsets.
    public func deleteGroups(_ groups: [String]) async throws -> [String: Result<Void, ClientError>] {
        throw Self.pending
    }

    /// Deletes one group without members.
    public func deleteGroup(_ group: String) async throws {
        try await deleteGroups([group]).single(group).get()
    }

    /// What a group has committed; all its partitions if `partitions` is `nil`.
    public func groupOffsets(
        _ group: String, partitions: [TopicPartition]? = nil
    ) async throws -> [TopicPartition: CommittedOffset] { throw Self.pending }

    /// Sets committed offsets of a group without members.
    public func alterGroupOffsets(
        _ group: String, _ offsets: [TopicPartition: CommittedOffset]
    ) async throws -> [TopicPartition: Result<Void, ClientError>] { throw Self.pending }

    /// Where each partition would go if the group were reset to `position`; nothing is changed.
    ///
    /// A time after the last record resolves to the end of the partition, an offset outside the log to its
    /// nearer end.
    /// - Parameter partitions: `nil` means all partitions that the group has committed.
    public func planGroupReset(
        _ group: String, to position: OffsetSpec, partitions: [TopicPartition]? = nil
    ) async throws -> [TopicPartition: CommittedOffset] { throw Self.pending }

    /// Forgets committed offsets of a group.
    public func deleteGroupOffsets(
        _ group: String, _ partitions: [TopicPartition]
    ) async throws -> [TopicPartition: Result<Void, ClientError>] { throw Self.pending }

    // MARK: Records

    /// Where records are, by earliest, latest or time. `nil`: no record that late.
    public func listOffsets(
        _ queries: [TopicPartition: OffsetSpec], isolation: IsolationLevel = .readUncommitted
    ) async throws -> [TopicPartition: Result<ListedOffset?, ClientError>] { throw Self.pending }

    /// Deletes the records before these positions (``OffsetSpec/latest``: all there are).
    ///
    /// - Returns: The log start offset after that.
    public func deleteRecords(
        before positions: [TopicPartition: OffsetSpec]
    ) async throws -> [TopicPartition: Result<Offset, ClientError>] { throw Self.pending }

    // MARK: Closing

    /// Closes all connections. Further calls throw `closed`.
    public func close() async {}

    private static var pending: ClientError { ClientError(.invalidState, "not yet available") }
}

extension Dictionary {
    /// The entry of the only item asked for; a broker that leaves it out breaks the protocol.
    func single<Success>(_ key: Key) throws(ClientError) -> Result<Success, ClientError>
    where Value == Result<Success, ClientError> {
        guard let result = self[key] else {
            throw ClientError(.protocolViolation, "the broker's answer says nothing about \(key)")
        }
        return result
    }
}
