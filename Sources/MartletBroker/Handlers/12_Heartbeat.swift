internal import MartletCoordinators
package import MartletKafkaProtocol
internal import NIOCore

/// Heartbeat (key 12). Version 3 adds static members (KIP-345).
package enum HeartbeatHandler {
    package static func handle(_ request: HeartbeatRequest, _ context: RequestContext) {
        context.respond(
            when: context.coordinate(group: request.groupID, .heartbeat(request)).map {
                response -> HeartbeatResponse in
                guard case .heartbeat(let answer) = response else { return response.mismatch() }
                return answer
            })
    }
}
