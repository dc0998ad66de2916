/// A message or a part of one: reads and writes itself in any version of its message.
package protocol KafkaStructure: Hashable, Sendable {
    /// All fields at their defaults.
    init()
    init(reading r: inout ProtocolReader, version: Int16) throws(DecodeError)
    func encode(into w: inout ProtocolWriter, version: Int16) throws(EncodeError)
}

/// A whole message: request, response or persisted record.
package protocol KafkaMessage: KafkaStructure {
    /// Versions that the schema knows; reading or writing another one throws.
    static var versions: ClosedRange<Int16> { get }
    /// First version with compact lengths and tagged fields (KIP-482); `nil` if there is none.
    static var firstFlexibleVersion: Int16? { get }
}

package protocol KafkaRequest: KafkaMessage {
    associatedtype Response: KafkaResponse
    static var apiKey: APIKey { get }
}

package protocol KafkaResponse: KafkaMessage {
    static var apiKey: APIKey { get }
}

/// The body of a record that is persisted or sent inside another message.
package protocol KafkaRecordData: KafkaMessage {
    /// Kafka's number of the record type within its log; `nil` for data that has none.
    static var recordType: Int16? { get }
}

extension KafkaMessage {
    package static func isFlexible(_ version: Int16) -> Bool {
        guard let first = firstFlexibleVersion else { return false }
        return version >= first
    }
}
