import Logging
import MartletTransport
import NIOCore
import NIOEmbedded
import Testing

@Suite struct ServerConnectionTests {
    /// Answers nothing of itself.
    private final class Handler: ServerRequestHandler {
        var tickets: [UInt64] = []
        var charge = 0
        var closedCount = 0

        func requestReceived(_ frame: ByteBuffer, ticket: UInt64, connection: ServerConnection) {
            tickets.append(ticket)
            connection.charge(charge, to: ticket)
        }

        func connectionOpened(_ connection: ServerConnection) {}
        func connectionClosed(_ connection: ServerConnection) { closedCount += 1 }
        func connectionLeft(_ connection: ServerConnection) {}
        func connectionArrived(_ connection: ServerConnection) {}
    }

    /// A channel that fails before it was active is not reported inactive either.
    private final class Unregistered: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        func channelInactive(context: ChannelHandlerContext) {}
    }

    private struct Harness {
        let loop = EmbeddedEventLoop()
        let channel: EmbeddedChannel
        let connection: ServerConnection
        let handler = Handler()
        let budget: MemoryBudget

        init(inFlightLimit: Int, budget: Int = 1 << 20, connects: Bool = true) throws {
            var limits = ConnectionLimits()
            limits.inFlightLimit = inFlightLimit
            self.budget = MemoryBudget(limit: budget)
            connection = ServerConnection(
                id: 1, loop: loop, handler: handler, limits: limits, budget: self.budget, logger: Logger(label: "test"))
            channel = EmbeddedChannel(loop: loop)
            if !connects { try channel.pipeline.syncOperations.addHandler(Unregistered()) }
            try channel.pipeline.syncOperations.addHandler(connection)
            if connects { try channel.connect(to: SocketAddress(ipAddress: "127.0.0.1", port: 9)).wait() }
        }

        func answer(_ number: Int) {
            connection.respond(to: handler.tickets[number], .nothing)
            loop.run()
        }
    }

    private static let frameByteCount = 1000

    private func frames(_ count: Int) -> ByteBuffer {
        var buffer = ByteBuffer()
        for _ in 0..<count {
            buffer.writeInteger(Int32(Self.frameByteCount))
            buffer.writeRepeatingByte(1, count: Self.frameByteCount)
        }
        return buffer
    }

    @Test func `bytes that wait for a place among the requests count in the memory budget`() throws {
        let harness = try Harness(inFlightLimit: 2)
        try harness.channel.writeInbound(frames(100))
        #expect(harness.handler.tickets.count == 2)
        #expect(harness.budget.reservedByteCount == 100 * Self.frameByteCount + 98 * FrameAccumulator.prefixByteCount)
        var answered = 0
        while answered < harness.handler.tickets.count {
            harness.answer(answered)
            answered += 1
        }
        #expect(answered == 100)
        #expect(harness.budget.reservedByteCount == 0)
    }

    @Test func `a connection that ends gives back everything it held`() throws {
        let harness = try Harness(inFlightLimit: 2)
        harness.handler.charge = 5000
        var input = frames(50)
        input.writeImmutableBuffer(frames(1).getSlice(at: 0, length: 300) ?? ByteBuffer())
        try harness.channel.writeInbound(input)
        #expect(harness.budget.reservedByteCount > 50 * Self.frameByteCount + 2 * 5000)
        try harness.channel.close().wait()
        harness.loop.run()
        #expect(harness.budget.reservedByteCount == 0)
    }

    @Test(arguments: [true, false])
    func `every connection is reported closed once, also one whose channel never was active`(active: Bool) throws {
        let harness = try Harness(inFlightLimit: 2, connects: active)
        harness.channel.close(promise: nil)
        harness.loop.run()
        #expect(harness.handler.closedCount == 1)
    }

    @Test func `what a request takes beyond its frame counts until it is answered`() throws {
        let harness = try Harness(inFlightLimit: 100, budget: 10_000)
        harness.handler.charge = 6000
        try harness.channel.writeInbound(frames(20))
        // Two requests fill the budget; the others are not even decoded.
        #expect(harness.handler.tickets.count == 2)
        var answered = 0
        while answered < harness.handler.tickets.count {
            #expect(harness.handler.tickets.count - answered <= 2)
            harness.answer(answered)
            answered += 1
        }
        #expect(answered == 20)
        #expect(harness.budget.reservedByteCount == 0)
    }
}
