internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// DeleteRecords (key 21): raises the log start offset; -1 means up to the high watermark. The new start is durable
/// before the answer, on every live replica.
package enum DeleteRecordsHandler {
    private struct Outcome: Sendable {
        var error: ErrorCode
        var lowWatermark: Int64 = -1
    }

    package static func handle(_ request: DeleteRecordsRequest, _ context: RequestContext) {
        var deletions: [EventLoopFuture<Outcome>] = []
        for topic in request.topics {
            let image = context.image.topic(named: topic.name)
            for partition in topic.partitions {
                guard let image, image.partition(PartitionIndex(partition.partitionIndex)) != nil else {
                    deletions.append(
                        context.loop.eventLoop.makeSucceededFuture(Outcome(error: .unknownTopicOrPartition)))
                    continue
                }
                guard !image.isInternal else {
                    deletions.append(context.loop.eventLoop.makeSucceededFuture(Outcome(error: .invalidTopicException)))
                    continue
                }
                guard image.configuration.cleanupPolicy.contains(.delete) else {
                    // A compacted topic keeps the last value of each key; cutting its head would lose them.
                    deletions.append(context.loop.eventLoop.makeSucceededFuture(Outcome(error: .policyViolation)))
                    continue
                }
                let key = PartitionKey(topicID: image.id, partition: PartitionIndex(partition.partitionIndex))
                deletions.append(
                    delete(
                        before: partition.offset, key, timeout: .milliseconds(Int64(max(0, request.timeoutMs))), context))
            }
        }
        let answer = EventLoopFuture.whenAllSucceed(deletions, on: context.loop.eventLoop).map { outcomes in
            var response = DeleteRecordsResponse()
            var index = 0
            for topic in request.topics {
                var topicResult = DeleteRecordsResponse.DeleteRecordsTopicResult()
                topicResult.name = topic.name
                for partition in topic.partitions {
                    var result = DeleteRecordsResponse.DeleteRecordsPartitionResult()
                    result.partitionIndex = partition.partitionIndex
                    result.errorCode = outcomes[index].error.rawValue
                    result.lowWatermark = outcomes[index].lowWatermark
                    topicResult.partitions.append(result)
                    index += 1
                }
                response.topics.append(topicResult)
            }
            return response
        }
        context.respond(when: answer)
    }

    private static func delete(
        before offset: Int64, _ key: PartitionKey, timeout: TimeAmount, _ context: RequestContext
    ) -> EventLoopFuture<Outcome> {
        let promise = context.loop.eventLoop.makePromise(of: Outcome.self)
        context.services.loops.loop(of: key, near: context.loop).post { loop in
            guard let partition = loop.partition(key) else {
                promise.succeed(Outcome(error: loop.absence(of: key)))
                return
            }
            partition.whenOpen { partition in
                partition.deleteRecords(before: offset, timeout: timeout) { result in
                    switch result {
                    case .success(let start): promise.succeed(Outcome(error: .none, lowWatermark: start.rawValue))
                    case .failure(let unavailable): promise.succeed(Outcome(error: unavailable.code))
                    }
                }
            }
        }
        return promise.futureResult
    }
}
