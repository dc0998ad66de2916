import Logging
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletReplication
import MartletSimulatorKit
import MartletStorage
import MartletTransport
import NIOCore
import NIOEmbedded
import NIOPosix

@testable import MartletBroker

/// Brokers on one thread whose metadata the test writes and whose fetches it carries: no socket, no controller, and no
/// time but the test's.
final class ReplicaWorld {
    private let folder: String
    private let suspended: SuspendedRules
    let topicID = UniversalID(high: 5, low: 5)
    private(set) var nodes: [Int32: ReplicaNode] = [:]
    /// Of brokers whose machines can lose their power.
    private var disks: [Int32: SimulatedDisk] = [:]
    /// Processes that were killed: nothing of them runs any more, and what they held is never asked again.
    private var graveyard: [ReplicaNode] = []
    /// Brokers that do not hear of new metadata.
    var deaf: Set<Int32> = []
    private var records: [MetadataRecord] = []
    /// Of each broker's registration.
    private(set) var brokerEpochs: [Int32: Int64] = [:]

    /// - Parameter folder: nil keeps everything in memory, and ``crash(_:seed:)`` is possible.
    init(
        folder: String?, brokers: [Int32] = [0, 1], racks: [Int32: String] = [:], suspended: SuspendedRules = []
    ) throws {
        self.folder = folder ?? "/data"
        self.suspended = suspended
        for id in brokers {
            if folder == nil { disks[id] = SimulatedDisk() }
            nodes[id] = try node(id)
        }
        for id in brokers { register(id, rack: racks[id]) }
        try publish()
    }

    private func node(_ id: Int32) throws -> ReplicaNode {
        try ReplicaNode(id, folder: folder + "/\(id)", disk: disks[id].map { AnyDisk($0) } ?? AnyDisk(PosixDisk()),
            suspended: suspended)
    }

    subscript(_ id: Int32) -> ReplicaNode {
        guard let node = nodes[id] else { preconditionFailure("no broker \(id)") }
        return node
    }

    func stop() throws {
        for id in nodes.keys.sorted() { try self[id].stop() }
        nodes = [:]
    }

    /// The process ends, and another begins with the same data directory and a new registration.
    func restart(_ id: Int32) throws {
        try self[id].stop()
        try start(id)
    }

    /// The machine loses its power, and has it again: what was not flushed may be gone.
    func crash(_ id: Int32, seed: UInt64) throws {
        graveyard.append(self[id])
        disks[id] = disks[id]?.crashed(seed: seed)
        try start(id)
    }

    private func start(_ id: Int32) throws {
        let node = try node(id)
        nodes[id] = node
        deaf.remove(id)
        register(id)
        for index in records.indices { try node.replay(records[index], at: index) }
        try publish()
    }

    /// The newest metadata's view of the partition, whoever has heard of it.
    func decided() throws -> PartitionImage {
        var core = ClusterController(localBroker: BrokerID(99), isFollowing: true)
        for index in records.indices { try core.replay(records[index], at: Offset(Int64(index))) }
        guard let partition = core.publish().image.topic(id: topicID)?.partition(PartitionIndex(0)) else {
            throw WireClient.Failure.closed
        }
        return partition
    }

    // MARK: Metadata

    private func register(_ id: Int32, rack: String? = nil) {
        var record = RegisterBrokerRecord()
        record.brokerID = id
        record.brokerEpoch = Int64(100 + records.count)
        record.incarnationID = UniversalID(high: UInt64(id), low: UInt64(records.count))
        var endpoint = RegisterBrokerRecord.BrokerEndpoint()
        endpoint.name = "PLAINTEXT"
        endpoint.host = "broker-\(id)"
        endpoint.port = 9092
        record.endPoints = [endpoint]
        record.rack = rack
        record.fenced = false
        brokerEpochs[id] = record.brokerEpoch
        note(.registerBroker(record))
    }

    private func note(_ record: MetadataRecord) { records.append(record) }

    func publish() throws {
        for id in nodes.keys.sorted() where !deaf.contains(id) { try self[id].catchUp(with: records) }
    }

    func write(_ new: MetadataRecord...) throws {
        for record in new { note(record) }
        try publish()
    }

    func createTopic(
        replicas: [Int32] = [0, 1], isr: [Int32]? = nil, configs: [String: String] = [:], name: String = "t"
    ) throws {
        var topic = TopicRecord()
        topic.name = name
        topic.topicID = topicID
        note(.topic(topic))
        for (key, value) in configs.sorted(by: { $0.key < $1.key }) {
            var config = ConfigRecord()
            config.resourceType = 2
            config.resourceName = name
            config.name = key
            config.value = value
            note(.config(config))
        }
        var partition = PartitionRecord()
        partition.partitionID = 0
        partition.topicID = topicID
        partition.replicas = replicas
        partition.isr = isr ?? replicas
        partition.leader = replicas[0]
        partition.leaderEpoch = 0
        partition.partitionEpoch = 0
        partition.directories = Array(repeating: .zero, count: replicas.count)
        note(.partition(partition))
        try publish()
    }

