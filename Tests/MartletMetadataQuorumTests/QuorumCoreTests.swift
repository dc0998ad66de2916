import MartletLogModel
import MartletMetadataQuorum
import NIOCore
import Testing

/// One node, event by event.
@Suite struct QuorumCoreTests {
    /// Node 0 of three voters, and what it ordered.
    private struct Harness: ~Copyable {
        var core: MetadataQuorum
        var now = Instant(nanoseconds: 0)
        var effects: [QuorumEffect] = []
        private var request: UInt64 = 0

        init(voters: Int = 3, recovered: RecoveredQuorum = RecoveredQuorum(), rules: SuspendedRules = []) {
            let set = VoterSet(
                (0..<voters).map { Voter(key: Self.key($0), endpoints: QuorumWorld.endpoints(of: $0)) })
            var configuration = QuorumConfiguration(
                node: Self.key(0), endpoints: QuorumWorld.endpoints(of: 0), bootstrapVoters: set)
            configuration.suspended = rules
            core = MetadataQuorum(configuration: configuration, recovered: recovered, now: now, jitter: 1)
        }

        static func key(_ node: Int) -> ReplicaKey {
            ReplicaKey(BrokerID(Int32(node)), UniversalID(high: 1, low: UInt64(node + 1)))
        }

        static func address(_ node: Int) -> LeaderAddress {
            LeaderAddress(id: BrokerID(Int32(node)), endpoints: QuorumWorld.endpoints(of: node))
        }

        /// What the event leads to.
        @discardableResult
        mutating func take(_ event: QuorumEvent) -> [QuorumEffect] {
            effects = []
            core.handle(event, now: now, jitter: 1, into: &effects)
            return effects
        }

        @discardableResult
        mutating func ask(_ question: QuorumRequest) -> [QuorumEffect] {
            request += 1
            return take(.requested(RequestID(rawValue: request), question))
        }

        /// Lets time pass, and confirms every write of the state on the way.
        mutating func pass(milliseconds: Int64) {
            now = now.advanced(byMilliseconds: milliseconds)
            take(.ticked)
            persistAll()
        }

        /// Confirms writes of the state until there is none; `effects` has everything since.
        mutating func persistAll() {
            var all = effects
            while let version = effects.compactMap({
                if case .persist(_, let version) = $0 { version } else { nil }
            }).last {
                take(.persisted(version))
                all += effects
            }
            effects = all
        }

        /// Follows node 1 in epoch 1; the call that fetches.
        mutating func follow() throws -> CallToken {
            ask(.beginEpoch(EpochBegin(voter: nil, leader: Self.address(1), epoch: LeaderEpoch(1))))
            persistAll()
            return try #require(sent.last { if case .fetch = $0.request { true } else { false } }).token
        }

        /// Leads epoch 1 with the vote of node 1.
        mutating func lead() {
            pass(milliseconds: 3_000)
            grant()
            persistAll()
            grant()
            persistAll()
            take(.flushed(upTo: core.log.end, FlushGeneration(rawValue: 0)))
        }

        private mutating func grant() {
            let header = AnswerHeader(error: .none, epoch: core.epoch, leader: nil)
            for effect in effects {
                guard case .send(let token, to: BrokerID(1), _, .vote) = effect else { continue }
                take(.answered(token, .vote(header, isGranted: true)))
                return
            }
        }

        mutating func fetch(from node: Int, epoch: Int32 = 1, offset: Int64, lastEpoch: Int32)
            -> [QuorumEffect]
        {
            ask(
                .fetch(
                    LogFetch(
                        replica: Self.key(node), epoch: LeaderEpoch(epoch), offset: Offset(offset),
                        lastEpoch: LeaderEpoch(lastEpoch), highWatermark: core.highWatermark,
                        maxWaitMilliseconds: 0,
                        maxBytes: 1_000)))
        }

