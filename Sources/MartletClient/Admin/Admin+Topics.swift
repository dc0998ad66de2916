import MartletKafkaProtocol
public import MartletLogModel

extension Admin {
    /// Makes topics. With `validateOnly` nothing is made, but errors are the same.
    public func createTopics(
        _ topics: [TopicSpecification], validateOnly: Bool = false
    ) async throws -> [String: Result<CreatedTopic, ClientError>] {
        let timeout = timeoutMilliseconds
        let response = try await engine.retrying("creating topics") {
            let answer = try await sendToController(CreateTopicsRequest.self) { _ in
                var request = CreateTopicsRequest()
                request.timeoutMs = timeout
                request.validateOnly = validateOnly
                request.topics = topics.map { topic in
                    var entry = CreateTopicsRequest.CreatableTopic()
                    entry.name = topic.name
                    entry.numPartitions = topic.partitionCount.map { Int32(clamping: $0) } ?? -1
                    entry.replicationFactor = topic.replicationFactor.map { Int16(clamping: $0) } ?? -1
                    entry.configs = topic.configs.sorted { $0.key < $1.key }.map { name, value in
                        var config = CreateTopicsRequest.CreatableTopicConfig()
                        config.name = name
                        config.value = value
                        return config
                    }
                    return entry
                }
                return request
            }.response
            try refuseWrongController(answer.topics.map(\.errorCode))
            return answer
        }
        var results: [String: Result<CreatedTopic, ClientError>] = [:]
        for item in response.topics {
            if let error = problem(item.errorCode, "topic '\(item.name)'", item.errorMessage) {
                results[item.name] = .failure(error)
            } else {
                results[item.name] = .success(
                    CreatedTopic(
                        name: item.name, id: item.topicID == .zero ? nil : item.topicID,
                        partitionCount: item.numPartitions >= 0 ? Int(item.numPartitions) : nil,
                        replicationFactor: item.replicationFactor >= 0 ? Int(item.replicationFactor) : nil))
            }
        }
        return results
    }

    /// Makes one topic.
    @discardableResult
    public func createTopic(_ topic: TopicSpecification, validateOnly: Bool = false) async throws
        -> CreatedTopic
    {
        try await createTopics([topic], validateOnly: validateOnly).single(topic.name).get()
    }

    /// A broker that is not the controller and does not forward says so for every item: ask anew.
    func refuseWrongController(_ codes: [Int16]) throws(ClientError) {
        if codes.contains(ErrorCode.notController.rawValue) {
            throw ClientError(
                .broker, "the controller has moved", isRetriable: true, brokerCode: .notController)
        }
    }

    /// All topics, sorted by name.
    public func listTopics(includeInternal: Bool = false) async throws -> [TopicListing] {
        let response = try await engine.retrying("listing topics") {
            try await engine.fetchMetadata(topics: nil)
        }
        return response.topics.compactMap { topic -> TopicListing? in
            guard let name = topic.name, topic.errorCode == 0, includeInternal || !topic.isInternal else {
                return nil
            }
            return TopicListing(
                name: name, id: topic.topicID == .zero ? nil : topic.topicID, isInternal: topic.isInternal,
                partitionCount: topic.partitions.count,
                replicationFactor: topic.partitions.map(\.replicaNodes.count).max() ?? 0)
        }.sorted { $0.name < $1.name }
    }

    /// Topics with their partitions.
    public func describeTopics(_ names: [String]) async throws -> [String: Result<
        TopicDescription, ClientError
    >] {
        let response = try await engine.retrying("describing topics") {
            try await engine.fetchMetadata(topics: names)
        }
        let brokers = response.brokers.map { BrokerAddress(host: $0.host, port: Int($0.port)).description }
            .sorted().joined(separator: ", ")
        var results: [String: Result<TopicDescription, ClientError>] = [:]
        for topic in response.topics {
            guard let name = topic.name else { continue }
            let code = ErrorCode(rawValue: topic.errorCode)
            if code == .unknownTopicOrPartition {
                results[name] = .failure(.unknownTopic(name, askedOf: brokers))
            } else if let error = problem(topic.errorCode, "topic '\(name)'") {
                results[name] = .failure(error)
            } else {
                results[name] = .success(Self.description(name, topic))
            }
        }
        return results
    }

    private static func description(
        _ name: String, _ topic: MetadataResponse.MetadataResponseTopic
    ) -> TopicDescription {
        let partitions = topic.partitions.map { partition in
            PartitionDescription(
                index: PartitionIndex(partition.partitionIndex),
                leader: partition.leaderID >= 0 ? BrokerID(partition.leaderID) : nil,
                leaderEpoch: partition.leaderEpoch >= 0 ? LeaderEpoch(partition.leaderEpoch) : nil,
                replicas: partition.replicaNodes.map { BrokerID($0) },
                inSyncReplicas: partition.isrNodes.map { BrokerID($0) },
                offlineReplicas: partition.offlineReplicas.map { BrokerID($0) })
        }
        return TopicDescription(
            name: name, id: topic.topicID == .zero ? nil : topic.topicID, isInternal: topic.isInternal,
            partitions: partitions.sorted { $0.index < $1.index })
    }

