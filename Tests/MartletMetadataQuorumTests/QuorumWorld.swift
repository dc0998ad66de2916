import MartletLogModel
import MartletMetadataQuorum
import MartletTestSupport
import NIOCore

struct WorldOptions {
    var seed: UInt64
    /// 1...5, of which the first `voterCount` are voters by configuration.
    var nodeCount = 3
    var voterCount = 3
    var suspended: SuspendedRules = []
    /// Timeouts of a tenth: many more elections in the same time.
    var isHasty = false
    /// Keeps one line per state change.
    var isTracing = false
}

/// One run of a node: a crash ends it.
private final class Run {
    var core: MetadataQuorum
    let number: Int
    /// When the earliest scheduled tick fires.
    var tick: Int64?
    var lastHighWatermark: Offset
    var lastEpoch: LeaderEpoch
    var lastRole = QuorumSnapshot.Role.unattached
    var download: (id: LogPosition, bytes: ByteBuffer)?
    var proposals: [ProposalID: Offset] = [:]

    init(_ core: consuming MetadataQuorum, number: Int) {
        lastHighWatermark = core.highWatermark
        lastEpoch = core.epoch
        self.core = core
        self.number = number
    }
}

/// A whole quorum in one thread: virtual time, a network that drops, repeats, delays and reorders, disks that forget.
/// Invariants are checked after every event. Same options, same run.
final class QuorumWorld {
    private enum Happening {
        case request(from: Int, to: Int, fromRun: Int, CallToken, QuorumRequest)
        case answer(to: Int, toRun: Int, from: Int, CallToken, QuorumAnswer)
        case tick(Int, run: Int)
        case flushed(Int, run: Int, FlushGeneration, upTo: Offset, [StoredBatch])
        case persisted(Int, run: Int, StateVersion, QuorumStateFile)
        case probed(Int, run: Int, ReplicaKey)
        case installed(Int, run: Int, LogPosition)
        case start(Int)
    }

    private struct Scheduled {
        var time: Int64
        var order: UInt64
        var happening: Happening

        func isBefore(_ other: Scheduled) -> Bool {
            time == other.time ? order < other.order : time < other.time
        }
    }

    /// A request under way at its receiver.
    private struct Asked {
        var from: Int
        var fromRun: Int
        var token: CallToken
    }

    let options: WorldOptions
    var random: SeededGenerator
    private(set) var now: Int64 = 0
    private var queue: [Scheduled] = []
    private var order: UInt64 = 0
    private var runs: [Run?]
    private(set) var disks: [SimulatedDisk]
    private var asked: [[RequestID: Asked]]
    private var lastRequest: UInt64 = 0
    private var lastDirectory: UInt64 = 0
    private var runCount = 0
    let bootstrap: VoterSet

    // Faults; all off unless a test or a seed turns them on.
    var blocked: Set<[Int]> = []
    var dropPermille = 0
    /// Batches in one answer to a fetch.
    var readCount = 6
    var duplicatePermille = 0
    /// Microseconds.
    var messageDelay: ClosedRange<Int64> = 200...2_000
    var flushDelay: ClosedRange<Int64> = 100...3_000
    var persistDelay: ClosedRange<Int64> = 100...3_000

    // What must hold.
    private(set) var problems: [String] = []
    private(set) var trace: [String] = []
    private(set) var eventCount = 0
    private var leaders: [LeaderEpoch: (node: Int, run: Int)] = [:]
    /// Every batch that anybody has below a high watermark, in order.
    private(set) var committed: [StoredBatch] = []
    private var digests: [Position: UInt64] = [:]
    private(set) var acknowledged = 0
    private(set) var proposed: Int64 = 0
    private(set) var changeAnswers: [QuorumAnswer] = []
    private(set) var counts = Counts()

    struct Counts {
        var elections = 0
        var truncations = 0
        var crashes = 0
        var snapshotInstalls = 0
        var membershipChanges = 0
        var commits = 0

        static func += (left: inout Counts, right: Counts) {
            left.elections += right.elections
            left.truncations += right.truncations
            left.crashes += right.crashes
            left.snapshotInstalls += right.snapshotInstalls
            left.membershipChanges += right.membershipChanges
            left.commits += right.commits
        }
    }

