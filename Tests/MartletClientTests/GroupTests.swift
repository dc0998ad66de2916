import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import Synchronization
import Testing

@testable import MartletClient

/// A member of a group whose coordinator misbehaves.
@Suite(.timeLimit(.minutes(2))) struct GroupTests {
    private let partitions: Set<TopicPartition> = [TopicPartition("t", 0), TopicPartition("t", 1)]

    private func run(
        _ change: (inout ConsumerConfiguration) -> Void = { _ in }, prepare: (FakeBroker) -> Void = { _ in },
        _ body: (FakeBroker, Consumer) async throws -> Void
    ) async throws {
        let broker = try await FakeBroker.start(topics: ["t": 2])
        prepare(broker)
        var configuration = try ConsumerConfiguration(bootstrap: broker.bootstrap, groupID: "g")
        configuration.client.retryBackoff = .milliseconds(5)
        configuration.client.reconnectBackoff = .milliseconds(5)
        configuration.client.operationTimeout = .seconds(20)
        configuration.heartbeatInterval = .milliseconds(20)
        configuration.offsetReset = .earliest
        change(&configuration)
        let consumer = try Consumer(configuration)
        try await consumer.subscribe(to: ["t"])
        try await body(broker, consumer)
        try await consumer.close()
        try await broker.stop()
    }

    private func join(_ consumer: Consumer) async throws {
        while consumer.assignment != partitions { _ = try await consumer.poll(timeout: .milliseconds(20)) }
    }

    private func joinError(_ code: ErrorCode) -> FakeBroker.Reaction {
        .answer { header in
            var response = JoinGroupResponse()
            response.errorCode = code.rawValue
            response.protocolName = ""
            return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
        }
    }

    private func syncError(_ code: ErrorCode) -> FakeBroker.Reaction {
        .answer { header in
            var response = SyncGroupResponse()
            response.errorCode = code.rawValue
            return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
        }
    }

    private func heartbeatError(_ code: ErrorCode) -> FakeBroker.Reaction {
        .answer { header in
            var response = HeartbeatResponse()
            response.errorCode = code.rawValue
            return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
        }
    }

    @Test func `a member joins with the id it is given`() async throws {
        try await run { broker, consumer in
            try await join(consumer)
            #expect(broker.joinedMembers == ["member-0"])
            #expect(broker.count(.joinGroup) == 2)
        }
    }

    @Test func `passing troubles of the coordinator only delay the join`() async throws {
        try await run(prepare: { broker in
            broker.next(
                .joinGroup, joinError(.coordinatorLoadInProgress), joinError(.notCoordinator), .close,
                joinError(.rebalanceInProgress), joinError(.unknownMemberID))
            broker.next(.syncGroup, syncError(.rebalanceInProgress), syncError(.illegalGeneration), .close)
            broker.next(.findCoordinator, .close)
        }) { broker, consumer in
            try await join(consumer)
            #expect(broker.joinedMembers.count >= 4)
        }
    }

    @Test func `a final refusal is reported with its cause`() async throws {
        try await run(prepare: { $0.always(.joinGroup, joinError(.groupAuthorizationFailed)) }) {
            broker, consumer in
            await #expect { try await consumer.poll(timeout: .seconds(20)) } throws: { error in
                let error = error as? ClientError
                return error?.code == .notAuthorized && error?.message.contains("'g'") == true
            }
        }
    }

    @Test func `a rebalance revokes, commits, calls back and assigns anew`() async throws {
        let events = Mutex<[RebalanceEvent]>([])
        try await run({ $0.onRebalance = { event in events.withLock { $0.append(event) } } }) {
            broker, consumer in
            try await join(consumer)
            var builder = RecordBatchBuilder()
            try builder.append(key: nil, value: ByteBuffer(string: "a"), timestamp: 0)
            try broker.append(try builder.build(), to: TopicPartition("t", 0))
            while try await consumer.poll(timeout: .milliseconds(20)).isEmpty {}
            broker.next(.heartbeat, heartbeatError(.rebalanceInProgress))
            while broker.joinedMembers.count < 2 { _ = try await consumer.poll(timeout: .milliseconds(20)) }
            try await join(consumer)
            #expect(broker.committed[TopicPartition("t", 0)] == 1)
            let sorted = partitions.sorted()
            #expect(events.withLock { $0 } == [.assigned(sorted), .revoked(sorted), .assigned(sorted)])
            #expect(Set(broker.joinedMembers).count == 1)
        }
    }

    @Test func `a cooperative member keeps reading through a rebalance that changes nothing`() async throws {
        let events = Mutex<[RebalanceEvent]>([])
        try await run({
            $0.assignmentStrategies = [.cooperativeSticky]
            $0.onRebalance = { event in events.withLock { $0.append(event) } }
        }) { broker, consumer in
            try await join(consumer)
            broker.next(.heartbeat, heartbeatError(.rebalanceInProgress))
            while broker.joinedMembers.count < 2 { _ = try await consumer.poll(timeout: .milliseconds(20)) }
            #expect(consumer.assignment == partitions)
            #expect(events.withLock { $0 } == [.assigned(partitions.sorted())])
        }
    }

    @Test func `a commit does not wait for a join under way`() async throws {
        try await run({
            $0.assignmentStrategies = [.cooperativeSticky]
            $0.client.requestTimeout = .seconds(300)
        }) { broker, consumer in
            try await join(consumer)
            let partition = TopicPartition("t", 0)
            broker.next(.joinGroup, .hold(until: { broker.committed[partition] != nil }, then: .usual))
            broker.next(.heartbeat, heartbeatError(.rebalanceInProgress))
            try await until { broker.count(.joinGroup) == 3 }
            try await consumer.commit([partition: CommittedOffset(Offset(4))])
            #expect(broker.committed[partition] == 4)
        }
    }

    @Test func `leaving does not wait for a join under way`() async throws {
        try await run({ $0.assignmentStrategies = [.cooperativeSticky] }) { broker, consumer in
            try await join(consumer)
            broker.next(.joinGroup, .hold(until: { broker.count(.leaveGroup) == 1 }, then: .usual))
            broker.next(.heartbeat, heartbeatError(.rebalanceInProgress))
            try await until { broker.count(.joinGroup) == 3 }
            try await consumer.close()
            #expect(broker.count(.leaveGroup) == 1)
        }
    }

    @Test func `what a cooperative member gives up while the next round is under way finds an owner`() async throws {
        let given = Mutex<[TopicPartition]>([])
        try await run({
            $0.assignmentStrategies = [.cooperativeSticky]
            $0.isAutoCommitEnabled = false
            $0.onRebalance = { event in
                if case .revoked(let partitions) = event { given.withLock { $0 += partitions } }
            }
        }) { broker, consumer in
            try await join(consumer)
            let rest = FakeBroker.Reaction.answer { header in
                var response = SyncGroupResponse()
                response.assignment = try ConsumerProtocol.encode(assignment: [TopicPartition("t", 0)])
                return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
            }
            // The second round takes a partition away. Nobody polls, so the member still has it when the third
            // begins, and gives it up before that one's assignment comes: nobody was given it then.
            broker.next(.syncGroup, rest, .hold(until: { !given.withLock(\.isEmpty) }, then: rest))
            broker.next(.heartbeat, heartbeatError(.rebalanceInProgress))
            try await until { broker.count(.syncGroup) == 2 }
            broker.next(.heartbeat, heartbeatError(.rebalanceInProgress))
            try await until { broker.count(.syncGroup) == 3 }
            #expect(broker.joinedMembers.count == 3)
            for _ in 0..<200 where broker.joinedMembers.count < 4 {
                _ = try await consumer.poll(timeout: .milliseconds(20))
            }
            #expect(given.withLock { $0 } == [TopicPartition("t", 1)])
            #expect(broker.joinedMembers.count == 4)
        }
    }

    @Test(arguments: [ErrorCode.unknownMemberID, .illegalGeneration])
    func `an expelled member loses its partitions without a commit and joins again`(code: ErrorCode)
        async throws
    {
        let events = Mutex<[RebalanceEvent]>([])
        try await run({ $0.onRebalance = { event in events.withLock { $0.append(event) } } }) {
            broker, consumer in
            try await join(consumer)
            broker.next(.heartbeat, heartbeatError(code))
            while broker.joinedMembers.count < 2 { _ = try await consumer.poll(timeout: .milliseconds(20)) }
            try await join(consumer)
            let sorted = partitions.sorted()
            #expect(events.withLock { $0 } == [.assigned(sorted), .lost(sorted), .assigned(sorted)])
            #expect(Set(broker.joinedMembers).count == (code == .unknownMemberID ? 2 : 1))
        }
    }

    @Test func `a fenced static member is told`() async throws {
        try await run({ $0.groupInstanceID = "one" }) { broker, consumer in
            try await join(consumer)
            broker.next(.heartbeat, heartbeatError(.fencedInstanceID))
            await #expect {
                while true { _ = try await consumer.poll(timeout: .seconds(20)) }
            } throws: { ($0 as? ClientError)?.code == .fenced }
        }
    }

    @Test func `closing commits, leaves and says so once`() async throws {
        try await run { broker, consumer in
            try await join(consumer)
            try await consumer.close()
            #expect(broker.count(.leaveGroup) == 1)
            await #expect { try await consumer.poll() } throws: { ($0 as? ClientError)?.code == .closed }
        }
    }

    @Test func `a commit behind the group's back is told as a rebalance`() async throws {
        try await run { broker, consumer in
            try await join(consumer)
            broker.next(
                .offsetCommit,
                .answer { header in
                    var response = OffsetCommitResponse()
                    var topic = OffsetCommitResponse.OffsetCommitResponseTopic()
                    topic.name = "t"
                    var item = OffsetCommitResponse.OffsetCommitResponsePartition()
                    item.errorCode = ErrorCode.illegalGeneration.rawValue
                    topic.partitions = [item]
                    response.topics = [topic]
                    return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
                })
            await #expect {
                try await consumer.commit([TopicPartition("t", 0): CommittedOffset(Offset(5))])
            } throws: { ($0 as? ClientError)?.code == .rebalanced }
            try await consumer.commit([TopicPartition("t", 0): CommittedOffset(Offset(6))])
            #expect(broker.committed[TopicPartition("t", 0)] == 6)
        }
    }

    @Test func `lost coordinators are found again for commits`() async throws {
        try await run { broker, consumer in
            try await join(consumer)
            broker.next(.offsetCommit, .close, .close)
            try await consumer.commit([TopicPartition("t", 1): CommittedOffset(Offset(3))])
            #expect(broker.committed[TopicPartition("t", 1)] == 3)
        }
    }

    @Test(arguments: [(0, 0, 1, 2), (5, 3, 5, 7), (9, 5, 9, 9)] as [(Int16, Int16, Int16, Int16)])
    func `older group versions are spoken`(join: Int16, sync: Int16, fetch: Int16, commit: Int16) async throws
    {
        try await run(prepare: { broker in
            broker.serve(.joinGroup, 0...join)
            broker.serve(.syncGroup, 0...sync)
            broker.serve(.offsetFetch, 1...fetch)
            broker.serve(.offsetCommit, 2...commit)
            broker.serve(.findCoordinator, 0...min(join, 6))
        }) { broker, consumer in
            try await self.join(consumer)
            try await consumer.commit([TopicPartition("t", 0): CommittedOffset(Offset(1))])
            #expect(broker.committed[TopicPartition("t", 0)] == 1)
            #expect(
                try await consumer.committed([TopicPartition("t", 0)])[TopicPartition("t", 0)]??.offset
                    == Offset(1))
        }
    }
}
