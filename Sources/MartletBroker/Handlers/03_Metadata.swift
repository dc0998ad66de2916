internal import Logging
internal import MartletController
package import MartletKafkaProtocol
package import MartletLogModel
internal import MartletTransport
internal import NIOCore

/// Metadata (key 3). Versions: 10 adds topic ids, 12 asks by id, 9 and later flexible. With
/// `auto.create.topics.enable` a topic asked for by name is created where the client allows it.
package enum MetadataHandler {
    package static func handle(_ request: MetadataRequest, _ context: RequestContext) {
        let missing = topicsToCreate(request, context)
        guard !missing.isEmpty else {
            context.respond(response(request, context))
            return
        }
        let loop = context.loop
        let created = context.services.controllerChannel.autoCreateTopics(missing).hop(to: loop.eventLoop)
        // Whatever became of the creation, the answer says per topic what is true now.
        created.assumeIsolated().whenComplete { result in
            switch result {
            case .success:
                break
            case .failure(let error):
                loop.logger.error("automatic topic creation failed", metadata: ["cause": "\(error)"])
            }
            context.respond(response(request, context))
        }
    }

    private static func topicsToCreate(_ request: MetadataRequest, _ context: RequestContext) -> [String] {
        guard request.allowAutoTopicCreation, context.image.brokerConfiguration.autoCreateTopics,
            let topics = request.topics
        else { return [] }
        var names: [String] = []
        for topic in topics {
            guard let name = topic.name, TopicName.problem(name) == nil, context.image.topicID(named: name) == nil,
                !names.contains(name), !TopicName.isInternal(name) || name == TopicName.consumerOffsets
            else { continue }
            names.append(name)
        }
        return names
    }

    private static func response(_ request: MetadataRequest, _ context: RequestContext) -> MetadataResponse {
        let image = context.image
        var response = MetadataResponse()
        response.brokers = image.brokers.filter { !$0.isFenced }.map { broker in
            var entry = MetadataResponse.MetadataResponseBroker()
            let address = context.address(of: broker.id)
            entry.nodeID = broker.id.rawValue
            entry.host = address?.host ?? ""
            entry.port = Int32(address?.port ?? 0)
            entry.rack = broker.rack
            return entry
        }
        response.clusterID = image.clusterID?.description
        response.controllerID = context.controllerID
        if request.includeClusterAuthorizedOperations {
            response.clusterAuthorizedOperations = AuthorizedOperations.cluster
        }
        let operations = request.includeTopicAuthorizedOperations ? AuthorizedOperations.topic : Int32.min
        // Version 0 has no null: an empty list means all topics there (KIP-4).
        let everything = request.topics == nil || (context.version == 0 && request.topics?.isEmpty == true)
        if everything {
            response.topics = image.sortedTopics().map { topic($0, image, operations) }
            return response
        }
        for wanted in request.topics ?? [] {
            if wanted.topicID != .zero {
                if let found = image.topic(id: wanted.topicID) {
                    response.topics.append(topic(found, image, operations))
                } else {
                    var entry = MetadataResponse.MetadataResponseTopic()
                    entry.errorCode = ErrorCode.unknownTopicID.rawValue
                    entry.topicID = wanted.topicID
                    entry.name = context.version >= 12 ? nil : ""
                    response.topics.append(entry)
                }
                continue
            }
            let name = wanted.name ?? ""
            if let found = image.topic(named: name) {
                response.topics.append(topic(found, image, operations))
                continue
            }
            var entry = MetadataResponse.MetadataResponseTopic()
            entry.name = name
            entry.errorCode =
                (TopicName.problem(name) == nil ? ErrorCode.unknownTopicOrPartition : .invalidTopicException).rawValue
            response.topics.append(entry)
        }
        return response
    }

    private static func topic(
        _ topic: TopicImage, _ image: MetadataImage, _ operations: Int32
    ) -> MetadataResponse.MetadataResponseTopic {
        var entry = MetadataResponse.MetadataResponseTopic()
        entry.topicAuthorizedOperations = operations
        entry.name = topic.name
        entry.topicID = topic.id
        entry.isInternal = topic.isInternal
        entry.partitions.reserveCapacity(topic.partitions.count)
        for (index, partition) in topic.partitions.enumerated() {
            var part = MetadataResponse.MetadataResponsePartition()
            part.partitionIndex = Int32(index)
            part.leaderID = partition.leader?.rawValue ?? -1
            part.leaderEpoch = partition.leaderEpoch.rawValue
            part.replicaNodes = partition.replicas.map(\.rawValue)
            part.isrNodes = partition.isr.map(\.rawValue)
            part.offlineReplicas = partition.replicas.filter { image.broker($0)?.isFenced ?? true }.map(\.rawValue)
            if partition.leader == nil { part.errorCode = ErrorCode.leaderNotAvailable.rawValue }
            entry.partitions.append(part)
        }
        return entry
    }
}

extension RequestContext {
    /// The node of the active controller; -1 if none is known.
    var controllerID: Int32 { services.controllerChannel.leaderID?.rawValue ?? -1 }

    /// Host and port a client of this connection should use for a broker. Without `advertised.listeners` this
    /// broker advertises the address the client used to reach it, so that a client behind any network path
    /// finds its way back.
    package func address(of broker: BrokerID) -> (host: String, port: Int)? {
        if broker == services.settings.nodeID {
            if let advertised = services.settings.advertised { return (advertised.host, advertised.port) }
            guard let local = connection.localAddress, let port = local.port else { return nil }
            return (local.ipAddress ?? "localhost", port)
        }
        guard let endpoint = image.broker(broker)?.endpoints.first else { return nil }
        return (endpoint.host, Int(endpoint.port))
    }
}
