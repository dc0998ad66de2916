import MartletKafkaProtocol
import MartletLogModel

/// A follower's side of an incremental fetch session (KIP-227): requests name only what has changed since the one
/// before, answers only what has news.
///
/// ```
///             answer to all, with an id               answer with the same id
/// opening ---------------------------------> open (1) -----------------------> open (2) ... open (Int32.max), open (1)
///    ^  ^--- answer without id, or in part        |
///    +------- lost, answer without id, distrust
/// ```
/// The leader goes on fetching what a request leaves out of a session, from the offset it was told last. Everything
/// that is not to be fetched must be forgotten, therefore, and nothing is ever named and forgotten in one request: the
/// leader would do both, in that order.
struct ReplicaFetchSession {
    /// What a request says of a partition.
    struct Position: Hashable {
        var leaderEpoch: LeaderEpoch
        var offset: Offset
        var lastFetchedEpoch: LeaderEpoch?
        var logStart: Offset
    }

    /// What the next request carries of the session.
    struct Turn {
        var id: Int32
        var epoch: Int32
        /// In the order in which they are to be read, as far as the leader does not know them.
        var changed: [(key: PartitionKey, position: Position)]
        var forgotten: [PartitionKey]
    }

    /// Nonzero with `epoch` zero: a session of the leader's that the next request closes.
    private(set) var id: Int32 = 0
    /// Of the next request; zero opens a session.
    private(set) var epoch: Int32 = 0
    /// What the leader holds.
    private var known: [PartitionKey: Position] = [:]
    /// Of these, what the leader may believe to have told something that was not heard.
    private var distrusted: Set<PartitionKey> = []

    /// Whether the request on its way, or the next one if there is none, opens a session.
    var isOpening: Bool { epoch == 0 }

    static func epoch(after epoch: Int32) -> Int32 { epoch == .max ? 1 : epoch + 1 }

    /// The request that asks for `wanted` and nothing else.
    mutating func turn(_ wanted: [(key: PartitionKey, position: Position)]) -> Turn {
        // Forgetting would be enough, but who is forgotten cannot be asked for in the same request.
        if !distrusted.isEmpty, wanted.contains(where: { distrusted.contains($0.key) }) { restart() }
        if isOpening { return open(wanted) }
        var changed: [(key: PartitionKey, position: Position)] = []
        for (key, position) in wanted {
            let before = known.updateValue(position, forKey: key)
            if before != position { changed.append((key, position)) }
        }
        return Turn(id: id, epoch: epoch, changed: changed, forgotten: forget(allBut: wanted))
    }

    private mutating func open(_ wanted: [(key: PartitionKey, position: Position)]) -> Turn {
        known = Dictionary(wanted.map { ($0.key, $0.position) }, uniquingKeysWith: { _, last in last })
        return Turn(id: id, epoch: 0, changed: wanted, forgotten: [])
    }

    private mutating func forget(allBut wanted: [(key: PartitionKey, position: Position)]) -> [PartitionKey] {
        guard known.count > wanted.count else { return [] }
        let kept = Set(wanted.map(\.key))
        let forgotten = known.keys.filter { !kept.contains($0) }.sorted()
        for key in forgotten { known[key] = nil }
        distrusted.subtract(forgotten)
        return forgotten
    }

    /// The leader answered without an error. Returns false if the answer is not one of this session.
    ///
    /// - Parameter answersAll: every partition asked for is in the answer.
    mutating func answered(id answerID: Int32, answersAll: Bool) -> Bool {
        if isOpening {
            id = answerID
            if answerID != 0, answersAll {
                epoch = 1
            } else {
                // A partition that the leader left out would never be heard of again.
                known = [:]
            }
            return true
        }
        if answerID == id {
            epoch = Self.epoch(after: epoch)
            return true
        }
        restart()
        id = 0
        return answerID == 0
    }

    /// The leader has lost the session, or is of another opinion about it: the next request opens another.
    mutating func lost(_ error: ErrorCode) {
        restart()
        if error == .fetchSessionIDNotFound { id = 0 }
    }

    /// The leader may believe to have told something of the partition that was not heard. It does not say it again as
    /// long as it holds the partition: that must end before the partition is asked for again.
    mutating func distrust(_ key: PartitionKey) {
        if known[key] != nil { distrusted.insert(key) }
    }

    private mutating func restart() {
        epoch = 0
        known = [:]
        distrusted = []
    }
}
