package import MartletKafkaProtocol
package import MartletLogModel
import NIOCore

/// Partitions by topic, without order.
package typealias TopicPartitions = [UniversalID: Set<Int32>]

/// Partitions by topic, each with the group epoch at which its owner got it (KIP-1251).
package typealias OwnedPartitions = [UniversalID: [Int32: Int32]]

/// A member of a consumer group as its records tell it. Only replay writes it.
///
/// ```
///            target gives back what it has          gave it back
///   stable ───────────────────────────────► unrevoked ─────────┐
///     ▲  │  target wants what another has                      │
///     │  └──────────────────────► unreleased ◄─────────────────┤
///     │        the other gave it back  │                       │
///     └────────────────────────────────┴───────────────────────┘
/// ```
package struct ConsumerMember: Sendable, Equatable {
    /// Numbers as in the record.
    package enum State: Int8, Sendable {
        /// Has what the target of its epoch says.
        case stable = 0
        /// Was asked to give partitions back, and has not confirmed.
        case unrevoked = 1
        /// Has given back what it must; waits for others to do so.
        case unreleased = 2
        /// Written by a release that knows more states: the member starts over.
        case unknown = 127
    }

    /// Epochs that are no epochs.
    package enum Epoch {
        package static let join: Int32 = 0
        package static let leave: Int32 = -1
        /// A static member leaves and means to come back.
        package static let leaveForAWhile: Int32 = -2
    }

    package let id: String
    /// What it said about itself.
    package var about = ConsumerGroupMemberMetadataValue()
    package var epoch: Int32 = 0
    package var previousEpoch: Int32 = 0
    package var state: State = .stable
    package var assigned: OwnedPartitions = [:]
    /// To be given back; still the member's own until it confirms.
    package var pendingRevocation: OwnedPartitions = [:]

    package init(id: String) {
        self.id = id
        about.instanceID = nil
        about.rackID = nil
        about.subscribedTopicRegex = nil
        about.serverAssignor = nil
    }

    var usesClassicProtocol: Bool { about.classicMemberMetadata != nil }
    var instanceID: String? { about.instanceID }

    /// The pattern it subscribes to, if any; clients withdraw one with an empty text.
    var pattern: String? { about.subscribedTopicRegex.flatMap { $0.isEmpty ? nil : $0 } }

    func isReconciled(to target: Int32) -> Bool { state == .stable && epoch == target }

    /// Whether the partition is its own, given back partitions included until that is confirmed.
    func epoch(of topic: UniversalID, _ partition: Int32) -> Int32? {
        assigned[topic]?[partition] ?? pendingRevocation[topic]?[partition]
    }
}
