import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletReplication
import MartletStorage
import MartletTestSupport
import NIOCore
import NIOEmbedded
import Testing

@testable import MartletBroker

@Suite struct ReplicationTests {
    private func withWorld(
        brokers: [Int32] = [0, 1], racks: [Int32: String] = [:], _ body: (ReplicaWorld) throws -> Void
    ) throws {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        let world = try ReplicaWorld(folder: folder.path, brokers: brokers, racks: racks)
        do {
            try body(world)
        } catch {
            try world.stop()
            throw error
        }
        try world.stop()
    }

    private func first(_ response: ProduceResponse?) throws -> ProduceResponse.PartitionProduceResponse {
        try #require(response?.responses.first?.partitionResponses.first)
    }

    // MARK: Leader and follower

    @Test func `records and the mark reach a follower that no client asked for`() throws {
        try withWorld { world in
            try world.createTopic()
            #expect(world[1].fetchers.followed[world.key]?.leader == BrokerID(0))
            #expect(world[1].fetchers.followed[world.key]?.address?.host == "broker-0")
            #expect(world[0].fetchers.followed.isEmpty)
            for value in ["a", "b", "c"] { #expect(try first(world.produce(value, to: 0)).errorCode == 0) }
            #expect(try world.partition(0).visibleEnd == .zero)
            try world.replicate(1)
            #expect(try world.log(1).logEndOffset == Offset(3))
            #expect(try world.bytes(1) == world.bytes(0))
            #expect(try world.partition(0).visibleEnd == Offset(3))
            #expect(try world.partition(1).visibleEnd == Offset(3))
            #expect(try world.consume(0, from: 0).highWatermark == 3)
        }
    }

    @Test func `acks=all waits until each replica in sync has flushed`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.replicate(1)
            world[1].flushes.isHeld = true
            try world[0].wire.send(try world.produceRequest("a"), version: 13)
            try world.fetch(1)
            #expect(try world.log(1).writtenEndOffset == Offset(1))
            #expect(try world.fetch(1) == nil, "its next question would say that it is flushed")
            #expect(try world[0].wire.read(ProduceRequest.self, version: 13) == nil)
            let wakes = world[1].fetchers.wakeCount
            world[1].flushes.isHeld = false
            world[1].run()
            #expect(world[1].fetchers.wakeCount > wakes)
            world[0].flushes.isHeld = true
            try world.fetch(1)
            let answer = try world[0].wire.read(ProduceRequest.self, version: 13)
            #expect(try first(answer).errorCode == 0)
            #expect(try first(answer).baseOffset == 0)
            // The same for the leader's own.
            try world[0].wire.send(try world.produceRequest("b"), version: 13)
            try world.replicate(1)
            #expect(try world[0].wire.read(ProduceRequest.self, version: 13) == nil)
            world[0].flushes.isHeld = false
            #expect(try first(world[0].wire.read(ProduceRequest.self, version: 13)).errorCode == 0)
        }
    }

    @Test func `an append that the replicas do not get in time is answered with a time-out`() throws {
        try withWorld { world in
            try world.createTopic()
            try world[0].wire.send(try world.produceRequest("a"), version: 13)
            world[0].eventLoop.advanceTime(by: .seconds(11))
            let answer = try first(world[0].wire.read(ProduceRequest.self, version: 13))
            #expect(answer.errorCode == ErrorCode.requestTimedOut.rawValue)
        }
    }

    @Test func `too few in sync refuse acks=all before the append, and after it`() throws {
        try withWorld { world in
            try world.createTopic(configs: ["min.insync.replicas": "2"])
            try world.replicate(1)
            try world[0].wire.send(try world.produceRequest("a"), version: 13)
            try world.change(isr: [0])
            let after = try first(world[0].wire.read(ProduceRequest.self, version: 13))
            #expect(after.errorCode == ErrorCode.notEnoughReplicasAfterAppend.rawValue)
            let before = try first(world.produce("b", to: 0, acks: -1))
            #expect(before.errorCode == ErrorCode.notEnoughReplicas.rawValue)
            #expect(before.errorMessage?.contains("min.insync.replicas=2") == true)
            #expect(before.errorMessage?.contains("in sync: 1") == true)
            #expect(try first(world.produce("c", to: 0, acks: 1)).errorCode == 0)
            #expect(try world.log(0).logEndOffset == Offset(2), "the refused one is not in the log")
        }
    }

    @Test func `a leadership that ends abandons what waits and names the next leader`() throws {
        try withWorld { world in
            try world.createTopic()
            try world[0].wire.send(try world.produceRequest("a"), version: 13)
            try world.change(leader: 1, isr: [1])
            let answer = try #require(try world[0].wire.read(ProduceRequest.self, version: 13))
            #expect(try first(answer).errorCode == ErrorCode.notLeaderOrFollower.rawValue)
            #expect(try first(answer).currentLeader.leaderID == 1)
            #expect(try first(answer).currentLeader.leaderEpoch == 1)
            #expect(answer.nodeEndpoints.first?.host == "broker-1")
            #expect(world[0].fetchers.followed[world.key]?.leader == BrokerID(1))
            #expect(world[1].fetchers.followed.isEmpty)
            let consumed = try world.consume(0, from: 0, version: 10)
            #expect(consumed.errorCode == ErrorCode.notLeaderOrFollower.rawValue)
        }
    }

    // MARK: Divergence

    @Test func `what only the former leader had is cut by epochs`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.produce("a", to: 0)
            try world.replicate(1)
            try world.produce("lost", to: 0)
            try world.produce("lost too", to: 0)
            try world.change(leader: 1, isr: [1])
            try world.produce("b", to: 1)
            #expect(try world.log(0).logEndOffset == Offset(3))
            guard case .diverging(let end)? = try world.fetch(0) else {
                Issue.record("no divergence")
                return
            }
            #expect(end == EpochEnd(epoch: LeaderEpoch(0), endOffset: Offset(1)))
            #expect(try world.log(0).logEndOffset == Offset(1))
            try world.replicate(0)
            #expect(try world.bytes(0) == world.bytes(1))
            #expect(try world.log(0).leaderEpochs == world.log(1).leaderEpochs)
            // And back again, after a start of the process.
            try world.change(isr: [1, 0])
            try world.restart(0)
            try world.replicate(0)
            try world.change(leader: 0)
            try world.replicate(1)
            #expect(try first(world.produce("c", to: 0)).baseOffset == 2)
            try world.replicate(1)
            #expect(try world.bytes(0) == world.bytes(1))
        }
    }

    @Test func `an epoch that wrote nothing is cut too`() throws {
        try withWorld(brokers: [0, 1, 2]) { world in
            try world.createTopic(replicas: [0, 1, 2])
            try world.produce("a", to: 0)
            for id in [1, 2] as [Int32] { try world.replicate(id) }
            try world.change(leader: 1, isr: [1, 2])
            #expect(try world.log(1).leaderEpochs.latest == LeaderEpoch(1))
            try world.change(leader: 2, isr: [2])
            try world.produce("b", to: 2)
            for id in [0, 1] as [Int32] {
                try world.replicate(id)
                #expect(try world.bytes(id) == world.bytes(2))
                #expect(try world.log(id).leaderEpochs == world.log(2).leaderEpochs)
            }
        }
    }

    @Test func `a cut waits for a flush under way, and a change of role for the cut`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.produce("a", to: 0)
            try world.replicate(1)
            world[0].flushes.isHeld = true
            try world.produce("lost", to: 0)
            try world.change(leader: 1, isr: [1])
            try world.produce("b", to: 1)
            #expect(try world.fetch(0) == nil, "not flushed")
            world[0].flushes.isHeld = false
            world[0].run()
            world[0].works.isHeld = true
            try world.fetch(0)
            #expect(try world.partition(0).isOpen == false, "the pool has the log")
            #expect(try world.consume(0, from: 0).errorCode == ErrorCode.notLeaderOrFollower.rawValue)
            try world.change(isr: [1, 0])
            try world.change(leader: 0)
            #expect(try world.partition(0).leaderEpoch == nil)
            world[0].works.isHeld = false
            world[0].run()
            #expect(try world.partition(0).leaderEpoch == LeaderEpoch(2))
            #expect(try world.log(0).logEndOffset == Offset(1))
        }
    }

    @Test func `a partition that is deleted or closed during a cut ends well`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.produce("lost", to: 0)
            try world.change(leader: 1, isr: [1])
            try world.produce("b", to: 1)
            world[0].works.isHeld = true
            try world.fetch(0)
            let partition = try world.partition(0)
            #expect(!partition.isOpen)
            var removal = RemoveTopicRecord()
            removal.topicID = world.topicID
            try world.write(.removeTopic(removal))
            world[0].works.isHeld = false
            world[0].run()
            #expect(!partition.isOpen)
            #expect(world[0].loop.existingPartition(world.key) == nil)
        }
        try withWorld { world in
            try world.createTopic()
            try world.produce("lost", to: 0)
            try world.change(leader: 1, isr: [1])
            try world.produce("b", to: 1)
            world[0].works.isHeld = true
            try world.fetch(0)
        }
    }

    @Test func `a follower far behind begins again at the leader's log start`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.produce("a", to: 0)
            try world.replicate(1)
            try world.change(isr: [0])
            for value in ["b", "c", "d"] { try world.produce(value, to: 0) }
            var deleted: Result<Offset, PartitionUnavailable>?
            try world.partition(0).deleteRecords(before: 3) { deleted = $0 }
            world[0].run()
            #expect(try deleted?.get() == Offset(3))
            #expect(try world.fetch(1) == .outOfRange(leaderLogStartOffset: Offset(3)))
            #expect(try world.log(1).logStartOffset == Offset(3))
            #expect(try world.log(1).logEndOffset == Offset(3))
            try world.replicate(1)
            #expect(try world.bytes(1) == world.bytes(0))
        }
    }

    @Test func `what was committed once and the leader does not have is kept aside before it is cut`() throws {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        let world = try ReplicaWorld(folder: folder.path)
        try world.createTopic()
        try world.produce("a", to: 0)
        try world.replicate(1)
        try world.change(isr: [0])
        for value in ["b", "c"] { try world.produce(value, to: 0) }
        #expect(try world.partition(0).highWatermark == Offset(3))
        // An unclean election.
        try world.change(leader: 1, isr: [1])
        try world.produce("d", to: 1)
        try world.replicate(0)
        #expect(try world.bytes(0) == world.bytes(1))
        #expect(try world.partition(0).highWatermark == Offset(2))
        let disk = PosixDisk()
        let kept = folder.path + "/0/" + LogDirectory<PosixDisk>.quarantineName + "/t-0"
        #expect(try disk.list(kept) == ["00000000000000000001.bytes"])
        try world.stop()
    }

    // MARK: High watermark

    @Test func `a new leader answers nothing that depends on a mark which it cannot know`() throws {
        try withWorld(brokers: [0, 1, 2]) { world in
            try world.createTopic(replicas: [0, 1, 2])
            try world.produce("a", to: 0)
            try world.fetch(1)
            try world.fetch(2)
            // Broker 1 has the record, and nobody has told it whether it is committed.
            #expect(try world.partition(1).highWatermark == .zero)
            try world.change(leader: 1, isr: [1, 2])
            #expect(try world.partition(1).visibleEnd == nil)
            #expect(try world.consume(1, from: 0).errorCode == ErrorCode.offsetNotAvailable.rawValue)
            #expect(try world.listOffsets(1).error == ErrorCode.offsetNotAvailable.rawValue)
            #expect(try world.listOffsets(1, 0).error == ErrorCode.offsetNotAvailable.rawValue)
            #expect(try world.listOffsets(1, -2).offset == 0)
            try world.replicate(2)
            #expect(try world.partition(1).visibleEnd == Offset(1))
            #expect(try world.listOffsets(1).offset == 1)
            #expect(try world.consume(1, from: 0).records != nil)
        }
    }

    @Test func `the mark survives the process`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.produce("a", to: 0)
            try world.replicate(1)
            #expect(try world.partition(1).highWatermark == Offset(1))
            try world.restart(1)
            #expect(try world.partition(1).highWatermark == Offset(1))
        }
    }

    // MARK: In-sync set

    @Test func `a follower that is silent too long leaves the in-sync set, and comes back when it has everything`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.replicate(1)
            try world[0].wire.send(try world.produceRequest("a"), version: 13)
            for _ in 0..<32 { world[0].eventLoop.advanceTime(by: .seconds(1)) }
            #expect(world[0].proposals.waiting.first?.proposal.members.map(\.broker) == [BrokerID(0)])
            #expect(try world.decide(0) == [0])
            #expect(try world.partition(0).visibleEnd == Offset(1))
            try world.replicate(1)
            let proposal = try #require(world[0].proposals.waiting.first?.proposal)
            #expect(proposal.members.map(\.broker) == [BrokerID(0), BrokerID(1)])
            #expect(proposal.members.last?.brokerEpoch?.rawValue == world.brokerEpochs[1])
            #expect(try world.decide(0) == [0, 1])
            #expect(try world.partition(0).replica.snapshot().inSyncReplicas == [BrokerID(0), BrokerID(1)])
        }
    }

    @Test func `a proposal that was lost is repeated, a fenced broker is not proposed`() throws {
        try withWorld { world in
            try world.createTopic(isr: [0])
            try world.fence(1)
            try world.replicate(1)
            #expect(world[0].proposals.waiting.isEmpty)
            try world.fence(1, false)
            try world.replicate(1)
            let (lost, settle) = try #require(world[0].proposals.take())
            settle(.lost)
            world[0].run()
            world[0].eventLoop.advanceTime(by: .seconds(2))
            try world.replicate(1)
            let again = try #require(world[0].proposals.waiting.first?.proposal)
            #expect(again.number > lost.number)
        }
    }

    // MARK: Long poll

    @Test func `a follower that waits is woken by an append, and by a mark that it does not know`() throws {
        try withWorld(brokers: [0, 1, 2]) { world in
            try world.createTopic(replicas: [0, 1, 2])
            for id in [1, 2] as [Int32] { try world.replicate(id) }
            let wire = ReplicaWire(world[0])
            let partition = try world.partition(1)
            var sent = try #require(partition.nextReplicaFetch())
            // The first answer of a session says everything at once.
            try wire.send(try world.request(1, sent, maxWait: 500, session: (0, 0)), version: 17)
            let opened = try #require(try wire.read(FetchRequest.self, version: 17))
            var epoch: Int32 = 1
            func ask(_ sent: ReplicaFetch) throws {
                try wire.send(try world.request(1, sent, maxWait: 500, session: (opened.sessionID, epoch)), version: 17)
                epoch += 1
            }
            try ask(sent)
            #expect(try wire.read(FetchRequest.self, version: 17) == nil, "nothing is new")
            try world.produce("a", to: 0)
            let woken = try #require(try wire.read(FetchRequest.self, version: 17)?.responses.first?.partitions.first)
            partition.replicaFetchAnswered(sent, ReplicaWorld.meaning(of: woken), records: woken.records)
            world[1].run()
            #expect(try world.log(1).logEndOffset == Offset(1))
            sent = try #require(partition.nextReplicaFetch())
            try ask(sent)
            #expect(try wire.read(FetchRequest.self, version: 17) == nil, "the mark waits for the third")
            try world.replicate(2)
            let mark = try #require(try wire.read(FetchRequest.self, version: 17)?.responses.first?.partitions.first)
            #expect(mark.highWatermark == 1)
            #expect(mark.records == nil || mark.records?.readableBytes == 0)
            try ask(sent)
            world[0].eventLoop.advanceTime(by: .milliseconds(600))
            #expect(try #require(try wire.read(FetchRequest.self, version: 17)).responses.isEmpty, "no news")
            // One that waits hears of the end of the leadership.
            try ask(sent)
            try world.change(leader: 2, isr: [2])
            let refused = try #require(try wire.read(FetchRequest.self, version: 17)?.responses.first?.partitions.first)
            #expect(refused.errorCode == ErrorCode.notLeaderOrFollower.rawValue)
            #expect(refused.currentLeader.leaderID == 2)
        }
    }

    @Test func `a fetch of another epoch acknowledges nothing`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.replicate(1)
            try world.produce("a", to: 0)
            var sent = try #require(try world.partition(1).nextReplicaFetch())
            sent.offset = Offset(1)
            sent.leaderEpoch = LeaderEpoch(7)
            let answer = try world[0].wire.call(world.request(1, sent), version: 17)
            #expect(
                answer.responses.first?.partitions.first?.errorCode == ErrorCode.unknownLeaderEpoch.rawValue)
            #expect(try world.partition(0).visibleEnd == .zero)
        }
    }

    // MARK: Followers and consumers

    @Test func `a consumer reads from the follower of its rack`() throws {
        try withWorld(racks: [0: "a", 1: "b"]) { world in
            try world.createTopic()
            try world.produce("a", to: 0)
            try world.replicate(1)
            let told = try world.consume(0, from: 0, rack: "b")
            #expect(told.preferredReadReplica == 1)
            #expect((told.records?.readableBytes ?? 0) == 0)
            #expect(try world.consume(0, from: 0, rack: "a").preferredReadReplica == -1)
            #expect(try world.consume(0, from: 0, rack: "c").preferredReadReplica == -1)
            let read = try world.consume(1, from: 0, rack: "b")
            #expect(read.errorCode == 0)
            #expect(read.highWatermark == 1)
            #expect((read.records?.readableBytes ?? 0) > 0)
            #expect(try world.consume(1, from: 0, version: 10).errorCode == ErrorCode.notLeaderOrFollower.rawValue)
            // What it has and does not know to be committed, and what it has not.
            try world.produce("b", to: 0)
            try world.fetch(1)
            #expect(try world.consume(1, from: 1).errorCode == 0)
            #expect(try world.consume(1, from: 2).errorCode == ErrorCode.offsetNotAvailable.rawValue)
            #expect(try world.consume(1, from: 3).errorCode == ErrorCode.offsetOutOfRange.rawValue)
        }
    }

    @Test func `DeleteRecords is answered when the replicas have got there`() throws {
        try withWorld { world in
            try world.createTopic()
            for value in ["a", "b", "c"] { try world.produce(value, to: 0) }
            try world.replicate(1)
            var part = DeleteRecordsRequest.DeleteRecordsPartition()
            part.partitionIndex = 0
            part.offset = 2
            var topic = DeleteRecordsRequest.DeleteRecordsTopic()
            topic.name = "t"
            topic.partitions = [part]
            var request = DeleteRecordsRequest()
            request.topics = [topic]
            request.timeoutMs = 5_000
            let wire = ReplicaWire(world[0])
            try wire.send(request, version: 2)
            #expect(try wire.read(DeleteRecordsRequest.self, version: 2) == nil)
            #expect(try world.log(0).logStartOffset == Offset(2))
            try world.replicate(1)
            #expect(try world.log(1).logStartOffset == Offset(2))
            try world.fetch(1)
            let answer = try #require(try wire.read(DeleteRecordsRequest.self, version: 2)?.topics.first?.partitions.first)
            #expect(answer.errorCode == 0)
            #expect(answer.lowWatermark == 2)
            // Who is gone is not waited for; who is only silent is, as long as the client wants.
            request.topics[0].partitions[0].offset = 3
            try wire.send(request, version: 2)
            world[0].eventLoop.advanceTime(by: .seconds(6))
            let late = try #require(try wire.read(DeleteRecordsRequest.self, version: 2)?.topics.first?.partitions.first)
            #expect(late.errorCode == ErrorCode.requestTimedOut.rawValue)
            try world.fence(1)
            try wire.send(request, version: 2)
            #expect(try wire.read(DeleteRecordsRequest.self, version: 2)?.topics.first?.partitions.first?.lowWatermark == 3)
        }
    }

    // MARK: Life

    @Test func `replicas stay open however long nobody asks, and go when they are taken away`() throws {
        try withWorld { world in
            try world.createTopic()
            for id in [0, 1] as [Int32] {
                world[id].eventLoop.advanceTime(by: .minutes(30))
                world[id].loop.sweepRetention()
                world[id].run()
                #expect(try world.partition(id).isOpen)
            }
            try world.produce("a", to: 0)
            try world.replicate(1)
            try world.change(isr: [0], replicas: [0])
            #expect(world[1].loop.existingPartition(world.key) == nil)
            #expect(world[1].loop.partition(world.key) == nil)
            #expect(world[1].fetchers.followed.isEmpty)
            #expect(try world.consume(1, from: 0).errorCode == ErrorCode.notLeaderOrFollower.rawValue)
            #expect(try world.partition(0).visibleEnd == Offset(1))
            // It comes back empty.
            try world.change(replicas: [0, 1])
            #expect(try world.log(1).logEndOffset == .zero)
            try world.replicate(1)
            #expect(try world.bytes(1) == world.bytes(0))
        }
    }

    @Test func `a planned move loses nothing`() throws {
        try withWorld { world in
            try world.createTopic()
            try world.replicate(1)
            try world.produce("a", to: 0)
            var ready: Bool?
            let future = try world.partition(0).drain(to: BrokerID(1), timeout: .seconds(5))
            future.assumeIsolated().whenSuccess { ready = $0 }
            world[0].run()
            #expect(ready == nil)
            #expect(try first(world.produce("b", to: 0)).errorCode == ErrorCode.notLeaderOrFollower.rawValue)
            try world.replicate(1)
            #expect(ready == true)
            try world.change(leader: 1)
            #expect(try world.log(1).logEndOffset == Offset(1))
            // One that takes too long is called off.
            try world.produce("c", to: 1)
            var late: Bool?
            try world.partition(1).drain(to: nil, timeout: .seconds(5)).assumeIsolated().whenSuccess { late = $0 }
            world[1].eventLoop.advanceTime(by: .seconds(6))
            #expect(late == false)
            #expect(try first(world.produce("d", to: 1)).errorCode == 0)
        }
    }

    @Test func `a follower of a compacted log has its gaps, also after the process was killed`() throws {
        try withWorld { world in
            try world.createTopic(configs: ["cleanup.policy": "compact"])
            let partition = try world.partition(1)
            func answer(_ base: Int64) throws -> ReplicaFetch? {
                let batch = try ReplicaWorld.batch("x")
                RecordBatchPatch.assign(baseOffset: base, leaderEpoch: 0, throughSharedStorageOf: batch)
                guard let sent = partition.nextReplicaFetch() else { return nil }
                partition.replicaFetchAnswered(
                    sent, .records(highWatermark: Offset(40), logStartOffset: .zero), records: batch)
                world[1].run()
                return sent
            }
            world[1].works.isHeld = true
            _ = try answer(7)
            #expect(try world.log(1).logEndOffset == .zero, "not before a start would understand it")
            #expect(partition.nextReplicaFetch() == nil)
            world[1].works.isHeld = false
            world[1].run()
            for base in [7, 19, 30] as [Int64] { #expect(try answer(base) != nil) }
            #expect(try world.log(1).logEndOffset == Offset(31))
            #expect(try world.log(1).segmentCount == 1)
        }
    }
}
