internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// DeleteShareGroupOffsets (key 92, KIP-932): forgets topics of a group without members.
package enum DeleteShareGroupOffsetsHandler {
    package static func handle(_ request: DeleteShareGroupOffsetsRequest, _ context: RequestContext) {
        guard context.loop.servesShareGroups else {
            var response = DeleteShareGroupOffsetsResponse()
            response.errorCode = ErrorCode.unsupportedVersion.rawValue
            response.errorMessage = ShareRequests.unsupported
            return context.respond(response)
        }
        context.respond(
            when: context.coordinate(group: request.groupID, .deleteShareOffsets(request)).map {
                response -> DeleteShareGroupOffsetsResponse in
                guard case .deleteShareOffsets(let answer) = response else { return response.mismatch() }
                return answer
            })
    }
}
