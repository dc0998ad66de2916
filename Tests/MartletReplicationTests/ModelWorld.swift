import MartletController
import MartletLogModel
import MartletReplication

/// What a run is made of; drawn from the seed unless a test says otherwise.
struct ModelParameters {
    var replicaCount: Int
    var durability: PartitionReplica.Durability
    /// The controller puts a replica out that stopped uncleanly (KIP-966); always so where a stop can lose what was
    /// acknowledged.
    var removesUnclean: Bool
    var lagMilliseconds: Int64
    var stepMilliseconds: Int64
    /// Weights of the actions, in the order of `ModelWorld.Action`.
    var weights: [Int]
    var stepCount: Int
    var suspended: SuspendedRules

    init(seed: UInt64, stepCount: Int, suspended: SuspendedRules, generator: inout SplitMix) {
        replicaCount = Int.random(in: 3...5, using: &generator)
        durability = Int.random(in: 0..<3, using: &generator) == 0 ? .relaxed : .fsync
        removesUnclean = durability == .relaxed || Bool.random(using: &generator)
        lagMilliseconds = Int64.random(in: 100...1_500, using: &generator)
        stepMilliseconds = Int64.random(in: 1...10, using: &generator)
        // Swarm: each seed has its own mixture, some actions rare or absent.
        weights = ModelWorld.Action.allCases.map { action in
            let scale = [1, 1, 2, 3].randomElement(using: &generator) ?? 1
            return action.weight * scale / (Int.random(in: 0..<8, using: &generator) == 0 ? 4 : 1)
        }
        // What is never flushed can be lost.
        if durability == .relaxed {
            weights[ModelWorld.Action.flush.rawValue] /= 20
            weights[ModelWorld.Action.stop.rawValue] *= 2
        }
        // From leaders that hardly come to anything to ones that last, with all that takes time under them.
        let calm = [1, 4, 16].randomElement(using: &generator) ?? 1
        for action in ModelWorld.Action.allCases where !action.isUpheaval { weights[action.rawValue] *= calm }
        // From a prompt metadata log to one that lags behind several leaders.
        weights[ModelWorld.Action.metadata.rawValue] /= [1, 2, 6].randomElement(using: &generator) ?? 1
        self.stepCount = stepCount
        self.suspended = suspended
    }
}

/// Some replicas of one partition, a controller, and everything that can go wrong between them, from one seed.
///
/// One action at a time: there is no order of events that some seed does not have, messages overtake each other and
/// arrive long after their sender is gone. After every action the invariants are checked; the first one that does
/// not hold ends the run.
final class ModelWorld {
    enum Action: Int, CaseIterable {
        case deliver, lose, duplicate, append, flush, cut, fetch, tick, metadata, fence, admit, move, stop, start,
            powerCut, drain, deleteRecords, note, reorder, pause

        /// It ends leaderships, or makes void what a leader has asked for.
        var isUpheaval: Bool {
            switch self {
            case .fence, .move, .stop, .powerCut, .reorder: true
            case .deliver, .lose, .duplicate, .append, .flush, .cut, .fetch, .tick, .metadata, .admit, .start, .drain,
                .deleteRecords, .note, .pause:
                false
            }
        }

        var weight: Int {
            switch self {
            case .deliver: 240
            case .lose: 16
            case .duplicate: 8
            case .append: 64
            case .flush: 120
            case .cut: 60
            case .fetch: 160
            case .tick: 40
            case .metadata: 200
            case .fence: 4
            case .admit: 40
            case .move: 8
            case .stop: 4
            case .start: 24
            case .powerCut: 1
            case .drain: 10
            case .deleteRecords: 4
            case .note: 16
            case .reorder: 4
            case .pause: 4
            }
        }
    }

    enum Message {
        case fetch(from: BrokerID, incarnation: Int, to: BrokerID, FollowerFetch, ReplicaFetch)
        case fetchAnswer(to: BrokerID, incarnation: Int, ReplicaFetch, ReplicaFetchAnswer, [ModelRecord])
        case alter(from: BrokerID, incarnation: Int, BrokerEpoch, InSyncProposal)
        case alterAnswer(to: BrokerID, incarnation: Int, number: UInt64, ModelController.Answer)
        /// The leader asks the controller for a planned move. Once it is called off nobody may listen any more.
        case move(from: BrokerID, incarnation: Int, drain: Int)

