import MartletKafkaProtocol
import MartletLogModel

// The share groups' part of the shard: checks of what a request says by itself, which kind of group it meets, and
// what takes a round to the share coordinator before it can be answered.

/// What becomes of an order's outcome.
enum ShareOrderPurpose: Equatable {
    case subscription
    case alteration(RequestID, AlterShareGroupOffsetsResponse)
    case offsetDeletion(RequestID, DeleteShareGroupOffsetsResponse)
    case groupDeletion(RequestID)
}

struct PendingShareOrder: Equatable {
    var order: ShareStateOrder
    var purpose: ShareOrderPurpose
}

/// A DeleteGroups request with share groups in it, until the last of them is decided.
struct GroupDeletion: Equatable {
    var results: [DeleteGroupsResponse.DeletableGroupResult]
    var outstandingCount: Int
}

extension GroupCoordinatorShard {
    // MARK: Replay

    /// A value makes the group, and ends one of another kind of its name.
    mutating func replayShare(_ record: ShareGroupRecord) {
        let id = record.groupID
        if shareGroups[id] == nil {
            guard record.hasValue else { return }
            groups[id] = nil
            consumerGroups[id] = nil
            shareGroups[id] = ShareGroup(id: id)
        }
        shareGroups[id]?.replay(record)
        if case .group(_, nil) = record { shareGroups[id] = nil }
    }

    // MARK: Heartbeat

    mutating func shareHeartbeat(
        _ id: RequestID, _ request: ShareGroupHeartbeatRequest, _ client: ClientIdentity,
        _ outbox: inout Outbox
    ) {
        var response: ShareGroupHeartbeatResponse
        do throws(GroupRefusal) {
            try Self.check(request)
            response =
                request.memberEpoch == ShareGroup.leaveEpoch
                ? try leaveShareGroup(request, &outbox) : try heartbeatShareGroup(request, client, &outbox)
        } catch {
            response = ShareGroupHeartbeatResponse()
            response.errorCode = error.code.rawValue
            response.errorMessage = error.message
            return outbox.respond(id, .shareGroupHeartbeat(response))
        }
        let order = shareGroups[request.groupID]?.beginInitializing(catalog)
        appendShare(
            request.groupID, then: [.respond(id, .shareGroupHeartbeat(response))],
            order.map { PendingShareOrder(order: $0, purpose: .subscription) }, &outbox)
    }

    /// What is wrong with the request whatever the group is.
    private static func check(_ request: ShareGroupHeartbeatRequest) throws(GroupRefusal) {
        func invalid(_ message: String) -> GroupRefusal { GroupRefusal(.invalidRequest, message) }
        func isBlank(_ text: String?) -> Bool { text.map { $0.allSatisfy(\.isWhitespace) } ?? false }
        if isBlank(request.memberID) { throw invalid("MemberId can't be empty.") }
        if request.memberID.utf8.count > ShareLimits.memberIDBytesLimit {
            throw invalid(
                "MemberId is longer than \(ShareLimits.memberIDBytesLimit) bytes; use the text of a UUID.")
        }
        if isBlank(request.groupID) { throw invalid("GroupId can't be empty.") }
        if request.groupID.utf8.count > GroupLimits.groupIDBytesLimit {
            throw GroupRefusal(
                .invalidGroupID, "GroupId is longer than \(GroupLimits.groupIDBytesLimit) bytes.")
        }
        if isBlank(request.rackID) { throw invalid("RackId can't be empty.") }
        if request.memberEpoch == ShareGroup.joinEpoch {
            if request.subscribedTopicNames?.isEmpty ?? true {
                throw invalid("SubscribedTopicNames must be set in first request.")
            }
        } else if request.memberEpoch < ShareGroup.leaveEpoch {
            throw invalid("MemberEpoch is invalid.")
        }
        let names = request.subscribedTopicNames ?? []
        let byteCount = names.reduce(request.rackID?.utf8.count ?? 0) { $0 + $1.utf8.count }
        if names.count > GroupLimits.subscribedTopicCountLimit {
            throw invalid(
                "A member names at most \(GroupLimits.subscribedTopicCountLimit) topics; let others of the group name the rest."
            )
        }
        if byteCount > GroupLimits.memberDescriptionBytesLimit {
            throw invalid(
                "A member says at most \(GroupLimits.memberDescriptionBytesLimit) bytes about itself, names of topics and rack id, not \(byteCount); name fewer topics, or shorten the rack id."
            )
        }
    }

