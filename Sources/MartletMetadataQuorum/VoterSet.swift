package import MartletLogModel

/// Where a node listens: Kafka's listener name, host and port.
package struct Endpoint: Hashable, Sendable {
    package var name: String
    package var host: String
    package var port: UInt16

    package init(name: String, host: String, port: UInt16) {
        self.name = name
        self.host = host
        self.port = port
    }
}

/// A node together with its disk (KIP-853). The directory id is drawn when the directory is made: a node that comes
/// back with an empty disk has another one, and is another replica.
package struct ReplicaKey: Hashable, Comparable, Sendable, CustomStringConvertible {
    package var id: BrokerID
    /// `nil` where it is not known: voters that are configured by id alone (kraft.version 0).
    package var directoryID: UniversalID?

    package init(_ id: BrokerID, _ directoryID: UniversalID?) {
        self.id = id
        self.directoryID = directoryID
    }

    package static func < (left: ReplicaKey, right: ReplicaKey) -> Bool {
        guard left.id == right.id else { return left.id < right.id }
        guard let rightDirectory = right.directoryID else { return false }
        return left.directoryID.map { $0 < rightDirectory } ?? true
    }

    package var description: String { directoryID.map { "\(id)/\($0)" } ?? "\(id)" }
}

/// Levels of `kraft.version` that a node can run: 0 has voters from the configuration, 1 voters in the log.
package struct KRaftVersionRange: Hashable, Sendable {
    package var minimum: Int16
    package var maximum: Int16

    package init(minimum: Int16, maximum: Int16) {
        self.minimum = minimum
        self.maximum = maximum
    }

    /// What this release runs.
    package static let supported = KRaftVersionRange(minimum: 0, maximum: 1)

    package func contains(_ version: Int16) -> Bool { minimum <= version && version <= maximum }
}

package struct Voter: Hashable, Sendable {
    package var key: ReplicaKey
    package var endpoints: [Endpoint]
    package var versions: KRaftVersionRange

    package init(key: ReplicaKey, endpoints: [Endpoint], versions: KRaftVersionRange = .supported) {
        self.key = key
        self.endpoints = endpoints
        self.versions = versions
    }
}

/// Voters in the order of their ids, each id once.
package struct VoterSet: Hashable, Sendable {
    package private(set) var voters: [Voter]

    /// Of voters with the same id the first one counts.
    package init(_ voters: [Voter]) {
        var seen: Set<BrokerID> = []
        self.voters = voters.filter { seen.insert($0.key.id).inserted }.sorted { $0.key.id < $1.key.id }
    }

    package subscript(_ id: BrokerID) -> Voter? { voters.first { $0.key.id == id } }

    /// Whether this replica is a voter: the id must be one, and its directory the one of the set where that is known.
    package func contains(_ key: ReplicaKey) -> Bool {
        guard let voter = self[key.id] else { return false }
        guard let directory = voter.key.directoryID else { return true }
        return directory == key.directoryID
    }

    /// Voters needed to elect or to commit.
    package var majorityCount: Int { voters.count / 2 + 1 }

    package func isOnly(_ key: ReplicaKey) -> Bool { voters.count == 1 && contains(key) }

    package func adding(_ voter: Voter) -> VoterSet { VoterSet(voters + [voter]) }
    package func removing(_ id: BrokerID) -> VoterSet { VoterSet(voters.filter { $0.key.id != id }) }
    package func replacing(_ voter: Voter) -> VoterSet {
        VoterSet(voters.map { $0.key.id == voter.key.id ? voter : $0 })
    }
}

/// The level of `kraft.version` and the voters as of some offset.
package struct QuorumMembership: Hashable, Sendable {
    package var version: Int16
    package var voters: VoterSet

    package init(version: Int16, voters: VoterSet) {
        self.version = version
        self.voters = voters
    }

    /// Applies what a control batch says of it; `nil` if it says nothing.
    func applying(_ records: [ControlRecord]) -> QuorumMembership? {
        var next = self
        var isChanged = false
        for record in records {
            switch record {
            case .version(let version):
                next.version = version
                isChanged = true
            case .voters(let voters):
                next.voters = voters
                isChanged = true
            case .leaderChange, .snapshotHeader, .snapshotFooter, .other: break
            }
        }
        return isChanged ? next : nil
    }
}

/// The voters over the length of the log. A set counts from its append on, committed or not, and goes when the log is
/// cut below it (KIP-853).
package struct MembershipHistory: Sendable {
    package struct Entry: Hashable, Sendable {
        /// Of the control batch that says so.
        package var offset: Offset
        package var membership: QuorumMembership

        package init(offset: Offset, membership: QuorumMembership) {
            self.offset = offset
            self.membership = membership
        }
    }

    /// From the snapshot the log starts behind, or from the configuration.
    private var base: QuorumMembership
    private var entries: [Entry] = []

    package init(base: QuorumMembership) { self.base = base }

    package var latest: QuorumMembership { entries.last?.membership ?? base }

    /// Of the newest entry; `nil` if the log has none.
    package var latestOffset: Offset? { entries.last?.offset }

    /// What the log below `end` (exclusive) says.
    package func membership(asOf end: Offset) -> QuorumMembership {
        entries.last { $0.offset < end }?.membership ?? base
    }

    /// Whether a set that may be in force has this replica, when everything below `committed` is known to be committed.
    func mayContain(_ key: ReplicaKey, committed: Offset) -> Bool {
        membership(asOf: committed).voters.contains(key)
            || entries.contains { $0.offset >= committed && $0.membership.voters.contains(key) }
    }

    package mutating func append(_ records: [ControlRecord], at offset: Offset) {
        guard let next = latest.applying(records) else { return }
        entries.append(Entry(offset: offset, membership: next))
    }

    package mutating func truncate(to end: Offset) { entries.removeAll { $0.offset >= end } }

    /// Forgets what a snapshot up to `start` covers.
    package mutating func advanceStart(to start: Offset) {
        base = membership(asOf: start)
        entries.removeAll { $0.offset < start }
    }

    /// The log starts anew behind a snapshot.
    package mutating func reset(to base: QuorumMembership) {
        self.base = base
        entries = []
    }
}