        var isFetch: Bool {
            switch self {
            case .fetch, .fetchAnswer: true
            case .alter, .alterAnswer, .move: false
            }
        }
    }

    private static let messageLimit = 40
    private static let lateLimit = 10

    let parameters: ModelParameters
    let settings: PartitionReplica.Settings
    var generator: SplitMix
    let controller: ModelController
    var nodes: [ModelNode]
    var messages: [Message] = []
    /// Given up by their senders, and still on their way.
    private var late: [Message] = []
    var now = Instant(nanoseconds: 0)
    var figures = ModelFigures()
    /// The first invariant that did not hold.
    var violation: String?
    var trace: [String] = []
    let isTracing: Bool
    private let totalWeight: Int
    private var nextValue: UInt64 = 1
    /// Every record that was committed, by offset.
    private var committed: [ModelRecord] = []
    /// Who began each epoch, and at which offset.
    private var leaders: [(leader: BrokerID, start: Int64)?] = []
    /// Highest mark that anybody saw of an epoch.
    private var seen: [Int64] = []
    private var checkedElections = 0
    private var drainCount = 0

    static let minimum = 2

    init(seed: UInt64, stepCount: Int, suspended: SuspendedRules = SuspendedRules(), isTracing: Bool = false) {
        var generator = SplitMix(state: seed &* 0x2545_f491_4f6c_dd1d)
        parameters = ModelParameters(
            seed: seed, stepCount: stepCount, suspended: suspended, generator: &generator)
        self.generator = generator
        settings = PartitionReplica.Settings(
            durability: parameters.durability, minInSyncReplicas: Self.minimum,
            replicaLagMilliseconds: parameters.lagMilliseconds, suspended: suspended)
        controller = ModelController(
            replicaCount: parameters.replicaCount, minInSyncReplicas: Self.minimum,
            // It takes both sides: a leader that trusts equal epochs, and a controller that gives them.
            suspended: suspended.contains(.settlementByEpoch) ? .alterationEpoch : [])
        let settings = self.settings
        nodes = controller.replicas.map { ModelNode(id: $0, settings: settings) }
        totalWeight = parameters.weights.reduce(0, +)
        self.isTracing = isTracing
        for node in nodes { node.brokerEpoch = controller.standings[Int(node.id.rawValue)].brokerEpoch }
    }

    func say(_ text: @autoclosure () -> String) {
        if isTracing { trace.append("\(figures.steps) \(text())") }
    }

    func fail(_ text: @autoclosure () -> String) {
        guard violation == nil else { return }
        violation = "step \(figures.steps): \(text())"
        say(violation ?? "")
    }

    // MARK: Run

    func run() {
        while violation == nil, figures.steps < parameters.stepCount {
            step()
            checkElections()
        }
        heal()
        figures.elections = controller.electionCount
    }

    private func step() {
        figures.steps += 1
        now = Instant(nanoseconds: now.nanoseconds + parameters.stepMilliseconds * 1_000_000)
        var draw = Int.random(in: 0..<totalWeight, using: &generator)
        for action in Action.allCases {
            draw -= parameters.weights[action.rawValue]
            if draw < 0 { return perform(action) }
        }
    }

    private func any<Element>(_ elements: [Element]) -> Element? { elements.randomElement(using: &generator) }
    private func chance(_ one: Int) -> Bool { Int.random(in: 0..<one, using: &generator) == 0 }

    /// Fetches are many, what goes to and from the controller is rare, and chosen as often.
    private func anyIndex(of messages: [Message]) -> Int? {
        let rare = messages.indices.filter { !messages[$0].isFetch }
        return any(rare.isEmpty || chance(2) ? Array(messages.indices) : rare)
    }

