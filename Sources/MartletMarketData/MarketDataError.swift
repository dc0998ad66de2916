/// The one error of this product: what is wrong, where in which file, and what to do about it.
///
/// Texts never contain message payloads, only their type, length and place.
public struct MarketDataError: Error, Hashable, Sendable, CustomStringConvertible {
    /// Kind of trouble; open, so that later versions may add kinds without breaking a `switch`.
    public struct Code: RawRepresentable, Hashable, Sendable {
        public var rawValue: String
        public init(rawValue: String) { self.rawValue = rawValue }

        /// The file cannot be opened, read or written; `cause` holds the system's reason.
        public static let file = Code(rawValue: "FILE")
        /// The gzip wrapping is damaged or ends early.
        public static let gzip = Code(rawValue: "GZIP")
        /// The stream ends inside a message.
        public static let truncated = Code(rawValue: "TRUNCATED")
        /// A length prefix contradicts the message type, or no message can have it.
        public static let badLength = Code(rawValue: "BAD_LENGTH")
        /// The bytes are not of this format at all, or a field holds an impossible value.
        public static let badContent = Code(rawValue: "BAD_CONTENT")
        /// A setting of the caller cannot be used.
        public static let badArgument = Code(rawValue: "BAD_ARGUMENT")
    }

    public var code: Code
    /// The file as the caller named it, if there is one.
    public var file: String?
    /// Place in the *unpacked* stream in bytes from its start, if the trouble has a place.
    public var offset: Int64?
    /// One-based line number, for line formats.
    public var line: Int64?
    public var cause: String
    /// What the reader of the error can do; may be empty.
    public var remedy: String

    public init(
        _ code: Code, file: String? = nil, offset: Int64? = nil, line: Int64? = nil, cause: String,
        remedy: String = ""
    ) {
        self.code = code
        self.file = file
        self.offset = offset
        self.line = line
        self.cause = cause
        self.remedy = remedy
    }

    /// A damaged file stays damaged: trying again never helps.
    public var isRetriable: Bool { false }

    public var description: String {
        var text = ""
        if let file { text += "\(file): " }
        if let line { text += "line \(line), " }
        if let offset { text += "byte \(offset): " }
        text += cause
        if !remedy.isEmpty { text += "; \(remedy)" }
        return text
    }
}
