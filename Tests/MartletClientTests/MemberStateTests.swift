import MartletLogModel
import Testing

@testable import MartletClient

/// The rules of a member of the consumer protocol, without any broker.
@Suite struct MemberStateTests {
    private let topic = UniversalID(high: 1, low: 1)
    private let other = UniversalID(high: 1, low: 2)
    private var names: [UniversalID: String] { [topic: "t", other: "u"] }

    private func partitions(_ indexes: Int32...) -> [TopicPartition] { indexes.map { TopicPartition("t", $0) } }

    /// A member that owns partitions of `t`.
    private func member(owning indexes: [Int32] = [], epoch: Int32 = 5) -> MemberState {
        var member = MemberState()
        _ = member.subscribe(GroupSubscription(topics: ["t"]))
        _ = member.nextHeartbeat()
        _ = member.answered(.init(epoch: epoch, assignment: [topic: indexes]), names: names)
        if !indexes.isEmpty { _ = member.assigned(indexes.map { TopicPartition("t", $0) }, names: names) }
        _ = member.nextHeartbeat()
        _ = member.answered(.init(epoch: epoch), names: names)
        return member
    }

    @Test func `a join says everything and owns nothing`() {
        var member = MemberState()
        let silent = member.nextHeartbeat()
        #expect(silent == nil)
        let effects = member.subscribe(GroupSubscription(topics: ["u", "t"]))
        #expect(effects == [.heartbeatNow])
        let heartbeat = member.nextHeartbeat()
        #expect(heartbeat == .init(epoch: 0, isFull: true, topics: ["t", "u"], pattern: nil, owned: []))
        #expect(!member.isJoined)
    }

    @Test func `partitions are told as owned once the user has them`() {
        var member = MemberState()
        _ = member.subscribe(GroupSubscription(topics: ["t"]))
        _ = member.nextHeartbeat()
        let given = member.answered(.init(epoch: 3, assignment: [topic: [0, 1]]), names: names)
        #expect(given == [.assign(partitions(0, 1))])
        #expect(member.isJoined && member.owned.isEmpty)
        let early = member.nextHeartbeat()
        #expect(early == .init(epoch: 3, isFull: false), "nothing is confirmed that the user does not have")
        _ = member.answered(.init(epoch: 3), names: names)
        let had = member.assigned(partitions(0, 1), names: names)
        #expect(had == [.heartbeatNow])
        let confirmation = member.nextHeartbeat()
        #expect(confirmation?.owned == partitions(0, 1) && confirmation?.topics == nil)
        let settled = member.answered(.init(epoch: 3), names: names)
        #expect(settled.isEmpty)
        let idle = member.nextHeartbeat()
        #expect(idle == .init(epoch: 3, isFull: false))
    }

    @Test func `what goes is given up and told before what comes is taken`() {
        var member = member(owning: [0, 1])
        let start = member.answered(.init(epoch: 6, assignment: [topic: [1, 2]]), names: names)
        #expect(start == [.revoke(partitions(0), isLost: false)])
        let meanwhile = member.nextHeartbeat()
        #expect(meanwhile?.owned == nil, "still ours while the user commits")
        _ = member.answered(.init(epoch: 6), names: names)
        let given = member.revoked(partitions(0), names: names)
        #expect(given == [.assign(partitions(2)), .heartbeatNow])
        let told = member.nextHeartbeat()
        #expect(told?.owned == partitions(1))
        _ = member.answered(.init(epoch: 6), names: names)
        let taken = member.assigned(partitions(2), names: names)
        #expect(taken == [.heartbeatNow])
        #expect(member.owned == Set(partitions(1, 2)) && member.phase == .stable)
    }

    @Test func `a target that comes during a reconciliation waits for its end`() {
        var member = member(owning: [0])
        _ = member.answered(.init(epoch: 6, assignment: [topic: []]), names: names)
        let during = member.answered(.init(epoch: 7, assignment: [topic: [0, 1]]), names: names)
        #expect(during.isEmpty)
        let after = member.revoked(partitions(0), names: names)
        #expect(after == [.assign(partitions(0, 1)), .heartbeatNow])
    }

    @Test func `a fence costs everything, and the user knows before the member joins again`() {
        var member = member(owning: [0, 1])
        let lost = member.fenced()
        #expect(lost == [.cancelSteps, .revoke(partitions(0, 1), isLost: true)])
        let silent = member.nextHeartbeat()
        #expect(silent == nil && !member.isJoined)
        let repeated = member.fenced()
        #expect(repeated.isEmpty)
        let known = member.revoked(partitions(0, 1), names: names)
        #expect(known == [.heartbeatNow])
        let join = member.nextHeartbeat()
        #expect(join == .init(epoch: 0, isFull: true, topics: ["t"], pattern: nil, owned: []))
    }

    @Test func `a fence of a member without partitions needs nobody's leave`() {
        var member = member()
        let effects = member.fenced()
        #expect(effects == [.cancelSteps, .heartbeatNow])
        #expect(member.phase == .joining)
    }

    @Test func `a silent member joins with the next poll only`() {
        var member = member()
        let effects = member.fellSilent()
        #expect(effects == [.cancelSteps, .revoke([], isLost: true)])
        let silent = member.nextHeartbeat()
        #expect(silent == nil)
        let polled = member.revoked([], names: names)
        #expect(polled == [.heartbeatNow])
    }

    @Test func `after a heartbeat of unknown fate everything is said again`() {
        var member = member(owning: [0])
        _ = member.nextHeartbeat()
        member.unanswered()
        let heartbeat = member.nextHeartbeat()
        #expect(heartbeat == .init(epoch: 5, isFull: true, topics: ["t"], pattern: nil, owned: partitions(0)))
    }

    @Test func `a changed subscription is told once, a pattern that goes is cleared`() {
        var member = member()
        let effects = member.subscribe(GroupSubscription(pattern: "a.*"))
        #expect(effects == [.heartbeatNow])
        let first = member.nextHeartbeat()
        #expect(first?.topics == [] && first?.pattern == "a.*")
        _ = member.answered(.init(epoch: 6), names: names)
        let second = member.nextHeartbeat()
        #expect(second?.topics == nil && second?.pattern == nil)
        _ = member.answered(.init(epoch: 6), names: names)
        _ = member.subscribe(GroupSubscription(topics: ["t"]))
        let third = member.nextHeartbeat()
        #expect(third?.topics == ["t"] && third?.pattern == "")
    }

    @Test func `a topic whose name is not known yet is learned, the others do not wait`() {
        var member = MemberState()
        _ = member.subscribe(GroupSubscription(pattern: ".*"))
        _ = member.nextHeartbeat()
        let effects = member.answered(
            .init(epoch: 2, assignment: [topic: [0], other: [0]]), names: [topic: "t"])
        #expect(effects == [.learnTopics([other]), .assign(partitions(0))])
        let had = member.assigned(partitions(0), names: [topic: "t"])
        #expect(had.contains(.learnTopics([other])) && had.contains(.heartbeatNow))
        let learned = member.reconcile(names: names)
        #expect(learned == [.assign([TopicPartition("u", 0)])])
        _ = member.assigned([TopicPartition("u", 0)], names: names)
        #expect(member.owned == [TopicPartition("t", 0), TopicPartition("u", 0)])
        #expect(member.ids == ["t": topic, "u": other])
    }
}
