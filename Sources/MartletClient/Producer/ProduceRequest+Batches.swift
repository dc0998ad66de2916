import MartletKafkaProtocol
import MartletLogModel

extension ProduceRequest {
    /// Last version that names topics; later ones carry ids (KIP-516).
    static let lastNameVersion: Int16 = 12

    /// A request for finished batches, at most one of each partition.
    init(
        _ batches: [PendingBatch], version: Int16, configuration: ProducerConfiguration, metadata: ClusterMetadata
    ) {
        self.init()
        transactionalID = configuration.transactionalID
        switch configuration.acknowledgement {
        case .none: acks = 0
        case .leader: acks = 1
        case .all: acks = -1
        }
        timeoutMs = configuration.client.requestTimeout.wireMilliseconds
        var places: [String: Int] = [:]
        for batch in batches {
            let partition = batch.queue.topicPartition
            var data = PartitionProduceData()
            data.index = partition.partition.rawValue
            data.records = batch.encoded
            if let place = places[partition.topic] {
                topicData[place].partitionData.append(data)
            } else {
                var topic = TopicProduceData()
                topic.name = partition.topic
                if version > Self.lastNameVersion, let id = metadata.topics[partition.topic]?.id { topic.topicID = id }
                topic.partitionData = [data]
                places[partition.topic] = topicData.count
                topicData.append(topic)
            }
        }
    }
}
