internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// OffsetFetch (key 9). Versions: 2 all topics and a top-level error, 7 require stable (KIP-447), 8 several groups
/// (KIP-709), 10 topics by id (KIP-848).
package enum OffsetFetchHandler {
    package static func handle(_ request: OffsetFetchRequest, _ context: RequestContext) {
        if context.version >= 8 {
            let futures = request.groups.map { fetch($0, requireStable: request.requireStable, context) }
            let all = EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop)
            context.respond(
                when: all.map { groups in
                    var response = OffsetFetchResponse()
                    response.groups = groups
                    return response
                })
            return
        }
        var group = OffsetFetchRequest.OffsetFetchRequestGroup()
        group.groupID = request.groupID
        group.topics = request.topics?.map {
            var topic = OffsetFetchRequest.OffsetFetchRequestTopics()
            topic.name = $0.name
            topic.partitionIndexes = $0.partitionIndexes
            return topic
        }
        let version = context.version
        context.respond(
            when: fetch(group, requireStable: request.requireStable, context).map {
                single($0, request: request, version: version)
            })
    }

    private static func fetch(
        _ group: OffsetFetchRequest.OffsetFetchRequestGroup, requireStable: Bool, _ context: RequestContext
    ) -> EventLoopFuture<OffsetFetchResponse.OffsetFetchResponseGroup> {
        let image = context.image
        let byID = context.version >= 10
        var resolved = group
        var unknown: [OffsetFetchResponse.OffsetFetchResponseTopics] = []
        if byID, let topics = group.topics {
            var known: [OffsetFetchRequest.OffsetFetchRequestTopics] = []
            for var topic in topics {
                if let name = image.topicName(id: topic.topicID) {
                    topic.name = name
                    known.append(topic)
                } else {
                    unknown.append(unknownTopic(topic))
                }
            }
            resolved.topics = known
        }
        let missing = unknown
        return context.coordinate(group: group.groupID, .offsetFetch(resolved, requireStable: requireStable)).map {
            response in
            guard case .offsetFetch(var answer) = response else { return response.mismatch() }
            if byID {
                for index in answer.topics.indices where answer.topics[index].topicID == .zero {
                    answer.topics[index].topicID = image.topicID(named: answer.topics[index].name) ?? .zero
                }
                // Offsets of a topic that is being deleted have no id to be named by.
                answer.topics.removeAll { image.topicName(id: $0.topicID) == nil }
                if answer.errorCode == 0 { answer.topics += missing }
            }
            return answer
        }
    }

    private static func unknownTopic(
        _ topic: OffsetFetchRequest.OffsetFetchRequestTopics
    ) -> OffsetFetchResponse.OffsetFetchResponseTopics {
        var entry = OffsetFetchResponse.OffsetFetchResponseTopics()
        entry.topicID = topic.topicID
        entry.partitions = topic.partitionIndexes.map {
            var partition = OffsetFetchResponse.OffsetFetchResponsePartitions()
            partition.partitionIndex = $0
            partition.committedOffset = -1
            partition.errorCode = ErrorCode.unknownTopicID.rawValue
            return partition
        }
        return entry
    }

    /// The form before version 8; version 1 has no place for an error but the partitions.
    private static func single(
        _ group: OffsetFetchResponse.OffsetFetchResponseGroup, request: OffsetFetchRequest, version: Int16
    ) -> OffsetFetchResponse {
        var response = OffsetFetchResponse()
        response.errorCode = group.errorCode
        response.topics = group.topics.map { topic in
            var entry = OffsetFetchResponse.OffsetFetchResponseTopic()
            entry.name = topic.name
            entry.partitions = topic.partitions.map {
                partition($0.partitionIndex, $0.committedOffset, $0.committedLeaderEpoch, $0.metadata, $0.errorCode)
            }
            return entry
        }
        if group.errorCode != 0, version < 2 {
            response.topics = (request.topics ?? []).map { topic in
                var entry = OffsetFetchResponse.OffsetFetchResponseTopic()
                entry.name = topic.name
                entry.partitions = topic.partitionIndexes.map { partition($0, -1, -1, "", group.errorCode) }
                return entry
            }
        }
        return response
    }

    private static func partition(
        _ index: Int32, _ offset: Int64, _ epoch: Int32, _ metadata: String?, _ code: Int16
    ) -> OffsetFetchResponse.OffsetFetchResponsePartition {
        var partition = OffsetFetchResponse.OffsetFetchResponsePartition()
        partition.partitionIndex = index
        partition.committedOffset = offset
        partition.committedLeaderEpoch = epoch
        partition.metadata = metadata
        partition.errorCode = code
        return partition
    }
}
