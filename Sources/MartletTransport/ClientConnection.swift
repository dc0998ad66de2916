internal import DequeModule
package import MartletKafkaProtocol
package import NIOCore
internal import NIOPosix

/// One connection of a client to a broker: sends requests, matches the answers, which come in the order of
/// the requests, and fails all of them with the cause when the connection ends.
///
/// Confined to its event loop, completions included. A request that is not answered in time closes the
/// connection, because everything behind it waits as well.
package final class ClientConnection: ChannelInboundHandler {
    package typealias InboundIn = ByteBuffer
    package typealias OutboundOut = ByteBuffer

    package struct Settings: Sendable {
        /// Name sent with each request.
        package var clientID: String
        /// Limit for TCP connect and exchange of versions, each.
        package var connectTimeout: TimeAmount = .seconds(10)
        /// Largest answer accepted, in bytes without the length prefix.
        package var responseByteLimit = 128 * 1024 * 1024
        /// Requests without an answer; far above what any part of the client needs, it bounds memory.
        package var inFlightLimit = 1024

        package init(clientID: String) { self.clientID = clientID }
    }

    private struct Pending {
        let correlationID: Int32
        let api: APIKey
        let deadline: NIODeadline
        let milliseconds: Int64
        let complete: (Result<ByteBuffer, ClientConnectionError>) -> Void
    }

    /// Bytes of the length prefix and of the smallest answer, a correlation id.
    private static let smallestResponse = 4
    /// Name and version of this software in ApiVersions (KIP-511: letters, digits, dots, dashes).
    private static let softwareName = "martlet"
    private static let softwareVersion = "0.1.0"
    /// Reads per readiness event.
    private static let readsPerTurn: UInt = 8

    package let loop: any EventLoop
    /// What the broker serves; filled by the handshake.
    package private(set) var versions: [APIKey: ClosedRange<Int16>] = [:]
    /// The whole answer of the handshake.
    package private(set) var handshake = ApiVersionsResponse()
    /// Called once, when the connection has ended, after all completions.
    package var onClose: ((ClientConnectionError) -> Void)?

    private let settings: Settings
    private var channel: (any Channel)?
    private var accumulator: FrameAccumulator
    private var pending = Deque<Pending>()
    private var nextCorrelationID: Int32 = 0
    private var sweep: Scheduled<Void>?
    private var sweepAt: NIODeadline = .distantFuture
    private var failure: ClientConnectionError?

    private init(loop: any EventLoop, settings: Settings) {
        self.loop = loop
        self.settings = settings
        self.accumulator = FrameAccumulator(
            frameLimit: settings.responseByteLimit, smallestFrame: Self.smallestResponse)
    }

    /// Connects and learns the broker's versions. Call on `loop`; `completion` runs on it.
    package static func connect(
        host: String, port: Int, loop: any EventLoop, settings: Settings,
        completion: @escaping (Result<ClientConnection, ClientConnectionError>) -> Void
    ) {
        loop.preconditionInEventLoop()
        let connected = ClientBootstrap(group: loop)
            .connectTimeout(settings.connectTimeout)
            .channelOption(.tcpOption(.tcp_nodelay), value: 1)
            .channelOption(.maxMessagesPerRead, value: readsPerTurn)
            .channelOption(
                .recvAllocator,
                value: AdaptiveRecvByteBufferAllocator(minimum: 4096, initial: 65_536, maximum: 1024 * 1024)
            )
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let connection = ClientConnection(loop: channel.eventLoop, settings: settings)
                    try channel.pipeline.syncOperations.addHandler(connection)
                }
            }
            .connect(host: host, port: port)
        connected.assumeIsolated().whenComplete { result in
            do {
                let channel = try result.get()
                let connection = try channel.pipeline.syncOperations.handler(type: ClientConnection.self)
                connection.channel = channel
                connection.shakeHands(version: ApiVersionsRequest.versions.upperBound, completion)
            } catch {
                completion(.failure(.connectFailed(error)))
            }
        }
    }

    /// Takes over a channel that is connected already, and learns the broker's versions. Call on the channel's loop;
    /// `completion` runs on it. Bytes of the peer must not come before the call.
    package static func open(
        on channel: any Channel, settings: Settings,
        completion: @escaping (Result<ClientConnection, ClientConnectionError>) -> Void
    ) {
        channel.eventLoop.preconditionInEventLoop()
        let connection = ClientConnection(loop: channel.eventLoop, settings: settings)
        do {
            try channel.pipeline.syncOperations.addHandler(connection)
        } catch {
            completion(.failure(.connectFailed(error)))
            return
        }
        connection.channel = channel
        connection.shakeHands(version: ApiVersionsRequest.versions.upperBound, completion)
    }

    // MARK: State

    /// Whether requests can be sent.
    package var isOpen: Bool { failure == nil }
    /// Requests without an answer yet.
    package var inFlightCount: Int { pending.count }

    /// The newest version that both sides know, at most `limit`; `nil` if there is none.
    package func version<Request: KafkaRequest>(
        of request: Request.Type, limit: Int16 = .max
    ) -> Int16? {
        guard let served = versions[Request.apiKey] else { return nil }
        let newest = min(served.upperBound, Request.versions.upperBound, limit)
        return newest >= max(served.lowerBound, Request.versions.lowerBound) ? newest : nil
    }

    // MARK: Requests

    /// Sends a request in the newest common version (at most `limit`), made by `make` for that version.
    package func send<Request: KafkaRequest>(
        _ type: Request.Type, limit: Int16 = .max, timeout: TimeAmount,
        make: (Int16) -> Request,
        completion:
            @escaping (Result<(response: Request.Response, version: Int16), ClientConnectionError>) -> Void
    ) {
        guard let version = version(of: type, limit: limit) else {
            completion(
                .failure(
                    .unsupportedAPI(
                        Request.apiKey, served: versions[Request.apiKey], spoken: Request.versions)))
            return
        }
        send(make(version), version: version, timeout: timeout) { result in
            completion(result.map { ($0, version) })
        }
    }

    /// Sends a request in exactly this version.
    package func send<Request: KafkaRequest>(
        _ request: Request, version: Int16, timeout: TimeAmount,
        completion: @escaping (Result<Request.Response, ClientConnectionError>) -> Void
    ) {
        let frame: ByteBuffer
        do {
            frame = try request.frame(
                version: version, correlationID: nextCorrelationID, clientID: settings.clientID)
        } catch {
            completion(.failure(.encode(Request.apiKey, error)))
            return
        }
        submit(frame, api: Request.apiKey, timeout: timeout) { result in
            completion(result.flatMap { Self.decode(Request.Response.self, $0, version: version) })
        }
    }

    /// Sends a request that the broker never answers (Produce with acks=0). `completion` runs once the system has
    /// taken the bytes, so that the caller cannot pile up what the peer does not read.
    package func sendUnanswered<Request: KafkaRequest>(
        _ request: Request, version: Int16, timeout: TimeAmount,
        completion: @escaping (Result<Void, ClientConnectionError>) -> Void
    ) {
        if let failure {
            completion(.failure(failure))
            return
        }
        let frame: ByteBuffer
        do {
            frame = try request.frame(
                version: version, correlationID: nextCorrelationID, clientID: settings.clientID)
        } catch {
            completion(.failure(.encode(Request.apiKey, error)))
            return
        }
        nextCorrelationID &+= 1
        let written = loop.makePromise(of: Void.self)
        let late = loop.assumeIsolated().scheduleTask(in: timeout) {
            self.end(.timedOut(api: Request.apiKey, milliseconds: timeout.nanoseconds / 1_000_000))
        }
        written.futureResult.assumeIsolated().whenComplete { result in
            late.cancel()
            completion(result.mapError { self.failure ?? .connectionLost(cause: $0) })
        }
        if let channel { channel.writeAndFlush(frame, promise: written) } else { written.fail(ChannelError.ioOnClosedChannel) }
    }

    /// Sends a frame encoded with ``nextCorrelation``; the answer comes back with its header unread.
    private func submit(
        _ frame: ByteBuffer, api: APIKey, timeout: TimeAmount,
        complete: @escaping (Result<ByteBuffer, ClientConnectionError>) -> Void
    ) {
        loop.preconditionInEventLoop()
        if let failure {
            complete(.failure(failure))
            return
        }
        guard pending.count < settings.inFlightLimit, let channel else {
            complete(.failure(.tooManyInFlight(limit: settings.inFlightLimit)))
            return
        }
        let deadline = loop.now + timeout
        pending.append(
            Pending(
                correlationID: nextCorrelationID, api: api, deadline: deadline,
                milliseconds: timeout.nanoseconds / 1_000_000, complete: complete))
        nextCorrelationID &+= 1
        channel.writeAndFlush(frame, promise: nil)
        scheduleSweep(deadline)
    }

    private static func decode<Response: KafkaResponse>(
        _ type: Response.Type, _ frame: ByteBuffer, version: Int16
    ) -> Result<Response, ClientConnectionError> {
        do {
            var reader = ProtocolReader(frame)
            _ = try ResponseHeader(reading: &reader, apiKey: Response.apiKey, version: version)
            return .success(try Response(reading: &reader, version: version))
        } catch {
            return .failure(.decode(Response.apiKey, version: version, error))
        }
    }

    /// Ends the connection; requests without an answer fail with `closedLocally`.
    package func close() { end(.closedLocally) }

    // MARK: Handshake

    private func shakeHands(
        version: Int16, _ completion: @escaping (Result<ClientConnection, ClientConnectionError>) -> Void
    ) {
        var request = ApiVersionsRequest()
        request.clientSoftwareName = Self.softwareName
        request.clientSoftwareVersion = Self.softwareVersion
        let frame: ByteBuffer
        do {
            frame = try request.frame(
                version: version, correlationID: nextCorrelationID, clientID: settings.clientID)
        } catch {
            end(.encode(.apiVersions, error))
            completion(.failure(.encode(.apiVersions, error)))
            return
        }
        submit(frame, api: .apiVersions, timeout: settings.connectTimeout) { result in
            switch result.flatMap({ self.readVersions($0, version: version) }) {
            case .failure(let error):
                self.end(error)
                completion(.failure(error))
            case .success(let response) where response.errorCode == Self.unsupportedVersion && version > 0:
                // The broker answers in version 0 and names the range it serves (KIP-511).
                let served = response.apiKeys.first { $0.apiKey == APIKey.apiVersions.rawValue }
                let next = min(served?.maxVersion ?? 0, version - 1)
                self.shakeHands(version: max(next, ApiVersionsRequest.versions.lowerBound), completion)
            case .success(let response) where response.errorCode != 0:
                let error = ClientConnectionError.handshakeRefused(code: response.errorCode)
                self.end(error)
                completion(.failure(error))
            case .success(let response):
                self.handshake = response
                for api in response.apiKeys where api.minVersion <= api.maxVersion {
                    self.versions[APIKey(rawValue: api.apiKey)] = api.minVersion...api.maxVersion
                }
                completion(.success(self))
            }
        }
    }

    private static let unsupportedVersion: Int16 = 35

    private func readVersions(
        _ frame: ByteBuffer, version: Int16
    ) -> Result<ApiVersionsResponse, ClientConnectionError> {
        // The error code follows the correlation id in every version; error 35 comes in the layout of version 0.
        let code = frame.getInteger(at: frame.readerIndex + Self.smallestResponse, as: Int16.self)
        guard code == Self.unsupportedVersion else {
            return Self.decode(ApiVersionsResponse.self, frame, version: version)
        }
        if case .success(let response) = Self.decode(ApiVersionsResponse.self, frame, version: 0) {
            return .success(response)
        }
        // Some servers put the error into another layout; version 0 is served by all.
        var response = ApiVersionsResponse()
        response.errorCode = Self.unsupportedVersion
        return .success(response)
    }

    // MARK: Channel events

    package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard failure == nil else { return }
        accumulator.append(unwrapInboundIn(data))
        do {
            while failure == nil, let frame = try accumulator.next() {
                deliver(frame)
            }
        } catch {
            switch error {
            case .lengthTooSmall(let length), .lengthTooLarge(let length, _):
                end(.badFrame(length: length, limit: settings.responseByteLimit))
            }
        }
    }

    private func deliver(_ frame: ByteBuffer) {
        guard let found = frame.getInteger(at: frame.readerIndex, as: Int32.self) else {
            end(.badFrame(length: Int32(frame.readableBytes), limit: settings.responseByteLimit))
            return
        }
        guard let first = pending.first, first.correlationID == found else {
            end(.wrongCorrelation(expected: pending.first?.correlationID, found: found))
            return
        }
        pending.removeFirst()
        first.complete(.success(frame))
    }

    package func channelInactive(context: ChannelHandlerContext) {
        end(.connectionLost(cause: nil))
        context.fireChannelInactive()
    }

    package func errorCaught(context: ChannelHandlerContext, error: any Error) {
        end(.connectionLost(cause: error))
    }

    private func end(_ error: ClientConnectionError) {
        guard failure == nil else { return }
        failure = error
        sweep?.cancel()
        sweep = nil
        channel?.close(promise: nil)
        let unanswered = pending
        pending.removeAll()
        for request in unanswered { request.complete(.failure(error)) }
        let notify = onClose
        onClose = nil
        notify?(error)
    }

    // MARK: Time limits

    private func scheduleSweep(_ deadline: NIODeadline) {
        guard deadline < sweepAt else { return }
        sweep?.cancel()
        sweepAt = deadline
        sweep = loop.assumeIsolated().scheduleTask(deadline: deadline) { self.checkDeadlines() }
    }

    private func checkDeadlines() {
        sweep = nil
        sweepAt = .distantFuture
        guard failure == nil else { return }
        let now = loop.now
        if let late = pending.first(where: { $0.deadline <= now }) {
            end(.timedOut(api: late.api, milliseconds: late.milliseconds))
        } else if let next = pending.map(\.deadline).min() {
            scheduleSweep(next)
        }
    }
}