    private func perform(_ action: Action) {
        switch action {
        case .deliver:
            if chance(16), let index = anyIndex(of: late) { return deliver(late.remove(at: index)) }
            guard !messages.isEmpty else { return }
            // Mostly the oldest, so that things get done; often enough any.
            let index = chance(2) ? 0 : Int.random(in: 0..<messages.count, using: &generator)
            deliver(messages.remove(at: index))
        case .lose:
            if let index = anyIndex(of: messages) { lose(messages.remove(at: index)) }
        case .duplicate:
            guard messages.count < Self.messageLimit, let message = any(messages) else { return }
            // A connection repeats nothing; a follower may ask the same twice, and a late answer is like a repeat.
            switch message {
            case .fetch, .fetchAnswer: messages.append(message)
            case .alter, .alterAnswer, .move: return
            }
        case .append:
            if let node = any(nodes.filter { $0.isUp && $0.replica.leaderEpoch != nil }) { append(at: node) }
        case .flush:
            if let node = any(nodes.filter { $0.isUp && $0.cut == nil && $0.log.flushedEnd < $0.log.end }) {
                flush(node)
            }
        case .cut:
            if let node = any(nodes.filter { $0.isUp && $0.cut != nil }) { finishCut(node) }
        case .fetch:
            if let node = any(nodes.filter { $0.isUp && $0.pausedUntil <= now }) { startFetch(node) }
        case .tick:
            if let node = any(nodes.filter { $0.isUp }) { tick(node) }
        case .metadata:
            guard let node = any(nodes.filter { $0.isUp && $0.isRegistered }) else { return }
            let first = max(node.version + 1, node.firstVersion)
            guard first < controller.history.count else { return }
            apply(chance(3) ? first : controller.history.count - 1, to: node)
        case .fence:
            if let node = any(nodes) { fence(node) }
        case .admit:
            if let node = any(nodes.filter { $0.isUp }) { admit(node) }
        case .move:
            if let node = any(nodes) {
                controller.move(to: node.id)
                say("move to \(node.id): \(describeController())")
            }
        case .stop:
            if let node = any(nodes.filter { $0.isUp }) { stop(node) }
        case .start:
            if let node = any(nodes.filter { !$0.isUp }) { start(node) }
        case .powerCut:
            // Where an acknowledgement means a flush, everything may go at once.
            guard parameters.durability == .fsync, chance(2) else { return }
            figures.powerCuts += 1
            say("power cut")
            for node in nodes where node.isUp { halt(node, keeping: lossyEnd(node), unclean: true) }
        case .drain:
            guard let node = any(nodes.filter { $0.isUp && $0.replica.leaderEpoch != nil }) else { return }
            if chance(3) {
                cancelDrains()
            } else if let epoch = node.replica.leaderEpoch {
                let target = chance(4) ? any(controller.replicas) : nil
                drainCount += 1
                node.drain = (drainCount, epoch, target)
                say("drain \(node.id) to \(target.map { "\($0)" } ?? "any")")
                run(node) { $0.drain(to: target, into: &$1) }
            }
        case .deleteRecords:
            guard let node = any(nodes.filter { $0.isUp && $0.replica.leaderEpoch != nil && $0.cut == nil }),
                let mark = node.replica.visibleEnd, mark.rawValue > node.log.start
            else { return }
            raiseStart(of: node, to: Int64.random(in: node.log.start...mark.rawValue, using: &generator))
        case .note:
            for node in nodes where node.isUp { node.savedHighWatermark = node.replica.highWatermark.rawValue }
        case .reorder:
            controller.reorder(controller.replicas.shuffled(using: &generator))
            say("reorder: \(describeController())")
        case .pause:
            if let node = any(nodes) { pause(node) }
        }
    }

    private func pause(_ node: ModelNode) {
        node.pausedUntil = now.advanced(
            byMilliseconds: parameters.lagMilliseconds * Int64.random(in: 1...3, using: &generator))
        say("pause \(node.id)")
    }

    private func cancelDrains() {
        for node in nodes where node.isUp {
            node.drain = nil
            node.replica.drainCancelled()
        }
    }

    // MARK: Brokers

    private func lossyEnd(_ node: ModelNode) -> Int64 {
        Int64.random(in: node.log.flushedEnd...node.log.end, using: &generator)
    }

    private func stop(_ node: ModelNode) {
        switch Int.random(in: 0..<4, using: &generator) {
        case 0:
            say("clean stop \(node.id)")
            node.savedHighWatermark = node.replica.highWatermark.rawValue
            node.log.flush()
            halt(node, keeping: node.log.end, unclean: false)
        case let kind:
            // Kafka's promise bears MinISR - 1 of them at a time; a flushed one bears all.
            if parameters.durability == .relaxed {
                let clean = (controller.inSync + controller.eligible).filter { $0 != node.id }
                guard !clean.isEmpty, !nodes.contains(where: \.isUnrecovered) else { return }
            }
            figures.uncleanStops += 1
            let kept = kind == 1 ? node.log.end : lossyEnd(node)
            say("unclean stop \(node.id), keeps \(kept) of \(node.log.end)")
            halt(node, keeping: kept, unclean: true)
        }
    }

