import MartletLogModel

@testable import MartletClient

/// What suites about share consumers have in common: a topic `t`, and a group `g` that reads it from its beginning.
protocol ShareGroupTests {}

extension ShareGroupTests {
    /// The shortest lock that brokers take.
    static var shortLock: [String: String] {
        [
            "group.share.record.lock.duration.ms": "1000", "group.share.min.record.lock.duration.ms": "1000",
        ]
    }

    /// A topic `t` with the values `0` to `count`, for a group `g` that begins with the first of them.
    func run(
        _ count: Int, partitions: Int32 = 2, _ settings: [String: String] = [:], isolation: String? = nil,
        _ body: (ProxiedBroker) async throws -> Void
    ) async throws {
        try await ProxiedBroker.run(settings) { broker in
            try await broker.topic("t", partitions)
            let admin = try broker.admin()
            var changes = [ConfigChange.set("share.auto.offset.reset", to: "earliest")]
            if let isolation { changes.append(.set("share.isolation.level", to: isolation)) }
            try await admin.alterConfig(.group("g"), changes)
            await admin.close()
            try await fill(broker, 0..<count, partitions)
            try await body(broker)
        }
    }

    func fill(_ broker: ProxiedBroker, _ numbers: Range<Int>, _ partitions: Int32) async throws {
        let producer = try broker.producer(nil)
        for number in numbers {
            try await producer.enqueue(
                ProducerRecord(
                    topic: "t", partition: PartitionIndex(Int32(number) % partitions), value: "\(number)"))
        }
        try await producer.close()
    }

    func member(
        _ broker: ProxiedBroker, _ change: (inout ShareConsumerConfiguration) -> Void = { _ in }
    ) async throws -> ShareConsumer {
        let consumer = try broker.shareConsumer("g", change)
        try await consumer.subscribe(to: ["t"])
        return consumer
    }

    func number(_ record: SharedRecord) -> Int { record.record.valueString.flatMap { Int($0) } ?? -1 }

    /// The records of the first poll that has any.
    func first(_ consumer: ShareConsumer, limit: Int = 10_000) async throws -> [SharedRecord] {
        while true {
            let records = try await consumer.poll(timeout: .milliseconds(50), limit: limit)
            if !records.isEmpty { return records }
        }
    }

    /// Polls and accepts until `count` records have come.
    func read(_ consumer: ShareConsumer, _ count: Int) async throws -> [SharedRecord] {
        var seen: [SharedRecord] = []
        while seen.count < count { seen += try await consumer.poll(timeout: .milliseconds(50)) }
        return seen
    }

    /// Nothing is left to be given out, and the group knows it.
    func expectDone(_ broker: ProxiedBroker, partitions: Int32 = 2) async throws {
        let admin = try broker.admin()
        try await until {
            let offsets = try await admin.shareGroupOffsets("g")
            return offsets.count == Int(partitions) && offsets.values.allSatisfy { $0.lag == 0 }
        }
        await admin.close()
    }

    func expectDone(_ broker: ProxiedBroker, partitions: Int32, leaving count: Int64) async throws {
        let admin = try broker.admin()
        try await until {
            try await admin.shareGroupOffsets("g").values.compactMap(\.lag).reduce(0, +) == count
        }
        await admin.close()
    }
}
