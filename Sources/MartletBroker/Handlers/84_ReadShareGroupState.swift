internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// ReadShareGroupState (key 84, KIP-932): a leader asks what it or the one before has written.
package enum ReadShareGroupStateHandler {
    package static func handle(_ request: ReadShareGroupStateRequest, _ context: RequestContext) {
        let asked = request.topics.flatMap { topic in
            topic.partitions.map { partition in
                let id = SharePartitionID(
                    group: request.groupID, topic: topic.topicID, partition: partition.partition)
                return context.shareState(.read(id, leaderEpoch: partition.leaderEpoch))
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(asked, on: context.loop.eventLoop).map { answers in
                var rest = answers[...]
                var response = ReadShareGroupStateResponse()
                response.results = request.topics.map { topic in
                    var result = ReadShareGroupStateResponse.ReadStateResult()
                    result.topicID = topic.topicID
                    result.partitions = topic.partitions.map { partition in
                        var entry = ReadShareGroupStateResponse.PartitionResult()
                        entry.partition = partition.partition
                        guard let answer = rest.popFirst() else { return entry }
                        entry.errorCode = answer.code.rawValue
                        entry.errorMessage = answer.message
                        guard answer.code == .none else { return entry }
                        entry.stateEpoch = answer.stateEpoch
                        entry.startOffset = answer.startOffset
                        entry.stateBatches = answer.batches.map {
                            var batch = ReadShareGroupStateResponse.StateBatch()
                            batch.firstOffset = $0.firstOffset
                            batch.lastOffset = $0.lastOffset
                            batch.deliveryState = $0.state.rawValue
                            batch.deliveryCount = $0.deliveryCount
                            return batch
                        }
                        return entry
                    }
                    return result
                }
                return response
            })
    }
}
