internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// DescribeShareGroupOffsets (key 90, KIP-932): where a group stands in its partitions, -1 where it has not begun.
/// Version 1 adds the lag (KIP-1226): records at or after the start that are not done with.
package enum DescribeShareGroupOffsetsHandler {
    private typealias Group = DescribeShareGroupOffsetsResponse.DescribeShareGroupOffsetsResponseGroup
    private typealias Topic = DescribeShareGroupOffsetsResponse.DescribeShareGroupOffsetsResponseTopic
    private typealias Partition = DescribeShareGroupOffsetsResponse.DescribeShareGroupOffsetsResponsePartition

    package static func handle(_ request: DescribeShareGroupOffsetsRequest, _ context: RequestContext) {
        let groups = request.groups.map { asked -> EventLoopFuture<Group> in
            var group = Group()
            group.groupID = asked.groupID
            guard context.loop.servesShareGroups else {
                group.errorCode = ErrorCode.unsupportedVersion.rawValue
                group.errorMessage = ShareRequests.unsupported
                return context.loop.eventLoop.makeSucceededFuture(group)
            }
            if let topics = asked.topics {
                return describe(
                    group,
                    topics.map { ($0.topicName, context.image.topicID(named: $0.topicName), $0.partitions) },
                    context)
            }
            let blank = group
            let promise = context.loop.eventLoop.makePromise(of: Group.self)
            let known = context.coordinate(group: asked.groupID, .sharePartitions([asked.groupID]))
            known.hop(to: context.loop.eventLoop).assumeIsolated().whenSuccess { response in
                guard case .sharePartitions(let answers) = response else { return response.mismatch() }
                guard let answer = answers.first else {
                    var group = blank
                    group.errorCode = ErrorCode.coordinatorNotAvailable.rawValue
                    return promise.succeed(group)
                }
                let topics = answer.partitions.compactMap { id, partitions in
                    context.image.topicName(id: id).map { ($0, Optional(id), partitions.sorted()) }
                }
                describe(blank, topics.sorted { $0.0 < $1.0 }, context).cascade(to: promise)
            }
            return promise.futureResult
        }
        context.respond(
            when: EventLoopFuture.whenAllSucceed(groups, on: context.loop.eventLoop).map { groups in
                var response = DescribeShareGroupOffsetsResponse()
                response.groups = groups
                return response
            })
    }

    private static func describe(
        _ group: Group, _ topics: [(name: String, id: UniversalID?, partitions: [Int32])],
        _ context: RequestContext
    ) -> EventLoopFuture<Group> {
        let futures = topics.map { topic in
            EventLoopFuture.whenAllSucceed(
                topic.partitions.map { partition(group.groupID, topic.id, $0, context) },
                on: context.loop.eventLoop
            ).map { partitions in
                var answer = Topic()
                answer.topicName = topic.name
                answer.topicID = topic.id ?? .zero
                answer.partitions = partitions
                return answer
            }
        }
        return EventLoopFuture.whenAllSucceed(futures, on: context.loop.eventLoop).map { topics in
            var group = group
            group.topics = topics
            return group
        }
    }

    private static func partition(
        _ group: String, _ topicID: UniversalID?, _ index: Int32, _ context: RequestContext
    ) -> EventLoopFuture<Partition> {
        var answer = Partition()
        answer.partitionIndex = index
        answer.startOffset = -1
        answer.lag = -1
        let blank = answer
        let eventLoop = context.loop.eventLoop
        // What is not there has no offset, as with OffsetFetch.
        guard let topicID else { return eventLoop.makeSucceededFuture(blank) }
        let id = SharePartitionID(group: group, topic: topicID, partition: index)
        let promise = eventLoop.makePromise(of: Partition.self)
        context.shareState(.summary(id)).assumeIsolated().whenSuccess { summary in
            var answer = blank
            guard summary.code == .none else { return promise.succeed(answer) }
            answer.startOffset = summary.startOffset
            answer.leaderEpoch = summary.leaderEpoch
            guard summary.startOffset >= 0, summary.deliveryCompleteCount >= 0 else {
                return promise.succeed(answer)
            }
            let known = answer
            let key = PartitionKey(topicID: topicID, partition: PartitionIndex(index))
            context.services.loops.loop(of: key, near: context.loop).post { loop in
                guard let partition = loop.partition(key) else {
                    var failed = known
                    failed.errorCode = loop.absence(of: key).rawValue
                    return promise.succeed(failed)
                }
                partition.whenOpen { partition in
                    var answer = known
                    switch partition.openLog {
                    case .success:
                        answer.lag =
                            max(
                                0,
                                partition.highWatermark.rawValue - summary.startOffset
                                    - Int64(summary.deliveryCompleteCount))
                    case .failure(let unavailable):
                        answer.errorCode = unavailable.code.rawValue
                        answer.errorMessage = unavailable.cause
                    }
                    promise.succeed(answer)
                }
            }
        }
        return promise.futureResult
    }
}