    private func halt(_ node: ModelNode, keeping kept: Int64, unclean: Bool) {
        node.stop(keeping: kept, unclean: unclean)
    }

    private func start(_ node: ModelNode) {
        node.start(settings: settings)
        say("start \(node.id) at \(node.log.end)")
    }

    private func fence(_ node: ModelNode) {
        controller.fence(node.id)
        say("fence \(node.id): \(describeController())")
    }

    /// Registers a new process; lets a registered one take part again, sometimes under a new epoch.
    private func admit(_ node: ModelNode) {
        if !node.isRegistered || (controller.isFenced(node.id) && chance(4)) {
            node.brokerEpoch = controller.register(
                node.id, wasUnclean: node.wasUnclean, removesUnclean: parameters.removesUnclean)
            node.wasUnclean = false
            if !node.isRegistered { node.firstVersion = controller.history.count - 1 }
            node.isRegistered = true
            say("register \(node.id) as \(node.brokerEpoch): \(describeController())")
        } else if controller.isFenced(node.id), node.version >= node.firstVersion {
            controller.unfence(node.id)
            say("unfence \(node.id): \(describeController())")
        }
    }

    private func apply(_ version: Int, to node: ModelNode) {
        node.version = version
        let news = controller.history[version]
        run(node) { replica, effects in
            replica.partitionChanged(news.assignment, now: self.now, into: &effects)
            for (index, broker) in news.brokers.enumerated() where index != Int(node.id.rawValue) {
                replica.standingChanged(
                    of: BrokerID(Int32(index)),
                    ReplicaStanding(brokerEpoch: broker.epoch, canJoin: !broker.isFenced), into: &effects)
            }
        }
        say("metadata \(version) at \(node.id): \(node.replica.snapshot())")
    }

    private func append(at node: ModelNode) {
        let all = !chance(4)
        guard node.cut == nil, node.replica.appendRefusal(needsAll: all) == nil, let epoch = node.replica.leaderEpoch
        else { return }
        let offset = node.log.end
        node.log.append(ModelRecord(epoch: epoch, value: nextValue))
        let id = AppendID(rawValue: node.nextAppendID)
        if all {
            node.nextAppendID += 1
            node.waiting.append((id, offset, nextValue))
        }
        say("append \(nextValue) at \(node.id)@\(offset) epoch \(epoch)\(all ? " all" : "")")
        nextValue += 1
        run(node) { $0.appended(upTo: Offset(offset + 1), waiter: all ? id : nil, into: &$1) }
    }

    private func flush(_ node: ModelNode) {
        node.log.flush()
        run(node) { $0.flushed(upTo: Offset(node.log.end), into: &$1) }
    }

    private func raiseStart(of node: ModelNode, to offset: Int64) {
        node.log.raiseStart(to: offset)
        node.replica.logStartRaised(to: Offset(node.log.start))
        if node.log.flushedEnd > node.replica.snapshot().flushedEndOffset.rawValue {
            run(node) { $0.flushed(upTo: Offset(node.log.flushedEnd), into: &$1) }
        }
    }

    private func finishCut(_ node: ModelNode) {
        guard let cut = node.cut else { return }
        node.cut = nil
        switch cut {
        case .truncate(let end):
            figures.truncations += 1
            node.log.truncate(to: end)
            node.verified = min(node.verified, end)
            run(node) { $0.truncated(to: Offset(node.log.end), now: self.now, into: &$1) }
        case .restart(let start):
            figures.restarts += 1
            node.log.restart(at: start)
            node.verified = start
            run(node) { $0.restarted(at: Offset(start), now: self.now, into: &$1) }
        }
        say("cut at \(node.id): end \(node.log.end)")
    }

