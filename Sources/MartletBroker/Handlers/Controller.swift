internal import Logging
package import MartletController
package import MartletKafkaProtocol
package import MartletLogModel
internal import MartletMetadataQuorum
package import NIOCore

/// Handlers of requests that the active controller decides, on whatever broker they arrive. Each is answered when its
/// records are committed, and the broker that answers knows them.
package enum ControllerHandlers {
    package static func createTopics(_ request: CreateTopicsRequest, _ context: RequestContext) {
        context.relay(request)
    }

    /// Versions up to 5 name topics in a field of their own; 6 also takes ids (KIP-516).
    package static func deleteTopics(_ request: DeleteTopicsRequest, _ context: RequestContext) {
        var wanted = request
        if context.version < 6 {
            wanted.topics = request.topicNames.map { name in
                var topic = DeleteTopicsRequest.DeleteTopicState()
                topic.name = name
                return topic
            }
            wanted.topicNames = []
        }
        context.relay(wanted)
    }

    package static func createPartitions(_ request: CreatePartitionsRequest, _ context: RequestContext) {
        context.relay(request)
    }

    package static func alterConfigs(_ request: AlterConfigsRequest, _ context: RequestContext) {
        context.relay(request)
    }

    package static func incrementalAlterConfigs(_ request: IncrementalAlterConfigsRequest, _ context: RequestContext) {
        context.relay(request)
    }

    package static func describeConfigs(_ request: DescribeConfigsRequest, _ context: RequestContext) {
        context.respond(context.image.describe(request))
    }

    package static func electLeaders(_ request: ElectLeadersRequest, _ context: RequestContext) { context.relay(request) }

    package static func alterReassignments(
        _ request: AlterPartitionReassignmentsRequest, _ context: RequestContext
    ) {
        context.relay(request)
    }

    package static func listReassignments(_ request: ListPartitionReassignmentsRequest, _ context: RequestContext) {
        context.relay(request)
    }

    /// Version 0 says whether a level may fall where later ones have a type of update.
    package static func updateFeatures(_ request: UpdateFeaturesRequest, _ context: RequestContext) {
        var wanted = request
        if context.version == 0 {
            for index in wanted.featureUpdates.indices where wanted.featureUpdates[index].allowDowngrade {
                wanted.featureUpdates[index].upgradeType = 2
                wanted.featureUpdates[index].allowDowngrade = false
            }
        }
        context.relay(wanted)
    }

    package static func unregisterBroker(_ request: UnregisterBrokerRequest, _ context: RequestContext) {
        context.relay(request)
    }

    // MARK: From brokers to the controller itself

    package static func registerBroker(_ request: BrokerRegistrationRequest, _ context: RequestContext) {
        context.decideHere(request)
    }

    package static func heartbeat(_ request: BrokerHeartbeatRequest, _ context: RequestContext) {
        context.state.heartbeats = (BrokerID(request.brokerID), request.brokerEpoch)
        context.decideHere(request)
    }

    /// Version 2 has no epochs of the members (KIP-903).
    package static func alterPartition(_ request: AlterPartitionRequest, _ context: RequestContext) {
        var wanted = request
        if context.version < 3 {
            for topic in wanted.topics.indices {
                for index in wanted.topics[topic].partitions.indices {
                    let members = wanted.topics[topic].partitions[index].newIsr
                    wanted.topics[topic].partitions[index].newIsrWithEpochs = members.map { id in
                        var member = AlterPartitionRequest.BrokerState()
                        member.brokerID = id
                        member.brokerEpoch = -1
                        return member
                    }
                    wanted.topics[topic].partitions[index].newIsr = []
                }
            }
        }
        context.decideHere(wanted)
    }

    package static func allocateProducerIDs(_ request: AllocateProducerIdsRequest, _ context: RequestContext) {
        context.decideHere(request)
    }
}

extension RequestContext {
    /// Answers with what the active controller makes of the request, wherever that is.
    func relay<Request: ControllerRequest>(_ request: Request) {
        // Passed on by another broker already: who does not lead says so.
        if PeerClientID.isPeer(header.clientID) { return decideHere(request) }
        respond(when: services.controllerChannel.relay(request))
    }

    /// Answers with what the controller of this process makes of the request.
    func decideHere<Request: ControllerRequest>(_ request: Request) {
        let origin: RequestOrigin = PeerClientID.isBroker(header.clientID) ? .broker : .client
        respond(
            when: request.decided(by: services.controller, origin: origin).flatMapErrorThrowing { error in
                guard let error = error as? ControllerUnavailable else { throw error }
                return request.refused(
                    error == .outcomeUnknown && !Request.isRepeatable ? .requestTimedOut : .notController)
            })
    }
}

// MARK: What each request means to the controller

extension CreateTopicsRequest: ControllerRequest {
    package static var isRepeatable: Bool { false }
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<CreateTopicsResponse> {
        controller.submit { [random = controller.random] core in
            var generator = random
            return core.decide(self, origin: origin, generator: &generator)
        }
    }

    package func refused(_ code: ErrorCode) -> CreateTopicsResponse {
        var response = CreateTopicsResponse()
        response.topics = topics.map { topic in
            var result = CreateTopicsResponse.CreatableTopicResult()
            result.name = topic.name
            result.errorCode = code.rawValue
            result.errorMessage = nil
            return result
        }
        return response
    }
}

