internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// InitializeShareGroupState (key 83, KIP-932): the coordinator of a group has the share coordinator keep state.
package enum InitializeShareGroupStateHandler {
    package static func handle(_ request: InitializeShareGroupStateRequest, _ context: RequestContext) {
        let asked = request.topics.flatMap { topic in
            topic.partitions.map { partition in
                let id = SharePartitionID(
                    group: request.groupID, topic: topic.topicID, partition: partition.partition)
                return context.shareState(
                    .initialize(id, stateEpoch: partition.stateEpoch, startOffset: partition.startOffset))
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(asked, on: context.loop.eventLoop).map { answers in
                var rest = answers[...]
                var response = InitializeShareGroupStateResponse()
                response.results = request.topics.map { topic in
                    var result = InitializeShareGroupStateResponse.InitializeStateResult()
                    result.topicID = topic.topicID
                    result.partitions = topic.partitions.map { partition in
                        var entry = InitializeShareGroupStateResponse.PartitionResult()
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