    func change(leader: Int32? = nil, isr: [Int32]? = nil, replicas: [Int32]? = nil) throws {
        var change = PartitionChangeRecord()
        change.partitionID = 0
        change.topicID = topicID
        if let leader { change.leader = leader }
        change.isr = isr
        change.replicas = replicas
        try write(.partitionChange(change))
    }

    func fence(_ id: Int32, _ isFenced: Bool = true) throws {
        var change = BrokerRegistrationChangeRecord()
        change.brokerID = id
        change.brokerEpoch = brokerEpochs[id] ?? -1
        change.fenced = isFenced ? 1 : -1
        try write(.brokerRegistrationChange(change))
    }

    // MARK: Replication

    var key: PartitionKey { PartitionKey(topicID: topicID, partition: PartitionIndex(0)) }

    func partition(_ id: Int32) throws -> Partition {
        guard let partition = self[id].loop.existingPartition(key) else { throw WireClient.Failure.closed }
        return partition
    }

    func log(_ id: Int32) throws -> PartitionLog<AnyDisk> { try partition(id).openLog.get() }

    /// What a leader said to a follower, on its way.
    struct Carried {
        let partition: Partition
        let sent: ReplicaFetch
        let answer: ReplicaFetchAnswer
        let records: ByteBuffer?
    }

    /// One fetch of one follower; nil if it has nothing to ask now.
    @discardableResult
    func fetch(_ follower: Int32, maxBytes: Int32 = 1 << 20) throws -> ReplicaFetchAnswer? {
        guard let carried = try ask(follower, maxBytes: maxBytes) else { return nil }
        deliver(carried, to: follower)
        return carried.answer
    }

    func ask(_ follower: Int32, maxBytes: Int32 = 1 << 20) throws -> Carried? {
        let partition = try partition(follower)
        guard self[follower].fetchers.followed[key] != nil, let sent = partition.nextReplicaFetch() else { return nil }
        let answer = try self[sent.leader.rawValue].peers.call(request(follower, sent, maxBytes: maxBytes), version: 17)
        guard let data = answer.responses.first?.partitions.first else { throw WireClient.Failure.closed }
        return Carried(partition: partition, sent: sent, answer: Self.meaning(of: data), records: data.records)
    }

    func deliver(_ carried: Carried, to follower: Int32) {
        carried.partition.replicaFetchAnswered(carried.sent, carried.answer, records: carried.records)
        self[follower].run()
    }

    /// Until nothing is news any more.
    func replicate(_ follower: Int32, limit: Int = 20) throws {
        for _ in 0..<limit {
            let before = try partition(follower).replica.snapshot()
            guard case .records? = try fetch(follower) else {
                if try partition(follower).nextReplicaFetch() == nil { return }
                continue
            }
            if try partition(follower).replica.snapshot() == before { return }
        }
    }

    func request(
        _ follower: Int32, _ sent: ReplicaFetch, maxWait: Int32 = 0, maxBytes: Int32 = 1 << 20,
        session: (id: Int32, epoch: Int32) = (0, -1)
    ) throws -> FetchRequest {
        var part = FetchRequest.FetchPartition()
        part.currentLeaderEpoch = sent.leaderEpoch.rawValue
        part.fetchOffset = sent.offset.rawValue
        part.lastFetchedEpoch = sent.lastFetchedEpoch?.rawValue ?? -1
        part.logStartOffset = try partition(follower).followedLogStart.rawValue
        part.partitionMaxBytes = maxBytes
        var topic = FetchRequest.FetchTopic()
        topic.topicID = topicID
        topic.partitions = [part]
        var request = FetchRequest()
        request.replicaState.replicaID = follower
        request.replicaState.replicaEpoch = brokerEpochs[follower] ?? -1
        request.maxWaitMs = maxWait
        request.minBytes = 1
        request.topics = [topic]
        request.sessionID = session.id
        request.sessionEpoch = session.epoch
        return request
    }

    static func meaning(of data: FetchResponse.PartitionData) -> ReplicaFetchAnswer {
        switch ErrorCode(rawValue: data.errorCode) {
        case .none where data.divergingEpoch.epoch >= 0:
            .diverging(
                EpochEnd(
                    epoch: LeaderEpoch(data.divergingEpoch.epoch), endOffset: Offset(data.divergingEpoch.endOffset)))
        case .none:
            .records(highWatermark: Offset(data.highWatermark), logStartOffset: Offset(data.logStartOffset))
        case .offsetOutOfRange: .outOfRange(leaderLogStartOffset: Offset(data.logStartOffset))
        case let code: .refused(code)
        }
    }

