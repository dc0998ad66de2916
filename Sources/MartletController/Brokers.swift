package import MartletKafkaProtocol
package import MartletLogModel

extension ClusterController {
    /// BrokerRegistration (KIP-631). A broker comes in fenced and is let in by its first heartbeat. Its epoch
    /// is the offset the record will get, so `nextOffset` must be the end of the metadata log.
    package borrowing func decide(
        _ request: BrokerRegistrationRequest, nextOffset: Offset
    ) -> Decision<BrokerRegistrationResponse> {
        var decision = Decision(response: BrokerRegistrationResponse())
        if let code = refusal(request) {
            decision.response.errorCode = code.rawValue
            return decision
        }
        if let known = state.broker(BrokerID(request.brokerID)), known.incarnationID == request.incarnationID
        {
            // The same process asks again: its first answer was lost.
            decision.response.brokerEpoch = known.epoch
            return decision
        }
        var record = RegisterBrokerRecord()
        record.brokerID = request.brokerID
        record.incarnationID = request.incarnationID
        record.brokerEpoch = nextOffset.rawValue
        record.endPoints = request.listeners.map {
            var endpoint = RegisterBrokerRecord.BrokerEndpoint()
            endpoint.name = $0.name
            endpoint.host = $0.host
            endpoint.port = $0.port
            endpoint.securityProtocol = $0.securityProtocol
            return endpoint
        }
        record.features = request.features.map {
            var feature = RegisterBrokerRecord.BrokerFeature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minSupportedVersion
            feature.maxSupportedVersion = $0.maxSupportedVersion
            return feature
        }
        record.rack = request.rack
        record.fenced = true
        record.logDirs = request.logDirs
        decision.records = [.registerBroker(record)]
        decision.response.brokerEpoch = nextOffset.rawValue
        return decision
    }

    private borrowing func refusal(_ request: BrokerRegistrationRequest) -> ErrorCode? {
        if let clusterID = state.clusterID, request.clusterID != clusterID.description {
            return .inconsistentClusterID
        }
        guard request.brokerID >= 0, request.incarnationID != .zero else { return .invalidRegistration }
        guard state.brokers.count < ControllerLimits.brokerCountLimit else { return .invalidRegistration }
        for feature in state.features where feature.level > 0 {
            let range = request.features.first { $0.name == feature.name }
            guard let range, range.minSupportedVersion <= feature.level,
                feature.level <= range.maxSupportedVersion
            else {
                return .unsupportedVersion
            }
        }
        return nil
    }

    /// BrokerHeartbeat: fences, unfences and starts a controlled shutdown. Time-outs of missing heartbeats
    /// belong to the quorum of several brokers.
    package borrowing func decide(_ request: BrokerHeartbeatRequest) -> Decision<BrokerHeartbeatResponse> {
        var decision = Decision(response: BrokerHeartbeatResponse())
        guard let broker = state.broker(BrokerID(request.brokerID)) else {
            decision.response.errorCode = ErrorCode.brokerIDNotRegistered.rawValue
            return decision
        }
        guard broker.epoch == request.brokerEpoch else {
            decision.response.errorCode = ErrorCode.staleBrokerEpoch.rawValue
            return decision
        }
        var change = BrokerRegistrationChangeRecord()
        change.brokerID = request.brokerID
        change.brokerEpoch = request.brokerEpoch
        let isCaughtUp = request.currentMetadataOffset >= broker.epoch
        if broker.isFenced, !request.wantFence, isCaughtUp { change.fenced = -1 }
        if !broker.isFenced, request.wantFence { change.fenced = 1 }
        if request.wantShutDown, !broker.isInControlledShutdown { change.inControlledShutdown = 1 }
        if change.fenced != 0 || change.inControlledShutdown != 0 {
            decision.records = [.brokerRegistrationChange(change)]
        }
        decision.response.isCaughtUp = isCaughtUp
        decision.response.isFenced = change.fenced == 0 ? broker.isFenced : change.fenced > 0
        // Alone there is nobody to hand leadership to: the broker may stop as soon as it wishes.
        decision.response.shouldShutDown = request.wantShutDown
        return decision
    }

    /// AllocateProducerIds (KIP-730): the next block, never handed out before, also not after a restart.
    package borrowing func decide(_ request: AllocateProducerIdsRequest) -> Decision<
        AllocateProducerIdsResponse
    > {
        var decision = Decision(response: AllocateProducerIdsResponse())
        guard let broker = state.broker(BrokerID(request.brokerID)) else {
            decision.response.errorCode = ErrorCode.brokerIDNotRegistered.rawValue
            return decision
        }
        guard broker.epoch == request.brokerEpoch else {
            decision.response.errorCode = ErrorCode.staleBrokerEpoch.rawValue
            return decision
        }
        let start = state.nextProducerID
        guard start <= Int64.max - ControllerLimits.producerIDBlockSize else {
            decision.response.errorCode = ErrorCode.unknownServerError.rawValue
            return decision
        }
        var record = ProducerIdsRecord()
        record.brokerID = request.brokerID
        record.brokerEpoch = request.brokerEpoch
        record.nextProducerID = start + ControllerLimits.producerIDBlockSize
        decision.records = [.producerIDs(record)]
        decision.response.producerIDStart = start
        decision.response.producerIDLen = Int32(ControllerLimits.producerIDBlockSize)
        return decision
    }
}
