public import Logging

/// Log lines on standard error, one for each event whatever is in it: ids, reasons and names of clients may hold line
/// ends and control characters, and none of them may pass for a line of the broker's.
public struct LineLogHandler: LogHandler {
    /// Knows neither metadata nor a provider: all that it writes has been through ``shown(_:)``.
    private var stream: StreamLogHandler
    public var metadata: Logger.Metadata = [:]
    public var metadataProvider: Logger.MetadataProvider?

    public init(label: String, level: Logger.Level) {
        stream = StreamLogHandler.standardError(label: label, metadataProvider: nil)
        stream.logLevel = level
    }

    public func log(event: LogEvent) { stream.log(event: shown(event)) }

    /// The event with all that is to be written about it, control characters written out.
    package func shown(_ event: LogEvent) -> LogEvent {
        var event = event
        event.message = "\(Self.escaped(event.message.description))"
        // The nearer to the event, the more it counts.
        var all = [metadata, metadataProvider?.get() ?? [:], event.metadata ?? [:]]
        if let error = event.error.take() {
            all.append(["error.message": "\(error)", "error.type": "\(String(reflecting: type(of: error)))"])
        }
        event.metadata = all.reduce(into: [:]) { shown, part in
            for (key, value) in part { shown[Self.escaped(key)] = Self.escaped(value) }
        }
        return event
    }

    private static func escaped(_ value: Logger.MetadataValue) -> Logger.MetadataValue {
        switch value {
        case .string(let text): .string(escaped(text))
        case .stringConvertible(let value): .string(escaped("\(value)"))
        case .array(let values): .array(values.map(escaped))
        case .dictionary(let values):
            .dictionary(values.reduce(into: [:]) { $0[escaped($1.key)] = escaped($1.value) })
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
        get { metadata[key] }
        set { metadata[key] = newValue }
    }
    public var logLevel: Logger.Level {
        get { stream.logLevel }
        set { stream.logLevel = newValue }
    }
}