    /// The controller answers what is proposed on `id`, and everybody hears of it.
    @discardableResult
    func decide(_ id: Int32) throws -> [Int32]? {
        guard let (proposal, settle) = self[id].proposals.take() else { return nil }
        let members = proposal.members.map(\.broker.rawValue)
        try change(isr: members)
        settle(
            .accepted(
                leaderEpoch: proposal.leaderEpoch, partitionEpoch: PartitionEpoch(proposal.partitionEpoch.rawValue + 1),
                inSyncReplicas: proposal.members.map(\.broker)))
        self[id].run()
        return members
    }

    // MARK: Clients

    static func batch(_ value: String) throws -> ByteBuffer {
        var builder = RecordBatchBuilder()
        try builder.append(key: nil, value: ByteBuffer(string: value), timestamp: 1_700_000_000_000)
        return try builder.build()
    }

    func produceRequest(_ value: String, acks: Int16 = -1) throws -> ProduceRequest {
        var data = ProduceRequest.PartitionProduceData()
        data.index = 0
        data.records = try Self.batch(value)
        var topic = ProduceRequest.TopicProduceData()
        topic.topicID = topicID
        topic.partitionData = [data]
        var request = ProduceRequest()
        request.acks = acks
        request.timeoutMs = 10_000
        request.topicData = [topic]
        return request
    }

    @discardableResult
    func produce(_ value: String, to id: Int32, acks: Int16 = 1) throws -> ProduceResponse {
        try self[id].wire.call(try produceRequest(value, acks: acks), version: 13)
    }

    func consume(
        _ id: Int32, from offset: Int64, rack: String = "", version: Int16 = 17
    ) throws -> FetchResponse.PartitionData {
        var part = FetchRequest.FetchPartition()
        part.fetchOffset = offset
        part.partitionMaxBytes = 1 << 20
        var topic = FetchRequest.FetchTopic()
        if version >= 13 { topic.topicID = topicID } else { topic.topic = "t" }
        topic.partitions = [part]
        var request = FetchRequest()
        request.minBytes = 1
        request.topics = [topic]
        request.rackID = rack
        let answer = try self[id].wire.call(request, version: version)
        guard let data = answer.responses.first?.partitions.first else { throw WireClient.Failure.closed }
        return data
    }

    func listOffsets(_ id: Int32, _ timestamp: Int64 = -1) throws -> (error: Int16, offset: Int64) {
        var part = ListOffsetsRequest.ListOffsetsPartition()
        part.timestamp = timestamp
        var topic = ListOffsetsRequest.ListOffsetsTopic()
        topic.name = "t"
        topic.partitions = [part]
        var request = ListOffsetsRequest()
        request.topics = [topic]
        let answer = try self[id].wire.call(request, version: 8)
        guard let found = answer.topics.first?.partitions.first else { throw WireClient.Failure.closed }
        return (found.errorCode, found.offset)
    }

    /// All that a broker's log holds, byte by byte.
    func bytes(_ id: Int32) throws -> ByteBuffer {
        let log = try log(id)
        var all = ByteBuffer()
        var next = log.logStartOffset
        while next < log.writtenEndOffset {
            let region = try log.locate(from: next, upTo: log.writtenEndOffset, maxBytes: 1 << 20, minOneBatch: true)
            _ = try region.read(into: &all, nonBlocking: false)
            next = region.nextOffset
        }
        return all
    }
}

/// One broker of a ``ReplicaWorld``.
final class ReplicaNode {
    let id: Int32
    let eventLoop = EmbeddedEventLoop()
    let flushes = DelayedQueue()
    let works = DelayedQueue()
    let fetchers = CarriedFetches()
    let proposals = KeptProposals()
    let assembly: BrokerAssembly
    private var core: ClusterController
    private var replayedCount = 0
    private(set) lazy var wire = ReplicaWire(self)
    private(set) lazy var peers = ReplicaWire(self)

    var loop: BrokerLoop { assembly.loops[0] }

