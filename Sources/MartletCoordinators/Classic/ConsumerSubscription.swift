import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// What the coordinator reads of a consumer's embedded protocol, and writes where it assigns itself.
enum ConsumerSubscription {
    /// Protocol type of Kafka consumers; Connect and others use their own, which stay opaque.
    static let protocolType = "consumer"
    /// Strategies of Kafka's clients. What they keep in an assignment only helps their own next round, so nothing is
    /// lost where the broker assigns from then on; librdkafka's sticky one does keep something.
    static let standardStrategies: Set<String> = ["range", "roundrobin", "sticky", "cooperative-sticky"]

    /// `nil` if the bytes are not a subscription. A newer version than known reads as the newest known: the
    /// format only ever grows at its end.
    static func topics(_ bytes: ByteBuffer) -> [String]? { decode(bytes)?.subscription.topics }

    static func decode(_ bytes: ByteBuffer) -> (subscription: ConsumerProtocolSubscription, version: Int16)? {
        var r = ProtocolReader(bytes)
        do throws(DecodeError) {
            let version: Int16 = try r.integer()
            guard version >= ConsumerProtocolSubscription.versions.lowerBound else { return nil }
            let known = min(version, ConsumerProtocolSubscription.versions.upperBound)
            return (try ConsumerProtocolSubscription(reading: &r, version: known), known)
        } catch {
            return nil
        }
    }

    /// An assignment as a leader sent it: empty bytes are an empty one, `nil` if it cannot be read.
    static func assignment(_ bytes: ByteBuffer) -> ConsumerProtocolAssignment? {
        if bytes.readableBytes == 0 { return ConsumerProtocolAssignment() }
        var r = ProtocolReader(bytes)
        do throws(DecodeError) {
            let version: Int16 = try r.integer()
            guard version >= ConsumerProtocolAssignment.versions.lowerBound else { return nil }
            let known = min(version, ConsumerProtocolAssignment.versions.upperBound)
            return try ConsumerProtocolAssignment(reading: &r, version: known)
        } catch {
            return nil
        }
    }

    /// Bytes of an assignment for a classic member, in the version of its subscription. Topics that are gone are
    /// left out.
    static func encode(_ partitions: TopicPartitions, _ catalog: TopicCatalog, version: Int16) -> ByteBuffer {
        var assignment = ConsumerProtocolAssignment()
        assignment.assignedPartitions = partitions.compactMap { topic, indexes in
            guard let name = catalog.topic(id: topic)?.name else { return nil }
            var entry = ConsumerProtocolAssignment.TopicPartition()
            entry.topic = name
            entry.partitions = indexes.sorted()
            return entry
        }.sorted { $0.topic < $1.topic }
        let known = min(version, ConsumerProtocolAssignment.versions.upperBound)
        var writer = ProtocolWriter()
        writer.integer(known)
        do throws(EncodeError) {
            try assignment.encode(into: &writer, version: known)
        } catch {
            preconditionFailure("an assignment of names and numbers can be written: \(error)")
        }
        return writer.buffer
    }
}
