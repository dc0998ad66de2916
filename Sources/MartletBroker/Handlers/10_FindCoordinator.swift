internal import Logging
internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// FindCoordinator (key 10). Versions: 1 adds the key type, 4 asks for several keys (KIP-699), 6 share groups
/// (KIP-932). The topic of a coordinator is created when somebody first asks for it.
package enum FindCoordinatorHandler {
    private enum KeyType {
        static let group: Int8 = 0
        static let transaction: Int8 = 1
        /// A share partition, as `group:topic id:partition` (KIP-932).
        static let share: Int8 = 2
    }

    package static func handle(_ request: FindCoordinatorRequest, _ context: RequestContext) {
        if request.keyType == KeyType.share, context.version < 6 || !context.loop.servesShareGroups {
            var refused = request
            refused.keyType = -1
            return context.respond(response(refused, context))
        }
        guard let topic = topic(of: request.keyType), context.image.topicID(named: topic) == nil else {
            context.respond(response(request, context))
            return
        }
        let loop = context.loop
        let created = context.services.controller.autoCreateTopics([topic]).hop(to: loop.eventLoop)
        created.assumeIsolated().whenComplete { result in
            switch result {
            case .success:
                break
            case .failure(let error):
                loop.logger.error("\(topic) cannot be created", metadata: ["cause": "\(error)"])
            }
            context.respond(response(request, context))
        }
    }

    private static func topic(of keyType: Int8) -> String? {
        switch keyType {
        case KeyType.group: TopicName.consumerOffsets
        case KeyType.transaction: TopicName.transactionState
        case KeyType.share: TopicName.shareGroupState
        case _: nil
        }
    }

    private static func response(_ request: FindCoordinatorRequest, _ context: RequestContext) -> FindCoordinatorResponse {
        var response = FindCoordinatorResponse()
        let (code, message) = outcome(request, context)
        let address = code == .none ? context.address(of: context.services.settings.nodeID) : nil
        let node = code == .none ? context.services.settings.nodeID.rawValue : -1
        guard context.version >= 4 else {
            response.errorCode = code.rawValue
            response.errorMessage = message
            response.nodeID = node
            response.host = address?.host ?? ""
            response.port = Int32(address?.port ?? -1)
            return response
        }
        response.coordinators = request.coordinatorKeys.map { key in
            var coordinator = FindCoordinatorResponse.Coordinator()
            coordinator.key = key
            coordinator.nodeID = node
            coordinator.host = address?.host ?? ""
            coordinator.port = Int32(address?.port ?? -1)
            coordinator.errorCode = code.rawValue
            coordinator.errorMessage = message
            if request.keyType == KeyType.share, code == .none, SharePartitionID(coordinatorKey: key) == nil {
                coordinator.errorCode = ErrorCode.invalidRequest.rawValue
                coordinator.errorMessage = "a share partition is named group:topic id:partition"
                coordinator.nodeID = -1
                coordinator.host = ""
                coordinator.port = -1
            }
            return coordinator
        }
        return response
    }

    private static func outcome(_ request: FindCoordinatorRequest, _ context: RequestContext) -> (ErrorCode, String?) {
        guard let topic = topic(of: request.keyType) else {
            return (
                .invalidRequest,
                "coordinator type \(request.keyType) is not served; 0 is a group, 1 a transactional id, 2 a share partition"
            )
        }
        guard context.image.topicID(named: topic) != nil else {
            return (.coordinatorNotAvailable, "\(topic) could not be created; see the broker's log")
        }
        return (.none, nil)
    }
}
