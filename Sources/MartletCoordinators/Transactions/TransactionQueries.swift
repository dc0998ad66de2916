import MartletKafkaProtocol
package import MartletLogModel

// What is read off a shard, and how requests are refused. Nothing here changes it.

extension TransactionCoordinatorShard {
    /// DescribeTransactions (KIP-664).
    func describe(_ id: String) -> DescribeTransactionsResponse.TransactionState {
        var answer = DescribeTransactionsResponse.TransactionState()
        answer.transactionalID = id
        guard !id.isEmpty else {
            answer.errorCode = ErrorCode.invalidRequest.rawValue
            return answer
        }
        guard let state = states[id] else {
            answer.errorCode = ErrorCode.transactionalIDNotFound.rawValue
            return answer
        }
        answer.transactionState = state.phase.name
        answer.transactionTimeoutMs = state.timeoutMilliseconds
        answer.transactionStartTimeMs = state.startedAt?.rawValue ?? -1
        answer.producerID = state.producer.id
        answer.producerEpoch = state.producer.epoch
        for partition in state.partitions.sorted() {
            if answer.topics.last?.topic != partition.topic {
                var topic = DescribeTransactionsResponse.TopicData()
                topic.topic = partition.topic
                answer.topics.append(topic)
            }
            answer.topics[answer.topics.count - 1].partitions.append(partition.partition.rawValue)
        }
        return answer
    }

    /// ListTransactions (KIP-664, KIP-994). The pattern of transactional ids is the handler's to apply.
    func list(_ filter: TransactionFilter, now: Timestamp) -> ListTransactionsResponse {
        var response = ListTransactionsResponse()
        let known = Set(TransactionPhase.allCases.map(\.name))
        response.unknownStateFilters = filter.phases.filter { !known.contains($0) }
        let phases = Set(filter.phases).intersection(known)
        let producerIDs = Set(filter.producerIDs)
        for id in states.keys.sorted() {
            guard let state = states[id], filter.phases.isEmpty || phases.contains(state.phase.name),
                producerIDs.isEmpty || producerIDs.contains(state.producer.id)
            else { continue }
            if let minimum = filter.minimumDurationMilliseconds {
                guard state.phase == .ongoing || state.phase.isPrepared, let startedAt = state.startedAt,
                    now.rawValue.subtractingReportingOverflow(startedAt.rawValue).partialValue > minimum
                else { continue }
            }
            var entry = ListTransactionsResponse.TransactionState()
            entry.transactionalID = id
            entry.producerID = state.producer.id
            entry.transactionState = state.phase.name
            response.transactionStates.append(entry)
        }
        return response
    }

    // MARK: For tests and traces

    /// What the log knows: equal to that of a core into which the same records were replayed.
    package func durableState() -> [String: TransactionState] { states }

    package func state(of transactionalID: String) -> TransactionState? { states[transactionalID] }

    package var transactionalIDCount: Int { states.count }

    // MARK: Refusals

    /// The answer to `request` that says `code`.
    package static func refusal(_ request: TransactionRequest, _ code: ErrorCode) -> TransactionResponse {
        switch request {
        case .initialize:
            return .initialized(nil, code)
        case .addPartitions(_, _, let partitions, _), .verifyPartitions(_, _, let partitions):
            return .partitions(partitions.map { PartitionOutcome(partition: $0, error: code) })
        case .end:
            return .ended(nil, code)
        case .describe(let ids):
            return .described(
                ids.map {
                    var state = DescribeTransactionsResponse.TransactionState()
                    state.transactionalID = $0
                    state.errorCode = code.rawValue
                    return state
                })
        case .list:
            var response = ListTransactionsResponse()
            response.errorCode = code.rawValue
            return .listed(response)
        }
    }
}

extension TransactionResponse {
    /// The first thing that was refused; of what administrators ask, nothing.
    package var refusal: ErrorCode? {
        switch self {
        case .initialized(_, let code), .ended(_, let code): code == .none ? nil : code
        case .partitions(let outcomes): outcomes.first { $0.error.rawValue != 0 && $0.error != .operationNotAttempted }?.error
        case .described, .listed: nil
        }
    }

    /// The answer that was prepared, turned into a refusal because its append was lost. Parts that had failed
    /// before keep their own codes.
    func refused(_ code: ErrorCode) -> TransactionResponse {
        switch self {
        case .initialized(let producer, let own):
            return .initialized(nil, producer == nil && own != .concurrentTransactions ? own : code)
        case .partitions(let outcomes):
            return .partitions(
                outcomes.map { PartitionOutcome(partition: $0.partition, error: $0.error == .none ? code : $0.error) })
        case .ended:
            return .ended(nil, code)
        case .described(var states):
            for index in states.indices { states[index].errorCode = code.rawValue }
            return .described(states)
        case .listed(var response):
            response.errorCode = code.rawValue
            response.transactionStates = []
            return .listed(response)
        }
    }
}