        var answer: QuorumAnswer? {
            for effect in effects { if case .respond(_, let answer) = effect { return answer } }
            return nil
        }

        var sent: [(to: BrokerID, request: QuorumRequest, token: CallToken)] {
            effects.compactMap {
                if case .send(let token, let to, _, let request) = $0 { (to, request, token) } else { nil }
            }
        }
    }

    private func vote(
        for node: Int, epoch: Int32, at position: LogPosition = LogPosition(offset: .zero, epoch: .zero),
        pre: Bool = false,
        to voter: ReplicaKey? = nil
    ) -> QuorumRequest {
        .vote(
            VoteCall(
                voter: voter, candidate: Harness.key(node), epoch: LeaderEpoch(epoch), lastPosition: position,
                isPreVote: pre))
    }

    private func isGranted(_ answer: QuorumAnswer?) -> Bool? {
        if case .vote(_, let isGranted) = answer { isGranted } else { nil }
    }

    @Test func `a vote is answered when it is on the device, and given once`() throws {
        var node = Harness()
        node.ask(vote(for: 1, epoch: 4))
        #expect(node.answer == nil)
        let (file, version) = try #require(
            node.effects.compactMap {
                if case .persist(let file, let version) = $0 { (file, version) } else { nil }
            }.first)
        #expect(file == QuorumStateFile(epoch: LeaderEpoch(4), vote: Harness.key(1)))
        node.take(.persisted(version))
        #expect(isGranted(node.answer) == true)
        node.ask(vote(for: 2, epoch: 4))
        #expect(isGranted(node.answer) == false)
        node.ask(vote(for: 1, epoch: 4))
        #expect(isGranted(node.answer) == true)
        node.ask(vote(for: 2, epoch: 3))
        #expect(node.answer?.header.error == .fencedLeaderEpoch)
    }

    @Test func `a vote is not given to a shorter log, nor for another disk`() {
        var recovered = RecoveredQuorum()
        recovered.logEnd = Offset(10)
        recovered.epochs = [.init(epoch: LeaderEpoch(2), offset: .zero)]
        var node = Harness(recovered: recovered)
        #expect(node.core.epoch == LeaderEpoch(2))
        for (end, epoch, expected) in [(9, 2, false), (10, 2, true), (1, 3, true), (20, 1, false)]
            as [(Int64, Int32, Bool)]
        {
            node.ask(
                vote(
                    for: 1, epoch: 2, at: LogPosition(offset: Offset(end), epoch: LeaderEpoch(epoch)),
                    pre: true))
            node.persistAll()
            #expect(isGranted(node.answer) == expected, "\(end)@\(epoch)")
        }
        let other = ReplicaKey(BrokerID(0), UniversalID(high: 9, low: 9))
        node.ask(vote(for: 1, epoch: 9, to: other))
        #expect(node.answer?.header.error == .invalidVoterKey)
        #expect(node.core.epoch == LeaderEpoch(2))
    }

    @Test func `a follower that hears its leader refuses pre-votes`() throws {
        var node = Harness()
        let fetch = try node.follow()
        node.ask(vote(for: 2, epoch: 1, pre: true))
        #expect(isGranted(node.answer) == true)
        let header = AnswerHeader(error: .none, epoch: LeaderEpoch(1), leader: Harness.address(1))
        node.take(.answered(fetch, .fetch(LogAnswer(header: header, highWatermark: .zero, logStart: .zero))))
        node.ask(vote(for: 2, epoch: 1, pre: true))
        #expect(isGranted(node.answer) == false)
    }

    @Test func `a fetch waits until what was appended is flushed, and an outdated flush proves nothing`()
        throws
    {
        var node = Harness()
        let first = try node.follow()
        let header = AnswerHeader(error: .none, epoch: LeaderEpoch(1), leader: Harness.address(1))
        var answer = LogAnswer(header: header, highWatermark: .zero, logStart: .zero)
        answer.batches = [
            LogBatch(baseOffset: .zero, endOffset: Offset(2), epoch: LeaderEpoch(1), bytes: ByteBuffer())
        ]
        node.take(.answered(first, .fetch(answer)))
        #expect(node.effects.contains(.flush(FlushGeneration(rawValue: 0))))
        #expect(node.sent.isEmpty && node.core.log.end == Offset(2))
        node.take(.flushed(upTo: Offset(2), FlushGeneration(rawValue: 7)))
        #expect(node.sent.isEmpty && node.effects.contains(.flush(FlushGeneration(rawValue: 0))))
        node.take(.flushed(upTo: Offset(2), FlushGeneration(rawValue: 0)))
        guard case .fetch(let next) = node.sent.first?.request else {
            Issue.record("no fetch after the flush")
            return
        }
        #expect(next.offset == Offset(2) && next.lastEpoch == LeaderEpoch(1))
        // Batches that do not continue the log are dropped.
        answer.batches = [
            LogBatch(baseOffset: Offset(5), endOffset: Offset(6), epoch: LeaderEpoch(1), bytes: ByteBuffer())
        ]
        node.take(.answered(try #require(node.sent.first).token, .fetch(answer)))
        #expect(node.core.log.end == Offset(2))
    }

    @Test func `a leader commits what a majority has flushed of its own epoch`() throws {
        var node = Harness()
        node.lead()
        #expect(node.core.snapshot().role == .leader && node.core.log.flushedEnd == Offset(1))
        #expect(node.core.highWatermark == .zero && !node.core.isReady)
        node.take(.proposed(ProposalID(rawValue: 1), recordCount: 1, bytes: ByteBuffer()))
        #expect(node.effects == [.refused(ProposalID(rawValue: 1), Harness.address(0))])
        node.persistAll()
        _ = node.fetch(from: 1, offset: 1, lastEpoch: 1)
        #expect(
            node.effects.contains(.advanceHighWatermark(Offset(1)))
                && node.effects.contains(.leadershipReady(LeaderEpoch(1))))
        node.take(.proposed(ProposalID(rawValue: 2), recordCount: 3, bytes: ByteBuffer()))
        _ = node.fetch(from: 1, offset: 4, lastEpoch: 1)
        // Node 1 has it; this node is still flushing.
        #expect(node.core.highWatermark == Offset(1))
        _ = node.fetch(from: 2, offset: 4, lastEpoch: 1)
        #expect(
            node.core.highWatermark == Offset(4) && node.effects.contains(.committed(ProposalID(rawValue: 2)))
        )
    }

    @Test func `fetches of other epochs are refused with the leader's name`() {
        var node = Harness()
        node.lead()
        _ = node.fetch(from: 1, epoch: 0, offset: 0, lastEpoch: 0)
        #expect(
            node.answer?.header
                == AnswerHeader(error: .fencedLeaderEpoch, epoch: LeaderEpoch(1), leader: Harness.address(0)))
        _ = node.fetch(from: 1, epoch: 2, offset: 0, lastEpoch: 0)
        #expect(node.answer?.header.error == .unknownLeaderEpoch)
        _ = node.fetch(from: 1, offset: -5, lastEpoch: 0)
        #expect(node.answer?.header.error == .invalidRequest)
    }

    @Test func `a leader that nobody fetches from resigns`() {
        var node = Harness()
        node.lead()
        node.pass(milliseconds: 2_000)
        _ = node.fetch(from: 1, offset: 1, lastEpoch: 1)
        node.pass(milliseconds: 2_900)
        #expect(node.core.snapshot().role == .leader)
        node.pass(milliseconds: 200)
        #expect(node.core.snapshot().role == .resigned)
        #expect(node.core.epoch == LeaderEpoch(1))
        node.pass(milliseconds: 2_100)
        #expect(node.core.epoch == LeaderEpoch(2))
    }

    @Test func `an epoch at the end of its range stops the node instead of the process`() {
        var node = Harness()
        node.ask(
            .beginEpoch(EpochBegin(voter: nil, leader: Harness.address(1), epoch: LeaderEpoch(Int32.max))))
        node.persistAll()
        node.pass(milliseconds: 5_000)
        for effect in node.effects { if case .halt = effect { return } }
        // Nobody answers the pre-vote: the node stays where it is.
        #expect(node.core.epoch == LeaderEpoch(Int32.max))
    }

    @Test func `a node whose disk failed answers and does nothing else`() {
        var node = Harness()
        node.lead()
        node.take(.storageFailed)
        #expect(node.effects.contains(.leadershipLost(LeaderEpoch(1))))
        _ = node.fetch(from: 1, offset: 1, lastEpoch: 1)
        #expect(node.answer?.header.error == .kafkaStorageError)
        #expect(node.core.nextDeadline == nil)
    }

    @Test func `a voter that moved tells the leader`() throws {
        var recovered = RecoveredQuorum()
        let voters = VoterSet(
            (0..<3).map {
                Voter(key: Harness.key($0), endpoints: QuorumWorld.endpoints(of: $0 == 0 ? 7 : $0))
            })
        recovered.logEnd = Offset(2)
        recovered.epochs = [.init(epoch: LeaderEpoch(1), offset: .zero)]
        recovered.controlBatches = [.init(offset: .zero, records: [.version(1), .voters(voters)])]
        recovered.state = QuorumStateFile(epoch: LeaderEpoch(1), leaderID: BrokerID(1))
        var node = Harness(recovered: recovered)
        node.take(.ticked)
        node.persistAll()
        let update = try #require(
            node.sent.first { if case .updateVoter = $0.request { true } else { false } })
        #expect(update.to == BrokerID(1))
        #expect(
            update.request
                == .updateVoter(
                    VoterUpdate(
                        voter: Voter(key: Harness.key(0), endpoints: QuorumWorld.endpoints(of: 0)),
                        epoch: LeaderEpoch(1))))
    }

    @Test func `a single voter writes a new address itself`() {
        var recovered = RecoveredQuorum()
        recovered.logEnd = Offset(2)
        recovered.epochs = [.init(epoch: LeaderEpoch(1), offset: .zero)]
        recovered.controlBatches = [
            .init(
                offset: .zero,
                records: [
                    .version(1),
                    .voters(VoterSet([Voter(key: Harness.key(0), endpoints: QuorumWorld.endpoints(of: 7))])),
                ])
        ]
        var node = Harness(voters: 1, recovered: recovered)
        node.take(.ticked)
        #expect(node.core.isReady == true)
        #expect(node.core.membership.latest.voters[BrokerID(0)]?.endpoints == QuorumWorld.endpoints(of: 0))
    }

    @Test func `fetch positions are judged by epoch and offset`() {
        let log = QuorumLog(
            start: Offset(10), end: Offset(40),
            epochs: [
                .init(epoch: LeaderEpoch(2), offset: Offset(10)),
                .init(epoch: LeaderEpoch(4), offset: Offset(20)),
                .init(epoch: LeaderEpoch(7), offset: Offset(30)),
            ], snapshot: LogPosition(offset: Offset(10), epoch: LeaderEpoch(2)))
        let table: [(Int32, Int64)] = [(1, 10), (2, 20), (3, 20), (4, 30), (6, 30), (7, 40), (9, 40)]
        for (epoch, end) in table {
            #expect(log.endOffset(for: LeaderEpoch(epoch)).offset == Offset(end), "\(epoch)")
        }
        #expect(log.endOffset(for: LeaderEpoch(6)).epoch == LeaderEpoch(4))
        #expect(
            log.epoch(before: Offset(30)) == LeaderEpoch(4) && log.epoch(before: Offset(10)) == LeaderEpoch(2)
        )
    }
}
