internal import MartletCoordinators
internal import MartletLogModel
internal import NIOCore
internal import OrderedCollections

/// Whose session it is.
package struct ShareSessionKey: Hashable, Sendable {
    package var group: String
    package var member: String
}

/// A share session (KIP-932): which partitions a member fetches from this broker, so that each request names only what
/// changes. It ends with its connection, and what the member holds is free then. Confined to the connection's loop.
package final class ShareSession {
    /// Partitions one session may hold.
    package static let partitionLimit = 20_000

    let key: ShareSessionKey
    /// Tells it from an earlier session of the same member.
    let serial: UInt64
    /// Epoch the next request must carry: 1 after the session was opened, up to `Int32.max`, then 1 again.
    private(set) var expectedEpoch: Int32 = 1
    private(set) var partitions: OrderedSet<PartitionKey> = []
    /// All that it ever had: the member may still hold records of what it fetches no more.
    private var known: Set<PartitionKey> = []

    init(key: ShareSessionKey, serial: UInt64) {
        self.key = key
        self.serial = serial
    }

    func advanceEpoch() { expectedEpoch = expectedEpoch == .max ? 1 : expectedEpoch + 1 }

    /// False if that is too much.
    func add(_ key: PartitionKey) -> Bool {
        guard partitions.count < Self.partitionLimit || partitions.contains(key) else { return false }
        partitions.append(key)
        if known.count < 2 * Self.partitionLimit { known.insert(key) }
        return true
    }

    func remove(_ key: PartitionKey) { partitions.remove(key) }

    /// The member's session is over: frees what it holds.
    func release(on loop: BrokerLoop) {
        guard loop.services.shareSessions.close(self) else { return }
        var byLoop: [Int: [SharePartitionID]] = [:]
        for key in known {
            byLoop[loop.services.loops.index(of: key), default: []].append(
                key.sharePartition(of: self.key.group))
        }
        let member = key.member
        for (index, unordered) in byLoop.sorted(by: { $0.key < $1.key }) {
            let ids = unordered.sorted()
            loop.services.loops.all[index].post { $0.sharePartitions.release(member, ids) }
        }
    }
}

extension PartitionKey {
    func sharePartition(of group: String) -> SharePartitionID {
        SharePartitionID(group: group, topic: topicID, partition: partition.rawValue)
    }
}

/// Which session of a member is the present one, over all connections of the broker: a member that comes back on a
/// new connection must not lose what it holds when the old one is found dead.
package final class ShareSessionRegistry: Sendable {
    private struct State {
        var nextSerial: UInt64 = 1
        var serials: [ShareSessionKey: UInt64] = [:]
    }

    private let state = Guarded(State())

    package init() {}

    /// A new session in the place of an earlier one; `nil` if there are `limit` already.
    func open(_ key: ShareSessionKey, limit: Int) -> ShareSession? {
        let serial: UInt64? = state.withLock { state in
            guard state.serials[key] != nil || state.serials.count < limit else { return nil }
            let serial = state.nextSerial
            state.nextSerial += 1
            state.serials[key] = serial
            return serial
        }
        return serial.map { ShareSession(key: key, serial: $0) }
    }

    func isCurrent(_ session: ShareSession) -> Bool {
        state.withLock { $0.serials[session.key] == session.serial }
    }

    /// Whether it was the member's present one.
    func close(_ session: ShareSession) -> Bool {
        state.withLock { state in
            guard state.serials[session.key] == session.serial else { return false }
            state.serials[session.key] = nil
            return true
        }
    }
}
