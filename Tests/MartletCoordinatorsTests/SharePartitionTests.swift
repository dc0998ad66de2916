import MartletCoordinators
import MartletLogModel
import Testing

/// The one way tests drive a share partition: keeps its clock, its timer, its writes and what it answered.
final class SharePartitionHarness {
    var core: SharePartition
    private(set) var milliseconds: Int64 = 0
    private(set) var timer: Instant?
    private(set) var answers: [RequestID: (code: ErrorCode, message: String?)] = [:]
    /// Writes on their way, in order.
    private(set) var writes: [(update: ShareStateUpdate, token: ShareWriteToken)] = []
    private(set) var written: [ShareStateUpdate] = []
    private(set) var wakeCount = 0
    var writesAtOnce = true
    private var nextRequest: UInt64 = 1

    init(start: Int64 = 0, _ batches: [ShareStateBatch] = [], _ settings: ShareGroupSettings = .init()) {
        core = SharePartition(stateEpoch: 1, startOffset: start, batches: batches, settings: settings)
    }

    var now: Instant { Instant(nanoseconds: milliseconds * 1_000_000) }

    func handle(_ event: SharePartition.Event) {
        var effects: [SharePartition.Effect] = []
        core.handle(event, now: now, into: &effects)
        run(effects)
    }

    private func run(_ effects: [SharePartition.Effect]) {
        for effect in effects {
            switch effect {
            case .respond(let id, let code, let message):
                precondition(answers[id] == nil, "\(id) is answered twice")
                answers[id] = (code, message)
            case .write(let update, let token): writes.append((update, token))
            case .schedule(let instant): timer = instant
            case .wake: wakeCount += 1
            }
        }
        while writesAtOnce, !writes.isEmpty { endWrite() }
    }

    func endWrite(_ code: ErrorCode = .none) {
        let write = writes.removeFirst()
        if code == .none {
            written.append(write.update)
            handle(.written(write.token))
        } else {
            handle(.writeFailed(write.token, code))
        }
    }

    func advance(_ duration: Int64) {
        let end = milliseconds + duration
        while let next = timer, next.nanoseconds / 1_000_000 <= end {
            timer = nil
            milliseconds = max(milliseconds, next.nanoseconds / 1_000_000)
            handle(.timerFired)
        }
        milliseconds = end
    }

    /// Acquires of batches given as ranges; those in `hidden` are control records or aborted.
    func acquire(
        _ member: String, _ batches: [ClosedRange<Int64>], hidden: Set<Int64> = [], max: Int = 500,
        strict: Bool = false,
        batchSize: Int = 500
    ) -> [AcquiredRecords] {
        var effects: [SharePartition.Effect] = []
        let from = core.fetchOffset
        let read = batches.filter { $0.upperBound >= from }.map {
            ShareFetchedBatch(
                firstOffset: $0.lowerBound, lastOffset: $0.upperBound,
                isHidden: hidden.contains($0.lowerBound))
        }
        let acquired = core.acquire(
            ShareAcquisition(member: member, maxRecords: max, batchSize: batchSize, isStrict: strict), read,
            from: from,
            now: now, into: &effects)
        run(effects)
        return acquired
    }

    @discardableResult
    func acknowledge(_ member: String, _ ranges: [(ClosedRange<Int64>, [ShareAcknowledgement.Kind])])
        -> ErrorCode?
    {
        let id = RequestID(nextRequest)
        nextRequest += 1
        handle(
            .acknowledged(
                id, member: member,
                ranges.map {
                    ShareAcknowledgement(
                        firstOffset: $0.0.lowerBound, lastOffset: $0.0.upperBound, types: $0.1.map(\.rawValue)
                    )
                }))
        return answers[id]?.code
    }

    @discardableResult
    func acknowledge(
        _ member: String, _ range: ClosedRange<Int64>, _ kind: ShareAcknowledgement.Kind
    ) -> ErrorCode? { acknowledge(member, [(range, [kind])]) }

    /// "first-last state count member".
    var text: [String] {
        core.holdings().map {
            "\($0.firstOffset)-\($0.lastOffset) \($0.state) \($0.deliveryCount)"
                + ($0.member.map { " \($0)" } ?? "")
        }
    }
}

