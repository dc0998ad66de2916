internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// WriteShareGroupState (key 85, KIP-932): a leader writes what its share partition has decided.
package enum WriteShareGroupStateHandler {
    package static func handle(_ request: WriteShareGroupStateRequest, _ context: RequestContext) {
        let asked = request.topics.flatMap { topic in
            topic.partitions.map { partition in
                let id = SharePartitionID(
                    group: request.groupID, topic: topic.topicID, partition: partition.partition)
                return context.shareState(
                    .write(
                        id,
                        ShareStateWrite(
                            stateEpoch: partition.stateEpoch, leaderEpoch: partition.leaderEpoch,
                            startOffset: partition.startOffset,
                            deliveryCompleteCount: partition.deliveryCompleteCount,
                            batches: partition.stateBatches.compactMap {
                                ShareStateBatch(
                                    $0.firstOffset, $0.lastOffset, $0.deliveryState, $0.deliveryCount)
                            })))
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(asked, on: context.loop.eventLoop).map { answers in
                var rest = answers[...]
                var response = WriteShareGroupStateResponse()
                response.results = request.topics.map { topic in
                    var result = WriteShareGroupStateResponse.WriteStateResult()
                    result.topicID = topic.topicID
                    result.partitions = topic.partitions.map { partition in
                        var entry = WriteShareGroupStateResponse.PartitionResult()
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
