internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletTransport
internal import NIOCore

/// ConsumerGroupHeartbeat (key 68, KIP-848). Version 1 adds topic patterns, and member ids that the client chooses
/// (KIP-1082).
package enum ConsumerGroupHeartbeatHandler {
    package static func handle(_ request: ConsumerGroupHeartbeatRequest, _ context: RequestContext) {
        guard context.image.brokerConfiguration.servesConsumerProtocol else {
            var response = ConsumerGroupHeartbeatResponse()
            response.errorCode = ErrorCode.unsupportedVersion.rawValue
            response.errorMessage =
                "the consumer protocol is switched off by group.coordinator.rebalance.protocols; use group.protocol=classic"
            context.respond(response)
            return
        }
        var generator = context.services.random
        let traits = HeartbeatTraits(
            requiresMemberID: context.version >= 1, newMemberID: .random(using: &generator))
        let client = ClientIdentity(
            clientID: context.header.clientID ?? "",
            host: "/\(context.connection.remoteAddress?.ipAddress ?? "unknown")")
        context.respond(
            when: context.coordinate(group: request.groupID, .consumerGroupHeartbeat(request, client, traits))
                .map {
                    response -> ConsumerGroupHeartbeatResponse in
                    guard case .consumerGroupHeartbeat(let answer) = response else {
                        return response.mismatch()
                    }
                    return answer
                })
    }
}
