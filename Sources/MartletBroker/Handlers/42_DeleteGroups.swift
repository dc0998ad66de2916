internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// DeleteGroups (key 42): groups without members, with their offsets.
package enum DeleteGroupsHandler {
    package static func handle(_ request: DeleteGroupsRequest, _ context: RequestContext) {
        let futures = context.groupsByShard(request.groupsNames).map { shard in
            context.coordinate(shard.key, .deleteGroups(shard.groups)).map {
                response -> [DeleteGroupsResponse.DeletableGroupResult] in
                guard case .deleteGroups(let results) = response else { return response.mismatch() }
                return results
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers in
                var byID: [String: DeleteGroupsResponse.DeletableGroupResult] = [:]
                for result in answers.joined() { byID[result.groupID] = result }
                var response = DeleteGroupsResponse()
                var seen: Set<String> = []
                for id in request.groupsNames where seen.insert(id).inserted {
                    var missing = DeleteGroupsResponse.DeletableGroupResult()
                    missing.groupID = id
                    // Without the offsets topic there has never been a group.
                    missing.errorCode = ErrorCode.groupIDNotFound.rawValue
                    response.results.append(byID[id] ?? missing)
                }
                return response
            })
    }
}
