package import MartletKafkaProtocol
package import MartletLogModel

extension ClusterController {
    /// BrokerRegistration (KIP-631). A broker comes in fenced and is let in by a heartbeat. Its epoch is the offset
    /// that its record will get, so `nextOffset` must be the end of the metadata log.
    ///
    /// A broker that says the epoch of its last run has stopped cleanly: its replicas keep their standing. Any other
    /// new run may have lost what was not flushed, and leaves the in-sync and eligible sets (KIP-966). The record of
    /// the registration comes last: until it is there the broker asks again.
    package borrowing func decide(
        _ request: BrokerRegistrationRequest, nextOffset: Offset, now: Instant
    ) -> Decision<BrokerRegistrationResponse> {
        var decision = Decision(response: BrokerRegistrationResponse(), isAtomic: false)
        if let code = refusal(request, now) {
            decision.response.errorCode = code.rawValue
            return decision
        }
        let id = BrokerID(request.brokerID)
        var broker = BrokerImage(request)
        if let known = state.broker(id) {
            if known.incarnationID == request.incarnationID {
                // The same process asks again: its first answer was lost, or it has something to amend.
                broker.epoch = known.epoch
                broker.isFenced = known.isFenced
                broker.isInControlledShutdown = known.isInControlledShutdown
                if broker != known { decision.records = [.registerBroker(broker.record)] }
                decision.response.brokerEpoch = known.epoch
                return decision
            }
        }
        decision.records = departure(
            of: id, isClean: state.broker(id).map { $0.epoch == request.previousBrokerEpoch } ?? false)
        broker.epoch = (nextOffset + Int64(decision.records.count)).rawValue
        decision.records.append(.registerBroker(broker.record))
        decision.response.brokerEpoch = broker.epoch
        return decision
    }

    private borrowing func refusal(_ request: BrokerRegistrationRequest, _ now: Instant) -> ErrorCode? {
        if let clusterID = state.clusterID, request.clusterID != clusterID.description {
            return .inconsistentClusterID
        }
        guard request.brokerID >= 0, request.incarnationID != .zero else { return .invalidRegistration }
        let id = BrokerID(request.brokerID)
        let known = state.broker(id)
        guard known != nil || state.brokers.count < ControllerLimits.brokerCountLimit else {
            return .invalidRegistration
        }
        if let known, known.incarnationID != request.incarnationID,
            sessions.isAlive(
                id, epoch: known.epoch, now: now, timeoutMilliseconds: sessionTimeoutMilliseconds)
        {
            return .duplicateBrokerRegistration
        }
        guard areSound(request.logDirs, of: id) else { return .invalidRegistration }
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

    /// Directories are distinct, real, and no other broker's: two brokers on one directory would both lose it.
    private borrowing func areSound(_ directories: [UniversalID], of id: BrokerID) -> Bool {
        guard directories.count <= ControllerLimits.logDirectoryCountLimit,
            Set(directories).count == directories.count,
            !directories.contains(where: LogDirectoryID.isReserved)
        else { return false }
        return !state.brokers.contains { broker in
            broker.id != id && broker.logDirectories.contains(where: directories.contains)
        }
    }

    /// What the end of a broker's run does to its partitions. Alone there is nobody who could have taken over, so
    /// everything stays as it was, and starting costs no record per partition.
    private borrowing func departure(of id: BrokerID, isClean: Bool) -> [MetadataRecord] {
        guard state.brokers.contains(where: { $0.id != id }) else { return [] }
        return changes(
            of: activeIndex.partitions(on: id), .init(image: state, leaving: [id]),
            lossy: isClean || !state.usesEligibleLeaderReplicas ? [] : [id])
    }

    /// UnregisterBroker: forgets a broker that will not come back. Its replicas stay assigned, out of sync.
    package borrowing func decide(_ request: UnregisterBrokerRequest) -> Decision<UnregisterBrokerResponse> {
        var decision = Decision(response: UnregisterBrokerResponse(), isAtomic: false)
        decision.response.errorMessage = nil
        let id = BrokerID(request.brokerID)
        guard let broker = state.broker(id) else {
            decision.response.errorCode = ErrorCode.brokerIDNotRegistered.rawValue
            decision.response.errorMessage = "Broker \(id) is not registered"
            return decision
        }
        decision.records = changes(
            of: activeIndex.partitions(on: id), .init(image: state, leaving: [id]), lossy: [id])
        var record = UnregisterBrokerRecord()
        record.brokerID = request.brokerID
        record.brokerEpoch = broker.epoch
        decision.records.append(.unregisterBroker(record))
        return decision
    }

    /// AllocateProducerIds (KIP-730): the next block, never handed out before, also not after a restart.
    package borrowing func decide(_ request: AllocateProducerIdsRequest) -> Decision<
        AllocateProducerIdsResponse
    > {
        var decision = Decision(response: AllocateProducerIdsResponse())
        if let code = staleness(of: request.brokerID, epoch: request.brokerEpoch) {
            decision.response.errorCode = code.rawValue
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

    /// Why a request in the name of a broker's run is refused, or `nil`.
    borrowing func staleness(of id: Int32, epoch: Int64) -> ErrorCode? {
        guard let broker = state.broker(BrokerID(id)) else { return .brokerIDNotRegistered }
        return broker.epoch == epoch ? nil : .staleBrokerEpoch
    }

    var sessionTimeoutMilliseconds: Int64 { state.brokerConfiguration.brokerSessionTimeoutMilliseconds }
}

extension BrokerImage {
    /// As a new run: fenced, without an epoch yet.
    init(_ request: BrokerRegistrationRequest) {
        id = BrokerID(request.brokerID)
        epoch = -1
        incarnationID = request.incarnationID
        endpoints = request.listeners.map {
            .init(name: $0.name, host: $0.host, port: $0.port, securityProtocol: $0.securityProtocol)
        }
        features = request.features.map {
            .init(name: $0.name, minimum: $0.minSupportedVersion, maximum: $0.maxSupportedVersion)
        }
        rack = request.rack
        isFenced = true
        isInControlledShutdown = false
        logDirectories = request.logDirs
    }
}
