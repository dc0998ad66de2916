import MartletKafkaProtocol
import MartletLogModel
import NIOCore

// What the members of groups make a broker hold: names, subscriptions, patterns, assignments. One group and one member
// have limits of their own; `GroupConfiguration.memberBytesLimit` is the limit of their product. Everything that counts
// is counted in this file.

/// A group that knows at any time what its members make the broker hold.
protocol CountsMemberBytes {
    /// Bytes; constant cost.
    var memberByteCount: Int { get }
}

/// The groups of one kind by id, and what the members of all of them make the broker hold. However a group is changed,
/// the sum follows: nobody ever has to go over the groups for it.
struct GroupTable<Group: CountsMemberBytes> {
    private var table: [String: Group] = [:]
    private(set) var memberByteCount = 0

    var count: Int { table.count }
    var isEmpty: Bool { table.isEmpty }
    var ids: Dictionary<String, Group>.Keys { table.keys }

    /// Without a look at the group, which would copy it.
    func contains(_ id: String) -> Bool { table.index(forKey: id) != nil }

    subscript(_ id: String) -> Group? {
        get { table[id] }
        _modify {
            memberByteCount -= table[id]?.memberByteCount ?? 0
            defer { memberByteCount += table[id]?.memberByteCount ?? 0 }
            yield &table[id]
        }
    }

    func compactMapValues<Value>(_ transform: (Group) -> Value?) -> [String: Value] {
        table.compactMapValues(transform)
    }
}

extension GroupCoordinatorShard {
    /// What the members of this shard's groups make the broker hold, in bytes.
    package var memberByteCount: Int {
        groups.memberByteCount + consumerGroups.memberByteCount + shareGroups.memberByteCount
    }
}

extension Outbox {
    func hasRoom(forMemberBytes byteCount: Int) -> Bool { byteCount <= memberRoomBytes }

    /// Refuses a member that would make the broker hold `byteCount` bytes more.
    func checkRoom(forMemberBytes byteCount: Int, remedy: String) throws(GroupRefusal) {
        guard hasRoom(forMemberBytes: byteCount) else {
            throw GroupRefusal(
                .groupMaxSizeReached,
                "The members of this broker's groups say \(configuration.memberBytesLimit) bytes about themselves, its limit. \(remedy)"
            )
        }
    }
}

enum MemberBytes {
    /// Of a member beside its texts: numbers, tables, timers.
    fileprivate static let perMember = 256
    /// Of an entry in a list.
    fileprivate static let perEntry = 8
    /// Of an id given out and not used yet: its length is bounded, see ``MemberID``.
    static let perPendingMember = 4 * MemberID.prefixLengthLimit + 64
}

// MARK: Classic groups

extension ClassicGroup: CountsMemberBytes {
    /// What the members and the group's record both say is held once; where they differ, at most twice this is held.
    var memberByteCount: Int {
        max(members.byteCount, persistedByteCount) + pendingMembers.count * MemberBytes.perPendingMember
    }
}

extension ClassicMember {
    var byteCount: Int { byteCount(assigned: assignment.readableBytes) }

    /// With an assignment of so many bytes.
    func byteCount(assigned: Int) -> Int {
        let names =
            id.utf8.count + (instanceID?.utf8.count ?? 0) + client.clientID.utf8.count + client.host.utf8.count
        return MemberBytes.perMember + names + protocols.byteCount + assigned
    }
}

extension JoinGroupRequest {
    /// What a member that joins like this makes the broker hold, its assignment aside, or what the id does that it is
    /// given in the first of two steps.
    func memberByteCount(_ client: ClientIdentity, isFirstStep: Bool) -> Int {
        if isFirstStep { return MemberBytes.perPendingMember }
        let idByteCount =
            memberID.isEmpty ? MemberID.byteCount(prefix: groupInstanceID ?? client.clientID) : memberID.utf8.count
        let names =
            idByteCount + (groupInstanceID?.utf8.count ?? 0) + client.clientID.utf8.count + client.host.utf8.count
        return MemberBytes.perMember + names + protocols.byteCount
    }
}

extension [JoinGroupRequest.JoinGroupRequestProtocol] {
    fileprivate var byteCount: Int {
        reduce(0) { $0 + $1.name.utf8.count + $1.metadata.readableBytes + MemberBytes.perEntry }
    }
}

extension GroupMetadataValue {
    var memberByteCount: Int {
        members.reduce(0) { sum, member in
            let names =
                member.memberID.utf8.count + (member.groupInstanceID?.utf8.count ?? 0) + member.clientID.utf8.count
                + member.clientHost.utf8.count
            return sum + MemberBytes.perMember + names + member.subscription.readableBytes
                + member.assignment.readableBytes
        }
    }
}

// MARK: Consumer groups

extension ConsumerGroup: CountsMemberBytes {
    var memberByteCount: Int { descriptionByteCount }
}

extension ConsumerMember {
    /// Roughly what its records say beside partitions: its id is in the key of each of the four kinds.
    var descriptionByteCount: Int {
        let names = (about.instanceID?.utf8.count ?? 0) + (about.rackID?.utf8.count ?? 0)
        let client = about.clientID.utf8.count + about.clientHost.utf8.count
        let topics = about.subscribedTopicNames.reduce(about.subscribedTopicRegex?.utf8.count ?? 0) {
            $0 + $1.utf8.count + MemberBytes.perEntry
        }
        let classic = about.classicMemberMetadata?.supportedProtocols.reduce(0) {
            $0 + $1.name.utf8.count + $1.metadata.readableBytes + MemberBytes.perEntry
        }
        return id.utf8.count * 4 + names + client + topics + (classic ?? 0) + MemberBytes.perMember
    }
}

// MARK: Share groups

extension ShareGroup: CountsMemberBytes {}

extension ShareMember {
    /// Its id is in the key of each of the three kinds of records.
    var byteCount: Int {
        let names = (about.rackID?.utf8.count ?? 0) + about.clientID.utf8.count + about.clientHost.utf8.count
        return about.subscribedTopicNames.reduce(MemberBytes.perMember + id.utf8.count * 3 + names) {
            $0 + $1.utf8.count + MemberBytes.perEntry
        }
    }
}
