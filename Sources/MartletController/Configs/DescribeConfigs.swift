import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

extension ConfigSource {
    /// On the wire KIP-226 numbers the layers exactly as the enum does.
    package var wireValue: Int8 { rawValue }
}

extension MetadataImage {
    /// DescribeConfigs of topics and brokers: effective value, where it comes from, the chain behind it, type
    /// and documentation (KIP-133, KIP-226, KIP-569). Reads only, so any broker answers from its image.
    package func describe(_ request: DescribeConfigsRequest) -> DescribeConfigsResponse {
        var response = DescribeConfigsResponse()
        for resource in request.resources {
            var result = DescribeConfigsResponse.DescribeConfigsResult()
            result.resourceType = resource.resourceType
            result.resourceName = resource.resourceName
            do throws(Refusal) {
                let rows = try resolved(resource)
                result.configs = rows.map {
                    Self.row(
                        $0.config, isReadOnly: $0.isReadOnly, synonyms: request.includeSynonyms,
                        documentation: request.includeDocumentation)
                }
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
            }
            response.results.append(result)
        }
        return response
    }

    private func resolved(
        _ resource: DescribeConfigsRequest.DescribeConfigsResource
    ) throws(Refusal) -> [(config: ResolvedConfig, isReadOnly: Bool)] {
        guard let target = ConfigResource(wireType: resource.resourceType, name: resource.resourceName) else {
            throw .init(
                .invalidRequest,
                ClusterController.unsupportedResource(.init(resource.resourceType, resource.resourceName)))
        }
        let wanted = resource.configurationKeys.map { Set($0) }
        switch target {
        case .topic(let name):
            if let problem = TopicName.problem(name) { throw .init(.invalidTopicException, problem) }
            guard let topic = topic(named: name) else {
                throw .init(.unknownTopicOrPartition, "There is no topic '\(name)'")
            }
            return TopicConfigTable.table.definitions.compactMap { definition in
                let isSet = topic.overrides[definition.name] != nil
                guard wanted?.contains(definition.name) ?? (!definition.isHidden || isSet) else { return nil }
                return (brokerValues.resolve(definition, overrides: topic.overrides), false)
            }
        case .group(let id):
            guard !id.isEmpty else { throw .init(.invalidRequest, "The name of the group is empty") }
            let overrides = groupValues[id] ?? [:]
            return GroupConfigTable.table.definitions.compactMap { definition in
                guard wanted?.contains(definition.name) ?? true else { return nil }
                return (brokerValues.resolve(definition, overrides: overrides, as: .group), false)
            }
        case .broker(nil):
            // The cluster-wide default shows only what is set there, as Kafka does.
            return BrokerConfigTable.table.definitions.compactMap { definition in
                guard let value = brokerValues.clusterDefault[definition.name],
                    wanted?.contains(definition.name) ?? true
                else { return nil }
                let layer = ConfigLayer(name: definition.name, value: value, source: .dynamicClusterDefault)
                return (ResolvedConfig(definition: definition, layers: [layer]), false)
            }
        case .broker(.some(let id)):
            guard id == localBroker else {
                throw .init(
                    .invalidRequest,
                    "This is broker \(localBroker); ask broker \(id) for its own configuration")
            }
            return BrokerConfigTable.table.definitions.compactMap { definition in
                guard wanted?.contains(definition.name) ?? !definition.isHidden else { return nil }
                return (brokerValues.resolve(definition), definition.isReadOnly)
            }
        }
    }

    private static func row(
        _ config: ResolvedConfig, isReadOnly: Bool, synonyms: Bool, documentation: Bool
    ) -> DescribeConfigsResponse.DescribeConfigsResourceResult {
        let definition = config.definition
        var row = DescribeConfigsResponse.DescribeConfigsResourceResult()
        row.name = definition.name
        row.value = definition.isSensitive ? nil : config.value
        row.readOnly = isReadOnly
        row.configSource = config.source.wireValue
        row.isSensitive = definition.isSensitive
        row.configType = definition.type.rawValue
        row.documentation = documentation ? definition.documentation : nil
        row.synonyms =
            synonyms
            ? config.layers.map { layer in
                var synonym = DescribeConfigsResponse.DescribeConfigsSynonym()
                synonym.name = layer.name
                synonym.value = definition.isSensitive ? nil : layer.value
                synonym.source = layer.source.wireValue
                return synonym
            } : []
        return row
    }
}
