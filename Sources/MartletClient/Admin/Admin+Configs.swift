import MartletKafkaProtocol
import MartletLogModel

extension ConfigResource {
    // Numbers of KIP-133, KIP-226 and KIP-1043.
    private static let topicType: Int8 = 2
    private static let brokerType: Int8 = 4
    private static let groupType: Int8 = 32

    var wire: (type: Int8, name: String) {
        switch self {
        case .topic(let name): (Self.topicType, name)
        case .broker(let id): (Self.brokerType, "\(id)")
        case .allBrokers: (Self.brokerType, "")
        case .group(let name): (Self.groupType, name)
        }
    }

    init?(type: Int8, name: String) {
        switch type {
        case Self.topicType: self = .topic(name)
        case Self.groupType: self = .group(name)
        case Self.brokerType where name.isEmpty: self = .allBrokers
        case Self.brokerType:
            guard let id = Int32(name) else { return nil }
            self = .broker(BrokerID(id))
        case _: return nil
        }
    }
}

extension Admin {
    /// Splits resources by who must be asked: a broker's settings are answered by that broker alone.
    private func byTarget(_ resources: some Sequence<ConfigResource>) -> [RequestTarget: [ConfigResource]] {
        Dictionary(grouping: resources) { resource in
            if case .broker(let id) = resource { .broker(id) } else { .any }
        }
    }

    /// All settings of these resources, sorted by name.
    public func describeConfigs(
        _ resources: [ConfigResource], includeDocumentation: Bool = false
    ) async throws -> [ConfigResource: Result<[ConfigEntry], ClientError>] {
        var results: [ConfigResource: Result<[ConfigEntry], ClientError>] = [:]
        for (target, part) in byTarget(resources) {
            let response = try await engine.retrying("describing settings") {
                if target != .any { _ = try await engine.fetchMetadata(topics: []) }
                return try await engine.send(DescribeConfigsRequest.self, to: target) { version in
                    var request = DescribeConfigsRequest()
                    request.includeDocumentation = includeDocumentation && version >= 3
                    request.resources = part.map { resource in
                        var entry = DescribeConfigsRequest.DescribeConfigsResource()
                        (entry.resourceType, entry.resourceName) = resource.wire
                        entry.configurationKeys = nil
                        return entry
                    }
                    return request
                }.response
            }
            for item in response.results {
                guard let resource = ConfigResource(type: item.resourceType, name: item.resourceName) else {
                    continue
                }
                if let error = problem(item.errorCode, "settings of \(resource)", item.errorMessage) {
                    results[resource] = .failure(error)
                } else {
                    results[resource] = .success(
                        item.configs.map(Self.entry).sorted { $0.name < $1.name })
                }
            }
        }
        return results
    }

    private static func entry(_ item: DescribeConfigsResponse.DescribeConfigsResourceResult) -> ConfigEntry {
        ConfigEntry(
            name: item.name, value: item.value,
            source: ConfigEntry.Source(rawValue: max(0, item.configSource)),
            isReadOnly: item.readOnly, isSensitive: item.isSensitive, documentation: item.documentation)
    }

    /// All settings of one resource, sorted by name.
    public func describeConfig(_ resource: ConfigResource) async throws -> [ConfigEntry] {
        try await describeConfigs([resource]).single(resource).get()
    }

    /// Changes single settings and leaves the others alone (KIP-339).
    public func alterConfigs(
        _ changes: [ConfigResource: [ConfigChange]], validateOnly: Bool = false
    ) async throws -> [ConfigResource: Result<Void, ClientError>] {
        var results: [ConfigResource: Result<Void, ClientError>] = [:]
        for (target, part) in byTarget(changes.keys) {
            let response = try await engine.retrying("altering settings") {
                if target != .any { _ = try await engine.fetchMetadata(topics: []) }
                let answer = try await engine.send(IncrementalAlterConfigsRequest.self, to: target) { _ in
                    var request = IncrementalAlterConfigsRequest()
                    request.validateOnly = validateOnly
                    request.resources = part.map { resource in
                        var entry = IncrementalAlterConfigsRequest.AlterConfigsResource()
                        (entry.resourceType, entry.resourceName) = resource.wire
                        entry.configs = (changes[resource] ?? []).map(Self.change)
                        return entry
                    }
                    return request
                }.response
                try refuseWrongController(answer.responses.map(\.errorCode))
                return answer
            }
            for item in response.responses {
                guard let resource = ConfigResource(type: item.resourceType, name: item.resourceName) else {
                    continue
                }
                let error = problem(item.errorCode, "settings of \(resource)", item.errorMessage)
                results[resource] = error.map { .failure($0) } ?? .success(())
            }
        }
        return results
    }

    private static func change(_ change: ConfigChange) -> IncrementalAlterConfigsRequest.AlterableConfig {
        var entry = IncrementalAlterConfigsRequest.AlterableConfig()
        switch change {
        case .set(let name, to: let value):
            (entry.name, entry.configOperation, entry.value) = (name, 0, value)
        case .delete(let name): (entry.name, entry.configOperation, entry.value) = (name, 1, nil)
        case .append(let name, let value): (entry.name, entry.configOperation, entry.value) = (name, 2, value)
        case .subtract(let name, let value):
            (entry.name, entry.configOperation, entry.value) = (name, 3, value)
        }
        return entry
    }

    /// Changes single settings of one resource.
    public func alterConfig(_ resource: ConfigResource, _ changes: [ConfigChange]) async throws {
        try await alterConfigs([resource: changes]).single(resource).get()
    }
}
