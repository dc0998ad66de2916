import MartletBroker
import MartletController
import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

private let settings = [
    "offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0", "connections.max.idle.ms": "86400000",
]

extension SteppedBroker {
    /// Makes the topics of the coordinators of group `g` and transactional id `x`, and the topic `t`.
    fileprivate func prepare() throws {
        var find = FindCoordinatorRequest()
        for (type, name) in [(Int8(0), "g"), (1, "x")] {
            find.keyType = type
            find.coordinatorKeys = [name]
            _ = try call(find)
        }
        var create = CreateTopicsRequest()
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = "t"
        topic.numPartitions = 1
        topic.replicationFactor = 1
        create.topics = [topic]
        #expect(try call(create).topics.map(\.errorCode) == [0])
    }

    fileprivate func initialize() throws -> (id: Int64, epoch: Int16) {
        var request = InitProducerIdRequest(transactionalID: "x")
        request.transactionTimeoutMs = 60_000
        let answer = try call(request, version: 5)
        #expect(answer.errorCode == 0)
        return (answer.producerID, answer.producerEpoch)
    }

    /// Commits an offset of `t` for `g` in the producer's transaction of the second protocol.
    fileprivate func commit(
        _ offset: Int64, by producer: (id: Int64, epoch: Int16), member: String = "", epoch: Int32 = -1
    ) throws -> [ErrorCode] {
        codes(try call(commitRequest(offset, by: producer, member: member, epoch: epoch), version: 5))
    }

    fileprivate func codes(_ response: TxnOffsetCommitResponse) -> [ErrorCode] {
        response.topics.flatMap { $0.partitions.map { ErrorCode(rawValue: $0.errorCode) } }
    }

    fileprivate func commitRequest(
        _ offset: Int64, by producer: (id: Int64, epoch: Int16), member: String = "", epoch: Int32 = -1
    ) -> TxnOffsetCommitRequest {
        var request = TxnOffsetCommitRequest()
        request.transactionalID = "x"
        request.groupID = "g"
        request.producerID = producer.id
        request.producerEpoch = producer.epoch
        request.memberID = member
        request.generationIDOrMemberEpoch = epoch
        var partition = TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition()
        partition.committedOffset = offset
        var topic = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic()
        topic.name = "t"
        topic.partitions = [partition]
        request.topics = [topic]
        return request
    }

    /// The producer's next identity.
    fileprivate func end(_ producer: (id: Int64, epoch: Int16), commits: Bool) throws -> (id: Int64, epoch: Int16) {
        let answer = try call(endRequest(producer, commits: commits), version: 5)
        #expect(answer.errorCode == 0)
        return (answer.producerID, answer.producerEpoch)
    }

    fileprivate func endRequest(_ producer: (id: Int64, epoch: Int16), commits: Bool) -> EndTxnRequest {
        var request = EndTxnRequest()
        request.transactionalID = "x"
        request.producerID = producer.id
        request.producerEpoch = producer.epoch
        request.committed = commits
        return request
    }
}

