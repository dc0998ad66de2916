import Foundation
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletReplication
import MartletStorage
import MartletTestSupport
import NIOCore
import NIOEmbedded
import Testing

@testable import MartletBroker

/// Three brokers, one partition, and whatever may happen to them, in any order: power cuts, slow disks, metadata that
/// comes late, answers that come late, changes of leader and of the in-sync set.
@Suite struct ReplicaFaultTests {
    @Test(arguments: ReplicaFaultRun.seeds as Range<UInt64>)
    func `nothing acknowledged is lost and the logs agree`(seed: UInt64) throws {
        var run = try ReplicaFaultRun(seed: seed)
        try run.run()
        #expect(run.violations == [], "seed \(seed)")
        try run.world.stop()
    }

    @Test(arguments: ReplicaFaultRun.neededRules)
    func `a rule that does not hold is found out`(_ name: String) throws {
        let rule = try #require(SuspendedRules.replication.first { $0.name == name }).rule
        for seed in 0..<100 as Range<UInt64> {
            var run = try ReplicaFaultRun(seed: seed, suspended: rule)
            do {
                try run.run()
            } catch {
                return
            }
            if !run.violations.isEmpty { return }
        }
        Issue.record("no seed finds it")
    }
}

struct ReplicaFaultRun {
    private static let brokers: [Int32] = [0, 1, 2]

    /// By their names in the core, those that so few steps find out.
    static let neededRules = SuspendedRules.replication.map(\.name).filter {
        [
            "KIP-101 truncation by epoch", "KIP-279 epoch by epoch", "KIP-320 (1) alignment",
            "AsyncIsr maximal in-sync set", "leader flush", "follower flush",
        ].contains($0)
    }

    /// `MARTLET_REPLICA_SEEDS` runs so many.
    static let seeds: Range<UInt64> =
        0..<(ProcessInfo.processInfo.environment["MARTLET_REPLICA_SEEDS"].flatMap { UInt64($0) } ?? 12)

    let world: ReplicaWorld
    private var random: SeededGenerator
    private var fenced: Set<Int32> = []
    private var nextValue = 0
    private var sent: [(value: Int, acks: Int16, wire: ReplicaWire, node: ReplicaNode)] = []
    /// By offset, as some broker has shown it to consumers.
    private var committed: [Int64: Int] = [:]
    private var carried: [(follower: Int32, node: ReplicaNode, what: ReplicaWorld.Carried)] = []

    private(set) var violations: [String] = []

    init(seed: UInt64, suspended: SuspendedRules = []) throws {
        random = SeededGenerator(seed: seed)
        world = try ReplicaWorld(folder: nil, brokers: Self.brokers, suspended: suspended)
        try world.createTopic(replicas: Self.brokers, configs: ["min.insync.replicas": "\(1 + seed % 2)"])
    }

    mutating func run() throws {
        for step in 0..<400 {
            try self.step()
            if step % 10 == 0 { try checkCommitted() }
        }
        try heal()
        try checkEverything()
    }

    private mutating func require(_ holds: Bool, _ what: String) {
        if !holds { violations.append(what) }
    }

