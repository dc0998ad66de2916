import MartletKafkaProtocol
package import MartletLogModel

/// One share partition on the leader of its partition: which records of it are with whom (KIP-932). A pure core.
///
/// ```
///              acquire                        accept, gap
///   available ─────────► acquired(member) ─────────────────► acknowledged ┐ terminal: the start
///       ▲                    │  │                                         │ offset moves over them
///       │ release, lock      │  └── reject, or given back after the ────► archived ┘
///       └── over, session ◄──┘      last delivery that is allowed
///           closed
/// ```
///
/// Records between `startOffset` and `nextOffset` are in flight and stand, as runs in one state, in `runs`; all before
/// are done with, all after were never delivered. Deliveries are counted when a record is acquired. A lock is with
/// this object alone: after a crash what was acquired is available again, with the count that was written last.
///
/// What a member says becomes true when it is written: until then the run keeps its lock beside the change on its way,
/// and a write that fails leaves it as it was. What time decides (a lock is over, a session ends) is true at once, and
/// written behind it: nobody waits for it.
///
/// Offsets that do not exist (compaction, control records, aborted transactions of a group that reads committed)
/// are found while reading and count as done with; they take nothing of what may be in flight.
///
/// Invariants: a record is with at most one member; it is never delivered more often than the limit; the start offset
/// never falls; nothing is acquired but what the reader brought, which ends at the high watermark or the last stable
/// offset; a core made from what was written is this one without its locks.
///
/// Sources: KIP-932, KIP-1206 (acquire modes), KIP-1222 (renewal).
package struct SharePartition: Sendable {
    package enum Event: Sendable {
        case acknowledged(RequestID, member: String, [ShareAcknowledgement])
        /// The member's session is over: what it holds is free again.
        case released(member: String)
        /// Records were acquired for a request that is not there any more.
        case returned(member: String, [AcquiredRecords])
        case written(ShareWriteToken)
        case writeFailed(ShareWriteToken, ErrorCode)
        case timerFired
        /// The log begins here: what was before it is gone.
        case logStartMoved(Int64)
        case reconfigured(ShareGroupSettings)
    }

    package enum Effect: Sendable, Equatable {
        case respond(RequestID, ErrorCode, String?)
        /// Write to the share coordinator and report how that ended; writes take place in their order.
        case write(ShareStateUpdate, ShareWriteToken)
        /// When the next lock is over; replaces the time before.
        case schedule(Instant)
        /// There may be something to acquire that was not there before.
        case wake
    }

    private enum State: Equatable, Sendable {
        case available
        case acquired(member: String, until: Instant)
        case acknowledged
        case archived
        /// The log has no such offsets, or nobody shall see them.
        case missing

        var isTerminal: Bool {
            switch self {
            case .available, .acquired: false
            case .acknowledged, .archived, .missing: true
            }
        }
    }

    /// What a write makes of a run when it has succeeded.
    private struct Change: Equatable, Sendable {
        var token: ShareWriteToken
        var state: ShareDeliveryState
    }

    private struct Write: Equatable, Sendable {
        /// Who waits for it.
        var request: RequestID?
        /// The start that it says.
        var startOffset: Int64
    }

    private struct Run: Equatable, Sendable {
        var first: Int64
        var last: Int64
        var state: State
        var deliveryCount: Int16
        var change: Change?

        var count: Int { Int(clamping: last - first + 1) }
        var isFree: Bool { state == .available && change == nil }

        func isLike(_ other: Run) -> Bool {
            state == other.state && deliveryCount == other.deliveryCount && change == other.change
        }
    }

    /// The group's incarnation of this partition: rises when its offsets are set anew, and fences older leaders.
    package let stateEpoch: Int32
    /// First record that is not done with.
    package private(set) var startOffset: Int64
    /// First record that was never delivered.
    package private(set) var nextOffset: Int64
    package private(set) var settings: ShareGroupSettings
    /// From `startOffset` to `nextOffset` without gaps.
    private var runs: [Run] = []
    private var nextToken: UInt64 = 1
    /// Writes on their way.
    private var writes: [ShareWriteToken: Write] = [:]
    /// Nothing before it comes again, whatever happens: that was written, or the log has it no more. Behind
    /// ``startOffset`` while what moved that is being written, or failed to be.
    private var settledOffset: Int64
    private var scheduled: Instant?

    /// - Parameter batches: as they were written last.
    package init(
        stateEpoch: Int32, startOffset: Int64, batches: [ShareStateBatch], settings: ShareGroupSettings
    ) {
        self.stateEpoch = stateEpoch
        self.startOffset = startOffset
        self.nextOffset = startOffset
        settledOffset = startOffset
        self.settings = settings
        for batch in [ShareStateBatch]().merged(with: batches, from: startOffset) {
            // What was delivered and never heard of again was not written.
            if batch.firstOffset > nextOffset {
                append(
                    Run(first: nextOffset, last: batch.firstOffset - 1, state: .available, deliveryCount: 0))
            }
            let state: State =
                switch batch.state {
                case .available, .acquired: .available
                case .acknowledged: .acknowledged
                case .archiving, .archived: .archived
                }
            append(
                Run(
                    first: batch.firstOffset, last: batch.lastOffset, state: state,
                    deliveryCount: batch.deliveryCount))
        }
        _ = moveStart()
        // What the start moved over was written as settled.
        settledOffset = self.startOffset
    }

    // MARK: Reading

    /// Where to read next: the first record that is free, else the first that was never delivered.
    package var fetchOffset: Int64 { runs.first(where: \.isFree)?.first ?? nextOffset }

    /// Whether a record may be acquired at all, if the log has one.
    package var canAcquire: Bool { hasFree || inFlightCount < settings.recordLockLimit }

    /// Whether records wait that were delivered before.
    package var hasFree: Bool { runs.contains(where: \.isFree) }

    /// Records that count against the limit.
    package var inFlightCount: Int { runs.reduce(0) { $0 + ($1.state == .missing ? 0 : $1.count) } }

    /// Whether nothing would be lost with this object but time.
    package var isIdle: Bool {
        writes.isEmpty
            && !runs.contains { if case .acquired = $0.state { true } else { false } }
    }

    /// Acquires records of what was read from ``fetchOffset`` on.
    ///
    /// - Parameters:
    ///   - batches: in order, each whole, those that nobody shall see marked as such.
    ///   - offset: where the reader began.
    package mutating func acquire(
        _ request: ShareAcquisition, _ batches: [ShareFetchedBatch], from offset: Int64, now: Instant,
        into effects: inout [Effect]
    ) -> [AcquiredRecords] {
        var result = AcquisitionResult(request)
        var cursor = max(offset, startOffset)
        for batch in batches {
            guard batch.lastOffset >= cursor else { continue }
            guard result.mayGoOn else { break }
            markMissing(cursor, batch.firstOffset - 1)
            cursor = max(cursor, batch.firstOffset)
            if batch.isHidden {
                markMissing(cursor, batch.lastOffset)
            } else {
                acquireFree(cursor, batch.lastOffset, &result, now)
                acquireNew(upTo: batch.lastOffset, &result, now)
            }
            cursor = batch.lastOffset + 1
        }
        if moveStart() { effects.append(.wake) }
        mergeRuns()
        reschedule(&effects)
        return result.records
    }

    /// Records delivered before that are free again.
    private mutating func acquireFree(
        _ first: Int64, _ last: Int64, _ result: inout AcquisitionResult, _ now: Instant
    ) {
        var position = first
        while position <= min(last, nextOffset - 1), result.mayGoOn {
            let index = self.index(of: position)
            let run = runs[index]
            var end = min(run.last, last)
            guard run.isFree else {
                position = end + 1
                continue
            }
            if run.deliveryCount >= settings.deliveryCountLimit {
                // The limit was lowered meanwhile.
                runs[split(position, end)].state = .archived
                position = end + 1
                continue
            }
            // A record that may break its reader takes nobody along on its last try.
            let isLastTry =
                settings.deliveryCountLimit > 2 && run.deliveryCount + 1 >= settings.deliveryCountLimit
            if isLastTry {
                guard result.count == 0 else {
                    result.isClosed = true
                    return
                }
                end = position
                result.isClosed = true
            }
            if result.request.isStrict { end = min(end, position + Int64(result.room) - 1) }
            let part = split(position, end)
            runs[part].deliveryCount += 1
            runs[part].state = lock(for: result.request.member, now)
            result.add(position, end, runs[part].deliveryCount)
            position = end + 1
        }
    }

    private mutating func acquireNew(upTo last: Int64, _ result: inout AcquisitionResult, _ now: Instant) {
        guard nextOffset <= last, result.mayGoOn else { return }
        let free = settings.recordLockLimit - inFlightCount
        guard free > 0 else {
            result.isClosed = true
            return
        }
        let room = result.request.isStrict ? min(free, result.room) : free
        let end = min(last, nextOffset + Int64(room) - 1)
        let first = nextOffset
        append(Run(first: first, last: end, state: lock(for: result.request.member, now), deliveryCount: 1))
        result.add(first, end, 1)
        if end < last { result.isClosed = true }
    }

    private func lock(for member: String, _ now: Instant) -> State {
        .acquired(member: member, until: now.advanced(byMilliseconds: settings.lockMilliseconds))
    }

    /// Nobody will see these offsets: done with.
    private mutating func markMissing(_ first: Int64, _ last: Int64) {
        var position = first
        while position <= min(last, nextOffset - 1) {
            let run = runs[index(of: position)]
            let end = min(run.last, last)
            if run.isFree { runs[split(position, end)].state = .missing }
            position = end + 1
        }
        if nextOffset <= last {
            append(Run(first: nextOffset, last: last, state: .missing, deliveryCount: 0))
        }
    }

    // MARK: Events

    package mutating func handle(_ event: Event, now: Instant, into effects: inout [Effect]) {
        switch event {
        case .acknowledged(let id, let member, let acknowledgements):
            do throws(GroupRefusal) {
                try acknowledge(id, member, acknowledgements, now, &effects)
            } catch {
                effects.append(.respond(id, error.code, error.message))
            }
        case .released(let member):
            giveBack(&effects) { _, holder, _ in holder == member }
        case .returned(let member, let records):
            for record in records { separate(record.firstOffset, record.lastOffset) }
            giveBack(&effects) { run, holder, _ in
                holder == member
                    && records.contains { $0.firstOffset <= run.first && run.last <= $0.lastOffset }
            }
        case .written(let token):
            finish(token, .none, now, &effects)
        case .writeFailed(let token, let code):
            finish(token, code, now, &effects)
        case .timerFired:
            scheduled = nil
            giveBack(&effects) { _, _, until in until <= now }
        case .logStartMoved(let offset):
            moveStart(to: offset, &effects)
        case .reconfigured(let settings):
            self.settings = settings
        }
        reschedule(&effects)
    }

    // MARK: Acknowledgement

    /// All or nothing: throws before anything is changed.
    private mutating func acknowledge(
        _ id: RequestID, _ member: String, _ acknowledgements: [ShareAcknowledgement], _ now: Instant,
        _ effects: inout [Effect]
    ) throws(GroupRefusal) {
        if let problem = ShareAcknowledgement.problem(acknowledgements, allowsRenewal: true) {
            throw GroupRefusal(.invalidRequest, problem)
        }
        for acknowledgement in acknowledgements { try check(acknowledgement, member) }

        let token = takeToken()
        var batches: [ShareStateBatch] = []
        for acknowledgement in acknowledgements {
            for (first, last, type) in acknowledgement.parts {
                apply(type, max(first, startOffset), last, token, now, &batches)
            }
        }
        // What lies before the start is done with, but what moved the start there may not be written, or may have
        // failed to be: the answer says that the records do not come again, and waits for a write that says so too.
        let isUnsettled = acknowledgements.contains {
            max($0.firstOffset, settledOffset) < min($0.lastOffset + 1, startOffset)
        }
        guard !batches.isEmpty || isUnsettled else {
            mergeRuns()
            effects.append(.respond(id, .none, nil))
            return
        }
        write(batches, token, for: id, &effects)
    }

    private mutating func takeToken() -> ShareWriteToken {
        defer { nextToken += 1 }
        return ShareWriteToken(rawValue: nextToken)
    }

    private mutating func write(
        _ batches: [ShareStateBatch], _ token: ShareWriteToken, for request: RequestID?, _ effects: inout [Effect]
    ) {
        let update = update(batches, token)
        writes[token] = Write(request: request, startOffset: update.startOffset)
        effects.append(.write(update, token))
    }

    private func check(_ acknowledgement: ShareAcknowledgement, _ member: String) throws(GroupRefusal) {
        guard acknowledgement.lastOffset >= startOffset else { return }
        guard acknowledgement.lastOffset < nextOffset else {
            throw runs.isEmpty
                ? GroupRefusal(.invalidRecordState, "None of the records is acquired.")
                : GroupRefusal(
                    .invalidRequest,
                    "Offset \(acknowledgement.lastOffset) was not delivered yet; the last one was \(nextOffset - 1)."
                )
        }
        if acknowledgement.types.contains(ShareAcknowledgement.Kind.renew.rawValue), !settings.allowsRenewal {
            throw GroupRefusal(
                .invalidRecordState,
                "Renewing locks is switched off for the group (share.renew.acknowledge.enable).")
        }
        var position = max(acknowledgement.firstOffset, startOffset)
        while position <= acknowledgement.lastOffset {
            let run = runs[index(of: position)]
            switch run.state {
            case .acquired(let holder, _):
                guard holder == member else {
                    throw GroupRefusal(
                        .invalidRecordState, "Offset \(position) is acquired by another member.")
                }
                guard run.change == nil else {
                    throw GroupRefusal(
                        .invalidRecordState,
                        "Offset \(position) has been acknowledged; that is being written.")
                }
            case .missing:
                // A client may name the ends of a range that has holes.
                break
            case .available, .acknowledged, .archived:
                guard settings.suspended.contains(.shareLockEnd) else {
                    throw GroupRefusal(.invalidRecordState, "Offset \(position) is not acquired.")
                }
            }
            position = run.last + 1
        }
    }

    private mutating func apply(
        _ type: ShareAcknowledgement.Kind, _ first: Int64, _ last: Int64, _ token: ShareWriteToken,
        _ now: Instant,
        _ batches: inout [ShareStateBatch]
    ) {
        var position = first
        while position <= last {
            let run = runs[index(of: position)]
            let end = min(run.last, last)
            defer { position = end + 1 }
            guard case .acquired(let member, _) = run.state else { continue }
            let target: ShareDeliveryState
            switch type {
            case .renew:
                runs[split(position, end)].state = lock(for: member, now)
                continue
            case .accept: target = .acknowledged
            case .gap, .reject: target = .archived
            case .release: target = stateWhenGivenBack(run.deliveryCount)
            }
            runs[split(position, end)].change = Change(token: token, state: target)
            batches.append(
                ShareStateBatch(
                    firstOffset: position, lastOffset: end, state: target, deliveryCount: run.deliveryCount))
        }
    }

    private func stateWhenGivenBack(_ deliveryCount: Int16) -> ShareDeliveryState {
        deliveryCount >= settings.deliveryCountLimit ? .archived : .available
    }

    private mutating func finish(
        _ token: ShareWriteToken, _ code: ErrorCode, _ now: Instant, _ effects: inout [Effect]
    ) {
        guard let write = writes.removeValue(forKey: token) else { return }
        if code == .none { settledOffset = max(settledOffset, write.startOffset) }
        var isFree = false
        for index in runs.indices where runs[index].change?.token == token {
            let target = runs[index].change?.state
            runs[index].change = nil
            guard code == .none, let target else { continue }
            switch target {
            case .available, .acquired:
                runs[index].state = .available
                isFree = true
            case .acknowledged: runs[index].state = .acknowledged
            case .archiving, .archived: runs[index].state = .archived
            }
        }
        if let request = write.request { effects.append(.respond(request, code, nil)) }
        let hasMoved = moveStart()
        mergeRuns()
        if isFree || hasMoved { effects.append(.wake) }
    }

    // MARK: Giving back

    /// Frees what is held and chosen, at once; what was delivered for the last time is given up.
    private mutating func giveBack(
        _ effects: inout [Effect],
        where isChosen: (_ run: (first: Int64, last: Int64), String, Instant) -> Bool
    ) {
        var batches: [ShareStateBatch] = []
        var isFree = false
        for index in runs.indices {
            let run = runs[index]
            guard case .acquired(let member, let until) = run.state, run.change == nil,
                isChosen((run.first, run.last), member, until)
            else { continue }
            let target = stateWhenGivenBack(run.deliveryCount)
            runs[index].state = target == .available ? .available : .archived
            if target == .available { isFree = true }
            batches.append(
                ShareStateBatch(
                    firstOffset: run.first, lastOffset: run.last, state: target,
                    deliveryCount: run.deliveryCount))
        }
        guard !batches.isEmpty else { return }
        let hasMoved = moveStart()
        mergeRuns()
        write(batches, takeToken(), for: nil, &effects)
        if isFree || hasMoved { effects.append(.wake) }
    }

    // MARK: Start offset

    /// The log begins at `offset`: who holds something before may say so, and nothing comes of it.
    private mutating func moveStart(to offset: Int64, _ effects: inout [Effect]) {
        guard offset > startOffset else { return }
        startOffset = offset
        settledOffset = max(settledOffset, offset)
        nextOffset = max(nextOffset, offset)
        runs.removeAll { $0.last < offset }
        if let first = runs.first, first.first < offset { runs[0].first = offset }
        _ = moveStart()
        effects.append(.wake)
    }

    /// Moves the start over what is done with.
    private mutating func moveStart() -> Bool {
        let done = runs.prefix { $0.state.isTerminal && $0.change == nil }.count
        guard done > 0 else { return false }
        startOffset = runs[done - 1].last + 1
        runs.removeFirst(done)
        return true
    }

    /// What is written: start and number of records done with behind it as they will be when this write has
    /// succeeded, whatever becomes of others on their way.
    private func update(_ batches: [ShareStateBatch], _ token: ShareWriteToken) -> ShareStateUpdate {
        func isDone(_ run: Run) -> Bool {
            guard let change = run.change else { return run.state.isTerminal }
            return change.token == token && change.state.isTerminal
        }
        let done = runs.prefix(while: isDone)
        let start = done.last.map { $0.last + 1 } ?? startOffset
        let complete = runs.dropFirst(done.count).reduce(0) { $0 + (isDone($1) ? $1.count : 0) }
        return ShareStateUpdate(
            startOffset: start, deliveryCompleteCount: Int32(clamping: complete),
            batches: [ShareStateBatch]().merged(
                with: batches.sorted { $0.firstOffset < $1.firstOffset }, from: start))
    }

    // MARK: Runs

    private mutating func append(_ run: Run) {
        precondition(run.first == nextOffset && run.last >= run.first, "runs leave no gap")
        runs.append(run)
        nextOffset = run.last + 1
    }

    /// The run that holds the offset, which is in flight.
    private func index(of offset: Int64) -> Int {
        let index = runs.partitioningIndex { $0.last >= offset }
        precondition(index < runs.count && runs[index].first <= offset, "offset \(offset) is not in flight")
        return index
    }

    /// Makes a run of its own of these offsets, which are in one run, and returns where it is.
    private mutating func split(_ first: Int64, _ last: Int64) -> Int {
        var index = self.index(of: first)
        precondition(last <= runs[index].last, "offsets \(first)-\(last) are in several runs")
        if runs[index].first < first {
            var rest = runs[index]
            rest.first = first
            runs[index].last = first - 1
            index += 1
            runs.insert(rest, at: index)
        }
        if runs[index].last > last {
            var rest = runs[index]
            rest.first = last + 1
            runs[index].last = last
            runs.insert(rest, at: index + 1)
        }
        return index
    }

    /// No run goes over either end of these offsets.
    private mutating func separate(_ first: Int64, _ last: Int64) {
        var position = max(first, startOffset)
        let end = min(last, nextOffset - 1)
        while position <= end {
            let part = min(runs[index(of: position)].last, end)
            _ = split(position, part)
            position = part + 1
        }
    }

    private mutating func mergeRuns() {
        guard runs.count > 1 else { return }
        var kept = 0
        for index in 1..<runs.count {
            if runs[kept].isLike(runs[index]) {
                runs[kept].last = runs[index].last
            } else {
                kept += 1
                runs[kept] = runs[index]
            }
        }
        runs.removeSubrange((kept + 1)...)
    }

    // MARK: Timer

    private mutating func reschedule(_ effects: inout [Effect]) {
        var next: Instant?
        for run in runs where run.change == nil {
            if case .acquired(_, let until) = run.state { next = min(next ?? until, until) }
        }
        // A timer that fires too early finds nothing and asks for the next.
        guard let next, scheduled.map({ next < $0 }) ?? true else { return }
        scheduled = next
        effects.append(.schedule(next))
    }

    // MARK: For tests and traces

    /// A run of records as somebody outside sees it.
    package struct Holding: Sendable, Equatable {
        package var firstOffset: Int64
        package var lastOffset: Int64
        package var state: ShareDeliveryState
        package var deliveryCount: Int16
        package var member: String?
    }

    package func holdings() -> [Holding] {
        runs.map { run in
            var holding = Holding(
                firstOffset: run.first, lastOffset: run.last, state: .archived,
                deliveryCount: run.deliveryCount)
            switch run.state {
            case .available: holding.state = .available
            case .acquired(let member, _):
                holding.state = .acquired
                holding.member = member
            case .acknowledged: holding.state = .acknowledged
            case .archived, .missing: holding.state = .archived
            }
            return holding
        }
    }
}

