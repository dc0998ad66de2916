internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// OffsetForLeaderEpoch (key 23): where an epoch ends in this log, so that consumers and followers find the point
/// from which they diverge (KIP-101, KIP-279, KIP-320).
package enum OffsetForLeaderEpochHandler {
    private struct Found: Sendable {
        var error: ErrorCode = .none
        var epoch: Int32 = -1
        var endOffset: Int64 = -1
    }

    package static func handle(_ request: OffsetForLeaderEpochRequest, _ context: RequestContext) {
        var lookups: [EventLoopFuture<Found>] = []
        for topic in request.topics {
            let image = context.image.topic(named: topic.topic)
            for wanted in topic.partitions {
                guard let image, image.partition(PartitionIndex(wanted.partition)) != nil else {
                    lookups.append(context.loop.eventLoop.makeSucceededFuture(Found(error: .unknownTopicOrPartition)))
                    continue
                }
                let key = PartitionKey(topicID: image.id, partition: PartitionIndex(wanted.partition))
                let promise = context.loop.eventLoop.makePromise(of: Found.self)
                context.services.loops.loop(of: key, near: context.loop).post { loop in
                    guard let partition = loop.partition(key) else {
                        promise.succeed(Found(error: loop.absence(of: key)))
                        return
                    }
                    partition.whenOpen { promise.succeed(find(wanted, in: $0)) }
                }
                lookups.append(promise.futureResult)
            }
        }
        let answer = EventLoopFuture.whenAllSucceed(lookups, on: context.loop.eventLoop).map { found in
            var response = OffsetForLeaderEpochResponse()
            var index = 0
            for topic in request.topics {
                var result = OffsetForLeaderEpochResponse.OffsetForLeaderTopicResult()
                result.topic = topic.topic
                for wanted in topic.partitions {
                    var entry = OffsetForLeaderEpochResponse.EpochEndOffset()
                    entry.partition = wanted.partition
                    entry.errorCode = found[index].error.rawValue
                    entry.leaderEpoch = found[index].epoch
                    entry.endOffset = found[index].endOffset
                    result.partitions.append(entry)
                    index += 1
                }
                response.topics.append(result)
            }
            return response
        }
        context.respond(when: answer)
    }

    private static func find(
        _ wanted: OffsetForLeaderEpochRequest.OffsetForLeaderPartition, in partition: Partition
    ) -> Found {
        let leadership = partition.checkLeadership(currentLeaderEpoch: wanted.currentLeaderEpoch)
        guard leadership == .none else { return Found(error: leadership) }
        guard case .success(let log) = partition.openLog else { return Found(error: .kafkaStorageError) }
        guard let mark = partition.visibleEnd else { return Found(error: .offsetNotAvailable) }
        // The current epoch ends, for clients, at the high watermark: what lies above could still vanish.
        if wanted.leaderEpoch == partition.leaderEpoch?.rawValue {
            return Found(epoch: wanted.leaderEpoch, endOffset: mark.rawValue)
        }
        guard let end = log.leaderEpochs.endOffset(
            for: LeaderEpoch(wanted.leaderEpoch), logEnd: log.logEndOffset) else { return Found() }
        return Found(epoch: end.epoch.rawValue, endOffset: min(end.endOffset, mark).rawValue)
    }
}