    private mutating func anyBroker() -> Int32 { Self.brokers[Int.random(in: 0..<3, using: &random)] }
    private mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &random) < percent }

    private mutating func step() throws {
        switch Int.random(in: 0..<100, using: &random) {
        case 0..<25: try produce()
        case 25..<60: try fetch()
        case 60..<70: try deliverOne()
        case 70..<76: world[anyBroker()].flushes.isHeld.toggle()
        case 76..<79: world[anyBroker()].works.isHeld.toggle()
        case 79..<84: try hear()
        case 84..<91: for id in Self.brokers { try decide(id) }
        case 91..<93: try changeLeader()
        case 93..<95: try crash()
        case 95..<96: try restart()
        case 96..<97: try deleteRecords()
        default: world[anyBroker()].eventLoop.advanceTime(by: .seconds(chance(10) ? 31 : 1))
        }
        for id in Self.brokers { world[id].run() }
        try collectAnswers()
    }

    // MARK: Clients

    private mutating func produce() throws {
        let id = try world.decided().leader?.rawValue ?? anyBroker()
        let node = world[chance(90) ? id : anyBroker()]
        let wire = ReplicaWire(node)
        nextValue += 1
        let acks: Int16 = chance(80) ? -1 : 1
        try wire.send(try world.produceRequest("<\(nextValue)>", acks: acks), version: 13)
        sent.append((nextValue, acks, wire, node))
    }

    private mutating func collectAnswers() throws {
        var open: [(value: Int, acks: Int16, wire: ReplicaWire, node: ReplicaNode)] = []
        for entry in sent where world[entry.node.id] === entry.node {
            guard let answer = try entry.wire.read(ProduceRequest.self, version: 13) else {
                open.append(entry)
                continue
            }
            guard let result = answer.responses.first?.partitionResponses.first, result.errorCode == 0 else { continue }
            guard entry.acks == -1 else { continue }
            let known = committed.updateValue(entry.value, forKey: result.baseOffset)
            require(known == nil || known == entry.value, "two records at offset \(result.baseOffset)")
        }
        sent = open
    }

    private mutating func deleteRecords() throws {
        for id in Self.brokers {
            guard let partition = world[id].loop.existingPartition(world.key), partition.leaderEpoch != nil,
                let end = partition.visibleEnd, end > .zero
            else { continue }
            let target = Int64.random(in: 0...end.rawValue, using: &random)
            partition.deleteRecords(before: target, timeout: .seconds(3)) { _ in }
        }
    }

    // MARK: Replicas

    private mutating func fetch() throws {
        let id = anyBroker()
        guard world[id].loop.existingPartition(world.key)?.isOpen == true, let what = try world.ask(id) else { return }
        if chance(20) {
            carried.append((id, world[id], what))
        } else {
            world.deliver(what, to: id)
        }
    }

    private mutating func deliverOne() throws {
        guard !carried.isEmpty else { return }
        let (id, node, what) = carried.remove(at: Int.random(in: 0..<carried.count, using: &random))
        if world[id] === node { world.deliver(what, to: id) }
    }

    // MARK: Controller

    private mutating func hear() throws {
        if world.deaf.isEmpty, chance(60) {
            world.deaf = [anyBroker()]
        } else {
            world.deaf = []
            try world.publish()
        }
    }

    /// The controller's rules of AlterPartition, and its bad luck.
    private mutating func decide(_ id: Int32) throws {
        guard let (proposal, settle) = world[id].proposals.take() else { return }
        let now = try world.decided()
        let isStale = proposal.partitionEpoch.rawValue != now.partitionEpoch
        let mayJoin = proposal.members.allSatisfy { member in
            !fenced.contains(member.broker.rawValue)
                && (member.brokerEpoch == nil || member.brokerEpoch?.rawValue == world.brokerEpochs[member.broker.rawValue])
        }
        if chance(10) {
            settle(.lost)
        } else if proposal.leaderEpoch != now.leaderEpoch {
            settle(.refused(.fencedLeaderEpoch))
        } else if isStale {
            settle(.refused(.invalidUpdateVersion))
        } else if !mayJoin {
            settle(.refused(.ineligibleReplica))
        } else {
            try world.change(isr: proposal.members.map(\.broker.rawValue))
            if chance(20) {
                settle(.lost)
            } else {
                settle(
                    .accepted(
                        leaderEpoch: proposal.leaderEpoch, partitionEpoch: PartitionEpoch(now.partitionEpoch + 1),
                        inSyncReplicas: proposal.members.map(\.broker)))
            }
        }
        world[id].run()
    }

    private mutating func changeLeader() throws {
        let now = try world.decided()
        let able = now.isr.map(\.rawValue).filter { !fenced.contains($0) && $0 != now.leader?.rawValue }
        guard let next = able.randomElement(using: &random) else { return }
        try world.change(leader: next)
    }

    /// It leaves the in-sync set, unless nobody else is in it.
    private mutating func fence(_ id: Int32) throws {
        fenced.insert(id)
        try world.fence(id)
        let now = try world.decided()
        let isr = now.isr.map(\.rawValue)
        guard isr.contains(id) else { return }
        let rest = isr.filter { $0 != id }
        let leader = now.leader?.rawValue == id ? (rest.first { !fenced.contains($0) } ?? -1) : nil
        try world.change(leader: leader, isr: rest.isEmpty ? isr : rest)
    }

    private mutating func unfence(_ id: Int32) throws {
        fenced.remove(id)
        let now = try world.decided()
        if now.leader == nil, now.isr.contains(BrokerID(id)) { try world.change(leader: id) }
    }

    private mutating func crash() throws {
        let id = anyBroker()
        let isNoticed = chance(50)
        if isNoticed {
            try fence(id)
        } else if try world.decided().leader?.rawValue == id {
            // It is back before its session is over, and has lost nothing that it acknowledged. What it wrote besides may
            // be gone here and be elsewhere, so it must not go on in the same epoch.
            try changeLeader()
            if try world.decided().leader?.rawValue == id { try world.change(leader: id) }
        }
        try world.crash(id, seed: UInt64.random(in: 0..<1000, using: &random))
        if isNoticed { try unfence(id) }
    }

    private mutating func restart() throws {
        let id = anyBroker()
        try fence(id)
        try world.restart(id)
        try unfence(id)
    }

    // MARK: Checks

    private mutating func heal() throws {
        world.deaf = []
        try world.publish()
        for id in Self.brokers {
            world[id].flushes.isHeld = false
            world[id].works.isHeld = false
        }
        for id in Self.brokers { world[id].run() }
        for round in 0..<50 {
            if round % 10 == 0, let leader = try world.decided().leader?.rawValue, try world.log(leader).damage != nil {
                try changeLeader()
                if try world.decided().leader?.rawValue == leader {
                    // Nobody else has it: `martlet log repair`, and a start.
                    try world.log(leader).repair()
                    try fence(leader)
                    try world.restart(leader)
                    try unfence(leader)
                }
            }
            for id in Self.brokers {
                world[id].eventLoop.advanceTime(by: .seconds(1))
                world[id].run()
            }
            for id in Self.brokers { try world.replicate(id) }
            for id in Self.brokers {
                while let (proposal, settle) = world[id].proposals.take() {
                    let now = try world.decided()
                    guard proposal.leaderEpoch == now.leaderEpoch, proposal.partitionEpoch.rawValue == now.partitionEpoch
                    else {
                        settle(.refused(.invalidUpdateVersion))
                        continue
                    }
                    try world.change(isr: proposal.members.map(\.broker.rawValue))
                    settle(
                        .accepted(
                            leaderEpoch: proposal.leaderEpoch, partitionEpoch: PartitionEpoch(now.partitionEpoch + 1),
                            inSyncReplicas: proposal.members.map(\.broker)))
                }
                world[id].run()
            }
        }
        try collectAnswers()
    }

    /// By offset, what the log of a broker holds below `end`.
    private func values(_ id: Int32, below end: Offset) throws -> [Int64: Int] {
        var rest = try world.bytes(id)
        var values: [Int64: Int] = [:]
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest, at: rest.readerIndex)
            guard let batch = rest.readSlice(length: header.totalByteCount) else { throw WireClient.Failure.closed }
            let text = String(decoding: batch.readableBytesView.dropFirst(RecordBatchHeader.byteCount), as: UTF8.self)
            guard header.baseOffset < end.rawValue, let open = text.firstIndex(of: "<"), let close = text.lastIndex(of: ">"),
                let value = Int(text[text.index(after: open)..<close])
            else { continue }
            values[header.baseOffset] = value
        }
        return values
    }

    private mutating func checkCommitted() throws {
        for id in Self.brokers {
            guard let partition = world[id].loop.existingPartition(world.key), partition.isOpen,
                let end = partition.visibleEnd
            else { continue }
            for (offset, value) in try values(id, below: end) {
                require(
                    committed[offset] == nil || committed[offset] == value,
                    "offset \(offset) of broker \(id) was another record before")
                committed[offset] = value
            }
        }
    }

    private mutating func checkEverything() throws {
        try checkCommitted()
        let now = try world.decided()
        guard let leader = now.leader?.rawValue else { return require(false, "no leader") }
        require(now.isr.count == 3, "in sync are \(now.isr)")
        let log = try world.log(leader)
        require(try world.partition(leader).visibleEnd == log.logEndOffset, "not all is committed")
        let bytes = try world.bytes(leader)
        for id in Self.brokers where id != leader {
            require(try world.log(id).logEndOffset == log.logEndOffset, "log end of \(id)")
            if try world.log(id).logStartOffset == log.logStartOffset {
                require(try world.bytes(id) == bytes, "log of \(id) is not the leader's")
            }
        }
        let values = try values(leader, below: log.logEndOffset)
        require(Set(values.values).count == values.count, "a record twice")
        for (offset, value) in committed.sorted(by: { $0.key < $1.key }) where offset >= log.logStartOffset.rawValue {
            require(values[offset] == value, "committed record \(value) at \(offset) is lost")
        }
    }
}
