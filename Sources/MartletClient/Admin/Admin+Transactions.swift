import MartletKafkaProtocol
public import MartletLogModel

extension Admin {
    /// First versions that filter by duration (KIP-994) and by pattern (KIP-1152).
    private static let durationVersion: Int16 = 1
    private static let patternVersion: Int16 = 2

    /// Transactional ids of all coordinators, sorted.
    ///
    /// - Parameter states: only these, by Kafka's names such as `Ongoing` and `PrepareCommit`; empty: all.
    /// - Parameter producerIDs: only these; empty: all.
    /// - Parameter longerThan: only transactions that have been open for longer.
    /// - Parameter pattern: only ids that match as a whole, in RE2 syntax (brokers of Kafka 4.1, and Martlet).
    public func listTransactions(
        states: [String] = [], producerIDs: [Int64] = [], longerThan: Duration? = nil, matching pattern: String? = nil
    ) async throws -> [TransactionListing] {
        let duration = longerThan.map { Int64($0.wireMilliseconds) }
        var listings: [TransactionListing] = []
        for broker in try await describeCluster().brokers {
            let response = try await engine.retrying("listing transactions of broker \(broker.id)") {
                let answer = try await engine.send(ListTransactionsRequest.self, to: .broker(broker.id)) { version in
                    var request = ListTransactionsRequest()
                    request.stateFilters = states
                    request.producerIDFilters = producerIDs
                    if version >= Self.durationVersion, let duration { request.durationFilter = duration }
                    if version >= Self.patternVersion { request.transactionalIDPattern = pattern }
                    return request
                }
                let needed = pattern != nil ? Self.patternVersion : duration != nil ? Self.durationVersion : 0
                guard answer.version >= needed else {
                    throw ClientError(
                        .unsupportedByBroker,
                        "broker \(broker.id) does not filter transactions by \(pattern != nil ? "pattern" : "duration")")
                }
                if let error = problem(answer.response.errorCode, "transactions of broker \(broker.id)") { throw error }
                return answer.response
            }
            guard response.unknownStateFilters.isEmpty else {
                throw ClientError(
                    .invalidArgument,
                    "no transaction is ever in the state \(response.unknownStateFilters.joined(separator: ", ")); the states "
                        + "are Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort")
            }
            for item in response.transactionStates {
                listings.append(
                    TransactionListing(
                        transactionalID: item.transactionalID, producerID: item.producerID,
                        state: item.transactionState, coordinator: broker.id))
            }
        }
        return listings.sorted { $0.transactionalID < $1.transactionalID }
    }

    /// What the coordinators know of transactional ids.
    public func describeTransactions(
        _ transactionalIDs: [String]
    ) async throws -> [String: Result<TransactionDescription, ClientError>] {
        var results: [String: Result<TransactionDescription, ClientError>] = [:]
        for id in transactionalIDs {
            do {
                results[id] = .success(try await describeTransaction(id))
            } catch let error as ClientError {
                results[id] = .failure(error)
            }
        }
        return results
    }

    /// What the coordinator knows of one transactional id.
    public func describeTransaction(_ transactionalID: String) async throws -> TransactionDescription {
        try await onCoordinator(of: .transactionalID(transactionalID), "description") { coordinator in
            let response = try await engine.send(DescribeTransactionsRequest.self, to: .broker(coordinator)) { _ in
                var request = DescribeTransactionsRequest()
                request.transactionalIDs = [transactionalID]
                return request
            }.response
            guard let item = response.transactionStates.first(where: { $0.transactionalID == transactionalID }) else {
                throw ClientError(
                    .protocolViolation, "broker \(coordinator) left out transactional id '\(transactionalID)'")
            }
            if let error = problem(item.errorCode, "transactional id '\(transactionalID)'") { throw error }
            return TransactionDescription(
                transactionalID: transactionalID, state: item.transactionState,
                timeout: .milliseconds(Int64(item.transactionTimeoutMs)),
                startedAt: item.transactionStartTimeMs >= 0
                    ? Timestamp(milliseconds: item.transactionStartTimeMs) : nil,
                producerID: item.producerID, producerEpoch: item.producerEpoch,
                partitions: item.topics.flatMap { topic in
                    topic.partitions.map { TopicPartition(topic.topic, $0) }
                }.sorted(), coordinator: coordinator)
        }
    }

    /// What partitions know of the producers that have written to them.
    public func describeProducers(
        _ partitions: [TopicPartition]
    ) async throws -> [TopicPartition: Result<[PartitionProducer], ClientError>] {
        let queries = Dictionary(partitions.map { ($0, true) }, uniquingKeysWith: { first, _ in first })
        let engine = engine
        return try await engine.perPartition(queries, "producers") {
            leader, part -> [TopicPartition: Result<[PartitionProducer], ClientError>] in
            let names = groupedByTopic(part.keys)
            let response = try await engine.send(DescribeProducersRequest.self, to: .broker(leader)) { _ in
                var request = DescribeProducersRequest()
                request.topics = names.map { topic, indexes in
                    var entry = DescribeProducersRequest.TopicRequest()
                    entry.name = topic
                    entry.partitionIndexes = indexes
                    return entry
                }
                return request
            }.response
            var results: [TopicPartition: Result<[PartitionProducer], ClientError>] = [:]
            for topic in response.topics {
                for item in topic.partitions {
                    let partition = TopicPartition(topic.name, item.partitionIndex)
                    if item.errorCode != 0 {
                        results[partition] = .failure(
                            .broker(
                                ErrorCode(rawValue: item.errorCode), "producers of \(partition)",
                                detail: item.errorMessage))
                    } else {
                        results[partition] = .success(item.activeProducers.map { PartitionProducer($0) })
                    }
                }
            }
            return results
        }
    }

