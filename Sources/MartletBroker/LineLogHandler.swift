public import Logging

/// Log lines on standard error, one for each event whatever is in it: ids, reasons and names of clients may hold line
/// ends and control characters, and none of them may pass for a line of the broker's.
public struct LineLogHandler: LogHandler {
    private var stream: StreamLogHandler

    public init(label: String, level: Logger.Level) {
        stream = StreamLogHandler.standardError(label: label)
        stream.logLevel = level
    }

    public func log(event: LogEvent) {
        var event = event
        event.message = "\(Self.escaped(event.message.description))"
        event.metadata = event.metadata?.mapValues(Self.escaped)
        stream.log(event: event)
    }

    private static func escaped(_ value: Logger.MetadataValue) -> Logger.MetadataValue {
        switch value {
        case .string(let text): .string(escaped(text))
        case .stringConvertible(let value): .string(escaped("\(value)"))
        case .array(let values): .array(values.map(escaped))
        case .dictionary(let values): .dictionary(values.mapValues(escaped))
        }
    }

    /// The text with its control characters written out.
    package static func escaped(_ text: String) -> String {
        func ends(_ scalar: Unicode.Scalar) -> Bool {
            switch scalar.properties.generalCategory {
            case .control, .lineSeparator, .paragraphSeparator: true
            case _: false
            }
        }
        guard text.unicodeScalars.contains(where: ends) else { return text }
        return text.unicodeScalars.reduce(into: "") { $0 += ends($1) ? $1.escaped(asASCII: true) : String($1) }
    }

    public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { stream[metadataKey: key] }
        set { stream[metadataKey: key] = newValue }
    }
    public var metadata: Logger.Metadata {
        get { stream.metadata }
        set { stream.metadata = newValue }
    }
    public var logLevel: Logger.Level {
        get { stream.logLevel }
        set { stream.logLevel = newValue }
    }
}
