import DequeModule
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import NIOPosix
import Synchronization

/// Stands between a client and a broker: forwards frames, and for single requests loses them or their answers. It can
/// also make a broker look older than it is.
final class Proxy: Sendable {
    enum Reaction: Sendable {
        case forward
        /// Drops the connection before the broker has the request.
        case drop
        /// The broker carries the request out; the answer is lost with the connection.
        case loseAnswer
        /// The broker never gets it, the client gets this.
        case answer(@Sendable (RequestHeader) throws -> ByteBuffer)
        /// The broker gets and answers one thing, the client asked and hears another.
        case rewrite(request: Rewriting, answer: Rewriting)
        /// Forwards once the condition holds.
        case hold(until: @Sendable () -> Bool)
    }

    typealias Rewriting = @Sendable (RequestHeader, ByteBuffer) throws -> ByteBuffer

    struct Seen: Sendable, Equatable {
        var key: APIKey
        var version: Int16
    }

    private struct State {
        var port = 0
        var upstream: Int?
        var script: [APIKey: [Reaction]] = [:]
        var always: [APIKey: Reaction] = [:]
        var hidesFeatures = false
        var hidden: Set<APIKey> = []
        var limits: [APIKey: Int16] = [:]
        var seen: [Seen] = []
        var channels: [ObjectIdentifier: any Channel] = [:]
    }

    private let state = Mutex(State())
    private let server = Mutex<(any Channel)?>(nil)

    static func start() async throws -> Proxy {
        let proxy = Proxy()
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Front(proxy))
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        proxy.server.withLock { $0 = channel }
        proxy.state.withLock { $0.port = channel.localAddress?.port ?? 0 }
        return proxy
    }

    func stop() async throws {
        let channel = server.withLock { $0 }
        try await channel?.close()
        dropConnections()
    }

    var port: Int { state.withLock { $0.port } }
    var bootstrap: String { "127.0.0.1:\(port)" }
    var seen: [Seen] { state.withLock { $0.seen } }
    func count(_ key: APIKey) -> Int { seen.filter { $0.key == key }.count }
    func versions(_ key: APIKey) -> Set<Int16> { Set(seen.filter { $0.key == key }.map(\.version)) }

    /// Where requests go from now on; `nil`: nowhere.
    func setUpstream(_ port: Int?) { state.withLock { $0.upstream = port } }

    /// Finalized features are left out of ApiVersions, as by brokers before them.
    func hideFeatures() { state.withLock { $0.hidesFeatures = true } }

    func hide(_ key: APIKey) { _ = state.withLock { $0.hidden.insert(key) } }

    func limit(_ key: APIKey, to version: Int16) { state.withLock { $0.limits[key] = version } }

    func next(_ key: APIKey, _ reactions: Reaction...) {
        state.withLock { $0.script[key, default: []].append(contentsOf: reactions) }
    }

    /// Reaction to all requests without one of their own; `nil` forwards.
    func always(_ key: APIKey, _ reaction: Reaction?) { state.withLock { $0.always[key] = reaction } }

    func dropConnections() {
        let channels = state.withLock { Array($0.channels.values) }
        for channel in channels { channel.close(promise: nil) }
    }

    fileprivate var upstream: Int? { state.withLock { $0.upstream } }

    fileprivate func opened(_ channel: any Channel) {
        state.withLock { $0.channels[ObjectIdentifier(channel)] = channel }
    }

    fileprivate func closed(_ channel: any Channel) {
        state.withLock { $0.channels[ObjectIdentifier(channel)] = nil }
    }

    fileprivate func reaction(to header: RequestHeader) -> Reaction {
        state.withLock { state in
            state.seen.append(Seen(key: header.apiKey, version: header.apiVersion))
            if state.script[header.apiKey]?.isEmpty == false { return state.script[header.apiKey]!.removeFirst() }
            return state.always[header.apiKey] ?? .forward
        }
    }

    /// The answer as the client is to see it; `frame` is without its length.
    fileprivate func rewrite(_ frame: ByteBuffer, _ header: RequestHeader) throws -> ByteBuffer {
        let (hidesFeatures, hidden, limits) = state.withLock { ($0.hidesFeatures, $0.hidden, $0.limits) }
        guard header.apiKey == .apiVersions, hidesFeatures || !hidden.isEmpty || !limits.isEmpty else {
            var whole = ByteBuffer()
            whole.writeInteger(UInt32(frame.readableBytes))
            whole.writeImmutableBuffer(frame)
            return whole
        }
        var reader = ProtocolReader(frame)
        _ = try ResponseHeader(reading: &reader, apiKey: .apiVersions, version: header.apiVersion)
        var response = try ApiVersionsResponse(reading: &reader, version: header.apiVersion)
        if hidesFeatures { response.finalizedFeatures = [] }
        response.apiKeys.removeAll { hidden.contains(APIKey(rawValue: $0.apiKey)) }
        for index in response.apiKeys.indices {
            guard let limit = limits[APIKey(rawValue: response.apiKeys[index].apiKey)] else { continue }
            response.apiKeys[index].maxVersion = min(response.apiKeys[index].maxVersion, limit)
        }
        return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
    }
}