    private func tick(_ node: ModelNode) {
        run(node) { $0.tick(now: self.now, into: &$1) }
        guard let epoch = node.replica.leaderEpoch, epoch == controller.leaderEpoch else { return }
        if node.replica.isReadyForHandOver { askForMove(node, epoch) }
        // KIP-704: the controller hears of it, whatever it did meanwhile.
        if controller.isRecovering, node.version == controller.history.count - 1, node.replica.inSyncProposal == nil {
            fail("\(node.id) does not tell that it has taken over in epoch \(epoch)")
        }
    }

    private func startFetch(_ node: ModelNode) {
        guard messages.count < Self.messageLimit, let fetch = node.replica.nextFetch(lastEpoch: node.log.lastEpoch)
        else { return }
        if parameters.durability == .fsync, fetch.offset.rawValue > node.log.flushedEnd {
            fail("I6: \(node.id) fetches at \(fetch.offset), its flushed end is \(node.log.flushedEnd)")
        }
        let question = FollowerFetch(
            replica: node.id, brokerEpoch: node.brokerEpoch, leaderEpoch: fetch.leaderEpoch, offset: fetch.offset,
            lastFetchedEpoch: fetch.lastFetchedEpoch, logStartOffset: Offset(node.log.start))
        messages.append(
            .fetch(from: node.id, incarnation: node.incarnation, to: fetch.leader, question, fetch))
    }

    // MARK: Network

    private func node(_ id: BrokerID) -> ModelNode { nodes[Int(id.rawValue)] }

    private func lose(_ message: Message) {
        if chance(2), late.count < Self.lateLimit { late.append(message) }
        switch message {
        case .fetch, .fetchAnswer:
            break
        case .alter(let from, let incarnation, _, let proposal):
            // What keeps a leader from its controller often keeps a follower from its leader too.
            if let last = proposal.members.last, last.broker != from, chance(2) { pause(node(last.broker)) }
            giveUp(proposal.number, of: node(from), incarnation)
        case .alterAnswer(let to, let incarnation, let number, _):
            giveUp(number, of: node(to), incarnation)
        case .move:
            break
        }
    }

    private func giveUp(_ number: UInt64, of leader: ModelNode, _ incarnation: Int) {
        guard leader.incarnation == incarnation, leader.isUp else { return }
        say("proposal \(number) of \(leader.id) lost")
        run(leader) { $0.proposalLost(number, into: &$1) }
    }

    private func deliver(_ message: Message) {
        switch message {
        case .fetch(let from, let incarnation, let to, let question, let fetch):
            let leader = node(to)
            guard leader.isUp, leader.version >= 0 else { return }
            let standing = controller.history[leader.version].brokers[Int(from.rawValue)]
            var answer: FollowerFetchAnswer?
            run(leader) { replica, effects in
                answer = replica.followerFetched(
                    question, standing: ReplicaStanding(brokerEpoch: standing.epoch, canJoin: !standing.isFenced),
                    epochEnd: leader.log.epochEnd(question.lastFetchedEpoch), now: self.now, into: &effects)
            }
            guard let answer, violation == nil else { return }
            messages.append(
                response(answer, of: leader, to: from, incarnation: incarnation, fetch))
        case .fetchAnswer(let to, let incarnation, let fetch, let answer, let records):
            let follower = node(to)
            guard follower.isUp, follower.incarnation == incarnation else { return }
            take(fetch, answer, records, at: follower)
        case .alter(let from, let incarnation, let brokerEpoch, let proposal):
            let answer = controller.alter(proposal, from: from, brokerEpoch)
            if case .accepted(_, _, let members) = answer {
                figures.inSyncChanges += 1
                for member in members where node(member).isRegistered { node(member).isUnrecovered = false }
            }
            checkMembers()
            say("alter \(proposal.members.map(\.broker)) of \(from): \(answer), \(describeController())")
            messages.append(
                .alterAnswer(to: from, incarnation: incarnation, number: proposal.number, answer))
        case .alterAnswer(let to, let incarnation, let number, let answer):
            let leader = node(to)
            guard leader.isUp, leader.incarnation == incarnation else { return }
            run(leader) { replica, effects in
                switch answer {
                case .accepted(let epoch, let version, let members):
                    replica.proposalAccepted(
                        number, leaderEpoch: epoch, partitionEpoch: version, inSyncReplicas: members,
                        into: &effects)
                case .refused(let error):
                    replica.proposalRefused(number, error, into: &effects)
                }
            }
        case .move(let from, let incarnation, let number):
            let leader = node(from)
            guard leader.incarnation == incarnation, let drain = leader.drain, drain.number == number,
                drain.epoch == controller.leaderEpoch
            else { return }
            handOver(from: leader)
        }
    }

