import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// Configurations of a topic to be created: legal, honoured, without contradiction.
    borrowing func validatedOverrides(
        _ configs: [(name: String, value: String?)], topic: String
    ) throws(Refusal) -> [String: String] {
        var overrides: [String: String] = [:]
        for config in configs {
            guard let value = config.value else {
                throw .init(
                    .invalidConfig,
                    "Configuration \(config.name) has no value; leave it out to get the default")
            }
            guard overrides[config.name] == nil else {
                throw .init(.invalidConfig, "Configuration \(config.name) is given twice")
            }
            overrides[config.name] = try checkedTopicValue(config.name, value)
        }
        try checkConflicts(overrides)
        return overrides
    }

    private borrowing func checkedTopicValue(_ name: String, _ value: String) throws(Refusal) -> String {
        guard let definition = TopicConfigTable.table[name] else {
            throw .init(.invalidConfig, TopicConfigTable.problem(unknown: name))
        }
        if let problem = definition.problem(with: value) { throw .init(.invalidConfig, problem) }
        return definition.normalized(value)
    }

    private borrowing func checkConflicts(_ overrides: [String: String]) throws(Refusal) {
        let values = state.brokerValues
        let conflict = TopicConfigTable.conflict { name in
            TopicConfigTable.table[name].flatMap { values.value($0, overrides: overrides) }
        }
        if let conflict { throw .init(.invalidConfig, conflict) }
    }

    /// AlterConfigs (legacy): the values given replace all values of the resource.
    package borrowing func decide(_ request: AlterConfigsRequest) -> Decision<AlterConfigsResponse> {
        var decision = Decision(response: AlterConfigsResponse())
        let duplicates = Self.repeated(
            request.resources.map { ResourceKey($0.resourceType, $0.resourceName) })
        var seen: Set<ResourceKey> = []
        for resource in request.resources {
            let key = ResourceKey(resource.resourceType, resource.resourceName)
            guard seen.insert(key).inserted else { continue }
            var result = AlterConfigsResponse.AlterConfigsResourceResponse()
            result.resourceType = resource.resourceType
            result.resourceName = resource.resourceName
            do throws(Refusal) {
                if duplicates.contains(key) { throw Self.twice }
                let target = try configurable(key)
                var values: [String: String] = [:]
                for config in resource.configs {
                    guard let value = config.value else {
                        throw .init(
                            .invalidConfig,
                            "Configuration \(config.name) has no value; leave it out to reset it")
                    }
                    guard values[config.name] == nil else {
                        throw .init(.invalidRequest, "Configuration \(config.name) is given twice")
                    }
                    values[config.name] = try checkedValue(target, config.name, value)
                }
                let records = try change(target, to: values)
                if !request.validateOnly { decision.records.append(contentsOf: records) }
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
            }
            decision.response.responses.append(result)
        }
        return decision
    }

    /// IncrementalAlterConfigs (KIP-339): SET, DELETE, and APPEND, SUBTRACT for lists.
    package borrowing func decide(
        _ request: IncrementalAlterConfigsRequest
    ) -> Decision<IncrementalAlterConfigsResponse> {
        var decision = Decision(response: IncrementalAlterConfigsResponse())
        let duplicates = Self.repeated(
            request.resources.map { ResourceKey($0.resourceType, $0.resourceName) })
        var seen: Set<ResourceKey> = []
        for resource in request.resources {
            let key = ResourceKey(resource.resourceType, resource.resourceName)
            guard seen.insert(key).inserted else { continue }
            var result = IncrementalAlterConfigsResponse.AlterConfigsResourceResponse()
            result.resourceType = resource.resourceType
            result.resourceName = resource.resourceName
            do throws(Refusal) {
                if duplicates.contains(key) { throw Self.twice }
                let target = try configurable(key)
                var values = state.configs[target] ?? [:]
                var names: Set<String> = []
                for config in resource.configs {
                    guard names.insert(config.name).inserted else {
                        throw .init(.invalidRequest, "Configuration \(config.name) is given twice")
                    }
                    try apply(config, to: &values, of: target)
                }
                let records = try change(target, to: values)
                if !request.validateOnly { decision.records.append(contentsOf: records) }
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
            }
            decision.response.responses.append(result)
        }
        return decision
    }

    private borrowing func apply(
        _ config: IncrementalAlterConfigsRequest.AlterableConfig, to values: inout [String: String],
        of target: ConfigResource
    ) throws(Refusal) {
        let name = config.name
        guard let operation = ConfigOperation(rawValue: config.configOperation) else {
            throw .init(
                .invalidRequest,
                "Operation \(config.configOperation) on \(name) is unknown; 0 sets, 1 deletes, 2 appends, 3 subtracts"
            )
        }
        if operation == .delete {
            // A value left over from another release must remain deletable, so unknown names pass.
            guard values[name] != nil || definition(target, name) != nil else {
                throw .init(.invalidConfig, unknown(target, name))
            }
            values[name] = nil
            return
        }
        guard let value = config.value else {
            throw .init(.invalidConfig, "Configuration \(name) has no value; delete it to get the default")
        }
        if operation == .set {
            values[name] = try checkedValue(target, name, value)
            return
        }
        guard let definition = definition(target, name) else {
            throw .init(.invalidConfig, unknown(target, name))
        }
        guard definition.type == .list else {
            throw .init(
                .invalidConfig,
                "Configuration \(name) is not a list: append and subtract do not apply, set it")
        }
        var items = ConfigText.items(values[name] ?? definition.defaultValue ?? "")
        let changed = ConfigText.items(value)
        if operation == .append {
            items.append(contentsOf: changed.filter { !items.contains($0) })
        } else {
            items.removeAll { changed.contains($0) }
        }
        values[name] = try checkedValue(target, name, items.joined(separator: ","))
    }

    // MARK: What both forms share

    struct ResourceKey: Hashable {
        let type: Int8
        let name: String
        init(_ type: Int8, _ name: String) {
            self.type = type
            self.name = name
        }
    }

    enum ConfigOperation: Int8 {
        case set = 0
        case delete = 1
        case append = 2
        case subtract = 3
    }

    private static var twice: Refusal { .init(.invalidRequest, "The resource appears twice in the request") }

    private static func repeated(_ keys: [ResourceKey]) -> Set<ResourceKey> {
        var seen: Set<ResourceKey> = []
        return Set(keys.filter { !seen.insert($0).inserted })
    }

    /// The resource of a request that changes configurations, or why it cannot be changed.
    borrowing func configurable(_ key: ResourceKey) throws(Refusal) -> ConfigResource {
        guard let resource = ConfigResource(wireType: key.type, name: key.name) else {
            throw .init(.invalidRequest, Self.unsupportedResource(key))
        }
        switch resource {
        case .topic(let name):
            if let problem = TopicName.problem(name) { throw .init(.invalidTopicException, problem) }
            guard state.topicIDs[name] != nil else {
                throw .init(.unknownTopicOrPartition, "There is no topic '\(name)'")
            }
        case .broker(let id):
            guard let id else { return resource }
            guard state.broker(id) != nil || id == state.localBroker else {
                throw .init(
                    .invalidRequest, "Broker \(id) is not registered; an empty name means all brokers")
            }
        case .group(let id):
            guard !id.isEmpty else { throw .init(.invalidRequest, "The name of the group is empty") }
            guard id.utf8.count <= ControllerLimits.groupIDBytesLimit else {
                throw .init(.invalidRequest, "The name of the group is longer than \(ControllerLimits.groupIDBytesLimit) bytes")
            }
            guard state.groupValues[id] != nil || state.groupValues.count < ControllerLimits.configuredGroupCountLimit
            else {
                throw .init(
                    .policyViolation,
                    "\(ControllerLimits.configuredGroupCountLimit) groups have configurations of their own, the limit; use the broker's group.share.* where many groups want the same"
                )
            }
        }
        return resource
    }

    static func unsupportedResource(_ key: ResourceKey) -> String {
        switch key.type {
        case 4: "'\(ConfigText.shortened(key.name))' is not a broker id; an empty name means all brokers"
        case 8: "Log levels cannot be changed while the broker runs; use --log-level at start"
        case 16: "Client metrics are not collected, so they have no configuration"
        case _: "Resource type \(key.type) is unknown; 2 is a topic, 4 a broker, 32 a group"
        }
    }

    private borrowing func definition(_ target: ConfigResource, _ name: String) -> ConfigDefinition? {
        switch target {
        case .topic: TopicConfigTable.table[name]
        case .broker: BrokerConfigTable.table[name]
        case .group: GroupConfigTable.table[name]
        }
    }

    private borrowing func unknown(_ target: ConfigResource, _ name: String) -> String {
        switch target {
        case .topic: TopicConfigTable.problem(unknown: name)
        case .broker: "Unknown broker configuration '\(ConfigText.shortened(name))'"
        case .group: "Unknown group configuration '\(ConfigText.shortened(name))'"
        }
    }

    private borrowing func checkedValue(
        _ target: ConfigResource, _ name: String, _ value: String
    ) throws(Refusal) -> String {
        switch target {
        case .topic:
            return try checkedTopicValue(name, value)
        case .broker:
            guard let definition = BrokerConfigTable.table[name] else {
                throw .init(.invalidConfig, unknown(target, name))
            }
            guard !definition.isReadOnly else {
                throw .init(
                    .invalidRequest,
                    "Configuration \(name) cannot be changed while the broker runs; set it in its configuration and restart it"
                )
            }
            if let problem = definition.problem(with: value) { throw .init(.invalidConfig, problem) }
            return definition.normalized(value)
        case .group:
            guard let definition = GroupConfigTable.table[name] else {
                throw .init(.invalidConfig, unknown(target, name))
            }
            if let problem = GroupConfigTable.problem(definition, value, state.brokerConfiguration.share) {
                throw .init(.invalidConfig, problem)
            }
            return definition.normalized(value)
        }
    }

    /// Records that bring the resource's values from what they are to `values`, in the order of the names.
    private borrowing func change(
        _ target: ConfigResource, to values: [String: String]
    ) throws(Refusal) -> [MetadataRecord] {
        switch target {
        case .topic: try checkConflicts(values)
        case .broker, .group: break
        }
        let current = state.configs[target] ?? [:]
        var records: [MetadataRecord] = Set(current.keys).union(values.keys).sorted().compactMap { name in
            current[name] == values[name] ? nil : .config(resource: target, name: name, value: values[name])
        }
        if current[TopicConfigName.minInsyncReplicas] != values[TopicConfigName.minInsyncReplicas],
            !suspended.contains(.eligibleReset)
        {
            records += eligibleReset(target)
        }
        return records
    }

    /// Who is eligible was counted against the old minimum of the in-sync set; with another, a leader may commit
    /// without them (KIP-966). Partitions with nobody in sync commit nothing: they keep what they can be led by.
    private borrowing func eligibleReset(_ target: ConfigResource) -> [MetadataRecord] {
        let ids: [UniversalID]
        switch target {
        case .topic(let name): ids = state.topicIDs[name].map { [$0] } ?? []
        case .broker: ids = state.topics.keys.sorted()
        case .group: ids = []
        }
        return ids.flatMap { id in
            (state.topics[id]?.eligiblePositions ?? []).compactMap { position in
                guard let partition = state.topics[id]?.partitions[position], !partition.isr.isEmpty,
                    !partition.eligibleLeaderReplicas.isEmpty
                else { return nil }
                var record = PartitionChangeRecord()
                record.topicID = id
                record.partitionID = Int32(position)
                record.eligibleLeaderReplicas = []
                return .partitionChange(record)
            }
        }
    }
}
