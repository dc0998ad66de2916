internal import DequeModule
internal import Glibc
package import Logging
package import NIOCore

/// Limits of one client connection; shared by all connections of a listener.
package struct ConnectionLimits: Sendable {
    /// Largest request in bytes without the length prefix; Kafka's `socket.request.max.bytes`.
    package var requestByteLimit = 100 * 1024 * 1024
    /// Requests of one connection that may be in work at once. Further ones stay in the socket.
    package var inFlightLimit = 128
    /// A connection without any traffic is closed after this; Kafka's `connections.max.idle.ms`.
    package var idleLimit: TimeAmount = .minutes(10)
    /// A frame must arrive whole within this time of its first byte (slow-loris).
    package var partialFrameLimit: TimeAmount = .seconds(30)
    /// Responses of at most this size are gathered into one write.
    package var coalesceByteLimit = 64 * 1024

    package init() {}
}

/// What a handler answers to one request.
package enum ServerResponse {
    /// One buffer that starts with the length prefix.
    case buffer(ByteBuffer)
    /// Buffers and file regions in order; the first starts with the length prefix.
    case parts([ServerResponsePart])
    /// Nothing is sent (Produce with acks=0).
    case nothing
    /// The connection is closed after everything before it is sent.
    case close
}

package enum ServerResponsePart {
    case bytes(ByteBuffer)
    /// Sent with `sendfile`; the handle is closed after the write, whatever its outcome.
    case file(NIOFileHandle, offset: Int64, byteCount: Int)
}

/// Receives the requests of connections, on the connection's loop.
package protocol ServerRequestHandler: AnyObject {
    /// One request without its length prefix. Must lead to exactly one `connection.respond(to: ticket…)`.
    func requestReceived(_ frame: ByteBuffer, ticket: UInt64, connection: ServerConnection)
    func connectionOpened(_ connection: ServerConnection)
    func connectionClosed(_ connection: ServerConnection)
    /// The connection goes on at another loop; nothing of it is touched here any more.
    func connectionLeft(_ connection: ServerConnection)
    /// The connection has come from another loop, with its attachment and without requests in work.
    func connectionArrived(_ connection: ServerConnection)
}