    private func response(
        _ answer: FollowerFetchAnswer, of leader: ModelNode, to follower: BrokerID, incarnation: Int,
        _ fetch: ReplicaFetch
    ) -> Message {
        var records: [ModelRecord] = []
        let reply: ReplicaFetchAnswer
        switch answer {
        case .records(let from, let end):
            let count = min(end - from, Int64.random(in: 1...6, using: &generator))
            for offset in from.rawValue..<(from.rawValue + count) {
                if let record = leader.log.record(at: offset) { records.append(record) }
            }
            reply = .records(
                highWatermark: leader.replica.highWatermark, logStartOffset: Offset(leader.log.start))
        case .diverging(let end):
            reply = .diverging(end)
        case .refused(.offsetOutOfRange):
            reply = .outOfRange(leaderLogStartOffset: Offset(leader.log.start))
        case .refused(let error):
            reply = .refused(error)
        }
        return .fetchAnswer(to: follower, incarnation: incarnation, fetch, reply, records)
    }

    private func take(
        _ fetch: ReplicaFetch, _ answer: ReplicaFetchAnswer, _ records: [ModelRecord], at follower: ModelNode
    ) {
        var epochEnd: EpochEnd?
        if case .diverging(let end) = answer { epochEnd = follower.log.epochEnd(end.epoch) }
        run(follower, fetched: records) { $0.fetchAnswered(fetch, answer, epochEnd: epochEnd, into: &$1) }
    }

    // MARK: Effects

    /// Gives the core an event and runs what it orders, in order.
    private func run(
        _ node: ModelNode, fetched records: [ModelRecord] = [],
        _ event: (inout PartitionReplica, inout [PartitionReplica.Effect]) -> Void
    ) {
        guard violation == nil else { return }
        var effects: [PartitionReplica.Effect] = []
        event(&node.replica, &effects)
        var index = 0
        while index < effects.count, violation == nil {
            let effect = effects[index]
            index += 1
            switch effect {
            case .advanceHighWatermark:
                checkMark(of: node)
            case .acknowledge(let id):
                acknowledge(id, at: node)
            case .refuse(let id, _), .abandon(let id):
                node.waiting.removeAll { $0.id == id }
            case .startEpoch(let offset):
                beginEpoch(at: offset.rawValue, of: node)
            case .flushLog:
                break
            case .proposeInSyncReplicas:
                guard let proposal = node.replica.inSyncProposal else {
                    fail("\(node.id) orders a proposal that is not there")
                    return
                }
                messages.append(
                    .alter(from: node.id, incarnation: node.incarnation, node.brokerEpoch, proposal))
            case .appendFetchedRecords:
                guard !records.isEmpty else { continue }
                for record in records { node.log.append(record) }
                node.replica.appended(upTo: Offset(node.log.end), waiter: nil, into: &effects)
            case .quarantine(let offset):
                fail("I7: \(node.id) is to cut committed records from \(offset) on, its mark is \(node.replica.highWatermark)")
            case .truncate(let end):
                node.cut = .truncate(end.rawValue)
            case .restartLog(let start):
                node.cut = .restart(start.rawValue)
            case .raiseLogStart(let start):
                raiseStart(of: node, to: start.rawValue)
            case .readyForHandOver(let epoch):
                if !node.replica.isReadyForHandOver { fail("\(node.id) is ready for a hand-over, and is not") }
                askForMove(node, epoch)
            }
        }
        checkVisible(of: node)
    }

    private func askForMove(_ node: ModelNode, _ epoch: LeaderEpoch) {
        guard messages.count < Self.messageLimit, let drain = node.drain, drain.epoch == epoch else { return }
        messages.append(.move(from: node.id, incarnation: node.incarnation, drain: drain.number))
    }

