import MartletKafkaProtocol
public import MartletLogModel
import MartletTransport

extension Admin {
    /// Brokers, controller and id of the cluster.
    public func describeCluster() async throws -> ClusterDescription {
        try await engine.retrying("describing the cluster") {
            let response = try await engine.fetchMetadata(topics: [])
            return ClusterDescription(
                clusterID: response.clusterID ?? "",
                controller: response.controllerID >= 0 ? BrokerID(response.controllerID) : nil,
                brokers: response.brokers.map {
                    BrokerDescription(
                        id: BrokerID($0.nodeID), address: BrokerAddress(host: $0.host, port: Int($0.port)),
                        rack: $0.rack)
                }.sorted { $0.id < $1.id })
        }
    }

    /// The API versions of one broker, or of any if `broker` is `nil`.
    public func brokerVersions(_ broker: BrokerID? = nil) async throws -> BrokerVersions {
        let engine = engine
        return try await engine.retrying("asking for API versions") {
            if broker != nil { _ = try await engine.fetchMetadata(topics: []) }
            return try await engine.loop.reply { reply in
                let target = broker.map { RequestTarget.broker($0) } ?? .any
                engine.connection(to: target, purpose: .general) { result in
                    reply.resolve(with: result.map { Self.versions($0.connection.handshake) })
                }
            }
        }
    }

    private static func versions(_ response: ApiVersionsResponse) -> BrokerVersions {
        var versions = BrokerVersions(apis: [], finalizedFeatures: [:], supportedFeatures: [:])
        for api in response.apiKeys where api.minVersion <= api.maxVersion {
            let key = APIKey(rawValue: api.apiKey)
            versions.apis.append(
                APIVersionRange(
                    key: api.apiKey, name: key.versions == nil ? nil : key.name,
                    versions: api.minVersion...api.maxVersion))
        }
        versions.apis.sort { $0.key < $1.key }
        for feature in response.finalizedFeatures {
            versions.finalizedFeatures[feature.name] = feature.maxVersionLevel
        }
        for feature in response.supportedFeatures where feature.minVersion <= feature.maxVersion {
            versions.supportedFeatures[feature.name] = feature.minVersion...feature.maxVersion
        }
        return versions
    }

    /// Log directories of these brokers, of all if `nil`.
    public func describeLogDirectories(brokers: [BrokerID]? = nil) async throws -> [LogDirectoryDescription] {
        let ids: [BrokerID]
        if let brokers {
            _ = try await engine.retrying("describing log directories") {
                try await engine.fetchMetadata(topics: [])
            }
            ids = brokers
        } else {
            ids = try await describeCluster().brokers.map(\.id)
        }
        var directories: [LogDirectoryDescription] = []
        for id in ids {
            let response = try await engine.retrying("describing log directories of broker \(id)") {
                let response = try await engine.send(DescribeLogDirsRequest.self, to: .broker(id)) { _ in
                    var request = DescribeLogDirsRequest()
                    request.topics = nil
                    return request
                }.response
                if let error = problem(response.errorCode, "log directories of broker \(id)") { throw error }
                return response
            }
            for result in response.results { directories.append(Self.directory(result, broker: id)) }
        }
        return directories
    }

    private static func directory(
        _ result: DescribeLogDirsResponse.DescribeLogDirsResult, broker: BrokerID
    ) -> LogDirectoryDescription {
        var replicas: [LogDirectoryDescription.ReplicaSize] = []
        for topic in result.topics {
            for item in topic.partitions where !item.isFutureKey {
                replicas.append(
                    .init(
                        topicPartition: TopicPartition(topic.name, item.partitionIndex),
                        byteCount: item.partitionSize, offsetLag: item.offsetLag))
            }
        }
        return LogDirectoryDescription(
            broker: broker, path: result.logDir,
            problem: result.errorCode == 0 ? nil : ErrorCode(rawValue: result.errorCode),
            totalBytes: result.totalBytes >= 0 ? result.totalBytes : nil,
            usableBytes: result.usableBytes >= 0 ? result.usableBytes : nil,
            replicas: replicas.sorted { $0.topicPartition < $1.topicPartition })
    }
}
