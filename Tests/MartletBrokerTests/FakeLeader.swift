import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTransport
import NIOCore
import NIOPosix

@testable import MartletBroker
@testable import MartletReplication

/// A leader on a loopback socket that answers each fetch as the test has told it, in order, and holds fetches for
/// which it was told nothing yet. Its connections and its state live on one event loop.
// SAFETY: all mutable state is touched on `loop` alone.
final class FakeLeader: @unchecked Sendable {
    enum Reaction: Sendable {
        case answer(@Sendable (FetchRequest) throws -> FetchResponse)
        case close
        /// Sends these first bytes of the answer's frame and closes.
        case cut(after: Int, @Sendable (FetchRequest) throws -> FetchResponse)
    }

    struct Fetch: Sendable {
        var request: FetchRequest
        var version: Int16
        /// Counted from 1, in the order in which connections came.
        var connection: Int
        var arrival: NIODeadline
    }

    struct NothingCame: Error {
        var what: String
    }

    private let loop = MultiThreadedEventLoopGroup.singleton.next()
    private var server: (any Channel)?
    private var script: [Reaction] = []
    private var fetches: [Fetch] = []
    private var waiters: [(count: Int, promise: EventLoopPromise<Void>)] = []
    private var connections: [FakeLeaderConnection] = []
    private var openCount = 0
    private let versions: ClosedRange<Int16>
    let address: BrokerSettings.Address

    private init(versions: ClosedRange<Int16>, port: Int) {
        self.versions = versions
        address = BrokerSettings.Address(host: "127.0.0.1", port: port)
    }

    static func start(versions: ClosedRange<Int16> = 4...18) async throws -> FakeLeader {
        let handed = MultiThreadedEventLoopGroup.singleton.next().makePromise(of: FakeLeader.self)
        let leader = handed.futureResult
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.autoRead, value: false)
            .childChannelInitializer { channel in
                leader.hop(to: channel.eventLoop).flatMapThrowing { leader in
                    try channel.pipeline.syncOperations.addHandler(FakeLeaderConnection(leader))
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        let made = FakeLeader(versions: versions, port: channel.localAddress?.port ?? 0)
        made.loop.execute { made.server = channel }
        handed.succeed(made)
        return made
    }

    func stop() async throws {
        let server = try await loop.submit { self.server }.get()
        try await server?.close()
        try await dropConnections()
    }

    func dropConnections() async throws {
        let channels = try await loop.submit { self.connections.compactMap(\.channel) }.get()
        for channel in channels { channel.close(promise: nil) }
    }

    // MARK: What tests tell it and ask it

    func react(_ reactions: Reaction...) {
        loop.execute {
            self.script.append(contentsOf: reactions)
            self.work()
        }
    }

    /// The fetch of this number, from 1 on; waits until it has come.
    func fetch(_ number: Int) async throws -> Fetch {
        try await wait { self.fetches.count >= number ? nil : number }
        return try await loop.submit { self.fetches[number - 1] }.get()
    }

    var fetchCount: Int { get async throws { try await loop.submit { self.fetches.count }.get() } }
    var openConnectionCount: Int { get async throws { try await loop.submit { self.openCount }.get() } }

    private func wait(_ missing: @escaping @Sendable () -> Int?) async throws {
        try await loop.flatSubmit {
            guard let count = missing() else { return self.loop.makeSucceededVoidFuture() }
            let promise = self.loop.makePromise(of: Void.self)
            self.waiters.append((count, promise))
            let late = self.loop.scheduleTask(in: .seconds(15)) { promise.fail(NothingCame(what: "fetch \(count)")) }
            promise.futureResult.whenComplete { _ in late.cancel() }
            return promise.futureResult
        }.get()
    }

    // MARK: Connections

    fileprivate func opened(_ connection: FakeLeaderConnection) {
        loop.execute {
            self.connections.append(connection)
            self.openCount += 1
            connection.number = self.connections.count
            connection.channel?.setOption(.autoRead, value: true).whenFailure { _ in }
        }
    }

    fileprivate func closed() { loop.execute { self.openCount -= 1 } }

    fileprivate func versionsFrame(_ header: RequestHeader) throws -> ByteBuffer {
        var response = ApiVersionsResponse()
        for (key, range) in [(APIKey.fetch, versions), (.apiVersions, ApiVersionsRequest.versions)] {
            var entry = ApiVersionsResponse.ApiVersion()
            (entry.apiKey, entry.minVersion, entry.maxVersion) = (key.rawValue, range.lowerBound, range.upperBound)
            response.apiKeys.append(entry)
        }
        return try response.frame(version: header.apiVersion, correlationID: header.correlationID)
    }

    fileprivate func came(_ request: FetchRequest, _ header: RequestHeader, _ connection: FakeLeaderConnection) {
        loop.execute {
            let fetch = Fetch(
                request: request, version: header.apiVersion, connection: connection.number, arrival: .now())
            self.fetches.append(fetch)
            connection.held.append((request, header))
            let due = self.waiters.filter { $0.count <= self.fetches.count }
            self.waiters.removeAll { $0.count <= self.fetches.count }
            for waiter in due { waiter.promise.succeed() }
            self.work()
        }
    }

    private func work() {
        for connection in connections {
            while !script.isEmpty, connection.channel?.isActive == true, !connection.held.isEmpty {
                let (request, header) = connection.held.removeFirst()
                do {
                    try react(script.removeFirst(), request, header, connection)
                } catch {
                    connection.channel?.close(promise: nil)
                }
            }
        }
    }

    private func react(
        _ reaction: Reaction, _ request: FetchRequest, _ header: RequestHeader, _ connection: FakeLeaderConnection
    ) throws {
        switch reaction {
        case .answer(let make):
            let frame = try make(request).frame(version: header.apiVersion, correlationID: header.correlationID)
            connection.channel?.writeAndFlush(frame, promise: nil)
        case .close:
            connection.channel?.close(promise: nil)
        case .cut(let count, let make):
            let frame = try make(request).frame(version: header.apiVersion, correlationID: header.correlationID)
            let channel = connection.channel
            channel?.writeAndFlush(frame.getSlice(at: 0, length: count) ?? frame).whenComplete { _ in
                channel?.close(promise: nil)
            }
        }
    }
}

// SAFETY: `number` and `held` are touched on the leader's loop alone, `input` on the channel's; `channel` is set before
// anybody else knows of the connection.
private final class FakeLeaderConnection: ChannelInboundHandler, @unchecked Sendable {
    typealias InboundIn = ByteBuffer

