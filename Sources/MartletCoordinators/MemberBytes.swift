import MartletKafkaProtocol

// What the members of all groups of a shard say about themselves: subscriptions, names, patterns. One group and one
// member have limits of their own; this is the limit of their product.

extension GroupCoordinatorShard {
    /// Whether a member may say `byteCount` more. ``memberBytes`` is an upper bound: what was said since the last count
    /// is added, what went is not subtracted. It is counted anew only when the limit is met.
    mutating func hasRoom(forMemberBytes byteCount: Int) -> Bool {
        if memberBytes + byteCount > GroupLimits.shardMemberBytesLimit { memberBytes = countMemberBytes() }
        guard memberBytes + byteCount <= GroupLimits.shardMemberBytesLimit else { return false }
        memberBytes += byteCount
        return true
    }

    func countMemberBytes() -> Int {
        groups.values.reduce(0) { $0 + $1.members.protocolByteCount }
            + consumerGroups.values.reduce(0) { $0 + $1.descriptionByteCount }
    }
}

extension ConsumerGroupHeartbeatRequest {
    /// Bytes of a subscription, if there is one in it.
    var subscriptionByteCount: Int {
        (subscribedTopicNames ?? []).reduce(0) { $0 + $1.utf8.count } + (subscribedTopicRegex ?? "").utf8.count
    }
}
