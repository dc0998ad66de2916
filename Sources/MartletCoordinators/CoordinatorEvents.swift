package import MartletKafkaProtocol
package import MartletLogModel

/// A caller that waits; the shell keeps the connection and correlation behind it.
package struct RequestID: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: RequestID, right: RequestID) -> Bool { left.rawValue < right.rawValue }
    package var description: String { "request \(rawValue)" }
}

/// Names one append; the shell reports it committed, or failed, once.
package struct AppendToken: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: AppendToken, right: AppendToken) -> Bool { left.rawValue < right.rawValue }
    package var description: String { "append \(rawValue)" }
}

/// The two clocks at one event: monotonic for timers, wall for what is written into records.
package struct Moment: Sendable, Equatable {
    package var instant: Instant
    package var timestamp: Timestamp

    package init(instant: Instant, timestamp: Timestamp) {
        self.instant = instant
        self.timestamp = timestamp
    }
}

/// A timer of the shard. Scheduling one again replaces it; a stale firing is recognised and ignored.
package enum CoordinatorTimer: Hashable, Sendable {
    /// A member has not been heard of.
    case session(group: String, member: String)
    /// A member got an id and did not come back with it (KIP-394).
    case pendingMember(group: String, member: String)
    /// The join phase of a rebalance ends.
    case join(group: String)
    /// The sync phase of a rebalance ends.
    case sync(group: String)
    /// The look for offsets that may be forgotten goes on.
    case expiration
    /// A member of a consumer group has not given back what it must.
    case revocation(group: String, member: String)
    /// A classic member of a consumer group has not joined again, or not asked for its assignment.
    case rejoin(group: String, member: String)
    case resync(group: String, member: String)
    /// The matching of a consumer group's patterns goes on.
    case patterns(group: String)
}

/// Who sent a request, as DescribeGroups shows it.
package struct ClientIdentity: Sendable, Equatable {
    package var clientID: String
    /// Address with a leading slash, as Kafka's tools print it.
    package var host: String

    package init(clientID: String, host: String) {
        self.clientID = clientID
        self.host = host
    }
}

/// What a JoinGroup's version means; cores do not see versions.
package struct JoinTraits: Sendable, Equatable {
    /// A first join only gets an id and must be repeated with it (KIP-394, version 4 and later).
    package var requiresKnownMemberID: Bool
    /// A returning static leader may be told to skip the assignment (KIP-814, version 9 and later).
    package var supportsSkippingAssignment: Bool
    /// Drawn by the shell: becomes the member id if one is needed.
    package var newMemberID: UniversalID

    package init(requiresKnownMemberID: Bool, supportsSkippingAssignment: Bool, newMemberID: UniversalID) {
        self.requiresKnownMemberID = requiresKnownMemberID
        self.supportsSkippingAssignment = supportsSkippingAssignment
        self.newMemberID = newMemberID
    }
}

/// What a ConsumerGroupHeartbeat's version means, and the id for a member that brings none.
package struct HeartbeatTraits: Sendable, Equatable {
    /// Members choose their id (KIP-1082, version 1 and later).
    package var requiresMemberID: Bool
    package var newMemberID: UniversalID

    package init(requiresMemberID: Bool, newMemberID: UniversalID) {
        self.requiresMemberID = requiresMemberID
        self.newMemberID = newMemberID
    }
}

/// A request, brought from its version to one meaning by the handler. Each concerns groups of this shard only.
package enum GroupRequest: Sendable, Equatable {
    case joinGroup(JoinGroupRequest, ClientIdentity, JoinTraits)
    case syncGroup(SyncGroupRequest)
    case heartbeat(HeartbeatRequest)
    /// Members are always in `members`.
    case leaveGroup(LeaveGroupRequest)
    /// Topics that exist, with name and id. `reportsMissingGroup`: an unknown group is GROUP_ID_NOT_FOUND
    /// (version 9 and later) instead of ILLEGAL_GENERATION.
    case offsetCommit(OffsetCommitRequest, reportsMissingGroup: Bool)
    /// The same as part of a producer's transaction (TxnOffsetCommit); answered with `offsetCommit`. The shell has
    /// checked the producer's epoch against the log.
    case txnOffsetCommit(OffsetCommitRequest, ProducerIdentity)
    /// The coordinator of a transaction with offsets in this partition has decided it.
    case endTransaction(TransactionMarker)
    /// One group of an OffsetFetch.
    case offsetFetch(OffsetFetchRequest.OffsetFetchRequestGroup, requireStable: Bool)
    case describeGroups([String])
    case listGroups(ListGroupsRequest)
    case deleteGroups([String])
    case offsetDelete(OffsetDeleteRequest)
    case consumerGroupHeartbeat(ConsumerGroupHeartbeatRequest, ClientIdentity, HeartbeatTraits)
    case consumerGroupDescribe([String])
    /// The last rebalance of each group that had one, of either kind.
    case lastRebalances([String])
    case shareGroupHeartbeat(ShareGroupHeartbeatRequest, ClientIdentity)
    case shareGroupDescribe([String])
    case alterShareOffsets(AlterShareGroupOffsetsRequest)
    case deleteShareOffsets(DeleteShareGroupOffsetsRequest)
    /// Partitions of which share groups have offsets.
    case sharePartitions([String])

    /// Whether it is part of a producer's transaction, or the end of one.
    package var isProducers: Bool {
        switch self {
        case .txnOffsetCommit, .endTransaction: true
        case _: false
        }
    }

    /// Whether the request may make a group for which topics matter.
    package var concernsTopics: Bool {
        switch self {
        case .consumerGroupHeartbeat, .shareGroupHeartbeat, .alterShareOffsets: true
        case .joinGroup, .syncGroup, .heartbeat, .leaveGroup, .offsetCommit, .txnOffsetCommit, .endTransaction,
            .offsetFetch, .describeGroups, .listGroups, .deleteGroups, .offsetDelete, .consumerGroupDescribe,
            .lastRebalances, .shareGroupDescribe, .deleteShareOffsets, .sharePartitions:
            false
        }
    }
}

