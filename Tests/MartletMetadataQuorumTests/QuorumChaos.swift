import MartletLogModel
import MartletMetadataQuorum
import MartletTestSupport

/// One seed: faults for a while, then everything heals and must make progress, then a healthy quorum is left alone with
/// one voter that cannot reach the leader, which must change nothing.
struct QuorumChaos {
    struct Outcome {
        var seed: UInt64
        var problems: [String]
        var trace: [String]
        var eventCount: Int
        var counts: QuorumWorld.Counts
        var acknowledged: Int

        var report: String {
            "seed \(seed): \(problems.joined(separator: "; "))\n  \(trace.suffix(60).joined(separator: "\n  "))"
        }
    }

    private enum Style: CaseIterable { case crashes, network, voters, mixed }

    /// Virtual milliseconds of faults; of hasty quorums fewer, which hold as many elections.
    private var chaosMilliseconds: Int64 { world.options.isHasty ? 4_000 : 12_000 }
    /// Bound of the liveness promise: a leader, a commit, and everybody caught up.
    private static let healingMilliseconds: Int64 = 30_000

    private let world: QuorumWorld
    private let style: Style
    private var random: SeededGenerator

    /// Runs a seed; one that fails is run again with its trace.
    static func run(_ seed: UInt64, suspended: SuspendedRules = []) -> Outcome {
        var chaos = QuorumChaos(seed, suspended, isTracing: false)
        let outcome = chaos.run()
        guard !outcome.problems.isEmpty, suspended.isEmpty else { return outcome }
        var again = QuorumChaos(seed, suspended, isTracing: true)
        return again.run()
    }

    private init(_ seed: UInt64, _ suspended: SuspendedRules, isTracing: Bool) {
        random = SeededGenerator(seed: seed &* 2 &+ 1)
        let nodeCount = [1, 2, 3, 3, 3, 4, 5, 5][Int.random(in: 0..<8, using: &random)]
        let voterCount = max(1, nodeCount - Int.random(in: 0...2, using: &random))
        style = Style.allCases.randomElement(using: &random) ?? .mixed
        var options = WorldOptions(seed: seed, nodeCount: nodeCount, voterCount: voterCount)
        options.suspended = suspended
        options.isTracing = isTracing
        options.isHasty = Bool.random(using: &random)
        world = QuorumWorld(options)
    }

    private mutating func run() -> Outcome {
        world.dropPermille = [0, 10, 50, 150][Int.random(in: 0..<4, using: &random)]
        world.duplicatePermille = [0, 20, 100][Int.random(in: 0..<3, using: &random)]
        world.readCount = [1, 2, 6][Int.random(in: 0..<3, using: &random)]
        let slowest: [Int64] = world.options.isHasty ? [1_000, 20_000, 60_000] : [1_000, 20_000, 300_000]
        world.messageDelay = 200...slowest[Int.random(in: 0..<3, using: &random)]
        world.flushDelay = 100...slowest[Int.random(in: 0..<3, using: &random)]
        world.persistDelay = 100...slowest[Int.random(in: 0..<3, using: &random)]
        world.startAll()
        let end = world.now + chaosMilliseconds * 1_000
        let busyPermille = [100, 300, 600][Int.random(in: 0..<3, using: &random)]
        while world.now < end, world.problems.isEmpty {
            world.run(milliseconds: Int64.random(in: 1...(world.options.isHasty ? 40 : 120), using: &random))
            propose()
            if Int.random(in: 0..<1_000, using: &random) < busyPermille { disturb() }
        }
        heal()
        if world.problems.isEmpty { demandProgress() }
        if world.problems.isEmpty { demandCalm() }
        return Outcome(
            seed: world.options.seed, problems: world.problems, trace: world.trace,
            eventCount: world.eventCount,
            counts: world.counts, acknowledged: world.acknowledged)
    }

    private var anyNode: Int { mutating get { Int.random(in: world.nodes, using: &random) } }

    private mutating func propose() {
        for _ in 0..<Int.random(in: 0...2, using: &random) {
            // Mostly to a leader, sometimes to one that only believes it is.
            let leaders = world.leaderCandidates
            let node = leaders.randomElement(using: &random) ?? anyNode
            world.propose(at: node, records: Int64.random(in: 1...3, using: &random))
        }
    }

    // MARK: Faults

