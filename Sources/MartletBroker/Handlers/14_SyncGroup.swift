internal import MartletCoordinators
package import MartletKafkaProtocol
internal import NIOCore

/// SyncGroup (key 14). Versions: 3 adds static members (KIP-345), 5 the protocol's type and name (KIP-559).
package enum SyncGroupHandler {
    package static func handle(_ request: SyncGroupRequest, _ context: RequestContext) {
        context.respond(
            when: context.coordinate(group: request.groupID, .syncGroup(request)).map {
                response -> SyncGroupResponse in
                guard case .syncGroup(let answer) = response else { return response.mismatch() }
                return answer
            })
    }
}