    private struct Position: Hashable {
        var offset: Int64
        var epoch: Int32
    }

    init(_ options: WorldOptions) {
        self.options = options
        random = SeededGenerator(seed: options.seed)
        disks = []
        bootstrap = VoterSet(
            (0..<options.voterCount).map {
                Voter(key: ReplicaKey(BrokerID(Int32($0)), nil), endpoints: Self.endpoints(of: $0))
            })
        runs = Array(repeating: nil, count: options.nodeCount)
        asked = Array(repeating: [:], count: options.nodeCount)
        for _ in 0..<options.nodeCount { disks.append(SimulatedDisk(directoryID: newDirectory())) }
    }

    static func endpoints(of node: Int) -> [Endpoint] {
        [Endpoint(name: "CONTROLLER", host: "n", port: UInt16(9_000 + node))]
    }

    private func newDirectory() -> UniversalID {
        lastDirectory += 1
        return UniversalID(high: 7, low: lastDirectory)
    }

    // MARK: Time

    private func schedule(after delay: Int64, _ happening: Happening) {
        order += 1
        let entry = Scheduled(time: now + max(0, delay), order: order, happening: happening)
        queue.append(entry)
        var index = queue.count - 1
        while index > 0 {
            let parent = (index - 1) / 2
            guard queue[index].isBefore(queue[parent]) else { break }
            queue.swapAt(index, parent)
            index = parent
        }
    }

    private func popFirst() -> Scheduled? {
        guard let first = queue.first else { return nil }
        let last = queue.removeLast()
        guard !queue.isEmpty else { return first }
        queue[0] = last
        var index = 0
        while true {
            var least = index
            for child in [2 * index + 1, 2 * index + 2]
            where child < queue.count && queue[child].isBefore(queue[least]) {
                least = child
            }
            guard least != index else { return first }
            queue.swapAt(index, least)
            index = least
        }
    }

    /// Runs until the time is over, the condition holds, or an invariant is broken.
    @discardableResult
    func run(milliseconds: Int64, until isDone: () -> Bool = { false }) -> Bool {
        let end = now + milliseconds * 1_000
        while problems.isEmpty {
            if isDone() { return true }
            guard let next = queue.first, next.time <= end else { break }
            guard let event = popFirst() else { break }
            now = event.time
            eventCount += 1
            happen(event.happening)
        }
        if problems.isEmpty { now = end }
        return isDone()
    }

    private func delay(_ range: ClosedRange<Int64>) -> Int64 { Int64.random(in: range, using: &random) }
    private func chance(permille: Int) -> Bool {
        permille > 0 && Int.random(in: 0..<1_000, using: &random) < permille
    }
    private var instant: Instant { Instant(nanoseconds: now * 1_000) }

    private func happen(_ happening: Happening) {
        switch happening {
        case .request(let from, let to, let fromRun, let token, let request):
            guard canReach(from, to) else { return }
            guard runs[to] != nil else {
                if let run = runs[from], run.number == fromRun { handle(.callFailed(token), at: from) }
                return
            }
            lastRequest += 1
            let id = RequestID(rawValue: lastRequest)
            asked[to][id] = Asked(from: from, fromRun: fromRun, token: token)
            handle(.requested(id, request), at: to)
        case .answer(let to, let toRun, let from, let token, let answer):
            guard runs[to]?.number == toRun, canReach(from, to) else { return }
            handle(.answered(token, answer), at: to)
        case .tick(let node, let number):
            guard let run = runs[node], run.number == number else { return }
            if let tick = run.tick, tick <= now { run.tick = nil }
            handle(.ticked, at: node)
        case .flushed(let node, let number, let generation, let end, let written):
            guard runs[node]?.number == number else { return }
            for stored in disks[node].confirm(written) { register(stored, node) }
            handle(.flushed(upTo: end, generation), at: node)
        case .persisted(let node, let number, let version, let file):
            guard runs[node]?.number == number else { return }
            disks[node].persist(file)
            handle(.persisted(version), at: node)
        case .probed(let node, let number, let key):
            guard runs[node]?.number == number else { return }
            let other = Int(key.id.rawValue)
            let isThere = runs.indices.contains(other) && runs[other] != nil && canReach(node, other)
            handle(.probed(key, isThere ? .supported : nil), at: node)
        case .installed(let node, let number, let id):
            guard let run = runs[node], run.number == number, let download = run.download, download.id == id
            else { return }
            install(download, at: node)
        case .start(let node): start(node)
        }
    }

