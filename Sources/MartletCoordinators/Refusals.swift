import MartletKafkaProtocol
package import MartletLogModel

// Each request has its own place for an error; this file knows them all.

extension GroupCoordinatorShard {
    /// The answer to `request` that says `code`.
    package static func refusal(_ request: GroupRequest, _ code: ErrorCode) -> GroupResponse {
        switch request {
        case .joinGroup(let request, _, _):
            var response = JoinGroupResponse()
            response.errorCode = code.rawValue
            response.memberID = request.memberID
            return .joinGroup(response)
        case .syncGroup:
            var response = SyncGroupResponse()
            response.errorCode = code.rawValue
            return .syncGroup(response)
        case .heartbeat:
            var response = HeartbeatResponse()
            response.errorCode = code.rawValue
            return .heartbeat(response)
        case .leaveGroup:
            var response = LeaveGroupResponse()
            response.errorCode = code.rawValue
            return .leaveGroup(response)
        case .offsetCommit(let request, _):
            return .offsetCommit(refusal(request, code))
        case .txnOffsetCommit(let request, _):
            return .offsetCommit(refusal(request, code))
        case .endTransaction:
            return .transactionEnded(code)
        case .offsetFetch(let request, _):
            var response = OffsetFetchResponse.OffsetFetchResponseGroup()
            response.groupID = request.groupID
            response.errorCode = code.rawValue
            return .offsetFetch(response)
        case .describeGroups(let ids):
            return .describeGroups(
                ids.map {
                    var group = DescribeGroupsResponse.DescribedGroup()
                    group.groupID = $0
                    group.errorCode = code.rawValue
                    return group
                })
        case .listGroups:
            var response = ListGroupsResponse()
            response.errorCode = code.rawValue
            return .listGroups(response)
        case .deleteGroups(let ids):
            return .deleteGroups(
                ids.map {
                    var result = DeleteGroupsResponse.DeletableGroupResult()
                    result.groupID = $0
                    result.errorCode = code.rawValue
                    return result
                })
        case .offsetDelete:
            var response = OffsetDeleteResponse()
            response.errorCode = code.rawValue
            return .offsetDelete(response)
        case .consumerGroupHeartbeat:
            var response = ConsumerGroupHeartbeatResponse()
            response.errorCode = code.rawValue
            return .consumerGroupHeartbeat(response)
        case .consumerGroupDescribe(let ids):
            return .consumerGroupDescribe(
                ids.map {
                    var group = ConsumerGroupDescribeResponse.DescribedGroup()
                    group.groupID = $0
                    group.errorCode = code.rawValue
                    return group
                })
        case .lastRebalances:
            return .lastRebalances([])
        case .shareGroupHeartbeat, .shareGroupDescribe, .alterShareOffsets, .deleteShareOffsets, .sharePartitions:
            return shareRefusal(request, code)
        }
    }
}

extension GroupRequest {
    /// The group and the member that a member's request is about; `nil` for what administrators and coordinators ask.
    package var subject: (group: String, member: String)? {
        switch self {
        case .joinGroup(let request, _, _): (request.groupID, request.memberID)
        case .syncGroup(let request): (request.groupID, request.memberID)
        case .heartbeat(let request): (request.groupID, request.memberID)
        case .leaveGroup(let request): (request.groupID, request.members.first?.memberID ?? "")
        case .offsetCommit(let request, _), .txnOffsetCommit(let request, _): (request.groupID, request.memberID)
        case .offsetFetch(let request, _): (request.groupID, request.memberID ?? "")
        case .consumerGroupHeartbeat(let request, _, _): (request.groupID, request.memberID)
        case .shareGroupHeartbeat(let request, _): (request.groupID, request.memberID)
        case .endTransaction, .describeGroups, .listGroups, .deleteGroups, .offsetDelete, .consumerGroupDescribe,
            .lastRebalances, .shareGroupDescribe, .alterShareOffsets, .deleteShareOffsets, .sharePartitions:
            nil
        }
    }
}

