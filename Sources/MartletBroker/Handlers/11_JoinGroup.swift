internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore

/// JoinGroup (key 11). Versions: 1 adds the rebalance timeout, 4 the two steps of a first join (KIP-394), 5 static
/// members (KIP-345), 7 the protocol type in the answer, 8 a reason (KIP-800), 9 skipping the assignment (KIP-814).
package enum JoinGroupHandler {
    package static func handle(_ request: JoinGroupRequest, _ context: RequestContext) {
        var generator = context.services.random
        let traits = JoinTraits(
            requiresKnownMemberID: context.version >= 4, supportsSkippingAssignment: context.version >= 9,
            newMemberID: .random(using: &generator))
        let client = ClientIdentity(
            clientID: context.header.clientID ?? "", host: "/\(context.connection.remoteAddress?.ipAddress ?? "unknown")")
        let version = context.version
        context.respond(
            when: context.coordinate(group: request.groupID, .joinGroup(request, client, traits)).map {
                response -> JoinGroupResponse in
                guard case .joinGroup(var answer) = response else { return response.mismatch() }
                // Null needs version 7.
                if version < 7, answer.protocolName == nil { answer.protocolName = "" }
                return answer
            })
    }
}
