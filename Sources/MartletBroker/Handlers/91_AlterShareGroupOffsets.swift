internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// AlterShareGroupOffsets (key 91, KIP-932): sets the start offsets of a group without members.
package enum AlterShareGroupOffsetsHandler {
    package static func handle(_ request: AlterShareGroupOffsetsRequest, _ context: RequestContext) {
        guard context.loop.servesShareGroups else {
            var response = AlterShareGroupOffsetsResponse()
            response.errorCode = ErrorCode.unsupportedVersion.rawValue
            response.errorMessage = ShareRequests.unsupported
            return context.respond(response)
        }
        context.respond(
            when: context.coordinate(group: request.groupID, .alterShareOffsets(request)).map {
                response -> AlterShareGroupOffsetsResponse in
                guard case .alterShareOffsets(let answer) = response else { return response.mismatch() }
                return answer
            })
    }
}
