public import Logging
internal import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import MartletTransport
internal import NIOCore
internal import NIOPosix

/// Why a broker did not start.
public struct BrokerStartError: Error, Sendable, CustomStringConvertible {
    public var description: String

    package init(_ description: String) { self.description = description }
}

/// A running broker: listener, event loops, partitions, controller. What `martletd` runs, and what a program
/// embeds that wants a broker of its own, for example in tests.
///
/// ```swift
/// let broker = try await Broker.start(BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: path))
/// print(broker.address)
/// await broker.shutDown()
/// ```
public final class Broker: Sendable {
    private struct Running: Sendable {
        var listener: ServerListener
        var assembly: BrokerAssembly
        var maintenance: Maintenance
        var flushPool: NIOThreadPool
        var workPool: NIOThreadPool
        var group: MultiThreadedEventLoopGroup
    }

    /// Threads that wait in fdatasync; see ``BrokerServices/flushPool``.
    private static let flushThreadCount = 32

    /// Where the broker listens, with the port the kernel chose if 0 was asked for.
    public let address: BrokerSettings.Address
    /// Identity of the cluster, kept in the data directory.
    public let clusterID: String
    private let logger: Logger
    private let running: Guarded<Running?>

    private init(address: BrokerSettings.Address, clusterID: String, logger: Logger, running: Running) {
        self.address = address
        self.clusterID = clusterID
        self.logger = logger
        self.running = Guarded(running)
    }

    /// Opens the data directory, loads the metadata, and serves. Returns once the broker accepts requests.
    public static func start(
        _ settings: BrokerSettings, logger: Logger = Logger(label: "martlet.broker")
    ) async throws -> Broker {
        do throws(SettingsError) {
            try settings.check()
        } catch {
            throw BrokerStartError("wrong setting: \(error)")
        }
        let coreCount = System.coreCount
        let group = MultiThreadedEventLoopGroup(numberOfThreads: max(1, settings.eventLoopCount ?? coreCount))
        let flushPool = NIOThreadPool(numberOfThreads: flushThreadCount)
        let workPool = NIOThreadPool(numberOfThreads: max(2, coreCount))
        flushPool.start()
        workPool.start()
        do {
            return try await start(
                settings, group: group, flushPool: flushPool, workPool: workPool, logger: logger)
        } catch {
            try await flushPool.shutdownGracefully()
            try await workPool.shutdownGracefully()
            try await group.shutdownGracefully()
            if let error = error as? BrokerStartError { throw error }
            throw BrokerStartError("the broker cannot start: \(error)")
        }
    }

    private static func start(
        _ settings: BrokerSettings, group: MultiThreadedEventLoopGroup, flushPool: NIOThreadPool,
        workPool: NIOThreadPool, logger: Logger
    ) async throws -> Broker {
        let eventLoops = Array(group.makeIterator())
        let surroundings = Surroundings.machine(flushPool: flushPool, workPool: workPool)
        let assembly = try await workPool.runIfActive {
            try BrokerAssembly.open(settings, surroundings: surroundings, eventLoops: eventLoops, logger: logger)
        }
        for loop in assembly.loops {
            try await loop.eventLoop.submit { assembly.prepare(loop) }.get()
        }
        assembly.begin()
        let listener: ServerListener
        do {
            listener = try await ServerListener.bind(
                host: settings.listen.host, port: settings.listen.port, group: group, logger: logger
            ) { eventLoop in assembly.makeConnection(on: eventLoop) }
        } catch {
            await abandon(assembly, workPool, logger)
            throw BrokerStartError(
                "cannot listen on \(settings.listen): \(error); choose another --listen address or stop what uses it")
        }
        assembly.join()
        let maintenance = Maintenance(services: assembly.services)
        maintenance.start()
        let image = assembly.image
        let port = listener.address.port ?? settings.listen.port
        let address = BrokerSettings.Address(host: settings.listen.host, port: port)
        logger.info(
            "broker is serving",
            metadata: [
                "address": "\(address)", "cluster": "\(assembly.services.controller.clusterID)",
                "data": "\(settings.dataDirectory)", "topics": "\(image.topicCount)",
                "partitions": "\(image.partitionCount)",
            ])
        return Broker(
            address: address, clusterID: assembly.services.controller.clusterID.description, logger: logger,
            running: Running(
                listener: listener, assembly: assembly, maintenance: maintenance, flushPool: flushPool,
                workPool: workPool, group: group))
    }

    /// Gives back what a start had taken that fails: a later one, in this process too, finds the directory free.
    private static func abandon(_ assembly: BrokerAssembly, _ workPool: NIOThreadPool, _ logger: Logger) async {
        do {
            for loop in assembly.loops {
                try await loop.eventLoop.flatSubmit { loop.closePartitions(clean: true) }.get()
            }
            try await assembly.services.controller.close().get()
            try await workPool.runIfActive { try assembly.services.directory.close(clean: true) }
        } catch {
            logger.error("the data directory was not closed cleanly", metadata: ["cause": "\(error)"])
        }
    }

    /// Completes when the broker finds that it cannot go on, with cause and remedy; the caller then stops it. With `nil`
    /// when it is shut down.
    public func failure() async -> String? {
        guard let signal = running.withLock({ $0?.assembly.failure }) else { return nil }
        return await signal.wait()
    }

    /// Stops accepting, answers what is under way, flushes and closes everything. The next start then needs
    /// no recovery. A second call does nothing.
    public func shutDown() async {
        guard let running = running.withLock({ $0.take() }) else { return }
        logger.info("broker is stopping")
        running.assembly.failure.end()
        do {
            // Others take over while everything still works here.
            try await running.assembly.leave().get()
            try await running.listener.close()
            await running.maintenance.stop()
            for loop in running.assembly.loops {
                try await loop.eventLoop.flatSubmit { loop.closePartitions(clean: true) }.get()
            }
            for loop in running.assembly.loops {
                try await loop.eventLoop.submit { loop.closeConnections() }.get()
            }
            try await running.assembly.services.controller.close().get()
            let channel = running.assembly.services.controllerChannel
            try await running.assembly.loops[0].eventLoop.submit { channel.close() }.get()
            let services = running.assembly.services
            let directory = services.directory
            try await running.workPool.runIfActive {
                try directory.close(clean: true, brokerEpoch: services.brokerEpoch)
            }
        } catch {
            logger.error("shutdown was not clean; the next start recovers", metadata: ["cause": "\(error)"])
        }
        do {
            try await running.flushPool.shutdownGracefully()
            try await running.workPool.shutdownGracefully()
            try await running.group.shutdownGracefully()
        } catch {
            logger.error("threads did not stop", metadata: ["cause": "\(error)"])
        }
        logger.info("broker stopped")
    }
}
