import MartletBroker
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

@Suite struct `Group coordinator shards` {
    @Test func `a late marker is refused without harm where the log has been closed for lack of use`() async throws {
        try await withTemporaryFolder { folder in
            let broker = try SteppedBroker(
                [
                    "offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1",
                    "group.initial.rebalance.delay.ms": "0",
                ], folder: folder)
            var find = FindCoordinatorRequest()
            for (type, name) in [(Int8(0), "g"), (1, "x")] {
                find.keyType = type
                find.coordinatorKeys = [name]
                _ = try broker.call(find)
            }
            var create = CreateTopicsRequest()
            var topic = CreateTopicsRequest.CreatableTopic()
            topic.name = "t"
            topic.numPartitions = 1
            topic.replicationFactor = 1
            create.topics = [topic]
            #expect(try broker.call(create).topics.map(\.errorCode) == [0])

            // A transaction with offsets, and its end: the partition knows the producer's next epoch.
            let producer = try broker.call(InitProducerIdRequest(transactionalID: "x"), version: 5)
            var commit = TxnOffsetCommitRequest()
            commit.transactionalID = "x"
            commit.groupID = "g"
            commit.producerID = producer.producerID
            commit.producerEpoch = producer.producerEpoch
            var partition = TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition()
            partition.committedOffset = 3
            var committed = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic()
            committed.name = "t"
            committed.partitions = [partition]
            commit.topics = [committed]
            #expect(try broker.call(commit, version: 5).topics.map { $0.partitions.map(\.errorCode) } == [[0]])
            var end = EndTxnRequest()
            end.transactionalID = "x"
            end.producerID = producer.producerID
            end.producerEpoch = producer.producerEpoch
            end.committed = true
            #expect(try broker.call(end, version: 5).errorCode == 0)

            let offsets = try #require(broker.loop.image.topicID(named: "__consumer_offsets"))
            let key = PartitionKey(topicID: offsets, partition: PartitionIndex(0))
            for _ in 0..<3 {
                broker.advance(by: .minutes(11))
                broker.loop.sweepRetention()
                broker.advance(by: .seconds(1))
            }
            #expect(broker.loop.existingPartition(key) == nil, "closed")

            // Known to the coordinator alone, and to no log.
            var join = JoinGroupRequest()
            join.groupID = "g"
            join.sessionTimeoutMs = 10_000
            join.rebalanceTimeoutMs = 10_000
            join.protocolType = "consumer"
            var strategy = JoinGroupRequest.JoinGroupRequestProtocol()
            strategy.name = "range"
            join.protocols = [strategy]
            let first = try broker.call(join)
            #expect(first.errorCode == ErrorCode.memberIDRequired.rawValue)

            var marker = WriteTxnMarkersRequest.WritableTxnMarker()
            marker.producerID = producer.producerID
            marker.producerEpoch = producer.producerEpoch
            marker.transactionResult = false
            marker.coordinatorEpoch = 0
            var marked = WriteTxnMarkersRequest.WritableTxnMarkerTopic()
            marked.name = "__consumer_offsets"
            marked.partitionIndexes = [0]
            marker.topics = [marked]
            var write = WriteTxnMarkersRequest()
            write.markers = [marker]
            let answer = try broker.call(write)
            #expect(
                answer.markers.first?.topics.first?.partitions.map(\.errorCode)
                    == [ErrorCode.invalidProducerEpoch.rawValue])
            join.memberID = first.memberID
            #expect(try broker.call(join).errorCode == 0, "the coordinator still knows the member")
            try broker.stop()
        }
    }
}