/// Names one write of a share partition; the shell reports once how it ended.
package struct ShareWriteToken: RawRepresentable, Hashable, Sendable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// What a share partition writes about itself.
package struct ShareStateUpdate: Sendable, Equatable {
    package var startOffset: Int64
    /// Records at or after the start that are done with; -1 if not known.
    package var deliveryCompleteCount: Int32
    package var batches: [ShareStateBatch]

    package init(startOffset: Int64, deliveryCompleteCount: Int32, batches: [ShareStateBatch]) {
        self.startOffset = startOffset
        self.deliveryCompleteCount = deliveryCompleteCount
        self.batches = batches
    }
}

/// A record batch as the reader found it.
package struct ShareFetchedBatch: Sendable, Equatable {
    package var firstOffset: Int64
    package var lastOffset: Int64
    /// Control records, or part of an aborted transaction where only committed ones are read.
    package var isHidden: Bool

    package init(firstOffset: Int64, lastOffset: Int64, isHidden: Bool) {
        self.firstOffset = firstOffset
        self.lastOffset = lastOffset
        self.isHidden = isHidden
    }
}

/// How much of what was read a member wants.
package struct ShareAcquisition: Sendable, Equatable {
    package var member: String
    package var maxRecords: Int
    /// Records after which the answer's ranges are cut where a batch ends.
    package var batchSize: Int
    /// Never more than `maxRecords` (KIP-1206); otherwise batches are acquired whole.
    package var isStrict: Bool

    package init(member: String, maxRecords: Int, batchSize: Int, isStrict: Bool) {
        self.member = member
        self.maxRecords = maxRecords
        self.batchSize = batchSize
        self.isStrict = isStrict
    }
}

