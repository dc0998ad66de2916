import MartletKafkaProtocol
import MartletLogModel

/// Partitions of one topic, sorted, as requests carry them.
func groupedByTopic(_ partitions: some Sequence<TopicPartition>) -> [(topic: String, partitions: [Int32])] {
    var groups: [String: [Int32]] = [:]
    for partition in partitions { groups[partition.topic, default: []].append(partition.partition.rawValue) }
    return groups.sorted { $0.key < $1.key }.map { ($0.key, $0.value.sorted()) }
}

/// Requests about offsets that consumer and admin client share. Each is one attempt.
extension ClientEngine {
    /// Newest versions that name topics; later ones carry ids (KIP-848), which gain nothing here.
    private static let lastNameVersion: Int16 = 9

    // MARK: Metadata

    /// The present metadata, for tasks.
    func currentMetadata() async throws -> ClusterMetadata {
        try await loop.reply { $0.succeed(self.metadata) }
    }

    /// Asks for these topics, or all if `nil`, takes the answer over and returns it.
    func fetchMetadata(topics: [String]?) async throws -> MetadataResponse {
        let answer = try await send(MetadataRequest.self, to: .any) { version in
            var request = MetadataRequest()
            request.allowAutoTopicCreation = version < 4
            request.topics = topics.map { names in
                names.map { name in
                    var topic = MetadataRequest.MetadataRequestTopic()
                    topic.name = name
                    return topic
                }
            }
            return request
        }
        return try await loop.reply { reply in
            self.adopt(answer.response)
            reply.succeed(answer.response)
        }
    }

    // MARK: Committed offsets

    /// What a group has committed; all its partitions if `partitions` is `nil`. Partitions without a committed
    /// offset are left out.
    func fetchCommitted(
        group: String, partitions: [TopicPartition]?, from coordinator: BrokerID,
        completion: @escaping (Result<[TopicPartition: CommittedOffset], ClientError>) -> Void
    ) {
        let topics = partitions.map { groupedByTopic($0) }
        request(
            OffsetFetchRequest.self, to: .broker(coordinator), limit: Self.lastNameVersion
        ) { version in
            var request = OffsetFetchRequest()
            request.requireStable = version >= 7
            if version >= 8 {
                var entry = OffsetFetchRequest.OffsetFetchRequestGroup()
                entry.groupID = group
                entry.topics = topics.map { topics in
                    topics.map { topic in
                        var item = OffsetFetchRequest.OffsetFetchRequestTopics()
                        item.name = topic.topic
                        item.partitionIndexes = topic.partitions
                        return item
                    }
                }
                request.groups = [entry]
            } else {
                request.groupID = group
                request.topics = topics.map { topics in
                    topics.map { topic in
                        var item = OffsetFetchRequest.OffsetFetchRequestTopic()
                        item.name = topic.topic
                        item.partitionIndexes = topic.partitions
                        return item
                    }
                }
            }
            return request
        } completion: { result in
            completion(result.flatMap { Self.committed($0, group: group) })
        }
    }

    private static func committed(
        _ answer: Answer<OffsetFetchResponse>, group: String
    ) -> Result<[TopicPartition: CommittedOffset], ClientError> {
        var offsets: [TopicPartition: CommittedOffset] = [:]
        func take(
            _ topic: String, _ index: Int32, _ code: Int16, _ offset: Int64, _ epoch: Int32,
            _ metadata: String?
        ) -> ClientError? {
            let partition = TopicPartition(topic, index)
            if code != 0 {
                return .broker(
                    ErrorCode(rawValue: code), "committed offset of \(partition) in group '\(group)'")
            }
            if offset >= 0 {
                offsets[partition] = CommittedOffset(
                    Offset(offset), leaderEpoch: epoch >= 0 ? LeaderEpoch(epoch) : nil,
                    metadata: metadata ?? "")
            }
            return nil
        }
        let subject = "committed offsets of group '\(group)'"
        if answer.version >= 8 {
            guard let entry = answer.response.groups.first(where: { $0.groupID == group }) else {
                return .failure(
                    ClientError(.protocolViolation, "broker \(answer.address) left out group '\(group)'"))
            }
            if entry.errorCode != 0 {
                return .failure(.broker(ErrorCode(rawValue: entry.errorCode), subject))
            }
            for topic in entry.topics {
                for item in topic.partitions {
                    if let error = take(
                        topic.name, item.partitionIndex, item.errorCode, item.committedOffset,
                        item.committedLeaderEpoch, item.metadata)
                    {
                        return .failure(error)
                    }
                }
            }
        } else {
            if answer.response.errorCode != 0 {
                return .failure(.broker(ErrorCode(rawValue: answer.response.errorCode), subject))
            }
            for topic in answer.response.topics {
                for item in topic.partitions {
                    if let error = take(
                        topic.name, item.partitionIndex, item.errorCode, item.committedOffset,
                        item.committedLeaderEpoch, item.metadata)
                    {
                        return .failure(error)
                    }
                }
            }
        }
        return .success(offsets)
    }

