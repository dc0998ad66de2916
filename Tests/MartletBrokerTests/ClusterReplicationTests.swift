import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import NIOPosix
import Testing

/// Records on several brokers, over sockets: followers fetch, leaders answer when all have it, others take over.
@Suite(.serialized, .timeLimit(.minutes(3))) struct `Replicated partitions` {
    private static let ids: [Int32] = [1, 2, 3]

    /// A topic `t` with a replica of each partition on each broker, all in sync.
    private func withTopic(
        partitions: Int32 = 1, _ configs: [String: String] = ["min.insync.replicas": "2"],
        _ body: (TestCluster) async throws -> Void
    ) async throws {
        try await withCluster(Self.ids) { cluster in
            #expect(try cluster.createTopic("t", through: 1, partitions: partitions, replicas: 3, configs: configs) == 0)
            try await cluster.whenInSync("t", Self.ids)
            try await body(cluster)
        }
    }

    @Test func `have what was acknowledged after each of their leaders has stopped`() async throws {
        try await withTopic(partitions: 3) { cluster in
            var expected: [Int32: [String]] = [:]
            func produce(_ round: String) async throws {
                for partition in 0..<3 as Range<Int32> {
                    for number in 0..<5 {
                        let value = "\(round)-\(partition)-\(number)"
                        try await cluster.produce(value, to: "t", partition)
                        expected[partition, default: []].append(value)
                    }
                }
            }
            try await produce("whole")
            for id in Self.ids {
                await cluster.stop(id)
                try await cluster.whenInSync("t", Self.ids.filter { $0 != id })
                try await produce("without \(id)")
                try await cluster.start(id)
                try await cluster.whenInSync("t", Self.ids)
            }
            for partition in 0..<3 as Range<Int32> {
                #expect(try await cluster.values("t", partition) == expected[partition])
            }
        }
    }

    @Test func `refuse what too few have`() async throws {
        try await withTopic(["min.insync.replicas": "3"]) { cluster in
            try await cluster.produce("a", to: "t", 0)
            let leader = try await cluster.leader(of: "t", 0)
            let follower = try #require(Self.ids.first { $0 != leader })
            await cluster.stop(follower)
            try await cluster.whenInSync("t", Self.ids.filter { $0 != follower })
            let refused = try WireClient(port: cluster.port(leader)).produce(makeBatch(["b"]), topic: "t")
            #expect(refused.errorCode == ErrorCode.notEnoughReplicas.rawValue)
            try await cluster.start(follower)
            try await cluster.whenInSync("t", Self.ids)
            try await cluster.produce("c", to: "t", 0)
            #expect(try await cluster.values("t", 0) == ["a", "c"])
        }
    }

    @Test func `are all there after every broker has stopped`() async throws {
        try await withTopic { cluster in
            for number in 0..<10 { try await cluster.produce("\(number)", to: "t", 0) }
            await cluster.stopAll()
            try await cluster.startAll()
            try await cluster.whenWhole(Self.ids)
            try await cluster.whenInSync("t", Self.ids)
            #expect(try await cluster.values("t", 0) == (0..<10).map { "\($0)" })
            try await cluster.produce("10", to: "t", 0)
        }
    }

    @Test func `keep the offsets of a group whose coordinator stops`() async throws {
        try await withTopic { cluster in
            let first = try await cluster.coordinator(of: "g", through: 1)
            try await cluster.whenInSync("__consumer_offsets", Self.ids)
            var partition = OffsetCommitRequest.OffsetCommitRequestPartition()
            partition.committedOffset = 42
            var topic = OffsetCommitRequest.OffsetCommitRequestTopic()
            topic.name = "t"
            topic.partitions = [partition]
            var commit = OffsetCommitRequest()
            commit.groupID = "g"
            commit.topics = [topic]
            let answer = try await cluster.ask(
                first, commit, version: 8, until: { $0.topics.first?.partitions.first?.errorCode == 0 }, "commit")
            #expect(answer.topics.count == 1)
            await cluster.stop(first)
            let through = try #require(Self.ids.first { $0 != first })
            let second = try await cluster.coordinator(of: "g", through: through)
            #expect(second != first)
            var asked = OffsetFetchRequest.OffsetFetchRequestTopic()
            asked.name = "t"
            asked.partitionIndexes = [0]
            var fetch = OffsetFetchRequest()
            fetch.groupID = "g"
            fetch.topics = [asked]
            let found = try await cluster.ask(
                second, fetch, version: 7, until: { $0.errorCode == 0 }, "offsets of the group")
            #expect(found.topics.first?.partitions.first?.committedOffset == 42)
        }
    }
}

extension TestCluster {
    /// Each broker says that exactly these replicas are in sync, and that one of them leads.
    func whenInSync(_ topic: String, _ ids: [Int32]) async throws {
        for id in ids {
            _ = try await metadata(
                id,
                until: { response in
                    guard let found = response.topics.first(where: { $0.name == topic }) else { return false }
                    return found.partitions.allSatisfy { $0.isrNodes.sorted() == ids && ids.contains($0.leaderID) }
                }, "in sync \(ids)")
        }
    }

    func leader(of topic: String, _ partition: Int32) async throws -> Int32 {
        let id = try #require(brokers.keys.min())
        func found(_ response: MetadataResponse) -> Int32 {
            response.topics.first { $0.name == topic }?.partitions.first { $0.partitionIndex == partition }?.leaderID ?? -1
        }
        return found(try await metadata(id, until: { found($0) >= 0 }, "a leader of \(topic)-\(partition)"))
    }

    /// Until it is acknowledged; clients ask another leader where one has moved.
    func produce(_ value: String, to topic: String, _ partition: Int32) async throws {
        for _ in 0..<200 {
            let leader = try await leader(of: topic, partition)
            let code = try? WireClient(port: port(leader)).produce(makeBatch([value]), topic: topic, partition: partition)
            if code?.errorCode == 0 { return }
            #expect(
                code == nil || ErrorCode(rawValue: code?.errorCode ?? 0).isRetriable,
                "\(value): \(code.map { "\($0.errorCode)" } ?? "")")
            try await pause()
        }
        throw TimedOut(description: "\(value) was not acknowledged")
    }

    /// Everything that a consumer sees, read from the leader.
    func values(_ topic: String, _ partition: Int32) async throws -> [String] {
        var values: [String] = []
        var next: Int64 = 0
        let leader = try await leader(of: topic, partition)
        while true {
            let client = try WireClient(port: port(leader))
            let response = try client.call(client.fetchRequest(topic, from: next, partition: partition), version: 12)
            let part = try #require(response.responses.first?.partitions.first)
            #expect(part.errorCode == 0)
            var bytes = part.records ?? ByteBuffer()
            if bytes.readableBytes == 0 { return values }
            while bytes.readableBytes > 0 {
                let header = try RecordBatchHeader(reading: bytes)
                let slice = bytes.readSlice(length: header.totalByteCount)
                let batch = try #require(slice)
                var iterator = try RecordIterator(batch)
                while let record = try iterator.next() { values.append(record.value.map { String(buffer: $0) } ?? "") }
                next = header.lastOffset + 1
            }
        }
    }

    func coordinator(of group: String, through id: Int32) async throws -> Int32 {
        var request = FindCoordinatorRequest()
        request.coordinatorKeys = [group]
        let answer = try await ask(
            id, request,
            until: { $0.coordinators.first?.errorCode == 0 && self.brokers[$0.coordinators.first?.nodeID ?? -1] != nil },
            "coordinator of \(group)")
        return answer.coordinators[0].nodeID
    }
}