    private mutating func disturb() {
        // 0..<6 crashes, 6..<14 network, 14..<18 voters, the rest anything.
        let kind =
            switch style {
            case .crashes: Int.random(in: 0..<7, using: &random)
            case .network: [19, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14][Int.random(in: 0..<11, using: &random)]
            case .voters: Int.random(in: 8..<19, using: &random)
            case .mixed: Int.random(in: 0..<20, using: &random)
            }
        switch kind {
        case 0...1: crash(anyNode)
        case 2...3: if let node = world.forgetful.randomElement(using: &random) { crash(node) }
        case 4: if let leader = world.leader { crash(leader) }
        case 5:
            // A power cut, now and then.
            if Int.random(in: 0..<4, using: &random) == 0 { for node in world.nodes { crash(node) } }
        case 6...7: isolate(world.leader ?? anyNode)
        case 8: isolate(anyNode)
        case 9: splitInTwo()
        case 10: blockOneWay()
        case 11: ring()
        case 12...13: world.blocked = []
        case 14...15: changeVoters()
        case 16: changeVotersTwice()
        case 17: if let leader = world.leader { world.resign(leader) }
        case 18: world.takeSnapshot(anyNode)
        case _: overtakeOldEpoch()
        }
    }

    private mutating func crash(_ node: Int) {
        guard world.isRunning(node) else { return }
        if Int.random(in: 0..<12, using: &random) == 0, mayWipe(node) {
            world.wipe(node)
        } else {
            world.crash(node)
        }
        world.restart(
            node,
            afterMilliseconds: Int64.random(in: 1...(world.options.isHasty ? 300 : 1_500), using: &random))
    }

    /// A disk may be lost only where the quorum survives it: voters are known with their disks, and no other seat is dead.
    private func mayWipe(_ node: Int) -> Bool {
        let committed = world.committedMembership
        guard committed.version > 0 else { return false }
        let sets = [committed.voters] + world.nodes.map { world.storedMembership($0).voters }
        return sets.allSatisfy { voters in
            // Voters by configuration have no disk yet, and none to lose.
            let lost = voters.voters.filter { voter in
                let other = Int(voter.key.id.rawValue)
                return other == node || (voter.key.directoryID != nil && world.key(other) != voter.key)
            }
            return lost.isEmpty
                || (voters.voters.count - lost.count >= voters.majorityCount && lost.count == 1
                    && voters.voters.count > 2)
        }
    }

    private mutating func isolate(_ node: Int) {
        for other in world.nodes where other != node {
            world.blocked.insert([node, other])
            world.blocked.insert([other, node])
        }
    }

    private mutating func splitInTwo() {
        let left = world.nodes.filter { _ in Bool.random(using: &random) }
        for node in world.nodes {
            for other in world.nodes where left.contains(node) != left.contains(other) {
                world.blocked.insert([node, other])
            }
        }
    }

    private mutating func blockOneWay() {
        let node = anyNode
        for other in world.nodes where other != node && Bool.random(using: &random) {
            world.blocked.insert([node, other])
        }
    }

    /// Each node reaches its neighbours only.
    private mutating func ring() {
        let count = world.options.nodeCount
        guard count > 3 else { return isolate(anyNode) }
        for node in world.nodes {
            for other in world.nodes
            where other != node && (node - other + count) % count != 1 && (other - node + count) % count != 1
            {
                world.blocked.insert([node, other])
            }
        }
    }

    /// The Raft paper's figure 8: an old leader's records, which nobody has, against a newer epoch that nobody has either;
    /// then the old leader leads again, replicates its old records, and is gone; then the other one comes back.
    private mutating func overtakeOldEpoch() {
        let world = world
        let patience: Int64 = world.options.isHasty ? 1_500 : 15_000
        guard let first = world.leader, world.options.nodeCount >= 3 else { return isolate(anyNode) }
        world.blocked = []
        isolate(first)
        world.propose(at: first)
        world.propose(at: first)
        func leads(_ node: Int) -> Bool { world.snapshot(node)?.role == .leader }
        world.run(milliseconds: patience) { world.nodes.contains { $0 != first && leads($0) } }
        guard let second = world.nodes.first(where: { $0 != first && leads($0) }) else { return }
        isolate(second)
        world.run(milliseconds: patience) {
            world.snapshot(second).map { $0.flushedEnd == $0.logEnd } ?? true
        }
        // The first one is back; the second is not heard.
        for node in world.nodes where node != second {
            world.blocked.subtract([[first, node], [node, first]])
        }
        let committed = world.committedEnd
        world.run(milliseconds: patience) { world.committedEnd > committed }
        for node in world.nodes { isolate(node) }
        world.crash(first)
        world.restart(first, afterMilliseconds: patience)
        for node in world.nodes where node != first {
            for other in world.nodes where other != first { world.blocked.remove([node, other]) }
        }
        world.run(milliseconds: patience) { leads(second) }
    }