    /// Membership under which offsets are committed; the default is that of an administrator.
    struct CommitIdentity: Sendable {
        var generation: Int32 = -1
        var memberID = ""
        var groupInstanceID: String?
    }

    /// Commits offsets; results per partition.
    func commit(
        group: String, offsets: [TopicPartition: CommittedOffset], as identity: CommitIdentity,
        to coordinator: BrokerID,
        completion: @escaping (Result<[TopicPartition: ErrorCode], ClientError>) -> Void
    ) {
        request(
            OffsetCommitRequest.self, to: .broker(coordinator), limit: Self.lastNameVersion
        ) { version in
            var request = OffsetCommitRequest()
            request.groupID = group
            request.generationIDOrMemberEpoch = identity.generation
            request.memberID = identity.memberID
            if version >= 7 { request.groupInstanceID = identity.groupInstanceID }
            request.topics = groupedByTopic(offsets.keys).map { topic, indexes in
                var entry = OffsetCommitRequest.OffsetCommitRequestTopic()
                entry.name = topic
                entry.partitions = indexes.compactMap { index in
                    guard let offset = offsets[TopicPartition(topic, index)] else { return nil }
                    var item = OffsetCommitRequest.OffsetCommitRequestPartition()
                    item.partitionIndex = index
                    item.committedOffset = offset.offset.rawValue
                    item.committedLeaderEpoch = offset.leaderEpoch?.rawValue ?? -1
                    item.committedMetadata = offset.metadata
                    return item
                }
                return entry
            }
            return request
        } completion: { result in
            completion(
                result.map { answer in
                    var codes: [TopicPartition: ErrorCode] = [:]
                    for topic in answer.response.topics {
                        for item in topic.partitions {
                            codes[TopicPartition(topic.name, item.partitionIndex)] = ErrorCode(
                                rawValue: item.errorCode)
                        }
                    }
                    return codes
                })
        }
    }

    // MARK: Offsets by position or time

    /// What ListOffsets says of one partition.
    struct OffsetAnswer: Sendable {
        var code: ErrorCode
        var listed: ListedOffset?
    }

    /// Asks one leader. `OffsetSpec.at` is not a question and must not be among the queries.
    func listOffsets(
        _ queries: [TopicPartition: OffsetSpec], isolation: IsolationLevel, from leader: BrokerID,
        completion: @escaping (Result<[TopicPartition: OffsetAnswer], ClientError>) -> Void
    ) {
        let metadata = metadata
        let timeout = configuration.requestTimeout.wireMilliseconds
        request(ListOffsetsRequest.self, to: .broker(leader), purpose: .general) { version in
            var request = ListOffsetsRequest()
            request.replicaID = -1
            if version >= 2 { request.isolationLevel = isolation == .readCommitted ? 1 : 0 }
            request.timeoutMs = timeout
            request.topics = groupedByTopic(queries.keys).map { topic, indexes in
                var entry = ListOffsetsRequest.ListOffsetsTopic()
                entry.name = topic
                entry.partitions = indexes.map { index in
                    let partition = TopicPartition(topic, index)
                    var item = ListOffsetsRequest.ListOffsetsPartition()
                    item.partitionIndex = index
                    item.currentLeaderEpoch = metadata.partition(partition)?.leaderEpoch ?? -1
                    switch queries[partition] {
                    case .earliest?: item.timestamp = -2
                    case .timestamp(let time)?: item.timestamp = time.rawValue
                    case .latest?, .at?, nil: item.timestamp = -1
                    }
                    return item
                }
                return entry
            }
            return request
        } completion: { result in
            completion(
                result.map { answer in
                    var answers: [TopicPartition: OffsetAnswer] = [:]
                    for topic in answer.response.topics {
                        for item in topic.partitions {
                            let listed =
                                item.errorCode == 0 && item.offset >= 0
                                ? ListedOffset(
                                    Offset(item.offset),
                                    timestamp: item.timestamp >= 0
                                        ? Timestamp(milliseconds: item.timestamp) : nil,
                                    leaderEpoch: item.leaderEpoch >= 0 ? LeaderEpoch(item.leaderEpoch) : nil)
                                : nil
                            answers[TopicPartition(topic.name, item.partitionIndex)] = OffsetAnswer(
                                code: ErrorCode(rawValue: item.errorCode), listed: listed)
                        }
                    }
                    return answers
                })
        }
    }

