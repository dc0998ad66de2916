import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

@testable import MartletClient

@Suite struct PartitionerTests {
    /// Vectors of Kafka's own test of its hash.
    @Test(
        arguments: [
            ("21", -973_932_308), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971), ("abc", 479_470_107),
        ] as [(String, Int32)])
    func `murmur2 agrees with the Java producer`(key: String, hash: Int32) {
        #expect(murmur2(ByteBuffer(string: key)) == hash)
    }

    @Test func `murmur2 reads slices at any offset`() {
        var buffer = ByteBuffer(string: "xxfoobar")
        buffer.moveReaderIndex(forwardBy: 2)
        #expect(murmur2(buffer) == -790_332_482)
        #expect(murmur2(ByteBuffer()) == murmur2(ByteBuffer(bytes: [])))
    }

    @Test func `a key's partition is its hash without the sign modulo the count`() {
        // -973932308 & 0x7fffffff = 1173551340
        #expect(keyPartition(ByteBuffer(string: "21"), partitionCount: 7) == 1_173_551_340 % 7)
        for count in 1...64 {
            let partition = keyPartition(ByteBuffer(string: "foobar"), partitionCount: count)
            #expect((0..<count).contains(partition))
        }
    }

    @Test func `records without a key stick to a partition until its batch is taken`() throws {
        let accumulator = try knownTopic(partitionCount: 8)
        var partitions: Set<Int> = []
        for _ in 0..<100 { _ = try accumulator.offer(record(), now: 0, sink: nil, slot: 0) }
        for queue in accumulator.takeListed() {
            partitions.insert(Int(queue.topicPartition.partition.rawValue))
            guard case .batch(let batch) = accumulator.take(from: queue, now: .distantFuture, isIdle: true)
            else {
                Issue.record("nothing to take")
                continue
            }
            #expect(batch.builder.recordCount == 100)
        }
        #expect(partitions.count == 1)
        _ = try accumulator.offer(record(), now: 0, sink: nil, slot: 0)
        let next = accumulator.takeListed().map { Int($0.topicPartition.partition.rawValue) }
        #expect(Set(next).isDisjoint(with: partitions))
    }

    @Test func `records without a key avoid partitions without a leader`() throws {
        let accumulator = try knownTopic(partitionCount: 8, available: [3])
        for _ in 0..<50 {
            _ = try accumulator.offer(record(), now: 0, sink: nil, slot: 0)
            for queue in accumulator.takeListed() {
                #expect(queue.topicPartition.partition == PartitionIndex(3))
                _ = accumulator.take(from: queue, now: .distantFuture, isIdle: true)
            }
        }
    }

    @Test func `round robin deals records out evenly`() throws {
        let accumulator = try knownTopic(partitionCount: 4) { $0.partitioner = .roundRobin }
        for _ in 0..<40 { _ = try accumulator.offer(record(key: "same"), now: 0, sink: nil, slot: 0) }
        let counts = accumulator.takeListed().map { queue -> Int in
            guard case .batch(let batch) = accumulator.take(from: queue, now: .distantFuture, isIdle: true)
            else {
                return 0
            }
            return Int(batch.builder.recordCount)
        }
        #expect(counts == [10, 10, 10, 10])
    }

    @Test func `a custom partitioner decides by key and count`() throws {
        let accumulator = try knownTopic(partitionCount: 4) {
            $0.partitioner = .custom { key, count in (key?.readableBytes ?? 0) % count }
        }
        _ = try accumulator.offer(record(key: "abcdef"), now: 0, sink: nil, slot: 0)
        #expect(accumulator.takeListed().map(\.topicPartition.partition) == [PartitionIndex(2)])
    }

    @Test func `an explicit partition that does not exist is not taken`() throws {
        let accumulator = try knownTopic(partitionCount: 2)
        var wrong = record()
        wrong.partition = PartitionIndex(2)
        guard case .unknownTopic = try accumulator.offer(wrong, now: 0, sink: nil, slot: 0) else {
            Issue.record("taken")
            return
        }
    }
}

func record(key: String? = nil, value: String = "value") -> ProducerRecord {
    ProducerRecord(topic: "t", key: key, value: value)
}

func knownTopic(
    partitionCount: Int, available: [Int]? = nil, _ change: (inout ProducerConfiguration) -> Void = { _ in }
) throws -> ProducerAccumulator {
    var configuration = try ProducerConfiguration(bootstrap: "localhost:1")
    change(&configuration)
    let accumulator = ProducerAccumulator(configuration)
    accumulator.update(
        topic: "t", partitionCount: partitionCount, available: available ?? Array(0..<partitionCount))
    return accumulator
}
