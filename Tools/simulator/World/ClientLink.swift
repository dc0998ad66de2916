internal import MartletKafkaProtocol
internal import NIOCore

/// Why a request has no answer.
enum LinkFailure: Error {
    /// Nobody listens; the request was not sent.
    case refused
    /// The connection broke; nobody knows what became of the request.
    case lost
    case timedOut
    /// The answer cannot be read: a defect.
    case malformed(String)
}

/// A simulated client's connection to the broker: real request bytes out, real response bytes in. Opens when it is
/// needed, and is given up when an answer is late.
final class ClientLink {
    static let defaultTimeout: Int64 = 5_000
    /// How long a connection that was given up stays after its request has arrived, in nanoseconds.
    private static let lateConnectionLife: Int64 = 3_000_000_000

    private let world: World
    private let name: String
    /// What was sent before a connection is given up may arrive later. Under the first transaction protocol a late
    /// EndTxn ends the producer's next transaction, which no broker can prevent (KIP-890): there it must not. Nor must
    /// it in share groups, where a request that opens a session takes the place of the member's later one (KIP-932).
    private let lingers: Bool
    /// Called when a connection has ended, whoever ended it.
    var ended: () -> Void = {}
    private var connection: VirtualConnection?
    private var unread = ByteBuffer()
    private var waiting: [(correlation: Int32, settle: (Result<ByteBuffer, LinkFailure>) -> Void)] = []
    private var nextCorrelation: Int32 = 1

    init(_ world: World, _ name: String, lingers: Bool = true) {
        self.world = world
        self.name = name
        self.lingers = lingers
    }

    func close() {
        giveUp()
        abandon(.lost)
    }

    private func giveUp() {
        guard let connection else { return }
        if lingers {
            connection.close()
        } else {
            self.connection = nil
            ended()
            connection.breakDown(delivering: false)
        }
    }

    /// Sends a request now; the answer is awaited by ``Reply/value()``. Several may be under way.
    func start<Request: KafkaRequest>(
        _ request: Request, version: Int16, timeoutMilliseconds: Int64 = defaultTimeout
    ) -> Reply<Request.Response> {
        let reply = Reply<Request.Response>()
        guard let connection = openConnection() else {
            world.after(milliseconds: 20...200) { reply.settle(.failure(.refused)) }
            return reply
        }
        let correlation = nextCorrelation
        nextCorrelation += 1
        let bytes: ByteBuffer
        do {
            bytes = try Self.frame(request, version, correlation, name)
        } catch {
            preconditionFailure("a client's own request cannot be encoded: \(error)")
        }
        world.trace.note("send", "\(name) #\(connection.id) \(Request.apiKey) v\(version) \(correlation)")
        let timer = world.scheduler.after(timeoutMilliseconds * 1_000_000) { [weak self, weak connection] in
            guard let self, let connection, self.connection === connection else { return }
            self.world.trace.note("late", "\(self.name) #\(connection.id) \(correlation)")
            self.giveUp()
            self.abandon(.timedOut)
        }
        let trace = world.trace
        let name = self.name
        waiting.append(
            (
                correlation,
                { result in
                    timer.cancel()
                    reply.settle(
                        result.flatMap { frame in
                            Self.decode(frame, as: Request.Response.self, version)
                        })
                    if trace.isOn, case .success(let frame) = result {
                        trace.note("answer", "\(name) \(correlation) \(frame.readableBytes) \(Self.checksum(frame))")
                    }
                }
            ))
        connection.send(bytes)
        return reply
    }

    func ask<Request: KafkaRequest>(
        _ request: Request, version: Int16, timeoutMilliseconds: Int64 = defaultTimeout
    ) async throws(LinkFailure) -> Request.Response {
        try await start(request, version: version, timeoutMilliseconds: timeoutMilliseconds).value()
    }