extension GroupResponse {
    /// The first thing that a member was refused, and the words that go with it.
    package var refusal: (code: ErrorCode, message: String?)? {
        var code: Int16 = 0
        var message: String?
        switch self {
        case .joinGroup(let response): code = response.errorCode
        case .syncGroup(let response): code = response.errorCode
        case .heartbeat(let response): code = response.errorCode
        case .leaveGroup(let response):
            code = response.errorCode
            if code == 0 { code = response.members.first { $0.errorCode != 0 }?.errorCode ?? 0 }
        case .offsetCommit(let response):
            for topic in response.topics where code == 0 {
                code = topic.partitions.first { $0.errorCode != 0 }?.errorCode ?? 0
            }
        case .offsetFetch(let response): code = response.errorCode
        case .consumerGroupHeartbeat(let response):
            code = response.errorCode
            message = response.errorMessage
        case .shareGroupHeartbeat(let response):
            code = response.errorCode
            message = response.errorMessage
        case .transactionEnded, .describeGroups, .listGroups, .deleteGroups, .offsetDelete, .consumerGroupDescribe,
            .lastRebalances, .shareGroupDescribe, .alterShareOffsets, .deleteShareOffsets, .sharePartitions:
            break
        }
        return code == 0 ? nil : (ErrorCode(rawValue: code), message)
    }

    /// The answer that was prepared, turned into a refusal because its append was lost. Parts that had
    /// failed before keep their own codes.
    func refused(_ code: ErrorCode, commitCode: ErrorCode) -> GroupResponse {
        switch self {
        case .joinGroup(var response):
            response = JoinGroupResponse()
            response.errorCode = code.rawValue
            return .joinGroup(response)
        case .syncGroup(var response):
            response = SyncGroupResponse()
            response.errorCode = code.rawValue
            return .syncGroup(response)
        case .heartbeat(var response):
            response.errorCode = code.rawValue
            return .heartbeat(response)
        case .leaveGroup(var response):
            response.errorCode = code.rawValue
            return .leaveGroup(response)
        case .offsetCommit(var response):
            for topic in response.topics.indices {
                for partition in response.topics[topic].partitions.indices
                where response.topics[topic].partitions[partition].errorCode == 0 {
                    response.topics[topic].partitions[partition].errorCode = commitCode.rawValue
                }
            }
            return .offsetCommit(response)
        case .transactionEnded:
            return .transactionEnded(code)
        case .offsetFetch(var response):
            response.errorCode = code.rawValue
            response.topics = []
            return .offsetFetch(response)
        case .describeGroups(var groups):
            for index in groups.indices { groups[index].errorCode = code.rawValue }
            return .describeGroups(groups)
        case .listGroups(var response):
            response.errorCode = code.rawValue
            return .listGroups(response)
        case .deleteGroups(var results):
            for index in results.indices where results[index].errorCode == 0 {
                results[index].errorCode = code.rawValue
            }
            return .deleteGroups(results)
        case .offsetDelete(var response):
            response = OffsetDeleteResponse()
            response.errorCode = code.rawValue
            return .offsetDelete(response)
        case .consumerGroupHeartbeat(var response):
            response = ConsumerGroupHeartbeatResponse()
            response.errorCode = code.rawValue
            return .consumerGroupHeartbeat(response)
        case .consumerGroupDescribe(let groups):
            return .consumerGroupDescribe(
                groups.map {
                    var group = ConsumerGroupDescribeResponse.DescribedGroup()
                    group.groupID = $0.groupID
                    group.errorCode = code.rawValue
                    return group
                })
        case .lastRebalances:
            return .lastRebalances([])
        case .shareGroupHeartbeat, .shareGroupDescribe, .alterShareOffsets, .deleteShareOffsets, .sharePartitions:
            return shareRefused(code)
        }
    }
}

extension GroupCoordinatorShard {
    /// Codes of a failed append as group requests report them (as Kafka maps them): look for the coordinator
    /// again, or try again.
    static func coordinatorCode(_ code: ErrorCode) -> ErrorCode {
        switch code {
        case .notLeaderOrFollower, .kafkaStorageError: .notCoordinator
        case .unknownTopicOrPartition, .notEnoughReplicas, .notEnoughReplicasAfterAppend, .requestTimedOut:
            .coordinatorNotAvailable
        case .messageTooLarge, .recordListTooLarge, .invalidFetchSize: .unknownServerError
        case _: code
        }
    }

    static func commitCode(_ code: ErrorCode) -> ErrorCode {
        switch code {
        case .messageTooLarge, .recordListTooLarge, .invalidFetchSize: .invalidCommitOffsetSize
        case _: coordinatorCode(code)
        }
    }
}