    private let leader: FakeLeader
    private var input = ByteBuffer()
    private(set) var channel: (any Channel)?
    var number = 0
    var held: [(FetchRequest, RequestHeader)] = []

    init(_ leader: FakeLeader) { self.leader = leader }

    func handlerAdded(context: ChannelHandlerContext) { channel = context.channel }
    func channelActive(context: ChannelHandlerContext) { leader.opened(self) }
    func channelInactive(context: ChannelHandlerContext) { leader.closed() }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        input.writeImmutableBuffer(unwrapInboundIn(data))
        do {
            while let length = input.getInteger(at: input.readerIndex, as: Int32.self),
                input.readableBytes >= Int(length) + 4
            {
                input.moveReaderIndex(forwardBy: 4)
                guard let frame = input.readSlice(length: Int(length)) else { return }
                var reader = ProtocolReader(frame)
                let header = try RequestHeader(reading: &reader)
                if header.apiKey == .apiVersions {
                    context.writeAndFlush(NIOAny(try leader.versionsFrame(header)), promise: nil)
                } else {
                    let request = try FetchRequest(reading: &reader, version: header.apiVersion)
                    try reader.requireEnd()
                    leader.came(request, header, self)
                }
            }
        } catch {
            context.close(promise: nil)
        }
    }
}

/// What an answer says of one partition.
struct FetchedPart: Sendable {
    var key: PartitionKey
    var error = ErrorCode.none
    var mark: Int64 = 0
    var start: Int64 = 0
    var records: ByteBuffer?
    var diverging: (epoch: Int32, end: Int64)?

    init(
        _ key: PartitionKey, error: ErrorCode = .none, mark: Int64 = 0, start: Int64 = 0, records: ByteBuffer? = nil,
        diverging: (epoch: Int32, end: Int64)? = nil
    ) {
        self.key = key
        self.error = error
        self.mark = mark
        self.start = start
        self.records = records
        self.diverging = diverging
    }
}

extension FakeLeader.Reaction {
    static func parts(_ parts: FetchedPart..., session: Int32 = 7, error: ErrorCode = .none) -> Self {
        .answer { _ in response(parts, session: session, error: error) }
    }

    static func response(_ parts: [FetchedPart], session: Int32 = 7, error: ErrorCode = .none) -> FetchResponse {
        var response = FetchResponse()
        response.errorCode = error.rawValue
        response.sessionID = session
        for part in parts {
            var topic = FetchResponse.FetchableTopicResponse()
            topic.topicID = part.key.topicID
            var data = FetchResponse.PartitionData()
            data.partitionIndex = part.key.partition.rawValue
            data.errorCode = part.error.rawValue
            data.highWatermark = part.mark
            data.logStartOffset = part.start
            data.records = part.records
            if let diverging = part.diverging {
                (data.divergingEpoch.epoch, data.divergingEpoch.endOffset) = diverging
            }
            topic.partitions = [data]
            response.responses.append(topic)
        }
        return response
    }
}

extension FetchRequest {
    /// Offsets that the request names, in its order.
    var named: [String] {
        topics.flatMap { topic in
            topic.partitions.map { "\(topic.topicID.low)-\($0.partition)@\($0.fetchOffset)" }
        }
    }

    var forgotten: [String] {
        forgottenTopicsData.flatMap { topic in topic.partitions.map { "\(topic.topicID.low)-\($0)" } }
    }
}

/// Batches as they lie in a leader's log: `counts` records each, one after the other from `base` on.
func storedBatches(from base: Int64, epoch: Int32, _ counts: Int..., value: String = "v") throws -> ByteBuffer {
    var buffer = ByteBuffer()
    var next = base
    for count in counts {
        var builder = RecordBatchBuilder()
        for _ in 0..<count {
            try builder.append(key: nil, value: ByteBuffer(string: value), timestamp: 1_700_000_000_000)
        }
        buffer.writeImmutableBuffer(
            try builder.build(RecordBatchBuilder.Options(baseOffset: next, partitionLeaderEpoch: epoch)))
        next += Int64(count)
    }
    return buffer
}

extension ByteBuffer {
    /// One bit turned over.
    func damaged(atByte index: Int) -> ByteBuffer {
        var copy = self
        let place = readerIndex + index
        copy.setInteger((getInteger(at: place, as: UInt8.self) ?? 0) ^ 0x10, at: place)
        return copy
    }
}
