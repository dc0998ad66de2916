import MartletCoordinators
import MartletKafkaProtocol
import MartletLogModel
import Testing

/// The share coordinator: keys 83 to 87.
@Suite struct ShareStateTests {
    private final class Harness {
        private var shard = ShareStateShard()
        private(set) var log: [ShareStateRecord] = []
        private(set) var pruned: Int64?
        private var next: UInt64 = 1

        init(_ log: [ShareStateRecord] = []) {
            for (offset, record) in log.enumerated() { shard.replay(record, offset: Int64(offset)) }
            self.log = log
            handle(.loaded)
        }

        func handle(_ event: ShareStateShard.Event) {
            var effects: [ShareStateShard.Effect] = []
            shard.handle(event, now: Timestamp(milliseconds: 5), into: &effects)
            run(effects)
        }

        private var answers: [RequestID: ShareStateResponse] = [:]

        private func run(_ effects: [ShareStateShard.Effect]) {
            for effect in effects {
                switch effect {
                case .respond(let id, let response): answers[id] = response
                case .append(let records, let token):
                    let offset = Int64(log.count)
                    log += records
                    handle(.committed(token, offset: offset))
                case .prune(let offset): pruned = offset
                }
            }
        }

        func durableState() -> [SharePartitionID: ShareStateShard.Entry] { shard.durableState() }

        func ask(_ request: ShareStateRequest) -> ShareStateResponse {
            let id = RequestID(next)
            next += 1
            handle(.requested(id, request))
            return answers[id] ?? ShareStateResponse(.unknownServerError, "no answer")
        }
    }

    private static let id = SharePartitionID(group: "g", topic: UniversalID(high: 3, low: 4), partition: 7)
    private static let other = SharePartitionID(group: "h", topic: UniversalID(high: 3, low: 5), partition: 0)

    private func write(
        _ start: Int64, _ batches: [(ClosedRange<Int64>, ShareDeliveryState)] = [], state: Int32 = 1,
        leader: Int32 = 2,
        complete: Int32 = 0
    ) -> ShareStateRequest {
        .write(
            Self.id,
            ShareStateWrite(
                stateEpoch: state, leaderEpoch: leader, startOffset: start, deliveryCompleteCount: complete,
                batches: batches.map {
                    ShareStateBatch(
                        firstOffset: $0.0.lowerBound, lastOffset: $0.0.upperBound, state: $0.1,
                        deliveryCount: 1)
                }))
    }

    @Test func `the key of a share partition names it, colons in the group included`() {
        let id = SharePartitionID(group: "a:b", topic: UniversalID(high: 1, low: 2), partition: 3)
        #expect(id.coordinatorKey == "a:b:\(UniversalID(high: 1, low: 2)):3")
        #expect(SharePartitionID(coordinatorKey: id.coordinatorKey) == id)
        for wrong in ["", "g", "g:x:1", ":\(id.topic):1", "g:\(id.topic):-1", "g:\(id.topic):x"] {
            #expect(SharePartitionID(coordinatorKey: wrong) == nil)
        }
    }

