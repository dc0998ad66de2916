import HashTreeCollections
package import MartletKafkaProtocol
package import MartletLogModel

extension ClusterController {
    /// A broker was heard: its session lasts from `now` on. The shell calls this for every heartbeat and registration
    /// that was not refused, before it asks for the decision about a heartbeat, after it for a registration. No part
    /// of the metadata.
    package mutating func contacted(_ id: BrokerID, epoch: Int64, metadataOffset: Int64? = nil, now: Instant)
    {
        sessions.contacted(id, epoch: epoch, metadataOffset: metadataOffset, now: now)
    }

    /// A run of a broker is known to be over: a probe found nobody, or the controller's own process has just started.
    /// Its next run need not wait for the session to end. No part of the metadata.
    package mutating func sessionEnded(_ id: BrokerID) { sessions.ended(id) }

    /// BrokerHeartbeat (KIP-631): lets a broker in once it has replayed its own registration, fences it when it wants
    /// that, and takes it through a controlled shutdown: first others lead what it led, then, when every broker knows
    /// that, it may go.
    package borrowing func decide(_ request: BrokerHeartbeatRequest) -> Decision<BrokerHeartbeatResponse> {
        var decision = Decision(response: BrokerHeartbeatResponse(), isAtomic: false)
        if let code = staleness(of: request.brokerID, epoch: request.brokerEpoch) {
            decision.response.errorCode = code.rawValue
            return decision
        }
        guard let broker = state.broker(BrokerID(request.brokerID)) else { return decision }
        let isCaughtUp = request.currentMetadataOffset >= broker.epoch
        decision.response.isCaughtUp = isCaughtUp
        decision.response.isFenced = broker.isFenced
        let lost = broker.logDirectories.filter(request.offlineLogDirs.contains)
        let hasNowhere = !lost.isEmpty && lost.count == broker.logDirectories.count

        if broker.isFenced {
            if request.wantShutDown {
                decision.response.shouldShutDown = true
            } else if !request.wantFence, isCaughtUp, !hasNowhere {
                decision.records = admission(of: broker)
                decision.response.isFenced = false
            }
        } else if request.wantFence || hasNowhere {
            decision.records = fencing(of: [broker])
            decision.response.isFenced = true
            decision.response.shouldShutDown = request.wantShutDown
        } else if request.wantShutDown {
            controlledShutdown(of: broker, &decision)
        }
        // One thing at a time: what is lost is said again with the next heartbeat.
        if decision.records.isEmpty, !lost.isEmpty, !hasNowhere {
            decision.records = loss(of: lost, on: broker)
        }
        return decision
    }

    /// Fences a broker that a probe has found dead, without waiting for its session to end. Says whether the epoch
    /// was that of the broker's present run, let in so far.
    package borrowing func decideFencing(of id: BrokerID, epoch: Int64) -> Decision<Bool> {
        guard let broker = state.broker(id), broker.epoch == epoch, !broker.isFenced else {
            return Decision(response: false)
        }
        return Decision(records: fencing(of: [broker]), response: true, isAtomic: false)
    }

    /// Brokers that were not heard for a whole session.
    borrowing func silentBrokers(_ now: Instant) -> [BrokerImage] {
        state.brokers.filter {
            !$0.isFenced
                && !sessions.isAlive(
                    $0.id, epoch: $0.epoch, now: now, timeoutMilliseconds: sessionTimeoutMilliseconds)
        }
    }

    /// Others take over first; the fencing comes last, so that a controller that dies in between leaves a broker that
    /// the next one fences again. Brokers that fall silent together leave together: none of them is elected in between.
    borrowing func fencing(of brokers: [BrokerImage]) -> [MetadataRecord] {
        let ids = brokers.map(\.id)
        var records: [MetadataRecord] = []
        if state.brokers.contains(where: { !ids.contains($0.id) }) || brokers.count > 1 {
            records = changes(of: activeIndex.partitions(onAnyOf: ids), .init(image: state, leaving: ids))
        }
        for broker in brokers {
            var change = BrokerRegistrationChangeRecord()
            change.brokerID = broker.id.rawValue
            change.brokerEpoch = broker.epoch
            change.fenced = 1
            records.append(.brokerRegistrationChange(change))
        }
        return records
    }

    /// Lets a broker in; partitions without a leader may get one.
    private borrowing func admission(of broker: BrokerImage) -> [MetadataRecord] {
        var change = BrokerRegistrationChangeRecord()
        change.brokerID = broker.id.rawValue
        change.brokerEpoch = broker.epoch
        change.fenced = -1
        return [.brokerRegistrationChange(change)]
            + changes(
                of: activeIndex.leaderlessPartitions(on: broker.id), .init(image: state, arriving: broker.id))
    }

