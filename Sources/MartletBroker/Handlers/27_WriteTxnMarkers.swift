internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// WriteTxnMarkers (key 27): a transaction's coordinator, or an operator who ends a hanging transaction, has markers
/// appended to partitions. Version 2 says under which rules the transaction ran (KIP-1228).
package enum WriteTxnMarkersHandler {
    package static func handle(_ request: WriteTxnMarkersRequest, _ context: RequestContext) {
        let futures = request.markers.map { wanted in
            let partitions = wanted.topics.flatMap { topic in
                topic.partitionIndexes.map { TopicPartition(topic.name, $0) }
            }
            let marker = TransactionMarker(
                producer: ProducerIdentity(id: wanted.producerID, epoch: wanted.producerEpoch),
                commits: wanted.transactionResult, coordinatorEpoch: wanted.coordinatorEpoch,
                transactionProtocol: wanted.transactionVersion >= 2 ? .second : .first)
            let promise = context.loop.eventLoop.makePromise(of: [PartitionOutcome].self)
            if wanted.producerID < 0 || wanted.producerEpoch < 0 {
                promise.succeed(partitions.map { PartitionOutcome(partition: $0, error: .invalidRequest) })
            } else {
                MarkerWriter.writeHere(marker, to: partitions, from: context.loop) { promise.succeed($0) }
            }
            return promise.futureResult.map { outcomes -> WriteTxnMarkersResponse.WritableTxnMarkerResult in
                var rest = outcomes[...]
                var result = WriteTxnMarkersResponse.WritableTxnMarkerResult()
                result.producerID = wanted.producerID
                result.topics = wanted.topics.map { topic in
                    var answer = WriteTxnMarkersResponse.WritableTxnMarkerTopicResult()
                    answer.name = topic.name
                    answer.partitions = topic.partitionIndexes.map { index in
                        var partition = WriteTxnMarkersResponse.WritableTxnMarkerPartitionResult()
                        partition.partitionIndex = index
                        partition.errorCode = (rest.popFirst()?.error ?? .unknownServerError).rawValue
                        return partition
                    }
                    return answer
                }
                return result
            }
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { results in
                var response = WriteTxnMarkersResponse()
                response.markers = results
                return response
            })
    }
}
