internal import Glibc
package import Logging
package import NIOCore
internal import NIOPosix

/// Accepts connections on one address and hands each to the request handler of its event loop.
package final class ServerListener: Sendable {
    /// Most bytes asked of the kernel per read; measured best for large produce requests (512 KiB to 1 MiB).
    private static let largestReceiveByteCount = 512 * 1024
    /// Bytes asked for by a connection that was quiet: the buffer stays with the connection, and thousands
    /// of idle ones must cost little. Doubles with each read that fills it.
    private static let firstReceiveByteCount = 16 * 1024
    private static let smallestReceiveByteCount = 2 * 1024
    /// Reads per readiness event, so that one loud connection does not starve the others of its loop.
    private static let readsPerTurn: UInt = 4
    /// Pending connections the kernel queues for us.
    private static let backlog: Int32 = 1024
    /// Unsent response bytes at which a connection is no longer read from, and at which it is again.
    private static let writeWaterMark = ChannelOptions.Types.WriteBufferWaterMark(low: 256 * 1024, high: 1024 * 1024)
    /// Linux's number of the congestion control option, absent from the Glibc module.
    private static let congestionOption: CInt = 13

    private let channel: any Channel

    /// The address actually bound, with the port chosen by the kernel if 0 was asked for.
    package var address: SocketAddress {
        guard let address = channel.localAddress else { preconditionFailure("a bound listener has an address") }
        return address
    }

    private init(channel: any Channel) { self.channel = channel }

    /// Binds and accepts.
    ///
    /// - Parameter connection: makes the connection of a channel on its event loop, or returns `nil` to
    ///   refuse it (the channel is closed at once).
    package static func bind(
        host: String, port: Int, group: any EventLoopGroup, logger: Logger,
        connection: @escaping @Sendable (any EventLoop) -> ServerConnection?
    ) async throws -> ServerListener {
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: backlog)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.maxMessagesPerRead, value: readsPerTurn)
            .childChannelOption(.recvAllocator, value: receiveAllocator)
            .childChannelOption(.writeBufferWaterMark, value: writeWaterMark)
            .serverChannelInitializer { channel in
                // BBR, the default on many machines, paces loopback and data-centre links far below their
                // rate (measured 1.7 to 2.3 times slower fetches). Accepted sockets inherit the setting.
                // Kernels without cubic keep their own default.
                let cubic: (UInt8, UInt8, UInt8, UInt8, UInt8) = (0x63, 0x75, 0x62, 0x69, 0x63)
                guard let provider = channel as? any SocketOptionProvider else {
                    return channel.eventLoop.makeSucceededVoidFuture()
                }
                return provider.unsafeSetSocketOption(
                    level: .init(rawValue: CInt(IPPROTO_TCP)), name: .init(rawValue: congestionOption), value: cubic
                ).flatMapError { _ in channel.eventLoop.makeSucceededVoidFuture() }
            }
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    guard let handler = connection(channel.eventLoop) else {
                        channel.close(promise: nil)
                        return
                    }
                    do {
                        try channel.pipeline.syncOperations.addHandler(handler)
                    } catch {
                        handler.neverOpened()
                        throw error
                    }
                }
            }
        return ServerListener(channel: try await bootstrap.bind(host: host, port: port).get())
    }

    /// Makes a channel on `loop` for a socket that is connected already, with the options of accepted ones.
    ///
    /// - Parameters:
    ///   - connection: gives the channel's handler; runs on `loop`.
    ///   - failed: runs on `loop` instead; the socket is closed then.
    static func adopt(
        _ socket: NIOBSDSocket.Handle, on loop: any EventLoop,
        connection: @escaping @Sendable () -> ServerConnection,
        failed: @escaping @Sendable (any Error) -> Void
    ) {
        ClientBootstrap(group: loop)
            .channelOption(.maxMessagesPerRead, value: readsPerTurn)
            .channelOption(.recvAllocator, value: receiveAllocator)
            .channelOption(.writeBufferWaterMark, value: writeWaterMark)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(connection())
                }
            }
            .withConnectedSocket(socket)
            .hop(to: loop)
            .whenFailure(failed)
    }

    private static var receiveAllocator: AdaptiveRecvByteBufferAllocator {
        AdaptiveRecvByteBufferAllocator(
            minimum: smallestReceiveByteCount, initial: firstReceiveByteCount, maximum: largestReceiveByteCount)
    }

    /// Stops accepting; connections that exist are not touched.
    package func close() async throws {
        try await channel.close()
    }
}