    /// The controller moves the leadership to whom it likes, of all that it may: whoever it is has every record, not
    /// only what is committed (promise 7).
    private func handOver(from leader: ModelNode) {
        let target = leader.drain?.target
        let choice = controller.inSync.filter {
            $0 != leader.id && !controller.isFenced($0) && (target == nil || $0 == target)
        }
        guard let next = any(choice).map(node) else { return }
        figures.handOvers += 1
        controller.move(to: next.id)
        say("hand over from \(leader.id) to \(next.id): \(describeController())")
        // A crash after the leader had counted it may have cost it what it had: no planned operation.
        if parameters.durability == .relaxed, next.isUnrecovered { return }
        let end = parameters.durability == .fsync ? next.log.flushedEnd : next.log.end
        if end < leader.log.end {
            fail("I8: the hand-over from \(leader.id) to \(next.id) loses \(end)..<\(leader.log.end)")
        }
        for offset in max(leader.log.start, next.log.start)..<max(next.log.start, leader.log.end)
        where next.log.record(at: offset) != leader.log.record(at: offset) {
            return fail("I8: \(next.id) takes over from \(leader.id) with another record at \(offset)")
        }
    }

    // MARK: Invariants

    private func beginEpoch(at offset: Int64, of node: ModelNode) {
        guard let epoch = node.replica.leaderEpoch else { return }
        let index = Int(epoch.rawValue)
        while leaders.count <= index {
            leaders.append(nil)
            seen.append(-1)
        }
        if let other = leaders[index] {
            fail("I9: \(node.id) begins epoch \(epoch), which \(other.leader) leads")
        }
        leaders[index] = (node.id, offset)
        node.log.begin(epoch)
    }

    /// The mark of a node has risen: what lies below is committed, and the same everywhere (I1, I2).
    private func checkMark(of node: ModelNode) {
        let mark = node.replica.highWatermark.rawValue
        guard mark <= node.log.end else { return fail("\(node.id): mark \(mark) beyond the log end \(node.log.end)") }
        if parameters.durability == .fsync, mark > node.log.flushedEnd {
            fail("I6: \(node.id): mark \(mark) beyond the flushed end \(node.log.flushedEnd)")
        }
        var offset = max(node.verified, node.log.start)
        while offset < mark {
            guard let record = node.log.record(at: offset) else { break }
            if offset < committed.count {
                if committed[Int(offset)] != record {
                    return fail(
                        "I2: offset \(offset) is \(record) at \(node.id), committed is \(committed[Int(offset)])")
                }
            } else if offset == committed.count {
                committed.append(record)
            } else {
                return fail("I2: \(node.id) commits \(offset) when \(committed.count) is next")
            }
            offset += 1
        }
        node.verified = max(node.verified, offset)
        guard node.replica.leaderEpoch == controller.leaderEpoch else { return }
        let maximal = node.replica.snapshot().maximalInSyncReplicas
        for broker in controller.inSync + controller.eligible where !maximal.contains(broker) {
            fail("I10: mark \(mark) of \(node.id) did not wait for \(broker); maximal \(maximal)")
        }
    }

    /// What clients see never goes back from one leadership to the next (I3).
    private func checkVisible(of node: ModelNode) {
        guard violation == nil, let epoch = node.replica.leaderEpoch, let mark = node.replica.visibleEnd?.rawValue
        else { return }
        let index = Int(epoch.rawValue)
        guard index < seen.count, mark != seen[index] else { return }
        if mark < seen[index] { fail("I3: the mark of epoch \(epoch) falls from \(seen[index]) to \(mark)") }
        seen[index] = mark
        for earlier in 0..<index where seen[earlier] > mark {
            fail("I3: clients saw \(seen[earlier]) in epoch \(earlier), now \(mark) in epoch \(epoch)")
        }
        for later in (index + 1)..<max(index + 1, seen.count) where seen[later] >= 0 && seen[later] < mark {
            fail("I3: clients see \(mark) in epoch \(epoch), saw \(seen[later]) in epoch \(later)")
        }
    }

