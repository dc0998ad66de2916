import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// The bytes that members of a group exchange through the coordinator, which does not look into them: a version
/// number, then a subscription or an assignment (KIP-429, KIP-792).
enum ConsumerProtocol {
    /// Name of the protocol in JoinGroup.
    static let type = "consumer"
    /// Versions written: all clients since Kafka 2.4 and librdkafka 1.6 read or skip them.
    private static let subscriptionVersion: Int16 = 3
    private static let assignmentVersion: Int16 = 1

    /// A member as the group leader sees it.
    struct Subscription: Hashable, Sendable {
        var topics: [String]
        var owned: [TopicPartition] = []
        var generation: Int32 = -1
        var userData: ByteBuffer?
        var rack: String?
    }

    static func encode(_ subscription: Subscription) throws(EncodeError) -> ByteBuffer {
        var message = ConsumerProtocolSubscription()
        message.topics = subscription.topics
        message.userData = subscription.userData
        message.ownedPartitions = groupedByTopic(subscription.owned).map { topic, indexes in
            var entry = ConsumerProtocolSubscription.TopicPartition()
            entry.topic = topic
            entry.partitions = indexes
            return entry
        }
        message.generationID = subscription.generation
        message.rackID = subscription.rack
        var writer = ProtocolWriter(buffer: ByteBuffer())
        writer.integer(subscriptionVersion)
        try message.encode(into: &writer, version: subscriptionVersion)
        return writer.buffer
    }

    /// What another member sent; `nil` if it cannot be read. Versions above ours are read as ours, since later
    /// ones only add fields at the end.
    static func subscription(_ bytes: ByteBuffer) -> Subscription? {
        guard let (version, body) = split(bytes, ConsumerProtocolSubscription.versions) else { return nil }
        do {
            var reader = ProtocolReader(body)
            let message = try ConsumerProtocolSubscription(reading: &reader, version: version)
            return Subscription(
                topics: message.topics,
                owned: message.ownedPartitions.flatMap { entry in
                    entry.partitions.map { TopicPartition(entry.topic, $0) }
                }, generation: message.generationID, userData: message.userData, rack: message.rackID)
        } catch {
            return nil
        }
    }

    static func encode(assignment: [TopicPartition]) throws(EncodeError) -> ByteBuffer {
        var message = ConsumerProtocolAssignment()
        message.assignedPartitions = groupedByTopic(assignment).map { topic, indexes in
            var entry = ConsumerProtocolAssignment.TopicPartition()
            entry.topic = topic
            entry.partitions = indexes
            return entry
        }
        var writer = ProtocolWriter(buffer: ByteBuffer())
        writer.integer(assignmentVersion)
        try message.encode(into: &writer, version: assignmentVersion)
        return writer.buffer
    }

    /// The partitions of a member; empty bytes mean none, `nil` that they cannot be read.
    static func assignment(_ bytes: ByteBuffer) -> [TopicPartition]? {
        if bytes.readableBytes == 0 { return [] }
        guard let (version, body) = split(bytes, ConsumerProtocolAssignment.versions) else { return nil }
        do {
            var reader = ProtocolReader(body)
            let message = try ConsumerProtocolAssignment(reading: &reader, version: version)
            return message.assignedPartitions.flatMap { entry in
                entry.partitions.map { TopicPartition(entry.topic, $0) }
            }.sorted()
        } catch {
            return nil
        }
    }

    private static func split(_ bytes: ByteBuffer, _ known: ClosedRange<Int16>) -> (Int16, ByteBuffer)? {
        var body = bytes
        guard let version = body.readInteger(as: Int16.self), version >= 0 else { return nil }
        return (min(version, known.upperBound), body)
    }
}
