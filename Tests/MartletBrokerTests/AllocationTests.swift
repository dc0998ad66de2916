import CMartletAllocationCounter
import MartletBroker
import MartletKafkaProtocol
import MartletRecordBatch
import NIOCore
import Testing

/// The whole way of a produce and of a fetch request through a broker, from socket to socket, on all its threads:
/// what it allocates does not depend on the number of records.
@Suite(.serialized, .timeLimit(.minutes(2)), .enabled(if: martlet_counts_allocations() == 1)) struct AllocationTests {
    private static let few = 10
    private static let many = 1000
    /// Timers and other tests allocate as well: of so many requests the quietest counts.
    private static let rounds = 40
    /// What may differ by chance. One allocation per record would be 990 more.
    private static let tolerance = 200

    /// Batches of the same size, so that reads and buffers are the same.
    private func batch(_ count: Int) throws -> ByteBuffer {
        let value = String(repeating: "x", count: 12_000 / count)
        return try makeBatch(Array(repeating: value, count: count), key: nil)
    }

    private func least(_ body: () throws -> Void) rethrows -> Int {
        martlet_count_process_allocations(1)
        defer { martlet_count_process_allocations(0) }
        var least = Int.max
        for _ in 0..<Self.rounds {
            let before = martlet_process_allocation_count()
            try body()
            least = min(least, Int(martlet_process_allocation_count() - before))
        }
        return least
    }

    @Test func `produce and fetch allocate per request, not per record`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            var produced: [Int] = []
            var fetched: [Int] = []
            for count in [Self.few, Self.many] {
                let topic = "t\(count)"
                try client.createTopic(topic)
                let bytes = try batch(count)
                let before = try client.produce(bytes, topic: topic)
                #expect(before.errorCode == 0)
                produced.append(try least { _ = try client.produce(bytes, topic: topic) })
                let limit = Int32(bytes.readableBytes)
                #expect(try client.fetch(topic, from: 0, maxBytes: limit).records?.readableBytes == bytes.readableBytes)
                fetched.append(try least { _ = try client.fetch(topic, from: 0, maxBytes: limit) })
            }
            #expect(produced[0] > 0 && fetched[0] > 0)
            #expect(abs(produced[1] - produced[0]) < Self.tolerance, "produce: \(produced)")
            #expect(abs(fetched[1] - fetched[0]) < Self.tolerance, "fetch: \(fetched)")
        }
    }
}