    private func install(_ download: (id: LogPosition, bytes: ByteBuffer), at node: Int) {
        runs[node]?.download = nil
        // The membership travels in the snapshot's control records; here it is looked up.
        let source = disks.lazy.compactMap { $0.snapshot(download.id) }.first
        guard let source, download.bytes == source.bytes else {
            handle(.snapshotRefused(download.id), at: node)
            return
        }
        disks[node].take(source)
        counts.snapshotInstalls += 1
        handle(.snapshotInstalled(download.id, source.membership), at: node)
    }

    // MARK: Nodes

    func key(_ node: Int) -> ReplicaKey { ReplicaKey(BrokerID(Int32(node)), disks[node].directoryID) }
    func isRunning(_ node: Int) -> Bool { runs[node] != nil }
    func snapshot(_ node: Int) -> QuorumSnapshot? { runs[node]?.core.snapshot() }
    func membership(_ node: Int) -> QuorumMembership? { runs[node]?.core.membership.latest }
    func describe(_ node: Int) -> QuorumDescription? { runs[node]?.core.describe(now: instant) }
    var nodes: Range<Int> { 0..<options.nodeCount }

    func startAll() { for node in nodes { start(node) } }

    func start(_ node: Int) {
        guard runs[node] == nil else { return }
        runCount += 1
        var configuration = QuorumConfiguration(
            node: key(node), endpoints: Self.endpoints(of: node), bootstrapVoters: bootstrap)
        configuration.suspended = options.suspended
        configuration.snapshotChunkBytes = 10
        if options.isHasty {
            configuration.electionTimeoutMilliseconds = 100
            configuration.fetchTimeoutMilliseconds = 200
            configuration.requestTimeoutMilliseconds = 200
            configuration.electionBackoffMilliseconds = 100
            configuration.fetchWaitMilliseconds = 100
        }
        configuration.startsCluster = !disks[node].isReplacement
        let core = MetadataQuorum(
            configuration: configuration, recovered: disks[node].recovered(), now: instant,
            jitter: random.next())
        runs[node] = Run(core, number: runCount)
        note(node, "starts")
        handle(.ticked, at: node)
    }

    func crash(_ node: Int) {
        guard let run = runs[node] else { return }
        counts.crashes += 1
        let seen = run.core.snapshot()
        let wasAlone = run.core.membership.latest.voters.isOnly(key(node))
        runs[node] = nil
        asked[node] = [:]
        disks[node].crash(using: &random)
        note(node, "crashes; log up to \(disks[node].end)")
        // A single voter leads before its epoch is on the device, and nobody has heard of it: it may lead it again.
        let persisted = max(disks[node].state?.epoch ?? .zero, disks[node].durableEpoch)
        if wasAlone, seen.role == .leader, persisted < seen.epoch { leaders[seen.epoch] = nil }
    }

    func restart(_ node: Int, afterMilliseconds delay: Int64) { schedule(after: delay * 1_000, .start(node)) }

    /// The node comes back with an empty disk, which is another replica.
    func wipe(_ node: Int) {
        crash(node)
        disks[node] = SimulatedDisk(directoryID: newDirectory())
        disks[node].isReplacement = true
        note(node, "has an empty disk, \(key(node))")
    }

    /// The node that leads the newest epoch, as it says itself.
    var leader: Int? {
        nodes.filter { runs[$0]?.core.isReady ?? false }.max { left, right in
            (runs[left]?.core.epoch ?? .zero) < (runs[right]?.core.epoch ?? .zero)
        }
    }