/// One client connection of a broker: cuts frames, keeps responses in the order of their requests, gathers
/// them into few writes, and applies back pressure. Confined to its channel's event loop.
///
/// It may move to another loop (``move(to:handler:)``): it answers what it has begun, then the socket gets a
/// second descriptor and a channel over there, and the first channel is closed.
package final class ServerConnection: ChannelInboundHandler {
    package typealias InboundIn = ByteBuffer
    package typealias OutboundOut = IOData

    private enum Slot {
        /// `admitted`: the frame holds an admission of the memory budget.
        case waiting(reserved: Int, admitted: Bool)
        case ready(ServerResponse)
    }

    /// Number of this connection within the process, for logs and as a key.
    package let id: UInt64
    package private(set) var loop: any EventLoop
    package private(set) var localAddress: SocketAddress?
    package private(set) var remoteAddress: SocketAddress?
    /// Handlers keep what belongs to one connection here (sessions, client software names).
    package var attachment: AnyObject?

    private var handler: any ServerRequestHandler
    package var requestHandler: any ServerRequestHandler { handler }
    private let limits: ConnectionLimits
    private let budget: MemoryBudget
    private let logger: Logger
    private var context: ChannelHandlerContext?
    private var accumulator: FrameAccumulator
    private var slots = Deque<Slot>()
    private var firstTicket: UInt64 = 0
    private var output = ByteBuffer()
    private var needsFlush = false
    private var flushScheduled = false
    private var isReading = false
    private var readPaused = false
    private var closing = false
    private var partialReserved = 0
    /// Bytes counted that wait in the accumulator for a place among the requests.
    private var unparsedReserved = 0
    private var partialAdmitted = false
    private var waitsForMemory = false
    private var memoryCheckScheduled = false
    private var partialSince: NIODeadline?
    /// When bytes arrived last.
    package private(set) var lastActivity: NIODeadline
    /// The channel's own, which costs a virtual call and an atomic load at each look.
    private var isWritable = true
    /// Where the connection is to go on.
    private var destination: Destination?
    private var isDeparting = false
    private var hasOpened = false
    private var hasEnded = false

    /// First allocation for gathered responses.
    private static let outputCapacity = 1024
    /// Smallest legal frame: api key, version, correlation id and a null client id.
    private static let smallestFrame = 10
    /// A frame that has delivered more than this needs room for all of it before more is read. What comes
    /// before costs its sender as much as us, so promises alone cannot fill the budget.
    private static let freePartialByteCount = 64 * 1024
    /// How soon a connection that waits for memory looks again.
    private static let memoryCheckInterval: TimeAmount = .milliseconds(20)

    package init(
        id: UInt64, loop: any EventLoop, handler: any ServerRequestHandler, limits: ConnectionLimits,
        budget: MemoryBudget, logger: Logger
    ) {
        self.id = id
        self.loop = loop
        self.handler = handler
        self.limits = limits
        self.budget = budget
        self.logger = logger
        self.accumulator = FrameAccumulator(
            frameLimit: limits.requestByteLimit, smallestFrame: Self.smallestFrame)
        self.lastActivity = loop.now
    }

    /// Requests received and not answered yet.
    package var inFlightCount: Int { slots.count }

    // MARK: Channel events

    package func handlerAdded(context: ChannelHandlerContext) { self.context = context }

    package func handlerRemoved(context: ChannelHandlerContext) {
        if context === self.context { neverOpened() }
    }

    /// The channel failed before it was active. Nobody knows the connection yet but whoever has counted it.
    func neverOpened() {
        if !hasOpened { end() }
    }

    package func channelActive(context: ChannelHandlerContext) {
        self.context = context
        if hasOpened {
            handler.connectionArrived(self)
            drain()
            flushNow()
            updateReading()
        } else {
            hasOpened = true
            localAddress = context.localAddress
            remoteAddress = context.remoteAddress
            handler.connectionOpened(self)
        }
        context.fireChannelActive()
    }

    package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !closing, context === self.context else { return }
        isReading = true
        lastActivity = loop.now
        accumulator.append(unwrapInboundIn(data))
        drain()
    }

    package func channelReadComplete(context: ChannelHandlerContext) {
        guard context === self.context else { return }
        isReading = false
        flushNow()
        updateReading()
        departIfIdle()
    }

    package func channelWritabilityChanged(context: ChannelHandlerContext) {
        guard context === self.context else { return }
        isWritable = context.channel.isWritable
        if isWritable { drain() }
        updateReading()
        context.fireChannelWritabilityChanged()
    }

    package func channelInactive(context: ChannelHandlerContext) {
        // The channel that a move leaves behind ends without a word.
        if context === self.context { end() }
        context.fireChannelInactive()
    }

    private func end() {
        guard !hasEnded else { return }
        hasEnded = true
        closing = true
        var release = partialReserved + unparsedReserved
        partialReserved = 0
        unparsedReserved = 0
        if partialAdmitted { budget.endAdmission() }
        partialAdmitted = false
        for slot in slots {
            guard case .waiting(let reserved, let admitted) = slot else { continue }
            release += reserved
            if admitted { budget.endAdmission() }
        }
        if release > 0 { budget.release(release) }
        slots.removeAll()
        handler.connectionClosed(self)
    }

    package func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard context === self.context else { return }
        logger.debug("connection failed", metadata: ["connection": "\(id)", "error": "\(error)"])
        closing = true
        context.close(promise: nil)
    }

    // MARK: Requests

    /// Closes the connection with one log line, after the responses before it are sent.
    package func reject(_ reason: String) {
        guard !closing else { return }
        logger.warning(
            "connection closed",
            metadata: ["connection": "\(id)", "peer": "\(remoteAddress?.description ?? "?")", "cause": "\(reason)"])
        closing = true
        flushNow()
        context?.close(promise: nil)
    }

    private func drain() {
        do {
            // Where there is no memory one request is worked on at a time: its answer goes on with the next.
            while !closing, destination == nil, slots.count < limits.inFlightLimit, isWritable,
                slots.isEmpty || budget.hasRoom
            {
                guard let frame = try accumulator.next() else { break }
                let bytes = frame.readableBytes
                budget.reserve(bytes)
                slots.append(.waiting(reserved: bytes, admitted: partialAdmitted))
                partialAdmitted = false
                handler.requestReceived(frame, ticket: firstTicket + UInt64(slots.count - 1), connection: self)
            }
        } catch {
            reject(error.description)
            return
        }
        let unparsed = accumulator.unparsedByteCount
        if unparsed > unparsedReserved {
            budget.reserve(unparsed - unparsedReserved)
        } else if unparsed < unparsedReserved {
            budget.release(unparsedReserved - unparsed)
        }
        unparsedReserved = unparsed
        let held = accumulator.partialByteCount
        reservePartial(held)
        if held == 0 {
            partialSince = nil
        } else if partialSince == nil {
            partialSince = lastActivity
        }
    }

    /// Counts the frame in progress: what has arrived of it while that is little, all of it from then on. A
    /// frame that got its room is read to its end whatever else happens, so frames that block each other
    /// half-read cannot exist.
    private func reservePartial(_ held: Int) {
        waitsForMemory = false
        guard !partialAdmitted else { return }
        if held > Self.freePartialByteCount {
            let whole = max(held, accumulator.partialExpectedByteCount ?? held)
            if budget.admit(whole - partialReserved) {
                partialReserved = whole
                partialAdmitted = true
                partialSince = loop.now
                return
            }
            waitsForMemory = true
        }
        if held > partialReserved {
            budget.reserve(held - partialReserved)
        } else {
            budget.release(partialReserved - held)
        }
        partialReserved = held
    }

    /// Counts memory that a request takes beyond its frame, until it is answered.
    package func charge(_ byteCount: Int, to ticket: UInt64) {
        guard byteCount > 0, ticket >= firstTicket else { return }
        let index = Int(ticket - firstTicket)
        guard index < slots.count, case .waiting(let reserved, let admitted) = slots[index] else { return }
        budget.reserve(byteCount)
        slots[index] = .waiting(reserved: reserved + byteCount, admitted: admitted)
    }

    /// Answers one request. Tickets may be answered in any order; the bytes go out in request order.
    /// Call on ``loop``; a ticket of a connection that has closed meanwhile is ignored.
    package func respond(to ticket: UInt64, _ response: ServerResponse) {
        guard let index = settle(ticket) else {
            discard(response)
            return
        }
        guard index == 0 else {
            slots[index] = .ready(response)
            return
        }
        removeFirstSlot()
        emit(response)
        emitReady()
    }

    /// The same for a response that is made where it is needed: `write` appends it, length prefix included, to
    /// the bytes that go out next, or to a buffer of its own if earlier responses are missing.
    package func respond(to ticket: UInt64, writing write: (inout ByteBuffer) -> Void) {
        guard let index = settle(ticket) else { return }
        guard index == 0 else {
            var buffer = ByteBuffer()
            write(&buffer)
            slots[index] = .ready(.buffer(buffer))
            return
        }
        removeFirstSlot()
        if !closing {
            if output.capacity == 0 { output.reserveCapacity(Self.outputCapacity) }
            write(&output)
        }
        emitReady()
    }

    /// Gives back what the request held. Returns its place in the line, `nil` if it is not waiting.
    private func settle(_ ticket: UInt64) -> Int? {
        guard ticket >= firstTicket else { return nil }
        let index = Int(ticket - firstTicket)
        guard index < slots.count, case .waiting(let reserved, let admitted) = slots[index] else { return nil }
        budget.release(reserved)
        if admitted { budget.endAdmission() }
        return index
    }

    private func removeFirstSlot() {
        slots.removeFirst()
        firstTicket += 1
    }

    /// Sends what has waited for the response before it.
    private func emitReady() {
        while case .ready(let next)? = slots.first {
            removeFirstSlot()
            emit(next)
        }
        scheduleFlush()
    }

    private func emit(_ response: ServerResponse) {
        guard let context, !closing else {
            discard(response)
            return
        }
        switch response {
        case .nothing:
            break
        case .close:
            closing = true
            writeOutput(context)
            context.writeAndFlush(wrapOutboundOut(.byteBuffer(ByteBuffer())), promise: nil)
            context.close(promise: nil)
        case .buffer(let buffer):
            writeBytes(buffer, context)
        case .parts(let parts):
            for part in parts {
                switch part {
                case .bytes(let buffer):
                    writeBytes(buffer, context)
                case .file(let handle, let offset, let byteCount):
                    writeOutput(context)
                    let region = FileRegion(
                        fileHandle: handle, readerIndex: Int(offset), endIndex: Int(offset) + byteCount)
                    let written = context.eventLoop.makePromise(of: Void.self)
                    written.futureResult.whenComplete { [logger] _ in Self.close(handle, logger) }
                    context.write(wrapOutboundOut(.fileRegion(region)), promise: written)
                    needsFlush = true
                }
            }
        }
    }

    private func writeBytes(_ buffer: ByteBuffer, _ context: ChannelHandlerContext) {
        if buffer.readableBytes > limits.coalesceByteLimit {
            writeOutput(context)
            context.write(wrapOutboundOut(.byteBuffer(buffer)), promise: nil)
            needsFlush = true
        } else {
            output.writeImmutableBuffer(buffer)
        }
    }

    private func writeOutput(_ context: ChannelHandlerContext) {
        guard output.readableBytes > 0 else { return }
        context.write(wrapOutboundOut(.byteBuffer(output)), promise: nil)
        output = ByteBuffer()
        needsFlush = true
    }

    private func scheduleFlush() {
        // While a read is being worked on, channelReadComplete flushes for all its responses together.
        guard !isReading, !flushScheduled else { return }
        flushScheduled = true
        loop.assumeIsolated().execute {
            self.flushScheduled = false
            self.drain()
            self.flushNow()
            self.updateReading()
            self.departIfIdle()
        }
    }

    private func flushNow() {
        guard let context else { return }
        writeOutput(context)
        if needsFlush {
            needsFlush = false
            context.flush()
        }
    }

    private func updateReading() {
        guard let context, !closing else { return }
        let noMemory = waitsForMemory || (!partialAdmitted && !budget.hasRoom)
        if noMemory { scheduleMemoryCheck() }
        let pause = slots.count >= limits.inFlightLimit || !isWritable || noMemory || destination != nil
        guard pause != readPaused else { return }
        readPaused = pause
        context.channel.setOption(.autoRead, value: !pause).whenFailure { [logger] error in
            logger.debug("cannot change reading", metadata: ["error": "\(error)"])
        }
    }

    private func scheduleMemoryCheck() {
        guard !memoryCheckScheduled else { return }
        memoryCheckScheduled = true
        loop.assumeIsolated().scheduleTask(in: Self.memoryCheckInterval) {
            self.memoryCheckScheduled = false
            guard !self.closing else { return }
            self.drain()
            self.flushNow()
            self.updateReading()
            self.departIfIdle()
        }
    }

    // MARK: Moving to another loop

    private struct Destination {
        var loop: any EventLoop
        var handler: any ServerRequestHandler
    }

    /// Carries the connection from loop to loop.
    // SAFETY: made when the first loop's channel is closed and nothing there refers to the connection's state
    // any more; used on the second loop alone.
    private struct Passage: @unchecked Sendable {
        var connection: ServerConnection
        var destination: Destination
    }

    /// Continues the connection at `loop` with `handler`, once the requests in work are answered. Requests that
    /// arrive meanwhile wait. Does nothing while an earlier move is under way, and if the system cannot give
    /// the socket another descriptor.
    package func move(to loop: any EventLoop, handler: any ServerRequestHandler) {
        guard destination == nil, !closing, loop !== self.loop else { return }
        destination = Destination(loop: loop, handler: handler)
        if !isReading { departIfIdle() }
    }

    /// Leaves if nothing is under way: no request, no byte to be sent, no task of this loop.
    private func departIfIdle() {
        guard destination != nil, !isDeparting, !closing, !isReading, slots.isEmpty, !flushScheduled,
            !memoryCheckScheduled, let context
        else { return }
        isDeparting = true
        // Written once everything before it is.
        let written = context.eventLoop.makePromise(of: Void.self)
        context.writeAndFlush(wrapOutboundOut(.byteBuffer(ByteBuffer())), promise: written)
        written.futureResult.assumeIsolated().whenComplete { _ in
            // The promise may be kept within the call above.
            self.loop.assumeIsolated().execute { self.depart() }
        }
    }

    private func depart() {
        guard !closing, let context, let destination else { return }
        guard let descriptor = duplicateDescriptor(context.channel) else {
            self.destination = nil
            isDeparting = false
            updateReading()
            drain()
            return
        }
        self.context = nil
        handler.connectionLeft(self)
        let passage = Passage(connection: self, destination: destination)
        // Kept after the channel has let go of its handlers: from then on the connection is the passage's alone.
        context.channel.closeFuture.whenComplete { _ in
            ServerListener.adopt(descriptor, on: passage.destination.loop) {
                passage.connection.arrive(at: passage.destination)
                return passage.connection
            } failed: { error in
                passage.connection.arrive(at: passage.destination)
                passage.connection.logger.warning(
                    "connection lost on its way to another thread",
                    metadata: ["connection": "\(passage.connection.id)", "cause": "\(error)"])
                passage.connection.end()
            }
        }
        context.channel.close(promise: nil)
    }

    private func duplicateDescriptor(_ channel: any Channel) -> CInt? {
        do {
            return try channel.pipeline.syncOperations.withUnsafeTransportIfAvailable(of: NIOBSDSocket.Handle.self) {
                // SAFETY: the descriptor is open during this call and only duplicated.
                let copy = fcntl($0, F_DUPFD_CLOEXEC, 0)
                return copy >= 0 ? copy : nil
            } ?? nil
        } catch {
            logger.debug("connection stays", metadata: ["connection": "\(id)", "cause": "\(error)"])
            return nil
        }
    }

    /// First step on the new loop, before the channel is set up.
    private func arrive(at destination: Destination) {
        loop = destination.loop
        handler = destination.handler
        self.destination = nil
        isDeparting = false
        readPaused = false
        isWritable = true
        needsFlush = false
        lastActivity = loop.now
    }

    /// Called by the loop's sweeper about once a second: resumes reading when memory is free again, closes
    /// connections that idle or that never finish a frame.
    package func sweep(now: NIODeadline) {
        guard !closing else { return }
        if waitsForMemory {
            // The frame is late because we do not read it.
            partialSince = now
        }
        if let since = partialSince, now - since > limits.partialFrameLimit {
            reject("a request did not arrive whole within \(limits.partialFrameLimit.nanoseconds / 1_000_000_000) s")
        } else if slots.isEmpty, now - lastActivity > limits.idleLimit {
            logger.debug("idle connection closed", metadata: ["connection": "\(id)"])
            closing = true
            context?.close(promise: nil)
        } else if readPaused {
            drain()
            updateReading()
        }
    }

    /// Closes the connection now; used on shutdown.
    package func shutDown() {
        guard !closing else { return }
        closing = true
        flushNow()
        context?.close(promise: nil)
    }

    private func discard(_ response: ServerResponse) {
        guard case .parts(let parts) = response else { return }
        for case .file(let handle, _, _) in parts { Self.close(handle, logger) }
    }

    private static func close(_ handle: NIOFileHandle, _ logger: Logger) {
        do {
            try handle.close()
        } catch {
            logger.debug("cannot close a file handle", metadata: ["error": "\(error)"])
        }
    }
}
