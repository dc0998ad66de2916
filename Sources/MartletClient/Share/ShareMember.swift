import MartletLogModel

/// A member of a share group (KIP-932): joins, learns which partitions to fetch, leaves. Others may fetch the same
/// partitions, so nothing is confirmed or handed over. A pure value.
///
/// A heartbeat says everything when the member joins, and after one whose fate is unknown; else only what has changed.
struct ShareMember: Sendable {
    private(set) var epoch: Int32 = 0
    private(set) var topics: Set<String> = []
    private(set) var isActive = false
    private var assignment: [UniversalID: [Int32]] = [:]
    /// What the coordinator has from us; `nil`: not known.
    private var knownTopics: Set<String>?
    /// What the heartbeat under way says.
    private var saidTopics: Set<String>?

    struct Heartbeat: Sendable, Equatable {
        var epoch: Int32
        /// `nil`: unchanged.
        var topics: [String]?
        var isFull: Bool
    }

    var isJoined: Bool { epoch > 0 }
    /// Something is to be said that the coordinator does not know.
    var hasNews: Bool { isActive && knownTopics != topics }

    mutating func subscribe(_ topics: Set<String>) {
        self.topics = topics
        isActive = true
    }

    mutating func leave() { self = ShareMember() }

    mutating func nextHeartbeat() -> Heartbeat? {
        guard isActive else { return nil }
        saidTopics = topics
        let isFull = epoch == 0 || knownTopics == nil
        return Heartbeat(
            epoch: epoch, topics: isFull || knownTopics != topics ? topics.sorted() : nil, isFull: isFull)
    }

    /// - Parameter assignment: partitions by topic id; `nil`: unchanged.
    mutating func answered(epoch: Int32, assignment: [UniversalID: [Int32]]?) {
        guard isActive else { return }
        self.epoch = epoch
        knownTopics = saidTopics
        if let assignment { self.assignment = assignment }
    }

    /// The fate of the heartbeat is not known.
    mutating func unanswered() { knownTopics = nil }

    /// The coordinator does not know the member any more; it joins again.
    mutating func fenced() {
        epoch = 0
        assignment = [:]
        knownTopics = nil
    }

    /// Partitions to fetch.
    var places: Set<SharePlace> {
        var places: Set<SharePlace> = []
        for (id, indexes) in assignment {
            for index in indexes { places.insert(SharePlace(topicID: id, partition: index)) }
        }
        return places
    }
}
