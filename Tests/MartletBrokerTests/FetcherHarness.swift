import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTransport
import NIOCore
import NIOPosix

@testable import MartletBroker
@testable import MartletReplication

/// A followed partition that does what it is told at once: writes records, cuts, restarts.
// SAFETY: touched on its fetchers' loop alone.
final class ObedientPartition: FollowedPartition, @unchecked Sendable {
    struct Heard: Equatable, Sendable {
        var sent: ReplicaFetch
        var answer: ReplicaFetchAnswer
        var recordBytes: Int
    }

    let followedID: PartitionKey
    var followedLogStart = Offset.zero
    /// What it asks next.
    var fetch: ReplicaFetch
    /// It has something to ask.
    var isReady = true
    /// Records make it silent until the test makes it ready: its flush takes time.
    var isSilentAfterRecords = false
    /// Records change nothing, as on a full disk.
    var takesNothing = false
    private(set) var heard: [Heard] = []
    private var waiters: [(count: Int, promise: EventLoopPromise<Void>)] = []

    init(_ key: PartitionKey, leader: BrokerID = BrokerID(1), epoch: Int32 = 3, offset: Int64 = 0, last: Int32? = nil) {
        followedID = key
        fetch = ReplicaFetch(
            leader: leader, leaderEpoch: LeaderEpoch(epoch), offset: Offset(offset),
            lastFetchedEpoch: last.map { LeaderEpoch($0) })
    }

    func nextReplicaFetch() -> ReplicaFetch? { isReady ? fetch : nil }

    func replicaFetchAnswered(_ sent: ReplicaFetch, _ answer: ReplicaFetchAnswer, records: ByteBuffer?) {
        heard.append(Heard(sent: sent, answer: answer, recordBytes: records?.readableBytes ?? 0))
        fetch.state += 1
        switch answer {
        case .records:
            if let records, !takesNothing { append(records) }
            if records != nil, isSilentAfterRecords { isReady = false }
        case .diverging(let end):
            fetch.offset = min(end.endOffset, fetch.offset)
            fetch.lastFetchedEpoch = end.epoch
        case .outOfRange(let start):
            fetch.offset = start
            fetch.lastFetchedEpoch = nil
        case .refused: break
        }
        let due = waiters.filter { $0.count <= heard.count }
        waiters.removeAll { $0.count <= heard.count }
        for waiter in due { waiter.promise.succeed() }
    }

    private func append(_ records: ByteBuffer) {
        var rest = records
        while rest.readableBytes > 0 {
            do {
                let header = try RecordBatchHeader(reading: rest)
                rest.moveReaderIndex(forwardBy: header.totalByteCount)
                fetch.offset = Offset(header.lastOffset + 1)
                fetch.lastFetchedEpoch = LeaderEpoch(header.partitionLeaderEpoch)
            } catch {
                preconditionFailure("not whole batches: \(error)")
            }
        }
    }

    func whenHeard(_ count: Int, on loop: any EventLoop) -> EventLoopFuture<Void> {
        if heard.count >= count { return loop.makeSucceededVoidFuture() }
        let promise = loop.makePromise(of: Void.self)
        waiters.append((count, promise))
        let late = loop.scheduleTask(in: .seconds(15)) { promise.fail(FakeLeader.NothingCame(what: "answer \(count)")) }
        promise.futureResult.whenComplete { _ in late.cancel() }
        return promise.futureResult
    }
}

/// Connections over the loopback interface, the first of them refused on demand.
// SAFETY: touched on the fetchers' loop alone.
final class LoopbackPeers: PeerNetwork, @unchecked Sendable {
    var refusals = 0
    var attempts: [NIODeadline] = []
    /// Tells of connections when they are released.
    var holdsConnections = false
    private(set) var held: [() -> Void] = []

    func release() {
        for tell in held { tell() }
        held = []
    }

    func connect(
        to address: BrokerSettings.Address, on loop: any EventLoop, settings: ClientConnection.Settings,
        completion: @escaping (Result<ClientConnection, ClientConnectionError>) -> Void
    ) {
        attempts.append(.now())
        if refusals > 0 {
            refusals -= 1
            completion(.failure(.connectFailed(ChannelError.connectTimeout(.zero))))
            return
        }
        ClientConnection.connect(host: address.host, port: address.port, loop: loop, settings: settings) { result in
            if self.holdsConnections { self.held.append { completion(result) } } else { completion(result) }
        }
    }
}

/// The fetchers of one loop, driven from a test.
// SAFETY: everything is touched on `loop` alone.
final class FetcherHarness: @unchecked Sendable {
    static let cluster = "martlet-cluster"
    static let nodeID = BrokerID(2)

    let loop = MultiThreadedEventLoopGroup.singleton.next()
    let peers = LoopbackPeers()
    var brokerEpoch: Int64 = 40
    private(set) var fetchers: ReplicaFetchers!

    /// Pauses are long enough to be measured, and short.
    static var settings: ReplicaFetcher.Settings {
        var settings = ReplicaFetcher.Settings()
        settings.refusalPause = .milliseconds(120)
        settings.firstReconnectPause = .milliseconds(40)
        settings.lastReconnectPause = .milliseconds(80)
        return settings
    }

    init(_ settings: ReplicaFetcher.Settings = FetcherHarness.settings, logger: Logger? = nil) async throws {
        var quiet = Logger(label: "test")
        quiet.logLevel = .critical
        let chosen = logger ?? quiet
        try await run { harness in
            harness.fetchers = ReplicaFetchers(
                eventLoop: harness.loop, nodeID: Self.nodeID, peers: harness.peers, logger: chosen,
                brokerEpoch: { harness.brokerEpoch }, clusterID: Self.cluster, random: .system, settings: settings)
        }
    }

    @discardableResult
    func run<Value: Sendable>(_ body: @escaping @Sendable (FetcherHarness) throws -> Value) async throws -> Value {
        try await loop.submit { try body(self) }.get()
    }

    func follow(_ partitions: ObedientPartition..., at leader: FakeLeader?, leader id: Int32 = 1) async throws {
        try await run { harness in
            for partition in partitions {
                harness.fetchers.follow(partition, leader: BrokerID(id), at: leader?.address)
            }
        }
    }

    /// All that the partition heard, once it is at least so much.
    func heard(_ partition: ObedientPartition, _ count: Int) async throws -> [ObedientPartition.Heard] {
        try await loop.flatSubmit { partition.whenHeard(count, on: self.loop) }.get()
        return try await run { _ in partition.heard }
    }

    func close() async throws { try await run { $0.fetchers.close() } }
}

/// Runs `body` with a leader and the fetchers of a loop, and ends both whatever happens.
func withFetchers(
    _ settings: ReplicaFetcher.Settings = FetcherHarness.settings, versions: ClosedRange<Int16> = 4...18,
    logger: Logger? = nil, _ body: (FetcherHarness, FakeLeader) async throws -> Void
) async throws {
    let leader = try await FakeLeader.start(versions: versions)
    let harness = try await FetcherHarness(settings, logger: logger)
    do {
        try await body(harness, leader)
    } catch {
        try await harness.close()
        try await leader.stop()
        throw error
    }
    try await harness.close()
    try await leader.stop()
}

func followedKey(_ topic: UInt64, _ partition: Int32 = 0) -> PartitionKey {
    PartitionKey(topicID: UniversalID(high: 9, low: topic), partition: PartitionIndex(partition))
}
