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
        let created = context.services.controllerChannel.autoCreateTopics([topic]).hop(to: loop.eventLoop)
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
        func find(_ key: String) -> FindCoordinatorResponse.Coordinator {
            var coordinator = FindCoordinatorResponse.Coordinator()
            coordinator.key = key
            coordinator.errorCode = code.rawValue
            coordinator.errorMessage = message
            coordinator.nodeID = -1
            coordinator.port = -1
            guard code == .none else { return coordinator }
            guard let leader = leader(of: key, request.keyType, context) else {
                coordinator.errorCode = ErrorCode.coordinatorNotAvailable.rawValue
                coordinator.errorMessage = "its partition has no leader now; try again"
                return coordinator
            }
            coordinator.nodeID = leader.rawValue
            let address = context.address(of: leader)
            coordinator.host = address?.host ?? ""
            coordinator.port = Int32(address?.port ?? -1)
            return coordinator
        }
        guard context.version >= 4 else {
            let found = find(request.key)
            response.errorCode = found.errorCode
            response.errorMessage = found.errorMessage
            response.nodeID = found.nodeID
            response.host = found.host
            response.port = found.port
            return response
        }
        response.coordinators = request.coordinatorKeys.map { key in
            var coordinator = find(key)
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

    /// Who leads the partition of the internal topic that the key belongs to.
    private static func leader(of key: String, _ keyType: Int8, _ context: RequestContext) -> BrokerID? {
        guard let name = topic(of: keyType), let topic = context.image.topic(named: name), !topic.partitions.isEmpty
        else { return nil }
        let index = GroupPartitioner.partition(for: key, count: Int32(clamping: topic.partitions.count))
        return topic.partition(PartitionIndex(index))?.leader
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