    /// Every node that believes it leads.
    var leaderCandidates: [Int] { nodes.filter { runs[$0]?.core.isReady ?? false } }

    /// Nodes whose newest epoch or vote is not on their disk yet.
    var forgetful: [Int] {
        nodes.filter { node in
            guard let state = runs[node]?.core.snapshot() else { return false }
            let file = disks[node].state
            return file?.epoch != state.epoch || file?.vote != state.vote
        }
    }

    /// By its disk; also of a node that is down.
    func storedMembership(_ node: Int) -> QuorumMembership {
        disks[node].membership(
            initially: QuorumMembership(
                version: 0, voters: disks[node].isReplacement ? VoterSet([]) : bootstrap))
    }

    func highWatermark(_ node: Int) -> Offset { runs[node]?.core.highWatermark ?? .zero }

    /// Sends a request that no node made, as a tool would.
    func ask(_ node: Int, _ request: QuorumRequest) {
        guard runs[node] != nil else { return }
        lastRequest += 1
        handle(.requested(RequestID(rawValue: lastRequest), request), at: node)
    }

    func resign(_ node: Int) { handle(.resignationRequested, at: node) }

    @discardableResult
    func propose(at node: Int, records: Int64 = 1) -> ProposalID? {
        guard runs[node] != nil else { return nil }
        proposed += 1
        let id = ProposalID(rawValue: UInt64(proposed))
        handle(.proposed(id, recordCount: records, bytes: ByteBuffer(integer: proposed)), at: node)
        return id
    }

    func takeSnapshot(_ node: Int) {
        guard let run = runs[node] else { return }
        let end = min(run.core.highWatermark, run.core.log.flushedEnd)
        guard end > run.core.log.start, let digest = disks[node].digest(at: end) else { return }
        let id = LogPosition(offset: end, epoch: run.core.epoch(before: end))
        disks[node].take(StoredSnapshot(id: id, membership: run.core.membership(asOf: end), digest: digest))
        note(node, "snapshot \(id)")
        handle(.snapshotTaken(id), at: node)
    }

    // MARK: Network

    func canReach(_ from: Int, _ to: Int) -> Bool { !blocked.contains([from, to]) }

    private func transmit(_ from: Int, _ to: Int, _ happening: Happening) {
        guard canReach(from, to), !chance(permille: dropPermille) else { return }
        schedule(after: delay(messageDelay), happening)
        if chance(permille: duplicatePermille) { schedule(after: delay(messageDelay) * 3, happening) }
    }

    private func respond(_ node: Int, _ id: RequestID, _ answer: QuorumAnswer) {
        guard let asked = asked[node].removeValue(forKey: id) else {
            // A tool's request.
            changeAnswers.append(answer)
            return
        }
        transmit(
            node, asked.from,
            .answer(to: asked.from, toRun: asked.fromRun, from: node, asked.token, answer))
    }

    // MARK: Core

    func handle(_ event: QuorumEvent, at node: Int) {
        guard let run = runs[node], problems.isEmpty else { return }
        var effects: [QuorumEffect] = []
        run.core.handle(event, now: instant, jitter: random.next(), into: &effects)
        for effect in effects { execute(effect, run, node) }
        check(run, node)
        guard let deadline = run.core.nextDeadline else { return }
        let due = max(now, (deadline.nanoseconds + 999) / 1_000)
        if let tick = run.tick, tick <= due { return }
        run.tick = due
        schedule(after: due - now, .tick(node, run: run.number))
    }