    @Test func `state is initialized, written, read, summed up and deleted`() {
        let harness = Harness()
        #expect(harness.ask(.read(Self.id, leaderEpoch: 0)).code == .invalidRequest)
        #expect(harness.ask(write(0)).code == .invalidRequest)
        #expect(harness.ask(.summary(Self.id)).startOffset == -1)
        #expect(harness.ask(.initialize(Self.id, stateEpoch: 1, startOffset: -1)).code == .none)
        let fresh = harness.ask(.read(Self.id, leaderEpoch: 2))
        #expect(
            fresh.code == .none && fresh.startOffset == -1 && fresh.stateEpoch == 1 && fresh.batches.isEmpty)
        #expect(harness.ask(write(10, [(12...14, .acknowledged)], complete: 3)).code == .none)
        #expect(harness.ask(write(10, [(13...16, .archived)], complete: 5)).code == .none)
        let read = harness.ask(.read(Self.id, leaderEpoch: 2))
        #expect(
            read.batches == [
                .init(firstOffset: 12, lastOffset: 12, state: .acknowledged, deliveryCount: 1),
                .init(firstOffset: 13, lastOffset: 16, state: .archived, deliveryCount: 1),
            ])
        #expect(read.startOffset == 10)
        // A start that came late does not go back.
        #expect(harness.ask(write(14)).code == .none)
        #expect(harness.ask(write(11)).code == .none)
        let summary = harness.ask(.summary(Self.id))
        #expect(summary.startOffset == 14 && summary.leaderEpoch == 2 && summary.deliveryCompleteCount == 0)
        #expect(Harness(harness.log).durableState() == harness.durableState())
        #expect(harness.ask(.delete(Self.id)).code == .none)
        #expect(harness.ask(.delete(Self.id)).code == .none)
        #expect(Harness(harness.log).durableState().isEmpty)
    }

    @Test func `leaders and incarnations that are over are fenced`() {
        let harness = Harness()
        _ = harness.ask(.initialize(Self.id, stateEpoch: 1, startOffset: 0))
        _ = harness.ask(.read(Self.id, leaderEpoch: 5))
        #expect(harness.ask(.read(Self.id, leaderEpoch: 4)).code == .fencedLeaderEpoch)
        #expect(harness.ask(write(3, leader: 4)).code == .fencedLeaderEpoch)
        #expect(harness.ask(write(3, leader: 5)).code == .none)
        // Set anew: below the start of before, and the leader has to read it again.
        #expect(harness.ask(.initialize(Self.id, stateEpoch: 2, startOffset: 1)).code == .none)
        #expect(harness.ask(write(4, leader: 5)).code == .fencedStateEpoch)
        #expect(harness.ask(.initialize(Self.id, stateEpoch: 1, startOffset: 0)).code == .fencedStateEpoch)
        #expect(harness.ask(.read(Self.id, leaderEpoch: 5)).startOffset == 1)
        #expect(harness.ask(write(4, state: 2, leader: 5)).code == .none)
        #expect(harness.ask(write(4, leader: -1)).code == .invalidRequest)
        #expect(harness.ask(.initialize(Self.id, stateEpoch: -1, startOffset: 0)).code == .invalidRequest)
        #expect(harness.ask(.initialize(Self.id, stateEpoch: 3, startOffset: -2)).code == .invalidRequest)
    }

    @Test func `a snapshot follows many updates, and what is before it is cut off`() {
        let harness = Harness()
        _ = harness.ask(.initialize(Self.id, stateEpoch: 1, startOffset: 0))
        for offset in 0..<Int64(ShareStateShard.updatesPerSnapshot) { _ = harness.ask(write(offset)) }
        #expect(harness.log.count == ShareStateShard.updatesPerSnapshot + 1)
        _ = harness.ask(write(1_000, [(1_002...1_003, .acknowledged)]))
        guard case .snapshot(_, let value?)? = harness.log.last else {
            Issue.record("no snapshot")
            return
        }
        #expect(value.snapshotEpoch == 1 && value.startOffset == 1_000 && value.stateBatches.count == 1)
        harness.handle(.pruningDue(logEnd: Int64(harness.log.count)))
        #expect(harness.pruned == Int64(harness.log.count - 1))
        // The rest is enough.
        #expect(Harness([harness.log.last!]).durableState() == harness.durableState())
    }

    @Test func `a quiet share partition does not keep the log long`() {
        let harness = Harness()
        _ = harness.ask(.initialize(Self.other, stateEpoch: 1, startOffset: 0))
        _ = harness.ask(.initialize(Self.id, stateEpoch: 1, startOffset: 0))
        for offset in 0..<ShareStateShard.coldRecordCount { _ = harness.ask(write(offset)) }
        harness.handle(.pruningDue(logEnd: Int64(harness.log.count)))
        #expect(harness.pruned == nil)
        harness.handle(.pruningDue(logEnd: Int64(harness.log.count)))
        let kept = Int64(ShareStateShard.updatesPerSnapshot)
        #expect(harness.pruned.map { $0 >= ShareStateShard.coldRecordCount - kept } == true)
        #expect(Harness(harness.log).durableState() == harness.durableState())
    }

    @Test func `deleted topics take their state along`() {
        let harness = Harness()
        _ = harness.ask(.initialize(Self.id, stateEpoch: 1, startOffset: 0))
        _ = harness.ask(.initialize(Self.other, stateEpoch: 1, startOffset: 0))
        harness.handle(.topicsDeleted([Self.id.topic]))
        #expect(harness.durableState().keys.map(\.group) == ["h"])
    }

    @Test func `an append that fails answers everybody, and the core takes nothing more`() {
        var shard = ShareStateShard()
        var effects: [ShareStateShard.Effect] = []
        shard.handle(
            .requested(RequestID(1), .summary(Self.id)), now: Timestamp(milliseconds: 0), into: &effects)
        #expect(effects == [.respond(RequestID(1), ShareStateResponse(.coordinatorLoadInProgress))])
        effects = []
        shard.handle(.loaded, now: Timestamp(milliseconds: 0), into: &effects)
        shard.handle(
            .requested(RequestID(2), .initialize(Self.id, stateEpoch: 0, startOffset: 0)),
            now: Timestamp(milliseconds: 0), into: &effects)
        guard case .append(_, let token)? = effects.first else {
            Issue.record("no append")
            return
        }
        effects = []
        // A read waits for what is on its way.
        shard.handle(
            .requested(RequestID(3), .summary(Self.id)), now: Timestamp(milliseconds: 0), into: &effects)
        #expect(effects.isEmpty)
        shard.handle(
            .appendFailed(token, .kafkaStorageError), now: Timestamp(milliseconds: 0), into: &effects)
        #expect(
            effects == [2, 3].map { .respond(RequestID($0), ShareStateResponse(.notCoordinator)) })
        effects = []
        shard.handle(
            .requested(RequestID(4), .summary(Self.id)), now: Timestamp(milliseconds: 0), into: &effects)
        #expect(effects == [.respond(RequestID(4), ShareStateResponse(.notCoordinator))])
    }
}
