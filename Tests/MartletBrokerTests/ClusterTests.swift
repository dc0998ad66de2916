import Glibc
import Logging
import MartletBroker
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import NIOPosix
import Testing

/// Nodes of one cluster in this process, over sockets of the loopback.
final class TestCluster {
    static let clusterID = "MkU3OEVBNTcwNTJENDM2Qg"

    struct TimedOut: Error, CustomStringConvertible {
        var description: String
    }

    let folder: String
    private let voters: [Int32: Int]
    private let snapshotInterval: Int64
    private(set) var brokers: [Int32: Broker] = [:]

    init(_ ids: [Int32], folder: String, snapshotInterval: Int64 = 50_000) throws {
        self.folder = folder
        self.snapshotInterval = snapshotInterval
        voters = try Dictionary(uniqueKeysWithValues: zip(ids, Self.freePorts(ids.count)))
    }

    static func freePorts(_ count: Int) throws -> [Int] {
        let group = MultiThreadedEventLoopGroup.singleton
        let channels = try (0..<count).map { _ in
            try ServerBootstrap(group: group).bind(host: "127.0.0.1", port: 0).wait()
        }
        let ports = channels.compactMap { $0.localAddress?.port }
        for channel in channels { try channel.close().wait() }
        return ports
    }

    func port(_ id: Int32) -> Int { voters[id] ?? 0 }
    func dataDirectory(_ id: Int32) -> String { "\(folder)/\(id)" }

    /// - Parameter only: the voters that it is told; `nil` for all.
    func settings(
        _ id: Int32, _ beginning: BrokerSettings.Beginning = .newCluster, voters only: [Int32]? = nil
    ) throws -> BrokerSettings {
        let address = BrokerSettings.Address(host: "127.0.0.1", port: port(id))
        var settings = BrokerSettings(listen: address, dataDirectory: dataDirectory(id))
        settings.reserveBytes = 0
        settings.eventLoopCount = 2
        settings.recordsPerMetadataSnapshot = snapshotInterval
        settings.beginning = beginning
        try settings.set("node.id", "\(id)", origin: "test")
        try settings.set("advertised.listeners", "\(address)", origin: "test")
        try settings.setClusterID(Self.clusterID, origin: "test")
        let told = voters.filter { only?.contains($0.key) ?? true }.sorted { $0.key < $1.key }
        if !told.isEmpty {
            try settings.setVoters(
                told.map { "\($0.key)@127.0.0.1:\($0.value)" }.joined(separator: ","), origin: "test")
        }
        return settings
    }

    func start(
        _ id: Int32, _ beginning: BrokerSettings.Beginning = .newCluster, voters only: [Int32]? = nil
    ) async throws {
        var logger = Logger(label: "node \(id)")
        logger.logLevel = .error
        brokers[id] = try await Broker.start(try settings(id, beginning, voters: only), logger: logger)
    }

    func startAll() async throws { for id in voters.keys.sorted() { try await start(id) } }

    func stop(_ id: Int32) async { await brokers.removeValue(forKey: id)?.shutDown() }

    func stopAll() async { for id in brokers.keys.sorted() { await stop(id) } }

    func wipe(_ id: Int32) throws { try removeFolder(dataDirectory(id)) }

    /// Asks again until the answer satisfies; a broker that does not serve yet closes the connection.
    func ask<Request: KafkaRequest>(
        _ id: Int32, _ request: Request, version: Int16? = nil, until isWanted: (Request.Response) -> Bool,
        _ what: String = ""
    ) async throws -> Request.Response {
        let deadline = NIODeadline.now() + .seconds(30)
        var last: Request.Response?
        while NIODeadline.now() < deadline {
            do {
                let response = try WireClient(port: port(id)).call(request, version: version)
                if isWanted(response) { return response }
                last = response
            } catch is WireClient.Failure {
                // Not there, or not yet.
            }
            try await pause()
        }
        throw TimedOut(description: "node \(id): \(what) \(last.map { "\($0)" } ?? "no answer")")
    }

    /// Before the next try.
    func pause() async throws {
        try await MultiThreadedEventLoopGroup.singleton.any().scheduleTask(in: .milliseconds(20)) {}.futureResult.get()
    }

    func metadata(_ id: Int32, until isWanted: (MetadataResponse) -> Bool, _ what: String = "") async throws -> MetadataResponse {
        try await ask(id, MetadataRequest(topics: nil), until: isWanted, what)
    }