    private func execute(_ effect: QuorumEffect, _ run: Run, _ node: Int) {
        switch effect {
        case .append(let batches, let proposal):
            for batch in batches { disks[node].append(batch) }
            if let proposal, let batch = batches.last { run.proposals[proposal] = batch.endOffset }
        case .truncate(let end):
            note(node, "cuts from \(disks[node].end) to \(end)")
            counts.truncations += 1
            disks[node].truncate(to: end)
        case .flush(let generation):
            let written = disks[node].written()
            schedule(
                after: delay(flushDelay),
                .flushed(node, run: run.number, generation, upTo: disks[node].end, written))
        case .persist(let file, let version):
            schedule(after: delay(persistDelay), .persisted(node, run: run.number, version, file))
        case .send(let token, let peer, _, let request):
            let to = Int(peer.rawValue)
            transmit(node, to, .request(from: node, to: to, fromRun: run.number, token, request))
        case .respond(let id, let answer): respond(node, id, answer)
        case .respondWithRecords(let id, var answer, let from, let end, _):
            let batches = disks[node].read(from: from, upTo: end, count: readCount)
            for stored in batches { register(stored, node) }
            answer.batches = batches.map(\.batch)
            respond(node, id, .fetch(answer))
        case .respondWithSnapshot(let id, let header, let snapshot, let position, let maxBytes):
            respond(node, id, .fetchSnapshot(chunk(node, header, snapshot, position, maxBytes)))
        case .advanceHighWatermark(let end): commit(upTo: end, run, node)
        case .committed(let id):
            acknowledged += 1
            if let end = run.proposals.removeValue(forKey: id),
                end > (committed.last?.batch.endOffset ?? .zero)
            {
                fail(node, "acknowledges a proposal up to \(end) that is not committed")
            }
        case .refused, .abandoned, .leadershipReady: break
        case .leaderChanged(let leader, let epoch):
            note(node, "epoch \(epoch), leader \(leader.map { "\($0.id)" } ?? "-")")
        case .leadershipLost(let epoch): note(node, "leads epoch \(epoch) no more")
        case .advanceLogStart(let id): disks[node].advanceStart(to: id)
        case .removeSnapshots(let id): disks[node].removeSnapshots(before: id)
        case .writeSnapshot(let id, let position, let bytes):
            if run.download?.id != id { run.download = (id, ByteBuffer()) }
            if position != Int64(run.download?.bytes.readableBytes ?? -1) {
                fail(node, "a snapshot's parts are out of order")
            }
            run.download?.bytes.writeImmutableBuffer(bytes)
        case .installSnapshot(let id):
            schedule(after: delay(flushDelay), .installed(node, run: run.number, id))
        case .discardSnapshot: run.download = nil
        case .resetLog(let id):
            note(node, "log starts at \(id)")
            disks[node].reset(to: id)
        case .probe(let key, _): schedule(after: delay(messageDelay), .probed(node, run: run.number, key))
        case .membershipChanged(let next):
            counts.membershipChanges += 1
            note(
                node,
                "voters \(next.voters.voters.map { "\($0.key)" }.joined(separator: " ")), version \(next.version)"
            )
        case .halt(let cause): fail(node, "halts: \(cause)")
        }
    }

    private func chunk(
        _ node: Int, _ header: AnswerHeader, _ id: LogPosition, _ position: Int64, _ maxBytes: Int
    ) -> SnapshotAnswer {
        var header = header
        var answer = SnapshotAnswer(header: header, id: id, size: 0, position: position, bytes: ByteBuffer())
        guard let bytes = disks[node].snapshot(id)?.bytes else {
            header.error = .snapshotNotFound
            answer.header = header
            return answer
        }
        answer.size = Int64(bytes.readableBytes)
        let start = Int(min(position, answer.size))
        answer.bytes =
            bytes.getSlice(at: start, length: min(maxBytes, bytes.readableBytes - start)) ?? ByteBuffer()
        return answer
    }

    // MARK: Invariants

    func fail(_ node: Int?, _ text: String) {
        problems.append("\(now / 1_000) ms, node \(node.map(String.init) ?? "-"): \(text)")
        note(node ?? 0, "BROKEN: \(text)")
    }

    private func note(_ node: Int, _ text: @autoclosure () -> String) {
        guard options.isTracing else { return }
        let state = runs[node]?.core.snapshot()
        let role =
            state.map {
                "\($0.role) e\($0.epoch) log \($0.logStart)-\($0.logEnd) flushed \($0.flushedEnd) hw \($0.highWatermark)"
            } ?? "down"
        trace.append("\(now / 1_000) ms  n\(node)  \(role)  |  \(text())")
    }

