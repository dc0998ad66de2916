internal import Logging
internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// ListOffsets (key 2). Timestamps: -1 latest (the high watermark), -2 earliest, -3 the record with the largest
/// timestamp (KIP-734), -4 earliest local (the log start: there is no tiered storage), -5 last tiered (none),
/// otherwise the first record at or after that time (KIP-79). Nothing above the high watermark is ever named, and with
/// `isolation_level` 1 nothing above the last stable offset.
package enum ListOffsetsHandler {
    private static let latest: Int64 = -1
    private static let earliest: Int64 = -2
    private static let maxTimestamp: Int64 = -3
    private static let earliestLocal: Int64 = -4
    private static let latestTiered: Int64 = -5
    private static let earliestPendingUpload: Int64 = -6

    private struct Found: Sendable {
        var error: ErrorCode = .none
        var timestamp: Int64 = -1
        var offset: Int64 = -1
        var epoch: Int32 = -1
    }

    package static func handle(_ request: ListOffsetsRequest, _ context: RequestContext) {
        var lookups: [EventLoopFuture<Found>] = []
        for topic in request.topics {
            let image = context.image.topic(named: topic.name)
            for partition in topic.partitions {
                guard let image, image.partition(PartitionIndex(partition.partitionIndex)) != nil else {
                    lookups.append(context.loop.eventLoop.makeSucceededFuture(Found(error: .unknownTopicOrPartition)))
                    continue
                }
                let key = PartitionKey(topicID: image.id, partition: PartitionIndex(partition.partitionIndex))
                lookups.append(find(partition, key, readsCommitted: request.isolationLevel == 1, context))
            }
        }
        let answer = EventLoopFuture.whenAllSucceed(lookups, on: context.loop.eventLoop).map { found in
            var response = ListOffsetsResponse()
            var index = 0
            for topic in request.topics {
                var topicResponse = ListOffsetsResponse.ListOffsetsTopicResponse()
                topicResponse.name = topic.name
                for partition in topic.partitions {
                    var partitionResponse = ListOffsetsResponse.ListOffsetsPartitionResponse()
                    partitionResponse.partitionIndex = partition.partitionIndex
                    partitionResponse.errorCode = found[index].error.rawValue
                    partitionResponse.timestamp = found[index].timestamp
                    partitionResponse.offset = found[index].offset
                    partitionResponse.leaderEpoch = found[index].epoch
                    topicResponse.partitions.append(partitionResponse)
                    index += 1
                }
                response.topics.append(topicResponse)
            }
            return response
        }
        context.respond(when: answer)
    }

    private static func find(
        _ wanted: ListOffsetsRequest.ListOffsetsPartition, _ key: PartitionKey, readsCommitted: Bool,
        _ context: RequestContext
    ) -> EventLoopFuture<Found> {
        let promise = context.loop.eventLoop.makePromise(of: Found.self)
        context.services.loops.loop(of: key, near: context.loop).post { loop in
            guard let partition = loop.partition(key) else {
                promise.succeed(Found(error: loop.absence(of: key)))
                return
            }
            partition.whenOpen { partition in
                promise.succeed(find(wanted, in: partition, readsCommitted: readsCommitted, on: loop))
            }
        }
        return promise.futureResult
    }

    private static func find(
        _ wanted: ListOffsetsRequest.ListOffsetsPartition, in partition: Partition, readsCommitted: Bool,
        on loop: BrokerLoop
    ) -> Found {
        let leadership = partition.checkLeadership(currentLeaderEpoch: wanted.currentLeaderEpoch)
        guard leadership == .none else { return Found(error: leadership) }
        guard case .success(let log) = partition.openLog else {
            return Found(error: .kafkaStorageError)
        }
        // Where the log begins is known without the high watermark.
        let isAboutStart = [earliest, earliestLocal, earliestPendingUpload, latestTiered].contains(wanted.timestamp)
        guard let visibleEnd = partition.visibleEnd ?? (isAboutStart ? log.logStartOffset : nil) else {
            return Found(error: .offsetNotAvailable)
        }
        let mark = readsCommitted ? min(visibleEnd, partition.lastStableOffset) : visibleEnd
        func found(_ offset: Offset, timestamp: Int64 = -1) -> Found {
            Found(timestamp: timestamp, offset: offset.rawValue, epoch: log.leaderEpochs.epoch(at: offset)?.rawValue ?? -1)
        }
        switch wanted.timestamp {
        case latest:
            return found(mark)
        case earliest, earliestLocal, earliestPendingUpload:
            return found(log.logStartOffset)
        case latestTiered:
            return Found()
        case _:
            do throws(ReadError) {
                let match =
                    wanted.timestamp == maxTimestamp
                    ? try log.offsetOfMaxTimestamp(upTo: mark)
                    : try log.offset(for: Timestamp(milliseconds: wanted.timestamp), upTo: mark)
                guard let match else { return Found() }
                return found(match.offset, timestamp: match.timestamp.rawValue)
            } catch {
                loop.logger.error("offset lookup failed", metadata: ["partition": "\(partition.name)", "cause": "\(error)"])
                return Found(error: .kafkaStorageError)
            }
        }
    }
}