/// Records handed to a member, all delivered equally often.
package struct AcquiredRecords: Sendable, Equatable {
    package var firstOffset: Int64
    package var lastOffset: Int64
    package var deliveryCount: Int16

    package init(firstOffset: Int64, lastOffset: Int64, deliveryCount: Int16) {
        self.firstOffset = firstOffset
        self.lastOffset = lastOffset
        self.deliveryCount = deliveryCount
    }
}

private struct AcquisitionResult {
    let request: ShareAcquisition
    var records: [AcquiredRecords] = []
    var count = 0
    /// Nothing more for this request, whatever there is.
    var isClosed = false

    init(_ request: ShareAcquisition) { self.request = request }

    var room: Int { max(0, request.maxRecords - count) }
    var mayGoOn: Bool { !isClosed && room > 0 }

    mutating func add(_ first: Int64, _ last: Int64, _ deliveryCount: Int16) {
        count += Int(clamping: last - first + 1)
        if let previous = records.last, previous.lastOffset + 1 == first,
            previous.deliveryCount == deliveryCount,
            previous.lastOffset - previous.firstOffset + 1 < Int64(request.batchSize)
        {
            records[records.count - 1].lastOffset = last
        } else {
            records.append(
                AcquiredRecords(firstOffset: first, lastOffset: last, deliveryCount: deliveryCount))
        }
    }
}