    /// Asks the leaders of all partitions, repeating what failed retriably until `operationTimeout`.
    func listOffsets(
        _ queries: [TopicPartition: OffsetSpec], isolation: IsolationLevel
    ) async throws -> [TopicPartition: Result<ListedOffset?, ClientError>] {
        var results: [TopicPartition: Result<ListedOffset?, ClientError>] = [:]
        var open: [TopicPartition: OffsetSpec] = [:]
        for (partition, spec) in queries {
            if case .at(let offset) = spec {
                results[partition] = .success(ListedOffset(offset))
            } else {
                open[partition] = spec
            }
        }
        let outcome = try await perPartition(open, "offsets") { leader, part in
            let answers: [TopicPartition: OffsetAnswer] = try await self.loop.reply { reply in
                self.listOffsets(part, isolation: isolation, from: leader) { reply.resolve(with: $0) }
            }
            return answers.mapValues { answer in
                answer.code == .none
                    ? .success(answer.listed) : .failure(ClientError.broker(answer.code, "offsets"))
            }
        }
        results.merge(outcome) { $1 }
        return results
    }

    /// Runs a request of partitions at their leaders, again and again for those that failed retriably.
    func perPartition<Query: Sendable, Value: Sendable>(
        _ queries: [TopicPartition: Query], _ what: String,
        _ ask:
            @escaping @Sendable (BrokerID, [TopicPartition: Query]) async throws -> [TopicPartition: Result<
                Value, ClientError
            >]
    ) async throws -> [TopicPartition: Result<Value, ClientError>] {
        var results: [TopicPartition: Result<Value, ClientError>] = [:]
        var open = queries
        var rounds = 0
        let clock = ContinuousClock()
        let deadline = clock.now + configuration.operationTimeout
        while !open.isEmpty {
            rounds += 1
            var failures: [TopicPartition: ClientError] = [:]
            do {
                let response = try await fetchMetadata(topics: Set(open.keys.map(\.topic)).sorted())
                let codes = Dictionary(
                    response.topics.compactMap { topic in
                        topic.name.map { ($0, ErrorCode(rawValue: topic.errorCode)) }
                    },
                    uniquingKeysWith: { $1 })
                let metadata = try await currentMetadata()
                var byLeader: [BrokerID: [TopicPartition: Query]] = [:]
                for (partition, query) in open {
                    if let leader = metadata.partition(partition)?.leader {
                        byLeader[leader, default: [:]][partition] = query
                    } else {
                        failures[partition] = missing(partition, codes[partition.topic], metadata)
                    }
                }
                for (leader, part) in byLeader {
                    do {
                        for (partition, result) in try await ask(leader, part) where part[partition] != nil {
                            switch result {
                            case .success: results[partition] = result
                            case .failure(let error): failures[partition] = error.about(partition)
                            }
                        }
                    } catch let error as ClientError {
                        for partition in part.keys { failures[partition] = error }
                    }
                    for partition in part.keys where results[partition] == nil && failures[partition] == nil {
                        failures[partition] = ClientError(
                            .protocolViolation, "the answer about \(what) leaves out \(partition)")
                    }
                }
            } catch let error as ClientError {
                for partition in open.keys { failures[partition] = error }
            }
            let pause = retryBackoff.pause(after: rounds)
            let isLate = clock.now + pause >= deadline
            for (partition, error) in failures
            where !error.isRetriable || isLate || error.isSettled(after: rounds) {
                results[partition] = .failure(error)
            }
            for partition in results.keys { open[partition] = nil }
            if !open.isEmpty { try await loop.pause(pause) }
        }
        return results
    }

    private func missing(
        _ partition: TopicPartition, _ code: ErrorCode?, _ metadata: ClusterMetadata
    ) -> ClientError {
        let names = metadata.brokers.values.map(\.address.description).sorted().joined(separator: ", ")
        if let code, code != .none {
            return code == .unknownTopicOrPartition
                ? .unknownTopic(partition.topic, askedOf: names) : .broker(code, "topic '\(partition.topic)'")
        }
        if let topic = metadata.topics[partition.topic],
            Int(partition.partition.rawValue) >= topic.partitions.count
        {
            return ClientError(
                .unknownTopic,
                "topic '\(partition.topic)' has no partition \(partition.partition); it has \(topic.partitions.count)",
                brokerCode: .unknownTopicOrPartition)
        }
        return .broker(.leaderNotAvailable, "partition \(partition)")
    }
}

extension ClientError {
    /// Rounds after which a broker's "unknown" is believed.
    private static let unknownRoundLimit = 4

    /// "Unknown topic" is retriable because news needs a moment to spread; later it is a fact.
    func isSettled(after rounds: Int) -> Bool { code == .unknownTopic && rounds >= Self.unknownRoundLimit }

    func about(_ partition: TopicPartition) -> ClientError {
        ClientError(
            code, "\(partition): \(message)", isRetriable: isRetriable, brokerCode: brokerCode, cause: cause)
    }
}
