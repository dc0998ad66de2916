internal import NIOCore

/// The broker's end of a simulated connection: a channel whose bytes come from and go to ``VirtualConnection``.
// SAFETY: confined to the thread that runs the simulation.
final class VirtualChannel: Channel, ChannelCore, @unchecked Sendable {
    let loop: VirtualEventLoop
    private var chain: ChannelPipeline?
    private let closePromise: EventLoopPromise<Void>
    private var pending: [(NIOAny, EventLoopPromise<Void>?)] = []
    private var unread: [ByteBuffer] = []
    private var readsOnItsOwn = true
    private(set) var isActive = false
    private var isClosed = false
    /// Where bytes go that the broker sends, and the end of the connection.
    var received: (ByteBuffer) -> Void = { _ in }
    var ended: () -> Void = {}

    init(loop: VirtualEventLoop) {
        self.loop = loop
        closePromise = loop.makePromise(of: Void.self)
        chain = ChannelPipeline(channel: self)
    }

    /// Adds the handler and opens; on the loop.
    func open(_ handler: some ChannelHandler) throws {
        try pipeline.syncOperations.addHandler(handler)
        isActive = true
        pipeline.syncOperations.fireChannelActive()
    }

    /// Bytes of the client; on the loop.
    func deliver(_ bytes: ByteBuffer) {
        guard isActive else { return }
        unread.append(bytes)
        readNow()
    }

    private func readNow() {
        while readsOnItsOwn, isActive, !unread.isEmpty {
            let batch = unread
            unread = []
            for bytes in batch { pipeline.syncOperations.fireChannelRead(NIOAny(bytes)) }
            pipeline.syncOperations.fireChannelReadComplete()
        }
    }

    /// The client has closed its end; on the loop.
    func peerClosed() { close0(error: ChannelError.eof, mode: .all, promise: nil) }

    /// The process is gone: nothing runs any more, the references in circles are broken.
    func abandon() {
        Graveyard.bury((pending, chain, closePromise))
        isActive = false
        isClosed = true
        received = { _ in }
        ended = {}
        pending = []
        unread = []
        chain = nil
    }

    // MARK: Channel

    let allocator = ByteBufferAllocator()
    var closeFuture: EventLoopFuture<Void> { closePromise.futureResult }
    var pipeline: ChannelPipeline {
        guard let chain else { preconditionFailure("the channel's process is gone") }
        return chain
    }
    var localAddress: SocketAddress? { nil }
    var remoteAddress: SocketAddress? { nil }
    var parent: (any Channel)? { nil }
    var isWritable: Bool { true }
    var _channelCore: any ChannelCore { self }
    var eventLoop: any EventLoop { loop }

    func setOption<Option: ChannelOption>(_ option: Option, value: Option.Value) -> EventLoopFuture<Void> {
        if option is ChannelOptions.Types.AutoReadOption, let reads = value as? Bool {
            readsOnItsOwn = reads
            if reads { loop.execute { self.readNow() } }
        }
        return loop.makeSucceededVoidFuture()
    }

    func getOption<Option: ChannelOption>(_ option: Option) -> EventLoopFuture<Option.Value> {
        loop.makeFailedFuture(ChannelError.operationUnsupported)
    }

    // MARK: ChannelCore

    func localAddress0() throws -> SocketAddress { throw ChannelError.operationUnsupported }
    func remoteAddress0() throws -> SocketAddress { throw ChannelError.operationUnsupported }
    func register0(promise: EventLoopPromise<Void>?) { promise?.succeed() }
    func registerAlreadyConfigured0(promise: EventLoopPromise<Void>?) { promise?.succeed() }
    func bind0(to: SocketAddress, promise: EventLoopPromise<Void>?) { promise?.fail(ChannelError.operationUnsupported) }
    func connect0(to: SocketAddress, promise: EventLoopPromise<Void>?) {
        promise?.fail(ChannelError.operationUnsupported)
    }

    func write0(_ data: NIOAny, promise: EventLoopPromise<Void>?) { pending.append((data, promise)) }

    func flush0() {
        let batch = pending
        pending = []
        for (data, promise) in batch {
            switch unwrapData(data, as: IOData.self) {
            case .byteBuffer(let bytes):
                if bytes.readableBytes > 0 { received(bytes) }
                promise?.succeed()
            case .fileRegion:
                preconditionFailure("a simulated file has no descriptor to be sent from")
            }
        }
    }

    func read0() {}

    func close0(error: any Error, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        guard !isClosed else {
            promise?.fail(ChannelError.alreadyClosed)
            return
        }
        isClosed = true
        isActive = false
        for (_, written) in pending { written?.fail(ChannelError.ioOnClosedChannel) }
        pending = []
        promise?.succeed()
        let ended = self.ended
        received = { _ in }
        self.ended = {}
        ended()
        pipeline.syncOperations.fireChannelInactive()
        loop.execute { self.closePromise.succeed() }
    }

    func triggerUserOutboundEvent0(_ event: Any, promise: EventLoopPromise<Void>?) {
        promise?.fail(ChannelError.operationUnsupported)
    }

    func channelRead0(_ data: NIOAny) {}
    func errorCaught0(error: any Error) {}
}
