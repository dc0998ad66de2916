internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// DescribeProducers (key 61, KIP-664): what partitions know of their producers, for finding hanging transactions.
package enum DescribeProducersHandler {
    package static func handle(_ request: DescribeProducersRequest, _ context: RequestContext) {
        var futures: [EventLoopFuture<DescribeProducersResponse.PartitionResponse>] = []
        for topic in request.topics {
            let image = context.image.topic(named: topic.name)
            for index in topic.partitionIndexes {
                futures.append(describe(image, index, context))
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { all in
                var rest = all[...]
                var response = DescribeProducersResponse()
                response.topics = request.topics.map { topic in
                    var answer = DescribeProducersResponse.TopicResponse()
                    answer.name = topic.name
                    answer.partitions = topic.partitionIndexes.compactMap { _ in rest.popFirst() }
                    return answer
                }
                return response
            })
    }

    private static func describe(
        _ topic: TopicImage?, _ index: Int32, _ context: RequestContext
    ) -> EventLoopFuture<DescribeProducersResponse.PartitionResponse> {
        let promise = context.loop.eventLoop.makePromise(of: DescribeProducersResponse.PartitionResponse.self)
        var answer = DescribeProducersResponse.PartitionResponse()
        answer.partitionIndex = index
        let empty = answer
        guard let topic, topic.partition(PartitionIndex(index)) != nil else {
            answer.errorCode = ErrorCode.unknownTopicOrPartition.rawValue
            promise.succeed(answer)
            return promise.futureResult
        }
        let key = PartitionKey(topicID: topic.id, partition: PartitionIndex(index))
        context.services.loops.loop(of: key).post { loop in
            guard let partition = loop.partition(key) else {
                var absent = empty
                absent.errorCode = loop.absence(of: key).rawValue
                return promise.succeed(absent)
            }
            partition.whenOpen { partition in
                var answer = empty
                switch partition.openLog {
                case .failure(let unavailable):
                    answer.errorCode = unavailable.code.rawValue
                    answer.errorMessage = unavailable.cause
                case .success(let log):
                    answer.activeProducers = log.producers.entries.sorted { $0.key < $1.key }.map { id, entry in
                        var state = DescribeProducersResponse.ProducerState()
                        state.producerID = id
                        state.producerEpoch = Int32(entry.epoch)
                        state.lastSequence = entry.lastSequence ?? -1
                        state.lastTimestamp = entry.lastAppend.rawValue
                        state.coordinatorEpoch = entry.coordinatorEpoch
                        state.currentTxnStartOffset = entry.transactionFirstOffset?.rawValue ?? -1
                        return state
                    }
                }
                promise.succeed(answer)
            }
        }
        return promise.futureResult
    }
}
