import MartletKafkaProtocol
import MartletLogModel

/// ShareFetch and ShareAcknowledge as a member sends them (KIP-932).
enum ShareRequests {
    /// What is said about records, by partition, in order.
    typealias Batches = [SharePlace: [ShareRun]]

    static func fetch(
        _ plan: ShareSession.Plan, _ batches: Batches, _ memberID: String,
        _ configuration: ShareConsumerConfiguration
    ) -> ShareFetchRequest {
        var request = ShareFetchRequest()
        request.groupID = configuration.groupID
        request.memberID = memberID
        request.shareSessionEpoch = plan.epoch
        request.maxWaitMs = configuration.fetchMaximumWait.wireMilliseconds
        request.minBytes = Int32(clamping: configuration.fetchMinimumBytes)
        request.maxBytes = Int32(clamping: configuration.fetchMaximumBytes)
        request.maxRecords = Int32(clamping: configuration.maximumRecords)
        request.batchSize = Int32(clamping: configuration.maximumRecords)
        request.shareAcquireMode = configuration.acquireMode.wireValue
        for (id, places) in byTopic(Set(plan.added).union(batches.keys)) {
            var topic = ShareFetchRequest.FetchTopic()
            topic.topicID = id
            topic.partitions = places.map { place in
                var item = ShareFetchRequest.FetchPartition()
                item.partitionIndex = place.partition
                item.acknowledgementBatches = (batches[place] ?? []).map { run in
                    var wire = ShareFetchRequest.AcknowledgementBatch()
                    wire.firstOffset = run.first
                    wire.lastOffset = run.last
                    wire.acknowledgeTypes = [run.word.rawValue]
                    return wire
                }
                return item
            }
            request.topics.append(topic)
        }
        for (id, places) in byTopic(plan.forgotten) {
            var topic = ShareFetchRequest.ForgottenTopic()
            topic.topicID = id
            topic.partitions = places.map(\.partition)
            request.forgottenTopicsData.append(topic)
        }
        return request
    }

    static func acknowledge(
        _ group: String, _ memberID: String, epoch: Int32, _ batches: Batches, isRenewal: Bool
    ) -> ShareAcknowledgeRequest {
        var request = ShareAcknowledgeRequest()
        request.groupID = group
        request.memberID = memberID
        request.shareSessionEpoch = epoch
        request.isRenewAck = isRenewal
        for (id, places) in byTopic(batches.keys) {
            var topic = ShareAcknowledgeRequest.AcknowledgeTopic()
            topic.topicID = id
            topic.partitions = places.map { place in
                var item = ShareAcknowledgeRequest.AcknowledgePartition()
                item.partitionIndex = place.partition
                item.acknowledgementBatches = (batches[place] ?? []).map { run in
                    var wire = ShareAcknowledgeRequest.AcknowledgementBatch()
                    wire.firstOffset = run.first
                    wire.lastOffset = run.last
                    wire.acknowledgeTypes = [run.word.rawValue]
                    return wire
                }
                return item
            }
            request.topics.append(topic)
        }
        return request
    }

    private static func byTopic(_ places: some Sequence<SharePlace>) -> [(UniversalID, [SharePlace])] {
        Dictionary(grouping: places, by: \.topicID).map { ($0.key, $0.value.sorted()) }.sorted { $0.0 < $1.0 }
    }
}
