import MartletLogModel
import MartletMetadataQuorum
import Testing

/// What a quorum must get through, named after Kafka's event simulation of its Raft layer.
@Suite struct QuorumScenarioTests {
    private func world(_ nodes: Int, voters: Int? = nil, seed: UInt64 = 1) -> QuorumWorld {
        let world = QuorumWorld(
            WorldOptions(seed: seed, nodeCount: nodes, voterCount: voters ?? nodes, isTracing: true))
        world.startAll()
        return world
    }

    private func expectLeader(
        _ world: QuorumWorld, within milliseconds: Int64 = 20_000, besides dead: Int? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> Int {
        world.run(milliseconds: milliseconds) {
            world.leader.map { $0 != dead && world.snapshot($0)?.role == .leader } ?? false
        }
        expectSound(world, sourceLocation: sourceLocation)
        let leader = try #require(world.leader, "no leader", sourceLocation: sourceLocation)
        try #require(leader != dead, sourceLocation: sourceLocation)
        return leader
    }

    private func expectSound(_ world: QuorumWorld, sourceLocation: SourceLocation = #_sourceLocation) {
        #expect(
            world.problems.isEmpty, "\(world.trace.suffix(40).joined(separator: "\n"))",
            sourceLocation: sourceLocation)
    }

    private func expectProgress(
        _ world: QuorumWorld, at leader: Int, among nodes: some Sequence<Int>,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let before = world.acknowledged
        for _ in 0..<5 { world.propose(at: leader, records: 2) }
        let isDone = world.run(milliseconds: 10_000) {
            world.acknowledged >= before + 5 && world.isCaughtUp(nodes)
        }
        #expect(isDone, "\(world.trace.suffix(40).joined(separator: "\n"))", sourceLocation: sourceLocation)
        expectSound(world, sourceLocation: sourceLocation)
    }

    @Test(arguments: 1...5) func `can elect initial leader`(_ nodes: Int) throws {
        let world = world(nodes)
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
    }

    @Test(arguments: 3...5) func `can elect new leader after old failure`(_ nodes: Int) throws {
        let world = world(nodes)
        let old = try expectLeader(world)
        expectProgress(world, at: old, among: world.nodes)
        world.crash(old)
        let new = try expectLeader(world, besides: old)
        expectProgress(world, at: new, among: world.nodes.filter { $0 != old })
        world.start(old)
        expectProgress(world, at: new, among: world.nodes)
    }

    @Test(arguments: 1...5) func `can recover after all nodes killed`(_ nodes: Int) throws {
        let world = world(nodes)
        expectProgress(world, at: try expectLeader(world), among: world.nodes)
        let committed = world.committedEnd
        for node in world.nodes { world.crash(node) }
        world.startAll()
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
        #expect(world.committedEnd > committed)
    }

    @Test(arguments: 3...5) func `can elect new leader after old leader partitioned away`(_ nodes: Int) throws
    {
        let world = world(nodes)
        let old = try expectLeader(world)
        expectProgress(world, at: old, among: world.nodes)
        for node in world.nodes where node != old { world.blocked.formUnion([[node, old], [old, node]]) }
        world.propose(at: old)
        let epoch = try #require(world.snapshot(old)?.epoch)
        let isReplaced = world.run(milliseconds: 20_000) { world.leader.map { $0 != old } ?? false }
        #expect(isReplaced, "\(world.trace.suffix(40).joined(separator: "\n"))")
        let new = try #require(world.leader)
        expectProgress(world, at: new, among: world.nodes.filter { $0 != old })
        // Check quorum: the old one has given up by itself.
        #expect(world.snapshot(old)?.role != .leader)
        #expect(try #require(world.snapshot(new)?.epoch) > epoch)
        world.blocked = []
        expectProgress(world, at: try expectLeader(world), among: world.nodes)
    }

    @Test(arguments: 3...5) func `can make progress if majority is reachable`(_ nodes: Int) throws {
        let world = world(nodes)
        let leader = try expectLeader(world)
        let minority = world.nodes.filter { $0 != leader }.suffix((nodes - 1) / 2)
        for node in world.nodes {
            for other in minority where other != node {
                world.blocked.formUnion([[node, other], [other, node]])
            }
        }
        expectProgress(world, at: leader, among: world.nodes.filter { !minority.contains($0) })
        world.blocked = []
        expectProgress(world, at: try expectLeader(world), among: world.nodes)
    }

    @Test(arguments: [3, 5]) func `can make progress after back to back leader failures`(_ nodes: Int) throws
    {
        let world = world(nodes)
        for _ in 0..<5 {
            let leader = try expectLeader(world)
            expectProgress(world, at: leader, among: [leader])
            world.crash(leader)
            world.run(milliseconds: 200)
            world.restart(leader, afterMilliseconds: 300)
        }
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
    }

    /// A voter loses its disk: it comes back as another replica, and nothing that was committed is lost.
    @Test func `can recover from single node committed data loss`() throws {
        let world = world(3)
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
        world.run(milliseconds: 1_000)
        let lost = try #require(world.nodes.first { $0 != leader })
        let former = world.key(lost)
        #expect(world.membership(leader)?.voters.contains(former) == true)
        world.wipe(lost)
        world.start(lost)
        expectProgress(world, at: leader, among: world.nodes)
        #expect(world.snapshot(lost)?.isVoter == false)
        // Its seat is given to the new disk.
        world.ask(leader, .removeVoter(VoterRemoval(key: former)))
        world.run(milliseconds: 1_000)
        world.ask(
            leader,
            .addVoter(
                VoterAddition(
                    key: world.key(lost), endpoints: QuorumWorld.endpoints(of: lost),
                    timeoutMilliseconds: 5_000,
                    waitsForCommit: true)))
        world.run(milliseconds: 2_000)
        #expect(world.changeAnswers.map(\.header.error) == [.none, .none])
        #expect(world.snapshot(lost)?.isVoter == true)
        expectProgress(world, at: leader, among: world.nodes)
    }