/// What a member says became of records.
package struct ShareAcknowledgement: Sendable, Equatable {
    package enum Kind: Int8, Sendable {
        /// There is no such record.
        case gap = 0
        case accept = 1
        case release = 2
        case reject = 3
        /// It needs more time (KIP-1222).
        case renew = 4
    }

    package var firstOffset: Int64
    package var lastOffset: Int64
    /// One for all, or one for each.
    package var types: [Int8]

    package init(firstOffset: Int64, lastOffset: Int64, types: [Int8]) {
        self.firstOffset = firstOffset
        self.lastOffset = lastOffset
        self.types = types
    }

    /// What is wrong with a request's acknowledgements of one partition by themselves, or `nil`.
    package static func problem(_ acknowledgements: [ShareAcknowledgement], allowsRenewal: Bool) -> String? {
        var end: Int64 = -1
        let highest = allowsRenewal ? Kind.renew : Kind.reject
        for entry in acknowledgements {
            if entry.firstOffset < 0 || entry.lastOffset == .max || entry.firstOffset > entry.lastOffset {
                return "Offsets \(entry.firstOffset) to \(entry.lastOffset) are no range."
            }
            if entry.firstOffset <= end {
                return "Offset \(entry.firstOffset) follows \(end): ranges must be in order and apart."
            }
            if entry.types.isEmpty { return "A range without acknowledge types." }
            if entry.types.count > 1, entry.lastOffset - entry.firstOffset != Int64(entry.types.count - 1) {
                return
                    "\(entry.types.count) acknowledge types for offsets \(entry.firstOffset) to \(entry.lastOffset); give one for all or one for each."
            }
            if let wrong = entry.types.first(where: { $0 < 0 || $0 > highest.rawValue }) {
                return "Acknowledge type \(wrong) is unknown."
            }
            end = entry.lastOffset
        }
        return nil
    }

    /// Consecutive offsets of one kind.
    fileprivate var parts: [(first: Int64, last: Int64, kind: Kind)] {
        guard types.count > 1 else {
            return [(firstOffset, lastOffset, types.first.flatMap(Kind.init(rawValue:)) ?? .gap)]
        }
        var parts: [(first: Int64, last: Int64, kind: Kind)] = []
        for (index, type) in types.enumerated() {
            let offset = firstOffset + Int64(index)
            let kind = Kind(rawValue: type) ?? .gap
            if let last = parts.last, last.kind == kind {
                parts[parts.count - 1].last = offset
            } else {
                parts.append((offset, offset, kind))
            }
        }
        return parts
    }
}