    /// One topic with its partitions.
    public func describeTopic(_ name: String) async throws -> TopicDescription {
        try await describeTopics([name]).single(name).get()
    }

    /// Deletes topics with all their records.
    public func deleteTopics(_ names: [String]) async throws -> [String: Result<Void, ClientError>] {
        let timeout = timeoutMilliseconds
        let response = try await engine.retrying("deleting topics") {
            let answer = try await sendToController(DeleteTopicsRequest.self) { version in
                var request = DeleteTopicsRequest()
                request.timeoutMs = timeout
                if version >= 6 {
                    request.topics = names.map { name in
                        var entry = DeleteTopicsRequest.DeleteTopicState()
                        entry.name = name
                        return entry
                    }
                } else {
                    request.topicNames = names
                }
                return request
            }.response
            try refuseWrongController(answer.responses.map(\.errorCode))
            return answer
        }
        var results: [String: Result<Void, ClientError>] = [:]
        for item in response.responses {
            guard let name = item.name else { continue }
            let error = problem(item.errorCode, "topic '\(name)'", item.errorMessage)
            results[name] = error.map { .failure($0) } ?? .success(())
        }
        return results
    }

    /// Deletes one topic with all its records.
    public func deleteTopic(_ name: String) async throws {
        try await deleteTopics([name]).single(name).get()
    }

    /// Raises the number of partitions to the given totals. Keys may map to other partitions afterwards.
    public func createPartitions(
        _ totals: [String: Int], validateOnly: Bool = false
    ) async throws -> [String: Result<Void, ClientError>] {
        let timeout = timeoutMilliseconds
        let response = try await engine.retrying("creating partitions") {
            let answer = try await sendToController(CreatePartitionsRequest.self) { _ in
                var request = CreatePartitionsRequest()
                request.timeoutMs = timeout
                request.validateOnly = validateOnly
                request.topics = totals.sorted { $0.key < $1.key }.map { name, total in
                    var entry = CreatePartitionsRequest.CreatePartitionsTopic()
                    entry.name = name
                    entry.count = Int32(clamping: total)
                    entry.assignments = nil
                    return entry
                }
                return request
            }.response
            try refuseWrongController(answer.results.map(\.errorCode))
            return answer
        }
        var results: [String: Result<Void, ClientError>] = [:]
        for item in response.results {
            let error = problem(item.errorCode, "topic '\(item.name)'", item.errorMessage)
            results[item.name] = error.map { .failure($0) } ?? .success(())
        }
        return results
    }

    /// Raises the number of partitions of one topic to `total`.
    public func createPartitions(topic: String, total: Int) async throws {
        try await createPartitions([topic: total]).single(topic).get()
    }

    // MARK: Records

    /// Where records are, by earliest, latest or time. `nil`: no record that late.
    public func listOffsets(
        _ queries: [TopicPartition: OffsetSpec], isolation: IsolationLevel = .readUncommitted
    ) async throws -> [TopicPartition: Result<ListedOffset?, ClientError>] {
        try await engine.listOffsets(queries, isolation: isolation)
    }

    /// Deletes the records before these positions (``OffsetSpec/latest``: all there are).
    ///
    /// - Returns: The log start offset after that.
    public func deleteRecords(
        before positions: [TopicPartition: OffsetSpec]
    ) async throws -> [TopicPartition: Result<Offset, ClientError>] {
        var failed: [TopicPartition: Result<Offset, ClientError>] = [:]
        var targets: [TopicPartition: Int64] = [:]
        var questions: [TopicPartition: OffsetSpec] = [:]
        for (partition, spec) in positions {
            switch spec {
            case .at(let offset): targets[partition] = offset.rawValue
            case .latest: targets[partition] = -1
            case .earliest, .timestamp: questions[partition] = spec
            }
        }
        for (partition, result) in try await listOffsets(questions) {
            switch result {
            case .success(let listed): targets[partition] = listed?.offset.rawValue ?? -1
            case .failure(let error): failed[partition] = .failure(error)
            }
        }
        let engine = engine
        let timeout = timeoutMilliseconds
        let results = try await engine.perPartition(targets, "deleting records") { leader, part in
            let answer = try await engine.send(DeleteRecordsRequest.self, to: .broker(leader)) { _ in
                var request = DeleteRecordsRequest()
                request.timeoutMs = timeout
                request.topics = groupedByTopic(part.keys).map { topic, indexes in
                    var entry = DeleteRecordsRequest.DeleteRecordsTopic()
                    entry.name = topic
                    entry.partitions = indexes.map { index in
                        var item = DeleteRecordsRequest.DeleteRecordsPartition()
                        item.partitionIndex = index
                        item.offset = part[TopicPartition(topic, index)] ?? -1
                        return item
                    }
                    return entry
                }
                return request
            }
            var results: [TopicPartition: Result<Offset, ClientError>] = [:]
            for topic in answer.response.topics {
                for item in topic.partitions {
                    results[TopicPartition(topic.name, item.partitionIndex)] =
                        item.errorCode == 0
                        ? .success(Offset(item.lowWatermark))
                        : .failure(.broker(ErrorCode(rawValue: item.errorCode), "deleting records"))
                }
            }
            return results
        }
        return results.merging(failed) { first, _ in first }
    }
}
