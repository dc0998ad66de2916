internal import MartletLogModel

/// The in-sync set of a leader: what the controller has decided, and what it has been asked for since.
///
/// Purpose: names the replicas that may be elected cleanly next, as far as the leader can know: the maximal set. A
/// proposal counts from the moment it leaves, since the controller may have accepted it before the answer comes
/// (AsyncIsr). It goes on counting when its outcome is unknown, until the partition epoch has risen: then no attempt
/// of before can be accepted any more.
///
/// ```
/// settled --propose--> in flight --adopt (answer or metadata)--> settled
///                      in flight --refused for good-----------> settled
///                      in flight --lost------------------------> doubtful --propose--> in flight
///                      in flight --version refused-------------> waits for metadata --adopt--> settled
/// ```
/// Invariant: I10, whoever the controller may elect is in the maximal set.
struct InSyncSet {
    /// The controller's decision, in its order.
    private(set) var committed: [BrokerID]
    private(set) var partitionEpoch: PartitionEpoch
    /// Everybody named by an attempt on this partition epoch that may yet be, or have been, accepted.
    private(set) var attempted: [BrokerID] = []
    /// One at a time.
    private(set) var inFlight: InSyncProposal?
    /// Attempts on this partition epoch whose outcome will not be told.
    private(set) var isDoubtful = false

    init(committed: [BrokerID], partitionEpoch: PartitionEpoch) {
        self.committed = committed
        self.partitionEpoch = partitionEpoch
    }

    var isFree: Bool { inFlight == nil }

    func contains(_ broker: BrokerID) -> Bool { committed.contains(broker) }
    func mayContain(_ broker: BrokerID) -> Bool { committed.contains(broker) || attempted.contains(broker) }

    var maximal: [BrokerID] { committed + attempted.filter { !committed.contains($0) } }

    mutating func propose(_ proposal: InSyncProposal) {
        precondition(inFlight == nil, "a proposal is in flight already")
        inFlight = proposal
        for member in proposal.members where !attempted.contains(member.broker) { attempted.append(member.broker) }
    }

    /// The controller's decision, from an answer or from metadata. Returns whether it is news: the partition epoch has
    /// risen. An equal one settles nothing, since an attempt that it was asked for may still arrive.
    mutating func adopt(_ members: [BrokerID], partitionEpoch: PartitionEpoch) -> Bool {
        guard partitionEpoch > self.partitionEpoch else { return false }
        self = InSyncSet(committed: members, partitionEpoch: partitionEpoch)
        return true
    }

    /// The controller refused the attempt for what it asks, and will not take it later.
    mutating func refused(_ number: UInt64) {
        guard inFlight?.number == number else { return }
        inFlight = nil
        if !isDoubtful { attempted = [] }
    }

    /// Nobody knows what became of the attempt.
    mutating func lost(_ number: UInt64) {
        guard inFlight?.number == number else { return }
        inFlight = nil
        isDoubtful = true
    }
}
