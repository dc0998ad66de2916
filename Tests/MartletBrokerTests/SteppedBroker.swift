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
    private var nextCorrelationID: Int32 = 0
    private var answers = ByteBuffer()

    var loop: BrokerLoop { assembly.loops[0] }

    init(
        _ settings: [String: String] = [:], folder: String, disk: some Disk = PosixDisk(), workPool: (any WorkQueue)? = nil,
        reserveBytes: Int = 0
    ) throws {
        var broker = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder)
        broker.reserveBytes = reserveBytes
        for (key, value) in settings.sorted(by: { $0.key < $1.key }) { try broker.set(key, value, origin: "test") }
        let queue = InlineQueue()
        let surroundings = Surroundings(
            disk: AnyDisk(disk), flushPool: queue, workPool: workPool ?? queue, clock: .machine, random: .system)
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
        try send([frame(request, version)])
        return try read(Request.self, version)
    }

    /// Sends both before the broker does anything, and returns their answers.
    func call<First: KafkaRequest, Second: KafkaRequest>(
        _ first: First, version firstVersion: Int16, then second: Second, version secondVersion: Int16
    ) throws -> (First.Response, Second.Response) {
        try send([frame(first, firstVersion), frame(second, secondVersion)])
        return (try read(First.self, firstVersion), try read(Second.self, secondVersion))
    }

    private func frame(_ request: some KafkaRequest, _ version: Int16) throws -> ByteBuffer {
        nextCorrelationID += 1
        return try WireClient.frame(request, version: version, correlationID: nextCorrelationID)
    }

    private func send(_ frames: [ByteBuffer]) throws {
        var bytes = ByteBuffer()
        for frame in frames { bytes.writeImmutableBuffer(frame) }
        try channel.writeInbound(bytes)
        eventLoop.run()
        while case .byteBuffer(var part)? = try channel.readOutbound(as: IOData.self) { answers.writeBuffer(&part) }
    }

    private func read<Request: KafkaRequest>(_: Request.Type, _ version: Int16) throws -> Request.Response {
        guard let length = answers.readInteger(as: Int32.self), let body = answers.readSlice(length: Int(length)) else {
            throw WireClient.Failure.closed
        }
        var reader = ProtocolReader(body)
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
