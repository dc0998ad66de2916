import MartletKafkaProtocol
import MartletLogModel

// Where the requests of share groups have their places for an error.

extension GroupCoordinatorShard {
    static func shareRefusal(_ request: GroupRequest, _ code: ErrorCode) -> GroupResponse {
        switch request {
        case .shareGroupHeartbeat:
            return GroupResponse.shareGroupHeartbeat(ShareGroupHeartbeatResponse()).shareRefused(code)
        case .shareGroupDescribe(let ids):
            return .shareGroupDescribe(
                ids.map {
                    var group = ShareGroupDescribeResponse.DescribedGroup()
                    group.groupID = $0
                    group.errorCode = code.rawValue
                    return group
                })
        case .alterShareOffsets:
            return GroupResponse.alterShareOffsets(AlterShareGroupOffsetsResponse()).shareRefused(code)
        case .deleteShareOffsets:
            return GroupResponse.deleteShareOffsets(DeleteShareGroupOffsetsResponse()).shareRefused(code)
        case .sharePartitions:
            return .sharePartitions([])
        case .joinGroup, .syncGroup, .heartbeat, .leaveGroup, .offsetCommit, .txnOffsetCommit,
            .endTransaction,
            .offsetFetch, .describeGroups, .listGroups, .deleteGroups, .offsetDelete, .consumerGroupHeartbeat,
            .consumerGroupDescribe, .lastRebalances:
            preconditionFailure("\(request) is no request of a share group")
        }
    }
}

extension GroupResponse {
    func shareRefused(_ code: ErrorCode) -> GroupResponse {
        switch self {
        case .shareGroupHeartbeat:
            var response = ShareGroupHeartbeatResponse()
            response.errorCode = code.rawValue
            return .shareGroupHeartbeat(response)
        case .shareGroupDescribe(let groups):
            return .shareGroupDescribe(
                groups.map {
                    var group = ShareGroupDescribeResponse.DescribedGroup()
                    group.groupID = $0.groupID
                    group.errorCode = code.rawValue
                    return group
                })
        case .alterShareOffsets:
            var response = AlterShareGroupOffsetsResponse()
            response.errorCode = code.rawValue
            return .alterShareOffsets(response)
        case .deleteShareOffsets:
            var response = DeleteShareGroupOffsetsResponse()
            response.errorCode = code.rawValue
            return .deleteShareOffsets(response)
        case .sharePartitions:
            return .sharePartitions([])
        case .joinGroup, .syncGroup, .heartbeat, .leaveGroup, .offsetCommit, .transactionEnded, .offsetFetch,
            .describeGroups, .listGroups, .deleteGroups, .offsetDelete, .consumerGroupHeartbeat,
            .consumerGroupDescribe, .lastRebalances:
            preconditionFailure("\(self) is no answer of a share group")
        }
    }
}