    // MARK: Voters

    private mutating func changeVoters() {
        guard let leader = world.leader, let voters = world.membership(leader)?.voters else { return }
        if let lost = voters.voters.first(where: { world.key(Int($0.key.id.rawValue)) != $0.key }) {
            world.ask(leader, .removeVoter(VoterRemoval(key: lost.key)))
            return
        }
        let node = anyNode
        if voters.contains(world.key(node)) {
            guard voters.voters.count > 1 else { return }
            world.ask(leader, .removeVoter(VoterRemoval(key: world.key(node))))
        } else {
            add(node, at: leader)
        }
    }

    private func add(_ node: Int, at leader: Int) {
        world.ask(
            leader,
            .addVoter(
                VoterAddition(
                    key: world.key(node), endpoints: QuorumWorld.endpoints(of: node),
                    timeoutMilliseconds: 1_000,
                    waitsForCommit: node % 2 == 0)))
    }

    /// Two changes on top of each other, and the leader left with those who know only of the second: what must not work.
    private mutating func changeVotersTwice() {
        guard let leader = world.leader, let voters = world.membership(leader)?.voters,
            voters.voters.count > 2,
            voters.voters.allSatisfy({ world.key(Int($0.key.id.rawValue)) == $0.key })
        else { return changeVoters() }
        let others = world.nodes.filter { $0 != leader && voters.contains(world.key($0)) }
        let strangers = world.nodes.filter { !voters.contains(world.key($0)) && world.isRunning($0) }
        for node in strangers { add(node, at: leader) }
        // Those who are to go hear nothing of it.
        let gone = Array(others.suffix(strangers.isEmpty ? others.count : 2))
        for node in gone {
            for other in world.nodes where !gone.contains(other) {
                world.blocked.insert([node, other])
                world.blocked.insert([other, node])
            }
        }
        world.run(milliseconds: 5)
        if strangers.isEmpty {
            for node in gone { world.ask(leader, .removeVoter(VoterRemoval(key: world.key(node)))) }
        }
    }

    // MARK: Healing

    private func heal() {
        world.blocked = []
        world.dropPermille = 0
        world.duplicatePermille = 0
        world.messageDelay = 200...2_000
        world.flushDelay = 100...3_000
        world.persistDelay = 100...3_000
        for node in world.nodes { world.start(node) }
    }

    private func demandProgress() {
        let before = world.acknowledged
        let end = world.now + Self.healingMilliseconds * 1_000
        while world.now < end, world.problems.isEmpty {
            // A leader that loses its place may abandon a proposal: ask again.
            if world.acknowledged == before, let leader = world.leader { world.propose(at: leader) }
            let isDone = world.run(milliseconds: 500) {
                world.acknowledged > before && world.isCaughtUp(world.nodes)
            }
            if isDone { return }
        }
        guard world.problems.isEmpty else { return }
        let states = world.nodes.map {
            "\($0): \(world.snapshot($0).map { "\($0)" } ?? "down") \(world.membership($0)?.voters.voters.map { "\($0.key)" } ?? [])"
        }
        world.fail(
            nil,
            "no progress \(Self.healingMilliseconds) ms after healing; committed \(world.committedEnd)\n    \(states.joined(separator: "\n    "))"
        )
    }

    /// A voter that cannot reach the leader while everybody else can must not bring it down (KIP-996).
    private mutating func demandCalm() {
        world.run(milliseconds: 3_000)
        guard world.problems.isEmpty, let leader = world.leader, let epoch = world.snapshot(leader)?.epoch,
            let voters = world.membership(leader)?.voters, voters.contains(world.key(leader))
        else { return }
        let followers = voters.voters.map { Int($0.key.id.rawValue) }.filter {
            $0 != leader && world.key($0) == voters[BrokerID(Int32($0))]?.key
        }
        // The leader keeps its majority without the one.
        guard let cut = followers.randomElement(using: &random), followers.count >= voters.majorityCount,
            voters.voters.count >= 3
        else { return }
        world.blocked = [[cut, leader], [leader, cut]]
        world.run(milliseconds: world.options.isHasty ? 1_500 : 9_000)
        guard world.problems.isEmpty else { return }
        if world.leader != leader || world.snapshot(leader)?.epoch != epoch {
            world.fail(leader, "was deposed by node \(cut), which alone could not reach it")
        }
    }
}