@Suite struct `Group coordinator shards` {
    @Test func `all shards of a broker share one limit of what members say`() async throws {
        try await withTemporaryFolder { folder in
            let many = settings.merging(["offsets.topic.num.partitions": "8"]) { $1 }
            let groups = (0..<12).map { "group \($0)" }
            func beat(_ broker: SteppedBroker, _ group: String, _ epoch: Int32, _ names: [String]? = nil) throws -> ErrorCode {
                var request = ConsumerGroupHeartbeatRequest()
                request.groupID = group
                request.memberID = "m"
                request.memberEpoch = epoch
                request.rebalanceTimeoutMs = 10_000
                request.topicPartitions = []
                request.subscribedTopicNames = names
                return ErrorCode(rawValue: try broker.call(request).errorCode)
            }
            let names = (0..<100).map { "\($0)" + String(repeating: "n", count: 200) }
            let broker = try SteppedBroker(many, folder: folder)
            try broker.prepare()
            for group in groups { #expect(try beat(broker, group, 0, names) == .none) }
            let held = broker.loop.services.memberBytes.value
            #expect(held > groups.count * 20_000)
            // What others hold, wherever their groups are.
            let others = GroupLimits.brokerMemberBytesLimit - held
            broker.loop.services.memberBytes.change(from: 0, to: others)
            #expect(try beat(broker, "one more", 0, names) == .groupMaxSizeReached)
            broker.loop.services.memberBytes.change(from: others, to: 0)
            #expect(try beat(broker, "one more", 0, names) == .none)
            #expect(try beat(broker, "one more", -1) == .none)
            #expect(broker.loop.services.memberBytes.value == held)
            try broker.stop()
            #expect(broker.loop.services.memberBytes.value == 0)

            let next = try SteppedBroker(many, folder: folder)
            for group in groups { #expect(try beat(next, group, 0, names) == .none) }
            #expect(next.loop.services.memberBytes.value == held)
            for group in groups { #expect(try beat(next, group, -1) == .none) }
            #expect(next.loop.services.memberBytes.value == 0)
            try next.stop()
        }
    }

    @Test func `a late marker is refused without harm where the log has been closed for lack of use`() async throws {
        try await withTemporaryFolder { folder in
            let broker = try SteppedBroker(settings, folder: folder)
            try broker.prepare()
            // A transaction with offsets, and its end: the partition knows the producer's next epoch.
            let identity = try broker.initialize()
            #expect(try broker.commit(3, by: identity) == [.none])
            _ = try broker.end(identity, commits: true)

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
            marker.producerID = identity.id
            marker.producerEpoch = identity.epoch
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

    @Test func `the first offsets of a transaction may be here before the marker of the one before`() async throws {
        try await withTemporaryFolder { folder in
            let broker = try SteppedBroker(settings, folder: folder)
            try broker.prepare()
            let producer = try broker.initialize()
            #expect(try broker.commit(3, by: producer) == [.none])
            let next = (id: producer.id, epoch: producer.epoch + 1)
            let (ended, committed) = try broker.call(
                broker.endRequest(producer, commits: true), version: 5, then: broker.commitRequest(4, by: next),
                version: 5)
            #expect(ended.errorCode == 0)
            #expect(broker.codes(committed) == [.none])
            try broker.stop()
        }
    }

    @Test func `a member of the consumer protocol commits in transactions, with its epoch`() async throws {
        try await withTemporaryFolder { folder in
            let broker = try SteppedBroker(settings, folder: folder)
            try broker.prepare()
            var join = ConsumerGroupHeartbeatRequest()
            join.groupID = "g"
            join.memberID = "m"
            join.rebalanceTimeoutMs = 60_000
            join.subscribedTopicNames = ["t"]
            join.topicPartitions = []
            let joined = try broker.call(join)
            #expect(joined.errorCode == 0)
            let epoch = joined.memberEpoch
            var producer = try broker.initialize()

            func fetched() throws -> (Int64, ErrorCode) {
                var group = OffsetFetchRequest.OffsetFetchRequestGroup()
                group.groupID = "g"
                group.memberID = "m"
                group.memberEpoch = epoch
                var topic = OffsetFetchRequest.OffsetFetchRequestTopics()
                topic.name = "t"
                topic.partitionIndexes = [0]
                group.topics = [topic]
                var request = OffsetFetchRequest()
                request.groups = [group]
                request.requireStable = true
                let part = try broker.call(request, version: 9).groups.first?.topics.first?.partitions.first
                return (part?.committedOffset ?? -2, ErrorCode(rawValue: part?.errorCode ?? -1))
            }

            #expect(try broker.commit(5, by: producer, member: "m", epoch: epoch) == [.none])
            #expect(try fetched() == (-1, .unstableOffsetCommit))
            let late = producer
            producer = try broker.end(producer, commits: true)
            #expect(try fetched() == (5, .none))
            // Of another epoch, of nobody, of the transaction before.
            #expect(try broker.commit(6, by: producer, member: "m", epoch: epoch + 1) == [.illegalGeneration])
            #expect(try broker.commit(6, by: producer, member: "ghost", epoch: epoch) == [.unknownMemberID])
            #expect(try broker.commit(6, by: late, member: "m", epoch: epoch) == [.invalidProducerEpoch])
            #expect(try broker.commit(7, by: producer, member: "m", epoch: epoch) == [.none])
            producer = try broker.end(producer, commits: false)
            #expect(try fetched() == (5, .none))
            // What was committed in transactions is there for the next coordinator.
            #expect(try broker.commit(8, by: producer, member: "m", epoch: epoch) == [.none])
            producer = try broker.end(producer, commits: true)
            try broker.stop()
            let next = try SteppedBroker(settings, folder: folder)
            var group = OffsetFetchRequest.OffsetFetchRequestGroup()
            group.groupID = "g"
            group.topics = nil
            var request = OffsetFetchRequest()
            request.groups = [group]
            let whole = try next.call(request, version: 9).groups.first?.topics.first?.partitions.first
            #expect(whole?.committedOffset == 8)
            try next.stop()
        }
    }
}
