import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletReplication
import NIOCore
import OrderedCollections

/// Takes the wishes of this broker's partitions for other in-sync sets to the controller (AlterPartition, KIP-497).
///
/// One request at a time is on its way; what is proposed meanwhile goes with the next, the last word of each partition.
/// Every proposal is settled exactly once. Nothing is repeated here: partitions propose again what was lost.
// SAFETY: all mutable state is touched on `eventLoop` alone.
final class InSyncProposals: InSyncProposing, @unchecked Sendable {
    private struct Pending {
        let proposal: InSyncProposal
        let settle: @Sendable (InSyncProposalOutcome) -> Void
    }

    private let eventLoop: any EventLoop
    private let nodeID: BrokerID
    private let brokerEpoch: @Sendable () -> Int64
    private let logger: Logger
    private let send: @Sendable (AlterPartitionRequest) -> EventLoopFuture<AlterPartitionResponse>
    private var waiting: OrderedDictionary<PartitionKey, Pending> = [:]
    private var isSending = false
    private var isTurnScheduled = false
    private var isClosed = false

    /// - Parameters:
    ///   - brokerEpoch: of this broker's present registration, negative while there is none.
    ///   - send: sends once to the active controller; must complete, by a time-out if need be.
    init(
        eventLoop: any EventLoop, nodeID: BrokerID, brokerEpoch: @escaping @Sendable () -> Int64, logger: Logger,
        send: @escaping @Sendable (AlterPartitionRequest) -> EventLoopFuture<AlterPartitionResponse>
    ) {
        self.eventLoop = eventLoop
        self.nodeID = nodeID
        self.brokerEpoch = brokerEpoch
        self.logger = logger
        self.send = send
    }

    /// From any loop; `settle` runs on the loop given to the initializer, once. A proposal that still waits makes room
    /// for a newer one of its partition and is lost.
    func propose(
        _ proposal: InSyncProposal, of id: PartitionKey, settle: @escaping @Sendable (InSyncProposalOutcome) -> Void
    ) {
        eventLoop.execute { self.enqueue(id, Pending(proposal: proposal, settle: settle)) }
    }

    /// What waits is lost, and what comes later; the request on its way is still settled by its answer.
    func close() {
        eventLoop.execute {
            self.isClosed = true
            let lost = self.waiting
            self.waiting = [:]
            for pending in lost.values { pending.settle(.lost) }
        }
    }

    private func enqueue(_ id: PartitionKey, _ pending: Pending) {
        guard !isClosed else { return pending.settle(.lost) }
        let replaced = waiting.updateValue(pending, forKey: id)
        scheduleTurn()
        replaced?.settle(.lost)
    }

    /// What is proposed within one turn of the loop goes in one request.
    private func scheduleTurn() {
        guard !isTurnScheduled, !isSending, !waiting.isEmpty else { return }
        isTurnScheduled = true
        eventLoop.execute {
            self.isTurnScheduled = false
            self.takeTurn()
        }
    }

    private func takeTurn() {
        guard !isSending, !waiting.isEmpty else { return }
        let sent = waiting
        waiting = [:]
        let epoch = brokerEpoch()
        guard epoch >= 0 else {
            for pending in sent.values { pending.settle(.lost) }
            return
        }
        isSending = true
        send(request(sent, brokerEpoch: epoch)).hop(to: eventLoop).assumeIsolated().whenComplete { result in
            self.isSending = false
            self.settle(sent, result)
            self.scheduleTurn()
        }
    }

    private func request(
        _ proposals: OrderedDictionary<PartitionKey, Pending>, brokerEpoch: Int64
    ) -> AlterPartitionRequest {
        var request = AlterPartitionRequest()
        request.brokerID = nodeID.rawValue
        request.brokerEpoch = brokerEpoch
        for (key, pending) in proposals.sorted(by: { $0.key < $1.key }) {
            if request.topics.last?.topicID != key.topicID {
                var topic = AlterPartitionRequest.TopicData()
                topic.topicID = key.topicID
                request.topics.append(topic)
            }
            var partition = AlterPartitionRequest.PartitionData()
            partition.partitionIndex = key.partition.rawValue
            partition.leaderEpoch = pending.proposal.leaderEpoch.rawValue
            partition.partitionEpoch = pending.proposal.partitionEpoch.rawValue
            partition.newIsrWithEpochs = pending.proposal.members.map { member in
                var state = AlterPartitionRequest.BrokerState()
                state.brokerID = member.broker.rawValue
                // KIP-903: the controller compares each member's epoch; it cannot where a follower did not say it.
                state.brokerEpoch = member.brokerEpoch?.rawValue ?? (member.broker == nodeID ? brokerEpoch : -1)
                return state
            }
            request.topics[request.topics.count - 1].partitions.append(partition)
        }
        return request
    }

    private func settle(
        _ sent: OrderedDictionary<PartitionKey, Pending>, _ result: Result<AlterPartitionResponse, any Error>
    ) {
        var outcomes: [PartitionKey: InSyncProposalOutcome] = [:]
        switch result {
        case .failure(let error):
            logger.debug("in-sync proposals lost", metadata: ["count": "\(sent.count)", "cause": "\(error)"])
        case .success(let response) where response.errorCode != ErrorCode.none.rawValue:
            logger.debug(
                "in-sync proposals refused", metadata: ["count": "\(sent.count)", "code": "\(response.errorCode)"])
        case .success(let response):
            outcomes = Self.outcomes(response)
        }
        for (key, pending) in sent { pending.settle(outcomes[key] ?? .lost) }
    }

    private static func outcomes(_ response: AlterPartitionResponse) -> [PartitionKey: InSyncProposalOutcome] {
        var outcomes: [PartitionKey: InSyncProposalOutcome] = [:]
        for topic in response.topics {
            for partition in topic.partitions {
                let key = PartitionKey(topicID: topic.topicID, partition: PartitionIndex(partition.partitionIndex))
                let code = ErrorCode(rawValue: partition.errorCode)
                outcomes[key] =
                    code == .none
                    ? .accepted(
                        leaderEpoch: LeaderEpoch(partition.leaderEpoch),
                        partitionEpoch: PartitionEpoch(partition.partitionEpoch),
                        inSyncReplicas: partition.isr.map { BrokerID($0) })
                    : .refused(code)
            }
        }
        return outcomes
    }
}
