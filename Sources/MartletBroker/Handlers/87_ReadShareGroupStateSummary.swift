internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// ReadShareGroupStateSummary (key 87, KIP-932): start offsets alone.
package enum ReadShareGroupStateSummaryHandler {
    package static func handle(_ request: ReadShareGroupStateSummaryRequest, _ context: RequestContext) {
        let asked = request.topics.flatMap { topic in
            topic.partitions.map { partition in
                let id = SharePartitionID(
                    group: request.groupID, topic: topic.topicID, partition: partition.partition)
                return context.shareState(.summary(id))
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(asked, on: context.loop.eventLoop).map { answers in
                var rest = answers[...]
                var response = ReadShareGroupStateSummaryResponse()
                response.results = request.topics.map { topic in
                    var result = ReadShareGroupStateSummaryResponse.ReadStateSummaryResult()
                    result.topicID = topic.topicID
                    result.partitions = topic.partitions.map { partition in
                        var entry = ReadShareGroupStateSummaryResponse.PartitionResult()
                        entry.partition = partition.partition
                        guard let answer = rest.popFirst() else { return entry }
                        entry.errorCode = answer.code.rawValue
                        entry.errorMessage = answer.message
                        guard answer.code == .none else { return entry }
                        entry.stateEpoch = answer.stateEpoch
                        entry.leaderEpoch = answer.leaderEpoch
                        entry.startOffset = answer.startOffset
                        entry.deliveryCompleteCount = answer.deliveryCompleteCount
                        return entry
                    }
                    return result
                }
                return response
            })
    }
}
