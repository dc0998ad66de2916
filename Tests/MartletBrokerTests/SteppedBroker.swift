import Logging
import MartletBroker
import MartletKafkaProtocol
import MartletStorage
import MartletTransport
import NIOCore
import NIOEmbedded
import NIOPosix

/// A broker on one event loop whose time stands still until the test moves it, with one connection. Whatever
/// waits for the disk is done at once.
final class SteppedBroker {
    private struct InlineQueue: WorkQueue {
        func submit(_ body: @escaping @Sendable (NIOThreadPool.WorkItemState) -> Void) { body(.active) }
    }

    private let eventLoop = EmbeddedEventLoop()
    private let assembly: BrokerAssembly
    private let channel: EmbeddedChannel
    private var nextCorrelationID: Int32 = 1

    var loop: BrokerLoop { assembly.loops[0] }

    init(_ settings: [String: String] = [:], folder: String, disk: some Disk = PosixDisk()) throws {
        var broker = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder)
        broker.reserveBytes = 0
        for (key, value) in settings.sorted(by: { $0.key < $1.key }) { try broker.set(key, value, origin: "test") }
        let queue = InlineQueue()
        let surroundings = Surroundings(
            disk: AnyDisk(disk), flushPool: queue, workPool: queue, clock: .machine, random: .system)
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        assembly = try BrokerAssembly.open(
            broker, surroundings: surroundings, eventLoops: [eventLoop], logger: logger)
        assembly.prepare(assembly.loops[0])
        assembly.begin()
        guard let connection = assembly.makeConnection(on: eventLoop) else { throw WireClient.Failure.closed }
        channel = EmbeddedChannel(handler: connection, loop: eventLoop)
        try channel.connect(to: SocketAddress(ipAddress: "127.0.0.1", port: 1)).wait()
        eventLoop.run()
    }

    func advance(by amount: TimeAmount) { eventLoop.advanceTime(by: amount) }

    /// Sends the request and returns the answer, which must come without a step of time.
    func call<Request: KafkaRequest>(_ request: Request, version: Int16? = nil) throws -> Request.Response {
        let version = version ?? Request.versions.upperBound
        try channel.writeInbound(
            WireClient.frame(request, version: version, correlationID: nextCorrelationID))
        nextCorrelationID += 1
        eventLoop.run()
        var bytes = ByteBuffer()
        while case .byteBuffer(var part)? = try channel.readOutbound(as: IOData.self) { bytes.writeBuffer(&part) }
        guard bytes.readInteger(as: Int32.self) != nil else { throw WireClient.Failure.closed }
        var reader = ProtocolReader(bytes)
        _ = try ResponseHeader(reading: &reader, apiKey: Request.Response.apiKey, version: version)
        return try Request.Response(reading: &reader, version: version)
    }

    func stop() throws {
        let closing = loop.closePartitions(clean: true)
        eventLoop.run()
        try closing.wait()
        loop.closeConnections()
        let controller = assembly.services.controller.close()
        eventLoop.run()
        try controller.wait()
        try assembly.services.directory.close(clean: true)
    }
}
