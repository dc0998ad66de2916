import MartletBroker
import MartletKafkaProtocol
import NIOCore
import NIOPosix
import Synchronization
import Testing

/// Work that is done at once, or held until it is let go.
private final class HeldQueue: WorkQueue {
    typealias Work = @Sendable (NIOThreadPool.WorkItemState) -> Void

    private let held = Mutex<[Work]?>(nil)

    var heldCount: Int { held.withLock { $0?.count ?? 0 } }

    func hold() { held.withLock { $0 = [] } }

    func letGo() {
        let work = held.withLock { $0.take() ?? [] }
        for work in work { work(.active) }
    }

    func submit(_ body: @escaping Work) {
        let isHeld = held.withLock { held in
            held?.append(body)
            return held != nil
        }
        if !isHeld { body(.active) }
    }
}

@Suite(.timeLimit(.minutes(2))) struct `Sweeps of partitions that nobody uses` {
    private static let partitionCount: Int32 = 4

    private func fill(_ folder: String) throws {
        let broker = try SteppedBroker(folder: folder)
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = "idle"
        topic.numPartitions = Self.partitionCount
        topic.replicationFactor = 1
        topic.configs = [("cleanup.policy", "compact"), ("segment.ms", "1"), ("min.cleanable.dirty.ratio", "0.01")].map {
            var config = CreateTopicsRequest.CreatableTopicConfig()
            config.name = $0.0
            config.value = $0.1
            return config
        }
        var create = CreateTopicsRequest()
        create.topics = [topic]
        create.timeoutMs = 10_000
        #expect(try broker.call(create).topics.map(\.errorCode) == [0])
        var data = ProduceRequest.TopicProduceData()
        data.name = "idle"
        data.partitionData = try (0..<Self.partitionCount).map {
            var partition = ProduceRequest.PartitionProduceData()
            partition.index = $0
            partition.records = try makeBatch(["v"])
            return partition
        }
        var produce = ProduceRequest()
        produce.acks = -1
        produce.timeoutMs = 10_000
        produce.topicData = [data]
        let answer = try broker.call(produce, version: 12)
        #expect(answer.responses.flatMap(\.partitionResponses).map(\.errorCode) == [0, 0, 0, 0])
        try broker.stop()
    }

    @Test func `they are opened one at a time, however long that takes, and let go again`() async throws {
        try await withTemporaryFolder { folder in
            try fill(folder)
            let queue = HeldQueue()
            let broker = try SteppedBroker(folder: folder, workPool: queue)
            func sweep() {
                broker.loop.sweepRetention()
                broker.advance(by: .nanoseconds(0))
            }
            #expect(broker.loop.openPartitions.isEmpty)
            queue.hold()
            for _ in 0..<5 { sweep() }
            #expect(queue.heldCount == 1 && broker.loop.openPartitions.count == 1)
            // The first sweep goes on to the others, which stay open until what it rolled there is flushed and compacted.
            queue.letGo()
            broker.advance(by: .nanoseconds(0))
            #expect(broker.loop.openPartitions.count == Int(Self.partitionCount))
            // The end of one sweep makes room for the next.
            broker.advance(by: .minutes(11))
            sweep()
            sweep()
            #expect(broker.loop.openPartitions.isEmpty)
            queue.hold()
            sweep()
            #expect(queue.heldCount == 1)
            queue.letGo()
            broker.advance(by: .nanoseconds(0))
            try broker.stop()
        }
    }
}