package enum GroupResponse: Sendable, Equatable {
    case joinGroup(JoinGroupResponse)
    case syncGroup(SyncGroupResponse)
    case heartbeat(HeartbeatResponse)
    case leaveGroup(LeaveGroupResponse)
    case offsetCommit(OffsetCommitResponse)
    case transactionEnded(ErrorCode)
    case offsetFetch(OffsetFetchResponse.OffsetFetchResponseGroup)
    case describeGroups([DescribeGroupsResponse.DescribedGroup])
    case listGroups(ListGroupsResponse)
    case deleteGroups([DeleteGroupsResponse.DeletableGroupResult])
    case offsetDelete(OffsetDeleteResponse)
    case consumerGroupHeartbeat(ConsumerGroupHeartbeatResponse)
    case consumerGroupDescribe([ConsumerGroupDescribeResponse.DescribedGroup])
    case lastRebalances([RebalanceReport])
    case shareGroupHeartbeat(ShareGroupHeartbeatResponse)
    case shareGroupDescribe([ShareGroupDescribeResponse.DescribedGroup])
    case alterShareOffsets(AlterShareGroupOffsetsResponse)
    case deleteShareOffsets(DeleteShareGroupOffsetsResponse)
    case sharePartitions([SharePartitionsAnswer])
}

/// What the last rebalance of a group was: kept with the group and reported when it ends.
package struct RebalanceReport: Sendable, Equatable {
    package var group: String
    /// Generation that came out of it.
    package var generation: Int32
    /// Why it began: the event, and the client's own words where it gave some (KIP-800).
    package var reason: String
    /// The member that caused it, if one did.
    package var memberID: String?
    package var startedAt: Timestamp
    /// From its beginning to the end of the join phase.
    package var durationMilliseconds: Int64
    package var memberCount: Int
}

/// How long committed offsets are kept; the shell knows topics and configuration.
package struct OffsetRetention: Sendable, Equatable {
    /// `offsets.retention.minutes` in milliseconds, if the operator set it: then Kafka's rule holds (KIP-211).
    package var fixedMilliseconds: Int64?
    /// Else: retention of each topic in milliseconds, `nil` where the topic keeps its records for ever.
    /// A topic that is not listed keeps its offsets.
    package var topicMilliseconds: [String: Int64?]

    package init(fixedMilliseconds: Int64?, topicMilliseconds: [String: Int64?] = [:]) {
        self.fixedMilliseconds = fixedMilliseconds
        self.topicMilliseconds = topicMilliseconds
    }

    /// `nil`: for ever.
    func milliseconds(topic: String) -> Int64? { fixedMilliseconds ?? (topicMilliseconds[topic] ?? nil) }
}

/// Orders to the shell, to be carried out in sequence.
package enum CoordinatorEffect: Sendable, Equatable {
    case respond(RequestID, GroupResponse)
    /// Append these as one batch; report `committed(token)` when it is flushed and committed.
    case append([CoordinatorRecord], AppendToken)
    /// The same under the producer's id and epoch, as part of its transaction.
    case appendTransactional([CoordinatorRecord], ProducerIdentity, AppendToken)
    /// Append the marker; report as for `append`.
    case appendMarker(TransactionMarker, AppendToken)
    case schedule(CoordinatorTimer, at: Instant)
    case cancel(CoordinatorTimer)
    /// For the log and for `martlet group describe`.
    case report(RebalanceReport)
    /// Have the share coordinator do this, and report `shareStateOrdered`.
    case orderShareState(ShareStateOrder, ShareOrderID)
}
