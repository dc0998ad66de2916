import MartletCoordinators
import MartletLogModel
import MartletTestSupport
import Testing

/// A share partition with its share coordinator under random members: they acquire, acknowledge what they hold or do
/// not hold, renew, go to sleep, leave, while the log grows, is compacted and cut, writes end late or fail, and leader
/// and coordinator restart. Every run follows from its seed.
private final class ShareSimulation {
    /// What really became of a record.
    private enum Fate: Equatable {
        case open
        case held(String, until: Int64)
        /// The member's last word is on its way to the log.
        case decided
        /// Its write failed: the lock stands, as long as it lasts.
        case unsure
        case done
    }

    private let seed: UInt64
    private var random: SeededGenerator
    private let id = SharePartitionID(group: "g", topic: UniversalID(high: 1, low: 2), partition: 0)
    private var settings = ShareGroupSettings()

    // The log of the partition.
    private var batches: [ShareFetchedBatch] = []
    private var logStart: Int64 = 0
    private var logEnd: Int64 = 0
    /// Exclusive end of what may be read.
    private var highWatermark: Int64 = 0

    // The leader.
    private var core: SharePartition
    private var leaderEpoch: Int32 = 0
    private var milliseconds: Int64 = 0
    private var timer: Instant?
    private var inFlight: [(token: ShareWriteToken, write: ShareStateWrite)] = []
    private var acknowledgements:
        [RequestID: (offsets: ClosedRange<Int64>, kind: ShareAcknowledgement.Kind)] = [:]
    private var nextRequest: UInt64 = 1

    // The share coordinator.
    private var shard = ShareStateShard()
    private var stateLog: [ShareStateRecord] = []
    private var shardEffects: [ShareStateShard.Effect] = []

