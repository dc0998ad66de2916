internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// DescribeGroups (key 15). Versions: 3 adds authorized operations, 6 reports an unknown group as an error (KIP-1043);
/// before, its state is "Dead".
package enum DescribeGroupsHandler {
    package static func handle(_ request: DescribeGroupsRequest, _ context: RequestContext) {
        let version = context.version
        let shards = context.groupsByShard(request.groups)
        let futures = shards.map { shard in
            context.coordinate(shard.key, .describeGroups(shard.groups)).map {
                response -> [DescribeGroupsResponse.DescribedGroup] in
                guard case .describeGroups(let groups) = response else { return response.mismatch() }
                return groups
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers in
                var byID: [String: DescribeGroupsResponse.DescribedGroup] = [:]
                for group in answers.joined() { byID[group.groupID] = group }
                var response = DescribeGroupsResponse()
                response.groups = request.groups.map { id in
                    var group = byID[id] ?? unavailable(id)
                    if group.errorCode == ErrorCode.groupIDNotFound.rawValue, version < 6 {
                        group.errorCode = ErrorCode.none.rawValue
                    }
                    if version < 6 { group.errorMessage = nil }
                    if request.includeAuthorizedOperations { group.authorizedOperations = AuthorizedOperations.group }
                    return group
                }
                return response
            })
    }

    private static func unavailable(_ id: String) -> DescribeGroupsResponse.DescribedGroup {
        var group = DescribeGroupsResponse.DescribedGroup()
        group.groupID = id
        group.errorCode = ErrorCode.coordinatorNotAvailable.rawValue
        return group
    }
}
