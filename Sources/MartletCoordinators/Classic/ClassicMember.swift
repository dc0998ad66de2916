import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// A member of a classic group, with the callers that wait on its behalf.
struct ClassicMember {
    let id: String
    let instanceID: String?
    var client: ClientIdentity
    var sessionTimeoutMilliseconds: Int32
    var rebalanceTimeoutMilliseconds: Int32
    /// Strategies the member can use, its favourite first, with the subscription for each.
    var protocols: [JoinGroupRequest.JoinGroupRequestProtocol]
    /// What it owns in the current generation; empty before its first.
    var assignment = ByteBuffer()
    /// Waits for the join phase to end.
    fileprivate(set) var joinRequest: RequestID?
    /// Waits for the leader's assignment.
    var syncRequest: RequestID?
    /// Has joined and not been part of a generation yet.
    var isNew: Bool
    /// When it counts as gone unless it is heard of; moved by each request.
    var deadline: Instant
    /// When its timer will fire, if one is set. A timer is set again only to fire earlier: heartbeats move
    /// just `deadline`, and the timer looks at it.
    var timerAt: Instant?

    /// Roughly what the group's record says of the member, its assignment aside.
    func recordByteCount(_ protocolName: String?) -> Int {
        let names = id.utf8.count + (instanceID?.utf8.count ?? 0) + client.clientID.utf8.count + client.host.utf8.count
        return names + (protocolName.map { subscription($0).readableBytes } ?? 0) + 64
    }

    func subscription(_ name: String) -> ByteBuffer {
        protocols.first { $0.name == name }?.metadata ?? ByteBuffer()
    }
}

/// The members of a group and what is counted over them.
struct MemberTable {
    /// In the order of joining, which everything that leads to an effect follows.
    private(set) var ids: [String] = []
    private var table: [String: ClassicMember] = [:]
    /// Static members: instance id to member id (KIP-345).
    private(set) var instances: [String: String] = [:]
    private(set) var waitingJoinCount = 0
    private var protocolSupport: [String: Int] = [:]
    /// Of all members; see ``ClassicMember/byteCount``.
    private(set) var byteCount = 0

    var count: Int { table.count }
    var isEmpty: Bool { table.isEmpty }

    func contains(_ id: String) -> Bool { table[id] != nil }

    /// Change a member in place; counted fields have functions of their own.
    subscript(_ id: String) -> ClassicMember? {
        get { table[id] }
        _modify {
            byteCount -= table[id]?.byteCount ?? 0
            defer { byteCount += table[id]?.byteCount ?? 0 }
            yield &table[id]
        }
    }

    var inOrder: [ClassicMember] { ids.compactMap { table[$0] } }

    mutating func add(_ member: ClassicMember) {
        precondition(table[member.id] == nil, "member \(member.id) is added twice")
        table[member.id] = member
        ids.append(member.id)
        if let instanceID = member.instanceID { instances[instanceID] = member.id }
        count(member.protocols, by: 1)
        byteCount += member.byteCount
        if member.joinRequest != nil { waitingJoinCount += 1 }
    }

    @discardableResult
    mutating func remove(_ id: String) -> ClassicMember? {
        guard let member = table.removeValue(forKey: id) else { return nil }
        ids.removeAll { $0 == id }
        if let instanceID = member.instanceID, instances[instanceID] == id { instances[instanceID] = nil }
        count(member.protocols, by: -1)
        byteCount -= member.byteCount
        if member.joinRequest != nil { waitingJoinCount -= 1 }
        return member
    }

    /// Puts a static member that came back with a new id in the place of its old self, which it returns.
    mutating func replace(_ oldID: String, by newMember: ClassicMember) -> ClassicMember? {
        guard let position = ids.firstIndex(of: oldID), let old = table.removeValue(forKey: oldID) else {
            return nil
        }
        ids[position] = newMember.id
        table[newMember.id] = newMember
        if let instanceID = newMember.instanceID { instances[instanceID] = newMember.id }
        count(old.protocols, by: -1)
        count(newMember.protocols, by: 1)
        byteCount += newMember.byteCount - old.byteCount
        if old.joinRequest != nil { waitingJoinCount -= 1 }
        if newMember.joinRequest != nil { waitingJoinCount += 1 }
        return old
    }

    mutating func setProtocols(_ protocols: [JoinGroupRequest.JoinGroupRequestProtocol], of id: String) {
        guard let old = table[id]?.protocols else { return }
        count(old, by: -1)
        count(protocols, by: 1)
        self[id]?.protocols = protocols
    }

    /// Sets the caller that waits for the join phase and returns the one it replaces.
    @discardableResult
    mutating func setJoinRequest(_ request: RequestID?, of id: String) -> RequestID? {
        guard let old = table[id]?.joinRequest else {
            if request != nil, table[id] != nil {
                waitingJoinCount += 1
                table[id]?.joinRequest = request
            }
            return nil
        }
        if request == nil { waitingJoinCount -= 1 }
        table[id]?.joinRequest = request
        return old
    }

    /// Whether some strategy of the list is known to every member.
    func shares(_ protocols: [JoinGroupRequest.JoinGroupRequestProtocol]) -> Bool {
        protocols.contains { protocolSupport[$0.name] == table.count }
    }

    /// The strategy for the next generation: known to all, and the favourite of most; the smaller name wins
    /// a draw, so that the choice is the same everywhere.
    func selectedProtocol() -> String? {
        let candidates = Set(protocolSupport.filter { $0.value == table.count }.keys)
        var votes: [String: Int] = [:]
        for member in table.values {
            if let favourite = member.protocols.first(where: { candidates.contains($0.name) }) {
                votes[favourite.name, default: 0] += 1
            }
        }
        return votes.max { ($0.value, $1.key) < ($1.value, $0.key) }?.key
    }

    private mutating func count(_ protocols: [JoinGroupRequest.JoinGroupRequestProtocol], by step: Int) {
        // A member that names a strategy twice still is one member.
        for name in Set(protocols.map(\.name)) {
            let support = protocolSupport[name, default: 0] + step
            protocolSupport[name] = support == 0 ? nil : support
        }
    }
}

extension ClassicMember {
    init(
        id: String, request: JoinGroupRequest, client: ClientIdentity, joinRequest: RequestID?, isNew: Bool,
        deadline: Instant
    ) {
        self.id = id
        instanceID = request.groupInstanceID
        self.client = client
        sessionTimeoutMilliseconds = request.sessionTimeoutMs
        rebalanceTimeoutMilliseconds =
            request.rebalanceTimeoutMs < 0 ? request.sessionTimeoutMs : request.rebalanceTimeoutMs
        protocols = request.protocols
        self.joinRequest = joinRequest
        self.isNew = isNew
        self.deadline = deadline
    }

    /// A member as a group's record tells it, after a restart.
    init(_ value: GroupMetadataValue.MemberMetadata, protocolName: String, deadline: Instant) {
        id = value.memberID
        instanceID = value.groupInstanceID
        client = ClientIdentity(clientID: value.clientID, host: value.clientHost)
        sessionTimeoutMilliseconds = value.sessionTimeout
        rebalanceTimeoutMilliseconds =
            value.rebalanceTimeout < 0 ? value.sessionTimeout : value.rebalanceTimeout
        var entry = JoinGroupRequest.JoinGroupRequestProtocol()
        entry.name = protocolName
        entry.metadata = value.subscription
        protocols = [entry]
        assignment = value.assignment
        isNew = false
        self.deadline = deadline
    }
}
