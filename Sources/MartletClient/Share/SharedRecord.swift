public import MartletLogModel
import NIOCore

/// A record given to this member of a share group, locked for it until it is acknowledged or the lock is over.
public struct SharedRecord: Sendable {
    public let record: ConsumedRecord
    /// How often it has been given out to anybody, this time included; 1 at first. The broker gives a record up after
    /// the group's limit (`share.delivery.count.limit`, 5 unless set).
    public let deliveryCount: Int

    /// Topic by id and partition: a topic that is created anew under its name is another one.
    let place: SharePlace
    /// The broker that holds the lock.
    let source: BrokerID
    /// The session in which it was given out; locks of an earlier one are not ours any more.
    let sessionNumber: Int
    /// When the lock is over for certain: it began before the answer came. Counted from the answer and not from the
    /// request, because a fetch may wait at the broker for longer than the lock lasts.
    let lockEnd: NIODeadline

    public var topicPartition: TopicPartition { record.topicPartition }
    public var topic: String { record.topic }
    public var partition: PartitionIndex { record.partition }
    public var offset: Offset { record.offset }
}

/// What a member of a share group says about a record it was given (KIP-932).
public enum ShareAcknowledgement: Sendable, Hashable, CaseIterable {
    /// Processed; nobody gets it again.
    case accept
    /// Not processed; another member, or this one, gets it again.
    case release
    /// Cannot be processed; nobody gets it again.
    case reject

    var wireValue: ShareWord {
        switch self {
        case .accept: .accept
        case .release: .release
        case .reject: .reject
        }
    }
}

/// What a broker said to acknowledgements for one partition: acceptances, releases and rejections, not renewals.
public struct ShareAcknowledgementResult: Sendable {
    public let topicPartition: TopicPartition
    /// Offsets that were acknowledged, in order, both ends inclusive. Offsets without a record, which the consumer
    /// reports by itself, may be among them.
    public let offsets: [ClosedRange<Offset>]
    /// Why they were refused; the records come again, to this member or another. `nil`: the broker has noted
    /// what was said.
    public let error: ClientError?
}

/// A partition of a topic named by id.
struct SharePlace: Hashable, Comparable {
    var topicID: UniversalID
    var partition: Int32

    static func < (left: SharePlace, right: SharePlace) -> Bool {
        (left.topicID, left.partition) < (right.topicID, right.partition)
    }
}
