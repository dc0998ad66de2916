import MartletKafkaProtocol
public import MartletLogModel

extension Admin {
    /// Groups of all brokers, sorted by name; `states` filters where the broker can (KIP-518).
    public func listGroups(states: [String] = []) async throws -> [GroupListing] {
        var listings: [GroupListing] = []
        for broker in try await describeCluster().brokers {
            let response = try await engine.retrying("listing groups of broker \(broker.id)") {
                let response = try await engine.send(ListGroupsRequest.self, to: .broker(broker.id)) {
                    version in
                    var request = ListGroupsRequest()
                    if version >= 4 { request.statesFilter = states }
                    return request
                }.response
                if let error = problem(response.errorCode, "groups of broker \(broker.id)") { throw error }
                return response
            }
            for group in response.groups {
                listings.append(
                    GroupListing(
                        groupID: group.groupID, protocolType: group.protocolType,
                        state: group.groupState.isEmpty ? nil : group.groupState,
                        type: group.groupType.isEmpty ? nil : group.groupType, coordinator: broker.id))
            }
        }
        return listings.sorted { $0.groupID < $1.groupID }
    }

    /// Groups with their members.
    public func describeGroups(_ groups: [String]) async throws -> [String: Result<
        GroupDescription, ClientError
    >] {
        var results: [String: Result<GroupDescription, ClientError>] = [:]
        for group in groups {
            results[group] = await outcome { try await describeOne(group) }
        }
        return results
    }

    /// Turns a thrown `ClientError` into a result of one item; cancellation becomes one as well.
    private func outcome<Value: Sendable>(_ body: () async throws -> Value) async -> Result<
        Value, ClientError
    > {
        do {
            return .success(try await body())
        } catch let error as ClientError {
            return .failure(error)
        } catch {
            return .failure(ClientError(.timedOut, "the call was cancelled", cause: error))
        }
    }

    private func describeOne(_ group: String) async throws -> GroupDescription {
        try await onCoordinator(of: group, "description") { coordinator in
            let response = try await engine.send(DescribeGroupsRequest.self, to: .broker(coordinator)) { _ in
                var request = DescribeGroupsRequest()
                request.groups = [group]
                return request
            }.response
            guard let item = response.groups.first(where: { $0.groupID == group }) else {
                throw ClientError(.protocolViolation, "broker \(coordinator) left out group '\(group)'")
            }
            // A group of the consumer protocol is none to this request (KIP-848).
            if item.errorCode == ErrorCode.groupIDNotFound.rawValue
                || (item.groupState == "Dead" && item.members.isEmpty && item.errorCode == 0)
            {
                return try await describeConsumerGroup(group, coordinator)
            }
            if let error = problem(item.errorCode, "group '\(group)'", item.errorMessage) { throw error }
            return GroupDescription(
                groupID: group, state: item.groupState, protocolType: item.protocolType,
                strategy: item.protocolData, coordinator: coordinator,
                members: item.members.map { member in
                    GroupMember(
                        memberID: member.memberID, groupInstanceID: member.groupInstanceID,
                        clientID: member.clientID, clientHost: member.clientHost,
                        assignment: ConsumerProtocol.assignment(member.memberAssignment) ?? [])
                },
                lastRebalance: item.lastRebalance.map {
                    GroupRebalance(
                        reason: $0.reason, memberID: $0.memberID, generation: $0.generation,
                        startedAt: Timestamp(milliseconds: $0.startTimestamp),
                        duration: .milliseconds($0.durationMs), memberCount: Int($0.memberCount))
                })
        }
    }

    /// A group of the consumer protocol (KIP-848).
    private func describeConsumerGroup(_ group: String, _ coordinator: BrokerID) async throws
        -> GroupDescription
    {
        let response: ConsumerGroupDescribeResponse
        do {
            response = try await engine.send(ConsumerGroupDescribeRequest.self, to: .broker(coordinator)) {
                _ in
                var request = ConsumerGroupDescribeRequest()
                request.groupIDs = [group]
                return request
            }.response
        } catch let error as ClientError where error.code == .unsupportedByBroker {
            // A broker without that protocol has no such groups.
            throw ClientError.broker(.groupIDNotFound, "group '\(group)'")
        }
        guard let item = response.groups.first(where: { $0.groupID == group }) else {
            throw ClientError(.protocolViolation, "broker \(coordinator) left out group '\(group)'")
        }
        if item.errorCode == ErrorCode.groupIDNotFound.rawValue,
            let share = try await describeShareGroup(group, coordinator)
        {
            return share
        }
        if let error = problem(item.errorCode, "group '\(group)'", item.errorMessage) { throw error }
        return GroupDescription(
            groupID: group, state: item.groupState, protocolType: "consumer", strategy: item.assignorName,
            coordinator: coordinator,
            members: item.members.map { member in
                GroupMember(
                    memberID: member.memberID, groupInstanceID: member.instanceID, clientID: member.clientID,
                    clientHost: member.clientHost,
                    assignment: member.assignment.topicPartitions.flatMap { topic in
                        topic.partitions.map { TopicPartition(topic.topicName, $0) }
                    })
            },
            lastRebalance: item.lastRebalance.map {
                GroupRebalance(
                    reason: $0.reason, memberID: $0.memberID, generation: $0.generation,
                    startedAt: Timestamp(milliseconds: $0.startTimestamp),
                    duration: .milliseconds($0.durationMs), memberCount: Int($0.memberCount))
            })
    }

