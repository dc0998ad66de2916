/// Rules for topic names (Kafka: at most 249 characters of `[a-zA-Z0-9._-]`, not `.` or `..`), which make
/// every topic name safe as a folder name.
public enum TopicName {
    /// Longest legal name; a folder name is the topic, `-`, the partition, and a suffix while it is deleted.
    public static let lengthLimit = 249

    /// Topics that brokers write themselves; clients may read them but not create or delete them.
    public static let consumerOffsets = "__consumer_offsets"
    public static let transactionState = "__transaction_state"
    public static let shareGroupState = "__share_group_state"
    public static let clusterMetadata = "__cluster_metadata"

    public static func isInternal(_ name: String) -> Bool {
        name == consumerOffsets || name == transactionState || name == shareGroupState || name == clusterMetadata
    }

    /// Why `name` is not a legal topic name, or `nil` if it is.
    public static func problem(_ name: String) -> String? {
        if name.isEmpty { return "topic name is empty; give it 1 to \(lengthLimit) characters" }
        if name == "." || name == ".." { return "topic name '\(name)' is reserved by the file system" }
        if name.utf8.count > lengthLimit {
            return "topic name has \(name.utf8.count) bytes; at most \(lengthLimit) are allowed"
        }
        for byte in name.utf8 {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
                continue
            case _:
                return "topic name contains a byte other than a-z, A-Z, 0-9, '.', '_' and '-'"
            }
        }
        return nil
    }

    /// Two names collide if they differ only in `.` against `_` (they would be one metric name in Kafka).
    public static func collides(_ left: String, _ right: String) -> Bool {
        left.utf8.count == right.utf8.count
            && zip(left.utf8, right.utf8).allSatisfy { $0 == $1 || (isSeparator($0) && isSeparator($1)) }
    }

    private static func isSeparator(_ byte: UInt8) -> Bool { byte == UInt8(ascii: ".") || byte == UInt8(ascii: "_") }
}
