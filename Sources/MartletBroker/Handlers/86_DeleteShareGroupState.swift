internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// DeleteShareGroupState (key 86, KIP-932): the coordinator of a group has the share coordinator forget state.
package enum DeleteShareGroupStateHandler {
    package static func handle(_ request: DeleteShareGroupStateRequest, _ context: RequestContext) {
        let asked = request.topics.flatMap { topic in
            topic.partitions.map { partition in
                let id = SharePartitionID(
                    group: request.groupID, topic: topic.topicID, partition: partition.partition)
                return context.shareState(.delete(id))
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(asked, on: context.loop.eventLoop).map { answers in
                var rest = answers[...]
                var response = DeleteShareGroupStateResponse()
                response.results = request.topics.map { topic in
                    var result = DeleteShareGroupStateResponse.DeleteStateResult()
                    result.topicID = topic.topicID
                    result.partitions = topic.partitions.map { partition in
                        var entry = DeleteShareGroupStateResponse.PartitionResult()
                        entry.partition = partition.partition
                        guard let answer = rest.popFirst() else { return entry }
                        entry.errorCode = answer.code.rawValue
                        entry.errorMessage = answer.message
                        return entry
                    }
                    return result
                }
                return response
            })
    }
}