    private borrowing func controlledShutdown(
        of broker: BrokerImage, _ decision: inout Decision<BrokerHeartbeatResponse>
    ) {
        let isAlone = !state.brokers.contains { $0.id != broker.id }
        let isDone = activeIndex.leaderCount(of: broker.id) == 0
        if !isAlone, isDone, !broker.isInControlledShutdown || othersKnow(that: broker) {
            decision.records = fencing(of: [broker])
            decision.response.isFenced = true
            decision.response.shouldShutDown = true
            return
        }
        if !broker.isInControlledShutdown {
            var change = BrokerRegistrationChangeRecord()
            change.brokerID = broker.id.rawValue
            change.brokerEpoch = broker.epoch
            change.inControlledShutdown = 1
            decision.records = [.brokerRegistrationChange(change)]
        }
        // Alone there is nobody to hand leadership to: the broker may stop as soon as it wishes.
        if isAlone {
            decision.response.shouldShutDown = true
        } else {
            decision.records += changes(
                of: activeIndex.partitions(on: broker.id), .init(image: state, leaving: [broker.id]))
        }
    }

    /// Whether every active broker has replayed the record that took the broker's last leadership.
    private borrowing func othersKnow(that broker: BrokerImage) -> Bool {
        guard let loss = activeIndex.lastLeadershipLoss(of: broker.id) else { return true }
        return state.brokers.allSatisfy { other in
            guard other.isActive else { return true }
            guard let known = sessions.session(of: other.id, epoch: other.epoch)?.metadataOffset else {
                return false
            }
            return known >= loss.rawValue
        }
    }

    /// A log directory has failed: what lies in it is neither led by the broker nor in sync on it (KIP-858).
    private borrowing func loss(of directories: [UniversalID], on broker: BrokerImage) -> [MetadataRecord] {
        let candidates = LeaderCandidates(image: state, lostDirectories: directories)
        var records: [MetadataRecord] = []
        visit(activeIndex.partitions(on: broker.id)) { topic, partition, reference in
            guard directories.contains(partition.directory(of: broker.id)) else { return true }
            var update = update(of: partition, in: topic)
            update.isr.removeAll { $0 == broker.id }
            update.lossy = [broker.id]
            append(update, reference, candidates, to: &records)
            return true
        }
        var change = BrokerRegistrationChangeRecord()
        change.brokerID = broker.id.rawValue
        change.brokerEpoch = broker.epoch
        change.logDirs = broker.logDirectories.filter { !directories.contains($0) }
        records.append(.brokerRegistrationChange(change))
        return records
    }

    // MARK: Changes of many partitions

    /// Takes `candidates.leaving` out of the in-sync sets of these partitions, and elects leaders where one is wanted.
    borrowing func changes(
        of references: [PartitionReference], _ candidates: LeaderCandidates, lossy: [BrokerID] = []
    ) -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        visit(references) { topic, partition, reference in
            var update = update(of: partition, in: topic)
            update.isr.removeAll(where: candidates.leaving.contains)
            update.lossy = lossy
            append(update, reference, candidates, to: &records)
            return true
        }
        return records
    }

    /// References come in the order of topics, so each topic is looked up once. `body` says whether to go on.
    borrowing func visit(
        _ references: [PartitionReference], _ body: (TopicImage, PartitionImage, PartitionReference) -> Bool
    ) {
        var topic: TopicImage?
        for reference in references {
            if topic?.id != reference.topicID { topic = state.topics[reference.topicID] }
            guard let topic, let partition = topic.partition(PartitionIndex(reference.partition)) else {
                preconditionFailure("the index names \(reference), which does not exist")
            }
            guard body(topic, partition, reference) else { return }
        }
    }

    /// A change of the partition with the rules of its topic.
    borrowing func update(of partition: PartitionImage, in topic: TopicImage) -> PartitionUpdate {
        var update = PartitionUpdate(
            partition, tracksEligible: state.usesEligibleLeaderReplicas,
            configuredMinInsync: topic.configuration.minInsyncReplicas, suspended: suspended)
        if topic.configuration.uncleanLeaderElection { update.election = .unclean }
        return update
    }

    borrowing func append(
        _ update: PartitionUpdate, _ reference: PartitionReference, _ candidates: LeaderCandidates,
        to records: inout [MetadataRecord]
    ) {
        let record = update.record(topicID: reference.topicID, index: reference.partition, candidates)
        if let record { records.append(.partitionChange(record)) }
    }
}
