/// One value in the chain that makes up an effective configuration.
package struct ConfigLayer: Sendable, Equatable {
    package let name: String
    package let value: String?
    package let source: ConfigSource
}

/// The effective value of one configuration and the chain behind it, strongest first.
package struct ResolvedConfig: Sendable {
    package let definition: ConfigDefinition
    package let layers: [ConfigLayer]

    /// A definition without default and without any value has no layer.
    package var value: String? { layers.first?.value ?? nil }
    package var source: ConfigSource { layers.first?.source ?? .default }
}

/// Values set for brokers: at run time for one broker, at run time for all, and before start.
package struct BrokerConfigValues: Sendable, Equatable {
    /// Run-time values of this broker.
    package var own: [String: String] = [:]
    /// Run-time values of all brokers of the cluster.
    package var clusterDefault: [String: String] = [:]
    /// Values from file, environment and command line.
    package var staticValues: [String: String] = [:]

    package init() {}

    package init(staticValues: [String: String]) { self.staticValues = staticValues }

    private static let settable: [ConfigSource] = [.dynamicBroker, .dynamicClusterDefault, .staticBroker]

    private func values(_ source: ConfigSource) -> [String: String] {
        switch source {
        case .dynamicBroker: own
        case .dynamicClusterDefault: clusterDefault
        case .staticBroker: staticValues
        case .topic, .group, .default: [:]
        }
    }

    /// Chain of a broker configuration.
    package func resolve(_ definition: ConfigDefinition) -> ResolvedConfig {
        var layers: [ConfigLayer] = []
        for source in Self.settable {
            if let value = values(source)[definition.name] {
                layers.append(.init(name: definition.name, value: value, source: source))
            }
        }
        if let value = definition.defaultValue {
            layers.append(.init(name: definition.name, value: value, source: .default))
        }
        return ResolvedConfig(definition: definition, layers: layers)
    }

    /// Chain of a topic's or a group's configuration: its own value, then what the broker synonyms say.
    package func resolve(
        _ definition: ConfigDefinition, overrides: [String: String], as own: ConfigSource = .topic
    ) -> ResolvedConfig {
        var layers: [ConfigLayer] = []
        if let value = overrides[definition.name] {
            layers.append(.init(name: definition.name, value: value, source: own))
        }
        for source in Self.settable {
            for synonym in definition.synonyms {
                guard let value = values(source)[synonym.name] else { continue }
                layers.append(
                    .init(name: synonym.name, value: Self.scaled(value, by: synonym.scale), source: source))
            }
        }
        if let value = definition.defaultValue {
            layers.append(
                .init(
                    name: definition.synonyms.first?.name ?? definition.name, value: value, source: .default))
        }
        return ResolvedConfig(definition: definition, layers: layers)
    }

    /// Effective text of a topic configuration, without building the chain.
    package func value(_ definition: ConfigDefinition, overrides: [String: String]) -> String? {
        if let value = overrides[definition.name] { return value }
        for source in Self.settable {
            for synonym in definition.synonyms {
                if let value = values(source)[synonym.name] { return Self.scaled(value, by: synonym.scale) }
            }
        }
        return definition.defaultValue
    }

    /// Hours and minutes in milliseconds; a negative number means "no limit" in every unit.
    private static func scaled(_ value: String, by scale: Int64) -> String {
        guard scale > 1, let number = Int64(value), number >= 0 else { return value }
        let (product, overflow) = number.multipliedReportingOverflow(by: scale)
        return String(overflow ? Int64.max : product)
    }
}
