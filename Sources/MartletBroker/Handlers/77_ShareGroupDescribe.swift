internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// ShareGroupDescribe (key 77, KIP-932).
package enum ShareGroupDescribeHandler {
    package static func handle(_ request: ShareGroupDescribeRequest, _ context: RequestContext) {
        guard context.loop.servesShareGroups else {
            var response = ShareGroupDescribeResponse()
            response.groups = request.groupIDs.map { failed($0, .unsupportedVersion) }
            return context.respond(response)
        }
        let futures = context.groupsByShard(request.groupIDs).map { shard in
            context.coordinate(shard.key, .shareGroupDescribe(shard.groups)).map {
                response -> [ShareGroupDescribeResponse.DescribedGroup] in
                guard case .shareGroupDescribe(let groups) = response else { return response.mismatch() }
                return groups
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers in
                var byID: [String: ShareGroupDescribeResponse.DescribedGroup] = [:]
                for group in answers.joined() { byID[group.groupID] = group }
                var response = ShareGroupDescribeResponse()
                response.groups = request.groupIDs.map { id in
                    var group = byID[id] ?? failed(id, .coordinatorNotAvailable)
                    if request.includeAuthorizedOperations {
                        group.authorizedOperations = AuthorizedOperations.group
                    }
                    return group
                }
                return response
            })
    }

    private static func failed(_ id: String, _ code: ErrorCode) -> ShareGroupDescribeResponse.DescribedGroup {
        var group = ShareGroupDescribeResponse.DescribedGroup()
        group.groupID = id
        group.errorCode = code.rawValue
        return group
    }
}
