internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// OffsetCommit (key 8). Versions: 2-4 carry a retention time, 6 the leader epoch (KIP-320), 7 static members
/// (KIP-345), 9 reports an unknown group as such (KIP-848), 10 names topics by id (KIP-848).
package enum OffsetCommitHandler {
    package static func handle(_ request: OffsetCommitRequest, _ context: RequestContext) {
        let byID = context.version >= 10
        var known = request
        known.topics = []
        /// Per topic of the request its refused partitions, in order; the rest is the coordinator's to answer.
        var refused: [[Int32: ErrorCode]] = []
        for topic in request.topics {
            var codes: [Int32: ErrorCode] = [:]
            let image = byID ? context.image.topic(id: topic.topicID) : context.image.topic(named: topic.name)
            var accepted = topic
            accepted.partitions = []
            for partition in topic.partitions {
                if let image, image.partition(PartitionIndex(partition.partitionIndex)) != nil {
                    accepted.partitions.append(partition)
                } else {
                    codes[partition.partitionIndex] =
                        byID && image == nil ? .unknownTopicID : .unknownTopicOrPartition
                }
            }
            if let image, !accepted.partitions.isEmpty {
                accepted.name = image.name
                accepted.topicID = image.id
                known.topics.append(accepted)
            }
            refused.append(codes)
        }
        if known.topics.isEmpty, !request.topics.isEmpty {
            context.respond(merged(request, refused, OffsetCommitResponse()))
            return
        }
        let refusals = refused
        let future = context.coordinate(
            group: request.groupID, .offsetCommit(known, reportsMissingGroup: context.version >= 9))
        context.respond(
            when: future.map { response -> OffsetCommitResponse in
                guard case .offsetCommit(let answer) = response else { return response.mismatch() }
                return merged(request, refusals, answer)
            })
    }

    /// The answer in the order of the request.
    private static func merged(
        _ request: OffsetCommitRequest, _ refused: [[Int32: ErrorCode]], _ answer: OffsetCommitResponse
    ) -> OffsetCommitResponse {
        var merged = OffsetCommitResponse()
        var answered = answer.topics[...]
        for (topic, codes) in zip(request.topics, refused) {
            var entry = OffsetCommitResponse.OffsetCommitResponseTopic()
            entry.name = topic.name
            entry.topicID = topic.topicID
            var results: ArraySlice<OffsetCommitResponse.OffsetCommitResponsePartition> = []
            if topic.partitions.contains(where: { codes[$0.partitionIndex] == nil }), let next = answered.popFirst() {
                results = next.partitions[...]
            }
            for partition in topic.partitions {
                var result = OffsetCommitResponse.OffsetCommitResponsePartition()
                result.partitionIndex = partition.partitionIndex
                if let code = codes[partition.partitionIndex] {
                    result.errorCode = code.rawValue
                } else if let given = results.popFirst() {
                    result.errorCode = given.errorCode
                }
                entry.partitions.append(result)
            }
            merged.topics.append(entry)
        }
        return merged
    }
}