    /// Sends a request over a connection of its own that is slow: it arrives when its client has long given it up
    /// and gone on, as after a time-out and a new connection. Nobody waits for the answer.
    func sendLate<Request: KafkaRequest>(_ request: Request, version: Int16, afterNanoseconds delay: Int64) {
        guard let connection = world.network.connect(name + "-late") else { return }
        let bytes: ByteBuffer
        do {
            bytes = try Self.frame(request, version, 1, name)
        } catch {
            preconditionFailure("a client's own request cannot be encoded: \(error)")
        }
        world.trace.note("ghost", "\(name) #\(connection.id) \(Request.apiKey) v\(version)")
        connection.stall(until: world.now + delay)
        connection.send(bytes)
        world.scheduler.after(delay + Self.lateConnectionLife) { connection.close() }
    }

    private func openConnection() -> VirtualConnection? {
        if let connection { return connection }
        guard let opened = world.network.connect(name) else { return nil }
        unread = ByteBuffer()
        opened.lingers = lingers
        opened.received = { [weak self, weak opened] bytes in
            if let self, let opened, self.connection === opened { self.receive(bytes) }
        }
        opened.lost = { [weak self, weak opened] in
            if let self, let opened, self.connection === opened { self.abandon(.lost) }
        }
        connection = opened
        return opened
    }

    private func abandon(_ failure: LinkFailure) {
        if connection != nil { ended() }
        connection = nil
        let gone = waiting
        waiting = []
        for request in gone { request.settle(.failure(failure)) }
    }

    private func receive(_ bytes: ByteBuffer) {
        unread.writeImmutableBuffer(bytes)
        while let length = unread.getInteger(at: unread.readerIndex, as: Int32.self),
            unread.readableBytes >= Int(length) + Framing.lengthBytes
        {
            unread.moveReaderIndex(forwardBy: Framing.lengthBytes)
            guard let frame = unread.readSlice(length: Int(length)), let first = waiting.first else {
                world.fail("stray-response", "\(name) got an answer to nothing")
                return
            }
            guard frame.getInteger(at: frame.readerIndex, as: Int32.self) == first.correlation else {
                world.fail("response-order", "\(name) expected the answer to \(first.correlation)")
                return
            }
            waiting.removeFirst()
            first.settle(.success(frame))
        }
        unread.discardReadBytes()
    }

    // MARK: Bytes

    private static func frame<Request: KafkaRequest>(
        _ request: Request, _ version: Int16, _ correlation: Int32, _ clientID: String
    ) throws(EncodeError) -> ByteBuffer {
        var writer = ProtocolWriter()
        writer.integer(Int32(0))
        try RequestHeader(
            apiKey: Request.apiKey, apiVersion: version, correlationID: correlation, clientID: clientID
        ).encode(into: &writer)
        try request.encode(into: &writer, version: version)
        writer.buffer.setInteger(Int32(writer.buffer.readableBytes - Framing.lengthBytes), at: 0)
        return writer.buffer
    }

    private static func decode<Response: KafkaResponse>(
        _ frame: ByteBuffer, as type: Response.Type, _ version: Int16
    ) -> Result<Response, LinkFailure> {
        var reader = ProtocolReader(frame)
        do throws(DecodeError) {
            _ = try ResponseHeader(reading: &reader, apiKey: Response.apiKey, version: version)
            return .success(try Response(reading: &reader, version: version))
        } catch {
            return .failure(.malformed("\(error)"))
        }
    }

    private static func checksum(_ frame: ByteBuffer) -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in frame.readableBytesView { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01b3 }
        return String(hash, radix: 16)
    }
}

/// An answer that may not be there yet.
// SAFETY: confined to the thread that runs the simulation.
final class Reply<Response: Sendable>: @unchecked Sendable {
    private var result: Result<Response, LinkFailure>?
    private var waiter: CheckedContinuation<Result<Response, LinkFailure>, Never>?

    func settle(_ result: Result<Response, LinkFailure>) {
        guard self.result == nil else { return }
        self.result = result
        waiter?.resume(returning: result)
        waiter = nil
    }

    func value() async throws(LinkFailure) -> Response {
        if let result { return try result.get() }
        return try await withCheckedContinuation { waiter = $0 }.get()
    }
}
