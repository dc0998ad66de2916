/// Why bytes of a peer (or of a file) are not the message they claim to be.
///
/// Positions are byte offsets from the start of the buffer the reader was made with, so a log line can be
/// set against a hex dump of the frame.
package enum DecodeError: Error, Hashable, Sendable {
    /// The bytes end before the value does.
    case truncated(position: Int, needed: Int, available: Int)
    /// A length or count is below zero where "null" has no meaning.
    case negativeLength(position: Int, length: Int)
    /// A length or count says that more follows than the frame holds.
    case lengthBeyondFrame(position: Int, length: Int, available: Int)
    /// A varint has more bytes than its type can hold.
    case varintTooLong(position: Int)
    /// Text is not UTF-8.
    case invalidUTF8(position: Int)
    /// A value is null in a version that does not allow it.
    case nullNotAllowed(position: Int)
    /// A tagged field used another number of bytes than its size said.
    case taggedFieldSizeMismatch(position: Int, tag: UInt32)
    /// Bytes are left over after the message.
    case trailingBytes(position: Int, count: Int)
    /// The message's arrays and texts take more memory than the reader may use.
    case memoryLimitExceeded(position: Int, limit: Int)
    /// This version of the message is not known here.
    case unsupportedVersion(message: String, version: Int16)
    /// This API key is not known here.
    case unknownAPIKey(Int16)
    /// The frame of a metadata record is of another kind than 1.
    case unsupportedFrameVersion(UInt32)
    /// This type of persisted record is not known here.
    case unknownRecordType(Int)
}

extension DecodeError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .truncated(let position, let needed, let available):
            "truncated: needed \(needed) bytes at byte \(position), found \(available)"
        case .negativeLength(let position, let length):
            "negative length \(length) at byte \(position)"
        case .lengthBeyondFrame(let position, let length, let available):
            "length \(length) at byte \(position) is beyond the \(available) bytes that follow"
        case .varintTooLong(let position):
            "variable-length integer at byte \(position) is too long"
        case .invalidUTF8(let position):
            "text at byte \(position) is not UTF-8"
        case .nullNotAllowed(let position):
            "null at byte \(position), where a value is required"
        case .taggedFieldSizeMismatch(let position, let tag):
            "tagged field \(tag) does not end at byte \(position) as its size says"
        case .trailingBytes(let position, let count):
            "\(count) bytes left over after the message ends at byte \(position)"
        case .memoryLimitExceeded(let position, let limit):
            "arrays and texts up to byte \(position) take more than \(limit) bytes of memory; send less in one request"
        case .unsupportedVersion(let message, let version):
            "\(message) has no version \(version)"
        case .unknownAPIKey(let key):
            "unknown API key \(key)"
        case .unsupportedFrameVersion(let version):
            "metadata record frame version \(version) is not supported"
        case .unknownRecordType(let type):
            "unknown record type \(type)"
        }
    }
}

/// Why a message cannot be written in the version asked for. Always the caller's doing: the value says
/// something that the version has no place for.
package enum EncodeError: Error, Hashable, Sendable {
    case unsupportedVersion(message: String, version: Int16)
    /// `field` is set, may not be dropped silently, and does not exist in `version`.
    case fieldNotInVersion(field: String, version: Int16)
    /// `field` is null, which `version` cannot express.
    case nullNotAllowed(field: String, version: Int16)
    /// A text, byte string or array is longer than its length field can say.
    case tooLong(count: Int, limit: Int)
}

extension EncodeError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .unsupportedVersion(let message, let version):
            "\(message) has no version \(version)"
        case .fieldNotInVersion(let field, let version):
            "\(field) is set but version \(version) has no such field"
        case .nullNotAllowed(let field, let version):
            "\(field) is null but version \(version) requires a value"
        case .tooLong(let count, let limit):
            "length \(count) is above the limit \(limit) of the wire format"
        }
    }
}
