import MartletKafkaProtocol
import NIOCore

/// What the coordinator reads of a consumer's subscription: the topics. The rest is between the members.
enum ConsumerSubscription {
    /// Protocol type of Kafka consumers; Connect and others use their own, which stay opaque.
    static let protocolType = "consumer"

    /// `nil` if the bytes are not a subscription. A newer version than known reads as the newest known: the
    /// format only ever grows at its end.
    static func topics(_ bytes: ByteBuffer) -> [String]? {
        var r = ProtocolReader(bytes)
        do throws(DecodeError) {
            let version: Int16 = try r.integer()
            guard version >= ConsumerProtocolSubscription.versions.lowerBound else { return nil }
            let known = min(version, ConsumerProtocolSubscription.versions.upperBound)
            return try ConsumerProtocolSubscription(reading: &r, version: known).topics
        } catch {
            return nil
        }
    }
}