extension Proxy.Reaction {
    /// Changes what the broker is asked and what the client hears.
    static func changing<Request: KafkaRequest>(
        _ type: Request.Type, request: @escaping @Sendable (inout Request) -> Void = { _ in },
        answer: @escaping @Sendable (inout Request.Response) -> Void
    ) -> Proxy.Reaction {
        let forth: Proxy.Rewriting = { header, frame in
            var reader = ProtocolReader(frame)
            _ = try RequestHeader(reading: &reader)
            var value = try Request(reading: &reader, version: header.apiVersion)
            request(&value)
            return try value.frame(
                version: header.apiVersion, correlationID: header.correlationID, clientID: header.clientID)
        }
        let back: Proxy.Rewriting = { header, frame in
            var reader = ProtocolReader(frame)
            _ = try ResponseHeader(reading: &reader, apiKey: header.apiKey, version: header.apiVersion)
            var value = try Request.Response(reading: &reader, version: header.apiVersion)
            answer(&value)
            return try value.frame(version: header.apiVersion, correlationID: header.correlationID)
        }
        return .rewrite(request: forth, answer: back)
    }
}

/// Cuts frames out of a stream.
private struct Frames {
    private var input = ByteBuffer()

    mutating func append(_ bytes: ByteBuffer) { input.writeImmutableBuffer(bytes) }

    /// The next frame without its length.
    mutating func next() -> ByteBuffer? {
        guard let length = input.getInteger(at: input.readerIndex, as: UInt32.self),
            input.readableBytes >= Int(length) + 4
        else { return nil }
        input.moveReaderIndex(forwardBy: 4)
        let frame = input.readSlice(length: Int(length))
        input.discardReadBytes()
        return frame
    }
}

/// The client's side of one connection; owns the broker's side.
private final class Front: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// What becomes of a broker's answer.
    private enum Fate {
        case passed, lost
        case rewritten(Proxy.Rewriting)
    }

    private let proxy: Proxy
    private var frames = Frames()
    private var channel: (any Channel)?
    private var back: (any Channel)?
    private var waiting: [ByteBuffer] = []
    private var expected = Deque<(header: RequestHeader, fate: Fate)>()
    private var held = false

    init(_ proxy: Proxy) { self.proxy = proxy }

    func channelActive(context: ChannelHandlerContext) {
        proxy.opened(context.channel)
        channel = context.channel
        guard let port = proxy.upstream else { return context.close(promise: nil) }
        let front = NIOLoopBound(self, eventLoop: context.eventLoop)
        ClientBootstrap(group: context.eventLoop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Back(front.value))
                }
            }
            .connect(host: "127.0.0.1", port: port).assumeIsolated().whenComplete { result in
                switch result {
                case .success(let back):
                    self.back = back
                    for bytes in self.waiting { back.writeAndFlush(bytes, promise: nil) }
                    self.waiting = []
                case .failure: self.end()
                }
            }
    }

    func channelInactive(context: ChannelHandlerContext) {
        proxy.closed(context.channel)
        end()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        frames.append(unwrapInboundIn(data))
        work()
    }

    private func work() {
        while !held, channel != nil, let frame = frames.next() {
            do {
                var reader = ProtocolReader(frame)
                let header = try RequestHeader(reading: &reader)
                try react(proxy.reaction(to: header), header, frame)
            } catch {
                end()
            }
        }
    }

    private func react(_ reaction: Proxy.Reaction, _ header: RequestHeader, _ frame: ByteBuffer) throws {
        switch reaction {
        case .forward: forward(frame, header, .passed)
        case .loseAnswer: forward(frame, header, .lost)
        case .rewrite(let request, let answer):
            // Forwarding puts the length before it again.
            var changed = try request(header, frame)
            changed.moveReaderIndex(forwardBy: 4)
            forward(changed, header, .rewritten(answer))
        case .drop: end()
        case .answer(let make): channel?.writeAndFlush(try make(header), promise: nil)
        case .hold(let condition):
            held = !condition()
            guard held else { return forward(frame, header, .passed) }
            channel?.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(2)) {
                do {
                    try self.react(reaction, header, frame)
                    self.work()
                } catch {
                    self.end()
                }
            }
        }
    }

    private func forward(_ frame: ByteBuffer, _ header: RequestHeader, _ fate: Fate) {
        expected.append((header, fate))
        var bytes = ByteBuffer()
        bytes.writeInteger(UInt32(frame.readableBytes))
        bytes.writeImmutableBuffer(frame)
        if let back { back.writeAndFlush(bytes, promise: nil) } else { waiting.append(bytes) }
    }

    func answered(_ frame: ByteBuffer) {
        guard let (header, fate) = expected.popFirst() else { return end() }
        do {
            switch fate {
            case .lost: end()
            case .passed: channel?.writeAndFlush(try proxy.rewrite(frame, header), promise: nil)
            case .rewritten(let make): channel?.writeAndFlush(try make(header, frame), promise: nil)
            }
        } catch {
            end()
        }
    }

    func end() {
        channel?.close(promise: nil)
        back?.close(promise: nil)
        channel = nil
        back = nil
    }
}

/// The broker's side of one connection.
private final class Back: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let front: Front
    private var frames = Frames()

    init(_ front: Front) { self.front = front }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        frames.append(unwrapInboundIn(data))
        while let frame = frames.next() { front.answered(frame) }
    }

    func channelInactive(context: ChannelHandlerContext) { front.end() }
}
