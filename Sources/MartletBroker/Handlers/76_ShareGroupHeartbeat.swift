internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore

/// ShareGroupHeartbeat (key 76, KIP-932).
package enum ShareGroupHeartbeatHandler {
    package static func handle(_ request: ShareGroupHeartbeatRequest, _ context: RequestContext) {
        guard context.loop.servesShareGroups else {
            var response = ShareGroupHeartbeatResponse()
            response.errorCode = ErrorCode.unsupportedVersion.rawValue
            response.errorMessage = ShareRequests.unsupported
            return context.respond(response)
        }
        let client = ClientIdentity(
            clientID: context.header.clientID ?? "",
            host: "/\(context.connection.remoteAddress?.ipAddress ?? "unknown")")
        context.respond(
            when: context.coordinate(group: request.groupID, .shareGroupHeartbeat(request, client)).map {
                response -> ShareGroupHeartbeatResponse in
                guard case .shareGroupHeartbeat(let answer) = response else { return response.mismatch() }
                return answer
            })
    }
}