    // What members and the test know.
    private var fates: [Int64: Fate] = [:]
    private var counts: [Int64: Int16] = [:]
    private var holdings: [String: [AcquiredRecords]] = [:]
    private var highestStart: Int64 = 0
    private var highestWritten: Int64 = 0
    private let members = ["a", "b", "c"]

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed)
        settings.recordLockLimit = 30
        settings.deliveryCountLimit = Int16(2 + seed % 4)
        settings.lockMilliseconds = 10_000
        core = SharePartition(stateEpoch: 0, startOffset: 0, batches: [], settings: settings)
        var effects: [ShareStateShard.Effect] = []
        shard.handle(.loaded, now: Timestamp(milliseconds: 0), into: &effects)
    }

    private func pick(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &random) }

    private func check(_ isTrue: Bool, _ what: String) { #expect(isTrue, "seed \(seed): \(what)") }

    // MARK: The share coordinator

    private func ask(_ request: ShareStateRequest) -> ShareStateResponse {
        let request1 = RequestID(nextRequest)
        nextRequest += 1
        var effects: [ShareStateShard.Effect] = []
        shard.handle(
            .requested(request1, request), now: Timestamp(milliseconds: milliseconds), into: &effects)
        var answer: ShareStateResponse?
        while !effects.isEmpty {
            let effect = effects.removeFirst()
            switch effect {
            case .respond(let id, let response): if id == request1 { answer = response }
            case .append(let records, let token):
                let offset = Int64(stateLog.count)
                // Through the bytes, as in the log.
                for record in records {
                    let (key, value) = try! record.encoded()
                    stateLog.append(try! ShareStateRecord.decode(key: key, value: value)!)
                }
                shard.handle(
                    .committed(token, offset: offset), now: Timestamp(milliseconds: milliseconds),
                    into: &effects)
            case .prune: break
            }
        }
        guard let answer else {
            Issue.record("seed \(seed): the share coordinator did not answer \(request)")
            return ShareStateResponse(.unknownServerError)
        }
        return answer
    }

    private func restartCoordinator() {
        let before = shard.durableState()
        var next = ShareStateShard()
        for (offset, record) in stateLog.enumerated() { next.replay(record, offset: Int64(offset)) }
        var effects: [ShareStateShard.Effect] = []
        next.handle(.loaded, now: Timestamp(milliseconds: milliseconds), into: &effects)
        check(next.durableState() == before, "replay is not the live state")
        shard = next
    }

    // MARK: The leader

    private func handle(_ event: SharePartition.Event) {
        var effects: [SharePartition.Effect] = []
        core.handle(event, now: Instant(nanoseconds: milliseconds * 1_000_000), into: &effects)
        run(effects)
    }

    private func run(_ effects: [SharePartition.Effect]) {
        for effect in effects {
            switch effect {
            case .respond(let id, let code, _): answered(id, code)
            case .write(let update, let token):
                check(update.startOffset >= core.startOffset, "a write with an older start")
                inFlight.append(
                    (
                        token,
                        ShareStateWrite(
                            stateEpoch: core.stateEpoch, leaderEpoch: leaderEpoch,
                            startOffset: update.startOffset,
                            deliveryCompleteCount: update.deliveryCompleteCount, batches: update.batches)
                    ))
            case .schedule(let instant): timer = instant
            case .wake: break
            }
        }
        check(core.startOffset >= highestStart, "the start offset fell")
        highestStart = max(highestStart, core.startOffset)
    }

    /// Ends the write that was begun first.
    private func endWrite(fails: Bool) {
        guard !inFlight.isEmpty else { return }
        let next = inFlight.removeFirst()
        if fails {
            handle(.writeFailed(next.token, .coordinatorNotAvailable))
        } else {
            let response = ask(.write(id, next.write))
            check(response.code == .none, "a write was refused: \(response.message ?? "")")
            highestWritten = max(highestWritten, next.write.startOffset)
            handle(.written(next.token))
        }
    }

    private func answered(_ id: RequestID, _ code: ErrorCode) {
        guard let asked = acknowledgements.removeValue(forKey: id) else { return }
        for offset in asked.offsets where fates[offset] == .decided {
            if code == .none {
                fates[offset] = asked.kind == .release ? released(offset) : .done
            } else {
                fates[offset] = .unsure
            }
        }
    }

    private func released(_ offset: Int64) -> Fate {
        counts[offset, default: 0] >= settings.deliveryCountLimit ? .done : .open
    }

    private func restartLeader() {
        // What was on its way is lost, or arrives in part; nothing is heard of it.
        if pick(0...1) == 0 { endWrite(fails: false) }
        inFlight = []
        acknowledgements = [:]
        timer = nil
        leaderEpoch += 1
        let state = ask(.read(id, leaderEpoch: leaderEpoch))
        check(state.code == .none, "the state cannot be read")
        check(
            ask(
                .write(
                    id,
                    ShareStateWrite(
                        stateEpoch: state.stateEpoch, leaderEpoch: leaderEpoch - 1, startOffset: 0,
                        deliveryCompleteCount: 0, batches: []))
            ).code == .fencedLeaderEpoch, "an older leader may write")
        core = SharePartition(
            stateEpoch: state.stateEpoch, startOffset: state.startOffset, batches: state.batches,
            settings: settings)
        check(state.startOffset >= highestWritten, "the written start offset fell")
        highestStart = core.startOffset
        holdings = [:]
        for (offset, fate) in fates {
            if offset < core.startOffset {
                check(fate == .done || fate == .unsure, "offset \(offset) was passed over: \(fate)")
            } else if offset >= core.nextOffset {
                fates[offset] = .open
            }
        }
        // What was decided and not written is as it was before.
        for run in core.holdings() {
            for offset in run.firstOffset...run.lastOffset where fates[offset] != nil {
                fates[offset] = run.state == .available ? .open : .done
            }
        }
        // The log is still cut, whatever was written of the start.
        for offset in fates.keys where offset < logStart { fates[offset] = .done }
        // Deliveries that were not written are not known any more.
        counts = [:]
        for run in core.holdings() where run.deliveryCount > 0 {
            for offset in run.firstOffset...run.lastOffset { counts[offset] = run.deliveryCount }
        }
        for run in core.holdings() where run.state != .available {
            for offset in run.firstOffset...run.lastOffset {
                check(fates[offset] != nil || isHidden(offset), "offset \(offset) was never delivered")
            }
        }
    }

    private func isHidden(_ offset: Int64) -> Bool {
        !batches.contains { !$0.isHidden && $0.firstOffset <= offset && offset <= $0.lastOffset }
    }

    // MARK: Steps

    private func grow() {
        let length = Int64(pick(1...6))
        // Compaction takes whole batches here.
        if pick(0...9) == 0 { logEnd += Int64(pick(1...4)) }
        batches.append(
            ShareFetchedBatch(
                firstOffset: logEnd, lastOffset: logEnd + length - 1, isHidden: pick(0...7) == 0))
        logEnd += length
        // The mark follows later.
        if pick(0...1) == 0 { highWatermark = logEnd }
    }

    private func fetch(_ member: String, strict: Bool) {
        let from = core.fetchOffset
        if from < logStart { return handle(.logStartMoved(logStart)) }
        let read = batches.filter { $0.lastOffset >= from && $0.lastOffset < highWatermark }.prefix(
            pick(1...4))
        guard !read.isEmpty, core.canAcquire else { return }
        var effects: [SharePartition.Effect] = []
        let most = pick(1...12)
        let end = core.nextOffset
        let acquired = core.acquire(
            ShareAcquisition(member: member, maxRecords: most, batchSize: pick(1...5), isStrict: strict),
            Array(read),
            from: from, now: Instant(nanoseconds: milliseconds * 1_000_000), into: &effects)
        var total = 0
        for records in acquired {
            for offset in records.firstOffset...records.lastOffset {
                total += 1
                check(offset < highWatermark, "offset \(offset) is above the mark \(highWatermark)")
                check(!isHidden(offset), "offset \(offset) is for nobody")
                if case .held(let other, let until)? = fates[offset] {
                    check(until <= milliseconds, "offset \(offset) is with \(other)")
                }
                check(fates[offset] != .done && fates[offset] != .decided, "offset \(offset) was done with")
                let count = counts[offset, default: 0] + 1
                check(
                    records.deliveryCount == count, "offset \(offset): \(records.deliveryCount) for \(count)")
                check(count <= settings.deliveryCountLimit, "offset \(offset) is delivered \(count) times")
                counts[offset] = count
                fates[offset] = .held(member, until: milliseconds + settings.lockMilliseconds)
            }
        }
        if let last = acquired.last, last.lastOffset >= end {
            check(core.inFlightCount <= settings.recordLockLimit, "\(core.inFlightCount) in flight")
        }
        if strict { check(total <= most, "\(total) records for \(most)") }
        holdings[member, default: []].append(contentsOf: acquired)
        run(effects)
    }

    private func acknowledge(_ member: String) {
        guard var held = holdings[member], !held.isEmpty else { return }
        let records = held.remove(at: pick(0...held.count - 1))
        holdings[member] = held
        var offsets = records.firstOffset...records.lastOffset
        if pick(0...2) == 0 {
            offsets = records.firstOffset...min(records.lastOffset, records.firstOffset + 1)
        }
        let kinds: [ShareAcknowledgement.Kind] = [.accept, .accept, .accept, .reject, .release, .gap, .renew]
        let kind = kinds[pick(0...kinds.count - 1)]
        guard !offsets.contains(where: { fates[$0] == .unsure }) else { return }
        let request = RequestID(nextRequest)
        nextRequest += 1
        let isMine = offsets.allSatisfy { offset in
            if offset < core.startOffset { return true }
            if case .held(let holder, _)? = fates[offset] { return holder == member }
            return false
        }
        let before = fates
        if isMine {
            for offset in offsets where offset >= core.startOffset {
                fates[offset] =
                    kind == .renew ? .held(member, until: milliseconds + settings.lockMilliseconds) : .decided
            }
            acknowledgements[request] = (offsets, kind)
        }
        var effects: [SharePartition.Effect] = []
        core.handle(
            .acknowledged(
                request, member: member,
                [
                    ShareAcknowledgement(
                        firstOffset: offsets.lowerBound, lastOffset: offsets.upperBound,
                        types: [kind.rawValue])
                ]), now: Instant(nanoseconds: milliseconds * 1_000_000), into: &effects)
        for effect in effects {
            guard case .respond(request, let code, _) = effect else { continue }
            if isMine {
                check(code == .none, "\(member) was refused \(offsets): \(code)")
            } else {
                check(
                    code == .invalidRecordState || code == .invalidRequest,
                    "\(member) may say what it does not know")
                fates = before
            }
        }
        run(effects)
    }

    private func release(_ member: String) {
        holdings[member] = nil
        for (offset, fate) in fates {
            if case .held(member, _) = fate { fates[offset] = released(offset) }
        }
        handle(.released(member: member))
    }

    private func advance(_ duration: Int64) {
        let end = milliseconds + duration
        while let next = timer, next.nanoseconds / 1_000_000 <= end {
            timer = nil
            milliseconds = max(milliseconds, next.nanoseconds / 1_000_000)
            for (offset, fate) in fates {
                if case .held(_, let until) = fate, until <= milliseconds { fates[offset] = released(offset) }
            }
            handle(.timerFired)
        }
        milliseconds = end
    }

    private func cut() {
        guard logStart < highWatermark else { return }
        let first = batches.first { $0.lastOffset >= logStart }
        guard let first, first.lastOffset < highWatermark else { return }
        logStart = first.lastOffset + 1
        for offset in fates.keys where offset < logStart { fates[offset] = .done }
        handle(.logStartMoved(logStart))
    }

    // MARK: Run

    func run() {
        check(ask(.initialize(id, stateEpoch: 0, startOffset: 0)).code == .none, "not initialized")
        check(ask(.read(id, leaderEpoch: 0)).code == .none, "not read")
        for _ in 0..<600 {
            switch pick(0...19) {
            case 0...3: grow()
            case 4...8: fetch(members[pick(0...2)], strict: pick(0...2) == 0)
            case 9...13: acknowledge(members[pick(0...2)])
            case 14...15: endWrite(fails: pick(0...9) == 0)
            case 16: advance(Int64(pick(1...6_000)))
            case 17: if pick(0...3) == 0 { release(members[pick(0...2)]) }
            case 18: if pick(0...5) == 0 { cut() }
            case _:
                if pick(0...5) == 0 { restartCoordinator() }
                if pick(0...7) == 0 { restartLeader() }
            }
        }
        finish()
    }

    /// Everything is written, then everything is consumed: nothing may be left behind.
    private func finish() {
        highWatermark = logEnd
        for member in members { release(member) }
        while !inFlight.isEmpty { endWrite(fails: false) }
        restartLeader()
        var rounds = 0
        while core.startOffset < highWatermark, rounds < 10_000 {
            rounds += 1
            let before = core.startOffset
            fetch("a", strict: false)
            for records in holdings["a"] ?? [] {
                let request = RequestID(nextRequest)
                nextRequest += 1
                acknowledgements[request] = (records.firstOffset...records.lastOffset, .accept)
                for offset in records.firstOffset...records.lastOffset { fates[offset] = .decided }
                handle(
                    .acknowledged(
                        request, member: "a",
                        [
                            ShareAcknowledgement(
                                firstOffset: records.firstOffset, lastOffset: records.lastOffset,
                                types: [ShareAcknowledgement.Kind.accept.rawValue])
                        ]))
            }
            holdings["a"] = nil
            while !inFlight.isEmpty { endWrite(fails: false) }
            // A hole at the end, which only the next batch would show.
            if core.startOffset == before, batches.allSatisfy({ $0.lastOffset < core.startOffset }) { break }
        }
        check(rounds < 10_000, "records are left: \(core.holdings())")
        check(core.holdings().isEmpty, "something is in flight at the end")
        for batch in batches where !batch.isHidden && batch.firstOffset >= logStart {
            for offset in batch.firstOffset...batch.lastOffset {
                check(
                    fates[offset] == .done || fates[offset] == .unsure, "offset \(offset) was never delivered"
                )
            }
        }
        restartCoordinator()
    }
}

@Suite struct SharePropertyTests {
    @Test(.timeLimit(.minutes(2)), arguments: 1...200 as ClosedRange<UInt64>)
    func `one holder at a time, no delivery too many, nothing lost, replay is live state`(seed: UInt64) {
        ShareSimulation(seed: seed).run()
    }
}
