package import MartletKafkaProtocol
package import MartletLogModel

/// When the controller does what nobody asks for. Soft state.
struct ControllerTimers: Equatable {
    /// `nil`: at the next tick.
    var nextUncleanElection: Instant?
    /// `nil`: an interval after the next tick, so that a new controller lets brokers come back first.
    var nextBalance: Instant?

    /// A configuration may have allowed what was not allowed before.
    mutating func wantsUncleanElection() { nextUncleanElection = nil }
}

/// What time has brought. Records come in no transaction: each stands by itself.
package struct Tick: Sendable {
    package var records: [MetadataRecord] = []
    /// Brokers that were fenced since they were not heard.
    package var fencedBrokers: [BrokerID] = []
    /// More of the same kind is left: tick again when these records are replayed.
    package var isMoreLeft = false
    /// When to tick again, if nothing happens before.
    package var next: Instant
}

extension ClusterController {
    /// Fences brokers whose session is over, elects unclean leaders where topics allow them, and gives leadership back
    /// to preferred replicas. One kind at a time, so that the next tick sees what this one did.
    package mutating func tick(now: Instant) -> Tick {
        guard isActive else { return Tick(next: now) }
        var tick = work(now)
        tick.next = nextTick(now)
        return tick
    }

    private mutating func work(_ now: Instant) -> Tick {
        let configuration = state.brokerConfiguration
        var tick = Tick(next: now)
        let silent = silentBrokers(now)
        if !silent.isEmpty {
            tick.records = fencing(of: silent)
            tick.fencedBrokers = silent.map(\.id)
            tick.isMoreLeft = true
            return tick
        }
        if timers.nextUncleanElection.map({ $0 <= now }) ?? true {
            let election = decideUncleanElections()
            tick.records = election.records
            tick.isMoreLeft = election.response
            if !election.response {
                timers.nextUncleanElection = now.advanced(
                    byMilliseconds: configuration.uncleanElectionIntervalMilliseconds)
            }
            if !tick.records.isEmpty { return tick }
        }
        guard let balance = timers.nextBalance else {
            timers.nextBalance = now.advanced(byMilliseconds: configuration.leaderBalanceIntervalMilliseconds)
            return tick
        }
        if balance <= now {
            let election = configuration.balancesLeaders ? decideBalance() : Decision(response: false)
            tick.records = election.records
            tick.isMoreLeft = election.response
            if !election.response {
                timers.nextBalance = now.advanced(
                    byMilliseconds: configuration.leaderBalanceIntervalMilliseconds)
            }
        }
        return tick
    }

    private borrowing func nextTick(_ now: Instant) -> Instant {
        let expiry = sessions.nextExpiry(
            of: state.brokers.filter { !$0.isFenced }, timeoutMilliseconds: sessionTimeoutMilliseconds)
        return [expiry, timers.nextUncleanElection, timers.nextBalance].compactMap { $0 }.min() ?? now
    }

    /// Preferred leaders for partitions that have another, a bounded number at a time. The answer says whether more
    /// may be left.
    package borrowing func decideBalance() -> Decision<Bool> {
        elections(among: activeIndex.displacedPartitions) { update, _ in update.election = .preferred }
    }

    /// Leaders for partitions that have none and whose topic prefers any leader to none.
    package borrowing func decideUncleanElections() -> Decision<Bool> {
        guard activeIndex.hasLeaderlessPartitions else { return Decision(response: false) }
        return elections(among: activeIndex.leaderlessPartitions) { update, topic in
            update.election = topic.configuration.uncleanLeaderElection ? .unclean : .online
        }
    }

    private borrowing func elections(
        among references: [PartitionReference], _ prepare: (inout PartitionUpdate, TopicImage) -> Void
    ) -> Decision<Bool> {
        var decision = Decision(response: false, isAtomic: false)
        let candidates = LeaderCandidates(image: state)
        visit(references) { topic, partition, reference in
            guard decision.records.count < ControllerLimits.electionsPerTickLimit else {
                decision.response = true
                return false
            }
            var update = update(of: partition, in: topic)
            prepare(&update, topic)
            append(update, reference, candidates, to: &decision.records)
            return true
        }
        return decision
    }
}