    private func check(_ run: Run, _ node: Int) {
        let state = run.core.snapshot()
        if state.epoch < run.lastEpoch {
            fail(node, "the epoch fell from \(run.lastEpoch) to \(state.epoch)")
        }
        if state.highWatermark < run.lastHighWatermark {
            fail(node, "the high watermark fell from \(run.lastHighWatermark) to \(state.highWatermark)")
        }
        if state.highWatermark > state.logEnd { fail(node, "the high watermark is beyond the log") }
        if state.role == .leader, run.lastRole != .leader || state.epoch != run.lastEpoch {
            elected(run, node, state)
        }
        if state.logEnd != disks[node].end {
            fail(node, "believes in a log up to \(state.logEnd); it ends at \(disks[node].end)")
        }
        run.lastRole = state.role
        run.lastEpoch = state.epoch
        run.lastHighWatermark = state.highWatermark
    }

    private func elected(_ run: Run, _ node: Int, _ state: QuorumSnapshot) {
        counts.elections += 1
        note(node, "leads")
        if let other = leaders[state.epoch], other.node != node || other.run != run.number {
            fail(node, "leads epoch \(state.epoch), which node \(other.node) leads")
        }
        leaders[state.epoch] = (node, run.number)
        // LeaderCompleteness: everything committed is in its log.
        guard let last = committed.last, last.batch.endOffset > disks[node].start else { return }
        if disks[node].digest(at: last.batch.endOffset) != last.digest {
            fail(node, "leads epoch \(state.epoch) without what is committed up to \(last.batch.endOffset)")
        }
    }

    /// LogMatching: the same offset and epoch name the same batch behind the same log, wherever they were seen durable or
    /// on the way to another node.
    private func register(_ stored: StoredBatch, _ node: Int) {
        let position = Position(offset: stored.batch.baseOffset.rawValue, epoch: stored.batch.epoch.rawValue)
        if let known = digests.updateValue(stored.digest, forKey: position), known != stored.digest {
            fail(
                node, "has another log at \(stored.batch.baseOffset)@\(stored.batch.epoch) than somebody else"
            )
        }
    }

    private func commit(upTo end: Offset, _ run: Run, _ node: Int) {
        counts.commits += 1
        let known = committed.last?.batch.endOffset ?? .zero
        if end > known {
            // New to everybody.
            for stored in disks[node].read(from: known, upTo: end, count: Int.max) {
                if let last = committed.last, last.batch.endOffset != stored.batch.baseOffset {
                    return fail(node, "commits \(stored.batch.baseOffset) behind \(last.batch.endOffset)")
                }
                committed.append(stored)
            }
            guard committed.last?.batch.endOffset == end else {
                return fail(node, "commits \(end), inside a batch or unseen")
            }
        }
        guard let expected = digest(committedUpTo: end) else {
            return fail(node, "commits up to \(end), which is no end of a batch")
        }
        if let own = disks[node].digest(at: end), own != expected {
            fail(node, "has other committed records below \(end) than somebody else")
        }
    }

    private func digest(committedUpTo end: Offset) -> UInt64? {
        var low = 0
        var high = committed.count
        while low < high {
            let middle = (low + high) / 2
            if committed[middle].batch.endOffset < end { low = middle + 1 } else { high = middle }
        }
        return low < committed.count && committed[low].batch.endOffset == end ? committed[low].digest : nil
    }

    var committedEnd: Offset { committed.last?.batch.endOffset ?? .zero }

    /// Whether every running node knows everything that is committed as committed.
    func isCaughtUp(_ nodes: some Sequence<Int>) -> Bool {
        let end = committedEnd
        return nodes.allSatisfy { runs[$0] != nil && highWatermark($0) == end }
    }

    /// The voters by the newest committed record, or by configuration.
    var committedMembership: QuorumMembership {
        var membership = QuorumMembership(version: 0, voters: bootstrap)
        for stored in committed {
            for record in stored.batch.controlRecords {
                switch record {
                case .version(let level): membership.version = level
                case .voters(let set): membership.voters = set
                case .leaderChange, .snapshotHeader, .snapshotFooter, .other: break
                }
            }
        }
        return membership
    }
}
