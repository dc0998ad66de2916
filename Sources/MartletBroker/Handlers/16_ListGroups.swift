internal import MartletCoordinators
package import MartletKafkaProtocol
internal import NIOCore

/// ListGroups (key 16): the groups this broker coordinates. Versions: 4 filters by state (KIP-518), 5 by type (KIP-848).
package enum ListGroupsHandler {
    package static func handle(_ request: ListGroupsRequest, _ context: RequestContext) {
        let futures = context.allGroupShards.map { key in
            context.coordinate(key, .listGroups(request)).map { response -> ListGroupsResponse in
                guard case .listGroups(let answer) = response else { return response.mismatch() }
                return answer
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { answers in
                var response = ListGroupsResponse()
                for answer in answers {
                    // One shard that cannot answer makes the list incomplete, and the client must know.
                    if answer.errorCode != 0 { response.errorCode = answer.errorCode }
                    response.groups += answer.groups
                }
                response.groups.sort { $0.groupID < $1.groupID }
                return response
            })
    }
}