    @Test func `a cluster of one leads at its start and commits at its flush`() throws {
        let world = world(1)
        // No time has passed.
        let state = try #require(world.snapshot(0))
        #expect(state.role == .leader && state.isReady && state.epoch == LeaderEpoch(1))
        world.propose(at: 0)
        // One flush for the epoch's first batch, one for the proposal.
        world.run(milliseconds: 7) { world.acknowledged == 1 }
        #expect(world.acknowledged == 1)
        #expect(
            world.membership(0)?.version == 1 && world.membership(0)?.voters.contains(world.key(0)) == true)
        world.crash(0)
        world.start(0)
        #expect(world.snapshot(0)?.epoch == LeaderEpoch(2))
        expectProgress(world, at: 0, among: [0])
    }

    @Test func `one voter grows to three and shrinks without its first leader`() throws {
        let world = world(3, voters: 1)
        let first = try expectLeader(world)
        expectProgress(world, at: first, among: world.nodes)
        for node in [1, 2] {
            world.ask(
                first,
                .addVoter(
                    VoterAddition(
                        key: world.key(node), endpoints: QuorumWorld.endpoints(of: node),
                        timeoutMilliseconds: 5_000,
                        waitsForCommit: true)))
            world.run(milliseconds: 3_000)
        }
        #expect(world.changeAnswers.map(\.header.error) == [.none, .none])
        #expect(world.membership(2)?.voters.voters.count == 3)
        world.ask(first, .removeVoter(VoterRemoval(key: world.key(first))))
        let isHandedOver = world.run(milliseconds: 10_000) { world.leader.map { $0 != first } ?? false }
        #expect(isHandedOver)
        let next = try #require(world.leader)
        expectProgress(world, at: next, among: world.nodes)
        #expect(world.snapshot(first)?.isVoter == false && world.snapshot(first)?.role == .follower)
    }

    @Test func `a second change waits for the first`() throws {
        let world = world(5, voters: 3)
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
        world.run(milliseconds: 1_000)
        for node in world.nodes where node != leader {
            world.blocked.formUnion([[node, leader], [leader, node]])
        }
        let followers = world.nodes.filter { $0 != leader && $0 < 3 }
        world.ask(leader, .removeVoter(VoterRemoval(key: world.key(followers[0]))))
        world.ask(leader, .removeVoter(VoterRemoval(key: world.key(followers[1]))))
        #expect(world.changeAnswers.map(\.header.error) == [.requestTimedOut])
        // The first one, uncommitted, is taken back when the others elect a leader without it.
        let isReplaced = world.run(milliseconds: 20_000) { world.leader.map { $0 != leader } ?? false }
        #expect(isReplaced, "\(world.trace.suffix(40).joined(separator: "\n"))")
        world.blocked = []
        expectProgress(world, at: try #require(world.leader), among: world.nodes)
        for node in world.nodes { #expect(world.membership(node) == world.committedMembership) }
    }

    @Test func `whoever is behind the log start gets the snapshot`() throws {
        let world = world(4, voters: 3)
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
        world.crash(3)
        expectProgress(world, at: leader, among: [0, 1, 2])
        world.takeSnapshot(leader)
        #expect(world.snapshot(leader)?.logStart == world.committedEnd)
        world.start(3)
        expectProgress(world, at: leader, among: world.nodes)
        #expect(world.counts.snapshotInstalls == 1)
        #expect(world.membership(3) == world.membership(leader))
        // And again from its disk.
        world.crash(3)
        world.start(3)
        expectProgress(world, at: leader, among: world.nodes)
    }

    @Test func `a leader that resigns hands over at once`() throws {
        let world = world(3)
        let old = try expectLeader(world)
        expectProgress(world, at: old, among: world.nodes)
        let before = world.now
        world.resign(old)
        let isReplaced = world.run(milliseconds: 5_000) { world.leader.map { $0 != old } ?? false }
        #expect(isReplaced, "\(world.trace.suffix(40).joined(separator: "\n"))")
        // Votes, state files and one commit; no election timeout.
        #expect(world.now - before < 100_000, "took \((world.now - before) / 1_000) ms")
        expectProgress(world, at: try #require(world.leader), among: world.nodes)
    }

    @Test func `an observer follows, is described, and never leads`() throws {
        let world = world(4, voters: 3)
        let leader = try expectLeader(world)
        expectProgress(world, at: leader, among: world.nodes)
        world.run(milliseconds: 1_000)
        let description = try #require(world.describe(leader))
        #expect(description.voters.map(\.key) == (0..<3).map(world.key))
        #expect(description.observers.map(\.key) == [world.key(3)])
        #expect(description.observers.first?.logEnd == world.committedEnd)
        #expect(description.observers.first?.lastCaughtUp != nil)
        for node in 0..<3 { world.crash(node) }
        world.run(milliseconds: 20_000)
        #expect(world.leader == nil && world.snapshot(3)?.role == .unattached)
        expectSound(world)
    }
}