    private mutating func heartbeatShareGroup(
        _ request: ShareGroupHeartbeatRequest, _ client: ClientIdentity, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ShareGroupHeartbeatResponse {
        let groupID = request.groupID
        if let response = try shareGroups[groupID]?.heartbeat(request, client, catalog, &outbox) {
            return response
        }
        guard request.memberEpoch == ShareGroup.joinEpoch else { throw missingShareGroup(groupID) }
        var group = try newShareGroup(groupID)
        var trial = outbox
        let response = try group.heartbeat(request, client, catalog, &trial)
        outbox = trial
        shareGroups[groupID] = group
        return response
    }

    private func missingShareGroup(_ id: String) -> GroupRefusal {
        GroupRefusal(
            .groupIDNotFound,
            groups[id] == nil && consumerGroups[id] == nil
                ? "Share group \(id) not found." : "Group \(id) is not a share group.")
    }

    /// A share group in the place of nothing: a group does not become one of another kind.
    private func newShareGroup(_ id: String) throws(GroupRefusal) -> ShareGroup {
        guard groups[id] == nil, consumerGroups[id] == nil else { throw missingShareGroup(id) }
        guard groupCount < GroupLimits.groupCountLimit else {
            throw GroupRefusal(
                .groupMaxSizeReached, "This coordinator has \(GroupLimits.groupCountLimit) groups, its limit."
            )
        }
        return ShareGroup(id: id)
    }

    private mutating func leaveShareGroup(
        _ request: ShareGroupHeartbeatRequest, _ outbox: inout Outbox
    ) throws(GroupRefusal) -> ShareGroupHeartbeatResponse {
        guard let group = shareGroups[request.groupID] else { throw missingShareGroup(request.groupID) }
        guard group.members[request.memberID] != nil else { throw group.unknown(request.memberID) }
        shareGroups[request.groupID]?.remove(request.memberID, catalog, &outbox)
        var response = ShareGroupHeartbeatResponse()
        response.memberID = request.memberID
        response.memberEpoch = request.memberEpoch
        return response
    }

    mutating func shareSessionTimeIsUp(_ memberID: String, of groupID: String, _ outbox: inout Outbox) {
        guard shareGroups[groupID]?.sessionTimeIsUp(memberID, &outbox) == true else { return }
        shareGroups[groupID]?.remove(memberID, catalog, &outbox)
        appendShare(groupID, then: [], nil, &outbox)
    }

    // MARK: Appending and ordering

    /// Appends what the group has decided; answers and orders wait for that, and else for what it decided before.
    private mutating func appendShare(
        _ groupID: String, then continuations: [Continuation], _ order: PendingShareOrder?,
        _ outbox: inout Outbox
    ) {
        var continuations = continuations
        if let order {
            let id = ShareOrderID(rawValue: nextShareOrder)
            nextShareOrder += 1
            shareOrders[id] = order
            continuations.append(.orderShareState(id))
        }
        let records = shareGroups[groupID]?.pending ?? []
        if !records.isEmpty {
            shareGroups[groupID]?.pending = []
            return outbox.append(records, then: continuations, isReplayed: true)
        }
        for continuation in continuations { perform(continuation, after: groupID, &outbox) }
    }

    /// What goes to the share coordinator when the append before it is committed.
    func shareStateOrder(_ id: ShareOrderID) -> ShareStateOrder? { shareOrders[id]?.order }

    /// The share coordinator has answered an order.
    mutating func shareStateOrdered(
        _ orderID: ShareOrderID, _ results: [UniversalID: [Int32: ErrorCode]], _ outbox: inout Outbox
    ) {
        guard let pending = shareOrders.removeValue(forKey: orderID) else { return }
        let groupID = pending.order.group
        switch pending.order.work {
        case .initialize(_, let offsets):
            shareGroups[groupID]?.finishInitializing(offsets, results)
        case .delete(let partitions):
            let done = partitions.filter { topic, indexes in
                indexes.allSatisfy { results[topic]?[$0] == ErrorCode.none }
            }
            shareGroups[groupID]?.finishDeleting(Set(done.keys))
        }
        switch pending.purpose {
        case .subscription:
            appendShare(groupID, then: [], nil, &outbox)
        case .alteration(let id, var response):
            for topic in response.responses.indices {
                let topicID = response.responses[topic].topicID
                for index in response.responses[topic].partitions.indices
                where response.responses[topic].partitions[index].errorCode == 0 {
                    let partition = response.responses[topic].partitions[index].partitionIndex
                    let code = results[topicID]?[partition] ?? .unknownServerError
                    response.responses[topic].partitions[index].errorCode = code.rawValue
                    if code != .none { response.responses[topic].partitions[index].errorMessage = code.name }
                }
            }
            appendShare(groupID, then: [.respond(id, .alterShareOffsets(response))], nil, &outbox)
        case .offsetDeletion(let id, var response):
            for index in response.responses.indices where response.responses[index].errorCode == 0 {
                let codes = results[response.responses[index].topicID] ?? [:]
                let code = codes.sorted { $0.key < $1.key }.first { $0.value != .none }?.value ?? .none
                response.responses[index].errorCode = code.rawValue
                if code != .none { response.responses[index].errorMessage = code.name }
            }
            appendShare(groupID, then: [.respond(id, .deleteShareOffsets(response))], nil, &outbox)
        case .groupDeletion(let id):
            let code =
                results.values.flatMap { $0.sorted { $0.key < $1.key } }.first { $0.value != .none }?.value
            appendShare(groupID, then: [], nil, &outbox)
            finishDeletion(of: groupID, for: id, code, &outbox)
        }
    }

    /// Answers whoever waits for the share coordinator: this core ends.
    mutating func closeShareOrders(_ code: ErrorCode, _ outbox: inout Outbox) {
        for orderID in shareOrders.keys.sorted() {
            switch shareOrders[orderID]?.purpose {
            case .alteration(let id, let response):
                outbox.respond(id, GroupResponse.alterShareOffsets(response).refused(code, commitCode: code))
            case .offsetDeletion(let id, let response):
                outbox.respond(id, GroupResponse.deleteShareOffsets(response).refused(code, commitCode: code))
            case .groupDeletion, .subscription, nil:
                break
            }
        }
        shareOrders = [:]
        for id in groupDeletions.keys.sorted() {
            guard let deletion = groupDeletions[id] else { continue }
            outbox.respond(id, GroupResponse.deleteGroups(deletion.results).refused(code, commitCode: code))
        }
        groupDeletions = [:]
    }

    // MARK: Offsets

    mutating func alterShareOffsets(
        _ id: RequestID, _ request: AlterShareGroupOffsetsRequest, _ outbox: inout Outbox
    ) {
        var response = AlterShareGroupOffsetsResponse()
        func refuse(_ code: ErrorCode, _ message: String) {
            response.errorCode = code.rawValue
            response.errorMessage = message
            outbox.respond(id, .alterShareOffsets(response))
        }
        let groupID = request.groupID
        guard !groupID.isEmpty, groupID.utf8.count <= GroupLimits.groupIDBytesLimit else {
            return refuse(.invalidGroupID, "The group id is empty or too long.")
        }
        var isNew = false
        if let group = shareGroups[groupID] {
            guard group.isEmpty else { return refuse(.nonEmptyGroup, "Group \(groupID) has members.") }
        } else {
            do throws(GroupRefusal) {
                _ = try newShareGroup(groupID)
                isNew = true
            } catch {
                return refuse(error.code, error.message)
            }
        }
        var offsets: [UniversalID: [Int32: Int64]] = [:]
        response.responses = request.topics.map { topic in
            var answer = AlterShareGroupOffsetsResponse.AlterShareGroupOffsetsResponseTopic()
            answer.topicName = topic.topicName
            let known = catalog.topic(named: topic.topicName)
            answer.topicID = known?.id ?? .zero
            answer.partitions = topic.partitions.map { partition in
                var result = AlterShareGroupOffsetsResponse.AlterShareGroupOffsetsResponsePartition()
                result.partitionIndex = partition.partitionIndex
                guard let known, partition.partitionIndex >= 0,
                    partition.partitionIndex < known.partitionCount
                else {
                    result.errorCode = ErrorCode.unknownTopicOrPartition.rawValue
                    result.errorMessage = "There is no such partition."
                    return result
                }
                guard partition.startOffset >= 0 else {
                    result.errorCode = ErrorCode.invalidRequest.rawValue
                    result.errorMessage = "Start offset \(partition.startOffset) is negative."
                    return result
                }
                offsets[known.id, default: [:]][partition.partitionIndex] = partition.startOffset
                return result
            }
            return answer
        }
        guard !offsets.isEmpty else { return outbox.respond(id, .alterShareOffsets(response)) }
        if isNew { shareGroups[groupID] = ShareGroup(id: groupID) }
        let order = shareGroups[groupID]?.beginAltering(offsets, catalog)
        appendShare(
            groupID, then: [],
            order.map { PendingShareOrder(order: $0, purpose: .alteration(id, response)) }, &outbox)
    }

    mutating func deleteShareOffsets(
        _ id: RequestID, _ request: DeleteShareGroupOffsetsRequest, _ outbox: inout Outbox
    ) {
        var response = DeleteShareGroupOffsetsResponse()
        func refuse(_ code: ErrorCode, _ message: String) {
            response.errorCode = code.rawValue
            response.errorMessage = message
            outbox.respond(id, .deleteShareOffsets(response))
        }
        let groupID = request.groupID
        guard !groupID.isEmpty else { return refuse(.invalidGroupID, "The group id is empty.") }
        guard let group = shareGroups[groupID] else {
            let missing = missingShareGroup(groupID)
            return refuse(missing.code, missing.message)
        }
        guard group.isEmpty else { return refuse(.nonEmptyGroup, "Group \(groupID) has members.") }
        var topics: Set<UniversalID> = []
        response.responses = request.topics.map { topic in
            var answer = DeleteShareGroupOffsetsResponse.DeleteShareGroupOffsetsResponseTopic()
            answer.topicName = topic.topicName
            guard let known = catalog.topic(named: topic.topicName),
                group.register.initialized[known.id] != nil || group.register.deleting[known.id] != nil
            else {
                answer.errorCode = ErrorCode.unknownTopicOrPartition.rawValue
                answer.errorMessage = "There is no offset information to delete."
                return answer
            }
            answer.topicID = known.id
            topics.insert(known.id)
            return answer
        }
        let order = topics.isEmpty ? nil : shareGroups[groupID]?.beginDeleting(topics, catalog)
        guard let order else { return outbox.respond(id, .deleteShareOffsets(response)) }
        appendShare(
            groupID, then: [], PendingShareOrder(order: order, purpose: .offsetDeletion(id, response)),
            &outbox)
    }

    // MARK: Deletion

    mutating func forgetShareTopics(_ names: Set<String>, _ outbox: inout Outbox) {
        for groupID in shareGroups.ids.sorted() {
            shareGroups[groupID]?.forgetTopics(named: names)
            appendShare(groupID, then: [], nil, &outbox)
        }
    }

    /// Begins to delete an empty share group. True if the answer has to wait for the share coordinator.
    mutating func beginDeletion(of groupID: String, for id: RequestID, _ outbox: inout Outbox) -> Bool {
        guard let order = shareGroups[groupID]?.beginDeleting(nil, catalog) else { return false }
        appendShare(groupID, then: [], PendingShareOrder(order: order, purpose: .groupDeletion(id)), &outbox)
        return true
    }

    private mutating func finishDeletion(
        of groupID: String, for id: RequestID, _ code: ErrorCode?, _ outbox: inout Outbox
    ) {
        var code = code ?? .none
        if code == .none, let group = shareGroups[groupID] {
            if group.isEmpty {
                outbox.append(group.tombstones())
            } else {
                // Somebody joined meanwhile.
                code = .nonEmptyGroup
            }
        }
        guard var deletion = groupDeletions[id] else { return }
        if let index = deletion.results.firstIndex(where: { $0.groupID == groupID }) {
            deletion.results[index].errorCode = code.rawValue
        }
        deletion.outstandingCount -= 1
        groupDeletions[id] = deletion
        guard deletion.outstandingCount == 0 else { return }
        groupDeletions[id] = nil
        if let last = outbox.appends.indices.last {
            outbox.appends[last].continuations.append(.respond(id, .deleteGroups(deletion.results)))
        } else {
            respond(id, .deleteGroups(deletion.results), after: deletion.results.map(\.groupID), &outbox)
        }
    }

    // MARK: Queries

    func describeShareGroup(_ id: String) -> ShareGroupDescribeResponse.DescribedGroup {
        if let group = shareGroups[id] { return group.described(catalog) }
        var answer = ShareGroupDescribeResponse.DescribedGroup()
        answer.groupID = id
        answer.groupState = "Dead"
        let missing =
            id.isEmpty ? GroupRefusal(.invalidGroupID, "The group id is empty") : missingShareGroup(id)
        answer.errorCode = missing.code.rawValue
        answer.errorMessage = missing.message
        return answer
    }

    /// Partitions whose state is kept, for DescribeShareGroupOffsets.
    func sharePartitions(_ id: String) -> SharePartitionsAnswer {
        SharePartitionsAnswer(
            group: id, exists: shareGroups[id] != nil,
            partitions: shareGroups[id]?.register.initialized.mapValues(\.partitions) ?? [:])
    }
}

package struct SharePartitionsAnswer: Sendable, Equatable {
    package var group: String
    package var exists: Bool
    package var partitions: TopicPartitions
}