extension AcquiredRecords {
    init(_ range: ClosedRange<Int64>, _ count: Int16 = 1) {
        self.init(firstOffset: range.lowerBound, lastOffset: range.upperBound, deliveryCount: count)
    }
}

@Suite struct SharePartitionTests {
    @Test func `records go to one member, and the start follows what is acknowledged`() {
        let share = SharePartitionHarness()
        #expect(share.acquire("a", [0...4]) == [AcquiredRecords(0...4)])
        #expect(share.acquire("b", [0...4, 5...9]) == [AcquiredRecords(5...9)])
        #expect(share.acquire("c", [0...4, 5...9]).isEmpty)
        #expect(share.acknowledge("b", 5...9, .accept) == ErrorCode.none)
        #expect(share.core.startOffset == 0)
        #expect(share.text == ["0-4 acquired 1 a", "5-9 acknowledged 1"])
        #expect(share.written.last?.startOffset == 0 && share.written.last?.deliveryCompleteCount == 5)
        #expect(
            share.acknowledge("a", [(0...4, [.accept, .reject, .accept, .gap, .accept])]) == ErrorCode.none)
        #expect(share.core.startOffset == 10 && share.core.nextOffset == 10 && share.text.isEmpty)
        #expect(
            share.written.last == ShareStateUpdate(startOffset: 10, deliveryCompleteCount: 0, batches: []))
    }

    @Test func `what is released is delivered again, and given up after the last delivery`() {
        var settings = ShareGroupSettings()
        settings.deliveryCountLimit = 2
        let share = SharePartitionHarness(settings: settings)
        #expect(share.acquire("a", [0...3]) == [AcquiredRecords(0...3)])
        #expect(share.acknowledge("a", 1...2, .release) == ErrorCode.none)
        #expect(share.core.fetchOffset == 1)
        #expect(share.acquire("b", [0...3]) == [AcquiredRecords(1...2, 2)])
        #expect(share.acknowledge("b", 1...2, .release) == ErrorCode.none)
        #expect(share.text == ["0-0 acquired 1 a", "1-2 archived 2", "3-3 acquired 1 a"])
        #expect(share.acquire("c", [0...3]).isEmpty)
        #expect(share.acknowledge("a", [(0...0, [.accept]), (3...3, [.accept])]) == ErrorCode.none)
        #expect(share.core.startOffset == 4)
    }

    @Test func `a lock that is over frees its records, and the late acknowledgement is refused`() {
        let share = SharePartitionHarness()
        _ = share.acquire("a", [0...9])
        share.advance(20_000)
        #expect(share.acknowledge("a", 0...3, .renew) == ErrorCode.none)
        #expect(share.written.isEmpty)
        share.advance(10_000)
        #expect(share.text == ["0-3 acquired 1 a", "4-9 available 1"])
        #expect(
            share.written == [
                ShareStateUpdate(
                    startOffset: 0, deliveryCompleteCount: 0,
                    batches: [.init(firstOffset: 4, lastOffset: 9, state: .available, deliveryCount: 1)])
            ])
        #expect(share.acknowledge("a", 4...9, .accept) == .invalidRecordState)
        #expect(share.acquire("b", [0...9]) == [AcquiredRecords(4...9, 2)])
        share.advance(20_000)
        #expect(share.text == ["0-3 available 1", "4-9 acquired 2 b"])
    }

    @Test func `nothing is true before it is written, and a write that fails leaves the lock`() {
        let share = SharePartitionHarness()
        share.writesAtOnce = false
        _ = share.acquire("a", [0...9])
        #expect(share.acknowledge("a", 0...4, .accept) == nil)
        #expect(share.core.startOffset == 0)
        #expect(share.acknowledge("a", 0...4, .accept) == .invalidRecordState)
        #expect(share.acknowledge("a", 5...9, .accept) == nil)
        // The second does not count on the first.
        #expect(share.writes.map(\.update.startOffset) == [5, 0])
        share.endWrite(.coordinatorNotAvailable)
        #expect(share.answers.values.contains { $0.code == .coordinatorNotAvailable })
        share.endWrite()
        #expect(share.core.startOffset == 0)
        #expect(share.text == ["0-4 acquired 1 a", "5-9 acknowledged 1"])
        share.advance(30_000)
        #expect(share.text == ["0-4 available 1", "5-9 acknowledged 1"])
    }

    @Test func `a lock that ends while its acknowledgement is written does not free the records`() {
        let share = SharePartitionHarness()
        share.writesAtOnce = false
        _ = share.acquire("a", [0...4])
        _ = share.acknowledge("a", 0...4, .accept)
        share.advance(40_000)
        #expect(share.acquire("b", [0...4]).isEmpty)
        share.endWrite()
        #expect(share.core.startOffset == 5)
    }

    @Test func `an acknowledgement of what is before the start is good once that start is written`() {
        var settings = ShareGroupSettings()
        settings.deliveryCountLimit = 2
        let share = SharePartitionHarness(settings: settings)
        _ = share.acquire("a", [0...0])
        share.handle(.released(member: "a"))
        #expect(share.acquire("a", [0...0]) == [AcquiredRecords(0...0, 2)])
        // Its last lock ends, and the write that says so fails: a restart would deliver it again.
        share.writesAtOnce = false
        share.advance(40_000)
        #expect(share.core.startOffset == 1)
        share.endWrite(.coordinatorNotAvailable)
        #expect(share.acknowledge("a", 0...0, .accept) == nil)
        #expect(share.writes.map(\.update.startOffset) == [1])
        share.endWrite(.coordinatorNotAvailable)
        #expect(share.answers.values.map(\.code) == [.coordinatorNotAvailable])
        #expect(share.acknowledge("a", 0...0, .accept) == nil)
        share.endWrite()
        #expect(share.answers.values.contains { $0.code == .none })
        #expect(share.written.last == ShareStateUpdate(startOffset: 1, deliveryCompleteCount: 0, batches: []))
        // Once is enough.
        #expect(share.acknowledge("a", 0...0, .accept) == ErrorCode.none)
        #expect(share.writes.isEmpty)
    }

    @Test func `an acknowledgement of what the log has no more is good without a write`() {
        let share = SharePartitionHarness()
        _ = share.acquire("a", [0...9])
        share.writesAtOnce = false
        share.handle(.logStartMoved(5))
        #expect(share.acknowledge("a", 0...4, .accept) == ErrorCode.none)
        #expect(share.writes.isEmpty)
        // One that goes on behind the start is written, and so is what nobody has written yet.
        #expect(share.acknowledge("a", 4...9, .accept) == nil)
        share.endWrite()
        #expect(share.core.startOffset == 10 && share.acknowledge("a", 0...9, .accept) == ErrorCode.none)
        #expect(share.writes.isEmpty)
    }

    @Test func `a session that ends frees all that its member holds`() {
        let share = SharePartitionHarness()
        _ = share.acquire("a", [0...4])
        _ = share.acquire("b", [5...9])
        share.handle(.released(member: "a"))
        #expect(share.text == ["0-4 available 1", "5-9 acquired 1 b"])
        share.handle(.returned(member: "b", [AcquiredRecords(6...7)]))
        #expect(share.text == ["0-4 available 1", "5-5 acquired 1 b", "6-7 available 1", "8-9 acquired 1 b"])
    }

    @Test func `offsets that do not exist are done with`() {
        let share = SharePartitionHarness()
        // A hole before, control records, a hole between, an aborted batch at the end.
        #expect(
            share.acquire("a", [3...4, 5...5, 8...9, 10...12], hidden: [5, 10]) == [
                AcquiredRecords(3...4), AcquiredRecords(8...9),
            ])
        #expect(share.core.startOffset == 3 && share.core.nextOffset == 13)
        #expect(share.core.inFlightCount == 4)
        #expect(share.acknowledge("a", 3...9, .accept) == ErrorCode.none)
        #expect(share.core.startOffset == 13)
        // Compaction took what was free.
        _ = share.acquire("a", [13...20])
        share.handle(.released(member: "a"))
        #expect(share.acquire("b", [18...20]) == [AcquiredRecords(18...20, 2)])
        #expect(share.core.startOffset == 18)
    }

    @Test func `the log start takes what is before it, held or not`() {
        let share = SharePartitionHarness()
        _ = share.acquire("a", [0...9])
        share.handle(.logStartMoved(5))
        #expect(share.core.startOffset == 5 && share.text == ["5-9 acquired 1 a"])
        #expect(share.acknowledge("a", 0...9, .accept) == ErrorCode.none)
        #expect(share.core.startOffset == 10)
        share.handle(.logStartMoved(50))
        #expect(share.core.startOffset == 50 && share.core.fetchOffset == 50)
        share.handle(.logStartMoved(40))
        #expect(share.core.startOffset == 50)
    }

    @Test
    func `no more is in flight than the limit, and batches are acquired whole unless that is asked for`() {
        var settings = ShareGroupSettings()
        settings.recordLockLimit = 10
        let share = SharePartitionHarness(settings: settings)
        #expect(share.acquire("a", [0...3, 4...7], max: 2) == [AcquiredRecords(0...3)])
        #expect(share.acquire("a", [4...7, 8...20], max: 2, strict: true) == [AcquiredRecords(4...5)])
        #expect(share.core.fetchOffset == 6)
        #expect(share.acquire("b", [4...7, 8...20]) == [AcquiredRecords(6...9)])
        #expect(!share.core.canAcquire)
        #expect(share.acquire("c", [8...20]).isEmpty)
        #expect(share.acknowledge("a", 4...5, .release) == ErrorCode.none)
        #expect(share.core.canAcquire)
        #expect(share.acquire("c", [4...7, 8...20]) == [AcquiredRecords(4...5, 2)])
        #expect(share.acknowledge("a", 0...3, .accept) == ErrorCode.none)
        #expect(share.acquire("c", [8...20]) == [AcquiredRecords(10...13)])
    }

    @Test func `ranges are cut at batches when they are long enough`() {
        let share = SharePartitionHarness()
        #expect(
            share.acquire("a", [0...1, 2...3, 4...5, 6...7, 8...8], batchSize: 3) == [
                AcquiredRecords(0...3), AcquiredRecords(4...7), AcquiredRecords(8...8),
            ])
    }

    @Test func `a record on its last delivery travels alone`() {
        var settings = ShareGroupSettings()
        settings.deliveryCountLimit = 3
        let share = SharePartitionHarness(settings: settings)
        for count in Int16(1)...2 {
            #expect(share.acquire("a", [0...4]) == [AcquiredRecords(0...4, count)])
            share.handle(.released(member: "a"))
        }
        #expect(share.acquire("a", [0...4, 5...9]) == [AcquiredRecords(0...0, 3)])
        #expect(share.acquire("a", [0...4, 5...9]) == [AcquiredRecords(1...1, 3)])
        share.handle(.released(member: "a"))
        #expect(share.text.first == "2-4 available 2" && share.core.startOffset == 2)
    }

    @Test func `acknowledgements that make no sense change nothing`() {
        let share = SharePartitionHarness()
        #expect(share.acknowledge("a", 0...1, .accept) == .invalidRecordState)
        _ = share.acquire("a", [0...9])
        _ = share.acquire("b", [10...19])
        #expect(share.acknowledge("b", 0...4, .accept) == .invalidRecordState)
        #expect(share.acknowledge("a", 5...12, .accept) == .invalidRecordState)
        #expect(share.acknowledge("a", 15...25, .accept) == .invalidRequest)
        #expect(share.acknowledge("a", [(0...4, [.accept]), (4...5, [.accept])]) == .invalidRequest)
        #expect(share.acknowledge("a", [(0...4, [.accept, .accept])]) == .invalidRequest)
        #expect(share.acknowledge("a", [(0...4, [])]) == .invalidRequest)
        // All or nothing.
        #expect(share.acknowledge("a", [(0...4, [.accept]), (10...10, [.accept])]) == .invalidRecordState)
        #expect(share.text == ["0-9 acquired 1 a", "10-19 acquired 1 b"])
        #expect(share.written.isEmpty)
        for wrong in [Int8(-1), 5] {
            #expect(
                ShareAcknowledgement.problem(
                    [.init(firstOffset: 0, lastOffset: 0, types: [wrong])], allowsRenewal: true) != nil)
        }
        #expect(
            ShareAcknowledgement.problem(
                [.init(firstOffset: 0, lastOffset: 0, types: [4])], allowsRenewal: false)
                != nil)
        #expect(
            ShareAcknowledgement.problem(
                [.init(firstOffset: 3, lastOffset: 2, types: [1])], allowsRenewal: true)
                != nil)
    }

    @Test func `renewal can be switched off for a group`() {
        var settings = ShareGroupSettings()
        settings.allowsRenewal = false
        let share = SharePartitionHarness(settings: settings)
        _ = share.acquire("a", [0...9])
        #expect(share.acknowledge("a", 0...9, .renew) == .invalidRecordState)
    }

    @Test func `loaded state has no locks, and what was never heard of is delivered anew`() {
        let share = SharePartitionHarness(
            start: 5,
            [
                .init(firstOffset: 7, lastOffset: 8, state: .acknowledged, deliveryCount: 1),
                .init(firstOffset: 12, lastOffset: 14, state: .available, deliveryCount: 2),
                .init(firstOffset: 15, lastOffset: 15, state: .archived, deliveryCount: 5),
            ])
        #expect(
            share.text == [
                "5-6 available 0", "7-8 acknowledged 1", "9-11 available 0", "12-14 available 2",
                "15-15 archived 5",
            ])
        #expect(
            share.acquire("a", [0...9, 10...20]) == [
                AcquiredRecords(5...6, 1), AcquiredRecords(9...11, 1), AcquiredRecords(12...14, 3),
                AcquiredRecords(16...20, 1),
            ])
    }

    @Test func `a limit that was lowered gives up what was delivered too often`() {
        let share = SharePartitionHarness(
            [.init(firstOffset: 0, lastOffset: 3, state: .available, deliveryCount: 4)])
        var settings = ShareGroupSettings()
        settings.deliveryCountLimit = 2
        share.handle(.reconfigured(settings))
        #expect(share.acquire("a", [0...3, 4...5]) == [AcquiredRecords(4...5)])
        #expect(share.core.startOffset == 4)
    }

    @Test func `newer batches are written over older ones`() {
        func batch(_ range: ClosedRange<Int64>, _ state: ShareDeliveryState, _ count: Int16)
            -> ShareStateBatch
        {
            ShareStateBatch(
                firstOffset: range.lowerBound, lastOffset: range.upperBound, state: state,
                deliveryCount: count)
        }
        let old = [batch(0...9, .available, 1), batch(10...19, .acknowledged, 1)]
        #expect(
            old.merged(with: [batch(5...12, .archived, 2)], from: 2) == [
                batch(2...4, .available, 1), batch(5...12, .archived, 2), batch(13...19, .acknowledged, 1),
            ])
        #expect(
            old.merged(with: [batch(0...9, .acknowledged, 1)], from: 0) == [batch(0...19, .acknowledged, 1)])
        #expect(old.merged(with: [batch(25...26, .archived, 1)], from: 20) == [batch(25...26, .archived, 1)])
        #expect(
            old.merged(with: [batch(3...4, .archived, 1)], from: 0) == [
                batch(0...2, .available, 1), batch(3...4, .archived, 1), batch(5...9, .available, 1),
                batch(10...19, .acknowledged, 1),
            ])
    }

    @Test(arguments: [
        ("latest", ShareOffsetReset.latest), ("Earliest", .earliest),
        ("by_duration:PT1H", .duration(milliseconds: 3_600_000)),
        ("by_duration:P1DT2M3S", .duration(milliseconds: 86_523_000)), ("by_duration:", nil),
        ("by_duration:P", nil),
        ("by_duration:PT", nil), ("by_duration:PT5D", nil), ("by_duration:PT99999999999999999H", nil),
        ("none", nil),
        ("by_duration:-PT1H", nil), ("by_duration:PT1M1H", nil),
    ])
    func `the places to start from`(text: String, reset: ShareOffsetReset?) {
        #expect(ShareOffsetReset(text) == reset)
    }
}

extension SharePartitionHarness {
    convenience init(settings: ShareGroupSettings) { self.init(start: 0, [], settings) }
    convenience init(_ batches: [ShareStateBatch]) { self.init(start: 0, batches) }
}