    /// All nodes say the same of the cluster.
    func whenWhole(_ ids: [Int32]) async throws {
        for id in ids {
            _ = try await metadata(
                id, until: { $0.brokers.map(\.nodeID) == ids && ids.contains($0.controllerID) }, "brokers \(ids)")
        }
    }

    func topics(_ response: MetadataResponse) -> [String] { response.topics.compactMap(\.name).sorted() }

    func expectTopics(_ names: [String], on ids: [Int32]) async throws {
        for id in ids { _ = try await metadata(id, until: { self.topics($0) == names.sorted() }, "topics \(names)") }
    }

    func controller(_ id: Int32) async throws -> Int32 { try await metadata(id, until: { $0.controllerID >= 0 }).controllerID }

    @discardableResult
    func createTopic(
        _ name: String, through id: Int32, partitions: Int32 = 1, replicas: Int16 = 1, configs: [String: String] = [:]
    ) throws -> Int16 {
        let request = CreateTopicsRequest(name, partitions: partitions, replicas: replicas, configs: configs)
        return try WireClient(port: port(id)).call(request).topics.first?.errorCode ?? -1
    }
}

func withCluster(
    _ ids: [Int32], snapshotInterval: Int64 = 50_000, _ body: (TestCluster) async throws -> Void
) async throws {
    try await withTemporaryFolder { folder in
        let cluster = try TestCluster(ids, folder: folder, snapshotInterval: snapshotInterval)
        do {
            try await cluster.startAll()
            try await cluster.whenWhole(ids)
            try await body(cluster)
        } catch {
            await cluster.stopAll()
            throw error
        }
        await cluster.stopAll()
    }
}

