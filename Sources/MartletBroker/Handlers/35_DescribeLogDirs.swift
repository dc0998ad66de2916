internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore
internal import NIOPosix

/// DescribeLogDirs (key 35): sizes of partitions on disk. Version 3 adds a top-level error, 4 the volume's bytes
/// (KIP-827).
package enum DescribeLogDirsHandler {
    package static func handle(_ request: DescribeLogDirsRequest, _ context: RequestContext) {
        var wanted: [(topic: String, partitions: [Int32])] = []
        if let topics = request.topics {
            for topic in topics {
                guard let image = context.image.topic(named: topic.topic) else { continue }
                let all = topic.partitions.isEmpty
                    ? image.partitions.indices.map { Int32($0) }
                    : topic.partitions.filter { image.partition(PartitionIndex($0)) != nil }
                wanted.append((topic.topic, all))
            }
        } else {
            wanted = context.image.sortedTopics().map { ($0.name, $0.partitions.indices.map { Int32($0) }) }
        }
        let directory = context.services.directory
        let listing = wanted
        let answer = context.services.workPool.runIfActive(eventLoop: context.loop.eventLoop) {
            var result = DescribeLogDirsResponse.DescribeLogDirsResult()
            if case .failed = directory.state { result.errorCode = ErrorCode.kafkaStorageError.rawValue }
            result.logDir = directory.path
            let space = try directory.space()
            result.totalBytes = Int64(space.total)
            result.usableBytes = Int64(space.available)
            for (topic, partitions) in listing {
                var entry = DescribeLogDirsResponse.DescribeLogDirsTopic()
                entry.name = topic
                for index in partitions {
                    var partition = DescribeLogDirsResponse.DescribeLogDirsPartition()
                    partition.partitionIndex = index
                    partition.partitionSize = Int64(try directory.size(of: TopicPartition(topic, index)))
                    entry.partitions.append(partition)
                }
                result.topics.append(entry)
            }
            var response = DescribeLogDirsResponse()
            response.results = [result]
            return response
        }
        context.respond(when: answer)
    }
}
