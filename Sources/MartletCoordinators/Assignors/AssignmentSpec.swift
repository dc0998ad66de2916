import MartletLogModel

/// What an assignor is told: members in order, the partitions of their topics, and who has what so far.
struct AssignmentSpec {
    struct Member {
        var id: String
        var instanceID: String?
        /// Topics that exist and that it subscribes to.
        var topics: Set<UniversalID>
        /// Its part of the target before.
        var target: TopicPartitions
    }

    /// Ascending by member id.
    var members: [Member]
    var partitionCounts: [UniversalID: Int32]
}

/// Assignment on the broker (KIP-848). Both choices are deterministic: the same members and topics give the same
/// assignment on every machine.
package enum ServerAssignor: String, Sendable, CaseIterable {
    /// Equal shares over all topics, moving as little as possible.
    case uniform
    /// Equal runs of each topic by order of members, so that topics of equal size are aligned.
    case range

    /// The new target of each member; members that get nothing have an empty one.
    func assign(_ spec: AssignmentSpec) -> [String: TopicPartitions] {
        switch self {
        case .uniform: UniformAssignor.assign(spec)
        case .range: RangeAssignor.assign(spec)
        }
    }
}
