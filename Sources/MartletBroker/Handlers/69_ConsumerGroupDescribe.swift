internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// ConsumerGroupDescribe (key 69, KIP-848). Version 1 tells of each member which protocol it speaks (KIP-1099).
package enum ConsumerGroupDescribeHandler {
    /// Read, delete and describe, as bits of their ACL numbers: without authorization everybody may do all.
    private static let allOperations: Int32 = 1 << 3 | 1 << 6 | 1 << 8

    package static func handle(_ request: ConsumerGroupDescribeRequest, _ context: RequestContext) {
        let futures = context.groupsByShard(request.groupIDs).map { shard in
            context.coordinate(shard.key, .consumerGroupDescribe(shard.groups)).map {
                response -> [ConsumerGroupDescribeResponse.DescribedGroup] in
                guard case .consumerGroupDescribe(let groups) = response else { return response.mismatch() }
                return groups
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers in
                var byID: [String: ConsumerGroupDescribeResponse.DescribedGroup] = [:]
                for group in answers.joined() { byID[group.groupID] = group }
                var response = ConsumerGroupDescribeResponse()
                response.groups = request.groupIDs.map { id in
                    var group = byID[id] ?? unavailable(id)
                    if request.includeAuthorizedOperations { group.authorizedOperations = allOperations }
                    return group
                }
                return response
            })
    }

    private static func unavailable(_ id: String) -> ConsumerGroupDescribeResponse.DescribedGroup {
        var group = ConsumerGroupDescribeResponse.DescribedGroup()
        group.groupID = id
        group.errorCode = ErrorCode.coordinatorNotAvailable.rawValue
        return group
    }
}
