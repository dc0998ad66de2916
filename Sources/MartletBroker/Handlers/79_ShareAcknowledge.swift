internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// ShareAcknowledge (key 79, KIP-932): what became of acquired records, without fetching. Version 2 renews locks
/// (KIP-1222).
package enum ShareAcknowledgeHandler {
    package static func handle(_ request: ShareAcknowledgeRequest, _ context: RequestContext) {
        let session: ShareSession
        do throws(ShareRequests.Problem) {
            let key = try ShareRequests.key(group: request.groupID, member: request.memberID, context)
            guard request.shareSessionEpoch != ShareRequests.Epoch.open else {
                throw ShareRequests.Problem(
                    .invalidShareSessionEpoch, "A session is opened by ShareFetch, not by ShareAcknowledge.")
            }
            session = try ShareRequests.session(key, epoch: request.shareSessionEpoch, context)
        } catch {
            var response = ShareAcknowledgeResponse()
            response.errorCode = error.code.rawValue
            response.errorMessage = error.message
            return context.respond(response)
        }
        let entries = request.topics.flatMap { topic in
            topic.partitions.map { partition in
                ShareRequests.Entry(
                    topicID: topic.topicID, partition: partition.partitionIndex,
                    acknowledgements: partition.acknowledgementBatches.map {
                        ShareAcknowledgement(
                            firstOffset: $0.firstOffset, lastOffset: $0.lastOffset, types: $0.acknowledgeTypes
                        )
                    })
            }
        }
        let lockMilliseconds = context.loop.shareSettings(of: session.key.group).lockMilliseconds
        let outcomes = ShareRequests.acknowledge(entries, session.key, renews: request.isRenewAck, context)
        // What it holds beyond that is free again; its acknowledgements were there first.
        if request.shareSessionEpoch == ShareRequests.Epoch.close { ShareRequests.close(session, context) }
        context.respond(
            when: outcomes.map { outcomes in
                var response = ShareAcknowledgeResponse()
                response.acquisitionLockTimeoutMs = Int32(clamping: lockMilliseconds)
                for outcome in outcomes {
                    if response.responses.last?.topicID != outcome.topicID {
                        var topic = ShareAcknowledgeResponse.ShareAcknowledgeTopicResponse()
                        topic.topicID = outcome.topicID
                        response.responses.append(topic)
                    }
                    var partition = ShareAcknowledgeResponse.PartitionData()
                    partition.partitionIndex = outcome.partition
                    partition.errorCode = outcome.code.rawValue
                    partition.errorMessage = outcome.message
                    response.responses[response.responses.count - 1].partitions.append(partition)
                }
                return response
            })
    }
}