@Suite(.serialized, .timeLimit(.minutes(3))) struct `Several brokers` {
    @Test func `elect a controller, and see what is created through any of them`() async throws {
        try await withCluster([1, 2, 3]) { cluster in
            for id in [1, 2, 3] as [Int32] {
                #expect(try cluster.createTopic("t\(id)", through: id) == 0)
                // Whoever answered knows it already.
                let known = try WireClient(port: cluster.port(id)).call(MetadataRequest(topics: nil))
                #expect(cluster.topics(known).contains("t\(id)"))
            }
            try await cluster.expectTopics(["t1", "t2", "t3"], on: [1, 2, 3])
            #expect(try cluster.createTopic("t1", through: 2) == ErrorCode.topicAlreadyExists.rawValue)
            let names = DeleteTopicsRequest.DeleteTopicState(name: "t1")
            var deletion = DeleteTopicsRequest()
            deletion.topics = [names]
            deletion.timeoutMs = 10_000
            #expect(try WireClient(port: cluster.port(3)).call(deletion).responses.map(\.errorCode) == [0])
            try await cluster.expectTopics(["t2", "t3"], on: [1, 2, 3])
        }
    }

    @Test func `describe the quorum through any of them, with the voters' disks in the log`() async throws {
        try await withCluster([1, 2, 3]) { cluster in
            for id in [1, 2, 3] as [Int32] {
                let answer = try await cluster.ask(
                    id, QuorumRequests.describe,
                    until: { $0.topics.first?.partitions.first?.currentVoters.allSatisfy { $0.logEndOffset >= 0 } ?? false })
                let partition = try #require(answer.topics.first?.partitions.first)
                #expect(partition.currentVoters.map(\.replicaID) == [1, 2, 3])
                #expect(partition.leaderID > 0)
                #expect(answer.nodes.count == 3)
            }
            _ = try await cluster.ask(
                1, QuorumRequests.describe,
                until: { $0.topics.first?.partitions.first?.currentVoters.allSatisfy { $0.replicaDirectoryID != .zero } ?? false })
        }
    }

    @Test func `go on when the controller stops, and it catches up when it comes back`() async throws {
        try await withCluster([1, 2, 3]) { cluster in
            let first = try await cluster.controller(1)
            #expect(try cluster.createTopic("before", through: first) == 0)
            await cluster.stop(first)
            let others = ([1, 2, 3] as [Int32]).filter { $0 != first }
            for id in others {
                _ = try await cluster.metadata(id, until: { others.contains($0.controllerID) }, "another controller")
            }
            #expect(try cluster.createTopic("meanwhile", through: others[0]) == 0)
            try await cluster.expectTopics(["before", "meanwhile"], on: others)
            try await cluster.start(first)
            try await cluster.whenWhole([1, 2, 3])
            try await cluster.expectTopics(["before", "meanwhile"], on: [first])
        }
    }

    @Test func `have their metadata after a restart of all`() async throws {
        try await withCluster([1, 2, 3]) { cluster in
            #expect(try cluster.createTopic("kept", through: 2, partitions: 5) == 0)
            for _ in 0..<2 {
                await cluster.stopAll()
                try await cluster.startAll()
                try await cluster.whenWhole([1, 2, 3])
                try await cluster.expectTopics(["kept"], on: [1, 2, 3])
            }
        }
    }

    @Test func `give a snapshot to one that comes back with an empty disk`() async throws {
        try await withCluster([1, 2, 3], snapshotInterval: 100) { cluster in
            let lost = try await cluster.controller(1) == 3 ? 2 : 3 as Int32
            // More records than a snapshot may be behind, several times.
            let names = (0..<12).map { "t\($0)" }
            for name in names { #expect(try cluster.createTopic(name, through: 1, partitions: 40) == 0) }
            #expect(try cluster.createTopic("small", through: 1) == 0)
            await cluster.stop(lost)
            try cluster.wipe(lost)
            try await cluster.start(lost, .join)
            try await cluster.whenWhole([1, 2, 3])
            try await cluster.expectTopics(names + ["small"], on: [lost])
            let files = try folderContents(cluster.dataDirectory(lost) + "/__cluster_metadata-0")
            #expect(files.contains { $0.hasSuffix(".checkpoint") }, "\(files)")
            #expect(!files.contains { $0.hasSuffix(".part") }, "\(files)")
        }
    }

    @Test func `grow out of one that stood alone`() async throws {
        try await withTemporaryFolder { folder in
            let cluster = try TestCluster([1, 2, 3], folder: folder)
            do {
                try await cluster.start(1, .unspecified, voters: [])
                #expect(try cluster.createTopic("old", through: 1) == 0)
                for id in [2, 3] as [Int32] {
                    try await cluster.start(id, .join, voters: [1])
                    let members = Array(1...id)
                    try await cluster.whenWhole(members)
                    let state = try await cluster.ask(
                        id, QuorumRequests.describe,
                        until: { $0.topics.first?.partitions.first?.observers.contains { $0.replicaID == id } ?? false })
                    let observer = try #require(state.topics.first?.partitions.first?.observers.first { $0.replicaID == id })
                    var addition = AddRaftVoterRequest()
                    addition.clusterID = TestCluster.clusterID
                    addition.timeoutMs = 10_000
                    addition.voterID = id
                    addition.voterDirectoryID = observer.replicaDirectoryID
                    var listener = AddRaftVoterRequest.Listener()
                    listener.name = "CONTROLLER"
                    listener.host = "127.0.0.1"
                    listener.port = UInt16(cluster.port(id))
                    addition.listeners = [listener]
                    let answer = try await cluster.ask(id, addition, until: { $0.errorCode == 0 || $0.errorCode == 126 })
                    #expect(answer.errorCode == 0 || answer.errorMessage?.contains("already") == true)
                }
                try await cluster.expectTopics(["old"], on: [1, 2, 3])
                // The one that was alone is not needed any more.
                await cluster.stop(1)
                _ = try await cluster.metadata(2, until: { [2, 3].contains($0.controllerID) }, "another controller")
                #expect(try cluster.createTopic("new", through: 3) == 0)
                try await cluster.start(1, .unspecified, voters: [])
                try await cluster.whenWhole([1, 2, 3])
                try await cluster.expectTopics(["new", "old"], on: [1, 2, 3])
            } catch {
                await cluster.stopAll()
                throw error
            }
            await cluster.stopAll()
        }
    }

    @Test func `leave one alone that is its own quorum`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port, clientID: "martlet-broker-7")
            let before = try client.call(QuorumRequests.describe).topics[0].partitions[0]
            var partition = VoteRequest.PartitionData()
            partition.replicaEpoch = .max
            partition.replicaID = 7
            partition.lastOffset = .max
            partition.lastOffsetEpoch = .max
            var topic = VoteRequest.TopicData()
            topic.topicName = TopicName.clusterMetadata
            topic.partitions = [partition]
            var vote = VoteRequest()
            vote.clusterID = broker.clusterID
            vote.topics = [topic]
            let answer = try #require(try client.call(vote).topics.first?.partitions.first)
            #expect(answer.errorCode == ErrorCode.invalidVoterKey.rawValue && !answer.voteGranted)
            vote.clusterID = TestCluster.clusterID
            #expect(try client.call(vote).errorCode == ErrorCode.inconsistentClusterID.rawValue)
            #expect(try client.createTopic("t") != .zero)
            let after = try client.call(QuorumRequests.describe).topics[0].partitions[0]
            #expect(after.leaderEpoch == before.leaderEpoch && after.leaderID == before.leaderID)
        }
    }

    @Test func `refuse what is not theirs, with cause and remedy`() async throws {
        try await withTemporaryFolder { folder in
            let cluster = try TestCluster([1, 2, 3], folder: folder)
            func refusal(_ settings: BrokerSettings) async -> String {
                do {
                    let broker = try await Broker.start(settings, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
                    await broker.shutDown()
                    return "it started"
                } catch {
                    return "\(error)"
                }
            }
            let unspecified = await refusal(try cluster.settings(1, .unspecified))
            #expect(unspecified.contains("--new-cluster") && unspecified.contains("--join"), "\(unspecified)")
            try await cluster.start(1)
            let used = await refusal(try cluster.settings(1))
            #expect(used.contains("in use by another process"), "\(used)")
            await cluster.stop(1)
            var other = try cluster.settings(1)
            try other.setClusterID("AAAAAAAAAAAAAAAAAAAAAQ", origin: "test")
            let wrongCluster = await refusal(other)
            #expect(wrongCluster.contains("belongs to cluster \(TestCluster.clusterID)"), "\(wrongCluster)")
            var node = try cluster.settings(2)
            node.dataDirectory = cluster.dataDirectory(1)
            let wrongNode = await refusal(node)
            #expect(wrongNode.contains("belongs to node 1, not 2"), "\(wrongNode)")
            var alone = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: cluster.dataDirectory(1))
            try alone.set("node.id", "1", origin: "test")
            let withoutVoters = await refusal(alone)
            #expect(withoutVoters.contains("give --voters"), "\(withoutVoters)")
        }
    }

    @Test func `are told apart by settings that make sense`() throws {
        var settings = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: "/nowhere")
        for text in ["", "1", "a@b:1", "1@h:1,1@h:2", "1@h:1,2@h:1", "1@0.0.0.0:9092", "-1@h:1", "1@h:0"] {
            #expect(throws: SettingsError.self, "\(text)") { try settings.setVoters(text, origin: "test") }
        }
        #expect(throws: SettingsError.self) { try settings.setClusterID("x", origin: "test") }
        try settings.setVoters("2@h:2,1@h:1", origin: "test")
        #expect(settings.voters.map(\.nodeID) == [1, 2])
        #expect(throws: SettingsError.self) { try settings.check() }
        try settings.set("node.id", "1", origin: "test")
        #expect(throws: SettingsError.self) { try settings.check() }
        try settings.set("advertised.listeners", "0.0.0.0:9092", origin: "test")
        #expect(throws: SettingsError.self) { try settings.check() }
        try settings.set("advertised.listeners", "h:1", origin: "test")
        try settings.check()
    }
}

enum QuorumRequests {
    static var describe: DescribeQuorumRequest {
        var partition = DescribeQuorumRequest.PartitionData()
        partition.partitionIndex = 0
        var topic = DescribeQuorumRequest.TopicData()
        topic.topicName = TopicName.clusterMetadata
        topic.partitions = [partition]
        var request = DescribeQuorumRequest()
        request.topics = [topic]
        return request
    }
}

extension DeleteTopicsRequest.DeleteTopicState {
    init(name: String) {
        self.init()
        self.name = name
    }
}

private func folderContents(_ path: String) throws -> [String] {
    guard let folder = opendir(path) else { throw TestCluster.TimedOut(description: "\(path) cannot be read") }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
        names.append(
            withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
    }
    return names.filter { $0 != "." && $0 != ".." }
}

private func removeFolder(_ path: String) throws {
    for name in try folderContents(path) {
        let child = path + "/" + name
        if unlink(child) != 0 { try removeFolder(child) }
    }
    rmdir(path)
}
