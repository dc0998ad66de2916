import Logging
import MartletBroker
import MartletLogModel
import MartletTestSupport
import NIOCore

@testable import MartletClient

/// A broker of this package behind a ``Proxy``, which can be stopped and started again on the same data.
final class ProxiedBroker {
    let proxy: Proxy
    private let folder = TemporaryFolder()
    private let settings: [String: String]
    private var broker: Broker?

    private init(_ proxy: Proxy, _ settings: [String: String]) {
        self.proxy = proxy
        self.settings = settings
    }

    /// Runs `body` and stops everything after it. `settings` are of the broker.
    static func run(
        _ settings: [String: String] = [:], _ body: (ProxiedBroker) async throws -> Void
    ) async throws {
        let broker = ProxiedBroker(try await Proxy.start(), settings)
        let outcome: Result<Void, any Error>
        do {
            try await broker.start()
            try await body(broker)
            outcome = .success(())
        } catch {
            outcome = .failure(error)
        }
        await broker.stop()
        try await broker.proxy.stop()
        broker.folder.remove()
        try outcome.get()
    }

    var bootstrap: String { proxy.bootstrap }

    func start() async throws {
        var settings = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder.path)
        settings.reserveBytes = 0
        let usual = [
            ("auto.create.topics.enable", "false"), ("group.initial.rebalance.delay.ms", "0"),
            ("group.consumer.heartbeat.interval.ms", "50"),
            ("group.share.heartbeat.interval.ms", "50"), ("group.share.min.heartbeat.interval.ms", "50"),
            ("advertised.listeners", "PLAINTEXT://127.0.0.1:\(proxy.port)"),
        ]
        for (key, value) in usual + self.settings.sorted(by: { $0.key < $1.key }) {
            try settings.set(key, value, origin: "test")
        }
        let broker = try await Broker.start(
            settings, logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        self.broker = broker
        proxy.setUpstream(broker.address.port)
    }

    func stop() async {
        proxy.setUpstream(nil)
        await broker?.shutDown()
        broker = nil
    }

    /// Clients' settings with short pauses.
    func client() throws -> ClientConfiguration {
        var client = try ClientConfiguration(bootstrap: bootstrap)
        client.retryBackoff = .milliseconds(5)
        client.reconnectBackoff = .milliseconds(5)
        client.operationTimeout = .seconds(30)
        return client
    }

    func topic(_ name: String, _ partitionCount: Int32 = 1) async throws {
        let admin = try admin()
        try await admin.createTopic(TopicSpecification(name: name, partitionCount: Int(partitionCount)))
        await admin.close()
    }

    func admin() throws -> Admin { try Admin(client()) }

    func producer(
        _ transactionalID: String? = "copier", _ change: (inout ProducerConfiguration) -> Void = { _ in }
    ) throws -> Producer {
        var configuration = ProducerConfiguration(try client())
        configuration.transactionalID = transactionalID
        change(&configuration)
        return try Producer(configuration)
    }

    func consumer(
        _ group: String? = nil, _ change: (inout ConsumerConfiguration) -> Void = { _ in }
    ) throws -> Consumer {
        var configuration = ConsumerConfiguration(try client(), groupID: group)
        configuration.offsetReset = .earliest
        configuration.heartbeatInterval = .milliseconds(50)
        configuration.isolation = .readCommitted
        configuration.isAutoCommitEnabled = false
        change(&configuration)
        return try Consumer(configuration)
    }

    func shareConsumer(
        _ group: String = "g", _ change: (inout ShareConsumerConfiguration) -> Void = { _ in }
    ) throws -> ShareConsumer {
        var configuration = ShareConsumerConfiguration(try client(), groupID: group)
        configuration.fetchMaximumWait = .milliseconds(50)
        change(&configuration)
        return try ShareConsumer(configuration)
    }

    /// All values of a topic up to its present end, per partition, as consumers with this isolation see them. A commit
    /// is answered before its markers are in the partitions, so readers of committed records may have to wait for
    /// them; if nothing comes for two seconds, a transaction is open and what is there before it is the answer.
    func values(
        of topic: String, _ partitionCount: Int32 = 1, _ isolation: IsolationLevel = .readCommitted
    ) async throws -> [[String]] {
        let consumer = try consumer { $0.isolation = isolation }
        let partitions = (0..<partitionCount).map { TopicPartition(topic, $0) }
        try await consumer.assign(Dictionary(uniqueKeysWithValues: partitions.map { ($0, .earliest) }))
        let admin = try admin()
        let ends = try await admin.listOffsets(
            Dictionary(uniqueKeysWithValues: partitions.map { ($0, OffsetSpec.latest) }), isolation: .readUncommitted)
        await admin.close()
        var values = Dictionary(uniqueKeysWithValues: partitions.map { ($0, [String]()) })
        func positions() -> [Offset] { partitions.map { consumer.position(of: $0) ?? Offset(0) } }
        var before = positions()
        var idlePolls = 0
        while try zip(partitions, before).contains(where: { try $1 < ends[$0]?.get()?.offset ?? Offset(0) }),
            idlePolls < 100
        {
            for record in try await consumer.poll(timeout: .milliseconds(20)) {
                values[record.topicPartition]?.append(record.valueString ?? "")
            }
            let now = positions()
            idlePolls = now == before ? idlePolls + 1 : 0
            before = now
        }
        try await consumer.close()
        return partitions.map { values[$0] ?? [] }
    }
}
