/// Kind of a configuration value, with the numbers DescribeConfigs puts on the wire (KIP-569).
package enum ConfigType: Int8, Sendable {
    case boolean = 1
    case string = 2
    case int = 3
    case short = 4
    case long = 5
    case double = 6
    case list = 7
    case `class` = 8
    case password = 9
}

/// Where an effective value comes from, with DescribeConfigs' numbers (KIP-226). Lower cases win.
package enum ConfigSource: Int8, Sendable, Comparable {
    /// Set on the topic itself.
    case topic = 1
    /// Set at run time for one broker.
    case dynamicBroker = 2
    /// Set at run time for all brokers of the cluster.
    case dynamicClusterDefault = 3
    /// From the configuration file, the environment or the command line of this broker.
    case staticBroker = 4
    /// Built in.
    case `default` = 5
    /// Set on the group itself.
    case group = 8

    package static func < (left: ConfigSource, right: ConfigSource) -> Bool { left.rawValue < right.rawValue }
}

/// The values a configuration accepts, beyond what its type says.
package enum ConfigRule: Sendable, Equatable {
    case any
    case atLeast(Int64)
    case between(Int64, Int64)
    /// 0.0 to 1.0, both included.
    case fraction
    case oneOf([String])
    /// A comma-separated list drawn from these words; may be empty.
    case listOf([String])
}

/// What this release does with a configuration that Kafka knows.
package enum ConfigSupport: Sendable, Equatable {
    case honoured
    /// Accepted and shown, but nothing depends on it here; the text says why that is harmless.
    case noEffect(String)
    /// Only the default is accepted: any other value would be a promise we do not keep.
    case defaultOnly(String)
}

/// Another name under which a topic configuration's default can be set on the broker.
package struct ConfigSynonym: Sendable, Equatable {
    package let name: String
    /// Multiplies the broker's value (hours or minutes to milliseconds); 1 for the same unit.
    package let scale: Int64

    package init(_ name: String, scale: Int64 = 1) {
        self.name = name
        self.scale = scale
    }
}

/// One row of the configuration tables: name, type, default, legal values, support and documentation.
package struct ConfigDefinition: Sendable {
    package let name: String
    package let type: ConfigType
    /// `nil`: there is no value unless one is set.
    package let defaultValue: String?
    package let rule: ConfigRule
    package let support: ConfigSupport
    /// Broker configurations that give a topic configuration its default, strongest first.
    package let synonyms: [ConfigSynonym]
    /// Whether a value can be set only before the broker starts.
    package let isReadOnly: Bool
    package let isSensitive: Bool
    /// Not listed by DescribeConfigs unless it is set or asked for by name.
    package let isHidden: Bool
    package let documentation: String

    package init(
        _ name: String, _ type: ConfigType, default defaultValue: String?, _ rule: ConfigRule = .any,
        support: ConfigSupport = .honoured, synonyms: [ConfigSynonym] = [], readOnly: Bool = false,
        sensitive: Bool = false, hidden: Bool = false, _ documentation: String
    ) {
        self.name = name
        self.type = type
        self.defaultValue = defaultValue
        self.rule = rule
        self.support = support
        self.synonyms = synonyms
        self.isReadOnly = readOnly
        self.isSensitive = sensitive
        self.isHidden = hidden
        self.documentation = documentation
    }

    /// The value in the form it is stored and shown: surrounding blanks gone, booleans in lower case.
    package func normalized(_ value: String) -> String {
        let trimmed = ConfigText.trimmed(value)
        switch type {
        case .boolean: return trimmed.lowercased()
        case .list: return ConfigText.items(trimmed).joined(separator: ",")
        case .string, .int, .short, .long, .double, .class, .password: return trimmed
        }
    }

    /// Why `value` cannot be set, or `nil` if it can. Cause and remedy in one sentence.
    package func problem(with value: String) -> String? {
        let text = normalized(value)
        if let cause = typeProblem(text) ?? ruleProblem(text) {
            return "Invalid value '\(ConfigText.shortened(value))' for configuration \(name): \(cause)"
        }
        if case .defaultOnly(let reason) = support, text != (defaultValue ?? "") {
            return "Configuration \(name) accepts only its default '\(defaultValue ?? "")' here: \(reason)"
        }
        return nil
    }

    private func typeProblem(_ text: String) -> String? {
        switch type {
        case .boolean:
            return text == "true" || text == "false" ? nil : "expected true or false"
        case .int:
            return Int32(text) == nil ? "expected a whole number of 32 bits" : nil
        case .short:
            return Int16(text) == nil ? "expected a whole number of 16 bits" : nil
        case .long:
            return Int64(text) == nil ? "expected a whole number of 64 bits" : nil
        case .double:
            guard let number = Double(text), number.isFinite else { return "expected a number" }
            return nil
        case .string, .list, .class, .password:
            return text.utf8.count > ControllerLimits.configValueBytesLimit
                ? "longer than \(ControllerLimits.configValueBytesLimit) bytes" : nil
        }
    }

    private func ruleProblem(_ text: String) -> String? {
        switch rule {
        case .any:
            return nil
        case .atLeast(let least):
            guard let number = Int64(text), number >= least else { return "must be at least \(least)" }
            return nil
        case .between(let least, let most):
            guard let number = Int64(text), number >= least, number <= most else {
                return "must be between \(least) and \(most)"
            }
            return nil
        case .fraction:
            guard let number = Double(text), number >= 0, number <= 1 else {
                return "must be between 0 and 1"
            }
            return nil
        case .oneOf(let words):
            return words.contains(text) ? nil : "must be one of \(words.joined(separator: ", "))"
        case .listOf(let words):
            let items = ConfigText.items(text)
            if let wrong = items.first(where: { !words.contains($0) }) {
                return "'\(ConfigText.shortened(wrong))' is not one of \(words.joined(separator: ", "))"
            }
            return Set(items).count == items.count ? nil : "the same word appears twice"
        }
    }
}

/// Small text routines of the configuration tables; no Foundation below the broker.
package enum ConfigText {
    package static func trimmed(_ text: some StringProtocol) -> String {
        var bytes = Substring(text).utf8
        while let first = bytes.first, isBlank(first) { bytes.removeFirst() }
        while let last = bytes.last, isBlank(last) { bytes.removeLast() }
        return String(Substring(bytes))
    }

    /// The words of a comma-separated list without blanks around them; empty words are dropped.
    package static func items(_ text: String) -> [String] {
        text.split(separator: ",").map { trimmed($0) }.filter { !$0.isEmpty }
    }

    /// At most 64 characters of a peer's text, so that an error message stays a line.
    package static func shortened(_ text: String) -> String {
        text.count <= 64 ? text : String(text.prefix(61)) + "..."
    }

    private static func isBlank(_ byte: UInt8) -> Bool { byte == 0x20 || (byte >= 0x09 && byte <= 0x0d) }
}

/// A named set of definitions, in the order of their names.
package struct ConfigTable: Sendable {
    package let definitions: [ConfigDefinition]
    private let positions: [String: Int]

    package init(_ definitions: [ConfigDefinition]) {
        self.definitions = definitions.sorted { $0.name < $1.name }
        var positions: [String: Int] = [:]
        for (index, definition) in self.definitions.enumerated() {
            precondition(
                positions[definition.name] == nil, "configuration \(definition.name) is defined twice")
            positions[definition.name] = index
        }
        self.positions = positions
    }

    package subscript(_ name: String) -> ConfigDefinition? { positions[name].map { definitions[$0] } }
}
