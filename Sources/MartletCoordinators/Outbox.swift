import MartletLogModel

/// What happens when an append is committed.
enum Continuation: Equatable {
    case respond(RequestID, GroupResponse)
    /// The leader's assignment of this generation is durable: hand it out.
    case handOutAssignment(group: String, generation: Int32)
    /// The records that go with an order to the share coordinator are durable: carry it out.
    case orderShareState(ShareOrderID)
}

/// Collects what one event leads to. Groups decide records; the shard replays and appends them afterwards, so
/// that replay stays the only writer of what is durable.
struct Outbox {
    struct Append {
        var records: [CoordinatorRecord]
        var continuations: [Continuation]
        /// Whose transaction the records are part of.
        var producer: ProducerIdentity?
        /// Set instead of records: the end of a transaction.
        var marker: TransactionMarker?
        /// Consumer groups replay each record as they decide it.
        var isReplayed = false
    }

    let now: Moment
    let configuration: GroupConfiguration
    /// By how many bytes the members of groups may grow in this event; see ``CountsMemberBytes``.
    let memberRoomBytes: Int
    var effects: [CoordinatorEffect] = []
    var appends: [Append] = []

    init(now: Moment, configuration: GroupConfiguration, memberRoomBytes: Int) {
        self.now = now
        self.memberRoomBytes = memberRoomBytes
        self.configuration = configuration
    }

    mutating func respond(_ request: RequestID, _ response: GroupResponse) {
        effects.append(.respond(request, response))
    }

    mutating func append(
        _ records: [CoordinatorRecord], then continuations: [Continuation] = [], isReplayed: Bool = false
    ) {
        appends.append(Append(records: records, continuations: continuations, isReplayed: isReplayed))
    }

    func instant(inMilliseconds milliseconds: Int64) -> Instant {
        now.instant.advanced(byMilliseconds: milliseconds)
    }
}
