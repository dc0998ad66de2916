internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel

/// ListConfigResources (key 74): names of what has configurations. Version 0 lists client metrics alone (KIP-714),
/// of which there are none here; 1 takes types (KIP-1142).
package enum ListConfigResourcesHandler {
    private enum ResourceType {
        static let topic: Int8 = 2
        static let broker: Int8 = 4
        static let group: Int8 = 32
        static let known: Set<Int8> = [topic, broker, 8, 16, group]
    }

    package static func handle(_ request: ListConfigResourcesRequest, _ context: RequestContext) {
        var response = ListConfigResourcesResponse()
        guard context.version >= 1 else {
            context.respond(response)
            return
        }
        guard request.resourceTypes.allSatisfy({ ResourceType.known.contains($0) }) else {
            response.errorCode = ErrorCode.unsupportedVersion.rawValue
            context.respond(response)
            return
        }
        func wants(_ type: Int8) -> Bool {
            request.resourceTypes.isEmpty || request.resourceTypes.contains(type)
        }
        func add(_ name: String, _ type: Int8) {
            var resource = ListConfigResourcesResponse.ConfigResource()
            resource.resourceName = name
            resource.resourceType = type
            response.configResources.append(resource)
        }
        if wants(ResourceType.topic) {
            for topic in context.image.sortedTopics() { add(topic.name, ResourceType.topic) }
        }
        if wants(ResourceType.broker) {
            for broker in context.image.brokers { add("\(broker.id)", ResourceType.broker) }
        }
        if wants(ResourceType.group) {
            for group in context.image.configuredGroups { add(group, ResourceType.group) }
        }
        context.respond(response)
    }
}