    private func acknowledge(_ id: AppendID, at node: ModelNode) {
        guard let index = node.waiting.firstIndex(where: { $0.id == id }) else {
            return fail("\(node.id) acknowledges \(id) that does not wait")
        }
        let append = node.waiting.remove(at: index)
        figures.acknowledged += 1
        guard append.offset < committed.count, committed[Int(append.offset)].value == append.value else {
            return fail("I1: \(append.value) is acknowledged at \(append.offset), which holds something else")
        }
        let mayLead = controller.inSync + controller.eligible
        var count = 0
        for replica in nodes {
            if holds(replica, append.offset, append.value) {
                count += 1
            } else if mayLead.contains(replica.id), !(replica.isUnrecovered && parameters.durability == .relaxed) {
                fail("I6: \(append.value)@\(append.offset) is acknowledged, \(replica.id) may lead without it")
            }
        }
        if count < Self.minimum, parameters.durability == .fsync || !nodes.contains(where: \.isUnrecovered) {
            fail("I6: \(append.value)@\(append.offset) is acknowledged on \(count) replicas")
        }
    }

    /// Safe there, or deleted there by order.
    private func holds(_ node: ModelNode, _ offset: Int64, _ value: UInt64) -> Bool {
        if offset < node.log.start { return true }
        if parameters.durability == .fsync, offset >= node.log.flushedEnd { return false }
        return node.log.record(at: offset)?.value == value
    }

    /// Whoever is elected has everything that was committed (I7, LeaderCompleteness).
    private func checkElections() {
        guard violation == nil, controller.electionCount != checkedElections else { return }
        checkedElections = controller.electionCount
        guard let leader = controller.leader else { return }
        let node = node(leader)
        // It crashed, and the controller does not know yet: it will be put out when it comes back.
        if node.isUnrecovered, parameters.removesUnclean, parameters.durability == .relaxed { return }
        if node.log.end < Int64(committed.count) {
            fail("I7: \(leader) is elected with \(node.log.end) of \(committed.count) committed records")
        }
        for offset in node.log.start..<max(node.log.start, min(node.log.end, Int64(committed.count)))
        where node.log.record(at: offset) != committed[Int(offset)] {
            return fail("I7: \(leader) is elected with another record at \(offset)")
        }
    }

    /// Whoever joins the in-sync set has everything that was committed (I10).
    private func checkMembers() {
        for member in controller.inSync.map(node) {
            if parameters.durability == .relaxed, member.isUnrecovered { continue }
            let end = parameters.durability == .fsync ? member.log.flushedEnd : member.log.end
            if end < Int64(committed.count) {
                fail("I10: \(member.id) is in sync with \(end) of \(committed.count) committed records")
            }
        }
    }

    func describeController() -> String {
        "leader \(controller.leader.map { "\($0)" } ?? "none") epoch \(controller.leaderEpoch) version "
            + "\(controller.partitionEpoch) isr \(controller.inSync) elr \(controller.eligible)"
    }

    // MARK: Liveness

    private static let healingRoundLimit = 200

    /// Everything comes back and nothing is lost any more: within a bound all replicas are in sync and equal, and
    /// nobody waits (I22).
    private func heal() {
        guard violation == nil else { return }
        say("healing")
        late = []
        cancelDrains()
        var hasAppended = false
        for _ in 0..<Self.healingRoundLimit {
            for node in nodes where !node.isUp { start(node) }
            for node in nodes where violation == nil {
                if !node.isRegistered || controller.isFenced(node.id) { admit(node) }
                if node.isRegistered, node.version < controller.history.count - 1 {
                    apply(controller.history.count - 1, to: node)
                }
                if node.cut != nil { finishCut(node) }
                if node.log.flushedEnd < node.log.end { flush(node) }
                startFetch(node)
                let pending = messages
                messages = []
                for message in pending where violation == nil { deliver(message) }
                tick(node)
                checkElections()
                node.savedHighWatermark = node.replica.highWatermark.rawValue
            }
            now = now.advanced(byMilliseconds: parameters.lagMilliseconds / 8 + 1)
            if violation != nil { return }
            guard isWhole, let leader = controller.leader else { continue }
            if hasAppended { return }
            append(at: node(leader))
            hasAppended = true
        }
        fail("I22: not healed: \(describeController()); " + nodes.map { "\($0.replica.snapshot())" }.joined(separator: "; "))
    }

    private var isWhole: Bool {
        guard let leader = controller.leader, controller.inSync.count == nodes.count else { return false }
        let log = node(leader).log
        return nodes.allSatisfy {
            $0.log.end == log.end && $0.waiting.isEmpty && $0.replica.highWatermark.rawValue == log.end
                && committed.count == log.end
        }
    }
}