extension DeleteTopicsRequest: ControllerRequest {
    /// By id alone: another topic may have taken the name.
    package static var isRepeatable: Bool { false }
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<DeleteTopicsResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> DeleteTopicsResponse {
        var response = DeleteTopicsResponse()
        response.responses = topics.map { topic in
            var result = DeleteTopicsResponse.DeletableTopicResult()
            result.name = topic.name
            result.topicID = topic.topicID
            result.errorCode = code.rawValue
            return result
        }
        return response
    }
}

extension CreatePartitionsRequest: ControllerRequest {
    package static var isRepeatable: Bool { false }
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<CreatePartitionsResponse> {
        controller.submit { [random = controller.random] core in
            var generator = random
            return core.decide(self, generator: &generator)
        }
    }

    package func refused(_ code: ErrorCode) -> CreatePartitionsResponse {
        var response = CreatePartitionsResponse()
        response.results = topics.map { topic in
            var result = CreatePartitionsResponse.CreatePartitionsTopicResult()
            result.name = topic.name
            result.errorCode = code.rawValue
            return result
        }
        return response
    }
}

extension AlterConfigsRequest: ControllerRequest {
    package static var isRepeatable: Bool { false }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<AlterConfigsResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> AlterConfigsResponse {
        var response = AlterConfigsResponse()
        response.responses = resources.map { resource in
            var result = AlterConfigsResponse.AlterConfigsResourceResponse()
            result.resourceType = resource.resourceType
            result.resourceName = resource.resourceName
            result.errorCode = code.rawValue
            result.errorMessage = nil
            return result
        }
        return response
    }
}

extension IncrementalAlterConfigsRequest: ControllerRequest {
    /// Appending to a list and taking from it, twice, is as once; a value that somebody else has set in between is not.
    package static var isRepeatable: Bool { false }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<IncrementalAlterConfigsResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> IncrementalAlterConfigsResponse {
        var response = IncrementalAlterConfigsResponse()
        response.responses = resources.map { resource in
            var result = IncrementalAlterConfigsResponse.AlterConfigsResourceResponse()
            result.resourceType = resource.resourceType
            result.resourceName = resource.resourceName
            result.errorCode = code.rawValue
            result.errorMessage = nil
            return result
        }
        return response
    }
}

extension ElectLeadersRequest: ControllerRequest {
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<ElectLeadersResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> ElectLeadersResponse {
        var response = ElectLeadersResponse()
        response.errorCode = code.rawValue
        return response
    }
}

extension AlterPartitionReassignmentsRequest: ControllerRequest {
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<AlterPartitionReassignmentsResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> AlterPartitionReassignmentsResponse {
        var response = AlterPartitionReassignmentsResponse()
        response.errorCode = code.rawValue
        response.errorMessage = nil
        return response
    }
}

extension ListPartitionReassignmentsRequest: ControllerRequest {
    package static var changesMetadata: Bool { false }
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<ListPartitionReassignmentsResponse> {
        controller.submit { Decision(response: $0.describe(self)) }
    }

    package func refused(_ code: ErrorCode) -> ListPartitionReassignmentsResponse {
        var response = ListPartitionReassignmentsResponse()
        response.errorCode = code.rawValue
        response.errorMessage = nil
        return response
    }
}

extension UpdateFeaturesRequest: ControllerRequest {
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<UpdateFeaturesResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> UpdateFeaturesResponse {
        var response = UpdateFeaturesResponse()
        response.errorCode = code.rawValue
        response.errorMessage = nil
        return response
    }
}

extension UnregisterBrokerRequest: ControllerRequest {
    package static var isRepeatable: Bool { false }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<UnregisterBrokerResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> UnregisterBrokerResponse {
        var response = UnregisterBrokerResponse()
        response.errorCode = code.rawValue
        response.errorMessage = nil
        return response
    }
}

extension BrokerRegistrationRequest: ControllerRequest {
    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<BrokerRegistrationResponse> {
        controller.submit { core, nextOffset, now in
            core.decide(self, nextOffset: nextOffset, now: now)
        } after: { core, response, now in
            guard response.errorCode == 0 else { return }
            core.contacted(BrokerID(self.brokerID), epoch: response.brokerEpoch, now: now)
        }
    }

    package func refused(_ code: ErrorCode) -> BrokerRegistrationResponse {
        var response = BrokerRegistrationResponse()
        response.errorCode = code.rawValue
        return response
    }
}

extension BrokerHeartbeatRequest: ControllerRequest {
    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<BrokerHeartbeatResponse> {
        let id = BrokerID(brokerID)
        return controller.submit { core, _, now in
            if core.image.broker(id)?.epoch == self.brokerEpoch {
                core.contacted(id, epoch: self.brokerEpoch, metadataOffset: self.currentMetadataOffset, now: now)
            }
            return core.decide(self)
        } after: { core, response, _ in
            // It may come back at once.
            if response.shouldShutDown { core.sessionEnded(id) }
        }
    }

    package func refused(_ code: ErrorCode) -> BrokerHeartbeatResponse {
        var response = BrokerHeartbeatResponse()
        response.errorCode = code.rawValue
        return response
    }
}

extension AlterPartitionRequest: ControllerRequest {
    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<AlterPartitionResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> AlterPartitionResponse {
        var response = AlterPartitionResponse()
        response.errorCode = code.rawValue
        return response
    }
}

extension AllocateProducerIdsRequest: ControllerRequest {
    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<AllocateProducerIdsResponse> {
        controller.submit { $0.decide(self) }
    }

    package func refused(_ code: ErrorCode) -> AllocateProducerIdsResponse {
        var response = AllocateProducerIdsResponse()
        response.errorCode = code.rawValue
        return response
    }
}