    /// One group with its members.
    public func describeGroup(_ group: String) async throws -> GroupDescription {
        try await describeOne(group)
    }

    /// Deletes groups without members, with their committed offsets.
    public func deleteGroups(_ groups: [String]) async throws -> [String: Result<Void, ClientError>] {
        var results: [String: Result<Void, ClientError>] = [:]
        for group in groups {
            results[group] = await outcome {
                try await onCoordinator(of: group, "deletion") { coordinator in
                    let response = try await engine.send(DeleteGroupsRequest.self, to: .broker(coordinator)) {
                        _ in
                        var request = DeleteGroupsRequest()
                        request.groupsNames = [group]
                        return request
                    }.response
                    let code = response.results.first { $0.groupID == group }?.errorCode ?? 0
                    if let error = problem(code, "group '\(group)'") { throw error }
                }
            }
        }
        return results
    }

    /// Deletes one group without members.
    public func deleteGroup(_ group: String) async throws {
        try await deleteGroups([group]).single(group).get()
    }

    /// What a group has committed; all its partitions if `partitions` is `nil`.
    public func groupOffsets(
        _ group: String, partitions: [TopicPartition]? = nil
    ) async throws -> [TopicPartition: CommittedOffset] {
        let engine = engine
        return try await onCoordinator(of: group, "offsets") { coordinator in
            try await engine.loop.reply { reply in
                engine.fetchCommitted(group: group, partitions: partitions, from: coordinator) {
                    reply.resolve(with: $0)
                }
            }
        }
    }

    /// Sets committed offsets of a group without members.
    public func alterGroupOffsets(
        _ group: String, _ offsets: [TopicPartition: CommittedOffset]
    ) async throws -> [TopicPartition: Result<Void, ClientError>] {
        let engine = engine
        return try await onCoordinator(of: group, "offsets") { coordinator in
            let codes: [TopicPartition: ErrorCode] = try await engine.loop.reply { reply in
                engine.commit(group: group, offsets: offsets, as: .init(), to: coordinator) {
                    reply.resolve(with: $0)
                }
            }
            if let code = codes.values.first(where: {
                $0 != .none && $0.isRetriable && $0 != .unknownTopicOrPartition
            }) {
                throw ClientError.broker(code, "offsets of group '\(group)'")
            }
            return Dictionary(
                uniqueKeysWithValues: offsets.keys.map { partition in
                    let code = codes[partition] ?? .none
                    let error = problem(code.rawValue, "offset of \(partition) in group '\(group)'")
                    return (partition, error.map { .failure($0) } ?? .success(()))
                })
        }
    }

    /// Where each partition would go if the group were reset to `position`; nothing is changed.
    ///
    /// A time after the last record resolves to the end of the partition, an offset outside the log to its
    /// nearer end.
    /// - Parameter partitions: `nil` means all partitions that the group has committed.
    public func planGroupReset(
        _ group: String, to position: OffsetSpec, partitions: [TopicPartition]? = nil
    ) async throws -> [TopicPartition: CommittedOffset] {
        let targets: [TopicPartition]
        if let partitions {
            targets = partitions
        } else {
            targets = try await Array(groupOffsets(group).keys)
        }
        func ask(_ spec: OffsetSpec) async throws -> [TopicPartition: ListedOffset?] {
            try await listOffsets(Dictionary(targets.map { ($0, spec) }, uniquingKeysWith: { $1 }))
                .mapValues { try $0.get() }
        }
        let ends = try await ask(.latest)
        let starts: [TopicPartition: ListedOffset?]
        if case .at = position { starts = try await ask(.earliest) } else { starts = [:] }
        let found = try await ask(position)
        var plan: [TopicPartition: CommittedOffset] = [:]
        for partition in targets {
            guard let end = ends[partition] ?? nil else { continue }
            var offset = (found[partition] ?? nil)?.offset ?? end.offset
            if case .at = position {
                let start = (starts[partition] ?? nil)?.offset ?? end.offset
                offset = min(max(offset, start), end.offset)
            }
            plan[partition] = CommittedOffset(offset)
        }
        return plan
    }

    /// Forgets committed offsets of a group.
    public func deleteGroupOffsets(
        _ group: String, _ partitions: [TopicPartition]
    ) async throws -> [TopicPartition: Result<Void, ClientError>] {
        try await onCoordinator(of: group, "offsets") { coordinator in
            let response = try await engine.send(OffsetDeleteRequest.self, to: .broker(coordinator)) { _ in
                var request = OffsetDeleteRequest()
                request.groupID = group
                request.topics = groupedByTopic(partitions).map { topic, indexes in
                    var entry = OffsetDeleteRequest.OffsetDeleteRequestTopic()
                    entry.name = topic
                    entry.partitions = indexes.map { index in
                        var item = OffsetDeleteRequest.OffsetDeleteRequestPartition()
                        item.partitionIndex = index
                        return item
                    }
                    return entry
                }
                return request
            }.response
            if let error = problem(response.errorCode, "offsets of group '\(group)'") { throw error }
            var results: [TopicPartition: Result<Void, ClientError>] = [:]
            for topic in response.topics {
                for item in topic.partitions {
                    let partition = TopicPartition(topic.name, item.partitionIndex)
                    let error = problem(item.errorCode, "offset of \(partition) in group '\(group)'")
                    results[partition] = error.map { .failure($0) } ?? .success(())
                }
            }
            return results
        }
    }
}