    /// Aborts what is open of a transactional id, and shuts its producer out: the next one has to initialise anew.
    ///
    /// - Throws: ``ClientError``, with `brokerCode` TRANSACTIONAL_ID_NOT_FOUND if no coordinator knows the id.
    public func fenceProducer(_ transactionalID: String) async throws {
        // InitProducerId would make an id that is not known.
        let present = try await describeTransaction(transactionalID)
        try await onCoordinator(of: .transactionalID(transactionalID), "abort") { coordinator in
            let response = try await engine.send(InitProducerIdRequest.self, to: .broker(coordinator)) { _ in
                var request = InitProducerIdRequest()
                request.transactionalID = transactionalID
                request.transactionTimeoutMs = present.timeout.wireMilliseconds
                return request
            }.response
            if let error = problem(response.errorCode, "transactional id '\(transactionalID)'") { throw error }
        }
    }

    /// Ends a transaction in one partition by an abort marker, past its coordinator. For hanging transactions, of which
    /// no coordinator knows any more (KIP-664); one that is alive would be torn.
    public func writeAbortMarker(
        _ partition: TopicPartition, producerID: Int64, producerEpoch: Int16, coordinatorEpoch: Int32
    ) async throws {
        let engine = engine
        let results = try await engine.perPartition([partition: true], "abort marker") {
            leader, _ -> [TopicPartition: Result<Bool, ClientError>] in
            let response = try await engine.send(WriteTxnMarkersRequest.self, to: .broker(leader)) { _ in
                var marker = WriteTxnMarkersRequest.WritableTxnMarker()
                marker.producerID = producerID
                marker.producerEpoch = producerEpoch
                marker.coordinatorEpoch = coordinatorEpoch
                marker.transactionResult = false
                var topic = WriteTxnMarkersRequest.WritableTxnMarkerTopic()
                topic.name = partition.topic
                topic.partitionIndexes = [partition.partition.rawValue]
                marker.topics = [topic]
                var request = WriteTxnMarkersRequest()
                request.markers = [marker]
                return request
            }.response
            let code = response.markers.first { $0.producerID == producerID }?.topics.first?.partitions.first?.errorCode
            guard let code else { return [:] }
            let error = ErrorCode(rawValue: code)
            return [
                partition: error == .none
                    ? .success(true)
                    : .failure(.broker(error, "abort marker of producer \(producerID) in \(partition)"))
            ]
        }
        _ = try results.single(partition).get()
    }

    /// Transactions that are open in partitions, of which no coordinator will ever write the end (KIP-664): readers with
    /// ``IsolationLevel/readCommitted`` wait behind them for ever, and compaction too.
    ///
    /// A transaction that is open for less than `age` is passed over; it should be the largest `transactionTimeout` in
    /// use, for up to then the coordinator aborts by itself. What is found is looked at twice, so that one that ends
    /// meanwhile is not reported.
    /// - Parameter now: time of day to measure the age by.
    /// - Parameter progress: called with the number of partitions looked at.
    public func findHangingTransactions(
        in partitions: [TopicPartition], olderThan age: Duration, now: Timestamp,
        progress: (_ checked: Int) -> Void = { _ in }
    ) async throws -> [HangingTransaction] {
        var open: [HangingTransaction] = []
        var checked = 0
        for start in stride(from: 0, to: partitions.count, by: Self.partitionsPerQuestion) {
            let part = Array(partitions[start..<min(start + Self.partitionsPerQuestion, partitions.count)])
            for (partition, result) in try await describeProducers(part) {
                for producer in try result.get() where producer.isOpen(longerThan: age, now) {
                    open.append(HangingTransaction(topicPartition: partition, producer: producer, transactionalID: nil))
                }
            }
            checked += part.count
            progress(checked)
        }
        guard !open.isEmpty else { return [] }
        let producerIDs = Set(open.map(\.producer.producerID)).sorted()
        let listed = try await listTransactions(producerIDs: producerIDs)
        let described = try await describeTransactions(listed.map(\.transactionalID))
        var hanging: [HangingTransaction] = []
        for var candidate in open {
            var isAlive = false
            for listing in listed where listing.producerID == candidate.producer.producerID {
                candidate.transactionalID = listing.transactionalID
                guard case .success(let description)? = described[listing.transactionalID] else {
                    // Nothing is called hanging on a coordinator's silence.
                    isAlive = true
                    continue
                }
                if description.producerID == candidate.producer.producerID,
                    description.partitions.contains(candidate.topicPartition)
                {
                    isAlive = true
                }
            }
            if !isAlive { hanging.append(candidate) }
        }
        let again = try await describeProducers(Array(Set(hanging.map(\.topicPartition))))
        return try hanging.filter { candidate in
            try again.single(candidate.topicPartition).get().contains {
                $0.producerID == candidate.producer.producerID
                    && $0.transactionStart == candidate.producer.transactionStart
            }
        }.sorted {
            ($0.topicPartition, $0.producer.producerID) < ($1.topicPartition, $1.producer.producerID)
        }
    }

    /// Partitions in one round of questions, so that a cluster with many partitions is asked piece by piece.
    private static let partitionsPerQuestion = 1000
}