    init(_ id: Int32, folder: String, disk: AnyDisk, suspended: SuspendedRules) throws {
        self.id = id
        var settings = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder)
        settings.reserveBytes = 0
        try settings.set("node.id", "\(id)", origin: "test")
        let surroundings = Surroundings(
            disk: disk, flushPool: flushes, workPool: works, clock: .machine, random: .system,
            suspended: suspended)
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        assembly = try BrokerAssembly.open(
            settings, surroundings: surroundings, eventLoops: [eventLoop], logger: logger)
        core = ClusterController(localBroker: BrokerID(id), isFollowing: true)
        loop.install(fetchers: fetchers, proposals: proposals)
    }

    func replay(_ record: MetadataRecord, at index: Int) throws {
        try core.replay(record, at: Offset(Int64(index)))
        replayedCount = index + 1
    }

    func catchUp(with records: [MetadataRecord]) throws {
        for index in replayedCount..<max(replayedCount, records.count) { try replay(records[index], at: index) }
        let (image, delta) = core.publish()
        loop.apply(image, deletedTopics: delta.deletedTopics.map(\.name), delta: delta)
        run()
    }

    func run() { eventLoop.run() }

    func stop() throws {
        flushes.isHeld = false
        works.isHeld = false
        let closing = loop.closePartitions(clean: true)
        run()
        try closing.wait()
        loop.closeConnections()
        let controller = assembly.services.controller.close()
        run()
        try controller.wait()
        try assembly.services.directory.close(clean: true)
        assembly.dismantle()
    }
}

/// A connection to one broker.
final class ReplicaWire {
    private unowned let node: ReplicaNode
    private let channel: EmbeddedChannel
    private var answers = ByteBuffer()
    private var nextCorrelationID: Int32 = 0

    init(_ node: ReplicaNode) {
        self.node = node
        guard let connection = node.assembly.makeConnection(on: node.eventLoop) else {
            preconditionFailure("no connection")
        }
        channel = EmbeddedChannel(handler: connection, loop: node.eventLoop)
        do {
            try channel.connect(to: SocketAddress(ipAddress: "127.0.0.1", port: 1)).wait()
        } catch {
            preconditionFailure("\(error)")
        }
        node.run()
    }

    func send<Request: KafkaRequest>(_ request: Request, version: Int16) throws {
        nextCorrelationID += 1
        try channel.writeInbound(WireClient.frame(request, version: version, correlationID: nextCorrelationID))
        node.run()
    }

    /// The next answer, if it has come.
    func read<Request: KafkaRequest>(_: Request.Type, version: Int16) throws -> Request.Response? {
        node.run()
        while case .byteBuffer(var part)? = try channel.readOutbound(as: IOData.self) { answers.writeBuffer(&part) }
        guard let length = answers.readInteger(as: Int32.self), let body = answers.readSlice(length: Int(length)) else {
            return nil
        }
        var reader = ProtocolReader(body)
        _ = try ResponseHeader(reading: &reader, apiKey: Request.Response.apiKey, version: version)
        return try Request.Response(reading: &reader, version: version)
    }

    func call<Request: KafkaRequest>(_ request: Request, version: Int16) throws -> Request.Response {
        try send(request, version: version)
        guard let answer = try read(Request.self, version: version) else { throw WireClient.Failure.closed }
        return answer
    }
}

/// Work that is done at once, or when the test says so.
// SAFETY: everything in these tests happens on one thread.
final class DelayedQueue: WorkQueue, @unchecked Sendable {
    var isHeld = false {
        didSet { if !isHeld { release() } }
    }
    private var held: [@Sendable (NIOThreadPool.WorkItemState) -> Void] = []

    func submit(_ body: @escaping @Sendable (NIOThreadPool.WorkItemState) -> Void) {
        if isHeld { held.append(body) } else { body(.active) }
    }

    private func release() {
        let bodies = held
        held = []
        for body in bodies { body(.active) }
    }
}

final class CarriedFetches: ReplicaFetching {
    private(set) var followed: [PartitionKey: (leader: BrokerID, address: BrokerSettings.Address?)] = [:]
    private(set) var wakeCount = 0

    func follow(_ partition: any FollowedPartition, leader: BrokerID, at address: BrokerSettings.Address?) {
        followed[partition.followedID] = (leader, address)
    }

    func unfollow(_ id: PartitionKey) { followed[id] = nil }
    func leaderMoved(_ leader: BrokerID, to address: BrokerSettings.Address) {}
    func wake(_ id: PartitionKey) { wakeCount += 1 }
    func close() { followed = [:] }
}

// SAFETY: everything in these tests happens on one thread.
final class KeptProposals: InSyncProposing, @unchecked Sendable {
    private(set) var waiting: [(proposal: InSyncProposal, settle: @Sendable (InSyncProposalOutcome) -> Void)] = []

    func propose(
        _ proposal: InSyncProposal, of id: PartitionKey, settle: @escaping @Sendable (InSyncProposalOutcome) -> Void
    ) {
        waiting.append((proposal, settle))
    }

    func take() -> (proposal: InSyncProposal, settle: @Sendable (InSyncProposalOutcome) -> Void)? {
        waiting.isEmpty ? nil : waiting.removeFirst()
    }
}
