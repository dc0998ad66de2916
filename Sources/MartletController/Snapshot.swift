import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

extension MetadataImage {
    /// The image as records in canonical order: equal images give equal bytes, on every machine and in every
    /// run. Loading a snapshot is replaying these records into an empty core.
    ///
    /// Order: features with `metadata.version` first, cluster id, brokers by id, configurations of brokers
    /// and groups, then per topic in the order of the names the topic, its configurations and its partitions by
    /// index, quotas, credentials and access control entries, and last the producer ids.
    package func snapshotRecords() -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        records.reserveCapacity(features.count + brokers.count + topicCount * 2 + partitionCount + 2)
        let ordered =
            features.filter { $0.name == Features.metadataVersion }
            + features.filter { $0.name != Features.metadataVersion }
        for feature in ordered {
            var record = FeatureLevelRecord()
            record.name = feature.name
            record.featureLevel = feature.level
            records.append(.featureLevel(record))
        }
        if let clusterID {
            records.append(
                .config(
                    resource: .broker(nil), name: ClusterIdentity.configName, value: clusterID.description))
        }
        for broker in brokers { records.append(.registerBroker(broker.record)) }
        let brokerResources = configs.keys.filter {
            switch $0 {
            case .broker, .group: true
            case .topic: false
            }
        }
        for resource in brokerResources.sorted() { appendConfigs(of: resource, to: &records) }
        for topic in sortedTopics() {
            var record = TopicRecord()
            record.name = topic.name
            record.topicID = topic.id
            records.append(.topic(record))
            appendConfigs(of: .topic(topic.name), to: &records)
            for (index, partition) in topic.partitions.enumerated() {
                records.append(.partition(partition.record(topicID: topic.id, index: index)))
            }
        }
        records += quotaRecords()
        records += accessRecords()
        if nextProducerID > 0 {
            var record = ProducerIdsRecord()
            record.brokerID = -1
            record.brokerEpoch = -1
            record.nextProducerID = nextProducerID
            records.append(.producerIDs(record))
        }
        return records
    }

    private func appendConfigs(of resource: ConfigResource, to records: inout [MetadataRecord]) {
        guard let values = configs[resource] else { return }
        for name in values.keys.sorted() {
            records.append(.config(resource: resource, name: name, value: values[name]))
        }
    }
}

extension ClusterController {
    /// See ``MetadataImage/snapshotRecords()``; of everything replayed so far.
    ///
    /// While a transaction of records is open, there is no offset that a snapshot could stand for.
    package borrowing func snapshotRecords() -> [MetadataRecord] {
        let isOpen = isInTransaction
        precondition(!isOpen, "a snapshot in the middle of a transaction of records")
        return state.snapshotRecords()
    }
}
