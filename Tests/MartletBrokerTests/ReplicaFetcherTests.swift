import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

@testable import MartletBroker
@testable import MartletReplication

@Suite(.timeLimit(.minutes(2))) struct `Replica fetcher` {
    private let first = followedKey(1)
    private let second = followedKey(2)

    private static func records(mark: Int64, start: Int64 = 0) -> ReplicaFetchAnswer {
        .records(highWatermark: Offset(mark), logStartOffset: Offset(start))
    }

    // MARK: Session

    @Test func `a session opens with everything and goes on with what moved`() async throws {
        try await withFetchers { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second, offset: 5, last: 2))
            b.followedLogStart = Offset(4)
            try await harness.follow(a, b, at: leader)
            let opening = try await leader.fetch(1)
            #expect(opening.version == 17)
            let request = opening.request
            #expect(request.named == ["1-0@0", "2-0@5"])
            #expect((request.sessionID, request.sessionEpoch) == (0, 0))
            #expect(request.clusterID == FetcherHarness.cluster)
            #expect(request.replicaState.replicaID == 2 && request.replicaState.replicaEpoch == 40)
            #expect((request.maxWaitMs, request.minBytes, request.maxBytes) == (500, 1, 10 * 1024 * 1024))
            let partitions = request.topics.flatMap(\.partitions)
            #expect(partitions.map(\.currentLeaderEpoch) == [3, 3])
            #expect(partitions.map(\.lastFetchedEpoch) == [-1, 2])
            #expect(partitions.map(\.logStartOffset) == [0, 4])
            #expect(partitions.map(\.partitionMaxBytes) == [1024 * 1024, 1024 * 1024])

            let batches = try storedBatches(from: 0, epoch: 3, 2, 3)
            leader.react(.parts(FetchedPart(first, mark: 4, records: batches), FetchedPart(second, mark: 5)))
            let next = try await leader.fetch(2).request
            #expect((next.sessionID, next.sessionEpoch) == (7, 1))
            #expect(next.named == ["1-0@5"])
            #expect(next.topics.flatMap(\.partitions).map(\.lastFetchedEpoch) == [3])
            #expect(next.forgotten == [])
            #expect(
                try await harness.heard(a, 1)
                    == [
                        .init(
                            sent: ReplicaFetch(
                                leader: BrokerID(1), leaderEpoch: LeaderEpoch(3), offset: .zero, lastFetchedEpoch: nil),
                            answer: Self.records(mark: 4), recordBytes: batches.readableBytes)
                    ])
            #expect(try await harness.heard(b, 1).map(\.answer) == [Self.records(mark: 5)])

            leader.react(.parts(FetchedPart(second, mark: 5, start: 1)))
            let third = try await leader.fetch(3).request
            #expect((third.sessionID, third.sessionEpoch, third.named, third.forgotten) == (7, 2, [], []))
            // Asked by implication, with the state of now.
            #expect(try await harness.heard(b, 2).map(\.sent.state) == [0, 1])
        }
    }

    @Test func `what has nothing to ask is forgotten, and the leader is held up for a moment only`() async throws {
        try await withFetchers { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            a.isSilentAfterRecords = true
            try await harness.follow(a, b, at: leader)
            leader.react(
                .parts(FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 1)), FetchedPart(second)))
            let without = try await leader.fetch(2).request
            #expect((without.named, without.forgotten) == ([], ["1-0"]))
            #expect(without.maxWaitMs <= 5)
            try await harness.run { harness in
                a.isReady = true
                harness.fetchers.wake(a.followedID)
            }
            leader.react(.parts())
            let with = try await leader.fetch(3).request
            #expect((with.named, with.forgotten) == (["1-0@1"], []))
            #expect((with.sessionEpoch, with.maxWaitMs) == (2, 500))
        }
    }

    @Test(arguments: [ErrorCode.fetchSessionIDNotFound, .invalidFetchSessionEpoch, .fetchSessionTopicIDError])
    func `a lost session is replaced at once, over the same connection`(error: ErrorCode) async throws {
        try await withFetchers { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            try await harness.follow(a, b, at: leader)
            leader.react(.parts(FetchedPart(first), FetchedPart(second)), .parts(session: 0, error: error))
            let again = try await leader.fetch(3)
            #expect((again.request.sessionEpoch, again.request.named) == (0, ["1-0@0", "2-0@0"]))
            #expect(again.request.sessionID == (error == .fetchSessionIDNotFound ? 0 : 7))
            #expect(again.connection == 1)
            leader.react(.parts(FetchedPart(first), FetchedPart(second), session: 8))
            let next = try await leader.fetch(4).request
            #expect((next.sessionID, next.sessionEpoch, next.named) == (8, 1, []))
        }
    }

    @Test func `an error instead of a session costs a pause`() async throws {
        try await withFetchers { harness, leader in
            try await harness.follow(ObedientPartition(first), at: leader)
            leader.react(.parts(session: 0, error: .invalidFetchSessionEpoch))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            #expect(two.connection == 2)
            #expect(two.arrival - one.arrival >= .milliseconds(30))
        }
    }

    @Test func `without a session all is named, and who got records comes last`() async throws {
        try await withFetchers { harness, leader in
            let third = followedKey(3)
            let (a, b, c) = (ObedientPartition(first), ObedientPartition(second), ObedientPartition(third))
            try await harness.follow(a, b, c, at: leader)
            leader.react(
                .parts(
                    FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 2)), FetchedPart(second),
                    FetchedPart(third), session: 0))
            let next = try await leader.fetch(2).request
            #expect((next.sessionID, next.sessionEpoch) == (0, 0))
            #expect(next.named == ["2-0@0", "3-0@0", "1-0@2"])
            leader.react(
                .parts(
                    FetchedPart(second, records: try storedBatches(from: 0, epoch: 3, 1)), FetchedPart(third),
                    FetchedPart(first), session: 0))
            #expect(try await leader.fetch(3).request.named == ["3-0@0", "1-0@2", "2-0@1"])
        }
    }

    @Test func `an answer that leaves a partition out opens no session`() async throws {
        try await withFetchers { harness, leader in
            try await harness.follow(ObedientPartition(first), ObedientPartition(second), at: leader)
            leader.react(.parts(FetchedPart(first)))
            let next = try await leader.fetch(2).request
            #expect((next.sessionID, next.sessionEpoch, next.named) == (7, 0, ["1-0@0", "2-0@0"]))
        }
    }

    @Test func `epochs of a session go from the largest to one`() {
        #expect(ReplicaFetchSession.epoch(after: 0) == 1)
        #expect(ReplicaFetchSession.epoch(after: .max) == 1)
        var session = ReplicaFetchSession()
        /// Epoch of the request, whether its answer belongs to it, and the id afterwards.
        func exchange(_ id: Int32, answersAll: Bool = true) -> [Int32] {
            let epoch = session.turn([]).epoch
            let belongs = session.answered(id: id, answersAll: answersAll)
            return [epoch, belongs ? 1 : 0, session.id]
        }
        #expect(exchange(5) == [0, 1, 5])
        #expect(exchange(5, answersAll: false) == [1, 1, 5])
        #expect(exchange(5) == [2, 1, 5])
        // The leader ended it.
        #expect(exchange(0) == [3, 1, 0])
        #expect(exchange(6) == [0, 1, 6])
        #expect(exchange(5) == [1, 0, 0])
        #expect(exchange(0) == [0, 1, 0])
        #expect(exchange(7) == [0, 1, 7])
    }

    // MARK: Answers

    @Test func `a divergence and an offset out of range are handed on`() async throws {
        try await withFetchers { harness, leader in
            let (a, b) = (ObedientPartition(first, offset: 9, last: 2), ObedientPartition(second, offset: 3, last: 1))
            try await harness.follow(a, b, at: leader)
            leader.react(
                .parts(
                    FetchedPart(first, diverging: (1, 6)), FetchedPart(second, error: .offsetOutOfRange, start: 20)))
            let next = try await leader.fetch(2).request
            #expect(next.named == ["1-0@6", "2-0@20"])
            #expect(next.topics.flatMap(\.partitions).map(\.lastFetchedEpoch) == [1, -1])
            #expect(
                try await harness.heard(a, 1).map(\.answer)
                    == [.diverging(EpochEnd(epoch: LeaderEpoch(1), endOffset: Offset(6)))])
            #expect(
                try await harness.heard(b, 1).map(\.answer) == [.outOfRange(leaderLogStartOffset: Offset(20))])
        }
    }

    @Test(arguments: [(4, 6), (-1, 6), (1, -1)] as [(Int32, Int64)])
    func `a divergence that cannot be is not handed on`(epoch: Int32, end: Int64) async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first, offset: 9, last: 2)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, diverging: (epoch, end))))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            // What else was said of the partition was not heard either.
            #expect((two.request.sessionEpoch, two.request.named) == (0, ["1-0@9"]))
            #expect(two.arrival - one.arrival >= .milliseconds(100))
            #expect(try await harness.run { _ in a.heard } == [])
        }
    }

    @Test func `who is refused pauses alone`() async throws {
        var settings = FetcherHarness.settings
        settings.refusalPause = .seconds(30)
        try await withFetchers(settings) { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            try await harness.follow(a, b, at: leader)
            leader.react(.parts(FetchedPart(first, error: .kafkaStorageError), FetchedPart(second)))
            let without = try await leader.fetch(2)
            #expect((without.request.named, without.request.forgotten) == ([], ["1-0"]))
            #expect(without.request.maxWaitMs == 500)
            #expect(try await harness.heard(a, 1).map(\.answer) == [.refused(.kafkaStorageError)])
            leader.react(.parts(FetchedPart(second, mark: 1)))
            let still = try await leader.fetch(3)
            #expect(still.request.named == [])
            // A new epoch is a new question.
            try await harness.run { harness in
                a.fetch.leaderEpoch = LeaderEpoch(4)
                harness.fetchers.wake(a.followedID)
            }
            leader.react(.parts(FetchedPart(second, mark: 2)))
            #expect(try await leader.fetch(4).request.named == ["1-0@0"])
        }
    }

    @Test func `a pause ends by itself when nothing else is to be fetched`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, error: .unknownLeaderEpoch)))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            // The leader knows it still.
            #expect((two.request.sessionEpoch, two.request.named, two.request.forgotten) == (1, [], []))
            #expect(two.arrival - one.arrival >= .milliseconds(100))
            leader.react(.parts(FetchedPart(first, mark: 3)))
            #expect(
                try await harness.heard(a, 2).map(\.answer) == [.refused(.unknownLeaderEpoch), Self.records(mark: 3)])
        }
    }

    @Test func `a fenced epoch is never asked again`() async throws {
        try await withFetchers { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            try await harness.follow(a, b, at: leader)
            leader.react(.parts(FetchedPart(first, error: .fencedLeaderEpoch), FetchedPart(second)))
            for number in 2...4 {
                let request = try await leader.fetch(number).request
                #expect((request.named, request.forgotten) == ([], number == 2 ? ["1-0"] : []))
                #expect(request.maxWaitMs == 500)
                try await harness.run { $0.fetchers.wake(a.followedID) }
                if number == 4 { try await harness.run { _ in a.fetch.leaderEpoch = LeaderEpoch(4) } }
                leader.react(.parts(FetchedPart(second, mark: Int64(number))))
            }
            #expect(try await leader.fetch(5).request.named == ["1-0@0"])
            #expect(try await harness.heard(a, 1).map(\.answer) == [.refused(.fencedLeaderEpoch)])
        }
    }

    @Test func `records that change nothing are not asked for again at once`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            a.takesNothing = true
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 1))))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            #expect(try await harness.heard(a, 1).count == 1)
            #expect(two.arrival - one.arrival >= .milliseconds(100))
        }
    }

    @Test func `records that wait for other work are asked for again when it is done`() async throws {
        var settings = FetcherHarness.settings
        settings.refusalPause = .seconds(60)
        try await withFetchers(settings) { harness, leader in
            let a = ObedientPartition(first)
            (a.takesNothing, a.isSilentAfterRecords) = (true, true)
            try await harness.follow(a, ObedientPartition(second), at: leader)
            leader.react(
                .parts(FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 1)), FetchedPart(second)))
            _ = try await leader.fetch(2)
            try await harness.run { _ in a.isReady = true }
            leader.react(.parts())
            #expect(try await leader.fetch(3).request.named == ["1-0@0"])
        }
    }

    @Test func `a divergence that changes nothing is not asked about again at once`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first, offset: 4, last: 2)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, diverging: (2, 4))))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            #expect(try await harness.heard(a, 1).count == 1)
            #expect(two.arrival - one.arrival >= .milliseconds(100))
        }
    }

    @Test func `an answer to what the partition would not ask now is void, and is told anew`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first)))
            _ = try await leader.fetch(2)
            try await harness.run { _ in a.fetch.state += 5 }
            leader.react(.parts(FetchedPart(first, mark: 1, records: try storedBatches(from: 0, epoch: 3, 1))))
            let next = try await leader.fetch(3)
            #expect((next.request.sessionID, next.request.sessionEpoch) == (7, 0))
            #expect(next.request.named == ["1-0@0"])
            #expect(try await harness.heard(a, 1).map(\.answer) == [Self.records(mark: 0)])
        }
    }

    @Test func `an answer about a partition that was not asked for ends the connection`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            try await harness.follow(a, at: leader)
            leader.react(
                .parts(FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 1)), FetchedPart(second)))
            let next = try await leader.fetch(2)
            #expect((next.connection, next.request.sessionEpoch, next.request.named) == (2, 0, ["1-0@0"]))
            #expect(try await harness.run { _ in a.heard } == [])
        }
    }

    // MARK: Damage

    @Test func `a flipped bit is not handed on, and others are fetched meanwhile`() async throws {
        var settings = FetcherHarness.settings
        settings.refusalPause = .seconds(30)
        settings.maxWait = .seconds(60)
        try await withFetchers(settings) { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            let damaged = try storedBatches(from: 0, epoch: 3, 4).damaged(atByte: 70)
            try await harness.follow(a, b, at: leader)
            leader.react(.parts(FetchedPart(first, mark: 4, records: damaged), FetchedPart(second)))
            let without = try await leader.fetch(2).request
            #expect((without.named, without.forgotten) == ([], ["1-0"]))
            // Not longer than the pause lasts.
            #expect((1...30_000).contains(without.maxWaitMs))
            #expect(try await harness.run { _ in (a.heard.count, b.heard.count) } == (0, 1))
        }
    }

    @Test func `damaged records are asked for again after a pause, and their marks with them`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            let damaged = try storedBatches(from: 0, epoch: 3, 4).damaged(atByte: 70)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, mark: 4, records: damaged)))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            #expect((two.request.sessionEpoch, two.request.named, two.connection) == (0, ["1-0@0"], 1))
            #expect(two.arrival - one.arrival >= .milliseconds(100))
            #expect(try await harness.run { _ in a.heard } == [])
            leader.react(.parts(FetchedPart(first, mark: 4, records: try storedBatches(from: 0, epoch: 3, 4))))
            #expect(try await harness.heard(a, 1).map(\.answer) == [Self.records(mark: 4)])
        }
    }

    @Test func `of an answer with damage only what is whole before it counts`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            let sound = try storedBatches(from: 0, epoch: 3, 2)
            var records = sound
            records.writeImmutableBuffer(try storedBatches(from: 2, epoch: 3, 1).damaged(atByte: 65))
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, mark: 1 << 40, start: 1 << 39, records: records)))
            let (one, two) = (try await leader.fetch(1), try await leader.fetch(2))
            #expect(two.request.named == ["1-0@2"])
            #expect(two.arrival - one.arrival >= .milliseconds(100))
            let heard = try await harness.heard(a, 1)
            #expect(heard.map(\.answer) == [Self.records(mark: 2, start: 0)])
            #expect(heard.map(\.recordBytes) == [sound.readableBytes])
        }
    }

    @Test func `a last batch that is cut off is asked for next`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            let whole = try storedBatches(from: 0, epoch: 3, 2)
            let both = try storedBatches(from: 0, epoch: 3, 2, 2)
            let cut = both.getSlice(at: 0, length: both.readableBytes - 3)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, mark: 4, records: cut)))
            #expect(try await leader.fetch(2).request.named == ["1-0@2"])
            let heard = try await harness.heard(a, 1)
            #expect(heard.map(\.answer) == [Self.records(mark: 4)])
            #expect(heard.map(\.recordBytes) == [whole.readableBytes])
        }
    }

    @Test func `a batch above all limits gets through`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            let value = String(repeating: "x", count: 12 * 1024 * 1024)
            let large = try storedBatches(from: 0, epoch: 3, 1, value: value)
            try await harness.follow(a, at: leader)
            leader.react(.parts(FetchedPart(first, mark: 1, records: large)))
            #expect(try await harness.heard(a, 1).map(\.recordBytes) == [large.readableBytes])
            #expect(try await leader.fetch(2).request.named == ["1-0@1"])
        }
    }

    @Test func `bytes without a whole batch cost a pause where the batch must be whole`() async throws {
        var settings = FetcherHarness.settings
        settings.refusalPause = .seconds(30)
        try await withFetchers(settings) { harness, leader in
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            let batch = try storedBatches(from: 0, epoch: 3, 1)
            let cut = batch.getSlice(at: 0, length: batch.readableBytes - 1)
            try await harness.follow(a, b, at: leader)
            leader.react(.parts(FetchedPart(first, records: batch), FetchedPart(second, records: cut)))
            let next = try await leader.fetch(2).request
            // The second had its bytes behind another: its batch comes first next time.
            #expect((next.named, next.forgotten) == (["1-0@1"], []))
            leader.react(.parts(FetchedPart(second, records: cut)))
            #expect(try await leader.fetch(3).request.forgotten == ["2-0"])
        }
    }

    // MARK: Connections

    @Test func `a connection that ends within an answer leaves nothing behind`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            let batches = try storedBatches(from: 0, epoch: 3, 2, 2)
            try await harness.follow(a, at: leader)
            leader.react(
                .parts(FetchedPart(first)),
                .cut(after: 120) { _ in FakeLeader.Reaction.response([FetchedPart(followedKey(1), records: batches)]) })
            let (two, three) = (try await leader.fetch(2), try await leader.fetch(3))
            #expect((three.connection, three.request.sessionID, three.request.sessionEpoch) == (2, 0, 0))
            #expect(three.request.named == ["1-0@0"])
            #expect(three.arrival - two.arrival >= .milliseconds(30))
            #expect(try await harness.run { _ in a.heard.count } == 1)
        }
    }

    @Test func `pauses between attempts to connect grow`() async throws {
        try await withFetchers { harness, leader in
            try await harness.run { $0.peers.refusals = 4 }
            try await harness.follow(ObedientPartition(first), at: leader)
            _ = try await leader.fetch(1)
            let attempts = try await harness.run { $0.peers.attempts }
            #expect(attempts.count == 5)
            let pauses = zip(attempts.dropFirst(), attempts).map { $0 - $1 }
            #expect(pauses[0] >= .milliseconds(30))
            for pause in pauses.dropFirst() { #expect(pause >= .milliseconds(60)) }
        }
    }

    @Test func `a new address ends the pause and voids what was asked at the old one`() async throws {
        var settings = FetcherHarness.settings
        settings.firstReconnectPause = .seconds(60)
        settings.lastReconnectPause = .seconds(60)
        try await withFetchers(settings) { harness, former in
            let leader = try await FakeLeader.start()
            let a = ObedientPartition(first)
            try await harness.follow(a, at: former)
            former.react(.parts(FetchedPart(first)))
            _ = try await former.fetch(2)
            let address = leader.address
            try await harness.run { $0.fetchers.leaderMoved(BrokerID(1), to: address) }
            former.react(.parts(FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 1))))
            let request = try await leader.fetch(1).request
            #expect((request.sessionEpoch, request.named) == (0, ["1-0@0"]))
            #expect(try await harness.run { _ in a.heard.count } == 1)
            // It goes down, and comes back at the same address.
            leader.react(.close)
            _ = try await harness.run { _ in 0 }
            try await leader.stop()
            let heir = try await FakeLeader.start()
            let next = heir.address
            try await harness.run { $0.fetchers.leaderMoved(BrokerID(1), to: next) }
            #expect(try await heir.fetch(1).request.named == ["1-0@0"])
            try await heir.stop()
        }
    }

    @Test func `an address that comes later is enough`() async throws {
        try await withFetchers { harness, leader in
            try await harness.follow(ObedientPartition(first), at: nil)
            let address = leader.address
            try await harness.run { $0.fetchers.leaderMoved(BrokerID(1), to: address) }
            #expect(try await leader.fetch(1).request.named == ["1-0@0"])
        }
    }

    @Test func `a partition that moves to another leader hears the former one no more`() async throws {
        try await withFetchers { harness, leader in
            let heir = try await FakeLeader.start()
            let (a, b) = (ObedientPartition(first), ObedientPartition(second))
            try await harness.follow(a, b, at: leader)
            leader.react(.parts(FetchedPart(first), FetchedPart(second)))
            _ = try await leader.fetch(2)
            try await harness.run { _ in
                a.fetch.leader = BrokerID(5)
                a.fetch.leaderEpoch = LeaderEpoch(4)
            }
            try await harness.follow(a, at: heir, leader: 5)
            #expect(try await heir.fetch(1).request.named == ["1-0@0"])
            leader.react(.parts(FetchedPart(first, records: try storedBatches(from: 0, epoch: 3, 1))))
            let rest = try await leader.fetch(3).request
            #expect((rest.named, rest.forgotten) == ([], ["1-0"]))
            #expect(try await harness.run { _ in a.heard.count } == 1)
            // The last one goes, and the connection with it.
            try await harness.run { $0.fetchers.unfollow(b.followedID) }
            try await until(deadline: .seconds(10)) { try await leader.openConnectionCount == 0 }
            try await heir.stop()
        }
    }

    @Test func `a partition opened anew hears nothing that was said to its predecessor`() async throws {
        try await withFetchers { harness, leader in
            let (old, new) = (ObedientPartition(first), ObedientPartition(first))
            try await harness.follow(old, at: leader)
            leader.react(.parts(FetchedPart(first)))
            _ = try await leader.fetch(2)
            try await harness.run { $0.fetchers.unfollow(old.followedID) }
            try await harness.follow(new, at: leader)
            // The last one went: another connection.
            let request = try await leader.fetch(3)
            #expect((request.connection, request.request.sessionEpoch, request.request.named) == (2, 0, ["1-0@0"]))
            #expect(try await harness.run { _ in (old.heard.count, new.heard.count) } == (1, 0))
        }
    }

    @Test func `a partition opened anew beside others is told everything anew`() async throws {
        try await withFetchers { harness, leader in
            let (old, new) = (ObedientPartition(first), ObedientPartition(first))
            try await harness.follow(old, ObedientPartition(second), at: leader)
            leader.react(.parts(FetchedPart(first), FetchedPart(second)))
            _ = try await leader.fetch(2)
            try await harness.run { $0.fetchers.unfollow(old.followedID) }
            try await harness.follow(new, at: leader)
            leader.react(.parts(FetchedPart(first, mark: 9, records: try storedBatches(from: 0, epoch: 3, 1))))
            let request = try await leader.fetch(3).request
            #expect((request.sessionID, request.sessionEpoch) == (7, 0))
            #expect(request.named == ["2-0@0", "1-0@0"])
            #expect(try await harness.run { _ in (old.heard.count, new.heard.count) } == (1, 0))
        }
    }

    @Test func `nothing is asked while nobody has a question`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            a.isReady = false
            try await harness.follow(a, at: leader)
            #expect(try await harness.run { $0.peers.attempts } == [])
            try await harness.run { harness in
                a.isReady = true
                for _ in 0..<5 { harness.fetchers.wake(a.followedID) }
            }
            #expect(try await leader.fetch(1).request.named == ["1-0@0"])
            #expect(try await leader.fetchCount == 1)
        }
    }

    @Test func `a partition that believes in another leader is not asked for here`() async throws {
        try await withFetchers { harness, leader in
            let (a, b) = (ObedientPartition(first, leader: BrokerID(8)), ObedientPartition(second))
            try await harness.follow(a, b, at: leader)
            #expect(try await leader.fetch(1).request.named == ["2-0@0"])
        }
    }

    @Test func `nothing is asked before this broker is registered`() async throws {
        try await withFetchers { harness, leader in
            try await harness.run { $0.brokerEpoch = -1 }
            try await harness.follow(ObedientPartition(first), at: leader)
            try await until(deadline: .seconds(10)) { try await harness.run { $0.peers.attempts.count } >= 3 }
            #expect(try await leader.fetchCount == 0)
            try await harness.run { $0.brokerEpoch = 77 }
            #expect(try await leader.fetch(1).request.replicaState.replicaEpoch == 77)
        }
    }

    @Test func `a leader that cannot be told the broker epoch is not asked`() async throws {
        try await withFetchers(versions: 4...14) { harness, leader in
            try await harness.follow(ObedientPartition(first), at: leader)
            try await until(deadline: .seconds(10)) { try await harness.run { $0.peers.attempts.count } >= 3 }
            #expect(try await leader.fetchCount == 0)
        }
    }

    @Test func `after the close nobody hears anything`() async throws {
        try await withFetchers { harness, leader in
            let a = ObedientPartition(first)
            try await harness.follow(a, at: leader)
            _ = try await leader.fetch(1)
            try await harness.close()
            leader.react(.parts(FetchedPart(first)))
            try await until(deadline: .seconds(10)) { try await leader.openConnectionCount == 0 }
            try await harness.follow(a, at: leader)
            try await harness.run { $0.fetchers.wake(a.followedID) }
            #expect(try await harness.run { _ in a.heard } == [])
            #expect(try await leader.fetchCount == 1)
        }
    }

    @Test func `a connection that comes about after the close is closed`() async throws {
        try await withFetchers { harness, leader in
            try await harness.run { $0.peers.holdsConnections = true }
            try await harness.follow(ObedientPartition(first), at: leader)
            try await until(deadline: .seconds(10)) { try await harness.run { $0.peers.held.count } == 1 }
            #expect(try await leader.openConnectionCount == 1)
            try await harness.close()
            try await harness.run { $0.peers.release() }
            try await until(deadline: .seconds(10)) { try await leader.openConnectionCount == 0 }
            #expect(try await leader.fetchCount == 0)
        }
    }
}

/// Looks again and again, giving way to others in between, until something has come about.
private func until(deadline limit: TimeAmount, _ condition: () async throws -> Bool) async throws {
    let deadline = NIODeadline.now() + limit
    while try await !condition() {
        guard .now() < deadline else { throw FakeLeader.NothingCame(what: "condition") }
        await Task.yield()
    }
}
